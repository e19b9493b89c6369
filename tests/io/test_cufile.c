/* SPDX-License-Identifier: Apache-2.0 */
/* test_cufile.c -- reading past the host's memory, with a libcufile made for it (fake_cufile.c):
 * each byte compared, what is said where there is no direct path, and what becomes of failures.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "io_testing.h"

enum { MIB = 1 << 20, RING = 8 * MIB, RANGES = 200 };

static struct io_files disk;
static const char *self;

/* What stands for a GPU. */
struct gpu {
    struct hr_reader_memory memory;
    atomic_uint n_threads;
    int begin_fails;
    bool abandoned;
};

static int begin_thread(void *user)
{
    struct gpu *gpu = user;

    atomic_fetch_add(&gpu->n_threads, 1);
    return gpu->begin_fails;
}

static void abandon(void *user)
{
    ((struct gpu *) user)->abandoned = true;
}

static void gpu_make(struct gpu *gpu)
{
    *gpu = (struct gpu){.memory = {.base = aligned_alloc(64 << 10, RING),
                                   .size_bytes = RING,
                                   .begin_thread = begin_thread,
                                   .abandon = abandon,
                                   .user = gpu}};
    assert_non_null(gpu->memory.base);
    memset(gpu->memory.base, 0, RING);
}

static int make_files(void **state)
{
    static const uint64_t sizes[] = {24 * MIB + 77, 4096, 5 * MIB};

    (void) state;
    io_files_make(&disk, ".", sizes, 3);
    return 0;
}

static int remove_files(void **state)
{
    (void) state;
    io_files_remove(&disk);
    return 0;
}

/* Stream random ranges into the gpu's memory, or with NULL into the host's. */
static int stream(struct gpu *gpu, const char *io, struct hr_stream_stats *ret_stats,
                  struct hr_error *err)
{
    const struct hr_reader_params params = {
        .files = disk.files,
        .n_files = disk.n,
        .memory = gpu ? &gpu->memory : NULL,
        .ring_bytes = RING,
        .block_bytes = 256 << 10,
        .depth = 6,
        .timeout_s = 1,
        .io = io,
    };
    struct hr_read_range ranges[RANGES];
    struct io_caller caller = {.hold_max = 3, .shuffle = true, .seed = 7};
    uint64_t random = 11;

    io_random_ranges(&disk, ranges, RANGES, MIB, &random);
    return io_stream_once(&params, ranges, RANGES, 2, &caller, ret_stats, err);
}

static void needs_direct(void)
{
    struct hr_io_file file;
    const char *why;
    struct hr_error err = {0};

    if (hr_io_file_open_direct(&file, &disk.files[0], &why, &err) < 0)
        skip();
    hr_io_file_close(&file);
}

static void every_byte_arrives(void **state)
{
    struct hr_stream_stats stats;
    struct hr_error err = {0};
    struct gpu gpu;

    (void) state;
    needs_direct();
    gpu_make(&gpu);
    assert_int_equal(stream(&gpu, "cufile", &stats, &err), 0);
    assert_string_equal(stats.io_name, "cufile");
    assert_true(stats.direct);
    assert_int_equal(stats.device_ring_bytes, RING);
    assert_int_equal(stats.ring_bytes, 0);
    assert_int_equal(atomic_load(&gpu.n_threads), 1 + 6); /* the reader's and its own */
    assert_false(gpu.abandoned);
    free(gpu.memory.base);
}

static void the_host_s_memory_is_refused(void **state)
{
    struct hr_error err = {0};

    (void) state;
    assert_int_equal(stream(NULL, "cufile", NULL, &err), -EOPNOTSUPP);
    assert_non_null(strstr(err.message, "it reads into the memory of a GPU"));
}

static void other_backends_refuse_the_gpu_s(void **state)
{
    struct hr_error err = {0};
    struct gpu gpu;

    (void) state;
    needs_direct();
    gpu_make(&gpu);
    assert_int_equal(stream(&gpu, "pread", NULL, &err), -EOPNOTSUPP);
    assert_non_null(strstr(err.message, "pread"));
    assert_non_null(strstr(err.message, "it cannot read into the memory of a GPU"));
    free(gpu.memory.base);
}

static void buffered_reads_are_refused(void **state)
{
    struct hr_error err = {0};
    struct io_caller caller = {0};
    struct gpu gpu;
    const struct hr_read_range range = {0, 0, 4096};

    (void) state;
    gpu_make(&gpu);
    const struct hr_reader_params params = {.files = disk.files,
                                            .n_files = disk.n,
                                            .memory = &gpu.memory,
                                            .direct = HR_DIRECT_OFF,
                                            .io = "cufile"};

    assert_int_equal(io_stream_once(&params, &range, 1, 1, &caller, NULL, &err), -EOPNOTSUPP);
    assert_non_null(strstr(err.message, "is direct, and direct is off; leave it, or use another"));
    free(gpu.memory.base);
}

static void a_gpu_that_does_not_answer(void **state)
{
    struct hr_error err = {0};
    struct gpu gpu;

    (void) state;
    needs_direct();
    gpu_make(&gpu);
    gpu.begin_fails = -ENODEV;
    assert_int_equal(stream(&gpu, "cufile", NULL, &err), -ENODEV);
    assert_non_null(strstr(err.message, "the GPU does not answer"));
    free(gpu.memory.base);
}

