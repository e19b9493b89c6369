/* SPDX-License-Identifier: Apache-2.0 */
/* synth_temp.c -- the temporary name of a model that is being written, and what was left under such
 * names by runs that were killed.
 *
 * Who writes holds a lock (flock) on the folder or file. So a name whose lock can be had belongs to
 * nobody any more, in whatever container its writer was; process numbers would not tell. Where the
 * filesystem has no locks, nothing is removed. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "engine/files.h"
#include "engine/synth.h"

enum { TRIES_MAX = 8, NUMBER_DIGITS = 8 };

static const char mark[] = ".tmp-";

bool hr_synth_is_dots(const char *name)
{
    return !strcmp(name, ".") || !strcmp(name, "..");
}

bool hr_synth_is_model_file(const char *name)
{
    return !strcmp(name, "config.json") || hr_has_suffix(name, ".safetensors") ||
           hr_has_suffix(name, ".safetensors.index.json");
}

/* Does the name still lead to what was opened? */
static bool is_still(int fd, int dir_fd, const char *name)
{
    struct stat opened, named;

    return fstat(fd, &opened) == 0 && fstatat(dir_fd, name, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
           opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
}

/* ---- the name of this run ------------------------------------------------------------ */

/* @return 0; -EAGAIN somebody has just taken it for a leftover; or another negative errno */
static int make(struct hr_synth_temp *temp, bool is_file)
{
    if (!is_file && mkdir(temp->path, 0777) < 0)
        return -errno;
    temp->fd = is_file ? open(temp->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666)
                       : open(temp->path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (temp->fd < 0) {
        const int r = errno == ENOENT && !is_file ? -EAGAIN : -errno;

        if (!is_file)
            rmdir(temp->path);
        return r;
    }
    if ((flock(temp->fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK) ||
        !is_still(temp->fd, AT_FDCWD, temp->path))
        return -EAGAIN;
    return 0;
}

int hr_synth_temp_begin(struct hr_synth_temp *ret_temp, const char *path, bool is_file)
{
    int r = -EAGAIN;

    for (int i = 0; i < TRIES_MAX && r == -EAGAIN; i++) {
        struct hr_synth_temp temp = {.fd = -1};

        if (asprintf(&temp.path, "%s%s%ld-%0*x", path, mark, (long) getpid(), NUMBER_DIGITS,
                     hr_temp_number()) < 0)
            return -ENOMEM;
        r = make(&temp, is_file);
        if (r == 0)
            *ret_temp = temp;
        else
            hr_synth_temp_end(&temp);
    }
    return r;
}

void hr_synth_temp_end(struct hr_synth_temp *temp)
{
    if (temp->path && temp->fd >= 0)
        close(temp->fd);
    free(temp->path);
    *temp = (struct hr_synth_temp){.fd = -1};
}

/* ---- what others left ---------------------------------------------------------------- */

/* Is it `base`.tmp-PID-NUMBER, to the letter? */
static bool is_temp_name(const char *name, const char *base)
{
    const size_t base_len = strlen(base), mark_len = strlen(mark);

    if (strncmp(name, base, base_len) != 0 || strncmp(name + base_len, mark, mark_len) != 0)
        return false;
    name += base_len + mark_len;
    const size_t n_digits = strspn(name, "0123456789");

    return n_digits > 0 && name[n_digits] == '-' &&
           strspn(name + n_digits + 1, "0123456789abcdef") == NUMBER_DIGITS &&
           name[n_digits + 1 + NUMBER_DIGITS] == '\0';
}

static bool is_part_of_model(int dir_fd, const char *name)
{
    struct stat st;

    return hr_synth_is_model_file(name) && fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
           S_ISREG(st.st_mode);
}

/* Remove the files of a model's folder; none where there is anything else in it. */
static bool empty_folder(int fd)
{
    bool is_model = true;

    for (int removing = 0; removing < 2 && is_model; removing++) {
        const int list_fd = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *dir = list_fd < 0 ? NULL : fdopendir(list_fd);

        if (!dir) {
            if (list_fd >= 0)
                close(list_fd);
            return false;
        }
        for (const struct dirent *entry; (entry = readdir(dir));) {
            if (hr_synth_is_dots(entry->d_name))
                continue;
            if (!is_part_of_model(fd, entry->d_name))
                is_model = false;
            else if (removing)
                unlinkat(fd, entry->d_name, 0);
        }
        closedir(dir);
    }
    return is_model;
}

/* @return it was left by a run that is no more, and is gone */
static bool drop(int dir_fd, const char *name, bool is_file)
{
    const int flags = is_file ? O_RDWR | O_NONBLOCK : O_RDONLY | O_DIRECTORY;
    const int fd = openat(dir_fd, name, flags | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC);
    struct stat st;
    bool dropped = false;

    if (fd < 0)
        return false;
    /* Under the lock once more: before it, its run may have come to its end and renamed it. */
    if (fstat(fd, &st) == 0 && st.st_uid == geteuid() &&
        (is_file ? S_ISREG(st.st_mode) : S_ISDIR(st.st_mode)) &&
        flock(fd, LOCK_EX | LOCK_NB) == 0 && is_still(fd, dir_fd, name)) {
        if (is_file)
            dropped = unlinkat(dir_fd, name, 0) == 0;
        else
            dropped = empty_folder(fd) && unlinkat(dir_fd, name, AT_REMOVEDIR) == 0;
    }
    close(fd);
    return dropped;
}

void hr_synth_drop_leftovers(const char *path, const char *parent, bool is_file)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    char shown[384];
    DIR *dir = opendir(parent);

    if (!dir)
        return;
    for (const struct dirent *entry; (entry = readdir(dir));)
        if (is_temp_name(entry->d_name, base) && drop(dirfd(dir), entry->d_name, is_file))
            hr_log(HR_LOG_INFO, "%s: removed, left by a run that was killed",
                   hr_printable(entry->d_name, shown, sizeof(shown)));
    closedir(dir);
}
