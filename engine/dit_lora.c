/* SPDX-License-Identifier: Apache-2.0 */
/* dit_lora.c -- LoRAs of a model: which layer has which terms, and their matrices from the files to
 * the device, where they stay until close.
 *
 * At run time a term is two products beside the layer's own, so down and up are kept as they are in
 * the file. Merged, rows of up times down transposed are added to rows of the weight:
 *   W'[n,:] = W[n,:] + sum_i up_i[n,:] down_i,  up_i[n,:] = scale_i / w_scale[n] * up[n,:]
 * so up is kept in F32, and the row's own scale, if it has one, is applied to the sums as ever. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/dit.h"

/* ---- which terms -------------------------------------------------------------------------- */

static void warn_ignored(const struct hr_checkpoint *file, const struct hr_lora_report *report)
{
    char text[HR_LORA_NAMES_SHOWN * 100] = "", name[80];
    size_t len = 0;

    for (uint32_t i = 0; i < HR_LORA_NAMES_SHOWN && report->ignored[i]; i++)
        len += (size_t) snprintf(text + len, sizeof(text) - len, "%s%s", i ? ", " : "",
                                 hr_printable(report->ignored[i], name, sizeof(name)));
    hr_log(HR_LOG_WARN, "%s: %u of %u tensors fit no layer of the model and are ignored: %s%s",
           hr_checkpoint_path(file), report->n_ignored, hr_checkpoint_n_tensors(file), text,
           report->n_ignored > HR_LORA_NAMES_SHOWN ? ", ..." : "");
}

void hr_dit_lora_warn(const struct hr_dit *dit)
{
    for (uint32_t i = 0; i < dit->stats.n_loras; i++)
        if (dit->stats.loras[i].n_ignored > 0)
            warn_ignored(hr_lora_checkpoint(dit->lora.files, i), &dit->stats.loras[i]);
}

static void take_reports(struct hr_dit *dit, const struct hr_dit_params *params)
{
    dit->stats.n_loras = params->n_loras;
    for (uint32_t i = 0; i < params->n_loras; i++)
        dit->stats.loras[i] = *hr_lora_get_report(dit->lora.files, i);
}

/* All linear layers, also those that are not run: a file that fits them fits the model. */
static int match(struct hr_dit *dit, const struct hr_dit_params *params, struct hr_error *err)
{
    const struct hr_dit_model *model = &dit->model;
    struct hr_lora_module *modules = calloc(model->n_linears, sizeof(*modules));
    char **paths = calloc(model->n_linears, sizeof(*paths));
    bool complete = modules && paths;
    int r;

    for (uint32_t i = 0; i < model->n_linears && complete; i++) {
        const struct hr_tensor *weight = model->linears[i]->weight;

        paths[i] = strndup(weight->name, strlen(weight->name) - strlen(".weight"));
        modules[i] = (struct hr_lora_module){paths[i], weight->shape[0], weight->shape[1]};
        complete = paths[i] != NULL;
    }
    r = complete
            ? hr_lora_open(&dit->lora.files, params->loras, params->n_loras, modules,
                           model->n_linears, err)
            : hr_error_set(err, -ENOMEM, "no memory for the names of %u layers", model->n_linears);
    for (uint32_t i = 0; i < model->n_linears && paths; i++)
        free(paths[i]);
    free(paths);
    free(modules);
    return r;
}

/* The terms of layers that are used; one of scale 0 has no effect. */
static int list_terms(struct hr_dit *dit, struct hr_error *err)
{
    struct hr_dit_lora *lora = &dit->lora;

    lora->terms = calloc((size_t) dit->model.n_linears * dit->stats.n_loras, sizeof(*lora->terms));
    if (!lora->terms)
        return hr_error_set(err, -ENOMEM, "no memory for the terms of %u LoRAs",
                            dit->stats.n_loras);
    for (uint32_t i = 0; i < dit->model.n_linears; i++) {
        struct hr_linear_weights *linear = dit->model.linears[i];
        uint32_t n, rank = 0;
        const struct hr_lora_term *terms = hr_lora_terms(lora->files, i, &n);

        linear->terms = lora->terms + lora->n_terms;
        for (uint32_t j = 0; j < n && linear->planned; j++) {
            if (terms[j].scale == 0.0f)
                continue;
            linear->terms[linear->n_terms++].file = &terms[j];
            rank += terms[j].rank;
        }
        lora->n_terms += linear->n_terms;
        lora->rank_max = (uint32_t) hr_max_u64(lora->rank_max, rank);
    }
    return 0;
}

