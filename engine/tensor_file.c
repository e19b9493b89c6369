/* SPDX-License-Identifier: Apache-2.0 */
/* tensor_file.c -- small safetensors files of results, whole or not there at all. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/files.h"
#include "formats/formats.h"

enum { SHOWN_BYTES = 384 };

static int fail(const char *path, struct hr_error *err, int code, const char *doing)
{
    char shown[SHOWN_BYTES], reason[128];

    return hr_error_set(err, code, "%s: cannot %s: %s", hr_printable(path, shown, sizeof(shown)),
                        doing, hr_strerror(code, reason, sizeof(reason)));
}

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

/* The temporary name, in the same folder: a rename must not cross filesystems. */
static char *temp_name(const char *path)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    char *temp;

    if (asprintf(&temp, "%.*s.%s.tmp-%ld", (int) (base - path), path, base, (long) getpid()) < 0)
        return NULL;
    return temp;
}

static int write_file(int fd, const char *header, size_t header_bytes,
                      const struct hr_entry *entries, const struct hr_tensor_out *tensors,
                      uint32_t n)
{
    int r = hr_file_write(fd, header, header_bytes, 0);

    for (uint32_t i = 0; i < n && r == 0; i++)
        r = hr_file_write(fd, tensors[i].data, entries[i].size_bytes, entries[i].begin_bytes);
    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    return r;
}

int hr_tensors_write(const char *path, const struct hr_tensor_out *tensors, uint32_t n,
                     struct hr_error *err)
{
    char shown[SHOWN_BYTES];
    char *target = NULL, *temp = NULL, *header = NULL;
    struct hr_entry *entries = NULL;
    size_t header_bytes;
    mode_t mode;
    int fd, r;

    if (!path || !*path)
        return hr_error_set(err, -EINVAL, "the output has no name");
    r = build(tensors, n, &entries, &header, &header_bytes, err);
    if (r < 0)
        return r;
    r = hr_file_target(path, &target, &mode);
    if (r < 0) {
        fail(path, err, r, "write there");
        goto done;
    }
    if (mode != 0 && !S_ISREG(mode)) {
        r = hr_error_set(err, -EINVAL, "%s: is %s; the result replaces a file, or makes a new one",
                         hr_printable(path, shown, sizeof(shown)), hr_file_kind(mode));
        goto done;
    }
    temp = temp_name(target);
    fd = temp ? open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666) : -1;
    if (fd < 0) {
        r = fail(path, err, temp ? -errno : -ENOMEM, "make a temporary file beside it");
        goto done;
    }
    r = write_file(fd, header, header_bytes, entries, tensors, n);
    if (close(fd) < 0 && r == 0)
        r = -errno;
    if (r == 0 && rename(temp, target) < 0)
        r = -errno;
    if (r < 0)
        unlink(temp);
    else
        r = hr_file_sync_parent(target);
    if (r < 0)
        fail(path, err, r, "write it");
done:
    free(target);
    free(temp);
    free(header);
    free(entries);
    return r;
}
