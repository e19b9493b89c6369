/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_player.h -- CUDA kernels compiled for the host, each thread of a block played as a fiber.
 *
 * Included before everything else in a .cu file (g++ -include), it stands in for what nvcc and
 * gpu/cuda_device.cuh give. Blocks run one after the other. A thread runs until it meets a barrier
 * or an operation of its warp; which thread goes on is drawn by chance, so that a missing barrier
 * shows. Asynchronous copies are made when they are asked for or when they are waited for, by
 * chance too.
 */
#ifndef HR_TESTS_GPU_CUDA_PLAYER_H
#define HR_TESTS_GPU_CUDA_PLAYER_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include "tests/gpu/cuda_streams.h"

#define HR_CUDA_PLAYED 1
#define HR_HAS_BF16    1

#undef __global__
#undef __device__
#undef __shared__
#undef __launch_bounds__
#define __global__ static
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

using std::max;
using std::min;

namespace player
{

struct position {
    unsigned x, y, z;
};

extern position thread_idx, block_idx, grid_dim;

void launch(dim3 grid, unsigned n_threads, const std::function<void()> &kernel);
void barrier(); /* of the block */
/* Give up to 32 bytes to the other lanes of the warp. @return what all gave, 32 bytes apart, up to
 * the next exchange */
const unsigned char *exchange(const void *mine, size_t n_bytes);
void copy_async(void *to, const void *from, size_t n_bytes);
void copy_wait();
/* Shared memory, known by its first use, and an address in it, of 16 bytes that lie aligned. */
uint32_t address_of(const void *p);
unsigned char *pointer_to(uint32_t address);

} // namespace player

#define threadIdx player::thread_idx
#define blockIdx  player::block_idx
#define gridDim   player::grid_dim

/* Arguments are taken when the launch is asked for. */
#define HR_LAUNCH(kernel, grid, threads, stream, ...)                               \
    player::ask(stream, [where = dim3(grid), args = std::make_tuple(__VA_ARGS__)] { \
        player::launch(where, threads, [&args] {                                    \
            std::apply([](const auto &...each) { kernel(each...); }, args);         \
        });                                                                         \
    })

static inline void __syncthreads()
{
    player::barrier();
}

static inline float __shfl_xor_sync(unsigned, float v, int mask)
{
    const unsigned char *all = player::exchange(&v, sizeof(v));
    float got;

    memcpy(&got, all + (threadIdx.x % 32 ^ (unsigned) mask) * 32, sizeof(got));
    return got;
}

static inline int __all_sync(unsigned, int is_true)
{
    const int mine = is_true != 0;
    const unsigned char *all = player::exchange(&mine, sizeof(mine));
    int n = 0, each;

    for (unsigned lane = 0; lane < 32; lane++) {
        memcpy(&each, all + lane * 32, sizeof(each));
        n += each;
    }
    return n == 32;
}

static inline float __fmaf_rn(float a, float b, float c)
{
    return std::fmaf(a, b, c);
}

static inline float power_of_2(float x)
{
    return x < -126.0f ? 0.0f : std::exp2(x);
}

template <class T> static inline void __stwb(T *p, T v)
{
    *p = v;
}

/* ---- gpu/cuda_device.cuh -------------------------------------------------------------------- */

static inline uint32_t shared_address(const void *p)
{
    return player::address_of(p);
}

/* The value at a column of row `row` of matrix i, whose address a lane has given. */
static inline uint32_t matrix_value(const unsigned char *all, unsigned i, unsigned row,
                                    unsigned column)
{
    uint32_t address;
    uint16_t v;

    memcpy(&address, all + (i * 8 + row) * 32, sizeof(address));
    memcpy(&v, player::pointer_to(address) + column * 2, sizeof(v));
    return v;
}

static inline void load_matrices(uint32_t *r, uint32_t address)
{
    const unsigned char *all = player::exchange(&address, sizeof(address));
    const unsigned row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;

    for (unsigned i = 0; i < 4; i++)
        r[i] = matrix_value(all, i, row, column) | matrix_value(all, i, row, column + 1) << 16;
}

static inline void load_matrices_transposed(uint32_t *r, uint32_t address)
{
    const unsigned char *all = player::exchange(&address, sizeof(address));
    const unsigned column = threadIdx.x % 32 / 4, row = threadIdx.x % 4 * 2;

    for (unsigned i = 0; i < 4; i++)
        r[i] = matrix_value(all, i, row, column) | matrix_value(all, i, row + 1, column) << 16;
}

/* One of two bf16 in a register of a lane. */
static inline float half_of(const unsigned char *all, unsigned lane, unsigned reg, unsigned i)
{
    uint32_t bits;
    float v;

    memcpy(&bits, all + lane * 32 + reg * 4, sizeof(bits));
    bits = i ? bits & 0xffff0000u : bits << 16;
    memcpy(&v, &bits, sizeof(v));
    return v;
}

/* As the manual of PTX gives the fragments of mma.m16n8k16. */
static inline void multiply(float *c, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const unsigned char *all = player::exchange(mine, sizeof(mine));
    const unsigned lane = threadIdx.x % 32;
    double rows[2][16], columns[2][16]; /* those that meet in this lane's four sums */

    for (unsigned i = 0; i < 2; i++)
        for (unsigned k = 0; k < 16; k++) {
            rows[i][k] = half_of(all, lane / 4 * 4 + k % 8 / 2, i + k / 8 * 2, k % 2);
            columns[i][k] = half_of(all, (lane % 4 * 2 + i) * 4 + k % 8 / 2, 4 + k / 8, k % 2);
        }
    for (unsigned i = 0; i < 4; i++) {
        double sum = c[i];

        for (unsigned k = 0; k < 16; k++)
            sum += rows[i / 2][k] * columns[i % 2][k];
        c[i] = (float) sum;
    }
}

static inline void copy_chunk(uint32_t to, const void *from, bool is_valid)
{
    alignas(16) static const unsigned char zeros[16] = {0};

    player::copy_async(player::pointer_to(to), is_valid ? from : zeros, 16);
}

static inline void copies_wait()
{
    player::copy_wait();
}

#endif /* HR_TESTS_GPU_CUDA_PLAYER_H */
