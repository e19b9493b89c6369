/* SPDX-License-Identifier: Apache-2.0 */
/* stream.c -- the tensors of a checkpoint, in a given order, as views into the reader's ring.
 *
 * It translates: names into bands, bands into byte ranges for io/, arrived ranges back into units.
 * Nothing is copied and nothing is allocated after hr_stream_plan(). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/checkpoint.h"
#include "engine/files.h"
#include "engine/stream.h"
#include "engine/units.h"
#include "formats/formats.h"
#include "io/io.h"

/* One planned band. Empty ones have no range: there is nothing to read. */
struct planned {
    const struct hr_tensor *tensor;
    struct hr_band band;
};

struct stream_plan {
    struct planned *units; /* n_units of a pass                        */
    uint32_t n_units;
    uint32_t n_units_once; /* the leading ones, of the first pass only */
    uint32_t *range_unit;  /* the unit of each range                   */
    struct hr_read_range *ranges;
    uint32_t n_ranges;
    uint32_t n_passes; /* 0: without end                           */
    uint32_t unit_idx; /* next in this pass                        */
    uint32_t pass_idx;
};

struct hr_stream {
    const struct hr_checkpoint *checkpoint;
    struct hr_read_file *files;
    struct hr_file_mark *marks; /* of the files, when the stream was opened */
    struct hr_reader *reader;
    struct hr_trace *trace;
    struct stream_plan plan;
    struct hr_stream_blocks blocks; /* in use */
    uint64_t units_out, bytes_out;
};

static const uint64_t TICKET_EMPTY = UINT64_MAX;

/* What a range is, for the reader's error messages. */
static void describe_range(void *user, uint32_t range_idx, char *buf, size_t buf_bytes)
{
    const struct hr_stream *stream = user;
    const struct planned *unit;
    char name[256];

    if (!stream->plan.range_unit || range_idx >= stream->plan.n_ranges) {
        buf[0] = '\0';
        return;
    }
    unit = &stream->plan.units[stream->plan.range_unit[range_idx]];
    hr_printable(unit->tensor->name, name, sizeof(name));
    snprintf(buf, buf_bytes, "tensor %s, rows %llu to %llu", name,
             (unsigned long long) unit->band.row_begin,
             (unsigned long long) (unit->band.row_begin + unit->band.n_rows));
}

struct hr_stream_blocks hr_stream_choose_blocks(const struct hr_checkpoint *checkpoint,
                                                const struct hr_stream_params *params)
{
    struct hr_stream_blocks blocks = {0};

    if (params->block_bytes == 0 && params->depth == 0)
        blocks.is_tuned = hr_tuning_apply(checkpoint, &blocks.tuning);
    blocks.block_bytes = blocks.is_tuned ? blocks.tuning.block_bytes : params->block_bytes;
    blocks.depth = blocks.is_tuned ? blocks.tuning.depth : params->depth;
    if (blocks.block_bytes == 0)
        blocks.block_bytes = HR_BLOCK_BYTES_DEFAULT;
    if (blocks.depth == 0)
        blocks.depth = HR_DEPTH_DEFAULT;
    return blocks;
}

