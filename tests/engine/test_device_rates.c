/* SPDX-License-Identifier: Apache-2.0 */
/* test_device_rates.c -- rates of devices: that each is there, within its limits of memory, and
 * what ends the measuring. No figure is tested: this machine may be anything. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/common.h"
#include "tests/engine/model_fixture.h"

static struct model_fixture model;
static struct hr_device_rates rates;

static int open_model(void **state)
{
    model_fixture_open(&model,
                       &(struct hr_synth_params){.n_layers = 2, .n_heads = 4, .joint_dim = 96});
    *state = &model;
    return 0;
}

static const struct hr_rate *find(const char *name)
{
    for (uint32_t i = 0; i < rates.n_rates; i++)
        if (strncmp(rates.rates[i].name, name, strlen(name)) == 0)
            return &rates.rates[i];
    fail_msg("no rate %s", name);
    return NULL;
}

/* Names are told apart, values are in order, shares are of rates that there are. */
static void check_rates(bool has_copies)
{
    uint32_t n_copies = 0;

    for (uint32_t i = 0; i < rates.n_rates; i++) {
        const struct hr_rate *rate = &rates.rates[i];

        for (uint32_t k = 0; k < i; k++) {
            const size_t n = strcspn(rate->name, ",");

            assert_false(strcspn(rates.rates[k].name, ",") == n &&
                         strncmp(rates.rates[k].name, rate->name, n) == 0 && rate->name[n] == '\0');
        }
        n_copies += strncmp(rate->name, "copy", 4) == 0 && !rate->not_measured;
        if (rate->not_measured) {
            assert_int_equal(rate->share_of, -1);
            continue;
        }
        assert_true(rate->low > 0.0 && rate->low <= rate->median && rate->median <= rate->high);
        assert_true(rate->share_of < (int32_t) rates.n_rates);
        assert_true(rate->share_of < 0 || rate->share > 0.0);
    }
    assert_int_equal(n_copies, has_copies ? 3 : 0);
    assert_string_equal(rates.rates[find("MLP up")->share_of].name, find("square")->name);
    assert_string_equal(rates.rates[find("weights F8_E4M3")->share_of].name, find("weights")->name);
    assert_true(rates.stream.bytes_read > 0);
    assert_true(rates.wall_ns > 0);
}

