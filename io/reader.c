/* SPDX-License-Identifier: Apache-2.0 */
/* reader.c -- the thread that keeps the disk busy, and its hand-over to the caller.
 *
 * One thread owns backend, placement and blocks; nothing of that is locked. It meets the caller in
 * struct hr_handover: there it tells how far the bytes have arrived and learns how far they have
 * been given back, a few thousand times per pass. All of it is in the order of the ranges, so both
 * are single counters.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "io/reader.h"

enum {
    BLOCKS_MIN = 256, /* in the making: read out of order, handed over in order */
    BLOCKS_PER_READ = 4,
    WAIT_NS = 100 * 1000000, /* longest sleep: an interruption is noticed after it  */
    /* A sleep with reads in flight that could become more when the caller gives space back. */
    WAIT_SPACE_NS = 500 * 1000,
    PAUSE_NS = 1000000, /* when the kernel refuses to do anything              */
};
#define RING_UNIT_BYTES (2 * HR_MIB)

/* ---- the thread ----------------------------------------------------------------------- */

/* Position up to which all bytes have arrived. */
static uint64_t arrived_pos(struct hr_reader *reader)
{
    if (reader->first_block == reader->next_block)
        return reader->plan.cut;
    const struct hr_block *block = hr_reader_block(reader, reader->first_block);
    const bool failed = reader->first_block == reader->failed_block;
    return block->at.pos + (failed ? block->done_bytes : 0);
}

static void count_ready(struct hr_reader *reader)
{
    const struct hr_plan *plan = &reader->plan;
    const uint64_t arrived = arrived_pos(reader);

    while (reader->n_ready < plan->seq &&
           hr_plan_pos(plan, reader->n_ready) + hr_plan_range(plan, reader->n_ready)->size_bytes <=
               arrived)
        reader->n_ready++;
}

/* Tell the caller what has arrived, learn what it has given back. @return false: stop */
static bool synchronise(struct hr_reader *reader)
{
    struct hr_handover *shared = reader->shared;
    struct hr_stream_stats stats = reader->stats;

    count_ready(reader);
    if (reader->in_flight > 0)
        stats.busy_ns += hr_now_ns() - reader->busy_since_ns;

    pthread_mutex_lock(&shared->mutex);
    const bool news = reader->n_ready > shared->n_ready;
    const bool failed = reader->failure.code != 0 && reader->in_flight == 0 && reader->queue_n == 0;
    shared->n_ready = reader->n_ready;
    shared->stats = stats;
    if (failed)
        shared->failure = reader->failure;
    if (shared->caller_waits && (news || failed))
        pthread_cond_signal(&shared->caller_wakes);
    hr_plan_release(&reader->plan, shared->first_live);
    reader->caller_waits = shared->caller_waits;
    const bool running = shared->state == HR_READER_RUNNING;
    pthread_mutex_unlock(&shared->mutex);
    return running;
}

/* Cut as many blocks as there is room for, in the ring and among the reads in flight. */
static enum hr_plan_result cut_blocks(struct hr_reader *reader)
{
    enum hr_plan_result result = HR_PLAN_BLOCK;

    while (reader->in_flight + reader->queue_n < reader->depth &&
           reader->next_block - reader->first_block < reader->n_blocks) {
        const bool may_hold = reader->in_flight + reader->queue_n > 0 && !reader->caller_waits;
        struct hr_plan_block at;

        result = hr_plan_next(&reader->plan, may_hold, &at);
        if (result != HR_PLAN_BLOCK)
            break;
        const uint64_t file_bytes = reader->params.files[at.file_idx].size_bytes;
        *hr_reader_block(reader, reader->next_block) = (struct hr_block){
            .at = at,
            .need_bytes = (uint32_t) hr_min_u64(at.size_bytes, file_bytes - at.offset_bytes),
            .ask_bytes = at.size_bytes,
        };
        hr_reader_enqueue(reader, reader->next_block++, false);
    }
    return result;
}

static struct hr_io_request next_request(struct hr_reader *reader, uint64_t block_idx)
{
    struct hr_block *block = hr_reader_block(reader, block_idx);
    const uint64_t pos = block->at.pos + block->done_bytes;

