/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors.c -- the header of a safetensors file: 8 bytes of length, little endian, and JSON
 * `name -> {dtype, shape, data_offsets: [begin, end]}` with offsets from the end of the header.
 *
 * One entry is read at a time; what holds between entries (no duplicate names, ranges that tile
 * the file) is checked by sorting, so the time is n log n in the tensors.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/arena.h"
#include "formats/formats.h"
#include "formats/json_strict.h"

static const char metadata_key[] = "__metadata__";

#define TOO_MANY_DIMENSIONS "more than 64 dimensions"
_Static_assert(HR_RANK_MAX == 64, "as the message says");

/* The longest name as it stands in a message. */
enum { NAME_BYTES = 200 };

int hr_header_length(const uint8_t first[8], uint64_t file_bytes, const char *what,
                     uint64_t *ret_json_bytes, struct hr_error *err)
{
    uint64_t n = 0;

    if (file_bytes < 8)
        return hr_error_set(err, -EBADMSG,
                            "%s: not a safetensors file: %" PRIu64
                            " bytes long, the header's length alone takes 8",
                            what, file_bytes);
    for (unsigned i = 0; i < 8; i++)
        n |= (uint64_t) first[i] << (8 * i);
    if (n > HR_HEADER_BYTES_MAX)
        return hr_error_set(err, -EBADMSG,
                            "%s: not a safetensors file: a header of %" PRIu64
                            " bytes, at most %d are allowed",
                            what, n, (int) HR_HEADER_BYTES_MAX);
    if (n > file_bytes - 8)
        return hr_error_set(err, -EBADMSG,
                            "%s: truncated: a header of %" PRIu64 " bytes in a file of %" PRIu64,
                            what, n, file_bytes);
    *ret_json_bytes = n;
    return 0;
}

uint64_t hr_shape_elements(const uint64_t *shape, uint32_t rank)
{
    uint64_t n = 1;

    for (uint32_t i = 0; i < rank; i++)
        n *= shape[i];
    return n;
}

const char *hr_entry_bytes(const struct hr_entry *entry, uint64_t *ret_bytes)
{
    uint64_t n = 1;

    if (entry->rank > HR_RANK_MAX)
        return TOO_MANY_DIMENSIONS;
    for (uint32_t i = 0; i < entry->rank; i++) {
        if (__builtin_mul_overflow(n, entry->shape[i], &n))
            return "the product of the shape overflows 64 bits";
    }
    if (__builtin_mul_overflow(n, hr_dtype_bits(entry->dtype), &n))
        return "the size in bits overflows 64 bits";
    if (n % 8 != 0)
        return "the size is no whole number of bytes";
    *ret_bytes = n / 8;
    return NULL;
}

/* ---- one entry ---------------------------------------------------------------------- */

struct reader {
    const struct hr_json_source *source;
    struct hr_arena *arena;
    uint64_t data_begin_bytes, data_bytes;
    struct hr_entry *entries;
    size_t n_entries, n_entries_max;
};

static int fail_entry(const struct reader *reader, const struct hr_entry *entry,
                      const char *message)
{
    char name[NAME_BYTES];

    return hr_error_set(reader->source->err, -EBADMSG, "%s: tensor \"%s\": %s",
                        reader->source->what, hr_printable(entry->name, name, sizeof(name)),
                        message);
}

static int fail_dtype(const struct reader *reader, const struct hr_entry *entry, const char *dtype)
{
    char text[NAME_BYTES], message[NAME_BYTES + 100];

    snprintf(message, sizeof(message),
             "unknown dtype %s; expected one of safetensors' such as BF16, F16, F32, F8_E4M3",
             hr_printable(dtype, text, sizeof(text)));
    return fail_entry(reader, entry, message);
}

static int read_dtype(const struct reader *reader, struct hr_entry *entry, const json_t *value)
{
    if (!json_is_string(value))
        return fail_entry(reader, entry, "dtype is missing or no string");
    if (hr_dtype_parse(json_string_value(value), &entry->dtype) < 0)
        return fail_dtype(reader, entry, json_string_value(value));
    return 0;
}

static int read_shape(const struct reader *reader, struct hr_entry *entry, const json_t *value)
{
    const size_t rank = json_array_size(value);
    uint64_t *shape;

    if (!json_is_array(value))
        return fail_entry(reader, entry, "shape is missing or no array");
    if (rank > HR_RANK_MAX)
        return fail_entry(reader, entry, TOO_MANY_DIMENSIONS);
    if (rank == 0)
        return 0;
    shape = hr_arena_take(reader->arena, rank * sizeof(*shape));
    if (!shape)
        return hr_json_fail_memory(reader->source);
    for (size_t i = 0; i < rank; i++) {
        if (!hr_json_get_u64(json_array_get(value, i), &shape[i]))
            return fail_entry(reader, entry,
                              "shape holds something else than an integer 0..2^63-1");
    }
    entry->rank = (uint32_t) rank;
    entry->shape = shape;
    return 0;
}

