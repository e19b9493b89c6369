/* SPDX-License-Identifier: Apache-2.0 */
/* test_dtype.c -- names, sizes and conversions of the element types.
 *
 * Small floats are checked against their definition, sign * mantissa * 2^exponent in double, and
 * rounding exhaustively: at, just below and just above the middle of every two neighbours.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "formats/formats.h"

struct kind {
    enum hr_dtype dtype;
    unsigned n_exp, n_man;
    uint32_t max;      /* code of the largest finite number                     */
    uint32_t overflow; /* code that stands for what is larger                   */
};

static const struct kind kinds[] = {
    {HR_DTYPE_F16, 5, 10, 0x7bff, 0x7c00},
    {HR_DTYPE_BF16, 8, 7, 0x7f7f, 0x7f80},
    {HR_DTYPE_F8_E5M2, 5, 2, 0x7b, 0x7c},
    {HR_DTYPE_F8_E4M3, 4, 3, 0x7e, 0x7f},
};

static unsigned n_low(const struct kind *k)
{
    return k->n_exp + k->n_man;
}

/* The number that a code without sign stands for; also beyond `max`, as if it went on. */
static double value_of(const struct kind *k, uint32_t code)
{
    const int bias = (1 << (k->n_exp - 1)) - 1;
    const uint32_t man = code & ((1u << k->n_man) - 1);
    const int exp = (int) (code >> k->n_man);

    if (exp == 0)
        return ldexp(man, 1 - bias - (int) k->n_man);
    return ldexp(man + (1u << k->n_man), exp - bias - (int) k->n_man);
}

static bool is_nan_code(const struct kind *k, uint32_t code)
{
    return k->dtype == HR_DTYPE_F8_E4M3 ? code == 0x7f : code > k->overflow;
}

static float decode(const struct kind *k, uint32_t code)
{
    uint8_t bytes[4];
    float f = 0;

    memcpy(bytes, &code, sizeof(bytes)); /* little endian */
    hr_dtype_to_f32(&f, bytes, k->dtype, 1);
    return f;
}

static uint32_t encode(const struct kind *k, float f)
{
    uint32_t code = 0;

    hr_dtype_from_f32(&code, &f, k->dtype, 1);
    return code;
}

static float f32_from_bits(uint32_t bits)
{
    float f;

    memcpy(&f, &bits, sizeof(f));
    return f;
}

static void test_names(void **state)
{
    static const unsigned bits[HR_DTYPE_COUNT] = {
        [HR_DTYPE_BOOL] = 8,        [HR_DTYPE_F4] = 4,          [HR_DTYPE_F6_E2M3] = 6,
        [HR_DTYPE_F6_E3M2] = 6,     [HR_DTYPE_U8] = 8,          [HR_DTYPE_I8] = 8,
        [HR_DTYPE_F8_E5M2] = 8,     [HR_DTYPE_F8_E4M3] = 8,     [HR_DTYPE_F8_E8M0] = 8,
        [HR_DTYPE_F8_E4M3FNUZ] = 8, [HR_DTYPE_F8_E5M2FNUZ] = 8, [HR_DTYPE_I16] = 16,
        [HR_DTYPE_U16] = 16,        [HR_DTYPE_F16] = 16,        [HR_DTYPE_BF16] = 16,
        [HR_DTYPE_I32] = 32,        [HR_DTYPE_U32] = 32,        [HR_DTYPE_F32] = 32,
        [HR_DTYPE_C64] = 64,        [HR_DTYPE_F64] = 64,        [HR_DTYPE_I64] = 64,
        [HR_DTYPE_U64] = 64,
    };
    enum hr_dtype dtype = HR_DTYPE_COUNT;
    unsigned n_computable = 0;

    (void) state;
    for (unsigned i = 0; i < HR_DTYPE_COUNT; i++) {
        assert_int_equal(hr_dtype_parse(hr_dtype_name((enum hr_dtype) i), &dtype), 0);
        assert_int_equal(dtype, i);
        assert_int_equal(hr_dtype_bits(dtype), bits[i]);
        n_computable += hr_dtype_is_computable(dtype);
    }
    assert_int_equal(n_computable, 5);
    assert_string_equal(hr_dtype_name(HR_DTYPE_F8_E4M3FNUZ), "F8_E4M3FNUZ");
    assert_string_equal(hr_dtype_name(HR_DTYPE_COUNT), "unknown");
    assert_int_equal(hr_dtype_parse("bf16", &dtype), -ENOENT);
    assert_int_equal(hr_dtype_parse("BF16 ", &dtype), -ENOENT);
    assert_int_equal(hr_dtype_parse("", &dtype), -ENOENT);
}

