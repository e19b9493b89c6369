/* SPDX-License-Identifier: Apache-2.0 */
/* page_input.c -- the JSON of a run and of a plan, checked. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/page.h"

#define BYTES_MAX   9e18
#define SECONDS_MAX 1e9 /* 31 years */
enum { FILE_BYTES_MAX = 64 << 20, SPANS_MAX = 10000 };

/* A file in the reading; the first failure stays in err. */
struct input {
    const char *path, *expected;
    json_t *root;
    struct hr_error *err;
};

static const char run_expected[] = "what headrace forward or denoise prints with --json";
static const char plan_expected[] = "what headrace plan prints with --json";

static int fail(const struct input *in, int code, const char *what)
{
    char shown[512];

    return cli_error(in->err, code, "%s: %s; expected %s",
                     cli_printable(shown, sizeof(shown), in->path), what, in->expected);
}

static int fail_key(const struct input *in, const char *key, const char *what)
{
    char text[128];

    snprintf(text, sizeof(text), "\"%s\" %s", key, what);
    return fail(in, -EBADMSG, text);
}

/* ---- the file ------------------------------------------------------------------------------- */

FILE *page_open(const char *path, struct hr_error *err)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    char shown[512];
    struct stat st;
    FILE *f = NULL;

    cli_printable(shown, sizeof(shown), path);
    if (fd >= 0 && fstat(fd, &st) == 0 && !S_ISREG(st.st_mode))
        cli_error(err, -EINVAL, "%s: is no regular file; write the output of the run to one",
                  shown);
    else if (fd >= 0)
        f = fdopen(fd, "r");
    if (!f)
        cli_error(err, -errno, "%s: cannot be opened: %s", shown, strerror(errno));
    if (!f && fd >= 0)
        close(fd);
    return f;
}

/* @param ret_text  free() it */
static int read_text(const struct input *in, char **ret_text, size_t *ret_bytes)
{
    FILE *f = page_open(in->path, in->err);
    size_t bytes = 0, room = 1 << 16;
    char shown[512], *text = f ? malloc(room) : NULL;
    int r = 0;

    cli_printable(shown, sizeof(shown), in->path);
    if (!f)
        return in->err->code;
    while (text && r == 0) {
        const size_t got = fread(text + bytes, 1, room - bytes, f);

        bytes += got;
        if (bytes < room) {
            if (ferror(f))
                r = cli_error(in->err, -errno, "%s: cannot be read: %s", shown, strerror(errno));
            break;
        }
        if (room >= FILE_BYTES_MAX)
            r = fail(in, -EBADMSG, "is larger than 64 MiB");
        char *more = r == 0 ? realloc(text, room *= 2) : NULL;

        if (r == 0 && !more)
            r = cli_error(in->err, -ENOMEM, "%s: no memory for it", shown);
        text = more ? more : text;
    }
    fclose(f);
    if (!text)
        return cli_error(in->err, -ENOMEM, "%s: no memory for it", shown);
    if (r < 0) {
        free(text);
        return r;
    }
    *ret_text = text;
    *ret_bytes = bytes;
    return 0;
}

static int load(struct input *in)
{
    json_error_t error;
    char shown[512], detail[2 * JSON_ERROR_TEXT_LENGTH], *text = NULL;
    size_t bytes = 0;
    int r = read_text(in, &text, &bytes);

    if (r < 0)
        return r;
    in->root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (in->root && json_is_object(in->root))
        return 0;
    if (in->root)
        return fail(in, -EBADMSG, "is no JSON object");
    return cli_error(in->err, -EBADMSG, "%s: malformed JSON at line %d: %s; expected %s",
                     cli_printable(shown, sizeof(shown), in->path), error.line,
                     cli_printable(detail, sizeof(detail), error.text), in->expected);
}

/* ---- members -------------------------------------------------------------------------------- */

