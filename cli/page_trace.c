/* SPDX-License-Identifier: Apache-2.0 */
/* page_trace.c -- a file of --trace as shares of time.
 *
 * A trace may have a million events, so it is read one event at a time. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/page.h"

#define US_MAX 1e15 /* 31 years */
enum { SLICES_MAX = 16 << 20 };

enum kind { DISK, DISK_WAITS, LINK, PART, COMPUTE_WAITS, N_KINDS };

struct slice {
    double begin_s, end_s;
    enum kind kind;
};

struct trace {
    FILE *f;
    const char *path;
    struct hr_error *err;
    struct slice *slices; /* n, of which room are allocated */
    size_t n, room;
    double end_s, dropped;
};

static int fail(const struct trace *t, const char *what)
{
    char shown[512];

    return cli_error(t->err, -EBADMSG,
                     "%s: %s; expected what headrace forward or denoise wrote "
                     "for --trace",
                     cli_printable(shown, sizeof(shown), t->path), what);
}

/* ---- events --------------------------------------------------------------------------------- */

/* @return 0 and the kind, or -ENOENT for what is not drawn */
static int kind_of(const json_t *event, enum kind *ret_kind)
{
    static const struct {
        const char *category;
        enum kind kind;
    } kinds[] = {
        {"read", DISK}, {"waiting for ring space", DISK_WAITS},  {"copy", LINK},
        {"part", PART}, {"waiting for the disk", COMPUTE_WAITS},
    };
    const char *phase = json_string_value(json_object_get(event, "ph"));
    const char *category = json_string_value(json_object_get(event, "cat"));
    const char *name = json_string_value(json_object_get(event, "name"));

    if (!phase || strcmp(phase, "X") != 0 || !category || !name)
        return -ENOENT;
    if (strcmp(category, "part") == 0 && strcmp(name, "attention") == 0)
        return -ENOENT; /* lies within its block */
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (strcmp(category, kinds[i].category) == 0) {
            *ret_kind = kinds[i].kind;
            return 0;
        }
    return -ENOENT;
}

static bool is_time(const json_t *value)
{
    return json_is_number(value) && json_number_value(value) >= 0.0 &&
           json_number_value(value) <= US_MAX;
}

static int take_event(struct trace *t, const json_t *event)
{
    const json_t *begin = json_object_get(event, "ts"), *duration = json_object_get(event, "dur");
    struct slice slice;

    if (kind_of(event, &slice.kind) < 0)
        return 0;
    if (!is_time(begin) || !is_time(duration))
        return fail(t, "an event has no \"ts\" and \"dur\" in their range");
    slice.begin_s = json_number_value(begin) / 1e6;
    slice.end_s = slice.begin_s + json_number_value(duration) / 1e6;
    if (t->n == SLICES_MAX)
        return fail(t, "has more than 16 million events");
    if (t->n == t->room) {
        const size_t room = t->room ? 2 * t->room : 4096;
        struct slice *slices = realloc(t->slices, room * sizeof(*slices));

        if (!slices)
            return cli_error(t->err, -ENOMEM, "no memory for a trace of more than %zu events",
                             t->n);
        t->slices = slices;
        t->room = room;
    }
    t->slices[t->n++] = slice;
    t->end_s = slice.end_s > t->end_s ? slice.end_s : t->end_s;
    return 0;
}

/* ---- the file ------------------------------------------------------------------------------- */

/* The next character that is no white space, left in the file; or EOF. */
static int peek(struct trace *t)
{
    char shown[512];
    int c;

    do
        c = getc(t->f);
    while (c == ' ' || c == '\t' || c == '\n' || c == '\r');
    if (c == EOF && ferror(t->f))
        cli_error(t->err, -errno, "%s: cannot be read: %s",
                  cli_printable(shown, sizeof(shown), t->path), strerror(errno));
    return c == EOF ? EOF : ungetc(c, t->f);
}

static bool skip(struct trace *t, char expected)
{
    if (peek(t) != expected)
        return false;
    getc(t->f);
    return true;
}

/* The value that begins here, a string, list or object: jansson reads these to their last
 * character and no further. */
static int load_value(struct trace *t, json_t **ret_value)
{
    json_error_t error;
    const int c = peek(t);

    if (c != '"' && c != '{' && c != '[')
        return fail(t, "is no trace");
    *ret_value = json_loadf(t->f, JSON_DECODE_ANY | JSON_DISABLE_EOF_CHECK, &error);
    return *ret_value ? 0 : fail(t, "malformed JSON, or cut off");
}

static int read_events(struct trace *t)
{
    int r = skip(t, '[') ? 0 : fail(t, "\"traceEvents\" is no list");

    while (r == 0 && !skip(t, ']')) {
        json_t *event = NULL;

        if (cli_interrupted)
            return cli_error(t->err, -ECANCELED, "interrupted");
        r = load_value(t, &event);
        if (r == 0)
            r = take_event(t, event);
        json_decref(event);
        if (r == 0 && !skip(t, ',') && peek(t) != ']')
            r = fail(t, "malformed JSON, or cut off");
    }
    return r;
}

