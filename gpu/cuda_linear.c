/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_linear.c -- linear layers of the CUDA device.
 *
 * A layer is cut into parts of rows of w and of tokens whose sums fit into a buffer that stays in
 * the cache. For each part the product is stored there in f32, scales and low-rank terms are
 * applied to the sums, and one kernel does bias, activation, gate and rounding. cuBLASLt's own
 * epilogues are not used: its GELU is not held to an accuracy, and with one way for all layers a
 * term of zeros or a scale of one changes no bit.
 *
 * A few tokens: a kernel of our own (cuda_dot.cu), which reads w as it lies. More: cuBLASLt, for
 * which w is converted and x packed where dtype, address or stride are not what it wants; so the
 * product never depends on w's. An x that must be packed makes for smaller parts.
 */
#include <errno.h>

#include "gpu/cuda.h"

enum {
    ROWS_MAX = 65536,
    ROWS_MIN = 512, /* of a part of many tokens, before tokens are cut */
    ROWS_STEP = 128,
    CUT_ALIGN = 64,
};

_Static_assert((int) HR_CUDA_EPILOGUE_STORE == (int) HR_EPILOGUE_STORE &&
                   (int) HR_CUDA_EPILOGUE_GELU_TANH == (int) HR_EPILOGUE_GELU_TANH &&
                   (int) HR_CUDA_EPILOGUE_QUICK_GELU == (int) HR_EPILOGUE_QUICK_GELU &&
                   (int) HR_CUDA_EPILOGUE_SILU == (int) HR_EPILOGUE_SILU &&
                   (int) HR_CUDA_EPILOGUE_GATED_RESIDUAL == (int) HR_EPILOGUE_GATED_RESIDUAL,
               "one numbering of epilogues");

/* sum_k x[t,k] w[n,k] as a part of the layer. */
struct product {
    const unsigned char *x;
    bool is_bf16; /* x, and what w is converted to */
    size_t x_stride;
    const unsigned char *w; /* [n_out, n_in] dense */
    enum hr_dtype w_dtype;
    size_t n_in;
};

/* Tokens t .. t + n_tokens - 1 and rows row .. row + n_rows - 1. */
struct part {
    size_t t, n_tokens, row, n_rows;
    size_t sums_stride;
};

/* The i-th part of the sums: the layer's own, then its low-rank terms. */
static struct product product_of(const struct hr_linear *p, size_t i)
{
    if (i == 0)
        return (struct product){.x = p->x,
                                .is_bf16 = p->x_dtype == HR_DTYPE_BF16,
                                .x_stride = p->x_stride,
                                .w = p->w,
                                .w_dtype = p->w_dtype,
                                .n_in = p->n_in};
    const struct hr_low_rank *low = &p->low[i - 1];

    return (struct product){.x = (const unsigned char *) low->t,
                            .x_stride = low->rank,
                            .w = low->b,
                            .w_dtype = low->b_dtype,
                            .n_in = low->rank};
}

static size_t value_bytes(const struct product *product)
{
    return product->is_bf16 ? 2 : 4;
}

/* n_in with the zeros that make rows whole multiples of what cuBLASLt wants. */
static size_t padded(const struct product *product)
{
    return (size_t) hr_align_up(product->n_in, HR_LT_ALIGN / value_bytes(product));
}

static bool fits_as_it_lies(const struct product *product, const void *data, size_t stride)
{
    return padded(product) == product->n_in && (uintptr_t) data % HR_LT_ALIGN == 0 &&
           stride * value_bytes(product) % HR_LT_ALIGN == 0;
}

static bool x_fits(const struct product *product)
{
    return fits_as_it_lies(product, product->x, product->x_stride);
}

static bool w_fits(const struct product *product)
{
    return product->w_dtype == (product->is_bf16 ? HR_DTYPE_BF16 : HR_DTYPE_F32) &&
           fits_as_it_lies(product, product->w, product->n_in);
}

/* About equal pieces of n, at most `max` each (at least 1), multiples of CUT_ALIGN where there are
 * several and `max` allows. */
static size_t cut(size_t n, size_t max)
{
    const size_t step = max >= CUT_ALIGN ? CUT_ALIGN : 1;
    const size_t most = (size_t) hr_align_down(max, step);

    if (n <= max)
        return n;
    return (size_t) hr_align_up(hr_div_ceil(n, hr_div_ceil(n, most)), step);
}

/* ---- a few tokens --------------------------------------------------------------------------- */

