/* SPDX-License-Identifier: Apache-2.0 */
/* nearest.c -- which word was meant by a mistyped one. */
#include <string.h>

#include "cli/cli.h"

/* Levenshtein distance, of words up to 40 letters. */
static unsigned distance(const char *a, const char *b)
{
    enum { MAX = 40 };
    unsigned row[MAX + 1];
    const size_t n = strlen(a), m = strlen(b);

    if (n > MAX || m > MAX)
        return MAX;
    for (size_t j = 0; j <= m; j++)
        row[j] = (unsigned) j;
    for (size_t i = 1; i <= n; i++) {
        unsigned diagonal = row[0];

        row[0] = (unsigned) i;
        for (size_t j = 1; j <= m; j++) {
            const unsigned up = row[j];
            unsigned best = diagonal + (a[i - 1] != b[j - 1]);

            best = up + 1 < best ? up + 1 : best;
            best = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
            row[j] = best;
            diagonal = up;
        }
    }
    return row[m];
}

const char *cli_nearest(const char *word, const void *candidates, size_t n, size_t stride)
{
    const char *nearest = NULL;
    unsigned best = (unsigned) strlen(word) / 3 + 2;

    for (size_t i = 0; i < n; i++) {
        const char *candidate;

        memcpy(&candidate, (const char *) candidates + i * stride, sizeof(candidate));
        const unsigned d = distance(word, candidate);

        if (d < best) {
            best = d;
            nearest = candidate;
        }
    }
    return nearest;
}
