/* SPDX-License-Identifier: Apache-2.0 */
/* manifest.c -- checksums of a model as JSON:
 *
 *   {"headrace_manifest": 1, "hash": "xxh3-128", "config": HASH or absent,
 *    "files": {NAME: {"size_bytes": N, "mtime_ns": N, "header": HASH}, ...},
 *    "tensors": {NAME: {"file": NAME, "type": "BF16 [64, 3072]", "range": [BEGIN, END],
 *                       "data": HASH}, ...}}
 *
 * HASH: 32 hexadecimal digits as xxhsum -H2 prints them. BEGIN and END count from the start of the
 * file.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/arena.h"
#include "formats/formats.h"
#include "formats/json_strict.h"

enum { NAME_BYTES = 200, VERSION = 1, HASH_DIGITS = 32 };

static const char hash_name[] = "xxh3-128";

struct reader {
    const struct hr_json_source *source;
    struct hr_arena *arena;
    struct hr_manifest manifest;
    size_t n_files_max, n_tensors_max;
    struct hr_json_span files, tensors; /* begin NULL: not there */
    bool has_version, has_hash;
};

static int fail(const struct reader *reader, const char *kind, const char *name,
                const char *message)
{
    char shown[NAME_BYTES];

    return hr_error_set(reader->source->err, -EBADMSG, "%s: %s \"%s\": %s", reader->source->what,
                        kind, hr_printable(name, shown, sizeof(shown)), message);
}

/* ---- values ------------------------------------------------------------------------- */

static bool parse_digits(const char *text, uint64_t *ret_value)
{
    uint64_t value = 0;

    for (int i = 0; i < HASH_DIGITS / 2; i++) {
        const char c = text[i];

        if (c >= '0' && c <= '9')
            value = value << 4 | (uint64_t) (c - '0');
        else if (c >= 'a' && c <= 'f')
            value = value << 4 | (uint64_t) (c - 'a' + 10);
        else
            return false;
    }
    *ret_value = value;
    return true;
}

static bool get_hash(const json_t *value, struct hr_hash *ret_hash)
{
    return json_is_string(value) && json_string_length(value) == HASH_DIGITS &&
           parse_digits(json_string_value(value), &ret_hash->high) &&
           parse_digits(json_string_value(value) + HASH_DIGITS / 2, &ret_hash->low);
}

/* ---- files and tensors -------------------------------------------------------------- */

static int add_file(struct reader *reader, const char *name, const json_t *value)
{
    struct hr_manifest *m = &reader->manifest;
    struct hr_manifest_file file = {.name = name};

    if (!json_is_object(value) || json_object_size(value) != 3 ||
        !hr_json_get_u64(json_object_get(value, "size_bytes"), &file.size_bytes) ||
        !hr_json_get_u64(json_object_get(value, "mtime_ns"), &file.mtime_ns) ||
        !get_hash(json_object_get(value, "header"), &file.header))
        return fail(reader, "file", name,
                    "expected size_bytes, mtime_ns and header, a hash of 32 digits");
    struct hr_manifest_file *files =
        hr_array_grow(m->files, m->n_files, &reader->n_files_max, sizeof(*m->files));

    if (!files)
        return hr_json_fail_memory(reader->source);
    m->files = files;
    m->files[m->n_files++] = file;
    return 0;
}

static int compare_files(const void *a, const void *b)
{
    return strcmp(((const struct hr_manifest_file *) a)->name,
                  ((const struct hr_manifest_file *) b)->name);
}

void hr_manifest_sort_files(struct hr_manifest *manifest)
{
    if (manifest->n_files)
        qsort(manifest->files, manifest->n_files, sizeof(*manifest->files), compare_files);
}

const struct hr_manifest_file *hr_manifest_find_file(const struct hr_manifest *manifest,
                                                     const char *name)
{
    const struct hr_manifest_file key = {.name = name};

    return manifest->n_files
               ? bsearch(&key, manifest->files, manifest->n_files, sizeof(key), compare_files)
               : NULL;
}

static int compare_tensors(const void *a, const void *b)
{
    return strcmp(((const struct hr_manifest_tensor *) a)->name,
                  ((const struct hr_manifest_tensor *) b)->name);
}

