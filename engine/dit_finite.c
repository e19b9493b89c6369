/* SPDX-License-Identifier: Apache-2.0 */
/* dit_finite.c -- NaN and infinity in the residual streams, found where they first appear.
 *
 * The device sets flags, one for each stream after each part; they are looked at once, before the
 * head: a device that works on its own is not waited for in between. One pass over [S, D] floats is
 * less than a thousandth of a block's products. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/dit.h"

enum { EMBEDDING, STREAMS = 2 }; /* part 0: img_in and txt_in; part i + 1: block i */

uint32_t hr_dit_finite_flags(const struct hr_dit *dit)
{
    return STREAMS * (dit->model.n_layers + 1);
}

int hr_dit_finite_begin(struct hr_dit *dit, struct hr_error *err)
{
    const size_t bytes = hr_dit_finite_flags(dit) * sizeof(dit->flags[0]);

    memset(dit->flags, 0, bytes);
    return HR_FEED_RUN(&dit->feed, err,
                       hr_gpu_upload(dit->gpu, dit->shared.flags, dit->flags, bytes));
}

int hr_dit_finite_part(struct hr_dit *dit, uint32_t part, struct hr_error *err)
{
    const size_t D = dit->model.width;
    /* The last block leaves the text as it was. */
    const bool has_text = part < dit->model.n_layers || dit->complete;
    uint32_t *flags = dit->shared.flags + STREAMS * part;
    int r = 0;

    for (uint32_t i = 0; i < dit->n_samples && r == 0; i++) {
        const struct hr_dit_sample *sample = &dit->samples[i];

        r = HR_FEED_RUN(&dit->feed, err,
                        hr_gpu_flag_nonfinite(dit->gpu, &flags[0], sample->buffers.img,
                                              sample->geometry.n_img * D));
        if (r == 0 && has_text)
            r = HR_FEED_RUN(&dit->feed, err,
                            hr_gpu_flag_nonfinite(dit->gpu, &flags[1], sample->buffers.txt,
                                                  sample->geometry.n_txt * D));
    }
    return r;
}

static int fail(const struct hr_dit *dit, uint32_t part, bool image, bool text,
                struct hr_error *err)
{
    const char *streams = image && text ? "image and text stream are"
                          : image       ? "image stream is"
                                        : "text stream is";
    char where[96];

    if (part == EMBEDDING)
        snprintf(where, sizeof(where), "%s",
                 image && text ? "img_in and txt_in"
                 : image       ? "img_in"
                               : "txt_in");
    else
        snprintf(where, sizeof(where), "block %u (transformer_blocks.%u)", part - 1, part - 1);
    return hr_error_set(err, -ERANGE,
                        "%s: %s not finite after %s: its weights, or what goes into it, hold NaN "
                        "or infinity, or overflow; headrace verify finds damage",
                        hr_checkpoint_path(dit->checkpoint), streams, where);
}

int hr_dit_finite_end(struct hr_dit *dit, struct hr_error *err)
{
    const uint32_t n = hr_dit_finite_flags(dit);
    const int r = HR_FEED_RUN(
        &dit->feed, err,
        hr_gpu_download(dit->gpu, dit->flags, dit->shared.flags, n * sizeof(dit->flags[0])));

    if (r < 0)
        return r;
    for (uint32_t i = 0; i < n; i += STREAMS)
        if (dit->flags[i] || dit->flags[i + 1])
            return fail(dit, i / STREAMS, dit->flags[i], dit->flags[i + 1], err);
    return 0;
}
