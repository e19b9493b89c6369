/* SPDX-License-Identifier: Apache-2.0 */
/* test_attention.c -- attention of every instruction set against hr_attention_ref, around the sizes
 * of tiles, with scores far apart, and bit for bit on any number of threads. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/cpu.h" /* the sizes of tiles */
#include "tests/gpu/check.h"

static const enum hr_dtype acts[] = {HR_DTYPE_BF16, HR_DTYPE_F32};

struct arrays {
    struct hr_attention p;
    void *q, *k, *v, *out, *want;
    size_t out_bytes;
};

/* Values of magnitude `range`, cast to the dtype of activations. */
static void *random_act(struct check_rng *rng, enum hr_dtype act, size_t n, float range)
{
    const size_t size = check_dtype_bytes(act);
    float *f32 = check_alloc(n * sizeof(float), 0);
    void *ret = check_alloc(n * size, 0);

    check_fill_f32(rng, f32, n, -range, range);
    if (act == HR_DTYPE_F32)
        memcpy(ret, f32, n * size);
    else
        hr_to_bf16_ref(ret, f32, HR_DTYPE_F32, n);
    check_free(f32);
    return ret;
}

static void arrays_init(struct arrays *a, struct check_rng *rng, enum hr_dtype act, size_t n_q,
                        size_t n_k, size_t n_heads, float range)
{
    const size_t d = n_heads * HR_HEAD_DIM;

    a->q = random_act(rng, act, n_q * d, range);
    a->k = random_act(rng, act, n_k * d, range);
    a->v = random_act(rng, act, n_k * d, 1.0f);
    a->out_bytes = n_q * d * check_dtype_bytes(act);
    a->out = check_alloc(a->out_bytes, 0);
    a->want = check_alloc(a->out_bytes, 0);
    a->p = (struct hr_attention){.out = a->want,
                                 .q = a->q,
                                 .k = a->k,
                                 .v = a->v,
                                 .n_q = n_q,
                                 .n_k = n_k,
                                 .n_heads = n_heads};
}

static void arrays_uninit(struct arrays *a)
{
    check_free(a->q);
    check_free(a->k);
    check_free(a->v);
    check_free(a->out);
    check_free(a->want);
}

static void check_attention(struct arrays *a, enum hr_dtype act, float range,
                            const struct check_device *device)
{
    struct hr_gpu *gpu = check_device_open(device, act, 2);
    const size_t d = a->p.n_heads * HR_HEAD_DIM;
    char what[128];

    snprintf(what, sizeof(what), "attention %zu queries %zu keys %zu heads %s (%s, bf16 %d)",
             a->p.n_q, a->p.n_k, a->p.n_heads, hr_dtype_name(act), device->isa, device->bf16);
    memset(a->out, 0xff, a->out_bytes);
    a->p.out = a->out;
    check_done(gpu, hr_gpu_attention(gpu, &a->p));
    check_close(what,
                &(struct check_matrix){.got = a->out,
                                       .want = a->want,
                                       .dtype = act,
                                       .n_rows = a->p.n_q,
                                       .width = d,
                                       .stride = d},
                act == HR_DTYPE_F32 ? 2e-6 * (double) (range * range) : 0x1p-8);
    check_device_close(&gpu);
}

/* range 1: nearly uniform weights; range 6: one key takes nearly all, and the maximum changes from
 * tile to tile. */
static void test_sizes(void **state)
{
    static const size_t sizes[][3] = {
        /* queries, keys, heads */
        {1, 1, 1},
        {1, 2, 3},
        {3, HR_TILE_KEYS - 1, 1},
        {2, HR_TILE_KEYS, 2},
        {5, HR_TILE_KEYS + 1, 1},
        {7, 2 * HR_TILE_KEYS + 17, 2},
        {HR_TILE_QUERIES - 1, 15, 1},
        {HR_TILE_QUERIES, 16, 2},
        {HR_TILE_QUERIES + 1, 33, 1},
        {2 * HR_TILE_QUERIES + 1, 31, 1},
        {61, 61, 3},
        {127, 32, 1},
        {129, 64, 1},
    };
    struct check_rng rng = check_seed();
    struct check_device device;

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(sizes) * 4; i++) {
        const enum hr_dtype act = acts[i % 2];
        const float range = i & 2 ? 6.0f : 1.0f;
        const size_t *size = sizes[i / 4];
        struct arrays a;

        arrays_init(&a, &rng, act, size[0], size[1], size[2], range);
        hr_attention_ref(&a.p, act);
        for (size_t j = 0; check_device_get(&device, j); j++)
            check_attention(&a, act, range, &device);
        arrays_uninit(&a);
    }
}

/* One NaN among the keys, whatever its payload, is in all results of its head and in no other. */
static void test_nan(void **state)
{
    static const uint32_t payloads[] = {0x7fffffffu, 0x7fc10000u};
    struct check_rng rng = check_seed();
    struct check_device device;

    (void) state;
    for (size_t i = 0; check_device_get(&device, i); i++)
        for (size_t j = 0; j < 2 * HR_ARRAY_SIZE(payloads); j++) {
            const enum hr_dtype act = acts[j % 2];
            const size_t size = check_dtype_bytes(act), n_heads = 2, n_q = 3;
            const uint32_t bits = payloads[j / 2] >> (act == HR_DTYPE_F32 ? 0 : 16);
            const size_t row = n_heads * HR_HEAD_DIM;
            struct hr_gpu *gpu = check_device_open(&device, act, 1);
            float out[3 * 2 * HR_HEAD_DIM];
            struct arrays a;

            arrays_init(&a, &rng, act, n_q, HR_TILE_KEYS + 9, n_heads, 1.0f);
            memcpy((unsigned char *) a.k + (20 * row + HR_HEAD_DIM + 5) * size, &bits, size);
            a.p.out = a.out;
            check_done(gpu, hr_gpu_attention(gpu, &a.p));
            hr_to_f32_ref(out, a.out, act, n_q * row);
            for (size_t k = 0; k < n_q * row; k++)
                if (!isnan(out[k]) == (k / HR_HEAD_DIM % 2 == 1))
                    fail_msg("%s %s: NaN %08x in a key: out[%zu] is %g", device.isa,
                             hr_dtype_name(act), bits, k, (double) out[k]);
            arrays_uninit(&a);
            check_device_close(&gpu);
        }
}

static void test_same_bits(void **state)
{
    static const unsigned n_threads[] = {1, 2, 3, 5};
    struct check_rng rng = check_seed();
    const struct check_device device = check_device_first();

    (void) state;
    for (size_t i = 0; i < 2; i++) {
        struct arrays a;

        arrays_init(&a, &rng, acts[i], HR_TILE_QUERIES + 9, HR_TILE_KEYS + 9, 3, 2.0f);
        for (size_t n = 0; n < HR_ARRAY_SIZE(n_threads); n++) {
            struct hr_gpu *gpu = check_device_open(&device, acts[i], n_threads[n]);

            a.p.out = n == 0 ? a.want : a.out;
            check_done(gpu, hr_gpu_attention(gpu, &a.p));
            if (n > 0)
                assert_memory_equal(a.out, a.want, a.out_bytes);
            check_device_close(&gpu);
        }
        arrays_uninit(&a);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_nan),
        cmocka_unit_test(test_same_bits),
    };

    return check_missing() ? 77 : cmocka_run_group_tests(tests, NULL, NULL);
}
