/* SPDX-License-Identifier: Apache-2.0 */
/* cpu.h -- inside of the CPU device: what gpu_cpu.c, cpu_linear.c and cpu_attention.c share. */
#ifndef HR_GPU_CPU_H
#define HR_GPU_CPU_H

#include <stdatomic.h>

#include "gpu/cpu_gemm.h"
#include "gpu/cpu_pool.h"
#include "gpu/device.h"
#include "gpu/kernels.h"

/* Sizes of tiles. They follow from the shape of an operation alone, never from the number of
 * threads: results keep their bits. Scratch of a thread holds the largest of each. */
enum {
    HR_TILE_TOKENS = 512,   /* of a linear layer                           */
    HR_TILE_ROWS = 128,     /* of w                                        */
    HR_TILE_ROWS_MAX = 256, /* where x is converted for each tile          */
    HR_TILE_K = 1024,       /* columns of w, where they must be converted  */
    /* Of converted rows, in elements: rows a power of two apart would share sets of the cache. */
    HR_TILE_STRIDE = HR_TILE_K + 32,
    HR_TILE_QUERIES = 256,
    HR_TILE_KEYS = 512,
};

struct hr_cpu_thread {
    float *tile;  /* HR_TILE_TOKENS x HR_TILE_ROWS_MAX sums, or QUERIES x KEYS scores and then
                     probabilities                                                    */
    void *w;      /* rows x HR_TILE_STRIDE converted weights, f32 at most             */
    float *x;     /* HR_TILE_TOKENS x HR_TILE_STRIDE; only where bf16 is computed in f32 */
    float *acc;   /* HR_TILE_QUERIES x HR_HEAD_DIM                                    */
    float *stats; /* 2 x HR_TILE_QUERIES: maximum and sum of the softmax              */
};

struct hr_cpu {
    struct hr_gpu gpu; /* first: the device is known by its address */
    const struct hr_kernels *kernels;
    struct hr_pool *pool;
    struct hr_gemm *gemm;
    bool has_bf16; /* the matrix library multiplies bf16; else it is done in f32 */
    void *scratch;
    size_t scratch_bytes;
    unsigned n_threads;
    struct hr_cpu_thread threads[];
};

/* The first failure of tasks that run at the same time. */
struct hr_cpu_result {
    atomic_int rc;
};

static inline void hr_cpu_fail(struct hr_cpu_result *result, int rc)
{
    int expected = 0;

    if (rc < 0)
        atomic_compare_exchange_strong(&result->rc, &expected, rc);
}

/* Run the tasks; their first failure, or -ECANCELED. */
static inline int hr_cpu_run(const struct hr_cpu *cpu, hr_pool_fn *fn, void *ctx, size_t n_tasks,
                             struct hr_cpu_result *result)
{
    hr_cpu_fail(result, hr_pool_run(cpu->pool, fn, ctx, n_tasks));
    return atomic_load(&result->rc);
}

/* `n` in about equal tiles of at most `max`, a multiple of 16 where there are several: the matrix
 * library is slower at others. The size of all but the last, which may be smaller. */
static inline size_t hr_cpu_tile(size_t n, size_t max)
{
    const size_t n_tiles = (size_t) hr_div_ceil(n, max);

    return n_tiles == 1 ? n : (size_t) hr_align_up(hr_div_ceil(n, n_tiles), 16);
}

int hr_cpu_linear(struct hr_gpu *gpu, const struct hr_linear *p);
int hr_cpu_attention(struct hr_gpu *gpu, const struct hr_attention *p);

#endif /* HR_GPU_CPU_H */
