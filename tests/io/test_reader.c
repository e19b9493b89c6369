/* SPDX-License-Identifier: Apache-2.0 */
/* test_reader.c -- streaming real files through every backend, each byte compared; and what the
 * caller may do wrong, early or late.
 */
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "io_testing.h"

enum { MIB = 1 << 20, FILE0_BYTES = 5 * MIB + 4097, N_RANGES = 120 };

static struct io_files disk;
static const uint64_t sizes[] = {FILE0_BYTES, 1, 3 * MIB, 8 * MIB + 12345};

static int make_files(void **state)
{
    (void) state;
    io_files_make(&disk, ".", sizes, HR_ARRAY_SIZE(sizes));
    return 0;
}

static int remove_files(void **state)
{
    (void) state;
    io_files_remove(&disk);
    return 0;
}

static struct hr_reader_params make_params(const char *io)
{
    return (struct hr_reader_params){
        .files = disk.files,
        .n_files = disk.n,
        .ring_bytes = 4 * MIB,
        .block_bytes = 256 << 10,
        .depth = 8,
        .io = io,
    };
}

/* Does this backend work on this machine? The tests of it are skipped where not. */
static bool works(const char *io)
{
    struct hr_reader_params params = make_params(io);
    struct hr_reader *reader = NULL;
    io_uncache(disk.files, disk.n);
    const int r = hr_reader_create(&reader, &params, NULL);

    hr_reader_destroy(&reader);
    return r == 0;
}

static void stream_random(const char *io, uint64_t seed)
{
    struct hr_read_range ranges[N_RANGES];
    struct hr_reader_params params = make_params(io);
    struct hr_stream_stats stats;
    struct hr_error err = {0};
    uint64_t random = seed;
    struct io_caller caller = {.seed = seed};

    const uint32_t n = 1 + io_random(&random) % N_RANGES;
    const uint32_t n_passes = 1 + io_random(&random) % 3;
    params.ring_bytes = 2 * MIB * (1 + io_random(&random) % 4);
    params.block_bytes = (64 << 10) << (io_random(&random) % 5);
    params.depth = (uint32_t[]){1, 2, 5, 16}[io_random(&random) % 4];
    params.direct =
        io_random(&random) % 3 == 0 && strcmp(io, "libaio") != 0 ? HR_DIRECT_OFF : HR_DIRECT_AUTO;
    caller.shuffle = io_random(&random) % 2;
    caller.hold_max = io_random(&random) % 3;
    /* With hold_max + 1 held, and space lost at the ring's end, two thirds remain for the next. */
    io_random_ranges(&disk, ranges, n, (uint32_t) params.ring_bytes / (caller.hold_max ? 12 : 3),
                     &random);
    const int r = io_stream_once(&params, ranges, n, n_passes, &caller, &stats, &err);
    if (r < 0)
        print_error("seed %u: %s\n", (unsigned) seed, err.message);
    assert_int_equal(r, 0);
    assert_int_equal(caller.n_taken, (uint64_t) n * n_passes);
    assert_int_equal(stats.units, caller.n_taken);
    assert_true(stats.bytes_read > 0 && stats.reads > 0 && stats.busy_ns > 0);
}

static void random_ranges_arrive(void **state)
{
    const char *io = *state;

    if (!works(io))
        skip();
    for (uint64_t seed = 1; seed <= 10; seed++)
        stream_random(io, seed);
}

static void last_bytes_arrive(void **state)
{
    static const struct hr_read_range ranges[] = {
        {0, FILE0_BYTES - 1, 1},
        {1, 0, 1},
        {2, 0, 3 * MIB / 2},
        {2, 3 * MIB / 2, 3 * MIB / 2},
        {0, 0, 1},
        {0, 5 * MIB, 4097},
        {3, 0, MIB},
    };
    struct hr_reader_params params = make_params(*state);
    struct io_caller caller = {0};

    if (!works(*state))
        skip();
    assert_int_equal(io_stream_once(&params, ranges, HR_ARRAY_SIZE(ranges), 5, &caller, NULL, NULL),
                     0);
    assert_int_equal(caller.n_taken, 5 * HR_ARRAY_SIZE(ranges));
}

