/* SPDX-License-Identifier: Apache-2.0 */
/* weight_scale.c -- see weight_scale.h. What is not understood is refused: a scale that is left out
 * gives a picture of noise. */
#include "engine/weight_scale.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/files.h"
#include "engine/metadata.h"

enum { NAME_BYTES = 160 };

struct hr_weight_scales {
    const struct hr_checkpoint *checkpoint;
    uint32_t n_shards;
    json_t *metadata[]; /* of each shard, NULL: none */
};

/* One weight and all that is said about it. */
struct subject {
    const struct hr_weight_scales *scales;
    const struct hr_tensor *weight, *scale;
    char module[256];      /* the weight's name without ".weight" */
    char name[NAME_BYTES]; /* of the weight, safe to print        */
    const char *path;
    struct hr_error *err;
};

static const struct hr_tensor *sibling(const struct subject *s, const char *suffix)
{
    char name[sizeof(s->module) + 32];

    snprintf(name, sizeof(name), "%s%s", s->module, suffix);
    return hr_checkpoint_find(s->scales->checkpoint, name);
}

/* ---- formats by name ---------------------------------------------------------------- */

static int refuse_format(const struct subject *s, const char *format)
{
    char printable[64];

    return hr_error_set(
        s->err, -EOPNOTSUPP,
        "%s: tensor %s is quantised as %s, which is not supported; use a bf16 file, "
        "or fp8 with one scale for each weight or row",
        s->path, s->name, hr_printable(format, printable, sizeof(printable)));
}

/* What `M.comfy_quant` or the metadata say of one layer. */
static int check_format(const struct subject *s, const json_t *layer)
{
    static const struct {
        const char *name;
        enum hr_dtype dtype;
    } known[] = {{"float8_e4m3fn", HR_DTYPE_F8_E4M3}, {"float8_e5m2", HR_DTYPE_F8_E5M2}};
    const char *format = json_string_value(json_object_get(layer, "format"));

    if (!format)
        return hr_error_set(s->err, -EBADMSG, "%s: tensor %s: its quantisation names no format",
                            s->path, s->name);
    if (json_is_true(json_object_get(layer, "convrot")))
        return refuse_format(s, "convrot (rotated weights)");
    for (size_t i = 0; i < HR_ARRAY_SIZE(known); i++) {
        if (strcmp(format, known[i].name) != 0)
            continue;
        if (s->weight->dtype != known[i].dtype)
            return hr_error_set(s->err, -EBADMSG, "%s: tensor %s is %s, but is said to be %s",
                                s->path, s->name, hr_dtype_name(s->weight->dtype), format);
        if (!s->scale)
            return hr_error_set(s->err, -EBADMSG,
                                "%s: tensor %s is quantised as %s, but its weight_scale is missing",
                                s->path, s->name, format);
        return 0;
    }
    return refuse_format(s, format);
}

/* The metadata's entry of a layer, whose name may carry the file's prefix. */
static const json_t *metadata_layer(const struct subject *s)
{
    static const char *const prefixes[] = {"", "model.diffusion_model.", "diffusion_model.",
                                           "transformer."};
    const json_t *root = s->scales->metadata[s->weight->shard_idx];
    const json_t *layers = json_object_get(root, "layers"), *layer = NULL;
    char name[sizeof(s->module) + 32];

    for (size_t i = 0; i < HR_ARRAY_SIZE(prefixes) && !layer; i++) {
        snprintf(name, sizeof(name), "%s%s", prefixes[i], s->module);
        layer = json_object_get(layers, name);
    }
    return layer;
}

static int check_said(const struct subject *s)
{
    const struct hr_tensor *quant = sibling(s, ".comfy_quant");
    const json_t *layer = metadata_layer(s);
    json_t *root = NULL;
    int r = 0;

    if (quant) {
        r = hr_metadata_read_tensor(&root, s->scales->checkpoint, quant, s->err);
        if (r == 0)
            r = check_format(s, root);
        json_decref(root);
    }
    return r == 0 && layer ? check_format(s, layer) : r;
}

/* ---- scales ------------------------------------------------------------------------- */

/* [], [1] and [1,1] are one scale; [out] and [out,1] one for each row. */
static int check_scale(const struct subject *s, uint64_t *ret_n)
{
    const struct hr_tensor *scale = s->scale, *weight = s->weight;
    const uint64_t n = hr_shape_elements(scale->shape, scale->rank);
    char name[NAME_BYTES], shape[64];

    hr_printable(scale->name, name, sizeof(name));
    hr_shape_print(scale, shape, sizeof(shape));
    if (scale->dtype == HR_DTYPE_F8_E8M0)
        return refuse_format(s, "mxfp8 (scales in F8_E8M0)");
    if (scale->dtype != HR_DTYPE_F32 && scale->dtype != HR_DTYPE_BF16 &&
        scale->dtype != HR_DTYPE_F16)
        return hr_error_set(s->err, -EOPNOTSUPP,
                            "%s: tensor %s is %s; scales in F32, BF16 or F16 are supported",
                            s->path, name, hr_dtype_name(scale->dtype));
    if (n == 1 || (scale->rank >= 1 && scale->rank <= 2 && scale->shape[0] == weight->shape[0] &&
                   n == scale->shape[0])) {
        *ret_n = n;
        return 0;
    }
    if (scale->rank > 2 || (scale->rank == 2 && n > weight->shape[0]))
        return hr_error_set(s->err, -EOPNOTSUPP,
                            "%s: tensor %s has the shape [%s]: scales of blocks, which are not "
                            "supported; use one scale for each weight or row",
                            s->path, name, shape);
    return hr_error_set(s->err, -EBADMSG,
                        "%s: tensor %s has the shape [%s]; expected [], [1] or [%llu, 1]", s->path,
                        name, shape, (unsigned long long) weight->shape[0]);
}

