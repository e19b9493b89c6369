/* SPDX-License-Identifier: Apache-2.0 */
/* test_rows.c -- the operations that work row by row, of every instruction set, against their
 * specification; and all values of the small dtypes. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/kernels.h"
#include "tests/gpu/check.h"

/* Calls fn for each instruction set; products of bf16 have no part here. */
static void for_each_isa(void (*fn)(struct hr_gpu *gpu, const char *isa, enum hr_dtype act,
                                    struct check_rng *rng))
{
    struct check_rng rng = check_seed();
    struct check_device device;

    for (size_t i = 0; check_device_get(&device, i); i++) {
        const enum hr_dtype act = device.bf16 ? HR_DTYPE_BF16 : HR_DTYPE_F32;
        struct hr_gpu *gpu = check_device_open(&device, act, 2);

        fn(gpu, device.isa, act, &rng);
        check_device_close(&gpu);
    }
}

static void check_rows(const char *what, const char *isa, const void *got, const void *want,
                       enum hr_dtype dtype, size_t n_rows, size_t width, double tol)
{
    char text[128];

    snprintf(text, sizeof(text), "%s [%zu,%zu] %s (%s)", what, n_rows, width, hr_dtype_name(dtype),
             isa);
    check_close(text,
                &(struct check_matrix){.got = got,
                                       .want = want,
                                       .dtype = dtype,
                                       .n_rows = n_rows,
                                       .width = width,
                                       .stride = width},
                tol);
}

/* Around vectors, unrolled steps, blocks of sums, and the real width. */
static const size_t widths[] = {1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 513, 1025, 3072, 3073};

/* ---- layer norm --------------------------------------------------------------------- */

static void check_layernorm(struct hr_gpu *gpu, const char *isa, struct check_rng *rng,
                            enum hr_dtype out_dtype, size_t n_tokens, size_t width, float offset)
{
    const size_t n = n_tokens * width, stride = width + check_pick(rng, 2) * check_pick(rng, 9);
    const size_t off = check_pick(rng, 2); /* not aligned */
    const size_t n_bytes = n * check_dtype_bytes(out_dtype);
    float *x = check_alloc(n * sizeof(float), 4 * off);
    float *shift = check_alloc((stride + width) * sizeof(float), 4 * off);
    float *scale = check_alloc((stride + width) * sizeof(float), 4 * off);
    void *got = check_alloc(n_bytes, off * check_dtype_bytes(out_dtype)),
         *want = check_alloc(n_bytes, 0);
    struct hr_layernorm_modulate p = {.x = x,
                                      .out = want,
                                      .out_dtype = out_dtype,
                                      .shift = shift,
                                      .scale = scale,
                                      .split = check_pick(rng, n_tokens + 2),
                                      .stride = stride,
                                      .n_tokens = n_tokens,
                                      .width = width};

    check_fill_f32(rng, x, n, offset - 1.0f, offset + 1.0f);
    check_fill_f32(rng, shift, stride + width, -1.0f, 1.0f);
    check_fill_f32(rng, scale, stride + width, -0.5f, 0.5f);
    hr_layernorm_modulate_ref(&p);
    p.out = got;
    check_done(gpu, hr_gpu_layernorm_modulate(gpu, &p));
    check_rows("layernorm_modulate", isa, got, want, out_dtype, n_tokens, width, 2e-6);
    check_free(x);
    check_free(shift);
    check_free(scale);
    check_free(got);
    check_free(want);
}

static void layernorm_isa(struct hr_gpu *gpu, const char *isa, enum hr_dtype act,
                          struct check_rng *rng)
{
    for (size_t i = 0; i < HR_ARRAY_SIZE(widths); i++) {
        const size_t n_tokens = 1 + check_pick(rng, 9);

        check_layernorm(gpu, isa, rng, act, n_tokens, widths[i], 0.0f);
        check_layernorm(gpu, isa, rng, HR_DTYPE_F32, n_tokens, widths[i], 0.0f);
        if (widths[i] >= 15) /* the mean is ten standard deviations away from 0 */
            check_layernorm(gpu, isa, rng, HR_DTYPE_F32, n_tokens, widths[i], 5.8f);
    }
}

