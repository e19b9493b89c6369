/* SPDX-License-Identifier: Apache-2.0 */
/* gpu.h -- "device": where activations live and layers are computed. The host CPU is one of them.
 *
 * Model code allocates activations from one arena, stages weights as they arrive from the disk and
 * calls the operations below. Operations are asynchronous in order: each may return before it has
 * finished, and sees the results of all earlier ones. The CPU device finishes each before it
 * returns. hr_gpu_download() and hr_gpu_sync() wait.
 *
 * Notation: tensors are dense and row-major, the shape stands in brackets. T tokens, D model width,
 * NH heads, HS = 128 head size, D = NH * HS, K inner dimension of a product. "act" is the dtype of
 * activations that enter products and attention: BF16 or F32, chosen when the device is opened.
 * Residual streams, modulation, statistics and accumulation are always F32.
 *
 * Layers:  gpu.c checks arguments and forwards; a device is a const struct of functions
 *          (gpu/device.h) and its private state. gpu_cpu.c is the CPU, gpu_cuda.c a GPU of NVIDIA,
 *          gpu_emulated.c the CPU made to act like a GPU, for tests; kernels_ref.c is each
 *          operation in plain double-precision C.
 *
 * Errors:  0 or -errno; arguments are asserted, the world (memory, a failed device) is returned.
 *          Every operation may return -ECANCELED; what it was to write is then undefined.
 *
 * Threads: one thread drives a device; the device may use many.
 */
#ifndef HR_GPU_H
#define HR_GPU_H

#include <stdatomic.h>

#include "common/common.h"

enum {
    HR_HEAD_DIM = 128,
    HR_GPU_ARENA_STEP = 256, /* to a multiple of it devices may round up an arena */
    HR_GPU_RING_STEP = 64 << 10,
    HR_GPU_THREADS_MAX = 256,
    HR_GPU_REGISTERED_MAX = 256, /* ranges of host memory at a time */
    /* A product of up to this many tokens gives each of them the bits that it has alone. */
    HR_TOKENS_INDEPENDENT_MAX = 6,
};

struct hr_gpu;

struct hr_gpu_params {
    const char *device; /* "cpu", "cuda", "cuda:1"; NULL or "auto": what HEADRACE_DEVICE names, else
                           the best that works, said once at HR_LOG_INFO */
    enum hr_dtype act;  /* HR_DTYPE_BF16 or HR_DTYPE_F32                                        */
    unsigned n_threads; /* 0: one for each CPU this process may use; up to HR_GPU_THREADS_MAX    */
    uint64_t slot_bytes; /* device memory that weights pass through, at least of the largest; 0: the
                            device's choice. The CPU device has none: weights stay in the ring */
    uint64_t vram_bytes; /* upper bound on the memory of a device that has its own; 0: none. Slots
                            shrink to fit                                                     */
    /* Device memory that others read files into, past the host's memory; a multiple of
     * HR_GPU_RING_STEP. Weights are used where they arrive there, and there are no slots. 0: none
     */
    uint64_t ring_bytes;
    enum hr_attention_by attention; /* CUDNN: or the device is refused */
    uint64_t arena_bytes;   /* sum over hr_gpu_arena_bytes() of all that will be allocated       */
    uint64_t weights_bytes; /* of them, for weights that stay: named apart where memory is short */
    /* Once it is not 0, operations stop within milliseconds and return -ECANCELED; any thread may
     * set it. Lives as long as the device. NULL: never. */
    const atomic_int *cancelled;
};

/* @return 0; -ENODEV no such device, -ENOMEM, -EINVAL n_threads out of range, -EAGAIN the system
 * has no more threads, -EOPNOTSUPP a ring on a device that computes in the host's memory */
int hr_gpu_open(struct hr_gpu **ret_gpu, const struct hr_gpu_params *params, struct hr_error *err);
/* Whether hr_gpu_open() would refuse what is asked of the device, whatever this machine has: a name
 * that none has, threads, a ring, attention. @return 0, or as hr_gpu_open() */
