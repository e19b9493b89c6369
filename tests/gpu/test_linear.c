/* SPDX-License-Identifier: Apache-2.0 */
/* test_linear.c -- linear layers of every dtype pair, epilogue and instruction set against
 * hr_linear_ref, around the sizes of tiles, at odd addresses, and bit for bit on any number of
 * threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/cpu.h" /* the sizes of tiles */
#include "tests/gpu/check.h"

static const enum hr_dtype x_dtypes[] = {HR_DTYPE_F32, HR_DTYPE_BF16};
static const enum hr_dtype w_dtypes[] = {HR_DTYPE_F32, HR_DTYPE_F16, HR_DTYPE_BF16,
                                         HR_DTYPE_F8_E4M3, HR_DTYPE_F8_E5M2};

/* One layer's arrays, and its description for the device. */
struct layer {
    struct hr_linear p;
    void *x, *w, *out, *want, *before;
    float *bias, *gate, *scale;
    struct hr_low_rank low[HR_LOW_RANK_TERMS_MAX];
    size_t out_bytes;
};

/* What a layer may have beside its weights: `extras` says which. */
enum { EXTRA_SCALE = 1, EXTRA_SCALES = 2, EXTRA_LOW = 4, EXTRA_ALL = 7 };

static void low_init(struct layer *l, struct check_rng *rng, size_t n_low)
{
    static const size_t ranks[] = {1, 3, 16, 64, 65, HR_TILE_K - 1, HR_TILE_K + 1, 2 * HR_TILE_K};
    struct hr_linear *p = &l->p;

    p->low = l->low;
    p->n_low = n_low;
    for (size_t i = 0; i < n_low; i++) {
        const size_t rank = ranks[check_pick(rng, p->n_out < 100 ? 8 : p->n_out < 400 ? 5 : 2)];
        const enum hr_dtype dtype = w_dtypes[check_pick(rng, HR_ARRAY_SIZE(w_dtypes))];
        float *t = check_alloc(p->n_tokens * rank * sizeof(float), sizeof(float));
        void *b = check_alloc(p->n_out * rank * check_dtype_bytes(dtype), check_pick(rng, 64));

        check_fill_f32(rng, t, p->n_tokens * rank, -1.0f, 1.0f);
        check_fill(rng, b, dtype, p->n_out * rank);
        l->low[i] = (struct hr_low_rank){.t = t, .b = b, .b_dtype = dtype, .rank = rank};
    }
}

static void extras_init(struct layer *l, struct check_rng *rng, unsigned extras)
{
    const size_t n_scales = extras & EXTRA_SCALES ? l->p.n_out : 1;

    l->scale = check_alloc(n_scales * sizeof(float), sizeof(float));
    check_fill_f32(rng, l->scale, n_scales, 0.01f, 1.0f);
    if (extras & (EXTRA_SCALE | EXTRA_SCALES)) {
        l->p.w_scale = l->scale;
        l->p.w_scale_stride = extras & EXTRA_SCALES ? 1 : 0;
    }
    if (extras & EXTRA_LOW)
        low_init(l, rng, 1 + check_pick(rng, 3));
}

