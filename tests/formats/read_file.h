/* SPDX-License-Identifier: Apache-2.0 */
/* read_file.h -- a small file, whole. */
#ifndef HR_TESTS_READ_FILE_H
#define HR_TESTS_READ_FILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* @return exactly *ret_bytes bytes, so that a sanitizer sees one too many; free() them; NULL when
 *         the file cannot be read */
static inline uint8_t *read_file(const char *path, size_t *ret_bytes)
{
    FILE *f = fopen(path, "rb");
    uint8_t *bytes = NULL;
    long n = -1;

    *ret_bytes = 0;
    if (!f)
        return NULL;
    if (fseek(f, 0, SEEK_END) == 0)
        n = ftell(f);
    if (n >= 0 && fseek(f, 0, SEEK_SET) == 0)
        bytes = malloc(n ? (size_t) n : 1);
    if (bytes && fread(bytes, 1, (size_t) n, f) != (size_t) n) {
        free(bytes);
        bytes = NULL;
    }
    fclose(f);
    if (bytes)
        *ret_bytes = (size_t) n;
    return bytes;
}

#endif /* HR_TESTS_READ_FILE_H */
