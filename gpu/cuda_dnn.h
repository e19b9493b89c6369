/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_dnn.h -- attention by cuDNN, which is loaded at run time and only where it is asked for: the
 * build needs neither its headers nor the library.
 */
#ifndef HR_GPU_CUDA_DNN_H
#define HR_GPU_CUDA_DNN_H

#include <cuda_runtime_api.h>

#include "common/common.h"

struct hr_dnn;

enum {
    HR_DNN_VERSION_MIN = 91301, /* the first that has attention as one operation */
    HR_DNN_ALIGN = 16,          /* of all arrays, in bytes */
    /* Of host memory for the library, its compiler and kernels: an allowance, see docs/memory.md */
    HR_DNN_HOST_BYTES = 768 << 20,
};

/* out = softmax(Q K^T / sqrt(128)) V of hr_gpu_attention(): bf16, dense, heads side by side. */
struct hr_dnn_shape {
    size_t n_q, n_k, n_heads;
};

/* Find the library. Once it is loaded it stays. @return 0, or -ENODEV with the reason */
int hr_dnn_load(struct hr_error *err);
unsigned hr_dnn_version(void); /* of the library that is loaded: 92801 for 9.28.1 */

/* On a stream of the present device.
 * @param workspace  device memory that attention may use
 * @return 0, -ENODEV or -ENOMEM with a message */
int hr_dnn_open(struct hr_dnn **ret_dnn, void *workspace, size_t workspace_bytes,
                cudaStream_t stream, struct hr_error *err);
/* For a device that is described, not present: nothing but hr_dnn_prepare() works on it. For tests.
 * @param json  as cuDNN writes such descriptions */
int hr_dnn_open_described(struct hr_dnn **ret_dnn, size_t workspace_bytes, const char *json,
                          struct hr_error *err);
void hr_dnn_close(struct hr_dnn **dnn);

/* Have the kernel of a shape, which the library compiles: about a second. The last 64 are kept.
 * @return 0, -ENOTSUP there is none that is deterministic, sums in f32 and fits the workspace,
 *         with the reason; -ENOMEM */
int hr_dnn_prepare(struct hr_dnn *dnn, const struct hr_dnn_shape *shape, struct hr_error *err);
/* Prepared first where it is not. Same bits each time. @return 0, or -errno with a line in the log
 */
int hr_dnn_run(struct hr_dnn *dnn, const struct hr_dnn_shape *shape, void *out, const void *q,
               const void *k, const void *v);

#endif /* HR_GPU_CUDA_DNN_H */
