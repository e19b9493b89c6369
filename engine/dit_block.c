/* SPDX-License-Identifier: Apache-2.0 */
/* dit_block.c -- one dual-stream transformer block, for all samples.
 *
 *   a = LN(x) * (1 + scale1) + shift1            for image and text
 *   q, k, v of both -> RMSNorm per head, RoPE -> joint attention, text first
 *   x += gate1 * to_out(attention)
 *   x += gate2 * MLP(LN(x) * (1 + scale2) + shift2)
 *
 * The order of the calls is the order of the tensors in dit_layout.c; a weight serves every sample
 * before the next is asked for. In the last block the text stream's queries, output and MLP feed
 * nothing and are left out. */
#include <stdio.h>

#include "engine/dit.h"

/* The modulation vectors of a stream, each [D], in the order of their linear layer's output. */
enum { SHIFT1, SCALE1, GATE1, SHIFT2, SCALE2, GATE2 };

/* One of the two streams, image or text: what its samples share. */
struct flow {
    const char *name;
    bool is_image;
    const struct hr_stream_weights *w;
    const float *mod; /* [C, 6D] */
    const float *gain_q, *gain_k;
};

/* A flow of one sample: its rows of the sample's buffers. */
struct side {
    float *x;                 /* [n, D] residual */
    size_t n;                 /* tokens          */
    void *normed, *q, *k, *v; /* [n, D] act     */
    const float *cos_sin;     /* [n, 64, 2]      */
    size_t split;             /* rows from here on use the second modulation row */
};

static struct side side_of(const struct hr_dit *dit, const struct flow *flow, uint32_t sample)
{
    const struct hr_dit_buffers *b = &dit->samples[sample].buffers;
    const struct hr_dit_geometry *g = &dit->samples[sample].geometry;
    const size_t first = flow->is_image ? g->n_txt : 0; /* text comes first in the sequence */
    const size_t offset = first * dit->model.width * hr_dtype_bits(dit->act) / 8;
    const size_t n = flow->is_image ? g->n_img : g->n_txt;

    return (struct side){
        .x = flow->is_image ? b->img : b->txt,
        .n = n,
        .normed = (char *) b->normed + offset,
        .q = (char *) b->q + offset,
        .k = (char *) b->k + offset,
        .v = (char *) b->v + offset,
        .cos_sin = b->cos_sin + first * 2 * HR_DIT_ROPE_ANGLES,
        .split = flow->is_image && dit->model.zero_cond_t ? g->n_first : n,
    };
}

/* The first sample's rows, for tests. */
static void tap_flow(struct hr_dit *dit, const struct flow *flow, const char *name,
                     const void *data, enum hr_dtype dtype)
{
    char full[32];

    if (!dit->tap)
        return;
    snprintf(full, sizeof(full), "%s.%s", flow->name, name);
    hr_dit_tap(dit, full, data, dtype, side_of(dit, flow, 0).n, dit->model.width);
}

/* normed = LN(x) * (1 + scale) + shift; shift and scale index the modulation vectors. */
static int modulate(struct hr_dit *dit, const struct flow *flow, unsigned shift, unsigned scale,
                    struct hr_error *err)
{
    const size_t D = dit->model.width;
    int r = 0;

    for (uint32_t i = 0; i < dit->n_samples && r == 0; i++) {
        const struct side s = side_of(dit, flow, i);
        const struct hr_layernorm_modulate p = {
            .out = s.normed,
            .out_dtype = dit->act,
            .x = s.x,
            .shift = flow->mod + shift * D,
            .scale = flow->mod + scale * D,
            .split = s.split,
            .stride = 6 * D,
            .n_tokens = s.n,
            .width = D,
        };
        r = HR_FEED_RUN(&dit->feed, err, hr_gpu_layernorm_modulate(dit->gpu, &p));
    }
    return r;
}

/* Products of the modulated input, [n, D] -> [n, n_out]. */
static struct hr_linear projection(const struct hr_dit *dit, const struct side *s,
                                   enum hr_epilogue epilogue, void *out, enum hr_dtype out_dtype,
                                   size_t n_out)
{
    return (struct hr_linear){
        .x = s->normed,
        .x_dtype = dit->act,
        .x_stride = dit->model.width,
        .n_tokens = s->n,
        .n_in = dit->model.width,
        .epilogue = epilogue,
        .out = out,
        .out_dtype = out_dtype,
        .out_stride = n_out,
    };
}

/* x += gate * (in w^T + bias), in [n, n_in] act. */
static struct hr_linear gated(const struct hr_dit *dit, const struct flow *flow,
                              const struct side *s, const void *in, size_t n_in, unsigned gate)
{
    const size_t D = dit->model.width;

    return (struct hr_linear){
        .x = in,
        .x_dtype = dit->act,
        .x_stride = n_in,
        .n_tokens = s->n,
        .n_in = n_in,
        .epilogue = HR_EPILOGUE_GATED_RESIDUAL,
        .out = s->x,
        .out_dtype = HR_DTYPE_F32,
        .out_stride = D,
        .gate = flow->mod + gate * D,
        .gate_split = s->split,
        .gate_stride = 6 * D,
    };
}

