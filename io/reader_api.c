/* SPDX-License-Identifier: Apache-2.0 */
/* reader_api.c -- io.h's functions: a reader's making and end, and the caller's side of the
 * hand-over. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "io/reader.h"

enum {
    BLOCKS_MIN = 256, /* in the making: read out of order, handed over in order */
    BLOCKS_PER_READ = 4,
    DEVICE_ALIGN_BYTES = 64 << 10,
};

/* ---- life ------------------------------------------------------------------------------- */

static int check_params(const struct hr_reader_params *params, struct hr_error *err)
{
    const uint32_t block = params->block_bytes;

    hr_assert(!params->memory || (params->memory->size_bytes % DEVICE_ALIGN_BYTES == 0 &&
                                  (uintptr_t) params->memory->base % DEVICE_ALIGN_BYTES == 0));
    if (params->n_files == 0 || (params->ring_bytes == 0 && !params->memory))
        return hr_error_set(err, -EINVAL, "a reader needs files and a ring");
    if (params->ring_bytes > UINT64_MAX / 2)
        return hr_error_set(err, -EINVAL, "a ring of %" PRIu64 " bytes is too large",
                            params->ring_bytes);
    if (block < HR_BLOCK_BYTES_MIN || block > HR_BLOCK_BYTES_MAX || (block & (block - 1)) != 0)
        return hr_error_set(err, -EINVAL,
                            "block size %u: must be a power of two from %d KiB to %d MiB", block,
                            HR_BLOCK_BYTES_MIN >> 10, HR_BLOCK_BYTES_MAX >> 20);
    if (params->memory && params->direct == HR_DIRECT_OFF)
        return hr_error_set(err, -EOPNOTSUPP,
                            "reading into the memory of a GPU is direct, and direct is off; leave "
                            "it, or use another --io");
    if (params->depth > HR_DEPTH_MAX)
        return hr_error_set(err, -EINVAL, "%u reads in flight: must be 1 to %d", params->depth,
                            HR_DEPTH_MAX);
    return 0;
}

/* The queue of the disk st_dev, a new one if it has none and there are any left. */
static uint32_t find_device(struct hr_reader *reader, uint64_t device)
{
    for (uint32_t d = 0; d < reader->n_devices; d++)
        if (reader->devices[d].device == device)
            return d;
    if (reader->n_devices == HR_DEVICES_MAX)
        return HR_DEVICES_MAX - 1;
    reader->devices[reader->n_devices].device = device;
    return reader->n_devices++;
}

/* The page cache is the host's. */
static int open_for_device(struct hr_io_file *file, const struct hr_read_file *source,
                           struct hr_error *err)
{
    const char *why;
    char path[512];
    const int r = hr_io_file_open_direct(file, source, &why, err);

    if (r != -EOPNOTSUPP)
        return r;
    return hr_error_set(err, r,
                        "%s: is read into the memory of a GPU directly or not at all, but %s; use "
                        "a disk's filesystem, or another --io",
                        hr_printable(source->path, path, sizeof(path)), why);
}

static int open_files(struct hr_reader *reader, struct hr_error *err)
{
    const struct hr_reader_params *params = &reader->params;
    uint32_t n_cached = 0;
    char path[512];

    reader->files = calloc(params->n_files, sizeof(*reader->files));
    reader->file_device = calloc(params->n_files, sizeof(*reader->file_device));
    if (!reader->files || !reader->file_device)
        return hr_error_set(err, -ENOMEM, "out of memory");
    reader->plan.align_bytes = HR_IO_ALIGN_BYTES;
    reader->stats.direct = true;
    for (uint32_t i = 0; i < params->n_files; i++) {
        struct hr_io_file *file = &reader->files[i];
        const int r = params->memory
                          ? open_for_device(file, &params->files[i], err)
                          : hr_io_file_open(file, &params->files[i], params->direct, err);

        if (r < 0)
            return r;
        reader->n_files_open++;
        reader->stats.direct = reader->stats.direct && file->direct;
        reader->stats.n_files_direct += file->direct;
        n_cached += file->cached;
        if (file->why_buffered)
            hr_log(HR_LOG_INFO, "%s: read through the page cache: %s",
                   hr_printable(params->files[i].path, path, sizeof(path)), file->why_buffered);
        reader->plan.align_bytes = hr_max_u64(reader->plan.align_bytes, file->align_bytes);
        reader->file_device[i] = find_device(reader, file->device);
    }
    reader->stats.n_files = params->n_files;
    reader->stats.n_devices = reader->n_devices;
    if (n_cached > 0)
        hr_log(HR_LOG_INFO,
               "io: %u of %u files are in the page cache already, and are read from there",
               n_cached, params->n_files);
    return 0;
}

