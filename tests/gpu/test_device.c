/* SPDX-License-Identifier: Apache-2.0 */
/* test_device.c -- opening, the arena, weights, the pool of threads, and what the reference itself
 * is held to: values worked out by hand. */
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "gpu/cpu_pool.h"
#include "gpu/kernels.h"
#include "tests/gpu/check.h"

/* y [n_tokens, n_out] = x [n_tokens, n_in] w^T, all dense and F32. */
static struct hr_linear linear_f32(float *y, const float *x, const float *w, size_t n_tokens,
                                   size_t n_in, size_t n_out)
{
    return (struct hr_linear){.x = x,
                              .x_dtype = HR_DTYPE_F32,
                              .x_stride = n_in,
                              .w = w,
                              .w_dtype = HR_DTYPE_F32,
                              .n_tokens = n_tokens,
                              .n_in = n_in,
                              .n_out = n_out,
                              .out = y,
                              .out_dtype = HR_DTYPE_F32,
                              .out_stride = n_out};
}

/* ---- open --------------------------------------------------------------------------- */

static void check_refused(const struct hr_gpu_params *params, int code, const char *words)
{
    struct hr_gpu *gpu = NULL;
    struct hr_error err = {0};

    assert_int_equal(hr_gpu_open(&gpu, params, &err), code);
    assert_null(gpu);
    assert_int_equal(err.code, code);
    if (!strstr(err.message, words))
        fail_msg("\"%s\" does not say \"%s\"", err.message, words);
}

static void test_open_errors(void **state)
{
    struct hr_gpu_params params = {.device = "abacus\n", .act = HR_DTYPE_BF16};

    (void) state;
    check_refused(&params, -ENODEV, "\"abacus\\x0a\" is unknown: use one of auto, ");
    params = (struct hr_gpu_params){.act = HR_DTYPE_BF16, .n_threads = 257};
    check_refused(&params, -EINVAL, "at most 256");
    params = (struct hr_gpu_params){.act = HR_DTYPE_F32, .arena_bytes = UINT64_C(1) << 60};
    check_refused(&params, -ENOMEM, "no memory for activations 1099511627776 MiB and scratch of ");

    setenv("HEADRACE_CPU", "abacus", 1);
    params = (struct hr_gpu_params){.act = HR_DTYPE_F32};
    check_refused(&params, -ENODEV, "baseline");
    unsetenv("HEADRACE_CPU");
}

/* An empty variable names nothing. */
static void test_empty_environment(void **state)
{
    const struct hr_gpu_params params = {.act = HR_DTYPE_F32, .n_threads = 1};
    char *device = getenv("HEADRACE_DEVICE") ? strdup(getenv("HEADRACE_DEVICE")) : NULL;
    struct hr_gpu *gpu = NULL;

    (void) state;
    setenv("HEADRACE_DEVICE", "", 1);
    setenv("HEADRACE_CPU", "", 1);
    const int rc = hr_gpu_open(&gpu, &params, NULL);

    unsetenv("HEADRACE_CPU");
    if (device)
        setenv("HEADRACE_DEVICE", device, 1);
    else
        unsetenv("HEADRACE_DEVICE");
    free(device);
    assert_int_equal(rc, 0);
    hr_gpu_close(&gpu);
}

/* In a child: the right to threads is given up for good. @return its exit status */
static int open_without_threads(void)
{
    const uid_t user = 100000 + (uid_t) getpid(); /* that nobody else is */
    const struct rlimit one = {1, 1};
    const struct hr_gpu_params params = {.device = "cpu", .act = HR_DTYPE_F32, .n_threads = 3};
    struct hr_error err = {0};
    struct hr_gpu *gpu = NULL;

    if (setrlimit(RLIMIT_NPROC, &one) < 0 || setresuid(user, user, user))
        return 77; /* root is exempt from the limit, and only root can become another */
    if (hr_gpu_open(&gpu, &params, &err) != -EAGAIN || gpu)
        return 1;
    return strcmp(err.message, "cpu: the system gives no 3 threads; use fewer (--threads) or raise "
                               "the limit on processes (ulimit -u)") != 0;
}

