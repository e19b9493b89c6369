/* SPDX-License-Identifier: Apache-2.0 */
/* test_dit_changed.c -- a model's file that changes during a run: the forward that may have read
 * bytes of both versions says so, wherever in the stream's passes it ends. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "engine/dit.h"
#include "tests/engine/model_fixture.h"

enum { H = 4, W = 6, N_TEXT = 3, JOINT = 96, N_VELOCITY = 16 * H * W };

static struct model_fixture model;
static struct hr_states *all_stay;

static int open_model(void **state)
{
    char path[128];

    (void) state;
    model_fixture_open(&model,
                       &(struct hr_synth_params){.n_layers = 2, .n_heads = 2, .joint_dim = JOINT});
    model_fixture_inputs(&model, H, W, N_TEXT, JOINT);
    snprintf(path, sizeof(path), "%s/states.json", model.folder);
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    fputs("[{\"module\": \"*\", \"offload\": {\"device\": \"cpu\"}}]", f);
    fclose(f);
    assert_int_equal(hr_states_open(&all_stay, path, NULL), 0);
    return 0;
}

static int close_model(void **state)
{
    (void) state;
    hr_states_close(&all_stay);
    model_fixture_close(&model);
    return 0;
}

static int forward(struct hr_dit *dit, struct hr_error *err)
{
    static float values[N_VELOCITY];
    float *velocity = values;

    return hr_dit_forward(dit, &model.inputs, &velocity, err);
}

/* Another time of change than any before. */
static void touch(void)
{
    static time_t seconds = 1000;
    const struct timespec times[2] = {{.tv_sec = seconds}, {.tv_sec = seconds}};

    seconds++;
    assert_int_equal(utimensat(AT_FDCWD, hr_checkpoint_shard(model.checkpoint, 0)->path, times, 0),
                     0);
}

/* Whatever stays in memory, and however many passes the stream makes of it. */
static void test_each_forward(void **state)
{
    static const float timesteps[] = {750.0f, 750.0f, 750.0f};
    const struct hr_dit_params cases[] = {
        {.n_forwards = 1},
        {.states = all_stay},
        {.n_forwards = 3},
        {.n_forwards = 3, .states = all_stay},
        {.n_forwards = 3, .ram_bytes = 600 * HR_MIB, .resident_max_bytes = 4 << 20},
        {.n_forwards = 3,
         .timesteps = timesteps,
         .ram_bytes = 600 * HR_MIB,
         .resident_max_bytes = 2 << 20},
    };

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(cases); i++)
        for (uint32_t n_before = 0; n_before < hr_max_u64(cases[i].n_forwards, 1); n_before++) {
            struct hr_dit *dit = model_fixture_dit(&model, &cases[i]);
            struct hr_error err = {0};

            for (uint32_t n = 0; n < n_before; n++)
                assert_int_equal(forward(dit, &err), 0);
            touch();
            if (cases[i].n_forwards == 3 && cases[i].states && n_before > 0) {
                assert_int_equal(forward(dit, &err), 0); /* all is in memory: nothing was read */
            } else {
                assert_int_equal(forward(dit, &err), -ESTALE);
                assert_non_null(strstr(err.message, "was written to while it was read"));
            }
            hr_dit_close(&dit);
        }
}

/* For one forward nothing stays, and nothing is read for a second one. */
static void test_single_forward(void **state)
{
    struct hr_dit *dit = model_fixture_dit(&model, &(struct hr_dit_params){.states = all_stay});
    struct hr_dit_stats stats;
    struct hr_error err = {0};
    struct hr_unit unit;

    (void) state;
    assert_int_equal(forward(dit, &err), 0);
    hr_dit_get_stats(dit, &stats);
    assert_int_equal(stats.resident_bytes, 0);
    assert_int_equal(hr_stream_next(dit->stream, &unit, &err), 0);
    hr_dit_close(&dit);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_forward),
        cmocka_unit_test(test_single_forward),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