enum qk { QUERIES, KEYS };

/* Queries or keys: product, RMSNorm per head, rotation. */
static int project_normed(struct hr_dit *dit, const struct flow *flow, enum qk which,
                          struct hr_error *err)
{
    const size_t D = dit->model.width;
    struct hr_linear p[HR_SAMPLES_MAX];
    int r;

    for (uint32_t i = 0; i < dit->n_samples; i++) {
        const struct side s = side_of(dit, flow, i);

        p[i] =
            projection(dit, &s, HR_EPILOGUE_STORE, dit->samples[i].buffers.work, HR_DTYPE_F32, D);
    }
    r = hr_feed_linear(&dit->feed, which == QUERIES ? &flow->w->to_q : &flow->w->to_k, p,
                       dit->n_samples, err);
    if (r == 0)
        tap_flow(dit, flow, which == QUERIES ? "to_q" : "to_k", p[0].out, HR_DTYPE_F32);
    for (uint32_t i = 0; i < dit->n_samples && r == 0; i++) {
        const struct side s = side_of(dit, flow, i);
        const struct hr_qk_norm_rope rope = {
            .out = which == QUERIES ? s.q : s.k,
            .x = p[i].out,
            .gain = which == QUERIES ? flow->gain_q : flow->gain_k,
            .cos_sin = s.cos_sin,
            .n_tokens = s.n,
            .n_heads = D / HR_HEAD_DIM,
        };
        r = HR_FEED_RUN(&dit->feed, err, hr_gpu_qk_norm_rope(dit->gpu, &rope));
    }
    return r;
}

static int project_qkv(struct hr_dit *dit, const struct flow *flow, bool with_queries,
                       struct hr_error *err)
{
    struct hr_linear p[HR_SAMPLES_MAX];
    int r = 0;

    if (with_queries)
        r = project_normed(dit, flow, QUERIES, err);
    if (r == 0)
        r = project_normed(dit, flow, KEYS, err);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < dit->n_samples; i++) {
        const struct side s = side_of(dit, flow, i);

        p[i] = projection(dit, &s, HR_EPILOGUE_STORE, s.v, dit->act, dit->model.width);
    }
    return hr_feed_linear(&dit->feed, &flow->w->to_v, p, dit->n_samples, err);
}

/* Attention over all keys, of all queries or those of the image; the output takes the place of the
 * modulated input. */
static int attend(struct hr_dit *dit, const struct flow *first, struct hr_error *err)
{
    int r = 0;

    for (uint32_t i = 0; i < dit->n_samples && r == 0; i++) {
        const struct hr_dit_buffers *b = &dit->samples[i].buffers;
        const struct hr_dit_geometry *g = &dit->samples[i].geometry;
        const struct side s = side_of(dit, first, i);
        const struct hr_attention p = {
            .out = s.normed,
            .q = s.q,
            .k = b->k,
            .v = b->v,
            .n_q = first->is_image ? g->n_img : g->n_all,
            .n_k = g->n_all,
            .n_heads = dit->model.width / HR_HEAD_DIM,
        };
        if (i == 0) {
            hr_dit_tap(dit, "q", b->q, dit->act, g->n_all, dit->model.width);
            hr_dit_tap(dit, "k", b->k, dit->act, g->n_all, dit->model.width);
        }
        const uint64_t begin_ns = hr_now_ns();

        r = HR_FEED_RUN(&dit->feed, err, hr_gpu_attention(dit->gpu, &p));
        hr_feed_trace_part(&dit->feed, "attention", i, begin_ns);
    }
    return r;
}

static int add_attention(struct hr_dit *dit, const struct flow *flow, struct hr_error *err)
{
    struct hr_linear p[HR_SAMPLES_MAX];

    for (uint32_t i = 0; i < dit->n_samples; i++) {
        const struct side s = side_of(dit, flow, i);

        p[i] = gated(dit, flow, &s, s.normed, dit->model.width, GATE1);
    }
    return hr_feed_linear(&dit->feed, &flow->w->to_out, p, dit->n_samples, err);
}

