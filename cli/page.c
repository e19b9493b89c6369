/* SPDX-License-Identifier: Apache-2.0 */
/* page.c -- a run as one HTML page that needs nothing else: no script, no font, no network. */
#include "cli/page.h"

enum { TEXT_BYTES_MAX = 1000 };

/* ---- text ----------------------------------------------------------------------------------- */

void page_text(FILE *f, const char *text)
{
    const unsigned char *p = (const unsigned char *) text;

    for (size_t n = 0; *p; p++, n++) {
        if (n >= TEXT_BYTES_MAX && (*p & 0xc0) != 0x80) { /* between characters */
            fputs("...", f);
            return;
        }
        if (*p == '&' || *p == '<' || *p == '>' || *p == '"' || *p == '\'') {
            fprintf(f, "&#%d;", *p);
        } else if (*p < 0x20 || *p == 0x7f) {
            fputs("\xef\xbf\xbd", f);
        } else if (*p == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0) { /* C1 controls */
            fputs("\xef\xbf\xbd", f);
            p++;
        } else {
            putc(*p, f);
        }
    }
}

void page_data(FILE *f, const char *id, double value, const char *shown)
{
    fprintf(f, "<data id=\"%s\" value=\"%.9g\">%s</data>", id, value, shown);
}

const char *page_size(char buf[32], double bytes)
{
    return cli_size(buf, (uint64_t) bytes);
}

const char *page_seconds(char buf[32], double seconds)
{
    return cli_duration(buf, (uint64_t) (seconds * 1e9));
}

/* ---- style ---------------------------------------------------------------------------------- */

/* Colours have a contrast of 3 and more to the paper, text of 4.5 and more, in light and dark. */
static const char style[] =
    ":root { color-scheme: light dark; --paper: #ffffff; --card: #f6f8fa; --ink: #1f2328; "
    "--quiet: #59636e; --line: #d1d9e0; --disk: #0969da; --compute: #1a7f37; --link: #8250df; "
    "--mods: #0f7d83; --other: #7d8590; --waits: #bc4c00; }\n"
    "@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --card: #151b23; "
    "--ink: #f0f6fc; --quiet: #9198a1; --line: #3d444d; --disk: #58a6ff; --compute: #3fb950; "
    "--link: #b083f0; --mods: #39c5cf; --other: #7d8590; --waits: #f0883e; } }\n"
    "* { box-sizing: border-box; }\n"
    "body { margin: 0 auto; padding: 20px 16px 48px; max-width: 1040px; background: var(--paper); "
    "color: var(--ink); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }\n"
    "h1 { font-size: 24px; line-height: 1.25; margin: 0; } "
    "h2 { font-size: 18px; margin: 36px 0 4px; } p { margin: 6px 0; max-width: 70ch; }\n"
    ".quiet { color: var(--quiet); } .strong { font-weight: 600; }\n"
    ".tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); "
    "gap: 10px; margin: 18px 0; padding: 0; }\n"
    ".tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; "
    "padding: 10px 12px; } .tiles dt { color: var(--quiet); font-size: 13px; } "
    ".tiles dd { margin: 0; font-size: 20px; font-weight: 600; }\n"
    "figure { margin: 10px 0 0; padding-left: 48px; padding-right: 8px; } "
    "figure.flush { padding-left: 0; }\n"
    ".chart { display: block; overflow: visible; font-size: 12.5px; } "
    ".chart text { fill: var(--ink); }\n"
    ".crisp { shape-rendering: crispEdges; } .axis { stroke: var(--quiet); } "
    ".grid { stroke: var(--line); }\n"
    ".disk { fill: var(--disk); background: var(--disk); } "
    ".compute { fill: var(--compute); background: var(--compute); } "
    ".link { fill: var(--link); background: var(--link); } "
    ".mods { fill: var(--mods); background: var(--mods); } "
    ".other { fill: var(--other); background: var(--other); }\n"
    ".waits { fill: url(#hatch); background: repeating-linear-gradient(135deg, var(--waits) 0 3px, "
    "transparent 3px 6px); } .hatch { stroke: var(--waits); stroke-width: 3; }\n"
    ".empty { fill: none; stroke: var(--line); background: transparent; "
    "border: 1px solid var(--line); } "
    ".before { fill: none; stroke: var(--ink); stroke-dasharray: 4 3; "
    "border: 1px dashed var(--ink); } .after { fill: var(--disk); background: var(--disk); }\n"
    ".mark { stroke: var(--disk); stroke-width: 3; } "
    ".budget { stroke: var(--waits); stroke-width: 3; } "
    ".predicted { stroke: var(--ink); stroke-width: 2; stroke-dasharray: 5 4; }\n"
    ".legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; "
    "margin: 8px 0; font-size: 14px; } .legend span { display: inline-block; width: 14px; "
    "height: 14px; margin-right: 6px; vertical-align: -2px; } .legend .mark { height: 0; "
    "border-top: 3px solid var(--disk); vertical-align: 4px; }\n"
    ".scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 14px; "
    "font-variant-numeric: tabular-nums; } th, td { text-align: right; padding: 3px 12px 3px 0; "
    "border-bottom: 1px solid var(--line); overflow-wrap: normal; } "
    "th { font-weight: 600; } th:first-child { text-align: left; } td { white-space: nowrap; }\n"
    "table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; } "
    "table.facts th { text-align: left; font-weight: 400; color: var(--quiet); "
    "vertical-align: top; }\n"
    "summary { cursor: pointer; margin: 8px 0; } a { color: var(--disk); }\n"
    "@media (max-width: 480px) { figure { padding-left: 42px; } .chart { font-size: 12px; } "
    "body { padding: 14px 12px 40px; } }\n";

