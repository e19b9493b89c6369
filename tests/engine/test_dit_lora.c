/* SPDX-License-Identifier: Apache-2.0 */
/* test_dit_lora.c -- a model with LoRAs against the same model with weights merged in F32. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/dit.h"
#include "tests/engine/make_lora.h"
#include "tests/engine/model_fixture.h"

enum { H = 6, W = 10, N_TEXT = 4, JOINT = 96, N = 16 * H * W, LAYERS = 2 };

static struct model_fixture model;
static float without[N]; /* the velocity without LoRA, f32 */

static const char *path_of(const char *name)
{
    static char paths[64][128];
    static unsigned next;
    char *path = paths[next++ % 64];

    snprintf(path, sizeof(paths[0]), "%s/%s", model.folder, name);
    return path;
}

/* Bytes of each kind that the map names. */
static void add_bytes(void *user, const struct hr_memory_part *part)
{
    uint64_t *sums = user;

    if (!part->overlies)
        sums[part->kind] += part->size_bytes;
}

static int run_inputs(const char *path, const struct hr_dit_params *params, float *velocity,
                      struct hr_dit_stats *ret_stats, struct hr_error *err)
{
    uint64_t sums[HR_MEMORY_DEVICE + 1] = {0};
    struct hr_dit_params with_map = *params;
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
        assert_int_equal(sums[HR_MEMORY_LORA], stats.lora_bytes);
        assert_int_equal(sums[HR_MEMORY_ACTIVATIONS] + sums[HR_MEMORY_SCALES] +
                             sums[HR_MEMORY_LORA],
                         stats.activation_bytes);
    }
    if (r == 0 && ret_stats)
        *ret_stats = stats;
    hr_dit_close(&dit);
    hr_checkpoint_close(&checkpoint);
    return r;
}

static void expect_runs(const char *path, const struct hr_dit_params *params, float *velocity,
                        struct hr_dit_stats *ret_stats)
{
    struct hr_error err = {0};

    if (run_inputs(path, params, velocity, ret_stats, &err) < 0)
        fail_msg("%s", err.message);
}

static int open_model(void **state)
{
    model_fixture_setup(
        state, &model,
        &(struct hr_synth_params){
            .n_layers = LAYERS, .n_heads = 1, .joint_dim = JOINT, .dtype = HR_DTYPE_F32},
        H, W, N_TEXT);
    expect_runs(model.path, &(struct hr_dit_params){.precision = HR_PRECISION_F32}, without, NULL);
    return 0;
}

static double relative_rms(const float *got, const float *want, size_t n)
{
    double square = 0, difference = 0;

    for (size_t i = 0; i < n; i++) {
        square += (double) want[i] * want[i];
        difference += ((double) got[i] - want[i]) * ((double) got[i] - want[i]);
    }
    return sqrt(difference / square);
}

static void expect_close(const float *got, const float *want, double bound, const char *what)
{
    const double rms = relative_rms(got, want, N);

    if (!(rms <= bound))
        fail_msg("%s: %.2e, at most %.2e", what, rms, bound);
}

/* ---- both ways of adding a LoRA ------------------------------------------------------------ */

static const struct lora plain = {&lora_families[0], NULL, 4, 0.0f, HR_DTYPE_F32, "one"};

/* Both modes against the merged model. */
static void expect_merged(const struct any_file *merged, const struct hr_lora_file *files,
                          uint32_t n, const char *what)
{
    static float want[N], got[N];
    struct hr_dit_params params = {.precision = HR_PRECISION_F32};

    any_file_write(merged, path_of("merged.safetensors"));
    expect_runs(path_of("merged.safetensors"), &params, want, NULL);
    assert_true(relative_rms(want, without, N) > 1e-2); /* it does change something */
    params.loras = files;
    params.n_loras = n;
    for (int mode = HR_LORA_RUNTIME; mode <= HR_LORA_MERGED; mode++) {
        params.lora_mode = (enum hr_lora_mode) mode;
        expect_runs(model.path, &params, got, NULL);
        expect_close(got, want, 1e-6, what);
    }
}

static void expect_lora(const struct lora *lora, float strength, const char *what)
{
    const struct hr_lora_file file = {path_of("lora.safetensors"), strength};
    struct any_file merged = {0};

    any_file_load(&merged, model.checkpoint);
    make_lora(path_of("lora.safetensors"), lora, &merged, strength);
    expect_merged(&merged, &file, 1, what);
    any_file_free(&merged);
}

/* ---- results ---------------------------------------------------------------------------- */

