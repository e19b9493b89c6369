/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda_math.c -- the CUDA kernels' arithmetic on single values and their indexing, compiled
 * for the host, against the specification. Needs neither CUDA nor a GPU.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/cuda_math.h"
#include "gpu/kernels.h"
#include "tests/gpu/check.h"

static const struct {
    enum hr_dtype dtype;
    int cuda;
} dtypes[] = {{HR_DTYPE_F32, HR_CUDA_F32},
              {HR_DTYPE_F16, HR_CUDA_F16},
              {HR_DTYPE_BF16, HR_CUDA_BF16},
              {HR_DTYPE_F8_E4M3, HR_CUDA_E4M3},
              {HR_DTYPE_F8_E5M2, HR_CUDA_E5M2}};

static bool same(float a, float b)
{
    return memcmp(&a, &b, sizeof(a)) == 0 || (isnan(a) && isnan(b));
}

/* Every value of one and two bytes, and odd ones of four. */
static void test_decode(void **state)
{
    struct check_rng rng = check_seed();

    (void) state;
    for (size_t d = 0; d < HR_ARRAY_SIZE(dtypes); d++) {
        const struct hr_cuda_format f = hr_cuda_format_of(dtypes[d].cuda);

        assert_int_equal(f.size, check_dtype_bytes(dtypes[d].dtype));
        for (uint32_t i = 0; i < 65536; i++) {
            uint32_t bits = f.size == 4 ? (uint32_t) check_next(&rng) ^ i << 16 : i;
            float want;

            if (f.size == 1)
                bits &= 0xff;
            hr_to_f32_ref(&want, &bits, dtypes[d].dtype, 1);
            if (!same(hr_cuda_decode(bits, f), want))
                fail_msg("%s %x: %a, not %a", hr_dtype_name(dtypes[d].dtype), bits,
                         (double) hr_cuda_decode(bits, f), (double) want);
        }
    }
}