static void put_head(FILE *f, const struct page_run *run)
{
    const char *model =
        json_string_value(json_object_get(json_object_get(run->root, "settings"), "model"));

    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
          "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
          "style-src 'unsafe-inline'\">\n<title>",
          f);
    fprintf(f, "headrace %s", run->loop ? "denoise" : "forward");
    if (model) {
        fputs(": ", f);
        page_text(f, model);
    }
    fprintf(f,
            "</title>\n<style>\n%s</style>\n</head>\n<body>\n"
            "<svg width=\"0\" height=\"0\" style=\"position:absolute\" aria-hidden=\"true\">"
            "<defs><pattern id=\"hatch\" width=\"6\" height=\"6\" "
            "patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">"
            "<line class=\"hatch\" x1=\"0\" y1=\"0\" x2=\"0\" y2=\"6\"/></pattern></defs></svg>\n"
            "<h1>headrace %s</h1>\n",
            style, run->loop ? "denoise" : "forward");
    if (model) {
        fputs("<p class=\"quiet\"><bdi>", f);
        page_text(f, model);
        fputs("</bdi></p>\n", f);
    }
}

void page_legend(FILE *f, const char *const pairs[][2], size_t n)
{
    fputs("<ul class=\"legend\">\n", f);
    for (size_t i = 0; i < n; i++)
        fprintf(f, "<li><span class=\"%s\"></span>%s</li>\n", pairs[i][0], pairs[i][1]);
    fputs("</ul>\n", f);
}

/* ---- the figures that matter ------------------------------------------------------------------
 */

static void put_tile(FILE *f, const char *what, const char *id, double value, const char *shown)
{
    fprintf(f, "<div><dt>%s</dt><dd>", what);
    page_data(f, id, value, shown);
    fputs("</dd></div>\n", f);
}