static void test_families(void **state)
{
    (void) state;
    for (size_t i = 0; i < N_LORA_FAMILIES; i++) {
        struct lora lora = plain;

        lora.family = &lora_families[i];
        lora.alpha = i % 2 ? 2.0f : 0.0f;
        expect_lora(&lora, 1.0f, lora_families[i].down);
    }
}

static void test_dtypes_and_strengths(void **state)
{
    static const enum hr_dtype dtypes[] = {HR_DTYPE_BF16, HR_DTYPE_F16, HR_DTYPE_F32};
    static const float strengths[] = {0.5f, -1.25f, 2.0f};

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(dtypes); i++) {
        struct lora lora = plain;

        lora.dtype = dtypes[i];
        lora.rank = i == 2 ? 1 : 7;
        lora.alpha = i == 2 ? 3.0f : 0.0f;
        expect_lora(&lora, strengths[i], hr_dtype_name(dtypes[i]));
    }
}

/* Each layer alone, so that none is forgotten among the others. */
static void test_single_layers(void **state)
{
    static const char *const layers[] = {
        "linear_1",        "linear_2",          "img_in",          "txt_in",
        "norm_out",        "proj_out",          "img_mod",         "txt_mod",
        "0.attn.to_q",     "0.attn.add_k_proj", "1.attn.to_out.0", "0.attn.to_add_out",
        "1.img_mlp.net.0", "0.txt_mlp.net.2"};

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(layers); i++) {
        static float want[N], got[N];
        const struct hr_lora_file file = {path_of("lora.safetensors"), 1.0f};
        struct hr_dit_params params = {.precision = HR_PRECISION_F32};
        struct any_file merged = {0};
        struct lora lora = plain;

        lora.only = layers[i];
        any_file_load(&merged, model.checkpoint);
        make_lora(path_of("lora.safetensors"), &lora, &merged, 1.0);
        any_file_write(&merged, path_of("merged.safetensors"));
        any_file_free(&merged);
        expect_runs(path_of("merged.safetensors"), &params, want, NULL);
        assert_true(relative_rms(want, without, N) > 1e-4);
        params.loras = &file;
        params.n_loras = 1;
        expect_runs(model.path, &params, got, NULL);
        expect_close(got, want, 1e-6, layers[i]);
    }
}

static void test_two_loras(void **state)
{
    const struct hr_lora_file files[] = {{path_of("one.safetensors"), 0.75f},
                                         {path_of("two.safetensors"), -0.5f}};
    struct lora one = plain, two = plain;
    struct any_file merged = {0};

    (void) state;
    one.only = "attn";
    two.rank = 16;
    two.seed = "two";
    two.family = &lora_families[4];
    any_file_load(&merged, model.checkpoint);
    make_lora(path_of("one.safetensors"), &one, &merged, 0.75);
    make_lora(path_of("two.safetensors"), &two, &merged, -0.5);
    expect_merged(&merged, files, 2, "two files");
    any_file_free(&merged);
}

static void test_zero_strength(void **state)
{
    static float got[N];
    struct hr_lora_file file = {path_of("lora.safetensors"), 0.0f};
    struct hr_dit_params params = {.precision = HR_PRECISION_F32, .loras = &file, .n_loras = 1};
    struct any_file merged = {0};
    struct hr_dit_stats stats;

    (void) state;
    any_file_load(&merged, model.checkpoint);
    make_lora(path_of("lora.safetensors"), &plain, &merged, 1.0);
    any_file_free(&merged);
    for (int mode = HR_LORA_RUNTIME; mode <= HR_LORA_MERGED; mode++) {
        params.lora_mode = (enum hr_lora_mode) mode;
        expect_runs(model.path, &params, got, &stats);
        assert_memory_equal(got, without, sizeof(got));
        assert_int_equal(stats.lora_bytes, 0);
    }
}

