/* SPDX-License-Identifier: Apache-2.0 */
/* options.c -- one table of options; parsing, messages and all in tables.h come from it. */
#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cli/tables.h"

static const struct option options[] = {
    {"--inputs", LIST, MEMBER(inputs), CLI_RUN, 0, 0, NULL, "FILE",
     "latents, prompt_emb, reference.0 ... (safetensors); repeated: together in one pass"},
    {"--timestep", NUMBER, MEMBER(timestep), CLI_FORWARD, 0, 0, NULL, "T",
     "sigma * 1000, from 0 to 1000"},
    {"--steps", COUNT, MEMBER(n_steps), CLI_DENOISE, 1, 1000, NULL, "N", "of the loop (default @)"},
    {"--steps", COUNT, MEMBER(n_steps), CLI_PLAN, 1, 1000, NULL, "N",
     "as denoise with so many; without it, one forward"},
    {"--cfg-scale", NUMBER, MEMBER(cfg_scale), CLI_DENOISE | CLI_PLAN, 0, 0, NULL, "S",
     "guidance, where the inputs have a negative_prompt_emb (default @; 1: none)"},
    {"--cfg-norm", FLAG, MEMBER(cfg_norm), CLI_DENOISE, 0, 0, NULL, NULL,
     "scale guided tokens back to the positive prediction's norm, as diffusers does"},
    {"--schedule", CHOICE, MEMBER(schedule), CLI_DENOISE, 0, 0, "dynamic|lightning", NULL,
     "of sigmas (default @; lightning: for the 4 and 8 step LoRAs)"},
    {"--mu", NUMBER, MEMBER(mu), CLI_DENOISE, 0, 0, NULL, "MU",
     "shift of the dynamic schedule (default: as the picture's size says)"},
    {"--strength", NUMBER, MEMBER(strength), CLI_DENOISE, 0, 0, NULL, "S",
     "image to image: how much of init_latents is replaced, up to 1 (default 1)"},
    {"--seed", COUNT, MEMBER(seed), CLI_DENOISE, 0, CLI_SEED_MAX, NULL, "N",
     "of the noise, where the inputs have no latents (default 0; the next input: N + 1)"},
    {"--resume", TEXT, MEMBER(resume), CLI_DENOISE, 0, 0, NULL, "DIR",
     "keep each finished step in DIR, and go on from the last one there"},
    {"--trace", TEXT, MEMBER(trace), CLI_COMPUTE, 0, 0, NULL, "FILE",
     "record what disk and computing did when, for https://ui.perfetto.dev (JSON)"},
    {"--trace", TEXT, MEMBER(trace), CLI_REPORT, 0, 0, NULL, "FILE",
     "what --trace recorded in the run: the stages at their real times"},
    {"--plan", TEXT, MEMBER(plan), CLI_REPORT, 0, 0, NULL, "FILE",
     "what headrace plan --json said before: seconds predicted next to seconds taken"},
    {"--output", TEXT, MEMBER(output), CLI_REPORT, 0, 0, NULL, "FILE", "the page (HTML)"},
    {"--output", TEXT, MEMBER(output), CLI_COMPUTE | CLI_INPUTS, 0, 0, NULL, "FILE",
     "where the result goes (safetensors)"},
    {"--output", TEXT, MEMBER(output), CLI_CHECKSUM, 0, 0, NULL, "FILE",
     "where the manifest goes (default, and -: standard output)"},
    {"-o", TEXT, MEMBER(output), CLI_REPORT | CLI_COMPUTE | CLI_INPUTS | CLI_CHECKSUM, 0, 0, NULL,
     "FILE", "the same as --output"},
    {"--manifest", TEXT, MEMBER(manifest), CLI_VERIFY | CLI_COMPUTE, 0, 0, NULL, "FILE",
     "what headrace checksum made"},
    {"--verify", CHOICE, MEMBER(verify), CLI_COMPUTE, 0, 0, "first|always|off", NULL,
     "compare weights with --manifest as they stream by (default @, with a manifest)"},
    {"--device", TEXT, MEMBER(device), CLI_RUN, 0, 0, NULL, "auto|cpu|cuda|cuda:N",
     "what computes (default auto: a GPU that can be used, or the CPU)"},
    {"--device", TEXT, MEMBER(device), CLI_BENCH, 0, 0, NULL, "auto|cpu|cuda|cuda:N",
     "measure this device: copies to it, beside the disk and alone, and what it computes"},
    {"--turns", COUNT, MEMBER(n_turns), CLI_BENCH, 1, HR_RATES_TURNS_MAX, NULL, "N",
     "of --device: how often all is measured (default 3 to 11, as about 30 s allow)"},
    {"--ram", SIZE, MEMBER(ram_bytes), CLI_RUN | CLI_MEASURE, 1 << 20, UINT64_MAX, NULL, "SIZE",
     "bound on all memory of the process, such as 400MiB"},
    {"--vram", SIZE, MEMBER(vram_bytes), CLI_RUN, 1 << 20, UINT64_MAX, NULL, "SIZE",
     "bound on the memory taken of a GPU, such as 2GiB; in a loop the rest keeps weights there"},
    {"--vram", SIZE, MEMBER(vram_bytes), CLI_BENCH, 1 << 20, UINT64_MAX, NULL, "SIZE",
     "of --device: bound on the memory taken of a GPU, such as 2GiB"},
    {"--states", TEXT, MEMBER(states), CLI_RUN, 0, 0, NULL, "FILE",
     "table (JSON) of weights that stay in memory or are streamed; see docs/memory.md"},
    {"--ring", SIZE, MEMBER(ring_bytes), CLI_RUN | CLI_READ, 1 << 20, UINT64_MAX, NULL, "SIZE",
     "memory for weights in flight (default @, or what --ram leaves)"},
    {"--io", WORD, MEMBER(io), CLI_RUN | CLI_READ, 0, 0,
     "auto|io_uring|libaio|pread|cufile|null|fault", "auto|io_uring|libaio|pread|cufile",
     "how the disk is read (default auto: the first of three that works; never cufile)"},
    {"--direct", CHOICE, MEMBER(direct), CLI_RUN | CLI_READ, 0, 0, "auto|on|off", NULL,
     "O_DIRECT (default @)"},
    {"--block-size", SIZE, MEMBER(block_bytes), (CLI_RUN | CLI_READ) & ~CLI_TUNE, 64 << 10,
     32 << 20, NULL, "SIZE", "bytes of one read, a power of two (default: as tune found, else @)"},
    {"--iodepth", COUNT, MEMBER(depth), (CLI_RUN | CLI_READ) & ~CLI_TUNE, 1, 1024, NULL, "N",
     "reads in flight (default: as tune found, else @)"},
    {"--io-timeout", COUNT, MEMBER(io_timeout), CLI_RUN | CLI_READ, 0, 86400, NULL, "SECONDS",
     "give up when the disk answers no read for so long (default @; 0: wait)"},
    {"--no-huge-pages", FLAG, MEMBER(small_pages), CLI_RUN | CLI_READ, 0, 0, NULL, NULL,
     "a ring of 4 KiB pages (default: huge ones as far as there are any)"},
    {"--quads", COUNT, MEMBER(n_quads), CLI_BENCH, 1, 1000, NULL, "N",
     "comparisons of four readings each (default @, in at most 2 minutes)"},
    {"--order", CHOICE, MEMBER(bench_order), CLI_BENCH, 0, 0, "file|pass", NULL,
     "read as the bytes lie in the files, or as a forward asks for them (default @)"},
    {"--sweep", FLAG, MEMBER(sweep), CLI_BENCH, 0, 0, NULL, NULL,
     "measure and print the whole grid of block sizes and depths"},
    {"--plot", TEXT, MEMBER(plot), CLI_BENCH, 0, 0, NULL, "FILE",
     "throughput against bytes in flight (SVG)"},
    {"--threads", COUNT, MEMBER(n_threads), CLI_RUN | CLI_BENCH, 1, 256, NULL, "N",
     "compute threads (default: the CPUs this process may use)"},
    {"--precision", CHOICE, MEMBER(precision), CLI_RUN | CLI_BENCH, 0, 0, "bf16|f32", NULL,
     "inputs of matrix products (default @)"},
    {"--activation", CHOICE, MEMBER(activation), CLI_RUN, 0, 0, "gelu_tanh|quick_gelu", NULL,
     "of the MLPs (default @, the model's own)"},
    {"--attention", CHOICE, MEMBER(attention), CLI_RUN | CLI_BENCH, 0, 0, "own|cudnn", NULL,
     "on a GPU, of our own kernel (default) or of cuDNN 9.13.1 or later, with bf16"},
    {"--onload-dtype", CHOICE, MEMBER(onload_dtype), CLI_RUN, 0, 0, "model|fp8", NULL,
     "fp8: lossy; weights that stay in memory are rounded to it, so that more fit in --ram"},
    {"--lora", LORA, MEMBER(loras), CLI_RUN, 0, 0, NULL, "FILE[:STRENGTH]",
     "add a LoRA (safetensors), default strength 1; repeated: several at once"},
    {"--lora-mode", CHOICE, MEMBER(lora_mode), CLI_RUN, 0, 0, "runtime|merged", NULL,
     "beside the weights, exact (default), or added to them as pipelines that fuse do"},
    {"--timestep-rounding", CHOICE, MEMBER(timestep_rounding), CLI_RUN, 0, 0, "off|bf16", NULL,
     "round the timestep as bf16 pipelines do (default @)"},
    {"--zero-cond-t", FLAG, MEMBER(zero_cond_t_on), CLI_RUN, 0, 0, NULL, NULL,
     "Edit-2511: references at timestep 0 (default: as the model's config says)"},
    {"--no-zero-cond-t", FLAG, MEMBER(zero_cond_t_off), CLI_RUN, 0, 0, NULL, NULL,
     "not, whatever the config says"},
    {"--layers", COUNT, MEMBER(n_layers), CLI_RUN | CLI_MEASURE | CLI_INSPECT, 1, 10000, NULL, "N",
     "only the first N blocks"},
    {"--layers", COUNT, MEMBER(n_layers), CLI_SYNTH, 1, 10000, NULL, "N",
     "blocks of the model (default @)"},
    {"--repeat", COUNT, MEMBER(n_repeat), CLI_FORWARD, 1, 1000000, NULL, "N",
     "run N forwards in a row, reading across their borders (default 1)"},
    {"--per-block", FLAG, MEMBER(per_block), CLI_COMPUTE, 0, 0, NULL, NULL,
     "statistics of each block, in the last pass"},
    {"--streamed", FLAG, MEMBER(streamed), CLI_INSPECT, 0, 0, NULL, NULL,
     "list the tensors in the order in which a forward streams them"},
    {"--width", COUNT, MEMBER(width), CLI_INPUTS | CLI_PLAN, 16, 8192, NULL, "PIXELS",
     "of the picture (default @)"},
    {"--height", COUNT, MEMBER(height), CLI_INPUTS | CLI_PLAN, 16, 8192, NULL, "PIXELS",
     "of the picture (default @)"},
    {"--width", COUNT, MEMBER(width), CLI_DENOISE, 16, 8192, NULL, "PIXELS",
     "of the picture, where the inputs have no latents"},
    {"--height", COUNT, MEMBER(height), CLI_DENOISE, 16, 8192, NULL, "PIXELS",
     "of the picture, where the inputs have no latents"},
    {"--text-tokens", COUNT, MEMBER(n_text), CLI_INPUTS | CLI_PLAN, 1, 65536, NULL, "N",
     "of the prompt (default @)"},
    {"--negative-tokens", COUNT, MEMBER(n_negative), CLI_INPUTS | CLI_PLAN, 1, 65536, NULL, "N",
     "of a negative prompt (default: none)"},
    {"--references", COUNT, MEMBER(n_references), CLI_INPUTS | CLI_PLAN, 0, HR_IMAGES_MAX - 1, NULL,
     "N", "reference images of the same size (default 0)"},
    {"--heads", COUNT, MEMBER(n_heads), CLI_SYNTH, 1, 1024, NULL, "N",
     "attention heads of 128 (default @)"},
    {"--joint-dim", COUNT, MEMBER(joint_dim), CLI_SYNTH, 1, 65536, NULL, "N",
     "width of the prompt embedding (default @)"},
    {"--dtype", CHOICE, MEMBER(dtype), CLI_SYNTH, 0, 0, "bf16|f16|f32|f8_e4m3|f8_e5m2", NULL,
     "of all tensors (default @)"},
    {"--shards", COUNT, MEMBER(n_shards), CLI_SYNTH, 1, 1000, NULL, "N",
     "files (default: about 5 GB each, as published)"},
    {"--zero-cond-t", FLAG, MEMBER(zero_cond_t), CLI_SYNTH, 0, 0, NULL, NULL,
     "config.json of an Edit-2511 model"},
    {"--layered", FLAG, MEMBER(layered), CLI_SYNTH, 0, 0, NULL, NULL, "a layered model"},
    {"--order", CHOICE, MEMBER(order), CLI_SYNTH, 0, 0, "name|reverse|shuffle", NULL,
     "of the tensors in the files (default @)"},
    {"--header-pad", COUNT, MEMBER(header_pad_bytes), CLI_SYNTH, 0, 1 << 20, NULL, "BYTES",
     "spaces after the header: odd ones give tensors at odd addresses"},
    {"--prefix", TEXT, MEMBER(prefix), CLI_SYNTH, 0, 0, NULL, "TEXT",
     "before each name, such as model.diffusion_model."},
    {"--force", FLAG, MEMBER(force), CLI_SYNTH, 0, 0, NULL, NULL, "replace an existing model"},
    {"--cache-dir", TEXT, MEMBER(cache_dir), CLI_ALL & ~(CLI_SYNTH | CLI_REPORT), 0, 0, NULL, "DIR",
     "where links of the model folder may lead (default: the Hugging Face cache)"},
    {"--json", FLAG, MEMBER(json), CLI_ALL, 0, 0, NULL, NULL, "results as JSON"},
    {"--quiet", FLAG, MEMBER(quiet), CLI_ALL, 0, 0, NULL, NULL,
     "neither progress nor notes, errors only"},
    {"--verbose", FLAG, MEMBER(verbose), CLI_ALL, 0, 0, NULL, NULL, "more about each step"},
    {"--help", FLAG, MEMBER(help), CLI_ALL | CLI_COMPLETION, 0, 0, NULL, NULL, "this text"},
    {"-h", FLAG, MEMBER(help), CLI_ALL | CLI_COMPLETION, 0, 0, NULL, NULL, "the same as --help"},
};

