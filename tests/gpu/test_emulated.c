/* SPDX-License-Identifier: Apache-2.0 */
/* test_emulated.c -- weights through slots, copied late: nothing is read or overwritten too early.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/gpu/check.h"

enum { N = 64, ROWS = 40, TURNS = 300 };

static struct hr_gpu *open_device(const char *name, uint64_t slot_bytes, uint64_t arena_bytes)
{
    const struct hr_gpu_params params = {.device = name,
                                         .act = HR_DTYPE_F32,
                                         .n_threads = 1,
                                         .slot_bytes = slot_bytes,
                                         .arena_bytes = arena_bytes};
    struct hr_error err = {0};
    struct hr_gpu *gpu = NULL;

    if (hr_gpu_open(&gpu, &params, &err) < 0)
        fail_msg("%s", err.message);
    return gpu;
}

/* y += x W_i^T over many W, each overwritten on the host as soon as the device says it may be. */
static void accumulate(const char *name, uint64_t slot_bytes, float *out)
{
    const uint64_t bytes = hr_gpu_arena_bytes(N * 4) + 2 * hr_gpu_arena_bytes(ROWS * 4);
    struct hr_gpu *gpu = open_device(name, slot_bytes, bytes);
    float *x = hr_gpu_alloc(gpu, N * 4), *gate = hr_gpu_alloc(gpu, ROWS * 4);
    float *y = hr_gpu_alloc(gpu, ROWS * 4), *w = malloc(ROWS * N * 4), host[N], ones[ROWS];
    struct hr_gpu_weight weight;

    for (int i = 0; i < N; i++)
        host[i] = (float) (i % 7) - 3.0f;
    for (int i = 0; i < ROWS; i++)
        ones[i] = 1.0f;
    assert_int_equal(hr_gpu_upload(gpu, x, host, sizeof(host)), 0);
    memset(host, 0xff, sizeof(host)); /* an upload is done with its source */
    assert_int_equal(hr_gpu_upload(gpu, gate, ones, sizeof(ones)), 0);
    for (int turn = 0; turn < TURNS; turn++) {
        const size_t rows = 1 + (size_t) turn % ROWS;

        for (size_t i = 0; i < rows * N; i++)
            w[i] = (float) ((i * 31 + (size_t) turn * 17) % 11) - 5.0f;
        assert_int_equal(hr_gpu_stage(gpu, &weight, w, rows * N * 4), 0);
        assert_int_equal(
            hr_gpu_linear(gpu, &(struct hr_linear){.x = x,
                                                   .x_dtype = HR_DTYPE_F32,
                                                   .x_stride = N,
                                                   .w = weight.data,
                                                   .w_dtype = HR_DTYPE_F32,
                                                   .n_tokens = 1,
                                                   .n_in = N,
                                                   .n_out = rows,
                                                   .epilogue = HR_EPILOGUE_GATED_RESIDUAL,
                                                   .out = y,
                                                   .out_dtype = HR_DTYPE_F32,
                                                   .out_stride = ROWS,
                                                   .gate = gate,
                                                   .gate_split = 1}),
            0);
        hr_gpu_unstage(gpu, &weight);
        assert_true(hr_gpu_host_is_free(gpu, &weight, true));
        memset(w, 0xff, ROWS * N * 4);
    }
    assert_int_equal(hr_gpu_download(gpu, out, y, ROWS * 4), 0);
    free(w);
    hr_gpu_close(&gpu);
}

static void test_same_bits(void **state)
{
    float want[ROWS], got[ROWS];

    (void) state;
    accumulate("cpu", 0, want);
    accumulate("emulated", 0, got);
    assert_memory_equal(got, want, sizeof(want));
    accumulate("emulated:500", 0, got);
    assert_memory_equal(got, want, sizeof(want));
    /* One slot at a time: each copy waits for the product before it. */
    accumulate("emulated:100", ROWS * N * 4, got);
    assert_memory_equal(got, want, sizeof(want));
}

static void test_no_room(void **state)
{
    struct hr_gpu *gpu = open_device("emulated", 4096, 0);
    static char host[8192];
    struct hr_gpu_weight first, second;

    (void) state;
    assert_int_equal(hr_gpu_stage(gpu, &first, host, 4097), -ENOMEM);
    assert_int_equal(hr_gpu_stage(gpu, &first, host, 4096), 0);
    assert_int_equal(hr_gpu_stage(gpu, &second, host, 1), -ENOMEM); /* the first is in use */
    hr_gpu_unstage(gpu, &first);
    assert_int_equal(hr_gpu_stage(gpu, &second, host, 4096), 0);
    hr_gpu_unstage(gpu, &second);
    assert_int_equal(hr_gpu_sync(gpu), 0);
    hr_gpu_close(&gpu);
}

