/* SPDX-License-Identifier: Apache-2.0 */
/* predict_compute.c -- how long a forward computes, from one and two blocks on memory that is
 * there.
 *
 * Blocks are alike, so the difference of two blocks and one, times the blocks that are left, is
 * what the others take; what one block took beyond that, embeddings and head, comes once.
 *
 * Where that would take long it is done at sizes that do not, of one input and of two, and
 * extrapolated (predict_extrapolate.c). Attention, and on a device with copies products, are timed
 * apart, too. */
#include "engine/predict.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/units.h"

enum {
    FORWARDS_MAX = 6, /* timed for each number of blocks; the shortest counts */
    CALLS_MAX = 32,
    APART_TOKENS = 1024, /* at least, to go by: attention is most of what large pictures take */
    LINK_BAND_BYTES = 16 << 20,
    LINK_SAMPLE_BYTES = 512 << 20,
};
/* For each number of blocks, unless one forward takes longer: at the size itself, at others. */
#define EXACT_NS  UINT64_C(1500000000)
#define SAMPLE_NS UINT64_C(600000000)
#define CALLS_NS  UINT64_C(50000000)

/* ---- inputs ------------------------------------------------------------------------------- */

/* Inputs of given sizes, and room for the results. */
struct dummies {
    struct hr_dit_inputs inputs[HR_SAMPLES_MAX];
    float *velocities[HR_SAMPLES_MAX];
    float *zeros;
    uint32_t n;
};

