/* SPDX-License-Identifier: Apache-2.0 */
/* predict.c -- what a run would use, from its plan; and how long it would take, from a sample of
 * the model's own bytes and from computing (predict_compute.c). */
#include "engine/predict.h"

#include <errno.h>
#include <stdlib.h>

enum { SAMPLE_BYTES = 1 << 30 }; /* of the disk, at most; and for at most SAMPLE_NS */
#define SAMPLE_NS UINT64_C(1500000000)

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
    const struct hr_gpu_params gpu_params =
        hr_ring_device(params->device, params->vram_bytes, dit->budget.device_ring_bytes);
    const char **names = calloc(dit->model.n_plan, sizeof(*names));
    struct hr_reader_memory memory;
    struct hr_stream *stream = NULL;
    struct hr_stream_stats stats;
    struct hr_gpu *gpu = NULL;
    int r = 0;

    if (!names)
        return hr_error_set(err, -ENOMEM, "no memory for %u names", dit->model.n_plan);
    stream_params.ring_bytes = dit->budget.ring_bytes;
    stream_params.trace = NULL;
    if (gpu_params.ring_bytes)
        r = hr_gpu_open(&gpu, &gpu_params, err);
    if (r == 0)
        r = hr_stream_open_blocks(&stream, dit->checkpoint, &stream_params, &dit->blocks,
                                  gpu ? hr_ring_memory_of(&memory, gpu) : NULL, err);
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
    hr_gpu_close(&gpu);
    free(names);
    return r;
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
        r = hr_predict_compute(dit, params, inputs, &forecast, err);
    if (r == 0 && ret_forecast) {
        combine(&forecast, dit);
        *ret_forecast = forecast;
    }
    if (r == 0)
        *ret_prediction = prediction;
    hr_dit_close(&dit);
    return r;
}
