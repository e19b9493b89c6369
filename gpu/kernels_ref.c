/* SPDX-License-Identifier: Apache-2.0 */
/* kernels_ref.c -- every operation as its formula, in double precision: the specification.
 *
 * Never optimised, but that a linear layer's values are decoded once: what is fast is compared with
 * this. Rounding happens where gpu.h says so and nowhere else.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/kernels.h"

/* ---- dtypes ------------------------------------------------------------------------- */

/* The value of a binary format: 1 sign bit, n_exp of exponent, n_man of mantissa. */
static double decode(uint32_t bits, int n_exp, int n_man, bool has_inf)
{
    const int bias = (1 << (n_exp - 1)) - 1, exp_max = (1 << n_exp) - 1;
    const int exponent = (int) (bits >> n_man) & exp_max;
    const int mantissa = (int) bits & ((1 << n_man) - 1), man_max = (1 << n_man) - 1;
    const double sign = bits >> (n_exp + n_man) ? -1.0 : 1.0;

    if (has_inf && exponent == exp_max)
        return mantissa ? NAN : sign * INFINITY;
    if (!has_inf && exponent == exp_max && mantissa == man_max)
        return NAN;
    if (exponent == 0)
        return sign * ldexp(mantissa, 1 - bias - n_man);
    return sign * ldexp((1 << n_man) + mantissa, exponent - bias - n_man);
}

static double load(const void *src, enum hr_dtype dtype, size_t i)
{
    const unsigned char *p = (const unsigned char *) src + i * hr_dtype_bytes(dtype);
    uint16_t u16;
    float f32;

    switch (dtype) {
    case HR_DTYPE_F32:
        memcpy(&f32, p, sizeof(f32));
        return (double) f32;
    case HR_DTYPE_F16:
        memcpy(&u16, p, sizeof(u16));
        return decode(u16, 5, 10, true);
    case HR_DTYPE_BF16:
        memcpy(&u16, p, sizeof(u16));
        return decode(u16, 8, 7, true);
    case HR_DTYPE_F8_E4M3:
        return decode(*p, 4, 3, false);
    default:
        hr_assert(dtype == HR_DTYPE_F8_E5M2);
        return decode(*p, 5, 2, true);
    }
}

/* Nearest bf16, ties to even; the double is rounded once. */
static uint16_t round_bf16(double v)
{
    const uint16_t sign = signbit(v) ? 0x8000 : 0;
    int exponent;

    if (isnan(v))
        return 0x7fc0;
    if (isinf(v))
        return sign | 0x7f80;
    if (v == 0.0)
        return sign;
    frexp(v, &exponent); /* |v| = m 2^exponent, 0.5 <= m < 1 */
    exponent = exponent < -125 ? -125 : exponent;
    const double units = nearbyint(ldexp(fabs(v), 8 - exponent)); /* 128..256, less if subnormal */
    const uint32_t bits = (uint32_t) units + ((uint32_t) (exponent + 125) << 7);
    return sign | (uint16_t) (bits > 0x7f80 ? 0x7f80 : bits);
}

static void store(void *dst, enum hr_dtype dtype, size_t i, double v)
{
    if (dtype == HR_DTYPE_F32)
        ((float *) dst)[i] = (float) v;
    else
        ((uint16_t *) dst)[i] = round_bf16(v);
}

void hr_to_f32_ref(float *dst, const void *src, enum hr_dtype dtype, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = (float) load(src, dtype, i);
}

void hr_to_bf16_ref(uint16_t *dst, const void *src, enum hr_dtype dtype, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = round_bf16(load(src, dtype, i));
}

/* ---- linear ------------------------------------------------------------------------- */

static double cast(double v, enum hr_dtype dtype)
{
    uint16_t rounded;

    if (dtype == HR_DTYPE_F32)
        return (double) (float) v;
    rounded = round_bf16(v);
    return load(&rounded, HR_DTYPE_BF16, 0);
}

static double activation(enum hr_epilogue epilogue, double y)
{
    switch (epilogue) {
    case HR_EPILOGUE_GELU_TANH:
        return 0.5 * y * (1.0 + tanh(0.7978845608028654 * (y + 0.044715 * y * y * y)));
    case HR_EPILOGUE_QUICK_GELU:
        return y / (1.0 + exp(-1.702 * y));
    case HR_EPILOGUE_SILU:
        return y / (1.0 + exp(-y));
    default:
        return y;
    }
}

static double low_rank(const struct hr_low_rank *low, size_t t, size_t n)
{
    double y = 0.0;

    for (size_t r = 0; r < low->rank; r++)
        y += (double) low->t[t * low->rank + r] * load(low->b, low->b_dtype, n * low->rank + r);
    return y;
}

