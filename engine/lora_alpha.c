/* SPDX-License-Identifier: Apache-2.0 */
/* lora_alpha.c -- see lora_alpha.h. */
#include "engine/lora_alpha.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/files.h"
#include "engine/metadata.h"

static const char key[] = "lora_adapter_metadata";

/* A setting of the adapter, whose name diffusers prefixes with the model's part. */
static const json_t *setting(const json_t *root, const char *name)
{
    char prefixed[64];
    const json_t *value;

    snprintf(prefixed, sizeof(prefixed), "transformer.%s", name);
    value = json_object_get(root, prefixed);
    return value ? value : json_object_get(root, name);
}

/* Patterns are Python's regular expressions; those in use are ends of paths. */
static int check_patterns(const struct hr_lora_alphas *alphas, struct hr_error *err)
{
    const char *path = hr_checkpoint_path(alphas->checkpoint);
    json_t *patterns =
        (json_t *) (uintptr_t) alphas->patterns; /* jansson iterates over these only */
    const char *pattern;
    char printable[160];
    json_t *value;

    if (patterns && !json_is_object(patterns))
        return hr_error_set(err, -EBADMSG, "%s: %s: alpha_pattern is no object", path, key);
    json_object_foreach(patterns, pattern, value) {
        hr_printable(pattern, printable, sizeof(printable));
        if (strpbrk(pattern, "*+?[](){}|\\^$"))
            return hr_error_set(err, -EOPNOTSUPP,
                                "%s: %s: alpha_pattern \"%s\" is a regular expression; only paths "
                                "of modules, or their ends, are supported",
                                path, key, printable);
        if (!json_is_number(value))
            return hr_error_set(err, -EBADMSG, "%s: %s: alpha_pattern \"%s\" is no number", path,
                                key, printable);
    }
    return 0;
}

int hr_lora_alphas_init(struct hr_lora_alphas *alphas, const struct hr_checkpoint *checkpoint,
                        struct hr_error *err)
{
    const char *path = hr_checkpoint_path(checkpoint);
    int r;

    *alphas = (struct hr_lora_alphas){.checkpoint = checkpoint};
    r = hr_metadata_read(&alphas->root, checkpoint, 0, key, err);
    if (r <= 0)
        return r;
    alphas->alpha = setting(alphas->root, "lora_alpha");
    alphas->patterns = setting(alphas->root, "alpha_pattern");
    alphas->is_rslora = json_is_true(setting(alphas->root, "use_rslora"));
    if (json_is_null(alphas->patterns))
        alphas->patterns = NULL;
    if (json_is_true(setting(alphas->root, "use_dora")))
        r = hr_error_set(err, -EOPNOTSUPP, "%s: %s says use_dora: DoRA is not supported", path,
                         key);
    else if (alphas->alpha && !json_is_number(alphas->alpha))
        r = hr_error_set(err, -EBADMSG, "%s: %s: lora_alpha is no number", path, key);
    else
        r = check_patterns(alphas, err);
    if (r < 0)
        hr_lora_alphas_uninit(alphas);
    return r;
}

void hr_lora_alphas_uninit(struct hr_lora_alphas *alphas)
{
    json_decref(alphas->root);
    *alphas = (struct hr_lora_alphas){0};
}

/* The first pattern that is the module's path or ends it after a dot, else lora_alpha. */
static const json_t *alpha_of(const struct hr_lora_alphas *alphas, const char *module)
{
    json_t *patterns = (json_t *) (uintptr_t) alphas->patterns;
    const size_t len = strlen(module);
    const char *pattern;
    json_t *value;

    json_object_foreach(patterns, pattern, value) {
        const size_t n = strlen(pattern);

        if (hr_has_suffix(module, pattern) && (n == len || module[len - n - 1] == '.'))
            return value;
    }
    return alphas->alpha;
}

static int read_tensor(const struct hr_lora_alphas *alphas, const struct hr_tensor *tensor,
                       float *ret_alpha, struct hr_error *err)
{
    const char *path = hr_checkpoint_path(alphas->checkpoint);
    char name[160];

    hr_printable(tensor->name, name, sizeof(name));
    if (tensor->dtype != HR_DTYPE_F32 && tensor->dtype != HR_DTYPE_BF16 &&
        tensor->dtype != HR_DTYPE_F16)
        return hr_error_set(err, -EOPNOTSUPP,
                            "%s: tensor %s is %s; F32, BF16 and F16 are supported", path, name,
                            hr_dtype_name(tensor->dtype));
    if (hr_shape_elements(tensor->shape, tensor->rank) != 1)
        return hr_error_set(err, -EBADMSG, "%s: tensor %s: an alpha is one number", path, name);
    return hr_checkpoint_read_f32(alphas->checkpoint, tensor, ret_alpha, 1, err);
}

int hr_lora_alphas_factor(const struct hr_lora_alphas *alphas, const char *module,
                          const struct hr_tensor *tensor, uint64_t rank, float *ret_factor,
                          struct hr_error *err)
{
    double alpha = (double) rank, divisor = (double) rank;
    const json_t *said = alpha_of(alphas, module);
    float value;

    if (tensor) {
        const int r = read_tensor(alphas, tensor, &value, err);

        if (r < 0)
            return r;
        alpha = (double) value;
    } else if (said) {
        alpha = json_number_value(said);
        divisor = alphas->is_rslora ? sqrt(divisor) : divisor;
    }
    *ret_factor = (float) (alpha / divisor);
    if (!isfinite(*ret_factor))
        return hr_error_set(err, -EBADMSG, "%s: the alpha of module %s is no finite number",
                            hr_checkpoint_path(alphas->checkpoint), module);
    return 0;
}
