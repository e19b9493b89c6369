/* SPDX-License-Identifier: Apache-2.0 */
/* bench_gpu.c -- how fast a device with memory of its own takes weights and computes with them.
 *
 * One line of JSON for each measurement: copies of 32 MiB bands through slots from registered and
 * from ordinary host memory, GB/s; products and attention at the sizes of the 20B model, in bf16,
 * and a large square product as the rate to compare with, TFLOP/s. Each is the best and the median
 * of some runs; a run is many operations with one wait at the end. Usage: bench_gpu [DEVICE], by
 * default cuda.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/gpu.h"

enum { D = 3072, HEADS = 24, TOKENS = 4224, SQUARE = 8192, BAND_BYTES = 32 << 20, RUNS = 7 };

struct bench {
    struct hr_gpu *gpu;
    void *x, *y;    /* arena: SQUARE x SQUARE f32 each, used as what is needed */
    uint16_t *host; /* SQUARE * SQUARE bf16 */
    struct hr_gpu_weight w;
};

struct shape {
    const char *name;
    size_t n_tokens, n_in, n_out, n_repeat;
    enum hr_epilogue epilogue;
};

static void check(int rc, const char *what)
{
    if (rc == 0)
        return;
    fprintf(stderr, "bench_gpu: %s failed: %d\n", what, rc);
    exit(1);
}

static int compare(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

    return (x > y) - (x < y);
}

/* `amount` of work in each of RUNS runs; rates in 1e9 of it a second times `scale`. */
static void print(const char *name, const char *unit, uint64_t *ns, double amount, double scale)
{
    qsort(ns, RUNS, sizeof(ns[0]), compare);
    printf("{\"name\": \"%s\", \"best_ms\": %.3f, \"median_ms\": %.3f, \"%s\": %.2f}\n", name,
           (double) ns[0] * 1e-6, (double) ns[RUNS / 2] * 1e-6, unit,
           amount / (double) ns[RUNS / 2] * scale);
    fflush(stdout);
}

/* ---- copies --------------------------------------------------------------------------------- */

static void bench_copies(const struct bench *b, const char *name)
{
    enum { BANDS = 32 };
    uint64_t ns[RUNS];

    for (int run = -1; run < RUNS; run++) {
        struct hr_gpu_weight w;
        const uint64_t begin_ns = hr_now_ns();

        for (int i = 0; i < BANDS; i++) {
            check(
                hr_gpu_stage(b->gpu, &w, (const char *) b->host + (i % 4) * BAND_BYTES, BAND_BYTES),
                "a copy");
            hr_gpu_unstage(b->gpu, &w);
        }
        check(hr_gpu_sync(b->gpu), "a copy");
        if (run >= 0)
            ns[run] = hr_now_ns() - begin_ns;
    }
    print(name, "gbps", ns, (double) BANDS * BAND_BYTES, 1.0);
}

/* ---- operations ----------------------------------------------------------------------------- */

static void bench_linear(const struct bench *b, const struct shape *s)
{
    const bool is_residual = s->epilogue == HR_EPILOGUE_GATED_RESIDUAL;
    const struct hr_linear p = {.x = b->x,
                                .x_dtype = HR_DTYPE_BF16,
                                .x_stride = s->n_in,
                                .w = b->w.data,
                                .w_dtype = HR_DTYPE_BF16,
                                .n_tokens = s->n_tokens,
                                .n_in = s->n_in,
                                .n_out = s->n_out,
                                .epilogue = s->epilogue,
                                .gate = b->y,
                                .gate_split = s->n_tokens,
                                .out = b->y,
                                .out_dtype = is_residual ? HR_DTYPE_F32 : HR_DTYPE_BF16,
                                .out_stride = s->n_out};
    uint64_t ns[RUNS];

    for (int run = -1; run < RUNS; run++) {
        const uint64_t begin_ns = hr_now_ns();

        for (size_t i = 0; i < s->n_repeat; i++)
            check(hr_gpu_linear(b->gpu, &p), s->name);
        check(hr_gpu_sync(b->gpu), s->name);
        if (run >= 0)
            ns[run] = hr_now_ns() - begin_ns;
    }
    print(s->name, "tflops", ns,
          2.0 * (double) (s->n_tokens * s->n_repeat) * (double) s->n_in * (double) s->n_out, 1e-3);
}

