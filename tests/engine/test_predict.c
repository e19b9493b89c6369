/* SPDX-License-Identifier: Apache-2.0 */
/* test_predict.c -- what is predicted of a run against what the run does, to the byte. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engine/predict.h"
#include "tests/engine/model_fixture.h"

enum { H = 6, W = 10, N = HR_LATENT_CHANNELS * H * W, JOINT = 96, N_TEXT = 4, N_NEGATIVE = 2 };

static struct model_fixture model;
static float negative[N_NEGATIVE * JOINT];
static float results[2][N];

static int open_model(void **state)
{
    model_fixture_setup(state, &model,
                        &(struct hr_synth_params){.n_layers = 4, .n_heads = 2, .joint_dim = JOINT},
                        H, W, N_TEXT);
    hr_synth_values(negative, "negative", 0, HR_ARRAY_SIZE(negative), 2, JOINT, 3.0);
    return 0;
}

static void assert_same(const struct hr_dit_prediction *a, const struct hr_dit_prediction *b)
{
    assert_int_equal(a->n_forwards, b->n_forwards);
    assert_int_equal(a->n_blocks, b->n_blocks);
    assert_int_equal(a->first_bytes, b->first_bytes);
    assert_int_equal(a->up_front_bytes, b->up_front_bytes);
    assert_int_equal(a->later_bytes, b->later_bytes);
    assert_int_equal(a->run_bytes, b->run_bytes);
    assert_int_equal(a->mods_bytes, b->mods_bytes);
    assert_int_equal(a->mods_spilled, b->mods_spilled);
    assert_int_equal(a->activation_bytes, b->activation_bytes);
}

/* Predict, then run n_forwards, looking at each. @return bytes that stay */
static uint64_t check_forwards(struct hr_dit_params params, uint32_t n_inputs)
{
    const struct hr_dit_inputs inputs[2] = {model.inputs, model.inputs};
    float *velocities[2] = {results[0], results[1]};
    float timesteps[5] = {750, 750, 750, 750, 750};
    struct hr_dit_prediction p;
    struct hr_dit_stats stats;
    struct hr_dit *dit = NULL;
    struct hr_error err = {0};
    const bool up_front = params.timesteps && params.n_forwards > 1;

    if (params.timesteps)
        params.timesteps = timesteps;
    if (hr_dit_predict(model.checkpoint, &params, inputs, n_inputs, &p, NULL, &err) < 0 ||
        hr_dit_open(&dit, model.checkpoint, &params, inputs, n_inputs, &err) < 0)
        fail_msg("%s", err.message);
    hr_dit_get_stats(dit, &stats);
    assert_same(&p, &stats.predicted);
    assert_int_equal(p.up_front_bytes > 0, up_front);
    for (uint32_t i = 0; i < p.n_forwards; i++) {
        if (hr_dit_forward(dit, inputs, velocities, &err) < 0)
            fail_msg("%s", err.message);
        hr_dit_get_stats(dit, &stats);
        assert_int_equal(stats.bytes_used,
                         i == 0 ? stats.predicted.first_bytes : stats.predicted.later_bytes);
    }
    assert_int_equal(stats.stream.bytes_used, stats.predicted.run_bytes);
    assert_int_equal(stats.resident_bytes, stats.predicted.resident_bytes);
    hr_dit_close(&dit);
    return stats.resident_bytes;
}

static void test_forwards(void **state)
{
    static const float known = 0.0f;

    (void) state;
    for (uint32_t n_inputs = 1; n_inputs <= 2; n_inputs++)
        for (uint32_t n = 1; n <= 5; n += 2) {
            check_forwards((struct hr_dit_params){.n_forwards = n}, n_inputs);
            check_forwards((struct hr_dit_params){.n_forwards = n, .timesteps = &known}, n_inputs);
            check_forwards((struct hr_dit_params){.n_forwards = n, .n_layers = 2}, n_inputs);
        }
}

