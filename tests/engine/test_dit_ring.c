/* SPDX-License-Identifier: Apache-2.0 */
/* test_dit_ring.c -- a model whose weights are read into the device's memory past the host's: the
 * bits of any other way, no byte overwritten while a late operation needs it, and what is refused.
 * cuFile is a library made for tests (tests/io/fake_cufile.c), the device the emulated one. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/dit.h"
#include "tests/engine/model_fixture.h"

enum { H = 6, W = 10, N_TEXT = 4, JOINT = 96, N_VELOCITY = 16 * H * W, N_PASSES = 4 };

static struct model_fixture model;

/* Weights of up to 2 MiB, in rings of 4: the ring goes round several times a pass. */
static int open_model(void **state)
{
    return model_fixture_setup(
        state, &model, &(struct hr_synth_params){.n_layers = 4, .n_heads = 4, .joint_dim = JOINT},
        H, W, N_TEXT);
}

/* Where the model lies nothing can be read directly: a root in memory. */
static void needs_direct(void)
{
    char path[160];

    snprintf(path, sizeof(path), "%s/config.json", model.path);
    const int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);

    if (fd < 0)
        skip();
    close(fd);
}

static void passes(const struct hr_dit_params *params, float velocities[][N_VELOCITY],
                   struct hr_dit_stats *ret_stats)
{
    struct hr_dit *dit = model_fixture_dit(&model, params);
    struct hr_error err = {0};

    for (unsigned i = 0; i < N_PASSES; i++) {
        float *velocity = velocities[i];

        if (hr_dit_forward(dit, &model.inputs, &velocity, &err) < 0)
            fail_msg("%s", err.message);
    }
    hr_dit_get_stats(dit, ret_stats);
    hr_dit_close(&dit);
}

static void test_same_bits(void **state)
{
    static float want[N_PASSES][N_VELOCITY], got[N_PASSES][N_VELOCITY];
    static const uint64_t rings[] = {4 << 20, 0}, limits[] = {0, (uint64_t) 24 << 20};
    const float timesteps[N_PASSES] = {750.0f, 750.0f, 750.0f, 750.0f};
    struct hr_dit_stats stats;

    (void) state;
    needs_direct();
    for (unsigned i = 0; i < 8; i++) {
        struct hr_dit_params params = {
            .device = "cpu",
            .n_forwards = N_PASSES,
            .timesteps = i & 1 ? timesteps : NULL,
        };

        passes(&params, want, &stats);
        params.device = "emulated:300";
        params.stream.io = "cufile";
        params.stream.ring_bytes = rings[i >> 1 & 1];
        params.vram_bytes = limits[i >> 2];
        passes(&params, got, &stats);
        assert_memory_equal(got, want, sizeof(want));
        assert_string_equal(stats.stream.io_name, "cufile");
        assert_int_equal(stats.copied_bytes, 0);
        assert_int_equal(stats.resident_bytes, 0);
        assert_int_equal(stats.stream.bytes_used, stats.predicted.run_bytes);
        assert_int_equal(stats.stream.ring_bytes, 0);
        assert_int_equal(stats.predicted.ring_bytes, 0);
        assert_int_equal(stats.stream.device_ring_bytes, stats.predicted.device_ring_bytes);
        if (params.vram_bytes) {
            assert_true(stats.device_resident_bytes > 0);
            assert_true(stats.predicted.device_memory_bytes <= params.vram_bytes);
            assert_true(stats.device_peak_bytes <= stats.predicted.device_memory_bytes);
            assert_true(stats.device_peak_bytes > stats.device_resident_bytes);
            assert_int_equal(stats.device_context_bytes, 0);
        } else {
            assert_int_equal(stats.device_peak_bytes, 0);
        }
    }
}

static void expect_refused(const struct hr_dit_params *params, int code, const char *part)
{
    struct hr_dit *dit = NULL;
    struct hr_error err = {0};

    assert_int_equal(hr_dit_open(&dit, model.checkpoint, params, &model.inputs, 1, &err), code);
    if (!strstr(err.message, part))
        fail_msg("\"%s\" does not say \"%s\"", err.message, part);
}

static void test_refused(void **state)
{
    const struct hr_dit_params fine = {.device = "emulated", .stream = {.io = "cufile"}};
    struct hr_dit_params params = fine;
    struct hr_manifest *manifest = NULL;
    struct hr_error err = {0};

    (void) state;
    params.device = "cpu";
    expect_refused(&params, -EOPNOTSUPP, "device cpu computes in the host's; use --device cuda");
    params = fine;
    params.onload_dtype = HR_ONLOAD_FP8;
    expect_refused(&params, -EOPNOTSUPP, "an onload dtype of fp8 needs the weights in the host's");
    params = fine;
    params.stream.ring_bytes = 1 << 20;
    expect_refused(&params, -ENOMEM, "a ring of 1 MiB cannot hold the largest piece");
    params = fine;
    params.vram_bytes = 1 << 20;
    expect_refused(&params, -ENOMEM, "ring of weights");
    assert_int_equal(hr_manifest_make(&manifest, model.checkpoint, NULL, &err), 0);
    params = fine;
    params.manifest = manifest;
    expect_refused(&params, -EOPNOTSUPP, "comparing with a manifest needs the weights");
    params.verify = HR_VERIFY_OFF;
    params.device = "cpu";
    expect_refused(&params, -EOPNOTSUPP, "device cpu"); /* and not the manifest */
    hr_manifest_close(&manifest);
}

