/* SPDX-License-Identifier: Apache-2.0 */
/* test_units.c -- the cut of tensors into bands: whole, in order, bounded, by shape alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/units.h"
#include "formats/formats.h"

static struct hr_tensor tensor(enum hr_dtype dtype, uint32_t rank, const uint64_t *shape)
{
    return (struct hr_tensor){
        .name = "t",
        .dtype = dtype,
        .rank = rank,
        .shape = shape,
        .size_bytes = hr_shape_elements(shape, rank) * hr_dtype_bits(dtype) / 8,
    };
}

/* Bands follow one another without gap, each within the limit, and cover the tensor. */
static struct hr_cut expect_cover(const struct hr_tensor *t)
{
    const struct hr_cut cut = hr_cut_tensor(t);
    uint64_t row = 0, byte = 0;

    assert_true(cut.n_bands >= 1);
    for (uint64_t b = 0; b < cut.n_bands; b++) {
        const struct hr_band band = hr_cut_band(&cut, b);

        assert_int_equal(band.row_begin, row);
        assert_int_equal(band.begin_bytes, byte);
        assert_true(band.size_bytes <= HR_UNIT_BYTES_MAX);
        row += band.n_rows;
        byte += band.size_bytes;
    }
    assert_int_equal(row, cut.n_rows);
    assert_int_equal(byte, t->size_bytes);
    return cut;
}

static void test_model_shapes(void **state)
{
    static const struct {
        uint64_t shape[2];
        uint64_t n_bands, rows;
    } cases[] = {
        {{18432, 3072}, 4, 4608}, /* modulation */
        {{3072, 3072}, 1, 3072},  /* projections */
        {{12288, 3072}, 3, 4096}, /* MLP up */
        {{3072, 12288}, 3, 1024}, /* MLP down */
        {{6144, 3072}, 2, 3072},  /* head */
        {{3072, 64}, 1, 3072},    /* image in */
    };

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(cases); i++) {
        const struct hr_tensor t = tensor(HR_DTYPE_BF16, 2, cases[i].shape);
        const struct hr_cut cut = expect_cover(&t);

        assert_int_equal(cut.n_bands, cases[i].n_bands);
        assert_int_equal(hr_cut_band(&cut, 0).n_rows, cases[i].rows);
    }
}

static void test_odd_shapes(void **state)
{
    static const uint64_t sizes[] = {0, 1, 2, 3, 15, 16, 17, 127, 129, 4097, 1000003};
    static const enum hr_dtype dtypes[] = {HR_DTYPE_U8, HR_DTYPE_BF16, HR_DTYPE_F32, HR_DTYPE_F64};

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(sizes); i++)
        for (size_t j = 0; j < HR_ARRAY_SIZE(sizes); j++)
            for (size_t d = 0; d < HR_ARRAY_SIZE(dtypes); d++) {
                const uint64_t shape[] = {sizes[i], sizes[j], 3};
                const struct hr_tensor a = tensor(dtypes[d], 2, shape);
                const struct hr_tensor b = tensor(dtypes[d], 3, shape);

                expect_cover(&a);
                expect_cover(&b);
            }
}

static void test_extremes(void **state)
{
    const uint64_t flat[] = {UINT64_C(100000000)}, wide[] = {2, UINT64_C(100000000)};
    const uint64_t four_bits[] = {UINT64_C(33554433), 6}, empty[] = {5, 0};
    const struct hr_tensor scalar = tensor(HR_DTYPE_F32, 0, NULL);
    const struct hr_tensor cases[] = {
        scalar,
        tensor(HR_DTYPE_F32, 1, flat),
        tensor(HR_DTYPE_F32, 2, wide), /* a row of 400 MB: rows are flattened */
        tensor(HR_DTYPE_F4, 2, four_bits),
        tensor(HR_DTYPE_F32, 2, empty),
    };

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(cases); i++)
        expect_cover(&cases[i]);
    assert_int_equal(hr_cut_tensor(&scalar).n_rows, 1);
    assert_int_equal(hr_cut_tensor(&cases[4]).n_bands, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_shapes),
        cmocka_unit_test(test_odd_shapes),
        cmocka_unit_test(test_extremes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
