/* SPDX-License-Identifier: Apache-2.0 */
/* gpu_emulated.c -- a device with memory of its own and two queues, played by the CPU: for tests.
 *
 * It keeps a GPU's promises and no more. Weights are copied into slots by a copy queue; operations
 * wait in a compute queue and run later than they are asked for; both queues are threads, and what
 * orders them is what orders two CUDA streams: a queue waits for what another has done so far.
 * Copies can be delayed ("emulated:2000", up to so many microseconds, by chance), and a slot is
 * filled with NaN before the copy into it. So a slot that is overwritten or read too early, or
 * host memory that is given back before it was read, shows in the result.
 *
 * What CUDA refuses of host memory that is registered, or makes expensive later, is an assertion
 * here: memory that is registered twice, that is not registered, or still is at the end.
 *
 * Never chosen on its own; the arithmetic is the CPU device's, bit for bit.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "gpu/device.h"
#include "gpu/slots.h"

enum {
    COMMANDS = 128,
    SLOT_BYTES_DEFAULT = 96 << 20,
    DELAY_MAX_US = 1000000,
};

struct emulated;
struct queue;

/* What a queue has to do; one of a kind. */
struct command {
    enum {
        COPY,
        WAIT,
        COPY_IN_ORDER,
        LINEAR,
        LAYERNORM,
        RMSNORM,
        QK_NORM,
        ATTENTION,
        SILU,
        FLAG,
        TO_F32
    } kind;
    union {
        struct {
            void *dst;
            const void *src;
            size_t size_bytes;
        } copy;
        struct {
            struct queue *queue;
            uint64_t until; /* so many commands of that queue are done */
        } wait;
        struct {
            struct hr_linear p;
            struct hr_low_rank low[HR_LOW_RANK_TERMS_MAX];
        } linear;
        struct hr_layernorm_modulate layernorm;
        struct hr_qk_norm_rope qk_norm;
        struct hr_attention attention;
        struct {
            float *out;
            uint32_t *flag;
            const void *x;
            const float *gain;
            size_t n, width;
            enum hr_dtype dtype;
        } rows;
    };
};

struct queue {
    struct emulated *device;
    pthread_t thread;
    bool is_started;
    struct command commands[COMMANDS]; /* number i at i % COMMANDS */
    uint64_t n_asked, n_done;          /* guarded by the device's lock */
};

struct emulated {
    struct hr_gpu gpu; /* its arena is the inner device's */
    struct hr_gpu *inner;
    struct queue copies, computes;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop;
    int failed; /* the first failure of an operation; all later ones are left out */
    struct hr_slots slots;
    unsigned char *memory; /* of the slots, or the ring */
    uint64_t own_bytes;    /* memory and arena; 0: they do not count as its own */
    uint64_t n_in_ring;    /* tickets of weights there  */
    /* Of live slots, or weights in the ring, by ticket: how far the queues must be. used 0: still
     * staged. */
    uint64_t copied[HR_SLOTS_MAX], used[HR_SLOTS_MAX];
    unsigned delay_us;
    uint64_t random;
};

/* ---- the queues ----------------------------------------------------------------------------- */

static void delay(struct emulated *e)
{
    uint64_t x = e->random; /* xorshift64; the copy queue's own */

    if (e->delay_us == 0)
        return;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    e->random = x;
    hr_sleep_ns(x % (e->delay_us + 1u) * 1000);
}

static int compute(struct emulated *e, struct command *c)
{
    const struct hr_device_fns *cpu = e->inner->fns;

    switch (c->kind) {
    case LINEAR:
        c->linear.p.low = c->linear.low; /* the copy in the queue */
        return cpu->linear(e->inner, &c->linear.p);
    case LAYERNORM:
        return cpu->layernorm_modulate(e->inner, &c->layernorm);
    case RMSNORM:
        return cpu->rmsnorm(e->inner, c->rows.out, (const float *) c->rows.x, c->rows.gain,
                            c->rows.n, c->rows.width);
    case QK_NORM:
        return cpu->qk_norm_rope(e->inner, &c->qk_norm);
    case ATTENTION:
        return cpu->attention(e->inner, &c->attention);
    case SILU:
        return cpu->silu(e->inner, c->rows.out, (const float *) c->rows.x, c->rows.n);
    case FLAG:
        return cpu->flag_nonfinite(e->inner, c->rows.flag, (const float *) c->rows.x, c->rows.n);
    case TO_F32:
        return cpu->to_f32(e->inner, c->rows.out, c->rows.x, c->rows.dtype, c->rows.n);
    default:
        break;
    }
    hr_assert(!"an operation");
    return -EINVAL;
}

