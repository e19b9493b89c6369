/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_rows.cu -- CUDA kernels that work element by element or row by row. Device code first,
 * launchers below. Four values are read and written as one where all addresses allow it.
 */
#include "gpu/cuda_device.cuh"

namespace
{

enum { THREADS = 256, WARPS = THREADS / HR_CUDA_LANES, ROWS_EACH = 4 };

__device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int step = HR_CUDA_LANES / 2; step > 0; step /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

/* The sum over all threads, in each of them. `shared` holds WARPS floats. */
__device__ __forceinline__ float block_sum(float v, float *shared)
{
    const unsigned lane = threadIdx.x % HR_CUDA_LANES, warp = threadIdx.x / HR_CUDA_LANES;
    float sum = 0.0f;

    v = warp_sum(v);
    __syncthreads(); /* an earlier sum has been read by all */
    if (lane == 0)
        shared[warp] = v;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < WARPS; i++)
        sum += shared[i];
    return sum;
}

/* Four values, as one where they are aligned, or n of them; the rest is 0. */
template <bool ALIGNED> __device__ __forceinline__ void load(float *v, const float *p, size_t n = 4)
{
    if constexpr (ALIGNED) {
        const float4 four = *(const float4 *) p;

        v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    } else {
#pragma unroll
        for (unsigned j = 0; j < 4; j++)
            v[j] = j < n ? p[j] : 0.0f;
    }
}

template <bool ALIGNED>
__device__ __forceinline__ void store(void *out, bool is_bf16, size_t at, const float *v,
                                      size_t n = 4)
{
    if constexpr (ALIGNED) {
        if (is_bf16)
            *(uint64_t *) ((uint16_t *) out + at) =
                hr_cuda_to_bf16_pair(v[0], v[1]) | (uint64_t) hr_cuda_to_bf16_pair(v[2], v[3])
                                                       << 32;
        else /* an assignment the compiler takes apart again */
            __stwb((float4 *) ((float *) out + at), make_float4(v[0], v[1], v[2], v[3]));
    } else {
#pragma unroll
        for (unsigned j = 0; j < 4; j++)
            if (j < n)
                hr_cuda_store(out, is_bf16, at + j, v[j]);
    }
}

/* ---- conversion ----------------------------------------------------------------------------- */

__global__ void cast_kernel(struct hr_cuda_cast p)
{
    const size_t groups = (p.n_pad + HR_CUDA_GROUP - 1) / HR_CUDA_GROUP;
    const size_t n = groups * p.n_rows, step = (size_t) gridDim.x * THREADS;
    const struct hr_cuda_format f = hr_cuda_format_of(p.src_dtype);

    for (size_t i = (size_t) blockIdx.x * THREADS + threadIdx.x; i < n; i += step) {
        const size_t row = i / groups, c = i % groups * HR_CUDA_GROUP;
        const unsigned char *src =
            (const unsigned char *) p.src + (row * p.src_stride + c) * f.size;
        const size_t n_read = c < p.n_in ? min(p.n_in - c, (size_t) HR_CUDA_GROUP) : 0;
        const size_t n_write = min(p.n_pad - c, (size_t) HR_CUDA_GROUP);
        const size_t at = row * p.dst_stride + c;
        float v[HR_CUDA_GROUP];

        hr_cuda_load_group(v, src, f, n_read);
        if (p.dst_is_bf16 && n_write == HR_CUDA_GROUP && (uintptr_t) p.dst % 16 == 0 &&
            at % 8 == 0) {
            uint32_t words[4];

#pragma unroll
            for (int j = 0; j < 4; j++)
                words[j] = hr_cuda_to_bf16_pair(v[2 * j], v[2 * j + 1]);
            *(uint4 *) ((uint16_t *) p.dst + at) =
                make_uint4(words[0], words[1], words[2], words[3]);
            continue;
        }
#pragma unroll
        for (unsigned j = 0; j < HR_CUDA_GROUP; j++)
            if (j < n_write)
                hr_cuda_store(p.dst, p.dst_is_bf16, at + j, v[j]);
    }
}

/* ---- linear layers -------------------------------------------------------------------------- */

__global__ void scale_kernel(float *y, size_t stride, size_t n_tokens, size_t n_out,
                             const float *scale, size_t scale_stride)
{
    const size_t n = (size_t) blockIdx.x * THREADS + threadIdx.x;

    for (size_t t = blockIdx.y; n < n_out && t < n_tokens; t += gridDim.y)
        y[t * stride + n] *= scale[n * scale_stride];
}

