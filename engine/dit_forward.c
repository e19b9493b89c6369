/* SPDX-License-Identifier: Apache-2.0 */
/* dit_forward.c -- one forward pass: embeddings, the blocks, the head.
 *
 * Embeddings, modulation and head run in f32 in every precision: they are 0.1 % of the arithmetic,
 * and rounding their inputs would cost more accuracy than all 60 blocks. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/dit.h"

void hr_dit_tap(struct hr_dit *dit, const char *name, const void *data, enum hr_dtype dtype,
                size_t rows, size_t cols)
{
    const size_t n = rows * cols;

    if (!dit->tap)
        return;
    float *values = calloc(n, sizeof(*values));
    void *raw = calloc(n, hr_dtype_bits(dtype) / 8);

    hr_assert(values && raw); /* only tests have a tap */
    hr_gpu_download(dit->gpu, raw, data, n * hr_dtype_bits(dtype) / 8);
    hr_dtype_to_f32(values, raw, dtype, n);
    dit->tap(dit->tap_user, name, values, rows, cols);
    free(raw);
    free(values);
}

static int upload(struct hr_dit *dit, float *dst, const float *src, size_t n, struct hr_error *err)
{
    return HR_FEED_RUN(&dit->feed, err, hr_gpu_upload(dit->gpu, dst, src, n * sizeof(*src)));
}

/* out = epilogue(x w^T + bias), all dense and F32. */
static int linear_f32(struct hr_dit *dit, const struct hr_linear_weights *w, const float *x,
                      size_t n_tokens, enum hr_epilogue epilogue, float *out, struct hr_error *err)
{
    const struct hr_linear p = {
        .x = x,
        .x_dtype = HR_DTYPE_F32,
        .x_stride = (size_t) w->weight->shape[1],
        .n_tokens = n_tokens,
        .n_in = (size_t) w->weight->shape[1],
        .epilogue = epilogue,
        .out = out,
        .out_dtype = HR_DTYPE_F32,
        .out_stride = (size_t) w->weight->shape[0],
        .gate = epilogue == HR_EPILOGUE_GATED_RESIDUAL ? dit->arena.ones : NULL,
        .gate_split = n_tokens,
    };
    return hr_feed_linear(&dit->feed, w, &p, err);
}

/* cond = silu(temb); a second row for timestep 0 with zero_cond_t. */
static int embed_timestep(struct hr_dit *dit, float timestep, struct hr_error *err)
{
    const struct hr_dit_model *m = &dit->model;
    const struct hr_dit_arena *a = &dit->arena;
    const size_t n_cond = m->zero_cond_t ? 2 : 1, D = m->width;
    enum hr_epilogue add = HR_EPILOGUE_STORE;
    float u[2 * HR_DIT_SINUSOID_DIM];
    int r;

    hr_dit_sinusoid(u, hr_dit_tau(timestep, dit->timestep_rounding));
    hr_dit_sinusoid(u + HR_DIT_SINUSOID_DIM, 0.0f);
    r = upload(dit, a->sinusoid, u, n_cond * HR_DIT_SINUSOID_DIM, err);
    hr_dit_tap(dit, "sinusoid", a->sinusoid, HR_DTYPE_F32, n_cond, HR_DIT_SINUSOID_DIM);
    if (r == 0)
        r = linear_f32(dit, &m->time_1, a->sinusoid, n_cond, HR_EPILOGUE_SILU, a->time_hidden, err);
    if (r == 0 && m->addition_t) {
        /* Row 0 of the table, "is RGB", is what temb is added to; see also the arena's cond. */
        r = hr_feed_vector(&dit->feed, m->addition_t, a->cond, 2 * D, err);
        add = HR_EPILOGUE_GATED_RESIDUAL;
    }
    if (r == 0)
        r = linear_f32(dit, &m->time_2, a->time_hidden, n_cond, add, a->cond, err);
    if (r < 0)
        return r;
    hr_dit_tap(dit, "temb", a->cond, HR_DTYPE_F32, n_cond, D);
    return HR_FEED_RUN(&dit->feed, err, hr_gpu_silu(dit->gpu, a->cond, a->cond, n_cond * D));
}

