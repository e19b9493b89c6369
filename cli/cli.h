/* SPDX-License-Identifier: Apache-2.0 */
/* cli.h -- the headrace command: verbs, options, what is printed. Uses headrace.h only.
 *
 *   main.c         verbs, dispatch, help
 *   options.c      the table of options, parsing, messages for what is wrong
 *   nearest.c      which word was meant by a mistyped one
 *   help.c         an option in words; manual.c the manual page; both from tables.h
 *   cmd_*.c        one verb each
 *   inputs.c       tensor files in
 *   loras.c        LoRA files in
 *   plan_memory.c  the map of a run's buffers
 *   run.c          what forward and denoise have in common
 *   outputs.c      results out
 *   stats.c        statistics of a run
 *   settings.c     its settings and the machine
 *   report.c       progress, JSON, messages
 *   live.c         progress of a run: its stages, redrawn in place
 *   bench*.c       measuring the disk, see bench.h
 *   page*.c        a run as an HTML page, see page.h
 *
 * Results go to standard output, messages and progress to standard error. Exit codes: 0 done,
 * 1 failed, 2 used wrongly.
 */
#ifndef HR_CLI_H
#define HR_CLI_H

#include <jansson.h>

#include "headrace.h"

enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

/* Bits of the verbs that take an option; the order of `verbs` in main.c. */
enum cli_verb_bit {
    CLI_FORWARD = 1 << 0,
    CLI_INSPECT = 1 << 1,
    CLI_SYNTH = 1 << 2,
    CLI_INPUTS = 1 << 3,
    CLI_DENOISE = 1 << 4,
    CLI_CHECKSUM = 1 << 5,
    CLI_VERIFY = 1 << 6,
    CLI_PLAN = 1 << 7,
    CLI_BENCH = 1 << 8,
    CLI_TUNE = 1 << 9,
    CLI_DOCTOR = 1 << 10,
    CLI_REPORT = 1 << 11,
    CLI_COMPLETION = 1 << 30,                /* has no model */
    CLI_COMPUTE = CLI_FORWARD | CLI_DENOISE, /* those that run the model        */
    CLI_RUN = CLI_COMPUTE | CLI_PLAN,        /* those that take a run's options */
    CLI_MEASURE = CLI_BENCH | CLI_TUNE,
    /* those that read a model and do not run it */
    CLI_READ = CLI_CHECKSUM | CLI_VERIFY | CLI_MEASURE,
    CLI_ALL = CLI_RUN | CLI_READ | CLI_INSPECT | CLI_SYNTH | CLI_INPUTS | CLI_DOCTOR | CLI_REPORT
};

/* Of options that were not given. */
enum {
    CLI_STEPS_DEFAULT = 30,
    CLI_PIXELS_DEFAULT = 256, /* width and height */
    CLI_TEXT_TOKENS_DEFAULT = 5,
    CLI_QUADS_DEFAULT = 12,
};

enum { CLI_PATHS_MAX = 256, CLI_OPTIONS_MAX = 96 };
#define CLI_NOT_GIVEN (~0u) /* of a choice without a default */
#define CLI_NO_SEED   UINT64_MAX
#define CLI_SEED_MAX  (UINT64_MAX - HR_SAMPLES_MAX) /* each input has the next one */

/* All values that options can set. 0 and NULL: not given. */
struct cli_options {
    const char *paths[CLI_PATHS_MAX]; /* positional: the model */
    uint32_t n_paths;
    bool given[CLI_OPTIONS_MAX]; /* by the table of options; for cli_is_given() */

    bool help, json, quiet, verbose, per_block, force, streamed;
    bool zero_cond_t_on, zero_cond_t_off, zero_cond_t, layered;
    struct cli_list {
        const char *items[HR_SAMPLES_MAX];
        uint32_t n;
    } inputs;
    struct hr_lora_file loras[HR_LORA_FILES_MAX];
    uint32_t n_loras;
    const char *output, *manifest, *trace, *states, *resume, *device, *io, *cache_dir, *prefix;
    uint64_t ram_bytes, vram_bytes, ring_bytes, block_bytes;
    uint64_t depth, n_threads, n_layers, n_repeat;
    uint64_t width, height, n_text, n_negative, n_references, n_heads, joint_dim, n_shards,
        header_pad_bytes;
    uint64_t n_steps, seed, n_quads, n_turns, io_timeout;
    const char *plot, *plan;
    bool sweep, small_pages;
    unsigned bench_order;
    double timestep, strength, cfg_scale, mu; /* NAN: not given */
    bool cfg_norm;
    unsigned schedule, direct, precision, activation, dtype, order, timestep_rounding, verify,
        lora_mode, onload_dtype, attention; /* choices: 0 also where given so, see cli_is_given() */
};