static void put_summary(FILE *f, const struct page_run *run)
{
    const struct page_span *t = &run->total;
    const double wall_s = t->wall_s > 1e-9 ? t->wall_s : 1.0;
    char text[64];

    if (run->loop && run->steps.n == 0) {
        fputs("<p>No step was left to be done: the run was finished before.</p>\n", f);
        return;
    }
    fprintf(f,
            "<p>Computing waited for the disk %.0f %% of the time, the disk waited for computing "
            "%.0f %%.</p>\n<dl class=\"tiles\">\n",
            100.0 * t->stall_disk_s / wall_s, 100.0 * t->stall_space_s / wall_s);
    put_tile(f, run->loop ? "time of all steps" : "time of the forward", "wall_s", t->wall_s,
             page_seconds(text, t->wall_s));
    put_tile(f, "weights used", "bytes", t->bytes, page_size(text, t->bytes));
    snprintf(text, sizeof(text), "%.2f GB/s", t->bytes / wall_s / 1e9);
    put_tile(f, "weights a second", "gbps", t->bytes / wall_s / 1e9, text);
    snprintf(text, sizeof(text), "%.2f GB/s", run->disk_gbps);
    put_tile(f, "disk, while it read", "disk_gbps", run->disk_gbps, text);
    put_tile(f, "memory of the process", "peak_memory_bytes", run->peak_bytes,
             page_size(text, run->peak_bytes));
    put_tile(f, "set-up", "setup_s", run->setup_s, page_seconds(text, run->setup_s));
    if (run->copied_bytes > 0.0)
        put_tile(f, "copied to the device in the last pass", "copied_bytes", run->copied_bytes,
                 page_size(text, run->copied_bytes));
    fputs("</dl>\n", f);
}

/* ---- charts -------------------------------------------------------------------------------------
 */

static void put_lanes(FILE *f, const struct page *page)
{
    static const char *const all[][2] = {{"disk", "disk reading"},
                                         {"compute", "computing"},
                                         {"waits", "waiting for its neighbour"},
                                         {"empty", "neither"},
                                         {"link", "copying"}};
    const struct page_lanes *lanes = page->lanes;

    fputs("<h2>The stages over time</h2>\n", f);
    if (lanes->n == 0) {
        fputs("<p>The file has no figures over time: run with --per-block, or with --trace FILE "
              "and give that file too.</p>\n",
              f);
        return;
    }
    if (lanes->traced)
        fprintf(f,
                "<p class=\"quiet\">As recorded by --trace; each column is %.3g s. The disk waits "
                "for room in the ring, computing waits for the disk.</p>\n",
                lanes->end_s / (double) lanes->n);
    else
        fprintf(f,
                "<p class=\"quiet\">Each column is a %s. The disk waits for room in the ring, "
                "computing waits for the disk. A trace (--trace FILE in the run, and here) would "
                "show what happened within it, and copies to a device.</p>\n",
                page->run->loop ? "step" : "block");
    if (lanes->dropped > 0.0)
        fprintf(f, "<p>The trace was full: its last %.0f events are missing.</p>\n",
                lanes->dropped);
    page_legend(f, all, lanes->has_link ? 5 : 4);
    fputs("<figure>\n", f);
    page_chart_lanes(f, page);
    fputs("</figure>\n", f);
}

static void put_stalls(FILE *f, const struct page_run *run)
{
    static const char *const legend[][2] = {{"disk", "disk reading"},
                                            {"compute", "computing"},
                                            {"waits", "waiting for its neighbour"},
                                            {"empty", "neither"}};

    fputs("<h2>Who waited for whom</h2>\n", f);
    fprintf(f, "<p class=\"quiet\">Shares of %s.</p>\n",
            run->loop ? "the time of all steps" : "the time of the forward");
    page_legend(f, legend, 4);
    fputs("<figure class=\"flush\">\n", f);
    page_chart_stalls(f, run);
    fputs("</figure>\n", f);
}

static void put_cell(FILE *f, const char *id, size_t i, const char *key, double value, int digits)
{
    char name[64], shown[32];

    snprintf(name, sizeof(name), "%s-%zu-%s", id, i, key);
    snprintf(shown, sizeof(shown), "%.*f", digits, value);
    fputs("<td>", f);
    page_data(f, name, value, shown);
    fputs("</td>", f);
}