static void bench_attention(const struct bench *b)
{
    enum { REPEAT = 10 };
    const uint16_t *q = b->x;
    const size_t n = (size_t) TOKENS * D;
    const struct hr_attention p = {.out = b->y,
                                   .q = q,
                                   .k = q + n,
                                   .v = q + 2 * n,
                                   .n_q = TOKENS,
                                   .n_k = TOKENS,
                                   .n_heads = HEADS};
    uint64_t ns[RUNS];

    for (int run = -1; run < RUNS; run++) {
        const uint64_t begin_ns = hr_now_ns();

        for (int i = 0; i < REPEAT; i++)
            check(hr_gpu_attention(b->gpu, &p), "attention");
        check(hr_gpu_sync(b->gpu), "attention");
        if (run >= 0)
            ns[run] = hr_now_ns() - begin_ns;
    }
    print("attention 4224", "tflops", ns, 4.0 * REPEAT * TOKENS * (double) TOKENS * D, 1e-3);
}

/* Small numbers, so that nothing overflows. */
static void fill(uint16_t *p, size_t n)
{
    uint64_t x = 88172645463325252u;

    for (size_t i = 0; i < n; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        p[i] = (uint16_t) (0x3c00 | (x & 0x807f) | (x >> 20 & 0x100));
    }
}

int main(int argc, char **argv)
{
    static const struct shape shapes[] = {
        {"square 8192", SQUARE, SQUARE, SQUARE, 4, HR_EPILOGUE_STORE},
        {"qkv 4096 x 3072 -> 3072", 4096, D, D, 20, HR_EPILOGUE_STORE},
        {"mlp up 4096 x 3072 -> 12288", 4096, D, 4 * D, 10, HR_EPILOGUE_GELU_TANH},
        {"mlp down 4096 x 12288 -> 3072", 4096, 4 * D, D, 10, HR_EPILOGUE_GATED_RESIDUAL},
        {"text 100 x 3072 -> 3072", 100, D, D, 100, HR_EPILOGUE_STORE},
        {"modulation 1 x 3072 -> 18432", 1, D, 6 * D, 100, HR_EPILOGUE_STORE},
    };
    const size_t n = (size_t) SQUARE * SQUARE, n_bytes = n * sizeof(uint16_t);
    const struct hr_gpu_params params = {.device = argc > 1 ? argv[1] : "cuda",
                                         .act = HR_DTYPE_BF16,
                                         .slot_bytes = 4u << 26,
                                         .arena_bytes = 2 * hr_gpu_arena_bytes(n * 4)};
    struct bench b = {.host = aligned_alloc(2 << 20, n_bytes)};
    struct hr_error err = {0};

    if (!b.host || hr_gpu_open(&b.gpu, &params, &err) < 0) {
        fprintf(stderr, "bench_gpu: %s\n", b.host ? err.message : "no memory");
        return err.code == -ENODEV ? 77 : 1;
    }
    printf("{\"device\": \"%s\"}\n", hr_gpu_name(b.gpu));
    b.x = hr_gpu_alloc(b.gpu, n * 4);
    b.y = hr_gpu_alloc(b.gpu, n * 4);
    fill(b.host, n);
    bench_copies(&b, "host to device, ordinary memory");
    if (hr_gpu_register_host(b.gpu, b.host, n_bytes) == 0) {
        bench_copies(&b, "host to device, registered memory");
        hr_gpu_unregister_host(b.gpu, b.host);
    }
    check(hr_gpu_upload(b.gpu, b.x, b.host, n_bytes), "upload");
    check(hr_gpu_stage(b.gpu, &b.w, b.host, n_bytes), "the weight");
    for (size_t i = 0; i < HR_ARRAY_SIZE(shapes); i++)
        bench_linear(&b, &shapes[i]);
    bench_attention(&b);
    hr_gpu_unstage(b.gpu, &b.w);
    hr_gpu_close(&b.gpu);
    free(b.host);
    return 0;
}
