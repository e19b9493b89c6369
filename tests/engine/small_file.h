/* SPDX-License-Identifier: Apache-2.0 */
/* small_file.h -- for tests: safetensors files of a few tensors, each of one value. */
#ifndef HR_SMALL_FILE_H
#define HR_SMALL_FILE_H

#include "common/common.h"

struct small_tensor {
    const char *name;
    enum hr_dtype dtype; /* computable, or with `bytes` any            */
    const char *shape;   /* as in the header: "", "1", "4,2"           */
    float value;         /* of every element                           */
    const char *bytes;   /* content of a U8 or I8 tensor instead, as a string */
};

/* @param metadata  the JSON of `__metadata__`, or NULL */
void small_file(const char *path, const struct small_tensor *tensors, size_t n,
                const char *metadata);

#endif /* HR_SMALL_FILE_H */
