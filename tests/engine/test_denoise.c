/* SPDX-License-Identifier: Apache-2.0 */
/* test_denoise.c -- the loop against its formulas written out with single forwards; pictures that
 * share a pass; going on after any step. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/common.h"
#include "engine/resume.h"
#include "engine/sampler.h"
#include "tests/engine/make_lora.h"
#include "tests/engine/model_fixture.h"

enum { H = 6, W = 10, N = HR_LATENT_CHANNELS * H * W, JOINT = 96, N_TEXT = 4, N_NEGATIVE = 2 };

static struct model_fixture model;
static float negative[N_NEGATIVE * JOINT];

static int open_model(void **state)
{
    model_fixture_setup(state, &model,
                        &(struct hr_synth_params){.n_layers = 2, .n_heads = 2, .joint_dim = JOINT},
                        H, W, N_TEXT);
    hr_synth_values(negative, "negative", 0, HR_ARRAY_SIZE(negative), 2, JOINT, 3.0);
    return 0;
}

static struct hr_picture picture(void)
{
    return (struct hr_picture){
        .inputs = model.inputs,
        .negative_emb = negative,
        .n_negative = N_NEGATIVE,
    };
}

static int denoise(const struct hr_denoise_params *params, const struct hr_picture *pictures,
                   uint32_t n, float *const *latents, struct hr_dit_stats *ret_stats,
                   struct hr_error *err)
{
    struct hr_denoise *d = NULL;
    int r = hr_denoise_open(&d, model.checkpoint, params, pictures, n, err);

    if (r == 0)
        r = hr_denoise_run(d, latents, err);
    if (r == 0 && ret_stats)
        hr_denoise_get_stats(d, ret_stats);
    hr_denoise_close(&d);
    return r;
}

static void expect_denoised(const struct hr_denoise_params *params, const struct hr_picture *p,
                            float *latents)
{
    struct hr_error err = {0};

    if (denoise(params, p, 1, &latents, NULL, &err) < 0)
        fail_msg("%s", err.message);
}

/* One velocity by a forward of its own. */
static void velocity_alone(const struct hr_dit_params *params, const struct hr_dit_inputs *inputs,
                           float *velocity)
{
    struct hr_dit *dit = NULL;
    struct hr_error err = {0};

    if (hr_dit_open(&dit, model.checkpoint, params, inputs, 1, &err) < 0 ||
        hr_dit_forward(dit, inputs, &velocity, &err) < 0)
        fail_msg("%s", err.message);
    hr_dit_close(&dit);
}

/* The loop of the specification, written out. */
static void loop_by_hand(const struct hr_denoise_params *params, const struct hr_picture *p,
                         float *x)
{
    float sigmas[64], v[N], v_negative[N];
    const struct hr_schedule_params schedule = {params->schedule, params->n_steps,
                                                (H / 2) * (W / 2), 1.0f, NAN};
    struct hr_dit_inputs in = p->inputs;

    memcpy(x, p->inputs.images[0].data, N * sizeof(float));
    hr_schedule_sigmas(sigmas, &schedule);
    for (uint32_t i = 0; i < params->n_steps; i++) {
        in = p->inputs;
        in.images[0].data = x;
        in.timestep = sigmas[i] * 1000.0f;
        velocity_alone(&params->dit, &in, v);
        in.prompt_emb = p->negative_emb;
        in.n_text = p->n_negative;
        velocity_alone(&params->dit, &in, v_negative);
        if (params->cfg_norm)
            hr_guide_normed(v, v_negative, params->cfg_scale, H, W);
        else
            hr_guide(v, v_negative, params->cfg_scale, N);
        hr_step(x, v, sigmas[i], sigmas[i + 1], N);
    }
}

static void test_against_the_formulas(void **state)
{
    static float want[N], got[N];
    const struct hr_picture p = picture();

    (void) state;
    for (int norm = 0; norm < 2; norm++)
        for (int precision = HR_PRECISION_BF16; precision <= HR_PRECISION_F32; precision++) {
            const struct hr_denoise_params params = {
                .dit = {.precision = (enum hr_precision) precision},
                .n_steps = 4,
                .cfg_scale = 3.0f,
                .cfg_norm = norm != 0,
                .schedule = norm ? HR_SCHEDULE_LIGHTNING : HR_SCHEDULE_DYNAMIC,
            };

            loop_by_hand(&params, &p, want);
            expect_denoised(&params, &p, got);
            assert_memory_equal(got, want, sizeof(got)); /* not only close: the same bits */
        }
}