/* Budgets that keep no weight, some and all. */
static void test_residents(void **state)
{
    static const float known = 0.0f;
    uint64_t kept[3];

    (void) state;
    for (unsigned i = 0; i < 3; i++) {
        const uint64_t resident_max[] = {1, 5 << 20, 0};
        struct hr_dit_params params = {
            .n_forwards = 4,
            .timesteps = &known,
            .ram_bytes = UINT64_C(600) << 20,
            .resident_max_bytes = resident_max[i],
        };
        kept[i] = check_forwards(params, 1);
        params.timesteps = NULL;
        check_forwards(params, 2);
    }
    assert_int_equal(kept[0], 0);
    assert_true(kept[1] > 0 && kept[1] < kept[2]);
}

static void test_loop(void **state)
{
    struct hr_denoise_params params = {.n_steps = 4, .dit.ram_bytes = UINT64_C(600) << 20};
    const struct hr_picture picture = {
        .inputs = model.inputs, .negative_emb = negative, .n_negative = N_NEGATIVE};
    struct hr_dit_prediction guided, unguided, single;
    float *latents = results[0];
    struct hr_denoise *d = NULL;
    struct hr_dit_stats stats;
    struct hr_error err = {0};

    (void) state;
    if (hr_denoise_predict(model.checkpoint, &params, &picture, 1, &guided, NULL, &err) < 0 ||
        hr_denoise_open(&d, model.checkpoint, &params, &picture, 1, &err) < 0 ||
        hr_denoise_run(d, &latents, &err) < 0)
        fail_msg("%s", err.message);
    hr_denoise_get_stats(d, &stats);
    assert_same(&guided, &stats.predicted);
    assert_int_equal(stats.stream.bytes_used, guided.run_bytes);
    hr_denoise_close(&d);

    /* Without guidance the same bytes, and less memory; with one step nothing comes up front. */
    params.cfg_scale = 1.0f;
    assert_int_equal(
        hr_denoise_predict(model.checkpoint, &params, &picture, 1, &unguided, NULL, &err), 0);
    assert_int_equal(unguided.first_bytes, guided.first_bytes);
    assert_true(unguided.activation_bytes < guided.activation_bytes);
    params.n_steps = 1;
    assert_int_equal(
        hr_denoise_predict(model.checkpoint, &params, &picture, 1, &single, NULL, &err), 0);
    assert_int_equal(single.up_front_bytes, 0);
    assert_int_equal(single.run_bytes, guided.first_bytes);
    params.n_steps = 0;
    assert_int_equal(
        hr_denoise_predict(model.checkpoint, &params, &picture, 1, &single, NULL, &err), -EINVAL);
}

/* ---- the map of memory --------------------------------------------------------------------- */

struct map {
    struct hr_memory_part parts[512];
    char names[512][80];
    uint32_t n;
};

static void add_part(void *user, const struct hr_memory_part *part)
{
    struct map *map = user;

    assert_true(map->n < HR_ARRAY_SIZE(map->parts));
    snprintf(map->names[map->n], sizeof(map->names[0]), "%s", part->name);
    map->parts[map->n] = *part;
    map->parts[map->n].name = map->names[map->n];
    map->n++;
}

static const struct hr_memory_part *find_part(const struct map *map, const char *name, int sample)
{
    for (uint32_t i = 0; i < map->n; i++)
        if (strcmp(map->parts[i].name, name) == 0 && map->parts[i].sample_idx == sample)
            return &map->parts[i];
    fail_msg("no %s of input %d", name, sample);
    return NULL;
}

/* Parts of the arena stand one behind the other, those that overlie another inside it; all sum up
 * to what is predicted. */
