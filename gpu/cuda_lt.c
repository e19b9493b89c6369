/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_lt.c -- see cuda_lt.h.
 *
 * The library computes column-major matrices. Row-major c[T,N] is its c[N,T], so it is asked for
 * w (seen as [K,N], transposed) times x (seen as [K,T]). Prepared products are kept by shape.
 */
#include "gpu/cuda_lt.h"

#include <dlfcn.h>
#include <errno.h>
#include <library_types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/cuda_lt_abi.h"

enum { PLANS = 128, HEURISTICS = 8 };

/* A product ready to run. */
struct plan {
    struct hr_lt_product product;
    bool is_used;
    void *desc, *x, *w, *c;
    struct hr_lt_algo algo;
};

struct hr_lt {
    void *handle;
    void *workspace;
    size_t workspace_bytes;
    struct plan plans[PLANS];
    unsigned next; /* place of the next new plan: the oldest makes way */
};

/* ---- the library ---------------------------------------------------------------------------- */

static struct hr_lt_fns lt; /* filled once, by the first load that succeeds */

#define SYMBOL(name)                                              \
    {                                                             \
        "cublasLt" #name, offsetof(struct hr_lt_fns, name), false \
    }

static int find_library(struct hr_error *err)
{
    static const char *const names[] = {
        "libcublasLt.so.13",
        "libcublasLt.so.12",
        "/usr/local/cuda/lib64/libcublasLt.so.13",
        "/usr/local/cuda/lib64/libcublasLt.so.12",
    };
    static const struct hr_symbol symbols[] = {
        SYMBOL(Create),
        SYMBOL(Destroy),
        SYMBOL(GetVersion),
        SYMBOL(GetStatusName),
        SYMBOL(MatrixLayoutCreate),
        SYMBOL(MatrixLayoutDestroy),
        SYMBOL(MatmulDescCreate),
        SYMBOL(MatmulDescDestroy),
        SYMBOL(MatmulDescSetAttribute),
        SYMBOL(MatmulPreferenceCreate),
        SYMBOL(MatmulPreferenceDestroy),
        SYMBOL(MatmulPreferenceSetAttribute),
        SYMBOL(MatmulAlgoGetHeuristic),
        SYMBOL(MatmulAlgoConfigGetAttribute),
        SYMBOL(Matmul),
    };
    struct hr_lt_fns fns;
    void *library = hr_library_open(names, HR_ARRAY_SIZE(names));

    _Static_assert(sizeof(fns) == HR_ARRAY_SIZE(symbols) * sizeof(void *), "every function");
    if (!library)
        return hr_error_set(
            err, -ENODEV,
            "cuda: libcublasLt.so.13 (or .12) is not found; install the CUDA "
            "toolkit or pip's nvidia-cublas and name its folder in LD_LIBRARY_PATH");
    const char *missing = hr_library_bind(library, &fns, symbols, HR_ARRAY_SIZE(symbols));

    if (missing) {
        dlclose(library);
        return hr_error_set(err, -ENODEV, "cuda: cuBLASLt has no %s; version 12 or 13 is needed",
                            missing);
    }
    lt = fns;
    return 0;
}

/* Devices may be opened on several threads at once. */
int hr_lt_load(struct hr_error *err)
{
    static struct hr_library library = HR_LIBRARY_INIT;

    return hr_library_load(&library, find_library, err);
}

/* @return 0, or -EIO with a line in the log */
static int check(int status, const char *what)
{
    if (status == HR_LT_SUCCESS)
        return 0;
    hr_log(HR_LOG_ERROR, "cuda: cuBLASLt: %s: %s", what, lt.GetStatusName(status));
    return -EIO;
}

/* ---- plans ---------------------------------------------------------------------------------- */

static void plan_uninit(struct plan *plan)
{
    if (plan->c)
        lt.MatrixLayoutDestroy(plan->c);
    if (plan->w)
        lt.MatrixLayoutDestroy(plan->w);
    if (plan->x)
        lt.MatrixLayoutDestroy(plan->x);
    if (plan->desc)
        lt.MatmulDescDestroy(plan->desc);
    *plan = (struct plan){.is_used = false};
}

