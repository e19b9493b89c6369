/* SPDX-License-Identifier: Apache-2.0 */
/* file.c -- files as they are streamed: opened again with O_DIRECT where that works, with the
 * alignment that the file itself asks for.
 *
 * Whether O_DIRECT works is not a property of a version or a filesystem's name; the kernel is
 * asked (statx), and then one block is read, which decides.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "io/backend.h"

enum { PATH_PRINT_BYTES = 512 };
/* From this share on the page cache is faster than the disk even if the rest must be fetched. */
#define CACHED_SHARE 0.95

static bool refuses_direct(int flags, int error)
{
    return flags & O_DIRECT && (error == EINVAL || error == EOPNOTSUPP);
}

/* The same file once more. /proc leads to the inode even where the path was replaced since.
 * @return a descriptor; -EOPNOTSUPP without a message: O_DIRECT is refused; or the error */
static int open_again(const struct hr_read_file *source, int flags, struct hr_error *err)
{
    struct stat theirs, ours;
    char link[64], path[PATH_PRINT_BYTES], text[128];

    snprintf(link, sizeof(link), "/proc/self/fd/%d", source->fd);
    int fd = open(link, O_RDONLY | O_CLOEXEC | flags);
    if (fd >= 0)
        return fd;
    if (refuses_direct(flags, errno))
        return -EOPNOTSUPP;

    fd = open(source->path, O_RDONLY | O_CLOEXEC | flags);
    if (fd < 0) {
        const int r = -errno;
        if (refuses_direct(flags, errno))
            return -EOPNOTSUPP;
        return hr_error_set(err, r, "%s: cannot be opened again for streaming: %s",
                            hr_printable(source->path, path, sizeof(path)),
                            hr_strerror(r, text, sizeof(text)));
    }
    if (fstat(source->fd, &theirs) < 0 || fstat(fd, &ours) < 0 || theirs.st_dev != ours.st_dev ||
        theirs.st_ino != ours.st_ino) {
        close(fd);
        return hr_error_set(err, -ESTALE, "%s: was replaced by another file since it was opened",
                            hr_printable(source->path, path, sizeof(path)));
    }
    return fd;
}

/* tmpfs takes O_DIRECT on newer kernels, but there is no disk behind it. */
static bool lives_in_memory(int fd)
{
    struct statfs fs;

    return fstatfs(fd, &fs) == 0 &&
           ((uint32_t) fs.f_type == TMPFS_MAGIC || (uint32_t) fs.f_type == RAMFS_MAGIC);
}

/* One aligned read at the start, or one alignment further where the file is that long.
 * @return 0 or a negative errno */
static int trial_read(int fd, uint64_t file_bytes, uint32_t align_bytes)
{
    void *buf;

    if (posix_memalign(&buf, align_bytes, align_bytes) != 0)
        return -ENOMEM;
    const uint64_t offset = file_bytes > align_bytes ? align_bytes : 0;
    const ssize_t n = pread(fd, buf, align_bytes, (int64_t) offset);
    const int r = n < 0 ? -errno : 0;
    free(buf);
    return r;
}

/* What statx says: 0 nothing, else the alignment; UINT32_MAX: no direct reads on this file. */
static uint32_t stated_align(int fd)
{
#ifdef STATX_DIOALIGN
    struct statx sx;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 && sx.stx_mask & STATX_DIOALIGN) {
        if (sx.stx_dio_offset_align == 0 || sx.stx_dio_mem_align == 0)
            return UINT32_MAX;
        return sx.stx_dio_offset_align > sx.stx_dio_mem_align ? sx.stx_dio_offset_align
                                                              : sx.stx_dio_mem_align;
    }
#else
    (void) fd;
#endif
    return 0;
}

