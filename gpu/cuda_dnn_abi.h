/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_dnn_abi.h -- the part of cuDNN's binary interface that is used, the same in its versions
 * from 9.13 on. tests/gpu/test_cuda_dnn_abi.c compares it with the library's headers where there
 * are any.
 */
#ifndef HR_GPU_CUDA_DNN_ABI_H
#define HR_GPU_CUDA_DNN_ABI_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

enum {
    HR_DNN_SUCCESS = 0,

    /* kinds of descriptors */
    HR_DNN_ENGINE = 2,
    HR_DNN_ENGINECFG = 3,
    HR_DNN_ENGINEHEUR = 4,
    HR_DNN_EXECUTION_PLAN = 5,
    HR_DNN_OPERATIONGRAPH = 15,
    HR_DNN_VARIANT_PACK = 16,
    HR_DNN_TENSOR = 17,
    HR_DNN_DEVICEPROP = 38,
    HR_DNN_SDPA_FWD = 41,

    /* types of attributes */
    HR_DNN_TYPE_HANDLE = 0,
    HR_DNN_TYPE_DATA_TYPE = 1,
    HR_DNN_TYPE_BOOLEAN = 2,
    HR_DNN_TYPE_INT64 = 3,
    HR_DNN_TYPE_VOID_PTR = 6,
    HR_DNN_TYPE_HEUR_MODE = 8,
    HR_DNN_TYPE_NUMERICAL_NOTE = 11,
    HR_DNN_TYPE_DESCRIPTOR = 15,
    HR_DNN_TYPE_CHAR = 24,

    /* attributes */
    HR_DNN_ENGINEHEUR_MODE = 200,
    HR_DNN_ENGINEHEUR_GRAPH = 201,
    HR_DNN_ENGINEHEUR_RESULTS = 202,
    HR_DNN_ENGINEHEUR_DEVICEPROP = 204,
    HR_DNN_ENGINECFG_ENGINE = 300,
    HR_DNN_PLAN_HANDLE = 400,
    HR_DNN_PLAN_ENGINE_CONFIG = 401,
    HR_DNN_PLAN_WORKSPACE_SIZE = 402,
    HR_DNN_PLAN_DEVICEPROP = 407,
    HR_DNN_GRAPH_HANDLE = 800,
    HR_DNN_GRAPH_OPS = 801,
    HR_DNN_TENSOR_BYTE_ALIGNMENT = 900,
    HR_DNN_TENSOR_DATA_TYPE = 901,
    HR_DNN_TENSOR_DIMENSIONS = 902,
    HR_DNN_TENSOR_STRIDES = 903,
    HR_DNN_TENSOR_UNIQUE_ID = 906,
    HR_DNN_TENSOR_IS_BY_VALUE = 908,
    HR_DNN_PACK_UNIQUE_IDS = 1000,
    HR_DNN_PACK_DATA_POINTERS = 1001,
    HR_DNN_PACK_WORKSPACE = 1003,
    HR_DNN_ENGINE_NUMERICAL_NOTE = 1303,
    HR_DNN_DEVICEPROP_JSON = 2702,
    HR_DNN_SDPA_FWD_Q = 2800,
    HR_DNN_SDPA_FWD_K = 2801,
    HR_DNN_SDPA_FWD_V = 2802,
    HR_DNN_SDPA_FWD_O = 2803,
    HR_DNN_SDPA_FWD_SCALE = 2805,

    /* values */
    HR_DNN_DATA_FLOAT = 0,
    HR_DNN_DATA_BFLOAT16 = 9,
    HR_DNN_HEUR_MODE_A = 3,
    HR_DNN_NOTE_DOWN_CONVERT_INPUTS = 1,
    HR_DNN_NOTE_REDUCED_PRECISION_REDUCTION = 2,
    HR_DNN_NOTE_NONDETERMINISTIC = 4,
};

/* Each pointer is called as the library's function is: cudnn and the name. Enumerations are ints
 * there, handles and descriptors are pointers. */
struct hr_dnn_fns {
    size_t (*GetVersion)(void);
    size_t (*GetCudartVersion)(void);
    const char *(*GetErrorString)(int status);
    void (*GetLastErrorString)(char *message, size_t n_bytes);
    int (*Create)(void **handle);
    int (*Destroy)(void *handle);
    int (*SetStream)(void *handle, cudaStream_t stream);
    int (*BackendCreateDescriptor)(int kind, void **descriptor);
    int (*BackendDestroyDescriptor)(void *descriptor);
    int (*BackendFinalize)(void *descriptor);
    int (*BackendSetAttribute)(void *descriptor, int attribute, int type, int64_t n,
                               const void *values);
    int (*BackendGetAttribute)(void *descriptor, int attribute, int type, int64_t n_wanted,
                               int64_t *n, void *values);
    int (*BackendExecute)(void *handle, void *plan, void *pack);
};

#endif /* HR_GPU_CUDA_DNN_ABI_H */
