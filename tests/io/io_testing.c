/* SPDX-License-Identifier: Apache-2.0 */
/* io_testing.c -- see io_testing.h. */
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <linux/magic.h>

#include <cmocka.h>

#include "io_testing.h"

enum { CHUNK_BYTES = 1 << 20, HELD_MAX = 64, LOG_LINES_MAX = 256 };

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint32_t io_random(uint64_t *state)
{
    return (uint32_t) (mix(*state += 0x9e3779b97f4a7c15u) >> 32);
}

static uint64_t word_at(uint32_t file_idx, uint64_t word_idx)
{
    return mix((word_idx + 1) * 0x9e3779b97f4a7c15u + file_idx * 0x632be59bd9b4e019u);
}

static void write_file(struct hr_read_file *file, uint32_t file_idx)
{
    uint64_t *words = malloc(CHUNK_BYTES);
    const int fd = open(file->path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);

    assert_non_null(words);
    assert_true(fd >= 0);
    for (uint64_t at = 0; at < file->size_bytes; at += CHUNK_BYTES) {
        const uint64_t n = hr_min_u64(CHUNK_BYTES, file->size_bytes - at);

        for (uint64_t i = 0; i < CHUNK_BYTES / 8; i++)
            words[i] = word_at(file_idx, at / 8 + i);
        assert_int_equal(write(fd, words, n), n);
    }
    close(fd);
    free(words);
}

void io_files_make(struct io_files *set, const char *parent, const uint64_t *sizes, uint32_t n)
{
    assert_true(n <= IO_TESTING_FILES_MAX);
    memset(set, 0, sizeof(*set));
    set->n = n;
    snprintf(set->dir, sizeof(set->dir), "%s/headrace-io-XXXXXX", parent);
    assert_non_null(mkdtemp(set->dir));
    for (uint32_t i = 0; i < n; i++) {
        snprintf(set->paths[i], sizeof(set->paths[i]), "%s/file%u", set->dir, i);
        set->files[i] = (struct hr_read_file){.path = set->paths[i], .size_bytes = sizes[i]};
        write_file(&set->files[i], i);
        set->files[i].fd = open(set->paths[i], O_RDONLY | O_CLOEXEC);
        assert_true(set->files[i].fd >= 0);
    }
}

bool io_is_tmpfs(const char *folder)
{
    struct statfs st;

    return statfs(folder, &st) == 0 && st.f_type == TMPFS_MAGIC;
}

void io_files_remove(struct io_files *set)
{
    for (uint32_t i = 0; i < set->n; i++) {
        close(set->files[i].fd);
        unlink(set->paths[i]);
    }
    rmdir(set->dir);
}

void io_uncache(const struct hr_read_file *files, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        fdatasync(files[i].fd);
        posix_fadvise(files[i].fd, 0, 0, POSIX_FADV_DONTNEED);
    }
}

bool io_bytes_ok(uint32_t file_idx, uint64_t offset, const void *data, uint64_t n)
{
    const uint8_t *bytes = data;
    uint64_t i = 0;

    while (i < n) {
        const uint64_t word = word_at(file_idx, (offset + i) / 8);
        const uint64_t within = (offset + i) % 8, part = hr_min_u64(8 - within, n - i);

        if (memcmp(bytes + i, (const uint8_t *) &word + within, part) != 0) {
            fprintf(stderr,
                    "file %u: wrong byte within 8 of %" PRIu64 " (range %" PRIu64 "+%" PRIu64 ")\n",
                    file_idx, offset + i, offset, n);
            return false;
        }
        i += part;
    }
    return true;
}