void hr_linear_ref(const struct hr_linear *p)
{
    double *x = malloc((p->n_tokens + 1) * p->n_in * sizeof(*x)), *w = x + p->n_tokens * p->n_in;

    hr_assert(x);
    for (size_t t = 0; t < p->n_tokens; t++)
        for (size_t k = 0; k < p->n_in; k++)
            x[t * p->n_in + k] = load(p->x, p->x_dtype, t * p->x_stride + k);
    for (size_t n = 0; n < p->n_out; n++) {
        for (size_t k = 0; k < p->n_in; k++)
            w[k] = cast(load(p->w, p->w_dtype, n * p->n_in + k), p->x_dtype);
        for (size_t t = 0; t < p->n_tokens; t++) {
            const size_t o = t * p->out_stride + n;
            double y = 0.0;

            for (size_t k = 0; k < p->n_in; k++)
                y += x[t * p->n_in + k] * w[k];
            if (p->w_scale)
                y *= (double) p->w_scale[n * p->w_scale_stride];
            for (size_t i = 0; i < p->n_low; i++)
                y += low_rank(&p->low[i], t, n);
            if (p->bias)
                y += (double) p->bias[n];
            y = activation(p->epilogue, y);
            if (p->epilogue == HR_EPILOGUE_GATED_RESIDUAL)
                y = (double) ((float *) p->out)[o] +
                    (double) p->gate[(t >= p->gate_split ? p->gate_stride : 0) + n] * y;
            store(p->out, p->out_dtype, o, y);
        }
    }
    free(x);
}

/* ---- the rest ----------------------------------------------------------------------- */

void hr_layernorm_modulate_ref(const struct hr_layernorm_modulate *p)
{
    for (size_t t = 0; t < p->n_tokens; t++) {
        const float *x = p->x + t * p->width;
        const size_t offset = t >= p->split ? p->stride : 0;
        double mean = 0.0, var = 0.0;

        for (size_t c = 0; c < p->width; c++)
            mean += (double) x[c] / (double) p->width;
        for (size_t c = 0; c < p->width; c++)
            var += ((double) x[c] - mean) * ((double) x[c] - mean) / (double) p->width;
        for (size_t c = 0; c < p->width; c++)
            store(p->out, p->out_dtype, t * p->width + c,
                  ((double) x[c] - mean) / sqrt(var + 1e-6) *
                          (1.0 + (double) p->scale[offset + c]) +
                      (double) p->shift[offset + c]);
    }
}

static double rms(const float *x, size_t n)
{
    double sum = 0.0;

    for (size_t i = 0; i < n; i++)
        sum += (double) x[i] * (double) x[i];
    return sqrt(sum / (double) n + 1e-6);
}

void hr_rmsnorm_ref(float *out, const float *x, const float *gain, size_t n_tokens, size_t width)
{
    for (size_t t = 0; t < n_tokens; t++) {
        const double r = rms(x + t * width, width);

        for (size_t c = 0; c < width; c++)
            out[t * width + c] = (float) ((double) x[t * width + c] / r * (double) gain[c]);
    }
}

void hr_qk_norm_rope_ref(const struct hr_qk_norm_rope *p, enum hr_dtype act)
{
    for (size_t t = 0; t < p->n_tokens; t++) {
        for (size_t head = 0; head < p->n_heads; head++) {
            const size_t at = (t * p->n_heads + head) * HR_HEAD_DIM;
            const double r = rms(p->x + at, HR_HEAD_DIM);

            for (size_t j = 0; j < HR_HEAD_DIM / 2; j++) {
                const double c = (double) p->cos_sin[(t * HR_HEAD_DIM / 2 + j) * 2];
                const double s = (double) p->cos_sin[(t * HR_HEAD_DIM / 2 + j) * 2 + 1];
                const double a = (double) p->x[at + 2 * j] / r * (double) p->gain[2 * j];
                const double b = (double) p->x[at + 2 * j + 1] / r * (double) p->gain[2 * j + 1];

                store(p->out, act, at + 2 * j, a * c - b * s);
                store(p->out, act, at + 2 * j + 1, a * s + b * c);
            }
        }
    }
}

/* One query and head: out[128]. */
static void attend(const struct hr_attention *p, enum hr_dtype act, size_t t, size_t head,
                   double *score)
{
    const size_t d = p->n_heads * HR_HEAD_DIM, at = head * HR_HEAD_DIM;
    double max = -INFINITY, sum = 0.0;

    for (size_t j = 0; j < p->n_k; j++) {
        score[j] = 0.0;
        for (size_t c = 0; c < HR_HEAD_DIM; c++)
            score[j] += load(p->q, act, t * d + at + c) * load(p->k, act, j * d + at + c);
        score[j] /= sqrt(HR_HEAD_DIM);
        max = fmax(max, score[j]);
    }
    for (size_t j = 0; j < p->n_k; j++) {
        score[j] = exp(score[j] - max);
        sum += score[j];
    }
    for (size_t c = 0; c < HR_HEAD_DIM; c++) {
        double o = 0.0;

        for (size_t j = 0; j < p->n_k; j++)
            o += score[j] / sum * load(p->v, act, j * d + at + c);
        store(p->out, act, t * d + at + c, o);
    }
}

void hr_attention_ref(const struct hr_attention *p, enum hr_dtype act)
{
    double *score = malloc(p->n_k * sizeof(*score));

    hr_assert(score);
    for (size_t t = 0; t < p->n_q; t++)
        for (size_t head = 0; head < p->n_heads; head++)
            attend(p, act, t, head, score);
    free(score);
}

bool hr_all_finite_ref(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return false;
    return true;
}

void hr_silu_ref(float *out, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (float) activation(HR_EPILOGUE_SILU, (double) x[i]);
}
