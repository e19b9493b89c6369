/* SPDX-License-Identifier: Apache-2.0 */
/* lora.c -- see lora.h.
 *
 * A key is a module and a part of it. Modules are looked up in a table made from the model's own
 * names, dotted and flattened, so that no underscore is ever parsed. */
#include "engine/lora.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/files.h"
#include "engine/lora_alpha.h"
#include "gpu/gpu.h"

enum { NAME_BYTES = 160, KEY_BYTES = 512 };

enum part { DOWN, UP, ALPHA, N_PARTS };

/* A name by which files call a module. */
struct alias {
    char *name;
    uint32_t module_idx;
};

/* What one file has for one module. */
struct slot {
    const struct hr_tensor *parts[N_PARTS];
};

_Static_assert((int) HR_LORA_FILES_MAX <= (int) HR_LOW_RANK_TERMS_MAX, "a term of each file fits");

struct hr_lora {
    const struct hr_lora_module *modules; /* the caller's, while opening */
    uint32_t n_modules, n_files;
    struct hr_checkpoint **checkpoints; /* [n_files]            */
    struct hr_lora_report *reports;     /* [n_files]            */
    struct hr_lora_term *terms;         /* [n_modules, n_files] */
    uint32_t *n_terms;                  /* [n_modules]          */
    /* while opening */
    struct alias *aliases; /* [n_aliases], sorted */
    size_t n_aliases;
    struct slot *slots; /* [n_modules] of the file in hand */
};

/* ---- names -------------------------------------------------------------------------- */

static int compare_aliases(const void *a, const void *b)
{
    return strcmp(((const struct alias *) a)->name, ((const struct alias *) b)->name);
}

static int compare_alias(const void *name, const void *alias)
{
    return strcmp(name, ((const struct alias *) alias)->name);
}

/* Each module's path, and its flattened form. */
static int make_aliases(struct hr_lora *lora, struct hr_error *err)
{
    lora->aliases = calloc(2 * (size_t) lora->n_modules, sizeof(*lora->aliases));
    for (uint32_t i = 0; lora->aliases && i < lora->n_modules; i++) {
        char *dotted = strdup(lora->modules[i].path), *flat;

        if (asprintf(&flat, "lora_unet_%s", lora->modules[i].path) < 0)
            flat = NULL;
        if (!dotted || !flat) {
            free(dotted);
            free(flat);
            return hr_error_set(err, -ENOMEM, "no memory for the names of %u modules",
                                lora->n_modules);
        }
        for (char *p = flat; *p; p++)
            *p = *p == '.' ? '_' : *p;
        lora->aliases[lora->n_aliases++] = (struct alias){dotted, i};
        lora->aliases[lora->n_aliases++] = (struct alias){flat, i};
    }
    if (!lora->aliases)
        return hr_error_set(err, -ENOMEM, "no memory for the names of %u modules", lora->n_modules);
    qsort(lora->aliases, lora->n_aliases, sizeof(*lora->aliases), compare_aliases);
    return 0;
}

static void free_aliases(struct hr_lora *lora)
{
    while (lora->n_aliases > 0)
        free(lora->aliases[--lora->n_aliases].name);
    free(lora->aliases);
    lora->aliases = NULL;
}

/* The part that a key's end says. */
static bool split_key(const char *key, enum part *ret_part, size_t *ret_module_len)
{
    static const struct {
        const char *suffix;
        enum part part;
    } parts[] = {
        {".lora_A.weight", DOWN},    {".lora_A.default.weight", DOWN},
        {".lora_B.weight", UP},      {".lora_B.default.weight", UP},
        {".lora_down.weight", DOWN}, {".lora_down.default.weight", DOWN},
        {".lora_up.weight", UP},     {".lora_up.default.weight", UP},
        {".lora.down.weight", DOWN}, {".lora.up.weight", UP},
        {".alpha", ALPHA},
    };

    for (size_t i = 0; i < HR_ARRAY_SIZE(parts); i++) {
        if (!hr_has_suffix(key, parts[i].suffix))
            continue;
        *ret_part = parts[i].part;
        *ret_module_len = strlen(key) - strlen(parts[i].suffix);
        return true;
    }
    return false;
}

