/* SPDX-License-Identifier: Apache-2.0 */
/* test_faults.c -- every rule for a bad disk, one by one and together, through the backend "fault":
 * what can be repaired arrives intact, what cannot is named exactly.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "config.h"
#include "io/reader.h"
#include "io_testing.h"

enum { MIB = 1 << 20, KIB = 1 << 10 };

static struct io_files disk;
static const uint64_t sizes[] = {4 * MIB + 777, 2 * MIB};
/* Adjacent, with a gap, and in another file; the block size is 256 KiB. */
static const struct hr_read_range ranges[] = {{0, 1000, 300 * KIB}, {0, 1000 + 300 * KIB, 5},
                                              {0, 340 * KIB, MIB},  {0, 2 * MIB, 777777},
                                              {1, 1, 2 * MIB - 1},  {0, 4 * MIB - 10, 787}};
enum { N_RANGES = HR_ARRAY_SIZE(ranges) };

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

static void describe(void *user, uint32_t range_idx, char *buf, size_t buf_bytes)
{
    (void) user;
    snprintf(buf, buf_bytes, "tensor t%u", range_idx);
}

static struct hr_reader_params make_params(void)
{
    return (struct hr_reader_params){
        .files = disk.files,
        .n_files = disk.n,
        .ring_bytes = 6 * MIB,
        .block_bytes = 256 * KIB,
        .depth = 6,
        .io = "fault",
        .describe = describe,
    };
}

struct outcome {
    int result;
    uint64_t n_taken;
    struct hr_stream_stats stats;
    struct hr_error err;
};

static struct outcome run(const char *program, enum hr_direct direct, uint32_t n_passes)
{
    struct hr_reader_params params = make_params();
    struct io_caller caller = {.hold_max = 1};
    struct outcome out = {0};

    params.direct = direct;
    hr_io_fault_program(program);
    out.result = io_stream_once(&params, ranges, N_RANGES, n_passes, &caller, &out.stats, &out.err);
    hr_io_fault_program(NULL);
    out.n_taken = caller.n_taken;
    return out;
}

static void expect_repaired(const char *program, enum hr_direct direct, struct outcome *ret_out)
{
    struct outcome out = run(program, direct, 4);

    if (out.result != 0)
        print_error("%s: %s\n", program, out.err.message);
    assert_int_equal(out.result, 0);
    assert_int_equal(out.n_taken, 4 * N_RANGES);
    if (ret_out)
        *ret_out = out;
}

/* The outcome of `program`: ranges before n_taken, then `code` with both parts in its message. */
static void expect_failure(const char *program, int code, uint64_t n_taken, const char *place,
                           const char *words)
{
    const struct outcome out = run(program, HR_DIRECT_AUTO, 1);

    if (out.result == 0 || !strstr(out.err.message, place) || !strstr(out.err.message, words))
        print_error("%s: %s\n", program, out.err.message);
    assert_int_equal(out.result, code);
    assert_int_equal(out.n_taken, n_taken);
    assert_non_null(strstr(out.err.message, place));
    assert_non_null(strstr(out.err.message, words));
}

static void short_reads_are_continued(void **state)
{
    const bool direct = run("seed=1", HR_DIRECT_AUTO, 1).stats.direct;
    struct outcome out;

    (void) state;
    expect_repaired("short=30,seed=3", HR_DIRECT_OFF, &out);
    assert_true(out.stats.short_reads > 0);
    expect_repaired("short=30,seed=3", HR_DIRECT_AUTO, &out);
    assert_true(out.stats.short_reads > 0);
    expect_repaired("short=90,seed=4,reorder=1", HR_DIRECT_AUTO, &out);
    /* Continued where a direct read may begin, so that it was never refused. */
    assert_int_equal(out.stats.direct, direct);
}

