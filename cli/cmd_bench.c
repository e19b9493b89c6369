/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_bench.c -- what the disk gives to this model, next to fio on the same files in the same run.
 *
 * First a sweep finds the best setting of each. Then come quads, ours(a) fio(b) fio(a) ours(b), of
 * two windows a and b: both read both, each reads one of them first, and a steady drift of the disk
 * cancels out. Between them come quads of fio alone, in the same pattern: how far from 1 their
 * ratios lie is what this disk's noise does to any comparison.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench.h"

enum { QUADS_FOR_A_CLAIM = 12, QUADS_MAX = 1000, SWEEP_TURNS = 3 };
/* Of 2 MiB: our ring takes what it can of reserved pages too, and fio the deepest of its settings.
 */
enum { HUGE_PAGES_FOR_FIO = 256 };

static const double SWEEP_WINDOW_S = 0.25;
static const double WINDOW_MIN_S = 0.05, WINDOW_MAX_S = 0.4;
static const double FIO_START_S = 0.25; /* which its own clock leaves out                       */
static const double TIME_MAX_S = 100.0; /* of a run that was not told how many quads to make */
static const double GOAL = 0.97;        /* of fio's rate                                    */
static const double NULL_MAX = 0.05;    /* half of the null test's interval                 */

struct bench {
    const struct cli_options *o;
    struct hr_checkpoint *model;
    struct bench_windows windows;
    struct bench_gates gates;
    struct bench_sweep sweep;
    struct bench_setting ours, fio;
    const char *ours_why;
    char fio_version[64];
    bool has_fio;
    struct hr_stream *stream;
    struct hr_stream_stats stats; /* of the quads */
    uint64_t window_bytes;
    double ours_gbps[2 * QUADS_MAX], fio_gbps[2 * QUADS_MAX];
    double ratios[QUADS_MAX], nulls[QUADS_MAX];
    double fio_p50[2 * QUADS_MAX], fio_p99[2 * QUADS_MAX], fio_p999[2 * QUADS_MAX];
    double fio_cpu_s, fio_gb;
    bool fio_huge; /* all its legs had huge pages */
    uint32_t n_quads, n_wanted;
    double begin_s, seconds;
};

/* ---- measuring ---------------------------------------------------------------------------- */

static void progress(const struct bench *b, const char *what, uint32_t n, uint32_t of)
{
    if (!cli_progress_wanted(b->o))
        return;
    cli_progress_note("%s %u of %u  %.0f s", what, n, of, cli_now_s() - b->begin_s);
}

static int sweep(struct bench *b, struct hr_error *err)
{
    const struct bench_setting widest = {4 << 20, BENCH_DEPTH_MAX};
    struct hr_stream *stream = NULL;
    uint64_t bytes;
    int r = bench_open_stream(&stream, b->o, b->model, widest, err);

    if (r < 0)
        return r;
    cli_interrupt_target(bench_interrupt, stream);
    bench_sweep_settings(&b->sweep, b->o->sweep);
    b->sweep.has_fio = b->has_fio;
    r = hr_stream_set_blocks(stream, 4 << 20, 16, err);
    if (r == 0)
        r = bench_window_bytes(&bytes, SWEEP_WINDOW_S, stream, &b->windows, err);
    for (uint32_t i = 0; i < SWEEP_TURNS && r == 0; i++) {
        progress(b, "sweep: turn", i + 1, SWEEP_TURNS);
        r = bench_sweep_turn(&b->sweep, stream, &b->windows, bytes, &b->gates, err);
    }
    cli_interrupt_target(NULL, NULL);
    hr_stream_close(&stream);
    return r;
}

/* Ours: as the user says, else as saved for this disk, else the sweep's best. */
static void choose_settings(struct bench *b)
{
    struct hr_tuning tuning;

    if (b->o->block_bytes || b->o->depth) {
        b->ours = (struct bench_setting){
            b->o->block_bytes ? (uint32_t) b->o->block_bytes : HR_BLOCK_BYTES_DEFAULT,
            b->o->depth ? (uint32_t) b->o->depth : HR_DEPTH_DEFAULT,
        };
        b->ours_why = "as given";
    } else if (hr_tuning_load(b->model, &tuning, NULL, NULL) == 1) {
        b->ours = (struct bench_setting){tuning.block_bytes, tuning.depth};
        b->ours_why = "as saved by tune";
    } else {
        b->ours = b->sweep.samples[bench_sweep_best(&b->sweep, false)].setting;
        b->ours_why = "best of the sweep";
    }
    if (b->has_fio)
        b->fio = b->sweep.samples[bench_sweep_best(&b->sweep, true)].setting;
}