int hr_stream_open_blocks(struct hr_stream **ret_stream, const struct hr_checkpoint *checkpoint,
                          const struct hr_stream_params *params,
                          const struct hr_stream_blocks *blocks,
                          const struct hr_reader_memory *memory, struct hr_error *err)
{
    const uint32_t n_files = hr_checkpoint_n_shards(checkpoint);
    struct hr_stream *stream = calloc(1, sizeof(*stream));
    int r;

    if (stream)
        stream->files = calloc(n_files, sizeof(*stream->files));
    if (stream)
        stream->marks = calloc(n_files, sizeof(*stream->marks));
    if (!stream || !stream->files || !stream->marks) {
        hr_stream_close(&stream);
        return hr_error_set(err, -ENOMEM, "no memory for a stream over %u shards", n_files);
    }
    stream->checkpoint = checkpoint;
    stream->trace = params->trace;
    stream->blocks = *blocks;
    for (uint32_t i = 0; i < n_files; i++) {
        const struct hr_shard *shard = hr_checkpoint_shard(checkpoint, i);

        stream->files[i] = (struct hr_read_file){
            .fd = hr_checkpoint_fd(checkpoint, i),
            .path = shard->path,
            .size_bytes = shard->size_bytes,
        };
        r = hr_file_mark(&stream->marks[i], stream->files[i].fd);
        if (r < 0) {
            hr_stream_close(&stream);
            return hr_error_set(err, r, "%s: the system does not tell its size",
                                hr_checkpoint_shard_shown(checkpoint, i));
        }
    }
    const struct hr_reader_params reader_params = {
        .files = stream->files,
        .n_files = n_files,
        .memory = memory,
        .ring_bytes = params->ring_bytes ? params->ring_bytes : HR_RING_BYTES_DEFAULT,
        .block_bytes = blocks->block_bytes,
        .depth = blocks->depth,
        .io = params->io,
        .direct = params->direct,
        .timeout_s = params->timeout_s,
        .small_pages = params->huge_pages == HR_SWITCH_OFF,
        .describe = describe_range,
        .describe_user = stream,
        .trace = params->trace,
    };
    r = hr_reader_create(&stream->reader, &reader_params, err);
    if (r < 0) {
        hr_stream_close(&stream);
        return r;
    }
    *ret_stream = stream;
    return 0;
}

int hr_stream_open(struct hr_stream **ret_stream, const struct hr_checkpoint *checkpoint,
                   const struct hr_stream_params *params, struct hr_error *err)
{
    static const struct hr_stream_params defaults;

    if (!params)
        params = &defaults;
    const struct hr_stream_blocks blocks = hr_stream_choose_blocks(checkpoint, params);

    return hr_stream_open_blocks(ret_stream, checkpoint, params, &blocks, NULL, err);
}

static int find_tensors(const struct hr_checkpoint *checkpoint, const char *const *names,
                        uint32_t n, const struct hr_tensor **ret_tensors, uint64_t *ret_n_units,
                        struct hr_error *err)
{
    char name[256];

    *ret_n_units = 0;
    for (uint32_t i = 0; i < n; i++) {
        ret_tensors[i] = hr_checkpoint_find(checkpoint, names[i]);
        if (!ret_tensors[i])
            return hr_error_set(
                err, -ENOENT, "%s: no tensor is called \"%s\"; headrace inspect lists the names",
                hr_checkpoint_path(checkpoint), hr_printable(names[i], name, sizeof(name)));
        *ret_n_units += hr_cut_tensor(ret_tensors[i]).n_bands;
    }
    return 0;
}

/* Fill in units and ranges, for which there is room. */
static void lay_out(struct stream_plan *plan, const struct hr_tensor *const *tensors, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const struct hr_cut cut = hr_cut_tensor(tensors[i]);

        for (uint64_t b = 0; b < cut.n_bands; b++) {
            const struct hr_band band = hr_cut_band(&cut, b);

            if (band.size_bytes > 0) {
                plan->range_unit[plan->n_ranges] = plan->n_units;
                plan->ranges[plan->n_ranges++] = (struct hr_read_range){
                    .file_idx = tensors[i]->shard_idx,
                    .offset_bytes = tensors[i]->offset_bytes + band.begin_bytes,
                    .size_bytes = band.size_bytes,
                };
            }
            plan->units[plan->n_units++] = (struct planned){tensors[i], band};
        }
    }
}

uint64_t hr_stream_trace_events(const struct hr_tensor *const *tensors, uint32_t n,
                                uint32_t block_bytes)
{
    uint64_t n_units = 0, n_reads = 0;

    for (uint32_t i = 0; i < n; i++) {
        const struct hr_cut cut = hr_cut_tensor(tensors[i]);

        n_units += cut.n_bands;
        /* A band may begin and end within a block. */
        n_reads += 2 * cut.n_bands + tensors[i]->size_bytes / block_bytes;
    }
    /* A read and the disk's wait before it; a use, the wait before it and a copy to a device. */
    return 2 * n_reads + 3 * n_units;
}

