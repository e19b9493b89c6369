/* SPDX-License-Identifier: Apache-2.0 */
/* page_cache.c -- how much of a file lies in the page cache already. Nothing is brought in or
 * driven out by asking.
 *
 * The kernel answers only to those who may write the file or own it: for others a file counts as
 * not cached (mincore() would claim that all of it is).
 */
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io/io.h"

/* cachestat(2), Linux 6.5; newer than many a libc. The number is the same on all architectures. */
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

enum { PAGES_AT_A_TIME = 4096 };

static bool may_ask(int fd)
{
    struct stat st;
    char link[64];

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    return geteuid() == 0 || (fstat(fd, &st) == 0 && st.st_uid == geteuid()) ||
           access(link, W_OK) == 0;
}

/* As cachestat() does, by mincore() of a mapping. `begin` is a multiple of the page size. */
static uint64_t pages_by_mincore(int fd, uint64_t begin, uint64_t end, uint64_t page_bytes)
{
    unsigned char vec[PAGES_AT_A_TIME];
    uint64_t n = 0;

    for (uint64_t at = begin; at < end;) {
        const uint64_t bytes = hr_min_u64(PAGES_AT_A_TIME * page_bytes, end - at);
        void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, (off_t) at);

        if (map == MAP_FAILED)
            return 0;
        if (mincore(map, bytes, vec) == 0)
            for (uint64_t i = 0; i < hr_div_ceil(bytes, page_bytes); i++)
                n += vec[i] & 1;
        munmap(map, bytes);
        at += bytes;
    }
    return n;
}

uint64_t hr_io_cached_bytes(int fd, uint64_t offset_bytes, uint64_t size_bytes)
{
    const uint64_t page_bytes = (uint64_t) sysconf(_SC_PAGESIZE);
    const uint64_t begin = hr_align_down(offset_bytes, page_bytes);
    uint64_t range[2] = {begin, offset_bytes + size_bytes - begin};
    uint64_t counts[5] = {0}; /* cached, dirty, under writeback, evicted, evicted recently */

    if (size_bytes == 0 || !may_ask(fd))
        return 0;
    if (syscall(SYS_cachestat, fd, range, counts, 0) != 0)
        counts[0] = pages_by_mincore(fd, begin, offset_bytes + size_bytes, page_bytes);
    return hr_min_u64(counts[0] * page_bytes, size_bytes);
}
