/* SPDX-License-Identifier: Apache-2.0 */
/* fail_alloc.c -- linked into a second headrace, whose own allocations come through here (ld
 * --wrap), and jansson's: the one that HEADRACE_FAIL_ALLOC numbers fails, counting from 1.
 * HEADRACE_COUNT_ALLOC names a file that gets the number of all. */
#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static atomic_ulong n_calls;
static unsigned long fail_at;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t n);
int __real_posix_memalign(void **ret, size_t alignment, size_t n);
char *__real_strdup(const char *s);
char *__real_strndup(const char *s, size_t n);
FILE *__real_open_memstream(char **ret, size_t *ret_n);
void *__real_mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset);

int __real_main(int argc, char **argv);
int __wrap_main(int argc, char **argv);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n);
int __wrap_posix_memalign(void **ret, size_t alignment, size_t n);
char *__wrap_strdup(const char *s);
char *__wrap_strndup(const char *s, size_t n);
int __wrap_asprintf(char **ret, const char *format, ...) __attribute__((format(printf, 2, 3)));
FILE *__wrap_open_memstream(char **ret, size_t *ret_n);
void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset);

/* What libraries do before main() is theirs: CUDA's runtime does not come through it. */
int __wrap_main(int argc, char **argv)
{
    const char *at = getenv("HEADRACE_FAIL_ALLOC");

    fail_at = at ? strtoul(at, NULL, 10) : 0;
    n_calls = 0;
    json_set_alloc_funcs(__wrap_malloc, free);
    return __real_main(argc, argv);
}

__attribute__((destructor)) static void end(void)
{
    const char *path = getenv("HEADRACE_COUNT_ALLOC");
    FILE *f = path ? fopen(path, "w") : NULL;

    if (f) {
        fprintf(f, "%lu\n", n_calls);
        fclose(f);
    }
}

static int fails(void)
{
    const unsigned long n = atomic_fetch_add(&n_calls, 1) + 1;

    if (n == fail_at)
        errno = ENOMEM;
    return n == fail_at;
}

void *__wrap_malloc(size_t n)
{
    return fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    return fails() ? NULL : __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t alignment, size_t n)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, n);
}

int __wrap_posix_memalign(void **ret, size_t alignment, size_t n)
{
    return fails() ? ENOMEM : __real_posix_memalign(ret, alignment, n);
}

char *__wrap_strdup(const char *s)
{
    return fails() ? NULL : __real_strdup(s);
}

char *__wrap_strndup(const char *s, size_t n)
{
    return fails() ? NULL : __real_strndup(s, n);
}

int __wrap_asprintf(char **ret, const char *format, ...)
{
    va_list ap;
    int n = -1;

    if (fails())
        return -1;
    va_start(ap, format);
    n = vasprintf(ret, format, ap);
    va_end(ap);
    return n;
}

FILE *__wrap_open_memstream(char **ret, size_t *ret_n)
{
    return fails() ? NULL : __real_open_memstream(ret, ret_n);
}

void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset)
{
    return fails() ? MAP_FAILED : __real_mmap(at, n, prot, flags, fd, offset);
}