int hr_gpu_check(const struct hr_gpu_params *params, struct hr_error *err);
void hr_gpu_close(struct hr_gpu **gpu);
const char *hr_gpu_name(const struct hr_gpu *gpu); /* "cpu (oneDNN 2.6.0, 2 threads, avx512)" */

/* What computes attention, before hr_gpu_open(), in words that change with its bits: "own", or
 * "cudnn 9.28.1", for which the library is loaded. @return 0, or -ENODEV as hr_gpu_open() */
int hr_gpu_attention_name(const struct hr_gpu_params *params, char *buf, size_t buf_bytes,
                          struct hr_error *err);

/* ---- memory ------------------------------------------------------------------------- */

/* Bytes of arena that an allocation of size_bytes takes. */
uint64_t hr_gpu_arena_bytes(uint64_t size_bytes);
/* From the arena taken at open, zeroed, 64-byte aligned, never given back before close. More than
 * was said at open is an assertion. */
void *hr_gpu_alloc(struct hr_gpu *gpu, uint64_t size_bytes);

/* Tell the device of host memory that weights will be staged from: copies are faster from there,
 * and run beside computing. Without it, or where it fails, they still work.
 * @return 0, also where there is nothing to do, or -errno, said at HR_LOG_INFO */
int hr_gpu_register_host(struct hr_gpu *gpu, void *base, size_t size_bytes);
/* Before registered memory is given up and before close. Waits for copies. */
void hr_gpu_unregister_host(struct hr_gpu *gpu, void *base);

/* The ring of device memory, zeroed, at a multiple of HR_GPU_RING_STEP; NULL: none was asked for.
 */
void *hr_gpu_ring(const struct hr_gpu *gpu, uint64_t *ret_bytes);
/* Before a thread hands addresses of the device to other libraries. @return 0 or -ENODEV */
int hr_gpu_begin_thread(struct hr_gpu *gpu);
/* Others may write into the ring for good: hr_gpu_close() leaves the memory as it is. */
void hr_gpu_abandon_ring(struct hr_gpu *gpu);

int hr_gpu_upload(struct hr_gpu *gpu, void *dst, const void *src_host, size_t size_bytes);
/* Waits for all earlier operations. */
int hr_gpu_download(struct hr_gpu *gpu, void *dst_host, const void *src, size_t size_bytes);
int hr_gpu_sync(struct hr_gpu *gpu);
/* From one place of the device to another, in the order of the operations; may not overlap. */
int hr_gpu_copy(struct hr_gpu *gpu, void *dst, const void *src, size_t size_bytes);

/* ---- weights ------------------------------------------------------------------------ */

/* Weight bytes that the device can use. The CPU device uses the host's bytes themselves: no copy.
 */
struct hr_gpu_weight {
    const void *data; /* device address */
    uint64_t ticket;
};

/* Make size_bytes bytes at `host` (any address), or of the ring of device memory, usable by later
 * operations. */
int hr_gpu_stage(struct hr_gpu *gpu, struct hr_gpu_weight *ret_weight, const void *host,
                 size_t size_bytes);
/* Say that no further operation will use the weight. */
void hr_gpu_unstage(struct hr_gpu *gpu, const struct hr_gpu_weight *weight);
/* Whether the bytes that an unstaged weight was staged from may be overwritten now; with `wait` it
 * waits until they may, and returns true. */
bool hr_gpu_host_is_free(struct hr_gpu *gpu, const struct hr_gpu_weight *weight, bool wait);

/* ---- operations --------------------------------------------------------------------- */

enum hr_epilogue {
    HR_EPILOGUE_STORE,         /* out = y                                       */
    HR_EPILOGUE_GELU_TANH,     /* out = 0.5 y (1 + tanh(0.7978845608028654 (y + 0.044715 y^3))) */
    HR_EPILOGUE_QUICK_GELU,    /* out = y / (1 + exp(-1.702 y))                 */
    HR_EPILOGUE_SILU,          /* out = y / (1 + exp(-y))                       */
    HR_EPILOGUE_GATED_RESIDUAL /* out += gate * y, out F32                      */
};

