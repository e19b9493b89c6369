/* SPDX-License-Identifier: Apache-2.0 */
/* verify.c -- checksums of a whole model, made or compared, in one pass at the disk's speed. */
#include "engine/verify.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/checkpoint.h"
#include "engine/files.h"

enum { SHAPE_BYTES = 64 * 22, TYPE_BYTES = SHAPE_BYTES + 16, NAME_BYTES = 160 };

/* ---- one tensor after another ------------------------------------------------------- */

static struct hr_hash to_hash(XXH128_hash_t hash)
{
    return (struct hr_hash){.high = hash.high64, .low = hash.low64};
}

int hr_tensor_hash_init(struct hr_tensor_hash *hash, struct hr_error *err)
{
    *hash = (struct hr_tensor_hash){.state = XXH3_createState()};
    if (!hash->state)
        return hr_error_set(err, -ENOMEM, "no memory for checksums");
    return 0;
}

void hr_tensor_hash_uninit(struct hr_tensor_hash *hash)
{
    XXH3_freeState(hash->state);
    *hash = (struct hr_tensor_hash){0};
}

bool hr_tensor_hash_add(struct hr_tensor_hash *hash, const struct hr_unit *unit,
                        struct hr_hash *ret_hash)
{
    if (hash->done_bytes == 0)
        XXH3_128bits_reset(hash->state);
    XXH3_128bits_update(hash->state, unit->data, unit->size_bytes);
    hash->done_bytes += unit->size_bytes;
    if (hash->done_bytes < unit->tensor->size_bytes)
        return false;
    hash->done_bytes = 0;
    *ret_hash = to_hash(XXH3_128bits_digest(hash->state));
    return true;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

static const char *tensor_type(char buf[TYPE_BYTES], const struct hr_tensor *tensor)
{
    char shape[SHAPE_BYTES];

    snprintf(buf, TYPE_BYTES, "%s [%s]", hr_dtype_name(tensor->dtype),
             hr_shape_print(tensor, shape, sizeof(shape)));
    return buf;
}

bool hr_manifest_agrees(const struct hr_manifest_tensor *listed, const struct hr_tensor *tensor)
{
    char type[TYPE_BYTES];

    return listed->size_bytes == tensor->size_bytes &&
           strcmp(listed->type, tensor_type(type, tensor)) == 0;
}

static int compare_name(const void *key, const void *element)
{
    return strcmp(key, ((const struct hr_manifest_tensor *) element)->name);
}

const struct hr_manifest_tensor *hr_manifest_find(const struct hr_manifest *manifest,
                                                  const char *name)
{
    if (manifest->n_tensors == 0)
        return NULL;
    return bsearch(name, manifest->tensors, manifest->n_tensors, sizeof(*manifest->tensors),
                   compare_name);
}

/* ---- all tensors, in the order of the files ----------------------------------------- */

static int in_file_order(const void *a, const void *b)
{
    const struct hr_tensor *x = *(const struct hr_tensor *const *) a;
    const struct hr_tensor *y = *(const struct hr_tensor *const *) b;

    if (x->shard_idx != y->shard_idx)
        return x->shard_idx < y->shard_idx ? -1 : 1;
    if (x->offset_bytes != y->offset_bytes)
        return x->offset_bytes < y->offset_bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* @return an array of all tensors, free() it, or NULL without memory */
static const struct hr_tensor **list_tensors(const struct hr_checkpoint *checkpoint)
{
    const uint32_t n = hr_checkpoint_n_tensors(checkpoint);
    const struct hr_tensor **tensors = calloc(n ? n : 1, sizeof(*tensors));

    if (!tensors)
        return NULL;
    for (uint32_t i = 0; i < n; i++)
        tensors[i] = hr_checkpoint_tensor(checkpoint, i);
    qsort(tensors, n, sizeof(*tensors), in_file_order);
    return tensors;
}

typedef void hashed_fn(void *user, const struct hr_tensor *tensor, struct hr_hash hash);

static int open_stream(struct hr_stream **ret_stream, const struct hr_checkpoint *checkpoint,
                       const struct hr_verify_params *params, const struct hr_tensor *const *list,
                       uint32_t n, struct hr_error *err)
{
    const char **names = calloc(n, sizeof(*names));
    int r;

    if (!names)
        return hr_error_set(err, -ENOMEM, "no memory for %u names", n);
    for (uint32_t i = 0; i < n; i++)
        names[i] = list[i]->name;
    r = hr_stream_open(ret_stream, checkpoint, &params->stream, err);
    if (r == 0)
        r = hr_stream_plan(*ret_stream, names, n, 0, 1, err);
    free(names);
    return r;
}

/* Hash the tensors listed. */
static int hash_all(const struct hr_checkpoint *checkpoint, const struct hr_verify_params *params,
                    const struct hr_tensor *const *list, uint32_t n, hashed_fn *hashed, void *user,
                    struct hr_verify_stats *stats, struct hr_error *err)
{
    const uint64_t begin_ns = hr_now_ns();
    struct hr_tensor_hash hash = {0};
    struct hr_stream *stream = NULL;
    uint64_t total_bytes = 0;
    struct hr_unit unit;
    struct hr_hash value;
    int r;

    if (n == 0)
        return 0;
    for (uint32_t i = 0; i < n; i++)
        total_bytes += list[i]->size_bytes;
    r = hr_tensor_hash_init(&hash, err);
    if (r == 0)
        r = open_stream(&stream, checkpoint, params, list, n, err);
    while (r == 0 && (r = hr_stream_next(stream, &unit, err)) == 1) {
        stats->bytes += unit.size_bytes;
        if (hr_tensor_hash_add(&hash, &unit, &value)) {
            stats->n_tensors++;
            hashed(user, unit.tensor, value);
        }
        hr_stream_release(stream, &unit);
        r = params->cancel && *params->cancel ? hr_error_set(err, -ECANCELED, "interrupted") : 0;
        if (params->progress)
            params->progress(params->progress_user, stats->bytes, total_bytes);
    }
    if (stream)
        hr_stream_get_stats(stream, &stats->stream);
    hr_stream_close(&stream);
    hr_tensor_hash_uninit(&hash);
    stats->wall_ns = hr_now_ns() - begin_ns;
    return r;
}

/* The 8 bytes of length and the JSON. */
static int hash_header(const struct hr_checkpoint *checkpoint, uint32_t shard_idx,
                       struct hr_hash *ret_hash, uint64_t *ret_bytes, struct hr_error *err)
{
    struct hr_header_text text;
    const int r = hr_header_read(&text, hr_checkpoint_fd(checkpoint, shard_idx),
                                 hr_checkpoint_shard(checkpoint, shard_idx)->size_bytes,
                                 hr_checkpoint_shard_shown(checkpoint, shard_idx), err);

    if (r < 0)
        return r;
    *ret_bytes = 8 + text.json_bytes;
    *ret_hash = to_hash(XXH3_128bits(text.bytes, *ret_bytes));
    free(text.bytes);
    return 0;
}

static bool config_hash(const struct hr_checkpoint *checkpoint, struct hr_hash *ret_hash)
{
    const char *config = hr_checkpoint_config(checkpoint);

    if (config)
        *ret_hash = to_hash(XXH3_128bits(config, strlen(config)));
    return config != NULL;
}

/* ---- making ------------------------------------------------------------------------- */

/* A manifest whose strings are the checkpoint's, and `types`. */
struct making {
    const struct hr_checkpoint *checkpoint;
    struct hr_manifest manifest;
    uint32_t *file_of_shard; /* place of each shard among the files */
    char **types;            /* n_tensors */
    bool complete;           /* there was memory for all of it      */
};

static int make_files(struct making *making, struct hr_error *err)
{
    struct hr_manifest *m = &making->manifest;
    char shown[NAME_BYTES];

    for (uint32_t i = 0; i < m->n_files; i++) {
        const struct hr_shard *shard = hr_checkpoint_shard(making->checkpoint, i);
        struct hr_manifest_file *file = &m->files[i];
        uint64_t header_bytes;
        struct stat st;
        const int r = hash_header(making->checkpoint, i, &file->header, &header_bytes, err);

        if (r < 0)
            return r;
        file->name = base_name(shard->path);
        file->size_bytes = shard->size_bytes;
        if (fstat(hr_checkpoint_fd(making->checkpoint, i), &st) == 0 && st.st_mtim.tv_sec >= 0)
            file->mtime_ns =
                (uint64_t) st.st_mtim.tv_sec * 1000000000u + (uint64_t) st.st_mtim.tv_nsec;
    }
    hr_manifest_sort_files(m);
    for (uint32_t i = 1; i < m->n_files; i++)
        if (strcmp(m->files[i - 1].name, m->files[i].name) == 0)
            return hr_error_set(err, -EINVAL,
                                "two files of the model are called %s; a manifest tells files by "
                                "their names",
                                hr_printable(m->files[i].name, shown, sizeof(shown)));
    for (uint32_t i = 0; i < m->n_files; i++) {
        const char *path = hr_checkpoint_shard(making->checkpoint, i)->path;
        const struct hr_manifest_file *file = hr_manifest_find_file(m, base_name(path));

        making->file_of_shard[i] = (uint32_t) (file - m->files);
    }
    return 0;
}

static void add_hashed(void *user, const struct hr_tensor *tensor, struct hr_hash hash)
{
    struct making *making = user;
    struct hr_manifest *m = &making->manifest;
    char type[TYPE_BYTES];
    char *copy = strdup(tensor_type(type, tensor));

    making->complete = making->complete && copy;
    making->types[m->n_tensors] = copy;
    m->tensors[m->n_tensors++] = (struct hr_manifest_tensor){
        .name = tensor->name,
        .type = copy,
        .file_idx = making->file_of_shard[tensor->shard_idx],
        .begin_bytes = tensor->offset_bytes,
        .size_bytes = tensor->size_bytes,
        .hash = hash,
    };
}

static int make(struct making *making, const struct hr_verify_params *params, struct hr_error *err)
{
    const struct hr_checkpoint *checkpoint = making->checkpoint;
    const uint32_t n = hr_checkpoint_n_tensors(checkpoint);
    const struct hr_tensor **list = list_tensors(checkpoint);
    struct hr_manifest *m = &making->manifest;
    struct hr_verify_stats stats = {0};
    int r;

    m->n_files = hr_checkpoint_n_shards(checkpoint);
    m->files = calloc(m->n_files, sizeof(*m->files));
    m->tensors = calloc(n ? n : 1, sizeof(*m->tensors));
    making->file_of_shard = calloc(m->n_files, sizeof(*making->file_of_shard));
    making->types = calloc(n ? n : 1, sizeof(*making->types));
    making->complete = list && m->files && m->tensors && making->file_of_shard && making->types;
    r = making->complete ? make_files(making, err) : 0;
    if (r == 0 && making->complete)
        r = hash_all(checkpoint, params, list, n, add_hashed, making, &stats, err);
    if (r == 0 && !making->complete)
        r = hr_error_set(err, -ENOMEM, "no memory for a manifest of %u tensors", n);
    m->has_config = config_hash(checkpoint, &m->config);
    free(list);
    return r;
}

int hr_manifest_make(struct hr_manifest **ret_manifest, const struct hr_checkpoint *checkpoint,
                     const struct hr_verify_params *params, struct hr_error *err)
{
    static const struct hr_verify_params defaults;
    struct making making = {.checkpoint = checkpoint};
    struct hr_manifest *manifest = calloc(1, sizeof(*manifest));
    char *text = NULL;
    size_t bytes = 0;
    int r = manifest ? make(&making, params ? params : &defaults, err)
                     : hr_error_set(err, -ENOMEM, "no memory for a manifest");

    /* Through its text, which gives a copy that owns its names, sorted, and known to read back. */
    if (r == 0)
        r = hr_manifest_build(&text, &bytes, &making.manifest, err);
    if (r == 0)
        r = hr_manifest_parse(manifest, text, bytes, "manifest", err);
    free(text);
    for (uint32_t i = 0; i < making.manifest.n_tensors; i++)
        free(making.types[i]);
    free(making.types);
    free(making.file_of_shard);
    free(making.manifest.tensors);
    free(making.manifest.files);
    if (r == 0)
        *ret_manifest = manifest;
    else
        free(manifest);
    return r;
}

/* ---- comparing ---------------------------------------------------------------------- */

struct comparison {
    const struct hr_checkpoint *checkpoint;
    const struct hr_manifest *manifest;
    hr_damage_fn *damage;
    void *user;
    int n; /* differences */
};

static void found(struct comparison *c, const struct hr_damage *damage)
{
    c->n++;
    if (c->damage)
        c->damage(c->user, damage);
}

static void found_tensor(struct comparison *c, enum hr_damage_kind kind,
                         const struct hr_tensor *tensor, const char *was, const char *is)
{
    const struct hr_damage damage = {
        .kind = kind,
        .file = base_name(hr_checkpoint_shard(c->checkpoint, tensor->shard_idx)->path),
        .tensor = tensor->name,
        .begin_bytes = tensor->offset_bytes,
        .size_bytes = tensor->size_bytes,
        .was = was,
        .is = is,
    };
    found(c, &damage);
}

static int compare_file(struct comparison *c, uint32_t shard_idx, struct hr_error *err)
{
    const struct hr_shard *shard = hr_checkpoint_shard(c->checkpoint, shard_idx);
    const char *name = base_name(shard->path);
    const struct hr_manifest_file *listed = hr_manifest_find_file(c->manifest, name);
    struct hr_damage damage = {.file = name, .size_bytes = shard->size_bytes};
    struct hr_hash header = {0};
    uint64_t header_bytes = 0;
    char was[32], is[32];
    int r;

    damage.kind = listed ? HR_DAMAGE_FILE_SIZE : HR_DAMAGE_FILE_EXTRA;
    if (listed) {
        snprintf(was, sizeof(was), "%llu bytes", (unsigned long long) listed->size_bytes);
        snprintf(is, sizeof(is), "%llu bytes", (unsigned long long) shard->size_bytes);
        damage.was = was;
        damage.is = is;
    }
    if (!listed || listed->size_bytes != shard->size_bytes)
        found(c, &damage);
    if (!listed)
        return 0;
    r = hash_header(c->checkpoint, shard_idx, &header, &header_bytes, err);
    if (r == 0 && !hr_hash_equal(header, listed->header))
        found(c, &(struct hr_damage){
                     .kind = HR_DAMAGE_HEADER, .file = name, .size_bytes = header_bytes});
    return r;
}

static bool has_file(const struct hr_checkpoint *checkpoint, const char *name)
{
    for (uint32_t i = 0; i < hr_checkpoint_n_shards(checkpoint); i++)
        if (strcmp(base_name(hr_checkpoint_shard(checkpoint, i)->path), name) == 0)
            return true;
    return false;
}

int hr_verify_files(const struct hr_checkpoint *checkpoint, const struct hr_manifest *manifest,
                    hr_damage_fn *damage, void *user, struct hr_error *err)
{
    struct comparison c = {checkpoint, manifest, damage, user, 0};
    struct hr_hash config = {0};
    const bool has_config = config_hash(checkpoint, &config);

    for (uint32_t i = 0; i < hr_checkpoint_n_shards(checkpoint); i++) {
        const int r = compare_file(&c, i, err);

        if (r < 0)
            return r;
    }
    for (uint32_t i = 0; i < manifest->n_files; i++)
        if (!has_file(checkpoint, manifest->files[i].name))
            found(&c, &(struct hr_damage){.kind = HR_DAMAGE_FILE_MISSING,
                                          .file = manifest->files[i].name,
                                          .size_bytes = manifest->files[i].size_bytes});
    if (has_config != manifest->has_config ||
        (has_config && !hr_hash_equal(config, manifest->config)))
        found(&c, &(struct hr_damage){.kind = HR_DAMAGE_CONFIG, .file = "config.json"});
    return c.n;
}

/* Leave in the list what is to be hashed; report the others. @return how many are left */
static uint32_t choose(struct comparison *c, const struct hr_tensor **list, uint32_t n)
{
    char type[TYPE_BYTES];
    uint32_t n_left = 0;

    for (uint32_t i = 0; i < n; i++) {
        const struct hr_manifest_tensor *listed = hr_manifest_find(c->manifest, list[i]->name);

        if (!listed)
            found_tensor(c, HR_DAMAGE_TENSOR_EXTRA, list[i], NULL, NULL);
        else if (!hr_manifest_agrees(listed, list[i]))
            found_tensor(c, HR_DAMAGE_TENSOR_TYPE, list[i], listed->type,
                         tensor_type(type, list[i]));
        else
            list[n_left++] = list[i];
    }
    return n_left;
}

static void compare_hashed(void *user, const struct hr_tensor *tensor, struct hr_hash hash)
{
    struct comparison *c = user;

    if (!hr_hash_equal(hr_manifest_find(c->manifest, tensor->name)->hash, hash))
        found_tensor(c, HR_DAMAGE_TENSOR_DATA, tensor, NULL, NULL);
}

static void find_missing(struct comparison *c)
{
    for (uint32_t i = 0; i < c->manifest->n_tensors; i++) {
        const struct hr_manifest_tensor *listed = &c->manifest->tensors[i];
        const struct hr_damage damage = {
            .kind = HR_DAMAGE_TENSOR_MISSING,
            .file = c->manifest->files[listed->file_idx].name,
            .tensor = listed->name,
            .begin_bytes = listed->begin_bytes,
            .size_bytes = listed->size_bytes,
        };

        if (!hr_checkpoint_find(c->checkpoint, listed->name))
            found(c, &damage);
    }
}

/* A manifest of another model would give a line for each tensor of both. */
static int check_related(const struct comparison *c, struct hr_error *err)
{
    const uint32_t n = hr_checkpoint_n_tensors(c->checkpoint);

    for (uint32_t i = 0; i < n; i++)
        if (hr_manifest_find(c->manifest, hr_checkpoint_tensor(c->checkpoint, i)->name))
            return 0;
    if (n == 0 && c->manifest->n_tensors == 0)
        return 0;
    return hr_error_set(err, -EINVAL,
                        "%s: the manifest is of another model: none of the %u tensors that it "
                        "lists is among the model's %u",
                        hr_checkpoint_path(c->checkpoint), c->manifest->n_tensors, n);
}

int hr_verify(const struct hr_checkpoint *checkpoint, const struct hr_manifest *manifest,
              const struct hr_verify_params *params, hr_damage_fn *damage, void *user,
              struct hr_verify_stats *ret_stats, struct hr_error *err)
{
    static const struct hr_verify_params defaults;
    struct comparison c = {checkpoint, manifest, damage, user, 0};
    const struct hr_tensor **list = NULL;
    struct hr_verify_stats stats = {0};
    int r = check_related(&c, err);

    if (r == 0)
        r = hr_verify_files(checkpoint, manifest, damage, user, err);
    if (r < 0)
        return r;
    c.n = r;
    list = list_tensors(checkpoint);
    if (!list)
        return hr_error_set(err, -ENOMEM, "no memory for a list of tensors");
    const uint32_t n = choose(&c, list, hr_checkpoint_n_tensors(checkpoint));

    r = hash_all(checkpoint, params ? params : &defaults, list, n, compare_hashed, &c, &stats, err);
    free(list);
    if (r < 0)
        return r;
    find_missing(&c);
    if (ret_stats)
        *ret_stats = stats;
    return c.n;
}
