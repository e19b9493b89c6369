/* SPDX-License-Identifier: Apache-2.0 */
/* bench_kernels.c -- how fast a device computes the operations of the 20B model.
 *
 * One line of JSON for each: the best and the median of some runs, GFLOP/s where products are what
 * counts, GB/s of weights or activations moved, both of the median; and the CPU time of all threads
 * in a run, which tells on a busy machine what an idle one would do. Weights are cold: each run
 * takes the next of several copies, more memory than any cache. Usage: bench_kernels [WORD...] runs
 * the lines whose names contain a word; HEADRACE_BENCH_THREADS (a number), HEADRACE_BENCH_ACT (f32,
 * else bf16), HEADRACE_CPU and HEADRACE_CPU_BF16 apply.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "gpu/gpu.h"

enum { D = 3072, HEADS = 24, TOKENS_MAX = 4101, RUNS_MAX = 200 };
#define COLD_BYTES (512 * HR_MIB)
#define SECONDS    0.6

struct bench {
    struct hr_gpu *gpu;
    enum hr_dtype act;
    unsigned char *cold;  /* COLD_BYTES of bf16 that are small numbers */
    float *f32, *f32_out; /* [TOKENS_MAX, 4 D] */
    void *act_in, *act_out;
    char **words;
    int n_words;
};

/* ---- measuring ---------------------------------------------------------------------- */

typedef void run_fn(const struct bench *b, const void *op, size_t run_idx);

static int compare_u64(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

    return (x > y) - (x < y);
}

static bool is_wanted(const struct bench *b, const char *name)
{
    for (int i = 0; i < b->n_words; i++)
        if (strstr(name, b->words[i]))
            return true;
    return b->n_words == 0;
}

static uint64_t cpu_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}

static void measure(const struct bench *b, const char *name, run_fn *run, const void *op,
                    double flop, double bytes)
{
    static uint64_t ns[RUNS_MAX];
    uint64_t total_ns = 0;
    size_t n = 0;

    if (!is_wanted(b, name))
        return;
    run(b, op, 0);
    const uint64_t cpu_ns = cpu_now_ns();
    while (n < 3 || (n < RUNS_MAX && (double) total_ns < SECONDS * 1e9)) {
        const uint64_t start_ns = hr_now_ns();

        run(b, op, n + 1);
        ns[n] = hr_now_ns() - start_ns;
        total_ns += ns[n++];
    }
    const double cpu_ms = (double) (cpu_now_ns() - cpu_ns) * 1e-6 / (double) n;
    qsort(ns, n, sizeof(ns[0]), compare_u64);
    printf("{\"name\": \"%s\", \"runs\": %zu, \"best_ms\": %.3f, \"median_ms\": %.3f, "
           "\"cpu_ms\": %.3f, \"gflops\": %.1f, \"gbps\": %.2f}\n",
           name, n, (double) ns[0] * 1e-6, (double) ns[n / 2] * 1e-6, cpu_ms,
           flop / (double) ns[n / 2], bytes / (double) ns[n / 2]);
    fflush(stdout);
}

static void check(int rc)
{
    if (rc == 0)
        return;
    fprintf(stderr, "bench_kernels: an operation failed: %d\n", rc);
    exit(1);
}

/* ---- linear layers ------------------------------------------------------------------ */

static void run_linear(const struct bench *b, const void *op, size_t run_idx)
{
    struct hr_linear p = *(const struct hr_linear *) op;
    const size_t n_bytes = p.n_in * p.n_out * (p.w_dtype == HR_DTYPE_F32 ? 4 : 2);
    /* odd addresses, as in files */
    p.w = b->cold + run_idx % (COLD_BYTES / n_bytes) * n_bytes / 2 + 1;
    check(hr_gpu_linear(b->gpu, &p));
}

static void bench_linear(const struct bench *b, size_t n_tokens, size_t n_in, size_t n_out,
                         enum hr_epilogue epilogue)
{
    const bool is_residual = epilogue == HR_EPILOGUE_GATED_RESIDUAL;
    const struct hr_linear p = {.x = n_tokens <= 2 ? b->f32 : b->act_in,
                                .x_dtype = n_tokens <= 2 ? HR_DTYPE_F32 : b->act,
                                .x_stride = n_in,
                                .w_dtype = HR_DTYPE_BF16,
                                .bias = b->f32,
                                .gate = b->f32,
                                .gate_split = n_tokens,
                                .n_tokens = n_tokens,
                                .n_in = n_in,
                                .n_out = n_out,
                                .epilogue = epilogue,
                                .out = is_residual ? b->f32_out : b->act_out,
                                .out_dtype = is_residual ? HR_DTYPE_F32 : b->act,
                                .out_stride = n_out};
    const double macs = (double) n_tokens * (double) n_in * (double) n_out;
    char name[64];

    snprintf(name, sizeof(name), "linear %zu x %zu -> %zu", n_tokens, n_in, n_out);
    measure(b, name, run_linear, &p, 2.0 * macs, 2.0 * (double) n_in * (double) n_out);
}

/* ---- the rest ----------------------------------------------------------------------- */

static void run_attention(const struct bench *b, const void *op, size_t run_idx)
{
    (void) run_idx;
    check(hr_gpu_attention(b->gpu, (const struct hr_attention *) op));
}

static void run_layernorm(const struct bench *b, const void *op, size_t run_idx)
{
    (void) run_idx;
    check(hr_gpu_layernorm_modulate(b->gpu, (const struct hr_layernorm_modulate *) op));
}

static void run_rope(const struct bench *b, const void *op, size_t run_idx)
{
    (void) run_idx;
    check(hr_gpu_qk_norm_rope(b->gpu, (const struct hr_qk_norm_rope *) op));
}

