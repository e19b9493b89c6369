/* SPDX-License-Identifier: Apache-2.0 */
/* dtype.c -- the element types of safetensors: names and sizes. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "common/common.h"

static const struct {
    char name[12];
    uint8_t bits;
    bool computable;
} dtypes[] = {
    [HR_DTYPE_BOOL] = {"BOOL", 8, false},
    [HR_DTYPE_F4] = {"F4", 4, false},
    [HR_DTYPE_F6_E2M3] = {"F6_E2M3", 6, false},
    [HR_DTYPE_F6_E3M2] = {"F6_E3M2", 6, false},
    [HR_DTYPE_U8] = {"U8", 8, false},
    [HR_DTYPE_I8] = {"I8", 8, false},
    [HR_DTYPE_F8_E5M2] = {"F8_E5M2", 8, true},
    [HR_DTYPE_F8_E4M3] = {"F8_E4M3", 8, true},
    [HR_DTYPE_F8_E8M0] = {"F8_E8M0", 8, false},
    [HR_DTYPE_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8, false},
    [HR_DTYPE_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8, false},
    [HR_DTYPE_I16] = {"I16", 16, false},
    [HR_DTYPE_U16] = {"U16", 16, false},
    [HR_DTYPE_F16] = {"F16", 16, true},
    [HR_DTYPE_BF16] = {"BF16", 16, true},
    [HR_DTYPE_I32] = {"I32", 32, false},
    [HR_DTYPE_U32] = {"U32", 32, false},
    [HR_DTYPE_F32] = {"F32", 32, true},
    [HR_DTYPE_C64] = {"C64", 64, false},
    [HR_DTYPE_F64] = {"F64", 64, false},
    [HR_DTYPE_I64] = {"I64", 64, false},
    [HR_DTYPE_U64] = {"U64", 64, false},
};
static_assert(HR_ARRAY_SIZE(dtypes) == HR_DTYPE_COUNT, "a row for each dtype");

static bool is_dtype(enum hr_dtype dtype)
{
    return (unsigned) dtype < HR_DTYPE_COUNT;
}

const char *hr_dtype_name(enum hr_dtype dtype)
{
    return is_dtype(dtype) ? dtypes[dtype].name : "unknown";
}

unsigned hr_dtype_bits(enum hr_dtype dtype)
{
    hr_assert(is_dtype(dtype));
    return dtypes[dtype].bits;
}

int hr_dtype_parse(const char *name, enum hr_dtype *ret_dtype)
{
    for (unsigned i = 0; i < HR_DTYPE_COUNT; i++) {
        if (strcmp(name, dtypes[i].name) == 0) {
            *ret_dtype = (enum hr_dtype) i;
            return 0;
        }
    }
    return -ENOENT;
}

bool hr_dtype_is_computable(enum hr_dtype dtype)
{
    return is_dtype(dtype) && dtypes[dtype].computable;
}