static int add_tensor(struct reader *reader, const char *name, const json_t *value)
{
    struct hr_manifest *m = &reader->manifest;
    const json_t *range = json_object_get(value, "range");
    const char *type = json_string_value(json_object_get(value, "type"));
    const char *file_name = json_string_value(json_object_get(value, "file"));
    struct hr_manifest_tensor tensor = {.name = name};
    uint64_t end;

    if (!json_is_object(value) || json_object_size(value) != 4 || !type || !file_name ||
        json_array_size(range) != 2 ||
        !hr_json_get_u64(json_array_get(range, 0), &tensor.begin_bytes) ||
        !hr_json_get_u64(json_array_get(range, 1), &end) ||
        !get_hash(json_object_get(value, "data"), &tensor.hash))
        return fail(reader, "tensor", name,
                    "expected file, type, range of two integers, and data, a hash of 32 digits");
    const struct hr_manifest_file *file = hr_manifest_find_file(m, file_name);

    if (!file)
        return fail(reader, "tensor", name, "its file is not among the files");
    if (tensor.begin_bytes > end || end > file->size_bytes)
        return fail(reader, "tensor", name, "its range is not inside its file");
    tensor.file_idx = (uint32_t) (file - m->files);
    tensor.size_bytes = end - tensor.begin_bytes;
    tensor.type = hr_arena_strdup(reader->arena, type);
    struct hr_manifest_tensor *tensors =
        hr_array_grow(m->tensors, m->n_tensors, &reader->n_tensors_max, sizeof(*m->tensors));

    if (tensors)
        m->tensors = tensors;
    if (!tensors || !tensor.type)
        return hr_json_fail_memory(reader->source);
    m->tensors[m->n_tensors++] = tensor;
    return 0;
}

/* What takes one value. */
typedef int take_value(struct reader *reader, const char *key, const json_t *value);

static int visit(struct reader *reader, const struct hr_json_object *object,
                 const struct hr_json_member *member, take_value *take)
{
    json_t *value;
    int r = hr_json_load_member(&value, object, member);

    if (r < 0)
        return r;
    r = take(reader, member->key, value);
    json_decref(value);
    return r;
}

static int visit_file(void *user, const struct hr_json_object *object,
                      const struct hr_json_member *member)
{
    return visit(user, object, member, add_file);
}

static int visit_tensor(void *user, const struct hr_json_object *object,
                        const struct hr_json_member *member)
{
    return visit(user, object, member, add_tensor);
}

/* ---- the whole ---------------------------------------------------------------------- */

static int read_value(struct reader *reader, const char *key, const json_t *value)
{
    if (strcmp(key, "headrace_manifest") == 0) {
        reader->has_version = true;
        return json_is_integer(value) && json_integer_value(value) == VERSION
                   ? 0
                   : fail(reader, "key", key, "another version than 1, which alone is understood");
    }
    if (strcmp(key, "hash") == 0) {
        reader->has_hash = true;
        return json_is_string(value) && strcmp(json_string_value(value), hash_name) == 0
                   ? 0
                   : fail(reader, "key", key, "another hash than xxh3-128, which alone is known");
    }
    if (strcmp(key, "config") != 0)
        return fail(reader, "key", key, "is not known");
    reader->manifest.has_config = true;
    return get_hash(value, &reader->manifest.config)
               ? 0
               : fail(reader, "key", key, "expected a hash of 32 digits");
}

/* Files before tensors, which name them; the text may have them in any order. */
static int visit_member(void *user, const struct hr_json_object *object,
                        const struct hr_json_member *member)
{
    struct reader *reader = user;

    if (strcmp(member->key, "files") == 0)
        reader->files = member->value;
    else if (strcmp(member->key, "tensors") == 0)
        reader->tensors = member->value;
    else
        return visit(reader, object, member, read_value);
    return 0;
}

static int read_members(struct reader *reader)
{
    const struct hr_json_source *source = reader->source;
    int r =
        hr_json_each(source, hr_json_span_of(source), "key", reader->arena, visit_member, reader);

    if (r == 0 && (!reader->has_version || !reader->has_hash || !reader->files.begin ||
                   !reader->tensors.begin))
        r = hr_error_set(source->err, -EBADMSG,
                         "%s: no manifest of checksums: it lacks headrace_manifest, hash, files or "
                         "tensors",
                         source->what);
    return r;
}

