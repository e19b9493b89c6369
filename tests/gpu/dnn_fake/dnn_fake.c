/* SPDX-License-Identifier: Apache-2.0 */
/* dnn_fake.c -- as much of cuDNN as gpu/cuda_dnn.c uses, on the host, as a library of its name: it
 * checks that descriptors are complete and agree with each other, and computes attention from them
 * alone.
 *
 * Of three engines only the last keeps the device's promises: the first is not deterministic, the
 * second wants a workspace of 1 GiB. HEADRACE_TEST_CUDNN, read at each call, is what else is wrong:
 *
 *     old      a version before attention        operation  the operation is refused
 *     cuda12   built for CUDA 12                 none       no engine at all
 *     create   no handle                         random     the first engine alone
 *     compile  engines do not compile            large      the second engine alone
 *     execute  it fails when it runs             reason     as operation, with an odd message
 *     slow     kernels take long to compile      newer      a later version
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu/cuda_dnn_abi.h"

/* Declared as the table says, so that the two cannot differ. */
#define DECLARE(name) __typeof__(*((struct hr_dnn_fns *) NULL)->name) cudnn##name
DECLARE(GetVersion);
DECLARE(GetCudartVersion);
DECLARE(GetErrorString);
DECLARE(GetLastErrorString);
DECLARE(Create);
DECLARE(Destroy);
DECLARE(SetStream);
DECLARE(BackendCreateDescriptor);
DECLARE(BackendDestroyDescriptor);
DECLARE(BackendFinalize);
DECLARE(BackendSetAttribute);
DECLARE(BackendGetAttribute);
DECLARE(BackendExecute);
/* For tests: descriptors that live, plans that were made; and of plans that are no more, for as
 * many queries as keys, how many ran at all and how many a single time. */
int hr_fake_live(void);
int hr_fake_compiled(void);
int hr_fake_used(void);
int hr_fake_used_once(void);

enum {
    BAD_PARAM = 2000,
    NOT_SUPPORTED = 3000,
    COMPILATION_FAILED = 4001,
    EXECUTION_FAILED = 5000,
    VALUE_BYTES = 256,
    ATTRIBUTES_MAX = 12,
    TENSORS = 5,
    WORKSPACE_BYTES = 4096,
    SLOW_US = 60000,
};

struct value {
    int attribute, type;
    int64_t n;
    unsigned char bytes[VALUE_BYTES];
};

struct descriptor {
    int kind;
    bool is_final;
    struct value values[ATTRIBUTES_MAX];
    int n_values;
    int engine; /* of engine configurations: 1, 2, 3 */
    int n_runs; /* of plans */
    const struct descriptor *graph;
};

struct handle {
    cudaStream_t stream;
};

static char last[128];
static int live, compiled, used, used_once;

int hr_fake_live(void)
{
    return live;
}

int hr_fake_compiled(void)
{
    return compiled;
}

int hr_fake_used(void)
{
    return used;
}

int hr_fake_used_once(void)
{
    return used_once;
}

static bool is_wrong(const char *word)
{
    const char *wrong = getenv("HEADRACE_TEST_CUDNN");

    return wrong && strcmp(wrong, word) == 0;
}

static int fail(int status, const char *message)
{
    snprintf(last, sizeof(last), "%s", message);
    return status;
}

/* ---- the library and its handle ---------------------------------------------------------------
 */

size_t cudnnGetVersion(void)
{
    return is_wrong("old") ? 91002 : is_wrong("newer") ? 92900 : 92801;
}

size_t cudnnGetCudartVersion(void)
{
    return is_wrong("cuda12") ? 12080 : 13000;
}

const char *cudnnGetErrorString(int status)
{
    return status == BAD_PARAM            ? "CUDNN_STATUS_BAD_PARAM"
           : status == NOT_SUPPORTED      ? "CUDNN_STATUS_NOT_SUPPORTED"
           : status == COMPILATION_FAILED ? "CUDNN_STATUS_INTERNAL_ERROR_COMPILATION_FAILED"
                                          : "CUDNN_STATUS_EXECUTION_FAILED";
}

