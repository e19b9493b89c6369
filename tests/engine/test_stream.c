/* SPDX-License-Identifier: Apache-2.0 */
/* test_stream.c -- hr_stream as its own product: any tensors, any order, several passes. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/common.h"
#include "tests/engine/model_fixture.h"

static struct model_fixture model;

static int open_model(void **state)
{
    model_fixture_open(&model, &(struct hr_synth_params){.n_layers = 2,
                                                         .n_heads = 6,
                                                         .joint_dim = 96,
                                                         .n_shards = 3,
                                                         .header_pad_bytes = 1,
                                                         .dtype = HR_DTYPE_F32});
    *state = &model;
    return 0;
}

static struct hr_stream *open_stream(const struct hr_stream_params *params)
{
    struct hr_stream *stream = NULL;
    struct hr_error err = {0};

    if (hr_stream_open(&stream, model.checkpoint, params, &err) < 0)
        fail_msg("%s", err.message);
    return stream;
}

/* The bytes of a unit, read in the plain way. */
static void expect_bytes(const struct hr_unit *unit)
{
    const struct hr_tensor *t = unit->tensor;
    const uint64_t row_bytes = unit->n_rows ? unit->size_bytes / unit->n_rows : 0;
    char *want = malloc(t->size_bytes + 1);
    struct hr_error err = {0};

    assert_non_null(want);
    if (hr_checkpoint_read(model.checkpoint, t, want, t->size_bytes, &err) < 0)
        fail_msg("%s", err.message);
    assert_true(unit->row_begin * row_bytes + unit->size_bytes <= t->size_bytes);
    assert_memory_equal(unit->data, want + unit->row_begin * row_bytes, unit->size_bytes);
    free(want);
}

static void test_every_byte(void **state)
{
    static const struct hr_stream_params settings[] = {
        {.io = "pread", .direct = HR_DIRECT_OFF},
        {.io = "pread", .block_bytes = 64 << 10, .depth = 2, .ring_bytes = 70 << 20},
        {.huge_pages = HR_SWITCH_OFF},
    };
    const uint32_t n = hr_checkpoint_n_tensors(model.checkpoint);
    const char **names = calloc(n, sizeof(*names));

    (void) state;
    assert_non_null(names);
    for (uint32_t i = 0; i < n; i++) /* backwards through the files */
        names[i] = hr_checkpoint_tensor(model.checkpoint, n - 1 - i)->name;
    for (size_t s = 0; s < HR_ARRAY_SIZE(settings); s++) {
        struct hr_stream *stream = open_stream(&settings[s]);
        struct hr_stream_stats stats;
        struct hr_error err = {0};
        uint64_t bytes = 0, units = 0;
        struct hr_unit unit;
        int r = hr_stream_plan(stream, names, n, 0, 2, &err);

        while (r >= 0 && (r = hr_stream_next(stream, &unit, &err)) > 0) {
            expect_bytes(&unit);
            bytes += unit.size_bytes;
            units++;
            hr_stream_release(stream, &unit);
        }
        if (r < 0)
            fail_msg("%s", err.message);
        assert_int_equal(hr_stream_next(stream, &unit, &err), 0); /* and stays at the end */
        hr_stream_get_stats(stream, &stats);
        uint32_t n_direct = 0;

        for (uint32_t i = 0; i < stats.n_files; i++)
            n_direct += hr_stream_shard_direct(stream, i);
        assert_int_equal(n_direct, stats.n_files_direct);
        assert_true(settings[s].direct != HR_DIRECT_OFF || n_direct == 0);
        assert_int_equal(stats.units, units);
        assert_int_equal(stats.bytes_used, bytes);
        assert_true(stats.bytes_read >= bytes);
        assert_true(settings[s].huge_pages != HR_SWITCH_OFF || stats.huge_bytes == 0);
        hr_stream_close(&stream);
    }
    free(names);
}

