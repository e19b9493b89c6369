/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_nvml.h -- what the driver itself says of a device's memory. Its library for that, NVML,
 * comes with it and is loaded at run time; where it does not answer, nothing is known.
 */
#ifndef HR_GPU_CUDA_NVML_H
#define HR_GPU_CUDA_NVML_H

#include "common/common.h"

/* At one moment. */
struct hr_nvml_use {
    bool is_known;
    bool has_own; /* this process is told apart: not before it uses the device, nor, as in most
                     containers, where the driver does not know its number or its bytes */
    uint64_t own_bytes; /* this process's */
    uint64_t all_bytes; /* everybody's    */
};

/* Of the device with this number of the CUDA runtime's; needs no context on it. */
struct hr_nvml_use hr_nvml_use(int ordinal);

/* How much more this process takes than before; where the driver does not tell it apart, all. Less
 * than before: 0. Both are known. */
uint64_t hr_nvml_growth(const struct hr_nvml_use *before, const struct hr_nvml_use *now);

#endif /* HR_GPU_CUDA_NVML_H */
