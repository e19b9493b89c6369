/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_verify.c -- checksums of a model: made, and compared. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static struct hr_verify_params verify_params(const struct cli_options *o)
{
    return (struct hr_verify_params){
        .stream = cli_stream_params(o),
        .progress = cli_progress_wanted(o) ? cli_progress_reading : NULL,
        .cancel = &cli_interrupted,
    };
}

/* ---- checksum --------------------------------------------------------------------------- */

static bool to_stdout(const struct cli_options *o)
{
    return !o->output || strcmp(o->output, "-") == 0;
}

static int make(const struct cli_options *o, struct hr_checkpoint **model,
                struct hr_manifest **manifest, struct hr_error *err)
{
    const struct hr_verify_params params = verify_params(o);
    int r = cli_open_model(model, o, err);

    if (r == 0 && !to_stdout(o))
        r = cli_check_output(o, *model, err);
    if (r == 0)
        r = hr_manifest_make(manifest, *model, &params, err);
    if (r == 0 && !to_stdout(o))
        r = hr_manifest_write(*manifest, o->output, err);
    return r;
}

static int print_manifest(const struct hr_manifest *manifest, struct hr_error *err)
{
    char *text = NULL;

    if (hr_manifest_text(manifest, &text, err) < 0)
        return cli_fail(err);
    fputs(text, stdout);
    free(text);
    return cli_flush();
}

static int print_written(const struct cli_options *o, const struct hr_manifest *manifest)
{
    const uint32_t n = hr_manifest_n_tensors(manifest);
    char shown[512];

    if (o->json)
        return cli_print_json(json_pack("{s:s, s:i, s:o}", "verb", "checksum", "n_tensors", (int) n,
                                        "output", cli_json_text(o->output)));
    printf("checksum  %s: %u tensors\n", cli_printable(shown, sizeof(shown), o->output), n);
    return cli_flush();
}

int cli_checksum(const struct cli_options *o)
{
    struct hr_checkpoint *model = NULL;
    struct hr_manifest *manifest = NULL;
    struct hr_error err = {0};
    int code;

    cli_catch_signals();
    const int r = make(o, &model, &manifest, &err);

    cli_progress_clear();
    if (r < 0)
        code = cli_fail(&err);
    else
        code = to_stdout(o) ? print_manifest(manifest, &err) : print_written(o, manifest);
    hr_manifest_close(&manifest);
    hr_checkpoint_close(&model);
    return code;
}

/* ---- verify ----------------------------------------------------------------------------- */

struct verification {
    const struct cli_options *o;
    struct hr_checkpoint *model;
    struct hr_manifest *manifest;
    json_t *damage; /* with --json */
    struct hr_verify_stats stats;
};

static void on_damage(void *user, const struct hr_damage *damage)
{
    static const char *const kinds[] = {
        [HR_DAMAGE_FILE_MISSING] = "file_missing",
        [HR_DAMAGE_FILE_EXTRA] = "file_extra",
        [HR_DAMAGE_FILE_SIZE] = "file_size",
        [HR_DAMAGE_HEADER] = "header",
        [HR_DAMAGE_CONFIG] = "config",
        [HR_DAMAGE_TENSOR_MISSING] = "tensor_missing",
        [HR_DAMAGE_TENSOR_EXTRA] = "tensor_extra",
        [HR_DAMAGE_TENSOR_TYPE] = "tensor_type",
        [HR_DAMAGE_TENSOR_DATA] = "tensor_data",
    };
    struct verification *v = user;
    char text[1024];

    hr_damage_text(damage, text, sizeof(text));
    cli_progress_clear();
    if (!v->o->json) {
        printf("%s\n", text);
        return;
    }
    json_array_append_new(v->damage,
                          json_pack("{s:s, s:o, s:s?, s:I, s:I, s:o}", "kind", kinds[damage->kind],
                                    "file", cli_json_text(damage->file), "tensor", damage->tensor,
                                    "begin_bytes", (json_int_t) damage->begin_bytes, "size_bytes",
                                    (json_int_t) damage->size_bytes, "text", cli_json_text(text)));
}

static int report(struct verification *v, int n)
{
    const struct hr_verify_stats *s = &v->stats;
    char size[32];

    if (v->o->json)
        return cli_print_json(
            json_pack("{s:s, s:i, s:O, s:i, s:I, s:f, s:f, s:s?}", "verb", "verify", "n_damaged", n,
                      "damage", v->damage, "n_tensors", (int) s->n_tensors, "bytes",
                      (json_int_t) s->bytes, "wall_s", cli_seconds(s->wall_ns), "gbps",
                      cli_gbps(s->bytes, s->wall_ns), "backend", s->stream.io_name));
    printf("verify    %u tensors, %s in %.2f s (%.2f GB/s): ", s->n_tensors,
           cli_size(size, s->bytes), cli_seconds(s->wall_ns), cli_gbps(s->bytes, s->wall_ns));
    printf(n == 0 ? "all as in the manifest\n" : "%d difference%s\n", n, n == 1 ? "" : "s");
    return cli_flush();
}

static int run(struct verification *v, struct hr_error *err)
{
    const struct hr_verify_params params = verify_params(v->o);
    int r = hr_manifest_read(&v->manifest, v->o->manifest, err);

    if (r == 0)
        r = cli_open_model(&v->model, v->o, err);
    if (r == 0)
        r = hr_verify(v->model, v->manifest, &params, on_damage, v, &v->stats, err);
    return r;
}

int cli_verify(const struct cli_options *o)
{
    struct verification v = {.o = o};
    struct hr_error err = {0};
    int code;

    if (!o->manifest)
        return cli_usage("verify needs --manifest FILE; headrace checksum makes one");
    if (o->json)
        v.damage = json_array();
    cli_catch_signals();
    const int n = run(&v, &err);

    cli_progress_clear();
    code = n < 0 ? cli_fail(&err) : report(&v, n);
    if (n > 0 && code == CLI_OK) {
        char shown[512];

        fprintf(stderr, "headrace: %s: %d difference%s from the manifest\n",
                cli_printable(shown, sizeof(shown), o->paths[0]), n, n == 1 ? "" : "s");
        code = CLI_FAILED;
    }
    json_decref(v.damage);
    hr_manifest_close(&v.manifest);
    hr_checkpoint_close(&v.model);
    return code;
}
