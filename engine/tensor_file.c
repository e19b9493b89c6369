/* SPDX-License-Identifier: Apache-2.0 */
/* tensor_file.c -- small safetensors files of results, whole or not there at all. */
#include <errno.h>
#include <stdlib.h>

#include "engine/files.h"
#include "formats/formats.h"

/* The entries with their places, and the header's text. */
static int build(const struct hr_tensor_out *tensors, uint32_t n, struct hr_entry **ret_entries,
                 char **ret_text, size_t *ret_bytes, struct hr_error *err)
{
    struct hr_entry *entries = calloc(n ? n : 1, sizeof(*entries));
    int r = 0;

    if (!entries)
        return hr_error_set(err, -ENOMEM, "no memory for a header of %u tensors", n);
    for (uint32_t i = 0; i < n && r == 0; i++) {
        if (!tensors[i].name || (tensors[i].rank > 0 && !tensors[i].shape))
            r = hr_error_set(err, -EINVAL, "tensor %u of %u has no name or no shape", i + 1, n);
        entries[i] = (struct hr_entry){
            .name = tensors[i].name,
            .dtype = HR_DTYPE_F32,
            .rank = tensors[i].rank,
            .shape = tensors[i].shape,
        };
    }
    if (r == 0)
        r = hr_header_build(ret_text, ret_bytes, entries, n, 0, err);
    for (uint32_t i = 0; i < n && r == 0; i++)
        if (!tensors[i].data && entries[i].size_bytes > 0) {
            free(*ret_text);
            r = hr_error_set(err, -EINVAL, "tensor %u of %u has no data", i + 1, n);
        }
    if (r < 0)
        free(entries);
    else
        *ret_entries = entries;
    return r;
}

static int write_file(int fd, const char *header, size_t header_bytes,
                      const struct hr_entry *entries, const struct hr_tensor_out *tensors,
                      uint32_t n)
{
    int r = hr_file_write(fd, header, header_bytes, 0);

    for (uint32_t i = 0; i < n && r == 0; i++)
        r = hr_file_write(fd, tensors[i].data, entries[i].size_bytes, entries[i].begin_bytes);
    return r;
}

int hr_tensors_write(const char *path, const struct hr_tensor_out *tensors, uint32_t n,
                     struct hr_error *err)
{
    struct hr_replacement file;
    struct hr_entry *entries = NULL;
    size_t header_bytes;
    char *header = NULL;
    int r = build(tensors, n, &entries, &header, &header_bytes, err);

    if (r < 0)
        return r;
    r = hr_replace_begin(&file, path, err);
    if (r == 0)
        r = hr_replace_end(&file, write_file(file.fd, header, header_bytes, entries, tensors, n),
                           err);
    free(header);
    free(entries);
    return r;
}
