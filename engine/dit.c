/* SPDX-License-Identifier: Apache-2.0 */
/* dit.c -- the life of a model in memory: budget, open, statistics, close. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/dit.h"
#include "engine/stream.h"
#include "engine/units.h"

enum {
    SLACK_BYTES = 24 << 20,     /* stacks, tables, pages of libraries that are yet to be touched */
    RING_BYTES_MAX = 256 << 20, /* what a budget is used for: a longer ring is no faster */
    RING_STEP_BYTES = 2 << 20,
    MODS_BYTES_MAX = 512 << 20, /* of memory for modulation vectors, where no limit was given */
};

/* ---- arena -------------------------------------------------------------------------------- */

/* Both passes over the layout, counting and taking, go through here. */
struct carver {
    struct hr_gpu *gpu; /* NULL: count only */
    uint64_t bytes;
};

static void *carve(struct carver *c, uint64_t size_bytes)
{
    c->bytes += hr_gpu_arena_bytes(size_bytes);
    return c->gpu ? hr_gpu_alloc(c->gpu, size_bytes) : NULL;
}

static float *carve_f32(struct carver *c, uint64_t n)
{
    return carve(c, n * sizeof(float));
}

static void carve_sample(struct carver *c, const struct hr_dit *dit, struct hr_dit_sample *sample)
{
    const struct hr_dit_geometry *g = &sample->geometry;
    const uint64_t D = dit->model.width, J = dit->model.config.joint_attention_dim;
    const uint64_t act_bytes = hr_dtype_bits(dit->act) / 8;
    const uint64_t n_max = hr_max_u64(g->n_img, g->n_txt);
    /* One region in three lives: tokens, then prompt on the way in; work, q, k, v of attention; the
     * hidden layer of the MLPs. */
    const uint64_t work_bytes = hr_align_up(n_max * D * sizeof(float), 64);
    const uint64_t qkv_bytes = hr_align_up(g->n_all * D * act_bytes, 64);
    uint64_t region_bytes = work_bytes + 3 * qkv_bytes;
    struct hr_dit_buffers *b = &sample->buffers;

    region_bytes = hr_max_u64(region_bytes, n_max * 4 * D * act_bytes);
    region_bytes = hr_max_u64(region_bytes, g->n_img * HR_DIT_TOKEN_DIM * sizeof(float));
    region_bytes = hr_max_u64(region_bytes, g->n_txt * J * sizeof(float));
    b->img = carve_f32(c, g->n_img * D);
    b->txt = carve_f32(c, g->n_txt * D);
    b->normed = carve(c, g->n_all * D * act_bytes);
    b->cos_sin = carve_f32(c, g->n_all * 2 * HR_DIT_ROPE_ANGLES);
    b->work = carve(c, region_bytes);
    if (c->gpu) {
        b->q = (char *) b->work + work_bytes;
        b->k = (char *) b->q + qkv_bytes;
        b->v = (char *) b->k + qkv_bytes;
        b->hidden = b->tokens = b->prompt = b->work;
    }
}

uint64_t hr_dit_arena_layout(struct hr_dit *dit, struct hr_gpu *gpu)
{
    const uint64_t D = dit->model.width, R = hr_dit_cond_rows(dit);
    struct carver c = {.gpu = gpu};

    dit->shared = (struct hr_dit_shared){
        .sinusoid = carve_f32(&c, R * HR_DIT_SINUSOID_DIM),
        .time_hidden = carve_f32(&c, R * D),
        .cond = carve_f32(&c, hr_max_u64(R, 2) * D),
        .ones = carve_f32(&c, D),
        .rows = carve_f32(&c, dit->timesteps ? R * 6 * D : 1),
        .mods = carve_f32(&c, hr_dit_cond_step_floats(dit)),
        .gains = carve_f32(&c, 4 * HR_HEAD_DIM),
        .txt_gain = carve_f32(&c, dit->model.config.joint_attention_dim),
        .bias = carve_f32(&c, 6 * D),
    };
    for (uint32_t i = 0; i < dit->n_samples; i++)
        carve_sample(&c, dit, &dit->samples[i]);
    return c.bytes;
}

/* ---- budget ------------------------------------------------------------------------------- */

