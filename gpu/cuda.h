/* SPDX-License-Identifier: Apache-2.0 */
/* cuda.h -- inside of the CUDA device: what gpu_cuda.c, cuda_linear.c and cuda_ops.c share. */
#ifndef HR_GPU_CUDA_H
#define HR_GPU_CUDA_H

#include "gpu/cuda_dnn.h"
#include "gpu/cuda_kernels.h"
#include "gpu/cuda_lt.h"
#include "gpu/cuda_nvml.h"
#include "gpu/device.h"
#include "gpu/slots.h"

/* Scratch, taken with the arena. Linear layers are cut into parts that fit. */
enum {
    HR_CUDA_SUMS_BYTES = 32 << 20,   /* f32 sums of a part: half the L2 cache of large devices */
    HR_CUDA_CAST_BYTES = 32 << 20,   /* rows of w as the product wants them: a band of bf16     */
    HR_CUDA_LOW_BYTES = 16 << 20,    /* rows of a low-rank term in f32                          */
    HR_CUDA_PACKED_BYTES = 16 << 20, /* rows of x that do not lie as the product wants them     */
    HR_CUDA_WORKSPACE_BYTES = 16 << 20, /* cuBLASLt's, and cuDNN's: they run in turns           */
    HR_CUDA_SCRATCH_BYTES = HR_CUDA_SUMS_BYTES + HR_CUDA_CAST_BYTES + HR_CUDA_LOW_BYTES +
                            HR_CUDA_PACKED_BYTES + HR_CUDA_WORKSPACE_BYTES,
};

struct hr_cuda {
    struct hr_gpu gpu; /* first: the device is known by its address */
    int ordinal;
    const atomic_int *cancelled;
    struct hr_lt *lt;
    struct hr_dnn *dnn;    /* NULL: attention by our own kernel */
    unsigned char *memory; /* one allocation: arena, slots, scratch */
    uint64_t memory_bytes;
    struct hr_nvml_use before; /* what the driver said before the device was touched */

    cudaStream_t copies, computes;
    struct hr_slots slots;
    unsigned char *slot_memory;
    uint64_t n_in_ring; /* tickets of weights in the ring, where there is one instead of slots */
    /* Of slots, or weights in the ring, by ticket modulo HR_SLOTS_MAX. copied: on `copies`, after
     * the copy into it; used: on `computes`, after the last operation on it. */
    cudaEvent_t copied[HR_SLOTS_MAX], used[HR_SLOTS_MAX];
    bool is_staged[HR_SLOTS_MAX];

    float *sums;
    void *cast, *low, *packed, *workspace;
};

/* @return 0, or -errno with a line in the log */
int hr_cuda_check(cudaError_t e, const char *what);
enum hr_cuda_dtype hr_cuda_dtype_of(enum hr_dtype dtype);
/* Before each operation: the device is the thread's, and nobody has cancelled. @return 0,
 * -ECANCELED or -EIO */
int hr_cuda_begin(const struct hr_cuda *cuda);

/* ---- memory --------------------------------------------------------------------------------- */

uint64_t hr_cuda_scratch_bytes(const struct hr_gpu_params *params);
uint32_t hr_cuda_device_parts(const struct hr_gpu_params *params, struct hr_gpu_part *ret_parts);
/* Arena, slots or ring, scratch, and cuBLASLt, which has some of that. @return 0 or -errno */
int hr_cuda_take_memory(struct hr_cuda *cuda, const struct hr_gpu_params *params,
                        struct hr_error *err);
bool hr_cuda_memory(struct hr_gpu *gpu, struct hr_gpu_memory *ret);

/* ---- operations ----------------------------------------------------------------------------- */

int hr_cuda_op_linear(struct hr_gpu *gpu, const struct hr_linear *p);
int hr_cuda_op_layernorm_modulate(struct hr_gpu *gpu, const struct hr_layernorm_modulate *p);
int hr_cuda_op_rmsnorm(struct hr_gpu *gpu, float *out, const float *x, const float *gain,
                       size_t n_tokens, size_t width);
int hr_cuda_op_qk_norm_rope(struct hr_gpu *gpu, const struct hr_qk_norm_rope *p);
int hr_cuda_op_attention(struct hr_gpu *gpu, const struct hr_attention *p);
int hr_cuda_op_attention_prepare(struct hr_gpu *gpu, const struct hr_attention *p,
                                 struct hr_error *err);
int hr_cuda_op_silu(struct hr_gpu *gpu, float *out, const float *x, size_t n);
int hr_cuda_op_flag_nonfinite(struct hr_gpu *gpu, uint32_t *flag, const float *x, size_t n);
int hr_cuda_op_to_f32(struct hr_gpu *gpu, float *dst, const void *src, enum hr_dtype dtype,
                      size_t n);

#endif /* HR_GPU_CUDA_H */