/* Two pictures, each with its negative prompt: four samples, one pass a step, each as alone. */
static void test_pictures_share_passes(void **state)
{
    static float alone[2][N], together[2][N];
    float *latents[] = {together[0], together[1]};
    struct hr_picture p[2] = {picture(), picture()};
    struct hr_denoise_params params = {.n_steps = 3};
    struct hr_dit_stats one, both;
    struct hr_error err = {0};

    (void) state;
    p[0].inputs.images[0].data = p[1].inputs.images[0].data = NULL; /* from the seeds */
    p[1].seed = 1;
    p[1].inputs.n_text = 3;
    for (unsigned i = 0; i < 2; i++) {
        float *one_latents = alone[i];

        assert_int_equal(denoise(&params, &p[i], 1, &one_latents, &one, &err), 0);
    }
    assert_int_equal(denoise(&params, p, 2, latents, &both, &err), 0);
    assert_memory_equal(alone, together, sizeof(alone));
    assert_memory_not_equal(alone[0], alone[1], sizeof(alone[0]));
    assert_int_equal(one.stream.bytes_used, both.stream.bytes_used);
}

static void test_guidance_off(void **state)
{
    static float a[N], b[N];
    struct hr_picture p = picture();

    (void) state;
    expect_denoised(&(struct hr_denoise_params){.n_steps = 2, .cfg_scale = 1.0f}, &p, a);
    p.negative_emb = NULL;
    expect_denoised(&(struct hr_denoise_params){.n_steps = 2, .cfg_scale = 5.0f}, &p, b);
    assert_memory_equal(a, b, sizeof(a));
}

static void test_image_to_image(void **state)
{
    static float init[N], out[N], mask[H * W];
    struct hr_picture p = picture();

    (void) state;
    hr_synth_values(init, "init", 0, N, 3, W, 1.0);
    p.init = init;
    for (unsigned i = 0; i < H * W; i++)
        mask[i] = i % 2 ? 1.0f : 0.0f;
    p.mask = mask;
    expect_denoised(&(struct hr_denoise_params){.n_steps = 3, .strength = 0.5f}, &p, out);
    for (unsigned i = 0; i < N; i++)
        if (i % 2 == 0) /* kept: the last step leads to the original */
            assert_true(fabsf(out[i] - init[i]) < 1e-5f);
    p.mask = NULL;
    expect_denoised(&(struct hr_denoise_params){.n_steps = 3, .strength = 0.01f}, &p, out);
    double difference = 0, size = 0;

    for (unsigned i = 0; i < N; i++) {
        difference += fabsf(out[i] - init[i]);
        size += fabsf(init[i]);
    }
    assert_true(difference < 0.3 * size); /* a weak strength stays near */
}

/* ---- going on ----------------------------------------------------------------------------- */

struct stopper {
    struct hr_denoise *denoise;
    uint32_t after;
};

static void stop_after(void *user, const struct hr_denoise_step *step)
{
    const struct stopper *s = user;

    if (step->n_done == s->after)
        hr_denoise_interrupt(s->denoise);
}

static void test_resume(void **state)
{
    static float want[N], got[N];
    const struct hr_picture p = picture();
    char folder[128];

    (void) state;
    expect_denoised(&(struct hr_denoise_params){.n_steps = 4}, &p, want);
    for (uint32_t after = 1; after <= 4; after++) {
        struct stopper s = {.after = after};
        struct hr_error err = {0};
        float *latents = got;

        snprintf(folder, sizeof(folder), "%s/resume-%u", model.folder, after);
        struct hr_denoise_params params = {
            .n_steps = 4, .resume_dir = folder, .step = stop_after, .step_user = &s};

        assert_int_equal(hr_denoise_open(&s.denoise, model.checkpoint, &params, &p, 1, &err), 0);
        assert_int_equal(hr_denoise_run(s.denoise, &latents, &err), after < 4 ? -ECANCELED : 0);
        hr_denoise_close(&s.denoise);
        params.step = NULL;
        memset(got, 0, sizeof(got));
        expect_denoised(&params, &p, got);
        assert_memory_equal(got, want, sizeof(got));
    }
}