    block->asked_direct = reader->files[block->at.file_idx].direct;
    return (struct hr_io_request){
        .file_idx = block->at.file_idx,
        .offset_bytes = block->at.offset_bytes + block->done_bytes,
        .size_bytes = block->ask_bytes,
        .buf = reader->ring.base + pos % reader->ring.size_bytes,
        .tag = block_idx,
    };
}

static void submit_queue(struct hr_reader *reader)
{
    const uint32_t mask = reader->n_blocks - 1;
    struct hr_io_request requests[HR_IO_BATCH];

    while (reader->queue_n > 0 && reader->in_flight < reader->depth) {
        const uint32_t room = reader->depth - reader->in_flight;
        const uint32_t n = (uint32_t) hr_min_u64(hr_min_u64(reader->queue_n, room), HR_IO_BATCH);

        for (uint32_t i = 0; i < n; i++)
            requests[i] = next_request(reader, reader->queue[(reader->queue_first + i) & mask]);
        const int r = reader->io->backend->submit(reader->io, requests, n);
        if (r < 0) {
            hr_reader_refused(reader, r);
            return;
        }
        if (reader->in_flight == 0 && r > 0)
            reader->busy_since_ns = hr_now_ns();
        reader->in_flight += (uint32_t) r;
        reader->queue_first = (reader->queue_first + (uint32_t) r) & mask;
        reader->queue_n -= (uint32_t) r;
        if (r < (int) n)
            return;
    }
}

static void pause_thread(void)
{
    const struct timespec pause = {.tv_nsec = PAUSE_NS};

    nanosleep(&pause, NULL);
}

/* Wait for completions and take them in. */
static void reap(struct hr_reader *reader, uint64_t timeout_ns)
{
    struct hr_io_completion done[HR_IO_BATCH];
    const int n = reader->io->backend->reap(reader->io, done, HR_IO_BATCH, timeout_ns);

    if (n < 0) {
        hr_reader_refused(reader, n);
        pause_thread();
        return;
    }
    if (n > 0)
        reader->refusals = 0;
    for (int i = 0; i < n; i++)
        hr_reader_complete(reader, &done[i]);
    if (n > 0 && reader->in_flight == 0)
        reader->stats.busy_ns += hr_now_ns() - reader->busy_since_ns;
}

/* Nothing in flight and nothing to submit: sleep until the caller changes that. */
static void idle(struct hr_reader *reader, bool wants_space)
{
    struct hr_handover *shared = reader->shared;
    const uint64_t begin_ns = hr_now_ns();

    pthread_mutex_lock(&shared->mutex);
    if (shared->state == HR_READER_RUNNING &&
        !(wants_space && shared->first_live != reader->plan.first_live)) {
        shared->stuck = wants_space;
        shared->stuck_at = shared->first_live;
        if (shared->caller_waits)
            pthread_cond_signal(&shared->caller_wakes);
        shared->reader_idles = true;
        hr_io_cond_wait(&shared->reader_wakes, &shared->mutex, WAIT_NS);
        shared->reader_idles = false;
        shared->stuck = false;
    }
    pthread_mutex_unlock(&shared->mutex);
    if (wants_space)
        reader->stats.stall_space_ns += hr_now_ns() - begin_ns;
}

static bool interrupted(const struct hr_reader *reader)
{
    return atomic_load_explicit(&reader->interrupted, memory_order_relaxed);
}

static void stream(struct hr_reader *reader)
{
    while (synchronise(reader)) {
        enum hr_plan_result result = HR_PLAN_END;

        if (reader->failure.code == 0 && !interrupted(reader))
            result = cut_blocks(reader);
        submit_queue(reader);
        const bool wants_space = result == HR_PLAN_FULL || result == HR_PLAN_HOLD;
        if (reader->in_flight > 0)
            reap(reader, wants_space ? WAIT_SPACE_NS : WAIT_NS);
        else if (reader->queue_n > 0)
            pause_thread();
        else
            idle(reader, wants_space);
    }
    /* The kernel still writes into the ring. What comes now is only counted off. */
    reader->failed_block = 0;
    while (reader->in_flight > 0)
        reap(reader, WAIT_NS);
}

