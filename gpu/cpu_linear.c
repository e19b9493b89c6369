/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_linear.c -- linear layers on the CPU, tile by tile, each tile finished while it is in cache.
 *
 * Few tokens: weights are used once, so the product runs at the speed of memory in a kernel of our
 * own (hr_kernels.dot). More tokens: the matrix library multiplies tiles of tokens x rows of w,
 * reading w where the disk's reader put it. Where w must be converted first, a thread converts a
 * piece of it that fits in its cache and adds up over the pieces, in order.
 *
 * A tile's sums are those of several products: the layer's own, then one for each low-rank term,
 * which is another product of a short K.
 */
#include <string.h>

#include "gpu/cpu.h"

enum { DOT_ROWS = 64, PRODUCTS_MAX = 1 + HR_LOW_RANK_TERMS_MAX };
_Static_assert((int) HR_DOT_TOKENS_MAX >= (int) HR_TOKENS_INDEPENDENT_MAX,
               "each token of hr_kernels.dot has sums of its own");

/* Pieces of K: the first is stored or added, the following are added; the last may be shorter. */
enum { PIECE_FIRST, PIECE_MORE, PIECE_LAST, N_PIECES };

/* sum_k x[t,k] w[n,k] as a part of the layer, and how it is computed. */
struct product {
    const void *x;
    enum hr_dtype x_dtype;
    size_t x_stride;
    const void *w;
    enum hr_dtype w_dtype;
    size_t n_k;                /* also elements from row to row of w            */
    bool bf16;                 /* inputs of the multiplication; else f32        */
    bool convert_w, convert_x; /* to them                                       */
    size_t k_piece;
    const struct hr_gemm_op *op[2][2][N_PIECES]; /* [last tokens][last rows]; those that occur */
};

/* The i-th part of the sums: the layer's own, then its low-rank terms. */
static struct product product_of(const struct hr_linear *p, size_t i)
{
    if (i == 0)
        return (struct product){.x = p->x,
                                .x_dtype = p->x_dtype,
                                .x_stride = p->x_stride,
                                .w = p->w,
                                .w_dtype = p->w_dtype,
                                .n_k = p->n_in};
    const struct hr_low_rank *low = &p->low[i - 1];

    return (struct product){.x = low->t,
                            .x_dtype = HR_DTYPE_F32,
                            .x_stride = low->rank,
                            .w = low->b,
                            .w_dtype = low->b_dtype,
                            .n_k = low->rank};
}

static const void *weight_at(const struct product *product, size_t row, size_t k)
{
    return (const unsigned char *) product->w +
           (row * product->n_k + k) * hr_dtype_bytes(product->w_dtype);
}

static const void *x_at(const struct product *product, size_t t, size_t k)
{
    return (const unsigned char *) product->x +
           (t * product->x_stride + k) * hr_dtype_bytes(product->x_dtype);
}

/* n weights as the product wants them: f32, or bf16; with x in bf16 they are rounded to it even
 * where the product is then computed in f32. */
static void convert_weights(const struct hr_kernels *kernels, void *dst, const void *w,
                            const struct product *product, size_t n)
{
    const bool exact = product->w_dtype != HR_DTYPE_F32 && product->w_dtype != HR_DTYPE_F16;
    uint16_t rounded[HR_TILE_K];

    if (product->bf16) {
        kernels->to_bf16((uint16_t *) dst, w, product->w_dtype, n);
    } else if (product->x_dtype == HR_DTYPE_F32 || exact) {
        kernels->to_f32((float *) dst, w, product->w_dtype, n);
    } else {
        hr_assert(n <= HR_TILE_K);
        kernels->to_bf16(rounded, w, product->w_dtype, n);
        kernels->to_f32((float *) dst, rounded, HR_DTYPE_BF16, n);
    }
}

/* Rows of w from column k on into the thread's scratch, HR_TILE_STRIDE apart. */
static void convert_rows(const struct hr_cpu *cpu, const struct hr_cpu_thread *thread,
                         const struct product *product, size_t row, size_t n_rows, size_t k,
                         size_t n_k)
{
    const size_t row_bytes = HR_TILE_STRIDE * (product->bf16 ? 2 : 4);

    for (size_t r = 0; r < n_rows; r++)
        convert_weights(cpu->kernels, (unsigned char *) thread->w + r * row_bytes,
                        weight_at(product, row + r, k), product, n_k);
}

static void scale_tile(const struct hr_cpu *cpu, const struct hr_linear *p, float *y,
                       size_t y_stride, size_t n_tokens, size_t row, size_t n_rows)
{
    for (size_t i = 0; i < n_tokens && p->w_scale; i++)
        cpu->kernels->scale(y + i * y_stride, p->w_scale + row * p->w_scale_stride,
                            p->w_scale_stride, n_rows);
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
};

