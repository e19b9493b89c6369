/* SPDX-License-Identifier: Apache-2.0 */
/* test_golden.c -- the whole path, disk to velocity, against values of the published
 * implementation.
 *
 * The model is the reduced one (2 layers, 2 heads, joint dim 96) with values that follow from
 * names; whole outputs come from diffusers (golden_values.h), intermediate values from the
 * numerical specification of the model. Tolerances: 2e-5 per value, 5e-6 relative RMS; on a GPU
 * (HEADRACE_DEVICE=cuda) 1e-4 of both. In bf16, relative RMS alone: 1e-2. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/dit.h"
#include "tests/engine/golden_values.h"
#include "tests/engine/model_fixture.h"

enum { D = 256, JOINT = 96, N_TEXT = 4 };

static bool is_gpu(void)
{
    const char *device = getenv("HEADRACE_DEVICE");

    return device && strncmp(device, "cuda", 4) == 0;
}

/* ---- intermediate values ----------------------------------------------------------------- */

struct kept {
    char name[32];
    float *data;
    size_t rows, cols;
};

/* Everything that was tapped, in order: the same name comes again for each block. */
struct taps {
    struct kept kept[128];
    unsigned n;
};

static void keep(void *user, const char *name, const float *data, size_t rows, size_t cols)
{
    struct taps *taps = user;
    struct kept *k = &taps->kept[taps->n++];

    assert_true(taps->n <= HR_ARRAY_SIZE(taps->kept));
    snprintf(k->name, sizeof(k->name), "%s", name);
    k->rows = rows;
    k->cols = cols;
    k->data = malloc(rows * cols * sizeof(float));
    memcpy(k->data, data, rows * cols * sizeof(float));
}

static void taps_free(struct taps *taps)
{
    for (unsigned i = 0; i < taps->n; i++)
        free(taps->kept[i].data);
}

/* The `nth` tap of that name, counting from 0. */
static const struct kept *tap(const struct taps *taps, const char *name, unsigned nth)
{
    for (unsigned i = 0; i < taps->n; i++)
        if (strcmp(taps->kept[i].name, name) == 0 && nth-- == 0)
            return &taps->kept[i];
    fail_msg("no tap is called %s", name);
    return NULL;
}

static void expect_values(const char *what, const float *got, const float *want, size_t n,
                          double tolerance)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double) got[i] - want[i]) <= tolerance))
            fail_msg("%s[%zu]: got %.6f, expected %.6f", what, i, got[i], want[i]);
}

#define EXPECT(taps, name, nth, row, col, ...)                                  \
    do {                                                                        \
        const float want_[] = {__VA_ARGS__};                                    \
        const struct kept *k_ = tap(taps, name, nth);                           \
        expect_values(name, k_->data + (size_t) (row) *k_->cols + (col), want_, \
                      HR_ARRAY_SIZE(want_), is_gpu() ? 1e-4 : 2e-5);            \
    } while (0)

/* ---- cases --------------------------------------------------------------------------------- */

struct golden_case {
    const char *name;
    const char *images[3];
    uint32_t n_images, n_targets;
    bool zero_cond_t, layered;
    enum hr_activation activation;
    const float *want;
    size_t n_want;
    double sum, sum_abs;
};

static const struct golden_case cases[] = {
    {"A text to image",
     {"latent"},
     1,
     1,
     false,
     false,
     HR_ACTIVATION_GELU_TANH,
     golden_a,
     HR_ARRAY_SIZE(golden_a),
     -32.7132,
     773.7718},
    {"A' quick-GELU",
     {"latent"},
     1,
     1,
     false,
     false,
     HR_ACTIVATION_QUICK_GELU,
     golden_a_quick,
     HR_ARRAY_SIZE(golden_a_quick),
     -32.5889,
     773.5575},
    {"B edit",
     {"latent", "reference"},
     2,
     1,
     false,
     false,
     HR_ACTIVATION_GELU_TANH,
     golden_b,
     HR_ARRAY_SIZE(golden_b),
     -51.2747,
     1100.3840},
    {"C zero_cond_t",
     {"latent", "reference"},
     2,
     1,
     true,
     false,
     HR_ACTIVATION_GELU_TANH,
     golden_c,
     HR_ARRAY_SIZE(golden_c),
     -56.0548,
     1091.2400},
    {"D layered",
     {"latent", "layer1", "condition"},
     3,
     2,
     false,
     true,
     HR_ACTIVATION_GELU_TANH,
     golden_d,
     HR_ARRAY_SIZE(golden_d),
     -16.0208,
     2385.3073},
};

static double relative_rms(const struct golden_case *c, const struct kept *rows)
{
    double square = 0, difference = 0;

    assert_int_equal(rows->rows * rows->cols, c->n_want);
    for (size_t i = 0; i < c->n_want; i++) {
        square += (double) c->want[i] * c->want[i];
        difference += pow((double) rows->data[i] - c->want[i], 2);
    }
    print_message("%s: relative RMS %.2e\n", c->name, sqrt(difference / square));
    return sqrt(difference / square);
}