enum { HR_LOW_RANK_TERMS_MAX = 8, HR_LOW_RANK_MAX = 4096 };

/* A low-rank term of a linear layer's sums: y[t,n] += sum_r t[t,r] b[n,r], computed in f32 whatever
 * the dtypes. With t = factor * x A^T this is what a LoRA (A, B) adds to the layer. */
struct hr_low_rank {
    const float *t;        /* [n_tokens, rank], dense                           */
    const void *b;         /* [n_out, rank], dense, at any address              */
    enum hr_dtype b_dtype; /* as w_dtype below; converted to F32 just in time   */
    size_t rank;           /* 1..HR_LOW_RANK_MAX                                */
};

/* A band of a linear layer: y[t,n] = scale[n] sum_k x[t,k] w[n,k] + low-rank terms + bias[n], then
 * the epilogue, into columns 0..n_out-1 of out. K is never split over threads and the tiles follow
 * from the shape alone, so the bits of a result depend on neither the number of threads nor
 * anything outside this struct. */
struct hr_linear {
    const void *x;         /* [n_tokens, n_in], rows x_stride elements apart */
    enum hr_dtype x_dtype; /* F32 or BF16. F32: the product is computed in f32 whatever `act`;
                              BF16: bf16 inputs, f32 accumulation                            */
    size_t x_stride;
    const void *w;         /* [n_out, n_in], dense, at any address, as in the file */
    enum hr_dtype w_dtype; /* F32, F16, BF16, F8_E4M3, F8_E5M2; cast just in time to x_dtype,
                              rounding to nearest even where it narrows                      */
    /* Of scaled weights: row n stands for w_scale[n * w_scale_stride] * w[n,:], applied to the sums
     * in f32. w_scale_stride 0: one scale for all rows, 1: one for each. NULL: not scaled. */
    const float *w_scale;
    size_t w_scale_stride;
    const struct hr_low_rank *low; /* [n_low], added in order after the scaling; NULL: none */
    size_t n_low;                  /* 0..HR_LOW_RANK_TERMS_MAX                              */
    const float *bias;             /* [n_out] or NULL                                       */
    size_t n_tokens, n_in, n_out;
    enum hr_epilogue epilogue;
    void *out; /* [n_tokens, n_out], rows out_stride elements apart; may not overlap x */
    enum hr_dtype out_dtype; /* F32, or BF16 rounded once after the epilogue */
    size_t out_stride;
    /* GATED_RESIDUAL: gate [n_out] for rows below gate_split and, gate_stride elements later,
     * another for the rows from there on. gate_split >= n_tokens: one gate for all. */
    const float *gate;
    size_t gate_split, gate_stride;
};
int hr_gpu_linear(struct hr_gpu *gpu, const struct hr_linear *p);

/* out[t,c] = (x[t,c] - mean_t) / sqrt(var_t + 1e-6) * (1 + scale[c]) + shift[c]; biased variance.
 * Rows from `split` on use shift and scale `stride` elements later. */
struct hr_layernorm_modulate {
    void *out; /* [T, D] act or F32, dense */
    enum hr_dtype out_dtype;
    const float *x;             /* [T, D] dense */
    const float *shift, *scale; /* [D] */
    size_t split, stride;
    size_t n_tokens, width;
};
int hr_gpu_layernorm_modulate(struct hr_gpu *gpu, const struct hr_layernorm_modulate *p);

/* out[t,c] = x[t,c] / sqrt(mean_c(x[t,:]^2) + 1e-6) * gain[c]; x, out [T, width] F32, may be the
 * same array. */
int hr_gpu_rmsnorm(struct hr_gpu *gpu, float *out, const float *x, const float *gain,
                   size_t n_tokens, size_t width);

