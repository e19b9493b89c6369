/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_math.h -- the CUDA kernels' arithmetic on single values and their indexing, as functions
 * that the host compiler takes too: tests/gpu/test_cuda_math.c holds them to the specification on
 * machines without a GPU.
 */
#ifndef HR_GPU_CUDA_MATH_H
#define HR_GPU_CUDA_MATH_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define HR_CUDA_CONVERTS_BF16 1
#endif

#ifdef __CUDACC__
#define HR_HD   static __host__ __device__ __forceinline__
#define HR_SLOW static __host__ __device__ __noinline__
#else
#include <stdbool.h>
#define HR_HD   static inline
#define HR_SLOW static inline
#endif

/* Of weights, for kernels: enum hr_dtype is C's. */
enum hr_cuda_dtype { HR_CUDA_F32, HR_CUDA_F16, HR_CUDA_BF16, HR_CUDA_E4M3, HR_CUDA_E5M2 };

enum {
    HR_CUDA_GROUP = 8, /* values that a lane takes at a time */
    HR_CUDA_LANES = 32,
};

/* ---- bits --------------------------------------------------------------------------------- */

HR_HD float hr_cuda_float(uint32_t bits)
{
    float f;

    memcpy(&f, &bits, sizeof(f));
    return f;
}

HR_HD uint32_t hr_cuda_bits(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, sizeof(bits));
    return bits;
}

HR_HD float hr_cuda_from_bf16(uint32_t h)
{
    return hr_cuda_float(h << 16);
}

HR_HD uint32_t hr_cuda_to_bf16_pair(float low, float high);