__global__ void epilogue_kernel(struct hr_cuda_epilogue p)
{
    const size_t n = (size_t) blockIdx.x * THREADS + threadIdx.x;

    for (size_t t = blockIdx.y; n < p.n_out && t < p.n_tokens; t += gridDim.y)
        hr_cuda_epilogue_one(&p, t, n);
}

/* Four columns of ROWS_EACH rows at a time, whose sums are asked for before the first is used. */
template <enum hr_cuda_epilogue_kind KIND, bool IS_BF16>
__global__ void epilogue_in_fours_kernel(struct hr_cuda_epilogue p)
{
    constexpr bool IS_GATED = KIND == HR_CUDA_EPILOGUE_GATED_RESIDUAL;
    const size_t n = ((size_t) blockIdx.x * THREADS + threadIdx.x) * 4, column = p.n_begin + n;
    const size_t step = (size_t) gridDim.y * ROWS_EACH;
    float scale[4], bias[4];

    if (n >= p.n_out)
        return;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        scale[j] = hr_cuda_epilogue_scale(&p, column + j);
        bias[j] = hr_cuda_epilogue_bias(&p, column + j);
    }
    for (size_t t = (size_t) blockIdx.y * ROWS_EACH; t < p.n_tokens; t += step) {
        float sums[ROWS_EACH][4];

#pragma unroll
        for (int i = 0; i < ROWS_EACH; i++)
            if (t + i < p.n_tokens)
                load<true>(sums[i], p.sums + (t + i) * p.sums_stride + n);
#pragma unroll
        for (int i = 0; i < ROWS_EACH; i++) {
            const size_t row = p.t_begin + t + i, at = row * p.out_stride + column;
            float old[4] = {}, gate[4] = {}, v[4];

            if (t + i >= p.n_tokens)
                break;
            if (IS_GATED)
                load<true>(old, (const float *) p.out + at);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (IS_GATED)
                    gate[j] = hr_cuda_epilogue_gate(&p, row, column + j);
                v[j] = hr_cuda_epilogue_value(KIND, sums[i][j], scale[j], bias[j], gate[j], old[j]);
            }
            store<true>(p.out, IS_BF16, at, v);
        }
    }
}

/* ---- norms ---------------------------------------------------------------------------------- */

/* A block for each token, four columns of a thread at a time. Differences are taken from a first
 * mean; what that lacks is found with their squares, so that a mean far from 0 costs no digits. */
template <bool ALIGNED> __global__ void layernorm_kernel(struct hr_cuda_layernorm p)
{
    __shared__ float shared[WARPS];
    const size_t t = blockIdx.x, offset = t >= p.split ? p.stride : 0;
    const float *x = p.x + t * p.width, *scale = p.scale + offset, *shift = p.shift + offset;
    const float width = (float) p.width;
    float sum = 0.0f, rest = 0.0f, square = 0.0f, v[4];

    for (size_t c = threadIdx.x * 4; c < p.width; c += THREADS * 4) {
        load<ALIGNED>(v, x + c, p.width - c);
#pragma unroll
        for (int j = 0; j < 4; j++)
            sum += v[j];
    }
    const float mean = block_sum(sum, shared) / width;
    for (size_t c = threadIdx.x * 4; c < p.width; c += THREADS * 4) {
        load<ALIGNED>(v, x + c, p.width - c);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float d = ALIGNED || c + j < p.width ? v[j] - mean : 0.0f;

            rest += d;
            square += d * d;
        }
    }
    rest = block_sum(rest, shared) / width;
    const float variance = fmaxf(block_sum(square, shared) / width - rest * rest, 0.0f);
    const float factor = 1.0f / sqrtf(variance + 1e-6f);
    for (size_t c = threadIdx.x * 4; c < p.width; c += THREADS * 4) {
        float a[4], b[4];

        load<ALIGNED>(v, x + c, p.width - c);
        load<ALIGNED>(a, scale + c, p.width - c);
        load<ALIGNED>(b, shift + c, p.width - c);
#pragma unroll
        for (int j = 0; j < 4; j++)
            v[j] = (v[j] - mean - rest) * factor * (1.0f + a[j]) + b[j];
        store<ALIGNED>(p.out, p.out_is_bf16, t * p.width + c, v, p.width - c);
    }
}

