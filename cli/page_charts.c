/* SPDX-License-Identifier: Apache-2.0 */
/* page_charts.c -- the charts of a page: inline SVG that is as wide as the window.
 *
 * Along x everything is in per cent of the width, along y in pixels, and text keeps its size: a
 * scaled drawing would be illegible on a phone. Colours are classes of page.c's style; what waits
 * is hatched, so that nothing is told by colour alone. */
#include <math.h>

#include "cli/page.h"

enum { LANE_HEIGHT = 60, LANE_STEP = 96, LANES_TOP = 22, AXIS_HEIGHT = 40, TICKS_MAX = 5 };

/* ---- frame and axes ------------------------------------------------------------------------- */

static void begin(FILE *f, const char *id, const char *title, const char *text, int height)
{
    fprintf(f,
            "<svg class=\"chart\" role=\"img\" aria-labelledby=\"%s-title %s-text\" "
            "width=\"100%%\" height=\"%d\">\n<title id=\"%s-title\">%s</title>\n"
            "<desc id=\"%s-text\">%s</desc>\n",
            id, id, height, id, title, id, text);
}

static void end(FILE *f)
{
    fputs("</svg>\n", f);
}

static void rect(FILE *f, const char *class, double x, double width, double y, double height)
{
    if (width > 1e-5 && height > 0.01) /* else nothing would be seen */
        fprintf(f,
                "<rect class=\"%s\" x=\"%.3f%%\" y=\"%.2f\" width=\"%.3f%%\" height=\"%.2f\"/>\n",
                class, 100.0 * x, y, 100.0 * width, height);
}

/* 1, 2 or 5 times a power of ten: at most TICKS_MAX of them in v, which is more than 0. */
static double tick_step(double v)
{
    const double power = pow(10.0, floor(log10(v / TICKS_MAX)));
    const double share = v / TICKS_MAX / power;

    return power * (share <= 1.0 ? 1.0 : share <= 2.0 ? 2.0 : share <= 5.0 ? 5.0 : 10.0);
}

/* Ticks from 0 to x_end and the axis' name, below y. */
static void x_axis(FILE *f, double x_end, double y, const char *name)
{
    const double step = tick_step(x_end);

    fprintf(f, "<line class=\"axis\" x1=\"0\" y1=\"%.1f\" x2=\"100%%\" y2=\"%.1f\"/>\n", y, y);
    for (int i = 0; i * step <= x_end * (1.0 + 1e-9); i++) {
        const double x = 100.0 * i * step / x_end;

        fprintf(f,
                "<line class=\"axis\" x1=\"%.3f%%\" y1=\"%.1f\" x2=\"%.3f%%\" y2=\"%.1f\"/>"
                "<text x=\"%.3f%%\" y=\"%.1f\" text-anchor=\"%s\">%.6g</text>\n",
                x, y, x, y + 4, x, y + 17, x > 96.0 ? "end" : "middle", i * step);
    }
    fprintf(f, "<text x=\"50%%\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n", y + 35, name);
}

/* ---- stages over time ------------------------------------------------------------------------ */

/* A lane of columns, `works` below and `waits` on it. */
static void lane(FILE *f, const struct page_lanes *lanes, int idx, const char *name,
                 const char *class, size_t works, size_t waits)
{
    const double top = LANES_TOP + idx * LANE_STEP, bottom = top + LANE_HEIGHT;

    fprintf(f,
            "<text class=\"strong\" x=\"0\" y=\"%.0f\">%s</text>\n"
            "<line class=\"grid\" x1=\"0\" y1=\"%.0f\" x2=\"100%%\" y2=\"%.0f\"/>\n"
            "<text x=\"-6\" y=\"%.0f\" text-anchor=\"end\">100 %%</text>"
            "<text x=\"-6\" y=\"%.0f\" text-anchor=\"end\">0 %%</text>\n<g class=\"crisp\">\n",
            top - 8, name, top, top, top + 5, bottom + 4);
    for (size_t i = 0; i < lanes->n; i++) {
        const struct page_column *c = &lanes->columns[i];
        const double x = c->begin_s / lanes->end_s;
        const double width = (c->end_s - c->begin_s) / lanes->end_s;
        const double work = *(const double *) ((const char *) c + works) * LANE_HEIGHT;
        const double wait =
            waits ? *(const double *) ((const char *) c + waits) * LANE_HEIGHT : 0.0;

        rect(f, class, x, width, bottom - work, work);
        rect(f, "waits", x, width, bottom - work - wait, wait);
    }
    fputs("</g>\n", f);
}

