/* SPDX-License-Identifier: Apache-2.0 */
/* test_slots.c -- placement in a region of device memory, against a list of what is live. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/slots.h"
#include "tests/gpu/check.h"

struct live {
    uint64_t offset, size_bytes, ticket;
};

/* Slots never overlap, lie inside, are aligned, and are refused only for a reason. */
static void run(uint64_t size_bytes, struct check_rng *rng)
{
    struct live live[HR_SLOTS_MAX];
    size_t n_live = 0;
    struct hr_slots slots;
    uint64_t next = 0;

    hr_slots_init(&slots, size_bytes);
    for (int turn = 0; turn < 20000; turn++) {
        const uint64_t wants = 1 + check_pick(rng, check_pick(rng, 3) ? 2000 : size_bytes);
        struct live got = {.size_bytes = wants};

        if (wants > slots.size_bytes || (n_live > 0 && check_pick(rng, 3) == 0)) {
            if (n_live == 0)
                continue;
            assert_int_equal(hr_slots_pop(&slots), live[0].ticket);
            memmove(live, live + 1, --n_live * sizeof(live[0]));
            continue;
        }
        if (!hr_slots_take(&slots, wants, &got.offset, &got.ticket)) {
            assert_true(n_live > 0); /* an empty region takes whatever fits it */
            continue;
        }
        assert_int_equal(got.ticket, next++);
        assert_int_equal(got.offset % HR_SLOT_ALIGN, 0);
        assert_true(got.offset + wants <= slots.size_bytes);
        for (size_t i = 0; i < n_live; i++)
            assert_true(got.offset >= live[i].offset + live[i].size_bytes ||
                        live[i].offset >= got.offset + wants);
        assert_true(n_live < HR_SLOTS_MAX);
        live[n_live++] = got;
    }
}

static void test_random(void **state)
{
    struct check_rng rng = check_seed();

    (void) state;
    run(HR_SLOT_ALIGN, &rng);
    run(10 * HR_SLOT_ALIGN + 17, &rng);
    run(1 << 20, &rng);
}

/* Two halves alternate without end: what a device needs to copy one while it uses the other. */
static void test_halves(void **state)
{
    struct hr_slots slots;
    uint64_t offset, ticket;

    (void) state;
    hr_slots_init(&slots, 2048);
    for (uint64_t i = 0; i < 1000; i++) {
        if (i >= 2)
            assert_int_equal(hr_slots_pop(&slots), i - 2);
        assert_true(hr_slots_take(&slots, 1000, &offset, &ticket));
        assert_int_equal(ticket, i);
        if (i >= 1)
            assert_false(hr_slots_take(&slots, 1000, &offset, &ticket));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_halves),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