/* out may be x: a thread writes what it alone has read, after all have. */
__global__ void rmsnorm_kernel(float *out, const float *x, const float *gain, size_t width)
{
    __shared__ float shared[WARPS];
    const size_t at = blockIdx.x * width;
    float square = 0.0f;

    for (size_t c = threadIdx.x; c < width; c += THREADS)
        square += x[at + c] * x[at + c];
    const float r = sqrtf(block_sum(square, shared) / (float) width + 1e-6f);
    for (size_t c = threadIdx.x; c < width; c += THREADS)
        out[at + c] = x[at + c] / r * gain[c];
}

/* A warp for each token and head, two pairs for each lane. */
template <bool ALIGNED> __global__ void qk_norm_rope_kernel(struct hr_cuda_qk_norm p)
{
    const unsigned lane = threadIdx.x % HR_CUDA_LANES;
    const size_t i = (size_t) blockIdx.x * WARPS + threadIdx.x / HR_CUDA_LANES;

    if (i >= p.n_tokens * p.n_heads) /* the whole warp */
        return;
    const size_t at = i * 128 + 4 * lane, angles = i / p.n_heads * 128 + 4 * lane;
    float v[4], gain[4], cos_sin[4], square = 0.0f;

    load<ALIGNED>(v, p.x + at);
    load<ALIGNED>(gain, p.gain + 4 * lane);
    load<ALIGNED>(cos_sin, p.cos_sin + angles);
#pragma unroll
    for (int j = 0; j < 4; j++)
        square += v[j] * v[j];
    const float r = sqrtf(warp_sum(square) / 128.0f + 1e-6f);
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
        const float a = v[j] / r * gain[j], b = v[j + 1] / r * gain[j + 1];

        v[j] = a * cos_sin[j] - b * cos_sin[j + 1];
        v[j + 1] = a * cos_sin[j + 1] + b * cos_sin[j];
    }
    store<ALIGNED>(p.out, p.out_is_bf16, at, v);
}

/* ---- the rest ------------------------------------------------------------------------------- */

__global__ void silu_kernel(float *out, const float *x, size_t n)
{
    const size_t step = (size_t) gridDim.x * THREADS;

    for (size_t i = (size_t) blockIdx.x * THREADS + threadIdx.x; i < n; i += step)
        out[i] = hr_cuda_act_silu(x[i]);
}

__global__ void flag_nonfinite_kernel(uint32_t *flag, const float *x, size_t n)
{
    const size_t step = (size_t) gridDim.x * THREADS;
    bool is_bad = false;

    for (size_t i = (size_t) blockIdx.x * THREADS + threadIdx.x; i < n; i += step)
        is_bad |= (hr_cuda_bits(x[i]) & 0x7f800000u) == 0x7f800000u;
    if (is_bad) /* all that write it write the same */
        *(volatile uint32_t *) flag = 1;
}

/* ---- launchers ------------------------------------------------------------------------------ */

/* Blocks for n threads; kernels that step over the grid need no more. */
unsigned blocks_for(size_t n)
{
    const size_t blocks = (n + THREADS - 1) / THREADS;

    return (unsigned) (blocks < 8192 ? blocks : 8192);
}

/* Columns in x, rows in y, which a kernel steps over. */
dim3 grid_of(size_t n_rows, size_t n_columns)
{
    return dim3((unsigned) ((n_columns + THREADS - 1) / THREADS),
                (unsigned) (n_rows < 65535 ? n_rows : 65535));
}

/* For four values at a time. */
bool is_aligned(const void *p)
{
    return (uintptr_t) p % 16 == 0;
}

template <enum hr_cuda_epilogue_kind KIND>
void launch_in_fours(const struct hr_cuda_epilogue *p, cudaStream_t stream)
{
    const dim3 grid = grid_of((p->n_tokens + ROWS_EACH - 1) / ROWS_EACH, p->n_out / 4);

    if constexpr (KIND != HR_CUDA_EPILOGUE_GATED_RESIDUAL) /* which is always in f32 */
        if (p->out_is_bf16) {
            HR_LAUNCH((epilogue_in_fours_kernel<KIND, true>), grid, THREADS, stream, *p);
            return;
        }
    HR_LAUNCH((epilogue_in_fours_kernel<KIND, false>), grid, THREADS, stream, *p);
}

} // namespace

