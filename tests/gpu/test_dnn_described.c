/* SPDX-License-Identifier: Apache-2.0 */
/* test_dnn_described.c -- the real cuDNN, where it is installed, on a machine that need have no
 * GPU: whether it takes our graph of attention, ranks an engine that we accept and compiles its
 * kernel, for devices that are described to it; and, so that this means something, that it has none
 * for a device without bf16. Nothing runs. Its memory of the host is compared with what budgets
 * allow it.
 *
 * 77 where it is not found: LD_LIBRARY_PATH names the folders of libcudnn.so.9 and libcublasLt.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/cuda_dnn.h"

/* Of driver_stub/, which the library is to find in the place of a driver. */
int cuDriverGetVersion(int *version);

/* In the words of cuDNN's own descriptions, which are not documented; kernels follow from the
 * compute capability. */
static char *description(int capability, int n_processors, int shared_bytes)
{
    static char text[1024];
    int driver = 0;

    cuDriverGetVersion(&driver);
    snprintf(text, sizeof(text),
             "{\"deviceVer\": %d, \"multiProcessorCount\": %d, \"maxSharedMemoryPerBlockOptin\": "
             "%d, \"oversizedSharedMemoryPerBlock\": %d, \"maxSharedMemoryPerBlock\": 49152, "
             "\"reservedSharedMemoryPerBlock\": 1024, \"maxGridSize\": [2147483647, 65535, 65535], "
             "\"maxBlockSize\": [1024, 1024, 64], \"regsPerBlock\": 65536, \"smCountOrigin\": 0, "
             "\"warpSize\": 32, \"maxRegistersPerSM\": 65536, \"maxCtasPerSM\": 32, "
             "\"maxThreadsPerBlock\": 1024, \"maxThreadsPerSM\": 2048, \"pciDeviceId\": 0, "
             "\"isTccDriver\": 0, \"supportCoopLaunch\": 1, \"totalGlobalMem\": 17179869184, "
             "\"smClockRateKHz\": 1500000, \"memClockRateKHz\": 1500000, \"memoryBusWidth\": 512, "
             "\"l2CacheSize\": 33554432, \"cudaDeviceId\": 0, \"driverVer\": %d, "
             "\"deviceName\": \"described\"}",
             capability, n_processors, shared_bytes, shared_bytes, driver);
    return text;
}

int main(void)
{
    static const struct {
        int capability, n_processors, shared_bytes;
    } devices[] = {{800, 108, 166912},  {860, 84, 101376},   {890, 128, 101376}, {900, 132, 232448},
                   {1000, 148, 232448}, {1200, 170, 101376}, {750, 40, 65536}};
    static const struct hr_dnn_shape shapes[] = {
        {4096 + 100, 4096 + 100, 24},
        {4096, 4096 + 100, 24},
        {256 + 5, 256 + 5, 24},
        {129, 33, 3},
        {1, 1, 1},
    };
    const uint64_t before_bytes = hr_memory_now().peak_bytes;
    struct hr_error err = {0};
    int n_failed = 0;

    if (hr_dnn_load(&err) < 0) {
        printf("skipped: %s\n", err.message);
        return 77;
    }
    const unsigned v = hr_dnn_version();

    printf("cuDNN %u.%u.%u\n", v / 10000, v / 100 % 100, v % 100);
    for (size_t i = 0; i < HR_ARRAY_SIZE(devices); i++) {
        const int capability = devices[i].capability;
        struct hr_dnn *dnn = NULL;
        int r = hr_dnn_open_described(
            &dnn, 16 << 20,
            description(capability, devices[i].n_processors, devices[i].shared_bytes), &err);

        for (size_t j = 0; j < HR_ARRAY_SIZE(shapes) && r == 0; j++) {
            const uint64_t begin_ns = hr_now_ns();

            r = hr_dnn_prepare(dnn, &shapes[j], &err);
            if (r == 0)
                printf("sm_%d: %zu queries, %zu keys, %zu heads: %.1f s\n", capability / 10,
                       shapes[j].n_q, shapes[j].n_k, shapes[j].n_heads,
                       (double) (hr_now_ns() - begin_ns) * 1e-9);
        }
        if (r < 0)
            printf("sm_%d: %s\n", capability / 10, err.message);
        n_failed += r != (capability < 800 ? -ENOTSUP : 0);
        err = (struct hr_error){0};
        hr_dnn_close(&dnn);
    }
    const uint64_t bytes = hr_memory_now().peak_bytes - before_bytes;

    printf("memory of the host: %llu MiB, allowed %llu\n", hr_mib(bytes),
           hr_mib(HR_DNN_HOST_BYTES));
    return n_failed || bytes > HR_DNN_HOST_BYTES ? 1 : 0;
}