/* Members up to traceEvents, which is the last that matters. */
static int read_members(struct trace *t)
{
    int r = skip(t, '{') ? 0 : fail(t, "is no JSON object");
    bool found = false;

    while (r == 0 && !found) {
        json_t *key = NULL, *value = NULL;

        r = load_value(t, &key);
        if (r == 0 && (!json_is_string(key) || !skip(t, ':')))
            r = fail(t, "is no trace");
        found = r == 0 && strcmp(json_string_value(key), "traceEvents") == 0;
        if (found)
            r = read_events(t);
        else if (r == 0)
            r = load_value(t, &value);
        if (value) {
            const json_t *dropped = json_object_get(value, "dropped_events");

            t->dropped = is_time(dropped) ? json_number_value(dropped) : t->dropped;
            if (!skip(t, ','))
                r = fail(t, "has no \"traceEvents\"");
        }
        json_decref(key);
        json_decref(value);
    }
    return r;
}

/* ---- columns -------------------------------------------------------------------------------- */

static double share(double part_s, double whole_s)
{
    const double v = whole_s > 0.0 ? part_s / whole_s : 0.0;

    return v < 0.0 ? 0.0 : v > 1.0 ? 1.0 : v;
}

/* `waits` cut to what `works` leaves. */
static double rest(double waits, double works)
{
    return waits > 1.0 - works ? 1.0 - works : waits;
}

static void add_slice(double sums[PAGE_COLUMNS], const struct slice *s, double width_s)
{
    const size_t first = (size_t) (s->begin_s / width_s);

    for (size_t i = first; i < PAGE_COLUMNS && (double) i * width_s < s->end_s; i++) {
        const double begin = (double) i * width_s, end = begin + width_s;

        sums[i] += (s->end_s < end ? s->end_s : end) - (s->begin_s > begin ? s->begin_s : begin);
    }
}

static int make_columns(const struct trace *t, struct page_lanes *lanes)
{
    double sums[N_KINDS][PAGE_COLUMNS] = {{0}};
    const double width_s = t->end_s / PAGE_COLUMNS;

    lanes->columns = calloc(PAGE_COLUMNS, sizeof(*lanes->columns));
    if (!lanes->columns)
        return cli_error(t->err, -ENOMEM, "no memory for a chart");
    for (size_t i = 0; i < t->n; i++) {
        add_slice(sums[t->slices[i].kind], &t->slices[i], width_s);
        lanes->has_link = lanes->has_link || t->slices[i].kind == LINK;
    }
    for (size_t i = 0; i < PAGE_COLUMNS; i++) {
        struct page_column *c = &lanes->columns[i];

        c->begin_s = (double) i * width_s;
        c->end_s = c->begin_s + width_s;
        c->disk = share(sums[DISK][i], width_s);
        c->disk_waits = rest(share(sums[DISK_WAITS][i], width_s), c->disk);
        c->link = share(sums[LINK][i], width_s);
        /* waits lie within parts */
        c->compute = share(sums[PART][i] - sums[COMPUTE_WAITS][i], width_s);
        c->compute_waits = rest(share(sums[COMPUTE_WAITS][i], width_s), c->compute);
    }
    lanes->n = PAGE_COLUMNS;
    lanes->end_s = t->end_s;
    lanes->traced = true;
    lanes->dropped = t->dropped;
    return 0;
}

int page_trace_read(struct page_lanes *ret_lanes, const char *path, struct hr_error *err)
{
    struct trace t = {.f = page_open(path, err), .path = path, .err = err};
    int r;

    if (!t.f)
        return err->code;
    r = read_members(&t);
    if (r == 0 && !(t.end_s > 1e-9))
        r = fail(&t, "holds no reads and no computing");
    if (r == 0)
        r = make_columns(&t, ret_lanes);
    fclose(t.f);
    free(t.slices);
    return r;
}

int page_lanes_of_spans(struct page_lanes *ret_lanes, const struct page_spans *spans,
                        struct hr_error *err)
{
    struct page_lanes lanes = {.n = spans->n};

    if (spans->n == 0)
        return 0;
    lanes.columns = calloc(spans->n, sizeof(*lanes.columns));
    if (!lanes.columns)
        return cli_error(err, -ENOMEM, "no memory for a chart");
    for (size_t i = 0; i < spans->n; i++) {
        const struct page_span *s = &spans->items[i];
        struct page_column *c = &lanes.columns[i];

        c->begin_s = s->begin_s;
        c->end_s = s->begin_s + s->wall_s;
        c->disk = share(s->disk_busy_s, s->wall_s);
        c->disk_waits = rest(share(s->stall_space_s, s->wall_s), c->disk);
        c->compute = share(s->compute_s, s->wall_s);
        c->compute_waits = rest(share(s->stall_disk_s, s->wall_s), c->compute);
        lanes.end_s = c->end_s > lanes.end_s ? c->end_s : lanes.end_s;
    }
    if (!(lanes.end_s > 1e-9))
        lanes.n = 0; /* spans without a length */
    *ret_lanes = lanes;
    return 0;
}

void page_lanes_free(struct page_lanes *lanes)
{
    free(lanes->columns);
    *lanes = (struct page_lanes){0};
}
