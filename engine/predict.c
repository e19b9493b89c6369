/* SPDX-License-Identifier: Apache-2.0 */
/* predict.c -- what a run would use, from its plan; and how long it would take, from a sample of
 * the model's own bytes and from one and two blocks computed on memory that is already there.
 *
 * Blocks are alike, so the difference of two blocks and one, times the blocks that are left, is
 * what the others take; what one block took beyond that, embeddings and head, comes once. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/dit.h"

enum {
    FORWARDS_MAX = 6,       /* timed for each number of blocks; the shortest counts         */
    SAMPLE_BYTES = 1 << 30, /* of the disk, at most; and for at most SAMPLE_NS              */
};
#define SAMPLE_NS  UINT64_C(1500000000)
#define COMPUTE_NS UINT64_C(1500000000) /* for each number of blocks, unless one takes longer */

/* ---- disk --------------------------------------------------------------------------------- */

/* The tensors of the blocks, as each pass reads them, up to SAMPLE_BYTES. */
static uint32_t choose_sample(const struct hr_dit_model *model, const char **names)
{
    uint64_t bytes = 0;
    uint32_t n = 0;

    for (uint32_t i = model->n_once; i < model->n_plan && (n == 0 || bytes < SAMPLE_BYTES); i++) {
        names[n++] = model->plan[i]->name;
        bytes += model->plan[i]->size_bytes;
    }
    return n;
}

static int read_sample(struct hr_stream *stream, struct hr_error *err)
{
    const uint64_t begin_ns = hr_now_ns();
    struct hr_unit unit;
    int r = 1;

    while (r == 1 && hr_now_ns() - begin_ns < SAMPLE_NS) {
        r = hr_stream_next(stream, &unit, err);
        if (r == 1)
            hr_stream_release(stream, &unit);
    }
    return r < 0 ? r : 0;
}

static int measure_disk(const struct hr_dit *dit, const struct hr_dit_params *params,
                        struct hr_dit_forecast *forecast, struct hr_error *err)
{
    struct hr_stream_params stream_params = params->stream;
    const char **names = calloc(dit->model.n_plan, sizeof(*names));
    struct hr_stream *stream = NULL;
    struct hr_stream_stats stats;
    int r;

    if (!names)
        return hr_error_set(err, -ENOMEM, "no memory for %u names", dit->model.n_plan);
    stream_params.ring_bytes = dit->budget.ring_bytes;
    stream_params.trace = NULL;
    r = hr_stream_open_blocks(&stream, dit->checkpoint, &stream_params, &dit->blocks, NULL, err);
    if (r == 0)
        r = hr_stream_plan(stream, names, choose_sample(&dit->model, names), 0, 1, err);
    if (r == 0)
        r = read_sample(stream, err);
    if (r == 0) {
        hr_stream_get_stats(stream, &stats);
        forecast->io_name = stats.io_name;
        forecast->direct = stats.direct;
        forecast->disk_sample_bytes = stats.bytes_read;
        forecast->disk_sample_ns = hr_max_u64(stats.busy_ns, 1);
    }
    hr_stream_close(&stream);
    free(names);
    return r;
}

/* ---- compute ------------------------------------------------------------------------------ */

/* Inputs of the same sizes, and room for the results. */
struct dummies {
    struct hr_dit_inputs inputs[HR_SAMPLES_MAX];
    float *velocities[HR_SAMPLES_MAX];
    float *zeros;
};

static int take_dummies(struct dummies *d, const struct hr_dit *dit,
                        const struct hr_dit_inputs *inputs, struct hr_error *err)
{
    uint64_t n_zeros = 0;
    bool complete = true;

    for (uint32_t i = 0; i < dit->n_samples; i++) {
        const struct hr_dit_geometry *g = &dit->samples[i].geometry;

        n_zeros = hr_max_u64(n_zeros,
                             (uint64_t) inputs[i].n_text * dit->model.config.joint_attention_dim);
        n_zeros = hr_max_u64(n_zeros, g->n_img * HR_DIT_TOKEN_DIM);
        d->velocities[i] = calloc(g->n_target_tokens, HR_DIT_TOKEN_DIM * sizeof(float));
        complete = complete && d->velocities[i];
    }
    d->zeros = calloc(n_zeros, sizeof(float));
    if (!complete || !d->zeros)
        return hr_error_set(err, -ENOMEM, "no memory for inputs to measure with");
    for (uint32_t i = 0; i < dit->n_samples; i++) {
        d->inputs[i] = inputs[i];
        d->inputs[i].prompt_emb = d->zeros;
        for (uint32_t k = 0; k < inputs[i].n_images; k++)
            d->inputs[i].images[k].data = d->zeros;
    }
    return 0;
}

