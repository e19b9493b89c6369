/* SPDX-License-Identifier: Apache-2.0 */
/* dit.c -- the life of a model in memory: preparation, open, statistics, close. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/dit.h"
#include "engine/states.h"
#include "engine/units.h"

/* ---- preparation: all that is known before memory is taken ---------------------------------- */

static int check_params(const struct hr_dit_params *params, struct hr_error *err)
{
    if (params->precision != HR_PRECISION_BF16 && params->precision != HR_PRECISION_F32)
        return hr_error_set(err, -EINVAL, "precision %d is neither bf16 nor f32",
                            (int) params->precision);
    if (params->activation != HR_ACTIVATION_GELU_TANH &&
        params->activation != HR_ACTIVATION_QUICK_GELU)
        return hr_error_set(err, -EINVAL, "activation %d is neither gelu_tanh nor quick_gelu",
                            (int) params->activation);
    if (params->attention != HR_ATTENTION_OWN && params->attention != HR_ATTENTION_CUDNN)
        return hr_error_set(err, -EINVAL, "attention %d is neither our own nor cuDNN's",
                            (int) params->attention);
    if (params->onload_dtype != HR_ONLOAD_MODEL && params->onload_dtype != HR_ONLOAD_FP8)
        return hr_error_set(err, -EINVAL, "onload dtype %d is neither the model's nor fp8",
                            (int) params->onload_dtype);
    if (params->onload_dtype == HR_ONLOAD_FP8 && params->states)
        return hr_error_set(err, -EINVAL,
                            "an onload dtype of fp8 and a table of states exclude each other: the "
                            "table says in which dtype weights stay");
    return 0;
}

/* With a single forward there is nothing to gain up front. */
static int copy_timesteps(struct hr_dit *dit, const struct hr_dit_params *params,
                          struct hr_error *err)
{
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

static struct hr_gpu_params gpu_params_of(struct hr_dit *dit, const struct hr_dit_params *params)
{
    return (struct hr_gpu_params){
        .device = params->device,
        .act = dit->act,
        .n_threads = params->n_threads,
        .vram_bytes = params->vram_bytes,
        .attention = params->attention,
        .arena_bytes = dit->budget.arena_bytes + hr_gpu_arena_bytes(dit->on_device.size_bytes),
        .weights_bytes = hr_gpu_arena_bytes(dit->on_device.size_bytes),
        .ring_bytes = dit->budget.device_ring_bytes,
        .cancelled = &dit->cancelled,
    };
}

/* In host or device memory from the first pass on. */
static bool stays(const struct hr_dit *dit, const struct hr_tensor *tensor)
{
    return hr_resident_find(&dit->resident, tensor) || hr_resident_find(&dit->on_device, tensor);
}

/* Bytes of weights that the passes will use, as start() will plan them. */
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
        if (i >= model->n_once && !stays(dit, model->plan[i]))
            meter->later_bytes += bytes;
    }
}

static void predict(struct hr_dit *dit, const struct hr_dit_params *params)
{
    const size_t step_floats = hr_dit_cond_step_floats(dit);
    const struct hr_meter *meter = &dit->meter;

    dit->stats.activation_bytes = dit->budget.arena_bytes;
    dit->stats.resident_bytes = dit->resident.size_bytes;
    dit->stats.device_resident_bytes = dit->on_device.size_bytes;
    dit->stats.lossy_bytes = dit->resident.rounded_bytes;
    if (dit->timesteps) {
        dit->stats.mods_bytes = (uint64_t) dit->n_forwards * step_floats * sizeof(float);
        dit->stats.mods_spilled =
            hr_dit_mods_spill(dit->n_forwards, step_floats, hr_dit_mods_memory_max(params));
    }
    dit->stats.predicted = (struct hr_dit_prediction){
        .n_forwards = dit->n_forwards,
        .n_blocks = dit->model.n_layers,
        .up_front_bytes = meter->up_front_bytes,
        .first_bytes = meter->up_front_bytes + meter->first_bytes,
        .later_bytes = meter->later_bytes,
        .run_bytes = hr_meter_run_bytes(meter),
        .peak_memory_bytes = hr_dit_budget_total(&dit->budget) + dit->resident.size_bytes,
        .ring_bytes = dit->budget.ring_bytes,
        .device_ring_bytes = dit->budget.device_ring_bytes,
        .activation_bytes = dit->budget.arena_bytes,
        .resident_bytes = dit->resident.size_bytes,
        .device_resident_bytes = dit->on_device.size_bytes,
        .mods_bytes = dit->stats.mods_bytes,
        .mods_spilled = dit->stats.mods_spilled,
        .device_memory_bytes = dit->budget.device_bytes,
    };
}

