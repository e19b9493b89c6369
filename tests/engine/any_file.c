/* SPDX-License-Identifier: Apache-2.0 */
/* any_file.c -- see any_file.h. */
#include "tests/engine/any_file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "formats/formats.h"

enum { TENSORS_MAX = 512 };

struct any_tensor *any_file_add(struct any_file *file, enum hr_dtype dtype, uint32_t rank,
                                uint64_t rows, uint64_t cols, const char *name_format, ...)
{
    struct any_tensor *tensor;
    va_list ap;

    if (!file->tensors)
        file->tensors = calloc(TENSORS_MAX, sizeof(*file->tensors));
    assert_non_null(file->tensors);
    assert_true(file->n < TENSORS_MAX);
    tensor = &file->tensors[file->n++];
    *tensor = (struct any_tensor){.dtype = dtype, .rank = rank, .shape = {rows, cols}};
    tensor->n = (rank > 0 ? rows : 1) * (rank > 1 ? cols : 1);
    va_start(ap, name_format);
    vsnprintf(tensor->name, sizeof(tensor->name), name_format, ap);
    va_end(ap);
    tensor->values = calloc(tensor->n, sizeof(float));
    assert_non_null(tensor->values);
    return tensor;
}

void any_file_load(struct any_file *file, const struct hr_checkpoint *checkpoint)
{
    for (uint32_t i = 0; i < hr_checkpoint_n_tensors(checkpoint); i++) {
        const struct hr_tensor *t = hr_checkpoint_tensor(checkpoint, i);
        struct any_tensor *tensor =
            any_file_add(file, t->dtype, t->rank, t->rank > 0 ? t->shape[0] : 1,
                         t->rank > 1 ? t->shape[1] : 1, "%s", t->name);

        assert_int_equal(hr_checkpoint_read_f32(checkpoint, t, tensor->values, tensor->n, NULL), 0);
    }
}

struct any_tensor *any_file_find(struct any_file *file, const char *name_format, ...)
{
    char name[160];
    va_list ap;

    va_start(ap, name_format);
    vsnprintf(name, sizeof(name), name_format, ap);
    va_end(ap);
    for (size_t i = 0; i < file->n; i++)
        if (strcmp(file->tensors[i].name, name) == 0)
            return &file->tensors[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

static void write_values(FILE *out, const struct any_tensor *tensor)
{
    const size_t bytes = tensor->n * hr_dtype_bytes(tensor->dtype);
    unsigned char *raw = malloc(bytes + 1);

    assert_non_null(raw);
    if (tensor->dtype == HR_DTYPE_U8)
        for (uint64_t i = 0; i < tensor->n; i++)
            raw[i] = (unsigned char) tensor->values[i];
    else
        hr_dtype_from_f32(raw, tensor->values, tensor->dtype, tensor->n);
    assert_int_equal(fwrite(raw, 1, bytes, out), bytes);
    free(raw);
}

void any_file_write(const struct any_file *file, const char *path)
{
    const size_t json_max = 256 * (file->n + 1);
    char *json = malloc(json_max);
    size_t len = 1, offset = 0;
    FILE *out = fopen(path, "wb");

    assert_true(json && out);
    json[0] = '{';
    for (size_t i = 0; i < file->n; i++) {
        const struct any_tensor *t = &file->tensors[i];
        const size_t bytes = t->n * hr_dtype_bytes(t->dtype);
        char shape[64] = "";

        if (t->rank == 1)
            snprintf(shape, sizeof(shape), "%llu", (unsigned long long) t->shape[0]);
        else if (t->rank == 2)
            snprintf(shape, sizeof(shape), "%llu,%llu", (unsigned long long) t->shape[0],
                     (unsigned long long) t->shape[1]);
        len += (size_t) snprintf(
            json + len, json_max - len,
            "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", i ? "," : "",
            t->name, hr_dtype_name(t->dtype), shape, offset, offset + bytes);
        offset += bytes;
    }
    json[len++] = '}';
    const uint64_t length = len;

    fwrite(&length, sizeof(length), 1, out);
    fwrite(json, 1, len, out);
    for (size_t i = 0; i < file->n; i++)
        write_values(out, &file->tensors[i]);
    assert_int_equal(fclose(out), 0);
    free(json);
}

void any_file_free(struct any_file *file)
{
    for (size_t i = 0; i < file->n; i++)
        free(file->tensors[i].values);
    free(file->tensors);
    *file = (struct any_file){0};
}
