/* SPDX-License-Identifier: Apache-2.0 */
/* dtype.c -- the element types of safetensors, and conversion to and from float on the host.
 *
 * One pair of functions serves F16, F8_E4M3 and F8_E5M2: they differ in three numbers, which the
 * compiler folds. Integer arithmetic throughout, so that neither the rounding mode nor
 * flush-to-zero can change a value.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "formats/formats.h"

static const struct {
    char name[12];
    uint8_t bits;
    bool computable;
} dtypes[] = {
    [HR_DTYPE_BOOL] = {"BOOL", 8, false},
    [HR_DTYPE_F4] = {"F4", 4, false},
    [HR_DTYPE_F6_E2M3] = {"F6_E2M3", 6, false},
    [HR_DTYPE_F6_E3M2] = {"F6_E3M2", 6, false},
    [HR_DTYPE_U8] = {"U8", 8, false},
    [HR_DTYPE_I8] = {"I8", 8, false},
    [HR_DTYPE_F8_E5M2] = {"F8_E5M2", 8, true},
    [HR_DTYPE_F8_E4M3] = {"F8_E4M3", 8, true},
    [HR_DTYPE_F8_E8M0] = {"F8_E8M0", 8, false},
    [HR_DTYPE_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8, false},
    [HR_DTYPE_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8, false},
    [HR_DTYPE_I16] = {"I16", 16, false},
    [HR_DTYPE_U16] = {"U16", 16, false},
    [HR_DTYPE_F16] = {"F16", 16, true},
    [HR_DTYPE_BF16] = {"BF16", 16, true},
    [HR_DTYPE_I32] = {"I32", 32, false},
    [HR_DTYPE_U32] = {"U32", 32, false},
    [HR_DTYPE_F32] = {"F32", 32, true},
    [HR_DTYPE_C64] = {"C64", 64, false},
    [HR_DTYPE_F64] = {"F64", 64, false},
    [HR_DTYPE_I64] = {"I64", 64, false},
    [HR_DTYPE_U64] = {"U64", 64, false},
};
static_assert(HR_ARRAY_SIZE(dtypes) == HR_DTYPE_COUNT, "a row for each dtype");

static bool is_dtype(enum hr_dtype dtype)
{
    return (unsigned) dtype < HR_DTYPE_COUNT;
}

const char *hr_dtype_name(enum hr_dtype dtype)
{
    return is_dtype(dtype) ? dtypes[dtype].name : "unknown";
}

unsigned hr_dtype_bits(enum hr_dtype dtype)
{
    hr_assert(is_dtype(dtype));
    return dtypes[dtype].bits;
}

int hr_dtype_parse(const char *name, enum hr_dtype *ret_dtype)
{
    for (unsigned i = 0; i < HR_DTYPE_COUNT; i++) {
        if (strcmp(name, dtypes[i].name) == 0) {
            *ret_dtype = (enum hr_dtype) i;
            return 0;
        }
    }
    return -ENOENT;
}

bool hr_dtype_is_computable(enum hr_dtype dtype)
{
    return is_dtype(dtype) && dtypes[dtype].computable;
}

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
