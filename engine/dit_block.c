/* SPDX-License-Identifier: Apache-2.0 */
/* dit_block.c -- one dual-stream transformer block.
 *
 *   a = LN(x) * (1 + scale1) + shift1            for image and text
 *   q, k, v of both -> RMSNorm per head, RoPE -> joint attention, text first
 *   x += gate1 * to_out(attention)
 *   x += gate2 * MLP(LN(x) * (1 + scale2) + shift2)
 *
 * The order of the calls is the order of the tensors in dit_layout.c. In the last block the text
 * stream's queries, output and MLP feed nothing and are left out. */
#include <stdio.h>

#include "engine/dit.h"

/* One of the two streams inside a block. */
struct side {
    const char *name;
    const struct hr_stream_weights *w;
    float *x;         /* [n, D] residual          */
    size_t n, first;  /* tokens, and their place in the joint sequence */
    const float *mod; /* shift1 scale1 gate1 shift2 scale2 gate2, each [D] */
    size_t split;     /* rows from here on use the second modulation row */
    const float *gain_q, *gain_k;
};

static const size_t mod_shift1 = 0, mod_scale1 = 1, mod_gate1 = 2;
static const size_t mod_shift2 = 3, mod_scale2 = 4, mod_gate2 = 5;

static size_t act_bytes(const struct hr_dit *dit)
{
    return dit->act == HR_DTYPE_BF16 ? 2 : 4;
}

/* Row `first` of an act array [S, D]. */
static void *act_row(const struct hr_dit *dit, void *base, size_t first)
{
    return (char *) base + first * dit->model.width * act_bytes(dit);
}

static int modulate(struct hr_dit *dit, const struct side *s, size_t shift, size_t scale,
                    struct hr_error *err)
{
    const size_t D = dit->model.width;
    const struct hr_layernorm_modulate p = {
        .out = act_row(dit, dit->arena.normed, s->first),
        .out_dtype = dit->act,
        .x = s->x,
        .shift = s->mod + shift * D,
        .scale = s->mod + scale * D,
        .split = s->split,
        .stride = 6 * D,
        .n_tokens = s->n,
        .width = D,
    };
    return HR_FEED_RUN(&dit->feed, err, hr_gpu_layernorm_modulate(dit->gpu, &p));
}

/* A product of the modulated input of one side, [n, D], with out_dtype's epilogue. */
static int project(struct hr_dit *dit, const struct side *s, const struct hr_linear_weights *w,
                   enum hr_epilogue epilogue, void *out, enum hr_dtype out_dtype, size_t n_out,
                   struct hr_error *err)
{
    const struct hr_linear p = {
        .x = act_row(dit, dit->arena.normed, s->first),
        .x_dtype = dit->act,
        .x_stride = dit->model.width,
        .n_tokens = s->n,
        .n_in = dit->model.width,
        .epilogue = epilogue,
        .out = out,
        .out_dtype = out_dtype,
        .out_stride = n_out,
    };
    return hr_feed_linear(&dit->feed, w, &p, err);
}

/* x += gate * (in w^T + bias), in [n, n_in] act. */
static int add_gated(struct hr_dit *dit, const struct side *s, const struct hr_linear_weights *w,
                     const void *in, size_t n_in, size_t gate, struct hr_error *err)
{
    const size_t D = dit->model.width;
    const struct hr_linear p = {
        .x = in,
        .x_dtype = dit->act,
        .x_stride = n_in,
        .n_tokens = s->n,
        .n_in = n_in,
        .epilogue = HR_EPILOGUE_GATED_RESIDUAL,
        .out = s->x,
        .out_dtype = HR_DTYPE_F32,
        .out_stride = D,
        .gate = s->mod + gate * D,
        .gate_split = s->split,
        .gate_stride = 6 * D,
    };
    return hr_feed_linear(&dit->feed, w, &p, err);
}

