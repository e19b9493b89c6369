/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_linear.c -- linear layers on the CPU, tile by tile, each tile finished while it is in cache.
 *
 * Few tokens: weights are used once, so the product runs at the speed of memory in a kernel of our
 * own (hr_kernels.dot). More tokens: the matrix library multiplies tiles of tokens x rows of w,
 * reading w where the disk's reader put it. Where w must be converted first, a thread converts a
 * piece of it that fits in its cache and adds up over the pieces, in order.
 */
#include <string.h>

#include "gpu/cpu.h"

enum { DOT_ROWS = 64 };
_Static_assert((int) HR_DOT_TOKENS_MAX >= (int) HR_TOKENS_INDEPENDENT_MAX,
               "each token of hr_kernels.dot has sums of its own");

static size_t dtype_bytes(enum hr_dtype dtype)
{
    switch (dtype) {
    case HR_DTYPE_F32:
        return 4;
    case HR_DTYPE_F16:
    case HR_DTYPE_BF16:
        return 2;
    default:
        return 1;
    }
}

/* n weights as the product wants them: f32, or bf16; with x in bf16 they are rounded to it even
 * where the product is then computed in f32. */
static void convert_weights(const struct hr_kernels *kernels, void *dst, bool to_bf16,
                            const void *w, const struct hr_linear *p, size_t n)
{
    const bool exact = p->w_dtype != HR_DTYPE_F32 && p->w_dtype != HR_DTYPE_F16;
    uint16_t rounded[HR_TILE_K];

    if (to_bf16) {
        kernels->to_bf16((uint16_t *) dst, w, p->w_dtype, n);
    } else if (p->x_dtype == HR_DTYPE_F32 || exact) {
        kernels->to_f32((float *) dst, w, p->w_dtype, n);
    } else {
        hr_assert(n <= HR_TILE_K);
        kernels->to_bf16(rounded, w, p->w_dtype, n);
        kernels->to_f32((float *) dst, rounded, HR_DTYPE_BF16, n);
    }
}

static const unsigned char *weight_at(const struct hr_linear *p, size_t row, size_t k)
{
    return (const unsigned char *) p->w + (row * p->n_in + k) * dtype_bytes(p->w_dtype);
}

static const unsigned char *x_at(const struct hr_linear *p, size_t t, size_t k)
{
    return (const unsigned char *) p->x + (t * p->x_stride + k) * dtype_bytes(p->x_dtype);
}

static void finish_tile(const struct hr_cpu *cpu, const struct hr_linear *p, const float *y,
                        size_t y_stride, size_t t, size_t n_tokens, size_t row, size_t n_rows)
{
    for (size_t i = 0; i < n_tokens; i++)
        cpu->kernels->epilogue(p, t + i, row, n_rows, y + i * y_stride);
}

/* ---- few tokens --------------------------------------------------------------------- */

struct dot_job {
    const struct hr_cpu *cpu;
    const struct hr_linear *p;
    bool convert; /* w to x's dtype */
};

static void dot_task(void *ctx, size_t task_idx, unsigned thread_idx)
{
    const struct dot_job *job = (const struct dot_job *) ctx;
    const struct hr_linear *p = job->p;
    const struct hr_cpu_thread *thread = &job->cpu->threads[thread_idx];
    const size_t row = task_idx * DOT_ROWS, n_rows = hr_min_u64(DOT_ROWS, p->n_out - row);
    const size_t k_step = job->convert ? HR_TILE_K : p->n_in;

    for (size_t k = 0; k < p->n_in; k += k_step) {
        struct hr_dot dot = {.y = thread->tile,
                             .y_stride = DOT_ROWS,
                             .x = x_at(p, 0, k),
                             .x_dtype = p->x_dtype,
                             .x_stride = p->x_stride,
                             .w = weight_at(p, row, k),
                             .w_dtype = p->w_dtype,
                             .w_stride = p->n_in,
                             .n_tokens = p->n_tokens,
                             .n_rows = n_rows,
                             .k = hr_min_u64(k_step, p->n_in - k),
                             .accumulate = k > 0};

        if (job->convert) {
            for (size_t r = 0; r < n_rows; r++)
                convert_weights(job->cpu->kernels,
                                (unsigned char *) thread->w +
                                    r * HR_TILE_K * dtype_bytes(p->x_dtype),
                                p->x_dtype == HR_DTYPE_BF16, weight_at(p, row + r, k), p, dot.k);
            dot.w = thread->w;
            dot.w_dtype = p->x_dtype;
            dot.w_stride = HR_TILE_K;
        }
        job->cpu->kernels->dot(&dot);
    }
    finish_tile(job->cpu, p, thread->tile, DOT_ROWS, 0, p->n_tokens, row, n_rows);
}

