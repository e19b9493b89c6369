/* SPDX-License-Identifier: Apache-2.0 */
/* kernels_cpu_tmpl.c -- the table of kernels.h in vectors, compiled once for each instruction set.
 *
 * HR_KERNELS_TABLE, HR_KERNELS_ISA and HR_VEC_BYTES come from meson.build. Loops go in steps of a
 * vector; the last step of a row may be shorter. Sums run in a fixed order.
 */
#include <math.h>

#include "gpu/kernels_vec.h"

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- conversions -------------------------------------------------------------------- */

/* Whole vectors of fp8 to bf16. @return how many values that were */
HR_INLINE size_t bf16_from_f8(uint16_t *dst, const void *src, enum hr_dtype from, size_t n)
{
    size_t i = 0;

    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        vbs bytes;

        memcpy(&bytes, (const unsigned char *) src + i, sizeof(bytes));
        const vs wide = __builtin_convertvector(bytes, vs);
        const vs v = from == HR_DTYPE_F8_E4M3 ? bf16_from_f8_e4m3(wide) : bf16_from_f8_e5m2(wide);

        memcpy(dst + i, &v, sizeof(v));
    }
    return i;
}

HR_INLINE void convert(void *dst, enum hr_dtype to, const void *src, enum hr_dtype from, size_t n)
{
    size_t i = 0;

    if (to == HR_DTYPE_BF16 && (from == HR_DTYPE_F8_E4M3 || from == HR_DTYPE_F8_E5M2))
        i = bf16_from_f8((uint16_t *) dst, src, from, n);
    for (; i < n; i += LANES) {
        const size_t m = min_size(LANES, n - i);

        store_act(dst, to, i, m, load_any(src, from, i, m));
    }
}

HR_INLINE void convert_any(void *dst, enum hr_dtype to, const void *src, enum hr_dtype from,
                           size_t n)
{
    switch (from) { /* a loop of its own for each */
    case HR_DTYPE_F32:
        convert(dst, to, src, HR_DTYPE_F32, n);
        break;
    case HR_DTYPE_BF16:
        convert(dst, to, src, HR_DTYPE_BF16, n);
        break;
    case HR_DTYPE_F16:
        convert(dst, to, src, HR_DTYPE_F16, n);
        break;
    case HR_DTYPE_F8_E5M2:
        convert(dst, to, src, HR_DTYPE_F8_E5M2, n);
        break;
    default:
        convert(dst, to, src, HR_DTYPE_F8_E4M3, n);
        break;
    }
}

static void to_f32(float *dst, const void *src, enum hr_dtype dtype, size_t n)
{
    convert_any(dst, HR_DTYPE_F32, src, dtype, n);
}

static void to_bf16(uint16_t *dst, const void *src, enum hr_dtype dtype, size_t n)
{
    convert_any(dst, HR_DTYPE_BF16, src, dtype, n);
}

/* ---- products for few tokens -------------------------------------------------------- */

enum dot_kind { DOT_BF16_BF16, DOT_F32_BF16, DOT_F32_F32 };

struct pair {
    vf a, b;
};

/* 2 LANES elements from p on. Two bf16 of one 32-bit lane are its halves, which costs two
 * instructions instead of four; the order of elements does not matter as long as x has the same. */
HR_INLINE struct pair load_pair(const unsigned char *p, enum hr_dtype dtype, bool halves)
{
    vu u;

    if (halves) {
        memcpy(&u, p, sizeof(u));
        return (struct pair){(vf) (u << 16), (vf) (u & 0xffff0000)};
    }
    return (struct pair){load_any(p, dtype, 0, LANES), load_any(p, dtype, LANES, LANES)};
}

/* Rows of x and w at the column that is next, and bytes from row to row. */
struct dot_rows {
    const unsigned char *x, *w;
    size_t x_step, w_step;
};

HR_INLINE void dot_step(vf acc[4][HR_DOT_TOKENS_MAX], struct dot_rows at, enum dot_kind kind,
                        size_t n_rows, size_t n_tokens)
{
    const bool halves = kind == DOT_BF16_BF16;
    struct pair w[4];

#pragma GCC unroll 4
    for (size_t r = 0; r < n_rows; r++)
        w[r] = load_pair(at.w + r * at.w_step, kind == DOT_F32_F32 ? HR_DTYPE_F32 : HR_DTYPE_BF16,
                         halves);
#pragma GCC unroll 8
    for (size_t t = 0; t < n_tokens; t++) {
        const struct pair x = load_pair(at.x + t * at.x_step, HR_DTYPE_F32, halves);

#pragma GCC unroll 4
        for (size_t r = 0; r < n_rows; r++)
            acc[r][t] = vfma(x.b, w[r].b, vfma(x.a, w[r].a, acc[r][t]));
    }
}