/* Queries or keys: product, RMSNorm per head, rotation, into rows of `out`. */
static int project_normed(struct hr_dit *dit, const struct side *s,
                          const struct hr_linear_weights *w, const float *gain, void *out,
                          const char *name, struct hr_error *err)
{
    const size_t D = dit->model.width;
    const struct hr_qk_norm_rope p = {
        .out = act_row(dit, out, s->first),
        .x = dit->arena.work,
        .gain = gain,
        .cos_sin = dit->arena.cos_sin + s->first * 2 * HR_DIT_ROPE_ANGLES,
        .n_tokens = s->n,
        .n_heads = D / HR_HEAD_DIM,
    };
    int r = project(dit, s, w, HR_EPILOGUE_STORE, dit->arena.work, HR_DTYPE_F32, D, err);

    if (r < 0)
        return r;
    hr_dit_tap(dit, name, dit->arena.work, HR_DTYPE_F32, s->n, D);
    return HR_FEED_RUN(&dit->feed, err, hr_gpu_qk_norm_rope(dit->gpu, &p));
}

static int project_qkv(struct hr_dit *dit, const struct side *s, bool with_queries,
                       struct hr_error *err)
{
    const struct hr_dit_arena *a = &dit->arena;
    char name[32];
    int r = 0;

    if (with_queries) {
        snprintf(name, sizeof(name), "%s.to_q", s->name);
        r = project_normed(dit, s, &s->w->to_q, s->gain_q, a->q, name, err);
    }
    snprintf(name, sizeof(name), "%s.to_k", s->name);
    if (r == 0)
        r = project_normed(dit, s, &s->w->to_k, s->gain_k, a->k, name, err);
    if (r == 0)
        r = project(dit, s, &s->w->to_v, HR_EPILOGUE_STORE, act_row(dit, a->v, s->first), dit->act,
                    dit->model.width, err);
    return r;
}

/* Attention of query rows from `first` on over all keys; the output takes the place of the
 * modulated input. */
static int attend(struct hr_dit *dit, size_t first, struct hr_error *err)
{
    const struct hr_dit_arena *a = &dit->arena;
    const struct hr_attention p = {
        .out = act_row(dit, a->normed, first),
        .q = act_row(dit, a->q, first),
        .k = a->k,
        .v = a->v,
        .n_q = dit->geometry.n_all - first,
        .n_k = dit->geometry.n_all,
        .n_heads = dit->model.width / HR_HEAD_DIM,
    };
    hr_dit_tap(dit, "q", a->q, dit->act, dit->geometry.n_all, dit->model.width);
    hr_dit_tap(dit, "k", a->k, dit->act, dit->geometry.n_all, dit->model.width);
    return HR_FEED_RUN(&dit->feed, err, hr_gpu_attention(dit->gpu, &p));
}

static int mlp(struct hr_dit *dit, const struct side *s, struct hr_error *err)
{
    const enum hr_epilogue act =
        dit->activation == HR_ACTIVATION_GELU_TANH ? HR_EPILOGUE_GELU_TANH : HR_EPILOGUE_QUICK_GELU;
    const size_t n_hidden = 4 * (size_t) dit->model.width;
    int r = modulate(dit, s, mod_shift2, mod_scale2, err);

    if (r == 0)
        r = project(dit, s, &s->w->mlp_up, act, dit->arena.hidden, dit->act, n_hidden, err);
    if (r == 0)
        r = add_gated(dit, s, &s->w->mlp_down, dit->arena.hidden, n_hidden, mod_gate2, err);
    return r;
}

/* Modulation vectors of one side: n_cond rows of 6D from silu(temb). */
static int modulation(struct hr_dit *dit, const struct side *s, float *out, size_t n_cond,
                      struct hr_error *err)
{
    const size_t D = dit->model.width;
    const struct hr_linear p = {
        .x = dit->arena.cond,
        .x_dtype = HR_DTYPE_F32,
        .x_stride = D,
        .n_tokens = n_cond,
        .n_in = D,
        .out = out,
        .out_dtype = HR_DTYPE_F32,
        .out_stride = 6 * D,
    };
    const int r = hr_feed_linear(&dit->feed, &s->w->mod, &p, err);