/* The figures behind the charts. */
static void put_spans(FILE *f, const struct page_spans *spans, const char *what)
{
    fprintf(f,
            "<details><summary>Figures of each %s</summary>\n<div class=\"scroll\"><table>\n"
            "<thead><tr><th scope=\"col\">%s</th><th scope=\"col\">begin, s</th>"
            "<th scope=\"col\">time, s</th><th scope=\"col\">computing, s</th>"
            "<th scope=\"col\">waiting for the disk, s</th>"
            "<th scope=\"col\">disk reading, s</th>"
            "<th scope=\"col\">disk waiting for room, s</th>"
            "<th scope=\"col\">weights used, MB</th><th scope=\"col\">read, MB</th></tr></thead>\n"
            "<tbody>\n",
            what, what);
    for (size_t i = 0; i < spans->n; i++) {
        const struct page_span *s = &spans->items[i];

        fprintf(f, "<tr><th scope=\"row\">%zu</th>", i + (what[0] == 's'));
        put_cell(f, what, i, "begin_s", s->begin_s, 3);
        put_cell(f, what, i, "wall_s", s->wall_s, 3);
        put_cell(f, what, i, "compute_s", s->compute_s, 3);
        put_cell(f, what, i, "stall_disk_s", s->stall_disk_s, 3);
        put_cell(f, what, i, "disk_busy_s", s->disk_busy_s, 3);
        put_cell(f, what, i, "stall_space_s", s->stall_space_s, 3);
        put_cell(f, what, i, "mb", s->bytes / 1e6, 1);
        put_cell(f, what, i, "disk_mb", s->disk_bytes / 1e6, 1);
        fputs("</tr>\n", f);
    }
    fputs("</tbody></table></div></details>\n", f);
}

static void put_rates(FILE *f, const struct page_spans *spans, const char *what, bool last_of_many)
{
    static const char *const legend[][2] = {{"compute", "weights used"},
                                            {"mark", "read from the disk meanwhile"}};

    if (spans->n == 0)
        return;
    fprintf(f, "<h2>GB/s of each %s</h2>\n", what);
    if (last_of_many)
        fputs("<p class=\"quiet\">In the last pass. Weights that stay in memory are not "
              "counted.</p>\n",
              f);
    page_legend(f, legend, 2);
    fputs("<figure>\n", f);
    page_chart_rates(f, spans, what);
    fputs("</figure>\n", f);
    put_spans(f, spans, what);
}

static void put_memory(FILE *f, const struct page_run *run)
{
    const double mods = run->mods_spilled ? 0.0 : run->mods_bytes;
    const double others =
        run->peak_bytes - run->ring_bytes - run->activation_bytes - run->resident_bytes - mods;
    const struct {
        const char *class, *what, *id;
        double bytes;
    } parts[] = {
        {"disk", "ring of weights in flight", "ring_bytes", run->ring_bytes},
        {"compute", "activations", "activation_bytes", run->activation_bytes},
        {"link", "weights that stay", "resident_bytes", run->resident_bytes},
        {"mods", "modulation of all steps", "mods_bytes", mods},
        {"other", "program, scratch, the rest", "other_bytes", others > 0.0 ? others : 0.0},
    };
    char text[32];

    fputs("<h2>Memory against its bounds</h2>\n<ul class=\"legend\">\n", f);
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        if (!(parts[i].bytes > 0.0))
            continue;
        fprintf(f, "<li><span class=\"%s\"></span>%s: ", parts[i].class, parts[i].what);
        page_data(f, parts[i].id, parts[i].bytes, page_size(text, parts[i].bytes));
        fputs("</li>\n", f);
    }
    fputs("</ul>\n", f);
    if (run->mods_spilled)
        fputs("<p class=\"quiet\">The modulation of all steps lay in a temporary file.</p>\n", f);
    if (run->ram_bytes == 0.0)
        fputs("<p class=\"quiet\">No bound was given; --ram sets one.</p>\n", f);
    fputs("<figure class=\"flush\">\n", f);
    page_chart_memory(f, run);
    fputs("</figure>\n", f);
}

/* ---- the page ---- */

void page_put(FILE *f, const struct page *page)
{
    const struct page_run *run = page->run;

    put_head(f, run);
    put_summary(f, run);
    if (!run->loop || run->steps.n > 0) {
        put_lanes(f, page);
        put_stalls(f, run);
        put_rates(f, &run->steps, "step", false);
        put_rates(f, &run->blocks, "block", true);
        put_memory(f, run);
        page_pairs(f, page);
    }
    page_facts(f, run);
    fputs("</body>\n</html>\n", f);
}