/* 0 once something has failed, so that callers look at err once. */
static double number(const struct input *in, const json_t *obj, const char *key, double max)
{
    const json_t *value = json_object_get(obj, key);
    const double v = json_number_value(value);

    if (!value)
        fail_key(in, key, "is missing");
    else if (!json_is_number(value) || !(v >= 0.0 && v <= max))
        fail_key(in, key, "is no number in its range");
    return in->err->code ? 0.0 : v;
}

static double bytes_of(const struct input *in, const json_t *obj, const char *key)
{
    return number(in, obj, key, BYTES_MAX);
}

/* 0: null, or not there. */
static double bytes_if_known(const struct input *in, const json_t *obj, const char *key)
{
    const json_t *value = json_object_get(obj, key);

    return !value || json_is_null(value) ? 0.0 : bytes_of(in, obj, key);
}

static double seconds_of(const struct input *in, const json_t *obj, const char *key)
{
    return number(in, obj, key, SECONDS_MAX);
}

static struct page_span span_of(const struct input *in, const json_t *obj)
{
    return (struct page_span){
        .wall_s = seconds_of(in, obj, "wall_s"),
        .stall_disk_s = seconds_of(in, obj, "stall_disk_s"),
        .stall_space_s = seconds_of(in, obj, "stall_space_s"),
        .compute_s = seconds_of(in, obj, "compute_s"),
        .disk_busy_s = seconds_of(in, obj, "disk_busy_s"),
        .disk_bytes = bytes_of(in, obj, "disk_bytes"),
    };
}

/* The list `key`, each with its weights in `bytes_key`. */
static int spans_of(const struct input *in, const char *key, const char *bytes_key,
                    struct page_spans *spans)
{
    const json_t *list = json_object_get(in->root, key);

    if (!json_is_array(list))
        return fail_key(in, key, list ? "is no list" : "is missing");
    const size_t n = json_array_size(list);

    if (n > SPANS_MAX)
        return fail_key(in, key, "has more than 10000 entries");
    spans->items = calloc(n ? n : 1, sizeof(*spans->items));
    if (!spans->items)
        return cli_error(in->err, -ENOMEM, "no memory for %zu entries of \"%s\"", n, key);
    for (spans->n = 0; spans->n < n && !in->err->code; spans->n++) {
        const json_t *obj = json_array_get(list, spans->n);
        struct page_span *span = &spans->items[spans->n];

        *span = span_of(in, obj);
        span->begin_s = seconds_of(in, obj, "begin_s");
        span->bytes = bytes_of(in, obj, bytes_key);
        if (spans->n > 0 && span->begin_s < spans->items[spans->n - 1].begin_s)
            return fail_key(in, key, "is not in order of \"begin_s\"");
    }
    return in->err->code;
}

/* An object, or an empty one's stand-in after a failure. */
static const json_t *object_of(const struct input *in, const char *key)
{
    const json_t *obj = json_object_get(in->root, key);

    if (!json_is_object(obj))
        fail_key(in, key, obj ? "is no object" : "is missing");
    return obj;
}

static int check_verb(const struct input *in, const char *a, const char *b)
{
    const char *verb = json_string_value(json_object_get(in->root, "verb"));
    char shown[64], text[96];

    if (verb && (strcmp(verb, a) == 0 || strcmp(verb, b) == 0))
        return 0;
    if (!verb)
        return fail_key(in, "verb", "is missing");
    snprintf(text, sizeof(text), "is of the verb %s", cli_printable(shown, sizeof(shown), verb));
    return fail(in, -EBADMSG, text);
}

/* ---- a run ---------------------------------------------------------------------------------- */

static void take_memory(const struct input *in, struct page_run *run)
{
    const json_t *settings = object_of(in, "settings");

    object_of(in, "machine");
    run->setup_s = seconds_of(in, in->root, "setup_s");
    run->disk_gbps = number(in, in->root, "disk_gbps", BYTES_MAX);
    run->copied_bytes = bytes_of(in, in->root, "copied_bytes");
    run->peak_bytes = bytes_of(in, in->root, "peak_memory_bytes");
    run->ring_bytes = bytes_of(in, in->root, "ring_bytes");
    run->activation_bytes = bytes_of(in, in->root, "activation_bytes");
    run->resident_bytes = bytes_of(in, in->root, "resident_bytes");
    run->mods_bytes = bytes_of(in, in->root, "mods_bytes");
    run->mods_spilled = json_is_true(json_object_get(in->root, "mods_spilled"));
    run->device_peak_bytes = bytes_if_known(in, in->root, "device_peak_bytes");
    run->ram_bytes = bytes_if_known(in, settings, "ram_bytes");
}