struct budget {
    uint64_t process_bytes; /* held before the model was opened */
    uint64_t arena_bytes, host_bytes, mods_bytes, scratch_bytes;
    uint64_t trace_bytes;
    uint64_t ring_bytes, resident_bytes;
};

/* The one buffer through which everything goes to and from the device. */
static size_t host_floats(const struct hr_dit *dit)
{
    const uint64_t D = dit->model.width, R = hr_dit_cond_rows(dit);
    uint64_t n = hr_max_u64(D, R * HR_DIT_SINUSOID_DIM);

    if (dit->timesteps)
        n = hr_max_u64(n, hr_max_u64(R * 6 * D, hr_dit_cond_step_floats(dit)));
    for (uint32_t i = 0; i < dit->n_samples; i++) {
        const struct hr_dit_geometry *g = &dit->samples[i].geometry;

        n = hr_max_u64(n, g->n_all * 2 * HR_DIT_ROPE_ANGLES);
        n = hr_max_u64(n, g->n_img * HR_DIT_TOKEN_DIM);
        n = hr_max_u64(n, g->n_txt * dit->model.config.joint_attention_dim);
    }
    return (size_t) n;
}

/* What modulation vectors of all steps may take of memory before they go to a file. */
static uint64_t mods_memory_max(const struct hr_dit_params *params)
{
    return params->ram_bytes ? params->ram_bytes / 10 : MODS_BYTES_MAX;
}

static uint64_t mods_memory(const struct hr_dit *dit, const struct hr_dit_params *params)
{
    const size_t step_floats = hr_dit_cond_step_floats(dit);

    if (!dit->timesteps || hr_dit_mods_spill(dit->n_forwards, step_floats, mods_memory_max(params)))
        return 0;
    return (uint64_t) dit->n_forwards * step_floats * sizeof(float);
}

/* The most events that the run adds to a trace. */
static uint64_t trace_events(const struct hr_dit *dit, const struct hr_dit_params *params)
{
    const struct hr_dit_model *model = &dit->model;
    const uint64_t n_parts = 8 + (uint64_t) model->n_layers * (1 + dit->n_samples);
    const uint32_t block_bytes = params->stream.block_bytes;

    return hr_stream_trace_events(model->plan, model->n_once, block_bytes) +
           dit->n_forwards *
               (n_parts + hr_stream_trace_events(model->plan + model->n_once,
                                                 model->n_plan - model->n_once, block_bytes));
}

static size_t max_tokens(const struct hr_dit *dit)
{
    size_t n = 0;

    for (uint32_t i = 0; i < dit->n_samples; i++)
        n = (size_t) hr_max_u64(n, dit->samples[i].geometry.n_all);
    return n;
}

/* A ring in which the whole plan fits gains nothing from more. */
static uint64_t plan_bytes(const struct hr_dit_model *model)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < model->n_plan; i++)
        bytes += model->plan[i]->size_bytes + 2 * 4096;
    return hr_align_up(bytes, RING_STEP_BYTES);
}

static unsigned long long mib(uint64_t bytes)
{
    return (unsigned long long) hr_div_ceil(bytes, HR_MIB);
}

/* Without a limit the machine's own is kept: better one line now than the kernel's killer later. */
static int check_available(uint64_t bytes, struct hr_error *err)
{
    const uint64_t available = hr_memory_available();

    if (available == 0 || bytes <= available)
        return 0;
    return hr_error_set(err, -ENOMEM,
                        "these inputs need %llu MiB of memory, and %llu MiB are available; use a "
                        "smaller picture or fewer inputs in one pass",
                        mib(bytes), mib(available));
}

/* Share out ram_bytes, or without a limit take what is needed and a good ring. */
static int make_budget(struct budget *b, const struct hr_dit *dit,
                       const struct hr_dit_params *params, const struct hr_gpu_params *gpu_params,
                       struct hr_error *err)
{
    const uint64_t D = dit->model.width;
    const uint64_t ring_min = hr_stream_ring_bytes_min(dit->model.plan, dit->model.n_plan);
    const uint64_t useful = hr_max_u64(plan_bytes(&dit->model), ring_min);

