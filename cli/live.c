/* SPDX-License-Identifier: Apache-2.0 */
/* live.c -- what the stages of a run are doing, on a terminal: a line with the time left and one
 * for each stage, redrawn in place.
 *
 * Shares and rates are those of the last second, or since the last block where that takes longer.
 * Lines are cut to the terminal's width, since one that wraps could not be redrawn. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cli/cli.h"

enum {
    COLUMNS_DEFAULT = 80,
    COLUMNS_MAX = 120,
    BAR_MAX = 24,
    LINES_MAX = 4,
    REDRAW_NS = 100000000,  /* at most ten times a second */
    WINDOW_NS = 1000000000, /* of the rates               */
};

enum { DISK_COLOUR = 34, LINK_COLOUR = 35, COMPUTE_COLOUR = 32 };

struct screen {
    unsigned columns, rows; /* rows 0: not known */
    bool colours;
};

static struct screen find_screen(void)
{
    const char *no_colour = getenv("NO_COLOR"), *columns = getenv("COLUMNS");
    struct screen screen = {.columns = COLUMNS_DEFAULT, .colours = !no_colour || !no_colour[0]};
    struct winsize size;

    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
        screen.columns = size.ws_col;
        screen.rows = size.ws_row;
    }
    if (columns && columns[0]) {
        const unsigned long wanted = strtoul(columns, NULL, 10);

        if (wanted > 0 && wanted < screen.columns)
            screen.columns = (unsigned) wanted;
    }
    if (screen.columns > COLUMNS_MAX)
        screen.columns = COLUMNS_MAX;
    /* Room for the ^C that a terminal echoes behind the last line. */
    screen.columns = screen.columns > 3 ? screen.columns - 3 : 1;
    return screen;
}

/* A line in the making: `used` columns of text, escape sequences not counted. */
struct line {
    char text[4 * COLUMNS_MAX];
    size_t bytes;
    unsigned used, columns;
};

static void put(struct line *line, const char *text)
{
    for (; *text && line->used < line->columns; text++, line->used++)
        line->text[line->bytes++] = *text;
    line->text[line->bytes] = '\0';
}

static void put_colour(struct line *line, const struct screen *screen, int colour)
{
    if (screen->colours)
        line->bytes += (size_t) snprintf(line->text + line->bytes, sizeof(line->text) - line->bytes,
                                         "\033[%dm", colour);
}

/* "disk      63 %  ############.......  2.41 GB/s  waits 12 %"; what does not fit is left out from
 * the right, the bar becomes shorter first. */
struct stage {
    const char *name;
    int colour;
    double share; /* of the time, 0 to 1; negative: not known */
    double gbps;  /* negative: none                           */
    const char *waits_for;
    double waiting; /* of the time */
};

static double clamped(double share)
{
    return share > 1.0 ? 1.0 : share;
}

static void put_stage(struct line *line, const struct screen *screen, const struct stage *stage)
{
    char head[32], rate[32] = "", waits[48] = "";
    unsigned bar, full;

    if (stage->share >= 0.0)
        snprintf(head, sizeof(head), "%-7s %3.0f %%", stage->name, 100.0 * clamped(stage->share));
    else
        snprintf(head, sizeof(head), "%-7s      ", stage->name);
    if (stage->gbps >= 0.0)
        snprintf(rate, sizeof(rate), "  %.2f GB/s", stage->gbps);
    if (stage->waits_for)
        snprintf(waits, sizeof(waits), "  %.0f %% waiting for %s", 100.0 * clamped(stage->waiting),
                 stage->waits_for);
    const size_t others = strlen(head) + strlen(rate) + strlen(waits) + 2;

    bar = others < line->columns ? (unsigned) (line->columns - others) : 0;
    bar = bar > BAR_MAX ? BAR_MAX : bar;
    put(line, head);
    if (bar >= 8 && stage->share >= 0.0) {
        full = (unsigned) (clamped(stage->share) * bar + 0.5);
        put(line, "  ");
        put_colour(line, screen, stage->colour);
        for (unsigned i = 0; i < bar; i++) {
            if (i == full)
                put_colour(line, screen, 0);
            put(line, i < full ? "#" : ".");
        }
        put_colour(line, screen, 0);
    }
    if (line->used + strlen(rate) <= line->columns)
        put(line, rate);
    if (line->used + strlen(waits) <= line->columns)
        put(line, waits);
}

