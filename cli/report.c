/* SPDX-License-Identifier: Apache-2.0 */
/* report.c -- progress while it runs, and printing. */
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

#define NOTE_NS UINT64_C(10000000000)

static atomic_uint lines_open; /* of progress that stand on the terminal */

/* Where lines can be redrawn. */
static bool on_terminal(void)
{
    const char *term = getenv("TERM");

    return isatty(STDERR_FILENO) && !(term && strcmp(term, "dumb") == 0);
}

bool cli_progress_wanted(const struct cli_options *o)
{
    return !o->quiet && on_terminal();
}

void cli_progress_clear(void)
{
    const unsigned n = atomic_exchange(&lines_open, 0);

    if (n == 0)
        return;
    fputs("\r", stderr);
    for (unsigned i = 1; i < n; i++)
        fputs("\033[A", stderr);
    fputs("\033[J", stderr);
}

void cli_progress_lines(const char *const *lines, unsigned n)
{
    char text[4096];
    size_t used = 1;

    text[0] = '\r';
    for (unsigned i = 1; i < lines_open; i++)
        used += (size_t) snprintf(text + used, sizeof(text) - used, "\033[A");
    for (unsigned i = 0; i < n && used < sizeof(text); i++)
        used += (size_t) snprintf(text + used, sizeof(text) - used, "%s\033[K%s", lines[i],
                                  i + 1 < n ? "\r\n" : "\033[J");
    fputs(text, stderr); /* one write, so that nothing flickers */
    lines_open = n;
}

void cli_progress_note(const char *format, ...)
{
    va_list ap;

    cli_progress_clear();
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fflush(stderr);
    lines_open = 1;
}

void cli_note_step(const struct cli_options *o, const struct hr_denoise_step *step)
{
    static uint64_t since_ns; /* the last line */
    char size[32], wall[32], eta[32];

    since_ns += step->wall_ns;
    if (o->quiet || on_terminal() || since_ns < NOTE_NS || step->n_done == step->n_steps)
        return;
    since_ns = 0;
    fprintf(stderr,
            "headrace: step %u of %u: %s in %s, waiting for the disk %.0f %%, about %s to go\n",
            step->n_done, step->n_steps, cli_size(size, step->bytes_used),
            cli_duration(wall, step->wall_ns),
            100.0 * cli_disk_share(step->stall_disk_ns, step->wall_ns),
            cli_duration(eta, step->eta_ns));
}

static void progress_bytes(const char *what, uint64_t bytes_done, uint64_t bytes_total)
{
    char done[32], total[32];

    cli_progress_note("%s %s of %s", what, cli_size(done, bytes_done),
                      cli_size(total, bytes_total));
    if (bytes_done == bytes_total)
        cli_progress_clear();
}

void cli_progress_bytes(void *user, uint64_t bytes_done, uint64_t bytes_total)
{
    (void) user;
    progress_bytes("writing", bytes_done, bytes_total);
}

void cli_progress_reading(void *user, uint64_t bytes_done, uint64_t bytes_total)
{
    (void) user;
    progress_bytes("reading", bytes_done, bytes_total);
}

/* Bytes from p on that a terminal does not show but obeys: C0, and in UTF-8 C1 and the marks of
 * writing direction, which can make a name read as another one. */
static unsigned n_control(const unsigned char *p)
{
    if (*p < 0x20 || *p == 0x7f)
        return 1;
    if (p[0] == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f)
        return 2;
    if (p[0] == 0xd8 && p[1] == 0x9c)
        return 2;
    if (p[0] == 0xe2 &&
        ((p[1] == 0x80 && ((p[2] >= 0xaa && p[2] <= 0xae) || p[2] == 0x8e || p[2] == 0x8f)) ||
         (p[1] == 0x81 && p[2] >= 0xa6 && p[2] <= 0xa9)))
        return 3;
    return 0;
}

