/* SPDX-License-Identifier: Apache-2.0 */
/* dit_arena.c -- what lies in the device's arena, and where. */
#include "engine/dit.h"

void *hr_carve(struct hr_carver *c, const char *name, enum hr_dtype dtype, const uint64_t *shape,
               uint32_t rank)
{
    const uint64_t n = hr_shape_elements(shape, rank), size_bytes = n * hr_dtype_bytes(dtype);
    const struct hr_region *region = c->region;
    struct hr_memory_part part = {
        .name = name,
        .kind = c->kind,
        .sample_idx = c->sample_idx,
        .overlies = region ? region->name : NULL,
        .dtype = dtype,
        .rank = rank,
        .offset_bytes = c->at_bytes,
        .size_bytes = hr_gpu_arena_bytes(size_bytes),
    };
    void *place = NULL;

    hr_assert(rank <= HR_ARRAY_SIZE(part.shape));
    for (uint32_t i = 0; i < rank; i++)
        part.shape[i] = shape[i];
    if (c->tell)
        c->tell(c->tell_user, &part);
    if (region && region->base)
        place = region->base + (c->at_bytes - region->offset_bytes);
    else if (!region && c->gpu)
        place = hr_gpu_alloc(c->gpu, size_bytes);
    c->at_bytes += part.size_bytes;
    c->end_bytes = hr_max_u64(c->end_bytes, c->at_bytes);
    return place;
}

/* A region in four lives: tokens, then prompt on the way in; work, q, k, v of attention; the hidden
 * layer of the MLPs. Each begins where the region does. */
static void carve_lives(struct hr_carver *c, const struct hr_dit *dit, struct hr_dit_sample *sample)
{
    const struct hr_dit_geometry *g = &sample->geometry;
    const uint64_t D = dit->model.width, J = dit->model.config.joint_attention_dim;
    const uint64_t n_max = hr_max_u64(g->n_img, g->n_txt), begin_bytes = c->at_bytes;
    struct hr_dit_buffers *b = &sample->buffers;

    b->tokens = HR_CARVE(c, "tokens", HR_DTYPE_F32, g->n_img, HR_DIT_TOKEN_DIM);
    c->at_bytes = begin_bytes;
    b->prompt = HR_CARVE(c, "prompt", HR_DTYPE_F32, g->n_txt, J);
    c->at_bytes = begin_bytes;
    b->work = HR_CARVE(c, "work", HR_DTYPE_F32, n_max, D);
    b->q = HR_CARVE(c, "q", dit->act, g->n_all, D);
    b->k = HR_CARVE(c, "k", dit->act, g->n_all, D);
    b->v = HR_CARVE(c, "v", dit->act, g->n_all, D);
    c->at_bytes = begin_bytes;
    b->hidden = HR_CARVE(c, "hidden", dit->act, n_max, 4 * D);
}

static void carve_sample(struct hr_carver *c, const struct hr_dit *dit,
                         struct hr_dit_sample *sample)
{
    const struct hr_dit_geometry *g = &sample->geometry;
    const uint64_t D = dit->model.width;
    struct hr_dit_buffers *b = &sample->buffers;
    struct hr_region region = {.name = "region"};
    struct hr_carver size = {.region = &region}, lives = *c;

    b->img = HR_CARVE(c, "img", HR_DTYPE_F32, g->n_img, D);
    b->txt = HR_CARVE(c, "txt", HR_DTYPE_F32, g->n_txt, D);
    b->normed = HR_CARVE(c, "normed", dit->act, g->n_all, D);
    b->cos_sin = HR_CARVE(c, "cos_sin", HR_DTYPE_F32, g->n_all, HR_DIT_ROPE_ANGLES, 2);
    carve_lives(&size, dit, sample);
    region.offset_bytes = c->at_bytes;
    region.base = HR_CARVE(c, region.name, HR_DTYPE_U8, size.end_bytes);
    lives.region = &region;
    lives.at_bytes = region.offset_bytes;
    carve_lives(&lives, dit, sample);
}