static void test_no_threads(void **state)
{
    int status;
    const pid_t pid = fork();

    (void) state;
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(open_without_threads());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* As many threads as are allowed; most find nothing to do. */
static void test_threads_max(void **state)
{
    const struct hr_gpu_params params = {.device = "cpu", .act = HR_DTYPE_BF16, .n_threads = 256};
    static float x[100000], out[100000];
    struct hr_error err = {0};
    struct hr_gpu *gpu = NULL;
    const int rc = hr_gpu_open(&gpu, &params, &err);

    (void) state;
    if (rc == -EAGAIN)
        skip(); /* the system's limit is lower */
    if (rc < 0)
        fail_msg("open: %s", err.message);
    for (int i = 0; i < 50; i++)
        assert_int_equal(hr_gpu_silu(gpu, out, x, HR_ARRAY_SIZE(x)), 0);
    hr_gpu_close(&gpu);
}

struct lines {
    unsigned n_device, n_bf16;
};

static void on_log(void *user, enum hr_log_level level, const char *message)
{
    struct lines *lines = user;

    lines->n_device += level == HR_LOG_INFO && strncmp(message, "device: cpu", 11) == 0;
    lines->n_bf16 += level == HR_LOG_INFO && strstr(message, "HEADRACE_CPU_BF16=off") != NULL;
}

/* An automatic choice is said once, a choice of the user's is not. */
static void test_open_auto(void **state)
{
    static const char *const names[] = {NULL, "auto", "cpu"};
    struct lines lines = {0};

    (void) state;
    hr_log_set(on_log, &lines, HR_LOG_INFO);
    for (size_t i = 0; i < HR_ARRAY_SIZE(names); i++) {
        const struct hr_gpu_params params = {.device = names[i], .act = HR_DTYPE_BF16};
        struct hr_gpu *gpu = NULL;

        setenv("HEADRACE_CPU_BF16", i == 0 ? "off" : "auto", 1);
        assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
        assert_non_null(strstr(hr_gpu_name(gpu), "cpu (oneDNN "));
        hr_gpu_close(&gpu);
        assert_null(gpu);
        hr_gpu_close(&gpu);
    }
    unsetenv("HEADRACE_CPU_BF16");
    hr_log_set(NULL, NULL, HR_LOG_WARN);
    assert_int_equal(lines.n_device, 2);
    assert_in_range(lines.n_bf16, 1, 3); /* 3 where the CPU has no bf16 products anyway */
}

/* ---- memory ------------------------------------------------------------------------- */

static void test_arena(void **state)
{
    static const uint64_t sizes[] = {1, 63, 64, 65, 100000};
    struct hr_gpu_params params = {.device = "cpu", .act = HR_DTYPE_F32, .n_threads = 1};
    unsigned char *at[HR_ARRAY_SIZE(sizes)];
    struct hr_gpu *gpu = NULL;

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(sizes); i++)
        params.arena_bytes += hr_gpu_arena_bytes(sizes[i]);
    assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
    for (size_t i = 0; i < HR_ARRAY_SIZE(sizes); i++) {
        at[i] = hr_gpu_alloc(gpu, sizes[i]);
        assert_int_equal((uintptr_t) at[i] % 64, 0);
        for (size_t j = 0; j < sizes[i]; j++)
            assert_int_equal(at[i][j], 0);
        memset(at[i], (int) i + 1, sizes[i]);
    }
    for (size_t i = 0; i < HR_ARRAY_SIZE(sizes); i++) /* none overlaps another */
        assert_true(at[i][0] == i + 1 && at[i][sizes[i] - 1] == i + 1);

    float out[3] = {0}, in[3] = {1.0f, 2.0f, 3.0f};
    assert_int_equal(hr_gpu_upload(gpu, at[4], in, sizeof(in)), 0);
    assert_int_equal(hr_gpu_download(gpu, out, at[4], sizeof(out)), 0);
    assert_int_equal(hr_gpu_sync(gpu), 0);
    assert_memory_equal(in, out, sizeof(in));
    hr_gpu_close(&gpu);
}

static void test_weights(void **state)
{
    const struct hr_gpu_params params = {.device = "cpu", .act = HR_DTYPE_F32, .n_threads = 1};
    unsigned char host[100] = {7};
    struct hr_gpu_weight weight;
    struct hr_gpu *gpu = NULL;

    (void) state;
    assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
    assert_int_equal(hr_gpu_stage(gpu, &weight, host + 1, sizeof(host) - 1), 0);
    assert_ptr_equal(weight.data, host + 1);
    hr_gpu_unstage(gpu, &weight);
    assert_true(hr_gpu_host_is_free(gpu, &weight, false));
    assert_true(hr_gpu_host_is_free(gpu, &weight, true));
    hr_gpu_close(&gpu);
}

/* What is taken beside the arena, once threads, tiles and products are in use, is within what was
 * foretold. */
