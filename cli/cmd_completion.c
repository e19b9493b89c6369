/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_completion.c -- completions for bash, zsh and fish, from the tables of verbs and options. The
 * build installs what this prints. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "cli/tables.h"

/* ---- what the tables say -------------------------------------------------------------- */

enum value { VALUE_NONE, VALUE_WORDS, VALUE_FILE, VALUE_FOLDER, VALUE_OTHER };

static enum value value_of(const struct option *opt)
{
    const char *value = cli_option_value(opt);

    if (!value)
        return VALUE_NONE;
    if (strchr(value, '|'))
        return VALUE_WORDS;
    if (strncmp(value, "FILE", 4) == 0)
        return VALUE_FILE;
    return strcmp(value, "DIR") == 0 ? VALUE_FOLDER : VALUE_OTHER;
}

/* "--output" and not "-o" */
static bool is_long(const struct option *opt)
{
    return opt->name[1] == '-';
}

/* The words of "a|b|c:N" that can be typed as they stand, with blanks between. */
static void print_words(const char *words)
{
    bool first = true;

    for (const char *w = words; *w;) {
        const size_t len = strcspn(w, "|");
        bool literal = true;

        for (size_t i = 0; i < len; i++)
            literal = literal && !isupper((unsigned char) w[i]);
        if (literal)
            printf("%s%.*s", first ? "" : " ", (int) len, w);
        first = first && !literal;
        w += len + (w[len] == '|');
    }
}

/* Verbs that take words, not a model: those words. */
static const char *verb_words(const struct verb *verb)
{
    const size_t first = strcspn(verb->usage, " ");

    return memchr(verb->usage, '|', first) ? verb->usage : NULL;
}

static void print_escaped(const char *text, const char *special, const char *escape)
{
    for (const char *c = text; *c; c++) {
        if (strchr(special, *c))
            fputs(escape, stdout);
        putchar(*c);
    }
}

/* Between single quotes of a POSIX shell; `special` needs a backslash within. */
static void print_quoted(const char *text, const char *special)
{
    for (const char *c = text; *c; c++) {
        if (*c == '\'')
            fputs("'\\''", stdout);
        else
            printf("%s%c", strchr(special, *c) ? "\\" : "", *c);
    }
}

/* ---- bash ----------------------------------------------------------------------------- */

/* The verbs and options of one kind as patterns of a case. @return whether there are any */
static bool print_bash_patterns(enum value value, const char *indent)
{
    size_t n, n_verbs;
    const struct option *options = cli_option_table(&n);
    const struct verb *verbs = cli_verb_table(&n_verbs);
    bool any = false;

    for (size_t i = 0; i < n; i++) {
        if (value_of(&options[i]) != value)
            continue;
        for (size_t v = 0; v < n_verbs; v++)
            if (options[i].verbs & verbs[v].bit) {
                printf("%s'%s %s'", any ? " | \\\n    " : indent, verbs[v].name, options[i].name);
                any = true;
            }
    }
    return any;
}

static void print_bash_values(void)
{
    size_t n, n_verbs;
    const struct option *options = cli_option_table(&n);
    const struct verb *verbs = cli_verb_table(&n_verbs);

    printf("    case \"$verb $before\" in\n");
    for (size_t i = 0; i < n; i++) {
        if (value_of(&options[i]) != VALUE_WORDS)
            continue;
        for (size_t v = 0, any = 0; v < n_verbs; v++)
            if (options[i].verbs & verbs[v].bit)
                printf("%s'%s %s'", any++ ? " | " : "    ", verbs[v].name, options[i].name);
        printf(")\n        words='");
        print_words(cli_option_value(&options[i]));
        printf("' ;;\n");
    }
    if (print_bash_patterns(VALUE_FILE, "    "))
        printf(")\n        paths=-f ;;\n");
    if (print_bash_patterns(VALUE_FOLDER, "    "))
        printf(")\n        paths=-d ;;\n");
    if (print_bash_patterns(VALUE_OTHER, "    "))
        printf(")\n        return ;;\n");
    printf("    *)\n        others=1 ;;\n    esac\n");
}

