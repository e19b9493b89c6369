/* SPDX-License-Identifier: Apache-2.0 */
/* model_folder.h -- one folder of a model: which of its files make the model, and opening them. */
#ifndef HR_MODEL_FOLDER_H
#define HR_MODEL_FOLDER_H

#include "common/common.h"

struct hr_folder {
    int fd;
    char *path;  /* as the user would write it                           */
    char *root;  /* real path of the folder that links must stay in      */
    char *cache; /* real path of the model cache links may lead into, or NULL */
};

/* Sorted names of a folder's files that may belong to a model; hidden files are left out. */
struct hr_folder_list {
    char **weights; /* *.safetensors            */
    uint32_t n_weights;
    char **indices; /* *.safetensors.index.json */
    uint32_t n_indices;
    bool has_transformer; /* a folder of that name   */
    bool is_pipeline;     /* model_index.json        */
};

/* @param cache_dir  hr_checkpoint_params.cache_dir */
int hr_folder_open(struct hr_folder *ret_folder, const char *path, const char *cache_dir,
                   struct hr_error *err);
void hr_folder_close(struct hr_folder *folder);

/* Open and list a model's folder: that named, or where it is a whole pipeline's, whose text encoder
 * and VAE are not ours, its transformer/. Links may lead anywhere in the folder that was named. */
int hr_folder_open_model(struct hr_folder *ret_folder, struct hr_folder_list *ret_list,
                         const char *path, const char *cache_dir, struct hr_error *err);
void hr_folder_list_uninit(struct hr_folder_list *list);

/* Open a regular file of the folder for reading; links are followed within the bounds above.
 * @return 0; -ENOENT nothing of that name, *without* a message; other errors with one */
int hr_folder_open_file(const struct hr_folder *folder, const char *name, int *ret_fd,
                        uint64_t *ret_bytes, struct hr_error *err);

/* Without an index: is the list one file, or all the parts NAME-0000k-of-0000n of one model?
 * @return 0; -ENOENT a part is missing, -EINVAL unrelated files (named) */
int hr_folder_check_series(const struct hr_folder_list *list, const char *shown,
                           struct hr_error *err);

/* "a, b, c and 4 more", safe to print. @return buf */
const char *hr_names_join(char *const *names, uint32_t n, char *buf, size_t buf_bytes);

#endif /* HR_MODEL_FOLDER_H */