static int init_blocks(struct hr_reader *reader, struct hr_error *err)
{
    reader->n_blocks = BLOCKS_MIN;
    while (reader->n_blocks < BLOCKS_PER_READ * reader->depth * reader->n_devices)
        reader->n_blocks *= 2;
    reader->blocks = calloc(reader->n_blocks, sizeof(*reader->blocks));
    bool complete = reader->blocks != NULL;
    for (uint32_t d = 0; d < reader->n_devices; d++) {
        reader->devices[d].items = calloc(reader->n_blocks, sizeof(*reader->devices[d].items));
        complete = complete && reader->devices[d].items;
    }
    return complete ? 0 : hr_error_set(err, -ENOMEM, "out of memory");
}

/* Start the thread and wait until it has a backend, or has none. */
static int start_thread(struct hr_reader *reader, struct hr_error *err)
{
    struct hr_handover *shared = reader->shared;
    int r = hr_thread_start(&reader->thread, "hr-reader", 0, hr_reader_thread, reader);

    if (r < 0)
        return hr_io_error_thread(r, err);
    reader->thread_started = true;
    pthread_mutex_lock(&shared->mutex);
    while (shared->state == HR_READER_SETUP)
        pthread_cond_wait(&shared->caller_wakes, &shared->mutex);
    r = shared->failure.code;
    if (r < 0)
        hr_error_set(err, r, "%s", shared->failure.message);
    pthread_mutex_unlock(&shared->mutex);
    return r;
}

static void log_choice(const struct hr_reader *reader)
{
    const struct hr_stream_stats *stats = &reader->shared->stats;

    hr_log(HR_LOG_INFO,
           "io: %s, %s, up to %u reads of %u KiB in flight, ring of %" PRIu64 " MiB%s (%" PRIu64
           " in huge pages)",
           stats->io_name,
           stats->direct           ? "direct"
           : stats->n_files_direct ? "direct and through the page cache"
                                   : "through the page cache",
           stats->depth, stats->block_bytes >> 10, reader->ring.size_bytes / HR_MIB,
           reader->params.memory ? " of a device" : "", reader->ring.huge_bytes / HR_MIB);
}

int hr_reader_create(struct hr_reader **ret_reader, const struct hr_reader_params *params,
                     struct hr_error *err)
{
    struct hr_reader *reader = calloc(1, sizeof(*reader));
    struct hr_handover *shared = calloc(1, sizeof(*shared));
    int r;

    if (!reader || !shared) {
        free(reader);
        free(shared);
        return hr_error_set(err, -ENOMEM, "out of memory");
    }
    reader->shared = shared;
    pthread_mutex_init(&shared->mutex, NULL);
    hr_io_cond_init(&shared->caller_wakes);
    hr_io_cond_init(&shared->reader_wakes);
    reader->params = *params;
    if (params->block_bytes == 0)
        reader->params.block_bytes = HR_BLOCK_BYTES_DEFAULT;
    if (params->timeout_s == 0)
        reader->params.timeout_s = HR_TIMEOUT_S_DEFAULT;
    if (params->depth == 0)
        reader->params.depth = HR_DEPTH_DEFAULT;
    reader->depth = reader->depth_max = reader->params.depth;
    reader->failed_block = UINT64_MAX;

    r = check_params(&reader->params, err);
    if (r == 0)
        r = open_files(reader, err);
    if (r == 0)
        r = init_blocks(reader, err);
    if (r == 0 && params->memory)
        reader->ring = (struct hr_ring){.base = params->memory->base,
                                        .size_bytes = params->memory->size_bytes};
    else if (r == 0)
        r = hr_ring_init(&reader->ring, hr_align_up(params->ring_bytes, HR_RING_UNIT_BYTES),
                         !params->small_pages, err);
    if (r == 0) {
        reader->stats.ring_bytes = params->memory ? 0 : reader->ring.size_bytes;
        reader->stats.device_ring_bytes = params->memory ? reader->ring.size_bytes : 0;
        reader->stats.huge_bytes = reader->ring.huge_bytes;
        reader->stats.block_bytes = reader->params.block_bytes;
        reader->stats.depth = reader->stats.depth_min = reader->depth;
        r = start_thread(reader, err);
    }
    if (r < 0) {
        hr_reader_destroy(&reader);
        return r;
    }
    log_choice(reader);
    *ret_reader = reader;
    return 0;
}