/* Parse argv after the verb. Prints what is wrong and returns CLI_USAGE, or CLI_OK. */
int cli_parse(struct cli_options *o, unsigned verb, const char *verb_name, int argc, char **argv);
void cli_print_options(unsigned verb);
/* Was the option, such as "--order", on the command line, with whatever value? */
bool cli_is_given(const struct cli_options *o, const char *name);
/* The candidate that a mistyped word is nearest to, or NULL when none is near. Candidates are n
 * strings, stride bytes apart. */
const char *cli_nearest(const char *word, const void *candidates, size_t n, size_t stride);

int cli_forward(const struct cli_options *o);
int cli_inspect(const struct cli_options *o);
int cli_synth(const struct cli_options *o);
int cli_inputs(const struct cli_options *o);
int cli_denoise(const struct cli_options *o);
int cli_checksum(const struct cli_options *o);
int cli_verify(const struct cli_options *o);
int cli_plan(const struct cli_options *o);
int cli_bench(const struct cli_options *o);
int cli_tune(const struct cli_options *o);
int cli_doctor(const struct cli_options *o);
int cli_completion(const struct cli_options *o);
int cli_report(const struct cli_options *o);

/* Fill in *err unless something has failed before; returns code, a negative errno. */
int cli_error(struct hr_error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* "headrace: MESSAGE" on standard error; returns CLI_FAILED. */
int cli_fail(const struct hr_error *err);
int cli_usage(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Open the model that the command line names. */
int cli_open_model(struct hr_checkpoint **ret_checkpoint, const struct cli_options *o,
                   struct hr_error *err);

/* ---- inputs.c --------------------------------------------------------------------------- */

struct cli_tensors {
    struct hr_dit_inputs inputs;
    const float *negative_emb, *init, *mask; /* of a loop; NULL: not in the file */
    const uint8_t *negative_mask;
    uint32_t n_negative;
    void *owned[HR_IMAGES_MAX + 8];
    uint32_t n_owned;
};

struct cli_tensors_wanted {
    uint32_t joint_dim; /* width that prompts must have                                   */
    bool loop;          /* also negative_prompt_emb, init_latents, inpaint_mask           */
    uint32_t h, w;      /* of a target without `latents`; 0: latents must be in the file  */
};

/* Read `latents`, `reference.N`, `prompt_emb` and so on; see "Inputs" in docs/formats.md. */
int cli_tensors_read(struct cli_tensors *ret_tensors, const char *path,
                     const struct cli_tensors_wanted *wanted, struct hr_error *err);
void cli_tensors_free(struct cli_tensors *tensors);

/* Of a run, for live.c. */
struct cli_progress {
    const char *what; /* what a forward is: "step", "forward"    */
    uint32_t n;       /* of them, those before this run included */
    /* live.c's: */
    struct hr_dit_progress window, next; /* rates are of the time since; and from when on next */
    uint64_t drawn_ns;                   /* when, of the run's time; 0: not yet                */
};

/* ---- run.c -------------------------------------------------------------------------------- */

/* Read all --inputs; free each, also after a failure. */
int cli_read_inputs(struct cli_tensors *tensors, const struct cli_options *o,
                    const struct hr_checkpoint *model, bool loop, struct hr_error *err);
struct hr_stream_params cli_stream_params(const struct cli_options *o);
struct hr_dit_params cli_dit_params(const struct cli_options *o);
/* Read --states, if it was given, and have `params` use it; close it after the model. */
int cli_take_states(struct hr_states **ret_states, const struct cli_options *o,
                    struct hr_dit_params *params, struct hr_error *err);

/* A run of forward or denoise: what is there before the library's object is opened. */
struct cli_run {
    const struct cli_options *o; /* given */
    struct hr_checkpoint *model;
    struct cli_tensors in[HR_SAMPLES_MAX];
    struct hr_dit_inputs inputs[HR_SAMPLES_MAX];
    float *results[HR_SAMPLES_MAX]; /* each [n_targets, 16, h, w] */
    struct hr_trace *trace;
    struct hr_manifest *manifest;
    struct hr_states *states;
    struct hr_dit_params params; /* with all of the above, and progress */
    struct cli_progress progress;
    struct hr_dit_stats stats; /* of the verb, after its work */
};

/* Check outputs and read all that is given; cli_run_close() whatever it returns, once the library's
 * object is closed. loop: as denoise. */
int cli_run_open(struct cli_run *run, bool loop, struct hr_error *err);
/* The trace, and where r, the result of the work, is 0 the results. @return r, or what went wrong
 */
int cli_run_write(const struct cli_run *run, const char *name, int r, struct hr_error *err);
/* What both verbs say, as members of obj. */
void cli_run_json(json_t *obj, const struct cli_run *run);
void cli_run_close(struct cli_run *run);

/* ---- stats.c ------------------------------------------------------------------------------ */

/* Statistics that forward and denoise share, as members of obj or as lines. */
void cli_stats_json(json_t *obj, const struct hr_dit_stats *stats);
/* What forwards, steps and blocks have in common. */
struct cli_times {
    uint64_t wall_ns, stall_disk_ns, stall_space_ns, compute_ns, disk_bytes, disk_busy_ns;
};
/* Of a structure whose members are called so. */
#define CLI_TIMES(s)                                                                             \
    {                                                                                            \
        (s)->wall_ns, (s)->stall_disk_ns, (s)->stall_space_ns, (s)->compute_ns, (s)->disk_bytes, \
            (s)->disk_busy_ns                                                                    \
    }
void cli_times_json(json_t *obj, const struct cli_times *times);
void cli_times_text(const struct cli_times *times, uint64_t setup_ns);
/* Of each block in the last pass. */
void cli_blocks_json(json_t *obj, const struct hr_dit_stats *stats);
void cli_blocks_text(const struct hr_dit_stats *stats);
/* The part that is the stream's. */
void cli_stream_json(json_t *obj, const struct hr_stream_stats *stats);
void cli_stats_text(const struct hr_dit_stats *stats);
/* What the run was going to use, next to what it used. */
void cli_predicted_json(json_t *obj, const struct hr_dit_stats *stats);
void cli_predicted_text(const struct hr_dit_stats *stats);
double cli_seconds(uint64_t ns);
uint64_t cli_now_ns(void); /* of a clock that only goes forward */
double cli_now_s(void);
/* Waiting for the disk, as a share of the whole time, 0 to 1; the rest is computing. */
double cli_disk_share(uint64_t stall_disk_ns, uint64_t wall_ns);
double cli_gbps(uint64_t bytes, uint64_t ns);

/* ---- settings.c --------------------------------------------------------------------------- */

/* What the run was asked for, and the machine, as members of obj. inputs: the first; is_guided: one
 * of them has a negative prompt. */
void cli_settings_json(json_t *obj, const struct cli_options *o, const struct hr_dit_inputs *inputs,
                       bool is_guided);

/* ---- loras.c ------------------------------------------------------------------------------ */

/* One --lora. Prints what is wrong and returns CLI_USAGE, or CLI_OK. */
int cli_add_lora(struct cli_options *o, const char *text);
/* What became of the files, as members of obj or as lines; nothing where there are none. */
void cli_loras_json(json_t *obj, const struct cli_options *o, const struct hr_dit_stats *stats);
void cli_loras_text(const struct cli_options *o, const struct hr_dit_stats *stats);

/* ---- plan_memory.c ------------------------------------------------------------------------ */

/* The parts of memory that the library told of. */
struct cli_map {
    struct cli_map_part {
        struct hr_memory_part is;
        char *name, *overlies; /* of it, owned */
    } * parts;
    uint32_t n, n_room;
    bool failed; /* there was no memory for all of them */
};

/* user: a struct cli_map, all zero before the first. */
void cli_map_add(void *user, const struct hr_memory_part *part);
void cli_map_free(struct cli_map *map);
json_t *cli_map_json(const struct cli_map *map);
void cli_map_print(const struct cli_map *map);

/* ---- outputs.c --------------------------------------------------------------------------- */

/* Before any work: --output, --trace and --plot can be made, and are no part of the model or of
 * what else is read. */
int cli_check_output(const struct cli_options *o, const struct hr_checkpoint *model,
                     struct hr_error *err);
/* Of report, whose inputs are files of runs. */
int cli_check_page(const struct cli_options *o, struct hr_error *err);
/* Writes all of a file; a failure shows in the stream's error flag. */
typedef void cli_put(FILE *f, const void *user);
/* A file that appears whole or not at all: under a temporary name, then renamed. A link stays one.
 * @param what  "the page", for messages */
int cli_write_whole(const char *path, const char *what, cli_put *put, const void *user,
                    struct hr_error *err);
/* What --trace records into; NULL without it. */
int cli_open_trace(struct hr_trace **ret_trace, const struct cli_options *o, struct hr_error *err);
/* Write it, where there is one, once r, the result of the run, is 0 or -ECANCELED.
 * @return r, or what went wrong in writing */
int cli_write_trace(const struct cli_options *o, const struct hr_trace *trace, int r,
                    struct hr_error *err);
/* Memory for the results, each [n_targets, 16, h, w]; the caller frees what was taken, also after a
 * failure. */
int cli_take_results(const struct cli_options *o, const struct hr_dit_inputs *inputs,
                     float **values, struct hr_error *err);
/* Write `name`, or for several inputs name.0, name.1 ..., each [n_targets, 16, h, w], to --output.
 */
int cli_write_results(const struct cli_options *o, const char *name,
                      const struct hr_dit_inputs *inputs, float *const *values,
                      struct hr_error *err);
/* The line that says what was written. */
void cli_print_output(const struct cli_options *o, const char *name,
                      const struct hr_dit_inputs *inputs);

/* ---- report.c --------------------------------------------------------------------------- */

/* Progress on standard error, when it is a terminal that can redraw and --quiet was not given. */
bool cli_progress_wanted(const struct cli_options *o);
/* Where standard error is no terminal, and with --quiet not: a line for a step every ten seconds at
 * most, so that the log of a long run tells how far it is. */
void cli_note_step(const struct cli_options *o, const struct hr_denoise_step *step);
void cli_progress_bytes(void *user, uint64_t bytes_done, uint64_t bytes_total);
void cli_progress_reading(void *user, uint64_t bytes_done, uint64_t bytes_total);
void cli_progress_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Draw n lines in the place of those that stand there; none may be wider than the terminal. */
void cli_progress_lines(const char *const *lines, unsigned n);
/* Take away what stands there, before anything else is printed. */
void cli_progress_clear(void);

/* "40.86 GB", "297 MB". */
const char *cli_size(char buf[32], uint64_t bytes);
/* "9.3 s", "12 min 05 s", "3 h 07 min". */
const char *cli_duration(char buf[32], uint64_t ns);
/* A text from a file or the command line without what a terminal would obey, whose bytes become
 * \xNN; cut off with "..." where it does not fit. @return buf */
const char *cli_printable(char *buf, size_t buf_bytes, const char *text);
/* A text of others', which need not be UTF-8: then, and of NULL, null. */
json_t *cli_json_text(const char *text);
/* Bytes, or null where they are not known. */
json_t *cli_json_bytes(uint64_t bytes, bool is_known);
/* Print obj on standard output, free it and flush; NULL: a name could not be said in JSON. */
int cli_print_json(json_t *obj);
/* Once, before any JSON: from now on cli_print_json() knows whether all that was made is whole.
 * @param must_have  of what is read, too: without memory for it the program ends, with the line */
void cli_watch_json(bool must_have);
/* Flush standard output: a full disk or a closed pipe is a failure like any other. */
int cli_flush(void);

/* ---- live.c ------------------------------------------------------------------------------- */

/* user: a struct cli_progress, of which the first two members are given and the others 0. */
void cli_progress_block(void *user, const struct hr_dit_progress *progress);

/* ---- signals ---------------------------------------------------------------------------- */

/* After SIGINT or SIGTERM: cli_interrupted is not 0, and what was given is interrupted by the
 * function given with it, which must be safe in a signal handler. A second signal ends the process.
 */
extern volatile int cli_interrupted;
void cli_catch_signals(void);
void cli_interrupt_target(void (*interrupt)(void *object), void *object);

#endif /* HR_CLI_H */
