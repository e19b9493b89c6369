/* SPDX-License-Identifier: Apache-2.0 */
/* reader_done.c -- what becomes of a read: finished, continued, repeated, divided or given up.
 *
 * A block is read by one request at a time, from done_bytes on. Whatever happens to a request only
 * changes how much of the block is asked for next; so a short read, a bad sector and a lost
 * O_DIRECT all take the same way back into the queue.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "io/reader.h"

enum {
    INTERRUPTED_S = 2, /* to wait for reads in flight */
    SLOW_S = 10,       /* without an answer: worth a warning              */
    TRIES_MAX = 100,   /* requests of a block without progress                 */
    PATIENCE_S = 10,   /* with a kernel that refuses                           */
    GOOD_READS = 1000, /* since the depth was changed, before it may grow again */
    DESCRIPTION_BYTES = 256,
    WHAT_BYTES = 256,
    PATH_PRINT_BYTES = 384,
};

void hr_reader_enqueue(struct hr_reader *reader, uint64_t block_idx, bool in_front)
{
    const uint32_t mask = reader->n_blocks - 1;
    struct hr_device_queue *queue =
        hr_reader_queue(reader, hr_reader_block(reader, block_idx)->at.file_idx);

    if (block_idx >= reader->failed_block)
        return;
    hr_assert(queue->n < reader->n_blocks);
    if (in_front) {
        queue->first = (queue->first - 1) & mask;
        queue->items[queue->first] = block_idx;
    } else {
        queue->items[(queue->first + queue->n) & mask] = block_idx;
    }
    queue->n++;
    reader->queue_n++;
}

/* Requests of the failed block and those behind it will not be submitted. */
static void purge_queue(struct hr_reader *reader)
{
    const uint32_t mask = reader->n_blocks - 1;

    reader->queue_n = 0;
    for (uint32_t d = 0; d < reader->n_devices; d++) {
        struct hr_device_queue *queue = &reader->devices[d];
        uint32_t kept = 0;

        for (uint32_t i = 0; i < queue->n; i++) {
            const uint64_t block_idx = queue->items[(queue->first + i) & mask];

            if (block_idx < reader->failed_block)
                queue->items[(queue->first + kept++) & mask] = block_idx;
        }
        queue->n = kept;
        reader->queue_n += kept;
    }
}

/* describe()'s words, in brackets, for the first range that needs the byte at pos. */
static void describe_pos(struct hr_reader *reader, uint64_t pos, char *buf, size_t buf_bytes)
{
    const struct hr_plan *plan = &reader->plan;
    char words[DESCRIPTION_BYTES - 8] = "";
    uint64_t seq = hr_max_u64(reader->n_ready, plan->first_live);

    buf[0] = '\0';
    while (seq < plan->seq && hr_plan_pos(plan, seq) + hr_plan_range(plan, seq)->size_bytes <= pos)
        seq++;
    if (seq == plan->seq || !reader->params.describe)
        return;
    reader->params.describe(reader->params.describe_user, hr_plan_range_idx(plan, seq), words,
                            sizeof(words));
    snprintf(buf, buf_bytes, " (%s)", words);
}

void hr_reader_fail(struct hr_reader *reader, uint64_t block_idx, uint64_t size_bytes, int code,
                    const char *what)
{
    const struct hr_block *block = hr_reader_block(reader, block_idx);
    const uint64_t offset = block->at.offset_bytes + block->done_bytes;
    char path[PATH_PRINT_BYTES], description[DESCRIPTION_BYTES];

    /* Of several failures the first in the order of use is the one to tell. */
    if (block_idx >= reader->failed_block)
        return;
    reader->failed_block = block_idx;
    purge_queue(reader);
    describe_pos(reader, block->at.pos + block->done_bytes, description, sizeof(description));
    hr_error_clear(&reader->failure);
    hr_error_set(&reader->failure, code, "%s: bytes %" PRIu64 " to %" PRIu64 "%s: %s",
                 hr_printable(reader->params.files[block->at.file_idx].path, path, sizeof(path)),
                 offset, offset + size_bytes - 1, description, what);
}