    b->scratch_bytes = hr_gpu_scratch_bytes(gpu_params, max_tokens(dit), 4 * D, 6 * D);
    b->host_bytes = host_floats(dit) * sizeof(float);
    for (uint32_t i = 0; i < dit->n_samples; i++)
        b->host_bytes += dit->samples[i].geometry.n_txt * sizeof(uint32_t);
    b->mods_bytes = mods_memory(dit, params);
    b->trace_bytes = hr_trace_reserve_bytes(params->stream.trace, trace_events(dit, params));
    const uint64_t fixed = b->process_bytes + b->arena_bytes + b->host_bytes + b->mods_bytes +
                           b->trace_bytes + b->scratch_bytes + SLACK_BYTES;

    if (params->stream.ring_bytes) /* more than the whole plan would lie idle */
        b->ring_bytes = hr_min_u64(params->stream.ring_bytes, useful);
    else if (params->ram_bytes == 0)
        b->ring_bytes = hr_min_u64(HR_STREAM_RING_BYTES_DEFAULT, useful);
    else if (params->ram_bytes > fixed)
        b->ring_bytes = hr_min_u64(hr_align_down(params->ram_bytes - fixed, RING_STEP_BYTES),
                                   hr_min_u64(RING_BYTES_MAX, useful));
    b->ring_bytes = hr_align_up(b->ring_bytes, RING_STEP_BYTES);
    if (params->stream.ring_bytes && b->ring_bytes < ring_min)
        return hr_error_set(
            err, -ENOMEM,
            "a ring of %llu MiB cannot hold the largest piece of a weight; it needs "
            "at least %llu MiB",
            mib(params->stream.ring_bytes), mib(ring_min));
    if (params->ram_bytes && b->ring_bytes >= ring_min &&
        fixed + b->ring_bytes > params->ram_bytes && fixed + ring_min <= params->ram_bytes)
        return hr_error_set(err, -ENOMEM,
                            "a ring of %llu MiB does not fit beside %llu MiB of other memory into "
                            "the limit of %llu MiB; make it smaller, or leave it to the limit",
                            mib(b->ring_bytes), mib(fixed), mib(params->ram_bytes));
    if (params->ram_bytes == 0)
        return check_available(fixed - b->process_bytes + b->ring_bytes, err);
    if (b->ring_bytes >= ring_min && fixed + b->ring_bytes <= params->ram_bytes) {
        /* What only one pass would use gains nothing by staying. */
        if (dit->n_forwards > 1)
            b->resident_bytes = params->ram_bytes - fixed - b->ring_bytes;
        if (params->resident_max_bytes)
            b->resident_bytes = hr_min_u64(b->resident_bytes, params->resident_max_bytes);
        return 0;
    }
    return hr_error_set(err, -ENOMEM,
                        "the memory limit is %llu MiB, but these inputs need %llu MiB: process and "
                        "libraries %llu, activations %llu, scratch %llu, ring at least %llu; raise "
                        "the limit or use a smaller picture",
                        mib(params->ram_bytes), mib(fixed + ring_min),
                        mib(b->process_bytes + SLACK_BYTES),
                        mib(b->arena_bytes + b->host_bytes + b->mods_bytes + b->trace_bytes),
                        mib(b->scratch_bytes), mib(ring_min));
}

/* ---- open and close ----------------------------------------------------------------------- */

static int check_params(const struct hr_dit_params *params, struct hr_error *err)
{
    if (params->precision != HR_PRECISION_BF16 && params->precision != HR_PRECISION_F32)
        return hr_error_set(err, -EINVAL, "precision %d is neither bf16 nor f32",
                            (int) params->precision);
    if (params->activation != HR_ACTIVATION_GELU_TANH &&
        params->activation != HR_ACTIVATION_QUICK_GELU)
        return hr_error_set(err, -EINVAL, "activation %d is neither gelu_tanh nor quick_gelu",
                            (int) params->activation);
    return 0;
}