static void test_scratch_bytes(void **state)
{
    const struct hr_gpu_params params = {.device = "cpu", .act = HR_DTYPE_BF16, .n_threads = 2};
    enum { T = 1100, D = 3 * HR_HEAD_DIM };
    uint16_t *x = calloc(T * D, 2), *w = calloc(D * D, 2);
    float *out = calloc(T * D, 4);
    struct hr_gpu *gpu = NULL;

    (void) state;
    for (size_t i = 0; i < T * D; i++) /* present before the first figure */
        out[i] = x[i] = 1;
    for (size_t i = 0; i < D * D; i++)
        w[i] = 1;
    const struct hr_linear linear = {.x = x,
                                     .x_dtype = HR_DTYPE_BF16,
                                     .x_stride = D,
                                     .w = w,
                                     .w_dtype = HR_DTYPE_BF16,
                                     .n_tokens = T,
                                     .n_in = D,
                                     .n_out = D,
                                     .out = out,
                                     .out_dtype = HR_DTYPE_F32,
                                     .out_stride = D};
    const struct hr_attention attention = {
        .out = out, .q = x, .k = x, .v = x, .n_q = T, .n_k = T, .n_heads = 3};
    const uint64_t before = hr_memory_now().resident_bytes;
    assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
    assert_int_equal(hr_gpu_linear(gpu, &linear), 0);
    assert_int_equal(hr_gpu_attention(gpu, &attention), 0);
    const uint64_t after = hr_memory_now().resident_bytes;

    print_message("scratch: %.1f MB of %.1f MB\n", (double) (after - before) * 1e-6,
                  (double) hr_gpu_scratch_bytes(&params) * 1e-6);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    if (after > 0)
        assert_true(after - before <= hr_gpu_scratch_bytes(&params));
#endif
    hr_gpu_close(&gpu);
    free(x);
    free(w);
    free(out);
}

/* ---- pool --------------------------------------------------------------------------- */

struct counts {
    atomic_uint calls[1000];
    unsigned n_threads;
    atomic_uint n_wrong;
};

static void count_task(void *ctx, size_t task_idx, unsigned thread_idx)
{
    struct counts *counts = ctx;

    if (thread_idx >= counts->n_threads)
        atomic_fetch_add(&counts->n_wrong, 1);
    atomic_fetch_add(&counts->calls[task_idx], 1);
}

static void test_pool(void **state)
{
    static struct counts counts;

    (void) state;
    for (unsigned n_threads = 1; n_threads <= 5; n_threads++) {
        struct hr_pool *pool = NULL;

        assert_int_equal(hr_pool_open(&pool, n_threads, NULL), 0);
        for (size_t n_tasks = 0; n_tasks < 300; n_tasks++) {
            memset(&counts, 0, sizeof(counts));
            counts.n_threads = n_threads;
            assert_int_equal(hr_pool_run(pool, count_task, &counts, n_tasks), 0);
            assert_int_equal(counts.n_wrong, 0);
            for (size_t i = 0; i < HR_ARRAY_SIZE(counts.calls); i++)
                assert_int_equal(counts.calls[i], i < n_tasks);
        }
        hr_pool_close(&pool);
        assert_null(pool);
        hr_pool_close(&pool);
    }
}

/* Of 1000 tasks the one numbered `at` sets the flag. */
struct stopping {
    struct counts counts;
    atomic_int cancelled;
    size_t at;
};

static void stopping_task(void *ctx, size_t task_idx, unsigned thread_idx)
{
    struct stopping *stopping = ctx;

    count_task(&stopping->counts, task_idx, thread_idx);
    if (task_idx == stopping->at)
        atomic_store(&stopping->cancelled, 1);
}

/* A cancelled job ends after what had begun, without gaps, and says so; one of which all tasks had
 * begun is done. */
static void test_pool_cancelled(void **state)
{
    static struct stopping stopping;

    (void) state;
    for (unsigned n_threads = 1; n_threads <= 4; n_threads++) {
        struct hr_pool *pool = NULL;
        size_t n_done = 0;

        memset(&stopping, 0, sizeof(stopping));
        stopping.counts.n_threads = n_threads;
        stopping.at = 10;
        assert_int_equal(hr_pool_open(&pool, n_threads, &stopping.cancelled), 0);
        const int rc = hr_pool_run(pool, stopping_task, &stopping, 1000);
        while (n_done < 1000 && stopping.counts.calls[n_done] == 1)
            n_done++;
        for (size_t i = n_done; i < 1000; i++)
            assert_int_equal(stopping.counts.calls[i], 0);
        assert_int_equal(rc, n_done < 1000 ? -ECANCELED : 0);
        assert_true(n_threads > 1 || n_done == 11);
        assert_int_equal(hr_pool_run(pool, stopping_task, &stopping, 1), -ECANCELED);
        atomic_store(&stopping.cancelled, 0);
        stopping.at = 4;
        assert_int_equal(hr_pool_run(pool, stopping_task, &stopping, n_threads == 1 ? 5 : 0), 0);
        hr_pool_close(&pool);
    }
}

