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

_Static_assert((int) HR_VERIFY_UNITS_MAX > (int) HR_PENDING_MAX, "all pending and one more");

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

/* A band has been used, or copied. */
static void trace_unit(struct hr_feed *feed, enum hr_trace_kind kind, const struct hr_unit *unit,
                       uint64_t bytes, uint64_t begin_ns)
{
    if (feed->trace)
        hr_trace_add(feed->trace, &(struct hr_trace_event){
                                      .kind = kind,
                                      .name = unit->tensor->name,
                                      .begin_ns = begin_ns,
                                      .end_ns = hr_now_ns(),
                                      .bytes = bytes,
                                      .a = unit->row_begin,
                                      .b = unit->n_rows,
                                  });
}

/* The copy of a band is done, now at the latest. Copies follow one another, so it began when it was
 * asked for or when the one before it was done. */
static void trace_copy(struct hr_feed *feed, const struct hr_dit_band *band)
{
    if (!feed->trace || band->copy_ns == 0)
        return;
    trace_unit(feed, HR_TRACE_COPY, &band->unit, band->copied_bytes,
               hr_max_u64(band->copy_ns, feed->copy_end_ns));
    feed->copy_end_ns = hr_now_ns();
}

static bool is_compared(const struct hr_feed *feed, uint64_t ticket, bool wait)
{
    return ticket == 0 || hr_dit_verify_is_done(feed->verify, ticket, wait);
}

/* Release units from the oldest on, as far as device and comparing are done with them. With `wait`
 * at least one is released. */