static void *reader_thread(void *arg)
{
    struct hr_reader *reader = arg;
    struct hr_handover *shared = reader->shared;
    const struct hr_io_params params = {
        .files = reader->files,
        .n_files = reader->params.n_files,
        .depth = reader->depth,
        .buf = reader->ring.base,
        .buf_bytes = reader->ring.size_bytes,
        .block_bytes = reader->params.block_bytes,
    };
    struct hr_error failure = {0};

    const int r = hr_io_create(&reader->io, reader->params.io, &params, &failure);
    if (r == 0)
        reader->stats.io_name = reader->io->backend->name;
    pthread_mutex_lock(&shared->mutex);
    shared->failure = failure;
    shared->stats = reader->stats;
    shared->state = r < 0 ? HR_READER_STOPPING : HR_READER_IDLE;
    pthread_cond_signal(&shared->caller_wakes);
    while (shared->state == HR_READER_IDLE)
        pthread_cond_wait(&shared->reader_wakes, &shared->mutex);
    const bool run = shared->state == HR_READER_RUNNING;
    pthread_mutex_unlock(&shared->mutex);

    if (run)
        stream(reader);
    hr_io_destroy(&reader->io);
    return NULL;
}

/* ---- life ------------------------------------------------------------------------------- */

static int check_params(const struct hr_reader_params *params, struct hr_error *err)
{
    const uint32_t block = params->block_bytes;

    if (params->n_files == 0 || params->ring_bytes == 0)
        return hr_error_set(err, -EINVAL, "a reader needs files and a ring");
    if (params->ring_bytes > UINT64_MAX / 2)
        return hr_error_set(err, -EINVAL, "a ring of %" PRIu64 " bytes is too large",
                            params->ring_bytes);
    if (block < HR_BLOCK_BYTES_MIN || block > HR_BLOCK_BYTES_MAX || (block & (block - 1)) != 0)
        return hr_error_set(err, -EINVAL,
                            "block size %u: must be a power of two from %d KiB to %d MiB", block,
                            HR_BLOCK_BYTES_MIN >> 10, HR_BLOCK_BYTES_MAX >> 20);
    if (params->depth > HR_DEPTH_MAX)
        return hr_error_set(err, -EINVAL, "%u reads in flight: must be 1 to %d", params->depth,
                            HR_DEPTH_MAX);
    return 0;
}

static int open_files(struct hr_reader *reader, struct hr_error *err)
{
    const struct hr_reader_params *params = &reader->params;

    reader->files = calloc(params->n_files, sizeof(*reader->files));
    if (!reader->files)
        return hr_error_set(err, -ENOMEM, "out of memory");
    reader->plan.align_bytes = HR_IO_ALIGN_BYTES;
    reader->stats.direct = true;
    for (uint32_t i = 0; i < params->n_files; i++) {
        struct hr_io_file *file = &reader->files[i];
        const int r = hr_io_file_open(file, &params->files[i], params->direct, err);

        if (r < 0)
            return r;
        reader->n_files_open++;
        reader->stats.direct = reader->stats.direct && file->direct;
        reader->plan.align_bytes = hr_max_u64(reader->plan.align_bytes, file->align_bytes);
    }
    return 0;
}

static int init_blocks(struct hr_reader *reader, struct hr_error *err)
{
    reader->n_blocks = BLOCKS_MIN;
    while (reader->n_blocks < BLOCKS_PER_READ * reader->depth)
        reader->n_blocks *= 2;
    reader->blocks = calloc(reader->n_blocks, sizeof(*reader->blocks));
    reader->queue = calloc(reader->n_blocks, sizeof(*reader->queue));
    if (!reader->blocks || !reader->queue)
        return hr_error_set(err, -ENOMEM, "out of memory");
    return 0;
}