static int describe(struct plan *plan, int compute_type)
{
    const struct hr_lt_product *p = &plan->product;
    const int type = p->is_bf16 ? CUDA_R_16BF : CUDA_R_32F;
    const int transposed = HR_LT_OP_T, plain = HR_LT_OP_N;
    int r = check(lt.MatmulDescCreate(&plan->desc, compute_type, CUDA_R_32F), "description");

    if (r == 0)
        r = check(lt.MatmulDescSetAttribute(plan->desc, HR_LT_DESC_TRANSA, &transposed,
                                            sizeof(transposed)),
                  "transposition");
    if (r == 0)
        r = check(lt.MatmulDescSetAttribute(plan->desc, HR_LT_DESC_TRANSB, &plain, sizeof(plain)),
                  "transposition");
    if (r == 0)
        r = check(lt.MatrixLayoutCreate(&plan->w, type, p->n_in, p->n_out, (int64_t) p->w_stride),
                  "layout of w");
    if (r == 0)
        r = check(
            lt.MatrixLayoutCreate(&plan->x, type, p->n_in, p->n_tokens, (int64_t) p->x_stride),
            "layout of x");
    if (r == 0)
        r = check(lt.MatrixLayoutCreate(&plan->c, CUDA_R_32F, p->n_out, p->n_tokens,
                                        (int64_t) p->c_stride),
                  "layout of the result");
    return r;
}

static int make_preference(const struct hr_lt *self, void **ret_preference)
{
    const uint64_t workspace_bytes = self->workspace_bytes;
    const uint32_t scheme = HR_LT_REDUCTION_SCHEME_NONE, align = HR_LT_ALIGN;
    void *preference = NULL;
    int r = check(lt.MatmulPreferenceCreate(&preference), "preference");

    if (r < 0)
        return r;
    *ret_preference = preference;
    r = check(lt.MatmulPreferenceSetAttribute(preference, HR_LT_PREF_MAX_WORKSPACE_BYTES,
                                              &workspace_bytes, sizeof(workspace_bytes)),
              "workspace");
    if (r == 0)
        r = check(lt.MatmulPreferenceSetAttribute(preference, HR_LT_PREF_REDUCTION_SCHEME_MASK,
                                                  &scheme, sizeof(scheme)),
                  "reduction scheme");
    for (int i = HR_LT_PREF_MIN_ALIGNMENT_A_BYTES; i <= HR_LT_PREF_MIN_ALIGNMENT_D_BYTES && r == 0;
         i++)
        r = check(lt.MatmulPreferenceSetAttribute(preference, i, &align, sizeof(align)),
                  "alignment");
    return r;
}

/* Whether the sums of an algorithm are made in one piece each. */
static bool is_whole(const struct hr_lt_algo *algo)
{
    int32_t splits = 0;
    uint32_t scheme = 0;
    size_t n;

    return lt.MatmulAlgoConfigGetAttribute(algo, HR_LT_ALGO_SPLITK_NUM, &splits, sizeof(splits),
                                           &n) == HR_LT_SUCCESS &&
           splits <= 1 &&
           lt.MatmulAlgoConfigGetAttribute(algo, HR_LT_ALGO_REDUCTION_SCHEME, &scheme,
                                           sizeof(scheme), &n) == HR_LT_SUCCESS &&
           scheme == HR_LT_REDUCTION_SCHEME_NONE;
}

/* The best algorithm that does not split K. @return 0, -ENOTSUP or -EIO */
static int choose(const struct hr_lt *self, struct plan *plan)
{
    struct hr_lt_heuristic results[HEURISTICS];
    void *preference = NULL;
    int n = 0, r = make_preference(self, &preference);

    if (r == 0 &&
        lt.MatmulAlgoGetHeuristic(self->handle, plan->desc, plan->w, plan->x, plan->c, plan->c,
                                  preference, HEURISTICS, results, &n) != HR_LT_SUCCESS)
        n = 0;
    if (preference)
        lt.MatmulPreferenceDestroy(preference);
    if (r < 0)
        return r;
    for (int i = 0; i < n; i++) {
        if (results[i].status != HR_LT_SUCCESS ||
            results[i].workspace_bytes > self->workspace_bytes || !is_whole(&results[i].algo))
            continue;
        plan->algo = results[i].algo;
        return 0;
    }
    return -ENOTSUP;
}