static void transient_errors_are_repeated(void **state)
{
    struct outcome out;

    (void) state;
    expect_repaired("eintr=30", HR_DIRECT_AUTO, &out);
    assert_true(out.stats.retries > 0);
    expect_repaired("eagain=30,delay=300,reorder=1", HR_DIRECT_AUTO, &out);
    assert_true(out.stats.retries > 0);
    /* In a row, more often than an interruption would be: with pauses between. */
    expect_repaired("eagain=98", HR_DIRECT_AUTO, NULL);
}

static void want_of_memory_is_waited_out(void **state)
{
    struct outcome out;

    (void) state;
    expect_repaired("ebusy=20", HR_DIRECT_AUTO, &out);
    assert_int_equal(out.stats.depth, 6);
    assert_int_equal(out.stats.depth_min, 6);
    io_log_capture(HR_LOG_WARN);
    expect_repaired("enomem=20", HR_DIRECT_AUTO, &out);
    assert_in_range(out.stats.depth_min, 1, 5);
    assert_int_equal(io_log_count("io: the kernel lacks memory for 6 reads at a time"), 1);
    assert_int_equal(io_log_count(""), 1);
    expect_repaired("nomem=20", HR_DIRECT_AUTO, &out);
    assert_in_range(out.stats.depth_min, 1, 5);
    assert_int_equal(io_log_count(""), 2);
    io_log_release();
}

/* Half as many reads at a time for a round in which memory was lacking, however often, and twice as
 * many again after a thousand that went well. */
static void depth_follows_the_memory(void **state)
{
    struct hr_reader reader = {
        .depth = 8, .params.depth = 8, .stats = {.depth = 8, .depth_min = 8}};
    uint32_t depth_min = 8;
    const struct {
        bool lacks_memory;
        uint32_t good_reads, depth;
    } rounds[] = {{false, 999, 8},  {true, 5000, 4},  {true, 0, 2},     {false, 999, 2},
                  {false, 1000, 4}, {false, 0, 4},    {true, 999, 2},   {true, 0, 1},
                  {true, 0, 1},     {false, 1001, 2}, {false, 1000, 4}, {false, 1000, 8},
                  {false, 1000, 8}};

    (void) state;
    io_log_capture(HR_LOG_WARN);
    for (size_t i = 0; i < HR_ARRAY_SIZE(rounds); i++) {
        reader.lacks_memory = rounds[i].lacks_memory;
        reader.good_reads = rounds[i].good_reads;
        hr_reader_adapt_depth(&reader);
        assert_false(reader.lacks_memory);
        assert_int_equal(reader.depth, rounds[i].depth);
        depth_min = (uint32_t) hr_min_u64(depth_min, reader.depth);
        assert_int_equal(reader.stats.depth_min, depth_min);
        assert_int_equal(reader.stats.depth, 8);
    }
    assert_int_equal(io_log_count(""), 1);
    io_log_release();
}

static void endless_refusals_end(void **state)
{
    (void) state;
    expect_failure("eintr=100", -EINTR, 0, "file0: bytes 0 to 262143 (tensor t0)",
                   "Interrupted system call");
    expect_failure("nomem=100", -ENOMEM, 0, "file0: bytes 0 to 262143 (tensor t0)",
                   "Cannot allocate memory, for 10 s; close other programs");
}

/* A kernel that takes nothing for 10 s ends the run; not while reads are under way, which come back
 * or are found to hang, and not where it did something in between. */
static void refusals_count_from_the_last_success(void **state)
{
    const uint64_t long_ago = hr_now_ns() - UINT64_C(11000000000);
    struct hr_reader reader = {.refused_ns = long_ago, .in_flight = 2, .failed_block = UINT64_MAX};

    (void) state;
    hr_reader_refused(&reader, -EAGAIN, true);
    assert_true(!reader.abandoned && reader.in_flight == 2 && reader.lacks_memory);
    reader.good_ns = hr_now_ns();
    hr_reader_refused(&reader, -EAGAIN, false);
    assert_true(!reader.abandoned && reader.in_flight == 2);
    reader.good_ns = long_ago;
    hr_reader_refused(&reader, -EINTR, false);
    assert_false(reader.abandoned);
    hr_reader_refused(&reader, -EAGAIN, false);
    assert_true(reader.abandoned && reader.in_flight == 0);
}