/* Without the lock. @return 0 or the operation's failure */
static int run(struct emulated *e, struct command *c)
{
    switch (c->kind) {
    case COPY:
        memset(c->copy.dst, 0xff, c->copy.size_bytes);
        delay(e);
        memcpy(c->copy.dst, c->copy.src, c->copy.size_bytes);
        return 0;
    case COPY_IN_ORDER:
        memcpy(c->copy.dst, c->copy.src, c->copy.size_bytes);
        return 0;
    default:
        return compute(e, c);
    }
}

static void *queue_main(void *arg)
{
    struct queue *q = arg;
    struct emulated *e = q->device;

    pthread_mutex_lock(&e->lock);
    while (true) {
        while (q->n_done == q->n_asked && !e->stop)
            pthread_cond_wait(&e->changed, &e->lock);
        if (q->n_done == q->n_asked)
            break;
        struct command *c = &q->commands[q->n_done % COMMANDS];

        if (c->kind == WAIT) {
            while (c->wait.queue->n_done < c->wait.until)
                pthread_cond_wait(&e->changed, &e->lock);
        } else if (e->failed == 0 || c->kind == COPY) {
            pthread_mutex_unlock(&e->lock);
            const int r = run(e, c);

            pthread_mutex_lock(&e->lock);
            if (r < 0 && e->failed == 0)
                e->failed = r;
        }
        q->n_done++;
        pthread_cond_broadcast(&e->changed);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

/* Ask for a command. @return 0, or the failure of an earlier one */
static int ask(struct queue *q, const struct command *c)
{
    struct emulated *e = q->device;

    pthread_mutex_lock(&e->lock);
    while (q->n_asked - q->n_done == COMMANDS)
        pthread_cond_wait(&e->changed, &e->lock);
    q->commands[q->n_asked++ % COMMANDS] = *c;
    pthread_cond_broadcast(&e->changed);
    const int r = e->failed;
    pthread_mutex_unlock(&e->lock);
    return r;
}

/* @return whether so many commands are done; with `wait` it waits until they are */
static bool reached(struct queue *q, uint64_t until, bool wait)
{
    struct emulated *e = q->device;

    pthread_mutex_lock(&e->lock);
    while (wait && q->n_done < until)
        pthread_cond_wait(&e->changed, &e->lock);
    const bool is_reached = q->n_done >= until;
    pthread_mutex_unlock(&e->lock);
    return is_reached;
}

static int queue_start(struct queue *q, struct emulated *e)
{
    q->device = e;
    const int r = hr_thread_start(&q->thread, "hr-emulated", 0, queue_main, q);

    q->is_started = r == 0;
    return r;
}

/* ---- open and close ------------------------------------------------------------------------- */

static void emulated_close(struct hr_gpu *gpu)
{
    struct emulated *e = (struct emulated *) gpu;

    hr_assert(gpu->n_registered == 0);
    pthread_mutex_lock(&e->lock);
    e->stop = true;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
    if (e->copies.is_started)
        pthread_join(e->copies.thread, NULL);
    if (e->computes.is_started)
        pthread_join(e->computes.thread, NULL);
    pthread_cond_destroy(&e->changed);
    pthread_mutex_destroy(&e->lock);
    if (e->inner)
        e->inner->fns->close(e->inner);
    if (!e->gpu.ring_is_abandoned)
        free(e->memory);
    free(e);
}

/* The number behind "emulated:"; 0 without one. */
static int parse_delay(const char *device, unsigned *ret_us, struct hr_error *err)
{
    const char *colon = strchr(device, ':');
    char *end;
    char shown[64];
    const unsigned long us = colon ? strtoul(colon + 1, &end, 10) : 0;

    if (colon && (colon[1] < '0' || colon[1] > '9' || *end || us > DELAY_MAX_US))
        return hr_error_set(err, -ENODEV, "device \"%s\": expected emulated:MICROSECONDS, 0 to %d",
                            hr_printable(device, shown, sizeof(shown)), DELAY_MAX_US);
    *ret_us = (unsigned) us;
    return 0;
}

static uint64_t slot_bytes_of(const struct hr_gpu_params *params)
{
    return params->slot_bytes ? params->slot_bytes : SLOT_BYTES_DEFAULT;
}

static uint64_t weights_bytes_of(const struct hr_gpu_params *params)
{
    return hr_gpu_weights_part(params, slot_bytes_of(params)).size_bytes;
}

/* With a limit it counts as memory of its own, as a GPU's; all of it is the host's, see below. */
static uint32_t emulated_device_parts(const struct hr_gpu_params *params,
                                      struct hr_gpu_part *ret_parts)
{
    ret_parts[0] = hr_gpu_weights_part(params, slot_bytes_of(params));
    return params->vram_bytes > 0;
}

/* All pages now, none later: where the kernel can in its own way, which is much faster. */
static void take_pages(void *p, size_t size_bytes)
{
    madvise(p, size_bytes, MADV_HUGEPAGE);
    if (madvise(p, size_bytes, MADV_POPULATE_WRITE) < 0)
        memset(p, 0, size_bytes);
}

static int emulated_open(struct hr_gpu **ret_gpu, const struct hr_gpu_params *params,
                         struct hr_error *err)
{
    const uint64_t weights_bytes = hr_align_up(weights_bytes_of(params), HR_GPU_RING_STEP);
    struct emulated *e = calloc(1, sizeof(*e));
    unsigned delay_us = 0;
    int r = parse_delay(params->device, &delay_us, err);

    if (r < 0 || !e) {
        free(e);
        return r < 0 ? r : hr_error_set(err, -ENOMEM, "emulated device: no memory");
    }
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->changed, NULL);
    e->delay_us = delay_us;
    e->random = 0x9e3779b97f4a7c15u;
    if (!params->ring_bytes)
        hr_slots_init(&e->slots, slot_bytes_of(params));
    e->memory = aligned_alloc(HR_GPU_RING_STEP, weights_bytes);
    if (e->memory)
        take_pages(e->memory, weights_bytes);
    if (e->memory && params->ring_bytes)
        memset(e->memory, 0, weights_bytes);
    r = e->memory ? hr_device_cpu.open(&e->inner, params, err) : -ENOMEM;
    if (r == 0)
        r = queue_start(&e->copies, e);
    if (r == 0)
        r = queue_start(&e->computes, e);
    if (r < 0) {
        emulated_close(&e->gpu);
        return hr_error_set(err, r, "emulated device: no memory or threads");
    }
    e->gpu = (struct hr_gpu){
        .fns = &hr_device_emulated,
        .act = params->act,
        .arena = e->inner->arena,
        .arena_bytes = e->inner->arena_bytes,
        .ring = params->ring_bytes ? e->memory : NULL,
        .ring_bytes = params->ring_bytes,
    };
    e->own_bytes = params->vram_bytes ? weights_bytes + e->gpu.arena_bytes : 0;
    snprintf(e->gpu.name, sizeof(e->gpu.name), "emulated, copies up to %u us late: %.50s", delay_us,
             e->inner->name);
    *ret_gpu = &e->gpu;
    return 0;
}

static uint64_t emulated_scratch_bytes(const struct hr_gpu_params *params)
{
    return hr_device_cpu.scratch_bytes(params) +
           (params->vram_bytes ? params->vram_bytes : weights_bytes_of(params)) +
           sizeof(struct emulated);
}

/* ---- memory --------------------------------------------------------------------------------- */

static int emulated_sync(struct hr_gpu *gpu)
{
    struct emulated *e = (struct emulated *) gpu;

    reached(&e->computes, e->computes.n_asked, true);
    reached(&e->copies, e->copies.n_asked, true);
    pthread_mutex_lock(&e->lock);
    const int r = e->failed;
    pthread_mutex_unlock(&e->lock);
    return r;
}

static int emulated_upload(struct hr_gpu *gpu, void *dst, const void *src_host, size_t size_bytes)
{
    struct emulated *e = (struct emulated *) gpu;
    const struct command c = {.kind = COPY_IN_ORDER, .copy = {dst, src_host, size_bytes}};
    const int r = ask(&e->computes, &c);

    reached(&e->computes, e->computes.n_asked, true); /* the caller may change the source now */
    return r;
}

static int emulated_download(struct hr_gpu *gpu, void *dst_host, const void *src, size_t size_bytes)
{
    const int r = emulated_sync(gpu);

    if (r == 0)
        memcpy(dst_host, src, size_bytes);
    return r;
}

static int emulated_copy(struct hr_gpu *gpu, void *dst, const void *src, size_t size_bytes)
{
    const struct command c = {.kind = COPY_IN_ORDER, .copy = {dst, src, size_bytes}};

    return ask(&((struct emulated *) gpu)->computes, &c);
}

static int emulated_register_host(struct hr_gpu *gpu, void *base, size_t size_bytes)
{
    const uintptr_t begin = (uintptr_t) base, end = begin + size_bytes;

    for (size_t i = 0; i < gpu->n_registered; i++)
        hr_assert(end <= gpu->registered[i].begin || begin >= gpu->registered[i].end);
    hr_log(HR_LOG_DEBUG, "emulated device: %zu bytes of host memory are registered", size_bytes);
    return 0;
}

static void emulated_unregister_host(struct hr_gpu *gpu, void *base)
{
    struct emulated *e = (struct emulated *) gpu;

    (void) base;
    reached(&e->copies, e->copies.n_asked, true);
}

static bool emulated_memory(struct hr_gpu *gpu, struct hr_gpu_memory *ret)
{
    const uint64_t own_bytes = ((const struct emulated *) gpu)->own_bytes;

    *ret = (struct hr_gpu_memory){.used_bytes = own_bytes, .taken_bytes = own_bytes};
    return own_bytes > 0;
}

/* All of its memory is the process's. */
static int emulated_begin_thread(struct hr_gpu *gpu)
{
    (void) gpu;
    return 0;
}

/* ---- weights -------------------------------------------------------------------------------- */

static int emulated_stage(struct hr_gpu *gpu, struct hr_gpu_weight *ret_weight, const void *host,
                          size_t size_bytes)
{
    struct emulated *e = (struct emulated *) gpu;
    uint64_t offset, ticket;
    int r;

    if (hr_device_has(gpu, host)) {
        *ret_weight = (struct hr_gpu_weight){.data = host, .ticket = e->n_in_ring++};
        return 0;
    }
    if (size_bytes > e->slots.size_bytes)
        return -ENOMEM;
    while (!hr_slots_take(&e->slots, size_bytes, &offset, &ticket)) {
        const uint64_t *used = &e->used[e->slots.oldest % HR_SLOTS_MAX];

        if (*used == 0)
            return -ENOMEM; /* the weights that are staged leave no room */
        /* Nobody waits here: the copy queue does, before it overwrites the slot. */
        const struct command c = {.kind = WAIT, .wait = {&e->computes, *used}};

        hr_slots_pop(&e->slots);
        r = ask(&e->copies, &c);
        if (r < 0)
            return r;
    }
    const struct command copy = {.kind = COPY, .copy = {e->memory + offset, host, size_bytes}};

    r = ask(&e->copies, &copy);
    e->copied[ticket % HR_SLOTS_MAX] = e->copies.n_asked;
    e->used[ticket % HR_SLOTS_MAX] = 0;
    const struct command wait = {.kind = WAIT, .wait = {&e->copies, e->copies.n_asked}};

    if (r == 0)
        r = ask(&e->computes, &wait);
    *ret_weight = (struct hr_gpu_weight){.data = e->memory + offset, .ticket = ticket};
    return r;
}

static void emulated_unstage(struct hr_gpu *gpu, const struct hr_gpu_weight *weight)
{
    struct emulated *e = (struct emulated *) gpu;

    e->used[weight->ticket % HR_SLOTS_MAX] = e->computes.n_asked;
}

/* Of a slot given out anew since, the later copy is asked for: copies are done in order. So are
 * operations, which use weights in the ring. */
static bool emulated_host_is_free(struct hr_gpu *gpu, const struct hr_gpu_weight *weight, bool wait)
{
    struct emulated *e = (struct emulated *) gpu;

    if (hr_device_has(gpu, weight->data))
        return reached(&e->computes, e->used[weight->ticket % HR_SLOTS_MAX], wait);
    return reached(&e->copies, e->copied[weight->ticket % HR_SLOTS_MAX], wait);
}

/* ---- operations ----------------------------------------------------------------------------- */

static int emulated_linear(struct hr_gpu *gpu, const struct hr_linear *p)
{
    struct command c = {.kind = LINEAR, .linear = {.p = *p}};

    if (p->n_low > 0)
        memcpy(c.linear.low, p->low, p->n_low * sizeof(*p->low));
    return ask(&((struct emulated *) gpu)->computes, &c);
}

static int emulated_layernorm_modulate(struct hr_gpu *gpu, const struct hr_layernorm_modulate *p)
{
    return ask(&((struct emulated *) gpu)->computes,
               &(struct command){.kind = LAYERNORM, .layernorm = *p});
}

static int emulated_rmsnorm(struct hr_gpu *gpu, float *out, const float *x, const float *gain,
                            size_t n_tokens, size_t width)
{
    const struct command c = {
        .kind = RMSNORM, .rows = {.out = out, .x = x, .gain = gain, .n = n_tokens, .width = width}};

    return ask(&((struct emulated *) gpu)->computes, &c);
}

static int emulated_qk_norm_rope(struct hr_gpu *gpu, const struct hr_qk_norm_rope *p)
{
    return ask(&((struct emulated *) gpu)->computes,
               &(struct command){.kind = QK_NORM, .qk_norm = *p});
}

static int emulated_attention(struct hr_gpu *gpu, const struct hr_attention *p)
{
    return ask(&((struct emulated *) gpu)->computes,
               &(struct command){.kind = ATTENTION, .attention = *p});
}

static int emulated_silu(struct hr_gpu *gpu, float *out, const float *x, size_t n)
{
    const struct command c = {.kind = SILU, .rows = {.out = out, .x = x, .n = n}};

    return ask(&((struct emulated *) gpu)->computes, &c);
}

static int emulated_flag_nonfinite(struct hr_gpu *gpu, uint32_t *flag, const float *x, size_t n)
{
    const struct command c = {.kind = FLAG, .rows = {.flag = flag, .x = x, .n = n}};

    return ask(&((struct emulated *) gpu)->computes, &c);
}

static int emulated_to_f32(struct hr_gpu *gpu, float *dst, const void *src, enum hr_dtype dtype,
                           size_t n)
{
    const struct command c = {.kind = TO_F32,
                              .rows = {.out = dst, .x = src, .n = n, .dtype = dtype}};

    return ask(&((struct emulated *) gpu)->computes, &c);
}

const struct hr_device_fns hr_device_emulated = {
    .name = "emulated",
    .takes_number = true,
    .by_name_only = true,
    .open = emulated_open,
    .close = emulated_close,
    .scratch_bytes = emulated_scratch_bytes,
    .device_parts = emulated_device_parts,
    .memory = emulated_memory,
    .begin_thread = emulated_begin_thread,
    .register_host = emulated_register_host,
    .unregister_host = emulated_unregister_host,
    .upload = emulated_upload,
    .download = emulated_download,
    .sync = emulated_sync,
    .copy = emulated_copy,
    .stage = emulated_stage,
    .unstage = emulated_unstage,
    .host_is_free = emulated_host_is_free,
    .linear = emulated_linear,
    .layernorm_modulate = emulated_layernorm_modulate,
    .rmsnorm = emulated_rmsnorm,
    .qk_norm_rope = emulated_qk_norm_rope,
    .attention = emulated_attention,
    .silu = emulated_silu,
    .flag_nonfinite = emulated_flag_nonfinite,
    .to_f32 = emulated_to_f32,
};