/* With scaled fp8 weights the scale is the weight's alone, not the LoRA's. */
static void test_scaled_weights(void **state)
{
    static float runtime[N], merged_velocity[N], want[N];
    const struct hr_lora_file file = {path_of("lora.safetensors"), 1.0f};
    struct hr_dit_params params = {.precision = HR_PRECISION_F32};
    struct any_file scaled = {0}, f32 = {0};

    (void) state;
    any_file_load(&scaled, model.checkpoint);
    any_file_load(&f32, model.checkpoint);
    for (size_t i = 0, n = scaled.n; i < n; i++) {
        struct any_tensor *w = &scaled.tensors[i];
        const uint64_t rows = w->shape[0];
        unsigned char *raw = malloc(w->n);

        assert_non_null(raw);
        if (w->rank == 2) {
            w->dtype = HR_DTYPE_F8_E4M3;
            for (uint64_t k = 0; k < w->n; k++)
                w->values[k] *= 100.0f;
            hr_dtype_from_f32(raw, w->values, w->dtype, w->n);
            hr_dtype_to_f32(w->values, raw, w->dtype, w->n);
            for (uint64_t k = 0; k < w->n; k++)
                f32.tensors[i].values[k] = w->values[k] * (k / w->shape[1] % 2 ? 0.01f : 0.02f);
            struct any_tensor *scale =
                any_file_add(&scaled, HR_DTYPE_F32, 2, rows, 1, "%.*s.scale_weight",
                             (int) (strlen(w->name) - strlen(".weight")), w->name);

            for (uint64_t k = 0; k < rows; k++)
                scale->values[k] = k % 2 ? 0.01f : 0.02f;
        }
        free(raw);
    }
    any_file_write(&scaled, path_of("scaled.safetensors"));
    make_lora(path_of("lora.safetensors"), &plain, &f32, 1.0);
    any_file_write(&f32, path_of("merged.safetensors"));
    expect_runs(path_of("merged.safetensors"), &params, want, NULL);
    params.loras = &file;
    params.n_loras = 1;
    expect_runs(path_of("scaled.safetensors"), &params, runtime, NULL);
    params.lora_mode = HR_LORA_MERGED;
    expect_runs(path_of("scaled.safetensors"), &params, merged_velocity, NULL);
    expect_close(runtime, want, 1e-6, "scaled, at run time");
    expect_close(merged_velocity, want, 1e-6, "scaled, merged");
    any_file_free(&scaled);
    any_file_free(&f32);
}

/* A layer of two bands, merged in several parts; then the same layer in scaled fp8. */
static void test_bands(void **state)
{
    enum { WIDE = 36864 };
    const struct model_fixture small = model;
    struct hr_lora_file file = {NULL, 1.0f};
    struct any_file merged = {0}, scaled = {0};
    static float want[N], got[N];
    struct lora lora = plain;

    (void) state;
    lora.only = "txt_in";
    model_fixture_open(&model,
                       &(struct hr_synth_params){
                           .n_layers = 1, .n_heads = 2, .joint_dim = WIDE, .dtype = HR_DTYPE_F32});
    model_fixture_inputs(&model, H, W, N_TEXT, WIDE);
    any_file_load(&merged, model.checkpoint);
    any_file_load(&scaled, model.checkpoint);
    struct any_tensor *w = any_file_find(&merged, "txt_in.weight");
    struct any_tensor *fp8 = any_file_find(&scaled, "txt_in.weight");
    struct any_tensor *scale =
        any_file_add(&scaled, HR_DTYPE_F32, 1, w->shape[0], 1, "txt_in.weight_scale");

    for (uint64_t i = 0; i < w->n; i++) { /* values that fp8 has: powers of two */
        fp8->values[i] = ldexpf(w->values[i] < 0 ? -1.0f : 1.0f, (int) (i % 7));
        scale->values[i / WIDE] = 1e-4f * (float) (1 + i / WIDE % 5);
        w->values[i] = fp8->values[i] * scale->values[i / WIDE];
    }
    fp8->dtype = HR_DTYPE_F8_E4M3;
    any_file_write(&scaled, path_of("scaled.safetensors"));
    any_file_write(&merged, path_of("base.safetensors"));
    make_lora(path_of("lora.safetensors"), &lora, &merged, 1.0);
    file.path = path_of("lora.safetensors");
    any_file_write(&merged, path_of("merged.safetensors"));
    expect_runs(path_of("merged.safetensors"),
                &(struct hr_dit_params){.precision = HR_PRECISION_F32}, want, NULL);
    for (int mode = HR_LORA_RUNTIME; mode <= HR_LORA_MERGED; mode++) {
        const struct hr_dit_params params = {
            .precision = HR_PRECISION_F32,
            .loras = &file,
            .n_loras = 1,
            .lora_mode = (enum hr_lora_mode) mode,
        };

        expect_runs(path_of("base.safetensors"), &params, got, NULL);
        expect_close(got, want, 1e-6, "bands");
        expect_runs(path_of("scaled.safetensors"), &params, got, NULL);
        expect_close(got, want, 1e-6, "bands of scaled fp8");
    }
    any_file_free(&merged);
    any_file_free(&scaled);
    model_fixture_close(&model);
    model = small;
}