/* The same bits wherever the arrays lie. */
static void layernorm_moved_isa(struct hr_gpu *gpu, const char *isa, enum hr_dtype act,
                                struct check_rng *rng)
{
    enum { T = 2, WIDTH = 3072 };
    float *x = check_alloc(T * WIDTH * 4, 0), *mods = check_alloc(2 * WIDTH * 4, 0);
    void *first = check_alloc(T * WIDTH * 4, 0);
    struct hr_layernorm_modulate p = {.x = x,
                                      .shift = mods,
                                      .scale = mods + WIDTH,
                                      .out = first,
                                      .out_dtype = act,
                                      .split = T,
                                      .n_tokens = T,
                                      .width = WIDTH};

    check_fill_f32(rng, x, T * WIDTH, -1.0f, 1.0f);
    check_fill_f32(rng, mods, 2 * WIDTH, -0.5f, 0.5f);
    check_done(gpu, hr_gpu_layernorm_modulate(gpu, &p));
    for (size_t i = 0; i < 3; i++) {
        float *moved = check_alloc(T * WIDTH * 4, i == 0 ? 4 : 0);
        float *moved_mods = check_alloc(2 * WIDTH * 4, i == 1 ? 4 : 0);
        void *out = check_alloc(T * WIDTH * 4, i == 2 ? check_dtype_bytes(act) : 0);

        memcpy(moved, x, T * WIDTH * 4);
        memcpy(moved_mods, mods, 2 * WIDTH * 4);
        p.x = moved;
        p.shift = moved_mods;
        p.scale = moved_mods + WIDTH;
        p.out = out;
        check_done(gpu, hr_gpu_layernorm_modulate(gpu, &p));
        if (memcmp(out, first, T * WIDTH * check_dtype_bytes(act)) != 0)
            fail_msg("layernorm_modulate on %s: other bits at other addresses", isa);
        check_free(moved);
        check_free(moved_mods);
        check_free(out);
    }
    check_free(x);
    check_free(mods);
    check_free(first);
}

static void test_layernorm_modulate(void **state)
{
    (void) state;
    for_each_isa(layernorm_isa);
    for_each_isa(layernorm_moved_isa);
}

/* Rows of one large value: what rounding leaves of their variance is not below 0. */
static void layernorm_constant_isa(struct hr_gpu *gpu, const char *isa, enum hr_dtype act,
                                   struct check_rng *rng)
{
    enum { WIDTH = 1000003 };
    float *x = check_alloc(WIDTH * sizeof(float), 4), *out = check_alloc(WIDTH * sizeof(float), 4);
    float *zeros = check_alloc(WIDTH * sizeof(float), 4);

    (void) act;
    memset(zeros, 0, WIDTH * sizeof(float));
    for (int round = 0; round < 8; round++) {
        const float value = check_float(rng, 1e9f, 1e12f);
        const struct hr_layernorm_modulate p = {.x = x,
                                                .out = out,
                                                .out_dtype = HR_DTYPE_F32,
                                                .shift = zeros,
                                                .scale = zeros,
                                                .split = 1,
                                                .n_tokens = 1,
                                                .width = WIDTH};

        check_fill_f32(rng, x, WIDTH, value, value);
        check_done(gpu, hr_gpu_layernorm_modulate(gpu, &p));
        if (!hr_all_finite_ref(out, WIDTH))
            fail_msg("%s: a row of %.9g is not finite", isa, (double) value);
    }
    check_free(x);
    check_free(out);
    check_free(zeros);
}

static void test_layernorm_constant(void **state)
{
    (void) state;
    for_each_isa(layernorm_constant_isa);
}

/* ---- RMS norm, with and without rotary embedding ------------------------------------ */

