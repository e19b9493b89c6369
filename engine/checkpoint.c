/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint.c -- headers of all shards -> one table of tensors, sorted by name.
 *
 * Names and shapes stay where the headers' parser put them; the table only points to them. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/files.h"
#include "engine/model_files.h"

enum { NAME_BYTES = 160, READ_BYTES = 64 << 10, MISSING_SHOWN = 3 };

static const char ZERO_COND_MARKER[] = "__index_timestep_zero__";

struct hr_checkpoint {
    struct hr_model_files files;
    struct hr_header *headers; /* n_shards */
    struct hr_shard *shards;   /* n_shards */
    struct hr_tensor *tensors;
    uint32_t n_tensors;
};

static int no_memory(const struct hr_checkpoint *checkpoint, struct hr_error *err)
{
    return hr_error_set(err, -ENOMEM, "%s: no memory for the table of tensors",
                        checkpoint->files.shown);
}

/* ---- headers ------------------------------------------------------------------------ */

static int read_header(struct hr_header *ret_header, const struct hr_model_file *file,
                       struct hr_error *err)
{
    struct hr_header_text text;
    int r = hr_header_read(&text, file->fd, file->size_bytes, file->shown, err);

    if (r < 0)
        return r;
    r = hr_header_parse(ret_header, text.json, text.json_bytes, file->size_bytes, file->shown, err);
    free(text.bytes);
    return r;
}

static int compare_tensors(const void *a, const void *b)
{
    const struct hr_tensor *x = a, *y = b;
    const int order = strcmp(x->name, y->name);

    if (order != 0)
        return order;
    return (x->shard_idx > y->shard_idx) - (x->shard_idx < y->shard_idx);
}

static void sort_tensors(struct hr_checkpoint *checkpoint)
{
    qsort(checkpoint->tensors, checkpoint->n_tensors, sizeof(*checkpoint->tensors),
          compare_tensors);
}

/* Every tensor of every shard, sorted by name. */
static int gather(struct hr_checkpoint *checkpoint, struct hr_error *err)
{
    const uint32_t n_shards = checkpoint->files.n_shards;
    uint64_t n = 0;

    checkpoint->headers = calloc(n_shards ? n_shards : 1, sizeof(*checkpoint->headers));
    checkpoint->shards = calloc(n_shards ? n_shards : 1, sizeof(*checkpoint->shards));
    if (!checkpoint->headers || !checkpoint->shards)
        return no_memory(checkpoint, err);
    for (uint32_t i = 0; i < n_shards; i++) {
        const struct hr_model_file *file = &checkpoint->files.shards[i];
        const int r = read_header(&checkpoint->headers[i], file, err);

        if (r < 0)
            return r;
        checkpoint->shards[i] = (struct hr_shard){file->path, file->size_bytes, 0};
        n += checkpoint->headers[i].n_entries;
    }
    checkpoint->tensors = n > UINT32_MAX ? NULL : calloc(n ? n : 1, sizeof(*checkpoint->tensors));
    if (!checkpoint->tensors)
        return no_memory(checkpoint, err);
    for (uint32_t i = 0; i < n_shards; i++) {
        for (uint32_t k = 0; k < checkpoint->headers[i].n_entries; k++) {
            const struct hr_entry *entry = &checkpoint->headers[i].entries[k];

            checkpoint->tensors[checkpoint->n_tensors++] = (struct hr_tensor){
                .name = entry->name,
                .dtype = entry->dtype,
                .rank = entry->rank,
                .shape = entry->shape,
                .shard_idx = i,
                .offset_bytes = entry->begin_bytes,
                .size_bytes = entry->size_bytes,
            };
        }
    }
    sort_tensors(checkpoint);
    return 0;
}

/* ---- which of them are the model ---------------------------------------------------- */

static int check_unique(const struct hr_checkpoint *checkpoint, struct hr_error *err)
{
    char name[NAME_BYTES];

    for (uint32_t i = 1; i < checkpoint->n_tensors; i++) {
        const struct hr_tensor *a = &checkpoint->tensors[i - 1], *b = &checkpoint->tensors[i];

        if (strcmp(a->name, b->name) != 0)
            continue;
        hr_printable(a->name, name, sizeof(name));
        if (a->shard_idx == b->shard_idx)
            return hr_error_set(err, -EBADMSG,
                                "%s: two tensors are called \"%s\" once their prefix is gone; the "
                                "file holds two models, keep one of them",
                                checkpoint->files.shards[a->shard_idx].shown, name);
        return hr_error_set(err, -EBADMSG, "%s: tensor \"%s\" is also in %s; keep one of the two",
                            checkpoint->files.shards[a->shard_idx].shown, name,
                            checkpoint->files.shards[b->shard_idx].shown);
    }
    return 0;
}

