/* SPDX-License-Identifier: Apache-2.0 */
/* test_sampler.c -- sigmas of the published schedulers to 2e-7, guidance and steps by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/sampler.h"

static void expect_sigmas(const struct hr_schedule_params *p, const float *want, uint32_t n_want)
{
    float sigmas[64];

    assert_true(p->n_steps < HR_ARRAY_SIZE(sigmas));
    hr_schedule_sigmas(sigmas, p);
    for (uint32_t i = 0; i < n_want; i++)
        if (!(fabsf(sigmas[i] - want[i]) <= 2e-7f + 5e-7f * (n_want < p->n_steps)))
            fail_msg("sigma %u of %u: got %.9f, expected %.9f", i, p->n_steps, sigmas[i], want[i]);
    assert_true(sigmas[p->n_steps] == 0.0f);
}

static void test_sigmas(void **state)
{
    static const float square_1024[] = {1.0f, 0.766709328f, 0.455613732f, 0.019999981f};
    static const float square_1328[] = {1.0f, 0.984396f, 0.968181f};
    static const float square_512[] = {1.0f, 0.749268f, 0.432588f};
    static const float lightning[] = {1.0f, 0.9f, 0.75f, 0.5f};
    static const float one[] = {1.0f};

    (void) state;
    expect_sigmas(&(struct hr_schedule_params){0, 4, 4096, 1.0f, NAN}, square_1024, 4);
    expect_sigmas(&(struct hr_schedule_params){0, 30, 6889, 1.0f, NAN}, square_1328, 3);
    expect_sigmas(&(struct hr_schedule_params){0, 4, 1024, 1.0f, NAN}, square_512, 3);
    expect_sigmas(&(struct hr_schedule_params){HR_SCHEDULE_LIGHTNING, 4, 99, 1.0f, NAN}, lightning,
                  4);
    expect_sigmas(&(struct hr_schedule_params){0, 1, 4096, 1.0f, NAN}, one, 1);
}

static void test_strength(void **state)
{
    float sigmas[9];

    (void) state;
    hr_schedule_sigmas(sigmas,
                       &(struct hr_schedule_params){HR_SCHEDULE_LIGHTNING, 8, 4096, 0.6f, NAN});
    assert_true(fabsf(sigmas[0] - 3.0f / (3.0f + 1.0f / 0.6f - 1.0f)) < 2e-7f);
    for (unsigned i = 0; i < 8; i++)
        assert_true(sigmas[i] > sigmas[i + 1]);
    hr_schedule_sigmas(sigmas, &(struct hr_schedule_params){0, 8, 4096, 0.6f, NAN});
    assert_true(fabsf(sigmas[7] - 0.02f) < 2e-7f);
}

static void test_guidance(void **state)
{
    enum { H = 2, W = 4, N = HR_LATENT_CHANNELS * H * W };
    float pos[N], neg[N], plain[N], normed[N];

    (void) state;
    for (unsigned i = 0; i < N; i++) {
        pos[i] = plain[i] = normed[i] = sinf((float) i);
        neg[i] = cosf(3.0f * (float) i);
    }
    hr_guide(plain, neg, 4.0f, N);
    hr_guide_normed(normed, neg, 4.0f, H, W);
    for (unsigned i = 0; i < N; i++)
        assert_true(fabsf(plain[i] - (neg[i] + 4.0f * (pos[i] - neg[i]))) < 1e-6f);
    for (unsigned X = 0; X < W / 2;
         X++) { /* each token keeps the norm of the positive prediction */
        double before = 0, after = 0, along = 0, plain_norm = 0;

        for (unsigned c = 0; c < HR_LATENT_CHANNELS; c++)
            for (unsigned p = 0; p < 4; p++) {
                const unsigned at = c * H * W + p / 2 * W + 2 * X + p % 2;

                before += (double) pos[at] * pos[at];
                after += (double) normed[at] * normed[at];
                plain_norm += (double) plain[at] * plain[at];
                along += (double) plain[at] * normed[at];
            }
        assert_true(fabs(after / before - 1.0) < 1e-6);
        assert_true(fabs(along / sqrt(after * plain_norm) - 1.0) < 1e-6);
    }
}

static void test_steps(void **state)
{
    float x[] = {1.0f, -2.0f}, z[HR_LATENT_CHANNELS * 4], v[HR_LATENT_CHANNELS * 4];
    float noise[HR_LATENT_CHANNELS * 4];
    const float velocity[] = {0.5f, 1.0f}, mask[] = {1.0f, 0.0f, 1.0f, 0.0f};

    (void) state;
    hr_step(x, velocity, 0.75f, 0.25f, 2);
    assert_true(x[0] == 0.75f && x[1] == -2.5f);
    for (unsigned i = 0; i < HR_ARRAY_SIZE(z); i++) {
        z[i] = (float) i;
        noise[i] = 7.0f;
        v[i] = 100.0f;
    }
    hr_add_noise(noise, z, 0.5f, HR_ARRAY_SIZE(z));
    assert_true(noise[3] == 0.5f * 3.0f + 3.5f);
    hr_inpaint(v, noise, z, mask, 0.5f, 2, 2);
    hr_step(noise, v, 0.5f, 0.0f, HR_ARRAY_SIZE(z));
    assert_true(noise[1] == z[1] && noise[3] == z[3]); /* kept: the original again */
    assert_true(v[0] == 100.0f);
}

static void test_noise(void **state)
{
    static float a[10001], b[10001];
    double sum = 0, square = 0;

    (void) state;
    hr_noise(a, 42, HR_ARRAY_SIZE(a));
    hr_noise(b, 42, 17);
    assert_memory_equal(a, b, 17 * sizeof(float));
    hr_noise(b, 43, HR_ARRAY_SIZE(b));
    assert_memory_not_equal(a, b, sizeof(a));
    for (unsigned i = 0; i < HR_ARRAY_SIZE(a); i++) {
        sum += a[i];
        square += (double) a[i] * a[i];
    }
    assert_true(fabs(sum / 10001) < 0.05 && fabs(square / 10001 - 1.0) < 0.05);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sigmas),   cmocka_unit_test(test_strength),
        cmocka_unit_test(test_guidance), cmocka_unit_test(test_steps),
        cmocka_unit_test(test_noise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