const char *cli_printable(char *buf, size_t buf_bytes, const char *text)
{
    const unsigned char *p = (const unsigned char *) text;
    size_t len = 0;

    for (unsigned escape = 0; *p; p++, escape -= escape > 0) {
        if (len + 8 > buf_bytes) { /* the longest form of a byte, and the mark of the cut */
            snprintf(buf + len, buf_bytes - len, "...");
            return buf;
        }
        if (escape == 0)
            escape = n_control(p);
        if (escape > 0)
            len += (size_t) snprintf(buf + len, buf_bytes - len, "\\x%02x", *p);
        else
            buf[len++] = (char) *p;
    }
    buf[len] = '\0';
    return buf;
}

json_t *cli_json_bytes(uint64_t bytes, bool is_known)
{
    return is_known ? json_integer((json_int_t) bytes) : json_null();
}

json_t *cli_json_text(const char *text)
{
    json_t *value = text ? json_string(text) : NULL;

    return value ? value : json_null();
}

const char *cli_size(char buf[32], uint64_t bytes)
{
    static const struct {
        double unit;
        const char *name;
    } units[] = {{1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}};

    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
        if ((double) bytes >= units[i].unit) {
            snprintf(buf, 32, "%.*f %s", i == 0 ? 2 : 0, (double) bytes / units[i].unit,
                     units[i].name);
            return buf;
        }
    snprintf(buf, 32, "%llu bytes", (unsigned long long) bytes);
    return buf;
}

const char *cli_duration(char buf[32], uint64_t ns)
{
    const unsigned long long seconds = (ns + 500000000) / 1000000000;

    if (ns < 9950000000)
        snprintf(buf, 32, "%.1f s", (double) ns / 1e9);
    else if (seconds < 120)
        snprintf(buf, 32, "%llu s", seconds);
    else if (seconds < 7200)
        snprintf(buf, 32, "%llu min %02llu s", seconds / 60, seconds % 60);
    else
        snprintf(buf, 32, "%llu h %02llu min", seconds / 3600, seconds / 60 % 60);
    return buf;
}

int cli_error(struct hr_error *err, int code, const char *format, ...)
{
    va_list ap;

    if (err->code)
        return code;
    err->code = code;
    va_start(ap, format);
    vsnprintf(err->message, sizeof(err->message), format, ap);
    va_end(ap);
    return code;
}

int cli_fail(const struct hr_error *err)
{
    cli_progress_clear();
    fprintf(stderr, "headrace: %s\n", err->message);
    return CLI_FAILED;
}

/* jansson leaves out what it has no memory for, so that an object would be printed as if it were
 * whole; and its parser (2.14) drops characters or crashes. */
static json_malloc_t json_malloc;
static atomic_bool json_starved;
static bool json_must_have; /* set before there are other threads */

static void *noting_malloc(size_t n)
{
    void *p = json_malloc(n);

    if (!p && json_must_have) {
        cli_progress_clear();
        fputs("headrace: no memory for JSON\n", stderr);
        exit(CLI_FAILED);
    }
    if (!p)
        atomic_store(&json_starved, true);
    return p;
}

void cli_watch_json(bool must_have)
{
    json_free_t json_free;

    json_must_have = must_have;
    json_get_alloc_funcs(&json_malloc, &json_free);
    json_set_alloc_funcs(noting_malloc, json_free);
}

int cli_print_json(json_t *obj)
{
    char *text = obj ? json_dumps(obj, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : NULL;
    struct hr_error err = {0};

    json_decref(obj);
    if (atomic_load(&json_starved))
        cli_error(&err, -ENOMEM, "no memory for JSON");
    else if (!text)
        cli_error(&err, -EINVAL,
                  "the result holds a name that is not UTF-8, which JSON cannot say");
    if (err.code == 0)
        puts(text);
    free(text);
    return err.code == 0 ? cli_flush() : cli_fail(&err);
}

int cli_flush(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return CLI_OK;
    fprintf(stderr, "headrace: standard output: %s\n", strerror(errno));
    return CLI_FAILED;
}
