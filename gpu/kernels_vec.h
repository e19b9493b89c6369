/* SPDX-License-Identifier: Apache-2.0 */
/* kernels_vec.h -- vectors of HR_VEC_BYTES bytes in plain C (GNU vector extensions), for
 * kernels_cpu_tmpl.c only: loads and stores at any address, dtype conversions, exp.
 *
 * Compiled with -ffp-contract=fast: a * b + c is one rounding where the CPU has fused multiply-add.
 * Nothing here reorders sums, so results depend on the instruction set but on nothing else.
 */
#ifndef HR_GPU_KERNELS_VEC_H
#define HR_GPU_KERNELS_VEC_H

#include <string.h>
#if HR_VEC_BYTES > 16
#include <immintrin.h>
#endif

#include "gpu/kernels.h"

enum { LANES = HR_VEC_BYTES / 4 };

typedef float vf __attribute__((vector_size(HR_VEC_BYTES)));
typedef uint32_t vu __attribute__((vector_size(HR_VEC_BYTES)));
typedef int32_t vi __attribute__((vector_size(HR_VEC_BYTES)));
typedef uint16_t vh __attribute__((vector_size(HR_VEC_BYTES / 2)));
typedef uint8_t vb __attribute__((vector_size(HR_VEC_BYTES / 4)));
typedef uint16_t vs __attribute__((vector_size(HR_VEC_BYTES))); /* 2 LANES values */
typedef uint8_t vbs __attribute__((vector_size(HR_VEC_BYTES / 2)));

#define HR_INLINE static inline __attribute__((always_inline))

/* ---- loads and stores of n <= LANES elements; lanes from n on read as 0 ---------------
 * The end of a row takes another path, out of line, so that whole vectors stay in registers. */

static __attribute__((noinline, unused)) vu load_end(const void *p, size_t n, size_t size)
{
    uint32_t lane[LANES] = {0};
    vu v;

    for (size_t i = 0; i < n; i++) /* little-endian: the low bytes come first */
        memcpy(&lane[i], (const unsigned char *) p + i * size, size);
    memcpy(&v, lane, sizeof(v));
    return v;
}

static __attribute__((noinline, unused)) void store_end(void *p, size_t n, size_t size, vu v)
{
    uint32_t lane[LANES];

    memcpy(lane, &v, sizeof(v));
    for (size_t i = 0; i < n; i++)
        memcpy((unsigned char *) p + i * size, &lane[i], size);
}

HR_INLINE vf load_f32(const void *p, size_t n)
{
    vf v;

    if (n < LANES)
        return (vf) load_end(p, n, 4);
    memcpy(&v, p, sizeof(v));
    return v;
}

HR_INLINE void store_f32(void *p, size_t n, vf v)
{
    if (n < LANES)
        store_end(p, n, 4, (vu) v);
    else
        memcpy(p, &v, sizeof(v));
}

HR_INLINE vu load_u16(const void *p, size_t n)
{
    vh v;

    if (n < LANES)
        return load_end(p, n, 2);
    memcpy(&v, p, sizeof(v));
    return __builtin_convertvector(v, vu);
}

/* Through u16: gcc 12 takes u8 to u32 apart into single bytes. */
HR_INLINE vu load_u8(const void *p, size_t n)
{
    vb v;

    if (n < LANES)
        return load_end(p, n, 1);
    memcpy(&v, p, sizeof(v));
    return __builtin_convertvector(__builtin_convertvector(v, vh), vu);
}

HR_INLINE void store_u16(void *p, size_t n, vu v)
{
    const vh h = __builtin_convertvector(v, vh);

    if (n < LANES)
        store_end(p, n, 2, v);
    else
        memcpy(p, &h, sizeof(h));
}

/* ---- dtypes ------------------------------------------------------------------------- */

/* Comparisons of vectors are 0 or -1 in each lane. */
HR_INLINE vu select_u32(vi cond, vu yes, vu no)
{
    return ((vu) cond & yes) | (~(vu) cond & no);
}