static int take_host_memory(struct hr_dit *dit, struct hr_error *err)
{
    bool complete = true;
    int r;

    dit->host = calloc(host_floats(dit), sizeof(float));
    dit->block_stats = calloc(dit->model.n_layers, sizeof(*dit->block_stats));
    for (uint32_t i = 0; i < dit->n_samples; i++) {
        struct hr_dit_sample *sample = &dit->samples[i];

        sample->text_index = calloc(sample->geometry.n_txt, sizeof(*sample->text_index));
        complete = complete && sample->text_index;
    }
    if (!complete || !dit->host || !dit->block_stats)
        return hr_error_set(err, -ENOMEM, "no memory for inputs on the host");
    for (uint32_t i = 0; i < dit->model.width; i++)
        dit->host[i] = 1.0f;
    r = hr_gpu_upload(dit->gpu, dit->shared.ones, dit->host, dit->model.width * sizeof(float));
    if (r < 0)
        return hr_error_set(err, r, "device %s: upload failed", hr_gpu_name(dit->gpu));
    return 0;
}

static int take_mods(struct hr_dit *dit, const struct hr_dit_params *params, struct hr_error *err)
{
    const size_t step_floats = hr_dit_cond_step_floats(dit);

    dit->stats.mods_bytes = (uint64_t) dit->n_forwards * step_floats * sizeof(float);
    dit->stats.mods_spilled =
        hr_dit_mods_spill(dit->n_forwards, step_floats, mods_memory_max(params));
    if (dit->stats.mods_spilled)
        hr_log(HR_LOG_INFO,
               "modulation vectors of %u steps, %llu MiB, are more than a tenth of the memory "
               "limit and go to a temporary file",
               dit->n_forwards, mib(dit->stats.mods_bytes));
    return hr_dit_mods_init(&dit->mods, dit->n_forwards, step_floats, mods_memory_max(params),
                            params->spill_dir, err);
}

static int take_residents(struct hr_dit *dit, uint64_t budget_bytes, struct hr_error *err)
{
    const struct hr_dit_model *model = &dit->model;
    int r;

    if (budget_bytes == 0)
        return 0;
    r = hr_resident_choose(&dit->resident, model->plan + model->n_once,
                           model->n_plan - model->n_once, budget_bytes, err);
    if (r == 0)
        r = hr_resident_take(&dit->resident, err);
    dit->stats.resident_bytes = dit->resident.size_bytes;
    return r;
}

/* Everything that takes memory, in the order budget, device, arena, ring. */
static int take_memory(struct hr_dit *dit, const struct hr_dit_params *params, struct hr_error *err)
{
    struct budget budget = {.process_bytes = hr_memory_now().resident_bytes};
    struct hr_gpu_params gpu_params = {
        .device = params->device,
        .act = dit->act,
        .n_threads = params->n_threads,
        .cancelled = &dit->cancelled,
    };
    struct hr_stream_params stream_params = params->stream;
    int r;

    budget.arena_bytes = hr_dit_arena_layout(dit, NULL);
    gpu_params.arena_bytes = budget.arena_bytes;
    r = make_budget(&budget, dit, params, &gpu_params, err);
    if (r == 0)
        r = hr_gpu_open(&dit->gpu, &gpu_params, err);
    if (r < 0)
        return r;
    if (params->stream.trace)
        r = hr_trace_reserve(params->stream.trace, trace_events(dit, params));
    if (r < 0)
        return hr_error_set(err, r, "no memory for a trace");
    hr_dit_arena_layout(dit, dit->gpu);
    dit->stats.activation_bytes = budget.arena_bytes;
    r = take_host_memory(dit, err);
    if (r == 0 && dit->timesteps)
        r = take_mods(dit, params, err);
    if (r < 0)
        return r;
    r = take_residents(dit, budget.resident_bytes, err);
    if (r < 0)
        return r;
    stream_params.ring_bytes = budget.ring_bytes;
    hr_log(HR_LOG_INFO,
           "memory: process %llu MiB, activations %llu, scratch up to %llu, ring %llu, "
           "resident weights %llu",
           mib(budget.process_bytes),
           mib(budget.arena_bytes + budget.host_bytes + budget.mods_bytes),
           mib(budget.scratch_bytes), mib(budget.ring_bytes), mib(dit->resident.size_bytes));
    return hr_stream_open(&dit->stream, dit->checkpoint, &stream_params, err);
}

