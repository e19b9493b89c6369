/* SPDX-License-Identifier: Apache-2.0 */
/* dit_resident.h -- weights that stay in memory from the first pass on.
 *
 * A run of several passes is a cyclic scan, in which a cache of the most recently used hits
 * nothing. So the set is chosen once: as many bytes as the budget allows, spread evenly over the
 * order of use, so that the disk has about as much to read during each block. It is filled as the
 * first pass streams by, and later passes do not read it.
 *
 * Matrices of the blocks may be kept as F8_E4M3, a plain cast of each value, if the user wants more
 * of them to fit: the one thing that changes results. What overflows becomes NaN, as in torch. */
#ifndef HR_DIT_RESIDENT_H
#define HR_DIT_RESIDENT_H

#include "common/common.h"

struct hr_resident {
    const struct hr_tensor *tensor;
    enum hr_dtype dtype; /* as kept             */
    uint64_t at;         /* offset in the store */
    bool loaded;
};

struct hr_resident_set {
    struct hr_resident *residents; /* sorted by tensor */
    uint32_t n;
    char *store; /* of the host; or of the device, which gave and frees it */
    bool on_device;
    uint64_t size_bytes;
    uint64_t
        rounded_bytes; /* of them, of tensors that are kept as F8_E4M3 but are not in the file */
    bool fp8;
};

/* Choose among n tensors in order of use; takes no memory for weights yet.
 * @param keep  [n] values of enum hr_keep (states.h), or NULL: all where there is room. Those to be
 * kept always are chosen whatever the budget
 * @param fp8  keep matrices of the blocks as F8_E4M3, where they are wider; not with `keep`
 * @param elsewhere  what another set holds is passed over; NULL: none
 * @return 0 or -ENOMEM; an empty set is no error */
int hr_resident_choose(struct hr_resident_set *set, const struct hr_tensor *const *tensors,
                       uint32_t n, const uint8_t *keep, uint64_t budget_bytes, bool fp8,
                       const struct hr_resident_set *elsewhere, struct hr_error *err);
/* Bytes of memory for those of n tensors that are to be kept always. */
uint64_t hr_resident_bytes_always(const struct hr_tensor *const *tensors, uint32_t n,
                                  const uint8_t *keep);
/* Take the memory, of the host. @return 0 or -ENOMEM */
int hr_resident_take(struct hr_resident_set *set, struct hr_error *err);
/* NULL: the tensor is streamed in every pass. */
struct hr_resident *hr_resident_find(const struct hr_resident_set *set,
                                     const struct hr_tensor *tensor);
/* Copy the n_rows rows from row_begin on into the host's store, in the kept dtype. */
void hr_resident_keep(const struct hr_resident_set *set, struct hr_resident *resident,
                      const void *rows, uint64_t row_begin, uint64_t n_rows);
/* A row of a tensor that is kept. */
void *hr_resident_row(const struct hr_resident_set *set, const struct hr_resident *resident,
                      uint64_t row);
uint64_t hr_resident_row_bytes(const struct hr_resident *resident);
void hr_resident_uninit(struct hr_resident_set *set);

#endif /* HR_DIT_RESIDENT_H */