static int read_values(const struct subject *s, struct hr_weight_scale *ret_scale, uint64_t n)
{
    float *values = malloc(n * sizeof(*values));
    char name[NAME_BYTES];
    int r;

    hr_printable(s->scale->name, name, sizeof(name));
    if (!values)
        return hr_error_set(s->err, -ENOMEM, "%s: no memory for tensor %s", s->path, name);
    r = hr_checkpoint_read_f32(s->scales->checkpoint, s->scale, values, n, s->err);
    for (uint64_t i = 0; i < n && r == 0; i++)
        if (!isfinite(values[i]) || !(values[i] > 0.0f))
            r = hr_error_set(s->err, -EBADMSG,
                             "%s: tensor %s[%llu] is %g; a scale is a number above 0", s->path,
                             name, (unsigned long long) i, (double) values[i]);
    if (r < 0) {
        free(values);
        return r;
    }
    *ret_scale = (struct hr_weight_scale){.values = values, .n = n};
    return 0;
}

/* The tensor that scales, or NULL. */
static int find_scale(struct subject *s)
{
    const struct hr_tensor *old = sibling(s, ".scale_weight"), *new = sibling(s, ".weight_scale");

    if (sibling(s, ".weight_scale_2"))
        return refuse_format(s, "nvfp4 (weight_scale_2)");
    if (old && new)
        return hr_error_set(s->err, -EBADMSG,
                            "%s: tensor %s has both scale_weight and weight_scale", s->path,
                            s->name);
    s->scale = old ? old : new;
    return 0;
}

/* After what the files say, which names a format. */
static int check_dtype(const struct subject *s)
{
    if (!s->scale || s->weight->dtype == HR_DTYPE_F8_E4M3 || s->weight->dtype == HR_DTYPE_F8_E5M2)
        return 0;
    return hr_error_set(s->err, -EOPNOTSUPP,
                        "%s: tensor %s is %s with a scale; only scaled F8_E4M3 and F8_E5M2 are "
                        "supported",
                        s->path, s->name, hr_dtype_name(s->weight->dtype));
}

/* ---- interface ---------------------------------------------------------------------- */

int hr_weight_scales_open(struct hr_weight_scales **ret_scales,
                          const struct hr_checkpoint *checkpoint, struct hr_error *err)
{
    const uint32_t n = hr_checkpoint_n_shards(checkpoint);
    struct hr_weight_scales *scales = calloc(1, sizeof(*scales) + n * sizeof(scales->metadata[0]));
    int r = 0;

    if (!scales)
        return hr_error_set(err, -ENOMEM, "%s: no memory for scales",
                            hr_checkpoint_path(checkpoint));
    scales->checkpoint = checkpoint;
    scales->n_shards = n;
    for (uint32_t i = 0; i < n && r >= 0; i++)
        r = hr_metadata_read(&scales->metadata[i], checkpoint, i, "_quantization_metadata", err);
    if (r < 0) {
        hr_weight_scales_close(&scales);
        return r;
    }
    *ret_scales = scales;
    return 0;
}

void hr_weight_scales_close(struct hr_weight_scales **scales)
{
    struct hr_weight_scales *s = *scales;

    *scales = NULL;
    for (uint32_t i = 0; s && i < s->n_shards; i++)
        json_decref(s->metadata[i]);
    free(s);
}

int hr_weight_scale_read(const struct hr_weight_scales *scales, const struct hr_tensor *weight,
                         struct hr_weight_scale *ret_scale, struct hr_error *err)
{
    const size_t len = strlen(weight->name), suffix = strlen(".weight");
    struct subject s = {.scales = scales, .weight = weight, .err = err};
    uint64_t n = 0;
    int r;

    *ret_scale = (struct hr_weight_scale){0};
    if (!hr_has_suffix(weight->name, ".weight") || len - suffix >= sizeof(s.module))
        return 0;
    hr_assert(weight->rank >= 1);
    memcpy(s.module, weight->name, len - suffix);
    hr_printable(weight->name, s.name, sizeof(s.name));
    s.path = hr_checkpoint_shard_shown(scales->checkpoint, weight->shard_idx);
    r = find_scale(&s);
    if (r == 0)
        r = check_said(&s);
    if (r == 0)
        r = check_dtype(&s);
    if (r == 0 && s.scale)
        r = check_scale(&s, &n);
    return r == 0 && s.scale ? read_values(&s, ret_scale, n) : r;
}

void hr_weight_scale_uninit(struct hr_weight_scale *scale)
{
    free(scale->values);
    *scale = (struct hr_weight_scale){0};
}
