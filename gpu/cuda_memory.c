/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_memory.c -- the memory of an NVIDIA GPU: what is taken of it, in one allocation, and what
 * the driver sees of that.
 */
#include <errno.h>
#include <string.h>

#include "gpu/cuda.h"

enum {
    SLOTS_BYTES_MAX = 128 << 20,
    SLOTS_BYTES_MIN = 32 << 20, /* the largest band of a weight */
    /* What driver and libraries take on the device beside our allocation: allowances. cuDNN's
     * where it is asked for. */
    CONTEXT_BYTES = 512 << 20,
    DNN_CONTEXT_BYTES = 256 << 20,
    /* Of host memory for driver and libraries: an allowance. */
    HOST_BYTES = 512 << 20,
};

static uint64_t arena_bytes_of(const struct hr_gpu_params *params)
{
    return hr_align_up(params->arena_bytes, HR_GPU_ARENA_STEP);
}

static uint64_t dnn_context_bytes_of(const struct hr_gpu_params *params)
{
    return params->attention == HR_ATTENTION_CUDNN ? DNN_CONTEXT_BYTES : 0;
}

/* As asked for; or as much as helps and the limit leaves. */
static uint64_t slot_bytes_of(const struct hr_gpu_params *params)
{
    const uint64_t others = arena_bytes_of(params) + HR_CUDA_SCRATCH_BYTES + CONTEXT_BYTES +
                            dnn_context_bytes_of(params);
    uint64_t left = SLOTS_BYTES_MAX;

    if (params->slot_bytes)
        return hr_align_up(params->slot_bytes, HR_SLOT_ALIGN);
    if (params->vram_bytes)
        left = params->vram_bytes > others ? params->vram_bytes - others : 0;
    left = hr_align_down(hr_min_u64(left, SLOTS_BYTES_MAX), HR_MIB);
    return hr_max_u64(left, SLOTS_BYTES_MIN);
}

/* Beside the arena; all but allowances lie in this order in the one allocation. */
enum part { WEIGHTS, SUMS, CAST, LOW, PACKED, WORKSPACE, ALLOWANCE, DNN_ALLOWANCE, N_PARTS };

uint32_t hr_cuda_device_parts(const struct hr_gpu_params *params, struct hr_gpu_part *ret_parts)
{
    const struct hr_gpu_part parts[N_PARTS] = {
        [WEIGHTS] = hr_gpu_weights_part(params, slot_bytes_of(params)),
        [SUMS] = {"scratch", "sums of products", HR_CUDA_SUMS_BYTES},
        [CAST] = {"scratch", "rows of weights, cast", HR_CUDA_CAST_BYTES},
        [LOW] = {"scratch", "rows of LoRAs", HR_CUDA_LOW_BYTES},
        [PACKED] = {"scratch", "rows of inputs, packed", HR_CUDA_PACKED_BYTES},
        [WORKSPACE] = {"scratch", "workspace of cuBLASLt and cuDNN", HR_CUDA_WORKSPACE_BYTES},
        [ALLOWANCE] = {"driver and libraries", "driver and libraries", CONTEXT_BYTES},
        [DNN_ALLOWANCE] = {"driver and libraries", "cuDNN", dnn_context_bytes_of(params)},
    };
    memcpy(ret_parts, parts, sizeof(parts));
    return parts[DNN_ALLOWANCE].size_bytes > 0 ? N_PARTS : DNN_ALLOWANCE;
}

uint64_t hr_cuda_scratch_bytes(const struct hr_gpu_params *params)
{
    /* Layers are cut into parts of bounded size. */
    return HOST_BYTES + (params->attention == HR_ATTENTION_CUDNN ? HR_DNN_HOST_BYTES : 0);
}

static int error_memory(cudaError_t e, const struct hr_gpu_params *params, struct hr_error *err)
{
    struct hr_gpu_part parts[HR_GPU_PARTS_MAX];
    const uint32_t n = hr_gpu_arena_parts(params, parts);
    size_t free_bytes = 0, total_bytes = 0;
    char text[256];

    (void) cudaGetLastError();
    cudaMemGetInfo(&free_bytes, &total_bytes);
    hr_cuda_device_parts(params, parts + n);
    return hr_error_set(err, e == cudaErrorMemoryAllocation ? -ENOMEM : -EIO,
                        "cuda: %s MiB do not fit in the %llu MiB that are free: %s; close other "
                        "programs on the GPU, use a smaller picture, or --device cpu",
                        hr_gpu_parts_text(text, sizeof(text), parts, n + ALLOWANCE),
                        (unsigned long long) (free_bytes / HR_MIB), cudaGetErrorString(e));
}

int hr_cuda_take_memory(struct hr_cuda *cuda, const struct hr_gpu_params *params,
                        struct hr_error *err)
{
    const uint64_t arena_bytes = arena_bytes_of(params);
    struct hr_gpu_part parts[HR_GPU_PARTS_MAX];
    uint64_t ends[N_PARTS], total_bytes = arena_bytes;

    hr_cuda_device_parts(params, parts);
    for (unsigned i = 0; i < ALLOWANCE; i++)
        ends[i] = total_bytes += parts[i].size_bytes;
    const cudaError_t e = cudaMalloc((void **) &cuda->memory, total_bytes);

    if (e != cudaSuccess)
        return error_memory(e, params, err);
    cuda->memory_bytes = total_bytes;
    cuda->gpu.arena = cuda->memory;
    cuda->gpu.arena_bytes = arena_bytes;
    cuda->slot_memory = cuda->memory + arena_bytes;
    if (!params->ring_bytes) {
        hr_slots_init(&cuda->slots, parts[WEIGHTS].size_bytes);
    } else {
        const uintptr_t at = (uintptr_t) cuda->slot_memory;

        cuda->gpu.ring = cuda->slot_memory + (hr_align_up(at, HR_GPU_RING_STEP) - at);
        cuda->gpu.ring_bytes = params->ring_bytes;
    }
    cuda->sums = (float *) (void *) (cuda->memory + ends[SUMS - 1]);
    cuda->cast = cuda->memory + ends[CAST - 1];
    cuda->low = cuda->memory + ends[LOW - 1];
    cuda->packed = cuda->memory + ends[PACKED - 1];
    cuda->workspace = cuda->memory + ends[WORKSPACE - 1];
    return hr_lt_open(&cuda->lt, cuda->workspace, parts[WORKSPACE].size_bytes, err);
}

/* ---- as the driver sees it ------------------------------------------------------------------ */

bool hr_cuda_memory(struct hr_gpu *gpu, struct hr_gpu_memory *ret)
{
    const struct hr_cuda *cuda = (const struct hr_cuda *) gpu;
    const struct hr_nvml_use now = hr_nvml_use(cuda->ordinal);

    if (!cuda->before.is_known || !now.is_known)
        return false;
    *ret = (struct hr_gpu_memory){.used_bytes = hr_nvml_growth(&cuda->before, &now),
                                  .taken_bytes = cuda->memory_bytes};
    return true;
}
