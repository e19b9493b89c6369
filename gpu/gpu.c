/* SPDX-License-Identifier: Apache-2.0 */
/* gpu.c -- the front of all devices: picks one, checks every argument, hands out the arena.
 *
 * A wrong argument is a mistake of ours and asserted here, once for all devices.
 */
#include "gpu/gpu.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "config.h"
#include "gpu/device.h"

enum { ARENA_ALIGN = 64 };

/* In order of preference for "auto". */
static const struct hr_device_fns *const devices[] = {
#if HAVE_CUDA
    &hr_device_cuda,
#endif
    &hr_device_cpu,
    &hr_device_emulated,
};

static bool is_auto(const char *name)
{
    return !name || strcmp(name, "auto") == 0;
}

static bool names(const struct hr_device_fns *fns, const char *name)
{
    const size_t n = strlen(fns->name);

    return strncmp(name, fns->name, n) == 0 &&
           (name[n] == '\0' || (name[n] == ':' && fns->takes_number));
}

/* What a name stands for: NULL and "auto" for HEADRACE_DEVICE, if that is set. */
static const char *resolve(const char *name)
{
    const char *wanted = is_auto(name) ? hr_env("HEADRACE_DEVICE") : NULL;

    return wanted ? wanted : name;
}

/* The first that works.
 * @param why  zeroed; gets the reason of the first that does not */
static const struct hr_device_fns *first_usable(const struct hr_gpu_params *params,
                                                struct hr_error *why)
{
    for (size_t i = 0; i < HR_ARRAY_SIZE(devices); i++)
        if (!devices[i]->by_name_only &&
            (!devices[i]->probe || devices[i]->probe(params, why) == 0))
            return devices[i];
    return NULL;
}

/* The device of a resolved name. */
static const struct hr_device_fns *device_find(const struct hr_gpu_params *params,
                                               struct hr_error *why)
{
    if (is_auto(params->device))
        return first_usable(params, why);
    for (size_t i = 0; i < HR_ARRAY_SIZE(devices); i++)
        if (names(devices[i], params->device))
            return devices[i];
    return NULL;
}

/* The same for the name that params have, which becomes the resolved one. */
static const struct hr_device_fns *resolve_and_find(struct hr_gpu_params *params)
{
    struct hr_error why = {0};

    params->device = resolve(params->device);
    return device_find(params, &why);
}

static int error_unknown_device(const char *name, struct hr_error *err)
{
    char allowed[128] = "auto", printable[64];
    size_t used = strlen(allowed);

    for (size_t i = 0; i < HR_ARRAY_SIZE(devices); i++) {
        const size_t n = strlen(devices[i]->name);

        if (devices[i]->by_name_only)
            continue;
        hr_assert(used + 2 + n < sizeof(allowed));
        memcpy(allowed + used, ", ", 2);
        memcpy(allowed + used + 2, devices[i]->name, n + 1);
        used += 2 + n;
    }
    hr_printable(name, printable, sizeof(printable));
    if (!HAVE_CUDA && strncmp(name, "cuda", 4) == 0)
        return hr_error_set(err, -ENODEV,
                            "device \"%s\": this build is without CUDA; use one of %s", printable,
                            allowed);
    return hr_error_set(err, -ENODEV, "device \"%s\" is unknown: use one of %s", printable,
                        allowed);
}

static int check_ring(const struct hr_device_fns *fns, const struct hr_gpu_params *params,
                      struct hr_error *err)
{
    hr_assert(params->ring_bytes % HR_GPU_RING_STEP == 0);
    if (params->ring_bytes == 0 || fns->begin_thread)
        return 0;
    return hr_error_set(err, -EOPNOTSUPP,
                        "reading into the memory of a GPU needs one: device %s computes in the "
                        "host's; use --device cuda, or another --io",
                        fns->name);
}

/* @param why  why no GPU was chosen, where the choice was ours */
static int check_attention(const struct hr_device_fns *fns, const struct hr_gpu_params *params,
                           const struct hr_error *why, struct hr_error *err)
{
    if (params->attention == HR_ATTENTION_OWN || fns->attention_prepare)
        return 0;
    return hr_error_set(err, -ENODEV,
                        "attention by cuDNN needs an NVIDIA GPU, or use --attention own: %s%s",
                        why->code ? "" : "the device is ", why->code ? why->message : fns->name);
}

/* The device, its name resolved, and why not a GPU where that was our choice. */
static int choose(const struct hr_device_fns **ret_fns, struct hr_gpu_params *params,
                  struct hr_error *why, struct hr_error *err)
{
    params->device = resolve(params->device);
    *ret_fns = device_find(params, why);
    if (!*ret_fns)
        return error_unknown_device(params->device, err);
    if (params->n_threads > HR_GPU_THREADS_MAX)
        return hr_error_set(err, -EINVAL, "%u threads: the device takes at most %d",
                            params->n_threads, HR_GPU_THREADS_MAX);
    const int r = check_ring(*ret_fns, params, err);

