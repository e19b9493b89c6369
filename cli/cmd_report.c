/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_report.c -- a run as one HTML page. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/page.h"

/* @return 0 or a negative errno */
static int write_temp(const char *temp, const struct page *page)
{
    FILE *f = fopen(temp, "wxe");
    int r = 0;

    if (!f)
        return -errno;
    errno = 0;
    page_put(f, page);
    if (fflush(f) != 0 || ferror(f) || fsync(fileno(f)) < 0)
        r = errno ? -errno : -EIO;
    if (fclose(f) != 0 && r == 0)
        r = -errno;
    if (cli_interrupted && r == 0)
        r = -ECANCELED;
    if (r < 0)
        unlink(temp);
    return r;
}

/* Whole or not at all: under a temporary name, then renamed. A link stays one. */
static int write_page(const char *path, const struct page *page, struct hr_error *err)
{
    char *target = realpath(path, NULL), *temp = NULL, shown[512];
    int r = 0;

    if (!target)
        target = strdup(path);
    if (!target || asprintf(&temp, "%s.tmp-%ld", target, (long) getpid()) < 0) {
        free(target);
        return cli_error(err, -ENOMEM, "no memory for a page");
    }
    r = write_temp(temp, page);
    if (r == 0 && rename(temp, target) < 0) {
        r = -errno;
        unlink(temp);
    }
    free(temp);
    free(target);
    if (r == -ECANCELED)
        return cli_error(err, r, "interrupted");
    return r < 0 ? cli_error(err, r, "%s: cannot write the page: %s",
                             cli_printable(shown, sizeof(shown), path), strerror(-r))
                 : 0;
}

static int make_page(const struct cli_options *o, struct hr_error *err)
{
    struct page_run run = {0};
    struct page_lanes lanes = {0};
    struct page_plan plan = {0};
    const struct page page = {.run = &run, .lanes = &lanes, .plan = o->plan ? &plan : NULL};
    int r = cli_check_page(o, err);

    if (r == 0)
        r = page_run_read(&run, o->paths[0], err);
    if (r == 0 && o->plan)
        r = page_plan_read(&plan, o->plan, &run, err);
    if (r == 0 && o->trace)
        r = page_trace_read(&lanes, o->trace, err);
    else if (r == 0)
        r = page_lanes_of_spans(&lanes, run.loop ? &run.steps : &run.blocks, err);
    if (r == 0)
        r = write_page(o->output, &page, err);
    page_lanes_free(&lanes);
    page_run_free(&run);
    return r;
}

int cli_report(const struct cli_options *o)
{
    struct hr_error err = {0};
    char shown[512];

    if (o->n_paths > 1)
        return cli_usage("report takes one RUN.json; a trace is given as --trace FILE, a plan as "
                         "--plan FILE");
    if (!o->output)
        return cli_usage("report needs --output FILE (-o FILE), which becomes the page");
    cli_catch_signals();
    if (make_page(o, &err) < 0)
        return cli_fail(&err);
    if (o->json)
        return cli_print_json(json_pack("{s:s, s:s}", "verb", "report", "output", o->output));
    printf("report    %s\n", cli_printable(shown, sizeof(shown), o->output));
    return cli_flush();
}