static void check_map(const struct map *map, const struct hr_dit_prediction *p)
{
    uint64_t arena_bytes = 0, sums[HR_MEMORY_DEVICE + 1] = {0}, total = 0;

    for (uint32_t i = 0; i < map->n; i++) {
        const struct hr_memory_part *part = &map->parts[i];
        const uint64_t shape_bytes =
            hr_shape_elements(part->shape, part->rank) * hr_dtype_bytes(part->dtype);

        assert_true(part->size_bytes >= shape_bytes && part->size_bytes < shape_bytes + 64);
        if (part->overlies) {
            const struct hr_memory_part *under = find_part(map, part->overlies, part->sample_idx);

            assert_true(part->offset_bytes >= under->offset_bytes &&
                        part->offset_bytes + part->size_bytes <=
                            under->offset_bytes + under->size_bytes);
            continue;
        }
        sums[part->kind] += part->size_bytes;
        total += part->size_bytes;
        if (part->kind == HR_MEMORY_DEVICE) {
            assert_true(part->offset_bytes == UINT64_MAX);
        } else {
            assert_int_equal(part->offset_bytes, arena_bytes);
            arena_bytes += part->size_bytes;
        }
    }
    assert_int_equal(sums[HR_MEMORY_ACTIVATIONS] + sums[HR_MEMORY_SCALES] + sums[HR_MEMORY_LORA],
                     p->activation_bytes);
    assert_int_equal(sums[HR_MEMORY_WEIGHTS], p->device_resident_bytes);
    assert_int_equal(p->device_memory_bytes ? total : 0, p->device_memory_bytes);
}

/* What is told is where the buffers are. */
static void check_places(const struct map *map, const struct hr_dit *dit)
{
    const char *arena = (const char *) dit->shared.sinusoid;

    for (uint32_t i = 0; i < dit->n_samples; i++) {
        const struct hr_dit_buffers *b = &dit->samples[i].buffers;
        const struct {
            const char *name;
            const void *at;
        } buffers[] = {{"img", b->img},      {"cos_sin", b->cos_sin},
                       {"region", b->work},  {"work", b->work},
                       {"q", b->q},          {"v", b->v},
                       {"hidden", b->hidden}};

        for (size_t k = 0; k < HR_ARRAY_SIZE(buffers); k++)
            assert_ptr_equal(arena + find_part(map, buffers[k].name, (int) i)->offset_bytes,
                             buffers[k].at);
    }
    assert_ptr_equal(arena + find_part(map, "flags", -1)->offset_bytes, dit->shared.flags);
    if (dit->on_device.size_bytes > 0)
        assert_ptr_equal(arena + find_part(map, "weights that stay", -1)->offset_bytes,
                         dit->on_device.store);
}

static void test_map(void **state)
{
    static const float timesteps[3] = {750, 500, 250};
    const struct hr_dit_inputs inputs[2] = {model.inputs, model.inputs};
    const struct hr_dit_params each[] = {
        {.device = "cpu"},
        {.device = "cpu", .n_forwards = 3, .timesteps = timesteps},
        {.device = "cpu", .precision = HR_PRECISION_F32},
        {.device = "emulated", .n_forwards = 3, .timesteps = timesteps},
        {.device = "emulated", .n_forwards = 3, .vram_bytes = 110 << 20},
    };

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(each); i++)
        for (uint32_t n = 1; n <= 2; n++) {
            struct map planned = {.n = 0}, opened = {.n = 0};
            struct hr_dit_params params = each[i];
            struct hr_dit_prediction p;
            struct hr_error err = {0};
            struct hr_dit *dit = NULL;

            params.memory = add_part;
            params.memory_user = &planned;
            if (hr_dit_predict(model.checkpoint, &params, inputs, n, &p, NULL, &err) < 0)
                fail_msg("%s", err.message);
            check_map(&planned, &p);
            assert_int_equal(p.device_memory_bytes > 0, params.vram_bytes > 0);
            params.memory_user = &opened;
            if (hr_dit_open(&dit, model.checkpoint, &params, inputs, n, &err) < 0)
                fail_msg("%s", err.message);
            assert_int_equal(opened.n, planned.n);
            check_places(&planned, dit);
            hr_dit_close(&dit);
        }
}

