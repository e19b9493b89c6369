/* SPDX-License-Identifier: Apache-2.0 */
/* files.c -- see files.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "engine/files.h"
#include "formats/formats.h"

enum { SHOWN_BYTES = 384 };

const char *hr_file_kind(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return "a file";
    case S_IFDIR:
        return "a folder";
    case S_IFLNK:
        return "a symbolic link";
    case S_IFIFO:
        return "a FIFO";
    case S_IFSOCK:
        return "a socket";
    default:
        return "a device";
    }
}

int hr_file_open(int dir_fd, const char *name, int flags, int *ret_fd, uint64_t *ret_bytes,
                 mode_t *ret_mode)
{
    struct stat st;
    int fd, status, r = 0;

    *ret_mode = 0;
    if (fstatat(dir_fd, name, &st, flags & O_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0) < 0)
        return -errno;
    *ret_mode = st.st_mode;
    if (!S_ISREG(st.st_mode))
        return -EINVAL; /* before open(): opening some devices does something */
    /* O_NONBLOCK in case the name has become a FIFO since. */
    fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | flags);
    if (fd < 0)
        return -errno;
    status = fcntl(fd, F_GETFL);
    if (fstat(fd, &st) < 0)
        r = -errno;
    else if (!S_ISREG(st.st_mode))
        r = -EINVAL;
    else if (status < 0 || fcntl(fd, F_SETFL, status & ~O_NONBLOCK) < 0) /* io_uring heeds it */
        r = -errno;
    if (r < 0) {
        close(fd);
        return r;
    }
    *ret_fd = fd;
    *ret_bytes = (uint64_t) st.st_size;
    return 0;
}

int hr_file_read(int fd, void *dst, size_t n, uint64_t offset_bytes)
{
    char *p = dst;

    while (n > 0) {
        const ssize_t got = pread(fd, p, n, (off_t) offset_bytes);

        if (got == 0)
            return -ENODATA;
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        p += got;
        n -= (size_t) got;
        offset_bytes += (uint64_t) got;
    }
    return 0;
}

int hr_file_write(int fd, const void *src, size_t n, uint64_t offset_bytes)
{
    const char *p = src;

    while (n > 0) {
        const ssize_t put = pwrite(fd, p, n, (off_t) offset_bytes);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -errno;
        p += put;
        n -= (size_t) put;
        offset_bytes += (uint64_t) put;
    }
    return 0;
}

static struct hr_file_mark mark_of(const struct stat *st)
{
    return (struct hr_file_mark){
        .device = st->st_dev,
        .inode = st->st_ino,
        .size_bytes = (uint64_t) st->st_size,
        .mtime_s = st->st_mtim.tv_sec,
        .mtime_ns = st->st_mtim.tv_nsec,
    };
}

int hr_file_mark(struct hr_file_mark *ret_mark, int fd)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return -errno;
    *ret_mark = mark_of(&st);
    return 0;
}

int hr_file_check(const struct hr_file_mark *mark, int fd, const char *path, struct hr_error *err)
{
    struct hr_file_mark now = *mark;
    char shown[SHOWN_BYTES];
    struct stat st;

    hr_file_mark(&now, fd);
    hr_printable(path, shown, sizeof(shown));
    if (now.size_bytes != mark->size_bytes)
        return hr_error_set(err, -ESTALE,
                            "%s: was changed while it was read: it has %llu bytes now, and had "
                            "%llu",
                            shown, (unsigned long long) now.size_bytes,
                            (unsigned long long) mark->size_bytes);
    if (now.mtime_s != mark->mtime_s || now.mtime_ns != mark->mtime_ns)
        return hr_error_set(err, -ESTALE,
                            "%s: was written to while it was read; what was read may be of two "
                            "versions",
                            shown);
    if (stat(path, &st) == 0 && (st.st_dev != mark->device || st.st_ino != mark->inode))
        return hr_error_set(err, -ESTALE,
                            "%s: was replaced by another file while it was read; start again to "
                            "read the new one",
                            shown);
    return 0;
}

