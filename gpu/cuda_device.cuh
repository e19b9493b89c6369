/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_device.cuh -- what the .cu files need beyond CUDA C++: launches, and tensor core
 * instructions of compute capability 8.0.
 *
 * tests/gpu/cuda_player.h stands in for it where the kernels are compiled for the host and their
 * threads are played one after the other (HR_CUDA_PLAYED).
 */
#ifndef HR_GPU_CUDA_DEVICE_CUH
#define HR_GPU_CUDA_DEVICE_CUH

#include "gpu/cuda_kernels.h"

#ifndef HR_CUDA_PLAYED

#define HR_LAUNCH(kernel, grid, threads, stream, ...) \
    kernel<<<grid, threads, 0, stream>>>(__VA_ARGS__)

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define HR_HAS_BF16 1

/* Four 8x8 matrices of 16-bit values; lane l gives the address of row l % 8 of matrix l / 8. Each
 * lane gets columns 2 (l % 4) and the next of row l / 4 of each; transposed: rows and column. */
__device__ __forceinline__ void load_matrices(uint32_t *r, uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t *r, uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* c[16,8] += a[16,16] b[16,8] in bf16. Of lane l, g = l / 4, i = l % 4:
 * c: rows g, g, g + 8, g + 8, columns 2 i and the next, twice
 * a: (g, 2 i), (g + 8, 2 i), (g, 2 i + 8), (g + 8, 2 i + 8), each two columns
 * b: (2 i, g), (2 i + 8, g), each two rows */
__device__ __forceinline__ void multiply(float *c, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* 16 bytes to shared memory, or zeros, for which `from` is not read; done after copies_wait(). */
__device__ __forceinline__ void copy_chunk(uint32_t to, const void *from, bool is_valid)
{
    const int n_bytes = is_valid ? 16 : 0;

    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(to), "l"(from), "r"(n_bytes)
                 : "memory");
}

/* This thread's copies are done; a barrier makes it all threads'. */
__device__ __forceinline__ void copies_wait(void)
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t) __cvta_generic_to_shared(p);
}

/* 2^x to 2 units in the last place; 0 below 2^-126. */
__device__ __forceinline__ float power_of_2(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif /* compute capability 8.0 */
#endif /* HR_CUDA_PLAYED */
#endif /* HR_GPU_CUDA_DEVICE_CUH */