/* The trial read of a backend is repeated as well, for a second; then the backend does not work. */
static void trial_read_is_patient(void **state)
{
    static const char prefix[] = "I/O backend fault does not work here: a trial read failed: ";
    static const struct {
        const char *program, *reason;
        int code;
    } refusals[] = {
        {"trial=1,ebusy=100", "Device or resource busy, for 1 s; close other programs",
         -EBUSY}, /* it is not taken  */
        {"trial=1,eagain=100", "Resource temporarily unavailable, for 1 s; close other programs",
         -EAGAIN}, /* it comes back */
    };
    const struct hr_reader_params params = make_params();
    struct hr_reader *reader = NULL;

    (void) state;
    expect_repaired("trial=1,enomem=40,ebusy=40,seed=2", HR_DIRECT_AUTO, NULL);
    expect_repaired("trial=1,nomem=25,eintr=25,eagain=25,short=50,delay=300,seed=9", HR_DIRECT_AUTO,
                    NULL);
    for (size_t i = 0; i < HR_ARRAY_SIZE(refusals); i++) {
        const uint64_t begin_ns = hr_now_ns();
        struct hr_error err = {0};

        hr_io_fault_program(refusals[i].program);
        assert_int_equal(hr_reader_create(&reader, &params, &err), refusals[i].code);
        assert_null(reader);
        assert_true(hr_now_ns() - begin_ns >= 1000000000);
        assert_int_equal(strncmp(err.message, prefix, strlen(prefix)), 0);
        assert_string_equal(err.message + strlen(prefix), refusals[i].reason);
    }
    hr_io_fault_program(NULL);
}

static void all_faults_together(void **state)
{
    char program[128];

    (void) state;
    for (int seed = 1; seed <= 6; seed++) {
        snprintf(program, sizeof(program),
                 "seed=%d,short=20,eintr=5,eagain=5,nomem=1,enomem=5,ebusy=5,delay=200,reorder=1,"
                 "eio=%d:3",
                 seed, seed * 654321);
        expect_repaired(program, seed % 2 ? HR_DIRECT_AUTO : HR_DIRECT_OFF, NULL);
    }
}

/* One bad place, for good: found to the page, after all that comes before it. */
static void bad_sector_is_found(void **state)
{
    char program[32];

    (void) state;
    expect_failure("eio=0", -EIO, 0, "file0: bytes 0 to 4095 (tensor t0)", "Input/output error");
    /* t0 ends and t1 lies in this page. */
    expect_failure("eio=308201", -EIO, 0, "file0: bytes 307200 to 311295 (tensor t0)",
                   "Input/output error");
    expect_failure("eio=350000", -EIO, 2, "file0: bytes 348160 to 352255 (tensor t2)",
                   "Input/output error");
    expect_failure("eio=600000,reorder=1,delay=500", -EIO, 2,
                   "file0: bytes 598016 to 602111 (tensor t2)", "Input/output error");
    expect_failure("eio=2000000,seed=9,short=20", -EIO, 4,
                   "file1: bytes 1998848 to 2002943 (tensor t4)",
                   "Input/output error; the disk cannot read this place: see dmesg, and fetch the "
                   "file again");
    /* Bad media have an error of their own; where the trial read meets it, no backend is to blame.
     */
    snprintf(program, sizeof(program), "eio=0,errno=%d", ENODATA);
    expect_failure(program, -EIO, 0, "file0: bytes 0 to 4095 (tensor t0)",
                   "No data available; the disk cannot read this place");
}

static void bad_sector_that_recovers(void **state)
{
    struct outcome out;

    (void) state;
    expect_repaired("eio=600000:7", HR_DIRECT_AUTO, &out);
    assert_int_equal(out.stats.retries, 7);
}