/* What the limit of a device with memory of its own leaves holds weights, all of which need no copy
 * in later passes. Those that a table wants elsewhere stay there. */
static int choose_on_device(struct hr_dit *dit, const struct hr_dit_params *params,
                            const struct hr_tensor *const *each, uint32_t n, const uint8_t *keep,
                            struct hr_error *err)
{
    const uint64_t taken_bytes = dit->budget.device_bytes + HR_GPU_ARENA_STEP;
    uint8_t *if_room = NULL;
    int r = 0;

    if (dit->n_forwards == 1 || dit->budget.device_bytes == 0 || params->vram_bytes <= taken_bytes)
        return 0;
    if (keep) {
        if_room = calloc(n, sizeof(*if_room));
        if (!if_room)
            return hr_error_set(err, -ENOMEM, "no memory for the states of %u tensors", n);
        for (uint32_t i = 0; i < n; i++)
            if_room[i] = keep[i] == HR_KEEP_IF_ROOM ? HR_KEEP_IF_ROOM : HR_KEEP_NEVER;
    }
    r = hr_resident_choose(&dit->on_device, each, n, if_room, params->vram_bytes - taken_bytes,
                           false, NULL, err);
    dit->on_device.on_device = true;
    free(if_room);
    if (r < 0)
        return r;
    const struct hr_gpu_params gpu_params = gpu_params_of(dit, params);

    return hr_gpu_device_bytes(&gpu_params, &dit->budget.device_bytes, err);
}

/* The budget, and within it the weights that will stay. What is read once, up front or by a single
 * forward, has nothing to stay for. */
static int share_memory(struct hr_dit *dit, const struct hr_dit_params *params,
                        struct hr_error *err)
{
    struct hr_gpu_params gpu_params = gpu_params_of(dit, params);
    const struct hr_tensor *const *each = dit->model.plan + dit->model.n_once;
    const uint32_t n = dit->model.n_plan - dit->model.n_once;
    uint8_t *keep = NULL;
    int r = hr_dit_budget_device_ring(&dit->budget, &dit->model, params, &gpu_params, err);

    if (r == 0 && params->states) {
        keep = calloc(n, sizeof(*keep));
        r = keep ? hr_states_apply(params->states, dit->checkpoint, params->precision, each, n,
                                   keep, err)
                 : hr_error_set(err, -ENOMEM, "no memory for the states of %u tensors", n);
    }
    if (r == 0 && dit->n_forwards > 1)
        dit->budget.keep_bytes = hr_resident_bytes_always(each, n, keep);
    if (r == 0)
        r = hr_dit_budget_make(&dit->budget, dit, params, &gpu_params, err);
    if (r == 0)
        r = choose_on_device(dit, params, each, n, keep, err);
    if (r == 0 && dit->budget.resident_bytes > 0 && !dit->budget.device_ring_bytes)
        r = hr_resident_choose(&dit->resident, each, n, keep, dit->budget.resident_bytes,
                               params->onload_dtype == HR_ONLOAD_FP8, &dit->on_device, err);
    free(keep);
    return r;
}

static bool is_verified(const struct hr_dit_params *params)
{
    return params->manifest && params->verify != HR_VERIFY_OFF;
}