static int leg(struct bench *b, bool fio, const struct bench_window *window,
               struct bench_leg *ret_leg, struct hr_error *err)
{
    if (cli_interrupted)
        return cli_error(err, -ECANCELED, "interrupted");
    if (fio)
        return bench_leg_fio(ret_leg, &b->fio, &b->windows, window, &b->gates, err);
    return bench_leg_ours(ret_leg, b->stream, &b->windows, window, &b->gates, err);
}

/* x(a) fio(b) fio(a) x(b), x being fio for the null test. legs[0..1] are x's, [2..3] fio's. */
static int quad(struct bench *b, bool null_test, const struct bench_window w[2],
                struct bench_leg legs[4], struct hr_error *err)
{
    int r = leg(b, null_test, &w[0], &legs[0], err);

    if (r == 0 && b->has_fio)
        r = leg(b, true, &w[1], &legs[2], err);
    if (r == 0 && b->has_fio)
        r = leg(b, true, &w[0], &legs[3], err);
    return r < 0 ? r : leg(b, null_test, &w[1], &legs[1], err);
}

static double ratio_of(const struct bench_leg legs[4])
{
    const double x = (double) (legs[0].bytes + legs[1].bytes) / (double) (legs[0].ns + legs[1].ns);
    const double f = (double) (legs[2].bytes + legs[3].bytes) / (double) (legs[2].ns + legs[3].ns);

    return x / f;
}

static void keep_fio(struct bench *b, const struct bench_leg *leg, uint32_t at)
{
    b->fio_gbps[at] = bench_rate(leg);
    b->fio_p50[at] = leg->latency_p50_ns;
    b->fio_p99[at] = leg->latency_p99_ns;
    b->fio_p999[at] = leg->latency_p999_ns;
    b->fio_huge = leg->huge_pages && (at == 0 || b->fio_huge);
    b->fio_cpu_s += leg->cpu_s;
    b->fio_gb += (double) leg->bytes / 1e9;
}

static int pair_of_quads(struct bench *b, struct hr_error *err)
{
    const uint32_t n = b->n_quads;
    struct bench_window w[2];
    struct bench_leg legs[4];
    int r = 0;

    if (b->has_fio) {
        for (int i = 0; i < 2; i++)
            w[i] = bench_window_pick(&b->windows, b->window_bytes);
        r = quad(b, true, w, legs, err);
        b->nulls[n] = r == 0 ? ratio_of(legs) : 0.0;
    }
    for (int i = 0; i < 2 && r == 0; i++) {
        w[i] = bench_window_pick(&b->windows, b->window_bytes);
        r = bench_gates_look(&b->gates, &b->windows, &w[i], false, err);
    }
    if (r == 0)
        r = quad(b, false, w, legs, err);
    for (int i = 0; i < 2 && r == 0; i++) {
        r = bench_gates_look(&b->gates, &b->windows, &w[i], true, err);
        b->ours_gbps[2 * n + i] = bench_rate(&legs[i]);
        if (b->has_fio)
            keep_fio(b, &legs[2 + i], 2 * n + i);
    }
    if (r < 0)
        return r;
    if (b->has_fio)
        b->ratios[n] = ratio_of(legs);
    b->n_quads++;
    return 0;
}

/* Bytes of a leg that leave time for all quads of a run of TIME_MAX_S, at the rates of the sweep:
 * of the eight legs of a pair of quads, six are fio's, which mostly is the slower one. */
static uint64_t bytes_in_time(const struct bench *b)
{
    const double ours = bench_sweep_rate(&b->sweep, false), fio = bench_sweep_rate(&b->sweep, true);
    const double left_s = 0.9 * TIME_MAX_S - (cli_now_s() - b->begin_s);
    const double pair_s = left_s / CLI_QUADS_DEFAULT - 6.0 * FIO_START_S;

    return pair_s > 0.0 ? (uint64_t) (1e9 * pair_s / (2.0 / ours + 6.0 / fio)) : 0;
}

static int choose_window(struct bench *b, struct hr_error *err)
{
    const int r = bench_window_bytes(&b->window_bytes, WINDOW_MAX_S, b->stream, &b->windows, err);

    if (r < 0 || b->o->n_quads > 0 || !b->has_fio)
        return r;
    const uint64_t min_bytes = (uint64_t) ((double) b->window_bytes * WINDOW_MIN_S / WINDOW_MAX_S);
    const uint64_t bytes = bytes_in_time(b);

    if (bytes < b->window_bytes)
        b->window_bytes = bytes > min_bytes ? bytes : min_bytes;
    return 0;
}

