/* SPDX-License-Identifier: Apache-2.0 */
/* ring.c -- the memory that files are read into: one anonymous mapping, in huge pages where the
 * system has them, touched at once so that nothing faults or fails later.
 *
 * Huge pages make registering the memory (with io_uring, with a GPU) some fifteen times cheaper,
 * and reads faster where the disk takes few segments per request: a block in scattered 4 KiB pages
 * is cut into many requests (seen on a virtio disk: 1.5 instead of 2.8 GB/s).
 */
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io/backend.h"

#ifndef MAP_HUGE_2MB
#define MAP_HUGE_2MB (21 << 26)
#endif

static void *map_anonymous(size_t size_bytes, int flags)
{
    void *p =
        mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

/* size_bytes at a multiple of 2 MiB: map more, then give back what lies before and behind. */
static uint8_t *map_aligned(size_t size_bytes)
{
    uint8_t *p = map_anonymous(size_bytes + HR_RING_UNIT_BYTES, MAP_NORESERVE);

    if (!p)
        return NULL;
    const size_t before = hr_align_up((uintptr_t) p, HR_RING_UNIT_BYTES) - (uintptr_t) p;
    if (before > 0)
        munmap(p, before);
    munmap(p + before + size_bytes, HR_RING_UNIT_BYTES - before);
    return p + before;
}

/* Bytes of the mapping at base that the kernel could give as huge pages; 0 where it does not say.
 */
static uint64_t transparent_huge_bytes(const void *base)
{
    FILE *smaps = fopen("/proc/self/smaps", "re");
    char line[512];
    bool found = false;
    uint64_t kib = 0;

    if (!smaps)
        return 0;
    while (fgets(line, sizeof(line), smaps)) {
        char *end;
        const uint64_t begin = strtoull(line, &end, 16);

        if (*end == '-')
            found = begin == (uintptr_t) base;
        else if (found && sscanf(line, "AnonHugePages: %" SCNu64, &kib) == 1)
            break;
    }
    fclose(smaps);
    return kib * HR_KIB;
}

/* Memory beside the CPUs that this process may use: spread over their nodes before it is touched.
 * Where there is one node this does nothing, and where it fails nothing is lost but speed. */
static void choose_nodes(void *base, size_t size_bytes)
{
    enum { NODES = 64, CPUS = 1024, INTERLEAVE = 3 /* MPOL_INTERLEAVE */ };
    unsigned long nodes[NODES / (8 * sizeof(unsigned long))] = {0};
    char path[64];
    cpu_set_t cpus;

    if (access("/sys/devices/system/node/node1", F_OK) != 0 ||
        sched_getaffinity(0, sizeof(cpus), &cpus) != 0)
        return;
    for (int node = 0; node < NODES; node++)
        for (int cpu = 0; cpu < CPUS; cpu++) {
            snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/cpu%d", node, cpu);
            if (CPU_ISSET(cpu, &cpus) && access(path, F_OK) == 0)
                nodes[(size_t) node / (8 * sizeof(*nodes))] |=
                    1UL << ((size_t) node % (8 * sizeof(*nodes)));
        }
    syscall(SYS_mbind, base, size_bytes, INTERLEAVE, nodes, NODES + 1, 0);
}

int hr_ring_init(struct hr_ring *ring, uint64_t size_bytes, bool huge_pages, struct hr_error *err)
{
    hr_assert(size_bytes > 0 && size_bytes % HR_RING_UNIT_BYTES == 0);

    uint8_t *huge = NULL;

    /* Reserved here, or refused, and touched only once their nodes are chosen. */
    if (huge_pages)
        huge = map_anonymous(size_bytes, MAP_HUGETLB | MAP_HUGE_2MB);
    ring->base = huge ? huge : map_aligned(size_bytes);
    if (!ring->base)
        return hr_error_set(err, -ENOMEM,
                            "no memory for a ring of %" PRIu64
                            " MiB; make it smaller or close other programs",
                            size_bytes / HR_MIB);
    ring->size_bytes = size_bytes;
    if (!huge)
        madvise(ring->base, size_bytes, huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    /* A child process has no use for it, and fork() would copy pages that are pinned. */
    madvise(ring->base, size_bytes, MADV_DONTFORK);
    choose_nodes(ring->base, size_bytes);
    memset(ring->base, 0, size_bytes);
    ring->huge_bytes = huge ? size_bytes : transparent_huge_bytes(ring->base);
    return 0;
}

void hr_ring_uninit(struct hr_ring *ring)
{
    if (ring->base)
        munmap(ring->base, ring->size_bytes);
    *ring = (struct hr_ring){0};
}
