/* SPDX-License-Identifier: Apache-2.0 */
/* fake_cufile.c -- a libcufile.so.0 for tests: memory of the "GPU" is the process's, reads are
 * pread(). It refuses what the library's documentation forbids, and fails as FAKE_CUFILE says, a
 * word in the environment: see the places where it is asked.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/cufile_abi.h"

#define EXPORT __attribute__((visibility("default")))

/* The library's names; it has no header of ours. */
EXPORT struct hr_cufile_error cuFileDriverOpen(void);
EXPORT struct hr_cufile_error cuFileDriverGetProperties(struct hr_cufile_properties *properties);
EXPORT struct hr_cufile_error cuFileHandleRegister(void **handle, struct hr_cufile_description *d);
EXPORT void cuFileHandleDeregister(void *handle);
EXPORT struct hr_cufile_error cuFileBufRegister(const void *base, size_t n_bytes, int flags);
EXPORT struct hr_cufile_error cuFileBufDeregister(const void *base);
EXPORT ssize_t cuFileRead(void *handle, void *base, size_t n_bytes, off_t file_offset,
                          off_t base_offset);
EXPORT struct hr_cufile_error cuFileSetParameterBool(int param, bool value);
EXPORT struct hr_cufile_error cuFileGetParameterBool(int param, bool *value);

enum { INVALID = 5022, PAGE = 4096, BUFFERS = 8 };

/* By parameter, as they are by default. */
static bool params[16] = {[HR_CUFILE_PARAM_ALLOW_COMPAT_MODE] = true};
static bool is_open;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct {
    const uint8_t *base;
    size_t n_bytes;
} buffers[BUFFERS];

/* What hangs goes on when there is a file of this name. */
static bool is_released(void)
{
    const char *path = getenv("FAKE_CUFILE_UNTIL");

    return path && access(path, F_OK) == 0;
}

static struct hr_cufile_error status(int code)
{
    return (struct hr_cufile_error){.code = code};
}

static bool told(const char *word)
{
    const char *words = getenv("FAKE_CUFILE");

    return words && strcmp(words, word) == 0;
}

struct hr_cufile_error cuFileSetParameterBool(int param, bool value)
{
    if (param < 0 || param >= 16)
        return status(INVALID);
    if (!is_open && !told("compat"))
        params[param] = value;
    return status(0);
}

struct hr_cufile_error cuFileGetParameterBool(int param, bool *value)
{
    *value = params[param];
    if (told("forced"))
        *value = param == HR_CUFILE_PARAM_FORCE_COMPAT_MODE;
    return status(told("no-get") ? INVALID : 0);
}

struct hr_cufile_error cuFileDriverOpen(void)
{
    if (told("no-driver"))
        return status(HR_CUFILE_NO_DRIVER);
    is_open = true;
    return status(told("open-already") ? HR_CUFILE_ALREADY_OPEN : 0);
}

struct hr_cufile_error cuFileDriverGetProperties(struct hr_cufile_properties *properties)
{
    if (told("no-properties"))
        return status(HR_CUFILE_NO_PLATFORM);
    properties->nvfs.major_version = 2;
    if (params[HR_CUFILE_PARAM_ALLOW_COMPAT_MODE])
        properties->nvfs.control_flags |= HR_CUFILE_CONTROL_COMPAT_MODE;
    if (told("posix"))
        properties->nvfs.control_flags |= HR_CUFILE_CONTROL_POSIX_MODE;
    if (told("fallback"))
        properties->nvfs.control_flags |= HR_CUFILE_CONTROL_FALLBACK;
    return status(0);
}

/* A handle is the descriptor plus 1. */
struct hr_cufile_error cuFileHandleRegister(void **handle, struct hr_cufile_description *d)
{
    if (d->type != HR_CUFILE_HANDLE_FD || d->fs_ops || !is_open)
        return status(INVALID);
    if (!(fcntl(d->file.fd, F_GETFL) & O_DIRECT))
        return status(HR_CUFILE_NOT_DIRECT);
    if (told("no-path"))
        return status(HR_CUFILE_NO_FILE);
    *handle = (void *) (intptr_t) (d->file.fd + 1);
    return status(0);
}

void cuFileHandleDeregister(void *handle)
{
    if (!handle)
        abort();
}

static size_t find(const void *base)
{
    size_t i = 0;

    while (i < BUFFERS && buffers[i].base != base)
        i++;
    return i;
}

struct hr_cufile_error cuFileBufRegister(const void *base, size_t n_bytes, int flags)
{
    if (told("no-pinning"))
        return (struct hr_cufile_error){.code = HR_CUFILE_CUDA_ERROR, .cuda = 2};
    pthread_mutex_lock(&mutex);
    const size_t i = find(NULL);
    const bool good = base && flags == 0 && i < BUFFERS && find(base) == BUFFERS;

    if (good) {
        buffers[i].base = base;
        buffers[i].n_bytes = n_bytes;
    }
    pthread_mutex_unlock(&mutex);
    return status(good ? 0 : INVALID);
}

struct hr_cufile_error cuFileBufDeregister(const void *base)
{
    pthread_mutex_lock(&mutex);
    const size_t i = find(base);

    if (!base || i == BUFFERS)
        abort();
    buffers[i].base = NULL;
    pthread_mutex_unlock(&mutex);
    return status(0);
}

/* All aligned and inside a registered buffer: else the library goes through another. */
ssize_t cuFileRead(void *handle, void *base, size_t n_bytes, off_t file_offset, off_t base_offset)
{
    static atomic_uint n_reads;
    const unsigned n = atomic_fetch_add(&n_reads, 1);
    uint8_t *dst = (uint8_t *) base + base_offset;

    pthread_mutex_lock(&mutex);
    const size_t i = find(base);
    const bool inside =
        i < BUFFERS && base_offset >= 0 && (size_t) base_offset + n_bytes <= buffers[i].n_bytes;

    pthread_mutex_unlock(&mutex);
    if (!inside || (uintptr_t) dst % PAGE || n_bytes % PAGE || file_offset % PAGE)
        abort();
    if (told("internal") && n > 2)
        return -5030;
    if (told("trial"))
        return -5030;
    if (n > 2 && (told("eio") || told("efault") || told("einval") || told("no-errno") ||
                  told("own-errno"))) {
        errno = told("eio")         ? EIO
                : told("efault")    ? EFAULT
                : told("einval")    ? EINVAL
                : told("own-errno") ? 5027
                                    : 0;
        return -1;
    }
    while (told("hang") && n > 2 && !is_released())
        usleep(10000);
    if (told("short") && n_bytes > PAGE)
        n_bytes = n_bytes / 2 / PAGE * PAGE;
    return pread((int) ((intptr_t) handle - 1), dst, n_bytes, file_offset);
}
