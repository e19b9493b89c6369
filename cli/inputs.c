/* SPDX-License-Identifier: Apache-2.0 */
/* inputs.c -- tensor files in: latents, references, prompt embedding and its mask. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

/* The file that is being read; messages name it. */
struct source {
    struct hr_checkpoint *file;
    const char *path;
    struct hr_error *err;
};

__attribute__((format(printf, 3, 4))) static int fail(const struct source *s, int code,
                                                      const char *format, ...)
{
    char message[512], shown[512];
    va_list ap;

    va_start(ap, format);
    vsnprintf(message, sizeof(message), format, ap);
    va_end(ap);
    return cli_error(s->err, code, "%s: %s", cli_printable(shown, sizeof(shown), s->path), message);
}

static const char *shape_text(char *buf, size_t buf_bytes, const struct hr_tensor *t)
{
    size_t len = (size_t) snprintf(buf, buf_bytes, "[");

    for (uint32_t i = 0; i < t->rank && len < buf_bytes; i++)
        len += (size_t) snprintf(buf + len, buf_bytes - len, i ? ", %" PRIu64 : "%" PRIu64,
                                 t->shape[i]);
    if (len < buf_bytes)
        snprintf(buf + len, buf_bytes - len, "]");
    return buf;
}

static int wrong_shape(const struct source *s, const struct hr_tensor *t, const char *expected)
{
    char shape[96];

    return fail(s, -EBADMSG, "tensor %s has the shape %s; expected %s", t->name,
                shape_text(shape, sizeof(shape), t), expected);
}

static uint64_t n_elements(const struct hr_tensor *t)
{
    uint64_t n = 1;

    for (uint32_t i = 0; i < t->rank; i++)
        n *= t->shape[i];
    return n;
}

/* Keep an allocation until cli_tensors_free(). */
static void *own(struct cli_tensors *out, void *memory)
{
    if (memory)
        out->owned[out->n_owned++] = memory;
    return memory;
}

/* Read a tensor whole as floats, all finite. */
static int read_floats(struct cli_tensors *out, const struct source *s, const struct hr_tensor *t,
                       float **ret_values)
{
    const uint64_t n = n_elements(t);
    int r;

    if (t->dtype != HR_DTYPE_F32 && t->dtype != HR_DTYPE_BF16 && t->dtype != HR_DTYPE_F16)
        return fail(s, -EOPNOTSUPP, "tensor %s is %s; expected F32, BF16 or F16", t->name,
                    hr_dtype_name(t->dtype));
    float *values = own(out, calloc(n, sizeof(*values)));

    if (!values)
        return fail(s, -ENOMEM, "no memory for the inputs");
    r = hr_checkpoint_read_f32(s->file, t, values, n, s->err);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < n; i++)
        if (!isfinite(values[i]))
            return fail(s, -EBADMSG,
                        "tensor %s holds %s at element %" PRIu64 "; inputs must be finite", t->name,
                        isnan(values[i]) ? "NaN" : "an infinity", i);
    *ret_values = values;
    return 0;
}

/* [16,h,w] or [n,16,h,w], n images of one size, appended to the inputs. */
static int read_images(struct cli_tensors *out, const struct source *s, const struct hr_tensor *t,
                       uint32_t n_max)
{
    static const char expected[] = "[16, h, w] or [1, 16, h, w], h and w even and 2 to 1024 "
                                   "(pixels: multiples of 16)";
    const uint64_t *dims = t->shape + (t->rank == 4);
    const uint64_t n_images = t->rank == 4 ? t->shape[0] : 1;
    float *values = NULL;
    int r;

    if ((t->rank != 3 && t->rank != 4) || dims[0] != HR_LATENT_CHANNELS || n_images < 1 ||
        n_images > n_max)
        return wrong_shape(s, t, expected);
    for (unsigned i = 1; i <= 2; i++)
        if (dims[i] < 2 || dims[i] > 1024 || dims[i] % 2 != 0)
            return wrong_shape(s, t, expected);
    if (out->inputs.n_images + n_images > HR_IMAGES_MAX)
        return fail(s, -EINVAL, "more than 32 images");
    r = read_floats(out, s, t, &values);
    for (uint64_t i = 0; i < n_images && r == 0; i++)
        out->inputs.images[out->inputs.n_images++] = (struct hr_latent){
            .data = values + i * dims[0] * dims[1] * dims[2],
            .h = (uint32_t) dims[1],
            .w = (uint32_t) dims[2],
        };
    return r;
}

