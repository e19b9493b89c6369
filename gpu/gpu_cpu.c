/* SPDX-License-Identifier: Apache-2.0 */
/* gpu_cpu.c -- the host CPU as a device: memory, choice of kernels, and the operations that work
 * row by row. Weights are used where the disk's reader put them; every operation is finished when
 * it returns.
 *
 * Environment, for tests and for doubts: HEADRACE_CPU names the instruction set of our kernels,
 * HEADRACE_CPU_BF16=off computes products of bf16 in f32 as on a CPU without them.
 */
#include <errno.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "gpu/cpu.h"

/* ---- open and close ----------------------------------------------------------------- */

static unsigned n_threads_of(const struct hr_gpu_params *params)
{
    const unsigned n_cpus = hr_n_cpus();

    if (params->n_threads > 0)
        return params->n_threads;
    return n_cpus < HR_GPU_THREADS_MAX ? n_cpus : HR_GPU_THREADS_MAX;
}

/* Bytes of a thread's scratch, in the order of struct hr_cpu_thread. */
enum {
    TILE_BYTES = HR_TILE_QUERIES * HR_TILE_KEYS * 4,
    ACC_BYTES = HR_TILE_QUERIES * HR_HEAD_DIM * 4,
    STATS_BYTES = 2 * HR_TILE_QUERIES * 4,
    X_BYTES = HR_TILE_TOKENS * HR_TILE_STRIDE * 4,
};
_Static_assert(TILE_BYTES >= HR_TILE_TOKENS * HR_TILE_ROWS_MAX * 4, "sums of a linear tile fit");
_Static_assert(X_BYTES >= (HR_TILE_QUERIES + 2 * HR_TILE_KEYS) * HR_HEAD_DIM * 4,
               "q, k and v of a tile fit");

static size_t w_bytes(bool has_bf16)
{
    return (size_t) (has_bf16 ? HR_TILE_ROWS : HR_TILE_ROWS_MAX) * HR_TILE_STRIDE * 4;
}

static size_t thread_scratch_bytes(bool has_bf16)
{
    return TILE_BYTES + w_bytes(has_bf16) + ACC_BYTES + STATS_BYTES + (has_bf16 ? 0 : X_BYTES);
}

static unsigned char *map_zeroed(size_t size_bytes)
{
    void *p = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    madvise(p, size_bytes, MADV_HUGEPAGE); /* fewer TLB misses where the system grants it */
    return (unsigned char *) p;
}

static int take_memory(struct hr_cpu *cpu, uint64_t arena_bytes)
{
    const size_t each = thread_scratch_bytes(cpu->has_bf16);

    cpu->gpu.arena_bytes = arena_bytes;
    cpu->gpu.arena = map_zeroed(arena_bytes > 0 ? arena_bytes : 1);
    cpu->scratch_bytes = each * cpu->n_threads;
    cpu->scratch = map_zeroed(cpu->scratch_bytes);
    if (!cpu->gpu.arena || !cpu->scratch)
        return -ENOMEM;
    for (unsigned i = 0; i < cpu->n_threads; i++) {
        struct hr_cpu_thread *thread = &cpu->threads[i];
        unsigned char *p = (unsigned char *) cpu->scratch + i * each;

        thread->tile = (float *) p;
        thread->w = p += TILE_BYTES;
        thread->acc = (float *) (p += w_bytes(cpu->has_bf16));
        thread->stats = (float *) (p += ACC_BYTES);
        thread->x = cpu->has_bf16 ? NULL : (float *) (p + STATS_BYTES);
    }
    return 0;
}

static void cpu_close(struct hr_gpu *gpu)
{
    struct hr_cpu *cpu = (struct hr_cpu *) gpu;

    hr_pool_close(&cpu->pool);
    hr_gemm_close(&cpu->gemm);
    if (cpu->gpu.arena)
        munmap(cpu->gpu.arena, cpu->gpu.arena_bytes > 0 ? cpu->gpu.arena_bytes : 1);
    if (cpu->scratch)
        munmap(cpu->scratch, cpu->scratch_bytes);
    free(cpu);
}

static int choose_kernels(struct hr_cpu *cpu, struct hr_error *err)
{
    const char *isa = hr_env("HEADRACE_CPU");
    char printable[64], allowed[64] = "";

    cpu->kernels = hr_kernels_find(isa);
    if (cpu->kernels)
        return 0;
    for (size_t i = 0; hr_kernels_name(i); i++) {
        const size_t used = strlen(allowed);

        snprintf(allowed + used, sizeof(allowed) - used, "%s%s", i > 0 ? ", " : "",
                 hr_kernels_name(i));
    }
    return hr_error_set(err, -ENODEV, "HEADRACE_CPU=%s: this CPU has %s",
                        hr_printable(isa, printable, sizeof(printable)), allowed);
}

