/* SPDX-License-Identifier: Apache-2.0 */
/* make_lora.c -- see make_lora.h. */
#include "tests/engine/make_lora.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/files.h"
#include "formats/formats.h"

const struct lora_family lora_families[N_LORA_FAMILIES] = {
    {"", ".lora_A.default.weight", ".lora_B.default.weight", false}, /* PEFT, DiffSynth */
    {"transformer.", ".lora_A.weight", ".lora_B.weight", false},     /* diffusers       */
    {"diffusion_model.", ".lora_A.weight", ".lora_B.weight", false}, /* ComfyUI         */
    {"", ".lora_down.weight", ".lora_up.weight", false},             /* lightx2v        */
    {"lora_unet_", ".lora_down.weight", ".lora_up.weight", true},    /* kohya           */
};

static void round_to(struct any_tensor *t)
{
    uint16_t *raw = malloc(t->n * sizeof(*raw));

    assert_non_null(raw);
    if (t->dtype != HR_DTYPE_F32) {
        hr_dtype_from_f32(raw, t->values, t->dtype, t->n);
        hr_dtype_to_f32(t->values, raw, t->dtype, t->n);
    }
    free(raw);
}

/* A half of a module's term, with values of its own as large as the scale says. */
static const float *add_half(struct any_file *file, const struct lora *lora, const char *module,
                             const char *suffix, uint64_t rows, uint64_t cols, double scale)
{
    struct any_tensor *t = any_file_add(file, lora->dtype, 2, rows, cols, "%s%s%s",
                                        lora->family->prefix, module, suffix);
    char seed[256];

    snprintf(seed, sizeof(seed), "%s %s %s", lora->seed, module, suffix);
    hr_synth_values(t->values, seed, 0, t->n, 2, cols, scale);
    round_to(t);
    return t->values;
}

/* w += strength * alpha / rank * up down */
static void merge(float *w, const float *up, const float *down, uint64_t n_out, uint64_t n_in,
                  const struct lora *lora, double strength)
{
    const double scale = strength * (lora->alpha != 0.0f ? (double) lora->alpha / lora->rank : 1.0);

    for (uint64_t i = 0; i < n_out; i++)
        for (uint64_t j = 0; j < n_in; j++) {
            double sum = 0;

            for (uint64_t r = 0; r < lora->rank; r++)
                sum += (double) up[i * lora->rank + r] * down[r * n_in + j];
            w[i * n_in + j] = (float) (w[i * n_in + j] + scale * sum);
        }
}

void make_lora(const char *path, const struct lora *lora, struct any_file *merged, double strength)
{
    struct any_file file = {0};

    for (size_t i = 0; i < merged->n; i++) {
        struct any_tensor *w = &merged->tensors[i];
        char module[160];

        if (w->rank != 2 || !hr_has_suffix(w->name, ".weight") ||
            (lora->only && !strstr(w->name, lora->only)))
            continue;
        snprintf(module, sizeof(module), "%.*s", (int) (strlen(w->name) - strlen(".weight")),
                 w->name);
        for (char *p = module; *p && lora->family->flat; p++)
            *p = *p == '.' ? '_' : *p;
        const float *down = add_half(&file, lora, module, lora->family->down, lora->rank,
                                     w->shape[1], 2.0 / sqrt((double) w->shape[1]));
        const float *up =
            add_half(&file, lora, module, lora->family->up, w->shape[0], lora->rank, 0.3);

        if (lora->alpha != 0.0f)
            any_file_add(&file, HR_DTYPE_F32, 0, 1, 1, "%s%s.alpha", lora->family->prefix, module)
                ->values[0] = lora->alpha;
        merge(w->values, up, down, w->shape[0], w->shape[1], lora, strength);
    }
    any_file_write(&file, path);
    any_file_free(&file);
}