/* Start the thread and wait until it has a backend, or has none. */
static int start_thread(struct hr_reader *reader, struct hr_error *err)
{
    struct hr_handover *shared = reader->shared;
    int r = hr_io_thread_start(&reader->thread, "hr-reader", reader_thread, reader);

    if (r < 0)
        return hr_error_set(err, r, "no thread for reading");
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
           "io: %s, %s, up to %u reads of %u KiB in flight, ring of %" PRIu64 " MiB (%" PRIu64
           " in huge pages)",
           stats->io_name, stats->direct ? "direct" : "through the page cache", stats->depth,
           stats->block_bytes >> 10, stats->ring_bytes / HR_MIB, reader->ring.huge_bytes / HR_MIB);
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
    reader->depth = params->depth ? params->depth : HR_DEPTH_DEFAULT;
    reader->failed_block = UINT64_MAX;

    r = check_params(&reader->params, err);
    if (r == 0)
        r = open_files(reader, err);
    if (r == 0)
        r = init_blocks(reader, err);
    if (r == 0)
        r = hr_ring_init(&reader->ring, hr_align_up(params->ring_bytes, RING_UNIT_BYTES), err);
    if (r == 0) {
        reader->stats.ring_bytes = reader->ring.size_bytes;
        reader->stats.block_bytes = reader->params.block_bytes;
        reader->stats.depth = reader->depth;
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
    hr_ring_uninit(&reader->ring);
    for (uint32_t i = 0; i < reader->n_files_open; i++)
        hr_io_file_close(&reader->files[i]);
    hr_plan_uninit(&reader->plan);
    pthread_cond_destroy(&reader->shared->reader_wakes);
    pthread_cond_destroy(&reader->shared->caller_wakes);
    pthread_mutex_destroy(&reader->shared->mutex);
    free(reader->shared->released);
    free(reader->shared);
    free(reader->queue);
    free(reader->blocks);
    free(reader->files);
    free(reader);
}

uint64_t hr_reader_ring_bytes_min(const struct hr_read_range *ranges, uint32_t n)
{
    uint64_t cover_bytes = 0;

    for (uint32_t i = 0; i < n; i++) {
        const uint64_t begin = hr_align_down(ranges[i].offset_bytes, HR_ALIGN_BYTES_MAX);
        const uint64_t end = ranges[i].offset_bytes + ranges[i].size_bytes;

        cover_bytes = hr_max_u64(cover_bytes, hr_align_up(end, HR_ALIGN_BYTES_MAX) - begin);
    }
    return hr_align_up(cover_bytes, RING_UNIT_BYTES);
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

int hr_reader_start(struct hr_reader *reader, const struct hr_read_range *ranges, uint32_t n,
                    uint32_t n_once, uint32_t n_passes, struct hr_error *err)
{
    struct hr_handover *shared = reader->shared;
    struct hr_plan *plan = &reader->plan;

    if (plan->ranges)
        return hr_error_set(err, -EINVAL, "the reader has been started before");
    if (n_once >= n)
        return hr_error_set(err, -EINVAL, "there is nothing to read%s",
                            n ? " after the first pass" : "");
    int r = check_ranges(reader, ranges, n, err);
    if (r < 0)
        return r;

    plan->n_ranges = n;
    plan->n_once = n_once;
    plan->ring_bytes = reader->ring.size_bytes;
    plan->block_bytes = reader->params.block_bytes;
    plan->ranges = ranges;
    r = hr_plan_init(plan, n_passes);
    if (r == 0)
        shared->released = calloc(plan->window, sizeof(*shared->released));
    if (r < 0 || !shared->released) {
        hr_plan_uninit(plan);
        plan->ranges = NULL;
        return hr_error_set(err, -ENOMEM, "out of memory");
    }
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

    if (interrupted(reader))
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
        hr_io_cond_wait(&shared->caller_wakes, &shared->mutex, WAIT_NS);
        shared->caller_waits = false;
    }
    if (wait_begin_ns > 0)
        shared->stall_disk_ns += hr_now_ns() - wait_begin_ns;
    if (r == 1) {
        const uint64_t seq = shared->n_taken++;
        /* Written by the thread before it told of the range, not touched before its release. */
        const uint64_t pos = plan->places[seq & (plan->window - 1)].pos;

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
    ret_stats->units = shared->n_taken;
    ret_stats->bytes_used = shared->bytes_used;
    ret_stats->stall_disk_ns = shared->stall_disk_ns;
    pthread_mutex_unlock(&shared->mutex);
}

void hr_reader_interrupt(struct hr_reader *reader)
{
    atomic_store_explicit(&reader->interrupted, true, memory_order_relaxed);
}