/* The same words, but for the size of the process, which grows as it goes. */
static void test_refusals(void **state)
{
    const struct hr_dit_params too_small[] = {
        {.ram_bytes = 40 << 20}, {.precision = (enum hr_precision) 7},
        {.n_layers = 9},         {.device = "cpu", .attention = HR_ATTENTION_CUDNN},
        {.device = "none"},
    };

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(too_small); i++) {
        struct hr_error predicted = {0}, err = {0};
        struct hr_dit_prediction p;
        struct hr_dit *dit = NULL;
        const int r = hr_dit_open(&dit, model.checkpoint, &too_small[i], &model.inputs, 1, &err);

        assert_true(r < 0);
        assert_int_equal(
            hr_dit_predict(model.checkpoint, &too_small[i], &model.inputs, 1, &p, NULL, &predicted),
            r);
        assert_memory_equal(err.message, predicted.message, 24);
    }
}

static void test_forecast(void **state)
{
    const struct hr_dit_params params = {.n_forwards = 3, .stream.io = "pread"};
    struct hr_dit_prediction p;
    struct hr_dit_forecast f;
    struct hr_error err = {0};

    (void) state;
    if (hr_dit_predict(model.checkpoint, &params, &model.inputs, 1, &p, &f, &err) < 0)
        fail_msg("%s", err.message);
    assert_string_equal(f.io_name, "pread"); /* that of the run, not the one that reads nothing */
    assert_true(f.disk_sample_bytes >= p.later_bytes && f.disk_sample_ns > 0);
    assert_true(f.compute_ns > 0 && f.later_disk_ns > 0);
    assert_true(f.later_ns >= f.compute_ns && f.later_ns >= f.later_disk_ns);
    assert_int_equal(f.run_ns, f.first_ns + 2 * f.later_ns);
    assert_non_null(strstr(f.device_name, "cpu"));
    assert_false(f.extrapolated); /* few tokens: at their own size */
    assert_int_equal(f.n_tokens, H / 2 * W / 2 + N_TEXT);
}

/* What a device takes for a pass over the weights, for each input of it, for tokens and for pairs.
 */
struct speed {
    double pass_ns, input_ns, token_ns, pair_ns;
};

/* k inputs of n tokens, of which a 16th are text. */
static struct hr_amount amount_of(double k, double n)
{
    const double txt = n / 16, img = n - txt;

    return (struct hr_amount){k, k * n, k * (img + txt / 6), k * n * n, k * img * n};
}

static struct hr_timing made_timing(double k, double n, const struct speed *s)
{
    struct hr_timing t = {.amount = amount_of(k, n), .pair_ns = s->pair_ns};
    const double fixed_ns = s->pass_ns + k * s->input_ns;
    const double last_ns =
        fixed_ns + s->token_ns * t.amount.tokens_last + s->pair_ns * t.amount.pairs_last;
    const double full_ns =
        2 * fixed_ns + 3 * s->token_ns * t.amount.tokens + s->pair_ns * t.amount.pairs;

    t.one.blocks_ns = (uint64_t) last_ns;
    t.two.blocks_ns = (uint64_t) (last_ns + full_ns);
    return t;
}

/* Extrapolated from 256 and 1024 tokens of one input and 256 of two. */
static void make_samples(struct hr_timing *at, const struct speed *s)
{
    at[0] = made_timing(1, 256, s);
    at[1] = made_timing(1, 1024, s);
    at[2] = made_timing(2, 256, s);
}

/* Of a block that is not the last. */
static double minus_one(const struct hr_timing *t)
{
    return (double) t->two.blocks_ns - (double) t->one.blocks_ns;
}

static void expect_extrapolated(const struct hr_timing *at, const struct hr_timing *want,
                                double tolerance)
{
    struct hr_timing got;

    hr_predict_extrapolate(&got, &want->amount, at);
    assert_float_equal((double) got.one.blocks_ns / (double) want->one.blocks_ns, 1.0, tolerance);
    assert_float_equal((double) got.two.blocks_ns / (double) want->two.blocks_ns, 1.0, tolerance);
}

static void test_extrapolation(void **state)
{
    static const struct speed speeds[] = {
        {5e7, 0, 1e6, 100},   {0, 0, 1e6, 100},  {5e7, 0, 1e6, 0},
        {1e8, 9e8, 1e6, 100}, {0, 1e9, 1e5, 10},
    };

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(speeds); i++)
        for (unsigned k = 1; k <= HR_SAMPLES_MAX; k++) {
            const struct hr_timing want = made_timing(k, 4096, &speeds[i]);
            struct hr_timing at[3];

            make_samples(at, &speeds[i]);
            if (k == 1)
                at[2] = (struct hr_timing){.pair_ns = 0.0};
            expect_extrapolated(at, &want, 1e-4);
        }
}