static void measure(const struct hr_rates_params *params)
{
    struct hr_error err = {0};

    if (hr_device_rates(&rates, model.checkpoint, params, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(rates.n_turns, params->n_turns);
}

/* Under a sanitizer computing takes minutes: one device is enough there. */
static bool is_sanitized(void)
{
    const char *small = getenv("HEADRACE_TEST_SMALL");

    return small && strcmp(small, "1") == 0;
}

static void skip_under_sanitizer(void)
{
    if (is_sanitized())
        skip();
}

static void test_emulated(void **state)
{
    (void) state;
    /* A limit that allows the smallest operands only. */
    measure(&(struct hr_rates_params){
        .device = "emulated:200", .n_turns = 1, .vram_bytes = 320 * HR_MIB});
    check_rates(true);
    assert_memory_equal(rates.device_name, "emulated", 8);
    assert_int_equal(rates.n_tokens, 256);
    assert_true(rates.device_memory_bytes > 0 && rates.device_memory_bytes <= 320 * HR_MIB);
    assert_true(rates.device_peak_bytes > 0);
    assert_true(rates.device_peak_bytes <= rates.device_memory_bytes);
    assert_string_equal(rates.rates[find("disk while")->share_of].name, "disk alone");
}

/* Next to the first backend that works, with the smallest operands, too; skipped where files cannot
 * be read directly. */
static void test_past_the_host(void **state)
{
    const struct hr_rates_params params = {.device = "emulated",
                                           .n_turns = 1,
                                           .vram_bytes = 360 * HR_MIB,
                                           .stream = {.io = "cufile", .ring_bytes = 64 * HR_MIB}};
    struct hr_error err = {0};

    (void) state;
    skip_under_sanitizer();
    if (hr_device_rates(&rates, model.checkpoint, &params, &err) == -EOPNOTSUPP &&
        strstr(err.message, "directly or not at all"))
        skip();
    if (err.code < 0)
        fail_msg("%s", err.message);
    check_rates(true);
    assert_string_equal(rates.rates[find("disk past")->share_of].name, "disk alone");
    assert_string_not_equal(rates.stream.io_name, "cufile");
    assert_true(rates.device_memory_bytes > 64 * HR_MIB);
    assert_true(rates.device_memory_bytes <= params.vram_bytes);
}

static void test_cpu(void **state)
{
    (void) state;
    skip_under_sanitizer();
    measure(&(struct hr_rates_params){
        .device = "cpu", .n_turns = 1, .precision = HR_PRECISION_F32, .ram_bytes = 400 * HR_MIB});
    check_rates(false);
    assert_int_equal(rates.device_memory_bytes, 0);
    assert_string_equal(find("copy from registered")->not_measured, "none, computes on the ring");
    assert_string_equal(find("weights")->name, "weights F32 to F32, 16 tokens");
    assert_true(rates.stream.ring_bytes < HR_RING_BYTES_DEFAULT);
}

/* ---- what ends it ------------------------------------------------------------------------- */

static void check_refused(const struct hr_rates_params *params, int code, const char *words)
{
    struct hr_error err = {0};

    assert_int_equal(hr_device_rates(&rates, model.checkpoint, params, &err), code);
    assert_int_equal(err.code, code);
    if (!strstr(err.message, words))
        fail_msg("%s", err.message);
}

static void test_refused(void **state)
{
    static const volatile int now = 1;

    (void) state;
    check_refused(&(struct hr_rates_params){.device = "abacus"}, -ENODEV, "\"abacus\" is unknown");
    check_refused(&(struct hr_rates_params){.device = "cpu", .n_turns = HR_RATES_TURNS_MAX + 1},
                  -EINVAL, "1001 turns");
    check_refused(&(struct hr_rates_params){.device = "emulated", .vram_bytes = 50 * HR_MIB},
                  -ENOMEM, "the limit of device memory is 50 MiB, but measuring needs ");
    check_refused(&(struct hr_rates_params){.device = "cpu", .ram_bytes = 50 * HR_MIB}, -ENOMEM,
                  "the memory limit is 50 MiB, but measuring needs ");
    check_refused(&(struct hr_rates_params){.device = "cpu",
                                            .ram_bytes = 400 * HR_MIB,
                                            .stream.ring_bytes = 300 * HR_MIB},
                  -ENOMEM, "ring 300");
    check_refused(
        &(struct hr_rates_params){.device = "cpu", .stream.ring_bytes = UINT64_C(1) << 50}, -ENOMEM,
        "memory has room for ");
    check_refused(&(struct hr_rates_params){.device = "cpu", .cancel = &now}, -ECANCELED,
                  "interrupted");
    check_refused(&(struct hr_rates_params){.device = "cpu", .stream.io = "carrier pigeon"},
                  -EINVAL, "carrier pigeon");
    check_refused(&(struct hr_rates_params){.device = "cpu", .stream.io = "cufile"}, -EOPNOTSUPP,
                  "device cpu computes in the host's; use --device cuda");
}

static volatile int cancel;

static void cancel_now(void *user, uint32_t turn, uint32_t n_turns)
{
    (void) user;
    (void) n_turns;
    cancel = turn == 0; /* while it warms up */
}

static void test_cancelled(void **state)
{
    static const char *const devices[] = {"cpu", "emulated:200"};
    /* A sanitizer keeps what was freed. */
    const uint64_t ram_bytes = (is_sanitized() ? 1000 : 400) * HR_MIB;

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(devices); i++)
        check_refused(&(struct hr_rates_params){.device = devices[i],
                                                .ram_bytes = i == 0 ? ram_bytes : 0,
                                                .vram_bytes = i == 0 ? 0 : 320 * HR_MIB,
                                                .cancel = &cancel,
                                                .progress = cancel_now},
                      -ECANCELED, "interrupted");
}

/* The turn begins with a reading beside copies. */
static void cut_at_first_turn(void *user, uint32_t turn, uint32_t n_turns)
{
    (void) user;
    (void) n_turns;
    if (turn == 0)
        return;
    const char *path = hr_checkpoint_shard(model.checkpoint, 0)->path;

    assert_int_equal(truncate(path, 100000), 0);
}

/* The model's last test: it is of no use afterwards. */
static void test_cut_file(void **state)
{
    struct hr_error err = {0};

    (void) state;
    assert_true(hr_device_rates(&rates, model.checkpoint,
                                &(struct hr_rates_params){.device = "emulated:200",
                                                          .n_turns = 1,
                                                          .vram_bytes = 320 * HR_MIB,
                                                          .progress = cut_at_first_turn},
                                &err) < 0);
    if (!strstr(err.message, ".safetensors"))
        fail_msg("%s", err.message);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu),           cmocka_unit_test(test_emulated),
        cmocka_unit_test(test_past_the_host), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_cancelled),     cmocka_unit_test(test_cut_file),
    };

    return cmocka_run_group_tests(tests, open_model, model_fixture_teardown);
}