/* The library is loaded once in a process: each way in which it fails has one of its own. Its exit
 * status says whether code and message were those. */
struct failure {
    const char *word; /* for FAKE_CUFILE */
    int code;
    const char *part; /* of the message */
    bool abandons;
};

static void fails(const struct failure *failure)
{
    int status;
    const pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        struct hr_error err = {0};
        struct gpu gpu;

        setenv("FAKE_CUFILE", failure->word, 1);
        gpu_make(&gpu);
        const int r = stream(&gpu, "cufile", NULL, &err);
        const bool good = r == failure->code && gpu.abandoned == failure->abandons &&
                          (r == 0 || strstr(err.message, failure->part));

        if (!good)
            fprintf(stderr, "FAKE_CUFILE=%s: %d, %s\n", failure->word, r, err.message);
        _exit(!good);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void failures_are_told(void **state)
{
    static const struct failure failures[] = {
        {"no-driver", -ENODEV, "the nvidia-fs driver is not loaded (cuFile error 5001)", false},
        {"no-properties", -ENODEV, "cuFile's properties: not supported on this platform", false},
        {"compat", -EOPNOTSUPP,
         "set \"allow_compat_mode\": false in its cufile.json and unset CUFILE_ALLOW_COMPAT_MODE",
         false},
        {"forced", -EOPNOTSUPP, "set \"force_compat_mode\": false", false},
        {"posix", -EOPNOTSUPP, "set \"vanilla_posix_io_mode\": false in its cufile.json, or",
         false},
        {"fallback", -EOPNOTSUPP, "set \"gds_fallback_io\": false", false},
        {"no-path", -EOPNOTSUPP, "no direct path from the disk of this file", false},
        {"no-pinning", -ENOMEM, "cannot be registered: CUDA error 2 (cuFile error 5011)", false},
        {"trial", -EPROTO, "a trial read failed: cuFile error 5030; see NVIDIA's gdscheck", false},
        {"internal", -EPROTO, ": cuFile error 5030; see NVIDIA's gdscheck -p, or use", false},
        {"own-errno", -EPROTO, ": cuFile error 5027; see NVIDIA's gdscheck -p, or use", false},
        {"efault", -EPROTO, ": Bad address; see NVIDIA's gdscheck -p, or use", false},
        {"einval", -EPROTO, ": Invalid argument; see NVIDIA's gdscheck -p, or use", false},
        {"no-errno", -EPROTO, ": Protocol error; see NVIDIA's gdscheck -p, or use", false},
        {"eio", -EIO, "bytes ", false},
        {"hang", -ETIMEDOUT, "has not answered", true},
        {"open-already", 0, "", false},
        {"no-get", 0, "", false},
        {"short", 0, "", false},
    };

    (void) state;
    needs_direct();
    for (size_t i = 0; i < HR_ARRAY_SIZE(failures); i++)
        fails(&failures[i]);
}

/* Older libraries cannot be asked, and the environment goes before their file. */
static void the_environment_is_looked_at(void **state)
{
    static const struct failure forced = {"no-get", -EOPNOTSUPP, "unset CUFILE_FORCE_COMPAT_MODE",
                                          false};
    static const struct failure not_forced = {"no-get", 0, "", false};

    (void) state;
    needs_direct();
    setenv("CUFILE_FORCE_COMPAT_MODE", "true", 1);
    fails(&forced);
    setenv("CUFILE_FORCE_COMPAT_MODE", "False", 1);
    fails(&not_forced);
    unsetenv("CUFILE_FORCE_COMPAT_MODE");
}

/* The linker's search path is that with which a process begins. */
static void no_library(void **state)
{
    int status;
    const pid_t pid = fork();

    (void) state;
    needs_direct();
    assert_true(pid >= 0);
    if (pid == 0) {
        unsetenv("LD_LIBRARY_PATH");
        execl(self, self, "without the library", NULL);
        _exit(2);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* @return exit status; 77: this machine has the real one */
static int expect_no_library(void)
{
    struct hr_error err = {0};
    struct gpu gpu;

    make_files(NULL);
    gpu_make(&gpu);
    const int r = stream(&gpu, "cufile", NULL, &err);

    free(gpu.memory.base);
    remove_files(NULL);
    if (!strstr(err.message, "libcufile"))
        return 77;
    return !(r == -ENODEV && strstr(err.message, "libcufile.so.0 is not found; install"));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(failures_are_told), /* in children that have not loaded the library */
        cmocka_unit_test(the_environment_is_looked_at),
        cmocka_unit_test(every_byte_arrives),
        cmocka_unit_test(buffered_reads_are_refused),
        cmocka_unit_test(the_host_s_memory_is_refused),
        cmocka_unit_test(other_backends_refuse_the_gpu_s),
        cmocka_unit_test(a_gpu_that_does_not_answer),
        cmocka_unit_test(no_library),
    };

    self = argv[0];
    if (argc > 1)
        return expect_no_library();
    return cmocka_run_group_tests_name("cufile", tests, make_files, remove_files);
}