    return r < 0 ? r : check_attention(*ret_fns, params, why, err);
}

int hr_gpu_check(const struct hr_gpu_params *params, struct hr_error *err)
{
    struct hr_gpu_params resolved = *params;
    const struct hr_device_fns *fns;
    struct hr_error why = {0};

    return choose(&fns, &resolved, &why, err);
}

int hr_gpu_open(struct hr_gpu **ret_gpu, const struct hr_gpu_params *params, struct hr_error *err)
{
    struct hr_gpu_params resolved = *params;
    const struct hr_device_fns *fns;
    struct hr_error why = {0};
    struct hr_gpu *gpu = NULL;
    int rc;

    hr_assert(params->act == HR_DTYPE_BF16 || params->act == HR_DTYPE_F32);
    rc = choose(&fns, &resolved, &why, err);
    if (rc == 0)
        rc = fns->open(&gpu, &resolved, err);
    if (rc < 0)
        return rc;
    hr_assert(gpu->fns == fns && gpu->arena_bytes >= params->arena_bytes);
    hr_assert(gpu->ring_bytes == params->ring_bytes && !gpu->ring == !gpu->ring_bytes);
    hr_assert((uintptr_t) gpu->ring % HR_GPU_RING_STEP == 0);
    if (is_auto(resolved.device))
        hr_log(HR_LOG_INFO, "device: %s%s%s", gpu->name, why.code ? "; not used: " : "",
               why.message);
    *ret_gpu = gpu;
    return 0;
}

void hr_gpu_close(struct hr_gpu **gpu)
{
    if (*gpu)
        (*gpu)->fns->close(*gpu);
    *gpu = NULL;
}

const char *hr_gpu_name(const struct hr_gpu *gpu)
{
    return gpu->name;
}

int hr_gpu_attention_name(const struct hr_gpu_params *params, char *buf, size_t buf_bytes,
                          struct hr_error *err)
{
    struct hr_gpu_params resolved = *params;
    const struct hr_device_fns *fns;
    struct hr_error why = {0};
    const int r = choose(&fns, &resolved, &why, err);

    if (r < 0)
        return r;
    if (params->attention == HR_ATTENTION_CUDNN)
        return fns->attention_name(&resolved, buf, buf_bytes, err);
    snprintf(buf, buf_bytes, "own");
    return 0;
}

uint64_t hr_gpu_scratch_bytes(const struct hr_gpu_params *params)
{
    struct hr_gpu_params resolved = *params;
    const struct hr_device_fns *fns = resolve_and_find(&resolved);

    return fns ? fns->scratch_bytes(&resolved) : 0;
}

uint32_t hr_gpu_arena_parts(const struct hr_gpu_params *params, struct hr_gpu_part *ret_parts)
{
    static const char activations[] = "activations", weights[] = "weights that stay";
    const uint64_t bytes = hr_align_up(params->arena_bytes, HR_GPU_ARENA_STEP);

    hr_assert(params->weights_bytes <= params->arena_bytes);
    ret_parts[0] = (struct hr_gpu_part){activations, activations, bytes - params->weights_bytes};
    ret_parts[1] = (struct hr_gpu_part){weights, weights, params->weights_bytes};
    return params->weights_bytes > 0 ? 2 : 1;
}

struct hr_gpu_part hr_gpu_weights_part(const struct hr_gpu_params *params, uint64_t slot_bytes)
{
    static const char slots[] = "slots of weights", ring[] = "ring of weights";

    if (params->ring_bytes)
        return (struct hr_gpu_part){ring, ring, params->ring_bytes + HR_GPU_RING_STEP};
    return (struct hr_gpu_part){slots, slots, slot_bytes};
}

uint32_t hr_gpu_device_parts(const struct hr_gpu_params *params, struct hr_gpu_part *ret_parts)
{
    struct hr_gpu_params resolved = *params;
    const struct hr_device_fns *fns = resolve_and_find(&resolved);

    if (!fns || !fns->device_parts)
        return 0;
    const uint32_t n = hr_gpu_arena_parts(&resolved, ret_parts);
    const uint32_t n_others = fns->device_parts(&resolved, ret_parts + n);

    hr_assert(n + n_others <= HR_GPU_PARTS_MAX);
    return n_others > 0 ? n + n_others : 0;
}