static int report_missing(const struct hr_checkpoint *checkpoint,
                          const struct hr_index_entry *const *missing, uint32_t n,
                          struct hr_error *err)
{
    const struct hr_index *index = &checkpoint->files.index;
    char list[MISSING_SHOWN * (NAME_BYTES + 8)] = "", name[NAME_BYTES];
    size_t len = 0;

    for (uint32_t i = 0; i < n && i < MISSING_SHOWN; i++)
        len += (size_t) snprintf(list + len, sizeof(list) - len, "%s\"%s\"", i ? ", " : "",
                                 hr_printable(missing[i]->name, name, sizeof(name)));
    return hr_error_set(
        err, -EBADMSG,
        "%s: %u of its %u tensors missing from their shards (%s%s; the first should be "
        "in %s); index and shards are of different downloads",
        checkpoint->files.index_shown, n, index->n_entries, list, n > MISSING_SHOWN ? ", ..." : "",
        hr_printable(index->shards[missing[0]->shard_idx], name, sizeof(name)));
}

/* Keep the tensors that the index lists; both tables are sorted by name. */
static int apply_index(struct hr_checkpoint *checkpoint, struct hr_error *err)
{
    const struct hr_index *index = &checkpoint->files.index;
    struct hr_tensor *tensors = checkpoint->tensors;
    uint32_t at = 0, n_kept = 0, n_missing = 0;
    const struct hr_index_entry **missing;
    int r = 0;

    missing = calloc(index->n_entries ? index->n_entries : 1, sizeof(*missing));
    if (!missing)
        return no_memory(checkpoint, err);
    for (uint32_t i = 0; i < index->n_entries && r == 0; i++) {
        const struct hr_index_entry *entry = &index->entries[i];
        bool found = false;

        while (at < checkpoint->n_tensors && strcmp(tensors[at].name, entry->name) < 0)
            at++;
        for (; at < checkpoint->n_tensors && !strcmp(tensors[at].name, entry->name); at++) {
            if (tensors[at].shard_idx == entry->shard_idx) {
                tensors[n_kept++] = tensors[at];
                found = true;
                continue;
            }
            char name[NAME_BYTES];

            r = hr_error_set(err, -EBADMSG,
                             "%s: tensor \"%s\" is here, but the index puts it in %s; download the "
                             "model again",
                             checkpoint->files.shards[tensors[at].shard_idx].shown,
                             hr_printable(entry->name, name, sizeof(name)),
                             checkpoint->files.shards[entry->shard_idx].shown);
        }
        if (!found)
            missing[n_missing++] = entry;
    }
    if (r == 0 && n_missing > 0)
        r = report_missing(checkpoint, missing, n_missing, err);
    free(missing);
    checkpoint->n_tensors = n_kept;
    return r;
}

/* Keys that single files have beside the model's, with its prefix or without. */
static bool is_extra(const char *name)
{
    return !strcmp(name, ZERO_COND_MARKER) || !strcmp(name, "scaled_fp8");
}

/* Single files put a prefix before each name; one that holds a VAE and text encoder too has the
 * model under the first of these. */
static int strip_prefix(struct hr_checkpoint *checkpoint, struct hr_error *err)
{
    static const char *const prefixes[] = {"model.diffusion_model.", "diffusion_model.",
                                           "transformer."};
    struct hr_tensor *tensors = checkpoint->tensors;
    const uint32_t n = checkpoint->n_tensors;

    for (size_t p = 0; p < HR_ARRAY_SIZE(prefixes); p++) {
        const size_t len = strlen(prefixes[p]);
        uint32_t n_prefixed = 0, n_extra = 0, n_kept = 0;

        for (uint32_t i = 0; i < n; i++) {
            n_prefixed += !strncmp(tensors[i].name, prefixes[p], len);
            n_extra += is_extra(tensors[i].name);
        }
        if (n_prefixed == 0 || (p > 0 && n_prefixed + n_extra < n))
            continue;
        for (uint32_t i = 0; i < n; i++) {
            struct hr_tensor tensor = tensors[i];

            if (!strncmp(tensor.name, prefixes[p], len))
                tensor.name += len;
            else if (!is_extra(tensor.name))
                continue;
            tensors[n_kept++] = tensor;
        }
        if (n_kept < n)
            hr_log(HR_LOG_INFO, "%s: the model is the %u tensors under %s; %u others are ignored",
                   checkpoint->files.shown, n_kept, prefixes[p], n - n_kept);
        checkpoint->n_tensors = n_kept;
        sort_tensors(checkpoint);
        return check_unique(checkpoint, err);
    }
    return 0;
}

