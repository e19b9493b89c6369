/* SPDX-License-Identifier: Apache-2.0 */
/* test_dit.c -- the DiT as an object: what it refuses, its budget, several forwards, its parts. */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/dit.h"
#include "tests/engine/any_file.h"
#include "tests/engine/model_fixture.h"

enum { H = 6, W = 10, N_TEXT = 4, JOINT = 96, N_VELOCITY = 16 * H * W };

static struct model_fixture model;

static int open_model(void **state)
{
    return model_fixture_setup(
        state, &model, &(struct hr_synth_params){.n_layers = 3, .n_heads = 2, .joint_dim = JOINT},
        H, W, N_TEXT);
}

static void expect_open_fails(const struct hr_dit_params *params,
                              const struct hr_dit_inputs *inputs, int code, const char *word)
{
    struct hr_dit *dit = NULL;
    struct hr_error err = {0};

    assert_int_equal(hr_dit_open(&dit, model.checkpoint, params, inputs, 1, &err), code);
    assert_null(dit);
    if (!strstr(err.message, word))
        fail_msg("\"%s\" does not say \"%s\"", err.message, word);
}

static int forward(struct hr_dit *dit, const struct hr_dit_inputs *inputs, float *velocity,
                   struct hr_error *err)
{
    return hr_dit_forward(dit, inputs, &velocity, err);
}

static void test_params(void **state)
{
    (void) state;
    expect_open_fails(&(struct hr_dit_params){.precision = 7}, &model.inputs, -EINVAL, "precision");
    expect_open_fails(&(struct hr_dit_params){.activation = 7}, &model.inputs, -EINVAL,
                      "activation");
    expect_open_fails(&(struct hr_dit_params){.attention = 7}, &model.inputs, -EINVAL,
                      "attention 7 is neither our own nor cuDNN's");
    expect_open_fails(&(struct hr_dit_params){.n_layers = 4}, &model.inputs, -EINVAL, "3 blocks");
    expect_open_fails(&(struct hr_dit_params){.device = "abacus"}, &model.inputs, -ENODEV,
                      "abacus");
    expect_open_fails(&(struct hr_dit_params){.ram_bytes = 1 << 20}, &model.inputs, -ENOMEM,
                      "1 MiB");
}

static void test_inputs(void **state)
{
    struct hr_dit_inputs in = model.inputs;
    const uint8_t nothing[N_TEXT] = {0};

    (void) state;
    in.n_images = in.n_targets = 0;
    expect_open_fails(NULL, &in, -EINVAL, "0 images");
    in = model.inputs;
    in.n_images = HR_IMAGES_MAX + 1;
    expect_open_fails(NULL, &in, -EINVAL, "33 images");
    in = model.inputs;
    in.images[0].h = 7;
    expect_open_fails(NULL, &in, -EINVAL, "7 x 10");
    in.images[0].h = 1026;
    expect_open_fails(NULL, &in, -EINVAL, "1026");
    in = model.inputs;
    in.n_text = 0;
    expect_open_fails(NULL, &in, -EINVAL, "0 tokens");
    in = model.inputs;
    in.prompt_mask = nothing;
    expect_open_fails(NULL, &in, -EINVAL, "no token");
    in = model.inputs;
    in.images[1] = in.images[0];
    in.n_images = in.n_targets = 2;
    expect_open_fails(NULL, &in, -EINVAL, "layered");
}

