/* SPDX-License-Identifier: Apache-2.0 */
/* page_facts.c -- what was predicted next to what came of it, the settings, the machine. */
#include "cli/page.h"

/* ---- predicted and actual ---------------------------------------------------------------------
 */

enum { PAIRS_MAX = 9 };

struct pairs {
    struct page_pair items[PAIRS_MAX];
    size_t n;
};

static void add_pair(struct pairs *pairs, const char *id, const char *what, double predicted,
                     double actual, const char *(*text)(char buf[32], double value))
{
    struct page_pair *pair = &pairs->items[pairs->n++];

    *pair = (struct page_pair){.id = id, .what = what, .predicted = predicted, .actual = actual};
    text(pair->predicted_text, predicted);
    text(pair->actual_text, actual);
}

static const char *gbps_text(char buf[32], double gbps)
{
    snprintf(buf, 32, "%.2f GB/s", gbps);
    return buf;
}

/* Of all steps but the first. */
static struct page_span mean_of_later(const struct page_spans *steps)
{
    struct page_span mean = {0};

    for (size_t i = 1; i < steps->n; i++) {
        mean.wall_s += steps->items[i].wall_s / (double) (steps->n - 1);
        mean.bytes += steps->items[i].bytes / (double) (steps->n - 1);
    }
    return mean;
}

static void take_pairs(struct pairs *pairs, const struct page *page)
{
    const struct page_run *run = page->run;
    const struct page_plan *plan = page->plan;
    const struct page_span later = mean_of_later(&run->steps);

    add_pair(pairs, "weights", "weights of the whole run", run->predicted.run_bytes,
             run->used_bytes, page_size);
    if (run->steps.n > 1) {
        add_pair(pairs, "first", "weights of the first step", run->predicted.first_bytes,
                 run->steps.items[0].bytes, page_size);
        add_pair(pairs, "later", "weights of each later step", run->predicted.later_bytes,
                 later.bytes, page_size);
    }
    add_pair(pairs, "peak", "memory of the process (predicted: at most)", run->predicted.peak_bytes,
             run->peak_bytes, page_size);
    if (run->device_peak_bytes > 0.0)
        add_pair(pairs, "device", "memory of the GPU (predicted: at most; actual: its driver says)",
                 run->predicted.device_bytes, run->device_peak_bytes, page_size);
    if (!plan)
        return;
    add_pair(pairs, "time", "time of the whole run", plan->run_s, run->total.wall_s, page_seconds);
    if (run->steps.n > 1) {
        add_pair(pairs, "first-time", "time of the first step", plan->first_s,
                 run->steps.items[0].wall_s, page_seconds);
        add_pair(pairs, "later-time", "time of each later step", plan->later_s, later.wall_s,
                 page_seconds);
    }
    add_pair(pairs, "rate", "disk, while it read", plan->disk_gbps, run->disk_gbps, gbps_text);
}

void page_pairs(FILE *f, const struct page *page)
{
    static const char *const legend[][2] = {{"before", "predicted"}, {"after", "actual"}};
    struct pairs pairs = {.n = 0};
    char id[64];

    take_pairs(&pairs, page);
    fputs("<h2>Predicted and actual</h2>\n", f);
    if (!page->plan)
        fputs(
            "<p class=\"quiet\">Bytes, as the run itself predicted them. Seconds are predicted by "
            "headrace plan: give what it prints with --json as --plan FILE.</p>\n",
            f);
    page_legend(f, legend, 2);
    fputs("<figure class=\"flush\">\n", f);
    page_chart_pairs(f, pairs.items, pairs.n);
    fputs("</figure>\n<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">quantity</th>"
          "<th scope=\"col\">predicted</th><th scope=\"col\">actual</th>"
          "<th scope=\"col\">actual / predicted</th></tr></thead>\n<tbody>\n",
          f);
    for (size_t i = 0; i < pairs.n; i++) {
        const struct page_pair *p = &pairs.items[i];

        fprintf(f, "<tr><th scope=\"row\">%s</th><td>", p->what);
        snprintf(id, sizeof(id), "%s-predicted", p->id);
        page_data(f, id, p->predicted, p->predicted_text);
        fputs("</td><td>", f);
        snprintf(id, sizeof(id), "%s-actual", p->id);
        page_data(f, id, p->actual, p->actual_text);
        if (p->predicted > 0.0)
            fprintf(f, "</td><td>%.3f</td></tr>\n", p->actual / p->predicted);
        else
            fputs("</td><td>-</td></tr>\n", f);
    }
    fputs("</tbody></table></div>\n", f);
}

