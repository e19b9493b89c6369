/* SPDX-License-Identifier: Apache-2.0 */
/* small_file.c -- see small_file.h. */
#include "small_file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "formats/formats.h"

static size_t n_elements(const char *shape)
{
    size_t n = 1;

    while (*shape) {
        char *end;

        n *= strtoull(shape, &end, 10);
        shape = *end ? end + 1 : end;
    }
    return n;
}

static size_t tensor_bytes(const struct small_tensor *tensor)
{
    return n_elements(tensor->shape) * hr_dtype_bits(tensor->dtype) / 8;
}

void small_file(const char *path, const struct small_tensor *tensors, size_t n,
                const char *metadata)
{
    FILE *file = fopen(path, "wb");
    char json[8192] = "{";
    size_t len = 1, offset = 0;

    assert_non_null(file);
    if (metadata)
        len += (size_t) snprintf(json + len, sizeof(json) - len, "\"__metadata__\":%s%s", metadata,
                                 n ? "," : "");
    for (size_t i = 0; i < n; i++) {
        len += (size_t) snprintf(
            json + len, sizeof(json) - len,
            "\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}%s",
            tensors[i].name, hr_dtype_name(tensors[i].dtype), tensors[i].shape, offset,
            offset + tensor_bytes(&tensors[i]), i + 1 < n ? "," : "");
        offset += tensor_bytes(&tensors[i]);
    }
    len += (size_t) snprintf(json + len, sizeof(json) - len, "}");
    assert_true(len < sizeof(json));
    const uint64_t length = len;

    fwrite(&length, sizeof(length), 1, file);
    fwrite(json, 1, len, file);
    for (size_t i = 0; i < n; i++) {
        const size_t size = hr_dtype_bits(tensors[i].dtype) / 8;

        for (size_t k = 0; k < n_elements(tensors[i].shape); k++) {
            unsigned char element[8] = {0};

            if (tensors[i].bytes)
                element[0] = (unsigned char) tensors[i].bytes[k];
            else if (hr_dtype_is_computable(tensors[i].dtype))
                hr_dtype_from_f32(element, &tensors[i].value, tensors[i].dtype, 1);
            fwrite(element, 1, size, file);
        }
    }
    assert_int_equal(fclose(file), 0);
}