static const char *skip_prefixes(const char *key)
{
    static const char *const prefixes[] = {"base_model.model.", "model.diffusion_model.",
                                           "diffusion_model.", "transformer.", "pipe.dit."};

    for (size_t i = 0; i < HR_ARRAY_SIZE(prefixes); i++)
        if (strncmp(key, prefixes[i], strlen(prefixes[i])) == 0)
            key += strlen(prefixes[i]);
    return key;
}

/* @return the module's index, or -1 */
static int64_t find_module(const struct hr_lora *lora, const char *key, enum part *ret_part)
{
    const struct alias *alias;
    char module[KEY_BYTES];
    size_t len;

    key = skip_prefixes(key);
    if (!split_key(key, ret_part, &len) || len >= sizeof(module))
        return -1;
    memcpy(module, key, len);
    module[len] = '\0';
    alias = bsearch(module, lora->aliases, lora->n_aliases, sizeof(*alias), compare_alias);
    return alias ? (int64_t) alias->module_idx : -1;
}

/* ---- one file ----------------------------------------------------------------------- */

/* Other ways to change a weight, which look alike. */
static int refuse_others(const char *path, const char *key, struct hr_error *err)
{
    static const struct {
        const char *word, *name;
    } others[] = {
        {"dora_scale", "DoRA"}, {"lora_magnitude_vector", "DoRA"},   {"lokr_", "LoKr"},
        {"hada_", "LoHa"},      {"lora_mid", "LoCon with lora_mid"},
    };
    char name[NAME_BYTES];

    for (size_t i = 0; i < HR_ARRAY_SIZE(others); i++)
        if (strstr(key, others[i].word))
            return hr_error_set(
                err, -EOPNOTSUPP,
                "%s: tensor %s: this is %s, which is not supported; use a plain LoRA", path,
                hr_printable(key, name, sizeof(name)), others[i].name);
    return 0;
}

/* Put each tensor of the file where it belongs. */
static int sort_in(struct hr_lora *lora, uint32_t file_idx, struct hr_error *err)
{
    const struct hr_checkpoint *checkpoint = lora->checkpoints[file_idx];
    const char *path = hr_checkpoint_path(checkpoint);
    struct hr_lora_report *report = &lora->reports[file_idx];
    char name[NAME_BYTES];

    memset(lora->slots, 0, lora->n_modules * sizeof(*lora->slots));
    for (uint32_t i = 0; i < hr_checkpoint_n_tensors(checkpoint); i++) {
        const struct hr_tensor *tensor = hr_checkpoint_tensor(checkpoint, i);
        const int r = refuse_others(path, tensor->name, err);
        enum part part;
        const int64_t module_idx = r < 0 ? -1 : find_module(lora, tensor->name, &part);

        if (r < 0)
            return r;
        if (module_idx < 0) {
            if (report->n_ignored < HR_LORA_NAMES_SHOWN)
                report->ignored[report->n_ignored] = tensor->name;
            report->n_ignored++;
        } else if (lora->slots[module_idx].parts[part]) {
            return hr_error_set(err, -EBADMSG,
                                "%s: tensor %s: module %s has one already; a file with two LoRAs "
                                "must be split",
                                path, hr_printable(tensor->name, name, sizeof(name)),
                                lora->modules[module_idx].path);
        } else {
            lora->slots[module_idx].parts[part] = tensor;
        }
    }
    return 0;
}