static void test_forwards(void **state)
{
    float first[N_VELOCITY], again[N_VELOCITY], other[N_VELOCITY];
    struct hr_dit *dit = model_fixture_dit(&model, &(struct hr_dit_params){.n_forwards = 3});
    struct hr_dit_inputs in = model.inputs;
    struct hr_dit_stats stats;
    struct hr_error err = {0};

    (void) state;
    assert_int_equal(forward(dit, &in, first, &err), 0);
    /* Refused inputs change nothing and take no turn. */
    in.timestep = NAN;
    assert_int_equal(forward(dit, &in, again, &err), -EINVAL);
    assert_non_null(strstr(err.message, "timestep"));
    hr_error_clear(&err);
    in = model.inputs;
    in.images[0].w = 8;
    assert_int_equal(forward(dit, &in, again, &err), -EINVAL);
    assert_non_null(strstr(err.message, "input 0 differs in size or unmasked tokens"));
    hr_error_clear(&err);

    in = model.inputs;
    in.timestep = 20.0f;
    assert_int_equal(forward(dit, &in, other, &err), 0);
    assert_memory_not_equal(first, other, sizeof(first));
    in.timestep = 750.0f;
    assert_int_equal(forward(dit, &in, again, &err), 0);
    assert_memory_equal(first, again, sizeof(first));
    assert_int_equal(forward(dit, &in, again, &err), -ENODATA);
    assert_non_null(strstr(err.message, "open it again, for more forwards"));

    hr_dit_get_stats(dit, &stats);
    assert_int_equal(stats.n_blocks, 3);
    assert_int_equal(stats.stream.bytes_used, 3 * stats.bytes_used);
    assert_true(stats.blocks[0].bytes > stats.blocks[2].bytes); /* the last has no text half */
    assert_true(stats.wall_ns >= stats.stall_disk_ns);
    assert_true(strstr(stats.device_name, "cpu") || strstr(stats.device_name, "cuda"));
    hr_dit_close(&dit);
    hr_dit_close(&dit);
}

static void test_failed_stays_failed(void **state)
{
    float velocity[N_VELOCITY];
    struct hr_error err = {0};

    (void) state;
    setenv("HEADRACE_FAULTS", "eio=1000000", 1);
    struct hr_dit *dit = model_fixture_dit(
        &model, &(struct hr_dit_params){.stream = {.io = "fault", .block_bytes = 64 << 10}});

    assert_int_equal(forward(dit, &model.inputs, velocity, &err), -EIO);
    assert_non_null(strstr(err.message, "tensor"));
    hr_error_clear(&err);
    assert_int_equal(forward(dit, &model.inputs, velocity, &err), -EIO);
    assert_non_null(strstr(err.message, "earlier forward failed"));
    hr_dit_close(&dit);
    unsetenv("HEADRACE_FAULTS");
}

/* Prompts of different length, and another picture size, in one pass: each as it is alone, to the
 * bit. */
static void test_samples_share_a_pass(void **state)
{
    static float alone[3][16 * 8 * 12], together[3][16 * 8 * 12];
    float *velocities[] = {together[0], together[1], together[2]};
    struct hr_dit_inputs inputs[3] = {model.inputs, model.inputs, model.inputs};
    static float other[16 * 8 * 12];
    struct hr_dit_stats one, three;
    struct hr_error err = {0};

    (void) state;
    hr_synth_values(other, "other", 0, HR_ARRAY_SIZE(other), 3, 12, 1.7);
    inputs[1].n_text = 2;
    inputs[2].images[0] = (struct hr_latent){other, 8, 12};
    for (int precision = HR_PRECISION_BF16; precision <= HR_PRECISION_F32; precision++) {
        const struct hr_dit_params params = {.precision = (enum hr_precision) precision};
        struct hr_dit *dit = NULL;

        for (unsigned i = 0; i < 3; i++) {
            assert_int_equal(hr_dit_open(&dit, model.checkpoint, &params, &inputs[i], 1, &err), 0);
            assert_int_equal(forward(dit, &inputs[i], alone[i], &err), 0);
            hr_dit_get_stats(dit, &one);
            hr_dit_close(&dit);
        }
        assert_int_equal(hr_dit_open(&dit, model.checkpoint, &params, inputs, 3, &err), 0);
        assert_int_equal(hr_dit_forward(dit, inputs, velocities, &err), 0);
        hr_dit_get_stats(dit, &three);
        assert_int_equal(three.bytes_used, one.bytes_used); /* one pass over the weights */
        assert_memory_equal(alone, together, sizeof(alone));
        hr_dit_close(&dit);
    }
}