enum { N_OPTIONS = sizeof(options) / sizeof(options[0]) };
_Static_assert((int) N_OPTIONS <= (int) CLI_OPTIONS_MAX, "struct cli_options remembers fewer");

/* ---- values ----------------------------------------------------------------------------- */

static const struct {
    const char *suffix;
    uint64_t factor;
} size_suffixes[] = {
    {"KiB", UINT64_C(1) << 10},
    {"MiB", UINT64_C(1) << 20},
    {"GiB", UINT64_C(1) << 30},
    {"TiB", UINT64_C(1) << 40},
    {"KB", 1000},
    {"MB", 1000000},
    {"GB", 1000000000},
    {"TB", 1000000000000},
    {"B", 1},
    {"", 1},
};

/* A decimal number and a suffix; exact for whole numbers, rounded down for fractions. What 64 bits
 * do not hold becomes UINT64_MAX. */
static bool parse_size(const char *text, uint64_t *ret_bytes)
{
    char *end;

    if (text[0] < '0' || text[0] > '9')
        return false; /* no sign, no blank, no "inf" */
    const unsigned long long whole = strtoull(text, &end, 10);
    double fraction = 0.0;

    if (*end == '.') {
        char *after = end + 1;
        double digit = 0.1;

        while (*after >= '0' && *after <= '9') {
            fraction += digit * (*after++ - '0');
            digit /= 10;
        }
        if (after == end + 1)
            return false;
        end = after;
    }
    for (size_t i = 0; i < sizeof(size_suffixes) / sizeof(size_suffixes[0]); i++) {
        const uint64_t factor = size_suffixes[i].factor;

        if (strcasecmp(end, size_suffixes[i].suffix) != 0)
            continue;
        *ret_bytes = whole > UINT64_MAX / factor - 1
                         ? UINT64_MAX
                         : whole * factor + (uint64_t) (fraction * (double) factor);
        return true;
    }
    return false;
}