/* config.json must be JSON; whether it is a Qwen-Image's is for who runs the model to ask. */
static int check_config(const struct hr_checkpoint *checkpoint, struct hr_error *err)
{
    const struct hr_model_files *files = &checkpoint->files;
    json_t *root = NULL;

    if (!files->config)
        return 0;
    const int r =
        hr_json_parse(&root, files->config, files->config_bytes, files->config_shown, err);

    json_decref(root);
    return r;
}

/* ---- interface ---------------------------------------------------------------------- */

int hr_checkpoint_open(struct hr_checkpoint **ret_checkpoint,
                       const struct hr_checkpoint_params *params, struct hr_error *err)
{
    struct hr_checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));
    int r;

    if (!checkpoint)
        return hr_error_set(err, -ENOMEM, "no memory for a checkpoint");
    r = hr_model_files_open(&checkpoint->files, params, err);
    if (r == 0)
        r = gather(checkpoint, err);
    if (r == 0)
        r = checkpoint->files.has_index ? apply_index(checkpoint, err)
                                        : check_unique(checkpoint, err);
    if (r == 0)
        r = strip_prefix(checkpoint, err);
    if (r == 0)
        r = check_config(checkpoint, err);
    if (r < 0) {
        hr_checkpoint_close(&checkpoint);
        return r;
    }
    for (uint32_t i = 0; i < checkpoint->n_tensors; i++)
        checkpoint->shards[checkpoint->tensors[i].shard_idx].n_tensors++;
    *ret_checkpoint = checkpoint;
    return 0;
}

void hr_checkpoint_close(struct hr_checkpoint **checkpoint)
{
    struct hr_checkpoint *c = *checkpoint;

    if (!c)
        return;
    for (uint32_t i = 0; c->headers && i < c->files.n_shards; i++)
        if (c->headers[i].storage)
            hr_header_uninit(&c->headers[i]);
    free(c->headers);
    free(c->shards);
    free(c->tensors);
    hr_model_files_uninit(&c->files);
    free(c);
    *checkpoint = NULL;
}

uint32_t hr_checkpoint_n_tensors(const struct hr_checkpoint *checkpoint)
{
    return checkpoint->n_tensors;
}

const struct hr_tensor *hr_checkpoint_tensor(const struct hr_checkpoint *checkpoint, uint32_t idx)
{
    return idx < checkpoint->n_tensors ? &checkpoint->tensors[idx] : NULL;
}

static int compare_name(const void *key, const void *element)
{
    return strcmp(key, ((const struct hr_tensor *) element)->name);
}

const struct hr_tensor *hr_checkpoint_find(const struct hr_checkpoint *checkpoint, const char *name)
{
    return bsearch(name, checkpoint->tensors, checkpoint->n_tensors, sizeof(*checkpoint->tensors),
                   compare_name);
}

uint32_t hr_checkpoint_n_shards(const struct hr_checkpoint *checkpoint)
{
    return checkpoint->files.n_shards;
}

const struct hr_shard *hr_checkpoint_shard(const struct hr_checkpoint *checkpoint, uint32_t idx)
{
    return idx < checkpoint->files.n_shards ? &checkpoint->shards[idx] : NULL;
}

const char *hr_checkpoint_config(const struct hr_checkpoint *checkpoint)
{
    return checkpoint->files.config;
}

int hr_checkpoint_fd(const struct hr_checkpoint *checkpoint, uint32_t shard_idx)
{
    hr_assert(shard_idx < checkpoint->files.n_shards);
    return checkpoint->files.shards[shard_idx].fd;
}

const char *hr_checkpoint_shard_shown(const struct hr_checkpoint *checkpoint, uint32_t shard_idx)
{
    hr_assert(shard_idx < checkpoint->files.n_shards);
    return checkpoint->files.shards[shard_idx].shown;
}

const char *hr_shape_print(const struct hr_tensor *tensor, char *buf, size_t buf_bytes)
{
    size_t len = 0;

    buf[0] = '\0';
    for (uint32_t i = 0; i < tensor->rank && len < buf_bytes; i++)
        len += (size_t) snprintf(buf + len, buf_bytes - len, i ? ", %llu" : "%llu",
                                 (unsigned long long) tensor->shape[i]);
    return buf;
}