static int plan_init(const struct hr_lt *self, struct plan *plan, const struct hr_lt_product *p)
{
    /* Of f32, the strict way first: no tensor cores, no emulation. The other is exact by default.
     */
    const int types[] = {p->is_bf16 ? HR_LT_COMPUTE_32F : HR_LT_COMPUTE_32F_PEDANTIC,
                         HR_LT_COMPUTE_32F};
    int r = -ENOTSUP;

    for (size_t i = 0; i < HR_ARRAY_SIZE(types) && r == -ENOTSUP; i++) {
        plan_uninit(plan);
        plan->product = *p;
        r = describe(plan, types[i]);
        if (r == 0)
            r = choose(self, plan);
    }
    if (r < 0)
        plan_uninit(plan);
    plan->is_used = r == 0;
    return r;
}

static bool is_same(const struct hr_lt_product *a, const struct hr_lt_product *b)
{
    return a->n_tokens == b->n_tokens && a->n_out == b->n_out && a->n_in == b->n_in &&
           a->x_stride == b->x_stride && a->w_stride == b->w_stride && a->c_stride == b->c_stride &&
           a->is_bf16 == b->is_bf16 && a->accumulate == b->accumulate;
}

static int plan_get(struct hr_lt *self, const struct hr_lt_product *p, struct plan **ret_plan)
{
    for (size_t i = 0; i < PLANS; i++) {
        if (self->plans[i].is_used && is_same(&self->plans[i].product, p)) {
            *ret_plan = &self->plans[i];
            return 0;
        }
    }
    struct plan *plan = &self->plans[self->next];
    const int r = plan_init(self, plan, p);

    if (r < 0) {
        if (r == -ENOTSUP)
            hr_log(HR_LOG_ERROR, "cuda: cuBLASLt computes no product of %zu x %zu x %zu in %s",
                   p->n_tokens, p->n_out, p->n_in, p->is_bf16 ? "bf16" : "f32");
        return r;
    }
    self->next = (self->next + 1) % PLANS;
    *ret_plan = plan;
    return 0;
}

int hr_lt_run(struct hr_lt *self, const struct hr_lt_product *p, const void *x, const void *w,
              float *c, cudaStream_t stream)
{
    const float one = 1.0f, beta = p->accumulate ? 1.0f : 0.0f;
    struct plan *plan;
    const int r = plan_get(self, p, &plan);

    if (r < 0)
        return r;
    return check(lt.Matmul(self->handle, plan->desc, &one, w, plan->w, x, plan->x, &beta, c,
                           plan->c, c, plan->c, &plan->algo, self->workspace, self->workspace_bytes,
                           stream),
                 "product");
}

/* ---- open and close ------------------------------------------------------------------------- */

int hr_lt_open(struct hr_lt **ret_lt, void *workspace, size_t workspace_bytes, struct hr_error *err)
{
    struct hr_lt *self;
    int r = hr_lt_load(err);

    if (r < 0)
        return r;
    self = calloc(1, sizeof(*self));
    if (!self)
        return hr_error_set(err, -ENOMEM, "cuda: no memory");
    self->workspace = workspace;
    self->workspace_bytes = workspace_bytes;
    r = lt.Create(&self->handle);
    if (r != HR_LT_SUCCESS) {
        free(self);
        return hr_error_set(err, -ENODEV, "cuda: cuBLASLt cannot be set up: %s",
                            lt.GetStatusName(r));
    }
    *ret_lt = self;
    return 0;
}

void hr_lt_close(struct hr_lt **self)
{
    if (!*self)
        return;
    for (size_t i = 0; i < PLANS; i++)
        plan_uninit(&(*self)->plans[i]);
    lt.Destroy((*self)->handle);
    free(*self);
    *self = NULL;
}

unsigned hr_lt_version(void)
{
    return (unsigned) lt.GetVersion();
}

bool hr_lt_has(unsigned cuda)
{
    char name[32];

    snprintf(name, sizeof(name), "libcublasLt.so.%u", cuda);
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);

    if (library)
        dlclose(library);
    return library != NULL;
}