static void expect_rows(const struct golden_case *c, const struct kept *rows)
{
    double sum = 0, sum_abs = 0;

    assert_true(relative_rms(c, rows) <= (is_gpu() ? 1e-4 : 5e-6));
    expect_values(c->name, rows->data, c->want, c->n_want, is_gpu() ? 1e-4 : 2e-5);
    for (size_t i = 0; i < c->n_want; i++) {
        sum += rows->data[i];
        sum_abs += fabs(rows->data[i]);
    }
    assert_true(fabs(sum - c->sum) <= (is_gpu() ? 1e-2 : 5e-4));
    assert_true(fabs(sum_abs - c->sum_abs) <= (is_gpu() ? 1e-2 : 5e-4));
}

/* Run a case with taps; `velocity` gets the targets. */
static void run_case(const struct golden_case *c, enum hr_precision precision, struct taps *taps,
                     float *velocity)
{
    struct model_fixture f;
    struct hr_error err = {0};
    struct hr_dit *dit = NULL;
    const struct hr_dit_params params = {
        .precision = precision,
        .activation = c->activation,
        .attention = getenv("HEADRACE_TEST_ATTENTION") && precision == HR_PRECISION_BF16
                         ? HR_ATTENTION_CUDNN
                         : HR_ATTENTION_OWN,
    };

    model_fixture_open(&f, &(struct hr_synth_params){
                               .n_layers = 2,
                               .n_heads = 2,
                               .joint_dim = JOINT,
                               .dtype = HR_DTYPE_F32,
                               .zero_cond_t = c->zero_cond_t,
                               .layered = c->layered,
                           });
    for (uint32_t i = 0; i < c->n_images; i++) {
        const bool small = strcmp(c->images[i], "reference") == 0;

        model_fixture_image(&f, c->images[i], small ? 4 : 6, small ? 6 : 10);
    }
    f.inputs.n_targets = c->n_targets;
    model_fixture_prompt(&f, N_TEXT, JOINT);
    f.inputs.timestep = 750.0f;

    int r = hr_dit_open_tapped(&dit, f.checkpoint, &params, &f.inputs, 1, keep, taps, true, &err);

    if (r == 0)
        r = hr_dit_forward(dit, &f.inputs, &velocity, &err);
    if (r < 0)
        fail_msg("%s: %s", c->name, err.message);
    hr_dit_close(&dit);
    model_fixture_close(&f);
}

static void test_case(void **state)
{
    const struct golden_case *c = *state;
    float velocity[2 * 16 * 6 * 10];
    struct taps taps = {.n = 0};

    run_case(c, HR_PRECISION_F32, &taps, velocity);
    expect_rows(c, tap(&taps, "proj_out", 0));
    for (uint32_t i = 0; i < c->n_targets; i++) {
        float tokens[15 * 64];
        const struct hr_latent target = {velocity + (size_t) i * 16 * 6 * 10, 6, 10};

        hr_dit_pack(tokens, &target);
        assert_memory_equal(tokens, tap(&taps, "proj_out", 0)->data + (size_t) i * 15 * 64,
                            sizeof(tokens));
    }
    taps_free(&taps);
}

/* y = (after - before) / gate: what a gated residual added, before its gate. */
static void expect_added(const struct taps *taps, const char *after, const char *before,
                         size_t before_row, const float *gate, const float *want, size_t n)
{
    const float *a = tap(taps, after, 0)->data;
    const float *b = tap(taps, before, 0)->data + before_row * D;

    for (size_t i = 0; i < n; i++) {
        const float added = (a[i] - b[i]) / gate[i];

        if (!(fabsf(added - want[i]) <= 5e-5f))
            fail_msg("%s[%zu]: added %.6f, expected %.6f", after, i, added, want[i]);
    }
}

