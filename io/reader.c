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

#include "io/reader.h"

enum {
    /* A sleep with reads in flight that could become more when the caller gives space back. */
    WAIT_SPACE_NS = 500 * 1000,
};

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
    stats.cpu_ns = hr_clock_ns(CLOCK_THREAD_CPUTIME_ID);
    stats.in_flight =
        stats.busy_ns > 0 ? (double) reader->latency_sum_ns / (double) stats.busy_ns : 0.0;

    pthread_mutex_lock(&shared->mutex);
    const bool news = reader->n_ready > shared->n_ready;
    const bool failed = reader->failure.code != 0 &&
                        ((reader->in_flight == 0 && reader->queue_n == 0) || reader->abandoned);
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

static bool a_disk_wants_more(const struct hr_reader *reader)
{
    for (uint32_t d = 0; d < reader->n_devices; d++)
        if (reader->devices[d].in_flight + reader->devices[d].n < reader->depth)
            return true;
    return false;
}

/* Cut as many blocks as there is room for, in the ring and among the reads in flight. */
static enum hr_plan_result cut_blocks(struct hr_reader *reader)
{
    enum hr_plan_result result = HR_PLAN_BLOCK;

    while (a_disk_wants_more(reader) &&
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

static struct hr_io_request next_request(struct hr_reader *reader, uint64_t block_idx,
                                         uint64_t now_ns)
{
    struct hr_block *block = hr_reader_block(reader, block_idx);
    const uint64_t pos = block->at.pos + block->done_bytes;

    block->asked_ns = now_ns;
    block->asked_direct = reader->files[block->at.file_idx].direct;
    return (struct hr_io_request){
        .file_idx = block->at.file_idx,
        .offset_bytes = block->at.offset_bytes + block->done_bytes,
        .size_bytes = block->ask_bytes,
        .buf = reader->ring.base + pos % reader->ring.size_bytes,
        .tag = block_idx,
    };
}

/* @return false: the kernel takes no more for now */
static bool submit_queue(struct hr_reader *reader, struct hr_device_queue *queue)
{
    const uint32_t mask = reader->n_blocks - 1;
    struct hr_io_request requests[HR_IO_BATCH];

    while (queue->n > 0 && queue->in_flight < reader->depth) {
        const uint32_t room = reader->depth - queue->in_flight;
        const uint32_t n = (uint32_t) hr_min_u64(hr_min_u64(queue->n, room), HR_IO_BATCH);
        const uint64_t now_ns = hr_now_ns();

        for (uint32_t i = 0; i < n; i++)
            requests[i] = next_request(reader, queue->items[(queue->first + i) & mask], now_ns);
        const int r = reader->io->backend->submit(reader->io, requests, n);
        if (r < 0) {
            hr_reader_refused(reader, r, true);
            return false;
        }
        if (r > 0)
            reader->refused_ns = 0;
        if (reader->in_flight == 0 && r > 0)
            reader->busy_since_ns = reader->answered_ns = now_ns;
        reader->in_flight += (uint32_t) r;
        queue->in_flight += (uint32_t) r;
        queue->first = (queue->first + (uint32_t) r) & mask;
        queue->n -= (uint32_t) r;
        reader->queue_n -= (uint32_t) r;
        if (r < (int) n)
            return false;
    }
    return true;
}

static void submit_queues(struct hr_reader *reader)
{
    for (uint32_t d = 0; d < reader->n_devices; d++)
        if (!submit_queue(reader, &reader->devices[d]))
            return;
}

/* Wait for completions and take them in. */
static void reap(struct hr_reader *reader, uint64_t timeout_ns)
{
    struct hr_io_completion done[HR_IO_BATCH];
    const int n = reader->io->backend->reap(reader->io, done, HR_IO_BATCH, timeout_ns);

    if (n < 0) {
        hr_reader_refused(reader, n, false);
        hr_sleep_ns(HR_IO_PAUSE_NS);
        return;
    }
    if (n == 0)
        return;
    const uint64_t now_ns = hr_now_ns();

    reader->refused_ns = 0;
    reader->answered_ns = now_ns;
    reader->is_slow = false;
    reader->wants_pause = false;
    for (int i = 0; i < n; i++)
        hr_reader_complete(reader, &done[i], now_ns);
    if (reader->in_flight == 0)
        reader->stats.busy_ns += now_ns - reader->busy_since_ns;
    if (reader->wants_pause)
        hr_sleep_ns(HR_IO_PAUSE_NS);
}

static void reap_or_give_up(struct hr_reader *reader, uint64_t timeout_ns)
{
    reap(reader, timeout_ns);
    hr_reader_check_hang(reader);
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
        hr_io_cond_wait(&shared->reader_wakes, &shared->mutex, HR_IO_WAIT_NS);
        shared->reader_idles = false;
        shared->stuck = false;
    }
    pthread_mutex_unlock(&shared->mutex);
    if (!wants_space)
        return;
    const uint64_t end_ns = hr_now_ns();

    reader->stats.stall_space_ns += end_ns - begin_ns;
    reader->traced_ns = end_ns;
    hr_trace_add(reader->params.trace, &(struct hr_trace_event){
                                           .kind = HR_TRACE_WAIT_SPACE,
                                           .begin_ns = begin_ns,
                                           .end_ns = end_ns,
                                       });
}

static void stream(struct hr_reader *reader)
{
    reader->refused_ns = 0; /* of a stream before this */
    while (synchronise(reader)) {
        enum hr_plan_result result = HR_PLAN_END;

        if (reader->abandoned) {
            idle(reader, false);
            continue;
        }
        if (reader->failure.code == 0 && !hr_reader_interrupted(reader))
            result = cut_blocks(reader);
        submit_queues(reader);
        const bool wants_space = result == HR_PLAN_FULL || result == HR_PLAN_HOLD;
        if (reader->in_flight > 0)
            reap_or_give_up(reader, wants_space ? WAIT_SPACE_NS : HR_IO_WAIT_NS);
        else if (reader->queue_n > 0)
            hr_sleep_ns(HR_IO_PAUSE_NS);
        else
            idle(reader, wants_space);
        hr_reader_adapt_depth(reader);
    }
    /* The kernel still writes into the ring. What comes now is only counted off. */
    const uint64_t failed_block = reader->failed_block;

    reader->failed_block = 0;
    while (reader->in_flight > 0 && !reader->abandoned)
        reap_or_give_up(reader, HR_IO_WAIT_NS);
    reader->failed_block = failed_block;
}

void *hr_reader_thread(void *arg)
{
    struct hr_reader *reader = arg;
    struct hr_handover *shared = reader->shared;
    const struct hr_io_params params = {
        .files = reader->files,
        .n_files = reader->params.n_files,
        .depth = reader->depth_max * reader->n_devices,
        .buf = reader->ring.base,
        .buf_bytes = reader->ring.size_bytes,
        .memory = reader->params.memory,
        .block_bytes = reader->params.block_bytes,
        .timeout_ns = reader->params.timeout_s == HR_TIMEOUT_NONE
                          ? 0
                          : reader->params.timeout_s * UINT64_C(1000000000),
    };
    struct hr_error failure = {0};

    const int r = hr_io_create(&reader->io, reader->params.io, &params, &failure);
    if (r == 0) {
        reader->stats.io_name = reader->io->backend->name;
        reader->stats.pinned_bytes = reader->io->pinned_bytes;
    }
    reader->abandoned = r == -ETIMEDOUT;
    pthread_mutex_lock(&shared->mutex);
    shared->failure = failure;
    shared->stats = reader->stats;
    shared->state = r < 0 ? HR_READER_STOPPING : HR_READER_IDLE;
    pthread_cond_signal(&shared->caller_wakes);
    while (shared->state != HR_READER_STOPPING) {
        while (shared->state == HR_READER_IDLE)
            pthread_cond_wait(&shared->reader_wakes, &shared->mutex);
        if (shared->state == HR_READER_RUNNING) {
            pthread_mutex_unlock(&shared->mutex);
            stream(reader);
            pthread_mutex_lock(&shared->mutex);
        }
        if (shared->state == HR_READER_PAUSING) {
            shared->state = HR_READER_IDLE;
            pthread_cond_signal(&shared->caller_wakes);
        }
    }
    pthread_mutex_unlock(&shared->mutex);
    if (!reader->abandoned)
        hr_io_destroy(&reader->io);
    return NULL;
}
