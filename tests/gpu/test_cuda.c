/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda.c -- the CUDA device itself: which it is, memory, weights through slots. Runs on a GPU,
 * or with all of CUDA played by the host (cuda_fake.c), where missing drivers can be had as well.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/gpu/check.h"

static void check_refused(const struct hr_gpu_params *params, int code, const char *words)
{
    struct hr_gpu *gpu = NULL;
    struct hr_error err = {0};

    assert_int_equal(hr_gpu_open(&gpu, params, &err), code);
    assert_null(gpu);
    if (!strstr(err.message, words))
        fail_msg("\"%s\" does not say \"%s\"", err.message, words);
}

static void test_names(void **state)
{
    struct hr_gpu_params params = {.act = HR_DTYPE_F32};
    struct hr_gpu *gpu = NULL;

    (void) state;
    params.device = "cuda:";
    check_refused(&params, -ENODEV, "expected cuda or cuda:N");
    params.device = "cuda:1x";
    check_refused(&params, -ENODEV, "expected cuda or cuda:N");
    params.device = "cuda:99";
    check_refused(&params, -ENODEV, "numbered from 0");
    params.device = "cuda:-1";
    check_refused(&params, -ENODEV, "expected cuda or cuda:N");
    params.device = "cudas";
    check_refused(&params, -ENODEV, "is unknown");
    params.device = "cuda:0";
    assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
    assert_non_null(strstr(hr_gpu_name(gpu), "cuda:0 ("));
    hr_gpu_close(&gpu);
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* One for each thing that is taken, the arena first. */
static void check_parts(const struct hr_gpu_params *params, uint64_t bytes)
{
    struct hr_gpu_params with_weights = *params;
    struct hr_gpu_part parts[HR_GPU_PARTS_MAX];
    const uint32_t n = hr_gpu_device_parts(params, parts);

    assert_true(n > 3);
    assert_string_equal(parts[0].name, "activations");
    for (uint32_t i = 0; i < n; i++)
        bytes -= parts[i].size_bytes;
    assert_int_equal(bytes, 0);
    with_weights.arena_bytes = 1000;
    with_weights.weights_bytes = 640;
    assert_int_equal(hr_gpu_device_parts(&with_weights, parts), n + 1);
    assert_string_equal(parts[1].name, "weights that stay");
    assert_int_equal(parts[0].size_bytes + parts[1].size_bytes, 1024); /* rounded up */
    assert_int_equal(parts[1].size_bytes, 640);
}

static void test_limits(void **state)
{
    struct hr_gpu_params params = {.device = "cuda", .act = HR_DTYPE_F32, .vram_bytes = 1 << 20};
    struct hr_error err = {0};
    uint64_t bytes = 0, tight;

    (void) state;
    assert_int_equal(hr_gpu_device_bytes(&params, &bytes, &err), -ENOMEM);
    assert_non_null(strstr(err.message, "activations 0, slots of weights 32, scratch 112"));
    check_refused(&params, -ENOMEM, "the limit of device memory is 1 MiB");

    params.vram_bytes = 0;
    assert_int_equal(hr_gpu_device_bytes(&params, &bytes, NULL), 0);
    check_parts(&params, bytes);
    for (tight = bytes; tight > bytes - 96 * HR_MIB; tight -= 7 * HR_MIB) { /* slots shrink */
        uint64_t less = 0;

        params.vram_bytes = tight;
        assert_int_equal(hr_gpu_device_bytes(&params, &less, NULL), 0);
        assert_true(less <= tight && less > tight - HR_MIB);
    }
    params.vram_bytes = bytes - 97 * HR_MIB;
    assert_int_equal(hr_gpu_device_bytes(&params, &bytes, NULL), -ENOMEM);
    params = (struct hr_gpu_params){
        .device = "cuda", .act = HR_DTYPE_F32, .arena_bytes = UINT64_C(1) << 62};
    check_refused(&params, -ENOMEM,
                  "cuda: activations 4398046511104, slots of weights 128, scratch 112 MiB do not "
                  "fit in the ");
    params.weights_bytes = UINT64_C(1) << 61;
    check_refused(&params, -ENOMEM, "activations 2199023255552, weights that stay 2199023255552, ");
    check_refused(&params, -ENOMEM,
                  "; close other programs on the GPU, use a smaller picture, or --device cpu");
    params.device = "cpu";
    assert_int_equal(hr_gpu_device_bytes(&params, &bytes, NULL), 0);
    assert_int_equal(bytes, 0);
}

/* As far as the driver says anything. */
static void test_driver_sees(void **state)
{
    const struct hr_gpu_params params = {
        .device = "cuda", .act = HR_DTYPE_F32, .arena_bytes = 64 * HR_MIB};
    struct hr_gpu_memory memory;
    struct hr_gpu *gpu = NULL;
    uint64_t bytes;

    (void) state;
    assert_int_equal(hr_gpu_device_bytes(&params, &bytes, NULL), 0);
    assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
    if (hr_gpu_memory(gpu, &memory)) {
        assert_true(memory.taken_bytes >= params.arena_bytes);
        assert_true(memory.used_bytes >= memory.taken_bytes);
        printf("driver: %llu MiB, allocated %llu, predicted at most %llu\n",
               hr_mib(memory.used_bytes), hr_mib(memory.taken_bytes), hr_mib(bytes));
    }
    hr_gpu_close(&gpu);
}

static void test_arena(void **state)
{
    static const uint64_t sizes[] = {1, 63, 64, 65, 100000};
    struct hr_gpu_params params = {.device = "cuda", .act = HR_DTYPE_F32};
    static unsigned char host[100000], zeros[100000];
    unsigned char *at[HR_ARRAY_SIZE(sizes)];
    struct hr_gpu *gpu = NULL;

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(sizes); i++)
        params.arena_bytes += hr_gpu_arena_bytes(sizes[i]);
    assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
    for (size_t i = 0; i < HR_ARRAY_SIZE(sizes); i++) {
        at[i] = hr_gpu_alloc(gpu, sizes[i]);
        assert_int_equal((uintptr_t) at[i] % 64, 0);
        assert_int_equal(hr_gpu_download(gpu, host, at[i], sizes[i]), 0);
        assert_memory_equal(host, zeros, sizes[i]);
        memset(host, (int) i + 1, sizes[i]);
        assert_int_equal(hr_gpu_upload(gpu, at[i], host, sizes[i]), 0);
    }
    for (size_t i = 0; i < HR_ARRAY_SIZE(sizes); i++) { /* none overlaps another */
        memset(host, 0, sizeof(host));
        assert_int_equal(hr_gpu_download(gpu, host, at[i], sizes[i]), 0);
        assert_true(host[0] == i + 1 && host[sizes[i] - 1] == i + 1);
    }
    hr_gpu_close(&gpu);
}

