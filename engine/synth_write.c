/* SPDX-License-Identifier: Apache-2.0 */
/* synth_write.c -- the shards' bytes, made and written by all CPUs.
 *
 * Files are cut into chunks. Each thread takes the next chunk, makes its bytes and writes them
 * itself; there are twice as many threads as CPUs, so that half of them may wait for the disk.
 * Writes bypass the page cache where they can, or leave it again at once: what is measured on the
 * model afterwards is the disk. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/files.h"
#include "engine/synth.h"

enum {
    CHUNK_BYTES = 4 << 20,
    THREADS_MAX = 16, /* 64 MiB of chunks */
    ALIGN_BYTES = 4096,
    POLL_MS = 50,
};

struct output {
    int fd;
    bool is_open, is_direct;
    uint32_t n_chunks_left;
};

struct writer {
    const struct hr_synth_layout *layout;
    const struct hr_synth_params *params;
    const char *shown, *file_name;
    int dir_fd;
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t finished;
    struct output *outputs; /* one for each shard */
    uint32_t shard_idx;     /* of the next chunk  */
    uint64_t offset_bytes;  /* of the next chunk  */
    uint64_t bytes_done;
    unsigned n_running;
    int code; /* of the first failure */
    struct hr_error *err;
};

struct worker {
    struct writer *writer;
    pthread_t thread;
    uint8_t *chunk; /* CHUNK_BYTES, aligned */
};

/* ---- bytes -------------------------------------------------------------------------- */

/* Bytes begin .. begin + n - 1 of tensor i, which need not be whole elements. */
static void tensor_part(uint8_t *dst, const struct hr_synth_layout *layout, uint32_t i,
                        uint64_t begin, uint64_t n)
{
    const struct hr_synth_rule *rule = &layout->rules[i];
    const size_t element_bytes = hr_dtype_bits(layout->dtype) / 8;
    uint8_t element[sizeof(float)];

    while (n > 0) {
        const size_t skip = begin % element_bytes;
        uint64_t bytes = hr_min_u64(element_bytes - skip, n);

        if (skip == 0 && n >= element_bytes) {
            bytes = n - n % element_bytes;
            hr_synth_fill(dst, layout->dtype, rule, begin / element_bytes, bytes / element_bytes);
        } else { /* an element that is cut by the end of a chunk */
            hr_synth_fill(element, layout->dtype, rule, begin / element_bytes, 1);
            memcpy(dst, element + skip, bytes);
        }
        dst += bytes;
        begin += bytes;
        n -= bytes;
    }
}

/* Bytes begin .. begin + n - 1 of a shard's file. */
static void shard_bytes(void *dst, const struct hr_synth_layout *layout,
                        const struct hr_synth_shard *shard, uint64_t begin, uint64_t n)
{
    const uint64_t end = begin + n;
    uint32_t low = 0, high = shard->n_entries; /* the first tensor that ends after begin */
    uint8_t *p = dst;

    hr_assert(end <= shard->file_bytes);
    if (begin < shard->header_bytes) {
        const uint64_t bytes = hr_min_u64(n, shard->header_bytes - begin);

        memcpy(p, shard->header + begin, bytes);
        p += bytes;
        begin += bytes;
    }
    while (low < high) {
        const uint32_t mid = low + (high - low) / 2;
        const struct hr_entry *entry = &layout->entries[shard->first_entry + mid];

        if (entry->begin_bytes + entry->size_bytes <= begin)
            low = mid + 1;
        else
            high = mid;
    }
    for (; begin < end; low++) {
        const uint32_t i = shard->first_entry + low;
        const struct hr_entry *entry = &layout->entries[i];
        const uint64_t bytes = hr_min_u64(end, entry->begin_bytes + entry->size_bytes) - begin;

        tensor_part(p, layout, i, begin - entry->begin_bytes, bytes);
        p += bytes;
        begin += bytes;
    }
}

/* ---- files -------------------------------------------------------------------------- */

static int fail_file(struct writer *writer, const struct hr_synth_shard *shard, const char *doing,
                     int code)
{
    char reason[128];

    return hr_error_set(writer->err, code, "%s: cannot %s %s: %s", writer->shown, doing,
                        shard->name, hr_strerror(code, reason, sizeof(reason)));
}

