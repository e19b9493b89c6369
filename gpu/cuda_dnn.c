/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_dnn.c -- see cuda_dnn.h.
 *
 * Attention is a graph of one operation on five tensors, the last of them the scale. The library
 * ranks its engines for the graph; the first that keeps our promises becomes the plan of its shape.
 */
#include "gpu/cuda_dnn.h"

#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/cuda_dnn_abi.h"
#include "gpu/cuda_lt.h"

enum {
    HEAD = 128,
    PLANS = 64, /* both shapes of 16 samples, twice over */
    CONFIGS = 8,
    NOTES = 16,
    REASON_BYTES = 256,
};

/* Names of the tensors within a graph. */
enum tensor_id { Q = 1, K, V, OUT, SCALE, TENSORS = SCALE };

/* Of one shape: descriptors refer to each other, so all live as long as the plan. */
struct plan {
    struct hr_dnn_shape shape;
    bool is_used;
    void *tensors[TENSORS];
    void *operation, *graph, *heuristics;
    void *configs[CONFIGS];
    void *plan;
};

struct hr_dnn {
    void *handle;      /* or ...            */
    void *device_prop; /* ... of a description */
    void *workspace;
    size_t workspace_bytes;
    struct plan plans[PLANS];
    unsigned next; /* place of the next new plan: the oldest makes way */
};

/* ---- the library ---------------------------------------------------------------------------- */

static struct hr_dnn_fns dnn; /* filled once, by the first load that succeeds */

#define SYMBOL(name)                                            \
    {                                                           \
        "cudnn" #name, offsetof(struct hr_dnn_fns, name), false \
    }

static int bind_symbols(struct hr_dnn_fns *fns, void *library, struct hr_error *err)
{
    static const struct hr_symbol symbols[] = {
        SYMBOL(GetVersion),
        SYMBOL(GetCudartVersion),
        SYMBOL(GetErrorString),
        SYMBOL(GetLastErrorString),
        SYMBOL(Create),
        SYMBOL(Destroy),
        SYMBOL(SetStream),
        SYMBOL(BackendCreateDescriptor),
        SYMBOL(BackendDestroyDescriptor),
        SYMBOL(BackendFinalize),
        SYMBOL(BackendSetAttribute),
        SYMBOL(BackendGetAttribute),
        SYMBOL(BackendExecute),
    };
    const char *missing = hr_library_bind(library, fns, symbols, HR_ARRAY_SIZE(symbols));

    _Static_assert(sizeof(*fns) == HR_ARRAY_SIZE(symbols) * sizeof(void *), "every function");
    if (!missing)
        return 0;
    return hr_error_set(err, -ENODEV,
                        "cuda: cuDNN has no %s; version 9 is needed; install pip's "
                        "nvidia-cudnn-cu13 (or -cu12), or use --attention own",
                        missing);
}

/* Of another CUDA than its own cuBLASLt cuDNN is not content with an error: it aborts. */
static int check_versions(const struct hr_dnn_fns *fns, struct hr_error *err)
{
    const unsigned version = (unsigned) fns->GetVersion();
    const unsigned cuda = (unsigned) fns->GetCudartVersion() / 1000;
    Dl_info info = {0};

    if (version < HR_DNN_VERSION_MIN) {
        (void) dladdr(*(void *const *) (const void *) &fns->GetVersion, &info);
        return hr_error_set(err, -ENODEV,
                            "cuda: %s is cuDNN %u.%u.%u, and attention needs 9.13.1; install a "
                            "newer one, or use --attention own",
                            info.dli_fname ? info.dli_fname : "libcudnn.so.9", version / 10000,
                            version / 100 % 100, version % 100);
    }
    if (!hr_lt_has(cuda))
        return hr_error_set(
            err, -ENODEV,
            "cuda: cuDNN is that for CUDA %u, whose cuBLASLt is not found; install pip's "
            "nvidia-cudnn-cu13 with nvidia-cublas, or -cu12 with "
            "nvidia-cublas-cu12, or use --attention own",
            cuda);
    return 0;
}