static void rmsnorm_isa(struct hr_gpu *gpu, const char *isa, enum hr_dtype act,
                        struct check_rng *rng)
{
    (void) act;
    for (size_t i = 0; i < HR_ARRAY_SIZE(widths); i++) {
        const size_t n_tokens = 1 + check_pick(rng, 9), n = n_tokens * widths[i];
        const float range = i % 2 ? 30.0f : 1.0f;
        float *x = check_alloc(n * sizeof(float), 4), *got = check_alloc(n * sizeof(float), 4);
        float *gain = check_alloc(widths[i] * sizeof(float), 4);
        float *want = check_alloc(n * sizeof(float), 4);

        check_fill_f32(rng, x, n, -range, range);
        check_fill_f32(rng, gain, widths[i], 0.5f, 1.5f);
        hr_rmsnorm_ref(want, x, gain, n_tokens, widths[i]);
        check_done(gpu, hr_gpu_rmsnorm(gpu, got, x, gain, n_tokens, widths[i]));
        check_rows("rmsnorm", isa, got, want, HR_DTYPE_F32, n_tokens, widths[i], 1e-6);
        check_done(gpu, hr_gpu_rmsnorm(gpu, x, x, gain, n_tokens, widths[i]));
        assert_memory_equal(x, got, n * sizeof(float)); /* in place */
        check_free(x);
        check_free(got);
        check_free(gain);
        check_free(want);
    }
}

static void test_rmsnorm(void **state)
{
    (void) state;
    for_each_isa(rmsnorm_isa);
}

static void check_rope(struct hr_gpu *gpu, const char *isa, enum hr_dtype act,
                       struct check_rng *rng, size_t n_tokens, size_t n_heads)
{
    const size_t width = n_heads * HR_HEAD_DIM, n = n_tokens * width;
    const size_t n_bytes = n * check_dtype_bytes(act), off = check_pick(rng, 2);
    float *x = check_alloc(n * sizeof(float), 4 * off);
    float *gain = check_alloc(HR_HEAD_DIM * sizeof(float), 4 * off);
    float *cos_sin = check_alloc(n_tokens * HR_HEAD_DIM * sizeof(float), 4 * off);
    void *got = check_alloc(n_bytes, off * check_dtype_bytes(act)), *want = check_alloc(n_bytes, 0);
    struct hr_qk_norm_rope p = {.out = want,
                                .x = x,
                                .gain = gain,
                                .cos_sin = cos_sin,
                                .n_tokens = n_tokens,
                                .n_heads = n_heads};

    check_fill_f32(rng, x, n, -3.0f, 3.0f);
    check_fill_f32(rng, gain, HR_HEAD_DIM, 0.5f, 1.5f);
    for (size_t i = 0; i < n_tokens * HR_HEAD_DIM; i += 2) {
        const float angle = check_float(rng, -50.0f, 50.0f);

        cos_sin[i] = cosf(angle);
        cos_sin[i + 1] = sinf(angle);
    }
    hr_qk_norm_rope_ref(&p, act);
    p.out = got;
    check_done(gpu, hr_gpu_qk_norm_rope(gpu, &p));
    check_rows("qk_norm_rope", isa, got, want, act, n_tokens, width, 1e-6);
    check_free(x);
    check_free(gain);
    check_free(cos_sin);
    check_free(got);
    check_free(want);
}

static void rope_isa(struct hr_gpu *gpu, const char *isa, enum hr_dtype act, struct check_rng *rng)
{
    check_rope(gpu, isa, act, rng, 1, 1);
    check_rope(gpu, isa, act, rng, 7, 3);
    check_rope(gpu, isa, act, rng, 5, 2);
    check_rope(gpu, isa, act, rng, 65, 24);
}

static void test_qk_norm_rope(void **state)
{
    (void) state;
    for_each_isa(rope_isa);
}

/* ---- SiLU and the activations of epilogues: relative error -------------------------- */

/* A linear layer of one input that is 1 makes out[n] = activation(w[n]). */
static void activation_isa(struct hr_gpu *gpu, const char *isa, enum hr_dtype act,
                           struct check_rng *rng)
{
    enum { N = 20001 };
    float *w = check_alloc(N * sizeof(float), 4), *got = check_alloc(N * sizeof(float), 4);
    float *want = check_alloc(N * sizeof(float), 4);
    float *one = check_alloc(sizeof(*one), 4);

