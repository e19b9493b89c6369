/* SPDX-License-Identifier: Apache-2.0 */
/* units.h -- how a tensor is cut into units of streaming.
 *
 * The cut follows from dtype and shape alone, never from a budget or a block size: a matrix product
 * is made of the products of its bands, so the same cut is what makes results the same bits
 * whatever the settings. */
#ifndef HR_UNITS_H
#define HR_UNITS_H

#include "common/common.h"

enum { HR_UNIT_BYTES_MAX = 32 << 20 };

struct hr_cut {
    uint64_t n_rows;        /* of the whole tensor; 0 when it is empty                   */
    uint64_t rows_per_band; /* of every band but the last, which has what remains; >= 1  */
    uint64_t n_bands;       /* >= 1: an empty tensor is one empty band                   */
    uint64_t row_bits;
};

/* Any tensor of a checked header. A band is at most HR_UNIT_BYTES_MAX and starts and ends on whole
 * bytes, also for elements of 4 and 6 bits. */
struct hr_cut hr_cut_tensor(const struct hr_tensor *tensor);

struct hr_band {
    uint64_t row_begin, n_rows;
    uint64_t begin_bytes, size_bytes; /* from the tensor's first byte */
};

struct hr_band hr_cut_band(const struct hr_cut *cut, uint64_t band_idx);

#endif /* HR_UNITS_H */