static void tmpfs_is_read_buffered(void **state)
{
    static const struct hr_read_range ranges[] = {{0, 4095, MIB}, {0, 17, 100000}};
    const uint64_t size = 2 * MIB + 1;
    struct hr_reader_params params = make_params(*state);
    struct io_caller caller = {0};
    struct hr_stream_stats stats;
    struct hr_error err = {0};
    struct io_files memory;

    if (!works(*state) || strcmp(*state, "libaio") == 0) /* which reads directly only */
        skip();
    if (!io_is_tmpfs("/dev/shm"))
        skip();
    io_files_make(&memory, "/dev/shm", &size, 1);
    params.files = memory.files;
    params.n_files = 1;
    io_log_capture(HR_LOG_INFO);
    const int r = io_stream_once(&params, ranges, 2, 3, &caller, &stats, &err);
    assert_int_equal(io_log_count("it lies in memory (tmpfs)"), 1);
    io_log_release();
    assert_int_equal(r, 0);
    assert_false(stats.direct);
    params.direct = HR_DIRECT_ON;
    assert_int_equal(io_stream_once(&params, ranges, 2, 1, &caller, NULL, &err), -EOPNOTSUPP);
    assert_non_null(strstr(err.message, memory.paths[0]));
    io_files_remove(&memory);
}

static void cached_files_are_read_from_there(void **state)
{
    static const struct hr_read_range ranges[] = {{0, 5, MIB}, {1, 0, 4 * MIB}};
    static const uint64_t bytes[] = {2 * MIB + 1, 4 * MIB};
    struct hr_reader_params params = make_params("pread");
    struct io_files set;
    char page[4096];
    struct hr_reader *reader = NULL;

    (void) state;
    io_files_make(&set, ".", bytes, 2);
    params.files = set.files;
    params.n_files = 2;
    io_uncache(&set.files[0], 1);
    for (uint64_t at = 0; at < bytes[1]; at += sizeof(page))
        assert_int_equal(pread(set.files[1].fd, page, sizeof(page), (off_t) at), sizeof(page));
    if (hr_io_cached_bytes(set.files[1].fd, 0, bytes[1]) != bytes[1] ||
        hr_io_cached_bytes(set.files[0].fd, 0, bytes[0]) != 0) {
        io_files_remove(&set);
        skip(); /* this kernel does not say, or keeps what it likes */
    }
    io_log_capture(HR_LOG_INFO);
    assert_int_equal(hr_reader_create(&reader, &params, NULL), 0);
    assert_int_equal(io_log_count("1 of 2 files are in the page cache already"), 1);
    io_log_release();
    assert_false(hr_reader_file_direct(reader, 1));
    assert_int_equal(hr_reader_start(reader, ranges, 2, 0, 1, NULL), 0);
    assert_int_equal(io_caller_run(&(struct io_caller){0}, reader, ranges, 2, NULL), 0);
    hr_reader_destroy(&reader);
    io_files_remove(&set);
}