/* The last columns of each row, zeros behind them. */
static void copy_tail(unsigned char *dst, const unsigned char *src, size_t step, size_t n_rows,
                      size_t n_bytes)
{
    for (size_t r = 0; r < n_rows; r++) {
        memset(dst + r * 2 * HR_VEC_BYTES, 0, 2 * HR_VEC_BYTES);
        memcpy(dst + r * 2 * HR_VEC_BYTES, src + r * step, n_bytes);
    }
}

/* All tokens of n_rows rows of w, from row `row` on. The last three arguments are constants. */
HR_INLINE void dot_block(const struct hr_dot *p, size_t row, enum dot_kind kind, size_t n_rows,
                         size_t n_tokens)
{
    const size_t x_size = kind == DOT_BF16_BF16 ? 2 : 4, w_size = kind == DOT_F32_F32 ? 4 : 2;
    unsigned char x_tail[HR_DOT_TOKENS_MAX * 2 * HR_VEC_BYTES], w_tail[4 * 2 * HR_VEC_BYTES];
    struct dot_rows at = {.x_step = p->x_stride * x_size, .w_step = p->w_stride * w_size};
    vf acc[4][HR_DOT_TOKENS_MAX] = {{{0}}};
    size_t k = 0;

    at.x = (const unsigned char *) p->x;
    at.w = (const unsigned char *) p->w + row * at.w_step;
    for (; k + 2 * LANES <= p->k; k += 2 * LANES) {
        dot_step(acc, at, kind, n_rows, n_tokens);
        at.x += 2 * LANES * x_size;
        at.w += 2 * LANES * w_size;
    }
    if (k < p->k) {
        copy_tail(x_tail, at.x, at.x_step, n_tokens, (p->k - k) * x_size);
        copy_tail(w_tail, at.w, at.w_step, n_rows, (p->k - k) * w_size);
        at = (struct dot_rows){x_tail, w_tail, 2 * HR_VEC_BYTES, 2 * HR_VEC_BYTES};
        dot_step(acc, at, kind, n_rows, n_tokens);
    }
#pragma GCC unroll 8
    for (size_t t = 0; t < n_tokens; t++) {
#pragma GCC unroll 4
        for (size_t r = 0; r < n_rows; r++) {
            float *y = p->y + t * p->y_stride + row + r;
            const float sum = vsum(acc[r][t]);

            *y = p->accumulate ? *y + sum : sum;
        }
    }
}

/* As many rows at once as keep all sums in registers. */
HR_INLINE void dot_tokens(const struct hr_dot *p, enum dot_kind kind, size_t n_tokens)
{
    const size_t rows_wide = n_tokens <= 5 ? 4 : 3, rows_narrow = n_tokens <= 4 ? 2 : 1;
    const size_t n_rows = LANES == 16 ? rows_wide : rows_narrow;
    size_t row = 0;

    for (; row + n_rows <= p->n_rows; row += n_rows)
        dot_block(p, row, kind, n_rows, n_tokens);
    for (; row < p->n_rows; row++)
        dot_block(p, row, kind, 1, n_tokens);
}

HR_INLINE void dot_kind(const struct hr_dot *p, enum dot_kind kind)
{
    switch (p->n_tokens) {
    case 1:
        dot_tokens(p, kind, 1);
        break;
    case 2:
        dot_tokens(p, kind, 2);
        break;
    case 3:
        dot_tokens(p, kind, 3);
        break;
    case 4:
        dot_tokens(p, kind, 4);
        break;
    case 5:
        dot_tokens(p, kind, 5);
        break;
    default:
        hr_assert(p->n_tokens == HR_DOT_TOKENS_MAX);
        dot_tokens(p, kind, HR_DOT_TOKENS_MAX);
        break;
    }
}

static void dot(const struct hr_dot *p)
{
    if (p->x_dtype == HR_DTYPE_BF16)
        dot_kind(p, DOT_BF16_BF16);
    else if (p->w_dtype == HR_DTYPE_BF16)
        dot_kind(p, DOT_F32_BF16);
    else
        dot_kind(p, DOT_F32_F32);
}

