/* SPDX-License-Identifier: Apache-2.0 */
/* dit_weights.c -- the consumer's end of the stream: take the next weight, use it, give it back.
 *
 * A device that computes on the ring itself is done with a unit when the operation returns; one
 * that copies is done when the copy has left the ring. Either way a unit stays in `pending` until
 * the device says that its host bytes are free. */
#include <errno.h>
#include <string.h>

#include "engine/dit.h"

int hr_feed_begin(struct hr_feed *feed, struct hr_error *err)
{
    if (atomic_load_explicit(feed->cancelled, memory_order_relaxed))
        return hr_error_set(err, -ECANCELED, "interrupted");
    feed->begin_ns = hr_now_ns();
    return 0;
}

int hr_feed_end(struct hr_feed *feed, int r, struct hr_error *err)
{
    char text[128];

    feed->compute_ns += hr_now_ns() - feed->begin_ns;
    if (r == -ECANCELED)
        return hr_error_set(err, r, "interrupted");
    if (r < 0)
        return hr_error_set(err, r, "device %s: %s", hr_gpu_name(feed->gpu),
                            hr_strerror(r, text, sizeof(text)));
    return 0;
}

/* Release units from the oldest on, as far as the device is done with them. With `wait` at least
 * one is released. */
static void release_done(struct hr_feed *feed, bool wait)
{
    unsigned n = 0;

    while (n < feed->n_pending &&
           hr_gpu_host_is_free(feed->gpu, &feed->pending[n].weight, wait && n == 0))
        hr_stream_release(feed->stream, &feed->pending[n++].unit);
    feed->n_pending -= n;
    memmove(feed->pending, feed->pending + n, feed->n_pending * sizeof(feed->pending[0]));
}

void hr_feed_flush(struct hr_feed *feed)
{
    while (feed->n_pending > 0)
        release_done(feed, true);
}

/* Wait for the next unit, which must be a band of `tensor`, and stage it. */
static int take(struct hr_feed *feed, const struct hr_tensor *tensor, struct hr_unit *ret_unit,
                struct hr_gpu_weight *ret_weight, struct hr_error *err)
{
    const uint64_t begin_ns = hr_now_ns();
    int r = hr_stream_next(feed->stream, ret_unit, err);

    feed->stall_ns += hr_now_ns() - begin_ns;
    if (r < 0)
        return r;
    hr_assert(r == 1);
    hr_assert(ret_unit->tensor == tensor); /* the plan and the forward pass ask in the same order */
    feed->bytes_used += ret_unit->size_bytes;

    r = HR_FEED_RUN(feed, err,
                    hr_gpu_stage(feed->gpu, ret_weight, ret_unit->data, ret_unit->size_bytes));
    if (r < 0)
        hr_stream_release(feed->stream, ret_unit);
    return r;
}

static void give_back(struct hr_feed *feed, const struct hr_unit *unit,
                      const struct hr_gpu_weight *weight)
{
    hr_gpu_unstage(feed->gpu, weight);
    if (feed->n_pending == HR_PENDING_MAX)
        release_done(feed, true);
    feed->pending[feed->n_pending].unit = *unit;
    feed->pending[feed->n_pending].weight = *weight;
    feed->n_pending++;
    release_done(feed, false);
}

int hr_feed_vector(struct hr_feed *feed, const struct hr_tensor *tensor, float *dst, size_t n,
                   struct hr_error *err)
{
    const uint64_t row = hr_shape_elements(tensor->shape + 1, tensor->rank - 1);
    struct hr_gpu_weight weight;
    struct hr_unit unit;

    hr_assert(tensor->rank >= 1 && hr_shape_elements(tensor->shape, tensor->rank) == n);
    for (uint64_t done = 0; done < tensor->shape[0]; done += unit.n_rows) {
        int r = take(feed, tensor, &unit, &weight, err);

        if (r < 0)
            return r;
        hr_assert(unit.row_begin == done);
        r = HR_FEED_RUN(feed, err,
                        hr_gpu_to_f32(feed->gpu, dst + done * row, weight.data, tensor->dtype,
                                      (size_t) (unit.n_rows * row)));
        give_back(feed, &unit, &weight);
        if (r < 0)
            return r;
    }
    return 0;
}

static size_t dtype_bytes(enum hr_dtype dtype)
{
    return hr_dtype_bits(dtype) / 8;
}

/* The products of one band: rows `done` to done + n_rows of the layer's output. */
static int run_band(struct hr_feed *feed, const struct hr_linear *p, uint32_t n,
                    const struct hr_tensor *w, const void *data, uint64_t done, uint64_t n_rows,
                    struct hr_error *err)
{
    int r = 0;

    for (uint32_t i = 0; i < n && r == 0; i++) {
        struct hr_linear band = p[i];

        band.w = data;
        band.w_dtype = w->dtype;
        band.bias = feed->bias + done;
        band.n_out = (size_t) n_rows;
        band.out = (char *) band.out + done * dtype_bytes(band.out_dtype);
        if (band.gate)
            band.gate += done;
        r = HR_FEED_RUN(feed, err, hr_gpu_linear(feed->gpu, &band));
    }
    return r;
}

int hr_feed_linear(struct hr_feed *feed, const struct hr_linear_weights *layer,
                   const struct hr_linear *p, uint32_t n, struct hr_error *err)
{
    const struct hr_tensor *w = layer->weight;
    struct hr_gpu_weight weight;
    struct hr_unit unit;
    int r;

    hr_assert(n >= 1 && w->shape[1] == p->n_in);
    hr_assert(w->shape[0] <= feed->bias_max);
    r = hr_feed_vector(feed, layer->bias, feed->bias, (size_t) w->shape[0], err);
    for (uint64_t done = 0; r == 0 && done < w->shape[0]; done += unit.n_rows) {
        r = take(feed, w, &unit, &weight, err);
        if (r < 0)
            return r;
        hr_assert(unit.row_begin == done);
        r = run_band(feed, p, n, w, weight.data, done, unit.n_rows, err);
        give_back(feed, &unit, &weight);
    }
    return r;
}
