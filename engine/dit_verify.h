/* SPDX-License-Identifier: Apache-2.0 */
/* dit_verify.h -- the weights of a run of forwards, compared with a manifest as they stream by.
 *
 * Covered: headers and config.json when the model is opened, then every tensor that streams, at its
 * last band. Not covered: tensors that no forward needs, copies that stay in memory after they have
 * been compared, and other files (inputs, LoRAs). */
#ifndef HR_DIT_VERIFY_H
#define HR_DIT_VERIFY_H

#include "engine/verify.h"

struct hr_dit_verify {
    const struct hr_checkpoint *checkpoint;
    const struct hr_manifest *manifest;
    bool always;      /* in every pass; else each tensor once                  */
    uint8_t *checked; /* for each tensor of the checkpoint                     */
    struct hr_tensor_hash hash;
    uint64_t bytes, ns; /* compared so far, and what it took */
};

/* All but the bytes of tensors is compared here.
 * @param plan  n_plan tensors that will stream
 * @return 0, -EBADMSG something differs, -ENOMEM, or the error of reading a header */
int hr_dit_verify_init(struct hr_dit_verify *verify, const struct hr_checkpoint *checkpoint,
                       const struct hr_manifest *manifest, bool always,
                       const struct hr_tensor *const *plan, uint32_t n_plan, struct hr_error *err);
void hr_dit_verify_uninit(struct hr_dit_verify *verify);

/* Take in the next unit of the stream. @return 0, or -EBADMSG naming tensor and bytes */
int hr_dit_verify_unit(struct hr_dit_verify *verify, const struct hr_unit *unit,
                       struct hr_error *err);

#endif /* HR_DIT_VERIFY_H */