/* A prompt: its embedding and, if there is one, the mask of its padding. */
struct prompt {
    const char *name, *mask_name; /* of the tensors */
    const float *emb;             /* [n, joint_dim] */
    const uint8_t *mask;          /* [n]            */
    uint32_t n;
};

/* [n] or [1, n] of any dtype with whole bytes: a token counts unless its element is all zero bits.
 */
static int read_mask(struct cli_tensors *out, const struct source *s, const struct hr_tensor *t,
                     struct prompt *prompt)
{
    const uint32_t n = prompt->n;
    char expected[64];
    int r;

    snprintf(expected, sizeof(expected), "[%" PRIu32 "], as %s has tokens", n, prompt->name);
    if ((t->rank != 1 && (t->rank != 2 || t->shape[0] != 1)) || t->shape[t->rank - 1] != n ||
        t->size_bytes % n != 0)
        return wrong_shape(s, t, expected);
    const size_t element_bytes = (size_t) (t->size_bytes / n);
    uint8_t *raw = calloc(n, element_bytes);
    uint8_t *mask = own(out, calloc(n, 1));

    if (!raw || !mask) {
        free(raw);
        return fail(s, -ENOMEM, "no memory for the inputs");
    }
    r = hr_checkpoint_read(s->file, t, raw, t->size_bytes, s->err);
    for (size_t i = 0; i < n * element_bytes; i++)
        mask[i / element_bytes] |= raw[i];
    free(raw);
    prompt->mask = mask;
    return r;
}

/* required: that it is missing is an error. */
static int read_prompt(struct cli_tensors *out, const struct source *s, uint32_t joint_dim,
                       struct prompt *prompt, bool required)
{
    const struct hr_tensor *t = hr_checkpoint_find(s->file, prompt->name);
    const struct hr_tensor *mask = hr_checkpoint_find(s->file, prompt->mask_name);
    char text[128];
    float *values = NULL;
    int r;

    if (!t && !required)
        return 0;
    if (!t)
        return fail(s, -ENOENT, "no tensor is called %s; expected [n, %" PRIu32 "]", prompt->name,
                    joint_dim);
    snprintf(text, sizeof(text), "[n, %" PRIu32 "] or [1, n, %" PRIu32 "], n 1 to 65536", joint_dim,
             joint_dim);
    if ((t->rank != 2 && (t->rank != 3 || t->shape[0] != 1)) ||
        t->shape[t->rank - 1] != joint_dim || t->shape[t->rank - 2] < 1 ||
        t->shape[t->rank - 2] > 65536)
        return wrong_shape(s, t, text);
    prompt->n = (uint32_t) t->shape[t->rank - 2];
    r = read_floats(out, s, t, &values);
    prompt->emb = values;
    return r == 0 && mask ? read_mask(out, s, mask, prompt) : r;
}

/* reference.0, reference.1 ... without a gap. */
static int read_references(struct cli_tensors *out, const struct source *s)
{
    uint32_t n_named = 0;

    for (uint32_t i = 0; i < hr_checkpoint_n_tensors(s->file); i++)
        n_named += strncmp(hr_checkpoint_tensor(s->file, i)->name, "reference.", 10) == 0;
    for (uint32_t i = 0; i < n_named; i++) {
        char name[32];
        int r;

        snprintf(name, sizeof(name), "reference.%" PRIu32, i);
        const struct hr_tensor *t = hr_checkpoint_find(s->file, name);

        if (!t)
            return fail(s, -ENOENT,
                        "%" PRIu32 " tensors are called reference.*, but none %s; number them "
                        "from 0",
                        n_named, name);
        r = read_images(out, s, t, 1);
        if (r < 0)
            return r;
    }
    return 0;
}

