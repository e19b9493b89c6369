/* SPDX-License-Identifier: Apache-2.0 */
/* dit_cond.c -- conditioning: timestep -> temb -> modulation vectors of every block and the head.
 *
 *   cond = silu(linear_2(silu(linear_1([cos, sin](1000 tau f)))))
 *   block: img_mod.1 cond, txt_mod.1 cond;  head: norm_out.linear cond
 *
 * Either in each forward, for its one timestep, as the weights come by; or in the first forward for
 * all timesteps. Products take few rows at a time, so that the bits of a row depend on no other. */
#include "engine/dit.h"

enum {
    ROWS_PER_PRODUCT = HR_TOKENS_INDEPENDENT_MAX,
    PRODUCTS_MAX = (HR_DIT_STEPS_MAX + 1 + ROWS_PER_PRODUCT - 1) / ROWS_PER_PRODUCT,
};

/* Timesteps whose vectors are in the making. */
static uint32_t n_steps(const struct hr_dit *dit)
{
    return dit->timesteps ? dit->n_forwards : 1;
}

static size_t n_cond(const struct hr_dit *dit)
{
    return dit->model.zero_cond_t ? 2 : 1;
}

size_t hr_dit_cond_rows(const struct hr_dit *dit)
{
    return n_steps(dit) + n_cond(dit) - 1;
}

/* Image and text of one block. */
static size_t block_floats(const struct hr_dit *dit)
{
    return (n_cond(dit) + 1) * 6 * dit->model.width;
}

/* Blocks whose vectors stand in shared.mods at a time. */
static size_t n_blocks(const struct hr_dit *dit)
{
    return dit->timesteps ? dit->model.n_layers : 1;
}

size_t hr_dit_cond_step_floats(const struct hr_dit *dit)
{
    return n_blocks(dit) * block_floats(dit) + 2 * dit->model.width;
}

/* Rows of x through a layer, the first n_rows of [R, in] to [R, out]. */
static int run_rows(struct hr_dit *dit, const struct hr_linear_weights *w, const float *x,
                    size_t n_rows, enum hr_epilogue epilogue, float *out, struct hr_error *err)
{
    struct hr_linear p[PRODUCTS_MAX];
    uint32_t n = 0;

    for (size_t row = 0; row < n_rows; row += ROWS_PER_PRODUCT) {
        hr_assert(n < PRODUCTS_MAX);
        p[n++] = hr_dit_linear_f32(dit, w, x + row * w->weight->shape[1],
                                   (size_t) hr_min_u64(n_rows - row, ROWS_PER_PRODUCT), epilogue,
                                   out + row * w->weight->shape[0]);
    }
    return hr_feed_linear(&dit->feed, w, p, n, err);
}

/* cond of all rows. */
static int embed(struct hr_dit *dit, const float *timesteps, struct hr_error *err)
{
    const struct hr_dit_model *m = &dit->model;
    const struct hr_dit_shared *sh = &dit->shared;
    const size_t R = hr_dit_cond_rows(dit), D = m->width;
    enum hr_epilogue add = HR_EPILOGUE_STORE;
    int r;

    for (uint32_t i = 0; i < R; i++)
        hr_dit_sinusoid(dit->host + i * HR_DIT_SINUSOID_DIM,
                        i < n_steps(dit) ? hr_dit_tau(timesteps[i], dit->timestep_rounding) : 0.0f);
    r = hr_dit_upload(dit, sh->sinusoid, dit->host, R * HR_DIT_SINUSOID_DIM, err);
    hr_dit_tap(dit, "sinusoid", sh->sinusoid, HR_DTYPE_F32, R, HR_DIT_SINUSOID_DIM);
    if (r == 0)
        r = run_rows(dit, &m->time_1, sh->sinusoid, R, HR_EPILOGUE_SILU, sh->time_hidden, err);
    if (r == 0 && m->addition_t) {
        /* Row 0 of the table, "is RGB", is what every temb is added to. */
        r = hr_feed_vector(&dit->feed, m->addition_t, sh->cond, 2 * D, err);
        for (size_t i = 1; i < R && r == 0; i++)
            r = HR_FEED_RUN(&dit->feed, err,
                            hr_gpu_to_f32(dit->gpu, sh->cond + i * D, sh->cond, HR_DTYPE_F32, D));
        add = HR_EPILOGUE_GATED_RESIDUAL;
    }
    if (r == 0)
        r = run_rows(dit, &m->time_2, sh->time_hidden, R, add, sh->cond, err);
    if (r < 0)
        return r;
    hr_dit_tap(dit, "temb", sh->cond, HR_DTYPE_F32, R, D);
    return HR_FEED_RUN(&dit->feed, err, hr_gpu_silu(dit->gpu, sh->cond, sh->cond, R * D));
}