/* ---- weights --------------------------------------------------------------------------------- */

/* IN_PIECES: the edges of what is registered lie inside weights. */
enum source { PAGEABLE, REGISTERED, IN_PIECES, RING };

/* As others would write into a ring on the device. Of a real one that takes its own queue. */
static void put(struct hr_gpu *gpu, float *dst, const float *src, size_t n, enum source source)
{
    if (source == RING && !getenv("HEADRACE_TEST_PLAYED"))
        assert_int_equal(hr_gpu_upload(gpu, dst, src, n * 4), 0);
    else
        memcpy(dst, src, n * 4);
}

enum { PAGE = 4096 };

/* @return where weights are put */
static float *begin_source(struct hr_gpu *gpu, float *memory, size_t n_bytes, enum source source)
{
    if (source == RING)
        return hr_gpu_ring(gpu, &(uint64_t){0});
    if (source == REGISTERED)
        assert_int_equal(hr_gpu_register_host(gpu, memory, n_bytes), 0);
    if (source != IN_PIECES)
        return memory;
    assert_int_equal(hr_gpu_register_host(gpu, memory, 2 * PAGE), 0);
    assert_int_equal(hr_gpu_register_host(gpu, memory + 2 * PAGE / 4, PAGE), 0);
    return memory + 100;
}

static void end_source(struct hr_gpu *gpu, float *memory, enum source source)
{
    if (source == REGISTERED || source == IN_PIECES)
        hr_gpu_unregister_host(gpu, memory);
    if (source == IN_PIECES)
        hr_gpu_unregister_host(gpu, memory + 2 * PAGE / 4);
}

/* Weights of random sizes through slots that hold few of them, or used where they lie in a ring on
 * the device, each overwritten as soon as the device allows, summed up on the device. */