void page_chart_lanes(FILE *f, const struct page *page)
{
    const struct page_lanes *lanes = page->lanes;
    const int n = lanes->has_link ? 3 : 2;
    const double bottom = LANES_TOP + (n - 1) * LANE_STEP + LANE_HEIGHT;
    int i = 0;

    begin(f, "lanes", "The stages over time",
          "A lane for each stage, over the seconds of the run; the height is the share of the time "
          "that the stage worked or waited for its neighbour. The totals are in the chart of who "
          "waited for whom, the figures of each column in the tables below.",
          (int) bottom + AXIS_HEIGHT);
    lane(f, lanes, i++, "disk: % of the time", "disk", offsetof(struct page_column, disk),
         offsetof(struct page_column, disk_waits));
    if (lanes->has_link)
        lane(f, lanes, i++, "copy to the device: % of the time", "link",
             offsetof(struct page_column, link), 0);
    lane(f, lanes, i, "compute: % of the time", "compute", offsetof(struct page_column, compute),
         offsetof(struct page_column, compute_waits));
    x_axis(f, lanes->end_s, bottom,
           lanes->traced     ? "seconds since the recording began"
           : page->run->loop ? "seconds since the first step began"
                             : "seconds since the forward began");
    end(f);
}

/* ---- who waited for whom ----------------------------------------------------------------------
 */

static double share_of(double part, double whole)
{
    const double v = whole > 0.0 ? part / whole : 0.0;

    return v > 1.0 ? 1.0 : v;
}

static void stall_row(FILE *f, double y, const char *class, const char *label, double works,
                      double waits)
{
    fprintf(f, "<text x=\"0\" y=\"%.0f\">%s</text>\n", y - 7, label);
    rect(f, "empty", 0.0, 1.0, y, 24.0);
    rect(f, class, 0.0, works, y, 24.0);
    rect(f, "waits", works, waits > 1.0 - works ? 1.0 - works : waits, y, 24.0);
}

void page_chart_stalls(FILE *f, const struct page_run *run)
{
    const struct page_span *t = &run->total;
    const double reads = share_of(t->disk_busy_s, t->wall_s);
    const double disk_waits = share_of(t->stall_space_s, t->wall_s);
    const double computes = share_of(t->compute_s, t->wall_s);
    const double compute_waits = share_of(t->stall_disk_s, t->wall_s);
    char disk[96], compute[96], text[256];

    snprintf(disk, sizeof(disk), "disk: %.1f %% reading, %.1f %% waiting for room", 100.0 * reads,
             100.0 * disk_waits);
    snprintf(compute, sizeof(compute), "compute: %.1f %% computing, %.1f %% waiting for the disk",
             100.0 * computes, 100.0 * compute_waits);
    snprintf(text, sizeof(text), "%s; %s.", disk, compute);
    begin(f, "stalls", "Who waited for whom", text, 122 + AXIS_HEIGHT);
    stall_row(f, 24.0, "disk", disk, reads, disk_waits);
    stall_row(f, 88.0, "compute", compute, computes, compute_waits);
    x_axis(f, 100.0, 122.0, "% of the time");
    end(f);
}

/* ---- GB/s -------------------------------------------------------------------------------------
 */

static double rate(double bytes, double wall_s)
{
    return wall_s > 1e-9 ? bytes / wall_s / 1e9 : 0.0;
}

static void rate_bars(FILE *f, const struct page_spans *spans, const char *what, double y_max,
                      double top, double bottom)
{
    const double slot = 1.0 / (double) spans->n, height = bottom - top;

    for (size_t i = 0; i < spans->n; i++) {
        const struct page_span *s = &spans->items[i];
        const double used = rate(s->bytes, s->wall_s), read = rate(s->disk_bytes, s->wall_s);
        const double x = (double) i * slot, y = bottom - read / y_max * height;

        fprintf(f, "<g><title>%s %zu: %.2f GB/s used, %.2f GB/s read, %.3f s</title>\n", what,
                i + (what[0] == 's'), used, read, s->wall_s);
        rect(f, "compute", x + 0.12 * slot, 0.76 * slot, bottom - used / y_max * height,
             used / y_max * height);
        fprintf(f,
                "<line class=\"mark\" x1=\"%.3f%%\" y1=\"%.1f\" x2=\"%.3f%%\" y2=\"%.1f\"/></g>\n",
                100.0 * x, y, 100.0 * (x + slot), y);
    }
}

/* Names below some of the bars, each under the middle of its own. */
static void rate_names(FILE *f, const struct page_spans *spans, const char *what, double y)
{
    const size_t first = what[0] == 's'; /* steps are counted from 1, blocks from 0 */
    const double step = tick_step((double) spans->n);
    const size_t every = step < 1.0 ? 1 : (size_t) step;

    for (size_t i = 0; i < spans->n; i++)
        if ((i + first) % every == 0 || (first && i == 0))
            fprintf(f, "<text x=\"%.3f%%\" y=\"%.0f\" text-anchor=\"middle\">%zu</text>\n",
                    100.0 * ((double) i + 0.5) / (double) spans->n, y + 17, i + first);
    fprintf(f, "<text x=\"50%%\" y=\"%.0f\" text-anchor=\"middle\">%s</text>\n", y + 35, what);
}