/* Each disk has a depth of its own, and order and bytes are as ever. */
static void two_filesystems(void **state)
{
    enum { N = 60 };
    const uint64_t size = 3 * MIB + 17;
    struct hr_reader_params params = make_params(*state);
    struct io_files here, memory;
    struct hr_read_file files[2];
    struct hr_read_range ranges[N];
    struct hr_reader *reader = NULL;
    struct hr_stream_stats stats;

    if (!io_is_tmpfs("/dev/shm"))
        skip();
    io_files_make(&here, ".", &size, 1);
    io_files_make(&memory, "/dev/shm", &size, 1);
    files[0] = here.files[0];
    files[1] = memory.files[0]; /* the same bytes, as both are their set's first */
    params.files = files;
    params.n_files = 2;
    params.depth = 2;
    for (uint32_t i = 0; i < N; i++)
        ranges[i] = (struct hr_read_range){i / 7 % 2, (uint64_t) i * 40961 % (2 * MIB), 100000 + i};
    const int r = hr_reader_create(&reader, &params, NULL);
    if (r == 0) {
        assert_int_equal(hr_reader_start(reader, ranges, N, 0, 2, NULL), 0);
        for (struct hr_slice slice; hr_reader_next(reader, &slice, NULL) == 1;) {
            const struct hr_read_range *range = &ranges[slice.range_idx];

            assert_true(io_bytes_ok(0, range->offset_bytes, slice.data, range->size_bytes));
            hr_reader_release(reader, slice.ticket);
        }
        hr_reader_get_stats(reader, &stats);
        assert_int_equal(stats.units, 2 * N);
        assert_true(stats.n_devices >= 1 && stats.in_flight > 0 && stats.latency_p50_ns > 0);
        assert_true(stats.latency_p999_ns >= stats.latency_p50_ns);
        hr_reader_destroy(&reader);
    }
    io_files_remove(&here);
    io_files_remove(&memory);
    if (r < 0)
        skip(); /* libaio, or no io_uring */
}

/* ---- the caller ----------------------------------------------------------------------- */

static void held_ranges_can_block_the_next(void **state)
{
    static const struct hr_read_range ranges[] = {
        {3, 0, MIB}, {3, 2 * MIB, MIB}, {3, 4 * MIB, MIB}};
    struct hr_reader_params params = make_params(*state);
    struct hr_reader *reader = NULL;
    struct hr_slice slices[3];
    struct hr_error err = {0};

    if (!works(*state))
        skip();
    params.ring_bytes = 2 * MIB;
    assert_int_equal(hr_reader_create(&reader, &params, NULL), 0);
    assert_int_equal(hr_reader_start(reader, ranges, 3, 0, 0, NULL), 0);
    assert_int_equal(hr_reader_next(reader, &slices[0], NULL), 1);
    assert_int_equal(hr_reader_next(reader, &slices[1], NULL), 1);
    assert_int_equal(hr_reader_next(reader, &slices[2], &err), -EDEADLK);
    assert_non_null(strstr(err.message, "2 ranges still held"));
    hr_reader_release(reader, slices[1].ticket); /* not the oldest: no space */
    assert_int_equal(hr_reader_next(reader, &slices[2], NULL), -EDEADLK);
    hr_reader_release(reader, slices[0].ticket);
    assert_int_equal(hr_reader_next(reader, &slices[2], NULL), 1);
    assert_true(io_bytes_ok(3, 4 * MIB, slices[2].data, MIB));
    hr_reader_destroy(&reader);
}

static void *interrupt_soon(void *arg)
{
    const struct timespec ts = {.tv_nsec = 20 * 1000000};

    nanosleep(&ts, NULL);
    hr_reader_interrupt(arg);
    return NULL;
}

static void interruption_is_noticed(void **state)
{
    static const struct hr_read_range range = {3, 0, MIB};
    struct hr_reader_params params = make_params(*state);
    struct io_caller caller = {.sleep_us = 100};
    struct hr_reader *reader = NULL;
    struct hr_error err = {0};
    struct hr_slice slice;
    pthread_t thread;

    if (!works(*state))
        skip();
    assert_int_equal(hr_reader_create(&reader, &params, NULL), 0);
    assert_int_equal(hr_reader_start(reader, &range, 1, 0, 0, NULL), 0);
    assert_int_equal(pthread_create(&thread, NULL, interrupt_soon, reader), 0);
    assert_int_equal(io_caller_run(&caller, reader, &range, 1, &err), -ECANCELED);
    assert_int_equal(hr_reader_next(reader, &slice, NULL), -ECANCELED);
    pthread_join(thread, NULL);
    hr_reader_destroy(&reader);
}

