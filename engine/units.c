/* SPDX-License-Identifier: Apache-2.0 */
/* units.c -- cutting tensors into bands of rows. */
#include "engine/units.h"
#include "formats/formats.h"

enum {
    ROW_BYTES_MAX = 2 << 20,
    GRANULE_MIN = 16, /* rows; 16 rows of any element width are whole bytes, and fit in a unit */
    GRANULE = 128,    /* rows; the width of the tiles that matrix products are made of         */
};
_Static_assert((uint64_t) ROW_BYTES_MAX *GRANULE_MIN <= HR_UNIT_BYTES_MAX, "a granule must fit");

/* Rows are made smaller, by flattening further dimensions into their count, until 16 fit. */
static void choose_rows(const struct hr_tensor *tensor, struct hr_cut *cut)
{
    const unsigned bits = hr_dtype_bits(tensor->dtype);

    cut->n_rows = 1;
    for (uint32_t outer = tensor->rank > 0 ? 1 : 0; outer <= tensor->rank; outer++) {
        cut->n_rows = hr_shape_elements(tensor->shape, outer);
        cut->row_bits = hr_shape_elements(tensor->shape + outer, tensor->rank - outer) * bits;
        if (cut->row_bits <= (uint64_t) ROW_BYTES_MAX * 8)
            break;
    }
}

struct hr_cut hr_cut_tensor(const struct hr_tensor *tensor)
{
    struct hr_cut cut = {0};

    choose_rows(tensor, &cut);
    if (tensor->size_bytes == 0)
        return (struct hr_cut){.rows_per_band = 1, .n_bands = 1};
    hr_assert(cut.row_bits > 0 && cut.row_bits <= (uint64_t) ROW_BYTES_MAX * 8);

    const uint64_t fit = (uint64_t) HR_UNIT_BYTES_MAX * 8 / cut.row_bits;
    const uint64_t granule = fit >= GRANULE ? GRANULE : GRANULE_MIN;
    const uint64_t rows_max = hr_align_down(fit, granule);
    const uint64_t n_even = hr_div_ceil(cut.n_rows, rows_max);

    cut.rows_per_band = hr_align_up(hr_div_ceil(cut.n_rows, n_even), granule);
    cut.n_bands = hr_div_ceil(cut.n_rows, cut.rows_per_band);
    return cut;
}

struct hr_band hr_cut_band(const struct hr_cut *cut, uint64_t band_idx)
{
    hr_assert(band_idx < cut->n_bands);

    const uint64_t begin = band_idx * cut->rows_per_band;
    const uint64_t n = hr_min_u64(cut->n_rows - begin, cut->rows_per_band);
    struct hr_band band = {
        .row_begin = begin,
        .n_rows = n,
        .begin_bytes = begin * cut->row_bits / 8,
        .size_bytes = n * cut->row_bits / 8,
    };

    hr_assert(band.size_bytes <= HR_UNIT_BYTES_MAX);
    return band;
}