/* Modulation up front, in memory or in a file: fewer bytes, the same bits. */
static void test_mods_up_front(void **state)
{
    enum { N = 11 }; /* more rows than one product takes */
    static float want[N][N_VELOCITY], got[N_VELOCITY];
    float timesteps[N];
    struct hr_dit_inputs in = model.inputs;
    struct hr_dit_stats each, up_front;
    struct hr_error err = {0};

    (void) state;
    for (unsigned zero_cond = 0; zero_cond < 2; zero_cond++) {
        struct hr_dit_params params = {
            .n_forwards = N,
            .zero_cond_t = zero_cond ? HR_SWITCH_ON : HR_SWITCH_OFF,
        };
        struct hr_dit *dit = model_fixture_dit(&model, &params);

        for (unsigned i = 0; i < N; i++) {
            in.timestep = timesteps[i] = 1000.0f - 90.0f * (float) i;
            assert_int_equal(forward(dit, &in, want[i], &err), 0);
        }
        hr_dit_get_stats(dit, &each);
        hr_dit_close(&dit);
        params.timesteps = timesteps;
        for (unsigned spill = 0; spill < 2; spill++) {
            params.ram_bytes = spill ? 1 << 30 : 0;
            dit = model_fixture_dit(&model, &params);
            if (spill) { /* the real bound is a tenth of that: too much for this model */
                hr_dit_mods_uninit(&dit->mods);
                assert_int_equal(
                    hr_dit_mods_init(&dit->mods, N, hr_dit_cond_step_floats(dit), 0, NULL, &err),
                    0);
                assert_true(dit->mods.fd >= 0);
            }
            for (unsigned i = 0; i < N; i++) {
                in.timestep = timesteps[i];
                assert_int_equal(forward(dit, &in, got, &err), 0);
                assert_memory_equal(got, want[i], sizeof(got));
            }
            hr_dit_get_stats(dit, &up_front);
            assert_true(up_front.mods_bytes > 0);
            assert_true(up_front.stream.bytes_used < each.stream.bytes_used * 3 / 4);
            hr_dit_close(&dit);
        }
        params.timesteps = timesteps;
        dit = model_fixture_dit(&model, &params);
        in.timestep = 5.0f;
        assert_int_equal(forward(dit, &in, got, &err), -EINVAL); /* not the timestep announced */
        hr_error_clear(&err);
        hr_dit_close(&dit);
    }
}

/* Weights that stay in memory: fewer bytes in later passes, the same bits, whatever the budget. */
static void test_resident_weights(void **state)
{
    enum { N = 4 };
    static float want[N_VELOCITY], got[N_VELOCITY];
    const uint64_t base = (uint64_t) 600 << 20; /* also enough for a sanitizer's own memory */
    float timesteps[N];
    struct hr_dit_inputs in = model.inputs;
    struct hr_dit_stats stats;
    struct hr_error err = {0};
    uint64_t before = UINT64_MAX;

    (void) state;
    for (unsigned i = 0; i < N; i++)
        timesteps[i] = 750.0f;
    for (unsigned up_front = 0; up_front < 2; up_front++) {
        struct hr_dit_params params = {
            .n_forwards = N,
            .timesteps = up_front ? timesteps : NULL,
            .stream = {.ring_bytes = 4 << 20},
        };
        struct hr_dit *dit = model_fixture_dit(&model, &params);

        assert_int_equal(forward(dit, &in, want, &err), 0);
        hr_dit_close(&dit);
        for (unsigned part = 0; part <= 4; part++) {
            params.ram_bytes = base;
            params.resident_max_bytes = part ? part * (UINT64_C(4) << 20) : 1;
            dit = model_fixture_dit(&model, &params);
            params.ram_bytes = 0;
            for (unsigned i = 0; i < N; i++) {
                memset(got, 0, sizeof(got));
                assert_int_equal(forward(dit, &in, got, &err), 0);
                assert_memory_equal(got, want, sizeof(got));
            }
            hr_dit_get_stats(dit, &stats);
            assert_true(stats.resident_bytes <= params.resident_max_bytes);
            assert_true(stats.bytes_used <= before);
            before = stats.bytes_used;
            hr_dit_close(&dit);
        }
        assert_int_equal(before, 0); /* all of this model fits in 16 MiB */
        before = UINT64_MAX;
    }
}

/* Kept as fp8: twice as many weights stay, all forwards agree, and with all of the blocks resident
 * the result is that of blocks which were rounded in the file. */
