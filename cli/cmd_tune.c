/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_tune.c -- the block size and depth that serve a disk best, kept for later runs.
 *
 * Neither may a bad default survive nor a fluke be stored. All settings are measured in turns;
 * those that come near the best then meet the default in further turns, and one replaces the
 * default only where it wins by more than chance, by the interval of its ratios to the default turn
 * by turn.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/bench.h"

#define MIB (1u << 20)

enum { TURNS_FIRST = 3, FINALISTS = 4 };

static const double WINDOW_S = 0.25;
static const double SPREAD_MAX = 0.2; /* half of the interval of what is stored, as a share */

static const struct bench_setting standard = {HR_BLOCK_BYTES_DEFAULT, HR_DEPTH_DEFAULT};

struct tune {
    const struct cli_options *o;
    struct hr_checkpoint *model;
    struct bench_windows windows;
    struct bench_gates gates;
    struct bench_sweep all, final; /* the default is the first of both */
    struct hr_stream *stream;
    struct hr_tuning tuning;
    struct bench_interval rate, gain; /* of what was chosen; over the default */
    char *path;
};

static void list_settings(struct bench_sweep *sweep)
{
    memset(sweep, 0, sizeof(*sweep));
    sweep->samples[sweep->n_settings++].setting = standard;
    for (uint32_t block = MIB / 2; block <= 16 * MIB; block *= 2)
        for (uint32_t in_flight = 8 * MIB; in_flight <= 128 * MIB; in_flight *= 2) {
            const struct bench_setting s = {block, in_flight / block};

            if (s.depth >= 2 && s.depth <= 128 &&
                (s.block_bytes != standard.block_bytes || s.depth != standard.depth))
                sweep->samples[sweep->n_settings++].setting = s;
        }
}

static int turns(struct tune *t, struct bench_sweep *sweep, uint32_t n, uint64_t window_bytes,
                 const char *what, struct hr_error *err)
{
    int r = 0;

    for (uint32_t i = 0; i < n && r == 0; i++) {
        if (cli_progress_wanted(t->o))
            cli_progress_note("%s, turn %u of %u", what, i + 1, n);
        r = bench_sweep_turn(sweep, t->stream, &t->windows, window_bytes, &t->gates, err);
    }
    return r;
}

static int by_rate_down(const void *a, const void *b)
{
    const struct bench_sample *x = a, *y = b;
    const double mx = bench_median(x->ours, TURNS_FIRST), my = bench_median(y->ours, TURNS_FIRST);

    return (mx < my) - (mx > my);
}

/* The default and the best others go on, with clean sheets. */
static void choose_finalists(struct tune *t)
{
    qsort(t->all.samples + 1, t->all.n_settings - 1, sizeof(t->all.samples[0]), by_rate_down);
    memset(&t->final, 0, sizeof(t->final));
    for (uint32_t i = 0; i <= FINALISTS && i < t->all.n_settings; i++)
        t->final.samples[t->final.n_settings++].setting = t->all.samples[i].setting;
}

/* The default, unless another one wins by more than chance; the gain is of what is returned. */
static uint32_t choose(struct tune *t)
{
    const uint32_t chosen = bench_sweep_choose(&t->final);
    double ratios[BENCH_TURNS_MAX];

    for (uint32_t i = 0; i < t->final.n_turns; i++)
        ratios[i] = t->final.samples[chosen].ours[i] / t->final.samples[0].ours[i];
    t->gain = bench_bootstrap(ratios, t->final.n_turns);
    if (t->gain.low > 1.0)
        return chosen;
    t->gain = (struct bench_interval){1.0, 1.0, 1.0};
    return 0;
}

static int measure(struct tune *t, struct hr_error *err)
{
    const struct bench_setting widest = {standard.block_bytes, BENCH_DEPTH_MAX};
    struct hr_stream_stats stats;
    uint64_t window_bytes;
    int r = bench_open_stream(&t->stream, t->o, t->model, widest, err);

    if (r < 0)
        return r;
    hr_stream_get_stats(t->stream, &stats);
    if (!stats.direct)
        return cli_error(err, -EOPNOTSUPP,
                         "%s: is not read directly from a disk, there is nothing to tune: it lies "
                         "in the page cache or its filesystem takes no O_DIRECT",
                         hr_checkpoint_shard(t->model, 0)->path);
    cli_interrupt_target(bench_interrupt, t->stream);
    list_settings(&t->all);
    r = hr_stream_set_blocks(t->stream, standard.block_bytes, standard.depth, err);
    if (r == 0)
        r = bench_window_bytes(&window_bytes, WINDOW_S, t->stream, &t->windows, err);
    for (int i = 0; i < 4 && r == 0; i++) {
        const struct bench_window window = bench_window_pick(&t->windows, window_bytes);

        r = bench_gates_look(&t->gates, &t->windows, &window, false, err);
    }
    if (r == 0)
        r = turns(t, &t->all, TURNS_FIRST, window_bytes, "all settings", err);
    choose_finalists(t);
    if (r == 0)
        r = turns(t, &t->final, BENCH_TURNS_MAX, window_bytes, "the best and the default", err);
    cli_interrupt_target(NULL, NULL);
    return r;
}