static bool parse_count(const char *text, uint64_t *ret_value)
{
    char *end;

    if (text[0] < '0' || text[0] > '9')
        return false;
    errno = 0;
    *ret_value = strtoull(text, &end, 10);
    return errno == 0 && *end == '\0';
}

/* Any number that strtod() takes; whether it makes sense is the library's question. */
static bool parse_number(const char *text, double *ret_value)
{
    char *end;

    *ret_value = strtod(text, &end);
    return end != text && *end == '\0';
}

enum { WORD_BYTES = 64, WORDS_MAX = 16 };

/* It is not one of the words "a|b|c" that the help shows: say so, and which one was meant. */
static int refuse_choice(const struct option *opt, const char *text)
{
    char words[WORDS_MAX][WORD_BYTES];
    const char *list[WORDS_MAX], *c = cli_option_value(opt);
    size_t n = 0;

    while (c && n < WORDS_MAX) {
        const int len = (int) strcspn(c, "|");

        snprintf(words[n], WORD_BYTES, "%.*s", len, c);
        list[n] = words[n];
        n++;
        c = c[len] ? c + len + 1 : NULL;
    }
    const char *near = cli_nearest(text, list, n, sizeof(list[0]));

    return cli_usage("%s: \"%s\" is not one of %s%s%s", opt->name, text, cli_option_value(opt),
                     near ? "; did you mean " : "", near ? near : "");
}

