/* SPDX-License-Identifier: Apache-2.0 */
/* test_precision.c -- bf16 against f32 on one block of the real width, same bf16 weights. The bound
 * is that of the numerical specification: 1.5e-3 relative RMS of the residual streams. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/dit.h"
#include "tests/engine/model_fixture.h"

enum { N_TEXT = 12, SIDE = 16 }; /* 64 image tokens */

struct outputs {
    float *img, *txt, *velocity;
    size_t n_img, n_txt, n_velocity;
};

static float *copy(const float *data, size_t n)
{
    float *values = malloc(n * sizeof(*values));

    assert_non_null(values);
    return memcpy(values, data, n * sizeof(*values));
}

static void keep(void *user, const char *name, const float *data, size_t rows, size_t cols)
{
    struct outputs *o = user;

    if (strcmp(name, "img.block") == 0)
        o->img = copy(data, o->n_img = rows * cols);
    else if (strcmp(name, "txt.block") == 0)
        o->txt = copy(data, o->n_txt = rows * cols);
    else if (strcmp(name, "proj_out") == 0)
        o->velocity = copy(data, o->n_velocity = rows * cols);
}

static void run(const struct model_fixture *f, enum hr_precision precision, struct outputs *o)
{
    const struct hr_dit_params params = {.precision = precision};
    float velocity[16 * SIDE * SIDE];
    struct hr_error err = {0};
    struct hr_dit *dit = NULL;
    int r = hr_dit_open_tapped(&dit, f->checkpoint, &params, &f->inputs, 1, keep, o, true, &err);

    if (r == 0)
        r = hr_dit_forward(dit, &f->inputs, &(float *){velocity}, &err);
    if (r < 0)
        fail_msg("%s", err.message);
    hr_dit_close(&dit);
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

static void test_block(void **state)
{
    struct outputs bf16 = {0}, f32 = {0};
    struct model_fixture f;

    (void) state;
    model_fixture_open(&f, &(struct hr_synth_params){.n_layers = 1});
    model_fixture_inputs(&f, SIDE, SIDE, N_TEXT, 3584);
    run(&f, HR_PRECISION_BF16, &bf16);
    run(&f, HR_PRECISION_F32, &f32);

    const double img = relative_rms(bf16.img, f32.img, f32.n_img);
    const double txt = relative_rms(bf16.txt, f32.txt, f32.n_txt);
    const double velocity = relative_rms(bf16.velocity, f32.velocity, f32.n_velocity);

    print_message("bf16 against f32: image %.2e, text %.2e, velocity %.2e\n", img, txt, velocity);
    assert_true(img > 0 && img <= 1.5e-3);
    assert_true(txt > 0 && txt <= 1.5e-3);
    assert_true(velocity <= 1.5e-3);
    for (struct outputs *o = &bf16;; o = &f32) {
        free(o->img);
        free(o->txt);
        free(o->velocity);
        if (o == &f32)
            break;
    }
    model_fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_block)};
    const char *small = getenv("HEADRACE_TEST_SMALL");

    if (small && strcmp(small, "1") == 0)
        return 77; /* 680 MB of weights are too slow under a sanitizer */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