/* Leading tensors of the plan are part of the first pass only. */
static void test_once(void **state)
{
    static const char *const names[] = {"img_in.bias", "proj_out.bias", "txt_norm.weight",
                                        "img_in.weight"};
    static const char *const want[] = {"img_in.bias",     "proj_out.bias",   "txt_norm.weight",
                                       "img_in.weight",   "txt_norm.weight", "img_in.weight",
                                       "txt_norm.weight", "img_in.weight"};
    struct hr_stream *stream = open_stream(&(struct hr_stream_params){0});
    struct hr_error err = {0};
    struct hr_unit unit;

    (void) state;
    assert_int_equal(hr_stream_plan(stream, names, 2, 2, 3, &err), -EINVAL);
    hr_error_clear(&err);
    assert_int_equal(hr_stream_plan(stream, names, 4, 2, 3, &err), 0);
    for (size_t i = 0; i < HR_ARRAY_SIZE(want); i++) {
        assert_int_equal(hr_stream_next(stream, &unit, &err), 1);
        assert_string_equal(unit.tensor->name, want[i]);
        expect_bytes(&unit);
        hr_stream_release(stream, &unit);
    }
    assert_int_equal(hr_stream_next(stream, &unit, &err), 0);
    hr_stream_close(&stream);
}

static void test_errors(void **state)
{
    const char *const good[] = {"img_in.weight"};
    const char *const bad[] = {"img_in.weight", "no.such.tensor"};
    struct hr_stream *stream = open_stream(&(struct hr_stream_params){0});
    struct hr_error err = {0};
    struct hr_unit unit;

    (void) state;
    assert_int_equal(hr_stream_next(stream, &unit, &err), -EINVAL); /* no plan yet */
    err.code = 0;
    assert_int_equal(hr_stream_plan(stream, good, 0, 0, 1, &err), -EINVAL);
    err.code = 0;
    assert_int_equal(hr_stream_plan(stream, bad, 2, 0, 1, &err), -ENOENT);
    assert_non_null(strstr(err.message, "no.such.tensor"));
    err.code = 0;
    assert_int_equal(hr_stream_plan(stream, good, 1, 0, 1, &err), 0);
    assert_int_equal(hr_stream_plan(stream, good, 1, 0, 1, &err), -EBUSY);
    hr_stream_close(&stream);
    hr_stream_close(&stream); /* NULL is fine */

    /* A ring that cannot hold the largest unit says what is needed. */
    const char *const large[] = {"transformer_blocks.0.img_mlp.net.0.proj.weight"};

    stream = open_stream(&(struct hr_stream_params){.ring_bytes = 2 << 20});
    err.code = 0;
    assert_int_equal(hr_stream_plan(stream, large, 1, 0, 1, &err), -EINVAL);
    assert_non_null(strstr(err.message, "ring"));
    err.code = 0;
    assert_int_equal(hr_stream_plan(stream, good, 1, 0, 1, &err), 0); /* it is as it was */
    hr_stream_close(&stream);
}

/* One stream takes plan after plan, in blocks of any size, and counts on. */
static void test_plan_again(void **state)
{
    const char *const names[] = {"img_in.weight", "transformer_blocks.0.attn.to_q.weight"};
    struct hr_stream *stream = open_stream(&(struct hr_stream_params){.depth = 8});
    struct hr_stream_stats stats;
    struct hr_error err = {0};
    struct hr_unit unit;
    uint64_t bytes = 0;

    (void) state;
    for (uint32_t turn = 0; turn < 12; turn++) {
        const uint32_t block_bytes = (64 << 10) << (turn % 4);

        assert_int_equal(hr_stream_set_blocks(stream, block_bytes, 1 + turn % 8, &err), 0);
        assert_int_equal(hr_stream_plan(stream, names + turn % 2, 1, 0, 1 + turn % 3, &err), 0);
        while (hr_stream_next(stream, &unit, &err) > 0) {
            assert_string_equal(unit.tensor->name, names[turn % 2]);
            expect_bytes(&unit);
            bytes += unit.size_bytes;
            if (bytes == unit.size_bytes) { /* not while a unit is held */
                assert_int_equal(hr_stream_plan(stream, names, 1, 0, 1, &err), -EBUSY);
                assert_int_equal(hr_stream_set_blocks(stream, 1 << 20, 1, &err), -EBUSY);
                hr_error_clear(&err);
            }
            hr_stream_release(stream, &unit);
        }
        assert_int_equal(err.code, 0);
        hr_stream_get_stats(stream, &stats);
        assert_int_equal(stats.bytes_used, bytes);
        assert_int_equal(stats.block_bytes, block_bytes);
        assert_int_equal(stats.depth, 1 + turn % 8);
    }
    assert_int_equal(hr_stream_set_blocks(stream, 1 << 20, 9, &err), -EINVAL); /* opened with 8 */
    assert_int_equal(hr_stream_set_blocks(stream, 3 << 20, 1, &err), -EINVAL);
    hr_stream_close(&stream);
}