static bool parse_choice(const char *text, const char *choices, unsigned *ret_index)
{
    const size_t n = strlen(text);

    *ret_index = 0;
    for (const char *c = choices; c; (*ret_index)++) {
        const char *bar = strchr(c, '|');
        const size_t len = bar ? (size_t) (bar - c) : strlen(c);

        if (len == n && strncasecmp(c, text, n) == 0)
            return true;
        c = bar ? bar + 1 : NULL;
    }
    return false;
}

/* One of the words "a|b|c" as it is written there, for what the library reads itself. */
static bool is_word(const char *text, const char *choices)
{
    unsigned idx;

    return parse_choice(text, choices, &idx) && !text[strcspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")];
}

int cli_usage(const char *format, ...)
{
    va_list ap;

    fputs("headrace: ", stderr);
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fputc('\n', stderr);
    return CLI_USAGE;
}

/* In the largest unit that leaves no fraction. */
static const char *size_text(char buf[32], uint64_t bytes)
{
    static const char *const units[] = {"", "KiB", "MiB", "GiB", "TiB"};
    size_t i = 0;

    while (i + 1 < sizeof(units) / sizeof(units[0]) && bytes && bytes % 1024 == 0) {
        bytes /= 1024;
        i++;
    }
    snprintf(buf, 32, "%" PRIu64 "%s", bytes, units[i]);
    return buf;
}

static int set_size(const struct option *opt, const char *text, uint64_t *value)
{
    char least[32], most[32];

    if (!parse_size(text, value))
        return cli_usage("%s: \"%s\" is not a size; write a number with KiB, MiB, GiB, KB, MB or "
                         "GB, such as 400MiB",
                         opt->name, text);
    if (*value >= opt->min && *value < UINT64_MAX && *value <= opt->max)
        return CLI_OK;
    const bool small = *value < opt->min, bare = text[strspn(text, "0123456789")] == '\0';
    const char *hint = small && bare ? ", a bare number counts bytes" : "";

    size_text(least, opt->min);
    size_text(most, opt->max);
    if (opt->max < UINT64_MAX)
        return cli_usage("%s: %s is too %s%s; expected %s to %s", opt->name, text,
                         small ? "small" : "large", hint, least, most);
    if (!small)
        return cli_usage("%s: %s is too large; expected such as 400MiB", opt->name, text);
    return cli_usage("%s: %s is too small%s; expected at least %s, such as 400MiB", opt->name, text,
                     hint, least);
}

static int set_count(const struct option *opt, const char *text, uint64_t *value)
{
    if (!parse_count(text, value))
        return cli_usage("%s: \"%s\" is not a whole number", opt->name, text);
    if (*value < opt->min || *value > opt->max)
        return cli_usage("%s: %s is out of range; expected %" PRIu64 " to %" PRIu64, opt->name,
                         text, opt->min, opt->max);
    return CLI_OK;
}

/* The library computes in float, so that is what has to lie in the range. */
static int set_number(const struct option *opt, const char *text, double *value)
{
    static const struct {
        size_t member;
        float low, high;
        const char *expected;
    } ranges[] = {
        {MEMBER(timestep), 0.0f, 1000.0f, "a number from 0 to 1000 (sigma * 1000)"},
        {MEMBER(strength), FLT_TRUE_MIN, 1.0f, "more than 0, up to 1"},
        {MEMBER(mu), -20.0f, 20.0f, "-20 to 20"},
        {MEMBER(cfg_scale), -FLT_MAX, FLT_MAX, "a finite number"},
    };
    const size_t n = sizeof(ranges) / sizeof(ranges[0]);
    size_t i = 0;

    if (!parse_number(text, value))
        return cli_usage("%s: \"%s\" is not a number", opt->name, text);
    while (i < n - 1 && ranges[i].member != opt->member)
        i++;
    if (!((float) *value >= ranges[i].low && (float) *value <= ranges[i].high))
        return cli_usage("%s: %s is out of range; expected %s", opt->name, text,
                         ranges[i].expected);
    return CLI_OK;
}

static int set_value(struct cli_options *o, const struct option *opt, const char *text)
{
    void *member = (char *) o + opt->member;

    switch (opt->kind) {
    case FLAG:
        *(bool *) member = true;
        break;
    case SIZE:
        return set_size(opt, text, member);
    case COUNT:
        return set_count(opt, text, member);
    case NUMBER:
        return set_number(opt, text, member);
    case LIST:
        if (((struct cli_list *) member)->n == HR_SAMPLES_MAX)
            return cli_usage("%s: more than %d", opt->name, HR_SAMPLES_MAX);
        ((struct cli_list *) member)->items[((struct cli_list *) member)->n++] = text;
        break;
    case LORA:
        return cli_add_lora(o, text);
    case WORD:
        if (!is_word(text, opt->choices))
            return refuse_choice(opt, text);
        *(const char **) member = text;
        break;
    case TEXT:
        *(const char **) member = text;
        break;
    case CHOICE:
        if (!parse_choice(text, opt->choices, member))
            return refuse_choice(opt, text);
        break;
    }
    return CLI_OK;
}

/* ---- the command line ------------------------------------------------------------------- */

/* The entry of `name` for this verb, or NULL. *ret_verbs: all verbs that have one of this name. */
static const struct option *find(const char *name, unsigned verb, unsigned *ret_verbs)
{
    const struct option *found = NULL;

    *ret_verbs = 0;
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (strcmp(options[i].name, name) != 0)
            continue;
        if (options[i].verbs & verb)
            found = &options[i];
        *ret_verbs |= options[i].verbs;
    }
    return found;
}

