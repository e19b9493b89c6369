/* SPDX-License-Identifier: Apache-2.0 */
/* tables.h -- the tables of verbs (main.c) and options (options.c). Parsing, help, the manual page
 * and the shells' completions are made from them. */
#ifndef HR_CLI_TABLES_H
#define HR_CLI_TABLES_H

#include "cli/cli.h"

struct verb {
    const char *name;
    unsigned bit;
    int (*run)(const struct cli_options *o);
    const char *usage, *summary; /* usage begins with MODEL, or the words that are allowed: a|b */
};

#define MEMBER(m) offsetof(struct cli_options, m)

enum kind { FLAG, SIZE, COUNT, NUMBER, TEXT, WORD, LIST, LORA, CHOICE };

struct option {
    const char *name;
    enum kind kind;
    size_t member;
    unsigned verbs;
    uint64_t min, max;   /* SIZE, COUNT */
    const char *choices; /* CHOICE: "a|b|c", the value is the index, the first the default;
                            WORD: those allowed, also such as the help does not show */
    const char *arg;     /* what a value is: FILE, DIR, or words: a|b; those in capitals stand for
                            others */
    const char *help;    /* @ stands for the default */
};

/* main.c, options.c */
const struct verb *cli_verb_table(size_t *ret_n);
const struct option *cli_option_table(size_t *ret_n);
/* The names of the verbs in a set of bits: "forward, denoise and plan". @return buf */
const char *cli_verb_names(unsigned bits, char *buf, size_t buf_bytes);

/* help.c */
/* What the option's value is, "FILE" or "auto|on|off"; NULL: it takes none. */
const char *cli_option_value(const struct option *opt);
/* The help of an option with its default in it. @return buf */
const char *cli_option_help(const struct option *opt, char *buf, size_t buf_bytes);

/* manual.c: the manual page, for man(1). */
void cli_print_manual(void);

#endif /* HR_CLI_TABLES_H */