/* @param since_ns  when it first refused: now, where that is 0
 * @return it has done so for long, and done nothing else since */
static bool is_refused_for_good(const struct hr_reader *reader, uint64_t *since_ns, uint64_t now_ns)
{
    if (*since_ns == 0)
        *since_ns = now_ns;
    return now_ns - hr_max_u64(*since_ns, reader->good_ns) >= PATIENCE_S * UINT64_C(1000000000);
}

static void fail_refused(struct hr_reader *reader, uint64_t block_idx, int code)
{
    char text[128], what[WHAT_BYTES];

    snprintf(what, sizeof(what),
             code == -EINTR ? "%s"
                            : "%s, for %d s; close other programs, or give a lower --iodepth",
             hr_strerror(code, text, sizeof(text)), PATIENCE_S);
    hr_reader_fail(reader, block_idx, hr_reader_block(reader, block_idx)->ask_bytes, code, what);
}

void hr_reader_refused(struct hr_reader *reader, int code, bool submitting)
{
    if (code == -EINTR)
        return;
    reader->lacks_memory |= code == -ENOMEM || code == -EAGAIN;
    /* What is under way comes back, or is found to hang. */
    if (submitting && reader->in_flight > 0)
        return;
    if (!is_refused_for_good(reader, &reader->refused_ns, hr_now_ns()))
        return;
    /* Nothing will come of what is queued, nor can be known of what is under way. */
    reader->abandoned = reader->in_flight > 0;
    if (reader->first_block < reader->next_block)
        fail_refused(reader, reader->first_block, code);
    reader->in_flight = 0;
    for (uint32_t d = 0; d < reader->n_devices; d++)
        reader->devices[d].in_flight = 0;
}

void hr_reader_adapt_depth(struct hr_reader *reader)
{
    const uint32_t before = reader->depth;

    if (reader->lacks_memory)
        reader->depth = (uint32_t) hr_max_u64(before / 2, 1);
    else if (reader->good_reads >= GOOD_READS)
        reader->depth = (uint32_t) hr_min_u64(before * UINT64_C(2), reader->params.depth);
    else
        return;
    reader->lacks_memory = false;
    reader->good_reads = 0;
    reader->stats.depth_min = (uint32_t) hr_min_u64(reader->stats.depth_min, reader->depth);
    if (reader->depth < before && !reader->told_memory)
        hr_log(HR_LOG_WARN,
               "io: the kernel lacks memory for %u reads at a time; fewer until it has it, slower; "
               "close other programs, or give a lower --iodepth",
               before);
    reader->told_memory |= reader->depth < before;
}

void hr_reader_check_hang(struct hr_reader *reader)
{
    const uint64_t waited_s = (hr_now_ns() - reader->answered_ns) / 1000000000u;
    /* Who interrupts does not want to wait for a disk that may never answer. */
    const uint32_t timeout_s =
        hr_reader_interrupted(reader) ? INTERRUPTED_S : reader->params.timeout_s;
    char path[PATH_PRINT_BYTES], what[WHAT_BYTES];

    if (reader->in_flight == 0 || waited_s < hr_min_u64(SLOW_S, timeout_s))
        return;
    const struct hr_block *block = hr_reader_block(reader, reader->first_block);

    if (!reader->is_slow && waited_s < timeout_s) {
        reader->is_slow = true;
        hr_log(HR_LOG_WARN, "%s: the disk has not answered for %" PRIu64 " s",
               hr_printable(reader->params.files[block->at.file_idx].path, path, sizeof(path)),
               waited_s);
    }
    if (timeout_s == HR_TIMEOUT_NONE || waited_s < timeout_s)
        return;
    snprintf(what, sizeof(what), "the disk has not answered for %" PRIu64 " s", waited_s);
    hr_reader_fail(reader, reader->first_block, block->ask_bytes, -ETIMEDOUT, what);
    reader->abandoned = true;
}