/* Under the lock: nobody can write before the space is there. */
static int open_output(struct writer *writer, uint32_t shard_idx)
{
    const struct hr_synth_shard *shard = &writer->layout->shards[shard_idx];
    const char *name = writer->file_name ? writer->file_name : shard->name;
    struct output *output = &writer->outputs[shard_idx];
    const int flags = O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW;

    output->is_direct = true;
    output->fd =
        openat(writer->dir_fd, name, flags | (writer->file_name ? 0 : O_EXCL) | O_DIRECT, 0666);
    if (output->fd < 0 && errno == EINVAL) { /* refused, but only after making it */
        output->is_direct = false;
        output->fd = openat(writer->dir_fd, name, flags | O_TRUNC, 0666);
    }
    if (output->fd < 0)
        return fail_file(writer, shard, "create", -errno);
    output->is_open = true;
    output->n_chunks_left = (uint32_t) hr_div_ceil(shard->file_bytes, CHUNK_BYTES);
    /* Contiguous, and out of space now rather than at the end. Not all filesystems can. */
    if (fallocate(output->fd, 0, 0, (off_t) shard->file_bytes) < 0 && errno != EOPNOTSUPP &&
        errno != ENOSYS && errno != EINVAL)
        return fail_file(writer, shard, "allocate", -errno);
    return 0;
}

/* Write a chunk; the last one of a file is written up to the next aligned byte, and cut later. */
static int write_chunk(struct output *output, const uint8_t *chunk, uint64_t offset, uint64_t n)
{
    if (__atomic_load_n(&output->is_direct, __ATOMIC_RELAXED)) {
        const int r = hr_file_write(output->fd, chunk, hr_align_up(n, ALIGN_BYTES), offset);

        if (r != -EINVAL)
            return r;
        /* Direct writes are refused after all, or want larger blocks. */
        __atomic_store_n(&output->is_direct, false, __ATOMIC_RELAXED);
        if (fcntl(output->fd, F_SETFL, 0) < 0)
            return -errno;
    }
    const int r = hr_file_write(output->fd, chunk, n, offset);

    if (r < 0)
        return r;
    /* Hints both; fsync() comes at the end. */
    sync_file_range(output->fd, (off_t) offset, (off_t) n,
                    SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    posix_fadvise(output->fd, (off_t) offset, (off_t) n, POSIX_FADV_DONTNEED);
    return 0;
}

/* After its last chunk. */
static int finish_output(struct output *output, const struct hr_synth_shard *shard)
{
    int r = 0;

    if (ftruncate(output->fd, (off_t) shard->file_bytes) < 0 || fsync(output->fd) < 0)
        r = -errno;
    posix_fadvise(output->fd, 0, 0, POSIX_FADV_DONTNEED);
    if (close(output->fd) < 0 && r == 0)
        r = -errno;
    return r;
}

/* ---- threads ------------------------------------------------------------------------ */

static bool is_cancelled(const struct writer *writer)
{
    const volatile int *cancel = writer->params->cancel;

    return cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED) != 0;
}

/* The next chunk, if there is one to be done. */
static bool take_chunk(struct writer *writer, uint32_t *ret_shard_idx, uint64_t *ret_offset)
{
    const struct hr_synth_layout *layout = writer->layout;
    bool taken = false;

    pthread_mutex_lock(&writer->lock);
    if (writer->code == 0 && is_cancelled(writer))
        writer->code = hr_error_set(writer->err, -ECANCELED, "%s: interrupted", writer->shown);
    if (writer->code == 0 && writer->shard_idx < layout->n_shards) {
        if (writer->offset_bytes == 0)
            writer->code = open_output(writer, writer->shard_idx);
        *ret_shard_idx = writer->shard_idx;
        *ret_offset = writer->offset_bytes;
        writer->offset_bytes += CHUNK_BYTES;
        if (writer->offset_bytes >= layout->shards[writer->shard_idx].file_bytes) {
            writer->shard_idx++;
            writer->offset_bytes = 0;
        }
        taken = writer->code == 0;
    }
    pthread_mutex_unlock(&writer->lock);
    return taken;
}

