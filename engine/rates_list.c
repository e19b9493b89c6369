/* SPDX-License-Identifier: Apache-2.0 */
/* rates_list.c -- what is measured of a device, with which operands.
 *
 * Products have the sizes of the 20B model's layers, for a picture of so many tokens. Weights of
 * other dtypes than the product's are converted by the device inside the product; with few tokens
 * that is most of the work, so their rate is that of bytes of weights through such a product, next
 * to the same without a conversion.
 */
#include <stdio.h>
#include <string.h>

#include "engine/device_rates.h"

enum {
    WIDTH = 3072, /* of the 20B model, and its MLPs */
    MLP = 4 * WIDTH,
    MODULATION = 6 * WIDTH,
    TEXT_TOKENS = 100,
    FEW_TOKENS = 16, /* more than those that a device treats one by one */
    SMALL_TOKENS = 256 + 5,
};
_Static_assert((int) FEW_TOKENS > (int) HR_TOKENS_INDEPENDENT_MAX, "a product with a conversion");

/* ---- operands ----------------------------------------------------------------------------- */

struct operand_bytes {
    uint64_t x, w, y;
};

static struct operand_bytes operand_bytes(enum hr_dtype act, const struct hr_rates_sizes *sizes)
{
    const uint64_t each = hr_dtype_bytes(act), T = sizes->n_tokens, all = T + TEXT_TOKENS;
    const uint64_t square = (uint64_t) sizes->side * sizes->side * each;

    return (struct operand_bytes){
        .x = hr_max_u64(square, hr_max_u64(T * MLP, 3 * all * WIDTH) * each),
        .w = hr_max_u64(square, (uint64_t) MLP * WIDTH * sizeof(float)),
        .y = hr_max_u64(square, hr_max_u64(T * MLP * each, all * WIDTH * sizeof(float))),
    };
}

uint64_t hr_rates_arena_bytes(enum hr_dtype act, const struct hr_rates_sizes *sizes)
{
    const struct operand_bytes bytes = operand_bytes(act, sizes);

    return hr_gpu_arena_bytes(bytes.x) + hr_gpu_arena_bytes(bytes.w) + hr_gpu_arena_bytes(bytes.y) +
           hr_gpu_arena_bytes(WIDTH * sizeof(float));
}

void hr_rates_take_operands(struct hr_rates *rates)
{
    const struct operand_bytes bytes = operand_bytes(rates->act, &rates->sizes);

    rates->x = hr_gpu_alloc(rates->gpu, bytes.x);
    rates->w = hr_gpu_alloc(rates->gpu, bytes.w);
    rates->y = hr_gpu_alloc(rates->gpu, bytes.y);
    rates->gate = hr_gpu_alloc(rates->gpu, WIDTH * sizeof(float)); /* 0: nothing adds up */
}

static int fill(const struct hr_rates *rates, unsigned char *dst, uint64_t n_bytes)
{
    int r = 0;

    for (uint64_t at = 0; r == 0 && at < n_bytes; at += HR_RATES_BAND_BYTES) {
        r = hr_rates_go_on(rates);
        if (r == 0)
            r = hr_rates_device_failed(
                rates, hr_gpu_upload(rates->gpu, dst + at, rates->bands,
                                     (size_t) hr_min_u64(HR_RATES_BAND_BYTES, n_bytes - at)));
    }
    return r;
}

int hr_rates_fill(const struct hr_rates *rates)
{
    const struct operand_bytes bytes = operand_bytes(rates->act, &rates->sizes);
    uint64_t state = 88172645463325252u; /* xorshift64 */
    int r;

    for (size_t i = 0; i < rates->bands_bytes; i += sizeof(state)) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        /* Each byte 0x3. or 0xb.: small, finite and not subnormal in all dtypes. */
        const uint64_t bits = (state & 0x8f8f8f8f8f8f8f8fu) | 0x3030303030303030u;

        memcpy(rates->bands + i, &bits, sizeof(bits));
    }
    r = fill(rates, rates->x, bytes.x);
    return r == 0 ? fill(rates, rates->w, bytes.w) : r;
}

/* ---- work --------------------------------------------------------------------------------- */