    if (r == 0 && s->first > 0)
        hr_dit_tap(dit, "img.mod", out, HR_DTYPE_F32, n_cond, 6 * D);
    return r;
}

static int load_gains(struct hr_dit *dit, const struct side *img, const struct side *txt,
                      bool with_text, struct hr_error *err)
{
    const struct {
        const struct hr_tensor *tensor;
        bool used;
    } gains[] = {
        {img->w->norm_q, true},
        {img->w->norm_k, true},
        {txt->w->norm_q, with_text},
        {txt->w->norm_k, true},
    };
    int r = 0;

    for (size_t i = 0; i < HR_ARRAY_SIZE(gains) && r == 0; i++)
        if (gains[i].used)
            r = hr_feed_vector(&dit->feed, gains[i].tensor, dit->arena.gains + i * HR_HEAD_DIM,
                               HR_HEAD_DIM, err);
    return r;
}

/* The two halves: attention, then the MLPs. */
static int attention_half(struct hr_dit *dit, const struct side *img, const struct side *txt,
                          bool with_text, struct hr_error *err)
{
    const size_t D = dit->model.width;
    int r = modulate(dit, img, mod_shift1, mod_scale1, err);

    if (r == 0)
        r = modulate(dit, txt, mod_shift1, mod_scale1, err);
    if (r < 0)
        return r;
    hr_dit_tap(dit, "img.normed", act_row(dit, dit->arena.normed, img->first), dit->act, img->n, D);
    r = project_qkv(dit, img, true, err);
    if (r == 0)
        r = project_qkv(dit, txt, with_text, err);
    if (r == 0)
        r = attend(dit, with_text ? 0 : img->first, err);
    if (r == 0)
        r = add_gated(dit, img, &img->w->to_out, act_row(dit, dit->arena.normed, img->first), D,
                      mod_gate1, err);
    if (r == 0 && with_text)
        r = add_gated(dit, txt, &txt->w->to_out, dit->arena.normed, D, mod_gate1, err);
    return r;
}

int hr_dit_block(struct hr_dit *dit, uint32_t idx, struct hr_error *err)
{
    const struct hr_dit_geometry *g = &dit->geometry;
    const struct hr_block_weights *w = &dit->model.blocks[idx];
    const struct hr_dit_arena *a = &dit->arena;
    const bool with_text = idx + 1 < dit->model.n_layers || dit->complete;
    const size_t n_cond = dit->model.zero_cond_t ? 2 : 1;
    const struct side img = {
        .name = "img",
        .w = &w->img,
        .x = a->img,
        .n = g->n_img,
        .first = g->n_txt,
        .mod = a->mod_img,
        .split = n_cond == 2 ? g->n_first : g->n_img,
        .gain_q = a->gains,
        .gain_k = a->gains + HR_HEAD_DIM,
    };
    const struct side txt = {
        .name = "txt",
        .w = &w->txt,
        .x = a->txt,
        .n = g->n_txt,
        .first = 0,
        .mod = a->mod_txt,
        .split = g->n_txt,
        .gain_q = a->gains + 2 * HR_HEAD_DIM,
        .gain_k = a->gains + 3 * HR_HEAD_DIM,
    };
    int r = modulation(dit, &img, a->mod_img, n_cond, err);

    if (r == 0)
        r = modulation(dit, &txt, a->mod_txt, 1, err);
    if (r == 0)
        r = load_gains(dit, &img, &txt, with_text, err);
    if (r == 0)
        r = attention_half(dit, &img, &txt, with_text, err);
    if (r < 0)
        return r;
    hr_dit_tap(dit, "half.img", a->img, HR_DTYPE_F32, g->n_img, dit->model.width);
    r = mlp(dit, &img, err);
    if (r == 0 && with_text)
        r = mlp(dit, &txt, err);
    if (r == 0) {
        hr_dit_tap(dit, "block.img", a->img, HR_DTYPE_F32, g->n_img, dit->model.width);
        hr_dit_tap(dit, "block.txt", a->txt, HR_DTYPE_F32, g->n_txt, dit->model.width);
    }
    return r;
}
