/* SPDX-License-Identifier: Apache-2.0 */
/* manual.c -- headrace(1), in the macros of man(7), from the tables of verbs and options. */
#include <stdio.h>
#include <string.h>

#include "cli/tables.h"

/* Text as roff takes it: no request by accident, hyphens that can be copied. */
static void print_roff(const char *text)
{
    if (*text == '.' || *text == '\'')
        fputs("\\&", stdout);
    for (const char *c = text; *c; c++) {
        if (*c == '\\')
            fputs("\\e", stdout);
        else if (*c == '-')
            fputs("\\-", stdout);
        else
            putchar(*c);
    }
}

static void print_verbs(void)
{
    size_t n;
    const struct verb *verbs = cli_verb_table(&n);

    printf(".SH VERBS\n");
    for (size_t i = 0; i < n; i++) {
        printf(".TP\n.B headrace %s ", verbs[i].name);
        print_roff(verbs[i].usage);
        printf("\n");
        print_roff(verbs[i].summary);
        printf(".\n");
    }
}

static void print_options(void)
{
    size_t n;
    const struct option *options = cli_option_table(&n);
    char help[256], names[256];

    printf(".SH OPTIONS\nA value follows its option as the next word, or after an equals sign. "
           "Each option says which verbs take it.\n");
    for (size_t i = 0; i < n; i++) {
        const char *value = cli_option_value(&options[i]);

        printf(".TP\n.B ");
        print_roff(options[i].name);
        if (value) {
            printf(" ");
            print_roff(value);
        }
        printf("\n");
        print_roff(cli_option_help(&options[i], help, sizeof(help)));
        printf(".\n.br\nVerbs: %s.\n", cli_verb_names(options[i].verbs, names, sizeof(names)));
    }
}

static void print_terms(const char *heading, const char *const (*terms)[2], size_t n)
{
    printf(".SH %s\n", heading);
    for (size_t i = 0; i < n; i++) {
        printf(".TP\n.B ");
        print_roff(terms[i][0]);
        printf("\n");
        print_roff(terms[i][1]);
        printf("\n");
    }
}

static const char *const environment[][2] = {
    {"HEADRACE_IO", "What --io auto takes: io_uring, libaio, pread or cufile."},
    {"HEADRACE_DEVICE", "What --device auto takes, such as cpu."},
    {"HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME",
     "Where the Hugging Face cache is, into which links of a model's folder may lead."},
    {"XDG_CACHE_HOME, HOME", "Where tune keeps what it found."},
    {"HEADRACE_CPU", "Kernels of another instruction set, for tests: baseline, avx2 or avx512."},
    {"HEADRACE_CPU_BF16", "off: products of bf16 are computed in f32."},
    {"NO_COLOR, TERM, COLUMNS",
     "Of progress on a terminal: no colours, no redrawing where TERM is dumb, a smaller width."},
    {"TMPDIR", "Where modulation vectors go that are more than a tenth of --ram."},
};

static const char *const files[][2] = {
    {"~/.cache/headrace/disk-*.json", "Block size and depth of a disk, as tune found them."},
};

static const char *const status[][2] = {
    {"0", "Done."},
    {"1",
     "Failed; one line on standard error says what, where, and what to do. Of verify also: the "
     "model differs from the manifest."},
    {"2", "Used wrongly."},
};

void cli_print_manual(void)
{
    printf(".TH HEADRACE 1 \"\" \"headrace %s\" \"User Commands\"\n"
           ".SH NAME\nheadrace \\- run diffusion transformers larger than memory, streamed from "
           "disk\n"
           ".SH SYNOPSIS\n.B headrace\n.I VERB MODEL\n.RI [ options ]\n"
           ".SH DESCRIPTION\n"
           "Runs the Qwen-Image diffusion transformer with its weights streamed from the disk, "
           "pass after pass.\n.I MODEL\nis a diffusers folder, a .safetensors file, or the shards "
           "of one model. Results go to standard output, messages and progress to standard "
           "error.\n",
           hr_version());
    print_verbs();
    print_options();
    print_terms("ENVIRONMENT", environment, sizeof(environment) / sizeof(environment[0]));
    print_terms("FILES", files, sizeof(files) / sizeof(files[0]));
    print_terms("EXIT STATUS", status, sizeof(status) / sizeof(status[0]));
    printf(".SH EXAMPLES\n.nf\n"
           "headrace inspect MODEL\n"
           "headrace plan MODEL \\-\\-steps 30 \\-\\-ram 8GiB\n"
           "headrace inputs MODEL \\-\\-output in.safetensors\n"
           "headrace forward MODEL \\-\\-inputs in.safetensors \\-\\-timestep 750 "
           "\\-\\-output out.safetensors\n"
           ".fi\n");
}
