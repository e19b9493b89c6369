/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_synth.c -- models and inputs of known values, for tests, demonstrations and benchmarks. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

int cli_synth(const struct cli_options *o)
{
    /* Index: the choices of --dtype. */
    static const enum hr_dtype dtypes[] = {HR_DTYPE_BF16, HR_DTYPE_F16, HR_DTYPE_F32,
                                           HR_DTYPE_F8_E4M3, HR_DTYPE_F8_E5M2};
    const struct hr_synth_params params = {
        .path = o->paths[0],
        .n_layers = (uint32_t) o->n_layers,
        .n_heads = (uint32_t) o->n_heads,
        .joint_dim = (uint32_t) o->joint_dim,
        .n_shards = (uint32_t) o->n_shards,
        .dtype = dtypes[o->dtype],
        .zero_cond_t = o->zero_cond_t,
        .layered = o->layered,
        .force = o->force,
        .header_pad_bytes = (uint32_t) o->header_pad_bytes,
        .order = (enum hr_synth_order) o->order,
        .prefix = o->prefix,
        .progress = cli_progress_wanted(o) ? cli_progress_bytes : NULL,
        .cancel = &cli_interrupted,
    };
    const uint64_t bytes = hr_synth_bytes(&params);
    struct hr_error err = {0};
    char size[32], shown[512];

    if (o->n_paths != 1)
        return cli_usage("synth makes one model, but %u paths were given", o->n_paths);
    cli_catch_signals();
    const double begin_s = cli_now_s();

    if (hr_synth(&params, &err) < 0)
        return cli_fail(&err);
    const double seconds = cli_now_s() - begin_s;

    if (o->json)
        return cli_print_json(json_pack("{s:s, s:o, s:I, s:f}", "verb", "synth", "path",
                                        cli_json_text(params.path), "bytes", (json_int_t) bytes,
                                        "wall_s", seconds));
    printf("synth     %s: %s in %.1f s, %.2f GB/s\n",
           cli_printable(shown, sizeof(shown), params.path), cli_size(size, bytes), seconds,
           (double) bytes / seconds / 1e9);
    return cli_flush();
}

/* ---- inputs --------------------------------------------------------------------------- */

enum { TENSORS_MAX = 3 + HR_IMAGES_MAX };

/* Tensors of u * scale, u in [-1, 1) from the name and the index; see hr_synth_values(). */
struct made {
    struct hr_tensor_out tensors[TENSORS_MAX];
    char names[TENSORS_MAX][32];
    uint64_t shapes[TENSORS_MAX][3];
    uint32_t n;
    bool out_of_memory;
};

static void make(struct made *m, const char *name, const char *seed_name, uint32_t rank,
                 uint64_t rows, uint64_t cols, double scale)
{
    uint64_t *shape = m->shapes[m->n];
    const uint64_t n = (rank == 3 ? HR_LATENT_CHANNELS : 1) * rows * cols;
    float *values = calloc(n, sizeof(*values));

    snprintf(m->names[m->n], sizeof(m->names[0]), "%s", name);
    if (rank == 3)
        shape[0] = HR_LATENT_CHANNELS;
    shape[rank - 2] = rows;
    shape[rank - 1] = cols;
    m->tensors[m->n] = (struct hr_tensor_out){m->names[m->n], values, rank, shape};
    m->n++;
    if (values)
        hr_synth_values(values, seed_name, 0, n, rank, cols, scale);
    else
        m->out_of_memory = true;
}

static int write_inputs(const struct cli_options *o, uint32_t joint_dim, struct hr_error *err)
{
    const uint64_t h = (o->height ? o->height : CLI_PIXELS_DEFAULT) / 8;
    const uint64_t w = (o->width ? o->width : CLI_PIXELS_DEFAULT) / 8;
    struct made m = {0};
    int r;

    make(&m, "latents", "latent", 3, h, w, 1.7);
    make(&m, "prompt_emb", "prompt", 2, o->n_text ? o->n_text : CLI_TEXT_TOKENS_DEFAULT, joint_dim,
         3.0);
    if (o->n_negative)
        make(&m, "negative_prompt_emb", "negative", 2, o->n_negative, joint_dim, 3.0);
    for (uint64_t i = 0; i < o->n_references; i++) {
        char name[32], seed[32];

        snprintf(name, sizeof(name), "reference.%" PRIu64, i);
        snprintf(seed, sizeof(seed), i ? "reference.%" PRIu64 : "reference", i);
        make(&m, name, seed, 3, h, w, 1.7);
    }
    if (m.out_of_memory)
        r = cli_error(err, -ENOMEM, "no memory for inputs of this size");
    else
        r = hr_tensors_write(o->output, m.tensors, m.n, err);
    for (uint32_t i = 0; i < m.n; i++)
        free((void *) (uintptr_t) m.tensors[i].data);
    return r;
}

int cli_inputs(const struct cli_options *o)
{
    struct hr_checkpoint *model = NULL;
    struct hr_error err = {0};
    uint32_t joint_dim = 0;
    char shown[512];
    int r;

    if (!o->output)
        return cli_usage("inputs needs --output FILE");
    cli_catch_signals(); /* one signal does not leave half a file */
    r = cli_open_model(&model, o, &err);
    if (r == 0)
        r = cli_check_output(o, model, &err);
    if (r == 0)
        r = hr_dit_joint_dim(model, &joint_dim, &err);
    hr_checkpoint_close(&model);
    if (r == 0)
        r = write_inputs(o, joint_dim, &err);
    if (r < 0)
        return cli_fail(&err);
    if (o->json)
        return cli_print_json(
            json_pack("{s:s, s:o}", "verb", "inputs", "output", cli_json_text(o->output)));
    printf("inputs    %s\n", cli_printable(shown, sizeof(shown), o->output));
    return cli_flush();
}
