/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda_lt_abi.c -- what gpu/cuda_lt_abi.h says of cuBLASLt is what its own header says. Built
 * where that header is found; there is nothing to run.
 */
#include <cublasLt.h>

#include "gpu/cuda_lt_abi.h"

#define SAME(ours, theirs) _Static_assert((long) (ours) == (long) (theirs), #ours)

SAME(HR_LT_SUCCESS, CUBLAS_STATUS_SUCCESS);
SAME(HR_LT_OP_N, CUBLAS_OP_N);
SAME(HR_LT_OP_T, CUBLAS_OP_T);
SAME(HR_LT_COMPUTE_32F, CUBLAS_COMPUTE_32F);
SAME(HR_LT_COMPUTE_32F_PEDANTIC, CUBLAS_COMPUTE_32F_PEDANTIC);
SAME(HR_LT_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSA);
SAME(HR_LT_DESC_TRANSB, CUBLASLT_MATMUL_DESC_TRANSB);
SAME(HR_LT_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(HR_LT_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
SAME(HR_LT_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
SAME(HR_LT_PREF_MIN_ALIGNMENT_A_BYTES + 1, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
SAME(HR_LT_PREF_MIN_ALIGNMENT_A_BYTES + 2, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
SAME(HR_LT_PREF_MIN_ALIGNMENT_D_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
SAME(HR_LT_REDUCTION_SCHEME_NONE, CUBLASLT_REDUCTION_SCHEME_NONE);
SAME(HR_LT_ALGO_SPLITK_NUM, CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
SAME(HR_LT_ALGO_REDUCTION_SCHEME, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
SAME(sizeof(struct hr_lt_algo), sizeof(cublasLtMatmulAlgo_t));
SAME(sizeof(struct hr_lt_heuristic), sizeof(cublasLtMatmulHeuristicResult_t));
SAME(offsetof(struct hr_lt_heuristic, workspace_bytes),
     offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
SAME(offsetof(struct hr_lt_heuristic, status), offsetof(cublasLtMatmulHeuristicResult_t, state));
SAME(sizeof(int), sizeof(cublasStatus_t));
SAME(sizeof(int), sizeof(cudaDataType));
SAME(sizeof(int), sizeof(cublasLtMatmulDescAttributes_t));

/* Every function takes as many arguments, of types that convert: handles and sizes would not be
 * taken for each other. */
void hr_test_calls(void);
void hr_test_calls(void)
{
    void *p = NULL;
    struct hr_lt_heuristic ours;
    cublasLtMatmulHeuristicResult_t *theirs = (cublasLtMatmulHeuristicResult_t *) (void *) &ours;
    size_t n = 0;
    int count = 0;

    cublasLtCreate((cublasLtHandle_t *) &p);
    cublasLtDestroy(p);
    n = cublasLtGetVersion();
    (void) cublasLtGetStatusName((cublasStatus_t) 0);
    cublasLtMatrixLayoutCreate((cublasLtMatrixLayout_t *) &p, CUDA_R_32F, (uint64_t) n,
                               (uint64_t) n, (int64_t) n);
    cublasLtMatrixLayoutDestroy(p);
    cublasLtMatmulDescCreate((cublasLtMatmulDesc_t *) &p, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatmulDescDestroy(p);
    cublasLtMatmulDescSetAttribute(p, CUBLASLT_MATMUL_DESC_TRANSA, p, n);
    cublasLtMatmulPreferenceCreate((cublasLtMatmulPreference_t *) &p);
    cublasLtMatmulPreferenceDestroy(p);
    cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, p, n);
    cublasLtMatmulAlgoGetHeuristic(p, p, p, p, p, p, p, count, theirs, &count);
    cublasLtMatmulAlgoConfigGetAttribute(&theirs->algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, p, n, &n);
    cublasLtMatmul(p, p, p, p, p, p, p, p, p, p, p, p, &theirs->algo, p, n, NULL);
}
