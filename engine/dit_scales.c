/* SPDX-License-Identifier: Apache-2.0 */
/* dit_scales.c -- scales of fp8 weights: read at open, on the device until close, applied by each
 * product to its sums. */
#include "engine/checkpoint.h"
#include "engine/dit.h"

/* Gains and tables are no products: a scale beside one of them would be left out. */
static int refuse_scaled_vectors(const struct hr_dit *dit, const struct hr_weight_scales *scales,
                                 struct hr_error *err)
{
    for (uint32_t i = 0; i < dit->model.n_plan; i++) {
        const struct hr_tensor *tensor = dit->model.plan[i];
        struct hr_weight_scale scale;
        char name[160];
        int r;

        if (tensor->rank != 1 && tensor != dit->model.addition_t)
            continue;
        r = hr_weight_scale_read(scales, tensor, &scale, err);
        if (r < 0)
            return r;
        if (scale.n == 0)
            continue;
        hr_weight_scale_uninit(&scale);
        return hr_error_set(err, -EOPNOTSUPP,
                            "%s: tensor %s has a scale, which is supported for the weights of "
                            "linear layers only",
                            hr_checkpoint_shard_shown(dit->checkpoint, tensor->shard_idx),
                            hr_printable(tensor->name, name, sizeof(name)));
    }
    return 0;
}

int hr_dit_scales_read(struct hr_dit *dit, struct hr_error *err)
{
    struct hr_weight_scales *scales = NULL;
    int r = hr_weight_scales_open(&scales, dit->checkpoint, err);

    if (r == 0)
        r = refuse_scaled_vectors(dit, scales, err);
    for (uint32_t i = 0; i < dit->model.n_linears && r == 0; i++) {
        struct hr_linear_weights *linear = dit->model.linears[i];

        if (linear->planned)
            r = hr_weight_scale_read(scales, linear->weight, &linear->scale, err);
    }
    hr_weight_scales_close(&scales);
    return r;
}

void hr_dit_scales_carve(struct hr_dit *dit, struct hr_carver *c)
{
    for (uint32_t i = 0; i < dit->model.n_linears; i++) {
        struct hr_linear_weights *linear = dit->model.linears[i];

        if (linear->scale.n == 0)
            continue;
        linear->w_scale = HR_CARVE(c, linear->weight->name, HR_DTYPE_F32, linear->scale.n);
        linear->w_scale_stride = linear->scale.n > 1;
    }
}

int hr_dit_scales_load(struct hr_dit *dit, struct hr_error *err)
{
    int r = 0;

    for (uint32_t i = 0; i < dit->model.n_linears && r == 0; i++) {
        struct hr_linear_weights *linear = dit->model.linears[i];

        if (linear->scale.n > 0)
            r = hr_dit_upload(dit, linear->w_scale, linear->scale.values, linear->scale.n, err);
        hr_weight_scale_uninit(&linear->scale);
    }
    return r;
}