static int find_library(struct hr_error *err)
{
    static const char *const names[] = {"libcudnn.so.9", "/usr/local/cuda/lib64/libcudnn.so.9"};
    struct hr_dnn_fns fns;
    void *library = hr_library_open(names, HR_ARRAY_SIZE(names));

    if (!library)
        return hr_error_set(err, -ENODEV,
                            "cuda: libcudnn.so.9 is not found; install pip's nvidia-cudnn-cu13 (or "
                            "-cu12) and name its folder in LD_LIBRARY_PATH, or use --attention "
                            "own");
    int r = bind_symbols(&fns, library, err);

    if (r == 0)
        r = check_versions(&fns, err);
    if (r == 0)
        dnn = fns;
    else
        dlclose(library);
    return r;
}

/* Devices may be opened on several threads at once. */
int hr_dnn_load(struct hr_error *err)
{
    static struct hr_library library = HR_LIBRARY_INIT;

    return hr_library_load(&library, find_library, err);
}

unsigned hr_dnn_version(void)
{
    return (unsigned) dnn.GetVersion();
}

/* What a status means, and what the library says beside it. @return buf */
static const char *reason_of(int status, char *buf)
{
    char last[REASON_BYTES / 2] = "", printable[REASON_BYTES / 2];

    dnn.GetLastErrorString(last, sizeof(last));
    hr_printable(last, printable, sizeof(printable));
    snprintf(buf, REASON_BYTES, "%.100s%s%s", dnn.GetErrorString(status), last[0] ? ": " : "",
             printable);
    return buf;
}

/* ---- descriptors: each call does nothing after a failure ------------------------------------ */

static void make(int *status, void **ret_descriptor, int kind)
{
    if (*status == HR_DNN_SUCCESS)
        *status = dnn.BackendCreateDescriptor(kind, ret_descriptor);
}

static void set(int *status, void *descriptor, int attribute, int type, int64_t n,
                const void *values)
{
    if (*status == HR_DNN_SUCCESS)
        *status = dnn.BackendSetAttribute(descriptor, attribute, type, n, values);
}

static void get(int *status, void *descriptor, int attribute, int type, int64_t n_wanted,
                int64_t *ret_n, void *values)
{
    if (*status == HR_DNN_SUCCESS)
        *status = dnn.BackendGetAttribute(descriptor, attribute, type, n_wanted, ret_n, values);
}

static void finalize(int *status, void *descriptor)
{
    if (*status == HR_DNN_SUCCESS)
        *status = dnn.BackendFinalize(descriptor);
}

static void destroy(void **descriptor)
{
    if (*descriptor)
        dnn.BackendDestroyDescriptor(*descriptor);
    *descriptor = NULL;
}

/* ---- plans ---------------------------------------------------------------------------------- */

static void plan_uninit(struct plan *plan)
{
    destroy(&plan->plan);
    for (size_t i = 0; i < CONFIGS; i++)
        destroy(&plan->configs[i]);
    destroy(&plan->heuristics);
    destroy(&plan->graph);
    destroy(&plan->operation);
    for (size_t i = 0; i < TENSORS; i++)
        destroy(&plan->tensors[i]);
    *plan = (struct plan){.is_used = false};
}

/* A matrix [n_rows, n_heads * 128] seen as [1, n_heads, n_rows, 128]; or the scale, which is read
 * from the host when the plan runs. */
static void describe_tensor(int *status, struct plan *plan, enum tensor_id id)
{
    const int64_t n_heads = (int64_t) plan->shape.n_heads, row = n_heads * HEAD;
    const int64_t n_rows = (int64_t) (id == K || id == V ? plan->shape.n_k : plan->shape.n_q);
    const bool is_scale = id == SCALE;
    const int64_t dims[] = {1, is_scale ? 1 : n_heads, is_scale ? 1 : n_rows, is_scale ? 1 : HEAD};
    const int64_t strides[] = {is_scale ? 1 : n_rows * row, is_scale ? 1 : HEAD, is_scale ? 1 : row,
                               1};
    const int64_t uid = id, align = is_scale ? (int64_t) sizeof(float) : HR_DNN_ALIGN;
    const int type = is_scale ? HR_DNN_DATA_FLOAT : HR_DNN_DATA_BFLOAT16;
    void **tensor = &plan->tensors[id - 1];

    make(status, tensor, HR_DNN_TENSOR);
    set(status, *tensor, HR_DNN_TENSOR_UNIQUE_ID, HR_DNN_TYPE_INT64, 1, &uid);
    set(status, *tensor, HR_DNN_TENSOR_DATA_TYPE, HR_DNN_TYPE_DATA_TYPE, 1, &type);
    set(status, *tensor, HR_DNN_TENSOR_BYTE_ALIGNMENT, HR_DNN_TYPE_INT64, 1, &align);
    set(status, *tensor, HR_DNN_TENSOR_DIMENSIONS, HR_DNN_TYPE_INT64, 4, dims);
    set(status, *tensor, HR_DNN_TENSOR_STRIDES, HR_DNN_TYPE_INT64, 4, strides);
    set(status, *tensor, HR_DNN_TENSOR_IS_BY_VALUE, HR_DNN_TYPE_BOOLEAN, 1, &is_scale);
    finalize(status, *tensor);
}