void page_chart_rates(FILE *f, const struct page_spans *spans, const char *what)
{
    const double top = 28.0, bottom = 228.0;
    double y_max = 0.0, step;
    char id[16], title[64], text[160];

    for (size_t i = 0; i < spans->n; i++) {
        const struct page_span *s = &spans->items[i];

        y_max = fmax(y_max, fmax(rate(s->bytes, s->wall_s), rate(s->disk_bytes, s->wall_s)));
    }
    y_max = y_max > 1e-9 ? y_max : 1.0;
    step = tick_step(y_max);
    y_max = step * ceil(y_max / step);
    snprintf(id, sizeof(id), "rate-%s", what);
    snprintf(title, sizeof(title), "GB/s of each %s", what);
    snprintf(text, sizeof(text),
             "Bars: weights used, marks: bytes read from the disk meanwhile, for %zu %ss; the "
             "figures are in the table below.",
             spans->n, what);
    begin(f, id, title, text, (int) bottom + AXIS_HEIGHT);
    fputs("<text class=\"strong\" x=\"0\" y=\"12\">GB/s</text>\n", f);
    for (int i = 0; i * step <= y_max * (1.0 + 1e-9); i++) {
        const double y = bottom - (bottom - top) * i * step / y_max;

        fprintf(f,
                "<line class=\"%s\" x1=\"0\" y1=\"%.1f\" x2=\"100%%\" y2=\"%.1f\"/>"
                "<text x=\"-6\" y=\"%.1f\" text-anchor=\"end\">%.4g</text>\n",
                i ? "grid" : "axis", y, y, y + 4, i * step);
    }
    rate_bars(f, spans, what, y_max, top, bottom);
    rate_names(f, spans, what, bottom);
    end(f);
}

/* ---- memory -----------------------------------------------------------------------------------
 */

/* A line at a bound with its name on the side where there is room, above or below the bar. */
static void bound(FILE *f, const char *class, double share, const char *name, const char *size,
                  double y1, double y2, double y_text)
{
    const double x = 100.0 * share;

    fprintf(f,
            "<line class=\"%s\" x1=\"%.3f%%\" y1=\"%.0f\" x2=\"%.3f%%\" y2=\"%.0f\"/>"
            "<text x=\"%.3f%%\" y=\"%.0f\" text-anchor=\"%s\">%s %s</text>\n",
            class, x, y1, x, y2, x, y_text, x > 50.0 ? "end" : "start", name, size);
}

void page_chart_memory(FILE *f, const struct page_run *run)
{
    const double mods = run->mods_spilled ? 0.0 : run->mods_bytes;
    const struct {
        const char *class;
        double bytes;
    } parts[] = {{"disk", run->ring_bytes},
                 {"compute", run->activation_bytes},
                 {"link", run->resident_bytes},
                 {"mods", mods}};
    const double most = fmax(run->peak_bytes, fmax(run->predicted.peak_bytes, run->ram_bytes));
    const double max = most > 1.0 ? 1.04 * most : 1.0, unit = max >= 2e9 ? 1e9 : 1e6;
    char a[32], b[32], c[32], text[256];
    double x = 0.0;

    cli_size(a, (uint64_t) run->peak_bytes);
    cli_size(b, (uint64_t) run->predicted.peak_bytes);
    cli_size(c, (uint64_t) run->ram_bytes);
    snprintf(text, sizeof(text), "The process held %s at most; predicted were at most %s; %s%s.", a,
             b, run->ram_bytes > 0.0 ? "the bound was " : "no bound was given",
             run->ram_bytes > 0.0 ? c : "");
    begin(f, "memory", "Memory against its bounds", text, 106 + AXIS_HEIGHT);
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        const double width = fmin(parts[i].bytes, run->peak_bytes - x * max) / max;

        rect(f, parts[i].class, x, width, 36.0, 36.0);
        x += width > 0.0 ? width : 0.0;
    }
    rect(f, "other", x, run->peak_bytes / max - x, 36.0, 36.0);
    bound(f, "predicted", run->predicted.peak_bytes / max, "predicted, at most", b, 28.0, 80.0, 96);
    if (run->ram_bytes > 0.0)
        bound(f, "budget", run->ram_bytes / max, "budget (--ram)", c, 22.0, 80.0, 16);
    x_axis(f, max / unit, 106.0,
           unit > 1e6 ? "GB of memory, the whole process" : "MB of memory, the whole process");
    end(f);
}

/* ---- predicted and actual ----------------------------------------------------------------------
 */

void page_chart_pairs(FILE *f, const struct page_pair *pairs, size_t n)
{
    enum { STEP = 58 };

    begin(f, "pairs", "Predicted and actual",
          "For each quantity two bars, predicted above and actual below, as long as the table "
          "beneath says.",
          (int) n * STEP);
    for (size_t i = 0; i < n; i++) {
        const double most = fmax(pairs[i].predicted, pairs[i].actual);
        const double y = (double) i * STEP + 14;

        fprintf(f, "<text x=\"0\" y=\"%.0f\">%s</text>\n", y, pairs[i].what);
        rect(f, "before", 0.0, share_of(pairs[i].predicted, most), y + 7, 12.0);
        rect(f, "after", 0.0, share_of(pairs[i].actual, most), y + 21, 12.0);
    }
    end(f);
}