/* @return the alignment that direct reads of fd need, or 0: they do not work, *ret_why */
static uint32_t find_align(int fd, uint64_t file_bytes, const char **ret_why)
{
    uint32_t align = stated_align(fd);

    if (align > HR_ALIGN_BYTES_MAX) {
        if (align != UINT32_MAX)
            *ret_why = "its direct reads want an alignment above 64 KiB";
        return 0;
    }
    align = align < HR_IO_ALIGN_BYTES ? HR_IO_ALIGN_BYTES : align;
    for (; align <= HR_ALIGN_BYTES_MAX; align *= 2) {
        const int r = trial_read(fd, file_bytes, align);

        /* Other failures are the disk's; the reader will meet and name them. */
        if (r != -EINVAL && r != -EOPNOTSUPP)
            return align;
    }
    return 0;
}

/* @return 0 or why not, as a negative errno; -EOPNOTSUPP: no direct reads on this file */
static int open_direct(struct hr_io_file *file, const char **ret_why, struct hr_error *err)
{
    const struct hr_read_file *source = file->source;

    if (lives_in_memory(source->fd)) {
        *ret_why = "it lies in memory (tmpfs)";
        return -EOPNOTSUPP;
    }
    *ret_why = "its filesystem does not take O_DIRECT";
    const int fd = open_again(source, O_DIRECT, err);
    if (fd < 0)
        return fd;
    const uint32_t align = find_align(fd, source->size_bytes, ret_why);
    if (align == 0) {
        close(fd);
        return -EOPNOTSUPP;
    }
    file->fd = fd;
    file->align_bytes = align;
    file->direct = true;
    *ret_why = NULL;
    return 0;
}

static struct hr_io_file file_of(const struct hr_read_file *source)
{
    struct hr_io_file file = {.source = source, .fd_retired = -1, .align_bytes = HR_IO_ALIGN_BYTES};
    struct stat st;

    if (fstat(source->fd, &st) == 0)
        file.device = st.st_dev;
    return file;
}

int hr_io_file_open_direct(struct hr_io_file *ret_file, const struct hr_read_file *source,
                           const char **ret_why, struct hr_error *err)
{
    struct hr_io_file file = file_of(source);
    const int r = open_direct(&file, ret_why, err);

    if (r == 0)
        *ret_file = file;
    return r;
}

static bool is_cached(const struct hr_read_file *source)
{
    const uint64_t bytes = source->size_bytes;

    return bytes > 0 && !lives_in_memory(source->fd) &&
           (double) hr_io_cached_bytes(source->fd, 0, bytes) >= CACHED_SHARE * (double) bytes;
}

int hr_io_file_open(struct hr_io_file *ret_file, const struct hr_read_file *source,
                    enum hr_direct direct, struct hr_error *err)
{
    struct hr_io_file file = file_of(source);
    char path[PATH_PRINT_BYTES];

    file.cached = direct == HR_DIRECT_AUTO && is_cached(source);
    if (direct != HR_DIRECT_OFF && !file.cached) {
        const int r = open_direct(&file, &file.why_buffered, err);

        if (r == 0)
            goto done;
        if (r != -EOPNOTSUPP)
            return r;
        if (direct == HR_DIRECT_ON)
            return hr_error_set(err, r,
                                "%s: direct reading was asked for, but %s; use a disk's filesystem "
                                "or let direct be auto",
                                hr_printable(source->path, path, sizeof(path)), file.why_buffered);
    }
    file.fd = open_again(source, 0, err);
    if (file.fd < 0)
        return file.fd;
done:
    *ret_file = file;
    return 0;
}

int hr_io_file_go_buffered(struct hr_io_file *file, struct hr_error *err)
{
    hr_assert(file->direct && file->fd_retired < 0);

    const int fd = open_again(file->source, 0, err);
    if (fd < 0)
        return fd;
    file->fd_retired = file->fd;
    file->fd = fd;
    file->direct = false;
    return 0;
}

void hr_io_file_close(struct hr_io_file *file)
{
    if (file->fd >= 0)
        close(file->fd);
    if (file->fd_retired >= 0)
        close(file->fd_retired);
    file->fd = file->fd_retired = -1;
}