/* The longest form that fits. */
static void put_time_left(struct line *line, const struct cli_progress *progress,
                          const struct hr_dit_progress *p)
{
    const uint32_t n = progress->n - p->n_forwards + p->forward_idx + 1;
    char elapsed[32], eta[32], step[64] = "", block[64], text[3][256];

    cli_duration(elapsed, p->run_elapsed_ns);
    cli_duration(eta, p->eta_ns);
    if (progress->n > 1)
        snprintf(step, sizeof(step), "%s %u of %u, ", progress->what, n, progress->n);
    if (p->block_idx == 0)
        snprintf(block, sizeof(block), "modulation of all steps");
    else
        snprintf(block, sizeof(block), "block %u of %u", p->block_idx, p->n_blocks);
    snprintf(text[0], sizeof(text[0]), "%s%s  %.2f GB/s  %s, about %s to go", step, block,
             cli_gbps(p->run_bytes_used, p->run_elapsed_ns), elapsed, eta);
    snprintf(text[1], sizeof(text[1]), "%s%u/%u  %s to go", step, p->block_idx, p->n_blocks, eta);
    snprintf(text[2], sizeof(text[2]), "%s to go", eta);
    for (size_t i = 0; i < 3; i++)
        if (strlen(text[i]) <= line->columns) {
            put(line, text[i]);
            return;
        }
    put(line, text[2]);
}

/* What has been counted since `from`. */
static struct hr_dit_progress since(const struct hr_dit_progress *p,
                                    const struct hr_dit_progress *from)
{
    struct hr_dit_progress d = *p;

    d.run_elapsed_ns -= from->run_elapsed_ns;
    d.run_bytes_used -= from->run_bytes_used;
    d.disk_bytes -= from->disk_bytes;
    d.disk_busy_ns -= from->disk_busy_ns;
    d.stall_space_ns -= from->stall_space_ns;
    d.stall_disk_ns -= from->stall_disk_ns;
    d.compute_ns -= from->compute_ns;
    d.copied_bytes -= from->copied_bytes;
    return d;
}

static void draw(struct cli_progress *progress, const struct hr_dit_progress *p)
{
    const struct screen screen = find_screen();
    const struct hr_dit_progress d = since(p, &progress->window);
    const double ns = (double) (d.run_elapsed_ns ? d.run_elapsed_ns : 1);
    const struct stage stages[] = {
        {"disk", DISK_COLOUR, (double) d.disk_busy_ns / ns,
         cli_gbps(d.disk_bytes, d.run_elapsed_ns), "room", (double) d.stall_space_ns / ns},
        {"link", LINK_COLOUR, -1.0, cli_gbps(d.copied_bytes, d.run_elapsed_ns), NULL, 0.0},
        {"compute", COMPUTE_COLOUR, (double) d.compute_ns / ns, -1.0, "the disk",
         (double) d.stall_disk_ns / ns},
    };
    struct line lines[LINES_MAX];
    const char *texts[LINES_MAX];
    unsigned n = 1;

    for (unsigned i = 0; i < LINES_MAX; i++) {
        lines[i] = (struct line){.columns = screen.columns};
        texts[i] = lines[i].text;
    }
    put_time_left(&lines[0], progress, p);
    for (size_t i = 0; i < sizeof(stages) / sizeof(stages[0]); i++)
        if (i != 1 || p->copied_bytes > 0)
            put_stage(&lines[n++], &screen, &stages[i]);
    cli_progress_lines(texts, screen.rows == 0 || screen.rows > n ? n : 1);
}

void cli_progress_block(void *user, const struct hr_dit_progress *p)
{
    struct cli_progress *progress = user;

    if (p->forward_idx + 1 == p->n_forwards && p->block_idx == p->n_blocks) {
        cli_progress_clear();
        return;
    }
    if (progress->drawn_ns && p->run_elapsed_ns - progress->drawn_ns < REDRAW_NS)
        return;
    progress->drawn_ns = p->run_elapsed_ns;
    draw(progress, p);
    if (p->run_elapsed_ns - progress->next.run_elapsed_ns >= WINDOW_NS / 2) {
        progress->window = progress->next;
        progress->next = *p;
    }
}
