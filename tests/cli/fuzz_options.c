/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_options.c -- any words as a command line: used wrongly, or all values are in their ranges.
 *
 * The first byte chooses the verb; the rest is cut into words at line feeds. Messages go to
 * standard error (libFuzzer's -close_fd_mask=2 hides them).
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "tests/formats/fuzz.h"

enum { WORDS_MAX = 64, VERBS = 10 };

#define CHECK(condition)  \
    do {                  \
        if (!(condition)) \
            abort();      \
    } while (0)

static void check_values(const struct cli_options *o)
{
    CHECK(o->n_paths <= CLI_PATHS_MAX);
    CHECK(o->inputs.n <= HR_SAMPLES_MAX && o->n_loras <= HR_LORA_FILES_MAX);
    CHECK((o->block_bytes & (o->block_bytes - 1)) == 0);
    CHECK(o->block_bytes == 0 || (o->block_bytes >= 64 << 10 && o->block_bytes <= 32 << 20));
    CHECK(o->depth <= 1024);
    CHECK(o->width % 16 == 0 && o->height % 16 == 0);
    CHECK(!isinf(o->strength) && !isinf(o->cfg_scale) && !isinf(o->mu));
    CHECK(o->verify == CLI_NOT_GIVEN || o->verify <= HR_VERIFY_ALWAYS);
    CHECK(o->precision <= HR_PRECISION_F32 && o->direct <= HR_DIRECT_OFF);
    for (uint32_t i = 0; i < o->n_loras; i++)
        CHECK(o->loras[i].path[0] && isfinite(o->loras[i].strength));
}

/* Paths of LoRAs are copies where a strength was cut off; otherwise words of ours. */
static void free_copies(const struct cli_options *o, const char *words, size_t bytes)
{
    const uint32_t n = o->n_loras < HR_LORA_FILES_MAX ? o->n_loras + 1 : o->n_loras;

    for (uint32_t i = 0; i < n; i++)
        if (o->loras[i].path && (o->loras[i].path < words || o->loras[i].path > words + bytes))
            free((char *) (uintptr_t) o->loras[i].path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cli_options *o = calloc(1, sizeof(*o));
    char *words = malloc(size + 1), *rest = words, *argv[WORDS_MAX + 1];
    const unsigned verb = 1u << (size > 0 ? data[0] % VERBS : 0);
    int argc = 0;

    CHECK(o && words);
    memcpy(words, data, size);
    words[size] = '\0'; /* and the first NUL ends the words */
    if (size > 0)
        rest++;
    for (char *word; argc < WORDS_MAX && (word = strsep(&rest, "\n"));)
        argv[argc++] = word;
    argv[argc] = NULL;
    if (cli_parse(o, verb, "verb", argc, argv) == CLI_OK)
        check_values(o);
    free_copies(o, words, size);
    free(words);
    free(o);
    return 0;
}