/* A read that was given up may still end, today or never: the kernel, or a thread of the backend,
 * then writes into the ring and tells the backend. So ring, descriptors and backend stay as long as
 * the process does. The list is for those who look for leaks: these are meant. */
static void keep_for_good(struct hr_reader *reader)
{
    static struct hr_reader *_Atomic abandoned;

    reader->next_abandoned = atomic_load(&abandoned);
    while (!atomic_compare_exchange_weak(&abandoned, &reader->next_abandoned, reader))
        ;
}

void hr_reader_destroy(struct hr_reader **reader_ptr)
{
    struct hr_reader *reader = *reader_ptr;

    if (!reader)
        return;
    *reader_ptr = NULL;
    if (reader->thread_started) {
        pthread_mutex_lock(&reader->shared->mutex);
        reader->shared->state = HR_READER_STOPPING;
        pthread_cond_signal(&reader->shared->reader_wakes);
        pthread_mutex_unlock(&reader->shared->mutex);
        pthread_join(reader->thread, NULL);
    }
    const struct hr_reader_memory *memory = reader->params.memory;

    if (reader->abandoned && memory)
        memory->abandon(memory->user);
    if (!reader->abandoned) {
        if (!memory)
            hr_ring_uninit(&reader->ring);
        for (uint32_t i = 0; i < reader->n_files_open; i++)
            hr_io_file_close(&reader->files[i]);
        free(reader->files);
    }
    hr_plan_uninit(&reader->plan);
    pthread_cond_destroy(&reader->shared->reader_wakes);
    pthread_cond_destroy(&reader->shared->caller_wakes);
    pthread_mutex_destroy(&reader->shared->mutex);
    free(reader->shared->released);
    free(reader->shared);
    for (uint32_t d = 0; d < reader->n_devices; d++)
        free(reader->devices[d].items);
    free(reader->file_device);
    free(reader->blocks);
    if (reader->abandoned)
        keep_for_good(reader);
    else
        free(reader);
}

void hr_reader_ring(const struct hr_reader *reader, void **ret_base, size_t *ret_bytes)
{
    *ret_base = reader->ring.base;
    *ret_bytes = (size_t) reader->ring.size_bytes;
}

uint64_t hr_reader_ring_bytes_min(const struct hr_read_range *ranges, uint32_t n)
{
    uint64_t cover_bytes = 0;

    for (uint32_t i = 0; i < n; i++) {
        const uint64_t begin = hr_align_down(ranges[i].offset_bytes, HR_ALIGN_BYTES_MAX);
        const uint64_t end = ranges[i].offset_bytes + ranges[i].size_bytes;

        cover_bytes = hr_max_u64(cover_bytes, hr_align_up(end, HR_ALIGN_BYTES_MAX) - begin);
    }
    return hr_align_up(cover_bytes, HR_RING_UNIT_BYTES);
}

static int check_ranges(const struct hr_reader *reader, const struct hr_read_range *ranges,
                        uint32_t n, struct hr_error *err)
{
    for (uint32_t i = 0; i < n; i++) {
        const struct hr_read_range *range = &ranges[i];
        const bool known = range->file_idx < reader->params.n_files;
        const uint64_t file_bytes = known ? reader->params.files[range->file_idx].size_bytes : 0;

        if (range->size_bytes == 0 || range->size_bytes > HR_RANGE_BYTES_MAX ||
            range->offset_bytes > file_bytes ||
            range->size_bytes > file_bytes - range->offset_bytes)
            return hr_error_set(err, -EINVAL,
                                "range %u: %" PRIu64 " bytes at %" PRIu64 " of file %u: must be 1 "
                                "byte to %d MiB inside a file",
                                i, range->size_bytes, range->offset_bytes, range->file_idx,
                                HR_RANGE_BYTES_MAX >> 20);
    }
    const uint64_t min_bytes = hr_reader_ring_bytes_min(ranges, n);
    if (reader->ring.size_bytes < min_bytes)
        return hr_error_set(err, -EINVAL,
                            "a ring of %" PRIu64 " MiB is too small: %" PRIu64 " MiB are needed",
                            reader->ring.size_bytes / HR_MIB, min_bytes / HR_MIB);
    return 0;
}

