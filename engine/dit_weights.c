/* SPDX-License-Identifier: Apache-2.0 */
/* dit_weights.c -- the consumer's end of the stream: take the next weight, use it, give it back.
 *
 * A device that computes on the ring itself is done with a unit when the operation returns; one
 * that copies is done when the copy has left the ring. Either way a unit stays in `pending` until
 * the device says that its host bytes are free. */
#include <errno.h>
#include <string.h>

#include "engine/dit.h"
#include "engine/units.h"

enum { TRACED_WAIT_NS = 2000 }; /* shorter ones are the hand-over itself */

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

void hr_feed_trace_part(struct hr_feed *feed, const char *name, uint32_t idx, uint64_t begin_ns)
{
    if (feed->trace)
        hr_trace_add(feed->trace, &(struct hr_trace_event){
                                      .kind = HR_TRACE_PART,
                                      .name = name,
                                      .index = idx,
                                      .begin_ns = begin_ns,
                                      .end_ns = hr_now_ns(),
                                  });
}

/* A band has been used. */
static void trace_unit(struct hr_feed *feed, const struct hr_unit *unit, uint64_t begin_ns)
{
    if (feed->trace)
        hr_trace_add(feed->trace, &(struct hr_trace_event){
                                      .kind = HR_TRACE_WEIGHT,
                                      .name = unit->tensor->name,
                                      .begin_ns = begin_ns,
                                      .end_ns = hr_now_ns(),
                                      .bytes = unit->size_bytes,
                                      .a = unit->row_begin,
                                      .b = unit->n_rows,
                                  });
}

/* Release units from the oldest on, as far as the device is done with them. With `wait` at least
 * one is released. */
static void release_done(struct hr_feed *feed, bool wait)
{
    unsigned n = 0;

    while (n < feed->n_pending &&
           hr_gpu_host_is_free(feed->gpu, &feed->pending[n].weight, wait && n == 0)) {
        if (feed->pending[n].streamed)
            hr_stream_release(feed->stream, &feed->pending[n].unit);
        n++;
    }
    feed->n_pending -= n;
    memmove(feed->pending, feed->pending + n, feed->n_pending * sizeof(feed->pending[0]));
}

void hr_feed_flush(struct hr_feed *feed)
{
    while (feed->n_pending > 0)
        release_done(feed, true);
}

/* A band on its way through the device. */
struct taken {
    struct hr_unit unit;
    struct hr_gpu_weight weight;
    bool streamed;
};

/* The band of a resident weight that begins at row_begin, as a unit of the stream would be. */
static struct hr_unit resident_unit(const struct hr_feed *feed, const struct hr_resident *resident,
                                    uint64_t row_begin)
{
    const struct hr_cut cut = hr_cut_tensor(resident->tensor);
    const struct hr_band band = hr_cut_band(&cut, row_begin / cut.rows_per_band);

    hr_assert(band.row_begin == row_begin);
    return (struct hr_unit){
        .tensor = resident->tensor,
        .row_begin = band.row_begin,
        .n_rows = band.n_rows,
        .data = feed->resident->store + resident->at + band.begin_bytes,
        .size_bytes = band.size_bytes,
    };
}

/* Keep a copy of a unit that is streaming by for the first time. */
static void keep(struct hr_feed *feed, struct hr_resident *resident, const struct hr_unit *unit)
{
    const uint64_t row_bytes = unit->size_bytes / unit->n_rows;

    memcpy(feed->resident->store + resident->at + unit->row_begin * row_bytes, unit->data,
           unit->size_bytes);
    resident->loaded = (unit->row_begin + unit->n_rows) * row_bytes == resident->tensor->size_bytes;
}

/* Wait for the next unit of the stream, which must be a band of `tensor`. */
static int next_unit(struct hr_feed *feed, const struct hr_tensor *tensor, struct hr_unit *ret_unit,
                     struct hr_error *err)
{
    const uint64_t begin_ns = hr_now_ns();
    const int r = hr_stream_next(feed->stream, ret_unit, err);