static int linear_dot(const struct hr_cpu *cpu, const struct hr_linear *p)
{
    struct dot_job job = {
        .cpu = cpu, .p = p, .convert = p->w_dtype != HR_DTYPE_BF16 && p->w_dtype != p->x_dtype};

    hr_pool_run(cpu->pool, dot_task, &job, (size_t) hr_div_ceil(p->n_out, DOT_ROWS));
    return 0;
}

/* ---- tiles -------------------------------------------------------------------------- */

/* Pieces of K: the first is stored, the following are added; the last may be shorter. */
enum { PIECE_FIRST, PIECE_MORE, PIECE_LAST, N_PIECES };

struct tile_job {
    const struct hr_cpu *cpu;
    const struct hr_linear *p;
    struct hr_cpu_result *result;
    bool bf16;                 /* the product's inputs */
    bool convert_w, convert_x; /* to them              */
    size_t n_tokens, n_rows;   /* of a tile            */
    size_t n_token_tiles;
    size_t k_piece;
    const struct hr_gemm_op *op[2][2][N_PIECES]; /* [last tokens][last rows]; those that occur */
};

static int run_piece(const struct tile_job *job, const struct hr_gemm_op *op, unsigned thread_idx,
                     size_t t, size_t n_tokens, size_t row, size_t n_rows, size_t k, size_t n_k)
{
    const struct hr_linear *p = job->p;
    const struct hr_kernels *kernels = job->cpu->kernels;
    const struct hr_cpu_thread *thread = &job->cpu->threads[thread_idx];
    const size_t size = job->bf16 ? 2 : 4;
    const void *x = x_at(p, t, k), *w = weight_at(p, row, k);

    for (size_t r = 0; job->convert_w && r < n_rows; r++)
        convert_weights(kernels, (unsigned char *) thread->w + r * HR_TILE_K * size, job->bf16,
                        weight_at(p, row + r, k), p, n_k);
    for (size_t i = 0; job->convert_x && i < n_tokens; i++)
        kernels->to_f32(thread->x + i * HR_TILE_K, x_at(p, t + i, k), p->x_dtype, n_k);
    return hr_gemm_run(job->cpu->gemm, op, thread_idx, job->convert_x ? thread->x : x,
                       job->convert_w ? thread->w : w, thread->tile);
}

static void tile_task(void *ctx, size_t task_idx, unsigned thread_idx)
{
    const struct tile_job *job = (const struct tile_job *) ctx;
    const struct hr_linear *p = job->p;
    const size_t t = task_idx % job->n_token_tiles * job->n_tokens;
    const size_t row = task_idx / job->n_token_tiles * job->n_rows;
    const size_t n_tokens = hr_min_u64(job->n_tokens, p->n_tokens - t);
    const size_t n_rows = hr_min_u64(job->n_rows, p->n_out - row);
    const struct hr_gemm_op *const *ops = job->op[n_tokens < job->n_tokens][n_rows < job->n_rows];
    int rc = 0;

    for (size_t k = 0; k < p->n_in && rc == 0; k += job->k_piece) {
        const size_t n_k = hr_min_u64(job->k_piece, p->n_in - k);
        const int more = n_k < job->k_piece ? PIECE_LAST : PIECE_MORE;

        rc = run_piece(job, ops[k == 0 ? PIECE_FIRST : more], thread_idx, t, n_tokens, row, n_rows,
                       k, n_k);
    }
    hr_cpu_fail(job->result, rc);
    if (rc == 0)
        finish_tile(job->cpu, p, job->cpu->threads[thread_idx].tile, job->n_rows, t, n_tokens, row,
                    n_rows);
}

