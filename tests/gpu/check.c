/* SPDX-License-Identifier: Apache-2.0 */
/* check.c -- see check.h. */
#include "tests/gpu/check.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "gpu/kernels.h"

enum { GUARD_BYTES = 128, CANARY = 0xa5, POOL_BYTES = 256 << 20 };

/* ---- random inputs ------------------------------------------------------------------ */

struct check_rng check_seed(void)
{
    static bool is_printed;
    const char *text = getenv("HEADRACE_TEST_SEED");
    const uint64_t seed = text ? strtoull(text, NULL, 0) : hr_now_ns();

    if (!is_printed)
        print_message("HEADRACE_TEST_SEED=%llu\n", (unsigned long long) seed);
    is_printed = !!text;
    return (struct check_rng){seed};
}

uint64_t check_next(struct check_rng *rng) /* splitmix64 */
{
    uint64_t z = rng->state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

size_t check_pick(struct check_rng *rng, size_t n)
{
    return (size_t) (check_next(rng) % n);
}

float check_float(struct check_rng *rng, float low, float high)
{
    return low + (high - low) * ((float) (check_next(rng) >> 40) * 0x1p-24f);
}

void check_fill_f32(struct check_rng *rng, float *dst, size_t n, float low, float high)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = check_float(rng, low, high);
}

size_t check_dtype_bytes(enum hr_dtype dtype)
{
    if (dtype == HR_DTYPE_F32)
        return 4;
    return dtype == HR_DTYPE_F16 || dtype == HR_DTYPE_BF16 ? 2 : 1;
}

void check_fill(struct check_rng *rng, void *dst, enum hr_dtype dtype, size_t n)
{
    const size_t size = check_dtype_bytes(dtype);

    for (size_t i = 0; i < n; i++) {
        unsigned char *p = (unsigned char *) dst + i * size;
        const float v = check_float(rng, -1.0f, 1.0f);
        const uint64_t random = check_next(rng);
        uint32_t bits;

        memcpy(&bits, &v, sizeof(bits));
        switch (dtype) {
        case HR_DTYPE_F32:
            break;
        case HR_DTYPE_BF16:
            bits >>= 16;
            break;
        case HR_DTYPE_F16: /* exponents up to 14: below 1, subnormals among them */
            bits = (uint32_t) (random & 0x8000) | (uint32_t) (random >> 16) % 0x3c00;
            break;
        case HR_DTYPE_F8_E4M3:
            bits = (uint32_t) (random & 0x80) | (uint32_t) (random >> 16) % 0x38;
            break;
        default:
            bits = (uint32_t) (random & 0x80) | (uint32_t) (random >> 16) % 0x3c;
            break;
        }
        memcpy(p, &bits, size); /* little-endian, as the files are */
    }
}

/* ---- arrays ------------------------------------------------------------------------- */

/* Before each array, at the start of its front guard band. */
struct head {
    void *base;
    size_t n_bytes;
};

/* A GPU reads host memory that was registered with it; so all arrays lie in one region. */
static struct {
    unsigned char *base;
    size_t used, n_live, n_devices;
} pool;

static bool is_cuda(void)
{
    const char *device = getenv("HEADRACE_DEVICE");

    return device && strncmp(device, "cuda", 4) == 0;
}

static unsigned char *pool_take(size_t n_bytes)
{
    if (!pool.base)
        pool.base =
            mmap(NULL, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(pool.base != MAP_FAILED && n_bytes <= POOL_BYTES - pool.used);
    pool.used += n_bytes;
    pool.n_live++;
    return pool.base + pool.used - n_bytes;
}

void *check_alloc(size_t n_bytes, size_t misalign)
{
    const size_t total = hr_align_up(n_bytes + misalign + 3 * GUARD_BYTES, 64);
    unsigned char *base = is_cuda() ? pool_take(total) : aligned_alloc(64, total);
    const struct head head = {base, n_bytes};

    assert_non_null(base);
    assert_true(misalign < 64);
    unsigned char *array = base + 2 * GUARD_BYTES + misalign;
    memset(base, CANARY, total);
    memset(array, 0xff, n_bytes);
    memcpy(array - GUARD_BYTES - sizeof(head), &head, sizeof(head));
    return array;
}

void check_free(void *array)
{
    unsigned char *p = (unsigned char *) array;
    struct head head;

    memcpy(&head, p - GUARD_BYTES - sizeof(head), sizeof(head));
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        if (p[-1 - (ptrdiff_t) i] != CANARY)
            fail_msg("wrote %zu bytes before the array", i + 1);
        if (p[head.n_bytes + i] != CANARY && i < GUARD_BYTES / 2)
            fail_msg("wrote %zu bytes past the array of %zu", i + 1, head.n_bytes);
    }
    if (!is_cuda())
        free(head.base);
    else if (--pool.n_live == 0)
        pool.used = 0;
}