uint64_t hr_stream_ring_bytes_min(const struct hr_tensor *const *tensors, uint32_t n)
{
    uint64_t ring_bytes = 0;

    for (uint32_t i = 0; i < n; i++) {
        const struct hr_cut cut = hr_cut_tensor(tensors[i]);

        for (uint64_t b = 0; b < cut.n_bands; b++) {
            const struct hr_band band = hr_cut_band(&cut, b);
            const struct hr_read_range range = {
                .offset_bytes = tensors[i]->offset_bytes + band.begin_bytes,
                .size_bytes = band.size_bytes,
            };
            ring_bytes = hr_max_u64(ring_bytes, hr_reader_ring_bytes_min(&range, 1));
        }
    }
    return ring_bytes;
}

static void free_plan(struct stream_plan *plan)
{
    free(plan->ranges);
    free(plan->range_unit);
    free(plan->units);
    *plan = (struct stream_plan){0};
}

/* Memory for what this plan can make, unless the trace has its memory already. */
static int reserve_trace(struct hr_stream *stream, const struct hr_tensor *const *tensors,
                         uint32_t n, uint32_t n_once, uint32_t n_passes, struct hr_error *err)
{
    if (!stream->trace)
        return 0;
    const uint64_t n_first = hr_stream_trace_events(tensors, n_once, stream->blocks.block_bytes);
    const uint64_t n_each =
        hr_stream_trace_events(tensors + n_once, n - n_once, stream->blocks.block_bytes);
    const int r =
        hr_trace_reserve(stream->trace, n_passes ? n_first + n_passes * n_each : UINT64_MAX);

    return r < 0 ? hr_error_set(err, r, "no memory for a trace") : 0;
}

/* Start reading what stream->plan says. */
static int start(struct hr_stream *stream, uint32_t n_ranges_once, struct hr_error *err)
{
    const struct stream_plan *plan = &stream->plan;

    if (plan->n_ranges > n_ranges_once)
        return hr_reader_start(stream->reader, plan->ranges, plan->n_ranges, n_ranges_once,
                               plan->n_passes, err);
    if (n_ranges_once > 0) /* what is left for each pass is empty tensors */
        return hr_reader_start(stream->reader, plan->ranges, n_ranges_once, 0, 1, err);
    return 0;
}

int hr_stream_plan(struct hr_stream *stream, const char *const *names, uint32_t n, uint32_t n_once,
                   uint32_t n_passes, struct hr_error *err)
{
    struct stream_plan plan = {.n_passes = n_passes}, previous = stream->plan;
    uint64_t n_units;
    int r;

    if (!hr_reader_at_rest(stream->reader))
        return hr_error_set(
            err, -EBUSY, "this stream has a plan already, of which not all is used and released");
    if (n <= n_once)
        return hr_error_set(err, -EINVAL, "a plan needs at least one tensor for each pass");
    const struct hr_tensor **tensors = calloc(n, sizeof(struct hr_tensor *));

    if (!tensors)
        return hr_error_set(err, -ENOMEM, "no memory for a plan of %u tensors", n);
    r = find_tensors(stream->checkpoint, names, n, tensors, &n_units, err);
    if (r == 0)
        r = reserve_trace(stream, tensors, n, n_once, n_passes, err);
    if (r < 0)
        goto done;
    plan.units = calloc(n_units, sizeof(*plan.units));
    plan.range_unit = calloc(n_units, sizeof(*plan.range_unit));
    plan.ranges = calloc(n_units, sizeof(*plan.ranges));
    if (n_units > UINT32_MAX || !plan.units || !plan.range_unit || !plan.ranges) {
        r = hr_error_set(err, -ENOMEM, "no memory for a plan of %llu units",
                         (unsigned long long) n_units);
        goto done;
    }
    lay_out(&plan, tensors, n_once);
    plan.n_units_once = plan.n_units;
    const uint32_t n_ranges_once = plan.n_ranges;

    lay_out(&plan, tensors + n_once, n - n_once);
    stream->plan = plan; /* the reader asks describe_range() as soon as it starts */
    r = start(stream, n_ranges_once, err);
    if (r < 0)
        stream->plan = previous;
    else
        plan = previous;
done:
    free_plan(&plan);
    free(tensors);
    return r;
}