bool cli_is_given(const struct cli_options *o, const char *name)
{
    for (size_t i = 0; i < N_OPTIONS; i++)
        if (o->given[i] && strcmp(options[i].name, name) == 0)
            return true;
    return false;
}

/* No option of this verb is called so. */
static int refuse_option(const char *name, unsigned verb, const char *verb_name, unsigned verbs)
{
    const char *names[N_OPTIONS];
    char others[WORD_BYTES * 4];
    size_t n = 0;

    if (verbs)
        return cli_usage("%s is not an option of %s, but of %s; see headrace %s --help", name,
                         verb_name, cli_verb_names(verbs, others, sizeof(others)), verb_name);
    for (size_t i = 0; i < N_OPTIONS; i++)
        if (options[i].verbs & verb)
            names[n++] = options[i].name;
    const char *near = cli_nearest(name, names, n, sizeof(names[0]));

    return cli_usage("no option is called %s%s%s; see headrace %s --help", name,
                     near ? "; did you mean " : "", near ? near : "", verb_name);
}

/* The entry that argv's word names, alone or before "=", or NULL. */
static const struct option *find_in(const char *arg, unsigned verb, char name[WORD_BYTES],
                                    unsigned *ret_verbs)
{
    snprintf(name, WORD_BYTES, "%.*s", (int) strcspn(arg, "="), arg);
    return find(name, verb, ret_verbs);
}