static void choose_bf16(struct hr_cpu *cpu, enum hr_dtype act)
{
    const char *setting = hr_env("HEADRACE_CPU_BF16");
    const bool is_off = setting && strcmp(setting, "off") == 0;

    cpu->has_bf16 = !is_off && hr_gemm_has_bf16(cpu->gemm);
    if (!cpu->has_bf16 && act == HR_DTYPE_BF16)
        hr_log(HR_LOG_INFO, "cpu: products of bf16 are computed in f32, slower: %s",
               is_off ? "HEADRACE_CPU_BF16=off" : "the CPU has no such instructions");
}

static int error_open(int rc, const struct hr_cpu *cpu, const struct hr_gpu_params *params,
                      struct hr_error *err)
{
    const unsigned n_threads = cpu->n_threads;
    char text[128];

    if (rc == -EAGAIN)
        return hr_error_set(err, rc,
                            "cpu: the system gives no %u threads; use fewer (--threads) or raise "
                            "the limit on processes (ulimit -u)",
                            n_threads);
    if (rc == -ENOMEM)
        return hr_error_set(
            err, rc,
            "cpu: no memory for activations %llu MiB and scratch of %u threads %llu "
            "MiB; use a smaller picture or fewer threads",
            hr_mib(params->arena_bytes), n_threads,
            hr_mib(thread_scratch_bytes(cpu->has_bf16) * n_threads));
    return hr_error_set(err, rc, "cpu: %u threads: %s", n_threads,
                        hr_strerror(rc, text, sizeof(text)));
}

static int cpu_open(struct hr_gpu **ret_gpu, const struct hr_gpu_params *params,
                    struct hr_error *err)
{
    const unsigned n_threads = n_threads_of(params);
    const dnnl_version_t *version = dnnl_version();
    struct hr_cpu *cpu = calloc(1, sizeof(*cpu) + n_threads * sizeof(cpu->threads[0]));
    int rc;

    if (!cpu)
        return hr_error_set(err, -ENOMEM, "cpu: no memory");
    cpu->n_threads = n_threads;
    rc = choose_kernels(cpu, err);
    if (rc == 0)
        rc = hr_gemm_open(&cpu->gemm, n_threads);
    if (rc < 0)
        goto fail_close;
    choose_bf16(cpu, params->act);
    rc = take_memory(cpu, params->arena_bytes);
    if (rc == 0)
        rc = hr_pool_open(&cpu->pool, n_threads, params->cancelled);
    if (rc < 0)
        goto fail_close;

    cpu->gpu.fns = &hr_device_cpu;
    cpu->gpu.act = params->act;
    snprintf(cpu->gpu.name, sizeof(cpu->gpu.name), "cpu (oneDNN %d.%d.%d, %u thread%s, %s%s)",
             version->major, version->minor, version->patch, n_threads, n_threads == 1 ? "" : "s",
             cpu->kernels->isa, cpu->has_bf16 ? ", bf16 products" : "");
    *ret_gpu = &cpu->gpu;
    return 0;

fail_close:
    rc = error_open(rc, cpu, params, err);
    cpu_close(&cpu->gpu);
    return rc;
}

/* Tiles are of bounded size. */
static uint64_t cpu_scratch_bytes(const struct hr_gpu_params *params)
{
    const uint64_t each = thread_scratch_bytes(false) + HR_GEMM_SCRATCH_BYTES;

    return HR_GEMM_FIXED_BYTES + n_threads_of(params) * each;
}

/* ---- memory and weights: the host's own --------------------------------------------- */

static int cpu_upload(struct hr_gpu *gpu, void *dst, const void *src_host, size_t size_bytes)
{
    (void) gpu;
    memcpy(dst, src_host, size_bytes);
    return 0;
}

static int cpu_sync(struct hr_gpu *gpu)
{
    (void) gpu;
    return 0;
}

static int cpu_stage(struct hr_gpu *gpu, struct hr_gpu_weight *ret_weight, const void *host,
                     size_t size_bytes)
{
    (void) gpu;
    (void) size_bytes;
    *ret_weight = (struct hr_gpu_weight){.data = host};
    return 0;
}

static void cpu_unstage(struct hr_gpu *gpu, const struct hr_gpu_weight *weight)
{
    (void) gpu;
    (void) weight;
}

static bool cpu_host_is_free(struct hr_gpu *gpu, const struct hr_gpu_weight *weight, bool wait)
{
    (void) gpu;
    (void) weight;
    (void) wait;
    return true;
}

/* ---- operations on rows ------------------------------------------------------------- */

/* Rows of one task: enough for a few microseconds, and a result that no task shares a row of. */
static size_t rows_per_task(size_t n_rows, size_t width)
{
    const size_t rows = (size_t) hr_div_ceil(16384, width);

    return rows < n_rows ? rows : n_rows;
}

struct rows_job {
    const struct hr_cpu *cpu;
    size_t n_rows, rows_each;
    void (*run)(const struct rows_job *job, size_t begin, size_t end);
    const void *p;
    uint32_t *flag;
    float *out;
    const float *x, *gain;
    size_t width;
    enum hr_dtype dtype;
};