/* Model, geometry, budget, and which weights will stay. */
static int prepare_parts(struct hr_dit *dit, const struct hr_dit_params *params,
                         const struct hr_dit_inputs *inputs, struct hr_error *err)
{
    const struct hr_dit_model *model = &dit->model;
    struct hr_carver counts = {.tell = NULL};
    int r = check_params(params, err);

    if (r == 0)
        r = hr_dit_ring_check(params, err);
    if (r == 0)
        r = copy_timesteps(dit, params, err);
    if (r == 0)
        r = hr_dit_model_init(&dit->model, dit->checkpoint, params, dit->timesteps != NULL,
                              dit->complete, err);
    if (r < 0)
        return r;
    if (model->zero_cond_t && model->addition_t)
        return hr_error_set(err, -EOPNOTSUPP,
                            "%s: a layered model with zero_cond_t was never published and is not "
                            "supported",
                            hr_checkpoint_path(dit->checkpoint));
    for (uint32_t i = 0; i < dit->n_samples && r == 0; i++)
        r = hr_dit_geometry_init(&dit->samples[i].geometry, model, &inputs[i], err);
    if (r == 0)
        r = hr_dit_scales_read(dit, err);
    if (r == 0)
        r = hr_dit_lora_open(dit, params, err);
    if (r == 0 && is_verified(params))
        r = hr_dit_verify_init(&dit->verify, dit->checkpoint, params->manifest,
                               params->verify == HR_VERIFY_ALWAYS, model->plan, model->n_plan, err);
    if (r < 0)
        return r;
    dit->vram_bytes = params->vram_bytes;
    dit->blocks = hr_stream_choose_blocks(dit->checkpoint, &params->stream);
    dit->budget.process_bytes = hr_memory_now().resident_bytes;
    hr_dit_carve(dit, &counts);
    dit->budget.arena_bytes = counts.end_bytes;
    r = share_memory(dit, params, err);
    if (r < 0)
        return r;
    if (params->memory) {
        const struct hr_gpu_params gpu_params = gpu_params_of(dit, params);

        hr_dit_tell_memory(dit, &gpu_params, params->memory, params->memory_user);
    }
    plan_meter(dit);
    predict(dit, params);
    return 0;
}

int hr_dit_prepare(struct hr_dit **ret_dit, const struct hr_checkpoint *checkpoint,
                   const struct hr_dit_params *params, const struct hr_dit_inputs *inputs,
                   uint32_t n_inputs, bool complete, struct hr_error *err)
{
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
    dit->checkpoint = checkpoint;
    dit->activation = params->activation;
    dit->act = params->precision == HR_PRECISION_F32 ? HR_DTYPE_F32 : HR_DTYPE_BF16;
    dit->timestep_rounding = params->timestep_rounding;
    dit->n_forwards = params->n_forwards ? params->n_forwards : 1;
    dit->complete = complete;
    atomic_init(&dit->cancelled, 0);
    r = prepare_parts(dit, params, inputs, err);
    if (r < 0)
        hr_dit_close(&dit);
    else
        *ret_dit = dit;
    return r;
}

/* ---- open and close ----------------------------------------------------------------------- */

static void log_bytes(const struct hr_dit_prediction *p)
{
    if (p->n_forwards == 1)
        hr_log(HR_LOG_INFO, "plan: %.4g GB of weights, at most %llu MiB of memory",
               (double) p->run_bytes / 1e9, hr_mib(p->peak_memory_bytes));
    else
        hr_log(HR_LOG_INFO,
               "plan: %.4g GB of weights in the first pass, %.4g GB in each of %u more, at most "
               "%llu MiB of memory",
               (double) p->first_bytes / 1e9, (double) p->later_bytes / 1e9, p->n_forwards - 1,
               hr_mib(p->peak_memory_bytes));
}