/* At every stage, with reads in flight and ranges held. */
static void destroy_may_come_early(void **state)
{
    static const struct hr_read_range range = {3, 1, 2 * MIB};
    struct hr_reader_params params = make_params(*state);

    if (!works(*state))
        skip();
    for (int stage = 0; stage < 12; stage++) {
        struct hr_reader *reader = NULL;
        struct hr_slice slice;

        assert_int_equal(hr_reader_create(&reader, &params, NULL), 0);
        if (stage > 0)
            assert_int_equal(hr_reader_start(reader, &range, 1, 0, 0, NULL), 0);
        for (int i = 2; i < stage; i++) {
            assert_int_equal(hr_reader_next(reader, &slice, NULL), 1);
            if (i + 1 < stage)
                hr_reader_release(reader, slice.ticket);
        }
        hr_reader_destroy(&reader);
        hr_reader_destroy(&reader);
    }
}

static void nothing_grows(void **state)
{
    struct hr_read_range ranges[50];
    struct hr_reader_params params = make_params(*state);
    struct hr_reader *reader = NULL;
    struct hr_slice slice;
    uint64_t random = 7;
    size_t before = 0;

    if (!works(*state))
        skip();
    io_random_ranges(&disk, ranges, 50, 100000, &random);
    assert_int_equal(hr_reader_create(&reader, &params, NULL), 0);
    assert_int_equal(hr_reader_start(reader, ranges, 50, 0, 200, NULL), 0);
    while (hr_reader_next(reader, &slice, NULL) == 1) {
        if (slice.pass_idx == 1 && before == 0)
            before = mallinfo2().uordblks;
        hr_reader_release(reader, slice.ticket);
    }
    assert_int_equal(mallinfo2().uordblks, before);
    hr_reader_destroy(&reader);
}

/* ---- arguments ------------------------------------------------------------------------ */

static void bad_arguments_are_refused(void **state)
{
    struct hr_reader_params params = make_params("pread");
    struct hr_reader *reader = NULL;
    struct hr_error err = {0};

    (void) state;
    params.block_bytes = 100000;
    assert_int_equal(hr_reader_create(&reader, &params, &err), -EINVAL);
    params.block_bytes = 0;
    params.depth = HR_DEPTH_MAX + 1;
    assert_int_equal(hr_reader_create(&reader, &params, NULL), -EINVAL);
    params.depth = 0;
    params.ring_bytes = 0;
    assert_int_equal(hr_reader_create(&reader, &params, NULL), -EINVAL);
    params.ring_bytes = 1;
    assert_int_equal(hr_reader_create(&reader, &params, NULL), 0);

    struct hr_stream_stats stats;
    hr_reader_get_stats(reader, &stats);
    assert_int_equal(stats.ring_bytes, 2 * MIB);
    assert_int_equal(stats.block_bytes, HR_BLOCK_BYTES_DEFAULT);
    assert_int_equal(stats.depth, HR_DEPTH_DEFAULT);
    assert_string_equal(stats.io_name, "pread");

    static const struct hr_read_range bad[] = {{4, 0, 1},           {0, 0, 0},
                                               {0, FILE0_BYTES, 1}, {0, 0, FILE0_BYTES + 1},
                                               {0, UINT64_MAX, 10}, {3, 0, HR_RANGE_BYTES_MAX + 1}};
    for (size_t i = 0; i < HR_ARRAY_SIZE(bad); i++)
        assert_int_equal(hr_reader_start(reader, &bad[i], 1, 0, 1, NULL), -EINVAL);
    assert_int_equal(hr_reader_start(reader, NULL, 0, 0, 1, NULL), -EINVAL);
    static const struct hr_read_range large = {0, 0, 5 * MIB};
    hr_error_clear(&err);
    assert_int_equal(hr_reader_start(reader, &large, 1, 0, 1, &err), -EINVAL);
    assert_non_null(strstr(err.message, "6 MiB are needed"));
    struct hr_slice slice;
    assert_int_equal(hr_reader_next(reader, &slice, NULL), -EINVAL);

    static const struct hr_read_range good = {0, 0, 1};
    assert_int_equal(hr_reader_start(reader, &good, 1, 0, 1, NULL), 0);
    assert_int_equal(hr_reader_start(reader, &good, 1, 0, 1, NULL), -EBUSY);
    assert_int_equal(hr_reader_next(reader, &slice, NULL), 1);
    assert_int_equal(hr_reader_next(reader, &slice, NULL), 0);
    assert_int_equal(hr_reader_start(reader, &good, 1, 0, 1, NULL), -EBUSY); /* still held */
    hr_reader_release(reader, slice.ticket);
    assert_int_equal(hr_reader_start(reader, &good, 1, 0, 1, NULL), 0);
    hr_reader_destroy(&reader);

    hr_error_clear(&err);
    params.ring_bytes = UINT64_C(1) << 62;
    assert_int_equal(hr_reader_create(&reader, &params, &err), -ENOMEM);
    assert_string_equal(err.message,
                        "no memory for a ring of 4398046511104 MiB; make it smaller or "
                        "close other programs");
}

