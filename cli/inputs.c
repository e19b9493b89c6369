/* SPDX-License-Identifier: Apache-2.0 */
/* inputs.c -- tensor files in: latents, references, prompt embedding and its mask. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
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

static int fail(const struct source *s, int code, const char *message)
{
    s->err->code = code;
    snprintf(s->err->message, sizeof(s->err->message), "%.300s: %s", s->path, message);
    return code;
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
    char message[512], shape[96];

    snprintf(message, sizeof(message), "tensor %s has the shape %s; expected %s", t->name,
             shape_text(shape, sizeof(shape), t), expected);
    return fail(s, -EBADMSG, message);
}

/* Read a tensor whole as floats, all finite. */
static int read_floats(struct cli_tensors *out, const struct source *s, const struct hr_tensor *t,
                       float **ret_values)
{
    uint64_t n = 1;
    char message[256];
    int r;

    for (uint32_t i = 0; i < t->rank; i++)
        n *= t->shape[i];
    if (t->dtype != HR_DTYPE_F32 && t->dtype != HR_DTYPE_BF16 && t->dtype != HR_DTYPE_F16) {
        snprintf(message, sizeof(message), "tensor %s is %s; expected F32, BF16 or F16", t->name,
                 hr_dtype_name(t->dtype));
        return fail(s, -EOPNOTSUPP, message);
    }
    float *values = calloc(n, sizeof(*values));

    if (!values)
        return fail(s, -ENOMEM, "no memory for the inputs");
    out->owned[out->n_owned++] = values;
    r = hr_checkpoint_read_f32(s->file, t, values, n, s->err);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < n; i++)
        if (!isfinite(values[i])) {
            snprintf(message, sizeof(message),
                     "tensor %s holds %s at element %" PRIu64 "; inputs must be finite", t->name,
                     isnan(values[i]) ? "NaN" : "an infinity", i);
            return fail(s, -EBADMSG, message);
        }
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

/* [n] or [1, n] of any dtype with whole bytes: a token counts unless its element is all zero bits.
 */
static int read_mask(struct cli_tensors *out, const struct source *s, const struct hr_tensor *t)
{
    const uint32_t n = out->inputs.n_text;
    char expected[64];
    int r;

    snprintf(expected, sizeof(expected), "[%" PRIu32 "], as prompt_emb has tokens", n);
    if ((t->rank != 1 && (t->rank != 2 || t->shape[0] != 1)) || t->shape[t->rank - 1] != n ||
        t->size_bytes % n != 0)
        return wrong_shape(s, t, expected);
    const size_t element_bytes = (size_t) (t->size_bytes / n);
    uint8_t *raw = calloc(n, element_bytes);

    out->mask = calloc(n, 1);
    if (!raw || !out->mask) {
        free(raw);
        return fail(s, -ENOMEM, "no memory for the inputs");
    }
    r = hr_checkpoint_read(s->file, t, raw, t->size_bytes, s->err);
    for (size_t i = 0; i < n * element_bytes; i++)
        out->mask[i / element_bytes] |= raw[i];
    free(raw);
    out->inputs.prompt_mask = out->mask;
    return r;
}

static int read_prompt(struct cli_tensors *out, const struct source *s, uint32_t joint_dim)
{
    const struct hr_tensor *t = hr_checkpoint_find(s->file, "prompt_emb");
    const struct hr_tensor *mask = hr_checkpoint_find(s->file, "prompt_emb_mask");
    char expected[96];
    float *values = NULL;
    int r;

    if (!t)
        return fail(s, -ENOENT,
                    "no tensor is called prompt_emb; expected [n, width of the prompt]");
    snprintf(expected, sizeof(expected), "[n, %" PRIu32 "] or [1, n, %" PRIu32 "], n 1 to 65536",
             joint_dim, joint_dim);
    if ((t->rank != 2 && (t->rank != 3 || t->shape[0] != 1)) ||
        t->shape[t->rank - 1] != joint_dim || t->shape[t->rank - 2] < 1 ||
        t->shape[t->rank - 2] > 65536)
        return wrong_shape(s, t, expected);
    out->inputs.n_text = (uint32_t) t->shape[t->rank - 2];
    r = read_floats(out, s, t, &values);
    out->inputs.prompt_emb = values;
    if (r < 0 || !mask)
        return r;

    return read_mask(out, s, mask);
}

/* reference.0, reference.1 ... without a gap. */
static int read_references(struct cli_tensors *out, const struct source *s)
{
    uint32_t n_named = 0, n_read = 0;

    for (uint32_t i = 0; i < hr_checkpoint_n_tensors(s->file); i++)
        n_named += strncmp(hr_checkpoint_tensor(s->file, i)->name, "reference.", 10) == 0;
    for (; n_read < n_named; n_read++) {
        char name[32], message[128];
        int r;

        snprintf(name, sizeof(name), "reference.%" PRIu32, n_read);
        const struct hr_tensor *t = hr_checkpoint_find(s->file, name);

        if (!t) {
            snprintf(message, sizeof(message),
                     "%" PRIu32 " tensors are called reference.*, but none %s; number them from 0",
                     n_named, name);
            return fail(s, -ENOENT, message);
        }
        r = read_images(out, s, t, 1);
        if (r < 0)
            return r;
    }
    return 0;
}

int cli_tensors_read(struct cli_tensors *ret_tensors, const char *path, uint32_t joint_dim,
                     struct hr_error *err)
{
    struct source s = {.path = path, .err = err};
    int r = hr_checkpoint_open(&s.file,
                               &(struct hr_checkpoint_params){.paths = &path, .n_paths = 1}, err);

    *ret_tensors = (struct cli_tensors){0};
    if (r < 0)
        return r;
    const struct hr_tensor *latents = hr_checkpoint_find(s.file, "latents");

    if (!latents)
        r = fail(&s, -ENOENT, "no tensor is called latents; expected [16, h, w]");
    else
        r = read_images(ret_tensors, &s, latents, HR_IMAGES_MAX);
    ret_tensors->inputs.n_targets = ret_tensors->inputs.n_images;
    if (r == 0)
        r = read_references(ret_tensors, &s);
    if (r == 0)
        r = read_prompt(ret_tensors, &s, joint_dim);
    hr_checkpoint_close(&s.file);
    if (r < 0)
        cli_tensors_free(ret_tensors);
    return r;
}

void cli_tensors_free(struct cli_tensors *tensors)
{
    for (uint32_t i = 0; i < tensors->n_owned; i++)
        free(tensors->owned[i]);
    free(tensors->mask);
    *tensors = (struct cli_tensors){0};
}