static void run_to_f32(const struct bench *b, const void *op, size_t run_idx)
{
    (void) run_idx;
    check(hr_gpu_to_f32(b->gpu, b->f32_out, b->cold + 1, *(const enum hr_dtype *) op,
                        TOKENS_MAX * D));
}

static void bench_tokens(const struct bench *b, size_t n_tokens)
{
    const size_t act_bytes = b->act == HR_DTYPE_F32 ? 4 : 2;
    const double n = (double) n_tokens * D;
    const struct hr_attention attention = {.out = b->act_out,
                                           .q = b->act_in,
                                           .k = b->act_in,
                                           .v = b->act_in,
                                           .n_q = n_tokens,
                                           .n_k = n_tokens,
                                           .n_heads = HEADS};
    const struct hr_layernorm_modulate layernorm = {.out = b->act_out,
                                                    .out_dtype = b->act,
                                                    .x = b->f32,
                                                    .shift = b->f32,
                                                    .scale = b->f32,
                                                    .split = n_tokens,
                                                    .n_tokens = n_tokens,
                                                    .width = D};
    const struct hr_qk_norm_rope rope = {.out = b->act_out,
                                         .x = b->f32,
                                         .gain = b->f32,
                                         .cos_sin = b->f32,
                                         .n_tokens = n_tokens,
                                         .n_heads = HEADS};
    char name[64];

    snprintf(name, sizeof(name), "attention %zu", n_tokens);
    measure(b, name, run_attention, &attention, 4.0 * n * (double) n_tokens, 0.0);
    snprintf(name, sizeof(name), "layernorm_modulate %zu", n_tokens);
    measure(b, name, run_layernorm, &layernorm, 0.0, n * (double) (4 + act_bytes));
    snprintf(name, sizeof(name), "qk_norm_rope %zu", n_tokens);
    measure(b, name, run_rope, &rope, 0.0, n * (double) (4 + act_bytes));
}

static void bench_all(const struct bench *b)
{
    static const size_t tokens[] = {1, 2, 5, 8, 9, 16, 32, 64, 261, 1029, TOKENS_MAX};
    static const enum hr_dtype dtypes[] = {HR_DTYPE_BF16, HR_DTYPE_F16, HR_DTYPE_F8_E4M3};

    for (size_t i = 0; i < HR_ARRAY_SIZE(tokens); i++) {
        bench_linear(b, tokens[i], D, D, HR_EPILOGUE_STORE);
        bench_linear(b, tokens[i], D, 4 * D, HR_EPILOGUE_GELU_TANH);
        bench_linear(b, tokens[i], 4 * D, D, HR_EPILOGUE_GATED_RESIDUAL);
    }
    bench_tokens(b, 261);
    bench_tokens(b, 1029);
    bench_tokens(b, TOKENS_MAX);
    for (size_t i = 0; i < HR_ARRAY_SIZE(dtypes); i++) {
        char name[64];

        snprintf(name, sizeof(name), "to_f32 %s", hr_dtype_name(dtypes[i]));
        measure(b, name, run_to_f32, &dtypes[i], 0.0, 4.0 * TOKENS_MAX * D);
    }
}

static void fill(struct bench *b)
{
    const size_t n = (size_t) TOKENS_MAX * 4 * D;
    uint32_t state = 1;

    for (size_t i = 0; i < COLD_BYTES;
         i++) { /* bytes 0x3c..0x3f: as bf16 at any address ~ 0.01..1 */
        state = state * 1664525u + 1013904223u;
        b->cold[i] = (unsigned char) (0x3c + (state >> 30));
    }
    for (size_t i = 0; i < n; i++)
        b->f32[i] = (float) (i % 251) / 251.0f - 0.5f;
    memcpy(b->act_in, b->cold, n * (b->act == HR_DTYPE_F32 ? 4 : 2));
}

int main(int argc, char **argv)
{
    const char *n_threads = getenv("HEADRACE_BENCH_THREADS"), *act = getenv("HEADRACE_BENCH_ACT");
    const size_t n = (size_t) TOKENS_MAX * 4 * D;
    struct bench b = {.act = act && strcmp(act, "f32") == 0 ? HR_DTYPE_F32 : HR_DTYPE_BF16,
                      .words = argv + 1,
                      .n_words = argc - 1};
    const struct hr_gpu_params params = {.act = b.act,
                                         .n_threads = n_threads ? (unsigned) atoi(n_threads) : 0,
                                         .arena_bytes = 4 * hr_gpu_arena_bytes(n * 4)};
    struct hr_error err = {0};

    if (hr_gpu_open(&b.gpu, &params, &err) < 0) {
        fprintf(stderr, "bench_kernels: %s\n", err.message);
        return 1;
    }
    b.cold =
        mmap(NULL, COLD_BYTES + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b.cold == MAP_FAILED) {
        perror("bench_kernels: mmap");
        return 1;
    }
    madvise(b.cold, COLD_BYTES, MADV_HUGEPAGE);
    b.f32 = hr_gpu_alloc(b.gpu, n * 4);
    b.f32_out = hr_gpu_alloc(b.gpu, n * 4);
    b.act_in = hr_gpu_alloc(b.gpu, n * 4);
    b.act_out = hr_gpu_alloc(b.gpu, n * 4);
    fill(&b);
    printf("{\"device\": \"%s\"}\n", hr_gpu_name(b.gpu));
    bench_all(&b);
    munmap(b.cold, COLD_BYTES + 4096);
    hr_gpu_close(&b.gpu);
    return 0;
}