static int dot(const struct hr_cuda *cuda, const struct product *product, const struct part *part,
               bool accumulate)
{
    const struct hr_cuda_dot p = {
        .y = cuda->sums,
        .y_stride = part->sums_stride,
        .x = product->x,
        .x_is_bf16 = product->is_bf16,
        .x_stride = product->x_stride,
        .w = product->w + part->row * product->n_in * hr_dtype_bytes(product->w_dtype),
        .w_dtype = hr_cuda_dtype_of(product->w_dtype),
        .n_tokens = part->n_tokens,
        .n_rows = part->n_rows,
        .n_in = product->n_in,
        .accumulate = accumulate,
    };

    return hr_cuda_check(hr_cuda_dot(&p, cuda->computes), "product");
}

/* ---- more ----------------------------------------------------------------------------------- */

/* The part's rows of w as cuBLASLt wants them, converted into `buffer` if need be. */
static int prepare_w(const struct hr_cuda *cuda, const struct product *product,
                     const struct part *part, void *buffer, const void **ret_w)
{
    const unsigned char *w =
        product->w + part->row * product->n_in * hr_dtype_bytes(product->w_dtype);
    const struct hr_cuda_cast cast = {
        .dst = buffer,
        .dst_is_bf16 = product->is_bf16,
        .dst_stride = padded(product),
        .n_pad = padded(product),
        .src = w,
        .src_dtype = hr_cuda_dtype_of(product->w_dtype),
        .src_stride = product->n_in,
        .n_rows = part->n_rows,
        .n_in = product->n_in,
    };

    *ret_w = w_fits(product) ? w : buffer;
    return w_fits(product) ? 0 : hr_cuda_check(hr_cuda_cast(&cast, cuda->computes), "conversion");
}

static int prepare_x(const struct hr_cuda *cuda, const struct product *product,
                     const struct part *part, const void **ret_x, size_t *ret_stride)
{
    const unsigned char *x = product->x + part->t * product->x_stride * value_bytes(product);
    const struct hr_cuda_cast cast = {
        .dst = cuda->packed,
        .dst_is_bf16 = product->is_bf16,
        .dst_stride = padded(product),
        .n_pad = padded(product),
        .src = x,
        .src_dtype = product->is_bf16 ? HR_CUDA_BF16 : HR_CUDA_F32,
        .src_stride = product->x_stride,
        .n_rows = part->n_tokens,
        .n_in = product->n_in,
    };

    *ret_x = x_fits(product) ? (const void *) x : cuda->packed;
    *ret_stride = x_fits(product) ? product->x_stride : padded(product);
    return x_fits(product) ? 0 : hr_cuda_check(hr_cuda_cast(&cast, cuda->computes), "conversion");
}

static int multiply(const struct hr_cuda *cuda, const struct product *product,
                    const struct part *part, const void *w, bool accumulate)
{
    struct hr_lt_product p = {
        .n_tokens = part->n_tokens,
        .n_out = part->n_rows,
        .n_in = padded(product),
        .w_stride = padded(product),
        .c_stride = part->sums_stride,
        .is_bf16 = product->is_bf16,
        .accumulate = accumulate,
    };
    const void *x;
    const int r = prepare_x(cuda, product, part, &x, &p.x_stride);

    if (r < 0)
        return r;
    return hr_lt_run(cuda->lt, &p, x, w, cuda->sums, cuda->computes);
}

/* ---- a layer -------------------------------------------------------------------------------- */

static int finish(const struct hr_cuda *cuda, const struct hr_linear *p, const struct part *part)
{
    const struct hr_cuda_epilogue epilogue = {
        .sums = cuda->sums,
        .sums_stride = part->sums_stride,
        .t_begin = part->t,
        .n_begin = part->row,
        .n_tokens = part->n_tokens,
        .n_out = part->n_rows,
        .w_scale = p->n_low > 0 ? NULL : p->w_scale, /* with terms it has been applied */
        .w_scale_stride = p->w_scale_stride,
        .bias = p->bias,
        .kind = (enum hr_cuda_epilogue_kind) p->epilogue,
        .out = p->out,
        .out_stride = p->out_stride,
        .out_is_bf16 = p->out_dtype == HR_DTYPE_BF16,
        .gate = p->gate,
        .gate_split = p->gate_split,
        .gate_stride = p->gate_stride,
    };

    return hr_cuda_check(hr_cuda_epilogue(&epilogue, cuda->computes), "epilogue");
}