static void test_to_bf16(void **state)
{
    static const uint32_t upper[] = {0x0000, 0x0001, 0x007f, 0x0080, 0x3f80, 0x3f81,
                                     0x3fff, 0x7f7f, 0x7f80, 0x7f81, 0x7fff};
    static const uint32_t lower[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    struct check_rng rng = check_seed();

    (void) state;
    for (uint32_t i = 0; i < 200000; i++) {
        uint32_t bits = (uint32_t) check_next(&rng);
        uint16_t want;

        if (i < 2 * 66)
            bits = (i % 2 ? 0x80000000u : 0) | upper[i / 12] << 16 | lower[i / 2 % 6];
        hr_to_bf16_ref(&want, &bits, HR_DTYPE_F32, 1);
        const uint16_t got = hr_cuda_to_bf16(hr_cuda_float(bits));

        if (got != want && !((got & 0x7fff) > 0x7f80 && (want & 0x7fff) > 0x7f80))
            fail_msg("%08x rounds to %04x, not %04x", bits, got, want);
    }
}

/* A group is the same values at every address and of every length, and reads nothing beyond. */
static void test_load_group(void **state)
{
    struct check_rng rng = check_seed();

    (void) state;
    for (size_t d = 0; d < HR_ARRAY_SIZE(dtypes); d++) {
        const struct hr_cuda_format f = hr_cuda_format_of(dtypes[d].cuda);

        for (size_t i = 0; i < 9 * 64; i++) {
            const size_t n = i / 64, n_bytes = n * f.size;
            unsigned char *src = check_alloc(n_bytes + 1, i % 64);
            float got[HR_CUDA_GROUP], want[HR_CUDA_GROUP] = {0};

            check_fill(&rng, src, dtypes[d].dtype, n);
            hr_to_f32_ref(want, src, dtypes[d].dtype, n);
            hr_cuda_load_group(got, src, f, n);
            for (size_t j = 0; j < HR_CUDA_GROUP; j++)
                assert_true(same(got[j], want[j]));
            check_free(src);
        }
    }
}

/* Relative error, as tests/gpu/test_rows.c allows it to devices. */
static void test_activations(void **state)
{
    static float (*const fns[])(float) = {NULL, hr_cuda_act_gelu_tanh, hr_cuda_act_quick_gelu,
                                          hr_cuda_act_silu};
    struct check_rng rng = check_seed();

    (void) state;
    for (int kind = HR_EPILOGUE_GELU_TANH; kind <= HR_EPILOGUE_SILU; kind++) {
        for (int i = 0; i < 20000; i++) {
            const float range = i % 100 ? 10.0f : 2000.0f;
            const float one = 1.0f, x = check_float(&rng, -range, range);
            float want;
            const struct hr_linear p = {.x = &one,
                                        .x_dtype = HR_DTYPE_F32,
                                        .x_stride = 1,
                                        .w = &x,
                                        .w_dtype = HR_DTYPE_F32,
                                        .n_tokens = 1,
                                        .n_in = 1,
                                        .n_out = 1,
                                        .epilogue = (enum hr_epilogue) kind,
                                        .out = &want,
                                        .out_dtype = HR_DTYPE_F32,
                                        .out_stride = 1};
            const float y = fminf(fabsf(x), 10.0f), z = 1.6f * (y + 0.045f * y * y * y);

            hr_linear_ref(&p);
            const float tol = 3e-7f * (1.0f + z) * fabsf(want) + 1e-14f;

            if (!(fabsf(fns[kind](x) - want) <= tol))
                fail_msg("activation %d of %.9g: %.9g, not %.9g", kind, (double) x,
                         (double) fns[kind](x), (double) want);
        }
    }
}

/* ---- epilogue -------------------------------------------------------------------------------- */

/* A layer of one input, cut into parts as cuda_linear.c does: sums[t,n] = x[t] w[n]. */
static void run_parts(const struct hr_linear *p, struct check_rng *rng)
{
    const float *x = p->x, *w = p->w;

    for (size_t row = 0, n_rows; row < p->n_out; row += n_rows) {
        n_rows = 1 + check_pick(rng, p->n_out - row);
        for (size_t t = 0, n; t < p->n_tokens; t += n) {
            const size_t stride = n_rows + check_pick(rng, 3);

            n = 1 + check_pick(rng, p->n_tokens - t);
            float *sums = check_alloc(n * stride * sizeof(float), 0);
            const struct hr_cuda_epilogue e = {.sums = sums,
                                               .sums_stride = stride,
                                               .t_begin = t,
                                               .n_begin = row,
                                               .n_tokens = n,
                                               .n_out = n_rows,
                                               .w_scale = p->w_scale,
                                               .w_scale_stride = p->w_scale_stride,
                                               .bias = p->bias,
                                               .kind = (enum hr_cuda_epilogue_kind) p->epilogue,
                                               .out = p->out,
                                               .out_stride = p->out_stride,
                                               .out_is_bf16 = p->out_dtype == HR_DTYPE_BF16,
                                               .gate = p->gate,
                                               .gate_split = p->gate_split,
                                               .gate_stride = p->gate_stride};

            for (size_t i = 0; i < n; i++)
                for (size_t j = 0; j < n_rows; j++) {
                    sums[i * stride + j] = x[(t + i) * p->x_stride] * w[row + j];
                    hr_cuda_epilogue_one(&e, i, j);
                }
            check_free(sums);
        }
    }
}

static void test_epilogue(void **state)
{
    struct check_rng rng = check_seed();

    (void) state;
    for (int i = 0; i < 400; i++) {
        const size_t T = 1 + check_pick(&rng, 9), N = 1 + check_pick(&rng, 40);
        const size_t stride = N + check_pick(&rng, 3), gate_stride = N + check_pick(&rng, 3);
        float *x = check_alloc(T * 4, 4), *w = check_alloc(N * 4, 4);
        float *bias = check_alloc(N * 4, 4), *scale = check_alloc(N * 4, 4);
        float *gate = check_alloc((gate_stride + N) * 4, 4);
        float *got = check_alloc(T * stride * 4, 4), *want = check_alloc(T * stride * 4, 4);
        struct hr_linear p = {.x = x,
                              .x_dtype = HR_DTYPE_F32,
                              .x_stride = 1,
                              .w = w,
                              .w_dtype = HR_DTYPE_F32,
                              .w_scale = i % 3 ? scale : NULL,
                              .w_scale_stride = i % 3 - 1 > 0,
                              .bias = i % 4 ? bias : NULL,
                              .n_tokens = T,
                              .n_in = 1,
                              .n_out = N,
                              .epilogue = (enum hr_epilogue)(i % 5),
                              .out = want,
                              .out_dtype = i % 2 ? HR_DTYPE_BF16 : HR_DTYPE_F32,
                              .out_stride = stride,
                              .gate = gate,
                              .gate_split = check_pick(&rng, T + 2),
                              .gate_stride = gate_stride};

        if (p.epilogue == HR_EPILOGUE_GATED_RESIDUAL)
            p.out_dtype = HR_DTYPE_F32;
        check_fill_f32(&rng, x, T, -1.0f, 1.0f);
        check_fill_f32(&rng, w, N, -1.0f, 1.0f);
        check_fill_f32(&rng, bias, N, -1.0f, 1.0f);
        check_fill_f32(&rng, scale, N, 0.1f, 1.0f);
        check_fill_f32(&rng, gate, gate_stride + N, -1.0f, 1.0f);
        check_fill_f32(&rng, want, T * stride, -1.0f, 1.0f);
        memcpy(got, want, T * stride * 4);
        hr_linear_ref(&p);
        p.out = got;
        run_parts(&p, &rng);
        check_close("epilogue",
                    &(struct check_matrix){.got = got,
                                           .want = want,
                                           .dtype = p.out_dtype,
                                           .n_rows = T,
                                           .width = N,
                                           .stride = stride},
                    3e-6);
        check_free(x);
        check_free(w);
        check_free(bias);
        check_free(scale);
        check_free(gate);
        check_free(got);
        check_free(want);
    }
}

/* ---- attention on tensor cores, played by the host ------------------------------------------- */

/* Each chunk of a tile has a place of its own, and eight rows that a matrix load takes together lie
 * in all 32 banks of 4 bytes. */
static void test_tile(void **state)
{
    static unsigned char is_taken[64 * 16];

    (void) state;
    for (unsigned row = 0; row < 64; row++)
        for (unsigned chunk = 0; chunk < 16; chunk++) {
            const unsigned at = hr_cuda_tile_at(row, chunk);

            assert_true(at % 16 == 0 && at / 16 < sizeof(is_taken) && !is_taken[at / 16]);
            is_taken[at / 16] = 1;
        }
    for (unsigned row = 0; row < 64; row += 8)
        for (unsigned chunk = 0; chunk < 16; chunk++) {
            unsigned banks = 0;

            for (unsigned i = 0; i < 8; i++)
                banks |= 1u << hr_cuda_tile_at(row + i, chunk) / 16 % 8;
            assert_int_equal(banks, 0xff);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode),     cmocka_unit_test(test_to_bf16),
        cmocka_unit_test(test_load_group), cmocka_unit_test(test_activations),
        cmocka_unit_test(test_epilogue),   cmocka_unit_test(test_tile),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