char *hr_gpu_parts_text(char *buf, size_t buf_bytes, const struct hr_gpu_part *parts, uint32_t n)
{
    size_t used = 0;

    buf[0] = '\0';
    for (uint32_t i = 0, next; i < n && used < buf_bytes; i = next) {
        uint64_t bytes = 0;

        for (next = i; next < n && strcmp(parts[next].use, parts[i].use) == 0; next++)
            bytes += parts[next].size_bytes;
        used += (size_t) snprintf(buf + used, buf_bytes - used, "%s%s %llu", i > 0 ? ", " : "",
                                  parts[i].use, hr_mib(bytes));
    }
    return buf;
}

int hr_gpu_device_bytes(const struct hr_gpu_params *params, uint64_t *ret_bytes,
                        struct hr_error *err)
{
    struct hr_gpu_part parts[HR_GPU_PARTS_MAX];
    const uint32_t n = hr_gpu_device_parts(params, parts);
    uint64_t total = 0;
    char text[256];

    for (uint32_t i = 0; i < n; i++)
        total += parts[i].size_bytes;
    if (params->vram_bytes && total > params->vram_bytes)
        return hr_error_set(err, -ENOMEM,
                            "the limit of device memory is %llu MiB, but %llu MiB are needed: %s; "
                            "raise the limit or use a smaller picture",
                            hr_mib(params->vram_bytes), hr_mib(total),
                            hr_gpu_parts_text(text, sizeof(text), parts, n));
    *ret_bytes = total;
    return 0;
}

/* ---- memory ------------------------------------------------------------------------- */

uint64_t hr_gpu_arena_bytes(uint64_t size_bytes)
{
    hr_assert(size_bytes <= UINT64_MAX - ARENA_ALIGN);
    return hr_align_up(size_bytes, ARENA_ALIGN);
}

void *hr_gpu_alloc(struct hr_gpu *gpu, uint64_t size_bytes)
{
    const uint64_t takes = hr_gpu_arena_bytes(size_bytes);

    hr_assert(takes <= gpu->arena_bytes - gpu->arena_used);
    void *p = gpu->arena + gpu->arena_used;
    gpu->arena_used += takes;
    return p;
}

int hr_gpu_register_host(struct hr_gpu *gpu, void *base, size_t size_bytes)
{
    const struct hr_host_range range = {(uintptr_t) base, (uintptr_t) base + size_bytes};

    hr_assert(base && size_bytes > 0);
    if (!gpu->fns->register_host)
        return 0;
    hr_assert(gpu->n_registered < HR_GPU_REGISTERED_MAX);
    const int r = gpu->fns->register_host(gpu, base, size_bytes);

    if (r == 0)
        gpu->registered[gpu->n_registered++] = range;
    return r;
}

void hr_gpu_unregister_host(struct hr_gpu *gpu, void *base)
{
    size_t i = 0;

    if (!gpu->fns->unregister_host)
        return;
    while (i < gpu->n_registered && gpu->registered[i].begin != (uintptr_t) base)
        i++;
    hr_assert(i < gpu->n_registered);
    gpu->registered[i] = gpu->registered[--gpu->n_registered];
    gpu->fns->unregister_host(gpu, base);
}

void *hr_gpu_ring(const struct hr_gpu *gpu, uint64_t *ret_bytes)
{
    *ret_bytes = gpu->ring_bytes;
    return gpu->ring;
}

bool hr_gpu_memory(struct hr_gpu *gpu, struct hr_gpu_memory *ret)
{
    *ret = (struct hr_gpu_memory){0};
    return gpu->fns->memory && gpu->fns->memory(gpu, ret);
}

int hr_gpu_begin_thread(struct hr_gpu *gpu)
{
    hr_assert(gpu->ring);
    return gpu->fns->begin_thread(gpu);
}

void hr_gpu_abandon_ring(struct hr_gpu *gpu)
{
    gpu->ring_is_abandoned = true;
}

int hr_gpu_upload(struct hr_gpu *gpu, void *dst, const void *src_host, size_t size_bytes)
{
    hr_assert(dst && src_host);
    return gpu->fns->upload(gpu, dst, src_host, size_bytes);
}

int hr_gpu_download(struct hr_gpu *gpu, void *dst_host, const void *src, size_t size_bytes)
{
    hr_assert(dst_host && src);
    return gpu->fns->download(gpu, dst_host, src, size_bytes);
}

int hr_gpu_sync(struct hr_gpu *gpu)
{
    return gpu->fns->sync(gpu);
}

int hr_gpu_copy(struct hr_gpu *gpu, void *dst, const void *src, size_t size_bytes)
{
    hr_assert(dst && src && dst != src && size_bytes > 0);
    return gpu->fns->copy(gpu, dst, src, size_bytes);
}

/* ---- weights ------------------------------------------------------------------------ */

int hr_gpu_stage(struct hr_gpu *gpu, struct hr_gpu_weight *ret_weight, const void *host,
                 size_t size_bytes)
{
    hr_assert(ret_weight && host);
    return gpu->fns->stage(gpu, ret_weight, host, size_bytes);
}