static void layer_init(struct layer *l, struct check_rng *rng, const struct hr_linear *shape,
                       unsigned extras)
{
    struct hr_linear *p = &l->p;

    *p = *shape;
    p->x_stride = p->n_in + check_pick(rng, 2) * check_pick(rng, 9);
    p->out_stride = p->n_out + check_pick(rng, 2) * check_pick(rng, 9);
    p->gate_split = check_pick(rng, p->n_tokens + 2);
    p->gate_stride = p->n_out + check_pick(rng, 3);
    l->out_bytes = p->n_tokens * p->out_stride * check_dtype_bytes(p->out_dtype);

    const size_t n_x = p->n_tokens * p->x_stride, n_w = p->n_out * p->n_in;
    /* aligned as matrix libraries like it, or not */
    l->x = check_alloc(n_x * check_dtype_bytes(p->x_dtype),
                       check_pick(rng, 2) * check_dtype_bytes(p->x_dtype));
    l->w =
        check_alloc(n_w * check_dtype_bytes(p->w_dtype), check_pick(rng, 2) * check_pick(rng, 64));
    l->out = check_alloc(l->out_bytes, check_pick(rng, 2) * check_dtype_bytes(p->out_dtype));
    l->want = check_alloc(l->out_bytes, 0);
    l->before = check_alloc(l->out_bytes, 0);
    l->bias = check_alloc(p->n_out * sizeof(float), sizeof(float));
    l->gate = check_alloc((p->gate_stride + p->n_out) * sizeof(float), sizeof(float));
    for (size_t t = 0; t < p->n_tokens; t++) /* what lies between the rows stays NaN */
        check_fill(rng, (char *) l->x + t * p->x_stride * check_dtype_bytes(p->x_dtype), p->x_dtype,
                   p->n_in);
    check_fill(rng, l->w, p->w_dtype, n_w);
    check_fill_f32(rng, l->bias, p->n_out, -1.0f, 1.0f);
    check_fill_f32(rng, l->gate, p->gate_stride + p->n_out, -1.0f, 1.0f);
    for (size_t t = 0; t < p->n_tokens && p->epilogue == HR_EPILOGUE_GATED_RESIDUAL; t++)
        check_fill_f32(rng, (float *) l->before + t * p->out_stride, p->n_out, -1.0f, 1.0f);

    p->x = l->x;
    p->w = l->w;
    p->bias = check_pick(rng, 4) ? l->bias : NULL;
    p->gate = l->gate;
    extras_init(l, rng, extras);
    memcpy(l->want, l->before, l->out_bytes);
    p->out = l->want;
    hr_linear_ref(p);
    p->out = l->out;
}

static void layer_uninit(struct layer *l)
{
    check_free(l->x);
    check_free(l->w);
    check_free(l->out);
    check_free(l->want);
    check_free(l->before);
    check_free(l->bias);
    check_free(l->gate);
    check_free(l->scale);
    for (size_t i = 0; i < l->p.n_low; i++) {
        check_free((void *) (uintptr_t) l->low[i].t);
        check_free((void *) (uintptr_t) l->low[i].b);
    }
}

static void layer_run(struct layer *l, struct hr_gpu *gpu)
{
    memcpy(l->out, l->before, l->out_bytes);
    check_done(gpu, hr_gpu_linear(gpu, &l->p));
}

/* Between the rows nothing may be written. */
static void check_gaps(const struct layer *l)
{
    const size_t size = check_dtype_bytes(l->p.out_dtype), gap = l->p.out_stride - l->p.n_out;

    for (size_t t = 0; t < l->p.n_tokens; t++) {
        const size_t at = (t * l->p.out_stride + l->p.n_out) * size;

        assert_memory_equal((char *) l->out + at, (char *) l->before + at, gap * size);
    }
}

static void check_layer(struct layer *l, struct hr_gpu *gpu, const struct check_device *device)
{
    const struct hr_linear *p = &l->p;
    size_t n_k = p->n_in;
    char what[200];

    snprintf(
        what, sizeof(what),
        "linear %zux%zux%zu x %s w %s out %s epilogue %d, scaled %d, %zu low-rank (%s, bf16 %d)",
        p->n_tokens, p->n_in, p->n_out, hr_dtype_name(p->x_dtype), hr_dtype_name(p->w_dtype),
        hr_dtype_name(p->out_dtype), p->epilogue, p->w_scale != NULL, p->n_low, device->isa,
        device->bf16);
    for (size_t i = 0; i < p->n_low; i++)
        n_k += p->low[i].rank;
    layer_run(l, gpu);
    check_close(what,
                &(struct check_matrix){.got = l->out,
                                       .want = l->want,
                                       .dtype = p->out_dtype,
                                       .n_rows = p->n_tokens,
                                       .width = p->n_out,
                                       .stride = p->out_stride},
                3e-6 + 4e-8 * (double) n_k);
    check_gaps(l);
}

struct devices {
    struct hr_gpu *gpu[8];
    struct check_device device[8];
    size_t n;
};

static void devices_open(struct devices *d, enum hr_dtype act)
{
    for (d->n = 0; check_device_get(&d->device[d->n], d->n); d->n++) {
        assert_true(d->n < HR_ARRAY_SIZE(d->gpu) - 1);
        d->gpu[d->n] = check_device_open(&d->device[d->n], act, 2);
    }
}

static void devices_close(struct devices *d)
{
    while (d->n > 0)
        check_device_close(&d->gpu[--d->n]);
}

