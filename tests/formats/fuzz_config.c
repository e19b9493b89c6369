/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_config.c -- any bytes as config.json: refused with a message, or within the ranges, and
 * written it reads back the same.
 */
#include <stdlib.h>
#include <string.h>

#include "formats/formats.h"
#include "tests/formats/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hr_error err = {0};
    struct hr_config config, again;
    const int r = hr_config_parse(&config, (const char *) data, size, "config", &err);
    char *text, *text_again;

    hr_assert(err.code == r && (r == 0) == (err.message[0] == '\0'));
    if (r < 0)
        return 0;
    hr_assert(config.num_layers <= 10000 && config.num_attention_heads <= 1024);
    hr_assert(config.joint_attention_dim <= 65536);
    hr_assert(config.attention_head_dim == 0 || config.attention_head_dim == 128);
    text = hr_config_build(&config);
    hr_assert(text);
    hr_assert(hr_config_parse(&again, text, strlen(text), "again", NULL) == 0);
    text_again = hr_config_build(&again);
    hr_assert(text_again && strcmp(text, text_again) == 0);
    free(text_again);
    free(text);
    return 0;
}
