/* SPDX-License-Identifier: Apache-2.0 */
/* dit_budget.c -- how the memory of a run is shared out, before any of it is taken. */
#include <errno.h>
#include <stdio.h>

#include "engine/dit.h"

enum {
    SLACK_BYTES = 24 << 20,     /* stacks, tables, pages of libraries that are yet to be touched */
    RING_BYTES_MAX = 256 << 20, /* what a budget is used for: a longer ring is no faster */
    RING_STEP_BYTES = 2 << 20,
    MODS_BYTES_MAX = 512 << 20, /* of memory for modulation vectors, where no limit was given */
};

size_t hr_dit_host_floats(const struct hr_dit *dit)
{
    const uint64_t D = dit->model.width, R = hr_dit_cond_rows(dit);
    uint64_t n = hr_max_u64(hr_max_u64(D, R * HR_DIT_SINUSOID_DIM), hr_dit_lora_host_floats(dit));

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

uint64_t hr_dit_mods_memory_max(const struct hr_dit_params *params)
{
    return params->ram_bytes ? params->ram_bytes / 10 : MODS_BYTES_MAX;
}

static uint64_t mods_memory(const struct hr_dit *dit, const struct hr_dit_params *params)
{
    const size_t step_floats = hr_dit_cond_step_floats(dit);

    if (!dit->timesteps ||
        hr_dit_mods_spill(dit->n_forwards, step_floats, hr_dit_mods_memory_max(params)))
        return 0;
    return (uint64_t) dit->n_forwards * step_floats * sizeof(float);
}

uint64_t hr_dit_trace_events(const struct hr_dit *dit)
{
    const struct hr_dit_model *model = &dit->model;
    const uint64_t n_parts = 8 + (uint64_t) model->n_layers * (1 + dit->n_samples);
    const uint32_t block_bytes = dit->blocks.block_bytes;

    return hr_stream_trace_events(model->plan, model->n_once, block_bytes) +
           dit->n_forwards *
               (n_parts + hr_stream_trace_events(model->plan + model->n_once,
                                                 model->n_plan - model->n_once, block_bytes));
}

/* A ring in which the whole plan fits gains nothing from more. */
static uint64_t plan_bytes(const struct hr_dit_model *model)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < model->n_plan; i++)
        bytes += model->plan[i]->size_bytes + 2 * 4096;
    return hr_align_up(bytes, RING_STEP_BYTES);
}

static int error_ring(const struct hr_dit_params *params, uint64_t ring_min, struct hr_error *err)
{
    return hr_error_set(err, -ENOMEM,
                        "a ring of %llu MiB cannot hold the largest piece of a weight; it needs "
                        "at least %llu MiB",
                        hr_mib(params->stream.ring_bytes), hr_mib(ring_min));
}

int hr_dit_budget_device_ring(struct hr_dit_budget *b, const struct hr_dit_model *model,
                              const struct hr_dit_params *params, struct hr_gpu_params *gpu_params,
                              struct hr_error *err)
{
    const uint64_t ring_min = hr_stream_ring_bytes_min(model->plan, model->n_plan);
    const uint64_t given = params->stream.ring_bytes;
    struct hr_error too_much = {0};
    uint64_t device_bytes, ring_bytes;

    if (!hr_io_reads_into_device(params->stream.io))
        return 0;
    if (given && given < ring_min)
        return error_ring(params, ring_min, err);
    ring_bytes = hr_min_u64(given ? given : (uint64_t) HR_RING_BYTES_DEFAULT, plan_bytes(model));
    ring_bytes = hr_max_u64(hr_align_up(ring_bytes, RING_STEP_BYTES), ring_min);
    gpu_params->ring_bytes = ring_bytes;
    /* What nobody asked for gives way to a limit. */
    if (!given && hr_gpu_device_bytes(gpu_params, &device_bytes, &too_much) == -ENOMEM)
        gpu_params->ring_bytes = ring_min;
    b->device_ring_bytes = gpu_params->ring_bytes;
    return 0;
}

/* And what goes with them, of the host's memory. */
static uint64_t activations_bytes(const struct hr_dit_budget *b)
{
    return (b->device_bytes ? 0 : b->arena_bytes) + b->host_bytes + b->mods_bytes + b->trace_bytes;
}

/* Without a limit the machine's own is kept: better one line now than the kernel's killer later. */
static int check_available(const struct hr_dit_budget *b, const struct hr_dit *dit,
                           struct hr_error *err)
{
    const uint64_t available = hr_room_read("").room_bytes;
    const uint64_t bytes = hr_dit_budget_total(b) + b->keep_bytes - b->process_bytes;

    if (bytes <= available)
        return 0;
    return hr_error_set(err, -ENOMEM,
                        "these inputs need %llu MiB of memory, and %llu MiB are available: "
                        "activations%s %llu, scratch %llu, ring %llu, weights that stay %llu; use "
                        "a smaller picture or fewer inputs in one pass",
                        hr_mib(bytes), hr_mib(available), dit->stats.lora_bytes ? " and LoRAs" : "",
                        hr_mib(activations_bytes(b)), hr_mib(b->scratch_bytes),
                        hr_mib(b->ring_bytes), hr_mib(b->keep_bytes));
}

uint64_t hr_dit_budget_total(const struct hr_dit_budget *b)
{
    return b->process_bytes + activations_bytes(b) + b->scratch_bytes + b->ring_bytes + SLACK_BYTES;
}

