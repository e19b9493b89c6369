/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_gemm.c -- oneDNN's matmul behind cpu_gemm.h; C API of 2.x and 3.x.
 *
 * oneDNN reads weights where they lie: a matrix [n,k] is one of k x n with strides 1, k. Nothing
 * is repacked for keeping. Its scratchpad is ours ("user mode"), so of its own it allocates only
 * the small objects that say where a run's arrays are.
 */
#include "gpu/cpu_gemm.h"

#include <errno.h>
#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/cpu_openmp.h"

enum { OPS_MAX = 256 };

#if DNNL_VERSION_MAJOR < 3
typedef const dnnl_memory_desc_t *desc_t;
#else
typedef const_dnnl_memory_desc_t desc_t;
#endif

enum { ARG_A, ARG_B, ARG_C, ARG_SCRATCH, N_ARGS };

struct hr_gemm_op {
    struct hr_gemm_shape shape;
    dnnl_primitive_t primitive;
    desc_t desc[N_ARGS]; /* the primitive's */
};

struct hr_gemm {
    dnnl_engine_t engine;
    unsigned n_threads;
    dnnl_stream_t *streams; /* [n_threads] */
    void **scratch;         /* [n_threads] */
    size_t scratch_bytes;   /* of each     */
    size_t n_ops;
    struct hr_gemm_op ops[OPS_MAX];
};

static int error_of(dnnl_status_t status)
{
    switch (status) {
    case dnnl_success:
        return 0;
    case dnnl_out_of_memory:
        return -ENOMEM;
    case dnnl_unimplemented:
        return -EOPNOTSUPP;
    default:
        return -EIO;
    }
}

/* ---- preparing ---------------------------------------------------------------------- */

struct layout {
    dnnl_data_type_t type;
    dnnl_dims_t dims, strides;
};

#if DNNL_VERSION_MAJOR < 3
static dnnl_status_t matmul_create(dnnl_primitive_desc_t *pd, dnnl_engine_t engine,
                                   const struct layout *layout, dnnl_primitive_attr_t attr)
{
    dnnl_memory_desc_t desc[3];
    dnnl_matmul_desc_t matmul;
    dnnl_status_t status = dnnl_success;

    for (int i = ARG_A; i <= ARG_C && status == dnnl_success; i++)
        status = dnnl_memory_desc_init_by_strides(&desc[i], 2, layout[i].dims, layout[i].type,
                                                  layout[i].strides);
    if (status == dnnl_success)
        status = dnnl_matmul_desc_init(&matmul, &desc[ARG_A], &desc[ARG_B], NULL, &desc[ARG_C]);
    if (status == dnnl_success)
        status = dnnl_primitive_desc_create(pd, &matmul, attr, engine, NULL);
    return status;
}

static dnnl_status_t append_sum(dnnl_post_ops_t ops)
{
    return dnnl_post_ops_append_sum(ops, 1.0f);
}
#else
static dnnl_status_t matmul_create(dnnl_primitive_desc_t *pd, dnnl_engine_t engine,
                                   const struct layout *layout, dnnl_primitive_attr_t attr)
{
    dnnl_memory_desc_t desc[3] = {NULL};
    dnnl_status_t status = dnnl_success;

    for (int i = ARG_A; i <= ARG_C && status == dnnl_success; i++)
        status = dnnl_memory_desc_create_with_strides(&desc[i], 2, layout[i].dims, layout[i].type,
                                                      layout[i].strides);
    if (status == dnnl_success)
        status = dnnl_matmul_primitive_desc_create(pd, engine, desc[ARG_A], desc[ARG_B], NULL,
                                                   desc[ARG_C], attr);
    for (int i = ARG_A; i <= ARG_C; i++)
        if (desc[i])
            dnnl_memory_desc_destroy(desc[i]);
    return status;
}

static dnnl_status_t append_sum(dnnl_post_ops_t ops)
{
    return dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_data_type_undef);
}
#endif

static dnnl_status_t attr_create(dnnl_primitive_attr_t *ret_attr, bool accumulate)
{
    dnnl_post_ops_t ops = NULL;
    dnnl_status_t status = dnnl_primitive_attr_create(ret_attr);

    if (status == dnnl_success)
        status = dnnl_primitive_attr_set_scratchpad_mode(*ret_attr, dnnl_scratchpad_mode_user);
    if (status != dnnl_success || !accumulate)
        return status;
    status = dnnl_post_ops_create(&ops);
    if (status != dnnl_success)
        return status;
    status = append_sum(ops);
    if (status == dnnl_success)
        status = dnnl_primitive_attr_set_post_ops(*ret_attr, ops);
    dnnl_post_ops_destroy(ops);
    return status;
}

