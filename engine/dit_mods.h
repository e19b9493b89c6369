/* SPDX-License-Identifier: Apache-2.0 */
/* dit_mods.h -- modulation vectors of all steps, computed before the first of them.
 *
 * They follow from the timestep alone, and their weights are a third of the model: computing them
 * for all steps in one pass over those weights saves reading 13.6 GB in each step but one. A step's
 * vectors are 8.85 MB in f32 (13.3 with zero_cond_t); where they would take more than a given share
 * of memory they go to an unlinked temporary file. */
#ifndef HR_DIT_MODS_H
#define HR_DIT_MODS_H

#include "common/common.h"

struct hr_dit_mods {
    uint32_t n_steps;
    size_t step_floats;
    float *memory; /* [n_steps, step_floats], NULL: in the file */
    int fd;        /* -1: in memory                             */
};

/* @param memory_max_bytes  beyond it a file is used
 * @param folder            for the file; NULL: TMPDIR or /tmp
 * @return 0, -ENOMEM, or the error of a system call, which names the folder */
int hr_dit_mods_init(struct hr_dit_mods *mods, uint32_t n_steps, size_t step_floats,
                     uint64_t memory_max_bytes, const char *folder, struct hr_error *err);
void hr_dit_mods_uninit(struct hr_dit_mods *mods);

/* Whether vectors of this size would be kept in a file. */
bool hr_dit_mods_spill(uint32_t n_steps, size_t step_floats, uint64_t memory_max_bytes);

/* n floats at `at` of one step. */
int hr_dit_mods_put(struct hr_dit_mods *mods, uint32_t step, size_t at, const float *src, size_t n,
                    struct hr_error *err);
/* All floats of one step; from memory the pointer itself, from the file read into dst. */
int hr_dit_mods_get(const struct hr_dit_mods *mods, uint32_t step, float *dst,
                    const float **ret_values, struct hr_error *err);

#endif /* HR_DIT_MODS_H */
