/* SPDX-License-Identifier: Apache-2.0 */
/* test_common.c -- the environment, times, and what /proc says of this process. */
#include <errno.h>
#include <grp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/common.h"

static void test_environment(void **state)
{
    (void) state;
    unsetenv("HEADRACE_TEST_VALUE");
    assert_null(hr_env("HEADRACE_TEST_VALUE"));
    setenv("HEADRACE_TEST_VALUE", "", 1);
    assert_null(hr_env("HEADRACE_TEST_VALUE"));
    setenv("HEADRACE_TEST_VALUE", "x", 1);
    assert_string_equal(hr_env("HEADRACE_TEST_VALUE"), "x");
}

static void test_times(void **state)
{
    const struct timespec ts = hr_timespec(UINT64_C(5000000007));
    const uint64_t begin_ns = hr_now_ns();

    (void) state;
    assert_int_equal(ts.tv_sec, 5);
    assert_int_equal(ts.tv_nsec, 7);
    hr_sleep_ns(2000000);
    assert_in_range(hr_now_ns() - begin_ns, 2000000, UINT64_C(60000000000));
}

/* In a child, whose groups make /proc/self/status long. @return its exit status */
static int memory_of_many_groups(void)
{
    enum { N = 3000 };
    static gid_t groups[N];

    for (gid_t i = 0; i < N; i++)
        groups[i] = 100000 + i;
    if (setgroups(N, groups) < 0)
        return 77;
    const struct hr_memory memory = hr_memory_now();

    return memory.resident_bytes == 0 || memory.peak_bytes < memory.resident_bytes;
}

static void test_memory(void **state)
{
    const struct hr_memory memory = hr_memory_now();
    int status;
    const pid_t pid = fork();

    (void) state;
    assert_true(memory.resident_bytes > 100 * HR_KIB);
    assert_true(memory.peak_bytes >= memory.resident_bytes);
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(memory_of_many_groups());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip(); /* not root */
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_environment),
        cmocka_unit_test(test_times),
        cmocka_unit_test(test_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