static int embed_image(struct hr_dit *dit, const struct hr_dit_inputs *in, struct hr_error *err)
{
    const struct hr_dit_geometry *g = &dit->geometry;
    float *tokens = dit->host;
    int r;

    for (uint32_t i = 0; i < g->n_images; i++) {
        hr_dit_pack(tokens, &in->images[i]);
        tokens += g->images[i].n_tokens * HR_DIT_TOKEN_DIM;
    }
    r = upload(dit, dit->arena.tokens, dit->host, g->n_img * HR_DIT_TOKEN_DIM, err);
    hr_dit_tap(dit, "tokens", dit->arena.tokens, HR_DTYPE_F32, g->n_img, HR_DIT_TOKEN_DIM);
    if (r == 0)
        r = linear_f32(dit, &dit->model.img_in, dit->arena.tokens, g->n_img, HR_EPILOGUE_STORE,
                       dit->arena.img, err);
    if (r == 0)
        hr_dit_tap(dit, "img_in", dit->arena.img, HR_DTYPE_F32, g->n_img, dit->model.width);
    return r;
}

static int embed_text(struct hr_dit *dit, const struct hr_dit_inputs *in, struct hr_error *err)
{
    const size_t J = dit->model.config.joint_attention_dim, n = dit->geometry.n_txt;
    const struct hr_dit_arena *a = &dit->arena;
    size_t kept = 0;
    int r;

    for (uint32_t j = 0; j < in->n_text; j++) {
        if (in->prompt_mask && !in->prompt_mask[j])
            continue;
        memcpy(dit->host + kept * J, in->prompt_emb + j * J, J * sizeof(float));
        dit->text_index[kept++] = j;
    }
    hr_assert(kept == n);
    r = upload(dit, a->prompt, dit->host, n * J, err);
    if (r == 0)
        r = hr_feed_vector(&dit->feed, dit->model.txt_norm, a->txt_gain, J, err);
    if (r == 0)
        r = HR_FEED_RUN(&dit->feed, err,
                        hr_gpu_rmsnorm(dit->gpu, a->prompt, a->prompt, a->txt_gain, n, J));
    if (r < 0)
        return r;
    hr_dit_tap(dit, "txt_norm", a->prompt, HR_DTYPE_F32, n, J);
    r = linear_f32(dit, &dit->model.txt_in, a->prompt, n, HR_EPILOGUE_STORE, a->txt, err);
    if (r < 0)
        return r;
    hr_dit_tap(dit, "txt_in", a->txt, HR_DTYPE_F32, n, dit->model.width);
    hr_dit_rope(dit->host, &dit->geometry, dit->model.config.use_layer3d_rope, dit->text_index);
    return upload(dit, a->cos_sin, dit->host, dit->geometry.n_all * 2 * HR_DIT_ROPE_ANGLES, err);
}

static int run_blocks(struct hr_dit *dit, uint64_t forward_begin_ns, uint64_t bytes_before,
                      struct hr_error *err)
{
    for (uint32_t i = 0; i < dit->model.n_layers; i++) {
        const uint64_t begin_ns = hr_now_ns();
        const uint64_t bytes = dit->feed.bytes_used, stall_ns = dit->feed.stall_ns;
        const int r = hr_dit_block(dit, i, err);

        if (r < 0)
            return r;
        const uint64_t now_ns = hr_now_ns();

        dit->block_stats[i] = (struct hr_dit_block_stats){
            .bytes = dit->feed.bytes_used - bytes,
            .wall_ns = now_ns - begin_ns,
            .stall_disk_ns = dit->feed.stall_ns - stall_ns,
        };
        if (dit->progress) {
            const struct hr_dit_progress progress = {
                .block_idx = i + 1,
                .n_blocks = dit->model.n_layers,
                .bytes_read = dit->feed.bytes_used - bytes_before,
                .elapsed_ns = now_ns - forward_begin_ns,
            };
            dit->progress(dit->progress_user, &progress);
        }
    }
    return 0;
}