/* Nearest, ties to even; NaN stays NaN. */
HR_HD uint16_t hr_cuda_to_bf16(float f)
{
#ifdef HR_CUDA_CONVERTS_BF16
    return (uint16_t) hr_cuda_to_bf16_pair(f, 0.0f);
#else
    const uint32_t bits = hr_cuda_bits(f);

    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t) (bits >> 16 | 0x40);
    return (uint16_t) ((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
#endif
}

/* Two as they lie in memory. */
HR_HD uint32_t hr_cuda_to_bf16_pair(float low, float high)
{
#ifdef HR_CUDA_CONVERTS_BF16
    uint32_t pair;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return hr_cuda_to_bf16(low) | (uint32_t) hr_cuda_to_bf16(high) << 16;
#endif
}

/* Element `at` of bf16 or floats. */
HR_HD void hr_cuda_store(void *out, bool is_bf16, size_t at, float v)
{
    if (is_bf16)
        ((uint16_t *) out)[at] = hr_cuda_to_bf16(v);
    else
        ((float *) out)[at] = v;
}

/* ---- weights ------------------------------------------------------------------------------ */

/* How the bits of a dtype become a float: sign, exponent and mantissa move to where a float has
 * them, and a power of two makes up for the other bias; so subnormals come out right too. From
 * `special` on a magnitude is infinite or NaN. */
struct hr_cuda_format {
    uint32_t size;  /* bytes                                        */
    uint32_t shift; /* of the magnitude                             */
    uint32_t sign;  /* of the sign bit                              */
    uint32_t special;
    float factor;
};

HR_HD struct hr_cuda_format hr_cuda_format_make(uint32_t size, uint32_t shift, uint32_t sign,
                                                uint32_t special, float factor)
{
    struct hr_cuda_format f;

    f.size = size;
    f.shift = shift;
    f.sign = sign;
    f.special = special;
    f.factor = factor;
    return f;
}

HR_HD struct hr_cuda_format hr_cuda_format_of(int dtype)
{
    switch (dtype) {
    case HR_CUDA_F32:
        return hr_cuda_format_make(4, 0, 0, 0xffffffffu, 1.0f);
    case HR_CUDA_F16:
        return hr_cuda_format_make(2, 13, 16, 0x7c00, 0x1p112f);
    case HR_CUDA_BF16:
        return hr_cuda_format_make(2, 16, 16, 0xffffffffu, 1.0f);
    case HR_CUDA_E4M3:
        return hr_cuda_format_make(1, 20, 24, 0x7f, 0x1p120f);
    default: /* E5M2 */
        return hr_cuda_format_make(1, 21, 24, 0x7c, 0x1p112f);
    }
}

HR_HD float hr_cuda_decode(uint32_t bits, struct hr_cuda_format f)
{
    const uint32_t sign = (bits << f.sign) & 0x80000000u;
    const uint32_t magnitude = bits & (0x7fffffffu >> f.sign);
    const uint32_t moved = magnitude << f.shift;
    const float v = magnitude >= f.special ? hr_cuda_float(moved | 0x7f800000u)
                                           : hr_cuda_float(moved) * f.factor;

    return hr_cuda_float(hr_cuda_bits(v) | sign);
}

/* The bytes of a group as they lie, those of values beyond its end 0; of dtypes of less than 4
 * bytes only the first words count. */
struct hr_cuda_raw {
    uint32_t words[HR_CUDA_GROUP];
};

HR_SLOW void hr_cuda_load_bytes(uint32_t *words, const unsigned char *p, size_t n_bytes)
{
    for (size_t i = 0; i < HR_CUDA_GROUP; i++)
        words[i] = 0;
    for (size_t i = 0; i < n_bytes; i++)
        words[i / 4] |= (uint32_t) p[i] << i % 4 * 8;
}

/* Where a whole group can be read in words. */
HR_HD bool hr_cuda_is_aligned(const unsigned char *p, uint32_t size)
{
    return (uintptr_t) p % (size == 1 ? 8 : 16) == 0;
}

HR_HD void hr_cuda_load_words(struct hr_cuda_raw *raw, const unsigned char *p, uint32_t size)
{
    if (size == 4)
        memcpy(raw->words, __builtin_assume_aligned(p, 16), 32);
    else if (size == 2)
        memcpy(raw->words, __builtin_assume_aligned(p, 16), 16);
    else
        memcpy(raw->words, __builtin_assume_aligned(p, 8), 8);
}

/* The group of n (0 to HR_CUDA_GROUP) values at p, at any address. */
HR_HD void hr_cuda_load_raw(struct hr_cuda_raw *raw, const unsigned char *p, uint32_t size,
                            size_t n)
{
    if (n < HR_CUDA_GROUP || !hr_cuda_is_aligned(p, size)) {
        uint32_t words[HR_CUDA_GROUP]; /* of its own: an array that is passed on lies in memory */

        hr_cuda_load_bytes(words, p, n * size);
        for (int i = 0; i < HR_CUDA_GROUP; i++)
            raw->words[i] = words[i];
    } else {
        hr_cuda_load_words(raw, p, size);
    }
}

/* Its i-th value. */
HR_HD float hr_cuda_value(const struct hr_cuda_raw *raw, struct hr_cuda_format f, int i)
{
    if (f.size == 4)
        return hr_cuda_decode(raw->words[i], f);
    if (f.size == 2)
        return hr_cuda_decode(raw->words[i / 2] >> i % 2 * 16 & 0xffff, f);
    return hr_cuda_decode(raw->words[i / 4] >> i % 4 * 8 & 0xff, f);
}

HR_HD void hr_cuda_load_group(float *v, const unsigned char *p, struct hr_cuda_format f, size_t n)
{
    struct hr_cuda_raw raw;

    hr_cuda_load_raw(&raw, p, f.size, n);
    for (int i = 0; i < HR_CUDA_GROUP; i++)
        v[i] = hr_cuda_value(&raw, f, i);
}

/* ---- activations ---------------------------------------------------------------------------- */

HR_HD float hr_cuda_act_silu(float y)
{
    return y / (1.0f + expf(-y));
}

/* 0.5 (1 + tanh u) is 1 / (1 + exp(-2 u)), which keeps its digits where tanh is near -1. */
HR_HD float hr_cuda_act_gelu_tanh(float y)
{
    return y / (1.0f + expf(-1.5957691216057308f * (y + 0.044715f * y * y * y)));
}

HR_HD float hr_cuda_act_quick_gelu(float y)
{
    return y / (1.0f + expf(-1.702f * y));
}

/* ---- the epilogue of a linear layer --------------------------------------------------------- */

/* enum hr_epilogue for kernels; cuda_linear.c checks that they are the same. */
enum hr_cuda_epilogue_kind {
    HR_CUDA_EPILOGUE_STORE,
    HR_CUDA_EPILOGUE_GELU_TANH,
    HR_CUDA_EPILOGUE_QUICK_GELU,
    HR_CUDA_EPILOGUE_SILU,
    HR_CUDA_EPILOGUE_GATED_RESIDUAL,
};

/* hr_linear's epilogue over the sums of rows t_begin .. t_begin + n_tokens - 1 and columns n_begin
 * .. n_begin + n_out - 1 of the layer. Pointers are those of the whole layer. */
struct hr_cuda_epilogue {
    const float *sums; /* [n_tokens, n_out], rows sums_stride apart */
    size_t sums_stride;
    size_t t_begin, n_begin, n_tokens, n_out;
    const float *w_scale; /* NULL: not scaled */
    size_t w_scale_stride;
    const float *bias;
    enum hr_cuda_epilogue_kind kind;
    void *out;
    size_t out_stride;
    bool out_is_bf16;
    const float *gate;
    size_t gate_split, gate_stride;
};

/* a * b, rounded: not a part of a fused operation, so that scaling apart or here is the same. */
HR_HD float hr_cuda_times(float a, float b)
{
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

/* Of a sum y; scale 1 and bias 0: none. old: what out holds, for a gated residual. */
HR_HD float hr_cuda_epilogue_value(enum hr_cuda_epilogue_kind kind, float y, float scale,
                                   float bias, float gate, float old)
{
    y = hr_cuda_times(y, scale) + bias;
    switch (kind) {
    case HR_CUDA_EPILOGUE_GELU_TANH:
        return hr_cuda_act_gelu_tanh(y);
    case HR_CUDA_EPILOGUE_QUICK_GELU:
        return hr_cuda_act_quick_gelu(y);
    case HR_CUDA_EPILOGUE_SILU:
        return hr_cuda_act_silu(y);
    case HR_CUDA_EPILOGUE_GATED_RESIDUAL:
        return old + gate * y;
    default:
        return y;
    }
}

HR_HD float hr_cuda_epilogue_scale(const struct hr_cuda_epilogue *e, size_t column)
{
    return e->w_scale ? e->w_scale[column * e->w_scale_stride] : 1.0f;
}

HR_HD float hr_cuda_epilogue_bias(const struct hr_cuda_epilogue *e, size_t column)
{
    return e->bias ? e->bias[column] : 0.0f;
}

HR_HD float hr_cuda_epilogue_gate(const struct hr_cuda_epilogue *e, size_t row, size_t column)
{
    return e->gate[(row >= e->gate_split ? e->gate_stride : 0) + column];
}

/* Of row t and column n of the part. */
HR_HD void hr_cuda_epilogue_one(const struct hr_cuda_epilogue *e, size_t t, size_t n)
{
    const size_t row = e->t_begin + t, column = e->n_begin + n;
    const size_t at = row * e->out_stride + column;
    const bool is_gated = e->kind == HR_CUDA_EPILOGUE_GATED_RESIDUAL;
    const float y = hr_cuda_epilogue_value(
        e->kind, e->sums[t * e->sums_stride + n], hr_cuda_epilogue_scale(e, column),
        hr_cuda_epilogue_bias(e, column), is_gated ? hr_cuda_epilogue_gate(e, row, column) : 0.0f,
        is_gated ? ((const float *) e->out)[at] : 0.0f);

    hr_cuda_store(e->out, e->out_is_bf16, at, y);
}

/* Whether four columns at a time can be read and written as one. */
HR_HD bool hr_cuda_epilogue_in_fours(const struct hr_cuda_epilogue *e)
{
    const size_t size = e->out_is_bf16 ? 2 : 4;

    if (e->out_is_bf16 && e->kind == HR_CUDA_EPILOGUE_GATED_RESIDUAL)
        return false;
    return e->n_out % 4 == 0 && e->sums_stride % 4 == 0 && (uintptr_t) e->sums % 16 == 0 &&
           e->out_stride % 4 == 0 && ((uintptr_t) e->out + e->n_begin * size) % (4 * size) == 0;
}

/* ---- places in the shared memory of attention ------------------------------------------------ */

/* A tile of rows of 128 bf16, 16 chunks of 16 bytes each: where chunk c of a row lies, in bytes.
 * The low bits of c are mixed with the row's, so that 8 rows of one column of chunks, which a
 * matrix load takes at a time, lie in different banks. */
HR_HD unsigned hr_cuda_tile_at(unsigned row, unsigned chunk)
{
    return row * 256 + ((chunk ^ (row & 7)) << 4);
}

#endif /* HR_GPU_CUDA_MATH_H */