static void test_bf16(void **state)
{
    static float want[N], got[N];
    const struct hr_lora_file file = {path_of("lora.safetensors"), 1.0f};
    struct hr_dit_params params = {.precision = HR_PRECISION_F32, .loras = &file, .n_loras = 1};
    struct any_file merged = {0};

    (void) state;
    any_file_load(&merged, model.checkpoint);
    make_lora(path_of("lora.safetensors"), &plain, &merged, 1.0);
    any_file_free(&merged);
    expect_runs(model.path, &params, want, NULL);
    params.precision = HR_PRECISION_BF16;
    for (int mode = HR_LORA_RUNTIME; mode <= HR_LORA_MERGED; mode++) {
        params.lora_mode = (enum hr_lora_mode) mode;
        expect_runs(model.path, &params, got, NULL);
        print_message("bf16 against f32, mode %d: %.2e\n", mode, relative_rms(got, want, N));
        expect_close(got, want, 5e-3, "bf16");
    }
}

/* ---- bits that do not change -------------------------------------------------------------- */

struct forwards {
    float velocities[3][N];
    struct hr_dit_stats stats;
};

static void run_forwards(const struct hr_dit_params *params, const float *timesteps,
                         struct forwards *f)
{
    struct hr_dit_inputs in = model.inputs;
    struct hr_error err = {0};
    struct hr_dit *dit = NULL;
    int r = hr_dit_open(&dit, model.checkpoint, params, &in, 1, &err);

    for (unsigned i = 0; i < 3 && r == 0; i++) {
        in.timestep = timesteps[i];
        r = hr_dit_forward(dit, &in, &(float *){f->velocities[i]}, &err);
    }
    if (r < 0)
        fail_msg("%s", err.message);
    hr_dit_get_stats(dit, &f->stats);
    hr_dit_close(&dit);
}

/* Modulation up front, weights that stay, threads: the same bits as without. */
static void test_same_bits(void **state)
{
    static const float timesteps[] = {900.0f, 500.0f, 120.0f};
    static struct forwards want, got;
    const struct hr_lora_file file = {path_of("lora.safetensors"), 0.8f};
    struct any_file merged = {0};

    (void) state;
    any_file_load(&merged, model.checkpoint);
    make_lora(path_of("lora.safetensors"), &plain, &merged, 0.8);
    any_file_free(&merged);
    for (int mode = HR_LORA_RUNTIME; mode <= HR_LORA_MERGED; mode++)
        for (int precision = HR_PRECISION_BF16; precision <= HR_PRECISION_F32; precision++) {
            struct hr_dit_params params = {
                .precision = (enum hr_precision) precision,
                .n_forwards = 3,
                .loras = &file,
                .n_loras = 1,
                .lora_mode = (enum hr_lora_mode) mode,
            };

            run_forwards(&params, timesteps, &want);
            params.timesteps = timesteps;
            run_forwards(&params, timesteps, &got);
            assert_memory_equal(got.velocities, want.velocities, sizeof(want.velocities));
            assert_true(got.stats.mods_bytes > 0);
            params.ram_bytes = (uint64_t) 600 << 20; /* also enough for a sanitizer */
            params.stream.ring_bytes = 8 << 20;
            params.n_threads = 3;
            run_forwards(&params, timesteps, &got);
            assert_memory_equal(got.velocities, want.velocities, sizeof(want.velocities));
            assert_true(got.stats.resident_bytes > 0);
        }
}

static void test_samples_share_a_pass(void **state)
{
    static float alone[2][N], together[2][N];
    const struct hr_lora_file file = {path_of("lora.safetensors"), 1.0f};
    const struct hr_dit_params params = {.loras = &file, .n_loras = 1};
    struct hr_dit_inputs inputs[2] = {model.inputs, model.inputs};
    struct any_file merged = {0};
    struct hr_error err = {0};
    struct hr_dit *dit = NULL;

    (void) state;
    inputs[1].n_text = 2;
    any_file_load(&merged, model.checkpoint);
    make_lora(path_of("lora.safetensors"), &plain, &merged, 1.0);
    any_file_free(&merged);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(hr_dit_open(&dit, model.checkpoint, &params, &inputs[i], 1, &err), 0);
        assert_int_equal(hr_dit_forward(dit, &inputs[i], &(float *){alone[i]}, &err), 0);
        hr_dit_close(&dit);
    }
    assert_int_equal(hr_dit_open(&dit, model.checkpoint, &params, inputs, 2, &err), 0);
    assert_int_equal(hr_dit_forward(dit, inputs, (float *[]){together[0], together[1]}, &err), 0);
    hr_dit_close(&dit);
    assert_memory_equal(alone, together, sizeof(alone));
}

