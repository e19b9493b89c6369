/* SPDX-License-Identifier: Apache-2.0 */
/* report.c -- progress while it runs, and printing. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

static atomic_bool line_open; /* a progress line stands on the terminal */

bool cli_progress_wanted(const struct cli_options *o)
{
    return !o->quiet && isatty(STDERR_FILENO);
}

void cli_progress_clear(void)
{
    if (line_open)
        fputs("\r\033[K", stderr);
    line_open = false;
}

static void progress_line(const char *what, double seconds, uint64_t bytes, double share_done)
{
    const double eta = share_done > 0.0 ? seconds / share_done - seconds : 0.0;

    fprintf(stderr, "\r\033[K%s  %.2f GB/s  %.0f s, %.0f s to go", what,
            seconds > 0.0 ? (double) bytes / seconds / 1e9 : 0.0, seconds, eta);
    fflush(stderr);
    line_open = true;
}

void cli_progress_block(void *user, const struct hr_dit_progress *p)
{
    char what[48];

    (void) user;
    snprintf(what, sizeof(what), "block %u of %u", p->block_idx, p->n_blocks);
    progress_line(what, (double) p->elapsed_ns / 1e9, p->bytes_read,
                  (double) p->block_idx / p->n_blocks);
    if (p->block_idx == p->n_blocks)
        cli_progress_clear();
}

void cli_progress_step(const struct hr_denoise_step *step)
{
    cli_progress_clear();
    fprintf(stderr, "step %u of %u  %.1f s, about %.0f s to go\n", step->step_idx, step->n_steps,
            (double) step->wall_ns / 1e9,
            (double) step->wall_ns / 1e9 * (step->n_steps - step->step_idx));
}

void cli_progress_bytes(void *user, uint64_t bytes_done, uint64_t bytes_total)
{
    char done[32], total[32];

    (void) user;
    fprintf(stderr, "\r\033[Kwriting %s of %s", cli_size(done, bytes_done),
            cli_size(total, bytes_total));
    fflush(stderr);
    line_open = true;
    if (bytes_done == bytes_total)
        cli_progress_clear();
}

const char *cli_printable(char *buf, size_t buf_bytes, const char *text)
{
    size_t len = 0;

    for (const unsigned char *p = (const unsigned char *) text; *p; p++) {
        if (len + 8 > buf_bytes) { /* the longest form of a byte, and the mark of the cut */
            snprintf(buf + len, buf_bytes - len, "...");
            return buf;
        }
        if (*p < 0x20 || *p == 0x7f)
            len += (size_t) snprintf(buf + len, buf_bytes - len, "\\x%02x", *p);
        else
            buf[len++] = (char) *p;
    }
    buf[len] = '\0';
    return buf;
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

int cli_fail(const struct hr_error *err)
{
    cli_progress_clear();
    fprintf(stderr, "headrace: %s\n", err->message);
    return CLI_FAILED;
}

int cli_print_json(json_t *obj)
{
    if (!obj) {
        fputs("headrace: the result holds a name that is not UTF-8, which JSON cannot say\n",
              stderr);
        return CLI_FAILED;
    }
    /* A failure to write shows in the stream's error flag. */
    json_dumpf(obj, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(obj);
    return cli_flush();
}

int cli_flush(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return CLI_OK;
    fprintf(stderr, "headrace: standard output: %s\n", strerror(errno));
    return CLI_FAILED;
}