    (void) act;
    *one = 1.0f;
    for (size_t i = 0; i < N; i++) /* most within what an exp can tell apart, some far outside */
        w[i] = i % 100 ? check_float(rng, -10.0f, 10.0f) : check_float(rng, -2000.0f, 2000.0f);
    w[0] = 0.0f;
    for (int kind = HR_EPILOGUE_GELU_TANH; kind <= HR_EPILOGUE_SILU; kind++) {
        struct hr_linear p = {.x = one,
                              .x_dtype = HR_DTYPE_F32,
                              .x_stride = 1,
                              .w = w,
                              .w_dtype = HR_DTYPE_F32,
                              .n_tokens = 1,
                              .n_in = 1,
                              .n_out = N,
                              .epilogue = (enum hr_epilogue) kind,
                              .out = want,
                              .out_dtype = HR_DTYPE_F32,
                              .out_stride = N};

        hr_linear_ref(&p);
        p.out = got;
        check_done(gpu, hr_gpu_linear(gpu, &p));
        for (size_t i = 0; i < N; i++) {
            /* Tiny results: there the reference's 1 + tanh has no digits left. Elsewhere the
             * argument of exp carries a rounding error in proportion to itself. */
            const float y = fminf(fabsf(w[i]), 10.0f), z = 1.6f * (y + 0.045f * y * y * y);
            const float tol = 3e-7f * (1.0f + z) * fabsf(want[i]) + 1e-14f;

            if (!(fabsf(got[i] - want[i]) <= tol))
                fail_msg("%s: activation %d of %.9g is %.9g, not %.9g", isa, kind, (double) w[i],
                         (double) got[i], (double) want[i]);
        }
    }
    check_free(one);
    check_free(w);
    check_free(got);
    check_free(want);
}

static void test_activations(void **state)
{
    (void) state;
    for_each_isa(activation_isa);
}

static void silu_isa(struct hr_gpu *gpu, const char *isa, enum hr_dtype act, struct check_rng *rng)
{
    (void) act;
    for (size_t i = 0; i < HR_ARRAY_SIZE(widths); i++) {
        const size_t n = widths[i] * 7;
        float *x = check_alloc(n * sizeof(float), 4), *got = check_alloc(n * sizeof(float), 4);
        float *want = check_alloc(n * sizeof(float), 4);

        check_fill_f32(rng, x, n, -20.0f, 20.0f);
        hr_silu_ref(want, x, n);
        check_done(gpu, hr_gpu_silu(gpu, got, x, n));
        check_rows("silu", isa, got, want, HR_DTYPE_F32, 1, n, 3e-7);
        check_done(gpu, hr_gpu_silu(gpu, x, x, n));
        assert_memory_equal(x, got, n * sizeof(float)); /* in place */
        check_free(x);
        check_free(got);
        check_free(want);
    }
}

/* One bad value anywhere among n is seen; without one the flag stays as it is. */
static void finite_isa(struct hr_gpu *gpu, const char *isa, enum hr_dtype act,
                       struct check_rng *rng)
{
    static const uint32_t bad[] = {0x7f800000u, 0xff800000u, 0x7f800001u, 0xffffffffu};

    (void) act;
    for (int round = 0; round < 200; round++) {
        const size_t n = 1 + check_pick(rng, round % 10 ? 150 : 70000);
        float *x = check_alloc(n * sizeof(*x), 4 * check_pick(rng, 16));
        uint32_t *flag = check_alloc(sizeof(*flag), 4);

        *flag = 0;
        check_fill_f32(rng, x, n, -1.7e38f, 1.7e38f);
        x[check_pick(rng, n)] = round % 2 ? FLT_MAX : -1e-45f;
        check_done(gpu, hr_gpu_flag_nonfinite(gpu, flag, x, n));
        if (*flag || !hr_all_finite_ref(x, n))
            fail_msg("%s: %zu finite values are not", isa, n);
        memcpy(&x[check_pick(rng, n)], &bad[round % 4], sizeof(*x));
        check_done(gpu, hr_gpu_flag_nonfinite(gpu, flag, x, n));
        if (*flag != 1 || hr_all_finite_ref(x, n))
            fail_msg("%s: a bad value among %zu was not seen", isa, n);
        check_free(flag);
        check_free(x);
    }
}

static void test_finite(void **state)
{
    (void) state;
    for_each_isa(finite_isa);
}

static void test_silu(void **state)
{
    (void) state;
    for_each_isa(silu_isa);
}