static void test_resident_fp8(void **state)
{
    enum { N_FORWARDS = 3 };
    static float want[N_VELOCITY], first[N_VELOCITY], got[N_VELOCITY];
    struct hr_dit_params params = {
        .n_forwards = N_FORWARDS,
        .ram_bytes = (uint64_t) 600 << 20,
        .resident_max_bytes = 4 << 20,
        .stream = {.ring_bytes = 4 << 20},
    };
    struct hr_dit_stats exact, rounded;
    struct any_file file = {0};
    struct hr_error err = {0};
    char path[160];

    (void) state;
    struct hr_dit *dit = model_fixture_dit(&model, &params);

    for (unsigned i = 0; i < N_FORWARDS; i++)
        assert_int_equal(forward(dit, &model.inputs, want, &err), 0);
    hr_dit_get_stats(dit, &exact);
    hr_dit_close(&dit);
    assert_int_equal(exact.lossy_bytes, 0);
    params.onload_dtype = HR_ONLOAD_FP8;
    for (unsigned all = 0; all < 2; all++) {
        params.resident_max_bytes = all ? 0 : 4 << 20;
        dit = model_fixture_dit(&model, &params);
        assert_int_equal(forward(dit, &model.inputs, first, &err), 0);
        assert_memory_not_equal(first, want, sizeof(first));
        for (unsigned i = 1; i < N_FORWARDS; i++) {
            assert_int_equal(forward(dit, &model.inputs, got, &err), 0);
            assert_memory_equal(got, first, sizeof(got));
        }
        hr_dit_get_stats(dit, &rounded);
        assert_true(rounded.lossy_bytes > 0 && rounded.lossy_bytes <= rounded.resident_bytes);
        hr_dit_close(&dit);
        if (!all) /* 8 MiB of the model stay in the same 4 MiB */
            assert_true(rounded.bytes_used + (3 << 20) < exact.bytes_used);
    }
    assert_int_equal(rounded.bytes_used, 0);

    any_file_load(&file, model.checkpoint);
    for (size_t i = 0; i < file.n; i++)
        if (file.tensors[i].rank == 2 && strstr(file.tensors[i].name, "transformer_blocks."))
            file.tensors[i].dtype = HR_DTYPE_F8_E4M3;
    snprintf(path, sizeof(path), "%s/fp8.safetensors", model.folder);
    any_file_write(&file, path);
    any_file_free(&file);
    const char *paths[] = {path};
    struct hr_checkpoint *checkpoint = NULL;

    assert_int_equal(
        hr_checkpoint_open(&checkpoint,
                           &(struct hr_checkpoint_params){.paths = paths, .n_paths = 1}, &err),
        0);
    assert_int_equal(hr_dit_open(&dit, checkpoint, NULL, &model.inputs, 1, &err), 0);
    assert_int_equal(forward(dit, &model.inputs, want, &err), 0);
    assert_memory_equal(got, want, sizeof(got));
    hr_dit_close(&dit);
    hr_checkpoint_close(&checkpoint);
    params.states = (const struct hr_states *) &params; /* refused before it is looked at */
    expect_open_fails(&params, &model.inputs, -EINVAL, "exclude each other");
    params.states = NULL;
    params.onload_dtype = 7;
    expect_open_fails(&params, &model.inputs, -EINVAL, "onload dtype");
}

static void test_samples_share_a_timestep(void **state)
{
    struct hr_dit_inputs inputs[2] = {model.inputs, model.inputs};
    float a[N_VELOCITY], b[N_VELOCITY], *velocities[] = {a, b};
    struct hr_error err = {0};
    struct hr_dit *dit = NULL;

    (void) state;
    assert_int_equal(hr_dit_open(&dit, model.checkpoint, NULL, inputs, 2, &err), 0);
    inputs[1].timestep = 20.0f;
    assert_int_equal(hr_dit_forward(dit, inputs, velocities, &err), -EINVAL);
    assert_non_null(strstr(err.message, "share the timestep"));
    hr_dit_close(&dit);
    hr_error_clear(&err);
    assert_int_equal(hr_dit_open(&dit, model.checkpoint, NULL, inputs, 17, &err), -EINVAL);
    hr_error_clear(&err);
    assert_int_equal(hr_dit_open(&dit, model.checkpoint, NULL, inputs, 0, &err), -EINVAL);
}

static void *interrupt_soon(void *arg)
{
    usleep(50000);
    hr_dit_interrupt(arg);
    return NULL;
}