static void test_intermediates(void **state)
{
    float velocity[16 * 6 * 10];
    struct taps taps = {.n = 0};

    (void) state;
    run_case(&cases[0], HR_PRECISION_F32, &taps, velocity);
    EXPECT(&taps, "tokens", 0, 0, 0, -0.220036f, 1.617611f, 0.314790f, 1.114035f, 1.019734f,
           -0.171523f, -1.056754f, -1.406055f);
    EXPECT(&taps, "sinusoid", 0, 0, 0, -0.666983f, 0.879756f, -0.670084f);
    EXPECT(&taps, "sinusoid", 0, 0, 128, 0.745073f, 0.475425f, 0.742285f);
    EXPECT(&taps, "temb", 0, 0, 0, 0.143078f, -0.139650f, -0.505807f, -0.640199f, -0.172975f,
           1.763468f);
    EXPECT(&taps, "img_in", 0, 0, 0, -1.743438f, -0.482789f, -1.880693f, -0.148042f);
    EXPECT(&taps, "txt_norm", 0, 0, 0, -0.969799f, -0.244938f, -1.447187f, 0.762737f);
    EXPECT(&taps, "txt_in", 0, 0, 0, -0.338030f, 0.410428f, 1.432732f, -2.527579f);
    const float mod0[] = {0.227301f, -0.478207f, 0.484989f, -0.339660f, -0.043770f, 0.407000f};
    const float *mod = tap(&taps, "img.mod", 0)->data;

    for (unsigned i = 0; i < 6; i++)
        expect_values("img.mod", mod + (size_t) i * D, &mod0[i], 1, 2e-5);
    const float ln[] = {-1.638789f, -0.387337f, -1.775044f, -0.055031f};

    for (unsigned i = 0; i < 4;
         i++) { /* undo the modulation: LN = (normed - shift) / (1 + scale) */
        const float normed = tap(&taps, "img.normed", 0)->data[i];
        const float got = (normed - mod[i]) / (1.0f + mod[D + i]);

        assert_true(fabsf(got - ln[i]) <= 5e-5f);
    }
    EXPECT(&taps, "img.to_q", 0, 14, 128, 1.118737f, 0.594634f, 1.231999f, -2.267434f);
    /* q and k after norm and rotation, text first: image token 14 is row 18 */
    EXPECT(&taps, "q", 0, 18, 128, 0.679070f, 0.442024f, 1.156596f, -1.587473f);
    EXPECT(&taps, "q", 0, 18, 128 + 16, -0.254460f, -0.886934f);
    EXPECT(&taps, "q", 0, 18, 128 + 72, -0.821366f, 0.233900f);
    EXPECT(&taps, "k", 0, 3, 0, 1.523564f, 0.923846f);
    EXPECT(&taps, "k", 0, 3, 16, 0.435964f, -1.079220f);
    EXPECT(&taps, "k", 0, 3, 72, -2.954749f, 1.485246f);
    const float attention[] = {-0.119083f, 0.140833f, -0.050141f, -0.766904f};
    const float mlp[] = {-0.232524f, 0.831814f, -0.638688f, 0.577978f};

    expect_added(&taps, "img.half", "img_in", 0, mod + 2 * D, attention, 4);
    expect_added(&taps, "img.block", "img.half", 0, mod + 5 * D, mlp, 4);
    EXPECT(&taps, "img.block", 0, 0, 0, -1.895829f, -0.880971f, -1.538028f, 0.113438f);
    EXPECT(&taps, "txt.block", 0, 0, 0, -0.035234f, 0.430592f, 1.563745f, -2.412287f);
    EXPECT(&taps, "img.block", 1, 0, 0, -1.672826f, -0.797836f, -0.920182f, 0.272699f);
    EXPECT(&taps, "txt.block", 1, 0, 0, -0.461525f, 0.264534f, 1.567516f, -2.567336f);
    EXPECT(&taps, "head", 0, 0, 0, -1.212808f, -0.987669f, -0.808965f, 0.059033f);
    const float first[] = {0.412596f, -2.255237f, -0.191059f, -0.453437f};
    const float last[] = {-0.536760f, 0.054424f, 2.116554f, 0.624618f};

    expect_values("v[0,0,0:4]", velocity, first, 4, 2e-5);
    expect_values("v[15,5,6:10]", velocity + (15 * 6 + 5) * 10 + 6, last, 4, 2e-5);
    taps_free(&taps);
}

static void test_bf16(void **state)
{
    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(cases); i++) {
        float velocity[2 * 16 * 6 * 10];
        struct taps taps = {.n = 0};

        run_case(&cases[i], HR_PRECISION_BF16, &taps, velocity);
        assert_true(relative_rms(&cases[i], tap(&taps, "proj_out", 0)) <= 1e-2);
        taps_free(&taps);
    }
}

/* The device that HEADRACE_DEVICE names cannot be opened. */
static bool is_missing(void)
{
    const struct hr_gpu_params params = {.act = HR_DTYPE_F32};
    struct hr_error err = {0};
    struct hr_gpu *gpu = NULL;
    const int r = hr_gpu_open(&gpu, &params, &err);

    hr_gpu_close(&gpu);
    if (r == -ENODEV)
        print_message("skipped: %s\n", err.message);
    return r == -ENODEV;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_intermediates),
        {cases[0].name, test_case, NULL, NULL, (void *) (uintptr_t) &cases[0]},
        {cases[1].name, test_case, NULL, NULL, (void *) (uintptr_t) &cases[1]},
        {cases[2].name, test_case, NULL, NULL, (void *) (uintptr_t) &cases[2]},
        {cases[3].name, test_case, NULL, NULL, (void *) (uintptr_t) &cases[3]},
        {cases[4].name, test_case, NULL, NULL, (void *) (uintptr_t) &cases[4]},
        cmocka_unit_test(test_bf16),
    };
    return is_gpu() && is_missing() ? 77 : cmocka_run_group_tests(tests, NULL, NULL);
}