static void describe_graph(int *status, const struct hr_dnn *self, struct plan *plan)
{
    static const int attributes[TENSORS] = {HR_DNN_SDPA_FWD_Q, HR_DNN_SDPA_FWD_K, HR_DNN_SDPA_FWD_V,
                                            HR_DNN_SDPA_FWD_O, HR_DNN_SDPA_FWD_SCALE};

    for (enum tensor_id id = Q; id <= SCALE; id++)
        describe_tensor(status, plan, id);
    make(status, &plan->operation, HR_DNN_SDPA_FWD);
    for (size_t i = 0; i < TENSORS; i++)
        set(status, plan->operation, attributes[i], HR_DNN_TYPE_DESCRIPTOR, 1, &plan->tensors[i]);
    finalize(status, plan->operation);
    make(status, &plan->graph, HR_DNN_OPERATIONGRAPH);
    set(status, plan->graph, HR_DNN_GRAPH_OPS, HR_DNN_TYPE_DESCRIPTOR, 1, &plan->operation);
    if (self->handle)
        set(status, plan->graph, HR_DNN_GRAPH_HANDLE, HR_DNN_TYPE_HANDLE, 1, &self->handle);
    finalize(status, plan->graph);
}

/* The library's engines for the graph, best first. */
static void rank(int *status, const struct hr_dnn *self, struct plan *plan, int64_t *ret_n)
{
    const int mode = HR_DNN_HEUR_MODE_A;

    make(status, &plan->heuristics, HR_DNN_ENGINEHEUR);
    set(status, plan->heuristics, HR_DNN_ENGINEHEUR_GRAPH, HR_DNN_TYPE_DESCRIPTOR, 1, &plan->graph);
    set(status, plan->heuristics, HR_DNN_ENGINEHEUR_MODE, HR_DNN_TYPE_HEUR_MODE, 1, &mode);
    if (self->device_prop)
        set(status, plan->heuristics, HR_DNN_ENGINEHEUR_DEVICEPROP, HR_DNN_TYPE_DESCRIPTOR, 1,
            &self->device_prop);
    finalize(status, plan->heuristics);
    for (size_t i = 0; i < CONFIGS; i++)
        make(status, &plan->configs[i], HR_DNN_ENGINECFG);
    *ret_n = 0;
    get(status, plan->heuristics, HR_DNN_ENGINEHEUR_RESULTS, HR_DNN_TYPE_DESCRIPTOR, CONFIGS, ret_n,
        plan->configs);
    if (*ret_n > CONFIGS)
        *ret_n = CONFIGS;
}

/* Same bits each time, and sums in f32? */
static bool is_exact(void *config)
{
    int status = HR_DNN_SUCCESS, notes[NOTES] = {0};
    int64_t n = 0;
    void *engine = NULL;
    bool ret = true;

    make(&status, &engine, HR_DNN_ENGINE);
    get(&status, config, HR_DNN_ENGINECFG_ENGINE, HR_DNN_TYPE_DESCRIPTOR, 1, &n, &engine);
    n = 0;
    get(&status, engine, HR_DNN_ENGINE_NUMERICAL_NOTE, HR_DNN_TYPE_NUMERICAL_NOTE, NOTES, &n,
        notes);
    for (int64_t i = 0; i < n && i < NOTES; i++)
        ret = ret && notes[i] != HR_DNN_NOTE_NONDETERMINISTIC &&
              notes[i] != HR_DNN_NOTE_DOWN_CONVERT_INPUTS &&
              notes[i] != HR_DNN_NOTE_REDUCED_PRECISION_REDUCTION;
    destroy(&engine);
    return ret && status == HR_DNN_SUCCESS && n <= NOTES;
}