static void failure_is_repeated(void **state)
{
    struct hr_reader_params params = make_params();
    struct io_caller caller = {0};
    struct hr_reader *reader = NULL;
    struct hr_slice slice;
    struct hr_error err = {0};

    (void) state;
    hr_io_fault_program("eio=700000");
    assert_int_equal(hr_reader_create(&reader, &params, NULL), 0);
    assert_int_equal(hr_reader_start(reader, ranges, N_RANGES, 0, 0, NULL), 0);
    assert_int_equal(io_caller_run(&caller, reader, ranges, N_RANGES, NULL), -EIO);
    for (int i = 0; i < 3; i++) {
        hr_error_clear(&err);
        assert_int_equal(hr_reader_next(reader, &slice, &err), -EIO);
        assert_non_null(strstr(err.message, "tensor t2"));
    }
    hr_reader_destroy(&reader);
    hr_io_fault_program(NULL);
}

static void end_of_file_is_no_short_read(void **state)
{
    (void) state;
    expect_failure("eof=1000000", -EIO, 2, "(tensor t2): the file shrank: it ends at byte ",
                   "1000000 of 4195081");
    expect_failure("eof=983040", -EIO, 2, "(tensor t2)", "it ends at byte 983040 of 4195081");
    expect_failure("eof=0", -EIO, 0, "(tensor t0)", "it ends at byte 0 of 4195081");
}

static void lost_direct_falls_back(void **state)
{
    struct outcome out;

    (void) state;
    out = run("seed=1", HR_DIRECT_ON, 1);
    if (out.result == -EOPNOTSUPP)
        skip(); /* no direct reads in this folder at all */
    io_log_capture(HR_LOG_WARN);
    expect_repaired("einval=1,reorder=1,delay=100", HR_DIRECT_AUTO, &out);
    assert_int_equal(io_log_count("file0: a direct read was refused"), 1);
    assert_int_equal(io_log_count("file1: a direct read was refused"), 1);
    assert_int_equal(io_log_count(""), 2);
    assert_false(out.stats.direct);
    if (HAVE_LIBURING)
        expect_repaired("einval=1,inner=io_uring,short=10", HR_DIRECT_AUTO, &out);
    if (HAVE_LIBAIO)
        expect_repaired("einval=1,inner=libaio,short=10", HR_DIRECT_AUTO, &out);
    io_log_release();
    out = run("einval=1", HR_DIRECT_ON, 1);
    assert_int_equal(out.result, -EOPNOTSUPP);
    assert_non_null(strstr(out.err.message,
                           "file0: bytes 0 to 262143 (tensor t0): a direct read was "
                           "refused (Invalid argument); let direct be auto"));
}

/* No injection: the file really gets shorter under the reader. */
static void shrinking_file_is_named(void **state)
{
    static const char *const backends[] = {"pread", "io_uring"};
    const uint64_t size = 3 * MIB;

    (void) state;
    for (size_t i = 0; i < (HAVE_LIBURING ? 2 : 1); i++) {
        const struct hr_read_range all[] = {{0, 0, MIB}, {0, MIB, MIB}, {0, 2 * MIB, MIB}};
        struct hr_reader_params params = make_params();
        struct io_caller caller = {0};
        struct hr_error err = {0};
        struct io_files file;

        params.io = backends[i];
        io_files_make(&file, ".", &size, 1);
        params.files = file.files;
        params.n_files = 1;
        assert_int_equal(truncate(file.paths[0], 2 * MIB + 5000), 0);
        const int r = io_stream_once(&params, all, 3, 1, &caller, NULL, &err);
        io_files_remove(&file);
        if (strstr(err.message, "does not work here"))
            continue;
        assert_int_equal(r, -EIO);
        assert_int_equal(caller.n_taken, 2);
        assert_non_null(strstr(err.message,
                               "(tensor t2): the file shrank: it ends at byte 2102152 of 3145728"));
    }
}

