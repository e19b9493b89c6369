/* SPDX-License-Identifier: Apache-2.0 */
/* process.c -- clock, environment, CPUs and memory of this process. */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "common/common.h"

uint64_t hr_clock_ns(clockid_t clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}

uint64_t hr_now_ns(void)
{
    return hr_clock_ns(CLOCK_MONOTONIC);
}

void hr_sleep_ns(uint64_t ns)
{
    const struct timespec ts = hr_timespec(ns);

    nanosleep(&ts, NULL);
}

const char *hr_env(const char *name)
{
    const char *value = getenv(name);

    return value && *value ? value : NULL;
}

unsigned hr_n_cpus(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return 1; /* more than 1024 CPUs: the caller can say --threads */
    const int n = CPU_COUNT(&set);
    return n > 0 ? (unsigned) n : 1;
}

struct hr_memory hr_memory_now(void)
{
    static const char *const fields[] = {"VmRSS:", "VmHWM:", "HugetlbPages:"};
    uint64_t kib[HR_ARRAY_SIZE(fields)] = {0};

    hr_sys_fields("/proc/self/status", fields, kib, HR_ARRAY_SIZE(fields));
    /* VmRSS leaves hugetlbfs pages out; they are as much ours as the rest. */
    return (struct hr_memory){
        .resident_bytes = (kib[0] + kib[2]) * HR_KIB,
        .peak_bytes = (kib[1] + kib[2]) * HR_KIB,
    };
}

int hr_thread_start(pthread_t *ret_thread, const char *name, size_t stack_bytes,
                    void *(*fn)(void *), void *arg)
{
    sigset_t all, before;
    pthread_attr_t attr;

    pthread_attr_init(&attr);
    if (stack_bytes > 0)
        pthread_attr_setstacksize(&attr, stack_bytes);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int r = pthread_create(ret_thread, &attr, fn, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (r == 0)
        pthread_setname_np(*ret_thread, name);
    return -r;
}