/* The products of one size of tile. */
static int prepare_tile(struct tile_job *job, const struct hr_gemm_op **ops, size_t n_tokens,
                        size_t n_rows)
{
    const struct hr_linear *p = job->p;
    struct hr_gemm_shape shape = {.m = n_tokens,
                                  .n = n_rows,
                                  .k = job->k_piece,
                                  .a_stride = job->convert_x ? HR_TILE_K : p->x_stride,
                                  .b_stride = job->convert_w ? HR_TILE_K : p->n_in,
                                  .c_stride = job->n_rows,
                                  .b_rows = true,
                                  .bf16 = job->bf16};
    int rc = hr_gemm_get(job->cpu->gemm, &ops[PIECE_FIRST], &shape);

    shape.accumulate = true;
    if (rc == 0 && p->n_in >= 2 * job->k_piece)
        rc = hr_gemm_get(job->cpu->gemm, &ops[PIECE_MORE], &shape);
    shape.k = p->n_in % job->k_piece;
    if (rc == 0 && shape.k > 0)
        rc = hr_gemm_get(job->cpu->gemm, &ops[PIECE_LAST], &shape);
    return rc;
}

static int linear_tiles(const struct hr_cpu *cpu, const struct hr_linear *p)
{
    struct hr_cpu_result result = {0};
    struct tile_job job = {.cpu = cpu, .p = p, .result = &result};
    int rc = 0;

    job.bf16 = p->x_dtype == HR_DTYPE_BF16 && cpu->has_bf16;
    job.convert_x = p->x_dtype == HR_DTYPE_BF16 && !job.bf16;
    /* f32 weights that meet x in bf16 must be rounded, even for a product in f32 */
    job.convert_w = p->w_dtype != (job.bf16 ? HR_DTYPE_BF16 : HR_DTYPE_F32) || job.convert_x;
    job.n_tokens = hr_cpu_tile(p->n_tokens, HR_TILE_TOKENS);
    job.n_rows =
        hr_min_u64(p->n_out, p->n_tokens <= HR_TILE_TOKENS && !job.convert_w ? 64 : HR_TILE_ROWS);
    job.k_piece = job.convert_x || job.convert_w ? hr_min_u64(HR_TILE_K, p->n_in) : p->n_in;
    job.n_token_tiles = (size_t) hr_div_ceil(p->n_tokens, job.n_tokens);

    hr_gemm_begin(cpu->gemm, HR_ARRAY_SIZE(job.op) * HR_ARRAY_SIZE(job.op[0]) * N_PIECES);
    for (int i = 0; i < 4 && rc == 0; i++) {
        const size_t n_tokens = i & 1 ? p->n_tokens % job.n_tokens : job.n_tokens;
        const size_t n_rows = i & 2 ? p->n_out % job.n_rows : job.n_rows;

        if (n_tokens > 0 && n_rows > 0)
            rc = prepare_tile(&job, job.op[i & 1][i >> 1], n_tokens, n_rows);
    }
    if (rc < 0)
        return rc;
    hr_pool_run(cpu->pool, tile_task, &job,
                job.n_token_tiles * (size_t) hr_div_ceil(p->n_out, job.n_rows));
    return atomic_load(&result.rc);
}

int hr_cpu_linear(struct hr_gpu *gpu, const struct hr_linear *p)
{
    const struct hr_cpu *cpu = (const struct hr_cpu *) gpu;

    return p->n_tokens <= HR_DOT_TOKENS_MAX ? linear_dot(cpu, p) : linear_tiles(cpu, p);
}