/* Every operation says that it was cancelled, and works again once the flag is taken back. */
static void test_cancelled(void **state)
{
    enum { T = 9, D = HR_HEAD_DIM };
    static float x[T * D], w[D * D], out[T * D], cos_sin[T * D];
    atomic_int cancelled = 1;
    const struct hr_gpu_params params = {
        .device = "cpu", .act = HR_DTYPE_F32, .n_threads = 2, .cancelled = &cancelled};
    struct hr_linear linear = linear_f32(out, x, w, T, D, D);
    const struct hr_attention attention = {
        .out = out, .q = x, .k = x, .v = x, .n_q = T, .n_k = T, .n_heads = 1};
    const struct hr_layernorm_modulate norm = {.out = out,
                                               .out_dtype = HR_DTYPE_F32,
                                               .x = x,
                                               .shift = w,
                                               .scale = w,
                                               .split = T,
                                               .n_tokens = T,
                                               .width = D};
    const struct hr_qk_norm_rope rope = {
        .out = out, .x = x, .gain = w, .cos_sin = cos_sin, .n_tokens = T, .n_heads = 1};
    struct hr_gpu *gpu = NULL;

    (void) state;
    assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
    for (int i = 0; i < 2; i++) {
        const int want = i == 0 ? -ECANCELED : 0;

        linear.n_tokens = T;
        assert_int_equal(hr_gpu_linear(gpu, &linear), want);
        linear.n_tokens = 1;
        assert_int_equal(hr_gpu_linear(gpu, &linear), want);
        assert_int_equal(hr_gpu_attention(gpu, &attention), want);
        assert_int_equal(hr_gpu_layernorm_modulate(gpu, &norm), want);
        assert_int_equal(hr_gpu_rmsnorm(gpu, out, x, w, T, D), want);
        assert_int_equal(hr_gpu_qk_norm_rope(gpu, &rope), want);
        assert_int_equal(hr_gpu_silu(gpu, out, x, T * D), want);
        assert_int_equal(hr_gpu_to_f32(gpu, out, w, HR_DTYPE_BF16, T * D), want);
        assert_int_equal(hr_gpu_upload(gpu, out, x, sizeof(x)), 0);
        atomic_store(&cancelled, 0);
    }
    hr_gpu_close(&gpu);
}

/* ---- the reference ------------------------------------------------------------------ */

static void test_reference(void **state)
{
    static const unsigned char e4m3[] = {0x00, 0x01, 0x08, 0x38, 0x7e, 0xb8};
    static const float e4m3_values[] = {0.0f, 0x1p-9f, 0x1p-6f, 1.0f, 448.0f, -1.0f};
    static const uint16_t f16[] = {0x0001, 0x0400, 0x3c00, 0x7bff, 0x7c00, 0xc000};
    static const float f16_values[] = {0x1p-24f, 0x1p-14f, 1.0f, 65504.0f, INFINITY, -2.0f};
    static const float f32[] = {1.0f, 1.00390625f, 1.01171875f, 0.0f, -3.0f, 3.4028235e38f};
    static const uint16_t bf16[] = {0x3f80, 0x3f80, 0x3f82, 0x0000, 0xc040, 0x7f80};
    const float x[] = {1.0f, 2.0f}, w[] = {3.0f, 4.0f, -5.0f, 1.0f}, bias[] = {0.5f, 1.0f};
    float out[8], y[2] = {10.0f, 20.0f};
    uint16_t rounded[6];

    (void) state;
    hr_to_f32_ref(out, e4m3, HR_DTYPE_F8_E4M3, 6);
    assert_memory_equal(out, e4m3_values, sizeof(e4m3_values));
    hr_to_f32_ref(out, f16, HR_DTYPE_F16, 6);
    assert_memory_equal(out, f16_values, sizeof(f16_values));
    hr_to_bf16_ref(rounded, f32, HR_DTYPE_F32, 6);
    assert_memory_equal(rounded, bf16, sizeof(bf16));

    const struct hr_linear p = {.x = x,
                                .x_dtype = HR_DTYPE_F32,
                                .x_stride = 2,
                                .w = w,
                                .w_dtype = HR_DTYPE_F32,
                                .bias = bias,
                                .n_tokens = 1,
                                .n_in = 2,
                                .n_out = 2,
                                .epilogue = HR_EPILOGUE_GATED_RESIDUAL,
                                .gate = bias,
                                .gate_split = 1,
                                .out = y,
                                .out_dtype = HR_DTYPE_F32,
                                .out_stride = 2};
    hr_linear_ref(&p);
    assert_true(y[0] == 10.0f + 0.5f * 11.5f && y[1] == 20.0f - 2.0f);
}