/* After dtype and shape, whose size the range must have. */
static int read_range(const struct reader *reader, struct hr_entry *entry, const json_t *value)
{
    const char *problem;
    uint64_t begin, end, bytes;

    if (!json_is_array(value) || json_array_size(value) != 2)
        return fail_entry(reader, entry, "data_offsets is missing or no pair");
    if (!hr_json_get_u64(json_array_get(value, 0), &begin) ||
        !hr_json_get_u64(json_array_get(value, 1), &end))
        return fail_entry(reader, entry,
                          "data_offsets holds something else than an integer 0..2^63-1");
    if (begin > end)
        return fail_entry(reader, entry, "data_offsets end before they begin");
    if (end > reader->data_bytes)
        return fail_entry(reader, entry,
                          "data_offsets end behind the end of the file; it is truncated");
    problem = hr_entry_bytes(entry, &bytes);
    if (problem)
        return fail_entry(reader, entry, problem);
    if (bytes != end - begin) {
        char name[NAME_BYTES];

        return hr_error_set(reader->source->err, -EBADMSG,
                            "%s: tensor \"%s\": data_offsets hold %" PRIu64
                            " bytes, shape and dtype %s ask for %" PRIu64,
                            reader->source->what, hr_printable(entry->name, name, sizeof(name)),
                            end - begin, hr_dtype_name(entry->dtype), bytes);
    }
    entry->begin_bytes = reader->data_begin_bytes + begin;
    entry->size_bytes = bytes;
    return 0;
}

static int add_entry(struct reader *reader, const struct hr_json_object *object,
                     const struct hr_json_member *member)
{
    struct hr_entry entry = {.name = member->key};
    json_t *value;
    int r;

    struct hr_entry *entries =
        hr_array_grow(reader->entries, reader->n_entries, &reader->n_entries_max, sizeof(*entries));

    if (!entries)
        return hr_json_fail_memory(reader->source);
    reader->entries = entries;
    r = hr_json_load_member(&value, object, member);
    if (r < 0)
        return r;
    if (!json_is_object(value))
        r = fail_entry(reader, &entry, "expected an object of dtype, shape and data_offsets");
    else if (!(r = read_dtype(reader, &entry, json_object_get(value, "dtype"))) &&
             !(r = read_shape(reader, &entry, json_object_get(value, "shape"))))
        r = read_range(reader, &entry, json_object_get(value, "data_offsets"));
    json_decref(value);
    if (r < 0)
        return r;
    reader->entries[reader->n_entries++] = entry;
    return 0;
}

/* ---- the whole ---------------------------------------------------------------------- */

/* A map of strings, of which nothing is kept. */
static int check_string(void *user, const struct hr_json_object *object,
                        const struct hr_json_member *member)
{
    const struct hr_json_source *source = object->source;
    char name[NAME_BYTES];
    json_t *value;
    int r;

    (void) user;
    if (*member->value.begin != '"')
        return hr_error_set(source->err, -EBADMSG, "%s: metadata key \"%s\": not a string",
                            source->what, hr_printable(member->key, name, sizeof(name)));
    r = hr_json_load_member(&value, object, member);
    if (r == 0)
        json_decref(value);
    return r;
}

static int check_metadata(const struct hr_json_source *source, struct hr_json_span span)
{
    struct hr_arena arena = {0};
    int r;

    if (*span.begin != '{')
        return hr_error_set(source->err, -EBADMSG, "%s: %s is no object", source->what,
                            metadata_key);
    r = hr_json_each(source, span, "metadata key", &arena, check_string, NULL);
    hr_arena_uninit(&arena);
    return r;
}

static int visit_member(void *user, const struct hr_json_object *object,
                        const struct hr_json_member *member)
{
    if (strcmp(member->key, metadata_key) == 0)
        return check_metadata(object->source, member->value);
    return add_entry(user, object, member);
}

static int compare_u64(uint64_t a, uint64_t b)
{
    return (a > b) - (a < b);
}

/* By address, an empty tensor before the one that begins where it lies. */
static int compare_ranges(const void *a, const void *b)
{
    const struct hr_entry *ea = a, *eb = b;
    const int r = compare_u64(ea->begin_bytes, eb->begin_bytes);

    return r ? r : compare_u64(ea->size_bytes, eb->size_bytes);
}

static int compare_entries(const void *a, const void *b)
{
    const struct hr_entry *ea = a, *eb = b;
    const int r = compare_u64(ea->begin_bytes, eb->begin_bytes);

    return r ? r : strcmp(ea->name, eb->name);
}