static int take_host_memory(struct hr_dit *dit, struct hr_error *err)
{
    bool complete = true;
    int r;

    dit->host = calloc(hr_dit_host_floats(dit), sizeof(float));
    dit->flags = calloc(hr_dit_finite_flags(dit), sizeof(*dit->flags));
    dit->block_stats = calloc(dit->model.n_layers, sizeof(*dit->block_stats));
    for (uint32_t i = 0; i < dit->n_samples; i++) {
        struct hr_dit_sample *sample = &dit->samples[i];

        sample->text_index = calloc(sample->geometry.n_txt, sizeof(*sample->text_index));
        complete = complete && sample->text_index;
    }
    if (!complete || !dit->flags || !dit->host || !dit->block_stats)
        return hr_error_set(err, -ENOMEM, "no memory for inputs on the host");
    for (uint32_t i = 0; i < dit->model.width; i++)
        dit->host[i] = 1.0f;
    r = hr_gpu_upload(dit->gpu, dit->shared.ones, dit->host, dit->model.width * sizeof(float));
    if (r < 0)
        return hr_error_set(err, r, "device %s: upload failed", hr_gpu_name(dit->gpu));
    return 0;
}

/* What comes into the arena before the first forward. */
static int load_extras(struct hr_dit *dit, struct hr_error *err)
{
    int r;

    dit->feed = (struct hr_feed){.gpu = dit->gpu, .cancelled = &dit->cancelled};
    r = hr_dit_lora_load(dit, err);
    return r == 0 ? hr_dit_scales_load(dit, err) : r;
}

static int take_mods(struct hr_dit *dit, const struct hr_dit_params *params, struct hr_error *err)
{
    const size_t step_floats = hr_dit_cond_step_floats(dit);

    if (dit->stats.mods_spilled)
        hr_log(HR_LOG_INFO,
               "modulation vectors of %u steps, %llu MiB, are more than a tenth of the memory "
               "limit and go to a temporary file",
               dit->n_forwards, hr_mib(dit->stats.mods_bytes));
    return hr_dit_mods_init(&dit->mods, dit->n_forwards, step_floats,
                            hr_dit_mods_memory_max(params), params->spill_dir, err);
}

/* Everything that takes memory, in the order device, arena, resident weights, ring. */
static int take_memory(struct hr_dit *dit, const struct hr_dit_params *params, struct hr_error *err)
{
    const struct hr_dit_budget *budget = &dit->budget;
    const struct hr_gpu_params gpu_params = gpu_params_of(dit, params);
    struct hr_stream_params stream_params = params->stream;
    struct hr_carver takes = {.tell = NULL};
    int r = hr_gpu_open(&dit->gpu, &gpu_params, err);

    if (r < 0)
        return r;
    if (params->stream.trace)
        r = hr_trace_reserve(params->stream.trace, hr_dit_trace_events(dit));
    if (r < 0)
        return hr_error_set(err, r, "no memory for a trace");
    takes.gpu = dit->gpu;
    hr_dit_carve(dit, &takes);
    r = hr_dit_prepare_attention(dit, err);
    if (r == 0)
        r = take_host_memory(dit, err);
    if (r == 0)
        r = load_extras(dit, err);
    if (r == 0 && is_verified(params))
        r = hr_dit_verify_start(&dit->verify, err);
    if (r == 0 && dit->timesteps)
        r = take_mods(dit, params, err);
    if (r == 0)
        r = hr_resident_take(&dit->resident, err);
    if (r < 0)
        return r;
    stream_params.ring_bytes = budget->ring_bytes;
    hr_log(HR_LOG_INFO,
           "memory: process %llu MiB, activations %llu, scratch up to %llu, ring %llu, "
           "resident weights %llu",
           hr_mib(budget->process_bytes),
           hr_mib((budget->device_bytes ? 0 : budget->arena_bytes) + budget->host_bytes +
                  budget->mods_bytes),
           hr_mib(budget->scratch_bytes), hr_mib(budget->ring_bytes),
           hr_mib(dit->resident.size_bytes));
    if (budget->device_bytes)
        hr_log(HR_LOG_INFO,
               "memory of the device: %llu MiB, activations %llu, ring %llu, resident weights %llu",
               hr_mib(budget->device_bytes), hr_mib(budget->arena_bytes),
               hr_mib(budget->device_ring_bytes), hr_mib(dit->on_device.size_bytes));
    log_bytes(&dit->stats.predicted);
    r = hr_stream_open_blocks(&dit->stream, dit->checkpoint, &stream_params, &dit->blocks,
                              hr_ring_memory_of(&dit->ring_memory, dit->gpu), err);
    if (r < 0)
        return r;
    hr_dit_register_ring(dit);
    hr_dit_ask_driver(dit);
    return 0;
}