/* Where tokens make hardly a difference, chance makes hardly one either. */
static void test_extrapolation_level(void **state)
{
    static const double changes[] = {-0.5, -0.01, -0.001, 0.0, 0.001, 0.01};
    static const struct speed level = {1e9, 0, 0, 0}, products = {0, 0, 1e6, 0};

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(changes); i++)
        for (unsigned k = 1; k <= 2; k++) {
            struct hr_timing want = made_timing(k, 4096, &level), at[3];

            make_samples(at, &level);
            at[0].one.blocks_ns -= (uint64_t) (changes[i] * 1e9);
            at[0].two.blocks_ns -= (uint64_t) (changes[i] * 3e9);
            at[2].one.blocks_ns -= (uint64_t) (changes[i] * 1e9);
            at[2].two.blocks_ns -= (uint64_t) (changes[i] * 3e9);
            expect_extrapolated(at, &want, k * 11 * fmax(changes[i], 0.0) + 1e-4);
        }
    /* From below a line through the origin: in proportion. */
    struct hr_timing want = made_timing(1, 4096, &products), at[3];

    make_samples(at, &products);
    at[0].one.blocks_ns /= 2;
    at[0].two.blocks_ns /= 2;
    expect_extrapolated(at, &want, 1e-4);
    /* Products that copies hid at 1024 tokens. */
    make_samples(at, &level);
    at[1].token_ns = 3e6;
    hr_predict_extrapolate(&want, &(struct hr_amount){.inputs = 1, .tokens = 500}, at);
    assert_float_equal(minus_one(&want), 2e9, 1e6);
    hr_predict_extrapolate(&want, &(struct hr_amount){.inputs = 1, .tokens = 4096}, at);
    assert_float_equal(minus_one(&want), 4096 * 3e6, 1e6);
}

/* Text and images of a sample are mixed as those of the run are. */
static void test_sample_inputs(void **state)
{
    static const uint32_t sides[] = {16, 64, 128}, texts[] = {1, 12, 256, 2048};

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(sides) * HR_ARRAY_SIZE(texts); i++)
        for (uint64_t n = 256; n <= 1024; n *= 4) {
            struct hr_dit_inputs in = model.inputs;
            const uint32_t side = sides[i % HR_ARRAY_SIZE(sides)];

            in.images[0].h = in.images[0].w = side;
            in.n_text = texts[i / HR_ARRAY_SIZE(sides)];
            const double img = side / 2.0 * (side / 2.0), share = in.n_text / (in.n_text + img);
            const struct hr_dit_geometry g = {
                .n_img = (size_t) img, .n_txt = in.n_text, .n_all = (size_t) img + in.n_text};
            const struct hr_dit_inputs got = hr_predict_scale_input(&in, &g, n);
            const double got_img = got.images[0].h / 2.0 * (got.images[0].w / 2.0);

            assert_true(got.n_text >= 1 && got_img >= 1);
            assert_float_equal(got.n_text / (got.n_text + got_img), share, 0.03);
            assert_float_equal((got.n_text + got_img) / (double) n, 1.0, 0.07);
        }
}

/* Go through the sizes. @return what computing them once takes */
static uint64_t pass_sizes(const struct speed *s, const struct hr_amount *to, bool *ret_exact)
{
    struct hr_timing at = {.pair_ns = 0.0};
    uint64_t n = hr_predict_next(to, NULL, 0), total_ns = 0;

    while (n > 0 && n != HR_PREDICT_EXACT) {
        assert_true(n == 64 || n == 256 || (double) n <= to->tokens);
        at = made_timing(1, (double) n, s);
        total_ns += at.one.blocks_ns + at.two.blocks_ns;
        n = hr_predict_next(to, &at, n);
    }
    *ret_exact = n == HR_PREDICT_EXACT;
    return total_ns;
}