int hr_stream_check_files(const struct hr_stream *stream, struct hr_error *err)
{
    int r = 0;

    for (uint32_t i = 0; i < hr_checkpoint_n_shards(stream->checkpoint) && r == 0; i++)
        r = hr_file_check(&stream->marks[i], stream->files[i].fd, stream->files[i].path, err);
    return r;
}

int hr_stream_next(struct hr_stream *stream, struct hr_unit *ret_unit, struct hr_error *err)
{
    struct hr_slice slice = {.data = "", .ticket = TICKET_EMPTY};

    struct stream_plan *plan = &stream->plan;

    if (!plan->units)
        return hr_error_set(err, -EINVAL, "this stream has no plan yet");
    if (plan->unit_idx == plan->n_units) {
        plan->unit_idx = plan->n_units_once;
        plan->pass_idx++;
    }
    if (plan->n_passes && plan->pass_idx >= plan->n_passes)
        return 0;

    const struct planned *unit = &plan->units[plan->unit_idx];

    if (unit->band.size_bytes > 0) {
        const int r = hr_reader_next(stream->reader, &slice, err);

        if (r < 0)
            return r;
        hr_assert(r == 1);
        hr_assert(plan->range_unit[slice.range_idx] == plan->unit_idx);
    }
    plan->unit_idx++;
    if (plan->unit_idx == plan->n_units) { /* all bytes of the pass have come */
        const int r = hr_stream_check_files(stream, err);

        if (r < 0)
            return r;
    }
    stream->units_out++;
    stream->bytes_out += unit->band.size_bytes;
    *ret_unit = (struct hr_unit){
        .tensor = unit->tensor,
        .row_begin = unit->band.row_begin,
        .n_rows = unit->band.n_rows,
        .data = slice.data,
        .size_bytes = unit->band.size_bytes,
        .ticket = slice.ticket,
    };
    return 1;
}

void hr_stream_release(struct hr_stream *stream, const struct hr_unit *unit)
{
    if (unit->ticket != TICKET_EMPTY)
        hr_reader_release(stream->reader, unit->ticket);
}

int hr_stream_set_blocks(struct hr_stream *stream, uint32_t block_bytes, uint32_t depth,
                         struct hr_error *err)
{
    const int r = hr_reader_set_blocks(stream->reader, block_bytes, depth, err);

    if (r == 0)
        stream->blocks = (struct hr_stream_blocks){.block_bytes = block_bytes, .depth = depth};
    return r;
}

void hr_stream_get_stats(const struct hr_stream *stream, struct hr_stream_stats *ret_stats)
{
    hr_reader_get_stats(stream->reader, ret_stats);
    ret_stats->units = stream->units_out;
    ret_stats->bytes_used = stream->bytes_out;
    ret_stats->tuned = stream->blocks.is_tuned;
}

bool hr_stream_shard_direct(const struct hr_stream *stream, uint32_t shard_idx)
{
    return hr_reader_file_direct(stream->reader, shard_idx);
}

void hr_stream_interrupt(struct hr_stream *stream)
{
    hr_reader_interrupt(stream->reader);
}

void hr_stream_ring(const struct hr_stream *stream, void **ret_base, size_t *ret_bytes)
{
    hr_reader_ring(stream->reader, ret_base, ret_bytes);
}

void hr_stream_close(struct hr_stream **stream)
{
    struct hr_stream_stats stats;

    if (!*stream)
        return;
    if ((*stream)->blocks.is_tuned && (*stream)->reader) {
        hr_stream_get_stats(*stream, &stats);
        hr_tuning_compare(&(*stream)->blocks.tuning, &stats);
    }
    hr_reader_destroy(&(*stream)->reader);
    free_plan(&(*stream)->plan);
    free((*stream)->files);
    free((*stream)->marks);
    free(*stream);
    *stream = NULL;
}