static int read_latents(struct cli_tensors *out, const struct source *s,
                        const struct cli_tensors_wanted *wanted)
{
    const struct hr_tensor *latents = hr_checkpoint_find(s->file, "latents");
    const struct hr_latent *target = &out->inputs.images[0];
    int r = 0;

    if (latents)
        r = read_images(out, s, latents, HR_IMAGES_MAX);
    else if (wanted->w != 0) /* drawn from the seed */
        out->inputs.images[out->inputs.n_images++] =
            (struct hr_latent){.h = wanted->h, .w = wanted->w};
    else if (wanted->loop)
        return fail(s, -ENOENT,
                    "no tensor is called latents; put it in, [16, h, w], or give "
                    "--width and --height for noise from --seed");
    else
        return fail(s, -ENOENT, "no tensor is called latents; expected [16, h, w]");
    if (r == 0 && wanted->w != 0 && (target->w != wanted->w || target->h != wanted->h))
        return fail(s, -EINVAL,
                    "its latents are %" PRIu32 " x %" PRIu32 " pixels, and --width and --height "
                    "say otherwise; leave them out",
                    target->w * 8, target->h * 8);
    out->inputs.n_targets = out->inputs.n_images;
    return r;
}

/* init_latents [n, 16, h, w] and inpaint_mask [h, w], of the targets' size. */
static int read_image_to_image(struct cli_tensors *out, const struct source *s)
{
    const struct hr_tensor *init = hr_checkpoint_find(s->file, "init_latents");
    const struct hr_tensor *mask = hr_checkpoint_find(s->file, "inpaint_mask");
    const struct hr_latent *target = &out->inputs.images[0];
    const uint64_t n =
        (uint64_t) out->inputs.n_targets * HR_LATENT_CHANNELS * target->h * target->w;
    char expected[96];
    float *values = NULL;
    int r = 0;

    if (init) {
        snprintf(expected, sizeof(expected),
                 "the targets' %" PRIu32 " x [16, %" PRIu32 ", %" PRIu32 "]", out->inputs.n_targets,
                 target->h, target->w);
        if (init->rank < 3 || init->shape[init->rank - 1] != target->w ||
            init->shape[init->rank - 2] != target->h || n_elements(init) != n)
            return wrong_shape(s, init, expected);
        r = read_floats(out, s, init, &values);
        out->init = values;
    }
    if (mask && r == 0) {
        snprintf(expected, sizeof(expected), "[%" PRIu32 ", %" PRIu32 "]", target->h, target->w);
        if (mask->rank < 2 || mask->shape[mask->rank - 1] != target->w ||
            n_elements(mask) != (uint64_t) target->h * target->w)
            return wrong_shape(s, mask, expected);
        r = read_floats(out, s, mask, &values);
        out->mask = values;
    }
    return r;
}

int cli_tensors_read(struct cli_tensors *ret_tensors, const char *path,
                     const struct cli_tensors_wanted *wanted, struct hr_error *err)
{
    struct source s = {.path = path, .err = err};
    struct prompt positive = {.name = "prompt_emb", .mask_name = "prompt_emb_mask"};
    struct prompt negative = {.name = "negative_prompt_emb",
                              .mask_name = "negative_prompt_emb_mask"};
    int r = hr_checkpoint_open(&s.file,
                               &(struct hr_checkpoint_params){.paths = &path, .n_paths = 1}, err);

    *ret_tensors = (struct cli_tensors){0};
    if (r == 0)
        r = read_latents(ret_tensors, &s, wanted);
    if (r == 0)
        r = read_references(ret_tensors, &s);
    if (r == 0)
        r = read_prompt(ret_tensors, &s, wanted->joint_dim, &positive, true);
    if (r == 0 && wanted->loop)
        r = read_prompt(ret_tensors, &s, wanted->joint_dim, &negative, false);
    if (r == 0 && wanted->loop)
        r = read_image_to_image(ret_tensors, &s);
    hr_checkpoint_close(&s.file);
    if (r < 0) {
        cli_tensors_free(ret_tensors);
        return r;
    }
    ret_tensors->inputs.prompt_emb = positive.emb;
    ret_tensors->inputs.prompt_mask = positive.mask;
    ret_tensors->inputs.n_text = positive.n;
    ret_tensors->negative_emb = negative.emb;
    ret_tensors->negative_mask = negative.mask;
    ret_tensors->n_negative = negative.n;
    return 0;
}

void cli_tensors_free(struct cli_tensors *tensors)
{
    for (uint32_t i = 0; i < tensors->n_owned; i++)
        free(tensors->owned[i]);
    *tensors = (struct cli_tensors){0};
}
