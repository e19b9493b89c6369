/* SPDX-License-Identifier: Apache-2.0 */
/* model_files.c -- see model_files.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/files.h"
#include "engine/model_files.h"
#include "engine/model_folder.h"

enum { TEXT_BYTES_MAX = 64 << 20, SHOWN_BYTES = 384 };

static int no_memory(struct hr_error *err)
{
    return hr_error_set(err, -ENOMEM, "no memory for the list of a model's files");
}

static char *printable_copy(const char *text)
{
    char buf[SHOWN_BYTES];

    return strdup(hr_printable(text, buf, sizeof(buf)));
}

/* Read a small text of the folder whole.
 * @return 0; -ENOENT nothing of that name, without a message */
static int read_text(const struct hr_folder *folder, const char *name, char **ret_text,
                     size_t *ret_bytes, char **ret_shown, struct hr_error *err)
{
    char reason[128];
    char *path = NULL, *shown = NULL, *text = NULL;
    uint64_t bytes = 0;
    int fd, r;

    r = hr_folder_open_file(folder, name, &fd, &bytes, err);
    if (r < 0)
        return r;
    path = hr_file_join(folder->path, name);
    shown = path ? printable_copy(path) : NULL;
    free(path);
    if (!shown)
        r = no_memory(err);
    else if (bytes > TEXT_BYTES_MAX)
        r = hr_error_set(err, -EBADMSG, "%s: %llu bytes, more than the %d MiB such a file may have",
                         shown, (unsigned long long) bytes, TEXT_BYTES_MAX >> 20);
    else if (!(text = malloc(bytes + 1)))
        r = no_memory(err);
    else if ((r = hr_file_read(fd, text, bytes, 0)) < 0)
        hr_error_set(err, r, "%s: cannot read: %s", shown, hr_strerror(r, reason, sizeof(reason)));
    close(fd);
    if (r < 0) {
        free(shown);
        free(text);
        return r;
    }
    text[bytes] = '\0';
    *ret_text = text;
    *ret_bytes = bytes;
    *ret_shown = shown;
    return 0;
}

/* A model without config.json is fine: its tensors tell all but two flags. */
static int read_config(struct hr_model_files *files, const struct hr_folder *folder,
                       struct hr_error *err)
{
    const int r = read_text(folder, "config.json", &files->config, &files->config_bytes,
                            &files->config_shown, err);

    return r == -ENOENT && err->code == 0 ? 0 : r; /* a broken link has a message */
}

static int alloc_shards(struct hr_model_files *files, uint32_t n, struct hr_error *err)
{
    files->shards = calloc(n ? n : 1, sizeof(*files->shards));
    if (!files->shards)
        return no_memory(err);
    files->n_shards = n;
    for (uint32_t i = 0; i < n; i++)
        files->shards[i].fd = -1;
    return 0;
}

/* path: owned by the shard from now on, NULL without memory */
static int name_shard(struct hr_model_file *shard, char *path, struct hr_error *err)
{
    shard->path = path;
    shard->shown = path ? printable_copy(path) : NULL;
    return shard->shown ? 0 : no_memory(err);
}

/* How many tensors the index expects in a shard. */
static uint32_t count_indexed(const struct hr_index *index, uint32_t shard_idx)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < index->n_entries; i++)
        n += index->entries[i].shard_idx == shard_idx;
    return n;
}

static int open_shards(struct hr_model_files *files, const struct hr_folder *folder,
                       const char *const *names, uint32_t n, struct hr_error *err)
{
    int r = alloc_shards(files, n, err);

    for (uint32_t i = 0; i < n && r == 0; i++) {
        struct hr_model_file *shard = &files->shards[i];

        r = name_shard(shard, hr_file_join(folder->path, names[i]), err);
        if (r < 0)
            break;
        r = hr_folder_open_file(folder, names[i], &shard->fd, &shard->size_bytes, err);
        if (r == -ENOENT && files->has_index) {
            const uint32_t n_tensors = count_indexed(&files->index, i);

            hr_error_set(err, r,
                         "%s: no such file, but the index lists it for %u tensor%s; download it "
                         "again",
                         shard->shown, n_tensors, n_tensors == 1 ? "" : "s");
        }
        if (r == -ENOENT)
            hr_error_set(err, r, "%s: no such file", shard->shown);
    }
    return r;
}

static int open_index(struct hr_model_files *files, const struct hr_folder *folder,
                      const char *name, struct hr_error *err)
{
    char shown[SHOWN_BYTES];
    char *text;
    size_t bytes;
    int r = read_text(folder, name, &text, &bytes, &files->index_shown, err);

    if (r == -ENOENT)
        return hr_error_set(err, r, "%s: no file %s here", hr_printable(folder->path, shown, 256),
                            name);
    if (r < 0)
        return r;
    r = hr_index_parse(&files->index, text, bytes, files->index_shown, err);
    free(text);
    if (r < 0)
        return r;
    files->has_index = true;
    return open_shards(files, folder, files->index.shards, files->index.n_shards, err);
}

