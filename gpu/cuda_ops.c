/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_ops.c -- operations of the CUDA device that are one kernel each. */
#include "gpu/cuda.h"

int hr_cuda_op_layernorm_modulate(struct hr_gpu *gpu, const struct hr_layernorm_modulate *p)
{
    const struct hr_cuda *cuda = (const struct hr_cuda *) gpu;
    const struct hr_cuda_layernorm args = {
        .out = p->out,
        .out_is_bf16 = p->out_dtype == HR_DTYPE_BF16,
        .x = p->x,
        .shift = p->shift,
        .scale = p->scale,
        .split = p->split,
        .stride = p->stride,
        .n_tokens = p->n_tokens,
        .width = p->width,
    };
    const int r = hr_cuda_begin(cuda);

    return r == 0 ? hr_cuda_check(hr_cuda_layernorm_modulate(&args, cuda->computes), "layer norm")
                  : r;
}

int hr_cuda_op_rmsnorm(struct hr_gpu *gpu, float *out, const float *x, const float *gain,
                       size_t n_tokens, size_t width)
{
    const struct hr_cuda *cuda = (const struct hr_cuda *) gpu;
    const int r = hr_cuda_begin(cuda);

    return r == 0 ? hr_cuda_check(hr_cuda_rmsnorm(out, x, gain, n_tokens, width, cuda->computes),
                                  "RMS norm")
                  : r;
}

int hr_cuda_op_qk_norm_rope(struct hr_gpu *gpu, const struct hr_qk_norm_rope *p)
{
    const struct hr_cuda *cuda = (const struct hr_cuda *) gpu;
    const struct hr_cuda_qk_norm args = {
        .out = p->out,
        .out_is_bf16 = gpu->act == HR_DTYPE_BF16,
        .x = p->x,
        .gain = p->gain,
        .cos_sin = p->cos_sin,
        .n_tokens = p->n_tokens,
        .n_heads = p->n_heads,
    };
    const int r = hr_cuda_begin(cuda);

    return r == 0 ? hr_cuda_check(hr_cuda_qk_norm_rope(&args, cuda->computes), "norm of q and k")
                  : r;
}

static struct hr_dnn_shape dnn_shape_of(const struct hr_attention *p)
{
    return (struct hr_dnn_shape){.n_q = p->n_q, .n_k = p->n_k, .n_heads = p->n_heads};
}

int hr_cuda_op_attention_prepare(struct hr_gpu *gpu, const struct hr_attention *p,
                                 struct hr_error *err)
{
    const struct hr_cuda *cuda = (const struct hr_cuda *) gpu;
    const struct hr_dnn_shape shape = dnn_shape_of(p);
    int r = cuda->dnn ? hr_cuda_begin(cuda) : 0;

    if (r < 0)
        return hr_error_set(err, r, "cuda: attention is not prepared");
    return cuda->dnn ? hr_dnn_prepare(cuda->dnn, &shape, err) : 0;
}

int hr_cuda_op_attention(struct hr_gpu *gpu, const struct hr_attention *p)
{
    const struct hr_cuda *cuda = (const struct hr_cuda *) gpu;
    const struct hr_cuda_attention args = {
        .out = p->out,
        .q = p->q,
        .k = p->k,
        .v = p->v,
        .n_q = p->n_q,
        .n_k = p->n_k,
        .n_heads = p->n_heads,
    };
    const int r = hr_cuda_begin(cuda);

    if (r < 0)
        return r;
    if (gpu->act == HR_DTYPE_F32)
        return hr_cuda_check(hr_cuda_attention_f32(&args, cuda->computes), "attention");
    hr_assert(((uintptr_t) p->q | (uintptr_t) p->k | (uintptr_t) p->v) % HR_DNN_ALIGN == 0);
    if (cuda->dnn) {
        const struct hr_dnn_shape shape = dnn_shape_of(p);

        hr_assert((uintptr_t) p->out % HR_DNN_ALIGN == 0);
        return hr_dnn_run(cuda->dnn, &shape, p->out, p->q, p->k, p->v);
    }
    return hr_cuda_check(hr_cuda_attention_bf16(&args, cuda->computes), "attention");
}

int hr_cuda_op_silu(struct hr_gpu *gpu, float *out, const float *x, size_t n)
{
    const struct hr_cuda *cuda = (const struct hr_cuda *) gpu;
    const int r = hr_cuda_begin(cuda);

    return r == 0 ? hr_cuda_check(hr_cuda_silu(out, x, n, cuda->computes), "SiLU") : r;
}

int hr_cuda_op_flag_nonfinite(struct hr_gpu *gpu, uint32_t *flag, const float *x, size_t n)
{
    const struct hr_cuda *cuda = (const struct hr_cuda *) gpu;
    const int r = hr_cuda_begin(cuda);

    return r == 0
               ? hr_cuda_check(hr_cuda_flag_nonfinite(flag, x, n, cuda->computes), "search for NaN")
               : r;
}

int hr_cuda_op_to_f32(struct hr_gpu *gpu, float *dst, const void *src, enum hr_dtype dtype,
                      size_t n)
{
    const struct hr_cuda *cuda = (const struct hr_cuda *) gpu;
    const struct hr_cuda_cast args = {
        .dst = dst,
        .dst_stride = n,
        .n_pad = n,
        .src = src,
        .src_dtype = hr_cuda_dtype_of(dtype),
        .src_stride = n,
        .n_rows = 1,
        .n_in = n,
    };
    const int r = hr_cuda_begin(cuda);

    return r == 0 ? hr_cuda_check(hr_cuda_cast(&args, cuda->computes), "conversion") : r;
}
