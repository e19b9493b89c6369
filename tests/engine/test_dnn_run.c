/* SPDX-License-Identifier: Apache-2.0 */
/* test_dnn_run.c -- runs with attention by cuDNN: what a forecast times, and which run goes on.
 * Over the library of tests/gpu/dnn_fake/, on the played device. */
#include <dlfcn.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/engine/model_fixture.h"

enum { H = 6, W = 10, N = HR_LATENT_CHANNELS * H * W, JOINT = 96, N_TEXT = 4 };

static struct model_fixture model;

static int open_model(void **state)
{
    return model_fixture_setup(
        state, &model, &(struct hr_synth_params){.n_layers = 1, .n_heads = 1, .joint_dim = JOINT},
        H, W, N_TEXT);
}

static int ask(const char *name)
{
    void *library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_NOLOAD);
    int (*fn)(void) = NULL;

    assert_non_null(library);
    *(void **) (void *) &fn = dlsym(library, name);
    assert_non_null(fn);
    const int ret = fn();
    dlclose(library);
    return ret;
}

/* Of a model of one block nobody but the timing of attention has as many queries as keys: each of
 * its shapes runs before it is timed, however long its kernel took to compile. */
static void test_forecast(void **state)
{
    const struct hr_dit_params params = {.attention = HR_ATTENTION_CUDNN};
    struct hr_dit_inputs larger = model.inputs;
    struct hr_dit_prediction p;
    struct hr_dit_forecast f;
    struct hr_error err = {0};

    (void) state;
    larger.images[0].h = larger.images[0].w = 40;
    setenv("HEADRACE_TEST_CUDNN", "slow", 1);
    if (hr_dit_predict(model.checkpoint, &params, &larger, 1, &p, &f, &err) < 0)
        fail_msg("%s", err.message);
    unsetenv("HEADRACE_TEST_CUDNN");
    assert_non_null(strstr(f.device_name, "cuDNN 9.28.1"));
    assert_true(ask("hr_fake_used") > 0);
    assert_int_equal(ask("hr_fake_used_once"), 0);
}

/* Two steps, kept in a folder. @return as hr_denoise_open() and hr_denoise_run() */
static int denoise(const char *folder, enum hr_attention_by attention, const char *library,
                   struct hr_error *err)
{
    static float out[N];
    const struct hr_denoise_params params = {
        .n_steps = 2, .resume_dir = folder, .dit.attention = attention};
    const struct hr_picture picture = {.inputs = model.inputs};
    struct hr_denoise *d = NULL;
    float *latents = out;

    setenv("HEADRACE_TEST_CUDNN", library, 1);
    int r = hr_denoise_open(&d, model.checkpoint, &params, &picture, 1, err);

    if (r == 0)
        r = hr_denoise_run(d, &latents, err);
    hr_denoise_close(&d);
    unsetenv("HEADRACE_TEST_CUDNN");
    return r;
}

static void expect_refused(const char *folder, enum hr_attention_by attention, const char *library,
                           const char *words)
{
    struct hr_error err = {0};

    assert_int_equal(denoise(folder, attention, library, &err), -EINVAL);
    if (!strstr(err.message, words))
        fail_msg("\"%s\" does not say \"%s\"", err.message, words);
}

/* Another kernel gives other bits, and so does another version of the library. */
static void test_resume(void **state)
{
    char folder[128];
    struct hr_error err = {0};

    (void) state;
    snprintf(folder, sizeof(folder), "%s/resume-cudnn", model.folder);
    for (int i = 0; i < 2; i++)
        if (denoise(folder, HR_ATTENTION_CUDNN, "", &err) < 0)
            fail_msg("%s", err.message);
    expect_refused(folder, HR_ATTENTION_CUDNN, "newer",
                   "another kernel of attention: cudnn 9.28.1, now cudnn 9.29.0");
    expect_refused(folder, HR_ATTENTION_OWN, "",
                   "had a kernel of attention: cudnn 9.28.1, now none");
    snprintf(folder, sizeof(folder), "%s/resume-own", model.folder);
    if (denoise(folder, HR_ATTENTION_OWN, "", &err) < 0)
        fail_msg("%s", err.message);
    expect_refused(folder, HR_ATTENTION_CUDNN, "",
                   "another kernel of attention: none, now cudnn 9.28.1");
}

/* Where it cannot be had, not even what it is can be told. */
static void test_resume_without(void **state)
{
    const struct hr_denoise_params params = {
        .n_steps = 2,
        .resume_dir = model.folder,
        .dit = {.device = "cpu", .attention = HR_ATTENTION_CUDNN},
    };
    const struct hr_picture picture = {.inputs = model.inputs};
    struct hr_denoise *d = NULL;
    struct hr_error err = {0};

    (void) state;
    assert_int_equal(hr_denoise_open(&d, model.checkpoint, &params, &picture, 1, &err), -ENODEV);
    assert_string_equal(err.message, "attention by cuDNN needs an NVIDIA GPU, or use --attention "
                                     "own: the device is cpu");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forecast),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_resume_without),
    };

    return cmocka_run_group_tests(tests, open_model, model_fixture_teardown);
}
