/* SPDX-License-Identifier: Apache-2.0 */
/* synth_values.c -- see synth_values.h.
 *
 * Values are made in blocks of a fixed count, which lets the compiler use whole vectors without
 * tails; the block is compiled once for each instruction set, with the same bits from each. */
#include <math.h>
#include <string.h>

#include "engine/files.h"
#include "engine/synth_values.h"
#include "formats/formats.h"

enum { BLOCK = 512 };

typedef void block_fn(float *restrict dst, const struct hr_synth_rule *rule, uint32_t first);

static inline __attribute__((always_inline)) void
block_body(float *restrict dst, const struct hr_synth_rule *rule, uint32_t first)
{
    const uint32_t base = rule->seed + 0x9E3779B9u * (first + 1);
    const double scale = rule->scale, offset = rule->offset;

    for (uint32_t i = 0; i < BLOCK; i++) {
        uint32_t h = base + 0x9E3779B9u * i;

        h ^= h >> 16;
        h *= 0x85ebca6bu;
        h ^= h >> 13;
        h *= 0xc2b2ae35u;
        h ^= h >> 16;
        dst[i] = (float) (offset + scale * ((double) (int32_t) (h >> 8) * 0x1p-23 - 1));
    }
}

static void block_plain(float *restrict dst, const struct hr_synth_rule *rule, uint32_t first)
{
    block_body(dst, rule, first);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void
block_avx2(float *restrict dst, const struct hr_synth_rule *rule, uint32_t first)
{
    block_body(dst, rule, first);
}

__attribute__((target("avx512f,avx512dq,avx512vl"))) static void
block_avx512(float *restrict dst, const struct hr_synth_rule *rule, uint32_t first)
{
    block_body(dst, rule, first);
}
#endif

static block_fn *choose_block(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return block_avx512;
    if (__builtin_cpu_supports("avx2"))
        return block_avx2;
#endif
    return block_plain;
}

static uint32_t fnv1a(const char *text)
{
    uint32_t h = 0x811c9dc5u;

    for (; *text; text++)
        h = (h ^ (unsigned char) *text) * 0x01000193u;
    return h;
}

struct hr_synth_rule hr_synth_rule(const char *name, uint32_t rank, uint64_t n_in)
{
    struct hr_synth_rule rule = {.seed = fnv1a(name)};
    const bool is_bias = hr_has_suffix(name, ".bias");
    const bool is_modulation =
        hr_has_suffix(name, is_bias ? "_mod.1.bias" : "_mod.1.weight") ||
        !strcmp(name, is_bias ? "norm_out.linear.bias" : "norm_out.linear.weight");

    if (is_bias)
        rule.scale = is_modulation ? 0.5 : 0.1;
    else if (!strcmp(name, "time_text_embed.addition_t_embedding.weight"))
        rule.scale = 0.5;
    else if (rank >= 2)
        rule.scale = (is_modulation ? 0.5 : 1) * sqrt(3.0 / (double) n_in);
    else { /* gain of a norm */
        rule.scale = 0.25;
        rule.offset = 1;
    }
    return rule;
}

/* n <= BLOCK values to their place. The values are finite, which spares the test for NaN. */
static void store(void *dst, const float *values, enum hr_dtype dtype, size_t n)
{
    uint16_t narrow[BLOCK];

    if (dtype == HR_DTYPE_F32) {
        memcpy(dst, values, n * sizeof(*values));
        return;
    }
    if (dtype != HR_DTYPE_BF16) {
        hr_dtype_from_f32(dst, values, dtype, n);
        return;
    }
    for (size_t i = 0; i < BLOCK; i++) {
        uint32_t bits;

        memcpy(&bits, &values[i], sizeof(bits));
        narrow[i] = (uint16_t) ((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
    }
    memcpy(dst, narrow, n * sizeof(*narrow));
}

void hr_synth_fill(void *dst, enum hr_dtype dtype, const struct hr_synth_rule *rule, uint64_t first,
                   uint64_t n)
{
    const size_t element_bytes = hr_dtype_bits(dtype) / 8;
    block_fn *const block = choose_block();
    float values[BLOCK];

    hr_assert(hr_dtype_is_computable(dtype));
    for (uint64_t done = 0; done < n; done += BLOCK) {
        block(values, rule, (uint32_t) (first + done));
        store((char *) dst + done * element_bytes, values, dtype, hr_min_u64(BLOCK, n - done));
    }
}

void hr_synth_values(float *dst, const char *name, uint64_t first, uint64_t n, uint32_t rank,
                     uint64_t n_in, double scale)
{
    struct hr_synth_rule rule = hr_synth_rule(name, rank, n_in);

    if (scale != 0) {
        rule.scale = scale;
        rule.offset = 0;
    }
    hr_synth_fill(dst, HR_DTYPE_F32, &rule, first, n);
}
