/* SPDX-License-Identifier: Apache-2.0 */
/* bench_math.c -- medians and bootstrap intervals. */
#include <stdlib.h>
#include <string.h>

#include "cli/bench.h"

enum { RESAMPLES = 2000, VALUES_MAX = 1024 };

static int compare(const void *a, const void *b)
{
    const double x = *(const double *) a, y = *(const double *) b;

    return (x > y) - (x < y);
}

/* Sorts the values. */
static double median_of(double *values, uint32_t n)
{
    qsort(values, n, sizeof(values[0]), compare);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

double bench_median(const double *values, uint32_t n)
{
    double sorted[VALUES_MAX];

    n = n < VALUES_MAX ? n : VALUES_MAX;
    memcpy(sorted, values, n * sizeof(sorted[0]));
    return median_of(sorted, n);
}

/* B. Efron, "Bootstrap methods: another look at the jackknife", 1979: percentile interval. */
struct bench_interval bench_bootstrap(const double *values, uint32_t n)
{
    static double medians[RESAMPLES];
    uint64_t random = 0x9e3779b97f4a7c15u;
    double resample[VALUES_MAX];

    n = n < VALUES_MAX ? n : VALUES_MAX;
    for (int i = 0; i < RESAMPLES; i++) {
        for (uint32_t j = 0; j < n; j++) {
            random ^= random << 13; /* xorshift64, Marsaglia 2003 */
            random ^= random >> 7;
            random ^= random << 17;
            resample[j] = values[random % n];
        }
        medians[i] = median_of(resample, n);
    }
    qsort(medians, RESAMPLES, sizeof(medians[0]), compare);
    return (struct bench_interval){
        .median = bench_median(values, n),
        .low = medians[RESAMPLES * 25 / 1000],
        .high = medians[RESAMPLES * 975 / 1000 - 1],
    };
}
