/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda_nvml_abi.c -- what gpu/cuda_nvml_abi.h says of NVML is what its own header says. Built
 * where that header is found; there is nothing to run.
 */
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>
#include <stddef.h>

#include "gpu/cuda_nvml_abi.h"

#define SAME(ours, theirs) _Static_assert((ours) == (theirs), #ours)
#define SAME_PLACE(our_struct, ours, their_struct, theirs) \
    SAME(offsetof(struct our_struct, ours), offsetof(their_struct, theirs))

SAME(HR_NVML_SUCCESS, (int) NVML_SUCCESS);
SAME(HR_NVML_NOT_AVAILABLE, (uint64_t) NVML_VALUE_NOT_AVAILABLE);
SAME(sizeof(int), sizeof(nvmlReturn_t));
SAME(sizeof(struct hr_nvml_memory), sizeof(nvmlMemory_t));
SAME_PLACE(hr_nvml_memory, used, nvmlMemory_t, used);
SAME(sizeof(struct hr_nvml_process), sizeof(nvmlProcessInfo_t));
SAME_PLACE(hr_nvml_process, pid, nvmlProcessInfo_t, pid);
SAME_PLACE(hr_nvml_process, used_bytes, nvmlProcessInfo_t, usedGpuMemory);

/* Every function takes as many arguments, of types that convert. */
void hr_test_calls(void);
void hr_test_calls(void)
{
    nvmlProcessInfo_t processes[1];
    nvmlMemory_t memory;
    nvmlDevice_t device;
    unsigned n = 1;

    nvmlInit_v2();
    nvmlDeviceGetHandleByPciBusId_v2("", &device);
    nvmlDeviceGetMemoryInfo(device, &memory);
    nvmlDeviceGetComputeRunningProcesses_v3(device, &n, processes);
}