HR_INLINE vf select_f32(vi cond, vf yes, vf no)
{
    return (vf) select_u32(cond, (vu) yes, (vu) no);
}

/* a > b ? a : b, and so b where either is NaN. One instruction on x86, which gcc does not find. */
HR_INLINE vf vmax(vf a, vf b)
{
#if HR_VEC_BYTES == 64
    return (vf) _mm512_max_ps((__m512) a, (__m512) b);
#elif HR_VEC_BYTES == 32
    return (vf) _mm256_max_ps((__m256) a, (__m256) b);
#else
    return select_f32(a > b, a, b);
#endif
}

/* a * b + c rounded once, or twice where the instruction set has no such operation; unlike an
 * expression that the compiler may contract or not, the same wherever it stands. */
HR_INLINE vf vfma(vf a, vf b, vf c)
{
#if HR_VEC_BYTES == 64
    return (vf) _mm512_fmadd_ps((__m512) a, (__m512) b, (__m512) c);
#elif HR_VEC_BYTES == 32
    return (vf) _mm256_fmadd_ps((__m256) a, (__m256) b, (__m256) c);
#elif defined(__FP_FAST_FMAF)
    for (size_t i = 0; i < LANES; i++)
        c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

HR_INLINE vf vmin(vf a, vf b)
{
#if HR_VEC_BYTES == 64
    return (vf) _mm512_min_ps((__m512) a, (__m512) b);
#elif HR_VEC_BYTES == 32
    return (vf) _mm256_min_ps((__m256) a, (__m256) b);
#else
    return select_f32(a < b, a, b);
#endif
}

HR_INLINE vf splat(float v)
{
    return (vf){0} + v;
}

/* IEEE binary16 and smaller to f32: move exponent and mantissa into place, correct the exponent;
 * subnormals become exact through a subtraction. `shift` moves the mantissa, `bias` is the
 * difference of the exponents' biases. */
HR_INLINE vf widen(vu magnitude, vu sign, int shift, uint32_t bias, vi is_subnormal)
{
    const vu bits = magnitude << shift;
    const vu normal = bits + (bias << 23);
    const vu one_up = bits + ((bias + 1) << 23);
    const vf subnormal = (vf) one_up - (vf) ((vu){0} + ((bias + 1) << 23));

    return (vf) (select_u32(is_subnormal, (vu) subnormal, normal) | sign);
}

HR_INLINE vf f32_from_f16(vu h)
{
    const vu magnitude = h & 0x7fff;
    const vf v = widen(magnitude, (h & 0x8000) << 16, 13, 127 - 15, (vi) (magnitude < 0x0400));

    /* Infinity and NaN: the exponent's remaining bits. */
    return (vf) ((vu) v | ((vu) (magnitude >= 0x7c00) & 0x7f800000));
}

HR_INLINE vf f32_from_f8_e4m3(vu b)
{
    const vu magnitude = b & 0x7f;
    const vf v = widen(magnitude, (b & 0x80) << 24, 20, 127 - 7, (vi) (magnitude < 0x08));

    return (vf) ((vu) v | ((vu) (magnitude == 0x7f) & 0x7fc00000)); /* no infinities, one NaN */
}

/* bf16 holds every value of fp8: exponent and mantissa move into place, and the few subnormals get
 * an exponent of their own. */
HR_INLINE vs select_u16(vs cond, vs yes, vs no)
{
    return (cond & yes) | (~cond & no);
}

HR_INLINE vs bf16_from_f8_e4m3(vs b)
{
    const vs m = b & 0x7f; /* 1 to 7 stand for m 2^-9 */
    const vs small = select_u16((vs) (m > 3), (m << 5) + 0x3b80,
                                select_u16((vs) (m > 1), (m << 6) + 0x3b00, m * 0x3b00));
    const vs v = select_u16((vs) (m > 7), (m << 4) + 0x3c00, small);

    return v | ((vs) (m == 0x7f) & 0x7fc0) | (b & 0x80) << 8; /* no infinities, one NaN */
}

HR_INLINE vs bf16_from_f8_e5m2(vs b)
{
    const vs m = b & 0x7f; /* 1 to 3 stand for m 2^-16 */
    const vs small = select_u16((vs) (m > 1), (m << 6) + 0x3780, m * 0x3780);
    const vs v = select_u16((vs) (m > 3), (m << 5) + 0x3800, small);

    return v | ((vs) (m > 0x7b) & 0x7f80) | ((vs) (m > 0x7c) & 0x40) | (b & 0x80) << 8;
}

/* n <= LANES elements of src from index i on. */
HR_INLINE vf load_any(const void *src, enum hr_dtype dtype, size_t i, size_t n)
{
    const unsigned char *p = (const unsigned char *) src;

    switch (dtype) {
    case HR_DTYPE_F32:
        return load_f32(p + i * 4, n);
    case HR_DTYPE_BF16:
        return (vf) (load_u16(p + i * 2, n) << 16);
    case HR_DTYPE_F16:
        return f32_from_f16(load_u16(p + i * 2, n));
    case HR_DTYPE_F8_E5M2: /* the upper byte of an F16 */
        return f32_from_f16(load_u8(p + i, n) << 8);
    default:
        return f32_from_f8_e4m3(load_u8(p + i, n));
    }
}

/* Nearest bf16, ties to even; v is not NaN. */
HR_INLINE vu round_bf16(vf v)
{
    return ((vu) v + 0x7fff + (((vu) v >> 16) & 1)) >> 16;
}

HR_INLINE void store_bf16(void *p, size_t n, vf v)
{
    const vu nan = ((vu) v >> 16) | 0x40;

    store_u16(p, n, select_u32((vi) (v != v), nan, round_bf16(v)));
}

HR_INLINE void store_act(void *p, enum hr_dtype dtype, size_t i, size_t n, vf v)
{
    if (dtype == HR_DTYPE_F32)
        store_f32((float *) p + i, n, v);
    else
        store_bf16((uint16_t *) p + i, n, v);
}

/* ---- arithmetic --------------------------------------------------------------------- */

/* exp(x), relative error <= 2e-7, NaN of NaN; x is held within -87 .. 88, where the result is a
 * normal number. x = n ln 2 + r, |r| <= ln 2 / 2; a polynomial for e^r (Cephes), n into the
 * exponent. */
HR_INLINE vf vexp(vf x)
{
    const float to_int = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */

    x = vmax(splat(-87.0f), vmin(splat(88.0f), x)); /* NaN passes */

    const vf t = x * 1.44269504f + to_int;
    const vf n = t - to_int;
    const vf r = x - n * 0.693145752f - n * 1.42860677e-6f;
    vf y = r * 1.9875691500e-4f + 1.3981999507e-3f;

    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    y = (vf) ((vu) y + (((vu) t - 0x4b400000) << 23));
    return select_f32((vi) (x != x), x, y); /* adding to a NaN's exponent may make a number of it */
}

/* x / (1 + exp(-z)) */
HR_INLINE vf vsigmoid_times(vf x, vf z)
{
    return x / (1.0f + vexp(-z));
}

/* Sum of the lanes, in one order. */
static __attribute__((noinline)) float vsum(vf v)
{
    float lane[LANES];

    memcpy(lane, &v, sizeof(v));
    for (size_t width = LANES / 2; width > 0; width /= 2)
        for (size_t i = 0; i < width; i++)
            lane[i] += lane[i + width];
    return lane[0];
}

static __attribute__((noinline)) float vmax_lanes(vf v)
{
    float lane[LANES];

    memcpy(lane, &v, sizeof(v));
    for (size_t width = LANES / 2; width > 0; width /= 2)
        for (size_t i = 0; i < width; i++)
            lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
}

#endif /* HR_GPU_KERNELS_VEC_H */