static int take_dummies(struct dummies *d, const struct hr_dit *dit, struct hr_error *err)
{
    uint64_t n_zeros = 0;
    bool complete = true;

    for (uint32_t i = 0; i < d->n; i++) {
        struct hr_dit_geometry g;
        const int r = hr_dit_geometry_init(&g, &dit->model, &d->inputs[i], err);

        if (r < 0)
            return r;
        n_zeros = hr_max_u64(n_zeros, (uint64_t) d->inputs[i].n_text *
                                          dit->model.config.joint_attention_dim);
        n_zeros = hr_max_u64(n_zeros, g.n_img * HR_DIT_TOKEN_DIM);
        d->velocities[i] = calloc(g.n_target_tokens, HR_DIT_TOKEN_DIM * sizeof(float));
        complete = complete && d->velocities[i];
    }
    d->zeros = calloc(n_zeros, sizeof(float));
    if (!complete || !d->zeros)
        return hr_error_set(err, -ENOMEM, "no memory for inputs to measure with");
    for (uint32_t i = 0; i < d->n; i++) {
        d->inputs[i].prompt_emb = d->zeros;
        for (uint32_t k = 0; k < d->inputs[i].n_images; k++)
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

/* ---- what is timed ------------------------------------------------------------------------ */

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

/* Attention of the first sample, alone, with all queries, for which opening a single block has
 * prepared nothing: a kernel that is compiled is no part of the time. */
static int measure_attention(struct hr_dit *dit, struct hr_timing *timing, struct hr_error *err)
{
    const struct hr_dit_buffers *b = &dit->samples[0].buffers;
    const size_t n = dit->samples[0].geometry.n_all;
    const struct hr_attention p = {.out = b->normed,
                                   .q = b->q,
                                   .k = b->k,
                                   .v = b->v,
                                   .n_q = n,
                                   .n_k = n,
                                   .n_heads = dit->model.width / HR_HEAD_DIM};
    uint64_t shortest_ns = UINT64_MAX, total_ns = 0;
    int r = hr_gpu_attention_prepare(dit->gpu, &p, err);

    if (r == 0)
        r = hr_gpu_attention(dit->gpu, &p);
    if (r == 0)
        r = hr_gpu_sync(dit->gpu);
    for (unsigned i = 0; i < CALLS_MAX && r == 0 && total_ns < CALLS_NS; i++) {
        const uint64_t begin_ns = hr_now_ns();

        r = hr_gpu_attention(dit->gpu, &p);
        if (r == 0)
            r = hr_gpu_sync(dit->gpu);
        shortest_ns = hr_min_u64(shortest_ns, hr_now_ns() - begin_ns);
        total_ns += hr_now_ns() - begin_ns;
    }
    if (r < 0)
        return hr_error_set(err, r, "device %s: attention failed", hr_gpu_name(dit->gpu));
    timing->pair_ns = (double) shortest_ns / ((double) n * (double) n);
    return 0;
}

/* A product of the first sample with what a forward has at a time of a large weight, which is on
 * the device already: the copies of a forward hide how long its products take. */
static int measure_product(struct hr_dit *dit, struct hr_timing *timing, struct hr_error *err)
{
    const struct hr_dit_buffers *b = &dit->samples[0].buffers;
    const struct hr_dit_geometry *g = &dit->samples[0].geometry;
    const struct hr_linear_weights *w = &dit->model.blocks[0].img.mlp_up;
    const struct hr_cut cut = hr_cut_tensor(w->weight);
    const struct hr_band band = hr_cut_band(&cut, 0);
    struct hr_gpu_weight weight = {.data = NULL};
    struct hr_linear p = {.x = b->normed,
                          .x_dtype = dit->act,
                          .x_stride = dit->model.width,
                          .w_dtype = w->weight->dtype,
                          .w_scale = w->w_scale,
                          .w_scale_stride = w->w_scale_stride,
                          .n_tokens = hr_max_u64(g->n_img, g->n_txt),
                          .n_in = dit->model.width,
                          .n_out = (size_t) band.n_rows,
                          .out = b->hidden,
                          .out_dtype = dit->act,
                          .out_stride = 4 * (size_t) dit->model.width};
    uint64_t shortest_ns = UINT64_MAX, total_ns = 0;
    size_t ring_bytes;
    void *ring;

    hr_stream_ring(dit->stream, &ring, &ring_bytes);
    hr_assert(band.size_bytes <= ring_bytes);
    int r = hr_gpu_stage(dit->gpu, &weight, ring, band.size_bytes);
    const bool is_staged = r == 0;

    p.w = weight.data;
    if (r == 0)
        r = hr_gpu_sync(dit->gpu);
    for (unsigned i = 0; i < CALLS_MAX && r == 0 && total_ns < CALLS_NS; i++) {
        const uint64_t begin_ns = hr_now_ns();

        r = hr_gpu_linear(dit->gpu, &p);
        if (r == 0)
            r = hr_gpu_sync(dit->gpu);
        shortest_ns = hr_min_u64(shortest_ns, hr_now_ns() - begin_ns);
        total_ns += hr_now_ns() - begin_ns;
    }
    if (is_staged)
        hr_gpu_unstage(dit->gpu, &weight);
    if (r < 0)
        return hr_error_set(err, r, "device %s: a product failed", hr_gpu_name(dit->gpu));
    /* A token meets 12 D^2 weights of a block: four products of D^2, and two of four times that. */
    timing->token_ns = 12.0 * (double) p.n_in * (double) p.n_in * (double) shortest_ns /
                       ((double) p.n_in * (double) p.n_out * (double) p.n_tokens);
    return 0;
}

static int measure_apart(struct hr_dit *dit, struct hr_timing *timing,
                         const struct hr_dit_forecast *forecast, struct hr_error *err)
{
    const int r = measure_attention(dit, timing, err);

    return r == 0 && forecast->link_sample_ns > 0 ? measure_product(dit, timing, err) : r;
}

/* The first n_layers blocks, whose weights are whatever the ring holds. */
static int open_blocks(struct hr_dit **ret_dit, const struct hr_dit *like,
                       const struct hr_dit_params *params, const struct dummies *d,
                       uint32_t n_layers, struct hr_error *err)
{
    struct hr_dit_params p = *params;

    p.stream.io = like->budget.device_ring_bytes ? "null_device" : "null";
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
    return hr_dit_open_tapped(ret_dit, like->checkpoint, &p, d->inputs, d->n, NULL, NULL, false,
                              err);
}

/* @param enough_ns  after so long no further forward is begun */
static int time_forwards(struct hr_dit *dit, const struct hr_dit *like, struct dummies *d,
                         uint64_t enough_ns, uint64_t *ret_up_front_ns, uint64_t *ret_blocks_ns,
                         struct hr_error *err)
{
    const uint64_t begin_ns = hr_now_ns();
    int r = 0;

    *ret_blocks_ns = UINT64_MAX;
    for (uint32_t k = 0; k < hr_min_u64(FORWARDS_MAX, dit->n_forwards); k++) {
        if (k > 0 && hr_now_ns() - begin_ns > enough_ns)
            break;
        for (uint32_t i = 0; i < d->n; i++)
            d->inputs[i].timestep = like->timesteps ? like->timesteps[k] : 500.0f;
        r = hr_dit_forward(dit, d->inputs, d->velocities, err);
        if (r < 0)
            return r;
        const uint64_t busy_ns = dit->stats.wall_ns - dit->stats.stall_disk_ns;
        const uint64_t up_front_ns = k == 0 ? dit->meter.up_front_ns : 0;

        *ret_blocks_ns = hr_min_u64(*ret_blocks_ns, busy_ns - hr_min_u64(busy_ns, up_front_ns));
    }
    *ret_up_front_ns = dit->meter.up_front_ns;
    return 0;
}

/* One and two blocks on the inputs of d. is_sample: of another size than that of the run. */
static int time_size(struct hr_timing *timing, const struct hr_dit *like,
                     const struct hr_dit_params *params, struct dummies *d, bool is_sample,
                     struct hr_dit_forecast *forecast, struct hr_error *err)
{
    int r = take_dummies(d, like, err);

    *timing = (struct hr_timing){.pair_ns = 0.0};
    for (uint32_t n = 1; n <= hr_min_u64(like->model.n_layers, 2) && r == 0; n++) {
        struct hr_dit *dit = NULL;
        uint64_t up_front_ns = 0, blocks_ns = 0;

        r = open_blocks(&dit, like, params, d, n, err);
        if (r == 0)
            r = time_forwards(dit, like, d, is_sample ? SAMPLE_NS : EXACT_NS, &up_front_ns,
                              &blocks_ns, err);
        /* Into a ring on the device the disk itself brings them. */
        if (r == 0 && forecast->link_sample_ns == 0 && !like->budget.device_ring_bytes)
            r = measure_link(dit, forecast, err);
        if (r == 0 && n == 1 && is_sample)
            r = measure_apart(dit, timing, forecast, err);
        if (r == 0 && n == 1) {
            timing->one.up_front_ns = up_front_ns;
            timing->one.blocks_ns = blocks_ns;
            for (uint32_t i = 0; i < dit->n_samples; i++)
                hr_predict_add_input(&timing->amount, &dit->samples[i].geometry);
            snprintf(timing->device_name, sizeof(timing->device_name), "%s", hr_gpu_name(dit->gpu));
        }
        timing->two.up_front_ns = up_front_ns;
        timing->two.blocks_ns = blocks_ns;
        hr_dit_close(&dit);
    }
    free_dummies(d);
    return r;
}

static int time_exactly(struct hr_timing *timing, const struct hr_dit *dit,
                        const struct hr_dit_params *params, const struct hr_dit_inputs *inputs,
                        struct hr_dit_forecast *forecast, struct hr_error *err)
{
    struct dummies d = {.n = dit->n_samples};

    memcpy(d.inputs, inputs, d.n * sizeof(*inputs));
    return time_size(timing, dit, params, &d, false, forecast, err);
}

/* Inputs of about n tokens each, like that which has the most. */
static struct dummies small_inputs(const struct hr_dit *dit, const struct hr_dit_inputs *inputs,
                                   uint64_t n, uint32_t n_inputs)
{
    struct dummies d = {.n = n_inputs};
    uint32_t largest = 0;

    for (uint32_t i = 1; i < dit->n_samples; i++)
        if (dit->samples[i].geometry.n_all > dit->samples[largest].geometry.n_all)
            largest = i;
    for (uint32_t i = 0; i < n_inputs; i++)
        d.inputs[i] = hr_predict_scale_input(&inputs[largest], &dit->samples[largest].geometry, n);
    return d;
}

/* Attention, and products, of APART_TOKENS, without a forward. */
static int time_apart(struct hr_timing *timing, const struct hr_dit *like,
                      const struct hr_dit_params *params, const struct hr_dit_inputs *inputs,
                      const struct hr_dit_forecast *forecast, struct hr_error *err)
{
    const struct dummies d = small_inputs(like, inputs, APART_TOKENS, 1);
    struct hr_dit *dit = NULL;
    int r = open_blocks(&dit, like, params, &d, 1, err);

    if (r == 0)
        r = measure_apart(dit, timing, forecast, err);
    hr_dit_close(&dit);
    return r;
}

static int time_small(struct hr_timing *timing, const struct hr_dit *dit,
                      const struct hr_dit_params *params, const struct hr_dit_inputs *inputs,
                      uint64_t n, uint32_t n_inputs, struct hr_dit_forecast *forecast,
                      struct hr_error *err)
{
    struct dummies d = small_inputs(dit, inputs, n, n_inputs);

    return time_size(timing, dit, params, &d, true, forecast, err);
}

/* Sizes that grow until they are enough to go by, or until those of the run turn out to be quick.
 */
static int time_or_extrapolate(struct hr_timing *timing, const struct hr_dit *dit,
                               const struct hr_dit_params *params,
                               const struct hr_dit_inputs *inputs, const struct hr_amount *amount,
                               struct hr_dit_forecast *forecast, struct hr_error *err)
{
    struct hr_timing at[3] = {{.pair_ns = 0.0}};
    uint64_t n[2] = {0, 0}, next = hr_predict_next(amount, NULL, 0);
    int r = 0;

    while (next > 0) {
        if (next == HR_PREDICT_EXACT)
            return time_exactly(timing, dit, params, inputs, forecast, err);
        at[0] = at[1];
        n[0] = n[1];
        n[1] = next;
        r = time_small(&at[1], dit, params, inputs, n[1], 1, forecast, err);
        if (r < 0)
            return r;
        next = hr_predict_next(amount, &at[1], n[1]);
    }
    if (dit->n_samples > 1)
        r = time_small(&at[2], dit, params, inputs, n[0], 2, forecast, err);
    if (r == 0 && at[1].amount.tokens < APART_TOKENS && amount->tokens > APART_TOKENS)
        r = time_apart(&at[1], dit, params, inputs, forecast, err);
    if (r < 0)
        return r;
    hr_predict_extrapolate(timing, amount, at);
    forecast->extrapolated = true;
    for (unsigned i = 0; i < 2; i++)
        forecast->sample_tokens[i] = (uint64_t) at[i].amount.tokens;
    return 0;
}

static uint64_t all_blocks(uint64_t one_ns, uint64_t two_ns, uint32_t n)
{
    return one_ns + (two_ns - hr_min_u64(one_ns, two_ns)) * (n - 1);
}

int hr_predict_compute(const struct hr_dit *dit, const struct hr_dit_params *params,
                       const struct hr_dit_inputs *inputs, struct hr_dit_forecast *forecast,
                       struct hr_error *err)
{
    const uint32_t n = dit->model.n_layers;
    struct hr_timing timing = {.pair_ns = 0.0};
    struct hr_amount amount = {.tokens = 0.0};
    int r;

    for (uint32_t i = 0; i < dit->n_samples; i++)
        hr_predict_add_input(&amount, &dit->samples[i].geometry);
    forecast->n_tokens = (uint64_t) amount.tokens;
    r = time_or_extrapolate(&timing, dit, params, inputs, &amount, forecast, err);
    if (r < 0)
        return r;
    forecast->compute_ns = all_blocks(timing.one.blocks_ns, timing.two.blocks_ns, n);
    forecast->up_front_compute_ns = all_blocks(timing.one.up_front_ns, timing.two.up_front_ns, n);
    memcpy(forecast->device_name, timing.device_name, sizeof(forecast->device_name));
    return 0;
}
