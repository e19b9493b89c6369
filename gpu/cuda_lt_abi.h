/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_lt_abi.h -- the part of cuBLASLt's binary interface that is used, the same in its versions
 * 12 and 13. tests/gpu/test_cuda_lt_abi.c compares it with the library's header where there is one.
 */
#ifndef HR_GPU_CUDA_LT_ABI_H
#define HR_GPU_CUDA_LT_ABI_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

enum {
    HR_LT_SUCCESS = 0,
    HR_LT_OP_N = 0,
    HR_LT_OP_T = 1,
    HR_LT_COMPUTE_32F = 68,
    HR_LT_COMPUTE_32F_PEDANTIC = 69,
    HR_LT_DESC_TRANSA = 3,
    HR_LT_DESC_TRANSB = 4,
    HR_LT_PREF_MAX_WORKSPACE_BYTES = 1,
    HR_LT_PREF_REDUCTION_SCHEME_MASK = 3,
    HR_LT_PREF_MIN_ALIGNMENT_A_BYTES = 5, /* and of B, C and D after it */
    HR_LT_PREF_MIN_ALIGNMENT_D_BYTES = 8,
    HR_LT_REDUCTION_SCHEME_NONE = 0,
    HR_LT_ALGO_SPLITK_NUM = 2,
    HR_LT_ALGO_REDUCTION_SCHEME = 3,
};

struct hr_lt_algo {
    uint64_t data[8];
};

struct hr_lt_heuristic {
    struct hr_lt_algo algo;
    size_t workspace_bytes;
    int status;
    float waves;
    int reserved[4];
};

/* Each pointer is called as the library's function is: cublasLt and the name. Enumerations are ints
 * there, handles are pointers. */
struct hr_lt_fns {
    int (*Create)(void **handle);
    int (*Destroy)(void *handle);
    size_t (*GetVersion)(void);
    const char *(*GetStatusName)(int status);
    int (*MatrixLayoutCreate)(void **layout, int type, uint64_t rows, uint64_t columns, int64_t ld);
    int (*MatrixLayoutDestroy)(void *layout);
    int (*MatmulDescCreate)(void **desc, int compute_type, int scale_type);
    int (*MatmulDescDestroy)(void *desc);
    int (*MatmulDescSetAttribute)(void *desc, int attribute, const void *value, size_t n_bytes);
    int (*MatmulPreferenceCreate)(void **preference);
    int (*MatmulPreferenceDestroy)(void *preference);
    int (*MatmulPreferenceSetAttribute)(void *preference, int attribute, const void *value,
                                        size_t n_bytes);
    int (*MatmulAlgoGetHeuristic)(void *handle, void *desc, void *a, void *b, void *c, void *d,
                                  void *preference, int n_wanted, struct hr_lt_heuristic *results,
                                  int *n_results);
    int (*MatmulAlgoConfigGetAttribute)(const struct hr_lt_algo *algo, int attribute, void *value,
                                        size_t n_bytes, size_t *n_written);
    int (*Matmul)(void *handle, void *desc, const void *alpha, const void *a, void *a_layout,
                  const void *b, void *b_layout, const void *beta, const void *c, void *c_layout,
                  void *d, void *d_layout, const struct hr_lt_algo *algo, void *workspace,
                  size_t workspace_bytes, cudaStream_t stream);
};

#endif /* HR_GPU_CUDA_LT_ABI_H */