static int mlp(struct hr_dit *dit, const struct flow *flow, struct hr_error *err)
{
    const enum hr_epilogue act =
        dit->activation == HR_ACTIVATION_GELU_TANH ? HR_EPILOGUE_GELU_TANH : HR_EPILOGUE_QUICK_GELU;
    const size_t n_hidden = 4 * (size_t) dit->model.width;
    struct hr_linear up[HR_SAMPLES_MAX], down[HR_SAMPLES_MAX];
    int r = modulate(dit, flow, SHIFT2, SCALE2, err);

    for (uint32_t i = 0; i < dit->n_samples; i++) {
        void *hidden = dit->samples[i].buffers.hidden;
        const struct side s = side_of(dit, flow, i);

        up[i] = projection(dit, &s, act, hidden, dit->act, n_hidden);
        down[i] = gated(dit, flow, &s, hidden, n_hidden, GATE2);
    }
    if (r == 0)
        r = hr_feed_linear(&dit->feed, &flow->w->mlp_up, up, dit->n_samples, err);
    if (r == 0)
        r = hr_feed_linear(&dit->feed, &flow->w->mlp_down, down, dit->n_samples, err);
    return r;
}

static int load_gains(struct hr_dit *dit, const struct hr_block_weights *w, bool with_text,
                      struct hr_error *err)
{
    const struct {
        const struct hr_tensor *tensor;
        bool used;
    } gains[] = {
        {w->img.norm_q, true},
        {w->img.norm_k, true},
        {w->txt.norm_q, with_text},
        {w->txt.norm_k, true},
    };
    int r = 0;

    for (size_t i = 0; i < HR_ARRAY_SIZE(gains) && r == 0; i++)
        if (gains[i].used)
            r = hr_feed_vector(&dit->feed, gains[i].tensor, dit->shared.gains + i * HR_HEAD_DIM,
                               HR_HEAD_DIM, err);
    return r;
}

/* A flow's modulation vectors, then its modulated input's queries, keys and values. */
static int enter(struct hr_dit *dit, uint32_t idx, struct flow *flow, bool with_queries,
                 struct hr_error *err)
{
    int r = hr_dit_cond_block(dit, idx, flow->is_image, &flow->mod, err);

    if (r == 0)
        r = modulate(dit, flow, SHIFT1, SCALE1, err);
    if (r < 0)
        return r;
    tap_flow(dit, flow, "normed", side_of(dit, flow, 0).normed, dit->act);
    return project_qkv(dit, flow, with_queries, err);
}

static int attention_half(struct hr_dit *dit, uint32_t idx, struct flow *img, struct flow *txt,
                          bool with_text, struct hr_error *err)
{
    int r = enter(dit, idx, img, true, err);

    if (r == 0)
        r = enter(dit, idx, txt, with_text, err);
    if (r == 0)
        r = attend(dit, with_text ? txt : img, err);
    if (r == 0)
        r = add_attention(dit, img, err);
    if (r == 0 && with_text)
        r = add_attention(dit, txt, err);
    if (r == 0)
        tap_flow(dit, img, "half", side_of(dit, img, 0).x, HR_DTYPE_F32);
    return r;
}

static bool is_with_text(const struct hr_dit *dit, uint32_t idx)
{
    return idx + 1 < dit->model.n_layers || dit->complete;
}

int hr_dit_prepare_attention(struct hr_dit *dit, struct hr_error *err)
{
    int r = 0;

    for (uint32_t i = 0; i < dit->n_samples; i++) {
        const struct hr_dit_geometry *g = &dit->samples[i].geometry;

        for (uint32_t idx = 0; idx < dit->model.n_layers && r == 0; idx++) {
            const struct hr_attention p = {
                .n_q = is_with_text(dit, idx) ? g->n_all : g->n_img,
                .n_k = g->n_all,
                .n_heads = dit->model.width / HR_HEAD_DIM,
            };
            r = hr_gpu_attention_prepare(dit->gpu, &p, err);
        }
    }
    return r;
}

int hr_dit_block(struct hr_dit *dit, uint32_t idx, struct hr_error *err)
{
    const struct hr_block_weights *w = &dit->model.blocks[idx];
    const float *gains = dit->shared.gains;
    const bool with_text = is_with_text(dit, idx);
    struct flow img = {
        .name = "img",
        .is_image = true,
        .w = &w->img,
        .gain_q = gains,
        .gain_k = gains + HR_HEAD_DIM,
    };
    struct flow txt = {
        .name = "txt",
        .w = &w->txt,
        .gain_q = gains + 2 * HR_HEAD_DIM,
        .gain_k = gains + 3 * HR_HEAD_DIM,
    };
    int r = load_gains(dit, w, with_text, err);

    if (r == 0)
        r = attention_half(dit, idx, &img, &txt, with_text, err);
    if (r == 0 && with_text)
        r = mlp(dit, &txt, err);
    if (r == 0)
        r = mlp(dit, &img, err);
    if (r == 0) {
        tap_flow(dit, &img, "block", side_of(dit, &img, 0).x, HR_DTYPE_F32);
        tap_flow(dit, &txt, "block", side_of(dit, &txt, 0).x, HR_DTYPE_F32);
    }
    return r;
}