/* ---- settings and machine -----------------------------------------------------------------------
 */

enum fact_kind { TEXT, NUMBER, SIZE, FLAG };

struct fact {
    const char *what, *key;
    enum fact_kind kind;
};

static const struct fact settings_facts[] = {
    {"finished", "finished", TEXT},
    {"headrace", "version", TEXT},
    {"pictures", "pictures", NUMBER},
    {"width, pixels", "width", NUMBER},
    {"height, pixels", "height", NUMBER},
    {"images of each, references included", "images", NUMBER},
    {"text tokens", "text_tokens", NUMBER},
    {"timestep", "timestep", NUMBER},
    {"guidance scale", "cfg_scale", NUMBER},
    {"products in", "precision", TEXT},
    {"activation of the MLPs", "activation", TEXT},
    {"attention on a GPU", "attention", TEXT},
    {"weights that stay, dtype", "onload_dtype", TEXT},
    {"bound on memory (--ram)", "ram_bytes", SIZE},
    {"bound on the GPU's memory (--vram)", "vram_bytes", SIZE},
    {"table of states", "states", TEXT},
    {"manifest", "manifest", TEXT},
};

static const struct fact run_facts[] = {
    {"steps of the loop", "n_steps", NUMBER},
    {"device", "device", TEXT},
    {"reading by", "backend", TEXT},
    {"O_DIRECT", "direct", FLAG},
    {"size of a read", "block_bytes", SIZE},
    {"reads in flight, at most", "iodepth", NUMBER},
    {"reads in flight, on average", "in_flight", NUMBER},
    {"block size and depth as tuned", "tuned", FLAG},
    {"latency of a read, median, ms", "latency_p50_ms", NUMBER},
    {"latency of a read, 99 %, ms", "latency_p99_ms", NUMBER},
    {"read from the disk in all", "bytes_read", SIZE},
    {"files", "files", NUMBER},
    {"disks", "disks", NUMBER},
    {"weights compared with the manifest", "verified_bytes", SIZE},
    {"LoRAs", "lora_mode", TEXT},
    {"output", "output", TEXT},
};

static const struct fact machine_facts[] = {
    {"processor", "cpu", TEXT},
    {"CPUs that the run could use", "cpus", NUMBER},
    {"memory", "memory_bytes", SIZE},
    {"system", "system", TEXT},
};

/* What the JSON does not say, and sizes of nothing, are left out. */
static void put_fact(FILE *f, const struct fact *fact, const json_t *value)
{
    const double v = json_number_value(value);
    char shown[32];

    if (!value || json_is_null(value))
        return;
    if (fact->kind == TEXT   ? !json_is_string(value)
        : fact->kind == FLAG ? !json_is_boolean(value)
                             : !json_is_number(value))
        return;
    if (fact->kind == SIZE && !(v > 0.0 && v < 9e18))
        return;
    fprintf(f, "<tr><th scope=\"row\">%s</th><td><bdi>", fact->what);
    switch (fact->kind) {
    case TEXT:
        page_text(f, json_string_value(value));
        break;
    case NUMBER:
        fprintf(f, json_is_integer(value) ? "%.0f" : "%.4g", v);
        break;
    case SIZE:
        page_data(f, fact->key, v, page_size(shown, v));
        break;
    case FLAG:
        fputs(json_is_true(value) ? "yes" : "no", f);
        break;
    }
    fputs("</bdi></td></tr>\n", f);
}

static void put_facts(FILE *f, const json_t *obj, const struct fact *facts, size_t n)
{
    for (size_t i = 0; i < n; i++)
        put_fact(f, &facts[i], json_object_get(obj, facts[i].key));
}

void page_facts(FILE *f, const struct page_run *run)
{
    fputs("<h2>Settings</h2>\n<table class=\"facts\"><tbody>\n", f);
    put_facts(f, json_object_get(run->root, "settings"), settings_facts,
              sizeof(settings_facts) / sizeof(settings_facts[0]));
    put_facts(f, run->root, run_facts, sizeof(run_facts) / sizeof(run_facts[0]));
    fputs("</tbody></table>\n<h2>Machine</h2>\n<table class=\"facts\"><tbody>\n", f);
    put_facts(f, json_object_get(run->root, "machine"), machine_facts,
              sizeof(machine_facts) / sizeof(machine_facts[0]));
    fputs("</tbody></table>\n", f);
}