static void check_shape(struct devices *d, struct check_rng *rng, const struct hr_linear *shape,
                        unsigned extras)
{
    struct layer l;

    layer_init(&l, rng, shape, extras);
    for (size_t i = 0; i < d->n; i++)
        check_layer(&l, d->gpu[i], &d->device[i]);
    layer_uninit(&l);
}

/* Of all dtypes and epilogues; fewer where other builds draw sizes enough. */
static size_t n_rounds(void)
{
    const char *text = getenv("HEADRACE_TEST_ROUNDS");

    return text ? strtoul(text, NULL, 10) : 3;
}

/* Every pair of dtypes with every epilogue, sizes drawn from around the widths of vectors. */
static void test_dtypes(void **state)
{
    static const size_t n_in[] = {1, 15, 33, 64, 127, 200}, n_out[] = {1, 3, 17, 64, 65, 130};
    static const size_t n_tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 33};
    struct check_rng rng = check_seed();
    struct devices d;

    (void) state;
    devices_open(&d, HR_DTYPE_BF16);
    for (size_t i = 0; i < 2 * 2 * 5 * 5 * n_rounds(); i++) {
        struct hr_linear shape = {
            .x_dtype = x_dtypes[i % 2],
            .out_dtype = x_dtypes[i / 2 % 2],
            .w_dtype = w_dtypes[i / 4 % 5],
            .epilogue = (enum hr_epilogue)(i / 20 % 5),
            .n_in = n_in[check_pick(&rng, HR_ARRAY_SIZE(n_in))],
            .n_out = n_out[check_pick(&rng, HR_ARRAY_SIZE(n_out))],
            .n_tokens = n_tokens[check_pick(&rng, HR_ARRAY_SIZE(n_tokens))],
        };

        if (shape.epilogue == HR_EPILOGUE_GATED_RESIDUAL)
            shape.out_dtype = HR_DTYPE_F32;
        check_shape(&d, &rng, &shape, 0);
        check_shape(&d, &rng, &shape, 1 + (unsigned) check_pick(&rng, EXTRA_ALL));
    }
    devices_close(&d);
}

/* One less than, as much as and one more than each tile, with and without conversion. */
static void test_tiles(void **state)
{
    static const size_t sizes[][3] = {
        /* tokens, in, out */
        {HR_TILE_TOKENS - 1, 40, 63},
        {HR_TILE_TOKENS, 33, 64},
        {HR_TILE_TOKENS + 1, 31, HR_TILE_ROWS + 1},
        {2 * HR_TILE_TOKENS + 1, 8, HR_TILE_ROWS},
        {HR_TILE_TOKENS, 24, HR_TILE_ROWS_MAX - 1},
        {HR_TILE_TOKENS + 1, 24, HR_TILE_ROWS_MAX + 1},
        {9, HR_TILE_K - 1, 65},
        {9, HR_TILE_K, 5},
        {10, HR_TILE_K + 1, 7},
        {11, 2 * HR_TILE_K, 4},
        {12, 3 * HR_TILE_K + 5, 9},
        {5, HR_TILE_K - 1, 63},
        {8, 2 * HR_TILE_K + 1, 65},
        {1, 1544, 9}, /* rows of whole vectors */
        {4, 776, 33},
        {6, 264, 20},
    };
    struct check_rng rng = check_seed();
    struct devices d;

    (void) state;
    devices_open(&d, HR_DTYPE_BF16);
    for (size_t i = 0; i < HR_ARRAY_SIZE(sizes); i++) {
        for (size_t j = 0; j < 4; j++) {
            const struct hr_linear shape = {.x_dtype = x_dtypes[j % 2],
                                            .w_dtype = j < 2 ? HR_DTYPE_BF16 : HR_DTYPE_F16,
                                            .out_dtype = HR_DTYPE_F32,
                                            .n_tokens = sizes[i][0],
                                            .n_in = sizes[i][1],
                                            .n_out = sizes[i][2]};

            check_shape(&d, &rng, &shape, j == 0 ? EXTRA_LOW | EXTRA_SCALES : 0);
        }
    }
    devices_close(&d);
}