static int take_run(const struct input *in, struct page_run *run)
{
    const json_t *predicted = object_of(in, "predicted");

    run->used_bytes = bytes_of(in, in->root, "bytes_used");
    run->predicted.run_bytes = bytes_of(in, predicted, "bytes_used");
    run->predicted.first_bytes = bytes_of(in, predicted, "first_bytes");
    run->predicted.later_bytes = bytes_of(in, predicted, "later_bytes");
    run->predicted.peak_bytes = bytes_of(in, predicted, "peak_memory_bytes");
    run->predicted.device_bytes = bytes_if_known(in, predicted, "device_memory_bytes");
    take_memory(in, run);
    if (run->loop) {
        const json_t *loop = object_of(in, "loop");

        run->total = span_of(in, loop);
        run->total.bytes = bytes_of(in, loop, "bytes_used");
    } else {
        run->total = span_of(in, in->root);
        run->total.bytes = bytes_of(in, in->root, "pass_bytes");
    }
    if (in->err->code)
        return in->err->code;
    if (run->loop && spans_of(in, "steps", "bytes_used", &run->steps) < 0)
        return in->err->code;
    return json_object_get(in->root, "blocks") ? spans_of(in, "blocks", "bytes", &run->blocks) : 0;
}

int page_run_read(struct page_run *ret_run, const char *path, struct hr_error *err)
{
    struct input in = {.path = path, .expected = run_expected, .err = err};
    struct page_run run = {0};
    int r = load(&in);

    if (r == 0)
        r = check_verb(&in, "forward", "denoise");
    run.root = in.root;
    if (r == 0) {
        run.loop = strcmp(json_string_value(json_object_get(in.root, "verb")), "denoise") == 0;
        r = take_run(&in, &run);
    }
    if (r < 0)
        page_run_free(&run);
    else
        *ret_run = run;
    return r;
}

void page_run_free(struct page_run *run)
{
    free(run->steps.items);
    free(run->blocks.items);
    json_decref(run->root);
    *run = (struct page_run){0};
}

/* ---- a plan --------------------------------------------------------------------------------- */

int page_plan_read(struct page_plan *ret_plan, const char *path, const struct page_run *run,
                   struct hr_error *err)
{
    struct input in = {.path = path, .expected = plan_expected, .err = err};
    const double n_steps = (double) run->steps.n;
    char shown[512];
    int r = load(&in);

    if (r == 0)
        r = check_verb(&in, "plan", "plan");
    if (r == 0) {
        *ret_plan = (struct page_plan){
            .n_steps = number(&in, in.root, "n_steps", 1e6),
            .run_s = seconds_of(&in, in.root, "run_s"),
            .first_s = seconds_of(&in, in.root, "first_s"),
            .later_s = seconds_of(&in, in.root, "later_s"),
            .disk_gbps = number(&in, in.root, "disk_gbps", BYTES_MAX),
        };
        r = err->code;
    }
    cli_printable(shown, sizeof(shown), path);
    if (r == 0 && !run->loop && ret_plan->n_steps != 1.0)
        r = cli_error(err, -EBADMSG,
                      "%s: is a plan of %.0f steps and this run was one forward; make one without "
                      "--steps",
                      shown, ret_plan->n_steps);
    if (r == 0 && run->loop && ret_plan->n_steps != n_steps)
        r = cli_error(err, -EBADMSG,
                      "%s: is a plan of %.0f steps and this run did %.0f (a resumed run does "
                      "fewer); make one with --steps %.0f",
                      shown, ret_plan->n_steps, n_steps, n_steps);
    json_decref(in.root);
    return r;
}