char *hr_file_join(const char *folder, const char *name)
{
    char *path;

    if (!strcmp(folder, "."))
        return strdup(name);
    if (asprintf(&path, hr_has_suffix(folder, "/") ? "%s%s" : "%s/%s", folder, name) < 0)
        return NULL;
    return path;
}

char *hr_file_parent(const char *path)
{
    const char *slash = strrchr(path, '/');

    if (!slash)
        return strdup(".");
    return strndup(path, slash == path ? 1 : (size_t) (slash - path));
}

/* @return a descriptor of the folder that holds `path`, or a negative errno */
static int open_parent(const char *path)
{
    char *parent = hr_file_parent(path);

    if (!parent)
        return -ENOMEM;
    const int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const int r = fd < 0 ? -errno : fd;

    free(parent);
    return r;
}

/* EINVAL: this filesystem cannot flush a folder, and need not. */
static int sync_folder(int fd)
{
    return fsync(fd) < 0 && errno != EINVAL ? -errno : 0;
}

int hr_file_sync_parent(const char *path)
{
    const int fd = open_parent(path);

    if (fd < 0)
        return fd;
    const int r = sync_folder(fd);

    close(fd);
    return r;
}

int hr_file_target(const char *path, char **ret_path, mode_t *ret_mode)
{
    struct stat st = {0};
    size_t len = strlen(path);
    char *target;

    while (len > 1 && path[len - 1] == '/')
        len--;
    target = strndup(path, len);
    if (!target)
        return -ENOMEM;
    if (lstat(target, &st) < 0) {
        const int r = -errno;

        if (r != -ENOENT) {
            free(target);
            return r;
        }
    } else if (S_ISLNK(st.st_mode)) {
        char *real = realpath(target, NULL);
        const int r = real && lstat(real, &st) == 0 ? 0 : -errno;

        free(target);
        if (r < 0) {
            free(real);
            return r;
        }
        target = real;
    }
    *ret_path = target;
    *ret_mode = st.st_mode;
    return 0;
}

int hr_file_read_text(const char *path, const char *what, uint64_t bytes_max, char **ret_text,
                      size_t *ret_bytes, struct hr_error *err)
{
    char shown[SHOWN_BYTES], reason[128], *text;
    uint64_t bytes = 0;
    mode_t mode = 0;
    int fd, r = hr_file_open(AT_FDCWD, path, 0, &fd, &bytes, &mode);

    hr_printable(path, shown, sizeof(shown));
    if (r < 0 && mode != 0 && !S_ISREG(mode))
        return hr_error_set(err, r, "%s: is %s; expected %s, a file", shown, hr_file_kind(mode),
                            what);
    if (r < 0)
        return hr_error_set(err, r, "%s: cannot open %s: %s", shown, what,
                            hr_strerror(r, reason, sizeof(reason)));
    if (bytes > bytes_max) {
        close(fd);
        return hr_error_set(err, -EBADMSG, "%s: %llu bytes; %s has at most %llu", shown,
                            (unsigned long long) bytes, what, (unsigned long long) bytes_max);
    }
    text = malloc(bytes + 1);
    r = text ? hr_file_read(fd, text, bytes, 0) : -ENOMEM;
    close(fd);
    if (r < 0) {
        free(text);
        return hr_error_set(err, r, "%s: cannot read %s: %s", shown, what,
                            hr_strerror(r, reason, sizeof(reason)));
    }
    *ret_text = text;
    *ret_bytes = bytes;
    return 0;
}

int hr_header_read(struct hr_header_text *ret_text, int fd, uint64_t file_bytes, const char *shown,
                   struct hr_error *err)
{
    uint8_t first[8] = {0};
    uint64_t json_bytes = 0;
    char reason[128], *bytes = NULL;
    int r = hr_file_read(fd, first, hr_min_u64(sizeof(first), file_bytes), 0);