/* velocity = proj_out(LN(img) * (1 + scale) + shift); here scale comes first. */
static int head(struct hr_dit *dit, float *velocity, struct hr_error *err)
{
    const struct hr_dit_geometry *g = &dit->geometry;
    const struct hr_dit_arena *a = &dit->arena;
    const size_t D = dit->model.width;
    const size_t n = dit->complete ? g->n_img : g->n_target_tokens;
    const struct hr_layernorm_modulate norm = {
        .out = a->work,
        .out_dtype = HR_DTYPE_F32,
        .x = a->img,
        .shift = a->mod_out + D,
        .scale = a->mod_out,
        .split = n,
        .n_tokens = n,
        .width = D,
    };
    int r = linear_f32(dit, &dit->model.norm_out, a->cond, 1, HR_EPILOGUE_STORE, a->mod_out, err);

    if (r == 0)
        r = HR_FEED_RUN(&dit->feed, err, hr_gpu_layernorm_modulate(dit->gpu, &norm));
    if (r < 0)
        return r;
    hr_dit_tap(dit, "head", a->work, HR_DTYPE_F32, n, D);
    /* The residual stream has served: the result takes its place. */
    r = linear_f32(dit, &dit->model.proj_out, a->work, n, HR_EPILOGUE_STORE, a->img, err);
    if (r < 0)
        return r;
    hr_dit_tap(dit, "proj_out", a->img, HR_DTYPE_F32, n, HR_DIT_TOKEN_DIM);
    r = HR_FEED_RUN(&dit->feed, err,
                    hr_gpu_download(dit->gpu, dit->host, a->img,
                                    g->n_target_tokens * HR_DIT_TOKEN_DIM * sizeof(float)));
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < g->n_targets; i++) {
        const size_t at = i * g->n_first * HR_DIT_TOKEN_DIM;

        hr_dit_unpack(velocity + at, dit->host + at, g->images[i].h, g->images[i].w);
    }
    return 0;
}

static int check_inputs(const struct hr_dit *dit, const struct hr_dit_inputs *inputs,
                        struct hr_error *err)
{
    struct hr_dit_geometry geometry;
    int r = hr_dit_geometry_init(&geometry, &dit->model, inputs, err);

    if (r < 0)
        return r;
    if (!hr_dit_geometry_equal(&geometry, &dit->geometry))
        return hr_error_set(err, -EINVAL,
                            "the inputs differ in size from those the model was opened for");
    if (!(inputs->timestep >= 0.0f && inputs->timestep <= 1000.0f))
        return hr_error_set(err, -EINVAL,
                            "the timestep is %g; expected sigma * 1000, from 0 to 1000",
                            (double) inputs->timestep);
    return 0;
}

static int run(struct hr_dit *dit, const struct hr_dit_inputs *inputs, float *velocity,
               struct hr_error *err)
{
    const uint64_t begin_ns = hr_now_ns();
    const struct hr_feed before = dit->feed;
    int r = embed_timestep(dit, inputs->timestep, err);

    if (r == 0)
        r = embed_image(dit, inputs, err);
    if (r == 0)
        r = embed_text(dit, inputs, err);
    if (r == 0)
        r = run_blocks(dit, begin_ns, before.bytes_used, err);
    if (r == 0)
        r = head(dit, velocity, err);
    hr_feed_flush(&dit->feed);

    dit->stats.wall_ns = hr_now_ns() - begin_ns;
    dit->stats.compute_ns = dit->feed.compute_ns - before.compute_ns;
    dit->stats.stall_disk_ns = dit->feed.stall_ns - before.stall_ns;
    dit->stats.bytes_used = dit->feed.bytes_used - before.bytes_used;
    return r;
}

int hr_dit_forward(struct hr_dit *dit, const struct hr_dit_inputs *inputs, float *velocity,
                   struct hr_error *err)
{
    int r = check_inputs(dit, inputs, err);

    if (r < 0)
        return r;
    if (dit->failed)
        return hr_error_set(err, dit->failed, "an earlier forward failed; open the model again");
    if (dit->n_done == dit->n_forwards)
        return hr_error_set(err, -ENODATA, "all %u forwards that the model was opened for are done",
                            dit->n_forwards);
    r = run(dit, inputs, velocity, err);
    if (r < 0)
        dit->failed = r;
    else
        dit->n_done++;
    return r;
}
