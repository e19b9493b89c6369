/* SPDX-License-Identifier: Apache-2.0 */
/* gpu_cuda.c -- an NVIDIA GPU as a device: which one, the two streams, weights in slots.
 *
 * Copies of weights run on one stream, operations on the other, and events alone order them: a copy
 * into a slot comes after the last operation on what lay there, operations after the copy. The
 * caller's thread waits only for the host memory of a copy, for results, and after uploads.
 *
 * What is refused at once is logged and returned; what fails on the device later makes every later
 * call fail, as the CUDA runtime keeps such errors.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/cuda.h"

enum {
    /* Compute capability. */
    MAJOR_MIN = 7,
    MINOR_MIN = 5,
    MAJOR_BF16 = 8,
};

int hr_cuda_check(cudaError_t e, const char *what)
{
    if (e == cudaSuccess)
        return 0;
    (void) cudaGetLastError(); /* it is dealt with: later launches must not find it */
    hr_log(HR_LOG_ERROR, "cuda: %s: %s", what, cudaGetErrorString(e));
    return e == cudaErrorMemoryAllocation ? -ENOMEM : -EIO;
}

enum hr_cuda_dtype hr_cuda_dtype_of(enum hr_dtype dtype)
{
    switch (dtype) {
    case HR_DTYPE_F32:
        return HR_CUDA_F32;
    case HR_DTYPE_F16:
        return HR_CUDA_F16;
    case HR_DTYPE_BF16:
        return HR_CUDA_BF16;
    case HR_DTYPE_F8_E4M3:
        return HR_CUDA_E4M3;
    default:
        hr_assert(dtype == HR_DTYPE_F8_E5M2);
        return HR_CUDA_E5M2;
    }
}

int hr_cuda_begin(const struct hr_cuda *cuda)
{
    if (cuda->cancelled && atomic_load_explicit(cuda->cancelled, memory_order_relaxed))
        return -ECANCELED;
    return hr_cuda_check(cudaSetDevice(cuda->ordinal), "device");
}

/* ---- which device --------------------------------------------------------------------------- */