/* ---- softmax ------------------------------------------------------------------------ */

/* A score that is NaN, whatever its payload, is seen in its probability and in the sum; the rows
 * beside it are as they are alone. */
static void test_softmax_nan(void **state)
{
    static const uint32_t payloads[] = {0x7fffffffu, 0xffffffffu, 0x7fc00001u, 0x7f800001u};
    enum { ROWS = 2, KEYS = 37 };

    (void) state;
    for (size_t i = 0; hr_kernels_name(i); i++)
        for (size_t at = 0; at < KEYS * HR_ARRAY_SIZE(payloads); at++) {
            float s[ROWS * KEYS] = {0}, p[ROWS * KEYS], m[ROWS] = {-INFINITY, -INFINITY};
            float sum[ROWS] = {0};
            const size_t key = at % KEYS;

            memcpy(&s[key], &payloads[at / KEYS], sizeof(s[0]));
            hr_kernels_find(hr_kernels_name(i))
                ->softmax(&(struct hr_softmax){.s = s,
                                               .p = p,
                                               .p_dtype = HR_DTYPE_F32,
                                               .m = m,
                                               .sum = sum,
                                               .n_rows = ROWS,
                                               .n_keys = KEYS,
                                               .first = true});
            if (!isnan(p[key]) || !isnan(sum[0]) || sum[1] != KEYS)
                fail_msg("%s: %08x at %zu: probability %g, sums %g and %g", hr_kernels_name(i),
                         payloads[at / KEYS], key, (double) p[key], (double) sum[0],
                         (double) sum[1]);
        }
}

/* ---- conversions -------------------------------------------------------------------- */

static bool same_f32(float a, float b)
{
    return memcmp(&a, &b, sizeof(a)) == 0 || (isnan(a) && isnan(b));
}

static bool same_bf16(uint16_t a, uint16_t b)
{
    return a == b || ((a & 0x7fff) > 0x7f80 && (b & 0x7fff) > 0x7f80);
}

/* All 65536 patterns of two bytes, at an odd address: all values of the small dtypes. */
static void convert_isa(struct hr_gpu *gpu, const char *isa, enum hr_dtype act,
                        struct check_rng *rng)
{
    static const enum hr_dtype dtypes[] = {HR_DTYPE_F16, HR_DTYPE_BF16, HR_DTYPE_F8_E4M3,
                                           HR_DTYPE_F8_E5M2};
    enum { N = 65536 };
    unsigned char *src = check_alloc(N * 2, 1);
    float *got = check_alloc(N * sizeof(float), 4), *want = check_alloc(N * sizeof(float), 4);

    (void) act;
    (void) rng;
    for (uint32_t i = 0; i < N; i++)
        memcpy(src + i * 2, &i, 2);
    for (size_t d = 0; d < HR_ARRAY_SIZE(dtypes); d++) {
        hr_to_f32_ref(want, src, dtypes[d], N);
        check_done(gpu, hr_gpu_to_f32(gpu, got, src, dtypes[d], N));
        for (size_t i = 0; i < N; i++)
            if (!same_f32(got[i], want[i]))
                fail_msg("%s: %s element %zu is %a, not %a", isa, hr_dtype_name(dtypes[d]), i,
                         (double) got[i], (double) want[i]);
    }
    check_free(src);
    check_free(got);
    check_free(want);
}

