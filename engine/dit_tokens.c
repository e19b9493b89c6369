/* SPDX-License-Identifier: Apache-2.0 */
/* dit_tokens.c -- the host's share of a forward: sizes, packing, positions, timestep. All in f32,
 * in the order of operations of the published model, so that results agree to the last bits. */
#include <errno.h>
#include <math.h>

#include "engine/dit.h"

/* ---- sizes ------------------------------------------------------------------------------ */

static int check_image(const struct hr_latent *image, uint32_t idx, struct hr_error *err)
{
    if (image->h >= 2 && image->w >= 2 && image->h % 2 == 0 && image->w % 2 == 0 &&
        image->h <= HR_DIT_SIDE_MAX && image->w <= HR_DIT_SIDE_MAX)
        return 0;
    return hr_error_set(err, -EINVAL,
                        "image %u of the inputs has a latent of %u x %u; height and width must be "
                        "even and 2 to %d (pixels: multiples of 16)",
                        idx, image->h, image->w, HR_DIT_SIDE_MAX);
}

int hr_dit_check_images(const struct hr_dit_inputs *in, struct hr_error *err)
{
    const struct hr_latent *first = &in->images[0];

    if (in->n_images < 1 || in->n_images > HR_IMAGES_MAX || in->n_targets < 1 ||
        in->n_targets > in->n_images)
        return hr_error_set(
            err, -EINVAL,
            "the inputs have %u images, %u of them targets; expected 1 to %d images "
            "and at least one target",
            in->n_images, in->n_targets, HR_IMAGES_MAX);
    for (uint32_t i = 0; i < in->n_images; i++) {
        const struct hr_latent *image = &in->images[i];
        const int r = check_image(image, i, err);

        if (r < 0)
            return r;
        if (i < in->n_targets && (image->h != first->h || image->w != first->w))
            return hr_error_set(err, -EINVAL,
                                "target image %u is %u x %u, but the first is %u x %u; all must be "
                                "of one size",
                                i, image->h, image->w, first->h, first->w);
    }
    return 0;
}

/* What the model has a say in. */
static int check_inputs(const struct hr_dit_model *model, const struct hr_dit_inputs *in,
                        struct hr_error *err)
{
    if (in->n_targets > 1 && !model->config.use_layer3d_rope)
        return hr_error_set(err, -EINVAL,
                            "the inputs have %u target images, but the model is not a layered one; "
                            "expected latents of shape [16, h, w]",
                            in->n_targets);
    if (model->config.use_layer3d_rope && in->n_images != in->n_targets + 1)
        return hr_error_set(err, -EINVAL,
                            "a layered model takes exactly one reference image, its condition; the "
                            "inputs have %u",
                            in->n_images - in->n_targets);
    if (in->n_text < 1 || in->n_text > HR_DIT_TEXT_MAX)
        return hr_error_set(err, -EINVAL, "the prompt embedding has %u tokens; expected 1 to %d",
                            in->n_text, HR_DIT_TEXT_MAX);
    return 0;
}

int hr_dit_geometry_init(struct hr_dit_geometry *ret_geometry, const struct hr_dit_model *model,
                         const struct hr_dit_inputs *inputs, struct hr_error *err)
{
    struct hr_dit_geometry g = {.n_images = inputs->n_images, .n_targets = inputs->n_targets};
    int r = hr_dit_check_images(inputs, err);

    if (r == 0)
        r = check_inputs(model, inputs, err);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < g.n_images; i++) {
        const struct hr_latent *image = &inputs->images[i];

        g.images[i].h = image->h;
        g.images[i].w = image->w;
        g.images[i].n_tokens = (size_t) (image->h / 2) * (image->w / 2);
        g.n_img += g.images[i].n_tokens;
        if (i < g.n_targets)
            g.n_target_tokens += g.images[i].n_tokens;
    }
    g.n_first = g.images[0].n_tokens;
    for (uint32_t j = 0; j < inputs->n_text; j++)
        g.n_txt += !inputs->prompt_mask || inputs->prompt_mask[j] != 0;
    if (g.n_txt == 0)
        return hr_error_set(err, -EINVAL, "prompt_emb_mask leaves no token of the prompt");
    g.n_all = g.n_txt + g.n_img;
    *ret_geometry = g;
    return 0;
}

bool hr_dit_geometry_equal(const struct hr_dit_geometry *a, const struct hr_dit_geometry *b)
{
    bool equal = a->n_images == b->n_images && a->n_targets == b->n_targets && a->n_txt == b->n_txt;

    for (uint32_t i = 0; equal && i < a->n_images; i++)
        equal = a->images[i].h == b->images[i].h && a->images[i].w == b->images[i].w;
    return equal;
}

