/* SPDX-License-Identifier: Apache-2.0 */
/* test_driver.c -- what a GPU's driver reports of its memory, in a run's statistics and against its
 * limit. Over the library of tests/gpu/nvml_fake/, on the played device. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/engine/model_fixture.h"

enum { H = 6, W = 10, N = HR_LATENT_CHANNELS * H * W, JOINT = 96, N_TEXT = 4, ALLOWANCE_MIB = 512 };

static struct model_fixture model;

static int open_model(void **state)
{
    return model_fixture_setup(
        state, &model, &(struct hr_synth_params){.n_layers = 1, .n_heads = 1, .joint_dim = JOINT},
        H, W, N_TEXT);
}

static unsigned n_warnings;
static char warning[256];

static void count_warnings(void *user, enum hr_log_level level, const char *message)
{
    (void) user;
    if (level != HR_LOG_WARN)
        return;
    n_warnings++;
    strncpy(warning, message, sizeof(warning) - 1);
}

/* So many forwards, where the driver says at each look (before, opened, after the first two and the
 * last) what the script does. */
static void play_forwards(uint32_t n_forwards, const char *script, uint64_t vram_bytes,
                          struct hr_dit_stats *ret_stats)
{
    const struct hr_dit_params params = {.n_forwards = n_forwards, .vram_bytes = vram_bytes};
    static float out[N];
    float *velocity = out;
    struct hr_error err = {0};

    setenv("HEADRACE_TEST_NVML", script, 1);
    n_warnings = 0;
    hr_log_set(count_warnings, NULL, HR_LOG_WARN);
    struct hr_dit *dit = model_fixture_dit(&model, &params);

    for (uint32_t i = 0; i < n_forwards; i++)
        if (hr_dit_forward(dit, &model.inputs, &velocity, &err) < 0)
            fail_msg("%s", err.message);
    hr_dit_get_stats(dit, ret_stats);
    hr_dit_close(&dit);
    hr_log_set(NULL, NULL, HR_LOG_WARN);
}

static void play(const char *script, uint64_t vram_bytes, struct hr_dit_stats *ret_stats)
{
    play_forwards(2, script, vram_bytes, ret_stats);
}

static void test_peak(void **state)
{
    struct hr_dit_stats stats;

    (void) state;
    play_forwards(5, "-/100 900/900 901/901 902/902 903/903 999/999", 0, &stats);
    assert_int_equal(stats.device_peak_bytes, 903 * HR_MIB);
    play("-/100 900/900 950/950 940/940", 0, &stats);
    assert_int_equal(stats.device_peak_bytes, 950 * HR_MIB);
    /* All that is predicted but the allowance was allocated. */
    assert_int_equal(stats.device_context_bytes,
                     (900 + ALLOWANCE_MIB) * HR_MIB - stats.predicted.device_memory_bytes);
    assert_int_equal(n_warnings, 0);
}

static void test_unknown(void **state)
{
    struct hr_dit_stats stats;

    (void) state;
    play("fails", (uint64_t) 1 << 30, &stats);
    assert_int_equal(stats.device_peak_bytes, 0);
    assert_int_equal(stats.device_context_bytes, 0);
    assert_int_equal(n_warnings, 0);
}

static void test_limit(void **state)
{
    struct hr_dit_stats stats;

    (void) state;
    play("-/100 1000/1000 1024/1024", (uint64_t) 1 << 30, &stats);
    assert_int_equal(n_warnings, 0);
    play("-/100 1000/1000 1025/1025 1030/1030", (uint64_t) 1 << 30, &stats);
    assert_int_equal(n_warnings, 1); /* not once more for each forward */
    assert_non_null(strstr(warning, "reports 1025 MiB"));
    assert_non_null(strstr(warning, "the limit of 1024 MiB"));
    assert_int_equal(stats.device_peak_bytes, 1030 * HR_MIB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_peak),
        cmocka_unit_test(test_unknown),
        cmocka_unit_test(test_limit),
    };

    return cmocka_run_group_tests(tests, open_model, model_fixture_teardown);
}