/* Compile the kernel of one engine. */
static void compile(int *status, const struct hr_dnn *self, struct plan *plan, void *config,
                    int64_t *ret_workspace_bytes)
{
    int64_t n;

    make(status, &plan->plan, HR_DNN_EXECUTION_PLAN);
    set(status, plan->plan, HR_DNN_PLAN_ENGINE_CONFIG, HR_DNN_TYPE_DESCRIPTOR, 1, &config);
    if (self->handle)
        set(status, plan->plan, HR_DNN_PLAN_HANDLE, HR_DNN_TYPE_HANDLE, 1, &self->handle);
    if (self->device_prop)
        set(status, plan->plan, HR_DNN_PLAN_DEVICEPROP, HR_DNN_TYPE_DESCRIPTOR, 1,
            &self->device_prop);
    finalize(status, plan->plan);
    get(status, plan->plan, HR_DNN_PLAN_WORKSPACE_SIZE, HR_DNN_TYPE_INT64, 1, &n,
        ret_workspace_bytes);
}

/* The first engine that fits. @param why  REASON_BYTES, gets why the last one does not */
static bool choose(const struct hr_dnn *self, struct plan *plan, int64_t n, char *why)
{
    for (int64_t i = 0; i < n; i++) {
        int status = HR_DNN_SUCCESS;
        int64_t bytes = 0;

        if (!is_exact(plan->configs[i])) {
            snprintf(why, REASON_BYTES,
                     "its engine is not deterministic, or sums in less than f32");
            continue;
        }
        compile(&status, self, plan, plan->configs[i], &bytes);
        if (status == HR_DNN_SUCCESS && (uint64_t) bytes <= self->workspace_bytes)
            return true;
        if (status == HR_DNN_SUCCESS)
            snprintf(why, REASON_BYTES, "a workspace of %llu MiB is needed, and there are %llu",
                     hr_mib((uint64_t) bytes), hr_mib(self->workspace_bytes));
        else
            reason_of(status, why);
        destroy(&plan->plan);
    }
    return false;
}

static int plan_init(const struct hr_dnn *self, struct plan *plan, const struct hr_dnn_shape *shape,
                     struct hr_error *err)
{
    char why[REASON_BYTES] = "it has no engine for this GPU";
    int status = HR_DNN_SUCCESS;
    int64_t n = 0;

    plan_uninit(plan);
    plan->shape = *shape;
    describe_graph(&status, self, plan);
    rank(&status, self, plan, &n);
    if (status != HR_DNN_SUCCESS)
        reason_of(status, why);
    plan->is_used = status == HR_DNN_SUCCESS && choose(self, plan, n, why);
    if (plan->is_used)
        return 0;
    plan_uninit(plan);
    return hr_error_set(err, -ENOTSUP,
                        "cuda: cuDNN does not compute attention of %zu queries, %zu keys and %zu "
                        "heads: %s; use --attention own",
                        shape->n_q, shape->n_k, shape->n_heads, why);
}

static int plan_get(struct hr_dnn *self, const struct hr_dnn_shape *shape, struct plan **ret_plan,
                    struct hr_error *err)
{
    for (size_t i = 0; i < PLANS; i++) {
        const struct hr_dnn_shape *s = &self->plans[i].shape;

        if (self->plans[i].is_used && s->n_q == shape->n_q && s->n_k == shape->n_k &&
            s->n_heads == shape->n_heads) {
            *ret_plan = &self->plans[i];
            return 0;
        }
    }
    struct plan *plan = &self->plans[self->next];
    const int r = plan_init(self, plan, shape, err);

    if (r < 0)
        return r;
    self->next = (self->next + 1) % PLANS;
    *ret_plan = plan;
    return 0;
}

int hr_dnn_prepare(struct hr_dnn *self, const struct hr_dnn_shape *shape, struct hr_error *err)
{
    struct plan *plan;

    return plan_get(self, shape, &plan, err);
}

