/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_manifest.c -- any bytes as a manifest: refused with a message, or sorted, in range, and
 * written it reads back the same.
 */
#include <stdlib.h>
#include <string.h>

#include "formats/formats.h"
#include "tests/formats/fuzz.h"

static void check_rebuilt(const struct hr_manifest *manifest)
{
    struct hr_manifest again;
    char *text, *text_again;
    size_t bytes, bytes_again;

    hr_assert(hr_manifest_build(&text, &bytes, manifest, NULL) == 0);
    hr_assert(hr_manifest_parse(&again, text, bytes, "again", NULL) == 0);
    hr_assert(hr_manifest_build(&text_again, &bytes_again, &again, NULL) == 0);
    hr_assert(bytes == bytes_again && memcmp(text, text_again, bytes) == 0);
    hr_manifest_uninit(&again);
    free(text_again);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hr_error err = {0};
    struct hr_manifest m;
    const int r = hr_manifest_parse(&m, (const char *) data, size, "manifest", &err);

    hr_assert(err.code == r && (r == 0) == (err.message[0] == '\0'));
    if (r < 0)
        return 0;
    for (uint32_t i = 1; i < m.n_files; i++)
        hr_assert(strcmp(m.files[i - 1].name, m.files[i].name) < 0);
    for (uint32_t i = 0; i < m.n_tensors; i++) {
        const struct hr_manifest_tensor *t = &m.tensors[i];

        hr_assert(i == 0 || strcmp(m.tensors[i - 1].name, t->name) < 0);
        hr_assert(t->file_idx < m.n_files);
        hr_assert(t->size_bytes <= m.files[t->file_idx].size_bytes);
        hr_assert(t->begin_bytes <= m.files[t->file_idx].size_bytes - t->size_bytes);
    }
    check_rebuilt(&m);
    hr_manifest_uninit(&m);
    return 0;
}