/* Bytes of weights that the passes will use, as the plans below say. */
static void plan_meter(struct hr_dit *dit)
{
    const struct hr_dit_model *model = &dit->model;
    struct hr_meter *meter = &dit->meter;

    *meter = (struct hr_meter){.n_forwards = dit->n_forwards, .n_blocks = model->n_layers};
    for (uint32_t i = 0; i < model->n_plan; i++) {
        const uint64_t bytes = model->plan[i]->size_bytes;

        if (i < model->n_once)
            meter->up_front_bytes += bytes;
        else
            meter->first_bytes += bytes;
        if (i >= model->n_once && !hr_resident_find(&dit->resident, model->plan[i]))
            meter->later_bytes += bytes;
    }
}

/* The plan of the first pass, then, when weights stay, that of the others, which is shorter. */
static int start(struct hr_dit *dit, struct hr_error *err)
{
    const struct hr_dit_model *model = &dit->model;
    const bool resident = dit->resident.n > 0;
    const char **names = calloc(2 * (size_t) model->n_plan, sizeof(*names));
    uint32_t n = 0, n_once = model->n_once, n_passes = dit->n_forwards;
    int r;

    if (!names)
        return hr_error_set(err, -ENOMEM, "no memory for %u names", model->n_plan);
    while (n < model->n_plan) {
        names[n] = model->plan[n]->name;
        n++;
    }
    plan_meter(dit);
    if (resident) {
        for (uint32_t i = model->n_once; i < model->n_plan; i++)
            if (!hr_resident_find(&dit->resident, model->plan[i]))
                names[n++] = model->plan[i]->name;
        n_once = n > model->n_plan ? model->n_plan : 0; /* or nothing is left to read */
        n_passes = n > model->n_plan ? n_passes - 1 : 1;
    }
    r = hr_stream_plan(dit->stream, names, n, n_once, n_passes, err);
    free(names);
    return r;
}

/* With a single forward there is nothing to gain up front. */
static int copy_timesteps(struct hr_dit *dit, const struct hr_dit_params *params,
                          struct hr_error *err)
{
    dit->mods.fd = -1;
    if (!params->timesteps || dit->n_forwards < 2)
        return 0;
    if (dit->n_forwards > HR_DIT_STEPS_MAX)
        return hr_error_set(err, -EINVAL, "%u timesteps; at most %d can be known up front",
                            dit->n_forwards, HR_DIT_STEPS_MAX);
    dit->timesteps = calloc(dit->n_forwards, sizeof(*dit->timesteps));
    if (!dit->timesteps)
        return hr_error_set(err, -ENOMEM, "no memory for %u timesteps", dit->n_forwards);
    memcpy(dit->timesteps, params->timesteps, dit->n_forwards * sizeof(*dit->timesteps));
    return 0;
}

static bool is_verified(const struct hr_dit_params *params)
{
    return params->manifest && params->verify != HR_VERIFY_OFF;
}

static int open_parts(struct hr_dit *dit, const struct hr_dit_params *params,
                      const struct hr_dit_inputs *inputs, struct hr_error *err)
{
    int r = check_params(params, err);

    if (r == 0)
        r = hr_dit_model_init(&dit->model, dit->checkpoint, params, dit->timesteps != NULL,
                              dit->complete, err);
    if (r < 0)
        return r;
    if (dit->model.zero_cond_t && dit->model.addition_t)
        return hr_error_set(err, -EOPNOTSUPP,
                            "%s: a layered model with zero_cond_t was never published and is not "
                            "supported",
                            hr_checkpoint_path(dit->checkpoint));
    for (uint32_t i = 0; i < dit->n_samples && r == 0; i++)
        r = hr_dit_geometry_init(&dit->samples[i].geometry, &dit->model, &inputs[i], err);
    if (r == 0 && is_verified(params))
        r = hr_dit_verify_init(&dit->verify, dit->checkpoint, params->manifest,
                               params->verify == HR_VERIFY_ALWAYS, dit->model.plan,
                               dit->model.n_plan, err);
    if (r == 0)
        r = take_memory(dit, params, err);
    if (r < 0)
        return r;
    dit->feed = (struct hr_feed){
        .stream = dit->stream,
        .gpu = dit->gpu,
        .cancelled = &dit->cancelled,
        .resident = &dit->resident,
        .verify = is_verified(params) ? &dit->verify : NULL,
        .trace = params->stream.trace,
        .bias = dit->shared.bias,
        .bias_max = 6 * (size_t) dit->model.width,
    };
    return start(dit, err);
}