bool hr_reader_at_rest(const struct hr_reader *reader)
{
    struct hr_handover *shared = reader->shared;

    pthread_mutex_lock(&shared->mutex);
    const bool rests = !reader->plan.ranges || (shared->n_taken == reader->plan.n_total &&
                                                shared->first_live == shared->n_taken);
    pthread_mutex_unlock(&shared->mutex);
    return rests;
}

/* Wait until the thread touches nothing of the reader any more. */
static void wait_at_rest(struct hr_reader *reader)
{
    struct hr_handover *shared = reader->shared;

    pthread_mutex_lock(&shared->mutex);
    if (shared->state == HR_READER_RUNNING) {
        shared->state = HR_READER_PAUSING;
        pthread_cond_signal(&shared->reader_wakes);
    }
    while (shared->state == HR_READER_PAUSING)
        pthread_cond_wait(&shared->caller_wakes, &shared->mutex);
    pthread_mutex_unlock(&shared->mutex);
}

int hr_reader_set_blocks(struct hr_reader *reader, uint32_t block_bytes, uint32_t depth,
                         struct hr_error *err)
{
    struct hr_reader_params params = reader->params;
    int r;

    if (!hr_reader_at_rest(reader))
        return hr_error_set(err, -EBUSY, "the block size cannot change while ranges are read");
    params.block_bytes = block_bytes;
    params.depth = depth;
    r = check_params(&params, err);
    if (r < 0)
        return r;
    if (depth == 0 || depth > reader->depth_max)
        return hr_error_set(err, -EINVAL, "%u reads in flight: this reader was made for 1 to %u",
                            depth, reader->depth_max);
    wait_at_rest(reader);
    reader->params.block_bytes = reader->stats.block_bytes = block_bytes;
    reader->params.depth = reader->depth = depth;
    reader->stats.depth = reader->stats.depth_min = depth;
    pthread_mutex_lock(&reader->shared->mutex);
    reader->shared->stats.block_bytes = block_bytes;
    reader->shared->stats.depth = reader->shared->stats.depth_min = depth;
    pthread_mutex_unlock(&reader->shared->mutex);
    return 0;
}

int hr_reader_start(struct hr_reader *reader, const struct hr_read_range *ranges, uint32_t n,
                    uint32_t n_once, uint32_t n_passes, struct hr_error *err)
{
    struct hr_handover *shared = reader->shared;
    struct hr_plan plan = {
        .ranges = ranges,
        .n_ranges = n,
        .n_once = n_once,
        .ring_bytes = reader->ring.size_bytes,
        .align_bytes = reader->plan.align_bytes,
        .block_bytes = reader->params.block_bytes,
    };
    uint8_t *released;

    if (!hr_reader_at_rest(reader))
        return hr_error_set(err, -EBUSY, "the ranges given before are not all used and released");
    if (n_once >= n)
        return hr_error_set(err, -EINVAL, "there is nothing to read%s",
                            n ? " after the first pass" : "");
    int r = check_ranges(reader, ranges, n, err);
    if (r < 0)
        return r;
    r = hr_plan_init(&plan, n_passes);
    released = r == 0 ? calloc(plan.window, sizeof(*released)) : NULL;
    if (!released) {
        hr_plan_uninit(&plan);
        return hr_error_set(err, -ENOMEM, "out of memory");
    }
    wait_at_rest(reader);
    hr_plan_uninit(&reader->plan);
    free(shared->released);
    reader->plan = plan;
    reader->first_block = reader->next_block = 0;
    reader->n_ready = 0;
    shared->released = released;
    shared->n_ready = shared->n_taken = shared->first_live = 0;

    pthread_mutex_lock(&shared->mutex);
    shared->state = HR_READER_RUNNING;
    pthread_cond_signal(&shared->reader_wakes);
    pthread_mutex_unlock(&shared->mutex);
    return 0;
}

/* ---- the caller's side ---------------------------------------------------------------- */

