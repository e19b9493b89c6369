/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_tuning.c -- any bytes as the figures of a disk: refused with a message, or in range, and
 * written they read back the same.
 */
#include <stdlib.h>
#include <string.h>

#include "formats/formats.h"
#include "tests/formats/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hr_error err = {0};
    struct hr_tuning tuning, again;
    const int r = hr_tuning_parse(&tuning, (const char *) data, size, "tuning", &err);

    hr_assert(err.code == r || (r < 0 && err.code < 0));
    hr_assert((r == 0) == (err.message[0] == '\0'));
    if (r < 0)
        return 0;
    hr_assert(hr_tuning_check(&tuning, "tuning", NULL) == 0);
    char *text = hr_tuning_build(&tuning);

    hr_assert(text && hr_tuning_parse(&again, text, strlen(text), "again", NULL) == 0);
    char *text_again = hr_tuning_build(&again);

    hr_assert(text_again && strcmp(text, text_again) == 0);
    free(text_again);
    free(text);
    return 0;
}