static void scale(float *y, const float *by, size_t stride, size_t n)
{
    for (size_t i = 0; i < n; i += LANES) {
        const size_t m = min_size(LANES, n - i);
        const vf factor = stride > 0 ? load_f32(by + i, m) : splat(by[0]);

        store_f32(y + i, m, load_f32(y + i, m) * factor);
    }
}

/* ---- epilogues ---------------------------------------------------------------------- */

HR_INLINE vf activate(vf y, enum hr_epilogue kind)
{
    switch (kind) {
    case HR_EPILOGUE_GELU_TANH: /* (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)) */
        return vsigmoid_times(y, 1.5957691216057308f * (y + 0.044715f * (y * y * y)));
    case HR_EPILOGUE_QUICK_GELU:
        return vsigmoid_times(y, 1.702f * y);
    case HR_EPILOGUE_SILU:
        return vsigmoid_times(y, y);
    default:
        return y;
    }
}

HR_INLINE void epilogue_kind(const struct hr_linear *p, size_t t, size_t n_begin, size_t n,
                             const float *y, enum hr_epilogue kind)
{
    const size_t o = t * p->out_stride + n_begin;
    const float *bias = p->bias ? p->bias + n_begin : NULL;
    const float *gate = NULL;

    if (kind == HR_EPILOGUE_GATED_RESIDUAL)
        gate = p->gate + (t >= p->gate_split ? p->gate_stride : 0) + n_begin;
    for (size_t i = 0; i < n; i += LANES) {
        const size_t m = min_size(LANES, n - i);
        vf v = load_f32(y + i, m);

        if (bias)
            v += load_f32(bias + i, m);
        v = activate(v, kind);
        if (gate)
            v = load_f32((const float *) p->out + o + i, m) + load_f32(gate + i, m) * v;
        store_act(p->out, p->out_dtype, o + i, m, v);
    }
}

static void epilogue(const struct hr_linear *p, size_t t, size_t n_begin, size_t n, const float *y)
{
    switch (p->epilogue) {
    case HR_EPILOGUE_STORE:
        epilogue_kind(p, t, n_begin, n, y, HR_EPILOGUE_STORE);
        break;
    case HR_EPILOGUE_GELU_TANH:
        epilogue_kind(p, t, n_begin, n, y, HR_EPILOGUE_GELU_TANH);
        break;
    case HR_EPILOGUE_QUICK_GELU:
        epilogue_kind(p, t, n_begin, n, y, HR_EPILOGUE_QUICK_GELU);
        break;
    case HR_EPILOGUE_SILU:
        epilogue_kind(p, t, n_begin, n, y, HR_EPILOGUE_SILU);
        break;
    case HR_EPILOGUE_GATED_RESIDUAL:
        epilogue_kind(p, t, n_begin, n, y, HR_EPILOGUE_GATED_RESIDUAL);
        break;
    }
}

/* ---- norms -------------------------------------------------------------------------- */

/* Sum of (x - m) and of its square. Sums of 32 vectors at most are added to the totals, which
 * keeps the rounding errors of long rows small. */
struct moments {
    float sum, squares;
};

HR_INLINE struct moments moments(const float *x, size_t n, float m)
{
    vf sum = {0}, squares = {0};

    for (size_t block = 0; block < n; block += 32 * LANES) {
        const size_t end = min_size(n, block + 32 * LANES);
        vf s[4] = {{0}}, q[4] = {{0}};
        size_t i = block;

        for (; i + 4 * LANES <= end; i += 4 * LANES) {
#pragma GCC unroll 4
            for (size_t j = 0; j < 4; j++) {
                const vf d = load_f32(x + i + j * LANES, LANES) - m;

                s[j] += d;
                q[j] += d * d;
            }
        }
        for (; i + LANES <= end; i += LANES) {
            const vf d = load_f32(x + i, LANES) - m;

            s[0] += d;
            q[0] += d * d;
        }
        for (; i < end; i++) {
            const float d = x[i] - m;

            s[0][0] += d;
            q[0][0] += d * d;
        }
        sum += (s[0] + s[1]) + (s[2] + s[3]);
        squares += (q[0] + q[1]) + (q[2] + q[3]);
    }
    return (struct moments){vsum(sum), vsum(squares)};
}