int hr_dit_lora_open(struct hr_dit *dit, const struct hr_dit_params *params, struct hr_error *err)
{
    int r;

    if (params->n_loras == 0)
        return 0;
    if (params->lora_mode != HR_LORA_RUNTIME && params->lora_mode != HR_LORA_MERGED)
        return hr_error_set(err, -EINVAL, "LoRA mode %d is neither runtime nor merged",
                            (int) params->lora_mode);
    dit->lora.mode = params->lora_mode;
    r = match(dit, params, err);
    if (r < 0)
        return r;
    take_reports(dit, params);
    return list_terms(dit, err);
}

void hr_dit_lora_close(struct hr_dit *dit)
{
    free(dit->lora.terms);
    hr_lora_close(&dit->lora.files);
    dit->lora = (struct hr_dit_lora){0};
}

/* ---- memory ------------------------------------------------------------------------------- */

static uint64_t up_bytes(const struct hr_dit *dit, const struct hr_lora_term *file)
{
    if (dit->lora.mode == HR_LORA_MERGED)
        return file->up->shape[0] * file->rank * sizeof(float);
    return file->up->size_bytes;
}

/* Rows that all products of a layer have together, at most. */
static uint64_t rows_max(const struct hr_dit *dit)
{
    uint64_t n_img = 0, n_txt = 0;

    for (uint32_t i = 0; i < dit->n_samples; i++) {
        n_img += dit->samples[i].geometry.n_img;
        n_txt += dit->samples[i].geometry.n_txt;
    }
    return hr_max_u64(hr_dit_cond_rows(dit), hr_max_u64(n_img, n_txt));
}

/* Columns of the widest layer. */
static uint64_t columns_max(const struct hr_dit *dit)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < dit->model.n_linears; i++)
        n = hr_max_u64(n, dit->model.linears[i]->weight->shape[1]);
    return n;
}

void hr_dit_lora_carve(struct hr_dit *dit, struct hr_carver *c)
{
    struct hr_dit_lora *lora = &dit->lora;
    const bool merged = lora->mode == HR_LORA_MERGED;

    if (lora->n_terms == 0)
        return;
    for (uint32_t i = 0; i < lora->n_terms; i++) {
        struct hr_dit_term *term = &lora->terms[i];

        const struct hr_tensor *down = term->file->down, *up = term->file->up;
        const uint64_t rank = term->file->rank, n_in = down->shape[1], n_out = up->shape[0];

        term->down = merged ? HR_CARVE(c, down->name, down->dtype, n_in, rank)
                            : HR_CARVE(c, down->name, down->dtype, rank, n_in);
        term->up = HR_CARVE(c, up->name, merged ? HR_DTYPE_F32 : up->dtype, n_out, rank);
        term->scale = HR_CARVE(c, "scale", HR_DTYPE_F32, 1);
    }
    if (merged) {
        lora->merged = HR_CARVE(c, "merged", HR_DTYPE_F32, HR_DIT_MERGED_FLOATS);
        lora->ones = HR_CARVE(c, "ones", HR_DTYPE_F32, columns_max(dit));
    } else {
        lora->low = HR_CARVE(c, "low", HR_DTYPE_F32, rows_max(dit), lora->rank_max);
    }
}

