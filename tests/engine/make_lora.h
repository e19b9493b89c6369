/* SPDX-License-Identifier: Apache-2.0 */
/* make_lora.h -- for tests: LoRA files of every family of keys, and the weights that they make. */
#ifndef HR_TESTS_MAKE_LORA_H
#define HR_TESTS_MAKE_LORA_H

#include "tests/engine/any_file.h"

struct lora_family {
    const char *prefix, *down, *up;
    bool flat; /* "_" for each "." of the layer's name */
};

enum { N_LORA_FAMILIES = 5 };
extern const struct lora_family lora_families[N_LORA_FAMILIES];

struct lora {
    const struct lora_family *family;
    const char *only; /* layers whose name holds this; NULL: all */
    uint32_t rank;
    float alpha; /* 0: not in the file */
    enum hr_dtype dtype;
    const char *seed;
};

/* Write a LoRA for the layers of `merged`, and add strength times what it says to their weights. */
void make_lora(const char *path, const struct lora *lora, struct any_file *merged, double strength);

#endif /* HR_TESTS_MAKE_LORA_H */
