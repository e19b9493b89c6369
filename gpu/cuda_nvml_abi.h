/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_nvml_abi.h -- the part of NVML's binary interface that is used.
 * tests/gpu/test_cuda_nvml_abi.c compares it with the library's header where there is one.
 */
#ifndef HR_GPU_CUDA_NVML_ABI_H
#define HR_GPU_CUDA_NVML_ABI_H

#include <stdint.h>

enum { HR_NVML_SUCCESS = 0 };
#define HR_NVML_NOT_AVAILABLE UINT64_MAX

struct hr_nvml_memory {
    uint64_t total, free, used;
};

struct hr_nvml_process {
    unsigned pid;
    uint64_t used_bytes; /* or HR_NVML_NOT_AVAILABLE */
    unsigned gpu_instance, compute_instance;
};

/* Each pointer is called as the library's function is: nvml and the name. */
struct hr_nvml_fns {
    int (*Init_v2)(void);
    int (*DeviceGetHandleByPciBusId_v2)(const char *address, void **device);
    int (*DeviceGetMemoryInfo)(void *device, struct hr_nvml_memory *memory);
    /* *n: room for so many, then how many there are. More than there is room for: an error. */
    int (*DeviceGetComputeRunningProcesses_v3)(void *device, unsigned *n,
                                               struct hr_nvml_process *processes);
};

#endif /* HR_GPU_CUDA_NVML_ABI_H */