/* ---- comparison --------------------------------------------------------------------- */

static double value_at(const void *array, enum hr_dtype dtype, size_t i)
{
    float v;

    hr_to_f32_ref(&v, (const unsigned char *) array + i * check_dtype_bytes(dtype), dtype, 1);
    return (double) v;
}

void check_close(const char *what, const struct check_matrix *m, double tol)
{
    const double rounding = m->dtype == HR_DTYPE_BF16 ? 0x1p-7 : 0.0;
    double worst = 0.0;
    size_t n_bad = 0, first = 0;

    for (size_t i = 0; i < m->n_rows * m->width; i++) {
        const size_t at = i / m->width * m->stride + i % m->width;
        const double got = value_at(m->got, m->dtype, at), want = value_at(m->want, m->dtype, at);
        const double err = fabs(got - want) - rounding * fabs(want);

        if (!(err <= tol * fmax(1.0, fabs(want))) && n_bad++ == 0)
            first = at;
        if (!(err / fmax(1.0, fabs(want)) <= worst))
            worst = err / fmax(1.0, fabs(want));
    }
    if (getenv("HEADRACE_TEST_VERBOSE"))
        print_message("%s: worst %.3g, allowed %.3g\n", what, worst, tol);
    if (n_bad > 0)
        fail_msg("%s: %zu of %zu differ, first at [%zu,%zu]: got %.9g want %.9g, worst %.3g > %g",
                 what, n_bad, m->n_rows * m->width, first / m->stride, first % m->stride,
                 value_at(m->got, m->dtype, first), value_at(m->want, m->dtype, first), worst, tol);
}

/* ---- devices ------------------------------------------------------------------------ */

bool check_device_get(struct check_device *ret_device, size_t idx)
{
    if (is_cuda())
        *ret_device = (struct check_device){
            idx < (getenv("HEADRACE_TEST_ATTENTION") ? 1 : 2) ? "cuda" : NULL, idx % 2 == 0};
    else
        *ret_device = (struct check_device){hr_kernels_name(idx / 2), idx % 2 == 0};
    return ret_device->isa != NULL;
}

struct check_device check_device_first(void)
{
    struct check_device device;

    assert_true(check_device_get(&device, 0));
    return device;
}

/* HEADRACE_TEST_ATTENTION=cudnn: by cuDNN where it can, in bf16. */
static enum hr_attention_by attention_by(enum hr_dtype act)
{
    const char *by = is_cuda() ? getenv("HEADRACE_TEST_ATTENTION") : NULL;

    return by && strcmp(by, "cudnn") == 0 && act == HR_DTYPE_BF16 ? HR_ATTENTION_CUDNN
                                                                  : HR_ATTENTION_OWN;
}

int check_missing(void)
{
    const struct hr_gpu_params params = {.act = HR_DTYPE_BF16,
                                         .attention = attention_by(HR_DTYPE_BF16)};
    struct hr_error err = {0};
    struct hr_gpu *gpu = NULL;
    const int rc = is_cuda() ? hr_gpu_open(&gpu, &params, &err) : 0;

    hr_gpu_close(&gpu);
    if (rc == -ENODEV)
        print_message("skipped: %s\n", err.message);
    return rc == -ENODEV ? 77 : 0;
}

void check_done(struct hr_gpu *gpu, int rc)
{
    assert_int_equal(rc, 0);
    assert_int_equal(hr_gpu_sync(gpu), 0);
}

/* Of host memory a GPU reads only what was registered, by whichever device of the process. */
static void register_pool(struct hr_gpu *gpu)
{
    if (!is_cuda() || pool.n_devices++ > 0)
        return;
    if (!pool.base)
        check_free(check_alloc(1, 0));
    if (hr_gpu_register_host(gpu, pool.base, POOL_BYTES) < 0)
        fail_msg("the GPU takes no host memory: these tests cannot run");
}

struct hr_gpu *check_device_open(const struct check_device *device, enum hr_dtype act,
                                 unsigned n_threads)
{
    const struct hr_gpu_params params = {.device = is_cuda() ? NULL : "cpu",
                                         .act = act,
                                         .n_threads = n_threads,
                                         .attention = attention_by(act)};
    struct hr_error err = {0};
    struct hr_gpu *gpu = NULL;

    setenv("HEADRACE_CPU", device->isa, 1);
    setenv("HEADRACE_CPU_BF16", device->bf16 ? "auto" : "off", 1);
    if (hr_gpu_open(&gpu, &params, &err) < 0)
        fail_msg("open: %s", err.message);
    unsetenv("HEADRACE_CPU");
    unsetenv("HEADRACE_CPU_BF16");
    register_pool(gpu);
    return gpu;
}

void check_device_close(struct hr_gpu **gpu)
{
    if (is_cuda() && --pool.n_devices == 0)
        hr_gpu_unregister_host(*gpu, pool.base);
    hr_gpu_close(gpu);
}