static void check_stages(enum source source)
{
    enum { N = 1024, TURNS = 200, HOST = 6 };
    struct check_rng rng = check_seed();
    const uint64_t arena = 3 * hr_gpu_arena_bytes(N * 4);
    const size_t bytes = hr_align_up(HOST * N * 4, HR_GPU_RING_STEP);
    const struct hr_gpu_params params = {.device = "cuda",
                                         .act = HR_DTYPE_F32,
                                         .slot_bytes = 3 * N * 4,
                                         .ring_bytes = source == RING ? bytes : 0,
                                         .arena_bytes = arena};
    float *memory = aligned_alloc(HR_GPU_RING_STEP, bytes);
    static float want[N], got[N], one[N], values[N];
    struct hr_gpu_weight weights[HOST];
    struct hr_gpu *gpu = NULL;

    assert_non_null(memory);
    memset(memory, 0, bytes);
    memset(want, 0, sizeof(want));
    assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
    float *host = begin_source(gpu, memory, bytes, source);
    float *sum = hr_gpu_alloc(gpu, N * 4), *x = hr_gpu_alloc(gpu, N * 4);
    float *gate = hr_gpu_alloc(gpu, N * 4);

    for (size_t i = 0; i < N; i++)
        one[i] = 1.0f;
    assert_int_equal(hr_gpu_upload(gpu, x, one, 4), 0);
    assert_int_equal(hr_gpu_upload(gpu, gate, one, sizeof(one)), 0);
    memset(one, 0xff, sizeof(one)); /* an upload is done with its source */
    for (size_t turn = 0; turn < TURNS; turn++) {
        const size_t n = 1 + check_pick(&rng, N), at = turn % HOST;
        float *w = host + at * N;

        if (turn >= HOST)
            assert_true(hr_gpu_host_is_free(gpu, &weights[at], true));
        for (size_t i = 0; i < n; i++) { /* sums stay exact */
            values[i] = (float) check_pick(&rng, 1000);
            want[i] += values[i];
        }
        put(gpu, w, values, n, source);
        assert_int_equal(hr_gpu_stage(gpu, &weights[at], w, n * 4), 0);
        if (source == RING)
            assert_ptr_equal(weights[at].data, w);
        else
            assert_int_equal((uintptr_t) weights[at].data % 256, 0);
        const struct hr_linear add = {.x = x,
                                      .x_dtype = HR_DTYPE_F32,
                                      .x_stride = 1,
                                      .w = weights[at].data,
                                      .w_dtype = HR_DTYPE_F32,
                                      .n_tokens = 1,
                                      .n_in = 1,
                                      .n_out = n,
                                      .epilogue = HR_EPILOGUE_GATED_RESIDUAL,
                                      .gate = gate,
                                      .gate_split = 1,
                                      .out = sum,
                                      .out_dtype = HR_DTYPE_F32,
                                      .out_stride = N};
        assert_int_equal(hr_gpu_linear(gpu, &add), 0);
        hr_gpu_unstage(gpu, &weights[at]);
        hr_gpu_host_is_free(gpu, &weights[at], false);
    }
    assert_int_equal(hr_gpu_download(gpu, got, sum, sizeof(got)), 0);
    assert_memory_equal(got, want, sizeof(got));
    end_source(gpu, memory, source);
    hr_gpu_close(&gpu);
    free(memory);
}

static void test_stages(void **state)
{
    (void) state;
    check_stages(REGISTERED);
    check_stages(IN_PIECES);
    check_stages(PAGEABLE);
    check_stages(RING);
}

/* What cannot fit is refused, and the device works on. */
static void test_no_room(void **state)
{
    const struct hr_gpu_params params = {
        .device = "cuda", .act = HR_DTYPE_F32, .slot_bytes = 4096, .arena_bytes = 256};
    static unsigned char host[5000];
    struct hr_gpu_weight a, b, c;
    struct hr_gpu *gpu = NULL;

    (void) state;
    assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
    hr_log_set(NULL, NULL, HR_LOG_ERROR);
    assert_int_equal(hr_gpu_stage(gpu, &a, host, 5000), -ENOMEM);
    assert_int_equal(hr_gpu_stage(gpu, &a, host, 4000), 0);
    assert_int_equal(hr_gpu_stage(gpu, &b, host, 100), -ENOMEM); /* a is in use */
    hr_gpu_unstage(gpu, &a);
    assert_int_equal(hr_gpu_stage(gpu, &b, host, 100), 0);
    assert_int_equal(hr_gpu_stage(gpu, &c, host, 100), 0);
    hr_gpu_unstage(gpu, &c);
    hr_gpu_unstage(gpu, &b);
    assert_true(hr_gpu_host_is_free(gpu, &c, true));
    assert_int_equal(hr_gpu_sync(gpu), 0);
    hr_log_set(NULL, NULL, HR_LOG_WARN);
    hr_gpu_close(&gpu);
}

