/* SPDX-License-Identifier: Apache-2.0 */
/* state_table.c -- where weights are to be, as a table in JSON:
 *
 *   [{"module": "transformer_blocks.*.attn.*",
 *     "offload":     {"dtype": "disk",     "device": "disk"},
 *     "onload":      {"dtype": "bfloat16", "device": "cpu"},
 *     "preparing":   {"dtype": "bfloat16", "device": "cpu"},
 *     "computation": {"dtype": "bfloat16", "device": "cpu"}}, ...]
 *
 * The four states and their words are those of DiffSynth-Studio's vram_config; names of dtypes are
 * PyTorch's, with or without "torch.". */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/formats.h"
#include "formats/json_strict.h"

enum { SHOWN_BYTES = 128 };

static const char *const state_names[HR_STATES] = {"offload", "onload", "preparing", "computation"};

static const struct {
    const char *name;
    enum hr_dtype dtype;
} dtypes[] = {
    {"bfloat16", HR_DTYPE_BF16},       {"float16", HR_DTYPE_F16},
    {"float32", HR_DTYPE_F32},         {"float8_e4m3fn", HR_DTYPE_F8_E4M3},
    {"float8_e5m2", HR_DTYPE_F8_E5M2},
};

const char *hr_state_name(enum hr_state state)
{
    return state_names[state];
}

const char *hr_state_dtype_name(enum hr_dtype dtype)
{
    for (size_t i = 0; i < HR_ARRAY_SIZE(dtypes); i++)
        if (dtypes[i].dtype == dtype)
            return dtypes[i].name;
    return hr_dtype_name(dtype);
}

/* Which entry is being read, for messages. */
struct reader {
    const char *what;
    struct hr_error *err;
    uint32_t n; /* from 1 */
    const char *module;
};

HR_PRINTF(2, 3)
static int fail(const struct reader *reader, const char *format, ...)
{
    char shown[SHOWN_BYTES], text[512], name[SHOWN_BYTES + 16] = "";
    va_list ap;

    va_start(ap, format);
    vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    if (reader->module)
        snprintf(name, sizeof(name), " (\"%s\")",
                 hr_printable(reader->module, shown, sizeof(shown)));
    return hr_error_set(reader->err, -EBADMSG, "%s: entry %u%s: %s", reader->what, reader->n, name,
                        text);
}

static int read_device(const struct reader *reader, enum hr_state state, const json_t *value,
                       struct hr_state_place *place)
{
    const char *text = json_string_value(value);
    char shown[SHOWN_BYTES];

    if (!text)
        return fail(reader, "%s: device is no text; expected \"disk\" or \"cpu\"",
                    state_names[state]);
    place->on_disk = strcmp(text, "disk") == 0;
    if (place->on_disk || strcmp(text, "cpu") == 0)
        return 0;
    return fail(reader, "%s: device \"%s\" is none that this build has; use \"disk\" or \"cpu\"",
                state_names[state], hr_printable(text, shown, sizeof(shown)));
}

static int read_dtype(const struct reader *reader, enum hr_state state, const json_t *value,
                      struct hr_state_place *place)
{
    const char *text = json_string_value(value);
    char shown[SHOWN_BYTES];

    if (text && strncmp(text, "torch.", 6) == 0)
        text += 6;
    if (text && strcmp(text, "disk") == 0) {
        place->dtype_on_disk = true;
        return 0;
    }
    for (size_t i = 0; text && i < HR_ARRAY_SIZE(dtypes); i++)
        if (strcmp(text, dtypes[i].name) == 0) {
            place->has_dtype = true;
            place->dtype = dtypes[i].dtype;
            return 0;
        }
    return fail(reader,
                "%s: dtype %s%s%s is not one of bfloat16, float16, float32, float8_e4m3fn, "
                "float8_e5m2 and disk",
                state_names[state], text ? "\"" : "",
                text ? hr_printable(text, shown, sizeof(shown)) : "is no text, and",
                text ? "\"" : "");
}

/* {"dtype": D, "device": P}; one of them may be left out where the other says "disk", and the dtype
 * where it is the file's own. */
static int read_place(const struct reader *reader, enum hr_state state, const json_t *value,
                      struct hr_state_place *place)
{
    const json_t *device = json_object_get(value, "device");
    const json_t *dtype = json_object_get(value, "dtype");
    char shown[SHOWN_BYTES];
    const char *key;
    json_t *member;
    int r = 0;

