/* SPDX-License-Identifier: Apache-2.0 */
/* model_files.h -- a path as a user gives it -> open shards, index and config.
 *
 * Folders come from strangers: nothing outside the named folder is opened (but for a model cache),
 * nothing but regular files is read, and small files are small. */
#ifndef HR_MODEL_FILES_H
#define HR_MODEL_FILES_H

#include "common/common.h"
#include "formats/formats.h"

struct hr_model_file {
    char *path;  /* as found: the folder as it was named, and the name in it */
    char *shown; /* path, safe to print                                      */
    int fd;
    uint64_t size_bytes;
};

struct hr_model_files {
    char *shown; /* what was named, safe to print                            */
    struct hr_model_file *shards;
    uint32_t n_shards;
    struct hr_index index; /* when has_index: its shards are ours, by number */
    char *index_shown;
    bool has_index;
    char *config; /* text of config.json, or NULL */
    size_t config_bytes;
    char *config_shown;
};

/* See hr_checkpoint_open(). On failure there is nothing to undo. */
int hr_model_files_open(struct hr_model_files *ret_files, const struct hr_checkpoint_params *params,
                        struct hr_error *err);
void hr_model_files_uninit(struct hr_model_files *files);

#endif /* HR_MODEL_FILES_H */