static void test_cancelled(void **state)
{
    atomic_int cancelled = 1;
    const struct hr_gpu_params params = {
        .device = "cuda", .act = HR_DTYPE_F32, .arena_bytes = 4096, .cancelled = &cancelled};
    struct hr_gpu *gpu = NULL;

    (void) state;
    assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
    float *x = hr_gpu_alloc(gpu, 2048);
    struct hr_linear linear = {.x = x,
                               .x_dtype = HR_DTYPE_F32,
                               .x_stride = 4,
                               .w = x,
                               .w_dtype = HR_DTYPE_F32,
                               .n_in = 4,
                               .n_out = 4,
                               .out = x + 256,
                               .out_dtype = HR_DTYPE_F32,
                               .out_stride = 4};

    for (int i = 0; i < 2; i++) {
        const int want = i == 0 ? -ECANCELED : 0;

        for (linear.n_tokens = 1; linear.n_tokens <= 9; linear.n_tokens += 8)
            assert_int_equal(hr_gpu_linear(gpu, &linear), want);
        assert_int_equal(hr_gpu_silu(gpu, x, x, 4), want);
        assert_int_equal(hr_gpu_rmsnorm(gpu, x, x, x, 1, 4), want);
        assert_int_equal(hr_gpu_to_f32(gpu, x + 256, x, HR_DTYPE_BF16, 4), want);
        assert_int_equal(hr_gpu_sync(gpu), 0);
        atomic_store(&cancelled, 0);
    }
    hr_gpu_close(&gpu);
}

/* A row that no buffer holds is refused. */
static void test_too_wide(void **state)
{
    const struct hr_gpu_params params = {
        .device = "cuda", .act = HR_DTYPE_F32, .arena_bytes = 1 << 16};
    struct hr_gpu *gpu = NULL;

    (void) state;
    assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
    float *x = hr_gpu_alloc(gpu, 1 << 16);
    const struct hr_linear linear = {.x = x,
                                     .x_dtype = HR_DTYPE_F32,
                                     .x_stride = 9 << 20,
                                     .w = x,
                                     .w_dtype = HR_DTYPE_F32,
                                     .n_tokens = 9,
                                     .n_in = 9 << 20,
                                     .n_out = 4,
                                     .out = x + 1024,
                                     .out_dtype = HR_DTYPE_F32,
                                     .out_stride = 4};

    assert_int_equal(hr_gpu_linear(gpu, &linear), -EINVAL);
    hr_gpu_close(&gpu);
}

/* ---- machines without ------------------------------------------------------------------------ */

static void on_log(void *user, enum hr_log_level level, const char *message)
{
    if (level == HR_LOG_INFO)
        snprintf(user, 400, "%s", message);
}

static void test_no_device(void **state)
{
    static const struct {
        const char *driver, *words;
    } cases[] = {{"none", "no NVIDIA driver is installed; install one, or use --device cpu"},
                 {"old", "it has CUDA 11.4, "},
                 {"empty", "the driver sees no GPU; see nvidia-smi and CUDA_VISIBLE_DEVICES"},
                 {"7.5", "does not compute in bf16; use --precision f32"}};
    char line[400];

    (void) state;
    if (!getenv("HEADRACE_TEST_PLAYED"))
        skip();
    unsetenv("HEADRACE_DEVICE");
    for (size_t i = 0; i < HR_ARRAY_SIZE(cases); i++) {
        struct hr_gpu_params params = {.device = "cuda:0", .act = HR_DTYPE_BF16};
        struct hr_gpu *gpu = NULL;

        setenv("HEADRACE_TEST_DRIVER", cases[i].driver, 1);
        check_refused(&params, -ENODEV, cases[i].words);
        params.device = "cuda:x"; /* a slip of the pen, whatever the machine has */
        check_refused(&params, -ENODEV, "device \"cuda:x\": expected cuda or cuda:N");
        params.device = "auto"; /* the CPU, and one line says why */
        hr_log_set(on_log, line, HR_LOG_INFO);
        assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
        hr_log_set(NULL, NULL, HR_LOG_WARN);
        assert_non_null(strstr(hr_gpu_name(gpu), "cpu ("));
        assert_non_null(strstr(line, cases[i].words));
        hr_gpu_close(&gpu);
    }
    unsetenv("HEADRACE_TEST_DRIVER");
    struct hr_gpu_params params = {.act = HR_DTYPE_BF16};
    struct hr_gpu *gpu = NULL;

    for (int i = 0; i < 2; i++) { /* with a GPU it is the choice, an empty variable none */
        assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
        assert_non_null(strstr(hr_gpu_name(gpu), "cuda:0 ("));
        hr_gpu_close(&gpu);
        setenv("HEADRACE_DEVICE", "", 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),       cmocka_unit_test(test_limits),
        cmocka_unit_test(test_driver_sees), cmocka_unit_test(test_arena),
        cmocka_unit_test(test_stages),      cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_cancelled),   cmocka_unit_test(test_too_wide),
        cmocka_unit_test(test_no_device),
    };

    return check_missing() ? 77 : cmocka_run_group_tests(tests, NULL, NULL);
}
