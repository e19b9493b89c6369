/* SPDX-License-Identifier: Apache-2.0 */
/* help.c -- an option in words, its default as the code has it. */
#include <stdio.h>
#include <string.h>

#include "cli/tables.h"

enum { WORD_BYTES = 64 };

/* What stands for a member that was not given; of a choice, the first. */
static const struct {
    size_t member;
    uint64_t value;
} defaults[] = {
    {MEMBER(n_steps), CLI_STEPS_DEFAULT},        {MEMBER(cfg_scale), HR_CFG_SCALE_DEFAULT},
    {MEMBER(ring_bytes), HR_RING_BYTES_DEFAULT}, {MEMBER(block_bytes), HR_BLOCK_BYTES_DEFAULT},
    {MEMBER(depth), HR_DEPTH_DEFAULT},           {MEMBER(io_timeout), HR_TIMEOUT_S_DEFAULT},
    {MEMBER(n_quads), CLI_QUADS_DEFAULT},        {MEMBER(n_layers), HR_SYNTH_LAYERS_DEFAULT},
    {MEMBER(n_heads), HR_SYNTH_HEADS_DEFAULT},   {MEMBER(joint_dim), HR_SYNTH_JOINT_DIM_DEFAULT},
    {MEMBER(width), CLI_PIXELS_DEFAULT},         {MEMBER(height), CLI_PIXELS_DEFAULT},
    {MEMBER(n_text), CLI_TEXT_TOKENS_DEFAULT},
};

const char *cli_option_value(const struct option *opt)
{
    return opt->kind == CHOICE ? opt->choices : opt->arg;
}

/* As one would type it. */
static void print_default(const struct option *opt, char *buf, size_t buf_bytes)
{
    uint64_t value = 0;

    if (opt->kind == CHOICE) {
        snprintf(buf, buf_bytes, "%.*s", (int) strcspn(opt->choices, "|"), opt->choices);
        return;
    }
    for (size_t i = 0; i < sizeof(defaults) / sizeof(defaults[0]); i++)
        if (defaults[i].member == opt->member)
            value = defaults[i].value;
    if (opt->kind != SIZE)
        snprintf(buf, buf_bytes, "%llu", (unsigned long long) value);
    else
        snprintf(buf, buf_bytes, "%lluMiB", (unsigned long long) value >> 20);
}

const char *cli_option_help(const struct option *opt, char *buf, size_t buf_bytes)
{
    const char *at = strchr(opt->help, '@');
    char value[WORD_BYTES] = "";

    if (at)
        print_default(opt, value, sizeof(value));
    snprintf(buf, buf_bytes, "%.*s%s%s", (int) strcspn(opt->help, "@"), opt->help, value,
             at ? at + 1 : "");
    return buf;
}

void cli_print_options(unsigned verb)
{
    size_t n;
    const struct option *options = cli_option_table(&n);

    for (size_t i = 0; i < n; i++) {
        char left[WORD_BYTES], help[256];

        if (!(options[i].verbs & verb))
            continue;
        const char *arg = cli_option_value(&options[i]);

        snprintf(left, sizeof(left), "%s%s%s", options[i].name, arg ? " " : "", arg ? arg : "");
        cli_option_help(&options[i], help, sizeof(help));
        if (strlen(left) > 26)
            printf("  %s\n  %-26s  %s\n", left, "", help);
        else
            printf("  %-26s  %s\n", left, help);
    }
}