static void *work(void *arg)
{
    const struct worker *worker = arg;
    struct writer *writer = worker->writer;
    uint32_t shard_idx;
    uint64_t offset;

    while (take_chunk(writer, &shard_idx, &offset)) {
        const struct hr_synth_shard *shard = &writer->layout->shards[shard_idx];
        const uint64_t bytes = hr_min_u64(CHUNK_BYTES, shard->file_bytes - offset);
        struct output *output = &writer->outputs[shard_idx];
        const char *doing = "write";
        int r;

        shard_bytes(worker->chunk, writer->layout, shard, offset, bytes);
        memset(worker->chunk + bytes, 0, hr_align_up(bytes, ALIGN_BYTES) - bytes);
        r = write_chunk(output, worker->chunk, offset, bytes);

        pthread_mutex_lock(&writer->lock);
        const bool is_last = r == 0 && --output->n_chunks_left == 0;

        if (is_last)
            output->is_open = false;
        pthread_mutex_unlock(&writer->lock);
        if (is_last) {
            doing = "finish";
            r = finish_output(output, shard);
        }

        pthread_mutex_lock(&writer->lock);
        writer->bytes_done += bytes;
        if (r < 0 && writer->code == 0)
            writer->code = fail_file(writer, shard, doing, r);
        pthread_mutex_unlock(&writer->lock);
    }
    pthread_mutex_lock(&writer->lock);
    writer->n_running--;
    pthread_cond_signal(&writer->finished);
    pthread_mutex_unlock(&writer->lock);
    return NULL;
}

/* Until all threads are done; progress is reported here, on the caller's thread. */
static void wait_for_workers(struct writer *writer)
{
    const struct hr_synth_params *params = writer->params;

    pthread_mutex_lock(&writer->lock);
    while (writer->n_running > 0) {
        const uint64_t bytes_done = writer->bytes_done;
        struct timespec until;

        if (params->progress) {
            pthread_mutex_unlock(&writer->lock);
            params->progress(params->progress_user, bytes_done, writer->layout->total_bytes);
            pthread_mutex_lock(&writer->lock);
            if (writer->n_running == 0)
                break;
        }
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += POLL_MS * 1000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        pthread_cond_timedwait(&writer->finished, &writer->lock, &until);
    }
    pthread_mutex_unlock(&writer->lock);
}

static int run_workers(struct writer *writer, struct worker *workers, unsigned n)
{
    unsigned n_started = 0;

    writer->n_running = n; /* before any can end */
    while (n_started < n) {
        const int r =
            hr_thread_start(&workers[n_started].thread, "hr-synth", 0, work, &workers[n_started]);

        if (r < 0) {
            pthread_mutex_lock(&writer->lock);
            writer->n_running -= n - n_started;
            if (n_started == 0)
                writer->code =
                    hr_error_set(writer->err, r, "%s: cannot start a thread", writer->shown);
            pthread_mutex_unlock(&writer->lock);
            break; /* fewer do it too */
        }
        n_started++;
    }
    wait_for_workers(writer);
    for (unsigned i = 0; i < n_started; i++)
        pthread_join(workers[i].thread, NULL);
    return writer->code;
}

int hr_synth_write_shards(const struct hr_synth_layout *layout, int dir_fd, const char *file_name,
                          const struct hr_synth_params *params, const char *shown,
                          struct hr_error *err)
{
    const uint64_t n_chunks_max = layout->total_bytes / CHUNK_BYTES + layout->n_shards;
    const unsigned n =
        (unsigned) hr_min_u64(hr_min_u64(2 * (uint64_t) hr_n_cpus(), THREADS_MAX), n_chunks_max);
    struct worker workers[THREADS_MAX];
    void *chunks = NULL;
    struct writer writer = {
        .layout = layout,
        .params = params,
        .shown = shown,
        .file_name = file_name,
        .dir_fd = dir_fd,
        .outputs = calloc(layout->n_shards, sizeof(*writer.outputs)),
        .err = err,
    };
    pthread_condattr_t attributes;
    int r;

    if (!writer.outputs || posix_memalign(&chunks, ALIGN_BYTES, (size_t) n * CHUNK_BYTES) != 0) {
        free(writer.outputs);
        return hr_error_set(err, -ENOMEM, "%s: no memory for %u chunks of %d MiB", shown, n,
                            CHUNK_BYTES >> 20);
    }
    pthread_mutex_init(&writer.lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&writer.finished, &attributes);
    pthread_condattr_destroy(&attributes);
    for (unsigned i = 0; i < n; i++)
        workers[i] = (struct worker){.writer = &writer,
                                     .chunk = (uint8_t *) chunks + (size_t) i * CHUNK_BYTES};
    r = run_workers(&writer, workers, n);
    for (uint32_t s = 0; s < layout->n_shards; s++)
        if (writer.outputs[s].is_open)
            close(writer.outputs[s].fd);
    pthread_cond_destroy(&writer.finished);
    pthread_mutex_destroy(&writer.lock);
    free(writer.outputs);
    free(chunks);
    return r;
}