/* Ties, carries into the exponent, overflow, subnormals, infinities and NaN; then anything. */
static void bf16_isa(struct hr_gpu *gpu, const char *isa, enum hr_dtype act, struct check_rng *rng)
{
    static const uint32_t upper[] = {0x0000, 0x0001, 0x007f, 0x0080, 0x3f80, 0x3f81,
                                     0x3fff, 0x7f7f, 0x7f80, 0x7f81, 0x7fff};
    static const uint32_t lower[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    enum { N = 4099 };
    const struct hr_kernels *kernels = hr_kernels_find(isa);

    if (!kernels)
        return; /* the CPU's own */
    uint32_t *src = check_alloc(N * 4, 4);
    uint16_t *got = check_alloc(N * 2, 2), *want = check_alloc(N * 2, 2);
    size_t n = 0;

    (void) gpu;
    (void) act;
    for (size_t i = 0; i < HR_ARRAY_SIZE(upper); i++)
        for (size_t j = 0; j < 2 * HR_ARRAY_SIZE(lower); j++)
            src[n++] = (j % 2 ? 0x80000000 : 0) | upper[i] << 16 | lower[j / 2];
    while (n < N)
        src[n++] = (uint32_t) check_next(rng);
    hr_to_bf16_ref(want, src, HR_DTYPE_F32, N);
    kernels->to_bf16(got, src, HR_DTYPE_F32, N);
    for (size_t i = 0; i < N; i++)
        if (!same_bf16(got[i], want[i]))
            fail_msg("%s: %08x rounds to %04x, not %04x", isa, src[i], got[i], want[i]);
    check_free(src);
    check_free(got);
    check_free(want);
}

/* Every value of fp8 and f16, in whole vectors and at their ends, at any address. */
static void narrow_isa(struct hr_gpu *gpu, const char *isa, enum hr_dtype act,
                       struct check_rng *rng)
{
    static const enum hr_dtype dtypes[] = {HR_DTYPE_F8_E4M3, HR_DTYPE_F8_E5M2, HR_DTYPE_F16};
    const struct hr_kernels *kernels = hr_kernels_find(isa);

    if (!kernels)
        return; /* the CPU's own */
    (void) gpu;
    (void) act;
    for (size_t d = 0; d < HR_ARRAY_SIZE(dtypes); d++) {
        const size_t size = check_dtype_bytes(dtypes[d]);
        const size_t n = (size == 1 ? 256 : 65536) + check_pick(rng, 300);
        unsigned char *src = check_alloc(n * size, check_pick(rng, 64));
        uint16_t *got = check_alloc(n * 2, 2), *want = check_alloc(n * 2, 2);

        for (size_t i = 0; i < n; i++) {
            const uint16_t bits = (uint16_t) i;

            memcpy(src + i * size, &bits, size);
        }
        hr_to_bf16_ref(want, src, dtypes[d], n);
        kernels->to_bf16(got, src, dtypes[d], n);
        for (size_t i = 0; i < n; i++)
            if (!same_bf16(got[i], want[i]))
                fail_msg("%s: %s %04zx is %04x, not %04x", isa, hr_dtype_name(dtypes[d]), i, got[i],
                         want[i]);
        check_free(src);
        check_free(got);
        check_free(want);
    }
}

/* Any number of bytes at any address, and nothing beside them. */
static void copy_isa(struct hr_gpu *gpu, const char *isa, enum hr_dtype act, struct check_rng *rng)
{
    static const size_t sizes[] = {1, 15, 16, 17, 255, 4097, 100003};

    (void) isa;
    (void) act;
    for (size_t i = 0; i < HR_ARRAY_SIZE(sizes); i++) {
        unsigned char *src = check_alloc(sizes[i], 1), *dst = check_alloc(sizes[i], 1);

        for (size_t k = 0; k < sizes[i]; k++)
            src[k] = (unsigned char) check_next(rng);
        check_done(gpu, hr_gpu_copy(gpu, dst, src, sizes[i]));
        assert_memory_equal(dst, src, sizes[i]);
        check_free(src);
        check_free(dst);
    }
}

static void test_copy(void **state)
{
    (void) state;
    for_each_isa(copy_isa);
}

static void test_to_f32(void **state)
{
    (void) state;
    for_each_isa(convert_isa);
}

static void test_to_bf16(void **state)
{
    (void) state;
    for_each_isa(bf16_isa);
    for_each_isa(narrow_isa);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layernorm_modulate),
        cmocka_unit_test(test_layernorm_constant),
        cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_qk_norm_rope),
        cmocka_unit_test(test_activations),
        cmocka_unit_test(test_silu),
        cmocka_unit_test(test_finite),
        cmocka_unit_test(test_copy),
        cmocka_unit_test(test_softmax_nan),
        cmocka_unit_test(test_to_f32),
        cmocka_unit_test(test_to_bf16),
    };

    return check_missing() ? 77 : cmocka_run_group_tests(tests, NULL, NULL);
}