static void test_disk_error_names_tensor(void **state)
{
    const char *const names[] = {"img_in.bias", "img_in.weight"};
    const struct hr_tensor *t = hr_checkpoint_find(model.checkpoint, "img_in.weight");
    char faults[64], range[32];
    struct hr_error err = {0};
    struct hr_unit unit;
    int r;

    (void) state;
    snprintf(faults, sizeof(faults), "eio=%llu", (unsigned long long) t->offset_bytes + 5000);
    snprintf(range, sizeof(range), "%u", (unsigned) (t->offset_bytes / 1000));
    setenv("HEADRACE_FAULTS", faults, 1);
    struct hr_stream *stream = open_stream(&(struct hr_stream_params){.io = "fault"});

    r = hr_stream_plan(stream, names, 2, 0, 1, &err);
    while (r >= 0 && (r = hr_stream_next(stream, &unit, &err)) > 0)
        hr_stream_release(stream, &unit);
    assert_int_equal(r, -EIO);
    assert_non_null(strstr(err.message, "img_in.weight"));
    assert_non_null(strstr(err.message, ".safetensors"));
    hr_stream_close(&stream);
    unsetenv("HEADRACE_FAULTS");
}

static void test_interrupt(void **state)
{
    const char *const names[] = {"img_in.weight"};
    struct hr_stream *stream = open_stream(&(struct hr_stream_params){0});
    struct hr_error err = {0};
    struct hr_unit unit;
    int r = hr_stream_plan(stream, names, 1, 0, 0, &err); /* without end */

    (void) state;
    for (unsigned i = 0; i < 100 && r >= 0; i++) {
        r = hr_stream_next(stream, &unit, &err);
        if (r > 0)
            hr_stream_release(stream, &unit);
    }
    assert_int_equal(r, 1);
    hr_stream_interrupt(stream);
    while ((r = hr_stream_next(stream, &unit, &err)) > 0)
        hr_stream_release(stream, &unit);
    assert_int_equal(r, -ECANCELED);
    hr_stream_close(&stream);
}

/* Holding more than the ring has room for is an error that says so, not a hang. */
static void test_held_too_long(void **state)
{
    const char *names[64];
    struct hr_stream *stream = open_stream(&(struct hr_stream_params){.ring_bytes = 40 << 20});
    struct hr_error err = {0};
    struct hr_unit unit;
    int r;

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(names); i++)
        names[i] = "transformer_blocks.0.attn.to_q.weight"; /* 2.4 MB each */
    r = hr_stream_plan(stream, names, HR_ARRAY_SIZE(names), 0, 1, &err);
    while (r >= 0 && (r = hr_stream_next(stream, &unit, &err)) > 0)
        ;
    assert_int_equal(r, -EDEADLK);
    hr_stream_close(&stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_byte),
        cmocka_unit_test(test_once),
        cmocka_unit_test(test_plan_again),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_disk_error_names_tensor),
        cmocka_unit_test(test_interrupt),
        cmocka_unit_test(test_held_too_long),
    };
    return cmocka_run_group_tests(tests, open_model, model_fixture_teardown);
}
