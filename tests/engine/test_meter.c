/* SPDX-License-Identifier: Apache-2.0 */
/* test_meter.c -- the estimate of a run's rest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/dit_meter.h"

static const uint64_t SECOND = UINT64_C(1000000000);

/* 20 steps of 60 blocks: 14 GB once, 27 GB in the first pass, 20 GB in each later one. */
static const struct hr_meter plan = {
    .n_forwards = 20,
    .n_blocks = 60,
    .up_front_bytes = 14000000000,
    .first_bytes = 27000000000,
    .later_bytes = 20000000000,
};

static void assert_near(uint64_t ns, double seconds)
{
    assert_true((double) ns > 1e9 * (seconds - 0.01) && (double) ns < 1e9 * (seconds + 0.01));
}

static struct hr_meter_now at(uint64_t seconds, uint64_t gigabytes, uint64_t compute_seconds,
                              uint32_t block_idx)
{
    return (struct hr_meter_now){
        .now_ns = SECOND + seconds * SECOND,
        .bytes_used = gigabytes * SECOND,
        .compute_ns = compute_seconds * SECOND,
        .block_idx = block_idx,
    };
}

/* A disk of 1 GB/s and a fast processor: bytes decide, never the number of steps. */
static void test_disk_bound(void **state)
{
    struct hr_meter meter = plan;
    struct hr_meter_now now = at(0, 0, 0, 0);

    (void) state;
    assert_int_equal(hr_meter_run_bytes(&meter), 421 * SECOND);
    assert_int_equal(hr_meter_eta_ns(&meter, &now), 0);
    hr_meter_begin(&meter, &now);
    assert_int_equal(hr_meter_eta_ns(&meter, &now), 0); /* nothing is known yet */
    now = at(7, 7, 0, 0);
    assert_near(hr_meter_eta_ns(&meter, &now), 421 - 7);
    now = at(14, 14, 1, 0);
    hr_meter_up_front_done(&meter, &now);
    assert_near(hr_meter_eta_ns(&meter, &now), 421 - 14);
    now = at(23, 23, 2, 20);
    assert_near(hr_meter_eta_ns(&meter, &now), 421 - 23);
    now = at(41, 41, 4, 0);
    hr_meter_end(&meter, &now);
    assert_near(hr_meter_eta_ns(&meter, &now), 380);
    hr_meter_begin(&meter, &now);
    now = at(51, 51, 6, 30);
    assert_near(hr_meter_eta_ns(&meter, &now), 370);
    now = at(65, 61, 8, 0); /* slower than promised: 24 s */
    hr_meter_end(&meter, &now);
    assert_near(hr_meter_eta_ns(&meter, &now), 18 * 24);
}

/* 100 s of computing a pass, and a fast disk: what stays in memory makes no step shorter. */
static void test_compute_bound(void **state)
{
    struct hr_meter meter = plan;
    struct hr_meter_now now = at(0, 0, 0, 0);

    (void) state;
    hr_meter_begin(&meter, &now);
    now = at(5, 14, 3, 0);
    hr_meter_up_front_done(&meter, &now);
    now = at(105, 41, 103, 0);
    hr_meter_end(&meter, &now);
    assert_near(hr_meter_eta_ns(&meter, &now), 19 * 100);
}

static void test_end(void **state)
{
    struct hr_meter meter = {.n_forwards = 1, .n_blocks = 2, .first_bytes = 10};
    struct hr_meter_now now = {.now_ns = 5};

    (void) state;
    hr_meter_begin(&meter, &now);
    now = (struct hr_meter_now){.now_ns = 105, .bytes_used = 10, .compute_ns = 20, .block_idx = 2};
    assert_int_equal(hr_meter_eta_ns(&meter, &now), 0);
    hr_meter_end(&meter, &now);
    assert_int_equal(hr_meter_eta_ns(&meter, &now), 0);
}

/* All weights stay: later passes read nothing, and take as long as they compute. */
static void test_nothing_left_to_read(void **state)
{
    struct hr_meter meter = {.n_forwards = 3, .n_blocks = 2, .first_bytes = 10};
    struct hr_meter_now now = {.now_ns = 5};

    (void) state;
    hr_meter_begin(&meter, &now);
    now = (struct hr_meter_now){.now_ns = 105, .bytes_used = 10, .compute_ns = 20};
    hr_meter_end(&meter, &now);
    assert_int_equal(hr_meter_eta_ns(&meter, &now), 40);
}

/* Runs that are longer than a number of 64 bits, and those without end. */
static void test_endless(void **state)
{
    struct hr_meter meter = plan;
    struct hr_meter_now now = at(0, 0, 0, 0);

    (void) state;
    meter.n_forwards = UINT32_MAX - 1;
    hr_meter_begin(&meter, &now);
    assert_true(hr_meter_run_bytes(&meter) == UINT64_MAX);
    now = at(23, 23, 2, 20);
    assert_true(hr_meter_eta_ns(&meter, &now) == UINT64_MAX);
    now = at(41, 41, 4, 0);
    hr_meter_end(&meter, &now);
    assert_true(hr_meter_eta_ns(&meter, &now) > UINT64_MAX - 100 * SECOND);
    meter.n_forwards = UINT32_MAX;
    assert_int_equal(hr_meter_eta_ns(&meter, &now), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_disk_bound),
        cmocka_unit_test(test_compute_bound),
        cmocka_unit_test(test_end),
        cmocka_unit_test(test_endless),
        cmocka_unit_test(test_nothing_left_to_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
