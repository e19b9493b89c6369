/* SPDX-License-Identifier: Apache-2.0 */
/* any_file.h -- for tests: safetensors files of any computable dtypes, made tensor by tensor or
 * from a model, with values to change in between. */
#ifndef HR_TESTS_ANY_FILE_H
#define HR_TESTS_ANY_FILE_H

#include "common/common.h"

struct any_tensor {
    char name[160];
    enum hr_dtype dtype; /* in the file: computable, or U8 of whole numbers */
    uint32_t rank;       /* up to 2 */
    uint64_t shape[2];
    float *values; /* n */
    uint64_t n;
};

struct any_file {
    struct any_tensor *tensors;
    size_t n;
};

/* Append a tensor of zeros; valid until the file is freed. */
struct any_tensor *any_file_add(struct any_file *file, enum hr_dtype dtype, uint32_t rank,
                                uint64_t rows, uint64_t cols, const char *name_format, ...)
    HR_PRINTF(6, 7);
/* Append all tensors of a checkpoint, with their dtypes. */
void any_file_load(struct any_file *file, const struct hr_checkpoint *checkpoint);
/* It must be there. */
struct any_tensor *any_file_find(struct any_file *file, const char *name_format, ...)
    HR_PRINTF(2, 3);
void any_file_write(const struct any_file *file, const char *path);
void any_file_free(struct any_file *file);

#endif /* HR_TESTS_ANY_FILE_H */