static void finish(struct hr_reader *reader, struct hr_block *block)
{
    block->finished = true;
    while (reader->first_block < reader->next_block &&
           hr_reader_block(reader, reader->first_block)->finished)
        reader->first_block++;
}

/* n bytes have come, of those asked for. */
static void take_bytes(struct hr_reader *reader, uint64_t block_idx, uint32_t n)
{
    struct hr_block *block = hr_reader_block(reader, block_idx);
    const struct hr_io_file *file = &reader->files[block->at.file_idx];
    const uint32_t arrived = block->done_bytes + n;
    char what[WHAT_BYTES];

    reader->stats.bytes_read += n;
    if (!block->asked_direct)
        reader->stats.bounced_bytes += n;
    if (arrived >= block->need_bytes) {
        finish(reader, block);
        return;
    }
    /* A direct read must begin aligned; the bytes behind the last boundary are read again. */
    const uint32_t done =
        block->asked_direct ? (uint32_t) hr_align_down(arrived, file->align_bytes) : arrived;
    if (n < block->ask_bytes)
        reader->stats.short_reads++;
    if (n == 0 || (done == block->done_bytes && ++block->tries > TRIES_MAX)) {
        snprintf(what, sizeof(what), "the file shrank: it ends at byte %" PRIu64 " of %" PRIu64,
                 block->at.offset_bytes + arrived, file->source->size_bytes);
        hr_reader_fail(reader, block_idx, block->need_bytes - block->done_bytes, -EIO, what);
        return;
    }
    if (done > block->done_bytes) {
        block->done_bytes = done;
        block->tries = 0;
        block->refused_ns = 0;
        block->asked_again = false;
    }
    block->ask_bytes =
        (uint32_t) hr_min_u64(block->ask_bytes, block->at.size_bytes - block->done_bytes);
    hr_reader_enqueue(reader, block_idx, true);
}

/* The disk says no: halve the request until the bad place is alone, then try that once more. */
static void bisect(struct hr_reader *reader, uint64_t block_idx, int code)
{
    struct hr_block *block = hr_reader_block(reader, block_idx);
    const uint32_t part = reader->files[block->at.file_idx].align_bytes;
    char text[128], what[WHAT_BYTES];

    if (block->ask_bytes > part) {
        block->ask_bytes = (uint32_t) hr_align_up(block->ask_bytes / 2, part);
    } else if (!block->asked_again) {
        block->asked_again = true;
    } else {
        snprintf(what, sizeof(what),
                 "%s; the disk cannot read this place: see dmesg, and fetch the file again",
                 hr_strerror(code, text, sizeof(text)));
        hr_reader_fail(reader, block_idx, block->ask_bytes, -EIO, what);
        return;
    }
    reader->stats.retries++;
    hr_reader_enqueue(reader, block_idx, true);
}

/* A direct read was refused as such: read this file buffered from now on, where that is allowed. */
static void lose_direct(struct hr_reader *reader, uint64_t block_idx, int code)
{
    struct hr_block *block = hr_reader_block(reader, block_idx);
    struct hr_io_file *file = &reader->files[block->at.file_idx];
    char text[128], path[PATH_PRINT_BYTES], what[WHAT_BYTES];
    const char *words = hr_strerror(code, text, sizeof(text));
    int r = 0;

    if (!block->asked_direct) {
        hr_reader_fail(reader, block_idx, block->ask_bytes, code, words);
        return;
    }
    if (reader->params.direct == HR_DIRECT_ON) {
        snprintf(what, sizeof(what), "a direct read was refused (%s); let direct be auto", words);
        hr_reader_fail(reader, block_idx, block->ask_bytes, -EOPNOTSUPP, what);
        return;
    }
    if (file->direct) {
        hr_log(HR_LOG_WARN, "%s: a direct read was refused (%s); read through the page cache now",
               hr_printable(file->source->path, path, sizeof(path)), words);
        r = hr_io_file_go_buffered(file, NULL);
        if (r == 0 && reader->io->backend->file_changed)
            r = reader->io->backend->file_changed(reader->io, block->at.file_idx);
        reader->stats.direct = false;
        reader->stats.n_files_direct--;
    }
    if (r < 0) {
        hr_reader_fail(reader, block_idx, block->ask_bytes, r, hr_strerror(r, text, sizeof(text)));
        return;
    }
    reader->stats.retries++;
    hr_reader_enqueue(reader, block_idx, true);
}

