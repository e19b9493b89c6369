/* SPDX-License-Identifier: Apache-2.0 */
/* synth.h -- inside of hr_synth().
 *
 *   synth_values.c  name and index -> value
 *   synth_layout.c  parameters -> tensors, their order, shards, headers, index, config (no I/O)
 *   synth_write.c   the shards' bytes, made and written by all CPUs
 *   synth_temp.c    the temporary name, and the removal of what killed runs left
 *   synth.c         checks, publication under the model's own name
 */
#ifndef HR_SYNTH_H
#define HR_SYNTH_H

#include "common/common.h"
#include "engine/synth_values.h"
#include "formats/formats.h"

struct hr_synth_shard {
    char name[64]; /* in the model's folder; a single file's is the caller's affair */
    char *header;  /* first bytes of the file */
    size_t header_bytes;
    uint64_t file_bytes;
    uint32_t first_entry, n_entries;
};

struct hr_synth_layout {
    struct hr_entry *entries; /* in order of the files, within a file in order of begin_bytes */
    struct hr_synth_rule *rules;
    uint32_t n_entries;
    enum hr_dtype dtype;
    struct hr_synth_shard *shards;
    uint32_t n_shards;
    bool is_file;         /* a single file without a folder     */
    char *config, *index; /* texts, NULL: none                  */
    uint64_t total_bytes; /* of all files                       */
    char *names;
    uint64_t *shapes;
};

extern const char hr_synth_index_name[];

/* @return 0, -EINVAL parameters out of range (said which), -ENOMEM */
int hr_synth_layout_init(struct hr_synth_layout *ret_layout, const struct hr_synth_params *params,
                         struct hr_error *err);
void hr_synth_layout_uninit(struct hr_synth_layout *layout);

/* Write all shards into the folder, the only one of a single file into `file_name`, which is there.
 * @param shown  the model's name, for messages
 * @return 0, -ECANCELED or the error of a system call; the files are then whatever they are */
int hr_synth_write_shards(const struct hr_synth_layout *layout, int dir_fd, const char *file_name,
                          const struct hr_synth_params *params, const char *shown,
                          struct hr_error *err);

/* A folder or file beside the model: `path`.tmp-BOOT-PID-NUMBER. */
struct hr_synth_temp {
    char *path;
    int fd; /* locked, so that others know its run is alive; -1: not made */
};

/* Make it, empty. @return 0 or a negative errno, and nothing is left */
int hr_synth_temp_begin(struct hr_synth_temp *ret_temp, const char *path, bool is_file);
/* Close and free; what lies there stays. */
void hr_synth_temp_end(struct hr_synth_temp *temp);
/* Remove what runs for the same `path` left beside it when they were killed: names of exactly that
 * form, of this user, whose lock nobody holds, with nothing in them but a model's files; what was
 * not made since this kernel was started only an hour after its last change.
 * @param parent  the folder of `path` */
void hr_synth_drop_leftovers(const char *path, const char *parent, bool is_file);

/* Names of files that a model's folder may hold. */
bool hr_synth_is_model_file(const char *name);
bool hr_synth_is_dots(const char *name); /* "." and ".." */

#endif /* HR_SYNTH_H */