static void expect_refused(const char *folder, struct hr_denoise_params params,
                           const struct hr_picture *p, int code, const char *word)
{
    struct hr_error err = {0};
    static float out[N];
    float *latents = out;

    params.resume_dir = folder;
    assert_int_equal(denoise(&params, p, 1, &latents, NULL, &err), code);
    if (!strstr(err.message, word))
        fail_msg("\"%s\" does not say \"%s\"", err.message, word);
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void test_resume_refuses_another_run(void **state)
{
    struct hr_picture p = picture(), other = picture();
    struct hr_denoise_params params = {.n_steps = 2};
    char folder[128], path[160];
    static float out[N];

    (void) state;
    snprintf(folder, sizeof(folder), "%s/resume", model.folder);
    params.resume_dir = folder;
    expect_denoised(&params, &p, out);

    params.n_steps = 3;
    expect_refused(folder, params, &p, -EINVAL, "number of steps: 2, now 3");
    params.n_steps = 2;
    params.cfg_scale = 2.0f;
    expect_refused(folder, params, &p, -EINVAL, "guidance: 4, now 2");
    params.cfg_scale = 0.0f;
    params.dit.precision = HR_PRECISION_F32;
    expect_refused(folder, params, &p, -EINVAL, "precision: bf16, now f32");
    params.dit.precision = HR_PRECISION_BF16;
    other.inputs.n_text = 3;
    expect_refused(folder, params, &other, -EINVAL, "prompt of picture 0");
    other = picture();
    other.negative_emb = NULL;
    expect_refused(folder, params, &other, -EINVAL, "had a negative prompt of picture 0");
    other = picture();
    other.inputs.images[0].data = NULL;
    expect_refused(folder, params, &other, -EINVAL, "initial latents");

    static float init[N], mask[H * W];

    other = picture();
    other.init = init;
    other.mask = mask;
    snprintf(path, sizeof(path), "%s/resume-inpainting", model.folder);
    params.resume_dir = path;
    expect_denoised(&params, &other, out);
    init[7] = 1.0f; /* at sigma 1 only what is kept tells */
    expect_refused(path, params, &other, -EINVAL, "kept latents of picture 0");

    snprintf(path, sizeof(path), "%s/state.json", folder);
    write_text(path, "{\"version\": 1, \"step\": -1, \"facts\": {}}");
    expect_refused(folder, params, &p, -EBADMSG, "no state of a denoising run");
    write_text(path, "nonsense");
    expect_refused(folder, params, &p, -EBADMSG, "no state of a denoising run");
    expect_refused("/proc/nowhere/at/all", params, &p, -ENOENT, "making the folder");
}

static unsigned n_allocations, failing;

static void *fail_one(size_t n)
{
    return ++n_allocations == failing ? NULL : malloc(n);
}

/* Where memory runs out a step is not kept, and says so: never a state that lacks something. */
static void test_resume_without_memory(void **state)
{
    static struct hr_resume resume;
    float values[4] = {1, 2, 3, 4}, got[4], *latents = values, *loaded = got;
    const uint64_t n_floats = 4;
    char folder[128];
    int r = -ENOMEM;

    (void) state;
    snprintf(folder, sizeof(folder), "%s/resume-no-memory", model.folder);
    resume.folder = folder;
    hr_resume_fact(&resume, "a fact", "%d", 1);
    hr_resume_fact(&resume, "another fact", "%d", 2);
    assert_int_equal(hr_resume_load(&resume, &loaded, &n_floats, 1, NULL), 0);
    for (failing = 1; r < 0; failing++) {
        struct hr_error err = {0};

        n_allocations = 0;
        json_set_alloc_funcs(fail_one, free);
        r = hr_resume_save(&resume, 1, &latents, &n_floats, 1, &err);
        json_set_alloc_funcs(malloc, free);
        assert_true(r == 0 || strstr(err.message, "memory"));
        assert_int_equal(hr_resume_load(&resume, &loaded, &n_floats, 1, &err), 0);
        assert_int_equal(resume.step, r == 0);
    }
    assert_true(failing > 10);
    assert_memory_equal(got, values, sizeof(got));
}

/* A LoRA for all layers of the model. */
static void write_lora(const char *path, const char *seed)
{
    const struct lora lora = {&lora_families[0], NULL, 4, 0.0f, HR_DTYPE_BF16, seed};
    struct any_file merged = {0};

    any_file_load(&merged, model.checkpoint);
    make_lora(path, &lora, &merged, 1.0);
    any_file_free(&merged);
}

/* Another file, also of the same header, another strength, another mode, none, or one more. */
static void test_resume_refuses_another_lora(void **state)
{
    const struct hr_picture p = picture();
    struct hr_denoise_params params = {.n_steps = 2};
    char folder[128], one[128], two[128];
    static float want[N], out[N];

    (void) state;
    snprintf(folder, sizeof(folder), "%s/resume-lora", model.folder);
    snprintf(one, sizeof(one), "%s/one.safetensors", model.folder);
    snprintf(two, sizeof(two), "%s/two.safetensors", model.folder);
    write_lora(one, "one");
    write_lora(two, "two");
    struct hr_lora_file files[2] = {{one, 1.0f}, {two, 1.0f}};

    params.dit.loras = files;
    params.dit.n_loras = 1;
    params.resume_dir = folder;
    expect_denoised(&params, &p, want);
    expect_denoised(&params, &p, out);
    assert_memory_equal(out, want, sizeof(out));

    files[0].strength = 0.5f;
    expect_refused(folder, params, &p, -EINVAL, "strength of LoRA 0: 1, now 0.5");
    files[0] = files[1];
    expect_refused(folder, params, &p, -EINVAL, "another LoRA 0");
    files[0].path = one;
    params.dit.lora_mode = HR_LORA_MERGED;
    expect_refused(folder, params, &p, -EINVAL, "LoRA mode: runtime, now merged");
    params.dit.lora_mode = HR_LORA_RUNTIME;
    params.dit.n_loras = 2;
    expect_refused(folder, params, &p, -EINVAL, "LoRA 1: none, now");
    params.dit.n_loras = 0;
    expect_refused(folder, params, &p, -EINVAL, "LoRA");
    write_lora(one, "three"); /* the same file name, of the same size */
    params.dit.n_loras = 1;
    expect_refused(folder, params, &p, -EINVAL, "another LoRA 0");
    unlink(one);
    expect_refused(folder, params, &p, -ENOENT, "one.safetensors");
}

static void test_bad_params(void **state)
{
    struct hr_picture p[2] = {picture(), picture()};
    struct hr_error err = {0};
    struct hr_denoise *d = NULL;
    const struct {
        struct hr_denoise_params params;
        const char *word;
    } cases[] = {
        {{.n_steps = 0}, "0 steps"},
        {{.n_steps = 1001}, "1001 steps"},
        {{.n_steps = 2, .strength = -1.0f}, "strength"},
        {{.n_steps = 2, .strength = 0.5f}, "image to start from (init_latents"},
        {{.n_steps = 2, .cfg_scale = NAN}, "guidance scale"},
        {{.n_steps = 2, .mu_given = true, .mu = NAN}, "mu is nan"},
        {{.n_steps = 2, .mu_given = true, .mu = 20.5f}, "mu is 20.5; expected -20 to 20"},
        {{.n_steps = 2, .mu_given = true, .mu = -1e30f}, "expected -20 to 20"},
    };

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(cases); i++) {
        hr_error_clear(&err);
        assert_int_equal(hr_denoise_open(&d, model.checkpoint, &cases[i].params, p, 1, &err),
                         -EINVAL);
        if (!strstr(err.message, cases[i].word))
            fail_msg("\"%s\" does not say \"%s\"", err.message, cases[i].word);
    }
    p[1].inputs.images[0].h = 8;
    hr_error_clear(&err);
    assert_int_equal(hr_denoise_open(&d, model.checkpoint,
                                     &(struct hr_denoise_params){.n_steps = 2}, p, 2, &err),
                     -EINVAL);
    assert_non_null(strstr(err.message, "different size"));
}