static void free_dummies(struct dummies *d)
{
    for (uint32_t i = 0; i < HR_SAMPLES_MAX; i++)
        free(d->velocities[i]);
    free(d->zeros);
}

enum { LINK_BAND_BYTES = 16 << 20, LINK_SAMPLE_BYTES = 512 << 20 };

struct compute_times {
    uint64_t up_front_ns, blocks_ns;
    char device_name[128];
};

/* Copies of ring memory to the device, without computing; one that computes on the ring itself
 * gives the address back. */
static int measure_link(struct hr_dit *dit, struct hr_dit_forecast *forecast, struct hr_error *err)
{
    const uint64_t begin_ns = hr_now_ns();
    uint64_t bytes = 0;
    size_t ring_bytes;
    void *ring;
    int r = 0;

    hr_stream_ring(dit->stream, &ring, &ring_bytes);
    const size_t band_bytes = (size_t) hr_min_u64(ring_bytes, LINK_BAND_BYTES);

    for (size_t at = 0; r == 0 && bytes < LINK_SAMPLE_BYTES; bytes += band_bytes) {
        struct hr_gpu_weight weight;

        at = at + 2 * band_bytes <= ring_bytes ? at + band_bytes : 0;
        r = hr_gpu_stage(dit->gpu, &weight, (char *) ring + at, band_bytes);
        if (r < 0)
            break;
        hr_gpu_unstage(dit->gpu, &weight);
        if (weight.data == (char *) ring + at)
            return 0;
    }
    if (r == 0)
        r = hr_gpu_sync(dit->gpu);
    if (r < 0)
        return hr_error_set(err, r, "device %s: a copy failed", hr_gpu_name(dit->gpu));
    forecast->link_sample_bytes = bytes;
    forecast->link_sample_ns = hr_max_u64(hr_now_ns() - begin_ns, 1);
    return 0;
}

/* Forwards of the first n_layers blocks, whose weights are whatever the ring holds. */
static int time_forwards(const struct hr_dit *like, const struct hr_dit_params *params,
                         struct dummies *d, uint32_t n_layers, struct compute_times *ret_times,
                         struct hr_dit_forecast *forecast, struct hr_error *err)
{
    struct hr_dit_params p = *params;
    const uint64_t begin_ns = hr_now_ns();
    struct hr_dit *dit = NULL;
    int r;

    p.stream.io = "null";
    p.stream.trace = NULL;
    p.stream.block_bytes = like->blocks.block_bytes; /* chosen, and said, before */
    p.stream.depth = like->blocks.depth;
    p.progress = NULL;
    p.memory = NULL;
    p.states = NULL;
    p.manifest = NULL; /* the bytes are not the model's */
    p.n_layers = n_layers;
    p.resident_max_bytes = 1; /* none */
    if (!like->timesteps) {   /* none given, or a single one */
        p.timesteps = NULL;
        p.n_forwards = FORWARDS_MAX;
    }
    r = hr_dit_open_tapped(&dit, like->checkpoint, &p, d->inputs, like->n_samples, NULL, NULL,
                           false, err);
    ret_times->blocks_ns = UINT64_MAX;
    for (uint32_t k = 0; r == 0 && k < hr_min_u64(FORWARDS_MAX, dit->n_forwards); k++) {
        for (uint32_t i = 0; i < like->n_samples; i++)
            d->inputs[i].timestep = like->timesteps ? like->timesteps[k] : 500.0f;
        r = hr_dit_forward(dit, d->inputs, d->velocities, err);
        if (r < 0)
            break;
        const uint64_t busy_ns = dit->stats.wall_ns - dit->stats.stall_disk_ns;
        const uint64_t up_front_ns = k == 0 ? dit->meter.up_front_ns : 0;

        ret_times->blocks_ns =
            hr_min_u64(ret_times->blocks_ns, busy_ns - hr_min_u64(busy_ns, up_front_ns));
        if (hr_now_ns() - begin_ns > COMPUTE_NS)
            break;
    }
    if (r == 0) {
        ret_times->up_front_ns = dit->meter.up_front_ns;
        snprintf(ret_times->device_name, sizeof(ret_times->device_name), "%s",
                 hr_gpu_name(dit->gpu));
        if (forecast->link_sample_ns == 0)
            r = measure_link(dit, forecast, err);
    }
    hr_dit_close(&dit);
    return r;
}

