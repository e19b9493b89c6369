/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_lt.h -- matrix products by cuBLASLt, which is loaded at run time: the build needs neither
 * its header nor the library, and a machine without it has no CUDA device, with the reason.
 */
#ifndef HR_GPU_CUDA_LT_H
#define HR_GPU_CUDA_LT_H

#include <cuda_runtime_api.h>

#include "common/common.h"

struct hr_lt;

/* Rows of both inputs begin at multiples of 16 bytes. */
enum { HR_LT_ALIGN = 16 };

/* c[t * c_stride + n] = (or +=) sum_k x[t * x_stride + k] w[n * w_stride + k], c F32, sums in f32
 */
struct hr_lt_product {
    size_t n_tokens, n_out, n_in;
    size_t x_stride, w_stride, c_stride;
    bool is_bf16; /* x and w; else F32, multiplied without rounding */
    bool accumulate;
};

/* Find the library. Once it is loaded it stays. @return 0, or -ENODEV with the reason */
int hr_lt_load(struct hr_error *err);
/* For the present device. @param workspace  device memory that products may use
 * @return 0 or -errno with a message */
int hr_lt_open(struct hr_lt **ret_lt, void *workspace, size_t workspace_bytes,
               struct hr_error *err);
void hr_lt_close(struct hr_lt **lt);
unsigned hr_lt_version(void); /* of the library that is loaded: 130100 */
/* Whether other libraries will find the one of this CUDA, 12 or 13. */
bool hr_lt_has(unsigned cuda);

/* How a product is computed follows from *p, library and device alone; K is never split.
 * @return 0, -ENOTSUP the library has no way to, -EIO */
int hr_lt_run(struct hr_lt *lt, const struct hr_lt_product *p, const void *x, const void *w,
              float *c, cudaStream_t stream);

#endif /* HR_GPU_CUDA_LT_H */
