/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_report.c -- a run as one HTML page. */
#include <stdio.h>

#include "cli/page.h"

static void put_page(FILE *f, const void *page)
{
    page_put(f, page);
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
        r = cli_write_whole(o->output, "the page", put_page, &page, err);
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
        return cli_print_json(
            json_pack("{s:s, s:o}", "verb", "report", "output", cli_json_text(o->output)));
    printf("report    %s\n", cli_printable(shown, sizeof(shown), o->output));
    return cli_flush();
}