/* ---- up front ----------------------------------------------------------------------------- */

/* Vectors of one layer for all steps into the store, `at` floats into each step. with_zero: the row
 * of timestep 0 comes behind each step's own. */
static int store_layer(struct hr_dit *dit, const struct hr_linear_weights *w, size_t at,
                       bool with_zero, struct hr_error *err)
{
    const size_t width = (size_t) w->weight->shape[0], steps = n_steps(dit);
    const size_t n_rows = with_zero ? hr_dit_cond_rows(dit) : steps;
    const float *zero = dit->host + steps * width;
    int r = run_rows(dit, w, dit->shared.cond, n_rows, HR_EPILOGUE_STORE, dit->shared.rows, err);

    if (r == 0)
        r = HR_FEED_RUN(
            &dit->feed, err,
            hr_gpu_download(dit->gpu, dit->host, dit->shared.rows, n_rows * width * sizeof(float)));
    for (uint32_t i = 0; i < steps && r == 0; i++) {
        r = hr_dit_mods_put(&dit->mods, i, at, dit->host + i * width, width, err);
        if (r == 0 && n_rows > steps)
            r = hr_dit_mods_put(&dit->mods, i, at + width, zero, width, err);
    }
    return r;
}

static int fill_store(struct hr_dit *dit, struct hr_error *err)
{
    const size_t D = dit->model.width;
    size_t at = 0;
    int r = embed(dit, dit->timesteps, err);

    for (uint32_t i = 0; i < dit->model.n_layers && r == 0; i++) {
        const struct hr_block_weights *w = &dit->model.blocks[i];

        r = store_layer(dit, &w->img.mod, at, true, err);
        if (r == 0)
            r = store_layer(dit, &w->txt.mod, at + n_cond(dit) * 6 * D, false, err);
        at += block_floats(dit);
        if (r == 0)
            hr_dit_report_progress(dit, 0);
    }
    if (r == 0)
        r = store_layer(dit, &dit->model.norm_out, at, false, err);
    if (r == 0) {
        const struct hr_meter_now now = hr_dit_meter_now(dit, 0);

        hr_meter_up_front_done(&dit->meter, &now);
    }
    return r;
}

/* ---- in each forward ---------------------------------------------------------------------- */

int hr_dit_cond_begin(struct hr_dit *dit, float timestep, struct hr_error *err)
{
    const float *values = NULL;
    int r = 0;

    if (!dit->timesteps)
        return embed(dit, &timestep, err);
    hr_assert(timestep == dit->timesteps[dit->n_done]);
    if (dit->n_done == 0)
        r = fill_store(dit, err);
    if (r == 0)
        r = hr_dit_mods_get(&dit->mods, dit->n_done, dit->host, &values, err);
    if (r == 0)
        r = hr_dit_upload(dit, dit->shared.mods, values, hr_dit_cond_step_floats(dit), err);
    return r;
}

int hr_dit_cond_block(struct hr_dit *dit, uint32_t idx, bool is_image, const float **ret_mod,
                      struct hr_error *err)
{
    const struct hr_block_weights *w = &dit->model.blocks[idx];
    const size_t D = dit->model.width, n_rows = is_image ? n_cond(dit) : 1;
    float *mod = dit->shared.mods + (dit->timesteps ? idx * block_floats(dit) : 0) +
                 (is_image ? 0 : n_cond(dit) * 6 * D);
    int r = 0;

    if (!dit->timesteps)
        r = run_rows(dit, is_image ? &w->img.mod : &w->txt.mod, dit->shared.cond, n_rows,
                     HR_EPILOGUE_STORE, mod, err);
    if (r < 0)
        return r;
    if (is_image)
        hr_dit_tap(dit, "img.mod", mod, HR_DTYPE_F32, n_rows, 6 * D);
    *ret_mod = mod;
    return 0;
}

int hr_dit_cond_head(struct hr_dit *dit, const float **ret_mod, struct hr_error *err)
{
    float *mod = dit->shared.mods + n_blocks(dit) * block_floats(dit);
    int r = 0;

    if (!dit->timesteps)
        r = run_rows(dit, &dit->model.norm_out, dit->shared.cond, 1, HR_EPILOGUE_STORE, mod, err);
    if (r == 0)
        *ret_mod = mod;
    return r;
}