/* The inputs themselves are computed where that is quick, and never else. */
static void test_sizes(void **state)
{
    unsigned n_exact = 0;

    (void) state;
    for (double n = 24; n < 70000; n *= 1.3)
        for (unsigned k = 1; k <= HR_SAMPLES_MAX; k *= 2)
            for (double token_ns = 1e3; token_ns < 1e6; token_ns *= 1.5)
                for (unsigned fixed = 0; fixed < 4; fixed++) {
                    const struct speed s = {fixed & 1 ? 3e8 : 0, fixed & 2 ? 3e8 : 0, token_ns,
                                            token_ns / 1e4};
                    const struct hr_amount to = amount_of(k, n);
                    const struct hr_timing t = made_timing(k, n, &s);
                    const uint64_t ns = t.one.blocks_ns + t.two.blocks_ns;
                    bool exact;

                    assert_true(pass_sizes(&s, &to, &exact) < UINT64_C(12000000000));
                    if (exact && to.tokens > 384)
                        assert_true(ns <= UINT64_C(2500000000));
                    n_exact += exact;
                }
    assert_true(n_exact > 100);
}

/* A picture that would take minutes. */
static void test_forecast_large(void **state)
{
    static const struct {
        const char *device;
        uint32_t n_inputs;
    } each[] = {{"cpu", 2}, {"emulated", 1}};
    struct hr_dit_inputs large[2] = {model.inputs, model.inputs};

    (void) state;
    for (unsigned i = 0; i < 2; i++)
        large[i].images[0].h = large[i].images[0].w = 512;
    for (size_t i = 0; i < HR_ARRAY_SIZE(each); i++) {
        const struct hr_dit_params params = {.n_forwards = 2, .device = each[i].device};
        const uint64_t begin_ns = hr_now_ns();
        struct hr_dit_prediction p;
        struct hr_dit_forecast f;
        struct hr_error err = {0};

        if (hr_dit_predict(model.checkpoint, &params, large, each[i].n_inputs, &p, &f, &err) < 0)
            fail_msg("%s", err.message);
        assert_true(f.extrapolated);
        assert_int_equal(f.n_tokens, each[i].n_inputs * (256 * 256 + N_TEXT));
        assert_true(f.sample_tokens[0] < f.sample_tokens[1]);
        assert_true(f.sample_tokens[1] < f.n_tokens / 2);
        assert_true(f.compute_ns > hr_now_ns() - begin_ns); /* or it could have been measured */
        assert_true(hr_memory_now().peak_bytes < p.peak_memory_bytes);
    }
}

/* What is computed on to measure is not the model's bytes, and is compared with nothing. */
static void test_forecast_verified(void **state)
{
    struct hr_dit_params params = {.n_forwards = 2};
    struct hr_manifest *manifest = NULL;
    struct hr_dit_prediction p;
    struct hr_dit_forecast f;
    struct hr_error err = {0};

    (void) state;
    if (hr_manifest_make(&manifest, model.checkpoint, NULL, &err) < 0)
        fail_msg("%s", err.message);
    params.manifest = manifest;
    if (hr_dit_predict(model.checkpoint, &params, &model.inputs, 1, &p, &f, &err) < 0)
        fail_msg("%s", err.message);
    /* A plan compares headers; the thread that hashes is for runs. */
    struct hr_dit *dit = NULL;

    assert_int_equal(hr_dit_prepare(&dit, model.checkpoint, &params, &model.inputs, 1, false, &err),
                     0);
    assert_false(dit->verify.is_started);
    hr_dit_close(&dit);
    hr_manifest_close(&manifest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forwards),
        cmocka_unit_test(test_residents),
        cmocka_unit_test(test_loop),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_map),
        cmocka_unit_test(test_forecast),
        cmocka_unit_test(test_extrapolation),
        cmocka_unit_test(test_extrapolation_level),
        cmocka_unit_test(test_sample_inputs),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_forecast_large),
        cmocka_unit_test(test_forecast_verified),
    };
    return cmocka_run_group_tests(tests, open_model, model_fixture_teardown);
}