static void print_bash_verbs(void)
{
    size_t n, n_verbs;
    const struct option *options = cli_option_table(&n);
    const struct verb *verbs = cli_verb_table(&n_verbs);

    printf("    case $verb in\n");
    for (size_t v = 0; v < n_verbs; v++) {
        printf("    %s)\n        options='", verbs[v].name);
        for (size_t i = 0, any = 0; i < n; i++)
            if (options[i].verbs & verbs[v].bit)
                printf("%s%s", any++ ? " " : "", options[i].name);
        printf("'");
        if (verb_words(&verbs[v])) {
            printf("\n        words='");
            print_words(verb_words(&verbs[v]));
            printf("'");
        }
        printf(" ;;\n");
    }
    printf("    esac\n");
}

static void print_bash(void)
{
    size_t n_verbs;
    const struct verb *verbs = cli_verb_table(&n_verbs);

    printf("# bash completion for headrace %s, made by: headrace completion bash\n\n"
           "_headrace()\n{\n"
           "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}\n"
           "    local verb=${COMP_WORDS[1]} words='' paths='' options='' others=''\n"
           "    local IFS=$' \\t\\n'\n\n"
           "    COMPREPLY=()\n"
           "    if [ \"$COMP_CWORD\" = 1 ]; then\n"
           "        COMPREPLY=($(compgen -W '",
           hr_version());
    for (size_t v = 0; v < n_verbs; v++)
        printf("%s ", verbs[v].name);
    printf("--help --version' -- \"$word\"))\n        return\n    fi\n"
           "    # bash takes --option=value apart at the \"=\".\n"
           "    if [ \"$word\" = = ]; then\n"
           "        word=''\n"
           "    elif [ \"$before\" = = ]; then\n"
           "        before=${COMP_WORDS[COMP_CWORD - 2]}\n"
           "    fi\n");
    print_bash_values();
    printf("    if [ \"$others\" ]; then\n        ");
    print_bash_verbs();
    printf("        case $word in\n"
           "        -*) words=$options ;;\n"
           "        *) [ \"$words\" ] || paths=-f ;;\n"
           "        esac\n"
           "    fi\n"
           "    if [ \"$paths\" ]; then\n"
           "        compopt -o filenames 2>/dev/null\n"
           "        IFS=$'\\n'\n"
           "        COMPREPLY=($(compgen \"$paths\" -- \"$word\"))\n"
           "    else\n"
           "        COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
           "    fi\n"
           "}\n\n"
           "complete -F _headrace headrace\n");
}

/* ---- zsh ------------------------------------------------------------------------------ */

static void print_zsh_option(const struct option *opt)
{
    const char *value = cli_option_value(opt);
    char help[256];

    printf(" \\\n            '%s%s%s[", opt->kind == LIST || opt->kind == LORA ? "*" : "",
           opt->name, value && is_long(opt) ? "=" : "");
    print_quoted(cli_option_help(opt, help, sizeof(help)), "[]\\");
    printf("]");
    if (value) {
        printf(":");
        print_quoted(strchr(value, '|') ? opt->name + 2 : value, "[]:\\");
        printf(":");
    }
    switch (value_of(opt)) {
    case VALUE_WORDS:
        printf("(");
        print_words(value);
        printf(")");
        break;
    case VALUE_FILE:
        printf("_files");
        break;
    case VALUE_FOLDER:
        printf("_files -/");
        break;
    case VALUE_OTHER:
        printf(" ");
        break;
    case VALUE_NONE:
        break;
    }
    printf("'");
}

