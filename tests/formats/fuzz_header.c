/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_header.c -- any bytes as a safetensors file: refused with a message, or its tensors tile
 * the file, and a header written from them reads back the same.
 */
#include <stdlib.h>
#include <string.h>

#include "formats/formats.h"
#include "tests/formats/fuzz.h"

static void check_tiling(const struct hr_header *header, uint64_t file_bytes)
{
    uint64_t total = header->data_begin_bytes;

    for (uint32_t i = 0; i < header->n_entries; i++) {
        const struct hr_entry *entry = &header->entries[i];
        const uint64_t n = hr_shape_elements(entry->shape, entry->rank);

        hr_assert(entry->size_bytes * 8 == n * hr_dtype_bits(entry->dtype));
        hr_assert(entry->begin_bytes >= header->data_begin_bytes);
        hr_assert(entry->begin_bytes + entry->size_bytes <= file_bytes);
        hr_assert(entry->size_bytes == 0 || entry->begin_bytes == total);
        hr_assert(i == 0 || entry[-1].begin_bytes < entry->begin_bytes ||
                  (entry[-1].begin_bytes == entry->begin_bytes &&
                   strcmp(entry[-1].name, entry->name) < 0));
        total += entry->size_bytes;
    }
    hr_assert(total == file_bytes);
}

/* In the order of writing: an empty tensor goes before the one that begins where it lies. */
static int compare_ranges(const void *a, const void *b)
{
    const struct hr_entry *ea = a, *eb = b;

    if (ea->begin_bytes != eb->begin_bytes)
        return ea->begin_bytes < eb->begin_bytes ? -1 : 1;
    if (ea->size_bytes != eb->size_bytes)
        return ea->size_bytes < eb->size_bytes ? -1 : 1;
    return strcmp(ea->name, eb->name);
}

static void check_rebuilt(const struct hr_header *header)
{
    struct hr_entry *entries = calloc(header->n_entries + 1u, sizeof(*entries));
    struct hr_header again;
    uint64_t file_bytes;
    size_t bytes;
    char *text;

    hr_assert(entries);
    if (header->n_entries)
        memcpy(entries, header->entries, header->n_entries * sizeof(*entries));
    qsort(entries, header->n_entries, sizeof(*entries), compare_ranges);
    hr_assert(hr_header_build(&text, &bytes, entries, header->n_entries, 3, NULL) == 0);
    file_bytes = bytes;
    for (uint32_t i = 0; i < header->n_entries; i++)
        file_bytes += entries[i].size_bytes;
    hr_assert(hr_header_parse(&again, text + 8, bytes - 8, file_bytes, "again", NULL) == 0);
    hr_assert(again.n_entries == header->n_entries);
    for (uint32_t i = 0; i < again.n_entries; i++) {
        const struct hr_entry *a = &again.entries[i], *b = &header->entries[i];

        hr_assert(a->dtype == b->dtype && a->rank == b->rank && a->size_bytes == b->size_bytes);
        hr_assert(strcmp(a->name, b->name) == 0);
        hr_assert(a->rank == 0 || memcmp(a->shape, b->shape, a->rank * sizeof(*a->shape)) == 0);
        hr_assert(a->begin_bytes - again.data_begin_bytes ==
                  b->begin_bytes - header->data_begin_bytes);
    }
    hr_header_uninit(&again);
    free(text);
    free(entries);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t none[8] = {0};
    struct hr_error err = {0};
    struct hr_header header;
    uint64_t json_bytes;
    int r = hr_header_length(size < 8 ? none : data, size, "file", &json_bytes, &err);

    if (r == 0)
        r = hr_header_parse(&header, (const char *) data + 8, (size_t) json_bytes, size, "file",
                            &err);
    hr_assert(err.code == r && (r == 0) == (err.message[0] == '\0'));
    if (r < 0)
        return 0;
    check_tiling(&header, size);
    check_rebuilt(&header);
    hr_header_uninit(&header);
    return 0;
}
