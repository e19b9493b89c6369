/* SPDX-License-Identifier: Apache-2.0 */
/* lora.h -- LoRA files and which linear layers of a model they change.
 *
 * A module's weight becomes W + sum_i scale_i up_i down_i; biases and norms are not touched. Keys
 * are taken as PEFT, DiffSynth-Studio, diffusers, ComfyUI, lightx2v and kohya write them:
 *   [prefix]M.lora_A[.default].weight, [prefix]M.lora_B[.default].weight
 *   [prefix]M.lora_down.weight, [prefix]M.lora_up.weight, also lora.down and lora.up
 *   lora_unet_ and M with "_" for each ".", then the same
 *   and beside each M.alpha, a scalar
 * prefix: transformer. diffusion_model. model.diffusion_model. pipe.dit. base_model.model. or none.
 */
#ifndef HR_LORA_H
#define HR_LORA_H

#include "common/common.h"

/* A linear layer of the model. */
struct hr_lora_module {
    const char *path; /* the weight's name without ".weight" */
    uint64_t n_out, n_in;
};

struct hr_lora_term {
    uint32_t file_idx;
    uint32_t rank;                /* 1..HR_LOW_RANK_MAX                  */
    const struct hr_tensor *down; /* A [rank, n_in], F32, F16 or BF16    */
    const struct hr_tensor *up;   /* B [n_out, rank], F32, F16 or BF16   */
    float scale;                  /* strength * alpha / rank, finite     */
};

struct hr_lora;

/* Open the files and match their tensors; reads headers and alphas only.
 * @param n_files  1..HR_LORA_FILES_MAX
 * @param modules  all linear layers of the model; borrowed during the call
 * @return 0; -EINVAL n_files or a strength; -ENOENT no such file, or one of which nothing fits the
 *         model; -EOPNOTSUPP DoRA, LoKr, LoHa, or a dtype; -EBADMSG malformed, a half or a module
 *         twice, a wrong shape or rank; -ENOMEM, or the error of read() */
int hr_lora_open(struct hr_lora **ret_lora, const struct hr_lora_file *files, uint32_t n_files,
                 const struct hr_lora_module *modules, uint32_t n_modules, struct hr_error *err);
void hr_lora_close(struct hr_lora **lora);

/* The terms of a module, in order of the files; *ret_n is at most n_files. */
const struct hr_lora_term *hr_lora_terms(const struct hr_lora *lora, uint32_t module_idx,
                                         uint32_t *ret_n);
/* The checkpoint that holds the tensors of a term. */
const struct hr_checkpoint *hr_lora_checkpoint(const struct hr_lora *lora, uint32_t file_idx);
/* Its names belong to the lora and are to be made printable. */
const struct hr_lora_report *hr_lora_get_report(const struct hr_lora *lora, uint32_t file_idx);

#endif /* HR_LORA_H */