void cudnnGetLastErrorString(char *message, size_t n_bytes)
{
    snprintf(message, n_bytes, "%s", last);
}

int cudnnCreate(void **handle)
{
    if (is_wrong("create"))
        return fail(NOT_SUPPORTED, "no device");
    *handle = calloc(1, sizeof(struct handle));
    return *handle ? HR_DNN_SUCCESS : BAD_PARAM;
}

int cudnnDestroy(void *handle)
{
    free(handle);
    return HR_DNN_SUCCESS;
}

int cudnnSetStream(void *handle, cudaStream_t stream)
{
    ((struct handle *) handle)->stream = stream;
    return stream ? HR_DNN_SUCCESS : fail(BAD_PARAM, "no stream");
}

/* ---- attributes ----------------------------------------------------------------------------- */

static size_t bytes_of(int type)
{
    switch (type) {
    case HR_DNN_TYPE_DATA_TYPE:
    case HR_DNN_TYPE_HEUR_MODE:
    case HR_DNN_TYPE_NUMERICAL_NOTE:
        return 4;
    case HR_DNN_TYPE_BOOLEAN:
    case HR_DNN_TYPE_CHAR:
        return 1;
    default:
        return 8;
    }
}

int cudnnBackendSetAttribute(void *descriptor, int attribute, int type, int64_t n,
                             const void *values)
{
    struct descriptor *d = (struct descriptor *) descriptor;
    const size_t n_bytes = (size_t) n * bytes_of(type);
    struct value *v = &d->values[d->n_values];

    if (d->is_final || d->n_values == ATTRIBUTES_MAX || n < 1 || n_bytes > sizeof(v->bytes))
        return fail(BAD_PARAM, "an attribute is set that cannot be");
    *v = (struct value){.attribute = attribute, .type = type, .n = n};
    memcpy(v->bytes, values, n_bytes);
    d->n_values++;
    return HR_DNN_SUCCESS;
}

/* @return n values of that type, or NULL */
static const void *find(const struct descriptor *d, int attribute, int type, int64_t n)
{
    const void *found = NULL;
    int n_found = 0;

    for (int i = 0; i < d->n_values; i++) {
        const struct value *v = &d->values[i];

        if (v->attribute != attribute)
            continue;
        n_found++;
        if (v->type == type && v->n == n)
            found = v->bytes;
    }
    return n_found == 1 ? found : NULL;
}

static int64_t number(const struct descriptor *d, int attribute, int i)
{
    const bool is_array = attribute == HR_DNN_TENSOR_DIMENSIONS || //
                          attribute == HR_DNN_TENSOR_STRIDES;
    const int64_t *found = find(d, attribute, HR_DNN_TYPE_INT64, is_array ? 4 : 1);

    return found ? found[i] : -1;
}

/* A finished descriptor of a kind. */
static const struct descriptor *part(const struct descriptor *d, int attribute, int kind)
{
    const struct descriptor *const *found = find(d, attribute, HR_DNN_TYPE_DESCRIPTOR, 1);

    return found && *found && (*found)->kind == kind && (*found)->is_final ? *found : NULL;
}

static bool is_by_value(const struct descriptor *tensor)
{
    const bool *found = find(tensor, HR_DNN_TENSOR_IS_BY_VALUE, HR_DNN_TYPE_BOOLEAN, 1);

    return found && *found;
}

static int data_type(const struct descriptor *tensor)
{
    const int *found = find(tensor, HR_DNN_TENSOR_DATA_TYPE, HR_DNN_TYPE_DATA_TYPE, 1);

    return found ? *found : -1;
}

/* ---- descriptors ---------------------------------------------------------------------------- */

int cudnnBackendCreateDescriptor(int kind, void **descriptor)
{
    struct descriptor *d = calloc(1, sizeof(*d));

    if (!d)
        return BAD_PARAM;
    d->kind = kind;
    *descriptor = d;
    live++;
    return HR_DNN_SUCCESS;
}