/* The value that follows as a word of its own. An option there is a value that was forgotten. */
static int set_next(struct cli_options *o, unsigned verb, const struct option *opt,
                    const char *text)
{
    char name[WORD_BYTES];
    unsigned verbs;

    if (!text)
        return cli_usage("%s needs a value: %s", opt->name, cli_option_value(opt));
    if (find_in(text, verb, name, &verbs))
        return cli_usage("%s needs a value: %s; one that reads so is written %s=%s", opt->name,
                         cli_option_value(opt), opt->name, text);
    return set_value(o, opt, text);
}

/* One option at argv[*i], as "--name value" or "--name=value". */
static int parse_option(struct cli_options *o, unsigned verb, const char *verb_name, int argc,
                        char **argv, int *i)
{
    const char *arg = argv[*i], *equals = strchr(arg, '=');
    char name[WORD_BYTES];
    unsigned verbs;
    const struct option *opt = find_in(arg, verb, name, &verbs);

    if (!opt)
        return refuse_option(name, verb, verb_name, verbs);
    o->given[opt - options] = true;
    if (opt->kind == FLAG)
        return equals ? cli_usage("%s takes no value", opt->name) : set_value(o, opt, NULL);
    if (equals)
        return set_value(o, opt, equals + 1);
    return set_next(o, verb, opt, ++*i < argc ? argv[*i] : NULL);
}

