/* SPDX-License-Identifier: Apache-2.0 */
/* test_dit_scales.c -- a model of scaled fp8 weights against the same model in F32. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/dit.h"
#include "engine/files.h"
#include "tests/engine/any_file.h"
#include "tests/engine/model_fixture.h"

enum { H = 6, W = 10, N_TEXT = 4, JOINT = 96, N = 16 * H * W };

static struct model_fixture model;

static int open_model(void **state)
{
    return model_fixture_setup(
        state, &model,
        &(struct hr_synth_params){
            .n_layers = 2, .n_heads = 2, .joint_dim = JOINT, .dtype = HR_DTYPE_F32},
        H, W, N_TEXT);
}

static const char *path_of(const char *name)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/%s", model.folder, name);
    return path;
}

/* Bytes of each kind that the map names. */
static void add_bytes(void *user, const struct hr_memory_part *part)
{
    uint64_t *sums = user;

    if (!part->overlies)
        sums[part->kind] += part->size_bytes;
}

static int run(const char *name, const struct hr_dit_params *params, float *velocity,
               struct hr_error *err)
{
    const char *path = path_of(name);
    uint64_t sums[HR_MEMORY_DEVICE + 1] = {0};
    struct hr_dit_params with_map = params ? *params : (struct hr_dit_params){.n_layers = 0};
    struct hr_checkpoint *checkpoint = NULL;
    struct hr_dit_stats stats;
    struct hr_dit *dit = NULL;
    int r = hr_checkpoint_open(&checkpoint,
                               &(struct hr_checkpoint_params){.paths = &path, .n_paths = 1}, err);

    with_map.memory = add_bytes;
    with_map.memory_user = sums;
    if (r == 0)
        r = hr_dit_open(&dit, checkpoint, &with_map, &model.inputs, 1, err);
    if (r == 0)
        r = hr_dit_forward(dit, &model.inputs, &velocity, err);
    if (r == 0) {
        hr_dit_get_stats(dit, &stats);
        assert_int_equal(sums[HR_MEMORY_ACTIVATIONS] + sums[HR_MEMORY_SCALES] +
                             sums[HR_MEMORY_LORA],
                         stats.activation_bytes);
    }
    hr_dit_close(&dit);
    hr_checkpoint_close(&checkpoint);
    return r;
}

static void expect_runs(const char *name, const struct hr_dit_params *params, float *velocity)
{
    struct hr_error err = {0};

    if (run(name, params, velocity, &err) < 0)
        fail_msg("%s", err.message);
}

/* ---- quantising ----------------------------------------------------------------------- */

struct form {
    const char *suffix;       /* of the scale's name                        */
    bool quant;               /* `comfy_quant` beside it                    */
    bool per_row, rank_2;     /* the scale's shape: [], or [out] or [out,1] */
    enum hr_dtype dtype;      /* of the weight */
    enum hr_dtype scale_type; /* of the scale  */
};

/* Values that fp8 has, in place. */
static void round_to(float *values, uint64_t n, enum hr_dtype dtype)
{
    unsigned char *raw = malloc(n);

    assert_non_null(raw);
    hr_dtype_from_f32(raw, values, dtype, n);
    hr_dtype_to_f32(values, raw, dtype, n);
    free(raw);
}

static float scale_of(const float *values, uint64_t n, enum hr_dtype type)
{
    float scale, largest = 0.0f;

    for (uint64_t i = 0; i < n; i++)
        largest = fmaxf(largest, fabsf(values[i]));
    scale = largest / 400.0f;
    if (type != HR_DTYPE_F32) { /* as the file will say it */
        uint16_t raw;

        hr_dtype_from_f32(&raw, &scale, type, 1);
        hr_dtype_to_f32(&scale, &raw, type, 1);
    }
    return scale;
}

static void add_quant(struct any_file *file, const char *module, enum hr_dtype dtype)
{
    const char *text = dtype == HR_DTYPE_F8_E4M3 ? "{\"format\":\"float8_e4m3fn\"}"
                                                 : "{\"format\":\"float8_e5m2\"}";
    struct any_tensor *t =
        any_file_add(file, HR_DTYPE_U8, 1, strlen(text), 1, "%s.comfy_quant", module);

    for (size_t i = 0; text[i]; i++)
        t->values[i] = (float) text[i];
}

/* Scale one weight of `scaled`; the F32 model gets the product. */
static void quantise(struct any_file *scaled, struct any_file *f32, const char *name,
                     const struct form *form)
{
    struct any_tensor *weight = any_file_find(scaled, "%s", name);
    const uint64_t rows = weight->shape[0], n_in = weight->shape[1];
    const uint64_t n_scales = form->per_row ? rows : 1, each = weight->n / n_scales;
    float *values = weight->values, *product = any_file_find(f32, "%s", name)->values;
    char module[160];

    snprintf(module, sizeof(module), "%.*s", (int) (strlen(name) - strlen(".weight")), name);
    weight->dtype = form->dtype;
    struct any_tensor *scale =
        any_file_add(scaled, form->scale_type, form->per_row ? 1 + form->rank_2 : 0, rows, 1,
                     "%s%s", module, form->suffix);

    for (uint64_t i = 0; i < n_scales; i++) {
        scale->values[i] = scale_of(values + i * each, each, form->scale_type);
        for (uint64_t k = i * each; k < (i + 1) * each; k++)
            values[k] /= scale->values[i];
    }
    round_to(values, rows * n_in, form->dtype);
    for (uint64_t k = 0; k < weight->n; k++)
        product[k] = values[k] * scale->values[k / each];
    if (form->quant)
        add_quant(scaled, module, form->dtype);
}