static dnnl_status_t desc_create(dnnl_primitive_desc_t *pd, dnnl_engine_t engine,
                                 const struct hr_gemm_shape *s)
{
    const dnnl_data_type_t type = s->bf16 ? dnnl_bf16 : dnnl_f32;
    const dnnl_dim_t m = (dnnl_dim_t) s->m, n = (dnnl_dim_t) s->n, k = (dnnl_dim_t) s->k;
    const dnnl_dim_t b_stride = (dnnl_dim_t) s->b_stride;
    const struct layout layout[] = {
        [ARG_A] = {type, {m, k}, {(dnnl_dim_t) s->a_stride, 1}},
        [ARG_B] = {type, {k, n}, {s->b_rows ? 1 : b_stride, s->b_rows ? b_stride : 1}},
        [ARG_C] = {dnnl_f32, {m, n}, {(dnnl_dim_t) s->c_stride, 1}},
    };
    dnnl_primitive_attr_t attr = NULL;
    dnnl_status_t status = attr_create(&attr, s->accumulate);

    if (status == dnnl_success)
        status = matmul_create(pd, engine, layout, attr);
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    return status;
}

/* Larger scratchpads are rare: the shapes of our tiles are bounded. */
static int scratch_reserve(struct hr_gemm *gemm, size_t bytes)
{
    if (bytes <= gemm->scratch_bytes)
        return 0;
    for (unsigned i = 0; i < gemm->n_threads; i++) {
        void *scratch = aligned_alloc(4096, hr_align_up(bytes, 4096));

        if (!scratch)
            return -ENOMEM;
        free(gemm->scratch[i]);
        gemm->scratch[i] = scratch;
    }
    gemm->scratch_bytes = bytes;
    return 0;
}

static int op_init(struct hr_gemm *gemm, struct hr_gemm_op *op, const struct hr_gemm_shape *shape)
{
    static const dnnl_query_t query[N_ARGS] = {dnnl_query_src_md, dnnl_query_weights_md,
                                               dnnl_query_dst_md, dnnl_query_scratchpad_md};
    dnnl_primitive_desc_t created = NULL;
    const_dnnl_primitive_desc_t kept = NULL; /* the primitive's own copy */
    int rc = error_of(desc_create(&created, gemm->engine, shape));

    if (rc < 0)
        return rc;
    op->shape = *shape;
    rc = error_of(dnnl_primitive_create(&op->primitive, created));
    dnnl_primitive_desc_destroy(created);
    if (rc < 0)
        return rc;
    rc = error_of(dnnl_primitive_get_primitive_desc(op->primitive, &kept));
    for (int i = 0; i < N_ARGS && rc == 0; i++)
        op->desc[i] = dnnl_primitive_desc_query_md(kept, query[i], 0);
    if (rc == 0)
        rc = scratch_reserve(gemm, dnnl_memory_desc_get_size(op->desc[ARG_SCRATCH]));
    if (rc < 0)
        dnnl_primitive_destroy(op->primitive);
    return rc;
}

/* ---- interface ---------------------------------------------------------------------- */

static bool shape_equal(const struct hr_gemm_shape *a, const struct hr_gemm_shape *b)
{
    return a->m == b->m && a->n == b->n && a->k == b->k && a->a_stride == b->a_stride &&
           a->b_stride == b->b_stride && a->c_stride == b->c_stride && a->b_rows == b->b_rows &&
           a->accumulate == b->accumulate && a->bf16 == b->bf16;
}

void hr_gemm_begin(struct hr_gemm *gemm, size_t n_ops)
{
    hr_assert(n_ops <= OPS_MAX);
    if (gemm->n_ops + n_ops <= OPS_MAX)
        return;
    while (gemm->n_ops > 0)
        dnnl_primitive_destroy(gemm->ops[--gemm->n_ops].primitive);
}

int hr_gemm_get(struct hr_gemm *gemm, const struct hr_gemm_op **ret_op,
                const struct hr_gemm_shape *shape)
{
    size_t i = 0;
    int rc;

    while (i < gemm->n_ops && !shape_equal(&gemm->ops[i].shape, shape))
        i++;
    if (i == gemm->n_ops) {
        hr_assert(gemm->n_ops < OPS_MAX);
        const int openmp_threads = hr_openmp_serial();

        rc = op_init(gemm, &gemm->ops[i], shape);
        hr_openmp_restore(openmp_threads);
        if (rc < 0)
            return rc;
        gemm->n_ops++;
    }
    *ret_op = &gemm->ops[i];
    return 0;
}

