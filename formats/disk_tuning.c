/* SPDX-License-Identifier: Apache-2.0 */
/* disk_tuning.c -- what was measured on one disk, as a small JSON object that is read back
 * strictly: a file of other numbers must not decide how every later run reads. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "formats/formats.h"
#include "formats/json_strict.h"

enum { TUNING_VERSION = 1 };

static const struct {
    const char *key;
    size_t offset;
    bool is_u32;
    uint64_t min, max;
} numbers[] = {
    {"block_bytes", offsetof(struct hr_tuning, block_bytes), true, 64 << 10, 32 << 20},
    {"iodepth", offsetof(struct hr_tuning, depth), true, 1, 1024},
    {"bytes_per_s", offsetof(struct hr_tuning, bytes_per_s), false, 1, INT64_MAX},
    {"bytes_per_s_low", offsetof(struct hr_tuning, bytes_per_s_low), false, 1, INT64_MAX},
    {"bytes_per_s_high", offsetof(struct hr_tuning, bytes_per_s_high), false, 1, INT64_MAX},
    {"samples", offsetof(struct hr_tuning, n_samples), true, 1, 1000000},
    {"time", offsetof(struct hr_tuning, time_s), false, 1, INT64_MAX},
};

static const struct {
    const char *key;
    size_t offset, bytes;
} texts[] = {
    {"device", offsetof(struct hr_tuning, device), sizeof(((struct hr_tuning *) 0)->device)},
    {"filesystem", offsetof(struct hr_tuning, filesystem),
     sizeof(((struct hr_tuning *) 0)->filesystem)},
    {"kernel", offsetof(struct hr_tuning, kernel), sizeof(((struct hr_tuning *) 0)->kernel)},
};

static uint64_t get_number(const struct hr_tuning *tuning, size_t i)
{
    const char *at = (const char *) tuning + numbers[i].offset;
    uint32_t narrow;
    uint64_t wide;

    memcpy(&narrow, at, sizeof(narrow));
    if (numbers[i].is_u32)
        return narrow;
    memcpy(&wide, at, sizeof(wide));
    return wide;
}

static void set_number(struct hr_tuning *tuning, size_t i, uint64_t value)
{
    char *at = (char *) tuning + numbers[i].offset;
    const uint32_t narrow = (uint32_t) value;

    if (numbers[i].is_u32)
        memcpy(at, &narrow, sizeof(narrow));
    else
        memcpy(at, &value, sizeof(value));
}

int hr_tuning_check(const struct hr_tuning *tuning, const char *what, struct hr_error *err)
{
    for (size_t i = 0; i < HR_ARRAY_SIZE(numbers); i++) {
        const uint64_t value = get_number(tuning, i);

        if (value < numbers[i].min || value > numbers[i].max)
            return hr_error_set(err, -EINVAL,
                                "%s: %s is %" PRIu64 "; expected %" PRIu64 " to %" PRIu64, what,
                                numbers[i].key, value, numbers[i].min, numbers[i].max);
    }
    if (tuning->block_bytes & (tuning->block_bytes - 1))
        return hr_error_set(err, -EINVAL, "%s: block_bytes is %u, which is no power of two", what,
                            tuning->block_bytes);
    if (tuning->bytes_per_s_low > tuning->bytes_per_s ||
        tuning->bytes_per_s_high < tuning->bytes_per_s)
        return hr_error_set(err, -EINVAL, "%s: bytes_per_s is outside its own interval", what);
    return 0;
}

static int read_members(struct hr_tuning *tuning, const json_t *root, const char *what,
                        struct hr_error *err)
{
    uint64_t value;

    if (!json_is_object(root) || !hr_json_get_u64(json_object_get(root, "version"), &value) ||
        value != TUNING_VERSION)
        return hr_error_set(err, -EBADMSG, "%s: no object of \"version\": %d", what,
                            TUNING_VERSION);
    for (size_t i = 0; i < HR_ARRAY_SIZE(numbers); i++) {
        if (!hr_json_get_u64(json_object_get(root, numbers[i].key), &value) ||
            (numbers[i].is_u32 && value > UINT32_MAX))
            return hr_error_set(err, -EBADMSG, "%s: %s is missing or no number", what,
                                numbers[i].key);
        set_number(tuning, i, value);
    }
    for (size_t i = 0; i < HR_ARRAY_SIZE(texts); i++) {
        const char *text = json_string_value(json_object_get(root, texts[i].key));

        if (!text || strlen(text) >= texts[i].bytes)
            return hr_error_set(err, -EBADMSG, "%s: %s is missing or too long", what, texts[i].key);
        memcpy((char *) tuning + texts[i].offset, text, strlen(text) + 1);
    }
    return 0;
}

int hr_tuning_parse(struct hr_tuning *ret_tuning, const char *json, size_t json_bytes,
                    const char *what, struct hr_error *err)
{
    const struct hr_json_source source = {json, json_bytes, what, err};
    struct hr_tuning tuning = {0};
    json_t *root;
    int r = hr_json_load(&root, &source);

    if (r < 0)
        return r;
    r = read_members(&tuning, root, what, err);
    json_decref(root);
    if (r == 0 && hr_tuning_check(&tuning, what, err) < 0)
        r = -EBADMSG;
    if (r == 0)
        *ret_tuning = tuning;
    return r;
}

char *hr_tuning_build(const struct hr_tuning *tuning)
{
    json_t *root = json_pack("{s:i}", "version", TUNING_VERSION);
    char *text;
    int r = root ? 0 : -1;

    for (size_t i = 0; i < HR_ARRAY_SIZE(texts) && r == 0; i++)
        r = json_object_set_new(root, texts[i].key,
                                json_string((const char *) tuning + texts[i].offset));
    for (size_t i = 0; i < HR_ARRAY_SIZE(numbers) && r == 0; i++)
        r = json_object_set_new(root, numbers[i].key,
                                json_integer((json_int_t) get_number(tuning, i)));
    text = r == 0 ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    return text;
}
