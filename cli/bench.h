/* SPDX-License-Identifier: Apache-2.0 */
/* bench.h -- what bench and tune share: parts of the model to read, the clock around them, fio
 * beside them, and the statistics that decide what may be said.
 *
 *   bench_windows.c  which parts are read, and whether they are fit to be measured
 *   bench_legs.c     one reading of one part, by the stream or by fio, and what the disk counted
 *   bench_sweep.c    settings against each other, interleaved
 *   bench_math.c     medians and their intervals
 *   bench_plot.c     the picture
 *   bench_device.c   a device instead, with the disk beside it
 *
 * A leg is one reading of a window. Two legs that are compared are close in time and read the same
 * number of bytes; no window is trusted to be as fast as another.
 */
#ifndef HR_CLI_BENCH_H
#define HR_CLI_BENCH_H

#include "cli/cli.h"

/* ---- bench_windows.c ------------------------------------------------------------------------- */

/* Tensors that follow one another, in the files or in the order in which a forward asks for them.
 * offset_bytes and size_bytes are their extent in the file, for fio: multiples of 4096 inside it;
 * with the order of a forward they are of other bytes, equally many. */
struct bench_window {
    const char *const *names; /* the windows' own */
    uint32_t n_names;
    uint64_t bytes; /* of the tensors */
    uint32_t shard_idx;
    uint64_t offset_bytes, size_bytes;
};

struct bench_windows {
    const struct hr_checkpoint *model;
    const char **in_files; /* all tensors that have bytes, as they lie in the files */
    const char **in_pass;  /* as a forward streams them; NULL: not asked for        */
    uint32_t n_files, n_pass;
    uint64_t random; /* state of the generator */
};

/* @param pass_order  choose windows in the order of a forward
 * @param n_layers    only of the first blocks; 0: of the whole model
 * @return 0; -EINVAL the model has nothing to read, -ENOMEM, or the error of hr_dit_names() */
int bench_windows_init(struct bench_windows *windows, const struct hr_checkpoint *model,
                       bool pass_order, uint64_t n_layers, struct hr_error *err);
void bench_windows_uninit(struct bench_windows *windows);
/* A window of about `bytes` at a random place. */
struct bench_window bench_window_pick(struct bench_windows *windows, uint64_t bytes);
/* A number below n, n > 0. */
uint64_t bench_random(struct bench_windows *windows, uint64_t n);

/* What was found in all windows that were looked at. */
struct bench_gates {
    uint64_t bytes, cached_bytes, odd_bytes;
    uint64_t cached_after_bytes;
    const char *odd_kind;
    bool extents_unknown;
    uint32_t n_samples, n_alike;
    uint64_t asked_bytes, counted_bytes; /* by the legs, and by the disk's own counter meanwhile */
    bool not_counted;                    /* the filesystem has no such counter                 */
};
int bench_gates_look(struct bench_gates *gates, const struct bench_windows *windows,
                     const struct bench_window *window, bool after, struct hr_error *err);
/* The first reason why figures are no figures of the disk, in buf; NULL: none. */
const char *bench_gates_refuse(const struct bench_gates *gates, char *buf, size_t buf_bytes);

/* ---- bench_legs.c ---------------------------------------------------------------------------- */

struct bench_setting {
    uint32_t block_bytes, depth;
};

struct bench_leg {
    uint64_t bytes, ns;
    /* fio's own: */
    double cpu_s;
    double latency_p50_ns, latency_p99_ns, latency_p999_ns;
    bool huge_pages; /* its buffers lay in them */
};

/* Read the window through the stream, which must be at rest. */
int bench_leg_ours(struct bench_leg *ret_leg, struct hr_stream *stream,
                   const struct bench_windows *windows, const struct bench_window *window,
                   struct bench_gates *gates, struct hr_error *err);
/* Read it with fio: io_uring, O_DIRECT, registered buffers and file; buffers in huge pages where
 * enough are reserved. */
int bench_leg_fio(struct bench_leg *ret_leg, const struct bench_setting *setting,
                  const struct bench_windows *windows, const struct bench_window *window,
                  struct bench_gates *gates, struct hr_error *err);
/* fio's version, such as "fio-3.33". *ret_found: there is one that this user may run.
 * @return 0, or why it could not be asked, such as -EMFILE */
int bench_fio_version(char *buf, size_t buf_bytes, bool *ret_found, struct hr_error *err);

static inline double bench_rate(const struct bench_leg *leg)
{
    return leg->ns > 0 ? (double) leg->bytes / (double) leg->ns : 0.0; /* GB/s */
}

/* ---- bench_math.c ---------------------------------------------------------------------------- */

struct bench_interval {
    double median, low, high;
};

/* Of n > 0 values. */
double bench_median(const double *values, uint32_t n);
/* Median with its 95 % interval, from resamples with replacement; the same values always give the
 * same interval. */
struct bench_interval bench_bootstrap(const double *values, uint32_t n);

/* ---- bench_sweep.c --------------------------------------------------------------------------- */

enum {
    BENCH_TURNS_MAX = 12,
    BENCH_SETTINGS_MAX = 64,
    BENCH_DEPTH_MAX = 256, /* of the settings */
};

/* One setting's samples, in GB/s: one in each turn. */
struct bench_sample {
    struct bench_setting setting;
    double ours[BENCH_TURNS_MAX], fio[BENCH_TURNS_MAX];
};

struct bench_sweep {
    struct bench_sample samples[BENCH_SETTINGS_MAX];
    uint32_t n_settings, n_turns;
    bool has_fio;
};

/* Fill in the settings: a few good ones, or the whole grid of block sizes and bytes in flight. */
void bench_sweep_settings(struct bench_sweep *sweep, bool whole_grid);
/* One turn: each setting once, in random order, ours and fio's alternating. `stream` was opened
 * with a depth of BENCH_DEPTH_MAX. */
int bench_sweep_turn(struct bench_sweep *sweep, struct hr_stream *stream,
                     struct bench_windows *windows, uint64_t window_bytes,
                     struct bench_gates *gates, struct hr_error *err);
/* The setting whose median is best; `fio`: of fio's samples. */
uint32_t bench_sweep_best(const struct bench_sweep *sweep, bool fio);
/* Its median, GB/s. */
double bench_sweep_rate(const struct bench_sweep *sweep, bool fio);
/* As best, but of those within 2 % of it the one with the fewest bytes in flight. */
uint32_t bench_sweep_choose(const struct bench_sweep *sweep);

/* Bytes that take about seconds at the rate at which the disk gives a first part. */
int bench_window_bytes(uint64_t *ret_bytes, double seconds, struct hr_stream *stream,
                       struct bench_windows *windows, struct hr_error *err);

/* A stream for measuring: the options' backend, ring and pages, and this setting. */
int bench_open_stream(struct hr_stream **ret_stream, const struct cli_options *o,
                      const struct hr_checkpoint *model, struct bench_setting setting,
                      struct hr_error *err);

/* For cli_interrupt_target(). */
void bench_interrupt(void *stream);

/* ---- bench_plot.c ---------------------------------------------------------------------------- */

/* Throughput against bytes in flight, as SVG; whole or not at all. */
int bench_plot(const char *path, const struct bench_sweep *sweep, struct hr_error *err);

/* ---- bench_device.c -------------------------------------------------------------------------- */

/* Options that have no effect with --device, or without it. Prints which and returns CLI_USAGE, or
 * CLI_OK. */
int bench_check_options(const struct cli_options *o);
/* Measure the device and print its rates. @return the exit code */
int bench_device(const struct cli_options *o);

#endif /* HR_CLI_BENCH_H */