/* Sizes are looked at before anything is made of them. */
static void test_bad_images(void **state)
{
    static const struct hr_latent sizes[] = {{NULL, 0, W},
                                             {NULL, H, 0},
                                             {NULL, 1, 64},
                                             {NULL, H, 7},
                                             {NULL, UINT32_MAX - 1, UINT32_MAX - 1}};
    const struct hr_denoise_params params = {.n_steps = 2};
    struct hr_denoise *d = NULL;
    struct hr_error err = {0};
    static const float few[1];

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(sizes); i++) {
        struct hr_picture p = picture();

        p.inputs.images[0] = sizes[i];
        hr_error_clear(&err);
        assert_int_equal(hr_denoise_open(&d, model.checkpoint, &params, &p, 1, &err), -EINVAL);
        assert_non_null(strstr(err.message, "picture 0: image 0 of the inputs has a latent of "));
        assert_non_null(strstr(err.message, "height and width must be even"));
    }
    /* A second target that is smaller than the first is not read beyond its end. */
    struct hr_picture p = picture();

    p.inputs.images[1] = (struct hr_latent){few, 2, 2};
    p.inputs.n_images = p.inputs.n_targets = 2;
    hr_error_clear(&err);
    assert_int_equal(hr_denoise_open(&d, model.checkpoint, &params, &p, 1, &err), -EINVAL);
    assert_non_null(strstr(err.message, "target image 1 is 2 x 2, but the first is 6 x 10"));
    p.inputs.n_images = p.inputs.n_targets = 0;
    hr_error_clear(&err);
    assert_int_equal(hr_denoise_open(&d, model.checkpoint, &params, &p, 1, &err), -EINVAL);
    assert_non_null(strstr(err.message, "expected 1 to 32 images and at least one target"));
}