static bool is_linear(const struct any_tensor *t)
{
    return t->rank == 2 && hr_has_suffix(t->name, ".weight");
}

static double relative_rms(const float *got, const float *want)
{
    double square = 0, difference = 0;

    for (size_t i = 0; i < N; i++) {
        square += (double) want[i] * want[i];
        difference += ((double) got[i] - want[i]) * ((double) got[i] - want[i]);
    }
    return sqrt(difference / square);
}

/* ---- tests ---------------------------------------------------------------------------- */

static void test_forms(void **state)
{
    static const struct form forms[] = {
        {".scale_weight", false, false, false, HR_DTYPE_F8_E4M3, HR_DTYPE_F32},
        {".scale_weight", false, true, true, HR_DTYPE_F8_E4M3, HR_DTYPE_BF16},
        {".weight_scale", true, false, false, HR_DTYPE_F8_E4M3, HR_DTYPE_F32},
        {".weight_scale", true, true, false, HR_DTYPE_F8_E5M2, HR_DTYPE_F32},
        {".weight_scale", false, true, true, HR_DTYPE_F8_E4M3, HR_DTYPE_F16},
    };
    static float want[N], got[N];

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(forms); i++) {
        struct any_file scaled = {0}, f32 = {0};
        const struct hr_dit_params params = {.precision = HR_PRECISION_F32}, bf16 = {0};

        any_file_load(&f32, model.checkpoint);
        any_file_load(&scaled, model.checkpoint);
        for (size_t t = 0; t < f32.n; t++)
            if (is_linear(&f32.tensors[t]))
                quantise(&scaled, &f32, f32.tensors[t].name, &forms[i]);
        if (!forms[i].quant) {
            any_file_add(&scaled, HR_DTYPE_F8_E4M3, 1, 2, 1, "scaled_fp8");
            any_file_add(&scaled, HR_DTYPE_F32, 0, 1, 1, "proj_out.scale_input")->values[0] = 1.0f;
        }
        any_file_write(&scaled, path_of("scaled.safetensors"));
        any_file_write(&f32, path_of("f32.safetensors"));
        expect_runs("f32.safetensors", &params, want);
        expect_runs("scaled.safetensors", &params, got);
        if (!(relative_rms(got, want) < 1e-6))
            fail_msg("form %zu: %.2e", i, relative_rms(got, want));
        expect_runs("scaled.safetensors", &bf16, got);
        if (!(relative_rms(got, want) < 5e-3))
            fail_msg("form %zu in bf16: %.2e", i, relative_rms(got, want));
        any_file_free(&scaled);
        any_file_free(&f32);
    }
}

/* Fp8 without scales is what its bytes say. Not the same bits as those values in F32, which the
 * matrix library reads where they lie: on CPUs with AVX-512 it adds up in another order there. */
static void test_plain(void **state)
{
    static float want[N], got[N];
    const struct hr_dit_params params = {.precision = HR_PRECISION_F32};
    struct any_file file = {0};

    (void) state;
    any_file_load(&file, model.checkpoint);
    for (size_t i = 0; i < file.n; i++)
        round_to(file.tensors[i].values, file.tensors[i].n, HR_DTYPE_F8_E4M3);
    any_file_write(&file, path_of("f32.safetensors"));
    for (size_t i = 0; i < file.n; i++)
        file.tensors[i].dtype = HR_DTYPE_F8_E4M3;
    any_file_write(&file, path_of("plain.safetensors"));
    expect_runs("f32.safetensors", &params, want);
    expect_runs("plain.safetensors", &params, got);
    if (!(relative_rms(got, want) < 1e-6))
        fail_msg("%.2e", relative_rms(got, want));
    any_file_free(&file);
}

static void expect_refused(const struct any_file *file, int code, const char *word)
{
    struct hr_error err = {0};
    float velocity[N];

    any_file_write(file, path_of("refused.safetensors"));
    assert_int_equal(run("refused.safetensors", NULL, velocity, &err), code);
    if (!strstr(err.message, word))
        fail_msg("\"%s\" does not say \"%s\"", err.message, word);
}

static void test_refused(void **state)
{
    struct any_file file = {0};

    (void) state;
    any_file_load(&file, model.checkpoint);
    for (size_t i = 0; i < file.n; i++)
        file.tensors[i].dtype = HR_DTYPE_F8_E4M3;
    any_file_add(&file, HR_DTYPE_F32, 0, 1, 1, "txt_norm.scale_weight")->values[0] = 0.5f;
    expect_refused(&file, -EOPNOTSUPP, "linear layers only");
    snprintf(file.tensors[file.n - 1].name, sizeof(file.tensors[0].name), "img_in.weight_scale_2");
    expect_refused(&file, -EOPNOTSUPP, "nvfp4");
    snprintf(file.tensors[file.n - 1].name, sizeof(file.tensors[0].name), "img_in.weight_scale");
    file.tensors[file.n - 1].values[0] = 0.0f;
    expect_refused(&file, -EBADMSG, "img_in.weight_scale");
    add_quant(&file, "proj_out", HR_DTYPE_F8_E4M3);
    file.tensors[file.n - 2].values[0] = 1.0f;
    expect_refused(&file, -EBADMSG, "weight_scale is missing");
    any_file_free(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forms),
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, open_model, model_fixture_teardown);
}