/* One product of DOT_ROWS rows, stored in the thread's tile or added to it. */
static void dot_product(const struct dot_job *job, const struct hr_cpu_thread *thread,
                        const struct product *product, size_t row, size_t n_rows, bool accumulate)
{
    const size_t k_step = product->convert_w ? HR_TILE_K : product->n_k;

    for (size_t k = 0; k < product->n_k; k += k_step) {
        struct hr_dot dot = {.y = thread->tile,
                             .y_stride = DOT_ROWS,
                             .x = x_at(product, 0, k),
                             .x_dtype = product->x_dtype,
                             .x_stride = product->x_stride,
                             .w = weight_at(product, row, k),
                             .w_dtype = product->w_dtype,
                             .w_stride = product->n_k,
                             .n_tokens = job->p->n_tokens,
                             .n_rows = n_rows,
                             .k = hr_min_u64(k_step, product->n_k - k),
                             .accumulate = accumulate || k > 0};

        if (product->convert_w) {
            convert_rows(job->cpu, thread, product, row, n_rows, k, dot.k);
            dot.w = thread->w;
            dot.w_dtype = product->x_dtype;
            dot.w_stride = HR_TILE_STRIDE;
        }
        job->cpu->kernels->dot(&dot);
    }
}

static void dot_task(void *ctx, size_t task_idx, unsigned thread_idx)
{
    const struct dot_job *job = (const struct dot_job *) ctx;
    const struct hr_linear *p = job->p;
    const struct hr_cpu_thread *thread = &job->cpu->threads[thread_idx];
    const size_t row = task_idx * DOT_ROWS, n_rows = hr_min_u64(DOT_ROWS, p->n_out - row);

    for (size_t i = 0; i <= p->n_low; i++) {
        struct product product = product_of(p, i);

        product.bf16 = product.x_dtype == HR_DTYPE_BF16; /* the kernel takes it on any CPU */
        product.convert_w = product.w_dtype != HR_DTYPE_BF16 && product.w_dtype != product.x_dtype;
        dot_product(job, thread, &product, row, n_rows, i > 0);
        if (i == 0)
            scale_tile(job->cpu, p, thread->tile, DOT_ROWS, p->n_tokens, row, n_rows);
    }
    finish_tile(job->cpu, p, thread->tile, DOT_ROWS, 0, p->n_tokens, row, n_rows);
}

static int linear_dot(const struct hr_cpu *cpu, const struct hr_linear *p)
{
    struct dot_job job = {.cpu = cpu, .p = p};

    return hr_pool_run(cpu->pool, dot_task, &job, (size_t) hr_div_ceil(p->n_out, DOT_ROWS));
}

/* ---- tiles -------------------------------------------------------------------------- */

struct tile_job {
    const struct hr_cpu *cpu;
    const struct hr_linear *p;
    struct hr_cpu_result *result;
    size_t n_tokens, n_rows; /* of a tile */
    size_t n_token_tiles;
    struct product products[PRODUCTS_MAX]; /* 1 + p->n_low */
};

/* Where a tile lies in the layer. */
struct tile {
    size_t t, n_tokens;
    size_t row, n_rows;
};

static int run_piece(const struct tile_job *job, const struct product *product,
                     const struct hr_gemm_op *op, unsigned thread_idx, const struct tile *tile,
                     size_t k, size_t n_k)
{
    const struct hr_cpu_thread *thread = &job->cpu->threads[thread_idx];

    if (product->convert_w)
        convert_rows(job->cpu, thread, product, tile->row, tile->n_rows, k, n_k);
    for (size_t i = 0; product->convert_x && i < tile->n_tokens; i++)
        job->cpu->kernels->to_f32(thread->x + i * HR_TILE_STRIDE, x_at(product, tile->t + i, k),
                                  product->x_dtype, n_k);
    return hr_gemm_run(
        job->cpu->gemm, op, thread_idx, product->convert_x ? thread->x : x_at(product, tile->t, k),
        product->convert_w ? thread->w : weight_at(product, tile->row, k), thread->tile);
}

static int run_product(const struct tile_job *job, const struct product *product,
                       unsigned thread_idx, const struct tile *tile)
{
    const struct hr_gemm_op *const *ops =
        product->op[tile->n_tokens < job->n_tokens][tile->n_rows < job->n_rows];
    int rc = 0;

    for (size_t k = 0; k < product->n_k && rc == 0; k += product->k_piece) {
        const size_t n_k = hr_min_u64(product->k_piece, product->n_k - k);
        const int more = n_k < product->k_piece ? PIECE_LAST : PIECE_MORE;

        rc = run_piece(job, product, ops[k == 0 ? PIECE_FIRST : more], thread_idx, tile, k, n_k);
    }
    return rc;
}

