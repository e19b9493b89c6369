/* SPDX-License-Identifier: Apache-2.0 */
/* page.h -- a run as one HTML page, from the JSON that it printed.
 *
 *   page_input.c   the JSON of forward, denoise and plan, checked
 *   page_trace.c   the file of --trace, as shares of time
 *   page.c         the page: head, style, sections, escaping
 *   page_facts.c   its tables of predictions, settings, machine
 *   page_charts.c  its charts, inline SVG
 *
 * Whatever comes out of a file is a stranger's: numbers are within bounds once they are in a
 * struct, and text goes through page_text() alone. Times are seconds, sizes bytes, both as double:
 * they are drawn, not counted on.
 */
#ifndef HR_PAGE_H
#define HR_PAGE_H

#include <stdio.h>

#include "cli/cli.h"

/* ---- page_input.c ------------------------------------------------------------------------- */

/* A block, a step, or all of a run. */
struct page_span {
    double begin_s, wall_s, stall_disk_s, stall_space_s, compute_s, disk_busy_s;
    double bytes, disk_bytes; /* of weights used; read from the files meanwhile */
};

struct page_spans {
    struct page_span *items; /* n */
    size_t n;
};

struct page_run {
    json_t *root;
    bool loop;                       /* of denoise, else of forward                        */
    struct page_span total;          /* of all steps of this run, or of the last forward   */
    struct page_spans steps, blocks; /* none: forward has no steps; no --per-block was given */
    double setup_s, disk_gbps, copied_bytes;
    double peak_bytes, ring_bytes, activation_bytes, resident_bytes, mods_bytes;
    double device_peak_bytes; /* as a GPU's driver said; 0: nothing */
    double ram_bytes;         /* 0: no bound */
    bool mods_spilled;
    struct {
        double run_bytes, first_bytes, later_bytes, peak_bytes, device_bytes;
    } predicted;
    double used_bytes; /* of weights, in all passes */
};

/* @return 0; -EBADMSG the file is not what forward or denoise prints, or the error of open() or
 *         read() */
int page_run_read(struct page_run *ret_run, const char *path, struct hr_error *err);
void page_run_free(struct page_run *run);

/* What headrace plan said before the run. */
struct page_plan {
    double n_steps, run_s, first_s, later_s, disk_gbps;
};
int page_plan_read(struct page_plan *ret_plan, const char *path, const struct page_run *run,
                   struct hr_error *err);

/* ---- page_trace.c ------------------------------------------------------------------------- */

/* What a stretch of time was spent on, as shares of it, 0 to 1. */
struct page_column {
    double begin_s, end_s;
    double disk, disk_waits, link, compute, compute_waits;
};

enum { PAGE_COLUMNS = 240 };

/* The stages over time. */
struct page_lanes {
    struct page_column *columns; /* n, in order of time */
    size_t n;
    double end_s;
    bool has_link;
    bool traced;    /* else a column is a block or a step */
    double dropped; /* events that the trace had no room for */
};

int page_trace_read(struct page_lanes *ret_lanes, const char *path, struct hr_error *err);
/* From the steps of a loop, or the blocks of a forward. */
int page_lanes_of_spans(struct page_lanes *ret_lanes, const struct page_spans *spans,
                        struct hr_error *err);
void page_lanes_free(struct page_lanes *lanes);

/* ---- page.c ------------------------------------------------------------------------------- */

struct page {
    const struct page_run *run;
    const struct page_lanes *lanes; /* n 0: nothing is known over time */
    const struct page_plan *plan;   /* or NULL                         */
};

/* All of it; a failure to write shows in the stream's error flag. */
void page_put(FILE *f, const struct page *page);
/* Text with what HTML would take for markup escaped, without control characters; long text is cut.
 */
void page_text(FILE *f, const char *text);
/* A figure for readers and, in `value`, for programs. `shown` is markup. */
void page_data(FILE *f, const char *id, double value, const char *shown);
/* n pairs of a class of the style and what it stands for. */
void page_legend(FILE *f, const char *const pairs[][2], size_t n);
const char *page_size(char buf[32], double bytes);
const char *page_seconds(char buf[32], double seconds);

/* ---- page_input.c: files in ---------------------------------------------------------------- */

/* @return a regular file to read, or NULL with *err; a FIFO would have us wait for its writer. */
FILE *page_open(const char *path, struct hr_error *err);

/* ---- page_facts.c ------------------------------------------------------------------------- */

void page_pairs(FILE *f, const struct page *page);
void page_facts(FILE *f, const struct page_run *run);

/* ---- page_charts.c ------------------------------------------------------------------------ */

void page_chart_lanes(FILE *f, const struct page *page);
void page_chart_stalls(FILE *f, const struct page_run *run);
/* what: "block" or "step" */
void page_chart_rates(FILE *f, const struct page_spans *spans, const char *what);
void page_chart_memory(FILE *f, const struct page_run *run);

/* A quantity before and after. */
struct page_pair {
    const char *id, *what;
    double predicted, actual;
    char predicted_text[32], actual_text[32];
};
void page_chart_pairs(FILE *f, const struct page_pair *pairs, size_t n);

#endif /* HR_PAGE_H */
