/* SPDX-License-Identifier: Apache-2.0 */
/* bench_plot.c -- throughput against bytes in flight, as one SVG that is readable in light and
 * dark.
 */
#include <math.h>
#include <stdio.h>

#include "cli/bench.h"

enum { WIDTH = 720, HEIGHT = 420, LEFT = 64, RIGHT = 24, TOP = 56, BOTTOM = 64 };

struct axes {
    double x_min, x_max; /* log2 of MiB in flight */
    double y_max;        /* GB/s                  */
};

static double log_mib(const struct bench_setting *s)
{
    return log2((double) s->block_bytes * s->depth / (1 << 20));
}

static double x_of(const struct axes *a, double log_mib_value)
{
    return LEFT + (WIDTH - LEFT - RIGHT) * (log_mib_value - a->x_min) / (a->x_max - a->x_min);
}

static double y_of(const struct axes *a, double gbps)
{
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * gbps / a->y_max;
}

/* A round number of at least v: 1, 2 or 5 times a power of ten. */
static double round_up(double v)
{
    const double power = pow(10.0, floor(log10(v > 0.0 ? v : 1.0)));
    const double share = v / power;

    return power * (share <= 1.0 ? 1.0 : share <= 2.0 ? 2.0 : share <= 5.0 ? 5.0 : 10.0);
}

static struct axes find_axes(const struct bench_sweep *sweep)
{
    struct axes a = {INFINITY, -INFINITY, 0.0};

    for (uint32_t i = 0; i < sweep->n_settings; i++) {
        const struct bench_sample *s = &sweep->samples[i];

        a.x_min = fmin(a.x_min, log_mib(&s->setting));
        a.x_max = fmax(a.x_max, log_mib(&s->setting));
        for (uint32_t t = 0; t < sweep->n_turns; t++)
            a.y_max = fmax(a.y_max, fmax(s->ours[t], sweep->has_fio ? s->fio[t] : 0.0));
    }
    a.x_min -= 0.25;
    a.x_max += 0.25;
    a.y_max = round_up(a.y_max);
    return a;
}

static void draw_axes(FILE *f, const struct axes *a)
{
    for (int i = 0; i <= 5; i++) {
        const double v = a->y_max * i / 5, y = y_of(a, v);

        fprintf(f,
                "<line class=\"grid\" x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\"/>"
                "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.3g</text>\n",
                LEFT, y, WIDTH - RIGHT, y, LEFT - 8, y + 4, v);
    }
    for (double v = ceil(a->x_min); v <= a->x_max; v += 1.0)
        fprintf(f, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.4g</text>\n", x_of(a, v),
                HEIGHT - BOTTOM + 20, exp2(v));
    fprintf(f,
            "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">MiB in flight</text>\n"
            "<text x=\"%d\" y=\"%d\">GB/s</text>\n",
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 44, LEFT - 40, TOP - 12);
}

/* Every sample as a small mark, each setting's median as a large one. */
static void draw_samples(FILE *f, const struct axes *a, const struct bench_sweep *sweep, bool fio)
{
    const double shift = !sweep->has_fio ? 0.0 : fio ? 0.05 : -0.05;

    for (uint32_t i = 0; i < sweep->n_settings; i++) {
        const struct bench_sample *s = &sweep->samples[i];
        const double *values = fio ? s->fio : s->ours;
        const double x = x_of(a, log_mib(&s->setting) + shift);
        const double median = bench_median(values, sweep->n_turns);

        for (uint32_t t = 0; t < sweep->n_turns; t++)
            fprintf(f, "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"1.5\"/>\n",
                    fio ? "fio" : "ours", x, y_of(a, values[t]));
        fprintf(f,
                "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"4.5\"><title>%s %u KiB x %u: "
                "%.2f GB/s</title></circle>\n",
                fio ? "fio" : "ours", x, y_of(a, median), fio ? "fio" : "headrace",
                s->setting.block_bytes >> 10, s->setting.depth, median);
    }
}

static void draw(FILE *f, const void *user)
{
    const struct bench_sweep *sweep = user;
    const struct axes a = find_axes(sweep);

    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
            "font-family=\"sans-serif\" font-size=\"13\">\n"
            "<style>\n"
            "svg { --paper: #ffffff; --ink: #24292f; --line: #d8dee4; --ours: #0a69da; "
            "--fio: #bc4c00; }\n"
            "@media (prefers-color-scheme: dark) { svg { --paper: #0d1117; --ink: #e6edf3; "
            "--line: #30363d; --ours: #58a6ff; --fio: #f0883e; } }\n"
            "rect { fill: var(--paper); } text { fill: var(--ink); } "
            ".grid { stroke: var(--line); }\n"
            ".ours { fill: var(--ours); } .fio { fill: none; stroke: var(--fio); "
            "stroke-width: 1.5; }\n"
            "</style>\n<rect width=\"%d\" height=\"%d\"/>\n",
            WIDTH, HEIGHT, WIDTH, HEIGHT);
    fprintf(f,
            "<text x=\"24\" y=\"24\" font-size=\"15\">reading a model: throughput against bytes in "
            "flight</text>\n"
            "<circle class=\"ours\" cx=\"%d\" cy=\"40\" r=\"4.5\"/><text x=\"%d\" y=\"44\">"
            "headrace</text>\n",
            WIDTH - 180, WIDTH - 170);
    if (sweep->has_fio)
        fprintf(f,
                "<circle class=\"fio\" cx=\"%d\" cy=\"40\" r=\"4.5\"/><text x=\"%d\" y=\"44\">"
                "fio</text>\n",
                WIDTH - 80, WIDTH - 70);
    draw_axes(f, &a);
    draw_samples(f, &a, sweep, false);
    if (sweep->has_fio)
        draw_samples(f, &a, sweep, true);
    fputs("</svg>\n", f);
}

int bench_plot(const char *path, const struct bench_sweep *sweep, struct hr_error *err)
{
    return cli_write_whole(path, "the plot", draw, sweep, err);
}