struct shape {
    const char *name;
    uint32_t n_tokens, n_in, n_out;
    enum hr_dtype x_dtype, w_dtype;
    enum hr_epilogue epilogue;
};

static double operations(const struct shape *s)
{
    return 2.0 * (double) s->n_tokens * (double) s->n_in * (double) s->n_out;
}

static uint64_t weight_bytes(const struct shape *s)
{
    return (uint64_t) s->n_in * s->n_out * hr_dtype_bytes(s->w_dtype);
}

/* @param amount  of what the rate counts in one of them */
static struct hr_work linear(const struct hr_rates *rates, const struct shape *s, double amount)
{
    const bool is_residual = s->epilogue == HR_EPILOGUE_GATED_RESIDUAL;
    const uint64_t held = operand_bytes(rates->act, &rates->sizes).w;

    return (struct hr_work){
        .kind = HR_WORK_LINEAR,
        .amount = amount,
        .w_step_bytes = weight_bytes(s),
        .n_w = held / weight_bytes(s),
        .linear = {.x = rates->x,
                   .x_dtype = s->x_dtype,
                   .x_stride = s->n_in,
                   .w = rates->w,
                   .w_dtype = s->w_dtype,
                   .n_tokens = s->n_tokens,
                   .n_in = s->n_in,
                   .n_out = s->n_out,
                   .epilogue = s->epilogue,
                   .gate = rates->gate,
                   .gate_split = s->n_tokens,
                   .out = rates->y,
                   .out_dtype = is_residual ? HR_DTYPE_F32 : s->x_dtype,
                   .out_stride = s->n_out},
    };
}

static struct hr_work attention(const struct hr_rates *rates, uint64_t n_tokens)
{
    const uint64_t bytes = n_tokens * WIDTH * hr_dtype_bytes(rates->act);

    return (struct hr_work){
        .kind = HR_WORK_ATTENTION,
        .amount = 4.0 * (double) n_tokens * (double) n_tokens * WIDTH,
        .attention = {.out = rates->y,
                      .q = rates->x,
                      .k = rates->x + bytes,
                      .v = rates->x + 2 * bytes,
                      .n_q = n_tokens,
                      .n_k = n_tokens,
                      .n_heads = WIDTH / HR_HEAD_DIM},
    };
}

struct hr_work hr_rates_square(const struct hr_rates *rates, uint32_t side)
{
    const struct shape s = {"", side, side, side, rates->act, rates->act, HR_EPILOGUE_STORE};

    return linear(rates, &s, operations(&s));
}

/* ---- the list ----------------------------------------------------------------------------- */

struct list {
    const struct hr_rates *rates;
    struct hr_rate *rate;
    struct hr_work *work;
    uint32_t n;
};

static struct hr_rate *add(struct list *list, const struct hr_work *work, enum hr_rate_unit unit,
                           int32_t share_of)
{
    struct hr_rate *rate = &list->rate[list->n];

    hr_assert(list->n < HR_RATES_MAX);
    list->work[list->n++] = *work;
    *rate = (struct hr_rate){.unit = unit, .share_of = share_of};
    return rate;
}

static void add_copies_and_disk(struct list *list)
{
    static const struct {
        const char *name;
        struct hr_work work;
        int32_t share_of;
    } all[] = {
        {"copy from ordinary memory", {.kind = HR_WORK_COPY, .amount = HR_RATES_BAND_BYTES}, 1},
        {"copy from registered memory",
         {.kind = HR_WORK_REGISTERED, .amount = HR_RATES_BAND_BYTES},
         -1},
        {"copy while the disk reads", {.kind = HR_WORK_BESIDE}, 1},
        {"disk alone", {.kind = HR_WORK_DISK}, -1},
        {"disk while bands are copied", {.kind = HR_WORK_DISK_BESIDE}, 3},
        {"disk past the host's memory", {.kind = HR_WORK_DISK_PAST}, 3},
    };
    const size_t n = HR_ARRAY_SIZE(all) - (list->rates->past ? 0 : 1);

    for (size_t i = 0; i < n; i++) {
        struct hr_rate *rate = add(list, &all[i].work, HR_RATE_GBPS, all[i].share_of);
        const bool is_copy = all[i].work.kind != HR_WORK_DISK;

        snprintf(rate->name, sizeof(rate->name), "%s", all[i].name);
        if (is_copy && !list->rates->has_copies)
            rate->not_measured = "none, computes on the ring";
        else if (all[i].work.kind == HR_WORK_REGISTERED && !list->rates->is_registered)
            rate->not_measured = "memory cannot be registered with it";
    }
}