/* A read never comes back: named after the timeout, and the end does not wait for it. */
static void hanging_disk_is_named(void **state)
{
    struct hr_reader_params params = make_params();
    struct io_caller caller = {.hold_max = 1};
    struct hr_reader *reader = NULL;
    struct hr_slice slice;
    struct hr_error err = {0};

    (void) state;
    hr_io_fault_program("hang=600000,reorder=1");
    params.timeout_s = 1;
    assert_int_equal(io_stream_once(&params, ranges, N_RANGES, 1, &caller, NULL, &err), -ETIMEDOUT);
    assert_int_equal(caller.n_taken, 2);
    assert_non_null(strstr(err.message, "file0: bytes 524288 to 786431 (tensor t2): the disk has "
                                        "not answered for 1 s"));
    /* The failure stays, and is told again. */
    assert_int_equal(hr_reader_create(&reader, &params, NULL), 0);
    assert_int_equal(hr_reader_start(reader, ranges, N_RANGES, 0, 0, NULL), 0);
    caller.n_taken = 0;
    assert_int_equal(io_caller_run(&caller, reader, ranges, N_RANGES, NULL), -ETIMEDOUT);
    hr_error_clear(&err);
    assert_int_equal(hr_reader_next(reader, &slice, &err), -ETIMEDOUT);
    hr_reader_destroy(&reader);
    /* The trial read. */
    hr_io_fault_program("hang=0");
    hr_error_clear(&err);
    assert_int_equal(hr_reader_create(&reader, &params, &err), -ETIMEDOUT);
    assert_null(reader);
    assert_non_null(strstr(err.message, "file0: bytes 0 to 262143: the disk has not answered"));
    hr_io_fault_program(NULL);
}

/* Without a timeout an interruption still ends it. */
static void hanging_disk_is_interrupted(void **state)
{
    struct hr_reader_params params = make_params();
    struct hr_reader *reader = NULL;
    struct hr_slice slice;

    (void) state;
    hr_io_fault_program("hang=600000");
    params.timeout_s = HR_TIMEOUT_NONE;
    assert_int_equal(hr_reader_create(&reader, &params, NULL), 0);
    assert_int_equal(hr_reader_start(reader, ranges, N_RANGES, 0, 1, NULL), 0);
    assert_int_equal(hr_reader_next(reader, &slice, NULL), 1);
    hr_reader_interrupt(reader);
    assert_int_equal(hr_reader_next(reader, &slice, NULL), -ECANCELED);
    hr_reader_destroy(&reader);
    hr_io_fault_program(NULL);
}

static void bad_programs_are_refused(void **state)
{
    static const char *const programs[] = {"short",     "short=x", "nonsense=1", "inner=fault",
                                           "inner=abc", "eio=",    "=1"};
    struct hr_reader_params params = make_params();
    struct hr_reader *reader = NULL;

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(programs); i++) {
        hr_io_fault_program(programs[i]);
        assert_int_equal(hr_reader_create(&reader, &params, NULL), -EINVAL);
    }
    hr_io_fault_program(NULL);
    setenv("HEADRACE_FAULTS", "seed=5,bogus=1", 1);
    assert_int_equal(hr_reader_create(&reader, &params, NULL), -EINVAL);
    unsetenv("HEADRACE_FAULTS");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(short_reads_are_continued),
        cmocka_unit_test(transient_errors_are_repeated),
        cmocka_unit_test(want_of_memory_is_waited_out),
        cmocka_unit_test(depth_follows_the_memory),
        cmocka_unit_test(endless_refusals_end),
        cmocka_unit_test(refusals_count_from_the_last_success),
        cmocka_unit_test(trial_read_is_patient),
        cmocka_unit_test(all_faults_together),
        cmocka_unit_test(bad_sector_is_found),
        cmocka_unit_test(bad_sector_that_recovers),
        cmocka_unit_test(failure_is_repeated),
        cmocka_unit_test(end_of_file_is_no_short_read),
        cmocka_unit_test(lost_direct_falls_back),
        cmocka_unit_test(shrinking_file_is_named),
        cmocka_unit_test(hanging_disk_is_named),
        cmocka_unit_test(hanging_disk_is_interrupted),
        cmocka_unit_test(bad_programs_are_refused),
    };

    return cmocka_run_group_tests_name("io faults", tests, make_files, remove_files);
}