static uint64_t extrapolate(uint64_t one_ns, uint64_t two_ns, uint32_t n)
{
    return one_ns + (two_ns - hr_min_u64(one_ns, two_ns)) * (n - 1);
}

static int measure_compute(const struct hr_dit *dit, const struct hr_dit_params *params,
                           const struct hr_dit_inputs *inputs, struct hr_dit_forecast *forecast,
                           struct hr_error *err)
{
    const uint32_t n = dit->model.n_layers;
    struct compute_times one = {0}, two = {0};
    struct dummies dummies = {0};
    int r = take_dummies(&dummies, dit, inputs, err);

    if (r == 0)
        r = time_forwards(dit, params, &dummies, 1, &one, forecast, err);
    if (r == 0 && n > 1)
        r = time_forwards(dit, params, &dummies, 2, &two, forecast, err);
    free_dummies(&dummies);
    if (r < 0)
        return r;
    forecast->compute_ns = extrapolate(one.blocks_ns, n > 1 ? two.blocks_ns : one.blocks_ns, n);
    forecast->up_front_compute_ns =
        extrapolate(one.up_front_ns, n > 1 ? two.up_front_ns : one.up_front_ns, n);
    memcpy(forecast->device_name, one.device_name, sizeof(forecast->device_name));
    return 0;
}

/* ---- both --------------------------------------------------------------------------------- */

static uint64_t disk_ns(const struct hr_dit_forecast *f, uint64_t bytes)
{
    return (uint64_t) ((double) bytes * (double) f->disk_sample_ns / (double) f->disk_sample_bytes);
}

/* Weights of a forward cross the link, those that stay in the host's memory, too.
 * @param later  a later forward, which finds some on the device */
static uint64_t link_ns(const struct hr_dit_forecast *f, const struct hr_dit *dit, bool later)
{
    const struct hr_dit_model *model = &dit->model;
    uint64_t bytes = 0;

    if (f->link_sample_bytes == 0)
        return 0;
    for (uint32_t i = model->n_once; i < model->n_plan; i++)
        if (!later || !hr_resident_find(&dit->on_device, model->plan[i]))
            bytes += model->plan[i]->size_bytes;
    return (uint64_t) ((double) bytes * (double) f->link_sample_ns / (double) f->link_sample_bytes);
}

/* Disk, link and computing go on at the same time, so each part takes as long as the longest of
 * them. */
static void combine(struct hr_dit_forecast *f, const struct hr_dit *dit)
{
    const struct hr_dit_prediction *p = &dit->stats.predicted;
    const uint64_t up_front_ns = hr_max_u64(disk_ns(f, p->up_front_bytes), f->up_front_compute_ns);
    const uint64_t first_ns = hr_max_u64(f->compute_ns, link_ns(f, dit, false));

    f->link_ns = link_ns(f, dit, p->n_forwards > 1);
    f->first_ns =
        up_front_ns + hr_max_u64(disk_ns(f, p->first_bytes - p->up_front_bytes), first_ns);
    f->later_disk_ns = disk_ns(f, p->n_forwards > 1 ? p->later_bytes : p->first_bytes);
    f->later_ns = p->n_forwards > 1
                      ? hr_max_u64(f->later_disk_ns, hr_max_u64(f->compute_ns, f->link_ns))
                      : f->first_ns;
    f->run_ns = hr_mul_add_u64(p->n_forwards - 1, f->later_ns, f->first_ns);
}

int hr_dit_predict(const struct hr_checkpoint *checkpoint, const struct hr_dit_params *params,
                   const struct hr_dit_inputs *inputs, uint32_t n_inputs,
                   struct hr_dit_prediction *ret_prediction, struct hr_dit_forecast *ret_forecast,
                   struct hr_error *err)
{
    static const struct hr_dit_params defaults;
    struct hr_dit_forecast forecast = {0};
    struct hr_dit *dit = NULL;
    int r;

    if (!params)
        params = &defaults;
    r = hr_dit_prepare(&dit, checkpoint, params, inputs, n_inputs, false, err);
    if (r < 0)
        return r;
    hr_dit_lora_warn(dit);
    const struct hr_dit_prediction prediction = dit->stats.predicted;

    if (ret_forecast)
        r = measure_disk(dit, params, &forecast, err);
    if (r == 0 && ret_forecast)
        r = measure_compute(dit, params, inputs, &forecast, err);
    if (r == 0 && ret_forecast) {
        combine(&forecast, dit);
        *ret_forecast = forecast;
    }
    if (r == 0)
        *ret_prediction = prediction;
    hr_dit_close(&dit);
    return r;
}
