/* SPDX-License-Identifier: Apache-2.0 */
/* nvml_fake.c -- a library in NVML's place, for tests: what a driver says of a device's memory.
 *
 * HEADRACE_TEST_NVML: the MiB of each look in turn, as own/all, the last one from there on: "-/100
 * 700/800" first does not list this process. "many" in place of the first number: more processes
 * than there is room for; "unknown": how much this process takes; "fails" in place of both. Not
 * set: the library does not start.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu/cuda_nvml_abi.h"

enum { FAILED = 999, TOO_SMALL = 7, MIB = 1 << 20 };

static unsigned n_looks;
static char own[32], all[32]; /* of the present look */

int nvmlInit_v2(void);
int nvmlInit_v2(void)
{
    return getenv("HEADRACE_TEST_NVML") ? HR_NVML_SUCCESS : FAILED;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *address, void **device);
int nvmlDeviceGetHandleByPciBusId_v2(const char *address, void **device)
{
    *device = &n_looks;
    return strcmp(address, "0000:01:00.0") == 0 ? HR_NVML_SUCCESS : FAILED;
}

int nvmlDeviceGetMemoryInfo(void *device, struct hr_nvml_memory *memory);
int nvmlDeviceGetMemoryInfo(void *device, struct hr_nvml_memory *memory)
{
    static char script[256];
    const char *now = getenv("HEADRACE_TEST_NVML");

    if (device != &n_looks || !now)
        return FAILED;
    if (strcmp(now, script) != 0) { /* from its beginning */
        snprintf(script, sizeof(script), "%s", now);
        n_looks = 0;
    }
    const char *at = script;

    for (unsigned i = 0; i < n_looks && strchr(at, ' '); i++)
        at = strchr(at, ' ') + 1;
    n_looks++;
    if (sscanf(at, "%31[^/ ]/%31[^ ]", own, all) != 2)
        return FAILED;
    *memory = (struct hr_nvml_memory){.used = strtoull(all, NULL, 10) * MIB};
    return HR_NVML_SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *n,
                                            struct hr_nvml_process *processes);
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *n,
                                            struct hr_nvml_process *processes)
{
    const struct hr_nvml_process other = {.pid = 1, .used_bytes = 5 * (uint64_t) MIB};
    struct hr_nvml_process mine = {.pid = (unsigned) getpid(), .used_bytes = HR_NVML_NOT_AVAILABLE};

    if (device != &n_looks || *n < 2 || strcmp(own, "many") == 0)
        return TOO_SMALL;
    if (strcmp(own, "unknown") != 0)
        mine.used_bytes = strtoull(own, NULL, 10) * MIB;
    processes[0] = other;
    processes[1] = mine;
    *n = strcmp(own, "-") == 0 ? 1 : 2;
    return HR_NVML_SUCCESS;
}