/* ---- threads ------------------------------------------------------------------------ */

static unsigned count_threads(void)
{
    DIR *dir = opendir("/proc/self/task");
    unsigned n = 0;

    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));)
        n += entry->d_name[0] != '.';
    closedir(dir);
    return n;
}

/* The matrix library starts no threads beside the device's: they would spin on the cores that those
 * and the disk's reader need. */
static void test_no_other_threads(void **state)
{
    enum { T = 256, K = 512, N = 512 };
    static float x[T * K], w[N * K], y[T * N];
    const struct hr_linear p = linear_f32(y, x, w, T, K, N);
    struct check_device device;

    (void) state;
    for (size_t i = 0; check_device_get(&device, i); i++)
        for (unsigned n_threads = 1; n_threads <= 2; n_threads++) {
            struct hr_gpu *gpu = check_device_open(&device, HR_DTYPE_F32, n_threads);
            const unsigned before = count_threads();

            assert_int_equal(hr_gpu_linear(gpu, &p), 0);
            assert_int_equal(count_threads(), before);
            check_device_close(&gpu);
        }
}

/* ---- signals ------------------------------------------------------------------------ */

static volatile sig_atomic_t n_signals, n_elsewhere;
static uintptr_t stack_begin, stack_end;

static void on_alarm(int sig)
{
    const uintptr_t here = (uintptr_t) &sig;

    n_signals++;
    n_elsewhere += here < stack_begin || here >= stack_end;
}

/* A handler runs on the caller's stack, whatever a product does with the stack pointer. */
static void test_signals(void **state)
{
    enum { T = 256, K = 512, N = 512, ROUNDS = 60 };
    const struct itimerval often = {{0, 100}, {0, 100}}, never = {{0, 0}, {0, 0}};
    static float x[T * K], w[N * K], y[T * N];
    struct sigaction sa = {.sa_handler = on_alarm, .sa_flags = SA_RESTART}, before;
    const struct hr_linear p = linear_f32(y, x, w, T, K, N);
    struct check_device device;
    pthread_attr_t attr;
    size_t stack_bytes;
    void *stack;

    (void) state;
    assert_int_equal(pthread_getattr_np(pthread_self(), &attr), 0);
    pthread_attr_getstack(&attr, &stack, &stack_bytes);
    pthread_attr_destroy(&attr);
    stack_begin = (uintptr_t) stack;
    stack_end = stack_begin + stack_bytes;
    for (size_t i = 0; check_device_get(&device, i); i++) {
        struct hr_gpu *gpu = check_device_open(&device, HR_DTYPE_F32, 2);

        assert_int_equal(sigaction(SIGALRM, &sa, &before), 0);
        setitimer(ITIMER_REAL, &often, NULL);
        for (int round = 0; round < ROUNDS; round++)
            assert_int_equal(hr_gpu_linear(gpu, &p), 0);
        setitimer(ITIMER_REAL, &never, NULL);
        sigaction(SIGALRM, &before, NULL);
        check_device_close(&gpu);
    }
    assert_true(n_signals > 0);
    assert_int_equal(n_elsewhere, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_errors),       cmocka_unit_test(test_open_auto),
        cmocka_unit_test(test_empty_environment), cmocka_unit_test(test_no_threads),
        cmocka_unit_test(test_threads_max),       cmocka_unit_test(test_arena),
        cmocka_unit_test(test_weights),           cmocka_unit_test(test_pool),
        cmocka_unit_test(test_pool_cancelled),    cmocka_unit_test(test_cancelled),
        cmocka_unit_test(test_reference),         cmocka_unit_test(test_scratch_bytes),
        cmocka_unit_test(test_signals),           cmocka_unit_test(test_no_other_threads),
    };

    setenv("CUDA_VISIBLE_DEVICES", "", 1); /* "auto" is the CPU, whatever the machine has */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
