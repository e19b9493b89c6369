/* SPDX-License-Identifier: Apache-2.0 */
/* dit_resident.h -- weights that stay in memory from the first pass on.
 *
 * A run of several passes is a cyclic scan, in which a cache of the most recently used hits
 * nothing. So the set is chosen once: as many bytes as the budget allows, spread evenly over the
 * order of use, so that the disk has about as much to read during each block. It is filled as the
 * first pass streams by, and later passes do not read it. */
#ifndef HR_DIT_RESIDENT_H
#define HR_DIT_RESIDENT_H

#include "common/common.h"

struct hr_resident {
    const struct hr_tensor *tensor;
    uint64_t at; /* offset in the store */
    bool loaded;
};

struct hr_resident_set {
    struct hr_resident *residents; /* sorted by tensor */
    uint32_t n;
    char *store;
    uint64_t size_bytes;
};

/* Choose among n tensors in order of use; takes no memory for weights yet.
 * @param keep  [n] values of enum hr_keep (states.h), or NULL: all where there is room. Those to be
 * kept always are chosen whatever the budget
 * @return 0 or -ENOMEM; an empty set is no error */
int hr_resident_choose(struct hr_resident_set *set, const struct hr_tensor *const *tensors,
                       uint32_t n, const uint8_t *keep, uint64_t budget_bytes,
                       struct hr_error *err);
/* Bytes of memory for those of n tensors that are to be kept always. */
uint64_t hr_resident_bytes_always(const struct hr_tensor *const *tensors, uint32_t n,
                                  const uint8_t *keep);
/* Take the memory. @return 0 or -ENOMEM */
int hr_resident_take(struct hr_resident_set *set, struct hr_error *err);
/* NULL: the tensor is streamed in every pass. */
struct hr_resident *hr_resident_find(const struct hr_resident_set *set,
                                     const struct hr_tensor *tensor);
void hr_resident_uninit(struct hr_resident_set *set);

#endif /* HR_DIT_RESIDENT_H */