int hr_dnn_run(struct hr_dnn *self, const struct hr_dnn_shape *shape, void *out, const void *q,
               const void *k, const void *v)
{
    static const int64_t ids[TENSORS] = {Q, K, V, OUT, SCALE};
    float scale = 1.0f / sqrtf((float) HEAD);
    const void *const data[TENSORS] = {q, k, v, out, &scale};
    char why[REASON_BYTES];
    struct hr_error err = {0};
    struct plan *plan;
    void *pack = NULL;
    const int r = plan_get(self, shape, &plan, &err);
    int status = HR_DNN_SUCCESS;

    if (r < 0) {
        hr_log(HR_LOG_ERROR, "%s", err.message);
        return r;
    }
    make(&status, &pack, HR_DNN_VARIANT_PACK);
    set(&status, pack, HR_DNN_PACK_UNIQUE_IDS, HR_DNN_TYPE_INT64, TENSORS, ids);
    set(&status, pack, HR_DNN_PACK_DATA_POINTERS, HR_DNN_TYPE_VOID_PTR, TENSORS, data);
    set(&status, pack, HR_DNN_PACK_WORKSPACE, HR_DNN_TYPE_VOID_PTR, 1, &self->workspace);
    finalize(&status, pack);
    if (status == HR_DNN_SUCCESS)
        status = dnn.BackendExecute(self->handle, plan->plan, pack);
    if (status != HR_DNN_SUCCESS)
        hr_log(HR_LOG_ERROR, "cuda: cuDNN: attention: %s", reason_of(status, why));
    destroy(&pack);
    return status == HR_DNN_SUCCESS ? 0 : -EIO;
}

/* ---- open and close ------------------------------------------------------------------------- */

static int error_set_up(int status, struct hr_error *err)
{
    char why[REASON_BYTES];

    return hr_error_set(err, -ENODEV, "cuda: cuDNN cannot be set up: %s; use --attention own",
                        reason_of(status, why));
}

int hr_dnn_open(struct hr_dnn **ret_dnn, void *workspace, size_t workspace_bytes,
                cudaStream_t stream, struct hr_error *err)
{
    struct hr_dnn *self;
    int r = hr_dnn_load(err);

    if (r < 0)
        return r;
    self = calloc(1, sizeof(*self));
    if (!self)
        return hr_error_set(err, -ENOMEM, "cuda: no memory");
    self->workspace = workspace;
    self->workspace_bytes = workspace_bytes;
    int status = dnn.Create(&self->handle);

    if (status == HR_DNN_SUCCESS)
        status = dnn.SetStream(self->handle, stream);
    if (status != HR_DNN_SUCCESS) {
        r = error_set_up(status, err);
        hr_dnn_close(&self);
        return r;
    }
    *ret_dnn = self;
    return 0;
}

int hr_dnn_open_described(struct hr_dnn **ret_dnn, size_t workspace_bytes, const char *json,
                          struct hr_error *err)
{
    struct hr_dnn *self;
    int status = HR_DNN_SUCCESS, r = hr_dnn_load(err);

    if (r < 0)
        return r;
    self = calloc(1, sizeof(*self));
    if (!self)
        return hr_error_set(err, -ENOMEM, "cuda: no memory");
    self->workspace_bytes = workspace_bytes;
    make(&status, &self->device_prop, HR_DNN_DEVICEPROP);
    set(&status, self->device_prop, HR_DNN_DEVICEPROP_JSON, HR_DNN_TYPE_CHAR,
        (int64_t) strlen(json) + 1, json);
    finalize(&status, self->device_prop);
    if (status != HR_DNN_SUCCESS) {
        r = error_set_up(status, err);
        hr_dnn_close(&self);
        return r;
    }
    *ret_dnn = self;
    return 0;
}

void hr_dnn_close(struct hr_dnn **self)
{
    if (!*self)
        return;
    for (size_t i = 0; i < PLANS; i++)
        plan_uninit(&(*self)->plans[i]);
    destroy(&(*self)->device_prop);
    if ((*self)->handle)
        dnn.Destroy((*self)->handle);
    free(*self);
    *self = NULL;
}