uint64_t hr_dit_lora_host_floats(const struct hr_dit *dit)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < dit->lora.n_terms; i++) {
        const struct hr_lora_term *file = dit->lora.terms[i].file;
        const uint64_t copies = dit->lora.mode == HR_LORA_MERGED ? 2 : 1; /* to be transposed */

        bytes = hr_max_u64(bytes, copies * file->down->size_bytes);
        bytes = hr_max_u64(bytes, up_bytes(dit, file));
    }
    if (dit->lora.mode == HR_LORA_MERGED && dit->lora.n_terms > 0)
        bytes = hr_max_u64(bytes, columns_max(dit) * sizeof(float));
    return hr_div_ceil(bytes, sizeof(float));
}

/* ---- from the files to the device --------------------------------------------------------- */

static int upload(struct hr_dit *dit, void *dst, const void *src, uint64_t bytes,
                  struct hr_error *err)
{
    return HR_FEED_RUN(&dit->feed, err, hr_gpu_upload(dit->gpu, dst, src, (size_t) bytes));
}

/* dst[cols, rows] = src[rows, cols]^T of elements of 2 or 4 bytes. */
static void transpose(void *dst, const void *src, size_t rows, size_t cols, size_t element_bytes)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++)
            memcpy((char *) dst + (j * rows + i) * element_bytes,
                   (const char *) src + (i * cols + j) * element_bytes, element_bytes);
}

static int load_down(struct hr_dit *dit, const struct hr_dit_term *term, struct hr_error *err)
{
    const struct hr_tensor *down = term->file->down;
    char *raw = (char *) dit->host, *transposed = raw + down->size_bytes;
    int r = hr_checkpoint_read(hr_lora_checkpoint(dit->lora.files, term->file->file_idx), down, raw,
                               down->size_bytes, err);

    if (r < 0 || dit->lora.mode == HR_LORA_RUNTIME)
        return r < 0 ? r : upload(dit, term->down, raw, down->size_bytes, err);
    transpose(transposed, raw, term->file->rank, (size_t) down->shape[1],
              hr_dtype_bytes(down->dtype));
    return upload(dit, term->down, transposed, down->size_bytes, err);
}

static int load_up(struct hr_dit *dit, const struct hr_linear_weights *linear,
                   const struct hr_dit_term *term, struct hr_error *err)
{
    const struct hr_checkpoint *file = hr_lora_checkpoint(dit->lora.files, term->file->file_idx);
    const struct hr_tensor *up = term->file->up;
    const struct hr_weight_scale *scale = &linear->scale;
    const uint64_t rank = term->file->rank, n = up->shape[0] * rank;
    int r;

    if (dit->lora.mode == HR_LORA_RUNTIME) {
        r = hr_checkpoint_read(file, up, dit->host, up->size_bytes, err);
        return r < 0 ? r : upload(dit, term->up, dit->host, up->size_bytes, err);
    }
    r = hr_checkpoint_read_f32(file, up, dit->host, n, err);
    for (uint64_t i = 0; i < n && r == 0; i++) {
        const float row = scale->n > 0 ? scale->values[scale->n > 1 ? i / rank : 0] : 1.0f;

        dit->host[i] = term->file->scale * dit->host[i] / row;
    }
    return r < 0 ? r : upload(dit, term->up, dit->host, n * sizeof(float), err);
}

int hr_dit_lora_load(struct hr_dit *dit, struct hr_error *err)
{
    const struct hr_dit_lora *lora = &dit->lora;
    int r = 0;

    for (uint32_t i = 0; i < dit->model.n_linears; i++) {
        const struct hr_linear_weights *linear = dit->model.linears[i];

        for (uint32_t j = 0; j < linear->n_terms && r == 0; j++) {
            const struct hr_dit_term *term = &linear->terms[j];

            r = load_down(dit, term, err);
            if (r == 0)
                r = load_up(dit, linear, term, err);
            if (r == 0)
                r = upload(dit, term->scale, &term->file->scale, sizeof(float), err);
        }
    }
    if (r < 0 || !lora->ones)
        return r;
    for (uint64_t i = 0; i < columns_max(dit); i++)
        dit->host[i] = 1.0f;
    return upload(dit, lora->ones, dit->host, columns_max(dit) * sizeof(float), err);
}