static int error_count(cudaError_t e, struct hr_error *err)
{
    int driver = 0;

    (void) cudaGetLastError();
    if (e == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess &&
        driver > 0)
        return hr_error_set(
            err, -ENODEV, "cuda: the NVIDIA driver is too old: it has CUDA %d.%d, %d.%d is needed",
            driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (e == cudaErrorInsufficientDriver)
        return hr_error_set(
            err, -ENODEV, "cuda: no NVIDIA driver is installed; install one, or use --device cpu");
    if (e == cudaErrorNoDevice)
        return hr_error_set(
            err, -ENODEV, "cuda: the driver sees no GPU; see nvidia-smi and CUDA_VISIBLE_DEVICES");
    return hr_error_set(err, -ENODEV, "cuda: %s", cudaGetErrorString(e));
}

/* The number behind "cuda:", 0 without one. */
static int parse_ordinal(const char *device, unsigned long *ret_ordinal, struct hr_error *err)
{
    const char *colon = device ? strchr(device, ':') : NULL;
    char printable[64], *end;

    *ret_ordinal = 0;
    if (!colon)
        return 0;
    *ret_ordinal = strtoul(colon + 1, &end, 10);
    if (colon[1] < '0' || colon[1] > '9' || *end)
        return hr_error_set(err, -ENODEV, "device \"%s\": expected cuda or cuda:N",
                            hr_printable(device, printable, sizeof(printable)));
    return 0;
}

static int find_dnn(const struct hr_gpu_params *params, struct hr_error *err)
{
    if (params->act != HR_DTYPE_BF16)
        return hr_error_set(err, -ENODEV,
                            "cuda: cuDNN's attention takes bf16 alone; use --precision bf16 or "
                            "--attention own");
    return hr_dnn_load(err);
}

/* @return 0 or -ENODEV with the reason */
static int find_device(const struct hr_gpu_params *params, int *ret_ordinal,
                       struct cudaDeviceProp *ret_prop, struct hr_error *err)
{
    char printable[64];
    unsigned long ordinal;
    int n = 0;
    const int r = parse_ordinal(params->device, &ordinal, err);

    if (r < 0)
        return r;
    cudaError_t e = cudaGetDeviceCount(&n);

    if (e == cudaSuccess && n == 0)
        e = cudaErrorNoDevice;
    if (e != cudaSuccess)
        return error_count(e, err);
    if (ordinal >= (unsigned long) n)
        return hr_error_set(err, -ENODEV, "device \"%s\": there %s %d, numbered from 0",
                            hr_printable(params->device, printable, sizeof(printable)),
                            n == 1 ? "is" : "are", n);
    *ret_ordinal = (int) ordinal;
    e = cudaGetDeviceProperties(ret_prop, *ret_ordinal);
    if (e != cudaSuccess)
        return error_count(e, err);
    const int major = ret_prop->major, minor = ret_prop->minor;

    if (major < MAJOR_MIN || (major == MAJOR_MIN && minor < MINOR_MIN))
        return hr_error_set(err, -ENODEV,
                            "cuda: %.64s has compute capability %d.%d; %d.%d is needed",
                            ret_prop->name, major, minor, MAJOR_MIN, MINOR_MIN);
    if (params->act == HR_DTYPE_BF16 && major < MAJOR_BF16)
        return hr_error_set(
            err, -ENODEV,
            "cuda: %.64s (compute capability %d.%d) does not compute in bf16; use --precision f32",
            ret_prop->name, major, minor);
    const int rc = hr_lt_load(err);

    return rc == 0 && params->attention == HR_ATTENTION_CUDNN ? find_dnn(params, err) : rc;
}

static int cuda_probe(const struct hr_gpu_params *params, struct hr_error *err)
{
    struct cudaDeviceProp prop;
    int ordinal;

    return find_device(params, &ordinal, &prop, err);
}

static void name_dnn(char *buf, size_t buf_bytes, const char *word)
{
    const unsigned v = hr_dnn_version();

    snprintf(buf, buf_bytes, "%s %u.%u.%u", word, v / 10000, v / 100 % 100, v % 100);
}

static int cuda_attention_name(const struct hr_gpu_params *params, char *buf, size_t buf_bytes,
                               struct hr_error *err)
{
    const int r = cuda_probe(params, err);

    if (r == 0)
        name_dnn(buf, buf_bytes, "cudnn");
    return r;
}

/* ---- open and close ------------------------------------------------------------------------- */

static void cuda_close(struct hr_gpu *gpu)
{
    struct hr_cuda *cuda = (struct hr_cuda *) gpu;

    cudaSetDevice(cuda->ordinal);
    if (cuda->computes)
        cudaStreamSynchronize(cuda->computes);
    if (cuda->copies)
        cudaStreamSynchronize(cuda->copies);
    hr_dnn_close(&cuda->dnn);
    hr_lt_close(&cuda->lt);
    for (size_t i = 0; i < HR_SLOTS_MAX; i++) {
        if (cuda->copied[i])
            cudaEventDestroy(cuda->copied[i]);
        if (cuda->used[i])
            cudaEventDestroy(cuda->used[i]);
    }
    if (cuda->computes)
        cudaStreamDestroy(cuda->computes);
    if (cuda->copies)
        cudaStreamDestroy(cuda->copies);
    if (cuda->memory && !gpu->ring_is_abandoned)
        cudaFree(cuda->memory);
    (void) cudaGetLastError();
    free(cuda);
}

static int make_queues(struct hr_cuda *cuda)
{
    /* Whoever waits for a copy sleeps: it waits for milliseconds, and cores are for the reader. */
    const unsigned flags = cudaEventDisableTiming | cudaEventBlockingSync;
    int r =
        hr_cuda_check(cudaStreamCreateWithFlags(&cuda->copies, cudaStreamNonBlocking), "stream");

    if (r == 0)
        r = hr_cuda_check(cudaStreamCreateWithFlags(&cuda->computes, cudaStreamNonBlocking),
                          "stream");
    for (size_t i = 0; i < HR_SLOTS_MAX && r == 0; i++) {
        r = hr_cuda_check(cudaEventCreateWithFlags(&cuda->copied[i], flags), "event");
        if (r == 0)
            r = hr_cuda_check(cudaEventCreateWithFlags(&cuda->used[i], flags), "event");
    }
    return r;
}

static int set_up(struct hr_cuda *cuda, const struct hr_gpu_params *params, struct hr_error *err)
{
    int r = hr_cuda_take_memory(cuda, params, err);

    if (r == 0)
        r = make_queues(cuda);
    if (r == 0 && params->attention == HR_ATTENTION_CUDNN)
        r = hr_dnn_open(&cuda->dnn, cuda->workspace, HR_CUDA_WORKSPACE_BYTES, cuda->computes, err);
    if (r == 0)
        r = hr_cuda_check(
            cudaMemsetAsync(cuda->gpu.arena, 0, cuda->gpu.arena_bytes, cuda->computes), "zeros");
    if (r == 0 && cuda->gpu.ring)
        r = hr_cuda_check(cudaMemsetAsync(cuda->gpu.ring, 0, cuda->gpu.ring_bytes, cuda->computes),
                          "zeros");
    if (r == 0)
        r = hr_cuda_check(cudaStreamSynchronize(cuda->computes), "start");
    return r < 0 ? hr_error_set(err, r, "cuda: the device cannot be set up") : 0;
}

/* What computes, with versions: "cuda:0 (NVIDIA H100, sm_90, cuBLASLt 13.1, cuDNN 9.28.1)" */
static void name_device(struct hr_cuda *cuda, const struct cudaDeviceProp *prop)
{
    const unsigned lt = hr_lt_version();
    char text[32] = "";

    if (cuda->dnn)
        name_dnn(text, sizeof(text), ", cuDNN");
    snprintf(cuda->gpu.name, sizeof(cuda->gpu.name), "cuda:%d (%.40s, sm_%d%d, cuBLASLt %u.%u%s)",
             cuda->ordinal, prop->name, prop->major, prop->minor, lt / 10000, lt / 100 % 100, text);
}

static int cuda_open(struct hr_gpu **ret_gpu, const struct hr_gpu_params *params,
                     struct hr_error *err)
{
    struct cudaDeviceProp prop;
    struct hr_cuda *cuda;
    uint64_t bytes;
    int ordinal, r = find_device(params, &ordinal, &prop, err);

    if (r == 0)
        r = hr_gpu_device_bytes(params, &bytes, err);
    if (r < 0)
        return r;
    cuda = calloc(1, sizeof(*cuda));
    if (!cuda)
        return hr_error_set(err, -ENOMEM, "cuda: no memory");
    cuda->ordinal = ordinal;
    cuda->cancelled = params->cancelled;
    cuda->before = hr_nvml_use(ordinal);
    r = hr_cuda_check(cudaSetDevice(ordinal), "device");
    r = r < 0 ? hr_error_set(err, r, "cuda: device %d cannot be used", ordinal)
              : set_up(cuda, params, err);
    if (r < 0) {
        cuda_close(&cuda->gpu);
        return r;
    }
    cuda->gpu.fns = &hr_device_cuda;
    cuda->gpu.act = params->act;
    name_device(cuda, &prop);
    *ret_gpu = &cuda->gpu;
    return 0;
}

static int cuda_begin_thread(struct hr_gpu *gpu)
{
    const cudaError_t e = cudaSetDevice(((const struct hr_cuda *) gpu)->ordinal);

    return hr_cuda_check(e, "device") < 0 ? -ENODEV : 0;
}

/* ---- host memory ---------------------------------------------------------------------------- */

static int cuda_register_host(struct hr_gpu *gpu, void *base, size_t size_bytes)
{
    const struct hr_cuda *cuda = (const struct hr_cuda *) gpu;
    cudaError_t e = cudaSetDevice(cuda->ordinal);

    if (e == cudaSuccess)
        e = cudaHostRegister(base, size_bytes, cudaHostRegisterPortable | cudaHostRegisterMapped);
    if (e == cudaSuccess)
        return 0;
    (void) cudaGetLastError();
    hr_log(HR_LOG_INFO, "cuda: host memory is not registered, copies are slower: %s",
           cudaGetErrorString(e));
    return e == cudaErrorMemoryAllocation ? -ENOMEM : -EIO;
}

static void cuda_unregister_host(struct hr_gpu *gpu, void *base)
{
    const struct hr_cuda *cuda = (const struct hr_cuda *) gpu;

    cudaSetDevice(cuda->ordinal);
    cudaStreamSynchronize(cuda->copies);
    hr_cuda_check(cudaHostUnregister(base), "host memory");
}

/* Of so many bytes, those up to the next edge of registered memory, which no copy may cross. */
static size_t up_to_edge(const struct hr_gpu *gpu, const void *host, size_t size_bytes)
{
    const uintptr_t at = (uintptr_t) host;

    for (size_t i = 0; i < gpu->n_registered; i++) {
        const struct hr_host_range *range = &gpu->registered[i];
        const uintptr_t edge = at < range->begin ? range->begin : range->end;

        if (edge > at && edge - at < size_bytes)
            size_bytes = edge - at;
    }
    return size_bytes;
}

/* ---- copies --------------------------------------------------------------------------------- */

static int cuda_sync(struct hr_gpu *gpu)
{
    const struct hr_cuda *cuda = (const struct hr_cuda *) gpu;
    int r = hr_cuda_check(cudaSetDevice(cuda->ordinal), "device");

    if (r == 0)
        r = hr_cuda_check(cudaStreamSynchronize(cuda->copies), "copies");
    if (r == 0)
        r = hr_cuda_check(cudaStreamSynchronize(cuda->computes), "operations");
    return r;
}

static int copy(const struct hr_cuda *cuda, void *dst, const void *src, size_t size_bytes,
                const char *what)
{
    int r = hr_cuda_check(cudaSetDevice(cuda->ordinal), "device");

    if (r == 0)
        r = hr_cuda_check(cudaMemcpyAsync(dst, src, size_bytes, cudaMemcpyDefault, cuda->computes),
                          what);
    if (r == 0)
        r = hr_cuda_check(cudaStreamSynchronize(cuda->computes), what);
    return r;
}

/* After all earlier operations, which may read what was there; the source is free on return. */
static int cuda_upload(struct hr_gpu *gpu, void *dst, const void *src_host, size_t size_bytes)
{
    return copy((const struct hr_cuda *) gpu, dst, src_host, size_bytes, "upload");
}

static int cuda_download(struct hr_gpu *gpu, void *dst_host, const void *src, size_t size_bytes)
{
    return copy((const struct hr_cuda *) gpu, dst_host, src, size_bytes, "download");
}

static int cuda_copy(struct hr_gpu *gpu, void *dst, const void *src, size_t size_bytes)
{
    const struct hr_cuda *cuda = (const struct hr_cuda *) gpu;
    int r = hr_cuda_check(cudaSetDevice(cuda->ordinal), "device");

    if (r == 0)
        r = hr_cuda_check(
            cudaMemcpyAsync(dst, src, size_bytes, cudaMemcpyDeviceToDevice, cuda->computes),
            "copy on the device");
    return r;
}

/* ---- weights -------------------------------------------------------------------------------- */

/* Room for a slot: the copy stream, not the caller, waits until what lay there has been used. */
static int take_slot(struct hr_cuda *cuda, size_t size_bytes, uint64_t *ret_offset,
                     uint64_t *ret_ticket)
{
    if (size_bytes > cuda->slots.size_bytes) {
        hr_log(HR_LOG_ERROR, "cuda: a weight of %llu MiB does not fit into slots of %llu MiB",
               hr_mib(size_bytes), hr_mib(cuda->slots.size_bytes));
        return -ENOMEM;
    }
    while (!hr_slots_take(&cuda->slots, size_bytes, ret_offset, ret_ticket)) {
        const size_t i = cuda->slots.oldest % HR_SLOTS_MAX;

        if (cuda->is_staged[i]) {
            hr_log(HR_LOG_ERROR, "cuda: the weights in use leave no room for %llu MiB more",
                   hr_mib(size_bytes));
            return -ENOMEM;
        }
        hr_slots_pop(&cuda->slots);
        const int r = hr_cuda_check(cudaStreamWaitEvent(cuda->copies, cuda->used[i], 0), "wait");

        if (r < 0)
            return r;
    }
    return 0;
}

static int copy_weight(const struct hr_cuda *cuda, unsigned char *dst, const void *host,
                       size_t size_bytes)
{
    const unsigned char *src = host;
    size_t n;
    int r = 0;

    for (size_t at = 0; at < size_bytes && r == 0; at += n) {
        n = up_to_edge(&cuda->gpu, src + at, size_bytes - at);
        r = hr_cuda_check(
            cudaMemcpyAsync(dst + at, src + at, n, cudaMemcpyHostToDevice, cuda->copies),
            "copy of a weight");
    }
    return r;
}

static int cuda_stage(struct hr_gpu *gpu, struct hr_gpu_weight *ret_weight, const void *host,
                      size_t size_bytes)
{
    struct hr_cuda *cuda = (struct hr_cuda *) gpu;
    uint64_t offset, ticket;

    if (hr_device_has(gpu, host)) {
        *ret_weight = (struct hr_gpu_weight){.data = host, .ticket = cuda->n_in_ring++};
        return 0;
    }
    int r = hr_cuda_check(cudaSetDevice(cuda->ordinal), "device");

    if (r == 0)
        r = take_slot(cuda, size_bytes, &offset, &ticket);
    if (r < 0)
        return r;
    const size_t i = ticket % HR_SLOTS_MAX;

    r = copy_weight(cuda, cuda->slot_memory + offset, host, size_bytes);
    if (r == 0)
        r = hr_cuda_check(cudaEventRecord(cuda->copied[i], cuda->copies), "event");
    if (r == 0)
        r = hr_cuda_check(cudaStreamWaitEvent(cuda->computes, cuda->copied[i], 0), "wait");
    if (r < 0) {
        cudaStreamSynchronize(cuda->copies); /* the host's bytes are the caller's again */
        return r;
    }
    cuda->is_staged[i] = true;
    *ret_weight = (struct hr_gpu_weight){.data = cuda->slot_memory + offset, .ticket = ticket};
    return 0;
}

static void cuda_unstage(struct hr_gpu *gpu, const struct hr_gpu_weight *weight)
{
    struct hr_cuda *cuda = (struct hr_cuda *) gpu;
    const size_t i = weight->ticket % HR_SLOTS_MAX;

    /* Should it fail, so will all that follows. */
    if (hr_cuda_check(cudaSetDevice(cuda->ordinal), "device") == 0)
        hr_cuda_check(cudaEventRecord(cuda->used[i], cuda->computes), "event");
    cuda->is_staged[i] = false;
}

/* Of a place used by a later slot since, the later copy is asked for: copies are done in order, as
 * operations are, which use weights in the ring. After a failure nothing reads the host's bytes any
 * more. */
static bool cuda_host_is_free(struct hr_gpu *gpu, const struct hr_gpu_weight *weight, bool wait)
{
    const struct hr_cuda *cuda = (const struct hr_cuda *) gpu;
    const size_t i = weight->ticket % HR_SLOTS_MAX;
    const cudaEvent_t event = hr_device_has(gpu, weight->data) ? cuda->used[i] : cuda->copied[i];
    cudaError_t e = cudaSetDevice(cuda->ordinal);

    if (e == cudaSuccess)
        e = wait ? cudaEventSynchronize(event) : cudaEventQuery(event);
    if (e == cudaErrorNotReady) {
        (void) cudaGetLastError();
        return false;
    }
    hr_cuda_check(e, "copy of a weight");
    return true;
}

/* ---- table ---------------------------------------------------------------------------------- */

const struct hr_device_fns hr_device_cuda = {
    .name = "cuda",
    .takes_number = true,
    .probe = cuda_probe,
    .open = cuda_open,
    .close = cuda_close,
    .scratch_bytes = hr_cuda_scratch_bytes,
    .device_parts = hr_cuda_device_parts,
    .memory = hr_cuda_memory,
    .begin_thread = cuda_begin_thread,
    .register_host = cuda_register_host,
    .unregister_host = cuda_unregister_host,
    .upload = cuda_upload,
    .download = cuda_download,
    .sync = cuda_sync,
    .copy = cuda_copy,
    .stage = cuda_stage,
    .unstage = cuda_unstage,
    .host_is_free = cuda_host_is_free,
    .linear = hr_cuda_op_linear,
    .layernorm_modulate = hr_cuda_op_layernorm_modulate,
    .rmsnorm = hr_cuda_op_rmsnorm,
    .qk_norm_rope = hr_cuda_op_qk_norm_rope,
    .attention = hr_cuda_op_attention,
    .attention_prepare = hr_cuda_op_attention_prepare,
    .attention_name = cuda_attention_name,
    .silu = hr_cuda_op_silu,
    .flag_nonfinite = hr_cuda_op_flag_nonfinite,
    .to_f32 = hr_cuda_op_to_f32,
};
