/* SPDX-License-Identifier: Apache-2.0 */
/* convert.c -- values of dtypes to and from float, on the host.
 *
 * One pair of functions serves F16, F8_E4M3 and F8_E5M2: they differ in three numbers, which the
 * compiler folds. Integer arithmetic throughout, so that neither the rounding mode nor
 * flush-to-zero can change a value.
 */
#include <string.h>

#include "formats/formats.h"

/* A float of 1 + n_exp + n_man bits with the bias that IEEE gives it. */
struct layout {
    unsigned n_exp, n_man;
    uint32_t nan_min; /* codes from here on, less the sign, are NaN                          */
    uint32_t top;     /* code of what is too large: infinity, or NaN where there is none      */
    uint32_t nan;     /* code of the NaN that from_f32() makes                               */
};

static const struct layout layout_f16 = {5, 10, 0x7c01, 0x7c00, 0x7e00};
static const struct layout layout_e5m2 = {5, 2, 0x7d, 0x7c, 0x7f};
static const struct layout layout_e4m3 = {4, 3, 0x7f, 0x7f, 0x7f};

static inline float f32_from_bits(uint32_t bits)
{
    float f;

    memcpy(&f, &bits, sizeof(f));
    return f;
}

static inline uint32_t f32_to_bits(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, sizeof(bits));
    return bits;
}

/* What has to be added to an exponent of the layout to make it one of f32. */
static inline uint32_t rebias(const struct layout *l)
{
    return 127 - ((1u << (l->n_exp - 1)) - 1);
}

static inline float small_to_f32(uint32_t code, const struct layout *l)
{
    const unsigned n_low = l->n_exp + l->n_man;
    const uint32_t sign = code >> n_low << 31;
    const uint32_t magnitude = code & ((1u << n_low) - 1);
    const uint32_t man_max = (1u << l->n_man) - 1;
    const float subnormal_unit = f32_from_bits((rebias(l) + 1 - l->n_man) << 23);
    const uint32_t normal = (magnitude << (23 - l->n_man)) + (rebias(l) << 23);
    const uint32_t subnormal = f32_to_bits((float) (int32_t) magnitude * subnormal_unit);
    uint32_t bits = magnitude <= man_max ? subnormal : normal;

    if (magnitude >= l->top)
        bits = magnitude >= l->nan_min ? 0x7fc00000u : 0x7f800000u;
    return f32_from_bits(bits | sign);
}

static inline uint32_t small_from_f32(float f, const struct layout *l)
{
    const uint32_t bits = f32_to_bits(f);
    const uint32_t sign = bits >> 31 << (l->n_exp + l->n_man);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t exp = magnitude >> 23;
    uint32_t shift = 23 - l->n_man;
    uint32_t kept = magnitude - (rebias(l) << 23);

    if (magnitude > 0x7f800000u)
        return sign | l->nan;
    if (exp >= rebias(l) + (1u << l->n_exp))
        return sign | l->top;
    if (exp <= rebias(l)) {
        /* A subnormal, or nothing: the implicit one moves right until the exponent is the
         * least. A shift of 31 stands for all that leave nothing, f32's own subnormals too. */
        shift = (uint32_t) hr_min_u64(shift + rebias(l) + 1 - exp, 31);
        kept = (magnitude & 0x7fffffu) | 0x800000u;
    }
    kept = (kept + (1u << (shift - 1)) - 1 + (kept >> shift & 1)) >> shift;
    return sign | (kept < l->top ? kept : l->top);
}

static inline void from_8_bits(float *dst, const uint8_t *src, const struct layout *l, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = small_to_f32(src[i], l);
}

static inline void to_8_bits(uint8_t *dst, const float *src, const struct layout *l, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = (uint8_t) small_from_f32(src[i], l);
}

static inline uint16_t load_u16(const uint8_t *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static inline void store_u16(uint8_t *p, uint16_t v)
{
    memcpy(p, &v, sizeof(v));
}

void hr_dtype_to_f32(float *dst, const void *src, enum hr_dtype dtype, size_t n)
{
    const uint8_t *s = src;

    hr_assert(hr_dtype_is_computable(dtype));
    switch (dtype) {
    case HR_DTYPE_F8_E5M2:
        from_8_bits(dst, s, &layout_e5m2, n);
        break;
    case HR_DTYPE_F8_E4M3:
        from_8_bits(dst, s, &layout_e4m3, n);
        break;
    case HR_DTYPE_F16:
        for (size_t i = 0; i < n; i++)
            dst[i] = small_to_f32(load_u16(s + 2 * i), &layout_f16);
        break;
    case HR_DTYPE_BF16:
        for (size_t i = 0; i < n; i++)
            dst[i] = hr_bf16_to_f32(load_u16(s + 2 * i));
        break;
    default: /* F32 */
        if (n)
            memcpy(dst, s, n * sizeof(*dst));
        break;
    }
}

void hr_dtype_from_f32(void *dst, const float *src, enum hr_dtype dtype, size_t n)
{
    uint8_t *d = dst;

    hr_assert(hr_dtype_is_computable(dtype));
    switch (dtype) {
    case HR_DTYPE_F8_E5M2:
        to_8_bits(d, src, &layout_e5m2, n);
        break;
    case HR_DTYPE_F8_E4M3:
        to_8_bits(d, src, &layout_e4m3, n);
        break;
    case HR_DTYPE_F16:
        for (size_t i = 0; i < n; i++)
            store_u16(d + 2 * i, (uint16_t) small_from_f32(src[i], &layout_f16));
        break;
    case HR_DTYPE_BF16:
        for (size_t i = 0; i < n; i++)
            store_u16(d + 2 * i, hr_f32_to_bf16(src[i]));
        break;
    default: /* F32 */
        if (n)
            memcpy(d, src, n * sizeof(*src));
        break;
    }
}
