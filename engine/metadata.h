/* SPDX-License-Identifier: Apache-2.0 */
/* metadata.h -- JSON that files keep in a string of their header's `__metadata__`, or in a tensor
 * of bytes. */
#ifndef HR_METADATA_H
#define HR_METADATA_H

#include <jansson.h>

#include "common/common.h"

enum { HR_METADATA_BYTES_MAX = 1 << 20 };

/* The JSON object in the string `key` of a shard's metadata.
 * @param ret_root  json_decref() it
 * @return 1, 0 when there is no such key, -EBADMSG no JSON object or too long, -ENOMEM, or the
 *         error of read() */
int hr_metadata_read(json_t **ret_root, const struct hr_checkpoint *checkpoint, uint32_t shard_idx,
                     const char *key, struct hr_error *err);

/* The JSON object that is the content of a U8 tensor.
 * @return 0, -EBADMSG another dtype or as above, -ENOMEM, or the error of read() */
int hr_metadata_read_tensor(json_t **ret_root, const struct hr_checkpoint *checkpoint,
                            const struct hr_tensor *tensor, struct hr_error *err);

#endif /* HR_METADATA_H */