/* ---- packing ---------------------------------------------------------------------------- */

/* Index in the latent of value f of the token at row Y, column X of the patch grid. */
static size_t latent_index(uint32_t h, uint32_t w, uint32_t Y, uint32_t X, unsigned f)
{
    const unsigned c = f / 4, py = f / 2 % 2, px = f % 2;

    return ((size_t) c * h + 2 * Y + py) * w + 2 * X + px;
}

void hr_dit_pack(float *tokens, const struct hr_latent *latent)
{
    for (uint32_t Y = 0; Y < latent->h / 2; Y++)
        for (uint32_t X = 0; X < latent->w / 2; X++)
            for (unsigned f = 0; f < HR_DIT_TOKEN_DIM; f++)
                *tokens++ = latent->data[latent_index(latent->h, latent->w, Y, X, f)];
}

void hr_dit_unpack(float *latent, const float *tokens, uint32_t h, uint32_t w)
{
    for (uint32_t Y = 0; Y < h / 2; Y++)
        for (uint32_t X = 0; X < w / 2; X++)
            for (unsigned f = 0; f < HR_DIT_TOKEN_DIM; f++)
                latent[latent_index(h, w, Y, X, f)] = *tokens++;
}

/* ---- rotary angles ---------------------------------------------------------------------- */

enum { ANGLES_FRAME = 8, ANGLES_SPACE = 28 };
_Static_assert(ANGLES_FRAME + 2 * ANGLES_SPACE == HR_DIT_ROPE_ANGLES, "three axes fill a head");

/* n angles of one axis: position / 10000^(2k / 2n), each step rounded to f32 as in the model. */
static float *axis_angles(float *cos_sin, int32_t position, unsigned n)
{
    for (unsigned k = 0; k < n; k++) {
        const float exponent = (float) (2 * k) / (float) (2 * n);
        const float angle = (float) position * (1.0f / powf(10000.0f, exponent));

        *cos_sin++ = cosf(angle);
        *cos_sin++ = sinf(angle);
    }
    return cos_sin;
}

static float *token_angles(float *cos_sin, int32_t frame, int32_t y, int32_t x)
{
    cos_sin = axis_angles(cos_sin, frame, ANGLES_FRAME);
    cos_sin = axis_angles(cos_sin, y, ANGLES_SPACE);
    return axis_angles(cos_sin, x, ANGLES_SPACE);
}

void hr_dit_rope(float *cos_sin, const struct hr_dit_geometry *geometry, bool layered,
                 const uint32_t *text_index)
{
    uint32_t text_start = layered ? geometry->n_images - 1 : 0;

    for (uint32_t i = 0; i < geometry->n_images; i++) {
        text_start = (uint32_t) hr_max_u64(text_start, geometry->images[i].h / 4);
        text_start = (uint32_t) hr_max_u64(text_start, geometry->images[i].w / 4);
    }
    for (size_t j = 0; j < geometry->n_txt; j++) {
        const int32_t p = (int32_t) (text_start + text_index[j]);

        cos_sin = token_angles(cos_sin, p, p, p);
    }
    for (uint32_t i = 0; i < geometry->n_images; i++) {
        const int32_t rows = (int32_t) geometry->images[i].h / 2;
        const int32_t cols = (int32_t) geometry->images[i].w / 2;
        /* The condition of a layered model, always last, stands before all layers. */
        const int32_t frame = layered && i + 1 == geometry->n_images ? -1 : (int32_t) i;

        for (int32_t Y = 0; Y < rows; Y++)
            for (int32_t X = 0; X < cols; X++)
                cos_sin =
                    token_angles(cos_sin, frame, Y - (rows - rows / 2), X - (cols - cols / 2));
    }
}

/* ---- timestep --------------------------------------------------------------------------- */

float hr_dit_tau(float timestep, bool rounding)
{
    if (!rounding)
        return timestep / 1000.0f;
    const float t = hr_bf16_to_f32(hr_f32_to_bf16(timestep));
    return hr_bf16_to_f32(hr_f32_to_bf16(t / 1000.0f));
}

void hr_dit_sinusoid(float *u, float tau)
{
    const unsigned half = HR_DIT_SINUSOID_DIM / 2;

    for (unsigned k = 0; k < half; k++) {
        const float f = expf(-9.210340371976184f * (float) k / (float) half);
        const float a = 1000.0f * (tau * f);

        u[k] = cosf(a);
        u[half + k] = sinf(a);
    }
}
