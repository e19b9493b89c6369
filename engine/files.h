/* SPDX-License-Identifier: Apache-2.0 */
/* files.h -- system calls on files, finished: whole reads and writes, regular files only, and names
 * that appear complete or not at all. */
#ifndef HR_FILES_H
#define HR_FILES_H

#include <sys/stat.h>

#include "common/common.h"

/* What a mode is, such as "a FIFO", for messages. */
const char *hr_file_kind(mode_t mode);

/* Open a regular file for reading, without ever waiting for a FIFO or waking a device.
 * @param flags  0 or O_NOFOLLOW
 * @return 0; -EINVAL something else than a regular file, with *ret_mode telling what; or the error
 *         of fstatat() or openat() */
int hr_file_open(int dir_fd, const char *name, int flags, int *ret_fd, uint64_t *ret_bytes,
                 mode_t *ret_mode);

/* Read n bytes at offset. @return 0, -ENODATA when the file ends before, or the error of pread() */
int hr_file_read(int fd, void *dst, size_t n, uint64_t offset_bytes);
/* Read a whole text file of at most bytes_max bytes; free() it. @param what  "the manifest", for
 * messages */
int hr_file_read_text(const char *path, const char *what, uint64_t bytes_max, char **ret_text,
                      size_t *ret_bytes, struct hr_error *err);
/* Write n bytes at offset. @return 0 or the error of pwrite() */
int hr_file_write(int fd, const void *src, size_t n, uint64_t offset_bytes);

/* The header of a safetensors file, as it lies there. */
struct hr_header_text {
    char *bytes; /* 8 of length, then the JSON; free() it */
    const char *json;
    uint64_t json_bytes;
};

/* @return 0, or as hr_header_length(), -ENOMEM, the error of pread(), with a message */
int hr_header_read(struct hr_header_text *ret_text, int fd, uint64_t file_bytes, const char *shown,
                   struct hr_error *err);

/* What tells that a file has changed: where it is, its size and its time. */
struct hr_file_mark {
    uint64_t device, inode, size_bytes;
    int64_t mtime_s, mtime_ns;
};

/* @return 0 or the error of fstat() */
int hr_file_mark(struct hr_file_mark *ret_mark, int fd);
/* Is the file still as it was marked, and does `path` still lead to it? One that was only removed
 * or moved is: its bytes are there until it is closed.
 * @return 0, or -ESTALE with a message */
int hr_file_check(const struct hr_file_mark *mark, int fd, const char *path, struct hr_error *err);

/* Flush the folder that holds `path`, so that a rename in it lasts. @return 0 or a negative errno
 */
int hr_file_sync_parent(const char *path);

/* Follow `path` if it is a symbolic link, so that renaming onto the result replaces what it leads
 * to, and take slashes off its end.
 * @param ret_path  free() it
 * @param ret_mode  of what is there now, 0: nothing
 * @return 0 or a negative errno; -ENOENT a link that leads nowhere */
int hr_file_target(const char *path, char **ret_path, mode_t *ret_mode);

/* A file that appears whole or not at all: written under a temporary name beside `path`, then
 * renamed onto it. */
struct hr_replacement {
    const char *path; /* borrowed */
    char *target, *temp;
    int fd;        /* to be written to */
    int folder_fd; /* of `target` */
};

/* For names of temporary files. Random, since what a killed process has left is in nobody's way: in
 * containers process numbers repeat. */
uint32_t hr_temp_number(void);

/* @return 0; -EINVAL there is something at `path` that is no regular file, or an error of the
 *         system with a message */
int hr_replace_begin(struct hr_replacement *ret, const char *path, struct hr_error *err);
/* Flush and rename; or, where `r`, the result of writing, is negative, take everything away and say
 * so. @return 0, `r` or another negative errno */
int hr_replace_end(struct hr_replacement *replacement, int r, struct hr_error *err);

/* "folder/name", or "name" for the folder "." ; free() it. NULL without memory. */
char *hr_file_join(const char *folder, const char *name);
/* The folder of a path: what stands before its last slash, or ".". free() it. */
char *hr_file_parent(const char *path);

bool hr_has_suffix(const char *text, const char *suffix);

#endif /* HR_FILES_H */