void io_random_ranges(const struct io_files *set, struct hr_read_range *ranges, uint32_t n,
                      uint32_t size_max, uint64_t *random)
{
    uint32_t file_idx = 0;
    uint64_t at = 0;

    for (uint32_t i = 0; i < n; i++) {
        const uint32_t kind = io_random(random) % 16;

        if (kind == 0)
            file_idx = io_random(random) % set->n;
        const uint64_t file_bytes = set->files[file_idx].size_bytes;
        if (kind <= 2)
            at = io_random(random) % file_bytes;
        else if (kind <= 5)
            at += io_random(random) % (HR_KIB << (io_random(random) % 9));
        else if (kind == 6)
            at = at > size_max ? at - size_max : 0;
        if (at >= file_bytes)
            at = io_random(random) % file_bytes;
        uint64_t size = kind == 7 ? 1 : 1 + io_random(random) % (size_max >> io_random(random) % 8);
        if (kind == 8 || size > file_bytes - at)
            size = hr_min_u64(size_max, file_bytes - at);
        ranges[i] = (struct hr_read_range){file_idx, at, size};
        at += size;
    }
}

static void sleep_us(uint32_t us)
{
    const struct timespec ts = {.tv_nsec = (long) us * 1000};

    if (us > 0)
        nanosleep(&ts, NULL);
}

int io_caller_run(struct io_caller *caller, struct hr_reader *reader,
                  const struct hr_read_range *ranges, uint32_t n, struct hr_error *err)
{
    struct hr_slice held[HELD_MAX], slice;
    uint64_t random = caller->seed;
    uint32_t n_held = 0;
    int r;

    assert_true(caller->hold_max < HELD_MAX);
    while ((r = hr_reader_next(reader, &slice, err)) == 1) {
        const struct hr_read_range *range = &ranges[slice.range_idx];

        assert_int_equal(slice.range_idx, caller->n_taken % n);
        assert_int_equal(slice.pass_idx, caller->n_taken / n);
        caller->n_taken++;
        held[n_held++] = slice;
        if (!io_bytes_ok(range->file_idx, range->offset_bytes, slice.data, range->size_bytes))
            fail();
        sleep_us(caller->sleep_us);
        while (n_held > caller->hold_max) {
            const uint32_t k = caller->shuffle ? io_random(&random) % n_held : 0;
            const struct hr_read_range *old = &ranges[held[k].range_idx];

            /* Held memory must not have changed since. */
            if (!io_bytes_ok(old->file_idx, old->offset_bytes, held[k].data, old->size_bytes))
                fail();
            hr_reader_release(reader, held[k].ticket);
            memmove(&held[k], &held[k + 1], (--n_held - k) * sizeof(held[0]));
        }
    }
    return r;
}

int io_stream_once(const struct hr_reader_params *params, const struct hr_read_range *ranges,
                   uint32_t n, uint32_t n_passes, struct io_caller *caller,
                   struct hr_stream_stats *ret_stats, struct hr_error *err)
{
    struct hr_reader *reader = NULL;

    if (params->direct == HR_DIRECT_AUTO)
        io_uncache(params->files, params->n_files);
    int r = hr_reader_create(&reader, params, err);

    if (r == 0)
        r = hr_reader_start(reader, ranges, n, 0, n_passes, err);
    if (r == 0)
        r = io_caller_run(caller, reader, ranges, n, err);
    if (reader && ret_stats)
        hr_reader_get_stats(reader, ret_stats);
    hr_reader_destroy(&reader);
    assert_null(reader);
    return r;
}

/* ---- log ------------------------------------------------------------------------------ */

static struct {
    pthread_mutex_t mutex;
    char lines[LOG_LINES_MAX][HR_ERROR_BYTES];
    uint32_t n;
} captured = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void capture(void *user, enum hr_log_level level, const char *message)
{
    (void) user;
    (void) level;
    pthread_mutex_lock(&captured.mutex);
    if (captured.n < LOG_LINES_MAX)
        snprintf(captured.lines[captured.n++], HR_ERROR_BYTES, "%s", message);
    pthread_mutex_unlock(&captured.mutex);
}

void io_log_capture(enum hr_log_level level)
{
    captured.n = 0;
    hr_log_set(capture, NULL, level);
}

uint32_t io_log_count(const char *part)
{
    uint32_t n = 0;

    pthread_mutex_lock(&captured.mutex);
    for (uint32_t i = 0; i < captured.n; i++)
        n += strstr(captured.lines[i], part) != NULL;
    pthread_mutex_unlock(&captured.mutex);
    return n;
}

void io_log_release(void)
{
    hr_log_set(NULL, NULL, HR_LOG_WARN);
}
