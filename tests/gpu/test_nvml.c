/* SPDX-License-Identifier: Apache-2.0 */
/* test_nvml.c -- what the driver says of the memory of a device, over the library of nvml_fake/ and
 * the played device; "absent": without that library.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/cuda_nvml.h"
#include "tests/gpu/check.h"

static const struct hr_gpu_params params = {.act = HR_DTYPE_F32, .arena_bytes = 3 << 20};

/* What open() allocates: all parts but the allowance for what the driver takes. */
static uint64_t allocated(void)
{
    struct hr_gpu_part parts[HR_GPU_PARTS_MAX];
    const uint32_t n = hr_gpu_device_parts(&params, parts);
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < n; i++)
        if (strcmp(parts[i].use, "driver and libraries") != 0)
            bytes += parts[i].size_bytes;
    return bytes;
}

/* Open, and ask twice, where the driver says at each look what the script does.
 * @return whether both times something was known */
static bool play(const char *script, struct hr_gpu_memory ret[2])
{
    struct hr_gpu *gpu = NULL;

    setenv("HEADRACE_TEST_NVML", script, 1);
    assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
    const bool first = hr_gpu_memory(gpu, &ret[0]), second = hr_gpu_memory(gpu, &ret[1]);

    assert_int_equal(first, second);
    hr_gpu_close(&gpu);
    return first;
}

static void check_used(const char *script, uint64_t first_mib, uint64_t second_mib)
{
    struct hr_gpu_memory memory[2];

    if (!play(script, memory))
        fail_msg("\"%s\": nothing is known", script);
    assert_int_equal(memory[0].used_bytes, first_mib * HR_MIB);
    assert_int_equal(memory[1].used_bytes, second_mib * HR_MIB);
    assert_int_equal(memory[0].taken_bytes, allocated());
    assert_int_equal(memory[1].taken_bytes, allocated());
}

static void test_own(void **state)
{
    (void) state;
    /* What others do meanwhile does not count. */
    check_used("-/100 700/9000 720/50", 700, 720);
    /* The process had used the device before. */
    check_used("300/1000 900/1600 910/1610", 600, 610);
    check_used("300/1000 200/900", 0, 0);
}

static void test_not_told_apart(void **state)
{
    (void) state;
    check_used("-/100 -/800 -/790", 700, 690);
    check_used("many/100 many/800", 700, 700);
    check_used("unknown/100 unknown/800", 700, 700);
    check_used("-/100 0/800", 700, 700);
    check_used("-/100 -/50", 0, 0);
}

static void test_silent(void **state)
{
    struct hr_gpu_memory memory[2];

    (void) state;
    assert_false(play("fails", memory));
    assert_false(play("-/100 fails", memory));
    assert_false(play("fails -/100 -/100", memory));
    assert_int_equal(memory[0].used_bytes, 0);
}

static void test_absent(void **state)
{
    struct hr_gpu_memory memory[2];

    (void) state;
    assert_false(play("-/100 700/800", memory));
}

/* It may start later: nothing is kept of the failure. */
static void test_starts_later(void **state)
{
    (void) state;
    unsetenv("HEADRACE_TEST_NVML");
    assert_false(hr_nvml_use(0).is_known);
    setenv("HEADRACE_TEST_NVML", "3/100", 1);
    assert_true(hr_nvml_use(0).is_known);
    assert_false(hr_nvml_use(7).is_known);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_starts_later),
        cmocka_unit_test(test_own),
        cmocka_unit_test(test_not_told_apart),
        cmocka_unit_test(test_silent),
    };
    const struct CMUnitTest absent[] = {
        cmocka_unit_test(test_absent),
    };

    if (argc > 1 && strcmp(argv[1], "absent") == 0)
        return cmocka_run_group_tests(absent, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