static void test_names(void **state)
{
    static const char *const bad[] = {"emulated:",   "emulated:x",        "emulated:5x",
                                      "emulated:-1", "emulated:99999999", "cpu:1",
                                      "emulate"};

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(bad); i++) {
        const struct hr_gpu_params params = {.device = bad[i], .act = HR_DTYPE_F32};
        struct hr_error err = {0};
        struct hr_gpu *gpu = NULL;

        assert_int_equal(hr_gpu_open(&gpu, &params, &err), -ENODEV);
        assert_non_null(strstr(err.message, bad[i]));
    }
    setenv("HEADRACE_DEVICE", "emulated:7", 1);
    struct hr_gpu *gpu = open_device("auto", 0, 0);
    assert_non_null(strstr(hr_gpu_name(gpu), "up to 7 us"));
    hr_gpu_close(&gpu);
    unsetenv("HEADRACE_DEVICE");
}

/* A failed operation is told by the next wait, and what follows it is left out. */
static void test_failure_is_kept(void **state)
{
    static atomic_int cancelled;
    const struct hr_gpu_params params = {.device = "emulated",
                                         .act = HR_DTYPE_F32,
                                         .arena_bytes = hr_gpu_arena_bytes(4000),
                                         .cancelled = &cancelled};
    struct hr_error err = {0};
    struct hr_gpu *gpu = NULL;
    float host;

    (void) state;
    assert_int_equal(hr_gpu_open(&gpu, &params, &err), 0);
    float *x = hr_gpu_alloc(gpu, 4000);

    assert_int_equal(hr_gpu_silu(gpu, x, x, 1000), 0);
    assert_int_equal(hr_gpu_sync(gpu), 0);
    cancelled = 1;
    hr_gpu_silu(gpu, x, x, 1000);
    assert_int_equal(hr_gpu_sync(gpu), -ECANCELED);
    assert_int_equal(hr_gpu_silu(gpu, x, x, 1000), -ECANCELED);
    assert_int_equal(hr_gpu_download(gpu, &host, x, sizeof(host)), -ECANCELED);
    hr_gpu_close(&gpu);
}

/* The last line about it, and how many there were. */
struct lines {
    char last[200];
    int n;
};

static void on_log(void *user, enum hr_log_level level, const char *message)
{
    struct lines *lines = user;

    if (level != HR_LOG_DEBUG || !strstr(message, "registered"))
        return;
    snprintf(lines->last, sizeof(lines->last), "%s", message);
    lines->n++;
}

/* Dies of an assertion as its last act. */
static void expect_assertion(void (*misuse)(struct hr_gpu *gpu))
{
    const pid_t pid = fork();
    int status = 0;

    if (pid == 0) {
        struct hr_gpu *gpu = open_device("emulated", 4096, 0);

        signal(SIGABRT, SIG_DFL); /* not cmocka's */
        (void) !freopen("/dev/null", "w", stderr);
        misuse(gpu);
        _exit(0);
    }
    assert_true(pid > 0 && waitpid(pid, &status, 0) == pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static unsigned char host_memory[3 * 4096];

static void register_overlapping(struct hr_gpu *gpu)
{
    hr_gpu_register_host(gpu, host_memory, 4097);
    hr_gpu_register_host(gpu, host_memory + 4096, 4096);
}

static void unregister_inner(struct hr_gpu *gpu)
{
    hr_gpu_register_host(gpu, host_memory, 8192);
    hr_gpu_unregister_host(gpu, host_memory + 4096);
}

static void close_registered(struct hr_gpu *gpu)
{
    hr_gpu_register_host(gpu, host_memory, 4096);
    hr_gpu_close(&gpu);
}

/* Ranges side by side, given back in any order; what a GPU would not bear is an assertion. */
static void test_registered(void **state)
{
    struct hr_gpu *gpu = open_device("emulated", 4096, 0);
    struct lines lines = {.n = 0};

    (void) state;
    hr_log_set(on_log, &lines, HR_LOG_DEBUG);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(hr_gpu_register_host(gpu, host_memory + 4096 * i, 4096), 0);
    for (unsigned i = 0; i < 3; i++)
        hr_gpu_unregister_host(gpu, host_memory + 4096 * i);
    hr_log_set(NULL, NULL, HR_LOG_WARN);
    assert_int_equal(lines.n, 3);
    assert_string_equal(lines.last, "emulated device: 4096 bytes of host memory are registered");
    hr_gpu_close(&gpu);
    expect_assertion(register_overlapping);
    expect_assertion(unregister_inner);
    expect_assertion(close_registered);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),  cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_names),      cmocka_unit_test(test_failure_is_kept),
        cmocka_unit_test(test_registered),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
