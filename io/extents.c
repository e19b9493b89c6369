/* SPDX-License-Identifier: Apache-2.0 */
/* extents.c -- is what a part of a file reads as what a disk would have to deliver?
 *
 * A file that was only fallocated, or has holes, or lies in the page cache, reads at the speed of
 * memory; so does one whose blocks are all alike, on a disk that compresses. Asking changes
 * nothing: the samples are read with O_DIRECT where that works.
 */
#include <errno.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <xxhash.h>

#include "io/backend.h"

enum { EXTENTS_AT_A_TIME = 128 };

static const struct {
    uint32_t flags;
    const char *name;
} odd_kinds[] = {
    {FIEMAP_EXTENT_UNWRITTEN, "allocated but never written"},
    {FIEMAP_EXTENT_DELALLOC, "not on the disk yet"},
    {FIEMAP_EXTENT_DATA_INLINE, "kept inside metadata"},
    {FIEMAP_EXTENT_ENCODED, "compressed or encrypted"},
    {FIEMAP_EXTENT_SHARED, "shared with another file"},
    {FIEMAP_EXTENT_UNKNOWN, "at an unknown place"},
};

static const char *odd_kind(uint32_t flags)
{
    for (size_t i = 0; i < HR_ARRAY_SIZE(odd_kinds); i++)
        if (flags & odd_kinds[i].flags)
            return odd_kinds[i].name;
    return NULL;
}

static void count_odd(struct hr_range_state *state, uint64_t bytes, const char *kind)
{
    if (bytes == 0)
        return;
    state->odd_bytes += bytes;
    if (!state->odd_kind)
        state->odd_kind = kind;
}

/* @return 0; a negative errno where the filesystem does not tell */
static int map_extents(int fd, uint64_t begin, uint64_t end, struct hr_range_state *state)
{
    struct fiemap *map = calloc(1, sizeof(*map) + EXTENTS_AT_A_TIME * sizeof(struct fiemap_extent));
    uint64_t at = begin;
    int r = map ? 0 : -ENOMEM;

    while (r == 0 && at < end) {
        *map = (struct fiemap){
            .fm_start = at, .fm_length = end - at, .fm_extent_count = EXTENTS_AT_A_TIME};
        if (ioctl(fd, FS_IOC_FIEMAP, map) < 0) {
            r = -errno;
            break;
        }
        for (uint32_t i = 0; i < map->fm_mapped_extents && at < end; i++) {
            const struct fiemap_extent *extent = &map->fm_extents[i];
            const uint64_t first = hr_min_u64(hr_max_u64(extent->fe_logical, at), end);
            const uint64_t last = hr_min_u64(extent->fe_logical + extent->fe_length, end);
            const char *kind = odd_kind(extent->fe_flags);

            count_odd(state, first - at, "a hole");
            if (kind && last > first)
                count_odd(state, last - first, kind);
            at = hr_max_u64(first, last);
        }
        if (map->fm_mapped_extents < EXTENTS_AT_A_TIME) {
            count_odd(state, end - at, "a hole");
            at = end;
        }
    }
    free(map);
    return r;
}

static int compare_hashes(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

    return x < y ? -1 : x > y;
}

/* Blocks spread evenly over the part: how many are like another one, or zeros. */
static int sample(const struct hr_io_file *file, uint64_t begin, uint64_t end,
                  struct hr_range_state *state)
{
    static const uint8_t zeros[HR_IO_ALIGN_BYTES];
    uint64_t hashes[HR_RANGE_SAMPLES],
        n_blocks = end > begin ? (end - begin) / file->align_bytes : 0;
    const uint32_t n = (uint32_t) hr_min_u64(n_blocks, HR_RANGE_SAMPLES);
    uint32_t n_kept = 0;
    void *buf;

    if (posix_memalign(&buf, file->align_bytes, file->align_bytes) != 0)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t at = begin + n_blocks * i / n * file->align_bytes;
        const ssize_t got = pread(file->fd, buf, file->align_bytes, (off_t) at);

        if (got < HR_IO_ALIGN_BYTES) /* the end of the file, or the reader will meet it */
            continue;
        state->n_samples++;
        if (memcmp(buf, zeros, sizeof(zeros)) == 0)
            state->n_alike++;
        else
            hashes[n_kept++] = XXH3_64bits(buf, (size_t) got);
    }
    free(buf);
    qsort(hashes, n_kept, sizeof(hashes[0]), compare_hashes);
    for (uint32_t i = 1; i < n_kept; i++)
        state->n_alike += hashes[i] == hashes[i - 1];
    return 0;
}

int hr_io_range_state(const struct hr_read_file *source, uint64_t offset_bytes, uint64_t size_bytes,
                      struct hr_range_state *ret_state, struct hr_error *err)
{
    struct hr_range_state state = {0};
    struct hr_io_file file;
    char path[512];
    int r;

    if (offset_bytes > source->size_bytes || size_bytes > source->size_bytes - offset_bytes)
        return hr_error_set(err, -EINVAL, "%s: has no bytes %llu to %llu; it has %llu",
                            hr_printable(source->path, path, sizeof(path)),
                            (unsigned long long) offset_bytes,
                            (unsigned long long) (offset_bytes + size_bytes - 1),
                            (unsigned long long) source->size_bytes);
    state.cached_bytes = hr_io_cached_bytes(source->fd, offset_bytes, size_bytes);
    state.extents_known =
        map_extents(source->fd, offset_bytes, offset_bytes + size_bytes, &state) == 0;
    r = hr_io_file_open(&file, source, HR_DIRECT_AUTO, err);
    if (r < 0)
        return r;
    r = sample(&file, hr_align_up(offset_bytes, file.align_bytes), offset_bytes + size_bytes,
               &state);
    hr_io_file_close(&file);
    *ret_state = state;
    return r < 0 ? hr_error_set(err, r, "no memory for samples of %s",
                                hr_printable(source->path, path, sizeof(path)))
                 : 0;
}
