/* SPDX-License-Identifier: Apache-2.0 */
/* predict.h -- inside of hr_dit_predict(). */
#ifndef HR_PREDICT_H
#define HR_PREDICT_H

#include "engine/dit.h"

/* What computing grows with, of all inputs. */
struct hr_amount {
    double inputs;
    double tokens;
    double tokens_last; /* of the last block: of the text it has keys and values alone, two of
                           twelve parts of the products of a token                            */
    double pairs;       /* of a query and a key, in a block                                   */
    double pairs_last;  /* in the last one, which has no queries of the text                  */
};

/* How long it takes at one size. */
struct hr_timing {
    struct hr_amount amount;
    struct {
        uint64_t up_front_ns, blocks_ns;
    } one, two;      /* blocks; of a model that has one, both are its   */
    double pair_ns;  /* of attention; left 0 where nobody will go by it            */
    double token_ns; /* of the products of a block alone; 0: not hidden behind copies */
    char device_name[128];
};

/* ---- predict_extrapolate.c ------------------------------------------------------------------ */

void hr_predict_add_input(struct hr_amount *amount, const struct hr_dit_geometry *g);

/* An input in the same proportions, those of text and images among them, with about n tokens. */
struct hr_dit_inputs hr_predict_scale_input(const struct hr_dit_inputs *inputs,
                                            const struct hr_dit_geometry *g, uint64_t n);

#define HR_PREDICT_EXACT UINT64_MAX

/* What is to be computed next, to tell how long `to` takes.
 * @param at  one input of about n tokens, which was computed last; NULL: nothing was, yet
 * @return tokens of an input; HR_PREDICT_EXACT: `to` itself; 0: nothing, the last two sizes are
 *         enough to extrapolate from */
uint64_t hr_predict_next(const struct hr_amount *to, const struct hr_timing *at, uint64_t n);

/* @param at  [3]: of one input two sizes, the second the larger; and of two inputs, each of the
 *            first size, which is looked at only where `to` is of several */
void hr_predict_extrapolate(struct hr_timing *ret_timing, const struct hr_amount *to,
                            const struct hr_timing *at);

/* ---- predict_compute.c ---------------------------------------------------------------------- */

/* Fill in what a forecast says of computing and of the link, without reading the model.
 * @param dit  prepared, not opened
 * @return 0, or as hr_dit_open() and hr_dit_forward() */
int hr_predict_compute(const struct hr_dit *dit, const struct hr_dit_params *params,
                       const struct hr_dit_inputs *inputs, struct hr_dit_forecast *forecast,
                       struct hr_error *err);

#endif /* HR_PREDICT_H */
