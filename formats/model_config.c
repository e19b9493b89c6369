/* SPDX-License-Identifier: Apache-2.0 */
/* model_config.c -- Qwen-Image's transformer/config.json.
 *
 * One table says which numbers there are and what they may be; reading and writing both follow it.
 * A config is what its file claims: the tensors decide, later.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/formats.h"
#include "formats/json_strict.h"

enum { CONFIG_BYTES_MAX = 1 << 20 };

static const char class_name[] = "QwenImageTransformer2DModel";

/* min == max: the one value that this model may have; another is another model. */
static const struct {
    const char *key;
    size_t offset;
    uint32_t min, max;
} numbers[] = {
    {"num_layers", offsetof(struct hr_config, num_layers), 1, 10000},
    {"num_attention_heads", offsetof(struct hr_config, num_attention_heads), 1, 1024},
    {"attention_head_dim", offsetof(struct hr_config, attention_head_dim), 128, 128},
    {"in_channels", offsetof(struct hr_config, in_channels), 64, 64},
    {"out_channels", offsetof(struct hr_config, out_channels), 16, 16},
    {"patch_size", offsetof(struct hr_config, patch_size), 2, 2},
    {"joint_attention_dim", offsetof(struct hr_config, joint_attention_dim), 1, 65536},
};

static const struct {
    const char *key;
    size_t offset;
} flags[] = {
    {"zero_cond_t", offsetof(struct hr_config, zero_cond_t)},
    {"use_additional_t_cond", offsetof(struct hr_config, use_additional_t_cond)},
    {"use_layer3d_rope", offsetof(struct hr_config, use_layer3d_rope)},
};

static const uint32_t axes_dims[3] = {16, 56, 56};

static void set_number(struct hr_config *config, unsigned i, uint32_t value)
{
    memcpy((char *) config + numbers[i].offset, &value, sizeof(value));
}

static uint32_t get_number(const struct hr_config *config, unsigned i)
{
    uint32_t value;

    memcpy(&value, (const char *) config + numbers[i].offset, sizeof(value));
    return value;
}

static void set_flag(struct hr_config *config, unsigned i, bool value)
{
    memcpy((char *) config + flags[i].offset, &value, sizeof(value));
}

static bool get_flag(const struct hr_config *config, unsigned i)
{
    bool value;

    memcpy(&value, (const char *) config + flags[i].offset, sizeof(value));
    return value;
}

static int check_class(const struct hr_json_source *source, const json_t *root)
{
    const json_t *value = json_object_get(root, "_class_name");
    char name[200];

    if (!value)
        return 0;
    if (!json_is_string(value))
        return hr_error_set(source->err, -EBADMSG, "%s: _class_name is no string", source->what);
    if (strcmp(json_string_value(value), class_name) != 0)
        return hr_error_set(source->err, -EOPNOTSUPP, "%s: the model is a %s; only %s is supported",
                            source->what,
                            hr_printable(json_string_value(value), name, sizeof(name)), class_name);
    return 0;
}

static int read_numbers(struct hr_config *config, const struct hr_json_source *source,
                        const json_t *root)
{
    for (unsigned i = 0; i < HR_ARRAY_SIZE(numbers); i++) {
        const uint32_t min = numbers[i].min, max = numbers[i].max;
        const json_t *value = json_object_get(root, numbers[i].key);
        uint64_t number;
        char allowed[48];

        if (!value)
            continue;
        if (min == max)
            snprintf(allowed, sizeof(allowed), "only %" PRIu32 " is supported", min);
        else
            snprintf(allowed, sizeof(allowed), "%" PRIu32 "..%" PRIu32 " is allowed", min, max);
        if (!hr_json_get_u64(value, &number))
            return hr_error_set(source->err, -EBADMSG, "%s: %s is no integer; %s", source->what,
                                numbers[i].key, allowed);
        if (number < min || number > max)
            return hr_error_set(source->err, min == max ? -EOPNOTSUPP : -EBADMSG,
                                "%s: %s is %" PRIu64 "; %s", source->what, numbers[i].key, number,
                                allowed);
        set_number(config, i, (uint32_t) number);
    }
    return 0;
}