/* The plan of the first pass, then, when weights stay, that of the others, which is shorter. */
static int start(struct hr_dit *dit, struct hr_error *err)
{
    const struct hr_dit_model *model = &dit->model;
    const bool resident = dit->resident.n > 0 || dit->on_device.n > 0;
    const char **names = calloc(2 * (size_t) model->n_plan, sizeof(*names));
    uint32_t n = 0, n_once = model->n_once, n_passes = dit->n_forwards;
    int r;

    if (!names)
        return hr_error_set(err, -ENOMEM, "no memory for %u names", model->n_plan);
    while (n < model->n_plan) {
        names[n] = model->plan[n]->name;
        n++;
    }
    if (resident) {
        for (uint32_t i = model->n_once; i < model->n_plan; i++)
            if (!stays(dit, model->plan[i]))
                names[n++] = model->plan[i]->name;
        n_once = n > model->n_plan ? model->n_plan : 0; /* or nothing is left to read */
        n_passes = n > model->n_plan ? n_passes - 1 : 1;
    }
    r = hr_stream_plan(dit->stream, names, n, n_once, n_passes, err);
    free(names);
    return r;
}

int hr_dit_open_tapped(struct hr_dit **ret_dit, const struct hr_checkpoint *checkpoint,
                       const struct hr_dit_params *params, const struct hr_dit_inputs *inputs,
                       uint32_t n_inputs, hr_dit_tap_fn *tap, void *tap_user, bool complete,
                       struct hr_error *err)
{
    static const struct hr_dit_params defaults;
    const uint64_t begin_ns = hr_now_ns();
    struct hr_dit *dit = NULL;
    int r;

    if (!params)
        params = &defaults;
    r = hr_dit_prepare(&dit, checkpoint, params, inputs, n_inputs, complete, err);
    if (r < 0)
        return r;
    dit->progress = params->progress;
    dit->progress_user = params->progress_user;
    dit->tap = tap;
    dit->tap_user = tap_user;
    r = take_memory(dit, params, err);
    if (r == 0) {
        dit->feed = (struct hr_feed){
            .stream = dit->stream,
            .gpu = dit->gpu,
            .cancelled = &dit->cancelled,
            .resident = &dit->resident,
            .on_device = &dit->on_device,
            .lora = &dit->lora,
            .verify = is_verified(params) ? &dit->verify : NULL,
            .trace = params->stream.trace,
            .bias = dit->shared.bias,
            .bias_max = 6 * (size_t) dit->model.width,
        };
        r = start(dit, err);
    }
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
    const int r =
        hr_dit_open_tapped(ret_dit, checkpoint, params, inputs, n_inputs, NULL, NULL, false, err);

    if (r == 0)
        hr_dit_lora_warn(*ret_dit);
    return r;
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
    if (d->gpu) /* copies out of the ring and the resident weights may still be under way */
        hr_gpu_sync(d->gpu);
    hr_dit_unregister(d);
    hr_dit_verify_uninit(&d->verify); /* its thread reads the ring */
    hr_stream_close(&d->stream);
    hr_gpu_close(&d->gpu);
    hr_resident_uninit(&d->resident);
    hr_resident_uninit(&d->on_device);
    hr_dit_mods_uninit(&d->mods);
    hr_dit_lora_close(d);
    hr_dit_model_uninit(&d->model);
    for (uint32_t i = 0; i < d->n_samples; i++)
        free(d->samples[i].text_index);
    free(d->samples);
    free(d->block_stats);
    free(d->flags);
    free(d->host);
    free(d->timesteps);
    free(d);
    *dit = NULL;
}
