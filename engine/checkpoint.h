/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint.h -- what the rest of engine/ needs of a model's files beyond headrace.h.
 *
 *   checkpoint.c   headers of all shards -> one sorted table of tensors
 *   model_files.c  a path as a user gives it -> open shards, index and config
 *   model_folder.c one folder of a model: which of its files make the model
 *   files.c        the system calls: whole reads and writes, regular files only
 */
#ifndef HR_CHECKPOINT_H
#define HR_CHECKPOINT_H

#include "common/common.h"
#include "formats/formats.h"

/* The shard's descriptor, open for reading without O_DIRECT; stays the checkpoint's. */
int hr_checkpoint_fd(const struct hr_checkpoint *checkpoint, uint32_t shard_idx);

/* The shard's path, safe to print. */
const char *hr_checkpoint_shard_shown(const struct hr_checkpoint *checkpoint, uint32_t shard_idx);

/* The dimensions of a tensor, such as "64, 3072"; "" for a scalar. @return buf */
const char *hr_shape_print(const struct hr_tensor *tensor, char *buf, size_t buf_bytes);

/* config.json as Qwen-Image's; all zero when the model came without one.
 * @return 0, or the error of hr_config_parse(): a checkpoint of another model can be listed and
 *         streamed, so this is no error of hr_checkpoint_open() */
int hr_checkpoint_get_config(const struct hr_checkpoint *checkpoint, struct hr_config *ret_config,
                             struct hr_error *err);

/* True when the marker tensor `__index_timestep_zero__` is there, by which a file without
 * config.json says that it wants zero_cond_t. */
bool hr_checkpoint_has_zero_cond_marker(const struct hr_checkpoint *checkpoint);

/* What the user named, for messages about the model as a whole; safe to print. */
const char *hr_checkpoint_path(const struct hr_checkpoint *checkpoint);

#endif /* HR_CHECKPOINT_H */
