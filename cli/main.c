/* SPDX-License-Identifier: Apache-2.0 */
/* main.c -- the verbs. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "cli/tables.h"

static const struct verb verbs[] = {
    {"forward", CLI_FORWARD, cli_forward,
     "MODEL --inputs in.safetensors --timestep 750 --output out.safetensors",
     "one forward pass of the DiT, its weights streamed from disk"},
    {"denoise", CLI_DENOISE, cli_denoise,
     "MODEL --inputs in.safetensors --steps 30 --output out.safetensors",
     "the whole denoising loop: latents of a picture from noise and a prompt"},
    {"plan", CLI_PLAN, cli_plan, "MODEL --steps 30 --width 1024 --height 1024 --ram 8GiB",
     "what a run would read, hold and take, from its plan and from short measurements"},
    {"inspect", CLI_INSPECT, cli_inspect, "MODEL",
     "tensors, dtypes, shards, and what a forward would stream"},
    {"bench", CLI_BENCH, cli_bench, "MODEL [--device cuda]",
     "what the disk gives to this model, next to fio on the same files; or what a device can do"},
    {"tune", CLI_TUNE, cli_tune, "MODEL",
     "find block size and depth for the model's disk, and keep them for later runs"},
    {"doctor", CLI_DOCTOR, cli_doctor, "[MODEL]",
     "what this machine and the model's disk allow, and how to get more; without a MODEL, here"},
    {"synth", CLI_SYNTH, cli_synth, "MODEL",
     "make a model of the published sizes, or others, with known values"},
    {"inputs", CLI_INPUTS, cli_inputs, "MODEL --output in.safetensors",
     "make inputs of known values that fit a model"},
    {"checksum", CLI_CHECKSUM, cli_checksum, "MODEL [--output manifest.json]",
     "a manifest of checksums, to standard output or a file"},
    {"verify", CLI_VERIFY, cli_verify, "MODEL --manifest manifest.json",
     "compare a model with a manifest: each damaged tensor by name and place"},
    {"report", CLI_REPORT, cli_report, "RUN.json -o run.html",
     "one HTML page of a run, from what forward or denoise printed with --json"},
    {"completion", CLI_COMPLETION, cli_completion, "bash|zsh|fish",
     "print the completions of a shell, for those that are not installed"},
};

static const size_t n_verbs = sizeof(verbs) / sizeof(verbs[0]);

const struct verb *cli_verb_table(size_t *ret_n)
{
    *ret_n = n_verbs;
    return verbs;
}

const char *cli_verb_names(unsigned bits, char *buf, size_t buf_bytes)
{
    size_t len = 0, n_left = 0;

    for (size_t i = 0; i < n_verbs; i++)
        n_left += (verbs[i].bit & bits) != 0;
    buf[0] = '\0';
    for (size_t i = 0; i < n_verbs && len < buf_bytes; i++) {
        if (!(verbs[i].bit & bits))
            continue;
        n_left--;
        len += (size_t) snprintf(buf + len, buf_bytes - len, "%s%s", verbs[i].name,
                                 n_left == 0   ? ""
                                 : n_left == 1 ? " and "
                                               : ", ");
    }
    return buf;
}

volatile int cli_interrupted;
static void (*volatile interrupt_function)(void *object);
static void *volatile interrupt_object;

static void on_signal(int sig)
{
    void (*interrupt)(void *) = interrupt_function;

    (void) sig;
    cli_interrupted = 1;
    if (interrupt)
        interrupt(interrupt_object);
}

void cli_catch_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    /* SA_RESETHAND: a second signal ends the process in the ordinary way. */
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESETHAND};

    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        struct sigaction old;

        /* Under nohup a hang-up stays ignored; a shell's "&" is no such wish. */
        if (sigaction(signals[i], NULL, &old) == 0 &&
            (signals[i] != SIGHUP || old.sa_handler != SIG_IGN))
            sigaction(signals[i], &sa, NULL);
    }
}