/* The first mean is only a centre: what rounding left of it is corrected by the second pass. */
static void layernorm_modulate(const struct hr_layernorm_modulate *p, size_t t_begin, size_t t_end)
{
    const float n = (float) p->width;

    for (size_t t = t_begin; t < t_end; t++) {
        const float *x = p->x + t * p->width;
        const float *scale = p->scale + (t >= p->split ? p->stride : 0);
        const float *shift = p->shift + (t >= p->split ? p->stride : 0);
        const float centre = moments(x, p->width, 0.0f).sum / n;
        const struct moments d = moments(x, p->width, centre);
        const float rest = d.sum / n;
        const float var = d.squares / n - rest * rest;
        const float rstd = 1.0f / sqrtf((var > 0.0f ? var : 0.0f) + 1e-6f);

        for (size_t c = 0; c < p->width; c += LANES) {
            const size_t m = min_size(LANES, p->width - c);
            const vf y = ((load_f32(x + c, m) - centre) - rest) * rstd;

            store_act(p->out, p->out_dtype, t * p->width + c, m,
                      y * (1.0f + load_f32(scale + c, m)) + load_f32(shift + c, m));
        }
    }
}

static void rmsnorm(float *out, const float *x, const float *gain, size_t n_tokens, size_t width)
{
    for (size_t t = 0; t < n_tokens; t++) {
        const float *row = x + t * width;
        const float r = 1.0f / sqrtf(moments(row, width, 0.0f).squares / (float) width + 1e-6f);

        for (size_t c = 0; c < width; c += LANES) {
            const size_t m = min_size(LANES, width - c);

            store_f32(out + t * width + c, m, load_f32(row + c, m) * r * load_f32(gain + c, m));
        }
    }
}

/* One head of one token, angles as two arrays. */
HR_INLINE void rope_head(float *y, const float *x, const float *gain, const float *c,
                         const float *s)
{
    float r[HR_HEAD_DIM];
    const float rstd =
        1.0f / sqrtf(moments(x, HR_HEAD_DIM, 0.0f).squares / (float) HR_HEAD_DIM + 1e-6f);

    for (size_t i = 0; i < HR_HEAD_DIM; i++)
        r[i] = x[i] * rstd * gain[i];
    for (size_t j = 0; j < HR_HEAD_DIM / 2; j++) {
        y[2 * j] = r[2 * j] * c[j] - r[2 * j + 1] * s[j];
        y[2 * j + 1] = r[2 * j] * s[j] + r[2 * j + 1] * c[j];
    }
}

static void qk_norm_rope(const struct hr_qk_norm_rope *p, enum hr_dtype act, size_t t_begin,
                         size_t t_end)
{
    float c[HR_HEAD_DIM / 2], s[HR_HEAD_DIM / 2], y[HR_HEAD_DIM];

    for (size_t t = t_begin; t < t_end; t++) {
        for (size_t j = 0; j < HR_HEAD_DIM / 2; j++) {
            c[j] = p->cos_sin[t * HR_HEAD_DIM + 2 * j];
            s[j] = p->cos_sin[t * HR_HEAD_DIM + 2 * j + 1];
        }
        for (size_t head = 0; head < p->n_heads; head++) {
            const size_t at = (t * p->n_heads + head) * HR_HEAD_DIM;

            rope_head(y, p->x + at, p->gain, c, s);
            for (size_t i = 0; i < HR_HEAD_DIM; i += LANES)
                store_act(p->out, act, at + i, LANES, load_f32(y + i, LANES));
        }
    }
}

/* ---- softmax, silu, a search for what is not finite --------------------------------- */

#define HR_SOFTMAX_SCALE 0.08838834764831845f /* 1 / sqrt(128) */

HR_INLINE float row_max(const float *s, size_t n)
{
    vf max[4] = {splat(-INFINITY), splat(-INFINITY), splat(-INFINITY), splat(-INFINITY)};
    float tail = -INFINITY;
    size_t i = 0;

    for (; i + 4 * LANES <= n; i += 4 * LANES)
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; j++)
            max[j] = vmax(load_f32(s + i + j * LANES, LANES), max[j]);
    for (; i + LANES <= n; i += LANES)
        max[0] = vmax(load_f32(s + i, LANES), max[0]);
    for (; i < n; i++)
        tail = s[i] > tail ? s[i] : tail;
    const float all = vmax_lanes(vmax(vmax(max[0], max[1]), vmax(max[2], max[3])));
    return all > tail ? all : tail;
}