/* First the dtype of the product itself, with which the others are compared. */
static void add_weights(struct list *list)
{
    static const enum hr_dtype dtypes[] = {HR_DTYPE_F8_E4M3, HR_DTYPE_F8_E5M2, HR_DTYPE_F16,
                                           HR_DTYPE_BF16, HR_DTYPE_F32};
    const enum hr_dtype act = list->rates->act;
    const int32_t own = (int32_t) list->n;

    for (size_t i = 0; i <= HR_ARRAY_SIZE(dtypes); i++) {
        const enum hr_dtype dtype = i == 0 ? act : dtypes[i - 1];
        const struct shape s = {"", FEW_TOKENS, WIDTH, MLP, act, dtype, HR_EPILOGUE_STORE};
        const struct hr_work work = linear(list->rates, &s, (double) weight_bytes(&s));

        if (i > 0 && dtype == act)
            continue;
        struct hr_rate *rate = add(list, &work, HR_RATE_GBPS, i == 0 ? -1 : own);

        snprintf(rate->name, sizeof(rate->name), "weights %s to %s, %u tokens",
                 hr_dtype_name(dtype), hr_dtype_name(act), s.n_tokens);
    }
}

static void add_operations(struct list *list)
{
    const enum hr_dtype act = list->rates->act;
    const uint32_t T = list->rates->sizes.n_tokens, side = list->rates->sizes.side;
    const struct shape shapes[] = {
        {"square", side, side, side, act, act, HR_EPILOGUE_STORE},
        {"q, k, v", T, WIDTH, WIDTH, act, act, HR_EPILOGUE_STORE},
        {"MLP up", T, WIDTH, MLP, act, act, HR_EPILOGUE_GELU_TANH},
        {"MLP down", T, MLP, WIDTH, act, act, HR_EPILOGUE_GATED_RESIDUAL},
        {"text", TEXT_TOKENS, WIDTH, WIDTH, act, act, HR_EPILOGUE_STORE},
        /* In f32 in every precision, and bound by its weights. */
        {"modulation", 1, WIDTH, MODULATION, HR_DTYPE_F32, HR_DTYPE_BF16, HR_EPILOGUE_STORE},
    };
    const uint32_t n_attended[] = {T + TEXT_TOKENS, SMALL_TOKENS};
    const int32_t square = (int32_t) list->n;

    for (size_t i = 0; i < HR_ARRAY_SIZE(shapes); i++) {
        const struct shape *s = &shapes[i];
        const bool by_bytes = s->n_tokens == 1;
        const struct hr_work work =
            linear(list->rates, s, by_bytes ? (double) weight_bytes(s) : operations(s));
        struct hr_rate *rate = add(list, &work, by_bytes ? HR_RATE_GBPS : HR_RATE_TFLOPS,
                                   i == 0 || by_bytes ? -1 : square);

        snprintf(rate->name, sizeof(rate->name), "%s, %u x %u -> %u", s->name, s->n_tokens, s->n_in,
                 s->n_out);
    }
    for (size_t i = T > SMALL_TOKENS ? 0 : 1; i < HR_ARRAY_SIZE(n_attended); i++) {
        const struct hr_work work = attention(list->rates, n_attended[i]);
        struct hr_rate *rate = add(list, &work, HR_RATE_TFLOPS, square);

        snprintf(rate->name, sizeof(rate->name), "attention, %u tokens", n_attended[i]);
    }
}

uint32_t hr_rates_list(const struct hr_rates *rates, struct hr_rate *ret_rates,
                       struct hr_work *ret_work)
{
    struct list list = {rates, ret_rates, ret_work, 0};

    add_copies_and_disk(&list);
    add_weights(&list);
    add_operations(&list);
    return list.n;
}