/* What has been counted stays when the blocks change. */
static void other_blocks_keep_the_counts(void **state)
{
    static const struct hr_read_range range = {3, 0, MIB};
    const struct hr_reader_params params = make_params("pread");
    struct io_caller caller = {0};
    struct hr_reader *reader = NULL;
    struct hr_stream_stats before, after;

    (void) state;
    assert_int_equal(hr_reader_create(&reader, &params, NULL), 0);
    assert_int_equal(hr_reader_start(reader, &range, 1, 0, 20, NULL), 0);
    assert_int_equal(io_caller_run(&caller, reader, &range, 1, NULL), 0);
    hr_reader_get_stats(reader, &before);
    assert_true(before.in_flight > 0);
    assert_int_equal(hr_reader_set_blocks(reader, 2 * HR_BLOCK_BYTES_MIN, 1, NULL), 0);
    hr_reader_get_stats(reader, &after);
    assert_int_equal(after.block_bytes, 2 * HR_BLOCK_BYTES_MIN);
    assert_int_equal(after.depth, 1);
    assert_true(after.cpu_ns >= before.cpu_ns && after.in_flight > 0);
    hr_reader_destroy(&reader);
}

int main(void)
{
#define WITH_BACKENDS(test)                                                     \
    {#test " pread", test, NULL, NULL, (void *) (uintptr_t) "pread"},           \
        {#test " io_uring", test, NULL, NULL, (void *) (uintptr_t) "io_uring"}, \
        {#test " libaio", test, NULL, NULL, (void *) (uintptr_t) "libaio"},     \
    {                                                                           \
#test " fault", test, NULL, NULL, (void *) (uintptr_t) "fault"          \
    }
    const struct CMUnitTest tests[] = {
        WITH_BACKENDS(random_ranges_arrive),
        WITH_BACKENDS(last_bytes_arrive),
        WITH_BACKENDS(tmpfs_is_read_buffered),
        WITH_BACKENDS(held_ranges_can_block_the_next),
        WITH_BACKENDS(interruption_is_noticed),
        WITH_BACKENDS(destroy_may_come_early),
        WITH_BACKENDS(nothing_grows),
        WITH_BACKENDS(two_filesystems),
        cmocka_unit_test(cached_files_are_read_from_there),
        cmocka_unit_test(bad_arguments_are_refused),
        cmocka_unit_test(other_blocks_keep_the_counts),
    };

    return cmocka_run_group_tests_name("io reader", tests, make_files, remove_files);
}
