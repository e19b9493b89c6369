/* SPDX-License-Identifier: Apache-2.0 */
/* synth_values.h -- values that follow from a tensor's name and an element's index.
 *
 * value(i) = offset + scale * u(i), u in [-1, 1) a hash of the name and i. Every factor of two and
 * every u is exact in double, so the result is the same on any machine. */
#ifndef HR_SYNTH_VALUES_H
#define HR_SYNTH_VALUES_H

#include "common/common.h"

struct hr_synth_rule {
    uint32_t seed; /* 32-bit FNV-1a of the name */
    double scale, offset;
};

/* The rule for a tensor of the model.
 * @param n_in  columns of a matrix, unused for rank < 2 */
struct hr_synth_rule hr_synth_rule(const char *name, uint32_t rank, uint64_t n_in);

/* Elements first .. first + n - 1, as `dtype` (one of the computable ones), at any address. */
void hr_synth_fill(void *dst, enum hr_dtype dtype, const struct hr_synth_rule *rule, uint64_t first,
                   uint64_t n);

#endif /* HR_SYNTH_VALUES_H */
