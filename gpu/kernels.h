/* SPDX-License-Identifier: Apache-2.0 */
/* clang-format off */
/* kernels.h -- the CPU device's arithmetic beside the matrix library's, one table for each
 * instruction set, and the specification of every operation (suffix _ref) that they are held to.
 *
 * kernels_cpu_tmpl.c is compiled once for each instruction set and makes one table; the choice is
 * made at run time. kernels_ref.c is plain C in double precision, never optimised. Tokens are rows;
 * a kernel works on the rows t_begin <= t < t_end of the operation `p` so that threads can share
 * one operation.
 *
 * Accuracy against _ref, held by tests/gpu (|got - want| <= tol * max(1, |want|), and where the
 * output is bf16 one unit in the last place, 2^-7, more):
 *
 *   linear                3e-6 + 4e-8 n, n = n_in and the ranks of low-rank terms, where no factor
 *                         or scale exceeds 1: n products of random sign, summed in f32 one after
 *                         the other, have an rms error of 6e-9 n
 *   layernorm_modulate    2e-6 while |mean| <= 10 standard deviations
 *   rmsnorm, qk_norm_rope 1e-6
 *   exp                   2e-7 relative; SiLU and GELU 3e-7 (1 + |z|), z the argument of exp
 *   attention             2e-6 max |q| max |k| with act F32, 2^-8 with act BF16, |v| <= 1
 *   conversions           exact, or rounded to nearest even
 */
/* clang-format on */
#ifndef HR_GPU_KERNELS_H
#define HR_GPU_KERNELS_H

#include "gpu/gpu.h"

/* y[t * y_stride + n] (+)= sum_k x[t,k] w[n,k] for few tokens: every weight is read once, at the
 * speed of memory. Dtype pairs (x, w): BF16 BF16, F32 BF16, F32 F32. */
struct hr_dot {
    float *y;
    size_t y_stride;
    const void *x; /* [n_tokens, k], rows x_stride elements apart, at any address */
    enum hr_dtype x_dtype;
    size_t x_stride;
    const void *w; /* [n_rows, k], rows w_stride elements apart, at any address */
    enum hr_dtype w_dtype;
    size_t w_stride;
    size_t n_tokens, n_rows, k;
    bool accumulate;
};

enum { HR_DOT_TOKENS_MAX = 6 };

/* One step of the online softmax over a tile of keys, for the rows of a tile of queries:
 *   m' = max(m, max_j s[j]);  a = exp(scale (m - m'));  p[j] = exp(scale (s[j] - m'))
 *   sum = a sum + sum_j p[j];  acc = a acc;  m = m' */
struct hr_softmax {
    const float *s; /* [n_rows, n_keys] products of q and k, dense            */
    void *p;        /* [n_rows, n_keys] dense; may be s: what is written has been read           */
    enum hr_dtype p_dtype;
    float *m;   /* [n_rows], -INFINITY before the first tile                  */
    float *sum; /* [n_rows], 0 before the first tile                          */
    float *acc; /* [n_rows, 128]; not touched by the first tile               */
    size_t n_rows, n_keys;
    bool first;
};

struct hr_kernels {
    const char *isa; /* as HEADRACE_CPU says it */

    /* n values at any address */
    void (*to_f32)(float *dst, const void *src, enum hr_dtype dtype, size_t n);
    void (*to_bf16)(uint16_t *dst, const void *src, enum hr_dtype dtype, size_t n);

    void (*dot)(const struct hr_dot *p);
    /* y[i] *= scale[i * stride], stride 0 or 1 */
    void (*scale)(float *y, const float *scale, size_t stride, size_t n);
    /* Columns n_begin .. n_begin + n - 1 of row t of a linear layer whose sums are y[n]. */
    void (*epilogue)(const struct hr_linear *p, size_t t, size_t n_begin, size_t n, const float *y);

    void (*layernorm_modulate)(const struct hr_layernorm_modulate *p, size_t t_begin, size_t t_end);
    void (*rmsnorm)(float *out, const float *x, const float *gain, size_t n_tokens, size_t width);
    void (*qk_norm_rope)(const struct hr_qk_norm_rope *p, enum hr_dtype act, size_t t_begin,
                         size_t t_end);
    void (*softmax)(const struct hr_softmax *p);
    /* out[r * out_stride + c] = acc[r,c] / sum[r], c < 128 */
    void (*softmax_end)(void *out, enum hr_dtype act, size_t out_stride, const float *acc,
                        const float *sum, size_t n_rows);
    void (*silu)(float *out, const float *x, size_t n);
    /* None of n values is NaN or infinite. */
    bool (*all_finite)(const float *x, size_t n);
};

/* The best table of this CPU, or the one called `isa`.
 * @return NULL: no table of that name in this build, or the CPU lacks the instructions */
const struct hr_kernels *hr_kernels_find(const char *isa);
/* Names of the tables that work on this CPU, best first; NULL from n on. */
const char *hr_kernels_name(size_t n);

/* ---- specification ------------------------------------------------------------------ */

void hr_linear_ref(const struct hr_linear *p);
void hr_layernorm_modulate_ref(const struct hr_layernorm_modulate *p);
void hr_rmsnorm_ref(float *out, const float *x, const float *gain, size_t n_tokens, size_t width);
void hr_qk_norm_rope_ref(const struct hr_qk_norm_rope *p, enum hr_dtype act);
void hr_attention_ref(const struct hr_attention *p, enum hr_dtype act);
void hr_silu_ref(float *out, const float *x, size_t n);
bool hr_all_finite_ref(const float *x, size_t n);
void hr_to_f32_ref(float *dst, const void *src, enum hr_dtype dtype, size_t n);
void hr_to_bf16_ref(uint16_t *dst, const void *src, enum hr_dtype dtype, size_t n);

#endif /* HR_GPU_KERNELS_H */
