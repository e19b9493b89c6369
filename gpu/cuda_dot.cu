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

enum { THREADS = 128, WARPS = THREADS / HR_CUDA_LANES, ROWS = 2 };

template <int TOKENS, bool X_IS_BF16>
__global__ void __launch_bounds__(THREADS) dot_kernel(struct hr_cuda_dot p)
{
    const size_t row = ((size_t) blockIdx.x * WARPS + threadIdx.x / HR_CUDA_LANES) * ROWS;
    const unsigned lane = threadIdx.x % HR_CUDA_LANES;
    const struct hr_cuda_format wf = hr_cuda_format_of(p.w_dtype);
    const struct hr_cuda_format xf = hr_cuda_format_of(X_IS_BF16 ? HR_CUDA_BF16 : HR_CUDA_F32);
    const bool rounds = X_IS_BF16 && (p.w_dtype == HR_CUDA_F32 || p.w_dtype == HR_CUDA_F16);
    float sums[TOKENS][ROWS] = {};

    for (size_t k = (size_t) lane * HR_CUDA_GROUP; k < p.n_in; k += HR_CUDA_LANES * HR_CUDA_GROUP) {
        const size_t n = min(p.n_in - k, (size_t) HR_CUDA_GROUP);
        float w[ROWS][HR_CUDA_GROUP];

#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const size_t at = min(row + r, p.n_rows - 1) * p.n_in + k;

            hr_cuda_load_group(w[r], (const unsigned char *) p.w + at * wf.size, wf, n);
            for (int j = 0; j < HR_CUDA_GROUP && rounds; j++)
                w[r][j] = hr_cuda_from_bf16(hr_cuda_to_bf16(w[r][j]));
        }
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float x[HR_CUDA_GROUP];

            hr_cuda_load_group(x, (const unsigned char *) p.x + (t * p.x_stride + k) * xf.size, xf,
                               n);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int j = 0; j < HR_CUDA_GROUP; j++)
                    sums[t][r] = __fmaf_rn(x[j], w[r][j], sums[t][r]);
        }
    }
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

    if (p->x_is_bf16)
        HR_LAUNCH((dot_kernel<TOKENS, true>), blocks, THREADS, stream, *p);
    else
        HR_LAUNCH((dot_kernel<TOKENS, false>), blocks, THREADS, stream, *p);
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
