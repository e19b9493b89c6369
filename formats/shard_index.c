/* SPDX-License-Identifier: Apache-2.0 */
/* shard_index.c -- model.safetensors.index.json: `{"weight_map": {tensor: file}}`.
 *
 * The file names come from strangers and will be opened, so here they become names of files beside
 * the index or nothing at all.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "formats/arena.h"
#include "formats/formats.h"
#include "formats/json_strict.h"

enum { NAME_BYTES = 200, FILE_NAME_BYTES_MAX = 255 };

/* A tensor and its file while the index is being read. */
struct pair {
    const char *tensor, *file;
};

struct reader {
    const struct hr_json_source *source;
    struct hr_arena *arena;
    struct pair *pairs;
    size_t n_pairs, n_pairs_max;
    bool has_map;
};

/* @return NULL, or what is wrong with the name of a shard */
static const char *shard_name_problem(const char *name)
{
    static const char suffix[] = ".safetensors";
    const size_t n_suffix = sizeof(suffix) - 1;
    const size_t n = strlen(name);

    if (strpbrk(name, "/\\"))
        return "is no plain file name: it leads out of the model's folder or may do so";
    if (n <= n_suffix || strcmp(name + n - n_suffix, suffix) != 0)
        return "does not end in .safetensors";
    if (n > FILE_NAME_BYTES_MAX)
        return "is longer than 255 bytes";
    for (; *name; name++) {
        if ((unsigned char) *name < 0x20 || *name == 0x7f)
            return "holds a control character";
    }
    return NULL;
}

static int add_pair(struct reader *reader, const char *tensor, const json_t *value)
{
    const struct hr_json_source *source = reader->source;
    char name[NAME_BYTES], file[NAME_BYTES];
    const char *problem, *copy;

    hr_printable(tensor, name, sizeof(name));
    if (!json_is_string(value))
        return hr_error_set(source->err, -EBADMSG,
                            "%s: tensor \"%s\": the name of its file is no string", source->what,
                            name);
    problem = shard_name_problem(json_string_value(value));
    if (problem)
        return hr_error_set(source->err, -EBADMSG, "%s: tensor \"%s\": file \"%s\" %s",
                            source->what, name,
                            hr_printable(json_string_value(value), file, sizeof(file)), problem);
    struct pair *pairs =
        hr_array_grow(reader->pairs, reader->n_pairs, &reader->n_pairs_max, sizeof(*pairs));

    if (!pairs)
        return hr_json_fail_memory(source);
    reader->pairs = pairs;
    /* Tensors of one file mostly follow one another. */
    if (reader->n_pairs &&
        strcmp(reader->pairs[reader->n_pairs - 1].file, json_string_value(value)) == 0)
        copy = reader->pairs[reader->n_pairs - 1].file;
    else
        copy = hr_arena_strdup(reader->arena, json_string_value(value));
    if (!copy)
        return hr_json_fail_memory(reader->source);
    reader->pairs[reader->n_pairs++] = (struct pair){tensor, copy};
    return 0;
}

static int visit_pair(void *user, const struct hr_json_object *object,
                      const struct hr_json_member *member)
{
    json_t *value;
    int r = hr_json_load_member(&value, object, member);

    if (r < 0)
        return r;
    r = add_pair(user, member->key, value);
    json_decref(value);
    return r;
}

static int visit_member(void *user, const struct hr_json_object *object,
                        const struct hr_json_member *member)
{
    struct reader *reader = user;
    json_t *value;
    int r;

    if (strcmp(member->key, "weight_map") == 0) {
        reader->has_map = true;
        if (*member->value.begin != '{')
            return hr_error_set(reader->source->err, -EBADMSG, "%s: weight_map is no object",
                                reader->source->what);
        return hr_json_each(reader->source, member->value, "tensor", reader->arena, visit_pair,
                            reader);
    }
    r = hr_json_load_member(&value, object, member);
    if (r == 0)
        json_decref(value);
    return r;
}

static int read_members(struct reader *reader)
{
    const struct hr_json_source *source = reader->source;
    const int r =
        hr_json_each(source, hr_json_span_of(source), "key", reader->arena, visit_member, reader);

    if (r == 0 && reader->n_pairs == 0)
        return hr_error_set(source->err, -EBADMSG, "%s: %s", source->what,
                            reader->has_map ? "weight_map is empty"
                                            : "no weight_map; expected an index, "
                                              "{\"weight_map\": {TENSOR: FILE}}");
    return r;
}

static int compare_files(const void *a, const void *b)
{
    const struct pair *pa = a, *pb = b;

    return strcmp(pa->file, pb->file);
}

static int compare_entries(const void *a, const void *b)
{
    const struct hr_index_entry *ea = a, *eb = b;

    return strcmp(ea->name, eb->name);
}

/* Number the files and put both lists in order. */
static int build(struct hr_index *ret_index, const struct reader *reader)
{
    const size_t n = reader->n_pairs;
    const char **shards = malloc(n * sizeof(*shards));
    struct hr_index_entry *entries = malloc(n * sizeof(*entries));
    uint32_t n_shards = 0;

    if (!shards || !entries) {
        free(shards);
        free(entries);
        return hr_json_fail_memory(reader->source);
    }
    qsort(reader->pairs, n, sizeof(*reader->pairs), compare_files);
    for (size_t i = 0; i < n; i++) {
        if (n_shards == 0 || strcmp(shards[n_shards - 1], reader->pairs[i].file) != 0)
            shards[n_shards++] = reader->pairs[i].file;
        entries[i] = (struct hr_index_entry){reader->pairs[i].tensor, n_shards - 1};
    }
    qsort(entries, n, sizeof(*entries), compare_entries);
    *ret_index = (struct hr_index){
        .shards = shards,
        .n_shards = n_shards,
        .entries = entries,
        .n_entries = (uint32_t) n,
        .storage = reader->arena->last,
    };
    return 0;
}

int hr_index_parse(struct hr_index *ret_index, const char *json, size_t json_bytes,
                   const char *what, struct hr_error *err)
{
    const struct hr_json_source source = {json, json_bytes, what, err};
    struct hr_arena arena = {0};
    struct reader reader = {.source = &source, .arena = &arena};
    int r;

    if (json_bytes > HR_HEADER_BYTES_MAX)
        return hr_error_set(err, -EBADMSG, "%s: an index of %zu bytes, at most %d are allowed",
                            what, json_bytes, (int) HR_HEADER_BYTES_MAX);
    r = read_members(&reader);
    if (r == 0)
        r = build(ret_index, &reader);
    free(reader.pairs);
    if (r < 0)
        hr_arena_uninit(&arena);
    return r;
}

void hr_index_uninit(struct hr_index *index)
{
    struct hr_arena arena = {.last = index->storage};

    free(index->shards);
    free(index->entries);
    hr_arena_uninit(&arena);
    *index = (struct hr_index){0};
}