static int open_listed(struct hr_model_files *files, const struct hr_folder *folder,
                       const struct hr_folder_list *list, struct hr_error *err)
{
    char names[512], shown[SHOWN_BYTES];
    int r;

    hr_printable(folder->path, shown, sizeof(shown));
    if (list->n_indices > 1)
        return hr_error_set(err, -EINVAL, "%s: %u index files (%s); name the one that is meant",
                            shown, list->n_indices,
                            hr_names_join(list->indices, list->n_indices, names, sizeof(names)));
    if (list->n_indices == 1)
        return open_index(files, folder, list->indices[0], err);
    r = hr_folder_check_series(list, shown, err);
    if (r < 0)
        return r;
    return open_shards(files, folder, (const char *const *) list->weights, list->n_weights, err);
}

static int open_folder(struct hr_model_files *files, const char *path, const char *cache_dir,
                       struct hr_error *err)
{
    struct hr_folder folder;
    struct hr_folder_list list;
    int r = hr_folder_open_model(&folder, &list, path, cache_dir, err);

    if (r < 0)
        return r;
    r = open_listed(files, &folder, &list, err);
    if (r == 0)
        r = read_config(files, &folder, err);
    hr_folder_list_uninit(&list);
    hr_folder_close(&folder);
    return r;
}

/* The index or the config of files that were named one by one: what lies beside the first. */
static int open_beside(struct hr_model_files *files, const char *path, const char *cache_dir,
                       const char *index_name, struct hr_error *err)
{
    struct hr_folder folder;
    char *parent = hr_file_parent(path);
    int r = parent ? hr_folder_open(&folder, parent, cache_dir, err) : no_memory(err);

    free(parent);
    if (r < 0)
        return r;
    if (index_name)
        r = open_index(files, &folder, index_name, err);
    if (r == 0)
        r = read_config(files, &folder, err);
    hr_folder_close(&folder);
    return r;
}

/* Files that the user named may lie anywhere and be links. */
static int open_named(struct hr_model_files *files, const char *const *paths, uint32_t n,
                      struct hr_error *err)
{
    char reason[128];
    int r = alloc_shards(files, n, err);

    for (uint32_t i = 0; i < n && r == 0; i++) {
        struct hr_model_file *shard = &files->shards[i];
        mode_t mode;

        r = name_shard(shard, strdup(paths[i]), err);
        if (r < 0)
            break;
        r = hr_file_open(AT_FDCWD, paths[i], 0, &shard->fd, &shard->size_bytes, &mode);
        if (r == -EINVAL && !S_ISREG(mode))
            hr_error_set(err, r, "%s: is %s, not a .safetensors file", shard->shown,
                         hr_file_kind(mode));
        else if (r < 0)
            hr_error_set(err, r, "%s: cannot open: %s", shard->shown,
                         hr_strerror(r, reason, sizeof(reason)));
    }
    return r;
}

static int open_paths(struct hr_model_files *files, const struct hr_checkpoint_params *params,
                      struct hr_error *err)
{
    const char *first = params->paths[0], *slash = strrchr(first, '/');
    struct stat st;
    int r;

    files->shown = printable_copy(first);
    if (!files->shown)
        return no_memory(err);
    if (params->n_paths == 1 && stat(first, &st) == 0 && S_ISDIR(st.st_mode))
        return open_folder(files, first, params->cache_dir, err);
    if (params->n_paths == 1 && hr_has_suffix(first, ".index.json"))
        return open_beside(files, first, params->cache_dir, slash ? slash + 1 : first, err);
    r = open_named(files, params->paths, params->n_paths, err);
    return r < 0 ? r : open_beside(files, first, params->cache_dir, NULL, err);
}

int hr_model_files_open(struct hr_model_files *ret_files, const struct hr_checkpoint_params *params,
                        struct hr_error *err)
{
    struct hr_model_files files = {0};
    struct hr_error cause = {0}; /* never NULL inside: its code tells "missing" from "broken" */
    int r;

    for (uint32_t i = 0; i < params->n_paths; i++)
        if (!params->paths || !params->paths[i] || !*params->paths[i])
            return hr_error_set(err, -EINVAL, "path %u of %u is empty", i + 1, params->n_paths);
    if (params->n_paths == 0)
        return hr_error_set(err, -EINVAL, "no model is named; give a folder or .safetensors file");
    r = open_paths(&files, params, &cause);
    if (r < 0) {
        hr_model_files_uninit(&files);
        return hr_error_set(err, r, "%s", cause.message);
    }
    *ret_files = files;
    return 0;
}

void hr_model_files_uninit(struct hr_model_files *files)
{
    for (uint32_t i = 0; i < files->n_shards; i++) {
        if (files->shards[i].fd >= 0)
            close(files->shards[i].fd);
        free(files->shards[i].path);
        free(files->shards[i].shown);
    }
    free(files->shards);
    if (files->has_index)
        hr_index_uninit(&files->index);
    free(files->shown);
    free(files->index_shown);
    free(files->config);
    free(files->config_shown);
    *files = (struct hr_model_files){0};
}