    const uint64_t end_ns = hr_now_ns();

    feed->stall_ns += end_ns - begin_ns;
    if (feed->trace && end_ns - begin_ns > TRACED_WAIT_NS)
        hr_trace_add(feed->trace, &(struct hr_trace_event){
                                      .kind = HR_TRACE_WAIT_DISK,
                                      .begin_ns = begin_ns,
                                      .end_ns = end_ns,
                                  });
    if (r < 0)
        return r;
    hr_assert(r == 1);
    hr_assert(ret_unit->tensor == tensor); /* the plan and the forward pass ask in the same order */
    feed->bytes_used += ret_unit->size_bytes;
    return feed->verify ? hr_dit_verify_unit(feed->verify, ret_unit, err) : 0;
}

/* The band of `tensor` that begins at row_begin, staged. */
static int take(struct hr_feed *feed, const struct hr_tensor *tensor, uint64_t row_begin,
                struct taken *t, struct hr_error *err)
{
    struct hr_resident *resident = hr_resident_find(feed->resident, tensor);
    int r = 0;

    t->streamed = !resident || !resident->loaded;
    if (!t->streamed)
        t->unit = resident_unit(feed, resident, row_begin);
    else
        r = next_unit(feed, tensor, &t->unit, err);
    if (r < 0)
        return r;
    hr_assert(t->unit.row_begin == row_begin);
    if (t->streamed && resident)
        keep(feed, resident, &t->unit);
    r = HR_FEED_RUN(feed, err,
                    hr_gpu_stage(feed->gpu, &t->weight, t->unit.data, t->unit.size_bytes));
    if (r < 0 && t->streamed)
        hr_stream_release(feed->stream, &t->unit);
    return r;
}

static void give_back(struct hr_feed *feed, const struct taken *t)
{
    hr_gpu_unstage(feed->gpu, &t->weight);
    if (feed->n_pending == HR_PENDING_MAX)
        release_done(feed, true);
    feed->pending[feed->n_pending].unit = t->unit;
    feed->pending[feed->n_pending].weight = t->weight;
    feed->pending[feed->n_pending].streamed = t->streamed;
    feed->n_pending++;
    release_done(feed, false);
}

int hr_feed_vector(struct hr_feed *feed, const struct hr_tensor *tensor, float *dst, size_t n,
                   struct hr_error *err)
{
    const uint64_t row = hr_shape_elements(tensor->shape + 1, tensor->rank - 1);
    struct taken t;

    hr_assert(tensor->rank >= 1 && hr_shape_elements(tensor->shape, tensor->rank) == n);
    for (uint64_t done = 0; done < tensor->shape[0]; done += t.unit.n_rows) {
        int r = take(feed, tensor, done, &t, err);

        if (r < 0)
            return r;
        const uint64_t begin_ns = hr_now_ns();

        r = HR_FEED_RUN(feed, err,
                        hr_gpu_to_f32(feed->gpu, dst + done * row, t.weight.data, tensor->dtype,
                                      (size_t) (t.unit.n_rows * row)));
        trace_unit(feed, &t.unit, begin_ns);
        give_back(feed, &t);
        if (r < 0)
            return r;
    }
    return 0;
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
        band.out = (char *) band.out + done * hr_dtype_bytes(band.out_dtype);
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
    struct taken t;
    int r;

    hr_assert(n >= 1 && w->shape[1] == p->n_in);
    hr_assert(w->shape[0] <= feed->bias_max);
    r = hr_feed_vector(feed, layer->bias, feed->bias, (size_t) w->shape[0], err);
    for (uint64_t done = 0; r == 0 && done < w->shape[0]; done += t.unit.n_rows) {
        r = take(feed, w, done, &t, err);
        if (r < 0)
            return r;
        const uint64_t begin_ns = hr_now_ns();

        r = run_band(feed, p, n, w, t.weight.data, done, t.unit.n_rows, err);
        trace_unit(feed, &t.unit, begin_ns);
        give_back(feed, &t);
    }
    return r;
}