static void rows_task(void *ctx, size_t task_idx, unsigned thread_idx)
{
    const struct rows_job *job = (const struct rows_job *) ctx;
    const size_t begin = task_idx * job->rows_each;

    (void) thread_idx;
    job->run(job, begin, hr_min_u64(job->n_rows, begin + job->rows_each));
}

static int rows_run(struct hr_gpu *gpu, struct rows_job *job, size_t width)
{
    job->cpu = (const struct hr_cpu *) gpu;
    job->rows_each = rows_per_task(job->n_rows, width);
    return hr_pool_run(job->cpu->pool, rows_task, job,
                       (size_t) hr_div_ceil(job->n_rows, job->rows_each));
}

static void layernorm_modulate_rows(const struct rows_job *job, size_t begin, size_t end)
{
    job->cpu->kernels->layernorm_modulate((const struct hr_layernorm_modulate *) job->p, begin,
                                          end);
}

static int cpu_layernorm_modulate(struct hr_gpu *gpu, const struct hr_layernorm_modulate *p)
{
    struct rows_job job = {.run = layernorm_modulate_rows, .p = p, .n_rows = p->n_tokens};

    return rows_run(gpu, &job, p->width);
}

static void rmsnorm_rows(const struct rows_job *job, size_t begin, size_t end)
{
    job->cpu->kernels->rmsnorm(job->out + begin * job->width, job->x + begin * job->width,
                               job->gain, end - begin, job->width);
}

static int cpu_rmsnorm(struct hr_gpu *gpu, float *out, const float *x, const float *gain,
                       size_t n_tokens, size_t width)
{
    struct rows_job job = {
        .run = rmsnorm_rows, .out = out, .x = x, .gain = gain, .width = width, .n_rows = n_tokens};

    return rows_run(gpu, &job, width);
}

static void qk_norm_rope_rows(const struct rows_job *job, size_t begin, size_t end)
{
    job->cpu->kernels->qk_norm_rope((const struct hr_qk_norm_rope *) job->p, job->cpu->gpu.act,
                                    begin, end);
}

static int cpu_qk_norm_rope(struct hr_gpu *gpu, const struct hr_qk_norm_rope *p)
{
    struct rows_job job = {.run = qk_norm_rope_rows, .p = p, .n_rows = p->n_tokens};

    return rows_run(gpu, &job, p->n_heads * HR_HEAD_DIM);
}

static void silu_rows(const struct rows_job *job, size_t begin, size_t end)
{
    job->cpu->kernels->silu(job->out + begin, job->x + begin, end - begin);
}

static int cpu_silu(struct hr_gpu *gpu, float *out, const float *x, size_t n)
{
    struct rows_job job = {.run = silu_rows, .out = out, .x = x, .n_rows = n};

    return rows_run(gpu, &job, 1);
}

static void flag_nonfinite_rows(const struct rows_job *job, size_t begin, size_t end)
{
    if (!job->cpu->kernels->all_finite(job->x + begin, end - begin))
        __atomic_store_n(job->flag, 1, __ATOMIC_RELAXED);
}

static int cpu_flag_nonfinite(struct hr_gpu *gpu, uint32_t *flag, const float *x, size_t n)
{
    struct rows_job job = {.run = flag_nonfinite_rows, .flag = flag, .x = x, .n_rows = n};

    return rows_run(gpu, &job, 1);
}

static void to_f32_rows(const struct rows_job *job, size_t begin, size_t end)
{
    const unsigned char *src = (const unsigned char *) job->p;

    job->cpu->kernels->to_f32(job->out + begin, src + begin * job->width, job->dtype, end - begin);
}

static int cpu_to_f32(struct hr_gpu *gpu, float *dst, const void *src, enum hr_dtype dtype,
                      size_t n)
{
    struct rows_job job = {.run = to_f32_rows,
                           .out = dst,
                           .p = src,
                           .dtype = dtype,
                           .width = hr_dtype_bytes(dtype),
                           .n_rows = n};

    return rows_run(gpu, &job, 1);
}

const struct hr_device_fns hr_device_cpu = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .scratch_bytes = cpu_scratch_bytes,
    .upload = cpu_upload,
    .download = cpu_upload, /* the same memory: a copy either way */
    .copy = cpu_upload,
    .sync = cpu_sync,
    .stage = cpu_stage,
    .unstage = cpu_unstage,
    .host_is_free = cpu_host_is_free,
    .linear = hr_cpu_linear,
    .layernorm_modulate = cpu_layernorm_modulate,
    .rmsnorm = cpu_rmsnorm,
    .qk_norm_rope = cpu_qk_norm_rope,
    .attention = hr_cpu_attention,
    .silu = cpu_silu,
    .flag_nonfinite = cpu_flag_nonfinite,
    .to_f32 = cpu_to_f32,
};