/* Kernels of oneDNN for AVX2 use the stack pointer for data. A signal handler that ran in between
 * would have its frame written there, over the heap. The pool's own threads take no signals at all;
 * the caller's thread, which is thread 0, takes none during a product. */
static void block_signals(unsigned thread_idx, sigset_t *before)
{
    sigset_t all;

    if (thread_idx > 0)
        return;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, before);
}

static void restore_signals(unsigned thread_idx, const sigset_t *before)
{
    if (thread_idx == 0)
        pthread_sigmask(SIG_SETMASK, before, NULL);
}

int hr_gemm_run(struct hr_gemm *gemm, const struct hr_gemm_op *op, unsigned thread_idx,
                const void *a, const void *b, float *c)
{
    static const int name[N_ARGS] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST,
                                     DNNL_ARG_SCRATCHPAD};
    /* The interface takes void *; a and b are only read. */
    void *const address[N_ARGS] = {(void *) (uintptr_t) a, (void *) (uintptr_t) b, c,
                                   gemm->scratch[thread_idx]};
    dnnl_exec_arg_t args[N_ARGS];
    dnnl_status_t status = dnnl_success;
    sigset_t signals;
    int n = 0;

    while (n < N_ARGS && status == dnnl_success) {
        args[n].arg = name[n];
        status = dnnl_memory_create(&args[n].memory, op->desc[n], gemm->engine, address[n]);
        n += status == dnnl_success;
    }
    block_signals(thread_idx, &signals);
    if (status == dnnl_success)
        status = dnnl_primitive_execute(op->primitive, gemm->streams[thread_idx], N_ARGS, args);
    if (status == dnnl_success)
        status = dnnl_stream_wait(gemm->streams[thread_idx]);
    restore_signals(thread_idx, &signals);
    while (n > 0)
        dnnl_memory_destroy(args[--n].memory);
    return error_of(status);
}

bool hr_gemm_has_bf16(struct hr_gemm *gemm)
{
    const struct hr_gemm_shape typical = {.m = 256,
                                          .n = 64,
                                          .k = 1024,
                                          .a_stride = 1024,
                                          .b_stride = 1024,
                                          .c_stride = 64,
                                          .b_rows = true,
                                          .bf16 = true};
    dnnl_primitive_desc_t pd = NULL;

    if (desc_create(&pd, gemm->engine, &typical) != dnnl_success)
        return false;
    dnnl_primitive_desc_destroy(pd);
    return true;
}

int hr_gemm_open(struct hr_gemm **ret_gemm, unsigned n_threads)
{
    struct hr_gemm *gemm = calloc(1, sizeof(*gemm));
    int rc;

    if (!gemm)
        return -ENOMEM;
    gemm->n_threads = n_threads;
    gemm->streams = calloc(n_threads, sizeof(*gemm->streams));
    gemm->scratch = calloc(n_threads, sizeof(*gemm->scratch));
    rc = gemm->streams && gemm->scratch ? 0 : -ENOMEM;
    if (rc == 0)
        rc = scratch_reserve(gemm, HR_GEMM_SCRATCH_BYTES);
    if (rc == 0)
        rc = error_of(dnnl_engine_create(&gemm->engine, dnnl_cpu, 0));
    for (unsigned i = 0; i < n_threads && rc == 0; i++)
        rc = error_of(
            dnnl_stream_create(&gemm->streams[i], gemm->engine, dnnl_stream_default_flags));
    if (rc < 0) {
        hr_gemm_close(&gemm);
        return rc;
    }
    *ret_gemm = gemm;
    return 0;
}

void hr_gemm_close(struct hr_gemm **gemm)
{
    struct hr_gemm *g = *gemm;

    *gemm = NULL;
    if (!g)
        return;
    while (g->n_ops > 0)
        dnnl_primitive_destroy(g->ops[--g->n_ops].primitive);
    for (unsigned i = 0; i < g->n_threads; i++) {
        if (g->streams && g->streams[i])
            dnnl_stream_destroy(g->streams[i]);
        if (g->scratch)
            free(g->scratch[i]);
    }
    if (g->engine)
        dnnl_engine_destroy(g->engine);
    free(g->streams);
    free(g->scratch);
    free(g);
}
