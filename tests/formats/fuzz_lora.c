/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_lora.c -- any bytes as a LoRA file: header, keys, alphas and adapter settings are refused
 * with a message, or give terms that fit their modules.
 */
#include <math.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/lora.h"
#include "gpu/gpu.h"
#include "tests/formats/fuzz.h"

static const struct hr_lora_module modules[] = {
    {"transformer_blocks.0.attn.to_q", 4, 2},
    {"transformer_blocks.0.img_mlp.net.0.proj", 8, 2},
    {"proj_out", 2, 4},
};

static void check_terms(const struct hr_lora *lora)
{
    for (uint32_t i = 0; i < HR_ARRAY_SIZE(modules); i++) {
        uint32_t n;
        const struct hr_lora_term *terms = hr_lora_terms(lora, i, &n);

        hr_assert(n <= 1);
        for (uint32_t k = 0; k < n; k++) {
            hr_assert(terms[k].rank >= 1 && terms[k].rank <= HR_LOW_RANK_MAX);
            hr_assert(isfinite(terms[k].scale));
            hr_assert(terms[k].down->rank == 2 && terms[k].up->rank == 2);
            hr_assert(terms[k].down->shape[0] == terms[k].rank);
            hr_assert(terms[k].down->shape[1] == modules[i].n_in);
            hr_assert(terms[k].up->shape[0] == modules[i].n_out);
            hr_assert(terms[k].up->shape[1] == terms[k].rank);
        }
    }
}

static void no_log(void *user, enum hr_log_level level, const char *message)
{
    (void) user;
    (void) level;
    (void) message;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const int fd = memfd_create("fuzz-lora", 0);
    char path[64];
    struct hr_error err = {0};
    struct hr_lora *lora = NULL;
    int r;

    hr_assert(fd >= 0 && write(fd, data, size) == (ssize_t) size);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    hr_log_set(no_log, NULL, HR_LOG_ERROR);
    const struct hr_lora_file file = {.path = path, .strength = 1.0f};

    r = hr_lora_open(&lora, &file, 1, modules, HR_ARRAY_SIZE(modules), &err);
    hr_assert(err.code == r && (r == 0) == (err.message[0] == '\0'));
    if (r == 0)
        check_terms(lora);
    hr_lora_close(&lora);
    close(fd);
    return 0;
}
