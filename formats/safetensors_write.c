/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors_write.c -- the header of a safetensors file, for writing.
 *
 * Held to what the reader accepts: nothing is built here that hr_header_parse() would refuse.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/formats.h"

enum { NAME_BYTES = 200, DATA_ALIGN = 8 };

static int fail_entry(struct hr_error *err, const struct hr_entry *entry, const char *message)
{
    char name[NAME_BYTES];

    return hr_error_set(err, -EINVAL, "tensor \"%s\": %s",
                        hr_printable(entry->name, name, sizeof(name)), message);
}

/* Size and place of each tensor, from the start of the data. */
static int place_entries(struct hr_entry *entries, uint32_t n_entries, struct hr_error *err)
{
    uint64_t end = 0;

    for (uint32_t i = 0; i < n_entries; i++) {
        struct hr_entry *entry = &entries[i];
        const char *problem;

        if ((unsigned) entry->dtype >= HR_DTYPE_COUNT)
            return fail_entry(err, entry, "unknown dtype");
        problem = hr_entry_bytes(entry, &entry->size_bytes);
        if (problem)
            return fail_entry(err, entry, problem);
        for (uint32_t d = 0; d < entry->rank; d++)
            if (entry->shape[d] > INT64_MAX)
                return fail_entry(err, entry, "the shape holds more than 2^63-1");
        if (entry->size_bytes > INT64_MAX / 2 - end)
            return fail_entry(err, entry, "too large");
        entry->begin_bytes = end;
        end += entry->size_bytes;
    }
    return 0;
}

static int compare_names(const void *a, const void *b)
{
    const struct hr_entry *const *ea = a;
    const struct hr_entry *const *eb = b;

    return strcmp((*ea)->name, (*eb)->name);
}

static int check_names(const struct hr_entry *entries, uint32_t n_entries, struct hr_error *err)
{
    const struct hr_entry **sorted;
    int r = 0;

    if (n_entries == 0)
        return 0;
    sorted = malloc(n_entries * sizeof(*sorted));
    if (!sorted)
        return hr_error_set(err, -ENOMEM, "out of memory for a safetensors header");
    for (uint32_t i = 0; i < n_entries; i++)
        sorted[i] = &entries[i];
    qsort(sorted, n_entries, sizeof(*sorted), compare_names);
    for (uint32_t i = 0; i < n_entries && r == 0; i++) {
        if (strcmp(sorted[i]->name, "__metadata__") == 0)
            r = fail_entry(err, sorted[i], "the format keeps this name for itself");
        else if (i > 0 && strcmp(sorted[i - 1]->name, sorted[i]->name) == 0)
            r = fail_entry(err, sorted[i], "given twice");
    }
    free(sorted);
    return r;
}

static int print_entry(FILE *f, const struct hr_entry *entry, struct hr_error *err)
{
    json_t *name = json_string(entry->name);
    char *quoted = name ? json_dumps(name, JSON_ENCODE_ANY) : NULL;

    json_decref(name);
    if (!quoted)
        return fail_entry(err, entry, "the name is no valid UTF-8, or there is no memory for it");
    fprintf(f, "%s:{\"dtype\":\"%s\",\"shape\":[", quoted, hr_dtype_name(entry->dtype));
    free(quoted);
    for (uint32_t d = 0; d < entry->rank; d++)
        fprintf(f, "%s%" PRIu64, d ? "," : "", entry->shape[d]);
    fprintf(f, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", entry->begin_bytes,
            entry->begin_bytes + entry->size_bytes);
    return 0;
}

static int print_header(FILE *f, const struct hr_entry *entries, uint32_t n_entries,
                        uint32_t pad_bytes, struct hr_error *err)
{
    static const char length_to_come[8];
    uint64_t bytes, n_spaces;

    fwrite(length_to_come, 1, sizeof(length_to_come), f);
    fputc('{', f);
    for (uint32_t i = 0; i < n_entries; i++) {
        int r;

        if (i)
            fputc(',', f);
        r = print_entry(f, &entries[i], err);
        if (r < 0)
            return r;
    }
    fputc('}', f);
    bytes = (uint64_t) ftello(f);
    n_spaces = -bytes % DATA_ALIGN + pad_bytes;
    bytes += n_spaces - sizeof(length_to_come);
    if (bytes > HR_HEADER_BYTES_MAX)
        return hr_error_set(err, -EINVAL, "a header of %" PRIu64 " bytes, at most %d are allowed",
                            bytes, (int) HR_HEADER_BYTES_MAX);
    for (uint64_t i = 0; i < n_spaces; i++)
        fputc(' ', f);
    return 0;
}

int hr_header_build(char **ret_text, size_t *ret_bytes, struct hr_entry *entries,
                    uint32_t n_entries, uint32_t pad_bytes, struct hr_error *err)
{
    char *text = NULL;
    size_t bytes = 0;
    bool is_written;
    FILE *f;
    int r;

    r = place_entries(entries, n_entries, err);
    if (r == 0)
        r = check_names(entries, n_entries, err);
    if (r < 0)
        return r;
    f = open_memstream(&text, &bytes);
    if (!f)
        return hr_error_set(err, -ENOMEM, "out of memory for a safetensors header");
    r = print_header(f, entries, n_entries, pad_bytes, err);
    is_written = !ferror(f);
    if ((fclose(f) != 0 || !is_written) && r == 0)
        r = hr_error_set(err, -ENOMEM, "out of memory for a safetensors header");
    if (r < 0) {
        free(text);
        return r;
    }
    for (unsigned i = 0; i < 8; i++)
        text[i] = (char) ((bytes - 8) >> (8 * i) & 0xff);
    for (uint32_t i = 0; i < n_entries; i++)
        entries[i].begin_bytes += bytes;
    *ret_text = text;
    *ret_bytes = bytes;
    return 0;
}
