/* SPDX-License-Identifier: Apache-2.0 */
/* test_dnn_run.c -- runs with attention by cuDNN: what a forecast times. Over the
 * library of tests/gpu/dnn_fake/, on the played device. */
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/engine/model_fixture.h"

enum { H = 6, W = 10, JOINT = 96, N_TEXT = 4 };

static struct model_fixture model;

static int open_model(void **state)
{
    (void) state;
    model_fixture_open(&model,
                       &(struct hr_synth_params){.n_layers = 1, .n_heads = 1, .joint_dim = JOINT});
    model_fixture_inputs(&model, H, W, N_TEXT, JOINT);
    return 0;
}

static int close_model(void **state)
{
    (void) state;
    model_fixture_close(&model);
    return 0;
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forecast),
    };

    return cmocka_run_group_tests(tests, open_model, close_model);
}
