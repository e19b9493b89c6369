/* SPDX-License-Identifier: Apache-2.0 */
/* kernels.c -- which tables of kernels this build has, and which of them this CPU can run. */
#include "gpu/kernels.h"

#include <string.h>

extern const struct hr_kernels hr_kernels_baseline, hr_kernels_avx2, hr_kernels_avx512;

static bool always(void)
{
    return true;
}

/* The checks name what meson.build compiles with, no more and no less. */
#ifdef __x86_64__
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

/* Best first. */
static const struct {
    const struct hr_kernels *table;
    bool (*is_supported)(void);
} tables[] = {
#ifdef __x86_64__
    {&hr_kernels_avx512, has_avx512},
    {&hr_kernels_avx2, has_avx2},
#endif
    {&hr_kernels_baseline, always},
};

const struct hr_kernels *hr_kernels_find(const char *isa)
{
    for (size_t i = 0; i < HR_ARRAY_SIZE(tables); i++)
        if (tables[i].is_supported() && (!isa || strcmp(isa, tables[i].table->isa) == 0))
            return tables[i].table;
    return NULL;
}

const char *hr_kernels_name(size_t n)
{
    for (size_t i = 0; i < HR_ARRAY_SIZE(tables); i++)
        if (tables[i].is_supported() && n-- == 0)
            return tables[i].table->isa;
    return NULL;
}
