/* SPDX-License-Identifier: Apache-2.0 */
/* driver_stub.c -- as much of CUDA's driver as cuDNN asks for when it compiles a kernel for a
 * device that is described: what is loaded is taken, and nothing runs.
 */
#include <stddef.h>

/* Their arguments are not read, so their types do not matter. */
#define TAKES(name) \
    int name(void); \
    int name(void)  \
    {               \
        return 0;   \
    }

/* A handle is given out that nobody looks into. */
#define GIVES(name)         \
    int name(void **ret);   \
    int name(void **ret)    \
    {                       \
        static char handle; \
                            \
        *ret = &handle;     \
        return 0;           \
    }

#define GIVES_NUMBER(name, number) \
    int name(int *ret);            \
    int name(int *ret)             \
    {                              \
        *ret = (number);           \
        return 0;                  \
    }

#define GIVES_TEXT(name)                   \
    int name(int error, const char **ret); \
    int name(int error, const char **ret)  \
    {                                      \
        (void) error;                      \
        *ret = "the driver is a stub";     \
        return 0;                          \
    }

GIVES(cuCtxGetCurrent)
GIVES(cuKernelGetFunction)
GIVES(cuLibraryGetKernel)
GIVES(cuLibraryLoadData)
GIVES(cuLibraryLoadFromFile)
GIVES(cuLinkCreate)
GIVES(cuModuleGetFunction)
GIVES(cuModuleLoadData)
GIVES_NUMBER(cuDeviceGet, 0)
GIVES_NUMBER(cuDeviceGetCount, 0)
GIVES_NUMBER(cuDriverGetVersion, 13000)
GIVES_NUMBER(cuKernelGetAttribute, 0)
GIVES_TEXT(cuGetErrorName)
GIVES_TEXT(cuGetErrorString)
TAKES(cuCtxGetLimit)
TAKES(cuCtxPopCurrent)
TAKES(cuCtxPushCurrent)
TAKES(cuKernelSetAttribute)
TAKES(cuLaunchCooperativeKernel)
TAKES(cuLaunchKernel)
TAKES(cuLaunchKernelEx)
TAKES(cuLibraryUnload)
TAKES(cuLinkAddData)
TAKES(cuLinkComplete)
TAKES(cuLinkDestroy)
TAKES(cuModuleUnload)
TAKES(cuOccupancyMaxPotentialClusterSize)
TAKES(cuStreamGetCtx)
TAKES(cuTensorMapEncodeIm2col)
TAKES(cuTensorMapEncodeTiled)