int cudnnBackendDestroyDescriptor(void *descriptor)
{
    const struct descriptor *d = (const struct descriptor *) descriptor;

    live--;
    used += d->n_runs > 0;
    used_once += d->n_runs == 1;
    memset(descriptor, 0xff, sizeof(struct descriptor));
    free(descriptor);
    return HR_DNN_SUCCESS;
}

static bool tensor_is_good(const struct descriptor *d)
{
    bool good = number(d, HR_DNN_TENSOR_UNIQUE_ID, 0) > 0 && data_type(d) >= 0 &&
                number(d, HR_DNN_TENSOR_BYTE_ALIGNMENT, 0) >= 4;

    for (int i = 0; i < 4; i++)
        good = good && number(d, HR_DNN_TENSOR_DIMENSIONS, i) > 0 &&
               number(d, HR_DNN_TENSOR_STRIDES, i) > 0;
    return good;
}

static const int tensors[TENSORS] = {HR_DNN_SDPA_FWD_Q, HR_DNN_SDPA_FWD_K, HR_DNN_SDPA_FWD_V,
                                     HR_DNN_SDPA_FWD_O, HR_DNN_SDPA_FWD_SCALE};

/* Q and O [1, heads, n_q, 128], K and V [1, heads, n_k, 128] in bf16, one scale from the host. */
static bool operation_is_good(const struct descriptor *d)
{
    const struct descriptor *t[TENSORS];

    for (int i = 0; i < TENSORS; i++) {
        t[i] = part(d, tensors[i], HR_DNN_TENSOR);
        if (!t[i] || is_by_value(t[i]) != (i == 4) ||
            data_type(t[i]) != (i == 4 ? HR_DNN_DATA_FLOAT : HR_DNN_DATA_BFLOAT16))
            return false;
        for (int j = 0; j < i; j++)
            if (number(t[i], HR_DNN_TENSOR_UNIQUE_ID, 0) ==
                number(t[j], HR_DNN_TENSOR_UNIQUE_ID, 0))
                return false;
        for (int j = 0; j < 4; j++) {
            const int64_t dim = number(t[i], HR_DNN_TENSOR_DIMENSIONS, j);
            const int like = i == 3 ? 0 : i == 2 ? 1 : i;
            const int64_t want = i == 4 || j == 0 ? 1
                                 : j == 3         ? 128
                                 : j == 1         ? number(t[0], HR_DNN_TENSOR_DIMENSIONS, 1)
                                                  : number(t[like], HR_DNN_TENSOR_DIMENSIONS, 2);

            if (dim != want)
                return false;
        }
    }
    return true;
}

static const struct descriptor *config_of(const struct descriptor *plan)
{
    const struct descriptor *const *found =
        find(plan, HR_DNN_PLAN_ENGINE_CONFIG, HR_DNN_TYPE_DESCRIPTOR, 1);

    return found && *found && (*found)->kind == HR_DNN_ENGINECFG && (*found)->engine ? *found
                                                                                     : NULL;
}

/* What belongs to a device is told which: by handle, or by description. */
static bool knows_device(const struct descriptor *d, int handle, int device_prop)
{
    void *const *found = find(d, handle, HR_DNN_TYPE_HANDLE, 1);

    return (found && *found) || part(d, device_prop, HR_DNN_DEVICEPROP);
}

