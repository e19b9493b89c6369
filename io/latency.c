/* SPDX-License-Identifier: Apache-2.0 */
/* latency.c -- how long reads took, in a histogram of fixed size: eight steps to each power of two,
 * so that a percentile is right within 6 %. */
#include "io/reader.h"

enum { STEP_BITS = 3 };

static uint32_t bucket_of(uint64_t ns)
{
    if (ns < 1u << STEP_BITS)
        return (uint32_t) ns;
    const uint32_t exponent = 63 - (uint32_t) __builtin_clzll(ns);
    const uint32_t step = (uint32_t) (ns >> (exponent - STEP_BITS)) & ((1u << STEP_BITS) - 1);

    return ((exponent - STEP_BITS + 1) << STEP_BITS) + step;
}

/* The middle of a bucket. */
static uint64_t value_of(uint32_t bucket)
{
    const uint32_t exponent = bucket >> STEP_BITS, step = bucket & ((1u << STEP_BITS) - 1);

    if (exponent == 0)
        return step;
    return (((UINT64_C(1) << STEP_BITS) + step) << (exponent - 1)) +
           (UINT64_C(1) << (exponent - 1)) / 2;
}

void hr_latency_add(struct hr_latencies *latencies, uint64_t ns)
{
    atomic_uint_fast64_t *count = &latencies->counts[bucket_of(ns)];

    /* One thread writes. */
    atomic_store_explicit(count, atomic_load_explicit(count, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

uint64_t hr_latency_percentile(const struct hr_latencies *latencies, double share)
{
    uint64_t total = 0, below = 0;

    for (uint32_t i = 0; i < HR_LATENCY_BUCKETS; i++)
        total += atomic_load_explicit(&latencies->counts[i], memory_order_relaxed);
    for (uint32_t i = 0; i < HR_LATENCY_BUCKETS; i++) {
        below += atomic_load_explicit(&latencies->counts[i], memory_order_relaxed);
        if (below > 0 && (double) below >= share * (double) total)
            return value_of(i);
    }
    return 0;
}