    if (r == 0) {
        r = hr_header_length(first, file_bytes, shown, &json_bytes, err);
        if (r < 0)
            return r;
        bytes = malloc(sizeof(first) + json_bytes);
        r = bytes ? hr_file_read(fd, bytes, sizeof(first) + json_bytes, 0) : -ENOMEM;
    }
    if (r < 0) {
        free(bytes);
        return hr_error_set(err, r, "%s: cannot read its header: %s", shown,
                            hr_strerror(r, reason, sizeof(reason)));
    }
    *ret_text = (struct hr_header_text){bytes, bytes + sizeof(first), json_bytes};
    return 0;
}

/* ---- replacing a file --------------------------------------------------------------- */

static int fail(const char *path, struct hr_error *err, int code, const char *doing)
{
    char shown[SHOWN_BYTES], reason[128];

    return hr_error_set(err, code, "%s: cannot %s: %s", hr_printable(path, shown, sizeof(shown)),
                        doing, hr_strerror(code, reason, sizeof(reason)));
}

uint32_t hr_temp_number(void)
{
    uint32_t number = 0;

    if (getrandom(&number, sizeof(number), GRND_NONBLOCK) < 0)
        number = (uint32_t) getpid();
    return number;
}

/* The temporary name, in the same folder: a rename must not cross filesystems. */
static char *temp_name(const char *path)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    char *temp;

    if (asprintf(&temp, "%.*s.%s.tmp-%08x", (int) (base - path), path, base, hr_temp_number()) < 0)
        return NULL;
    return temp;
}

static void replacement_uninit(struct hr_replacement *replacement)
{
    if (replacement->folder_fd >= 0)
        close(replacement->folder_fd);
    free(replacement->target);
    free(replacement->temp);
    *replacement = (struct hr_replacement){.fd = -1, .folder_fd = -1};
}

int hr_replace_begin(struct hr_replacement *ret, const char *path, struct hr_error *err)
{
    struct hr_replacement replacement = {.path = path, .fd = -1, .folder_fd = -1};
    char shown[SHOWN_BYTES];
    mode_t mode;
    int r;

    if (!path || !*path)
        return hr_error_set(err, -EINVAL, "the output has no name");
    r = hr_file_target(path, &replacement.target, &mode);
    if (r < 0)
        return fail(path, err, r, "write there");
    if (mode != 0 && !S_ISREG(mode)) {
        r = hr_error_set(err, -EINVAL, "%s: is %s; the result replaces a file, or makes a new one",
                         hr_printable(path, shown, sizeof(shown)), hr_file_kind(mode));
        replacement_uninit(&replacement);
        return r;
    }
    /* Now, since after the rename nothing should be left that wants memory. */
    replacement.folder_fd = open_parent(replacement.target);
    if (replacement.folder_fd < 0) {
        r = fail(path, err, replacement.folder_fd, "open its folder");
        replacement_uninit(&replacement);
        return r;
    }
    replacement.temp = temp_name(replacement.target);
    if (replacement.temp)
        replacement.fd = open(replacement.temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (replacement.fd < 0) {
        r = fail(path, err, replacement.temp ? -errno : -ENOMEM, "make a temporary file beside it");
        replacement_uninit(&replacement);
        return r;
    }
    *ret = replacement;
    return 0;
}

int hr_replace_end(struct hr_replacement *replacement, int r, struct hr_error *err)
{
    if (r == 0 && fsync(replacement->fd) < 0)
        r = -errno;
    if (close(replacement->fd) < 0 && r == 0)
        r = -errno;
    if (r == 0 && rename(replacement->temp, replacement->target) < 0)
        r = -errno;
    if (r < 0)
        unlink(replacement->temp);
    else
        r = sync_folder(replacement->folder_fd);
    if (r < 0)
        fail(replacement->path, err, r, "write it");
    replacement_uninit(replacement);
    return r;
}

bool hr_has_suffix(const char *text, const char *suffix)
{
    const size_t len = strlen(text), suffix_len = strlen(suffix);

    return len >= suffix_len && !strcmp(text + len - suffix_len, suffix);
}
