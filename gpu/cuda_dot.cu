/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_dot.cu -- products of a few tokens, bound by the memory that weights are read from.
 *
 * A warp makes ROWS rows of w times all tokens. Lane l takes the groups of 8 columns l, l + 32,
 * ...; its sums are added up over the warp as a tree. Which lane adds what in which order follows
 * from n_in alone, never from addresses or from the number of tokens: each token has the bits it
 * has alone.
 */
#include "gpu/cuda_device.cuh"

namespace
{

enum {
    THREADS = 128,
    WARPS = THREADS / HR_CUDA_LANES,
    ROWS = 2,
    STEP = HR_CUDA_LANES * HR_CUDA_GROUP, /* columns of a warp at a time */
};

template <bool WHOLE>
__device__ __forceinline__ void load(hr_cuda_raw &raw, const unsigned char *p, uint32_t size,
                                     size_t n)
{
    if (WHOLE)
        hr_cuda_load_words(&raw, p, size);
    else
        hr_cuda_load_raw(&raw, p, size, n);
}

/* Adds the products of this lane's groups at columns k, k + STEP, ...; all that is read of w is
 * asked for before the first of it is used. WHOLE: aligned, and none goes beyond the end. */
template <int TOKENS, bool X_IS_BF16, bool W_IS_BF16, int GROUPS, bool WHOLE>
__device__ __forceinline__ void add_groups(float (*sums)[ROWS], const struct hr_cuda_dot &p,
                                           size_t row, size_t k)
{
    const hr_cuda_format wf = hr_cuda_format_of(W_IS_BF16 ? HR_CUDA_BF16 : p.w_dtype);
    const hr_cuda_format xf = hr_cuda_format_of(X_IS_BF16 ? HR_CUDA_BF16 : HR_CUDA_F32);
    const bool rounds = !W_IS_BF16 && X_IS_BF16 && wf.size > 1; /* of fp8 bf16 has all values */
    const unsigned char *x = (const unsigned char *) p.x, *w = (const unsigned char *) p.w;
    const size_t n = WHOLE ? (size_t) HR_CUDA_GROUP : min(p.n_in - k, (size_t) HR_CUDA_GROUP);
    hr_cuda_raw raw[GROUPS][ROWS];

#pragma unroll
    for (int g = 0; g < GROUPS; g++)
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            load<WHOLE>(raw[g][r],
                        w + (min(row + r, p.n_rows - 1) * p.n_in + k + g * STEP) * wf.size, wf.size,
                        n);
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        float v[ROWS][HR_CUDA_GROUP];

#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int j = 0; j < HR_CUDA_GROUP; j++) {
                v[r][j] = hr_cuda_value(&raw[g][r], wf, j);
                if (rounds)
                    v[r][j] = hr_cuda_from_bf16(hr_cuda_to_bf16(v[r][j]));
            }
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            hr_cuda_raw mine;

            load<WHOLE>(mine, x + (t * p.x_stride + k + g * STEP) * xf.size, xf.size, n);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int j = 0; j < HR_CUDA_GROUP; j++)
                    sums[t][r] = __fmaf_rn(hr_cuda_value(&mine, xf, j), v[r][j], sums[t][r]);
        }
    }
}

/* Whether each row of w and x begins where groups can be read in words. */
__device__ __forceinline__ bool is_aligned(const struct hr_cuda_dot &p, uint32_t w_size,
                                           uint32_t x_size)
{
    const unsigned char *x = (const unsigned char *) p.x, *w = (const unsigned char *) p.w;

    return hr_cuda_is_aligned(w, w_size) && hr_cuda_is_aligned(w + p.n_in * w_size, w_size) &&
           hr_cuda_is_aligned(x, x_size) && hr_cuda_is_aligned(x + p.x_stride * x_size, x_size);
}

template <int TOKENS, bool X_IS_BF16, bool W_IS_BF16>
__global__ void __launch_bounds__(THREADS) dot_kernel(struct hr_cuda_dot p)
{
    const size_t row = ((size_t) blockIdx.x * WARPS + threadIdx.x / HR_CUDA_LANES) * ROWS;
    const unsigned lane = threadIdx.x % HR_CUDA_LANES;
    const uint32_t w_size = hr_cuda_format_of(W_IS_BF16 ? HR_CUDA_BF16 : p.w_dtype).size;
    size_t k = (size_t) lane * HR_CUDA_GROUP;
    float sums[TOKENS][ROWS] = {};

    if (is_aligned(p, w_size, X_IS_BF16 ? 2 : 4))
        for (; k + STEP + HR_CUDA_GROUP <= p.n_in; k += 2 * STEP)
            add_groups<TOKENS, X_IS_BF16, W_IS_BF16, 2, true>(sums, p, row, k);
    for (; k < p.n_in; k += STEP)
        add_groups<TOKENS, X_IS_BF16, W_IS_BF16, 1, false>(sums, p, row, k);
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float sum = sums[t][r];

#pragma unroll
            for (int step = HR_CUDA_LANES / 2; step > 0; step /= 2)
                sum += __shfl_xor_sync(0xffffffffu, sum, step);
            if (lane == 0 && row + r < p.n_rows) {
                float *y = p.y + t * p.y_stride + row + r;

                *y = p.accumulate ? *y + sum : sum;
            }
        }
    }
}

template <int TOKENS> void launch(const struct hr_cuda_dot *p, cudaStream_t stream)
{
    const size_t each = WARPS * ROWS;
    const unsigned blocks = (unsigned) ((p->n_rows + each - 1) / each);
    const bool w_is_bf16 = p->w_dtype == HR_CUDA_BF16;

    if (p->x_is_bf16 && w_is_bf16)
        HR_LAUNCH((dot_kernel<TOKENS, true, true>), blocks, THREADS, stream, *p);
    else if (p->x_is_bf16)
        HR_LAUNCH((dot_kernel<TOKENS, true, false>), blocks, THREADS, stream, *p);
    else if (w_is_bf16)
        HR_LAUNCH((dot_kernel<TOKENS, false, true>), blocks, THREADS, stream, *p);
    else
        HR_LAUNCH((dot_kernel<TOKENS, false, false>), blocks, THREADS, stream, *p);
}

} // namespace

cudaError_t hr_cuda_dot(const struct hr_cuda_dot *p, cudaStream_t stream)
{
    static void (*const launches[])(const struct hr_cuda_dot *, cudaStream_t) = {
        launch<1>, launch<2>, launch<3>, launch<4>, launch<5>, launch<6>};

    static_assert(sizeof(launches) / sizeof(launches[0]) == HR_CUDA_FEW_TOKENS, "one for each");
    if (p->n_tokens < 1 || p->n_tokens > HR_CUDA_FEW_TOKENS)
        return cudaErrorInvalidValue;
    launches[p->n_tokens - 1](p, stream);
    return cudaGetLastError();
}
