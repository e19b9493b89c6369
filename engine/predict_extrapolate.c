/* SPDX-License-Identifier: Apache-2.0 */
/* predict_extrapolate.c -- how long blocks compute on many tokens, from times of few.
 *
 * Attention grows with the pairs of tokens, and is timed apart; all else grows with the tokens, but
 * for what a pass over the weights costs at any size: some of it once, and some for each input,
 * which each product takes one by one: t = a + f inputs + b tokens + c pairs */
#include <math.h>

#include "engine/predict.h"

enum {
    TOKENS_EXACT = 384, /* of all inputs: up to so many nothing is gained by fewer */
    TOKENS_FIRST = 64,  /* the smallest size */
};
/* One and two blocks that take no longer are computed at their own size; two that take longer are
 * enough to go by. */
#define QUICK_NS  UINT64_C(2500000000)
#define ENOUGH_NS UINT64_C(1000000000)
#define GROWN_NS  UINT64_C(8000000000) /* of sizes four times the one before, else two times */

/* ---- sizes -------------------------------------------------------------------------------- */

void hr_predict_add_input(struct hr_amount *amount, const struct hr_dit_geometry *g)
{
    amount->inputs += 1.0;
    amount->tokens += (double) g->n_all;
    amount->tokens_last += (double) g->n_img + (double) g->n_txt / 6.0;
    amount->pairs += (double) g->n_all * (double) g->n_all;
    amount->pairs_last += (double) g->n_img * (double) g->n_all;
}

/* `side` of a latent, which stays even. */
static uint32_t scale_side(uint32_t side, double factor)
{
    const double patches = round(side / 2 * factor);

    return 2 * (uint32_t) fmin(fmax(patches, 1.0), HR_DIT_SIDE_MAX / 2);
}

struct hr_dit_inputs hr_predict_scale_input(const struct hr_dit_inputs *inputs,
                                            const struct hr_dit_geometry *g, uint64_t n)
{
    struct hr_dit_inputs scaled = *inputs;
    const double share = (double) g->n_txt / (double) g->n_all;
    const double n_txt = fmin(fmax(round(share * (double) n), 1.0), (double) n - 1.0);
    const double factor = sqrt(((double) n - n_txt) / (double) g->n_img);

    scaled.prompt_mask = NULL;
    scaled.n_text = (uint32_t) n_txt;
    for (uint32_t k = 0; k < scaled.n_images; k++) {
        scaled.images[k].h = scale_side(scaled.images[k].h, factor);
        scaled.images[k].w = scale_side(scaled.images[k].w, factor);
    }
    return scaled;
}

/* What one and two blocks would take at most: in proportion, with what does not grow. */
static double at_most(const struct hr_amount *to, const struct hr_timing *at)
{
    const double ns = (double) (at->one.blocks_ns + at->two.blocks_ns);

    return ns * fmax(to->tokens / at->amount.tokens, to->inputs) + 3.0 * at->pair_ns * to->pairs;
}

uint64_t hr_predict_next(const struct hr_amount *to, const struct hr_timing *at, uint64_t n)
{
    const double four = 4.0 * (double) n;
    const struct hr_amount grown = {.inputs = 1.0, .tokens = four, .pairs = four * four};

    if (!at)
        return fmax(to->tokens, TOKENS_FIRST * to->inputs) <= TOKENS_EXACT ? HR_PREDICT_EXACT
                                                                           : TOKENS_FIRST;
    if (at_most(to, at) <= (double) QUICK_NS)
        return HR_PREDICT_EXACT;
    /* Products of fewer tokens than 256 tell too little of those of many. */
    if (n == TOKENS_FIRST)
        return 4 * n;
    if (at->two.blocks_ns >= ENOUGH_NS || 2.0 * (double) n >= to->tokens)
        return 0;
    return four <= to->tokens && at_most(&grown, at) <= (double) GROWN_NS ? 4 * n : 2 * n;
}

/* ---- times -------------------------------------------------------------------------------- */

static double minus(uint64_t a, uint64_t b)
{
    return a > b ? (double) (a - b) : 0.0;
}

/* Tokens and pairs of what is timed: of blocks as all but the last are, or of the last. */
struct point {
    double tokens, pairs, ns;
};

/* Chance must not turn a line that is nearly flat into one through the origin, nor the other way
 * round: the slope has bounds, and what it gives changes little where it reaches them. */
static uint64_t scale_time(const struct hr_amount *to, struct point end, const struct hr_timing *at,
                           const struct point *p)
{
    double rest[3];

    for (unsigned i = 0; i < 3; i++)
        rest[i] = fmax(p[i].ns - at[1].pair_ns * p[i].pairs, 0.0);
    /* From level to in proportion. */
    const double rise = (rest[1] - rest[0]) / (p[1].tokens - p[0].tokens);
    const double slope = fmin(fmax(rise, 0.0), rest[1] / p[1].tokens);
    const double fixed = rest[1] - slope * p[1].tokens;
    double ns = fixed + slope * end.tokens;

    if (to->inputs > 1.0) {
        const double more = rest[2] - rest[0] - slope * (p[2].tokens - p[0].tokens);

        ns += (to->inputs - 1.0) * fmin(fmax(more, 0.0), fixed);
    }
    /* Level may be copies behind which products are hidden that take as long by then. */
    return (uint64_t) (fmax(ns, at[1].token_ns * end.tokens) + at[1].pair_ns * end.pairs);
}

void hr_predict_extrapolate(struct hr_timing *ret_timing, const struct hr_amount *to,
                            const struct hr_timing *at)
{
    struct point last[3], full[3];

    for (unsigned i = 0; i < 3; i++) {
        const struct hr_amount *a = &at[i].amount;

        last[i] = (struct point){a->tokens_last, a->pairs_last, (double) at[i].one.blocks_ns};
        full[i] =
            (struct point){a->tokens, a->pairs, minus(at[i].two.blocks_ns, at[i].one.blocks_ns)};
    }
    *ret_timing = at[1]; /* what comes up front does not depend on the tokens */
    ret_timing->amount = *to;
    ret_timing->one.blocks_ns = scale_time(
        to, (struct point){.tokens = to->tokens_last, .pairs = to->pairs_last}, at, last);
    ret_timing->two.blocks_ns =
        ret_timing->one.blocks_ns +
        scale_time(to, (struct point){.tokens = to->tokens, .pairs = to->pairs}, at, full);
}