/* With the lock held. @return 1 a range is ready, 0 the end, -EINPROGRESS wait, or an error */
static int look(const struct hr_reader *reader, struct hr_error *err)
{
    const struct hr_handover *shared = reader->shared;

    if (hr_reader_interrupted(reader))
        return hr_error_set(err, -ECANCELED, "reading was interrupted");
    if (shared->n_taken < shared->n_ready)
        return 1;
    if (shared->n_taken == reader->plan.n_total)
        return 0;
    if (shared->failure.code)
        return hr_error_set(err, shared->failure.code, "%s", shared->failure.message);
    if (shared->stuck && shared->stuck_at == shared->first_live)
        return hr_error_set(err, -EDEADLK,
                            "the %" PRIu64 " ranges still held leave no room in the ring (%" PRIu64
                            " MiB) for the next; release some, or take a larger ring",
                            shared->n_taken - shared->first_live, reader->ring.size_bytes / HR_MIB);
    return -EINPROGRESS;
}

int hr_reader_next(struct hr_reader *reader, struct hr_slice *ret_slice, struct hr_error *err)
{
    struct hr_handover *shared = reader->shared;
    const struct hr_plan *plan = &reader->plan;
    uint64_t wait_begin_ns = 0;
    int r;

    if (!plan->ranges)
        return hr_error_set(err, -EINVAL, "the reader has not been started");
    pthread_mutex_lock(&shared->mutex);
    while ((r = look(reader, err)) == -EINPROGRESS) {
        if (wait_begin_ns == 0)
            wait_begin_ns = hr_now_ns();
        shared->caller_waits = true;
        hr_io_cond_wait(&shared->caller_wakes, &shared->mutex, HR_IO_WAIT_NS);
        shared->caller_waits = false;
    }
    if (wait_begin_ns > 0)
        shared->stall_disk_ns += hr_now_ns() - wait_begin_ns;
    if (r == 1) {
        const uint64_t seq = shared->n_taken++;
        /* Written by the thread before it told of the range, not touched before its release. */
        const uint64_t pos = plan->places[seq & (plan->window - 1)].pos;

        shared->units++;
        shared->bytes_used += hr_plan_range(plan, seq)->size_bytes;
        *ret_slice = (struct hr_slice){
            .range_idx = hr_plan_range_idx(plan, seq),
            .pass_idx = hr_plan_pass_idx(plan, seq),
            .data = reader->ring.base + pos % reader->ring.size_bytes,
            .ticket = seq,
        };
    }
    pthread_mutex_unlock(&shared->mutex);
    return r;
}

void hr_reader_release(struct hr_reader *reader, uint64_t ticket)
{
    struct hr_handover *shared = reader->shared;
    const uint64_t mask = reader->plan.window - 1;

    pthread_mutex_lock(&shared->mutex);
    const uint64_t first_live = shared->first_live;
    if (ticket < first_live || ticket >= shared->n_taken || shared->released[ticket & mask])
        hr_log(HR_LOG_ERROR, "io: a range was released that is not held");
    else
        shared->released[ticket & mask] = true;
    while (shared->first_live < shared->n_taken && shared->released[shared->first_live & mask])
        shared->released[shared->first_live++ & mask] = false;
    if (shared->first_live > first_live && shared->reader_idles)
        pthread_cond_signal(&shared->reader_wakes);
    pthread_mutex_unlock(&shared->mutex);
}

void hr_reader_get_stats(const struct hr_reader *reader, struct hr_stream_stats *ret_stats)
{
    struct hr_handover *shared = reader->shared;

    pthread_mutex_lock(&shared->mutex);
    *ret_stats = shared->stats;
    ret_stats->units = shared->units;
    ret_stats->bytes_used = shared->bytes_used;
    ret_stats->stall_disk_ns = shared->stall_disk_ns;
    pthread_mutex_unlock(&shared->mutex);
    ret_stats->latency_p50_ns = hr_latency_percentile(&reader->latencies, 0.5);
    ret_stats->latency_p99_ns = hr_latency_percentile(&reader->latencies, 0.99);
    ret_stats->latency_p999_ns = hr_latency_percentile(&reader->latencies, 0.999);
}

void hr_reader_interrupt(struct hr_reader *reader)
{
    atomic_store_explicit(&reader->interrupted, true, memory_order_relaxed);
}

bool hr_reader_file_direct(const struct hr_reader *reader, uint32_t file_idx)
{
    return atomic_load_explicit(&reader->files[file_idx].direct, memory_order_relaxed);
}
