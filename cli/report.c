/* SPDX-License-Identifier: Apache-2.0 */
/* report.c -- progress while it runs, and printing. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

static bool line_open; /* a progress line stands on the terminal */

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

bool cli_print_json(json_t *obj)
{
    const bool ok = obj && json_dumpf(obj, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) == 0 &&
                    putchar('\n') != EOF;

    json_decref(obj);
    return ok;
}

int cli_flush(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return CLI_OK;
    fprintf(stderr, "headrace: standard output: %s\n", strerror(errno));
    return CLI_FAILED;
}