static int measure(struct bench *b, struct hr_error *err)
{
    const bool limited = b->o->n_quads == 0;
    double last_s = 0.0; /* what the last pair of quads took */
    int r = bench_open_stream(&b->stream, b->o, b->model, b->ours, err);

    if (r < 0)
        return r;
    cli_interrupt_target(bench_interrupt, b->stream);
    r = choose_window(b, err);
    while (r == 0 && b->n_quads < b->n_wanted) {
        const double begin_s = cli_now_s();

        if (limited && b->n_quads > 0 && begin_s - b->begin_s + last_s > TIME_MAX_S)
            break;
        progress(b, "quad", b->n_quads + 1, b->n_wanted);
        r = pair_of_quads(b, err);
        last_s = cli_now_s() - begin_s;
    }
    if (r == 0)
        hr_stream_get_stats(b->stream, &b->stats);
    cli_interrupt_target(NULL, NULL);
    return r;
}

/* ---- what may be said --------------------------------------------------------------------- */

/* @return a word for machines, and in `why` a sentence */
static const char *verdict(const struct bench *b, const struct bench_interval *ratio,
                           const struct bench_interval *null_test, char *why, size_t why_bytes)
{
    if (bench_gates_refuse(&b->gates, why, why_bytes))
        return "refused";
    if (!b->has_fio) {
        snprintf(why, why_bytes, "fio is not installed, there is nothing to compare with");
        return "no comparison";
    }
    if (b->n_quads < QUADS_FOR_A_CLAIM) {
        snprintf(why, why_bytes, "%u quads; a claim needs %d", b->n_quads, QUADS_FOR_A_CLAIM);
        return "inconclusive: too few quads";
    }
    if (null_test->low < 1.0 - NULL_MAX || null_test->high > 1.0 + NULL_MAX) {
        snprintf(why, why_bytes, "fio differs from itself by %.3f to %.3f", null_test->low,
                 null_test->high);
        return "inconclusive: noise";
    }
    snprintf(why, why_bytes, "the median is %s %.2f", ratio->median >= GOAL ? "at least" : "below",
             GOAL);
    return ratio->median >= GOAL ? "reached" : "missed";
}

static json_t *sweep_json(const struct bench_sweep *s)
{
    json_t *settings = json_array();

    for (uint32_t i = 0; i < s->n_settings; i++) {
        json_t *ours = json_array(), *fio = json_array();

        for (uint32_t t = 0; t < s->n_turns; t++) {
            json_array_append_new(ours, json_real(s->samples[i].ours[t]));
            if (s->has_fio)
                json_array_append_new(fio, json_real(s->samples[i].fio[t]));
        }
        json_array_append_new(settings,
                              json_pack("{s:I, s:I, s:o, s:o}", "block_bytes",
                                        (json_int_t) s->samples[i].setting.block_bytes, "iodepth",
                                        (json_int_t) s->samples[i].setting.depth, "gbps", ours,
                                        "fio_gbps", fio));
    }
    return settings;
}

static void set_interval(json_t *obj, const char *name, const struct bench_interval *v, bool known)
{
    char key[48];

    json_object_set_new(obj, name, known ? json_real(v->median) : json_null());
    snprintf(key, sizeof(key), "%s_low", name);
    json_object_set_new(obj, key, known ? json_real(v->low) : json_null());
    snprintf(key, sizeof(key), "%s_high", name);
    json_object_set_new(obj, key, known ? json_real(v->high) : json_null());
}

static void set_fio(json_t *obj, const struct bench *b)
{
    const uint32_t n = 2 * b->n_quads;
    json_t *fio = json_pack(
        "{s:s, s:I, s:I, s:b, s:f, s:f, s:f, s:f}", "version", b->fio_version, "block_bytes",
        (json_int_t) b->fio.block_bytes, "iodepth", (json_int_t) b->fio.depth, "huge_pages",
        (int) b->fio_huge, "cpu_s_per_gb", b->fio_gb > 0.0 ? b->fio_cpu_s / b->fio_gb : 0.0,
        "latency_p50_ms", bench_median(b->fio_p50, n) / 1e6, "latency_p99_ms",
        bench_median(b->fio_p99, n) / 1e6, "latency_p999_ms", bench_median(b->fio_p999, n) / 1e6);

    json_object_set_new(obj, "fio", fio);
}

struct result {
    struct bench_interval gbps, fio_gbps, ratio, null_test;
    const char *verdict;
    char why[256];
};