static void test_interrupt(void **state)
{
    float velocity[N_VELOCITY];
    struct hr_error err = {0};
    pthread_t thread;
    int r = 0;

    (void) state;
    struct hr_dit *dit = model_fixture_dit(&model, &(struct hr_dit_params){.n_forwards = 1000000});

    assert_int_equal(pthread_create(&thread, NULL, interrupt_soon, dit), 0);
    while (r == 0)
        r = forward(dit, &model.inputs, velocity, &err);
    assert_int_equal(r, -ECANCELED);
    assert_non_null(strstr(err.message, "interrupted"));
    pthread_join(thread, NULL);
    hr_dit_close(&dit);
}

/* What the reports of peak memory rest on: the budget is kept, and nothing grows from pass to pass.
 */
static void test_memory_is_flat(void **state)
{
    float velocity[N_VELOCITY];
    struct hr_error err = {0};
    uint64_t after_first = 0;

    (void) state;
    if (getenv("HEADRACE_TEST_SMALL") && atoi(getenv("HEADRACE_TEST_SMALL")) == 1)
        skip(); /* a sanitizer keeps freed memory */
    struct hr_dit *dit = model_fixture_dit(&model, &(struct hr_dit_params){.n_forwards = 200});

    for (unsigned i = 0; i < 200; i++) {
        assert_int_equal(forward(dit, &model.inputs, velocity, &err), 0);
        if (i == 4)
            after_first = hr_memory_now().resident_bytes;
    }
    assert_true(hr_memory_now().resident_bytes <= after_first + (1 << 20));
    hr_dit_close(&dit);
}

/* Models of which the first tensors say that they cannot be. */
static void test_sizes_of_the_model(void **state)
{
    static const struct {
        uint32_t rank;
        const char *word;
    } cases[] = {
        {2, "tensor txt_norm.weight has the shape [8, 1]; expected [n], n 1 to 65536"},
        {1, "0 transformer blocks; expected 1 to 10000; a shard is missing"},
    };

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(cases); i++) {
        struct any_file file = {0};
        struct hr_checkpoint *checkpoint = NULL;
        struct hr_error err = {0};
        const char **names = NULL;
        char path[160];
        const char *paths[] = {path};
        uint32_t n;

        snprintf(path, sizeof(path), "%s/sizes.safetensors", model.folder);
        any_file_add(&file, HR_DTYPE_F32, 2, 128, 64, "img_in.weight");
        any_file_add(&file, HR_DTYPE_F32, cases[i].rank, 8, 1, "txt_norm.weight");
        any_file_write(&file, path);
        any_file_free(&file);
        assert_int_equal(
            hr_checkpoint_open(&checkpoint,
                               &(struct hr_checkpoint_params){.paths = paths, .n_paths = 1}, &err),
            0);
        assert_int_equal(hr_dit_names(checkpoint, 0, &names, &n, &err), -EBADMSG);
        if (!strstr(err.message, cases[i].word))
            fail_msg("\"%s\" does not say \"%s\"", err.message, cases[i].word);
        hr_checkpoint_close(&checkpoint);
    }
}

/* A folder that has no unnamed files, and what helps. */
static void test_mods_folder(void **state)
{
    struct hr_dit_mods mods;
    struct hr_error err = {0};

    (void) state;
    assert_true(hr_dit_mods_init(&mods, 2, 8, 0, "/proc", &err) < 0);
    assert_non_null(strstr(err.message, "/proc: no temporary file for modulation vectors: "));
    assert_non_null(strstr(err.message, "name another folder (--resume, or else TMPDIR)"));
}

static void test_names(void **state)
{
    const char **names = NULL;
    struct hr_error err = {0};
    uint32_t n = 0;

    (void) state;
    assert_int_equal(hr_dit_names(model.checkpoint, 0, &names, &n, &err), 0);
    assert_int_equal(n, 13 + 3 * 32 - 9); /* less the last block's text half */
    for (uint32_t i = 0; i < n; i++)
        assert_non_null(hr_checkpoint_find(model.checkpoint, names[i]));
    free(names);
    assert_int_equal(hr_dit_names(model.checkpoint, 9, &names, &n, &err), -EINVAL);
}

/* ---- parts ------------------------------------------------------------------------------------
 */