static int store(struct tune *t, struct hr_error *err)
{
    const struct bench_sample *chosen = &t->final.samples[choose(t)];
    char why[256];

    t->gates.asked_bytes = t->gates.counted_bytes =
        0; /* other readers spread the samples, no more */
    t->gates.not_counted = t->gates.extents_unknown = false;
    if (bench_gates_refuse(&t->gates, why, sizeof(why)))
        return cli_error(err, -EOPNOTSUPP, "%s: nothing was stored: %s",
                         hr_checkpoint_shard(t->model, 0)->path, why);
    t->rate = bench_bootstrap(chosen->ours, t->final.n_turns);
    if (t->rate.high - t->rate.low > 2 * SPREAD_MAX * t->rate.median)
        return cli_error(
            err, -EAGAIN,
            "nothing was stored: %u KiB x %u gave %.2f to %.2f GB/s in one and the same "
            "run; try again when the disk is quieter",
            chosen->setting.block_bytes >> 10, chosen->setting.depth, t->rate.low, t->rate.high);
    t->tuning = (struct hr_tuning){
        .block_bytes = chosen->setting.block_bytes,
        .depth = chosen->setting.depth,
        .bytes_per_s = (uint64_t) (t->rate.median * 1e9),
        .bytes_per_s_low = (uint64_t) (t->rate.low * 1e9),
        .bytes_per_s_high = (uint64_t) (t->rate.high * 1e9),
        .n_samples = t->final.n_turns,
        .time_s = (uint64_t) time(NULL),
    };
    return hr_tuning_save(t->model, &t->tuning, &t->path, err);
}

static int print_json(const struct tune *t)
{
    json_t *settings = json_array();

    for (uint32_t i = 0; i < t->all.n_settings; i++)
        json_array_append_new(
            settings, json_pack("{s:I, s:I, s:f}", "block_bytes",
                                (json_int_t) t->all.samples[i].setting.block_bytes, "iodepth",
                                (json_int_t) t->all.samples[i].setting.depth, "gbps",
                                bench_median(t->all.samples[i].ours, t->all.n_turns)));
    return cli_print_json(json_pack(
        "{s:s, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:s, s:s, s:s, s:o, s:o}", "verb", "tune",
        "block_bytes", (json_int_t) t->tuning.block_bytes, "iodepth", (json_int_t) t->tuning.depth,
        "gbps", t->rate.median, "gbps_low", t->rate.low, "gbps_high", t->rate.high, "over_default",
        t->gain.median, "over_default_low", t->gain.low, "over_default_high", t->gain.high,
        "device", t->tuning.device, "filesystem", t->tuning.filesystem, "kernel", t->tuning.kernel,
        "stored", cli_json_text(t->path), "settings", settings));
}

static void print_text(const struct tune *t)
{
    const bool is_default =
        t->tuning.block_bytes == standard.block_bytes && t->tuning.depth == standard.depth;

    printf("disk      %s, %s, kernel %s\n", t->tuning.device, t->tuning.filesystem,
           t->tuning.kernel);
    for (uint32_t i = 0; i < t->final.n_settings; i++) {
        const struct bench_sample *s = &t->final.samples[i];
        const struct bench_interval rate = bench_bootstrap(s->ours, t->final.n_turns);

        printf("          %5u KiB x %-3u  %.2f GB/s (%.2f to %.2f)%s\n",
               s->setting.block_bytes >> 10, s->setting.depth, rate.median, rate.low, rate.high,
               i == 0 ? ", the default" : "");
    }
    printf("setting   %u KiB x %u, %s\n", t->tuning.block_bytes >> 10, t->tuning.depth,
           is_default ? "the default: no other was faster by more than chance"
                      : "faster than the default");
    if (!is_default)
        printf("gain      %.3f (%.3f to %.3f) times the default\n", t->gain.median, t->gain.low,
               t->gain.high);
    printf("stored    %s\n", t->path);
}

int cli_tune(const struct cli_options *o)
{
    struct tune *t = calloc(1, sizeof(*t));
    struct hr_error err = {0};
    int r, code;

    if (!t) {
        cli_error(&err, -ENOMEM, "out of memory");
        return cli_fail(&err);
    }
    t->o = o;
    cli_catch_signals();
    r = cli_open_model(&t->model, o, &err);
    if (r == 0)
        r = bench_windows_init(&t->windows, t->model, false, o->n_layers, &err);
    if (r == 0)
        r = measure(t, &err);
    if (r == 0)
        r = store(t, &err);
    cli_progress_clear();
    if (r < 0) {
        code = cli_fail(&err);
    } else {
        if (!o->json)
            print_text(t);
        code = o->json ? print_json(t) : cli_flush();
    }
    hr_stream_close(&t->stream);
    bench_windows_uninit(&t->windows);
    hr_checkpoint_close(&t->model);
    free(t->path);
    free(t);
    return code;
}