/* A half: [rows, cols] of a dtype that is computed with. */
static int check_half(const char *path, const struct hr_tensor *tensor, uint64_t rows,
                      uint64_t cols, const char *expected, struct hr_error *err)
{
    char name[NAME_BYTES];

    hr_printable(tensor->name, name, sizeof(name));
    if (tensor->dtype != HR_DTYPE_F32 && tensor->dtype != HR_DTYPE_BF16 &&
        tensor->dtype != HR_DTYPE_F16)
        return hr_error_set(err, -EOPNOTSUPP,
                            "%s: tensor %s is %s; F32, BF16 and F16 are supported", path, name,
                            hr_dtype_name(tensor->dtype));
    if (tensor->rank == 2 && tensor->shape[0] == rows && tensor->shape[1] == cols)
        return 0;
    return hr_error_set(err, -EBADMSG,
                        "%s: tensor %s has the wrong shape; expected %s = [%llu, %llu]", path, name,
                        expected, (unsigned long long) rows, (unsigned long long) cols);
}

/* The term of a module that the file has something for. */
static int make_term(const struct hr_lora *lora, uint32_t file_idx, float strength,
                     const struct hr_lora_alphas *alphas, uint32_t module_idx,
                     struct hr_lora_term *ret_term, struct hr_error *err)
{
    const struct hr_lora_module *module = &lora->modules[module_idx];
    const struct slot *slot = &lora->slots[module_idx];
    const struct hr_tensor *down = slot->parts[DOWN], *up = slot->parts[UP];
    const char *path = hr_checkpoint_path(lora->checkpoints[file_idx]);
    float factor = 1.0f;
    int r;

    if (!down || !up)
        return hr_error_set(err, -EBADMSG, "%s: module %s lacks its %s; the file is incomplete",
                            path, module->path, down ? "lora_B (up)" : "lora_A (down)");
    const uint64_t rank = down->rank == 2 ? down->shape[0] : 1;

    if (rank < 1 || rank > HR_LOW_RANK_MAX)
        return hr_error_set(err, -EBADMSG, "%s: module %s has rank %llu; expected 1 to %d", path,
                            module->path, (unsigned long long) rank, HR_LOW_RANK_MAX);
    r = check_half(path, down, rank, module->n_in, "[rank, in]", err);
    if (r == 0)
        r = check_half(path, up, module->n_out, rank, "[out, rank]", err);
    if (r == 0)
        r = hr_lora_alphas_factor(alphas, module->path, slot->parts[ALPHA], rank, &factor, err);
    if (r < 0)
        return r;
    *ret_term = (struct hr_lora_term){.file_idx = file_idx,
                                      .rank = (uint32_t) rank,
                                      .down = down,
                                      .up = up,
                                      .scale = strength * factor};
    if (!isfinite(ret_term->scale))
        return hr_error_set(err, -EBADMSG, "%s: module %s: strength times alpha is too large", path,
                            module->path);
    return 0;
}

static int make_terms(struct hr_lora *lora, uint32_t file_idx, float strength, struct hr_error *err)
{
    struct hr_lora_report *report = &lora->reports[file_idx];
    struct hr_lora_alphas alphas;
    int r = hr_lora_alphas_init(&alphas, lora->checkpoints[file_idx], err);

    if (r < 0)
        return r;
    for (uint32_t i = 0; i < lora->n_modules && r == 0; i++) {
        const struct slot *slot = &lora->slots[i];

        if (!slot->parts[DOWN] && !slot->parts[UP] && !slot->parts[ALPHA])
            continue;
        r = make_term(lora, file_idx, strength, &alphas, i,
                      &lora->terms[(size_t) i * lora->n_files + lora->n_terms[i]], err);
        lora->n_terms[i] += r == 0;
        report->n_modules += r == 0;
    }
    hr_lora_alphas_uninit(&alphas);
    return r;
}

static int open_file(struct hr_lora *lora, uint32_t file_idx, const struct hr_lora_file *file,
                     struct hr_error *err)
{
    const struct hr_checkpoint_params params = {.paths = &file->path, .n_paths = 1};
    const struct hr_lora_report *report = &lora->reports[file_idx];
    char path[NAME_BYTES], name[NAME_BYTES];
    int r;