static bool reads_nothing(const struct cli_options *o)
{
    const char *io = o->io && strcmp(o->io, "auto") != 0 ? o->io : getenv("HEADRACE_IO");

    return io && strcmp(io, "null") == 0;
}

/* Of options that are right each for itself. */
static int check_together(const struct cli_options *o, unsigned verb)
{
    if (o->zero_cond_t_on && o->zero_cond_t_off)
        return cli_usage("--zero-cond-t and --no-zero-cond-t exclude each other");
    if (!o->manifest && (o->verify == HR_VERIFY_FIRST || o->verify == HR_VERIFY_ALWAYS))
        return cli_usage("--verify needs --manifest FILE; headrace checksum makes one");
    if (o->width % 16 || o->height % 16)
        return cli_usage("--width and --height are multiples of 16 pixels");
    if (o->inputs.n > 0 && (o->width == 0) != (o->height == 0))
        return cli_usage("--width and --height go together");
    if ((float) o->cfg_scale == 0.0f) /* the library's word for its default */
        return cli_usage("--cfg-scale: 0 is no guidance scale; write 1 for none");
    if (o->block_bytes & (o->block_bytes - 1))
        return cli_usage("--block-size: %" PRIu64 " is not a power of two", o->block_bytes);
    if ((verb & CLI_COMPUTE) && o->output && reads_nothing(o))
        return cli_usage("--io null reads nothing: its result is none; leave --output out");
    return CLI_OK;
}

int cli_parse(struct cli_options *o, unsigned verb, const char *verb_name, int argc, char **argv)
{
    bool only_paths = false;

    o->verify = CLI_NOT_GIVEN;
    o->io_timeout = HR_TIMEOUT_S_DEFAULT;
    o->seed = CLI_NO_SEED;
    o->timestep = o->strength = o->cfg_scale = o->mu = NAN;
    for (int i = 0; i < argc; i++) {
        if (!only_paths && strcmp(argv[i], "--") == 0) {
            only_paths = true;
        } else if (!only_paths && argv[i][0] == '-' && argv[i][1] != '\0') {
            const int r = parse_option(o, verb, verb_name, argc, argv, &i);

            if (r != CLI_OK)
                return r;
        } else if (o->n_paths == CLI_PATHS_MAX) {
            return cli_usage("more than %d paths", CLI_PATHS_MAX);
        } else {
            o->paths[o->n_paths++] = argv[i];
        }
    }
    return check_together(o, verb);
}

const struct option *cli_option_table(size_t *ret_n)
{
    *ret_n = N_OPTIONS;
    return options;
}