const char *hr_checkpoint_path(const struct hr_checkpoint *checkpoint)
{
    return checkpoint->files.shown;
}

bool hr_checkpoint_has_zero_cond_marker(const struct hr_checkpoint *checkpoint)
{
    return hr_checkpoint_find(checkpoint, ZERO_COND_MARKER) != NULL;
}

int hr_checkpoint_get_config(const struct hr_checkpoint *checkpoint, struct hr_config *ret_config,
                             struct hr_error *err)
{
    const struct hr_model_files *files = &checkpoint->files;

    if (!files->config) {
        *ret_config = (struct hr_config){0};
        return 0;
    }
    return hr_config_parse(ret_config, files->config, files->config_bytes, files->config_shown,
                           err);
}

/* Bytes done to done + bytes of a tensor. */
static int read_part(const struct hr_checkpoint *checkpoint, const struct hr_tensor *tensor,
                     void *dst, uint64_t done, size_t bytes, struct hr_error *err)
{
    const struct hr_model_file *file = &checkpoint->files.shards[tensor->shard_idx];
    const uint64_t begin = tensor->offset_bytes + done;
    const int r = hr_file_read(file->fd, dst, bytes, begin);
    char name[NAME_BYTES], reason[128];

    if (r == 0)
        return 0;
    hr_printable(tensor->name, name, sizeof(name));
    if (r == -ENODATA)
        return hr_error_set(err, -EIO,
                            "%s: the file has shrunk: tensor \"%s\" ends after it, in bytes %llu "
                            "to %llu",
                            file->shown, name, (unsigned long long) begin,
                            (unsigned long long) (begin + bytes));
    return hr_error_set(err, r, "%s: tensor \"%s\", bytes %llu to %llu: %s", file->shown, name,
                        (unsigned long long) begin, (unsigned long long) (begin + bytes),
                        hr_strerror(r, reason, sizeof(reason)));
}

static int check_size(const struct hr_checkpoint *checkpoint, const struct hr_tensor *tensor,
                      uint64_t have, uint64_t want, const char *unit, struct hr_error *err)
{
    char name[NAME_BYTES];

    if (tensor->shard_idx >= checkpoint->files.n_shards)
        return hr_error_set(err, -EINVAL, "%s: the tensor is another checkpoint's",
                            checkpoint->files.shown);
    if (have == want)
        return 0;
    return hr_error_set(err, -EINVAL, "%s: tensor \"%s\" has %llu %s, not %llu",
                        checkpoint->files.shards[tensor->shard_idx].shown,
                        hr_printable(tensor->name, name, sizeof(name)), (unsigned long long) have,
                        unit, (unsigned long long) want);
}

int hr_checkpoint_read(const struct hr_checkpoint *checkpoint, const struct hr_tensor *tensor,
                       void *dst, uint64_t size_bytes, struct hr_error *err)
{
    const int r = check_size(checkpoint, tensor, tensor->size_bytes, size_bytes, "bytes", err);

    return r < 0 ? r : read_part(checkpoint, tensor, dst, 0, size_bytes, err);
}

int hr_checkpoint_read_f32(const struct hr_checkpoint *checkpoint, const struct hr_tensor *tensor,
                           float *dst, uint64_t n, struct hr_error *err)
{
    const uint64_t n_elements = hr_shape_elements(tensor->shape, tensor->rank);
    char raw[READ_BYTES], name[NAME_BYTES];
    int r = check_size(checkpoint, tensor, n_elements, n, "elements", err);

    if (r < 0)
        return r;
    if (!hr_dtype_is_computable(tensor->dtype))
        return hr_error_set(err, -EOPNOTSUPP, "%s: tensor \"%s\" is %s, which is not computed with",
                            checkpoint->files.shards[tensor->shard_idx].shown,
                            hr_printable(tensor->name, name, sizeof(name)),
                            hr_dtype_name(tensor->dtype));

    const size_t element_bytes = hr_dtype_bits(tensor->dtype) / 8;

    for (uint64_t done = 0; done < tensor->size_bytes;) {
        const size_t bytes = hr_min_u64(sizeof(raw), tensor->size_bytes - done);

        r = read_part(checkpoint, tensor, raw, done, bytes, err);
        if (r < 0)
            return r;
        hr_dtype_to_f32(dst + done / element_bytes, raw, tensor->dtype, bytes / element_bytes);
        done += bytes;
    }
    return 0;
}
