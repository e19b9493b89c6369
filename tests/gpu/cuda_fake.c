/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_fake.c -- as much of CUDA's runtime and of products by cuBLASLt as the device uses, on the
 * host: for tests of all that is ours on machines without a GPU. Streams are in cuda_streams.cc.
 *
 * HEADRACE_TEST_DRIVER: none, old or empty, as cudaGetDeviceCount() finds it; 7.5: a device of that
 * compute capability.
 */
#include <cuda_runtime_api.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/common.h"
#include "gpu/cuda_lt.h"
#include "tests/gpu/cuda_streams.h"

enum { REGISTERED_MAX = 256 };

static bool is_driver(const char *name)
{
    const char *driver = getenv("HEADRACE_TEST_DRIVER");

    return driver && strcmp(driver, name) == 0;
}

/* ---- devices -------------------------------------------------------------------------------- */

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 1;
    if (is_driver("none") || is_driver("old"))
        return cudaErrorInsufficientDriver;
    return is_driver("empty") ? cudaErrorNoDevice : cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = is_driver("none") ? 0 : 11040;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device)
{
    memset(prop, 0, sizeof(*prop));
    memcpy(prop->name, "played", 7);
    prop->major = is_driver("7.5") ? 7 : 8;
    prop->minor = is_driver("7.5") ? 5 : 0;
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaDeviceGetPCIBusId(char *address, int n, int device)
{
    snprintf(address, (size_t) n, "0000:01:00.0");
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaGetLastError(void)
{
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaErrorMemoryAllocation ? "out of memory" : "an error";
}

/* ---- memory --------------------------------------------------------------------------------- */

cudaError_t cudaMalloc(void **ret, size_t size)
{
    const size_t align = size < 2 * HR_MIB ? 256 : 2 * HR_MIB;

    *ret = size < SIZE_MAX / 4 ? aligned_alloc(align, hr_align_up(size, align)) : NULL;
    if (*ret && align > 256)
        madvise(*ret, size, MADV_HUGEPAGE); /* scratch and slots are taken often */
    if (*ret)
        memset(*ret, 0xff, size < 4096 ? size : 4096);
    return *ret ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    *free_bytes = *total_bytes = (size_t) 1 << 30;
    return cudaSuccess;
}

/* Host memory that is registered. What is wrong with it is a mistake of ours, as the runtime would
 * say in ways that callers take for a lack of memory, or not at all. */
static struct {
    uintptr_t begin, end;
} registered[REGISTERED_MAX];
static size_t n_registered;

static void misused(const char *what, const void *p)
{
    fprintf(stderr, "cuda_fake: host memory at %p %s\n", p, what);
    abort();
}

cudaError_t cudaHostRegister(void *p, size_t size, unsigned int flags)
{
    const uintptr_t begin = (uintptr_t) p, end = begin + size;

    (void) flags;
    if (!p || !size || n_registered == REGISTERED_MAX)
        return cudaErrorInvalidValue;
    for (size_t i = 0; i < n_registered; i++)
        if (begin < registered[i].end && end > registered[i].begin)
            misused("is registered already", p);
    registered[n_registered].begin = begin;
    registered[n_registered++].end = end;
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *p)
{
    size_t i = 0;

    while (i < n_registered && registered[i].begin != (uintptr_t) p)
        i++;
    if (i == n_registered)
        misused("is unregistered, and is not registered", p);
    registered[i] = registered[--n_registered];
    return cudaSuccess;
}

int hr_played_crosses(const void *p, size_t size)
{
    const uintptr_t begin = (uintptr_t) p, end = begin + size;

    for (size_t i = 0; i < n_registered; i++) {
        const uintptr_t first = registered[i].begin, last = registered[i].end;

        if ((begin < first && end > first) || (begin < last && end > last))
            return 1;
    }
    return 0;
}

void hr_played_last_stream_ends(void)
{
    if (n_registered > 0)
        misused("is still registered when the device is closed", (void *) registered[0].begin);
}

/* ---- products ------------------------------------------------------------------------------- */

struct hr_lt {
    int unused;
};

int hr_lt_load(struct hr_error *err)
{
    (void) err;
    return 0;
}

int hr_lt_open(struct hr_lt **ret_lt, void *workspace, size_t workspace_bytes, struct hr_error *err)
{
    *ret_lt = calloc(1, sizeof(**ret_lt));
    if (!*ret_lt)
        return hr_error_set(err, -ENOMEM, "no memory");
    memset(workspace, 0xff, workspace_bytes);
    return 0;
}

void hr_lt_close(struct hr_lt **lt)
{
    free(*lt);
    *lt = NULL;
}

unsigned hr_lt_version(void)
{
    return 130100;
}

bool hr_lt_has(unsigned cuda)
{
    return cuda == 13;
}

static float value_at(const void *p, bool is_bf16, size_t i)
{
    uint32_t bits;
    float v;

    if (!is_bf16)
        return ((const float *) p)[i];
    bits = (uint32_t) ((const uint16_t *) p)[i] << 16;
    memcpy(&v, &bits, sizeof(v));
    return v;
}

struct product {
    struct hr_lt_product p;
    const void *x, *w;
    float *c;
};

static void multiply(void *arg)
{
    const struct product *m = arg;
    const struct hr_lt_product *p = &m->p;

    for (size_t t = 0; t < p->n_tokens; t++)
        for (size_t n = 0; n < p->n_out; n++) {
            float *y = &m->c[t * p->c_stride + n];
            double sum = p->accumulate ? (double) *y : 0.0;

            for (size_t k = 0; k < p->n_in; k++)
                sum += (double) value_at(m->x, p->is_bf16, t * p->x_stride + k) *
                       (double) value_at(m->w, p->is_bf16, n * p->w_stride + k);
            *y = (float) sum;
        }
    free(arg);
}

/* What cuda_lt.h asks of callers is checked here. */
int hr_lt_run(struct hr_lt *lt, const struct hr_lt_product *p, const void *x, const void *w,
              float *c, cudaStream_t stream)
{
    const size_t size = p->is_bf16 ? 2 : 4;
    struct product *m = malloc(sizeof(*m));

    hr_assert(lt && stream && m);
    hr_assert(((uintptr_t) x | (uintptr_t) w | (uintptr_t) c) % HR_LT_ALIGN == 0);
    hr_assert(p->n_in * size % HR_LT_ALIGN == 0 && p->c_stride * 4 % HR_LT_ALIGN == 0);
    hr_assert(p->x_stride * size % HR_LT_ALIGN == 0 && p->w_stride * size % HR_LT_ALIGN == 0);
    hr_assert(p->x_stride >= p->n_in && p->w_stride >= p->n_in && p->c_stride >= p->n_out);
    *m = (struct product){.p = *p, .x = x, .w = w, .c = c};
    hr_played_ask(stream, multiply, m);
    return 0;
}