    if (!isfinite(file->strength))
        return hr_error_set(err, -EINVAL, "%s: the strength is no finite number",
                            hr_printable(file->path, path, sizeof(path)));
    r = hr_checkpoint_open(&lora->checkpoints[file_idx], &params, err);
    if (r == 0)
        r = sort_in(lora, file_idx, err);
    if (r == 0)
        r = make_terms(lora, file_idx, file->strength, err);
    if (r < 0 || report->n_modules > 0)
        return r;
    return hr_error_set(
        err, -ENOENT,
        "%s: none of its %u tensors fits the model: it has \"%s\", expected is "
        "\"%s.lora_A.weight\"; is it a LoRA of Qwen-Image?",
        hr_checkpoint_path(lora->checkpoints[file_idx]), report->n_ignored,
        hr_printable(report->n_ignored ? report->ignored[0] : "", name, sizeof(name)),
        lora->modules[0].path);
}

/* ---- interface ---------------------------------------------------------------------- */

static struct hr_lora *lora_new(uint32_t n_files, const struct hr_lora_module *modules,
                                uint32_t n_modules)
{
    struct hr_lora *lora = calloc(1, sizeof(*lora));

    if (!lora)
        return NULL;
    lora->n_files = n_files;
    lora->modules = modules;
    lora->n_modules = n_modules;
    lora->checkpoints = calloc(n_files, sizeof(struct hr_checkpoint *));
    lora->reports = calloc(n_files, sizeof(*lora->reports));
    lora->terms = calloc((size_t) n_modules * n_files, sizeof(*lora->terms));
    lora->n_terms = calloc(n_modules, sizeof(*lora->n_terms));
    lora->slots = calloc(n_modules, sizeof(*lora->slots));
    if (!lora->checkpoints || !lora->reports || !lora->terms || !lora->n_terms || !lora->slots)
        hr_lora_close(&lora);
    return lora;
}

int hr_lora_open(struct hr_lora **ret_lora, const struct hr_lora_file *files, uint32_t n_files,
                 const struct hr_lora_module *modules, uint32_t n_modules, struct hr_error *err)
{
    struct hr_lora *lora;
    int r;

    hr_assert(n_modules >= 1);
    if (n_files < 1 || n_files > HR_LORA_FILES_MAX)
        return hr_error_set(err, -EINVAL, "%u LoRA files: 1 to %d can be used at once", n_files,
                            HR_LORA_FILES_MAX);
    lora = lora_new(n_files, modules, n_modules);
    if (!lora)
        return hr_error_set(err, -ENOMEM, "no memory for %u LoRAs of %u modules", n_files,
                            n_modules);
    r = make_aliases(lora, err);
    for (uint32_t i = 0; i < n_files && r == 0; i++)
        r = open_file(lora, i, &files[i], err);
    free_aliases(lora);
    free(lora->slots);
    lora->slots = NULL;
    if (r < 0) {
        hr_lora_close(&lora);
        return r;
    }
    *ret_lora = lora;
    return 0;
}

void hr_lora_close(struct hr_lora **lora)
{
    struct hr_lora *l = *lora;

    *lora = NULL;
    if (!l)
        return;
    for (uint32_t i = 0; l->checkpoints && i < l->n_files; i++)
        hr_checkpoint_close(&l->checkpoints[i]);
    free(l->checkpoints);
    free(l->reports);
    free(l->terms);
    free(l->n_terms);
    free(l->slots);
    free(l);
}

const struct hr_lora_term *hr_lora_terms(const struct hr_lora *lora, uint32_t module_idx,
                                         uint32_t *ret_n)
{
    hr_assert(module_idx < lora->n_modules);
    *ret_n = lora->n_terms[module_idx];
    return &lora->terms[(size_t) module_idx * lora->n_files];
}

const struct hr_checkpoint *hr_lora_checkpoint(const struct hr_lora *lora, uint32_t file_idx)
{
    hr_assert(file_idx < lora->n_files);
    return lora->checkpoints[file_idx];
}

const struct hr_lora_report *hr_lora_get_report(const struct hr_lora *lora, uint32_t file_idx)
{
    hr_assert(file_idx < lora->n_files);
    return &lora->reports[file_idx];
}