static int read_lists(struct reader *reader)
{
    struct hr_manifest *m = &reader->manifest;
    int r = hr_json_each(reader->source, reader->files, "file", reader->arena, visit_file, reader);

    if (r < 0)
        return r;
    hr_manifest_sort_files(m);
    r = hr_json_each(reader->source, reader->tensors, "tensor", reader->arena, visit_tensor,
                     reader);
    if (r == 0 && m->n_tensors)
        qsort(m->tensors, m->n_tensors, sizeof(*m->tensors), compare_tensors);
    return r;
}

int hr_manifest_parse(struct hr_manifest *ret_manifest, const char *json, size_t json_bytes,
                      const char *what, struct hr_error *err)
{
    const struct hr_json_source source = {json, json_bytes, what, err};
    struct hr_arena arena = {0};
    struct reader reader = {.source = &source, .arena = &arena};
    int r;

    if (json_bytes > HR_MANIFEST_BYTES_MAX)
        return hr_error_set(err, -EBADMSG, "%s: a manifest of %zu bytes, at most %d are allowed",
                            what, json_bytes, (int) HR_MANIFEST_BYTES_MAX);
    r = read_members(&reader);
    if (r == 0)
        r = read_lists(&reader);
    reader.manifest.storage = arena.last;
    if (r < 0)
        hr_manifest_uninit(&reader.manifest);
    else
        *ret_manifest = reader.manifest;
    return r;
}

void hr_manifest_uninit(struct hr_manifest *manifest)
{
    struct hr_arena arena = {.last = manifest->storage};

    free(manifest->files);
    free(manifest->tensors);
    hr_arena_uninit(&arena);
    *manifest = (struct hr_manifest){0};
}

/* ---- writing ------------------------------------------------------------------------ */

/* A string in quotes. @return false: it is no UTF-8, or there is no memory */
static bool print_string(FILE *f, const char *text)
{
    json_t *string = json_string(text);
    const bool good = string && json_dumpf(string, f, JSON_ENCODE_ANY) == 0;

    json_decref(string);
    return good;
}

static void print_hash(FILE *f, const char *key, struct hr_hash hash)
{
    fprintf(f, "\"%s\": \"%016" PRIx64 "%016" PRIx64 "\"", key, hash.high, hash.low);
}

static bool print_manifest(FILE *f, const struct hr_manifest *m)
{
    bool good = true;

    fprintf(f, "{\"headrace_manifest\": %d, \"hash\": \"%s\",\n", VERSION, hash_name);
    if (m->has_config) {
        print_hash(f, "config", m->config);
        fputs(",\n", f);
    }
    fputs("\"files\": {\n", f);
    for (uint32_t i = 0; i < m->n_files; i++) {
        const struct hr_manifest_file *file = &m->files[i];

        good = print_string(f, file->name) && good;
        fprintf(f, ": {\"size_bytes\": %" PRIu64 ", \"mtime_ns\": %" PRIu64 ", ", file->size_bytes,
                file->mtime_ns);
        print_hash(f, "header", file->header);
        fputs(i + 1 < m->n_files ? "},\n" : "}\n", f);
    }
    fputs("},\n\"tensors\": {\n", f);
    for (uint32_t i = 0; i < m->n_tensors; i++) {
        const struct hr_manifest_tensor *t = &m->tensors[i];

        good = print_string(f, t->name) && good;
        fputs(": {\"file\": ", f);
        good = print_string(f, m->files[t->file_idx].name) && good;
        fputs(", \"type\": ", f);
        good = print_string(f, t->type) && good;
        fprintf(f, ", \"range\": [%" PRIu64 ", %" PRIu64 "], ", t->begin_bytes,
                t->begin_bytes + t->size_bytes);
        print_hash(f, "data", t->hash);
        fputs(i + 1 < m->n_tensors ? "},\n" : "}\n", f);
    }
    fputs("}}\n", f);
    return good;
}

int hr_manifest_build(char **ret_text, size_t *ret_bytes, const struct hr_manifest *manifest,
                      struct hr_error *err)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);

    if (!f)
        return hr_error_set(err, -ENOMEM, "out of memory for a manifest");
    const bool good = print_manifest(f, manifest);
    const bool is_written = !ferror(f);

    if (fclose(f) != 0 || !is_written || !good) {
        free(text);
        return good ? hr_error_set(err, -ENOMEM, "out of memory for a manifest")
                    : hr_error_set(err, -EINVAL,
                                   "the name of a file or tensor is no UTF-8, which a manifest "
                                   "cannot hold, or there is no memory for it");
    }
    *ret_text = text;
    *ret_bytes = bytes;
    return 0;
}