static int print_json(const struct bench *b, const struct result *r)
{
    json_t *obj = json_pack("{s:s, s:s, s:s, s:I, s:I, s:s, s:f}", "verb", "bench", "verdict",
                            r->verdict, "why", r->why, "quads", (json_int_t) b->n_quads,
                            "window_bytes", (json_int_t) b->window_bytes, "order",
                            b->windows.in_pass ? "pass" : "file", "seconds", b->seconds);

    set_interval(obj, "gbps", &r->gbps, true);
    set_interval(obj, "fio_gbps", &r->fio_gbps, b->has_fio);
    set_interval(obj, "ratio", &r->ratio, b->has_fio);
    set_interval(obj, "null", &r->null_test, b->has_fio);
    cli_stream_json(obj, &b->stats);
    json_object_set_new(obj, "setting", json_string(b->ours_why));
    if (b->has_fio)
        set_fio(obj, b);
    json_object_set_new(obj, "sweep", sweep_json(&b->sweep));
    return cli_print_json(obj);
}

static void print_sweep(const struct bench_sweep *s)
{
    printf("\nGB/s of %u turns, the median first%s\n", s->n_turns,
           s->has_fio ? "; left ours, right fio's" : "");
    for (uint32_t i = 0; i < s->n_settings; i++) {
        const struct bench_sample *sample = &s->samples[i];

        printf("%6u KiB x %-3u ", sample->setting.block_bytes >> 10, sample->setting.depth);
        for (int fio = 0; fio <= s->has_fio; fio++) {
            const double *values = fio ? sample->fio : sample->ours;

            printf("   %.2f  (", bench_median(values, s->n_turns));
            for (uint32_t t = 0; t < s->n_turns; t++)
                printf("%s%.2f", t ? " " : "", values[t]);
            putchar(')');
        }
        putchar('\n');
    }
}

/* One row: ours, and fio's where there is such a figure. */
static void row(const struct bench *b, const char *name, const char *ours, const char *fio)
{
    if (b->has_fio)
        printf("%-16s %-26s %s\n", name, ours, fio ? fio : "-");
    else
        printf("%-16s %s\n", name, ours);
}

static void number_row(const struct bench *b, const char *name, int decimals, double ours,
                       double fio)
{
    char left[32], right[32];

    snprintf(left, sizeof(left), "%.*f", decimals, ours);
    snprintf(right, sizeof(right), "%.*f", decimals, fio);
    row(b, name, left, right);
}

static void print_table(const struct bench *b, const struct result *r)
{
    const struct hr_stream_stats *s = &b->stats;
    const uint32_t n = 2 * b->n_quads;
    const double gb = (double) s->bytes_read / 1e9;
    char left[64], right[64], size[32];

    row(b, "", "headrace", b->fio_version);
    snprintf(left, sizeof(left), "%u KiB x %u", b->ours.block_bytes >> 10, b->ours.depth);
    snprintf(right, sizeof(right), "%u KiB x %u", b->fio.block_bytes >> 10, b->fio.depth);
    row(b, "setting", left, right);
    snprintf(left, sizeof(left), "%.2f (%.2f to %.2f)", r->gbps.median, r->gbps.low, r->gbps.high);
    snprintf(right, sizeof(right), "%.2f (%.2f to %.2f)", r->fio_gbps.median, r->fio_gbps.low,
             r->fio_gbps.high);
    row(b, "GB/s", left, right);
    number_row(b, "p50 ms", 2, (double) s->latency_p50_ns / 1e6,
               b->has_fio ? bench_median(b->fio_p50, n) / 1e6 : 0.0);
    number_row(b, "p99 ms", 2, (double) s->latency_p99_ns / 1e6,
               b->has_fio ? bench_median(b->fio_p99, n) / 1e6 : 0.0);
    number_row(b, "p99.9 ms", 2, (double) s->latency_p999_ns / 1e6,
               b->has_fio ? bench_median(b->fio_p999, n) / 1e6 : 0.0);
    number_row(b, "CPU s per GB", 4, gb > 0.0 ? (double) s->cpu_ns / 1e9 / gb : 0.0,
               b->fio_gb > 0.0 ? b->fio_cpu_s / b->fio_gb : 0.0);
    snprintf(left, sizeof(left), "%.1f of %u", s->in_flight, s->depth);
    row(b, "in flight", left, NULL);
    row(b, "bounced", cli_size(size, s->bounced_bytes), NULL);
    snprintf(left, sizeof(left), "%llu, %llu", (unsigned long long) s->short_reads,
             (unsigned long long) s->retries);
    row(b, "short, retried", left, NULL);
    snprintf(left, sizeof(left), "%s, %s", s->io_name, s->direct ? "direct" : "buffered");
    row(b, "backend", left, b->has_fio ? "io_uring, direct" : NULL);
    snprintf(left, sizeof(left), "%llu of %llu MiB", (unsigned long long) s->pinned_bytes >> 20,
             (unsigned long long) s->ring_bytes >> 20);
    row(b, "pinned", left, NULL);
    snprintf(left, sizeof(left), "%llu MiB", (unsigned long long) s->huge_bytes >> 20);
    row(b, "huge pages", left, !b->has_fio ? NULL : b->fio_huge ? "all, reserved" : "none");
}