static uint64_t registered_bytes;
static unsigned n_registered;

static void count_registered(void *user, enum hr_log_level level, const char *line)
{
    const char *what = strstr(line, " bytes of host memory are registered");
    const char *number = strstr(line, "device: ");

    (void) user;
    (void) level;
    if (what && number) {
        registered_bytes += strtoull(number + strlen("device: "), NULL, 10);
        n_registered++;
    }
}

/* The ring when the model is opened, and weights that stay once they are there. */
static void test_registered(void **state)
{
    const struct hr_dit_params params = {.device = "emulated",
                                         .n_forwards = 3,
                                         .ram_bytes = 900 * HR_MIB,
                                         .stream = {.ring_bytes = 4 << 20}};
    static float velocity[N_VELOCITY];
    float *velocities[] = {velocity};
    struct hr_dit_stats stats;
    struct hr_error err = {0};

    (void) state;
    registered_bytes = n_registered = 0;
    hr_log_set(count_registered, NULL, HR_LOG_DEBUG);
    struct hr_dit *dit = model_fixture_dit(&model, &params);

    assert_int_equal(registered_bytes, 4 << 20);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(n_registered, i < 2 ? 1 : 2);
        assert_int_equal(hr_dit_forward(dit, &model.inputs, velocities, &err), 0);
    }
    hr_dit_get_stats(dit, &stats);
    assert_true(stats.resident_bytes > 0);
    assert_int_equal(registered_bytes, (4 << 20) + stats.resident_bytes);
    hr_dit_close(&dit);
    hr_log_set(NULL, NULL, HR_LOG_WARN);
}

/* A disk that never answers, and does when all is closed: what it writes into must be there still.
 * @return exit status */
static int hang_and_write_later(void)
{
    const struct hr_dit_params params = {
        .device = "emulated", .stream = {.io = "cufile", .ring_bytes = 4 << 20, .timeout_s = 1}};
    static float velocity[N_VELOCITY];
    float *velocities[] = {velocity};
    struct hr_dit *dit = NULL;
    struct hr_error err = {0};
    char until[160];

    snprintf(until, sizeof(until), "%s/until", model.folder);
    setenv("FAKE_CUFILE", "hang", 1);
    setenv("FAKE_CUFILE_UNTIL", until, 1);
    if (hr_dit_open(&dit, model.checkpoint, &params, &model.inputs, 1, &err) < 0)
        return 1;
    const int r = hr_dit_forward(dit, &model.inputs, velocities, &err);

    hr_dit_close(&dit);
    close(open(until, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    sleep(2); /* it looks every 10 ms; a sanitizer takes its time to tell */
    return !(r == -ETIMEDOUT && strstr(err.message, "the disk has not answered"));
}

static void test_late_writes(void **state)
{
    int status;

    (void) state;
    needs_direct();
    const pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0)
        _exit(hang_and_write_later());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static int predict(const struct hr_dit_params *params, struct hr_dit_prediction *ret_prediction)
{
    struct hr_error err = {0};

    return hr_dit_predict(model.checkpoint, params, &model.inputs, 1, ret_prediction, NULL, &err);
}

/* The disk is measured into such a ring, and no copies are. */
static void test_forecast(void **state)
{
    struct hr_dit_params params = {.device = "emulated", .stream = {.io = "cufile"}};
    struct hr_dit_prediction prediction;
    struct hr_dit_forecast forecast;
    struct hr_error err = {0};

    (void) state;
    needs_direct();
    if (hr_dit_predict(model.checkpoint, &params, &model.inputs, 1, &prediction, &forecast, &err))
        fail_msg("%s", err.message);
    assert_string_equal(forecast.io_name, "cufile");
    assert_true(forecast.direct && forecast.disk_sample_bytes > 0);
    assert_int_equal(forecast.link_sample_bytes, 0);
    assert_int_equal(forecast.link_ns, 0);
    /* Nor does the host need room for a ring. */
    params.ram_bytes = prediction.peak_memory_bytes + 512 * HR_MIB;
    params.stream.ring_bytes = params.ram_bytes;
    if (hr_dit_predict(model.checkpoint, &params, &model.inputs, 1, &prediction, &forecast, &err))
        fail_msg("%s", err.message);
}

static void test_budget(void **state)
{
    struct hr_dit_params params = {.device = "emulated", .stream = {.io = "cufile"}};
    struct hr_dit_prediction roomy, tight;

    (void) state;
    params.vram_bytes = (uint64_t) 1 << 30;
    assert_int_equal(predict(&params, &roomy), 0);
    assert_true(roomy.device_ring_bytes > 8 << 20); /* all of the model's weights */
    params.vram_bytes = roomy.device_memory_bytes - 1;
    assert_int_equal(predict(&params, &tight), 0);
    assert_true(tight.device_ring_bytes < roomy.device_ring_bytes);
    assert_true(tight.device_memory_bytes <= params.vram_bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_late_writes), /* its third read hangs, counted from the start */
        cmocka_unit_test(test_same_bits),   cmocka_unit_test(test_refused),
        cmocka_unit_test(test_registered),  cmocka_unit_test(test_budget),
        cmocka_unit_test(test_forecast),
    };

    return cmocka_run_group_tests_name("dit_ring", tests, open_model, model_fixture_teardown);
}