static void test_too_many_prompts(void **state)
{
    static struct hr_picture p[HR_SAMPLES_MAX];
    struct hr_denoise *d = NULL;
    struct hr_error err = {0};

    (void) state;
    for (unsigned i = 0; i < HR_SAMPLES_MAX; i++)
        p[i] = picture(); /* with a negative prompt each */
    assert_int_equal(hr_denoise_open(&d, model.checkpoint,
                                     &(struct hr_denoise_params){.n_steps = 2}, p, HR_SAMPLES_MAX,
                                     &err),
                     -EINVAL);
    assert_non_null(strstr(err.message, "more than 16 prompts"));
    assert_non_null(strstr(err.message, "run fewer pictures at a time"));
}

/* A plan looks at sizes and masks; data, the seed's too, are another matter. */
static void test_predict_without_data(void **state)
{
    struct hr_picture p = picture();
    struct hr_dit_prediction want, got;
    struct hr_error err = {0};

    (void) state;
    assert_int_equal(hr_denoise_predict(model.checkpoint, &(struct hr_denoise_params){.n_steps = 3},
                                        &p, 1, &want, NULL, &err),
                     0);
    p.inputs.images[0].data = (const float *) 64; /* none of these can be read */
    p.inputs.prompt_emb = p.negative_emb = p.init = p.mask = (const float *) 64;
    assert_int_equal(hr_denoise_predict(model.checkpoint, &(struct hr_denoise_params){.n_steps = 3},
                                        &p, 1, &got, NULL, &err),
                     0);
    assert_int_equal(got.run_bytes, want.run_bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_the_formulas),
        cmocka_unit_test(test_pictures_share_passes),
        cmocka_unit_test(test_guidance_off),
        cmocka_unit_test(test_image_to_image),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_resume_refuses_another_run),
        cmocka_unit_test(test_resume_refuses_another_lora),
        cmocka_unit_test(test_resume_without_memory),
        cmocka_unit_test(test_bad_params),
        cmocka_unit_test(test_bad_images),
        cmocka_unit_test(test_too_many_prompts),
        cmocka_unit_test(test_predict_without_data),
    };
    return cmocka_run_group_tests(tests, open_model, model_fixture_teardown);
}