/* QK norm and rotary embedding of one stream. Per token and head: r = RMSNorm over 128 with gain,
 * eps 1e-6, then pairs (2j, 2j+1), j = 0..63, turn by the token's angle j:
 *   out[2j] = r[2j] cos - r[2j+1] sin,  out[2j+1] = r[2j] sin + r[2j+1] cos */
struct hr_qk_norm_rope {
    void *out;            /* [T, D] act, dense */
    const float *x;       /* [T, D] dense      */
    const float *gain;    /* [128]             */
    const float *cos_sin; /* [T, 64, 2]: cos, sin of each angle */
    size_t n_tokens, n_heads;
};
int hr_gpu_qk_norm_rope(struct hr_gpu *gpu, const struct hr_qk_norm_rope *p);

/* out = softmax(Q K^T / sqrt(128)) V for each head, no mask; tiled, never an S x S matrix.
 * Scores and softmax in f32; with act BF16 the unnormalised probabilities are rounded to bf16
 * before they meet V, and accumulation is f32. */
struct hr_attention {
    void *out;     /* [n_q, D] act */
    const void *q; /* [n_q, D] act */
    const void *k; /* [n_k, D] act */
    const void *v; /* [n_k, D] act */
    size_t n_q, n_k, n_heads;
};
int hr_gpu_attention(struct hr_gpu *gpu, const struct hr_attention *p);
/* Have the kernel for such arrays ready, where it is made for their sizes: may take a second.
 * Pointers are not looked at. @return 0, -ENOTSUP there is none, -EIO, -ECANCELED */
int hr_gpu_attention_prepare(struct hr_gpu *gpu, const struct hr_attention *p,
                             struct hr_error *err);

/* out[i] = silu(x[i]), n floats; may be the same array. */
int hr_gpu_silu(struct hr_gpu *gpu, float *out, const float *x, size_t n);

/* *flag = 1 when one of n > 0 floats is NaN or infinite; else it is left as it is. */
int hr_gpu_flag_nonfinite(struct hr_gpu *gpu, uint32_t *flag, const float *x, size_t n);

/* Convert n values at any address to F32 on the device: biases, gains, embeddings. */
int hr_gpu_to_f32(struct hr_gpu *gpu, float *dst, const void *src, enum hr_dtype dtype, size_t n);

/* A part of the memory of its own that a device takes when it is opened. */
struct hr_gpu_part {
    const char *use; /* in the words of messages, which sum up parts of one use */
    const char *name;
    uint64_t size_bytes;
};
enum { HR_GPU_PARTS_MAX = 16 };

/* All parts, an upper bound, from the list by which the device takes them: first the arena as
 * "activations" and, if there are any, "weights that stay".
 * @param ret_parts  HR_GPU_PARTS_MAX
 * @return how many; 0: arena and scratch are host memory */
uint32_t hr_gpu_device_parts(const struct hr_gpu_params *params, struct hr_gpu_part *ret_parts);
/* Their sum. @return 0, or -ENOMEM: more than params->vram_bytes, the parts named */
int hr_gpu_device_bytes(const struct hr_gpu_params *params, uint64_t *ret_bytes,
                        struct hr_error *err);

/* The memory of its own that a device takes, as its driver sees it: what it reports beyond what it
 * reported before hr_gpu_open(), of this process, or of all where it does not tell processes apart.
 */
struct hr_gpu_memory {
    uint64_t used_bytes;
    uint64_t taken_bytes; /* of them what hr_gpu_open() allocated; the others are the driver's own
                             and its libraries', and may grow */
};
/* May take milliseconds. @return false: it has none, or its driver does not say */
bool hr_gpu_memory(struct hr_gpu *gpu, struct hr_gpu_memory *ret);

/* Host memory that the device takes beside the arena, whatever it computes (matrix library, tiles
 * of all threads): an upper bound for budgets, before hr_gpu_open(). */
uint64_t hr_gpu_scratch_bytes(const struct hr_gpu_params *params);

#endif /* HR_GPU_H */