/* An interruption says nothing of the next try; where the kernel wants for something, patience
 * helps. */
static void repeat(struct hr_reader *reader, uint64_t block_idx, int code, uint64_t now_ns)
{
    struct hr_block *block = hr_reader_block(reader, block_idx);

    reader->lacks_memory |= code == -ENOMEM;
    reader->wants_pause |= code != -EINTR;
    const bool gives_up = code == -EINTR ? ++block->tries > TRIES_MAX
                                         : is_refused_for_good(reader, &block->refused_ns, now_ns);

    if (gives_up) {
        fail_refused(reader, block_idx, code);
        return;
    }
    reader->stats.retries++;
    hr_reader_enqueue(reader, block_idx, true);
}

/* Reads overlap, and a disk is one: a read's slice begins where the one that was done before it
 * ends, or when it was asked for, so that gaps are times with nothing in flight. */
static void trace_read(struct hr_reader *reader, const struct hr_block *block, int32_t result,
                       uint64_t now_ns)
{
    const char *path = reader->params.files[block->at.file_idx].path, *slash = strrchr(path, '/');

    if (!reader->params.trace)
        return;
    hr_trace_add(reader->params.trace,
                 &(struct hr_trace_event){
                     .kind = HR_TRACE_READ,
                     .name = slash ? slash + 1 : path,
                     .begin_ns = hr_max_u64(block->asked_ns, reader->traced_ns),
                     .end_ns = now_ns,
                     .bytes = result > 0 ? (uint64_t) result : 0,
                     .a = block->at.offset_bytes + block->done_bytes,
                     .b = reader->plan.head - reader->plan.tail,
                     .extra = now_ns - block->asked_ns,
                     .index = block->at.file_idx,
                 });
    reader->traced_ns = now_ns;
}

void hr_reader_complete(struct hr_reader *reader, const struct hr_io_completion *done,
                        uint64_t now_ns)
{
    struct hr_block *block = hr_reader_block(reader, done->tag);
    char text[256];

    hr_assert(done->tag >= reader->first_block && done->tag < reader->next_block);
    hr_assert(!block->finished && reader->in_flight > 0);
    hr_assert(done->result <= (int32_t) block->ask_bytes);
    hr_assert(done->result != -EFAULT && done->result != -EBADF);
    reader->in_flight--;
    hr_reader_queue(reader, block->at.file_idx)->in_flight--;
    reader->stats.reads++;
    reader->latency_sum_ns += now_ns - block->asked_ns;
    hr_latency_add(&reader->latencies, now_ns - block->asked_ns);
    trace_read(reader, block, done->result, now_ns);

    const int code = done->result < 0 ? done->result : 0;

    if (code == 0) {
        reader->good_reads++;
        reader->good_ns = now_ns;
        take_bytes(reader, done->tag, (uint32_t) done->result);
    } else if (code == -EINTR || code == -EAGAIN || code == -ENOMEM) {
        repeat(reader, done->tag, code, now_ns);
    } else if (code == -EINVAL || code == -EOPNOTSUPP) {
        lose_direct(reader, done->tag, code);
    } else if (hr_io_is_disk_error(code)) {
        bisect(reader, done->tag, code);
    } else {
        hr_reader_fail(reader, done->tag, block->ask_bytes, code,
                       hr_io_words(reader->io, code, text, sizeof(text)));
    }
}