static void test_decode_all(void **state)
{
    (void) state;
    for (unsigned i = 0; i < HR_ARRAY_SIZE(kinds); i++) {
        const struct kind *k = &kinds[i];

        for (uint32_t code = 0; code < 1u << n_low(k); code++) {
            const float plus = decode(k, code);
            const float minus = decode(k, code | 1u << n_low(k));

            assert_false(signbit(plus));
            assert_true(signbit(minus));
            if (is_nan_code(k, code)) {
                assert_true(isnan(plus) && isnan(minus));
            } else if (code == k->overflow) {
                assert_true(isinf(plus) && isinf(minus));
            } else {
                assert_true((double) plus == value_of(k, code));
                assert_true(minus == -plus);
            }
        }
    }
}

static void test_round_trip_all(void **state)
{
    (void) state;
    for (unsigned i = 0; i < HR_ARRAY_SIZE(kinds); i++) {
        const struct kind *k = &kinds[i];

        for (uint32_t code = 0; code < 2u << n_low(k); code++) {
            const uint32_t magnitude = code & ((1u << n_low(k)) - 1);
            const uint32_t back = encode(k, decode(k, code));

            if (is_nan_code(k, magnitude))
                assert_true(is_nan_code(k, back & ((1u << n_low(k)) - 1)));
            else
                assert_int_equal(back, code);
        }
    }
}

/* `code` and the next, which for the largest is what overflow gives. */
static void check_between(const struct kind *k, uint32_t code)
{
    const double middle = (value_of(k, code) + value_of(k, code + 1)) / 2;
    const float f = (float) middle;
    const uint32_t even = code % 2 == 0 ? code : code + 1;
    const uint32_t sign = 1u << n_low(k);

    assert_true((double) f == middle);
    assert_int_equal(encode(k, f), even);
    assert_int_equal(encode(k, -f), even | sign);
    assert_int_equal(encode(k, nextafterf(f, 0)), code);
    assert_int_equal(encode(k, -nextafterf(f, 0)), code | sign);
    assert_int_equal(encode(k, nextafterf(f, INFINITY)), code + 1);
    assert_int_equal(encode(k, -nextafterf(f, INFINITY)), (code + 1) | sign);
}

static void test_rounding_all(void **state)
{
    (void) state;
    for (unsigned i = 0; i < HR_ARRAY_SIZE(kinds); i++) {
        for (uint32_t code = 0; code <= kinds[i].max; code++)
            check_between(&kinds[i], code);
    }
}

static void test_extremes(void **state)
{
    (void) state;
    for (unsigned i = 0; i < HR_ARRAY_SIZE(kinds); i++) {
        const struct kind *k = &kinds[i];
        const uint32_t sign = 1u << n_low(k);

        assert_int_equal(encode(k, 0.0f), 0);
        assert_int_equal(encode(k, -0.0f), sign);
        assert_int_equal(encode(k, INFINITY), k->overflow);
        assert_int_equal(encode(k, -INFINITY), k->overflow | sign);
        assert_int_equal(encode(k, 3.4028234e38f), k->overflow);
        assert_int_equal(encode(k, -3.4028234e38f), k->overflow | sign);
        if (k->dtype != HR_DTYPE_BF16) {
            assert_int_equal(encode(k, 1e-30f), 0);
            assert_int_equal(encode(k, -f32_from_bits(1)), sign);
            assert_int_equal(encode(k, f32_from_bits(0x7fffff)), 0);
        }
        /* NaNs of every kind: quiet, signalling, lowest and highest payload. */
        assert_true(isnan(decode(k, encode(k, NAN))));
        assert_true(isnan(decode(k, encode(k, f32_from_bits(0x7f800001)))));
        assert_true(isnan(decode(k, encode(k, f32_from_bits(0xff800001)))));
        assert_true(isnan(decode(k, encode(k, f32_from_bits(0x7fffffff)))));
    }
}