static void print_zsh(void)
{
    size_t n, n_verbs;
    const struct option *options = cli_option_table(&n);
    const struct verb *verbs = cli_verb_table(&n_verbs);

    printf(
        "#compdef headrace\n# zsh completion for headrace %s, made by: headrace completion zsh\n\n"
        "_headrace() {\n    local -a verbs\n    verbs=(\n",
        hr_version());
    for (size_t v = 0; v < n_verbs; v++) {
        printf("        '%s:", verbs[v].name);
        print_quoted(verbs[v].summary, ":\\");
        printf("'\n");
    }
    printf("    )\n"
           "    if (( CURRENT == 2 )); then\n"
           "        _describe verb verbs\n"
           "        return\n"
           "    fi\n"
           "    local verb=$words[2]\n"
           "    shift words\n"
           "    (( CURRENT-- ))\n"
           "    case $verb in\n");
    for (size_t v = 0; v < n_verbs; v++) {
        printf("    %s)\n        _arguments -S", verbs[v].name);
        for (size_t i = 0; i < n; i++)
            if (options[i].verbs & verbs[v].bit)
                print_zsh_option(&options[i]);
        if (verb_words(&verbs[v])) {
            printf(" \\\n            ':word:(");
            print_words(verb_words(&verbs[v]));
            printf(")' ;;\n");
        } else {
            printf(" \\\n            '*:MODEL:_files' ;;\n");
        }
    }
    printf("    esac\n}\n\n_headrace \"$@\"\n");
}

/* ---- fish ----------------------------------------------------------------------------- */

static void print_fish_verbs(unsigned bits)
{
    size_t n_verbs;
    const struct verb *verbs = cli_verb_table(&n_verbs);

    printf("complete -c headrace -n '__fish_seen_subcommand_from");
    for (size_t v = 0; v < n_verbs; v++)
        if (verbs[v].bit & bits)
            printf(" %s", verbs[v].name);
    printf("'");
}

static void print_fish_option(const struct option *opt)
{
    const char *value = cli_option_value(opt);
    char help[256];

    print_fish_verbs(opt->verbs);
    printf(is_long(opt) ? " -l %s" : " -s %s", opt->name + (is_long(opt) ? 2 : 1));
    switch (value_of(opt)) {
    case VALUE_WORDS:
        printf(" -x -a '");
        print_words(value);
        printf("'");
        break;
    case VALUE_FILE:
        printf(" -r -F");
        break;
    case VALUE_FOLDER:
        printf(" -x -a '(__fish_complete_directories)'");
        break;
    case VALUE_OTHER:
        printf(" -x");
        break;
    case VALUE_NONE:
        break;
    }
    printf(" -d '");
    print_escaped(cli_option_help(opt, help, sizeof(help)), "'\\", "\\");
    printf("'\n");
}

static void print_fish(void)
{
    size_t n, n_verbs;
    const struct option *options = cli_option_table(&n);
    const struct verb *verbs = cli_verb_table(&n_verbs);

    printf("# fish completion for headrace %s, made by: headrace completion fish\n\n",
           hr_version());
    for (size_t v = 0; v < n_verbs; v++) {
        printf("complete -c headrace -n __fish_use_subcommand -f -a %s -d '", verbs[v].name);
        print_escaped(verbs[v].summary, "'\\", "\\");
        printf("'\n");
    }
    for (size_t v = 0; v < n_verbs; v++) {
        if (!verb_words(&verbs[v]))
            continue;
        print_fish_verbs(verbs[v].bit);
        printf(" -f -a '");
        print_words(verb_words(&verbs[v]));
        printf("'\n");
    }
    for (size_t i = 0; i < n; i++)
        print_fish_option(&options[i]);
}

int cli_completion(const struct cli_options *o)
{
    static const struct {
        const char *name;
        void (*print)(void);
    } shells[] = {{"bash", print_bash}, {"zsh", print_zsh}, {"fish", print_fish}};
    const size_t n = sizeof(shells) / sizeof(shells[0]);

    if (o->n_paths != 1)
        return cli_usage("completion needs one shell: bash, zsh or fish");
    for (size_t i = 0; i < n; i++) {
        if (strcmp(o->paths[0], shells[i].name) != 0)
            continue;
        shells[i].print();
        return cli_flush();
    }
    const char *near = cli_nearest(o->paths[0], shells, n, sizeof(shells[0]));

    return cli_usage("completion: no shell is called %s%s%s; there are bash, zsh and fish",
                     o->paths[0], near ? "; did you mean " : "", near ? near : "");
}