static int read_axes(struct hr_config *config, const struct hr_json_source *source,
                     const json_t *root)
{
    const json_t *value = json_object_get(root, "axes_dims_rope");

    if (!value)
        return 0;
    if (!json_is_array(value) || json_array_size(value) != HR_ARRAY_SIZE(axes_dims))
        return hr_error_set(source->err, -EBADMSG, "%s: axes_dims_rope is no array of 3 integers",
                            source->what);
    for (unsigned i = 0; i < HR_ARRAY_SIZE(axes_dims); i++) {
        uint64_t number;

        if (!hr_json_get_u64(json_array_get(value, i), &number))
            return hr_error_set(source->err, -EBADMSG,
                                "%s: axes_dims_rope is no array of 3 integers", source->what);
        if (number != axes_dims[i])
            return hr_error_set(source->err, -EOPNOTSUPP,
                                "%s: axes_dims_rope has %" PRIu64
                                " at place %u; only [16, 56, 56] is supported",
                                source->what, number, i);
        config->axes_dims_rope[i] = axes_dims[i];
    }
    return 0;
}

/* @return 0 with *ret_flag, false where the key is absent, or -EBADMSG */
static int read_flag(bool *ret_flag, const struct hr_json_source *source, const json_t *root,
                     const char *key)
{
    const json_t *value = json_object_get(root, key);

    if (value && !json_is_boolean(value))
        return hr_error_set(source->err, -EBADMSG, "%s: %s is neither true nor false", source->what,
                            key);
    *ret_flag = json_is_true(value);
    return 0;
}

static int read_flags(struct hr_config *config, const struct hr_json_source *source,
                      const json_t *root)
{
    bool flag;
    int r = read_flag(&flag, source, root, "guidance_embeds");

    if (r < 0)
        return r;
    if (flag)
        return hr_error_set(source->err, -EOPNOTSUPP,
                            "%s: guidance_embeds is true; no Qwen-Image model has them, and they "
                            "are not supported",
                            source->what);
    for (unsigned i = 0; i < HR_ARRAY_SIZE(flags); i++) {
        r = read_flag(&flag, source, root, flags[i].key);
        if (r < 0)
            return r;
        set_flag(config, i, flag);
    }
    return 0;
}

int hr_config_parse(struct hr_config *ret_config, const char *json, size_t json_bytes,
                    const char *what, struct hr_error *err)
{
    const struct hr_json_source source = {json, json_bytes, what, err};
    struct hr_config config = {0};
    json_t *root;
    int r;

    if (json_bytes > CONFIG_BYTES_MAX)
        return hr_error_set(err, -EBADMSG, "%s: a config of %zu bytes, at most %d are allowed",
                            what, json_bytes, (int) CONFIG_BYTES_MAX);
    r = hr_json_load(&root, &source);
    if (r < 0)
        return r;
    if (!json_is_object(root))
        r = hr_error_set(err, -EBADMSG, "%s: expected an object, beginning with {", what);
    else if (!(r = check_class(&source, root)) && !(r = read_numbers(&config, &source, root)) &&
             !(r = read_axes(&config, &source, root)))
        r = read_flags(&config, &source, root);
    json_decref(root);
    if (r < 0)
        return r;
    *ret_config = config;
    return 0;
}

char *hr_config_build(const struct hr_config *config)
{
    json_t *root = json_object(), *axes = json_array();
    bool is_axes = true;
    char *text = NULL;
    int r = json_object_set_new(root, "_class_name", json_string(class_name));

    r |= json_object_set_new(root, "guidance_embeds", json_false());
    for (unsigned i = 0; i < HR_ARRAY_SIZE(numbers); i++) {
        if (get_number(config, i))
            r |= json_object_set_new(root, numbers[i].key, json_integer(get_number(config, i)));
    }
    for (unsigned i = 0; i < HR_ARRAY_SIZE(axes_dims); i++) {
        r |= json_array_append_new(axes, json_integer(config->axes_dims_rope[i]));
        is_axes &= config->axes_dims_rope[i] != 0;
    }
    if (is_axes)
        r |= json_object_set(root, "axes_dims_rope", axes);
    /* Absent means false, and the published configs say it so. */
    for (unsigned i = 0; i < HR_ARRAY_SIZE(flags); i++) {
        if (get_flag(config, i))
            r |= json_object_set_new(root, flags[i].key, json_true());
    }
    if (r == 0)
        text = json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS);
    json_decref(axes);
    json_decref(root);
    return text;
}
