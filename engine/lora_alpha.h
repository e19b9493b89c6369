/* SPDX-License-Identifier: Apache-2.0 */
/* lora_alpha.h -- the factor alpha / r of a LoRA's terms. */
#ifndef HR_LORA_ALPHA_H
#define HR_LORA_ALPHA_H

#include <jansson.h>

#include "common/common.h"

/* What the header's `lora_adapter_metadata` says of alpha; pointers into root. */
struct hr_lora_alphas {
    const struct hr_checkpoint *checkpoint;
    json_t *root;
    const json_t *alpha;    /* a number, or NULL                        */
    const json_t *patterns; /* object: end of a module's path -> alpha  */
    bool is_rslora;         /* alpha / sqrt(r) instead                  */
};

/* @return 0; -EBADMSG, -EOPNOTSUPP the metadata describe DoRA, -ENOMEM, or the error of read() */
int hr_lora_alphas_init(struct hr_lora_alphas *alphas, const struct hr_checkpoint *checkpoint,
                        struct hr_error *err);
void hr_lora_alphas_uninit(struct hr_lora_alphas *alphas);

/* The factor of one module: from its own tensor where it has one, else from the metadata, else 1.
 * @param tensor  `M.alpha`, or NULL
 * @return 0; -EBADMSG no finite number, -EOPNOTSUPP dtype, or the error of read() */
int hr_lora_alphas_factor(const struct hr_lora_alphas *alphas, const char *module,
                          const struct hr_tensor *tensor, uint64_t rank, float *ret_factor,
                          struct hr_error *err);

#endif /* HR_LORA_ALPHA_H */
