/* SPDX-License-Identifier: Apache-2.0 */
/* states.c -- a user's table of where weights are, applied to a model.
 *
 * During a run a module is in its onload state, and goes on to preparing where there is room; it
 * came from its offload state and is computed in its computation state. With the host as the only
 * device that leaves one question for each weight: does it stay in memory? Weights stay in the
 * file's own dtype, which gives the numbers of any wider one. */
#include "engine/states.h"

#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/files.h"
#include "formats/formats.h"

enum { SHOWN_BYTES = 256, TABLE_BYTES_MAX = 1 << 20 };

struct hr_states {
    char shown[SHOWN_BYTES]; /* the file's name, printable */
    struct hr_state_table table;
};

int hr_states_open(struct hr_states **ret_states, const char *path, struct hr_error *err)
{
    struct hr_states *states = calloc(1, sizeof(*states));
    size_t bytes = 0;
    char *text = NULL;
    int r;

    if (!states)
        return hr_error_set(err, -ENOMEM, "no memory for a table of states");
    hr_printable(path, states->shown, sizeof(states->shown));
    r = hr_file_read_text(path, "the table of states", TABLE_BYTES_MAX, &text, &bytes, err);
    if (r == 0)
        r = hr_state_table_parse(&states->table, text, bytes, states->shown, err);
    free(text);
    if (r < 0)
        hr_states_close(&states);
    else
        *ret_states = states;
    return r;
}

void hr_states_close(struct hr_states **states)
{
    if (!*states)
        return;
    hr_state_table_uninit(&(*states)->table);
    free(*states);
    *states = NULL;
}

/* Does the pattern match the tensor's name, or that of a module that holds it? */
static bool matches(const struct hr_state_entry *entry, const char *name)
{
    char part[512];
    size_t len = strlen(name);

    if (fnmatch(entry->module, name, 0) == 0)
        return true;
    if (len >= sizeof(part))
        return false;
    memcpy(part, name, len + 1);
    for (char *dot; (dot = strrchr(part, '.')) != NULL;) {
        *dot = '\0';
        if (fnmatch(entry->module, part, 0) == 0)
            return true;
    }
    return false;
}

/* The first entry that matches, or NULL. */
static const struct hr_state_entry *find(const struct hr_states *states, const char *name)
{
    for (uint32_t i = 0; i < states->table.n; i++)
        if (matches(&states->table.entries[i], name))
            return &states->table.entries[i];
    return NULL;
}

static int fail(const struct hr_states *states, const struct hr_state_entry *entry, int code,
                const char *message, struct hr_error *err)
{
    char shown[SHOWN_BYTES];

    return hr_error_set(err, code, "%s: entry %u (\"%s\"): %s", states->shown,
                        (unsigned) (entry - states->table.entries) + 1,
                        hr_printable(entry->module, shown, sizeof(shown)), message);
}

/* Has every value of `from` the same value in `to`? */
static bool is_exact(enum hr_dtype from, enum hr_dtype to)
{
    if (from == to || to == HR_DTYPE_F32)
        return true;
    return (from == HR_DTYPE_F8_E4M3 || from == HR_DTYPE_F8_E5M2) &&
           (to == HR_DTYPE_F16 || to == HR_DTYPE_BF16);
}

static int check_dtypes(const struct hr_states *states, const struct hr_state_entry *entry,
                        const struct hr_tensor *tensor, struct hr_error *err)
{
    char message[512], name[SHOWN_BYTES];

    for (unsigned s = HR_STATE_OFFLOAD; s <= HR_STATE_PREPARING; s++) {
        const struct hr_state_place *place = &entry->places[s];

        if (place->on_disk || !place->has_dtype || is_exact(tensor->dtype, place->dtype))
            continue;
        snprintf(message, sizeof(message),
                 "%s: tensor %s is %s, and %s would round it; weights are kept as the file has "
                 "them: use %s, or leave the dtype out",
                 hr_state_name((enum hr_state) s), hr_printable(tensor->name, name, sizeof(name)),
                 hr_dtype_name(tensor->dtype), hr_state_dtype_name(place->dtype),
                 hr_state_dtype_name(tensor->dtype));
        return fail(states, entry, -EOPNOTSUPP, message, err);
    }
    return 0;
}

static int check_computation(const struct hr_states *states, const struct hr_state_entry *entry,
                             enum hr_precision precision, struct hr_error *err)
{
    const struct hr_state_place *place = &entry->places[HR_STATE_COMPUTATION];
    const bool f32 = precision == HR_PRECISION_F32;
    char message[256];

    if (!place->has_dtype || place->dtype == (f32 ? HR_DTYPE_F32 : HR_DTYPE_BF16))
        return 0;
    snprintf(message, sizeof(message), "computation: dtype %s, but this run computes in %s%s",
             hr_state_dtype_name(place->dtype), f32 ? "float32" : "bfloat16",
             place->dtype == HR_DTYPE_F32    ? "; give it --precision f32"
             : place->dtype == HR_DTYPE_BF16 ? "; give it --precision bf16"
                                             : "; the others are float32 and bfloat16");
    return fail(states, entry, -EOPNOTSUPP, message, err);
}

/* An entry that matches nothing is a slip of the pen. */
static int check_entries(const struct hr_states *states, const struct hr_checkpoint *checkpoint,
                         enum hr_precision precision, struct hr_error *err)
{
    for (uint32_t i = 0; i < states->table.n; i++) {
        const struct hr_state_entry *entry = &states->table.entries[i];
        bool any = false;

        for (uint32_t t = 0; t < hr_checkpoint_n_tensors(checkpoint) && !any; t++)
            any = matches(entry, hr_checkpoint_tensor(checkpoint, t)->name);
        if (!any)
            return fail(states, entry, -EINVAL,
                        "matches no tensor and no module of the model; headrace inspect lists them",
                        err);
        const int r = check_computation(states, entry, precision, err);

        if (r < 0)
            return r;
    }
    return 0;
}

int hr_states_apply(const struct hr_states *states, const struct hr_checkpoint *checkpoint,
                    enum hr_precision precision, const struct hr_tensor *const *tensors, uint32_t n,
                    uint8_t *ret_keep, struct hr_error *err)
{
    int r = check_entries(states, checkpoint, precision, err);

    for (uint32_t i = 0; i < n && r == 0; i++) {
        const struct hr_state_entry *entry = find(states, tensors[i]->name);

        ret_keep[i] = HR_KEEP_IF_ROOM;
        if (!entry)
            continue;
        if (!entry->places[HR_STATE_OFFLOAD].on_disk || !entry->places[HR_STATE_ONLOAD].on_disk)
            ret_keep[i] = HR_KEEP_ALWAYS;
        else if (entry->places[HR_STATE_PREPARING].on_disk)
            ret_keep[i] = HR_KEEP_NEVER;
        r = check_dtypes(states, entry, tensors[i], err);
    }
    return r;
}