/* More sums than a GPU's buffer for them holds: parts of more rows, and of more tokens. */
static void test_parts(void **state)
{
    const struct hr_linear shapes[] = {{.x_dtype = HR_DTYPE_BF16,
                                        .w_dtype = HR_DTYPE_BF16,
                                        .out_dtype = HR_DTYPE_F32,
                                        .epilogue = HR_EPILOGUE_GATED_RESIDUAL,
                                        .n_tokens = 4100,
                                        .n_in = 8,
                                        .n_out = 2100},
                                       {.x_dtype = HR_DTYPE_F32,
                                        .w_dtype = HR_DTYPE_F16,
                                        .out_dtype = HR_DTYPE_BF16,
                                        .epilogue = HR_EPILOGUE_GELU_TANH,
                                        .n_tokens = 20000,
                                        .n_in = 5,
                                        .n_out = 460}};
    const char *device = getenv("HEADRACE_DEVICE");
    struct check_rng rng;
    struct devices d;

    (void) state;
    if (!device || strncmp(device, "cuda", 4) != 0)
        skip(); /* the CPU has no such buffer */
    rng = check_seed();
    devices_open(&d, HR_DTYPE_BF16);
    for (size_t i = 0; i < HR_ARRAY_SIZE(shapes); i++)
        check_shape(&d, &rng, &shapes[i], EXTRA_LOW | EXTRA_SCALES);
    devices_close(&d);
}

/* The same bits on any number of threads and at any address of w and out. */
static void test_same_bits(void **state)
{
    static const unsigned n_threads[] = {1, 2, 3, 5};
    static const size_t sizes[][3] = {
        {5, 1030, 200}, {3, 1544, 66}, {70, 1030, 200}, {600, 40, 260}};
    struct check_rng rng = check_seed();
    struct layer l[HR_ARRAY_SIZE(sizes) * 4];
    const struct check_device device = check_device_first();

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(l); i++) {
        const size_t *size = sizes[i / 4];
        const struct hr_linear shape = {.x_dtype = x_dtypes[i % 2],
                                        .w_dtype = i & 2 ? HR_DTYPE_F8_E4M3 : HR_DTYPE_BF16,
                                        .out_dtype = i & 1 ? HR_DTYPE_F32 : HR_DTYPE_BF16,
                                        .epilogue = (enum hr_epilogue)(i % 4),
                                        .n_tokens = size[0],
                                        .n_in = size[1],
                                        .n_out = size[2]};

        layer_init(&l[i], &rng, &shape, i % 3 ? EXTRA_LOW | EXTRA_SCALE : 0);
    }
    for (size_t n = 0; n < HR_ARRAY_SIZE(n_threads); n++) {
        struct hr_gpu *gpu = check_device_open(&device, HR_DTYPE_BF16, n_threads[n]);

        for (size_t i = 0; i < HR_ARRAY_SIZE(l); i++) {
            const size_t n_bytes = l[i].p.n_in * l[i].p.n_out * check_dtype_bytes(l[i].p.w_dtype);
            void *w = check_alloc(n_bytes, n == 0 ? 0 : check_pick(&rng, 64));
            void *out = check_alloc(l[i].out_bytes, n % 2 * check_dtype_bytes(l[i].p.out_dtype));

            memcpy(w, l[i].w, n_bytes);
            memcpy(out, l[i].before, l[i].out_bytes);
            l[i].p.w = w;
            l[i].p.out = out;
            check_done(gpu, hr_gpu_linear(gpu, &l[i].p));
            if (n == 0)
                memcpy(l[i].want, out, l[i].out_bytes);
            assert_memory_equal(out, l[i].want, l[i].out_bytes);
            check_free(w);
            check_free(out);
        }
        check_device_close(&gpu);
    }
    for (size_t i = 0; i < HR_ARRAY_SIZE(l); i++)
        layer_uninit(&l[i]);
}

/* A scale of 1 and a term of zeros change no bit, and as many terms as are allowed, of the largest
 * rank, are added. */