int cudnnBackendFinalize(void *descriptor)
{
    struct descriptor *d = (struct descriptor *) descriptor;
    const int *mode = find(d, HR_DNN_ENGINEHEUR_MODE, HR_DNN_TYPE_HEUR_MODE, 1);
    bool good = !d->is_final;

    switch (d->kind) {
    case HR_DNN_TENSOR:
        good = good && tensor_is_good(d);
        break;
    case HR_DNN_SDPA_FWD:
        if (is_wrong("operation") || is_wrong("reason"))
            return fail(NOT_SUPPORTED, is_wrong("reason") ? "two\nlines" : "not today");
        good = good && operation_is_good(d);
        break;
    case HR_DNN_OPERATIONGRAPH:
        good = good && part(d, HR_DNN_GRAPH_OPS, HR_DNN_SDPA_FWD);
        break;
    case HR_DNN_ENGINEHEUR:
        d->graph = part(d, HR_DNN_ENGINEHEUR_GRAPH, HR_DNN_OPERATIONGRAPH);
        good = good && mode && *mode == HR_DNN_HEUR_MODE_A && d->graph;
        break;
    case HR_DNN_EXECUTION_PLAN:
        if (is_wrong("compile"))
            return fail(COMPILATION_FAILED, "compilationResult != NVRTC_SUCCESS");
        if (is_wrong("slow"))
            usleep(SLOW_US);
        good = good && config_of(d) && knows_device(d, HR_DNN_PLAN_HANDLE, HR_DNN_PLAN_DEVICEPROP);
        compiled++;
        break;
    case HR_DNN_DEVICEPROP:
        good = good && d->n_values == 1 && d->values[0].bytes[0] == '{';
        break;
    default: /* a variant pack, which is looked at when it is used */
        good = good && d->kind == HR_DNN_VARIANT_PACK;
    }
    d->is_final = good;
    return good ? HR_DNN_SUCCESS : fail(BAD_PARAM, "a descriptor is incomplete");
}

static int get_configs(const struct descriptor *heuristics, int64_t n_wanted, int64_t *n,
                       void **configs)
{
    const int first = is_wrong("large") ? 2 : 1;
    const int n_engines = is_wrong("none") ? 0 : is_wrong("random") || is_wrong("large") ? 1 : 3;

    *n = 0;
    while (*n < n_wanted && *n < n_engines) {
        struct descriptor *config = (struct descriptor *) configs[*n];

        if (config->kind != HR_DNN_ENGINECFG)
            return fail(BAD_PARAM, "no room for an engine");
        config->engine = first + (int) *n;
        config->graph = heuristics->graph;
        (*n)++;
    }
    return HR_DNN_SUCCESS;
}

int cudnnBackendGetAttribute(void *descriptor, int attribute, int type, int64_t n_wanted,
                             int64_t *n, void *values)
{
    const struct descriptor *d = (const struct descriptor *) descriptor;

    switch (attribute) {
    case HR_DNN_ENGINEHEUR_RESULTS:
        return d->is_final ? get_configs(d, n_wanted, n, (void **) values) : BAD_PARAM;
    case HR_DNN_ENGINECFG_ENGINE:
        (*(struct descriptor **) values)->engine = d->engine;
        *n = 1;
        return type == HR_DNN_TYPE_DESCRIPTOR ? HR_DNN_SUCCESS : BAD_PARAM;
    case HR_DNN_ENGINE_NUMERICAL_NOTE:
        ((int *) values)[0] = 0; /* tensor cores */
        ((int *) values)[1] = HR_DNN_NOTE_NONDETERMINISTIC;
        *n = d->engine == 1 ? 2 : 1;
        return type == HR_DNN_TYPE_NUMERICAL_NOTE ? HR_DNN_SUCCESS : BAD_PARAM;
    case HR_DNN_PLAN_WORKSPACE_SIZE:
        *(int64_t *) values = config_of(d)->engine == 2 ? INT64_C(1) << 30 : WORKSPACE_BYTES;
        *n = 1;
        return d->is_final && type == HR_DNN_TYPE_INT64 ? HR_DNN_SUCCESS : BAD_PARAM;
    default:
        return fail(BAD_PARAM, "an attribute that nobody has");
    }
}

/* ---- attention ------------------------------------------------------------------------------ */

struct array {
    const struct descriptor *tensor;
    void *data;
    int64_t strides[4];
};

static uint16_t *element(const struct array *a, int64_t head, int64_t row, int64_t column)
{
    return (uint16_t *) a->data + head * a->strides[1] + row * a->strides[2] +
           column * a->strides[3];
}

static double value_at(const struct array *a, int64_t head, int64_t row, int64_t column)
{
    const uint32_t bits = (uint32_t) *element(a, head, row, column) << 16;
    float v;

    memcpy(&v, &bits, sizeof(v));
    return (double) v;
}