static void print_text(const struct bench *b, const struct result *r)
{
    char size[32];
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < hr_checkpoint_n_shards(b->model); i++)
        bytes += hr_checkpoint_shard(b->model, i)->size_bytes;
    printf("bench     %s in %u file%s; %u quads of windows of %llu MiB in the order of the %s, "
           "%.0f s\n",
           cli_size(size, bytes), hr_checkpoint_n_shards(b->model),
           hr_checkpoint_n_shards(b->model) > 1 ? "s" : "", b->n_quads,
           (unsigned long long) b->window_bytes >> 20, b->windows.in_pass ? "pass" : "file",
           b->seconds);
    printf("setting   ours %s%s\n\n", b->ours_why, b->has_fio ? ", fio's best of the sweep" : "");
    print_table(b, r);
    putchar('\n');
    if (b->has_fio && strcmp(r->verdict, "refused") != 0)
        printf("ratio     %.3f (%.3f to %.3f); fio against itself %.3f (%.3f to %.3f)\n",
               r->ratio.median, r->ratio.low, r->ratio.high, r->null_test.median, r->null_test.low,
               r->null_test.high);
    printf("verdict   %s: %s\n", r->verdict, r->why);
    if (b->has_fio && b->stats.huge_bytes > 0 && !b->fio_huge)
        printf("pages     ours are huge, fio's are not; as root, sysctl vm.nr_hugepages=%u "
               "reserves some "
               "for it\n",
               HUGE_PAGES_FOR_FIO);
    if (b->o->sweep)
        print_sweep(&b->sweep);
}

static struct result judge(const struct bench *b)
{
    struct result r = {.gbps = bench_bootstrap(b->ours_gbps, 2 * b->n_quads)};

    if (b->has_fio) {
        r.fio_gbps = bench_bootstrap(b->fio_gbps, 2 * b->n_quads);
        r.ratio = bench_bootstrap(b->ratios, b->n_quads);
        r.null_test = bench_bootstrap(b->nulls, b->n_quads);
    }
    r.verdict = verdict(b, &r.ratio, &r.null_test, r.why, sizeof(r.why));
    return r;
}

static int run_all(struct bench *b, struct hr_error *err)
{
    const bool chosen = b->o->block_bytes || b->o->depth;
    int r = cli_open_model(&b->model, b->o, err);

    if (r == 0)
        r = cli_check_output(b->o, b->model, err);
    if (r == 0)
        r = bench_windows_init(&b->windows, b->model, b->o->bench_order != 0, b->o->n_layers, err);
    if (r == 0)
        r = bench_fio_version(b->fio_version, sizeof(b->fio_version), &b->has_fio, err);
    if (r == 0 && (b->has_fio || !chosen || b->o->sweep || b->o->plot))
        r = sweep(b, err);
    if (r < 0)
        return r;
    choose_settings(b);
    r = measure(b, err);
    b->seconds = cli_now_s() - b->begin_s;
    if (r == 0 && b->o->plot)
        r = bench_plot(b->o->plot, &b->sweep, err);
    return r;
}

static int bench_disk(const struct cli_options *o)
{
    struct bench *b = calloc(1, sizeof(*b));
    struct hr_error err = {0};
    int r, code;

    if (!b) {
        cli_error(&err, -ENOMEM, "out of memory");
        return cli_fail(&err);
    }
    b->o = o;
    b->n_wanted = o->n_quads ? (uint32_t) o->n_quads : CLI_QUADS_DEFAULT;
    b->begin_s = cli_now_s();
    cli_catch_signals();
    r = run_all(b, &err);
    cli_progress_clear();
    if (r < 0) {
        code = cli_fail(&err);
    } else {
        const struct result result = judge(b);

        if (!o->json)
            print_text(b, &result);
        code = o->json ? print_json(b, &result) : cli_flush();
    }
    hr_stream_close(&b->stream);
    bench_windows_uninit(&b->windows);
    hr_checkpoint_close(&b->model);
    free(b);
    return code;
}

int cli_bench(const struct cli_options *o)
{
    const int r = bench_check_options(o);

    if (r != CLI_OK)
        return r;
    return o->device ? bench_device(o) : bench_disk(o);
}