/* What torch gave before it took to saturating E4M3, written down. */
static void test_as_torch(void **state)
{
    static const struct {
        unsigned kind;
        float f;
        uint32_t code;
    } cases[] = {
        {3, 448, 0x7e},
        {3, 464, 0x7e},
        {3, 464.00003f, 0x7f},
        {3, 480, 0x7f},
        {3, -1e9f, 0xff},
        {3, 0.001953125f, 0x01},
        {3, 0.0009765625f, 0x00},
        {3, 1, 0x38},
        {3, 0.1f, 0x1d},
        {2, 57344, 0x7b},
        {2, 61439.996f, 0x7b},
        {2, 61440, 0x7c},
        {2, 1, 0x3c},
        {2, 0.1f, 0x2e},
        {2, -65536, 0xfc},
        {0, 65504, 0x7bff},
        {0, 65519.996f, 0x7bff},
        {0, 65520, 0x7c00},
        {0, 0.1f, 0x2e66},
        {1, 0.1f, 0x3dcd},
        {1, 833.33f, 0x4450},
    };

    (void) state;
    for (unsigned i = 0; i < HR_ARRAY_SIZE(cases); i++)
        assert_int_equal(encode(&kinds[cases[i].kind], cases[i].f), cases[i].code);
}

/* Any address, any count, nothing written outside. */
static void test_addresses(void **state)
{
    static const enum hr_dtype dtypes[] = {HR_DTYPE_F32, HR_DTYPE_F16, HR_DTYPE_BF16,
                                           HR_DTYPE_F8_E4M3, HR_DTYPE_F8_E5M2};
    enum { N = 67 };
    float src[N], dst[N + 1];
    uint8_t bytes[4 * N + 16];

    (void) state;
    for (unsigned i = 0; i < N; i++)
        src[i] = (float) ((int) i - 30) * 0.25f; /* exact in all of them, near enough to zero */
    for (unsigned t = 0; t < HR_ARRAY_SIZE(dtypes); t++) {
        const size_t element_bytes = hr_dtype_bits(dtypes[t]) / 8;

        for (size_t shift = 0; shift < 9; shift++) {
            for (size_t n = 0; n <= 37; n++) {
                memset(bytes, 0xa5, sizeof(bytes));
                memset(dst, 0xa5, sizeof(dst));
                hr_dtype_from_f32(bytes + shift, src + 20, dtypes[t], n);
                for (size_t i = 0; i < shift; i++)
                    assert_int_equal(bytes[i], 0xa5);
                for (size_t i = shift + n * element_bytes; i < sizeof(bytes); i++)
                    assert_int_equal(bytes[i], 0xa5);
                hr_dtype_to_f32(dst, bytes + shift, dtypes[t], n);
                /* 2.5 to 6.5 in quarters: exact but for the two bits of E5M2 */
                for (size_t i = 0; i < n && dtypes[t] != HR_DTYPE_F8_E5M2; i++)
                    assert_true(fabsf(src[20 + i]) > 4 && dtypes[t] == HR_DTYPE_F8_E4M3
                                    ? fabsf(dst[i] - src[20 + i]) <= 0.25f
                                    : dst[i] == src[20 + i]);
                for (size_t i = 0; i < n; i++)
                    assert_true(fabsf(dst[i] - src[20 + i]) <= 0.5f);
                assert_memory_equal(&dst[n], "\xa5\xa5\xa5\xa5", 4);
            }
        }
    }
}

static void test_f32_bits_kept(void **state)
{
    const uint32_t bits[] = {0x7f800001, 0xffc12345, 1, 0x80000000};
    uint32_t out[4];
    float f[4];

    (void) state;
    hr_dtype_to_f32(f, bits, HR_DTYPE_F32, 4);
    hr_dtype_from_f32(out, f, HR_DTYPE_F32, 4);
    assert_memory_equal(out, bits, sizeof(bits));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),          cmocka_unit_test(test_decode_all),
        cmocka_unit_test(test_round_trip_all), cmocka_unit_test(test_rounding_all),
        cmocka_unit_test(test_extremes),       cmocka_unit_test(test_as_torch),
        cmocka_unit_test(test_addresses),      cmocka_unit_test(test_f32_bits_kept),
    };

    return cmocka_run_group_tests_name("dtype", tests, NULL, NULL);
}