int hr_dit_open_tapped(struct hr_dit **ret_dit, const struct hr_checkpoint *checkpoint,
                       const struct hr_dit_params *params, const struct hr_dit_inputs *inputs,
                       uint32_t n_inputs, hr_dit_tap_fn *tap, void *tap_user, bool complete,
                       struct hr_error *err)
{
    static const struct hr_dit_params defaults;
    const uint64_t begin_ns = hr_now_ns();
    struct hr_dit *dit;
    int r;

    if (n_inputs < 1 || n_inputs > HR_SAMPLES_MAX)
        return hr_error_set(err, -EINVAL, "%u inputs in one pass; expected 1 to %d", n_inputs,
                            HR_SAMPLES_MAX);
    dit = calloc(1, sizeof(*dit));
    if (dit)
        dit->samples = calloc(n_inputs, sizeof(*dit->samples));
    if (!dit || !dit->samples) {
        free(dit);
        return hr_error_set(err, -ENOMEM, "no memory for a model");
    }
    dit->n_samples = n_inputs;
    if (!params)
        params = &defaults;
    dit->checkpoint = checkpoint;
    dit->activation = params->activation;
    dit->act = params->precision == HR_PRECISION_F32 ? HR_DTYPE_F32 : HR_DTYPE_BF16;
    dit->timestep_rounding = params->timestep_rounding;
    dit->n_forwards = params->n_forwards ? params->n_forwards : 1;
    dit->progress = params->progress;
    dit->progress_user = params->progress_user;
    dit->tap = tap;
    dit->tap_user = tap_user;
    dit->complete = complete;
    atomic_init(&dit->cancelled, 0);
    r = copy_timesteps(dit, params, err);
    if (r == 0)
        r = open_parts(dit, params, inputs, err);
    if (r < 0) {
        hr_dit_close(&dit);
        return r;
    }
    dit->stats.setup_ns = hr_now_ns() - begin_ns;
    *ret_dit = dit;
    return 0;
}

int hr_dit_open(struct hr_dit **ret_dit, const struct hr_checkpoint *checkpoint,
                const struct hr_dit_params *params, const struct hr_dit_inputs *inputs,
                uint32_t n_inputs, struct hr_error *err)
{
    return hr_dit_open_tapped(ret_dit, checkpoint, params, inputs, n_inputs, NULL, NULL, false,
                              err);
}

void hr_dit_get_stats(const struct hr_dit *dit, struct hr_dit_stats *ret_stats)
{
    *ret_stats = dit->stats;
    hr_stream_get_stats(dit->stream, &ret_stats->stream);
    ret_stats->device_name = hr_gpu_name(dit->gpu);
    ret_stats->peak_memory_bytes = hr_memory_now().peak_bytes;
    ret_stats->verified_bytes = dit->verify.bytes;
    ret_stats->verify_ns = dit->verify.ns;
    ret_stats->n_blocks = dit->model.n_layers;
    ret_stats->blocks = dit->block_stats;
}

void hr_dit_interrupt(struct hr_dit *dit)
{
    atomic_store_explicit(&dit->cancelled, 1, memory_order_relaxed);
    hr_stream_interrupt(dit->stream);
}

void hr_dit_close(struct hr_dit **dit)
{
    struct hr_dit *d = *dit;

    if (!d)
        return;
    hr_stream_close(&d->stream);
    hr_gpu_close(&d->gpu);
    hr_resident_uninit(&d->resident);
    hr_dit_verify_uninit(&d->verify);
    hr_dit_mods_uninit(&d->mods);
    hr_dit_model_uninit(&d->model);
    for (uint32_t i = 0; i < d->n_samples; i++)
        free(d->samples[i].text_index);
    free(d->samples);
    free(d->block_stats);
    free(d->host);
    free(d->timesteps);
    free(d);
    *dit = NULL;
}