void hr_gpu_unstage(struct hr_gpu *gpu, const struct hr_gpu_weight *weight)
{
    hr_assert(weight && weight->data);
    gpu->fns->unstage(gpu, weight);
}

bool hr_gpu_host_is_free(struct hr_gpu *gpu, const struct hr_gpu_weight *weight, bool wait)
{
    hr_assert(weight && weight->data);
    return gpu->fns->host_is_free(gpu, weight, wait);
}

/* ---- operations --------------------------------------------------------------------- */

static bool dtype_is_activation(enum hr_dtype dtype)
{
    return dtype == HR_DTYPE_F32 || dtype == HR_DTYPE_BF16;
}

static void check_low_rank(const struct hr_linear *p)
{
    hr_assert(p->n_low <= HR_LOW_RANK_TERMS_MAX && (p->n_low == 0 || p->low));
    for (size_t i = 0; i < p->n_low; i++) {
        const struct hr_low_rank *low = &p->low[i];

        hr_assert(low->t && low->b && hr_dtype_is_computable(low->b_dtype));
        hr_assert(low->rank >= 1 && low->rank <= HR_LOW_RANK_MAX);
    }
}

int hr_gpu_linear(struct hr_gpu *gpu, const struct hr_linear *p)
{
    hr_assert(p->x && p->w && p->out && p->x != p->out);
    hr_assert(p->n_tokens > 0 && p->n_in > 0 && p->n_out > 0);
    hr_assert(p->x_stride >= p->n_in && p->out_stride >= p->n_out);
    hr_assert(dtype_is_activation(p->x_dtype) && hr_dtype_is_computable(p->w_dtype));
    hr_assert(dtype_is_activation(p->out_dtype));
    hr_assert(!p->w_scale || p->w_scale_stride <= 1);
    check_low_rank(p);
    hr_assert(p->epilogue <= HR_EPILOGUE_GATED_RESIDUAL);
    if (p->epilogue == HR_EPILOGUE_GATED_RESIDUAL)
        hr_assert(p->gate && p->out_dtype == HR_DTYPE_F32);
    return gpu->fns->linear(gpu, p);
}

int hr_gpu_layernorm_modulate(struct hr_gpu *gpu, const struct hr_layernorm_modulate *p)
{
    hr_assert(p->out && p->x && p->shift && p->scale && p->out != (const void *) p->x);
    hr_assert(p->n_tokens > 0 && p->width > 0);
    hr_assert(p->out_dtype == HR_DTYPE_F32 || p->out_dtype == gpu->act);
    return gpu->fns->layernorm_modulate(gpu, p);
}

int hr_gpu_rmsnorm(struct hr_gpu *gpu, float *out, const float *x, const float *gain,
                   size_t n_tokens, size_t width)
{
    hr_assert(out && x && gain && n_tokens > 0 && width > 0);
    return gpu->fns->rmsnorm(gpu, out, x, gain, n_tokens, width);
}

int hr_gpu_qk_norm_rope(struct hr_gpu *gpu, const struct hr_qk_norm_rope *p)
{
    hr_assert(p->out && p->x && p->gain && p->cos_sin && p->out != (const void *) p->x);
    hr_assert(p->n_tokens > 0 && p->n_heads > 0);
    return gpu->fns->qk_norm_rope(gpu, p);
}

int hr_gpu_attention(struct hr_gpu *gpu, const struct hr_attention *p)
{
    hr_assert(p->out && p->q && p->k && p->v);
    hr_assert(p->out != p->k && p->out != p->v);
    hr_assert(p->n_q > 0 && p->n_k > 0 && p->n_heads > 0);
    return gpu->fns->attention(gpu, p);
}

int hr_gpu_attention_prepare(struct hr_gpu *gpu, const struct hr_attention *p, struct hr_error *err)
{
    hr_assert(p->n_q > 0 && p->n_k > 0 && p->n_heads > 0);
    return gpu->fns->attention_prepare ? gpu->fns->attention_prepare(gpu, p, err) : 0;
}

int hr_gpu_flag_nonfinite(struct hr_gpu *gpu, uint32_t *flag, const float *x, size_t n)
{
    hr_assert(flag && x && n > 0);
    return gpu->fns->flag_nonfinite(gpu, flag, x, n);
}

int hr_gpu_silu(struct hr_gpu *gpu, float *out, const float *x, size_t n)
{
    hr_assert(out && x && n > 0);
    return gpu->fns->silu(gpu, out, x, n);
}

int hr_gpu_to_f32(struct hr_gpu *gpu, float *dst, const void *src, enum hr_dtype dtype, size_t n)
{
    hr_assert(dst && src && n > 0 && hr_dtype_is_computable(dtype));
    return gpu->fns->to_f32(gpu, dst, src, dtype, n);
}
