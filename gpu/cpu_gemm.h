/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_gemm.h -- products of small tiles by the matrix library (oneDNN), one thread each.
 *
 * c[m,n] (+)= sum_k a[m,k] b[k,n], accumulated in f32. a and b are f32 or bf16, at any address. A
 * prepared product is found again by its shape; preparing is the driving thread's, running is for
 * all threads at once.
 */
#ifndef HR_GPU_CPU_GEMM_H
#define HR_GPU_CPU_GEMM_H

#include "common/common.h"

struct hr_gemm_shape {
    size_t m, n, k;
    size_t a_stride, c_stride; /* elements from row to row; c is f32 */
    size_t b_stride;           /* with b_rows: b lies as [n,k]; else as [k,n] */
    bool b_rows;
    bool accumulate; /* += */
    bool bf16;       /* a and b are bf16; else f32 */
};

struct hr_gemm;
struct hr_gemm_op;

/* What the library takes for each thread at open, and beyond it in all. */
enum { HR_GEMM_SCRATCH_BYTES = 512 << 10, HR_GEMM_FIXED_BYTES = 24 << 20 };

/* @return 0 or -ENOMEM */
int hr_gemm_open(struct hr_gemm **ret_gemm, unsigned n_threads);
void hr_gemm_close(struct hr_gemm **gemm);
/* Whether the library multiplies bf16 on this CPU. */
bool hr_gemm_has_bf16(struct hr_gemm *gemm);

/* Make room: operations got before may become invalid, and the next n_ops will stay valid. */
void hr_gemm_begin(struct hr_gemm *gemm, size_t n_ops);
/* @return 0; -ENOMEM, -EOPNOTSUPP; -EIO the library failed */
int hr_gemm_get(struct hr_gemm *gemm, const struct hr_gemm_op **ret_op,
                const struct hr_gemm_shape *shape);
/* @return 0 or -EIO, -ENOMEM */
int hr_gemm_run(struct hr_gemm *gemm, const struct hr_gemm_op *op, unsigned thread_idx,
                const void *a, const void *b, float *c);

#endif /* HR_GPU_CPU_GEMM_H */