static void carve_shared(struct hr_carver *c, struct hr_dit *dit)
{
    const uint64_t D = dit->model.width, R = hr_dit_cond_rows(dit);
    struct hr_dit_shared *sh = &dit->shared;

    sh->sinusoid = HR_CARVE(c, "sinusoid", HR_DTYPE_F32, R, HR_DIT_SINUSOID_DIM);
    sh->time_hidden = HR_CARVE(c, "time_hidden", HR_DTYPE_F32, R, D);
    sh->cond = HR_CARVE(c, "cond", HR_DTYPE_F32, hr_max_u64(R, 2), D);
    sh->ones = HR_CARVE(c, "ones", HR_DTYPE_F32, D);
    if (dit->timesteps)
        sh->rows = HR_CARVE(c, "rows", HR_DTYPE_F32, R, 6 * D);
    sh->mods = HR_CARVE(c, "mods", HR_DTYPE_F32, hr_dit_cond_step_floats(dit));
    sh->gains = HR_CARVE(c, "gains", HR_DTYPE_F32, 4, HR_HEAD_DIM);
    sh->txt_gain = HR_CARVE(c, "txt_gain", HR_DTYPE_F32, dit->model.config.joint_attention_dim);
    sh->bias = HR_CARVE(c, "bias", HR_DTYPE_F32, 6 * D);
    sh->flags = HR_CARVE(c, "flags", HR_DTYPE_U32, hr_dit_finite_flags(dit));
}

void hr_dit_carve(struct hr_dit *dit, struct hr_carver *c)
{
    c->sample_idx = -1;
    c->kind = HR_MEMORY_ACTIVATIONS;
    carve_shared(c, dit);
    for (uint32_t i = 0; i < dit->n_samples; i++) {
        c->sample_idx = (int32_t) i;
        carve_sample(c, dit, &dit->samples[i]);
    }
    c->sample_idx = -1;
    c->kind = HR_MEMORY_SCALES;
    hr_dit_scales_carve(dit, c);
    const uint64_t before_bytes = c->end_bytes;

    c->kind = HR_MEMORY_LORA;
    hr_dit_lora_carve(dit, c);
    dit->stats.lora_bytes = c->end_bytes - before_bytes;
    c->kind = HR_MEMORY_WEIGHTS;
    if (dit->on_device.size_bytes > 0)
        dit->on_device.store =
            HR_CARVE(c, "weights that stay", HR_DTYPE_U8, dit->on_device.size_bytes);
}

void hr_dit_tell_memory(struct hr_dit *dit, const struct hr_gpu_params *gpu_params,
                        hr_memory_fn *tell, void *user)
{
    struct hr_carver c = {.tell = tell, .tell_user = user};
    struct hr_gpu_part parts[HR_GPU_PARTS_MAX];
    const uint32_t n = hr_gpu_device_parts(gpu_params, parts);
    const uint32_t n_arena = gpu_params->weights_bytes > 0 ? 2 : 1;
    uint64_t arena_bytes = 0;

    hr_dit_carve(dit, &c);
    hr_assert(c.end_bytes == gpu_params->arena_bytes);
    for (uint32_t i = 0; i < n; i++) {
        struct hr_memory_part part = {.name = parts[i].name,
                                      .kind = HR_MEMORY_DEVICE,
                                      .sample_idx = -1,
                                      .dtype = HR_DTYPE_U8,
                                      .rank = 1,
                                      .offset_bytes = UINT64_MAX,
                                      .size_bytes = parts[i].size_bytes};

        if (i < n_arena) { /* told above, but for what rounds it up */
            arena_bytes += part.size_bytes;
            if (i + 1 < n_arena)
                continue;
            part.name = "rounding of the arena";
            part.size_bytes = arena_bytes - c.end_bytes;
        }
        part.shape[0] = part.size_bytes;
        if (part.size_bytes > 0)
            tell(user, &part);
    }
}