void cli_interrupt_target(void (*interrupt)(void *object), void *object)
{
    interrupt_function = NULL; /* a signal between the two must not mix them */
    interrupt_object = object;
    interrupt_function = interrupt;
    if (interrupt && cli_interrupted) /* the signal came before there was a target */
        interrupt(object);
}

static void print_help(void)
{
    printf("headrace %s: diffusion transformers larger than memory, streamed from disk\n\n"
           "usage: headrace VERB MODEL [options]\n\n"
           "MODEL is a diffusers folder, a .safetensors file, or the shards of one model.\n\n",
           hr_version());
    for (size_t i = 0; i < n_verbs; i++)
        printf("  %-10s %s\n", verbs[i].name, verbs[i].summary);
    printf("\nheadrace VERB --help lists the options of a verb.\n");
}

static void print_verb_help(const struct verb *verb)
{
    printf("usage: headrace %s %s [options]\n\n%s\n\n", verb->name, verb->usage, verb->summary);
    cli_print_options(verb->bit);
}

static const struct verb *find_verb(const char *name)
{
    for (size_t i = 0; i < n_verbs; i++)
        if (strcmp(name, verbs[i].name) == 0)
            return &verbs[i];
    return NULL;
}

static int refuse_verb(const char *name)
{
    const char *near = cli_nearest(name, verbs, n_verbs, sizeof(verbs[0]));
    char names[256];

    if (near)
        return cli_usage("no verb is called %s; did you mean %s; see headrace --help", name, near);
    return cli_usage("no verb is called %s; there are %s; see headrace --help", name,
                     cli_verb_names(~0u, names, sizeof(names)));
}

/* headrace help [VERB] */
static int help(const char *name)
{
    const struct verb *verb = name ? find_verb(name) : NULL;

    if (name && !verb)
        return refuse_verb(name);
    if (verb)
        print_verb_help(verb);
    else
        print_help();
    return cli_flush();
}

static void log_line(void *user, enum hr_log_level level, const char *message)
{
    static const char *const names[] = {"error: ", "warning: ", "", ""};

    (void) user;
    cli_progress_clear();
    fprintf(stderr, "headrace: %s%s\n", names[level], message);
}

int main(int argc, char **argv)
{
    static struct cli_options options;
    const struct verb *verb;
    int r;

    if (argc < 2)
        return cli_usage("a verb is missing; see headrace --help");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0)
        return help(argv[2]);
    if (strcmp(argv[1], "--version") == 0) {
        printf("headrace %s\n", hr_version());
        return cli_flush();
    }
    if (strcmp(argv[1], "--print-man") == 0) { /* for the build */
        cli_print_manual();
        return cli_flush();
    }
    verb = find_verb(argv[1]);
    if (!verb)
        return refuse_verb(argv[1]);
    r = cli_parse(&options, verb->bit, verb->name, argc - 2, argv + 2);
    if (r != CLI_OK)
        return r;
    if (options.help) {
        print_verb_help(verb);
        return cli_flush();
    }
    if (options.n_paths == 0 && !(verb->bit & (CLI_COMPLETION | CLI_DOCTOR)))
        return cli_usage("%s needs a %s; see headrace %s --help", verb->name,
                         verb->bit == CLI_REPORT ? "RUN.json" : "MODEL", verb->name);

    hr_log_set(log_line, NULL,
               options.quiet             ? HR_LOG_ERROR
               : options.verbose         ? HR_LOG_DEBUG
               : verb->bit == CLI_PLAN   ? HR_LOG_WARN /* its measurements are runs of their own */
               : verb->bit == CLI_DOCTOR ? HR_LOG_WARN /* its trials are reported */
                                         : HR_LOG_INFO);
    cli_watch_json((verb->bit & (CLI_REPORT | CLI_BENCH)) != 0); /* they write nothing before */
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is reported by cli_flush() */
    signal(SIGCHLD, SIG_DFL); /* where it was inherited as ignored, nobody could wait for fio */
    return verb->run(&options);
}