cudaError_t hr_cuda_cast(const struct hr_cuda_cast *p, cudaStream_t stream)
{
    const size_t groups = (p->n_pad + HR_CUDA_GROUP - 1) / HR_CUDA_GROUP;

    HR_LAUNCH(cast_kernel, blocks_for(groups * p->n_rows), THREADS, stream, *p);
    return cudaGetLastError();
}

cudaError_t hr_cuda_scale(float *y, size_t stride, size_t n_tokens, size_t n_out,
                          const float *scale, size_t scale_stride, cudaStream_t stream)
{
    HR_LAUNCH(scale_kernel, grid_of(n_tokens, n_out), THREADS, stream, y, stride, n_tokens, n_out,
              scale, scale_stride);
    return cudaGetLastError();
}

cudaError_t hr_cuda_epilogue(const struct hr_cuda_epilogue *p, cudaStream_t stream)
{
    if (!hr_cuda_epilogue_in_fours(p)) {
        HR_LAUNCH(epilogue_kernel, grid_of(p->n_tokens, p->n_out), THREADS, stream, *p);
        return cudaGetLastError();
    }
    switch (p->kind) {
    case HR_CUDA_EPILOGUE_STORE:
        launch_in_fours<HR_CUDA_EPILOGUE_STORE>(p, stream);
        break;
    case HR_CUDA_EPILOGUE_GELU_TANH:
        launch_in_fours<HR_CUDA_EPILOGUE_GELU_TANH>(p, stream);
        break;
    case HR_CUDA_EPILOGUE_QUICK_GELU:
        launch_in_fours<HR_CUDA_EPILOGUE_QUICK_GELU>(p, stream);
        break;
    case HR_CUDA_EPILOGUE_SILU:
        launch_in_fours<HR_CUDA_EPILOGUE_SILU>(p, stream);
        break;
    case HR_CUDA_EPILOGUE_GATED_RESIDUAL:
        launch_in_fours<HR_CUDA_EPILOGUE_GATED_RESIDUAL>(p, stream);
        break;
    }
    return cudaGetLastError();
}

cudaError_t hr_cuda_layernorm_modulate(const struct hr_cuda_layernorm *p, cudaStream_t stream)
{
    if (p->width % 4 == 0 && p->stride % 4 == 0 && is_aligned(p->x) && is_aligned(p->shift) &&
        is_aligned(p->scale) && is_aligned(p->out))
        HR_LAUNCH(layernorm_kernel<true>, (unsigned) p->n_tokens, THREADS, stream, *p);
    else
        HR_LAUNCH(layernorm_kernel<false>, (unsigned) p->n_tokens, THREADS, stream, *p);
    return cudaGetLastError();
}

cudaError_t hr_cuda_rmsnorm(float *out, const float *x, const float *gain, size_t n_tokens,
                            size_t width, cudaStream_t stream)
{
    HR_LAUNCH(rmsnorm_kernel, (unsigned) n_tokens, THREADS, stream, out, x, gain, width);
    return cudaGetLastError();
}

cudaError_t hr_cuda_qk_norm_rope(const struct hr_cuda_qk_norm *p, cudaStream_t stream)
{
    const size_t blocks = (p->n_tokens * p->n_heads + WARPS - 1) / WARPS;

    if (is_aligned(p->x) && is_aligned(p->gain) && is_aligned(p->cos_sin) && is_aligned(p->out))
        HR_LAUNCH(qk_norm_rope_kernel<true>, (unsigned) blocks, THREADS, stream, *p);
    else
        HR_LAUNCH(qk_norm_rope_kernel<false>, (unsigned) blocks, THREADS, stream, *p);
    return cudaGetLastError();
}

cudaError_t hr_cuda_silu(float *out, const float *x, size_t n, cudaStream_t stream)
{
    HR_LAUNCH(silu_kernel, blocks_for(n), THREADS, stream, out, x, n);
    return cudaGetLastError();
}

cudaError_t hr_cuda_flag_nonfinite(uint32_t *flag, const float *x, size_t n, cudaStream_t stream)
{
    HR_LAUNCH(flag_nonfinite_kernel, blocks_for(n), THREADS, stream, flag, x, n);
    return cudaGetLastError();
}
