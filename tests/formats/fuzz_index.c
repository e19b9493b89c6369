/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_index.c -- any bytes as a shard index: refused with a message, or sorted, without doubles,
 * and every file name stays in its folder.
 */
#include <string.h>

#include "formats/formats.h"
#include "tests/formats/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hr_error err = {0};
    struct hr_index index;
    const int r = hr_index_parse(&index, (const char *) data, size, "index", &err);

    hr_assert(err.code == r && (r == 0) == (err.message[0] == '\0'));
    if (r < 0)
        return 0;
    hr_assert(index.n_shards > 0 && index.n_shards <= index.n_entries);
    for (uint32_t i = 0; i < index.n_shards; i++) {
        const char *name = index.shards[i];

        hr_assert(!strchr(name, '/') && !strchr(name, '\\'));
        hr_assert(strlen(name) > strlen(".safetensors") && strlen(name) <= 255);
        hr_assert(strcmp(name + strlen(name) - strlen(".safetensors"), ".safetensors") == 0);
        hr_assert(i == 0 || strcmp(index.shards[i - 1], name) < 0);
    }
    for (uint32_t i = 0; i < index.n_entries; i++) {
        hr_assert(index.entries[i].shard_idx < index.n_shards);
        hr_assert(i == 0 || strcmp(index.entries[i - 1].name, index.entries[i].name) < 0);
    }
    hr_index_uninit(&index);
    return 0;
}