/* Every byte of data belongs to one tensor. Sorts the entries. */
static int check_tiling(const struct reader *reader)
{
    const struct hr_json_source *source = reader->source;
    const uint64_t file_end = reader->data_begin_bytes + reader->data_bytes;
    uint64_t end = reader->data_begin_bytes;

    if (reader->n_entries)
        qsort(reader->entries, reader->n_entries, sizeof(*reader->entries), compare_ranges);
    for (size_t i = 0; i < reader->n_entries; i++) {
        const struct hr_entry *entry = &reader->entries[i];
        char name[NAME_BYTES];

        if (entry->begin_bytes != end)
            return hr_error_set(
                source->err, -EBADMSG,
                "%s: tensor \"%s\": %s: it begins at %" PRIu64
                " of the data, the bytes before it end at %" PRIu64,
                source->what, hr_printable(entry->name, name, sizeof(name)),
                entry->begin_bytes < end ? "overlaps another tensor" : "a hole before it",
                entry->begin_bytes - reader->data_begin_bytes, end - reader->data_begin_bytes);
        end += entry->size_bytes;
    }
    if (end != file_end)
        return hr_error_set(source->err, -EBADMSG,
                            "%s: the tensors end at byte %" PRIu64 ", the file at %" PRIu64
                            "; it is truncated or has something appended",
                            source->what, end, file_end);
    if (reader->n_entries)
        qsort(reader->entries, reader->n_entries, sizeof(*reader->entries), compare_entries);
    return 0;
}

int hr_header_parse(struct hr_header *ret_header, const char *json, size_t json_bytes,
                    uint64_t file_bytes, const char *what, struct hr_error *err)
{
    const struct hr_json_source source = {json, json_bytes, what, err};
    struct hr_arena arena = {0};
    struct reader reader = {.source = &source, .arena = &arena};
    int r;

    if (json_bytes > HR_HEADER_BYTES_MAX || file_bytes < 8 || json_bytes > file_bytes - 8)
        return hr_error_set(err, -EBADMSG,
                            "%s: a header of %zu bytes does not fit a file of %" PRIu64, what,
                            json_bytes, file_bytes);
    reader.data_begin_bytes = 8 + (uint64_t) json_bytes;
    reader.data_bytes = file_bytes - reader.data_begin_bytes;
    r = hr_json_each(&source, hr_json_span_of(&source), "tensor", &arena, visit_member, &reader);
    if (r == 0)
        r = check_tiling(&reader);
    if (r < 0) {
        free(reader.entries);
        hr_arena_uninit(&arena);
        return r;
    }
    *ret_header = (struct hr_header){
        .entries = reader.entries,
        .n_entries = (uint32_t) reader.n_entries,
        .data_begin_bytes = reader.data_begin_bytes,
        .storage = arena.last,
    };
    return 0;
}

/* Visit an object's members up to the one called `key`.
 * @return 1 with the object standing behind it, 0 or an error */
static int find_member(struct hr_json_object *object, const char *key,
                       struct hr_json_member *ret_member)
{
    int r;

    do
        r = hr_json_object_next(object, ret_member);
    while (r > 0 && strcmp(ret_member->key, key) != 0);
    return r;
}

/* The string called `key` in the object that `span` holds. */
static int read_string(char **ret_text, const struct hr_json_source *source,
                       struct hr_json_span span, const char *key, struct hr_arena *arena)
{
    struct hr_json_object object;
    struct hr_json_member member;
    json_t *value = NULL;
    int r = hr_json_object_init(&object, source, span, "metadata key", arena);

    if (r < 0)
        return r;
    r = find_member(&object, key, &member);
    if (r > 0) {
        r = *member.value.begin == '"' ? hr_json_load_member(&value, &object, &member) : -EBADMSG;
        if (r == -EBADMSG)
            hr_error_set(source->err, r, "%s: metadata key \"%s\": not a string", source->what,
                         key);
    }
    hr_json_object_uninit(&object);
    if (!value)
        return r;
    char *text = strdup(json_string_value(value));

    json_decref(value);
    if (!text)
        return hr_json_fail_memory(source);
    *ret_text = text;
    return 1;
}

int hr_header_metadata(char **ret_text, const char *json, size_t json_bytes, const char *key,
                       const char *what, struct hr_error *err)
{
    const struct hr_json_source source = {json, json_bytes, what, err};
    struct hr_arena arena = {0};
    struct hr_json_object object;
    struct hr_json_member member;
    int r = hr_json_object_init(&object, &source, hr_json_span_of(&source), "tensor", &arena);

    if (r == 0) {
        r = find_member(&object, metadata_key, &member);
        if (r > 0)
            r = read_string(ret_text, &source, member.value, key, &arena);
        hr_json_object_uninit(&object);
    }
    hr_arena_uninit(&arena);
    return r;
}

void hr_header_uninit(struct hr_header *header)
{
    struct hr_arena arena = {.last = header->storage};

    free(header->entries);
    hr_arena_uninit(&arena);
    *header = (struct hr_header){0};
}