static void tile_task(void *ctx, size_t task_idx, unsigned thread_idx)
{
    const struct tile_job *job = (const struct tile_job *) ctx;
    const struct hr_linear *p = job->p;
    float *y = job->cpu->threads[thread_idx].tile;
    struct tile tile = {.t = task_idx % job->n_token_tiles * job->n_tokens,
                        .row = task_idx / job->n_token_tiles * job->n_rows};
    int rc = 0;

    tile.n_tokens = hr_min_u64(job->n_tokens, p->n_tokens - tile.t);
    tile.n_rows = hr_min_u64(job->n_rows, p->n_out - tile.row);
    for (size_t i = 0; i <= p->n_low && rc == 0; i++) {
        rc = run_product(job, &job->products[i], thread_idx, &tile);
        if (i == 0)
            scale_tile(job->cpu, p, y, job->n_rows, tile.n_tokens, tile.row, tile.n_rows);
    }
    hr_cpu_fail(job->result, rc);
    if (rc == 0)
        finish_tile(job->cpu, p, y, job->n_rows, tile.t, tile.n_tokens, tile.row, tile.n_rows);
}

/* How a product is multiplied. */
static void plan_product(const struct hr_cpu *cpu, struct product *product)
{
    product->bf16 = product->x_dtype == HR_DTYPE_BF16 && cpu->has_bf16;
    product->convert_x = product->x_dtype == HR_DTYPE_BF16 && !product->bf16;
    /* f32 weights that meet x in bf16 must be rounded, even for a product in f32 */
    product->convert_w =
        product->w_dtype != (product->bf16 ? HR_DTYPE_BF16 : HR_DTYPE_F32) || product->convert_x;
    product->k_piece = product->convert_x || product->convert_w
                           ? hr_min_u64(HR_TILE_K, product->n_k)
                           : product->n_k;
}

/* The multiplications of one product for one size of tile. */
static int prepare_product(const struct tile_job *job, struct product *product, bool accumulate,
                           const struct hr_gemm_op **ops, size_t n_tokens, size_t n_rows)
{
    struct hr_gemm_shape shape = {.m = n_tokens,
                                  .n = n_rows,
                                  .k = product->k_piece,
                                  .a_stride =
                                      product->convert_x ? HR_TILE_STRIDE : product->x_stride,
                                  .b_stride = product->convert_w ? HR_TILE_STRIDE : product->n_k,
                                  .c_stride = job->n_rows,
                                  .b_rows = true,
                                  .accumulate = accumulate,
                                  .bf16 = product->bf16};
    int rc = hr_gemm_get(job->cpu->gemm, &ops[PIECE_FIRST], &shape);

    shape.accumulate = true;
    if (rc == 0 && product->n_k >= 2 * product->k_piece)
        rc = hr_gemm_get(job->cpu->gemm, &ops[PIECE_MORE], &shape);
    shape.k = product->n_k % product->k_piece;
    if (rc == 0 && shape.k > 0)
        rc = hr_gemm_get(job->cpu->gemm, &ops[PIECE_LAST], &shape);
    return rc;
}

/* For the sizes of tile that occur: whole ones, and what is left at the ends. */
static int prepare(struct tile_job *job)
{
    const struct hr_linear *p = job->p;
    int rc = 0;

    hr_gemm_begin(job->cpu->gemm, (1 + p->n_low) * 2 * 2 * N_PIECES);
    for (size_t i = 0; i < 4 * (1 + p->n_low) && rc == 0; i++) {
        struct product *product = &job->products[i / 4];
        const size_t n_tokens = i & 1 ? p->n_tokens % job->n_tokens : job->n_tokens;
        const size_t n_rows = i & 2 ? p->n_out % job->n_rows : job->n_rows;

        if (n_tokens > 0 && n_rows > 0)
            rc = prepare_product(job, product, i >= 4, product->op[i & 1][i >> 1 & 1], n_tokens,
                                 n_rows);
    }
    return rc;
}

static size_t rows_of_tile(const struct hr_linear *p, const struct product *own)
{
    size_t n_rows = HR_TILE_ROWS;

    if (own->convert_x)
        n_rows = HR_TILE_ROWS_MAX;
    else if (p->n_tokens <= HR_TILE_TOKENS && !own->convert_w)
        n_rows = 64;
    return (size_t) hr_min_u64(p->n_out, n_rows);
}

static int linear_tiles(const struct hr_cpu *cpu, const struct hr_linear *p)
{
    struct hr_cpu_result result = {0};
    struct tile_job job = {.cpu = cpu, .p = p, .result = &result};
    int rc;

    for (size_t i = 0; i <= p->n_low; i++) {
        job.products[i] = product_of(p, i);
        plan_product(cpu, &job.products[i]);
    }
    job.n_tokens = hr_cpu_tile(p->n_tokens, HR_TILE_TOKENS);
    job.n_rows = rows_of_tile(p, &job.products[0]);
    job.n_token_tiles = (size_t) hr_div_ceil(p->n_tokens, job.n_tokens);

    rc = prepare(&job);
    if (rc < 0)
        return rc;
    return hr_cpu_run(cpu, tile_task, &job,
                      job.n_token_tiles * (size_t) hr_div_ceil(p->n_out, job.n_rows), &result);
}

int hr_cpu_linear(struct hr_gpu *gpu, const struct hr_linear *p)
{
    const struct hr_cpu *cpu = (const struct hr_cpu *) gpu;

    return p->n_tokens <= HR_DOT_TOKENS_MAX ? linear_dot(cpu, p) : linear_tiles(cpu, p);
}
