/* SPDX-License-Identifier: Apache-2.0 */
/* verify.h -- checksums of tensors as they stream by, and their comparison with a manifest.
 *
 *   verify.c        a whole model: hr_manifest_make(), hr_verify()
 *   manifest_file.c a manifest as a file
 *   dit_verify.c    the weights of a forward, while it uses them
 */
#ifndef HR_VERIFY_H
#define HR_VERIFY_H

#include "common/common.h"
#include "engine/xxh3.h"
#include "formats/formats.h"

/* The hash of one tensor after another, each from its units in order. */
struct hr_tensor_hash {
    XXH3_state_t *state;
    uint64_t done_bytes; /* of the present tensor */
};

/* @return 0 or -ENOMEM */
int hr_tensor_hash_init(struct hr_tensor_hash *hash, struct hr_error *err);
void hr_tensor_hash_uninit(struct hr_tensor_hash *hash);
/* Take in the next unit. @return true with *ret_hash when it is its tensor's last */
bool hr_tensor_hash_add(struct hr_tensor_hash *hash, const struct hr_unit *unit,
                        struct hr_hash *ret_hash);

static inline bool hr_hash_equal(struct hr_hash a, struct hr_hash b)
{
    return a.high == b.high && a.low == b.low;
}

/* NULL when the manifest has no tensor of that name. */
const struct hr_manifest_tensor *hr_manifest_find(const struct hr_manifest *manifest,
                                                  const char *name);

/* Dtype, shape and size are as the manifest says. */
bool hr_manifest_agrees(const struct hr_manifest_tensor *listed, const struct hr_tensor *tensor);

/* Files, headers and config.json against the manifest; what differs goes to `damage`.
 * @return how many differences, or a negative errno */
int hr_verify_files(const struct hr_checkpoint *checkpoint, const struct hr_manifest *manifest,
                    hr_damage_fn *damage, void *user, struct hr_error *err);

#endif /* HR_VERIFY_H */