/* Rounded to bf16 a NaN may become a number; the sum, in f32, stays NaN and with it the result. */
HR_INLINE void store_probability(void *p, enum hr_dtype dtype, size_t i, size_t n, vf v)
{
    if (dtype == HR_DTYPE_F32)
        store_f32((float *) p + i, n, v);
    else
        store_u16((uint16_t *) p + i, n, round_bf16(v));
}

/* p = exp(scale (s - max)); returns the sum. */
HR_INLINE float row_exp(void *p, enum hr_dtype dtype, const float *s, size_t n, float max)
{
    vf sum = {0};
    float tail = 0.0f;
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        const vf e = vexp((load_f32(s + i, LANES) - max) * HR_SOFTMAX_SCALE);

        sum += e;
        store_probability(p, dtype, i, LANES, e);
    }
    if (i < n) {
        const vf e = vexp((load_f32(s + i, n - i) - max) * HR_SOFTMAX_SCALE);

        for (size_t j = 0; j < n - i; j++)
            tail += e[j];
        store_probability(p, dtype, i, n - i, e);
    }
    return vsum(sum) + tail;
}

HR_INLINE void softmax_dtype(const struct hr_softmax *p, enum hr_dtype dtype)
{
    const size_t row_bytes = p->n_keys * (dtype == HR_DTYPE_F32 ? 4 : 2);

    for (size_t r = 0; r < p->n_rows; r++) {
        const float *s = p->s + r * p->n_keys;
        const float tile_max = row_max(s, p->n_keys);
        const float max = tile_max > p->m[r] ? tile_max : p->m[r];
        const float sum = row_exp((unsigned char *) p->p + r * row_bytes, dtype, s, p->n_keys, max);

        if (p->first) {
            p->sum[r] = sum;
        } else if (max == p->m[r]) {
            p->sum[r] += sum;
        } else {
            const float a = vexp(splat((p->m[r] - max) * HR_SOFTMAX_SCALE))[0];
            float *acc = p->acc + r * HR_HEAD_DIM;

            p->sum[r] = p->sum[r] * a + sum;
            for (size_t c = 0; c < HR_HEAD_DIM; c += LANES)
                store_f32(acc + c, LANES, load_f32(acc + c, LANES) * a);
        }
        p->m[r] = max;
    }
}

static void softmax(const struct hr_softmax *p)
{
    if (p->p_dtype == HR_DTYPE_F32)
        softmax_dtype(p, HR_DTYPE_F32);
    else
        softmax_dtype(p, HR_DTYPE_BF16);
}

static void softmax_end(void *out, enum hr_dtype act, size_t out_stride, const float *acc,
                        const float *sum, size_t n_rows)
{
    for (size_t r = 0; r < n_rows; r++) {
        const float inverse = 1.0f / sum[r];

        for (size_t c = 0; c < HR_HEAD_DIM; c += LANES)
            store_act(out, act, r * out_stride + c, LANES,
                      load_f32(acc + r * HR_HEAD_DIM + c, LANES) * inverse);
    }
}

static void silu(float *out, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i += LANES) {
        const size_t m = min_size(LANES, n - i);

        store_f32(out + i, m, activate(load_f32(x + i, m), HR_EPILOGUE_SILU));
    }
}

static bool all_finite(const float *x, size_t n)
{
    const uint32_t exponent = 0x7f800000u;
    uint32_t n_bad = 0;

    for (size_t i = 0; i < n; i++) {
        uint32_t bits;

        memcpy(&bits, &x[i], sizeof(bits));
        n_bad |= (bits & exponent) == exponent;
    }
    return n_bad == 0;
}

/* ---- table -------------------------------------------------------------------------- */

extern const struct hr_kernels HR_KERNELS_TABLE;
const struct hr_kernels HR_KERNELS_TABLE = {
    .isa = HR_KERNELS_ISA,
    .to_f32 = to_f32,
    .to_bf16 = to_bf16,
    .dot = dot,
    .scale = scale,
    .epilogue = epilogue,
    .layernorm_modulate = layernorm_modulate,
    .rmsnorm = rmsnorm,
    .qk_norm_rope = qk_norm_rope,
    .softmax = softmax,
    .softmax_end = softmax_end,
    .silu = silu,
    .all_finite = all_finite,
};
