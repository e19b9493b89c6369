/* SPDX-License-Identifier: Apache-2.0 */
/* manifest_file.c -- a manifest as a file, and what a difference from it is called. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/files.h"
#include "engine/verify.h"

enum { SHOWN_BYTES = 384 };

int hr_manifest_read(struct hr_manifest **ret_manifest, const char *path, struct hr_error *err)
{
    struct hr_manifest *manifest = calloc(1, sizeof(*manifest));
    struct hr_error cause = {0};
    char shown[SHOWN_BYTES], *text = NULL;
    size_t bytes = 0;
    int r;

    hr_printable(path, shown, sizeof(shown));
    if (!manifest)
        return hr_error_set(err, -ENOMEM, "%s: no memory for a manifest", shown);
    r = hr_file_read_text(path, "the manifest", HR_MANIFEST_BYTES_MAX, &text, &bytes, err);
    if (r == 0)
        r = hr_manifest_parse(manifest, text, bytes, shown, &cause);
    if (cause.code == -EBADMSG)
        hr_error_set(err, r, "%s; expected what headrace checksum writes", cause.message);
    else if (cause.code)
        hr_error_set(err, r, "%s", cause.message);
    free(text);
    if (r == 0)
        *ret_manifest = manifest;
    else
        free(manifest);
    return r;
}

int hr_manifest_text(const struct hr_manifest *manifest, char **ret_text, struct hr_error *err)
{
    size_t bytes;

    return hr_manifest_build(ret_text, &bytes, manifest, err);
}

int hr_manifest_write(const struct hr_manifest *manifest, const char *path, struct hr_error *err)
{
    struct hr_replacement file;
    size_t bytes = 0;
    char *text = NULL;
    int r = hr_manifest_build(&text, &bytes, manifest, err);

    if (r == 0)
        r = hr_replace_begin(&file, path, err);
    if (r == 0)
        r = hr_replace_end(&file, hr_file_write(file.fd, text, bytes, 0), err);
    free(text);
    return r;
}

uint32_t hr_manifest_n_tensors(const struct hr_manifest *manifest)
{
    return manifest->n_tensors;
}

void hr_manifest_close(struct hr_manifest **manifest)
{
    if (!*manifest)
        return;
    hr_manifest_uninit(*manifest);
    free(*manifest);
    *manifest = NULL;
}

/* ---- words -------------------------------------------------------------------------- */

const char *hr_damage_text(const struct hr_damage *damage, char *buf, size_t buf_bytes)
{
    static const char *const words[] = {
        [HR_DAMAGE_FILE_MISSING] = "missing",
        [HR_DAMAGE_FILE_EXTRA] = "not in the manifest",
        [HR_DAMAGE_FILE_SIZE] = "another size",
        [HR_DAMAGE_HEADER] = "the header has changed",
        [HR_DAMAGE_CONFIG] = "not what the manifest was made with",
        [HR_DAMAGE_TENSOR_MISSING] = "missing",
        [HR_DAMAGE_TENSOR_EXTRA] = "not in the manifest",
        [HR_DAMAGE_TENSOR_TYPE] = "another type or size",
        [HR_DAMAGE_TENSOR_DATA] = "the bytes have changed",
    };
    char file[256], name[256], tensor[280] = "", range[64] = "", change[256] = "", was[96], is[96];

    if (damage->tensor)
        snprintf(tensor, sizeof(tensor), "tensor \"%s\", ",
                 hr_printable(damage->tensor, name, sizeof(name)));
    if (damage->size_bytes > 0)
        snprintf(range, sizeof(range),
                 "bytes %llu to %llu: ", (unsigned long long) damage->begin_bytes,
                 (unsigned long long) (damage->begin_bytes + damage->size_bytes - 1));
    if (damage->was)
        snprintf(change, sizeof(change), ": %s, was %s", hr_printable(damage->is, is, sizeof(is)),
                 hr_printable(damage->was, was, sizeof(was)));
    snprintf(buf, buf_bytes, "%s: %s%s%s%s", hr_printable(damage->file, file, sizeof(file)), tensor,
             range, words[damage->kind], change);
    return buf;
}