static void test_extras(void **state)
{
    struct check_rng rng = check_seed();
    const struct check_device device = check_device_first();
    struct hr_gpu *gpu = check_device_open(&device, HR_DTYPE_BF16, 2);
    float *one = check_alloc(sizeof(*one), 4);

    (void) state;
    *one = 1.0f;
    for (size_t i = 0; i < 8; i++) {
        const struct hr_linear shape = {.x_dtype = x_dtypes[i % 2],
                                        .w_dtype = w_dtypes[i / 2],
                                        .out_dtype = HR_DTYPE_F32,
                                        .n_tokens = i % 3 ? 20 : 3,
                                        .n_in = 70,
                                        .n_out = 33};
        struct layer l;

        layer_init(&l, &rng, &shape, 0);
        layer_run(&l, gpu);
        memcpy(l.want, l.out, l.out_bytes);
        low_init(&l, &rng, HR_LOW_RANK_TERMS_MAX);
        for (size_t j = 0; j < l.p.n_low; j++)
            memset((void *) (uintptr_t) l.low[j].t, 0, l.p.n_tokens * l.low[j].rank * 4);
        l.p.w_scale = one;
        layer_run(&l, gpu);
        assert_memory_equal(l.out, l.want, l.out_bytes);

        void *b = (void *) (uintptr_t) l.low[0].b;
        float *t = (float *) (uintptr_t) l.low[0].t;
        check_free(b);
        check_free(t);
        b = check_alloc(l.p.n_out * HR_LOW_RANK_MAX * 2, 1);
        t = check_alloc(l.p.n_tokens * HR_LOW_RANK_MAX * 4, 4);
        check_fill(&rng, b, HR_DTYPE_BF16, l.p.n_out * HR_LOW_RANK_MAX);
        check_fill_f32(&rng, t, l.p.n_tokens * HR_LOW_RANK_MAX, -1.0f, 1.0f);
        l.low[0] = (struct hr_low_rank){t, b, HR_DTYPE_BF16, HR_LOW_RANK_MAX};
        memcpy(l.want, l.before, l.out_bytes);
        l.p.out = l.want;
        hr_linear_ref(&l.p);
        l.p.out = l.out;
        check_layer(&l, gpu, &device);
        layer_uninit(&l);
    }
    check_free(one);
    check_device_close(&gpu);
}

/* A few tokens together: each has the bits that it has alone, whatever its company. */
static void test_tokens_are_independent(void **state)
{
    struct check_rng rng = check_seed();

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(w_dtypes) * HR_ARRAY_SIZE(x_dtypes); i++)
        for (size_t n = 2; n <= HR_TOKENS_INDEPENDENT_MAX; n++) {
            const struct hr_linear shape = {.x_dtype = x_dtypes[i % 2],
                                            .w_dtype = w_dtypes[i / 2],
                                            .out_dtype = HR_DTYPE_F32,
                                            .n_tokens = n,
                                            .n_in = n % 2 ? 1544 : 1030,
                                            .n_out = 67};
            const struct check_device device = check_device_first();
            struct hr_gpu *gpu = check_device_open(&device, HR_DTYPE_BF16, 2);
            struct layer l;

            layer_init(&l, &rng, &shape, n % 2 ? EXTRA_SCALES : 0);
            layer_run(&l, gpu);
            memcpy(l.want, l.out, l.out_bytes);
            memcpy(l.out, l.before, l.out_bytes);
            for (size_t t = 0; t < n; t++) {
                struct hr_linear one = l.p;

                one.n_tokens = 1;
                one.x = (char *) l.x + t * one.x_stride * check_dtype_bytes(one.x_dtype);
                one.out = (float *) l.out + t * one.out_stride;
                check_done(gpu, hr_gpu_linear(gpu, &one));
            }
            assert_memory_equal(l.out, l.want, l.out_bytes);
            layer_uninit(&l);
            check_device_close(&gpu);
        }
}

/* More different shapes than prepared products are kept. */
static void test_many_shapes(void **state)
{
    struct check_rng rng = check_seed();
    const struct check_device device = check_device_first();
    struct hr_gpu *gpu = check_device_open(&device, HR_DTYPE_BF16, 2);

    (void) state;
    for (size_t i = 0; i < 300; i++) {
        const struct hr_linear shape = {.x_dtype = HR_DTYPE_BF16,
                                        .w_dtype = HR_DTYPE_BF16,
                                        .out_dtype = HR_DTYPE_F32,
                                        .n_tokens = 9 + i % 20,
                                        .n_in = 1 + i / 20,
                                        .n_out = 70};
        struct layer l;

        layer_init(&l, &rng, &shape, 0);
        check_layer(&l, gpu, &device);
        layer_uninit(&l);
    }
    check_device_close(&gpu);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dtypes),    cmocka_unit_test(test_tiles),
        cmocka_unit_test(test_same_bits), cmocka_unit_test(test_tokens_are_independent),
        cmocka_unit_test(test_extras),    cmocka_unit_test(test_many_shapes),
        cmocka_unit_test(test_parts),
    };

    return check_missing() ? 77 : cmocka_run_group_tests(tests, NULL, NULL);
}
