/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_kernels.h -- what the .cu files give to the C files of the CUDA device: one function for
 * each kernel, which launches it on a stream.
 *
 * All pointers but those to parameter structs are device addresses. @return whether the
 * launch was refused; what happens during the run is seen later, by whoever waits for the stream.
 * Each kernel's bits depend on its arguments alone.
 */
#ifndef HR_GPU_CUDA_KERNELS_H
#define HR_GPU_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#ifdef __CUDACC__
#include <stdint.h>
#else
#include <stdbool.h>
#include <stdint.h>
#endif

#include "gpu/cuda_math.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { HR_CUDA_FEW_TOKENS = 6 };

/* dst[r * dst_stride + c] = src[r, c] as F32 or BF16, for c < n_in; 0 for n_in <= c < n_pad. */
struct hr_cuda_cast {
    void *dst;
    bool dst_is_bf16;
    size_t dst_stride, n_pad;
    const void *src; /* rows src_stride elements apart, at any address */
    enum hr_cuda_dtype src_dtype;
    size_t src_stride;
    size_t n_rows, n_in;
};
cudaError_t hr_cuda_cast(const struct hr_cuda_cast *p, cudaStream_t stream);

/* y[t * y_stride + n] = or += sum_k x[t,k] w[n,k], sums in f32; w is rounded to bf16 where x is. At
 * most HR_CUDA_FEW_TOKENS tokens, each with the bits that it has alone. */
struct hr_cuda_dot {
    float *y;
    size_t y_stride;
    const void *x;
    bool x_is_bf16;
    size_t x_stride;
    const void *w; /* dense, at any address */
    enum hr_cuda_dtype w_dtype;
    size_t n_tokens, n_rows, n_in;
    bool accumulate;
};
cudaError_t hr_cuda_dot(const struct hr_cuda_dot *p, cudaStream_t stream);

/* y[t * stride + n] *= scale[n * scale_stride] */
cudaError_t hr_cuda_scale(float *y, size_t stride, size_t n_tokens, size_t n_out,
                          const float *scale, size_t scale_stride, cudaStream_t stream);
cudaError_t hr_cuda_epilogue(const struct hr_cuda_epilogue *p, cudaStream_t stream);

/* The operations of gpu.h of the same names. */
struct hr_cuda_layernorm {
    void *out;
    bool out_is_bf16;
    const float *x, *shift, *scale;
    size_t split, stride, n_tokens, width;
};
cudaError_t hr_cuda_layernorm_modulate(const struct hr_cuda_layernorm *p, cudaStream_t stream);
cudaError_t hr_cuda_rmsnorm(float *out, const float *x, const float *gain, size_t n_tokens,
                            size_t width, cudaStream_t stream);
struct hr_cuda_qk_norm {
    void *out;
    bool out_is_bf16;
    const float *x, *gain, *cos_sin;
    size_t n_tokens, n_heads;
};
cudaError_t hr_cuda_qk_norm_rope(const struct hr_cuda_qk_norm *p, cudaStream_t stream);
cudaError_t hr_cuda_silu(float *out, const float *x, size_t n, cudaStream_t stream);
cudaError_t hr_cuda_flag_nonfinite(uint32_t *flag, const float *x, size_t n, cudaStream_t stream);

struct hr_cuda_attention {
    void *out;
    const void *q, *k, *v; /* bf16: 16-byte aligned */
    size_t n_q, n_k, n_heads;
};
cudaError_t hr_cuda_attention_bf16(const struct hr_cuda_attention *p, cudaStream_t stream);
cudaError_t hr_cuda_attention_f32(const struct hr_cuda_attention *p, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif /* HR_GPU_CUDA_KERNELS_H */