static void release_done(struct hr_feed *feed, bool wait)
{
    unsigned n = 0;

    while (n < feed->n_pending &&
           hr_gpu_host_is_free(feed->gpu, &feed->pending[n].weight, wait && n == 0) &&
           is_compared(feed, feed->pending[n].ticket, wait && n == 0)) {
        trace_copy(feed, &feed->pending[n]);
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

/* The band of a resident weight that begins at row_begin, as a unit of the stream would be. */
static struct hr_unit resident_unit(const struct hr_resident_set *set,
                                    const struct hr_resident *resident, uint64_t row_begin)
{
    const struct hr_cut cut = hr_cut_tensor(resident->tensor);
    const struct hr_band band = hr_cut_band(&cut, row_begin / cut.rows_per_band);

    hr_assert(band.row_begin == row_begin);
    return (struct hr_unit){
        .tensor = resident->tensor,
        .row_begin = band.row_begin,
        .n_rows = band.n_rows,
        .data = hr_resident_row(set, resident, band.row_begin),
        .size_bytes = band.n_rows * hr_resident_row_bytes(resident),
    };
}

/* Wait for the next unit of the stream, which must be a band of `tensor`, and have it compared. */
static int next_unit(struct hr_feed *feed, const struct hr_tensor *tensor, struct hr_unit *ret_unit,
                     uint64_t *ret_ticket, struct hr_error *err)
{
    const uint64_t begin_ns = hr_now_ns();
    struct hr_error failure = {0};
    int r = hr_stream_next(feed->stream, ret_unit, &failure);

    /* The ring is full of what a device has yet to copy: that will be done. */
    while (r == -EDEADLK && feed->n_pending > 0) {
        release_done(feed, true);
        hr_error_clear(&failure);
        r = hr_stream_next(feed->stream, ret_unit, &failure);
    }
    const uint64_t end_ns = hr_now_ns();

    feed->stall_ns += end_ns - begin_ns;
    if (feed->trace && end_ns - begin_ns > TRACED_WAIT_NS)
        hr_trace_add(feed->trace, &(struct hr_trace_event){
                                      .kind = HR_TRACE_WAIT_DISK,
                                      .begin_ns = begin_ns,
                                      .end_ns = end_ns,
                                  });
    if (r < 0)
        return hr_error_set(err, r, "%s", failure.message);
    hr_assert(r == 1);
    hr_assert(ret_unit->tensor == tensor); /* the plan and the forward pass ask in the same order */
    feed->bytes_used += ret_unit->size_bytes;
    return feed->verify ? hr_dit_verify_unit(feed->verify, ret_unit, ret_ticket, err) : 0;
}

/* Have the band's bytes on the device. */
static int stage(struct hr_feed *feed, struct hr_dit_band *t, const void *data, uint64_t bytes,
                 struct hr_error *err)
{
    const uint64_t asked_ns = hr_now_ns();
    const int r = HR_FEED_RUN(feed, err, hr_gpu_stage(feed->gpu, &t->weight, data, bytes));

    t->staged = r == 0;
    if (r == 0 && t->weight.data != data) {
        feed->copied_bytes += bytes;
        t->copied_bytes = bytes;
        t->copy_ns = asked_ns;
    }
    if (r < 0 && t->streamed) {
        is_compared(feed, t->ticket, true);
        hr_stream_release(feed->stream, &t->unit);
    }
    return r;
}

/* The next band of the stream; what stays in the host's memory is kept. */
static int take_streamed(struct hr_feed *feed, const struct hr_tensor *tensor,
                         struct hr_resident *resident, struct hr_dit_band *t, struct hr_error *err)
{
    const int r = next_unit(feed, tensor, &t->unit, &t->ticket, err);

    if (r < 0)
        return r;
    t->streamed = true;
    if (!resident)
        return stage(feed, t, t->unit.data, t->unit.size_bytes, err);
    hr_resident_keep(feed->resident, resident, t->unit.data, t->unit.row_begin, t->unit.n_rows);
    if (resident->dtype == tensor->dtype)
        return stage(feed, t, t->unit.data, t->unit.size_bytes, err);
    /* also the first time: the same numbers */
    t->dtype = resident->dtype;
    return stage(feed, t, hr_resident_row(feed->resident, resident, t->unit.row_begin),
                 t->unit.n_rows * hr_resident_row_bytes(resident), err);
}

/* Copy a band that has been staged to where it stays on the device. */
static int keep_on_device(struct hr_feed *feed, struct hr_resident *resident,
                          const struct hr_dit_band *t, struct hr_error *err)
{
    void *dst = hr_resident_row(feed->on_device, resident, t->unit.row_begin);
    const int r = HR_FEED_RUN(
        feed, err, hr_gpu_copy(feed->gpu, dst, t->weight.data, (size_t) t->unit.size_bytes));

    resident->loaded = t->unit.row_begin + t->unit.n_rows == t->unit.tensor->shape[0];
    return r;
}

static void give_back(struct hr_feed *feed, const struct hr_dit_band *t)
{
    if (!t->staged) { /* nothing of its own to wait for, but what came before may be done */
        release_done(feed, false);
        return;
    }
    hr_gpu_unstage(feed->gpu, &t->weight);
    if (feed->n_pending == HR_PENDING_MAX)
        release_done(feed, true);
    feed->pending[feed->n_pending++] = *t;
    release_done(feed, false);
}

/* The band of `tensor` that begins at row_begin, on the device. */
static int take(struct hr_feed *feed, const struct hr_tensor *tensor, uint64_t row_begin,
                struct hr_dit_band *t, struct hr_error *err)
{
    struct hr_resident *resident = hr_resident_find(feed->resident, tensor);
    struct hr_resident *on_device = hr_resident_find(feed->on_device, tensor);
    int r = 0;

    *t = (struct hr_dit_band){.dtype = tensor->dtype};
    if (on_device && on_device->loaded) {
        t->unit = resident_unit(feed->on_device, on_device, row_begin);
        t->weight.data = t->unit.data;
    } else if (resident && resident->loaded) {
        t->dtype = resident->dtype;
        t->unit = resident_unit(feed->resident, resident, row_begin);
        r = stage(feed, t, t->unit.data, t->unit.size_bytes, err);
    } else {
        r = take_streamed(feed, tensor, resident, t, err);
    }
    hr_assert(r < 0 || t->unit.row_begin == row_begin);
    if (r == 0 && on_device && !on_device->loaded) {
        r = keep_on_device(feed, on_device, t, err);
        if (r < 0)
            give_back(feed, t);
    }
    return r;
}

int hr_feed_vector(struct hr_feed *feed, const struct hr_tensor *tensor, float *dst, size_t n,
                   struct hr_error *err)
{
    const uint64_t row = hr_shape_elements(tensor->shape + 1, tensor->rank - 1);
    struct hr_dit_band t;

    hr_assert(tensor->rank >= 1 && hr_shape_elements(tensor->shape, tensor->rank) == n);
    for (uint64_t done = 0; done < tensor->shape[0]; done += t.unit.n_rows) {
        int r = take(feed, tensor, done, &t, err);

        if (r < 0)
            return r;
        const uint64_t begin_ns = hr_now_ns();

        r = HR_FEED_RUN(feed, err,
                        hr_gpu_to_f32(feed->gpu, dst + done * row, t.weight.data, t.dtype,
                                      (size_t) (t.unit.n_rows * row)));
        trace_unit(feed, HR_TRACE_WEIGHT, &t.unit, t.unit.size_bytes, begin_ns);
        give_back(feed, &t);
        if (r < 0)
            return r;
    }
    return 0;
}

/* A layer and its products: p[i] of n samples. */
struct layer_run {
    const struct hr_linear_weights *layer;
    const struct hr_linear *p;
    uint32_t n;
};

/* Rows `done` to done + n_rows of a layer's weight, on the device. */
struct band {
    const void *data;
    enum hr_dtype dtype;
    uint64_t done, n_rows;
    bool merged; /* the terms of LoRAs are in it */
};

/* low = scale * x down^T for each product and term, which all bands use. */
static int project_down(struct hr_feed *feed, const struct layer_run *run, struct hr_error *err)
{
    float *low = feed->lora->low;
    int r = 0;

    for (uint32_t i = 0; i < run->n && r == 0; i++) {
        for (uint32_t j = 0; j < run->layer->n_terms && r == 0; j++) {
            const struct hr_dit_term *term = &run->layer->terms[j];
            const struct hr_linear down = {
                .x = run->p[i].x,
                .x_dtype = run->p[i].x_dtype,
                .x_stride = run->p[i].x_stride,
                .w = term->down,
                .w_dtype = term->file->down->dtype,
                .w_scale = term->scale,
                .n_tokens = run->p[i].n_tokens,
                .n_in = run->p[i].n_in,
                .n_out = term->file->rank,
                .out = low,
                .out_dtype = HR_DTYPE_F32,
                .out_stride = term->file->rank,
            };

            r = HR_FEED_RUN(feed, err, hr_gpu_linear(feed->gpu, &down));
            low += down.n_tokens * down.n_out;
        }
    }
    return r;
}

/* The products of one band. */
static int run_band(struct hr_feed *feed, const struct layer_run *run, const struct band *b,
                    struct hr_error *err)
{
    const struct hr_linear_weights *layer = run->layer;
    const float *t = feed->lora->low;
    int r = 0;

    for (uint32_t i = 0; i < run->n && r == 0; i++) {
        struct hr_low_rank low[HR_LOW_RANK_TERMS_MAX];
        struct hr_linear p = run->p[i];

        for (uint32_t j = 0; j < layer->n_terms && !b->merged; j++) {
            const struct hr_lora_term *file = layer->terms[j].file;

            low[j] = (struct hr_low_rank){
                .t = t,
                .b = (const char *) layer->terms[j].up +
                     b->done * file->rank * hr_dtype_bytes(file->up->dtype),
                .b_dtype = file->up->dtype,
                .rank = file->rank,
            };
            t += p.n_tokens * file->rank;
        }
        p.w = b->data;
        p.w_dtype = b->dtype;
        p.w_scale = layer->w_scale ? layer->w_scale + b->done * layer->w_scale_stride : NULL;
        p.w_scale_stride = layer->w_scale_stride;
        p.low = low;
        p.n_low = b->merged ? 0 : layer->n_terms;
        p.bias = feed->bias + b->done;
        p.n_out = (size_t) b->n_rows;
        p.out = (char *) p.out + b->done * hr_dtype_bytes(p.out_dtype);
        if (p.gate)
            p.gate += b->done;
        r = HR_FEED_RUN(feed, err, hr_gpu_linear(feed->gpu, &p));
    }
    return r;
}

/* Rows of a weight that are merged at a time: as the shape says, never the band. */
static uint64_t merged_rows(uint64_t n_in)
{
    const uint64_t rows = HR_DIT_MERGED_FLOATS / n_in;

    hr_assert(rows >= 1);
    return rows < 64 ? rows : hr_align_down(rows, 64); /* a multiple of the tiles of products */
}

/* b's rows with the terms of all LoRAs, in F32. */
static int merge(struct hr_feed *feed, const struct hr_linear_weights *layer, const struct band *b,
                 struct hr_error *err)
{
    const size_t n_in = (size_t) layer->weight->shape[1], n_rows = (size_t) b->n_rows;
    float *merged = feed->lora->merged;
    int r =
        HR_FEED_RUN(feed, err, hr_gpu_to_f32(feed->gpu, merged, b->data, b->dtype, n_rows * n_in));

    for (uint32_t j = 0; j < layer->n_terms && r == 0; j++) {
        const struct hr_lora_term *file = layer->terms[j].file;
        const struct hr_linear add = {
            .x = (const float *) layer->terms[j].up + b->done * file->rank,
            .x_dtype = HR_DTYPE_F32,
            .x_stride = file->rank,
            .w = layer->terms[j].down,
            .w_dtype = file->down->dtype,
            .n_tokens = n_rows,
            .n_in = file->rank,
            .n_out = n_in,
            .epilogue = HR_EPILOGUE_GATED_RESIDUAL,
            .out = merged,
            .out_dtype = HR_DTYPE_F32,
            .out_stride = n_in,
            .gate = feed->lora->ones,
            .gate_split = n_rows,
        };

        r = HR_FEED_RUN(feed, err, hr_gpu_linear(feed->gpu, &add));
    }
    return r;
}

static int run_merged(struct hr_feed *feed, const struct layer_run *run, const struct band *b,
                      struct hr_error *err)
{
    const uint64_t n_in = run->layer->weight->shape[1];
    const uint64_t row_bytes = n_in * hr_dtype_bytes(b->dtype), step = merged_rows(n_in);
    int r = 0;

    for (uint64_t row = 0; row < b->n_rows && r == 0; row += step) {
        struct band part = {
            .data = (const char *) b->data + row * row_bytes,
            .dtype = b->dtype,
            .done = b->done + row,
            .n_rows = hr_min_u64(step, b->n_rows - row),
        };

        r = merge(feed, run->layer, &part, err);
        part.data = feed->lora->merged;
        part.dtype = HR_DTYPE_F32;
        part.merged = true;
        if (r == 0)
            r = run_band(feed, run, &part, err);
    }
    return r;
}

int hr_feed_linear(struct hr_feed *feed, const struct hr_linear_weights *layer,
                   const struct hr_linear *p, uint32_t n, struct hr_error *err)
{
    const struct layer_run run = {.layer = layer, .p = p, .n = n};
    const bool merged = feed->lora->mode == HR_LORA_MERGED && layer->n_terms > 0;
    const struct hr_tensor *w = layer->weight;
    struct hr_dit_band t;
    int r;

    hr_assert(n >= 1 && w->shape[1] == p->n_in);
    hr_assert(w->shape[0] <= feed->bias_max);
    r = hr_feed_vector(feed, layer->bias, feed->bias, (size_t) w->shape[0], err);
    if (r == 0 && !merged)
        r = project_down(feed, &run, err);
    for (uint64_t done = 0; r == 0 && done < w->shape[0]; done += t.unit.n_rows) {
        r = take(feed, w, done, &t, err);
        if (r < 0)
            return r;
        const struct band band = {
            .data = t.weight.data, .dtype = t.dtype, .done = done, .n_rows = t.unit.n_rows};
        const uint64_t begin_ns = hr_now_ns();

        r = merged ? run_merged(feed, &run, &band, err) : run_band(feed, &run, &band, err);
        trace_unit(feed, HR_TRACE_WEIGHT, &t.unit, t.unit.size_bytes, begin_ns);
        give_back(feed, &t);
    }
    return r;
}