int hr_dit_budget_make(struct hr_dit_budget *b, const struct hr_dit *dit,
                       const struct hr_dit_params *params, const struct hr_gpu_params *gpu_params,
                       struct hr_error *err)
{
    const bool has_ring = !gpu_params->ring_bytes; /* of the host's memory */
    const uint64_t ring_min =
        has_ring ? hr_stream_ring_bytes_min(dit->model.plan, dit->model.n_plan) : 0;
    const uint64_t useful = has_ring ? hr_max_u64(plan_bytes(&dit->model), ring_min) : 0;
    int r = hr_gpu_check(gpu_params, err);

    if (r == 0)
        r = hr_gpu_device_bytes(gpu_params, &b->device_bytes, err);
    if (r < 0)
        return r;
    char kept[80] = "";

    b->scratch_bytes = hr_gpu_scratch_bytes(gpu_params);
    b->host_bytes = hr_dit_host_floats(dit) * sizeof(float);
    for (uint32_t i = 0; i < dit->n_samples; i++)
        b->host_bytes += dit->samples[i].geometry.n_txt * sizeof(uint32_t);
    b->mods_bytes = mods_memory(dit, params);
    b->trace_bytes = hr_trace_reserve_bytes(params->stream.trace, hr_dit_trace_events(dit));
    const uint64_t fixed = hr_dit_budget_total(b) + b->keep_bytes; /* the ring is yet to come */

    if (params->stream.ring_bytes) /* more than the whole plan would lie idle */
        b->ring_bytes = hr_min_u64(params->stream.ring_bytes, useful);
    else if (params->ram_bytes == 0)
        b->ring_bytes = hr_min_u64(HR_RING_BYTES_DEFAULT, useful);
    else if (params->ram_bytes > fixed)
        b->ring_bytes = hr_min_u64(hr_align_down(params->ram_bytes - fixed, RING_STEP_BYTES),
                                   hr_min_u64(RING_BYTES_MAX, useful));
    b->ring_bytes = hr_align_up(b->ring_bytes, RING_STEP_BYTES);
    if (params->stream.ring_bytes && b->ring_bytes < ring_min)
        return error_ring(params, ring_min, err);
    if (params->ram_bytes && b->ring_bytes >= ring_min &&
        fixed + b->ring_bytes > params->ram_bytes && fixed + ring_min <= params->ram_bytes)
        return hr_error_set(err, -ENOMEM,
                            "a ring of %llu MiB does not fit beside %llu MiB of other memory into "
                            "the limit of %llu MiB; make it smaller, or leave it to the limit",
                            hr_mib(b->ring_bytes), hr_mib(fixed), hr_mib(params->ram_bytes));
    b->resident_bytes = b->keep_bytes;
    if (params->ram_bytes == 0)
        return check_available(b, dit, err);
    if (b->ring_bytes >= ring_min && fixed + b->ring_bytes <= params->ram_bytes) {
        /* What only one pass would use gains nothing by staying. */
        if (dit->n_forwards > 1)
            b->resident_bytes += params->ram_bytes - fixed - b->ring_bytes;
        if (params->resident_max_bytes)
            b->resident_bytes = hr_max_u64(
                b->keep_bytes, hr_min_u64(b->resident_bytes, params->resident_max_bytes));
        return 0;
    }
    if (b->keep_bytes > 0)
        snprintf(kept, sizeof(kept), ", weights that the table of states keeps %llu",
                 hr_mib(b->keep_bytes));
    return hr_error_set(
        err, -ENOMEM,
        "the memory limit is %llu MiB, but these inputs need %llu MiB: process and "
        "libraries %llu, activations%s %llu, scratch %llu, ring at least %llu%s; raise "
        "the limit or use a smaller picture",
        hr_mib(params->ram_bytes), hr_mib(fixed + ring_min), hr_mib(b->process_bytes + SLACK_BYTES),
        dit->stats.lora_bytes ? " and LoRAs" : "", hr_mib(activations_bytes(b)),
        hr_mib(b->scratch_bytes), hr_mib(ring_min), kept);
}

void hr_dit_ask_driver(struct hr_dit *dit)
{
    struct hr_dit_stats *stats = &dit->stats;
    struct hr_gpu_memory memory;

    /* It may take milliseconds, and after two forwards all code is loaded. */
    if (dit->budget.device_bytes == 0 || (dit->n_done > 2 && dit->n_done < dit->n_forwards) ||
        !hr_gpu_memory(dit->gpu, &memory))
        return;
    const uint64_t others = memory.used_bytes - hr_min_u64(memory.used_bytes, memory.taken_bytes);

    if (dit->n_done == 0)
        stats->device_context_bytes = others;
    stats->device_peak_bytes = hr_max_u64(stats->device_peak_bytes, memory.used_bytes);
    if (dit->vram_bytes == 0 || stats->device_peak_bytes <= dit->vram_bytes)
        return;
    hr_log(
        HR_LOG_WARN,
        "the driver reports %llu MiB of the device's memory for this run, %llu MiB of them its own "
        "and its libraries': more than the limit of %llu MiB; set a limit that leaves room for "
        "them",
        hr_mib(stats->device_peak_bytes), hr_mib(others), hr_mib(dit->vram_bytes));
    dit->vram_bytes = 0;
}
