/* SPDX-License-Identifier: Apache-2.0 */
/* device.h -- what a device implements; gpu.c calls it, nobody else.
 *
 * gpu.c has checked every argument before a function here is called, so devices hold no argument
 * checks. All functions but those marked are required. Each takes the struct hr_gpu that its own
 * open() made: the first member of the device's private struct.
 */
#ifndef HR_GPU_DEVICE_H
#define HR_GPU_DEVICE_H

#include "gpu/gpu.h"

struct hr_device_fns {
    const char *name;  /* what params.device says              */
    bool takes_number; /* and ":" and a number, which open() reads */
    bool by_name_only; /* for tests: not among the names that messages list */

    /* Whether the device could be opened on this machine, for an automatic choice. NULL: always.
     * @return 0, or -ENODEV with the reason */
    int (*probe)(const struct hr_gpu_params *params, struct hr_error *err);

    /* Make a device. On success the whole of struct hr_gpu is filled: the arena, of at least
     * params->arena_bytes zeroed bytes aligned to 64, and what hr_gpu_name() answers. */
    int (*open)(struct hr_gpu **ret_gpu, const struct hr_gpu_params *params, struct hr_error *err);
    void (*close)(struct hr_gpu *gpu);
    uint64_t (*scratch_bytes)(const struct hr_gpu_params *params);

    /* What the device takes of its own memory beside the arena, as its open() does; parts of one
     * use stand together. NULL, or 0 parts: the arena is host memory. */
    uint32_t (*device_parts)(const struct hr_gpu_params *params, struct hr_gpu_part *ret_parts);
    /* See hr_gpu_memory(). NULL: the driver is never asked. */
    bool (*memory)(struct hr_gpu *gpu, struct hr_gpu_memory *ret);
    /* Of a device that can have a ring: see hr_gpu_begin_thread(). NULL: params->ring_bytes is 0.
     */
    int (*begin_thread)(struct hr_gpu *gpu);
    /* See hr_gpu_register_host(); the range is in the list afterwards, and no more before it is
     * unregistered. NULL, both: nothing to do. */
    int (*register_host)(struct hr_gpu *gpu, void *base, size_t size_bytes);
    void (*unregister_host)(struct hr_gpu *gpu, void *base);

    int (*upload)(struct hr_gpu *gpu, void *dst, const void *src_host, size_t size_bytes);
    int (*download)(struct hr_gpu *gpu, void *dst_host, const void *src, size_t size_bytes);
    int (*sync)(struct hr_gpu *gpu);
    int (*copy)(struct hr_gpu *gpu, void *dst, const void *src, size_t size_bytes);

    int (*stage)(struct hr_gpu *gpu, struct hr_gpu_weight *ret_weight, const void *host,
                 size_t size_bytes);
    void (*unstage)(struct hr_gpu *gpu, const struct hr_gpu_weight *weight);
    bool (*host_is_free)(struct hr_gpu *gpu, const struct hr_gpu_weight *weight, bool wait);

    int (*linear)(struct hr_gpu *gpu, const struct hr_linear *p);
    int (*layernorm_modulate)(struct hr_gpu *gpu, const struct hr_layernorm_modulate *p);
    int (*rmsnorm)(struct hr_gpu *gpu, float *out, const float *x, const float *gain,
                   size_t n_tokens, size_t width);
    int (*qk_norm_rope)(struct hr_gpu *gpu, const struct hr_qk_norm_rope *p);
    int (*attention)(struct hr_gpu *gpu, const struct hr_attention *p);
    /* See hr_gpu_attention_prepare(). NULL: nothing to do, and no attention but its own. */
    int (*attention_prepare)(struct hr_gpu *gpu, const struct hr_attention *p,
                             struct hr_error *err);
    /* See hr_gpu_attention_name(), of another than its own. With attention_prepare. */
    int (*attention_name)(const struct hr_gpu_params *params, char *buf, size_t buf_bytes,
                          struct hr_error *err);
    int (*silu)(struct hr_gpu *gpu, float *out, const float *x, size_t n);
    int (*flag_nonfinite)(struct hr_gpu *gpu, uint32_t *flag, const float *x, size_t n);
    int (*to_f32)(struct hr_gpu *gpu, float *dst, const void *src, enum hr_dtype dtype, size_t n);
};

struct hr_host_range {
    uintptr_t begin, end;
};

struct hr_gpu {
    const struct hr_device_fns *fns;
    enum hr_dtype act;
    char name[128];
    unsigned char *arena;
    uint64_t arena_bytes;
    uint64_t arena_used; /* gpu.c's */
    unsigned char *ring; /* params->ring_bytes; NULL: none */
    uint64_t ring_bytes;
    bool ring_is_abandoned;                                 /* and its memory is never freed */
    struct hr_host_range registered[HR_GPU_REGISTERED_MAX]; /* host memory; gpu.c's */
    size_t n_registered;
};

/* Whether bytes that are to be staged lie in the device's ring already. */
static inline bool hr_device_has(const struct hr_gpu *gpu, const void *bytes)
{
    return gpu->ring && (uintptr_t) bytes - (uintptr_t) gpu->ring < gpu->ring_bytes;
}

/* The arena as the first parts. @return how many, 1 or 2 */
uint32_t hr_gpu_arena_parts(const struct hr_gpu_params *params, struct hr_gpu_part *ret_parts);
/* The slots, or the ring with what its alignment may take. */
struct hr_gpu_part hr_gpu_weights_part(const struct hr_gpu_params *params, uint64_t slot_bytes);
/* "activations 120, slots of weights 32, scratch 112": the uses of n parts in MiB. @return buf */
char *hr_gpu_parts_text(char *buf, size_t buf_bytes, const struct hr_gpu_part *parts, uint32_t n);

extern const struct hr_device_fns hr_device_cpu;
extern const struct hr_device_fns hr_device_emulated;
extern const struct hr_device_fns hr_device_cuda; /* in builds with CUDA */

#endif /* HR_GPU_DEVICE_H */