/* w: the layer's own weight, prepared; NULL: a few tokens. */
static int run_part(const struct hr_cuda *cuda, const struct hr_linear *p, const struct part *part,
                    const void *w)
{
    const struct product own = product_of(p, 0);
    int r = hr_cuda_begin(cuda);

    if (r == 0)
        r = w ? multiply(cuda, &own, part, w, false) : dot(cuda, &own, part, false);
    if (r == 0 && p->n_low > 0 && p->w_scale)
        r = hr_cuda_check(hr_cuda_scale(cuda->sums, part->sums_stride, part->n_tokens, part->n_rows,
                                        p->w_scale + part->row * p->w_scale_stride,
                                        p->w_scale_stride, cuda->computes),
                          "scale");
    for (size_t i = 1; i <= p->n_low && r == 0; i++) {
        const struct product term = product_of(p, i);
        const void *b;

        if (!w) {
            r = dot(cuda, &term, part, true);
            continue;
        }
        r = prepare_w(cuda, &term, part, cuda->low, &b);
        if (r == 0)
            r = multiply(cuda, &term, part, b, true);
    }
    return r == 0 ? finish(cuda, p, part) : r;
}

/* Rows of w and tokens of a part. Of a few tokens all are in it; of more, too, where enough rows
 * still are: whole parts first and the rest last keep more of a GPU busy than equal ones, as a
 * product is computed in tiles, one for each multiprocessor at a time. @return 0, or -EINVAL: not
 * one row fits */
static int limits(const struct hr_linear *p, bool is_few, size_t *ret_rows, size_t *ret_tokens)
{
    const size_t sums = HR_CUDA_SUMS_BYTES / sizeof(float);
    size_t rows = is_few ? sums / HR_CUDA_FEW_TOKENS - HR_LT_ALIGN : ROWS_MAX;
    size_t tokens = SIZE_MAX;

    for (size_t i = 0; i <= p->n_low && !is_few; i++) {
        const struct product product = product_of(p, i);
        const size_t row_bytes = padded(&product) * value_bytes(&product);
        const size_t buffer = i == 0 ? HR_CUDA_CAST_BYTES : HR_CUDA_LOW_BYTES;

        rows = (size_t) hr_min_u64(rows, buffer / row_bytes);
        if (!x_fits(&product))
            tokens = (size_t) hr_min_u64(tokens, HR_CUDA_PACKED_BYTES / row_bytes);
    }
    if (rows == 0 || tokens == 0)
        return -EINVAL;
    const size_t rows_of_all = (size_t) hr_align_down(sums / p->n_tokens, ROWS_STEP);

    *ret_rows = cut(p->n_out, rows);
    if (!is_few && p->n_tokens <= tokens && rows_of_all >= ROWS_MIN)
        *ret_rows = (size_t) hr_min_u64(*ret_rows, rows_of_all);
    *ret_tokens =
        cut(p->n_tokens, (size_t) hr_min_u64(tokens, sums / (size_t) hr_align_up(*ret_rows, 4)));
    return 0;
}

int hr_cuda_op_linear(struct hr_gpu *gpu, const struct hr_linear *p)
{
    const struct hr_cuda *cuda = (const struct hr_cuda *) gpu;
    const bool is_few = p->n_tokens <= HR_TOKENS_INDEPENDENT_MAX;
    const struct product own = product_of(p, 0);
    size_t rows, tokens;
    int r = hr_cuda_begin(cuda);

    _Static_assert((int) HR_TOKENS_INDEPENDENT_MAX <= (int) HR_CUDA_FEW_TOKENS,
                   "hr_cuda_dot gives each token sums of its own");
    if (r == 0)
        r = limits(p, is_few, &rows, &tokens);
    for (size_t row = 0; r == 0 && row < p->n_out; row += rows) {
        struct part part = {.row = row, .n_rows = (size_t) hr_min_u64(rows, p->n_out - row)};
        const void *w = NULL;

        part.sums_stride = (size_t) hr_align_up(part.n_rows, 4);
        if (!is_few)
            r = prepare_w(cuda, &own, &part, cuda->cast, &w);
        for (part.t = 0; r == 0 && part.t < p->n_tokens; part.t += tokens) {
            part.n_tokens = (size_t) hr_min_u64(tokens, p->n_tokens - part.t);
            r = run_part(cuda, p, &part, w);
        }
    }
    return r;
}