static void test_timestep(void **state)
{
    (void) state;
    assert_true(hr_dit_tau(750.0f, false) == 0.75f);
    assert_true(hr_dit_tau(833.33f, true) == 0.83203125f); /* 832, then its thousandth, in bf16 */
    assert_true(hr_dit_tau(766.709351f, true) == 0.76953125f);
    assert_true(hr_dit_tau(19.999981f, true) == 0.02001953125f);

    float u[HR_DIT_SINUSOID_DIM];

    hr_dit_sinusoid(u, 0.0f);
    for (unsigned k = 0; k < HR_DIT_SINUSOID_DIM; k++)
        assert_true(u[k] == (k < HR_DIT_SINUSOID_DIM / 2 ? 1.0f : 0.0f));
}

static void test_pack_unpack(void **state)
{
    float latent[N_VELOCITY], tokens[N_VELOCITY], back[N_VELOCITY];

    (void) state;
    for (unsigned i = 0; i < N_VELOCITY; i++)
        latent[i] = (float) i;
    hr_dit_pack(tokens, &(struct hr_latent){latent, H, W});
    /* token 7 = (Y 1, X 2), channel 3, py 1, px 0 */
    assert_true(tokens[7 * 64 + 3 * 4 + 2] == latent[(3 * H + 3) * W + 4]);
    hr_dit_unpack(back, tokens, H, W);
    assert_memory_equal(latent, back, sizeof(latent));
}

/* Angle j of a token, from its cosine and sine. */
static double angle(const float *cos_sin, size_t token, unsigned j)
{
    const float *c = cos_sin + (token * HR_DIT_ROPE_ANGLES + j) * 2;

    return atan2(c[1], c[0]);
}

static void test_rope_positions(void **state)
{
    static float cos_sin[(2 + 15 + 6) * HR_DIT_ROPE_ANGLES * 2];
    const uint32_t text_index[] = {0, 5}; /* a gap in the prompt keeps its positions */
    struct hr_dit_geometry g = {
        .n_images = 2,
        .n_targets = 1,
        .images = {{6, 10, 15}, {4, 6, 6}},
        .n_img = 21,
        .n_txt = 2,
        .n_all = 23,
    };

    (void) state;
    hr_dit_rope(cos_sin, &g, false, text_index);
    /* text starts at max(3/2, 5/2) = 2; the first angle of each axis turns by the position itself
     */
    assert_true(fabs(angle(cos_sin, 0, 0) - 2.0) < 1e-6);
    assert_true(fabs(angle(cos_sin, 1, 36) - (7.0 - 2 * M_PI)) < 1e-6);
    /* image token 0 of 3 x 5 is (0, -2, -3), token 14 is (0, 0, 1) */
    assert_true(fabs(angle(cos_sin, 2, 0)) < 1e-6);
    assert_true(fabs(angle(cos_sin, 2, 8) + 2.0) < 1e-6);
    assert_true(fabs(angle(cos_sin, 2, 36) + 3.0) < 1e-6);
    assert_true(fabs(angle(cos_sin, 16, 8)) < 1e-6);
    assert_true(fabs(angle(cos_sin, 16, 36) - 1.0) < 1e-6);
    /* reference token 0 is (1, -1, -2); as a layered model's condition its frame is -1 */
    assert_true(fabs(angle(cos_sin, 17, 0) - 1.0) < 1e-6);
    assert_true(fabs(angle(cos_sin, 17, 8) + 1.0) < 1e-6);
    hr_dit_rope(cos_sin, &g, true, text_index);
    assert_true(fabs(angle(cos_sin, 17, 0) + 1.0) < 1e-6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_params),
        cmocka_unit_test(test_inputs),
        cmocka_unit_test(test_forwards),
        cmocka_unit_test(test_samples_share_a_pass),
        cmocka_unit_test(test_mods_up_front),
        cmocka_unit_test(test_resident_weights),
        cmocka_unit_test(test_resident_fp8),
        cmocka_unit_test(test_samples_share_a_timestep),
        cmocka_unit_test(test_failed_stays_failed),
        cmocka_unit_test(test_interrupt),
        cmocka_unit_test(test_memory_is_flat),
        cmocka_unit_test(test_sizes_of_the_model),
        cmocka_unit_test(test_mods_folder),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_timestep),
        cmocka_unit_test(test_pack_unpack),
        cmocka_unit_test(test_rope_positions),
    };
    return cmocka_run_group_tests(tests, open_model, model_fixture_teardown);
}