    if (!json_is_object(value))
        return fail(reader, "%s is no object; expected {\"dtype\": ..., \"device\": ...}",
                    state_names[state]);
    json_object_foreach((json_t *) (uintptr_t) value, key, member)
        if (member != device && member != dtype)
            return fail(reader, "%s: key \"%s\" is not known; expected dtype and device",
                        state_names[state], hr_printable(key, shown, sizeof(shown)));
    place->given = true;
    if (dtype)
        r = read_dtype(reader, state, dtype, place);
    if (r == 0 && device)
        r = read_device(reader, state, device, place);
    if (r < 0)
        return r;
    if (!device && !place->dtype_on_disk)
        return fail(reader, "%s: the device is missing; expected \"disk\" or \"cpu\"",
                    state_names[state]);
    if (!device)
        place->on_disk = true;
    if (place->dtype_on_disk && !place->on_disk)
        return fail(reader,
                    "%s: dtype \"disk\" is not on device \"cpu\"; name a dtype, or leave it out",
                    state_names[state]);
    return 0;
}

static int read_state(const struct reader *reader, const char *key, const json_t *value,
                      struct hr_state_entry *entry)
{
    char shown[SHOWN_BYTES];

    for (unsigned s = 0; s < HR_STATES; s++)
        if (strcmp(key, state_names[s]) == 0)
            return read_place(reader, (enum hr_state) s, value, &entry->places[s]);
    return fail(
        reader,
        "key \"%s\" is not known; expected module, offload, onload, preparing and computation",
        hr_printable(key, shown, sizeof(shown)));
}

/* A state that is left out is the one before it. */
static int complete(const struct reader *reader, struct hr_state_entry *entry)
{
    const struct hr_state_place *computation = &entry->places[HR_STATE_COMPUTATION];

    if (!entry->places[HR_STATE_OFFLOAD].given)
        return fail(reader, "offload is missing; expected {\"dtype\": ..., \"device\": ...}");
    for (unsigned s = HR_STATE_ONLOAD; s <= HR_STATE_PREPARING; s++)
        if (!entry->places[s].given)
            entry->places[s] = entry->places[s - 1];
    if (computation->on_disk)
        return fail(reader, "computation: nothing is computed on the disk; use device \"cpu\"");
    return 0;
}

static int read_entry(struct reader *reader, const json_t *value, struct hr_state_entry *entry)
{
    const json_t *module = json_object_get(value, "module");
    const char *key;
    json_t *member;
    int r = 0;

    if (!json_is_object(value))
        return fail(reader, "is no object; expected {\"module\": ..., \"offload\": ...}");
    if (!json_is_string(module) || json_string_length(module) == 0 ||
        json_string_length(module) >= sizeof(entry->module))
        return fail(reader,
                    "module is missing, or no text of 1 to %zu letters; expected a pattern "
                    "such as \"transformer_blocks.*\"",
                    sizeof(entry->module) - 1);
    reader->module = json_string_value(module);
    snprintf(entry->module, sizeof(entry->module), "%s", reader->module);
    json_object_foreach((json_t *) (uintptr_t) value, key, member) {
        if (member != module)
            r = read_state(reader, key, member, entry);
        if (r < 0)
            return r;
    }
    return complete(reader, entry);
}

int hr_state_table_parse(struct hr_state_table *ret_table, const char *json, size_t json_bytes,
                         const char *what, struct hr_error *err)
{
    struct hr_error cause = {0};
    const struct hr_json_source source = {
        .text = json, .bytes = json_bytes, .what = what, .err = &cause};
    struct hr_state_table table = {0};
    json_t *root = NULL;
    int r = hr_json_load(&root, &source);

    if (r < 0)
        return hr_error_set(err, r, "%s%s", cause.message,
                            r == -EBADMSG ? "; expected a table of states, see docs/memory.md"
                                          : "");
    const size_t n = json_array_size(root);

    if (!json_is_array(root) || n == 0 || n > HR_STATE_ENTRIES_MAX) {
        r = hr_error_set(err, -EBADMSG,
                         "%s: is no list of 1 to %d entries; expected [{\"module\": ...}, ...]",
                         what, HR_STATE_ENTRIES_MAX);
    } else {
        table.entries = calloc(n, sizeof(*table.entries));
        if (!table.entries)
            r = hr_error_set(err, -ENOMEM, "%s: no memory for %zu entries", what, n);
    }
    for (size_t i = 0; i < n && r == 0; i++) {
        struct reader reader = {.what = what, .err = err, .n = (uint32_t) i + 1};

        r = read_entry(&reader, json_array_get(root, i), &table.entries[table.n++]);
    }
    json_decref(root);
    if (r < 0)
        hr_state_table_uninit(&table);
    else
        *ret_table = table;
    return r;
}

void hr_state_table_uninit(struct hr_state_table *table)
{
    free(table->entries);
    *table = (struct hr_state_table){0};
}
