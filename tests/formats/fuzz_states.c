/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_states.c -- any bytes as a table of states: refused with a message, or every entry has a
 * module and a place for each state that it gives.
 */
#include <string.h>

#include "formats/formats.h"
#include "tests/formats/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hr_error err = {0};
    struct hr_state_table table;
    const int r = hr_state_table_parse(&table, (const char *) data, size, "states", &err);

    hr_assert(err.code == r && (r == 0) == (err.message[0] == '\0'));
    if (r < 0)
        return 0;
    hr_assert(table.n >= 1 && table.n <= HR_STATE_ENTRIES_MAX);
    for (uint32_t i = 0; i < table.n; i++) {
        const struct hr_state_entry *e = &table.entries[i];

        hr_assert(e->module[0] && memchr(e->module, '\0', sizeof(e->module)));
        hr_assert(e->places[HR_STATE_OFFLOAD].given);
        hr_assert(!e->places[HR_STATE_COMPUTATION].on_disk);
        for (int s = 0; s < HR_STATES; s++)
            if (e->places[s].has_dtype)
                hr_assert(hr_state_dtype_name(e->places[s].dtype));
    }
    hr_state_table_uninit(&table);
    return 0;
}