/* ---- reports and refusals ----------------------------------------------------------------- */

static char logged[4096];
static unsigned n_logged;

static void keep_log(void *user, enum hr_log_level level, const char *message)
{
    (void) user;
    if (level != HR_LOG_WARN)
        return;
    snprintf(logged, sizeof(logged), "%s", message);
    n_logged++;
}

/* Tensors that fit nothing; blocks that are not run take no memory, but do fit. */
static void test_report(void **state)
{
    static float got[N];
    const struct hr_lora_file file = {path_of("lora.safetensors"), 1.0f};
    struct hr_dit_params params = {
        .precision = HR_PRECISION_F32, .loras = &file, .n_loras = 1, .n_layers = 1};
    struct hr_dit_prediction prediction;
    struct hr_dit_forecast forecast;
    struct any_file lora = {0};
    struct hr_dit_stats stats;

    (void) state;
    any_file_add(&lora, HR_DTYPE_F32, 2, 4, 128, "transformer_blocks.1.attn.to_q.lora_A.weight");
    any_file_add(&lora, HR_DTYPE_F32, 2, 128, 4, "transformer_blocks.1.attn.to_q.lora_B.weight");
    for (unsigned i = 0; i < 6; i++)
        any_file_add(&lora, HR_DTYPE_F32, 1, 4, 1, "te.%u\\u001b.lora_A.weight", i);
    any_file_write(&lora, file.path);
    any_file_free(&lora);
    hr_log_set(keep_log, NULL, HR_LOG_WARN);
    n_logged = 0;
    expect_runs(model.path, &params, got, &stats);
    assert_int_equal(n_logged, 1);
    assert_int_equal(
        hr_dit_predict(model.checkpoint, &params, &model.inputs, 1, &prediction, &forecast, NULL),
        0);
    assert_int_equal(n_logged, 2); /* once, however often it is opened to be measured */
    hr_log_set(NULL, NULL, HR_LOG_WARN);
    assert_int_equal(stats.n_loras, 1);
    assert_int_equal(stats.loras[0].n_modules, 1);
    assert_int_equal(stats.loras[0].n_ignored, 6);
    assert_int_equal(stats.lora_bytes, 0);
    assert_non_null(strstr(logged, "6 of 8 tensors"));
    assert_non_null(strstr(logged, "te.3\\x1b.lora_A.weight, ..."));
    assert_null(strchr(logged, '\x1b'));
}

static void expect_refused(const struct hr_dit_params *params, int code, const char *word)
{
    struct hr_error err = {0};
    float velocity[N];

    assert_int_equal(run_inputs(model.path, params, velocity, NULL, &err), code);
    if (!strstr(err.message, word))
        fail_msg("\"%s\" does not say \"%s\"", err.message, word);
}

static void test_refused(void **state)
{
    struct hr_lora_file files[HR_LORA_FILES_MAX + 1];
    struct hr_dit_params params = {.loras = files, .n_loras = 1};
    struct any_file merged = {0};
    struct lora wide = plain;

    (void) state;
    wide.rank = 64;
    any_file_load(&merged, model.checkpoint);
    make_lora(path_of("lora.safetensors"), &wide, &merged, 1.0);
    any_file_free(&merged);
    for (size_t i = 0; i < HR_ARRAY_SIZE(files); i++)
        files[i] = (struct hr_lora_file){path_of("lora.safetensors"), 1.0f};
    params.lora_mode = 7;
    expect_refused(&params, -EINVAL, "neither runtime nor merged");
    params.lora_mode = HR_LORA_RUNTIME;
    params.n_loras = HR_LORA_FILES_MAX + 1;
    expect_refused(&params, -EINVAL, "9 LoRA files");
    params.n_loras = 1;
    params.ram_bytes = 60 << 20;
    expect_refused(&params, -ENOMEM, "activations and LoRAs");
    params.ram_bytes = 0;
    files[0].strength = NAN;
    expect_refused(&params, -EINVAL, "strength");
    files[0] = (struct hr_lora_file){path_of("none.safetensors"), 1.0f};
    expect_refused(&params, -ENOENT, "none.safetensors");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families),      cmocka_unit_test(test_dtypes_and_strengths),
        cmocka_unit_test(test_single_layers), cmocka_unit_test(test_two_loras),
        cmocka_unit_test(test_zero_strength), cmocka_unit_test(test_scaled_weights),
        cmocka_unit_test(test_bands),         cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_same_bits),     cmocka_unit_test(test_samples_share_a_pass),
        cmocka_unit_test(test_report),        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, open_model, model_fixture_teardown);
}
