/* SPDX-License-Identifier: Apache-2.0 */
/* weight_scale.h -- the scales of weights stored in fp8: w = scale * fp8.
 *
 * A weight's own tensors decide, never the name of the file. Known are `M.scale_weight` (a file
 * with the marker `scaled_fp8`) and `M.weight_scale` beside `M.comfy_quant` or an entry in the
 * header's `_quantization_metadata`; one scale for the whole weight or one for each row. Scales of
 * activations (`scale_input`, `input_scale`) serve products in fp8, which are not done: ignored.
 */
#ifndef HR_WEIGHT_SCALE_H
#define HR_WEIGHT_SCALE_H

#include "common/common.h"

struct hr_weight_scales;

struct hr_weight_scale {
    float *values; /* [n], finite and > 0; NULL when n is 0          */
    uint64_t n;    /* 0: not scaled; 1: of the whole weight; or rows */
};

/* Read what the headers say of quantisation. The checkpoint is borrowed until close.
 * @return 0; -EBADMSG malformed, -ENOMEM, or the error of read() */
int hr_weight_scales_open(struct hr_weight_scales **ret_scales,
                          const struct hr_checkpoint *checkpoint, struct hr_error *err);
void hr_weight_scales_close(struct hr_weight_scales **scales);

/* Read the scale of one weight.
 * @param weight     a tensor [out, in] of the checkpoint; a name without ".weight" has no scale
 * @param ret_scale  hr_weight_scale_uninit() it
 * @return 0; -EOPNOTSUPP another quantisation (blocks, int8, nvfp4, mxfp8), with its name, -EBADMSG
 *         a scale that is missing, no number > 0 or of a wrong shape, -ENOMEM, or the error of
 *         read() */
int hr_weight_scale_read(const struct hr_weight_scales *scales, const struct hr_tensor *weight,
                         struct hr_weight_scale *ret_scale, struct hr_error *err);
void hr_weight_scale_uninit(struct hr_weight_scale *scale);

#endif /* HR_WEIGHT_SCALE_H */
