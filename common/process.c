/* SPDX-License-Identifier: Apache-2.0 */
/* process.c -- clock, CPUs and memory of this process. */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/common.h"

uint64_t hr_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}

unsigned hr_n_cpus(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return 1; /* more than 1024 CPUs: the caller can say --threads */
    const int n = CPU_COUNT(&set);
    return n > 0 ? (unsigned) n : 1;
}

/* The figure, in bytes, of a line such as "VmHWM:    1234 kB". */
static uint64_t status_bytes(const char *status, const char *field)
{
    const char *line = strstr(status, field);

    return line ? strtoull(line + strlen(field), NULL, 10) * 1024 : 0;
}

/* A file of /proc, cut off at buf_bytes - 1. @return false when it cannot be read */
static bool read_proc(const char *path, char *buf, size_t buf_bytes)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    const ssize_t n = read(fd, buf, buf_bytes - 1);
    close(fd);
    if (n <= 0)
        return false;
    buf[n] = '\0';
    return true;
}

struct hr_memory hr_memory_now(void)
{
    char status[4096];

    if (!read_proc("/proc/self/status", status, sizeof(status)))
        return (struct hr_memory){0};

    /* VmRSS leaves hugetlbfs pages out; they are as much ours as the rest. */
    const uint64_t huge = status_bytes(status, "\nHugetlbPages:");
    return (struct hr_memory){
        .resident_bytes = status_bytes(status, "\nVmRSS:") + huge,
        .peak_bytes = status_bytes(status, "\nVmHWM:") + huge,
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
