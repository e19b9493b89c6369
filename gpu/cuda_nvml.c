/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_nvml.c -- see cuda_nvml.h. The library stays initialised for the life of the process. */
#include "gpu/cuda_nvml.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <unistd.h>

#include "gpu/cuda_nvml_abi.h"

enum { PROCESSES_MAX = 64 }; /* with more on one device none is told apart */

static struct hr_nvml_fns nvml; /* filled once, by the first load that succeeds */

#define SYMBOL(name)                                            \
    {                                                           \
        "nvml" #name, offsetof(struct hr_nvml_fns, name), false \
    }

static int find_library(struct hr_error *err)
{
    static const char *const names[] = {"libnvidia-ml.so.1"};
    static const struct hr_symbol symbols[] = {
        SYMBOL(Init_v2),
        SYMBOL(DeviceGetHandleByPciBusId_v2),
        SYMBOL(DeviceGetMemoryInfo),
        SYMBOL(DeviceGetComputeRunningProcesses_v3),
    };
    struct hr_nvml_fns fns;
    void *library = hr_library_open(names, HR_ARRAY_SIZE(names));

    _Static_assert(sizeof(fns) == HR_ARRAY_SIZE(symbols) * sizeof(void *), "every function");
    if (!library)
        return hr_error_set(err, -ENODEV, "cuda: libnvidia-ml.so.1 is not found");
    if (hr_library_bind(library, &fns, symbols, HR_ARRAY_SIZE(symbols)) ||
        fns.Init_v2() != HR_NVML_SUCCESS) {
        dlclose(library);
        return hr_error_set(err, -ENODEV, "cuda: libnvidia-ml.so.1 does not work");
    }
    nvml = fns;
    return 0;
}

static void find_own(struct hr_nvml_use *use, void *device)
{
    struct hr_nvml_process processes[PROCESSES_MAX];
    const unsigned pid = (unsigned) getpid();
    unsigned n = PROCESSES_MAX;

    if (nvml.DeviceGetComputeRunningProcesses_v3(device, &n, processes) != HR_NVML_SUCCESS)
        return;
    for (unsigned i = 0; i < n; i++) {
        /* In a container some drivers know the number but no bytes of it. */
        if (processes[i].pid != pid || processes[i].used_bytes == 0 ||
            processes[i].used_bytes == HR_NVML_NOT_AVAILABLE)
            continue;
        use->has_own = true; /* on several parts of a divided device: the sum */
        use->own_bytes += processes[i].used_bytes;
    }
}

struct hr_nvml_use hr_nvml_use(int ordinal)
{
    static struct hr_library library = HR_LIBRARY_INIT;
    struct hr_nvml_use use = {.is_known = false};
    struct hr_nvml_memory memory;
    char address[32];
    void *device;

    if (hr_library_load(&library, find_library, NULL) < 0)
        return use;
    if (cudaDeviceGetPCIBusId(address, sizeof(address), ordinal) != cudaSuccess) {
        (void) cudaGetLastError();
        return use;
    }
    if (nvml.DeviceGetHandleByPciBusId_v2(address, &device) != HR_NVML_SUCCESS ||
        nvml.DeviceGetMemoryInfo(device, &memory) != HR_NVML_SUCCESS)
        return use;
    use.is_known = true;
    use.all_bytes = memory.used;
    find_own(&use, device);
    return use;
}

uint64_t hr_nvml_growth(const struct hr_nvml_use *before, const struct hr_nvml_use *now)
{
    const uint64_t old = now->has_own ? before->own_bytes : before->all_bytes;
    const uint64_t new = now->has_own ? now->own_bytes : now->all_bytes;

    return new > old ? new - old : 0;
}
