/* SPDX-License-Identifier: Apache-2.0 */
/* metadata.c -- see metadata.h. Headers are read again: the checkpoint keeps none of the text. */
#include "engine/metadata.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/files.h"

static int parse(json_t **ret_root, const char *text, size_t bytes, const char *path,
                 const char *name, struct hr_error *err)
{
    char printable[160], what[512];
    json_t *root;
    int r;

    hr_printable(name, printable, sizeof(printable));
    if (bytes > HR_METADATA_BYTES_MAX)
        return hr_error_set(err, -EBADMSG,
                            "%s: %s holds %zu bytes of JSON; at most %d are expected", path,
                            printable, bytes, HR_METADATA_BYTES_MAX);
    snprintf(what, sizeof(what), "%s: %s", path, printable);
    r = hr_json_parse(&root, text, bytes, what, err);
    if (r < 0)
        return r;
    if (!json_is_object(root)) {
        json_decref(root);
        return hr_error_set(err, -EBADMSG, "%s: %s is no JSON object", path, printable);
    }
    *ret_root = root;
    return 0;
}

int hr_metadata_read(json_t **ret_root, const struct hr_checkpoint *checkpoint, uint32_t shard_idx,
                     const char *key, struct hr_error *err)
{
    const char *path = hr_checkpoint_shard_shown(checkpoint, shard_idx);
    struct hr_header_text header;
    char *text = NULL;
    int r = hr_header_read(&header, hr_checkpoint_fd(checkpoint, shard_idx),
                           hr_checkpoint_shard(checkpoint, shard_idx)->size_bytes, path, err);

    if (r < 0)
        return r;
    r = hr_header_metadata(&text, header.json, header.json_bytes, key, path, err);
    free(header.bytes);
    if (r <= 0)
        return r;
    r = parse(ret_root, text, strlen(text), path, key, err);
    free(text);
    return r < 0 ? r : 1;
}

int hr_metadata_read_tensor(json_t **ret_root, const struct hr_checkpoint *checkpoint,
                            const struct hr_tensor *tensor, struct hr_error *err)
{
    const char *path = hr_checkpoint_shard_shown(checkpoint, tensor->shard_idx);
    char name[160], *text;
    int r;

    hr_printable(tensor->name, name, sizeof(name));
    if (tensor->dtype != HR_DTYPE_U8 || tensor->size_bytes > HR_METADATA_BYTES_MAX)
        return hr_error_set(err, -EBADMSG, "%s: tensor %s is %s of %llu bytes; expected a short U8",
                            path, name, hr_dtype_name(tensor->dtype),
                            (unsigned long long) tensor->size_bytes);
    text = malloc(tensor->size_bytes > 0 ? tensor->size_bytes : 1);
    if (!text)
        return hr_error_set(err, -ENOMEM, "%s: no memory for tensor %s", path, name);
    r = hr_checkpoint_read(checkpoint, tensor, text, tensor->size_bytes, err);
    if (r == 0)
        r = parse(ret_root, text, tensor->size_bytes, path, tensor->name, err);
    free(text);
    return r;
}