/* To nearest, ties to even; NaN stays one. */
static uint16_t to_bf16(double value)
{
    const float v = (float) value;
    uint32_t bits;

    if (isnan(value))
        return 0x7fc0;
    memcpy(&bits, &v, sizeof(bits));
    return (uint16_t) ((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void attend_row(const struct array *a, double scale, int64_t head, int64_t row, double *p,
                       int64_t n_k)
{
    double max = -INFINITY, sum = 0.0;

    for (int64_t j = 0; j < n_k; j++) {
        p[j] = 0.0;
        for (int64_t c = 0; c < 128; c++)
            p[j] += value_at(&a[0], head, row, c) * value_at(&a[1], head, j, c);
        p[j] *= scale;
        max = p[j] > max ? p[j] : max;
    }
    for (int64_t j = 0; j < n_k; j++)
        sum += p[j] = exp(p[j] - max);
    for (int64_t c = 0; c < 128; c++) {
        double y = 0.0;

        for (int64_t j = 0; j < n_k; j++)
            y += p[j] * value_at(&a[2], head, j, c);
        *element(&a[3], head, row, c) = to_bf16(y / sum);
    }
}

/* The arrays of a pack in the order of the operation's tensors, aligned as they were said to be. */
static bool take_arrays(const struct descriptor *operation, const struct descriptor *pack,
                        struct array *arrays)
{
    const int64_t *ids = find(pack, HR_DNN_PACK_UNIQUE_IDS, HR_DNN_TYPE_INT64, TENSORS);
    void *const *data = find(pack, HR_DNN_PACK_DATA_POINTERS, HR_DNN_TYPE_VOID_PTR, TENSORS);

    if (!ids || !data)
        return false;
    for (int i = 0; i < TENSORS; i++) {
        const struct descriptor *t = part(operation, tensors[i], HR_DNN_TENSOR);

        arrays[i].tensor = t;
        arrays[i].data = NULL;
        for (int j = 0; t && j < 4; j++)
            arrays[i].strides[j] = number(t, HR_DNN_TENSOR_STRIDES, j);
        for (int j = 0; t && j < TENSORS; j++)
            if (ids[j] == number(t, HR_DNN_TENSOR_UNIQUE_ID, 0))
                arrays[i].data = data[j];
        if (!arrays[i].data ||
            (uintptr_t) arrays[i].data % (uintptr_t) number(t, HR_DNN_TENSOR_BYTE_ALIGNMENT, 0))
            return false;
    }
    return true;
}

int cudnnBackendExecute(void *handle, void *plan, void *pack)
{
    struct descriptor *p = (struct descriptor *) plan;
    const struct descriptor *data = (const struct descriptor *) pack;
    void *const *workspace = find(data, HR_DNN_PACK_WORKSPACE, HR_DNN_TYPE_VOID_PTR, 1);
    struct array a[TENSORS];

    if (is_wrong("execute"))
        return fail(EXECUTION_FAILED, "");
    if (!handle || !((struct handle *) handle)->stream || !p->is_final || !data->is_final ||
        data->kind != HR_DNN_VARIANT_PACK || !workspace || !*workspace ||
        !take_arrays(part(config_of(p)->graph, HR_DNN_GRAPH_OPS, HR_DNN_SDPA_FWD), data, a))
        return fail(BAD_PARAM, "a plan cannot run so");
    const int64_t n_heads = number(a[0].tensor, HR_DNN_TENSOR_DIMENSIONS, 1);
    const int64_t n_q = number(a[0].tensor, HR_DNN_TENSOR_DIMENSIONS, 2);
    const int64_t n_k = number(a[1].tensor, HR_DNN_TENSOR_DIMENSIONS, 2);
    double *row = malloc((size_t) n_k * sizeof(*row));

    if (!row)
        return fail(EXECUTION_FAILED, "no memory");
    p->n_runs += n_q == n_k;
    memset(*workspace, 0xff, WORKSPACE_BYTES);
    for (int64_t head = 0; head < n_heads; head++)
        for (int64_t q = 0; q < n_q; q++)
            attend_row(a, (double) *(const float *) a[4].data, head, q, row, n_k);
    free(row);
    return HR_DNN_SUCCESS;
}
