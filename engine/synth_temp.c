/* SPDX-License-Identifier: Apache-2.0 */
/* synth_temp.c -- the temporary name of a model that is being written, and what was left under such
 * names by runs that were killed.
 *
 * Who writes holds a lock (flock) on the folder or file. So a name whose lock can be had belongs to
 * nobody any more, in whatever container its writer was; process numbers would not tell. But many
 * filesystems that machines share (NFS with local locks, sshfs, virtiofs) have locks of each kernel
 * for itself. So the name says which boot of which kernel made it, and what another made must also
 * have been at rest for an hour, by the filesystem's own clock. Where there are no locks, nothing
 * is removed. */
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

enum { TRIES_MAX = 8, NUMBER_DIGITS = 8, BOOT_DIGITS = 8, REST_S = 3600 };

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

/* The first digits of the kernel's name for the time since it was started; zeros: not told. */
static void read_boot(char ret_boot[BOOT_DIGITS + 1])
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    const size_t n = f ? fread(ret_boot, 1, BOOT_DIGITS, f) : 0;

    if (f)
        fclose(f);
    ret_boot[BOOT_DIGITS] = '\0';
    if (n < BOOT_DIGITS || strspn(ret_boot, "0123456789abcdef") != BOOT_DIGITS)
        memset(ret_boot, '0', BOOT_DIGITS);
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
    char boot[BOOT_DIGITS + 1];
    int r = -EAGAIN;

    read_boot(boot);
    for (int i = 0; i < TRIES_MAX && r == -EAGAIN; i++) {
        struct hr_synth_temp temp = {.fd = -1};

        if (asprintf(&temp.path, "%s%s%s-%ld-%0*x", path, mark, boot, (long) getpid(),
                     NUMBER_DIGITS, hr_temp_number()) < 0)
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

static bool has_digits(const char **text, const char *digits, size_t least, size_t most)
{
    const size_t n = strspn(*text, digits);

    *text += n;
    return n >= least && n <= most;
}

/* Is it `base`.tmp-BOOT-PID-NUMBER, to the letter? *ret_boot: its BOOT_DIGITS. */
static bool is_temp_name(const char *name, const char *base, const char **ret_boot)
{
    static const char hex[] = "0123456789abcdef";
    const size_t base_len = strlen(base), mark_len = strlen(mark);

    if (strncmp(name, base, base_len) != 0 || strncmp(name + base_len, mark, mark_len) != 0)
        return false;
    name += base_len + mark_len;
    *ret_boot = name;
    return has_digits(&name, hex, BOOT_DIGITS, BOOT_DIGITS) && *name++ == '-' &&
           has_digits(&name, "0123456789", 1, SIZE_MAX) && *name++ == '-' &&
           has_digits(&name, hex, NUMBER_DIGITS, NUMBER_DIGITS) && *name == '\0';
}

/* Of a folder's files, where there is nothing else in it: find the latest change, or remove them.
 * @return there is nothing else, and all could be looked at */
static bool each_file(int fd, bool removing, int64_t *changed_s)
{
    const int list_fd = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = list_fd < 0 ? NULL : fdopendir(list_fd);
    bool is_model = true;
    struct stat st;

    if (!dir) {
        if (list_fd >= 0)
            close(list_fd);
        return false;
    }
    for (const struct dirent *entry; is_model && (entry = readdir(dir));) {
        if (hr_synth_is_dots(entry->d_name))
            continue;
        is_model = hr_synth_is_model_file(entry->d_name) &&
                   fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode);
        if (is_model && removing)
            unlinkat(fd, entry->d_name, 0);
        else if (is_model && st.st_mtime > *changed_s)
            *changed_s = st.st_mtime;
    }
    closedir(dir);
    return is_model;
}

struct leftovers {
    const char *path; /* the model's */
    bool is_file;
    char boot[BOOT_DIGITS + 1]; /* ours */
};

/* The filesystem's clock, which need not be ours: when something was made there just now.
 * @return 0, and nothing is left, or a negative errno */
static int read_clock(const struct leftovers *leftovers, int64_t *ret_now_s)
{
    struct hr_synth_temp temp;
    struct stat st;
    int r = hr_synth_temp_begin(&temp, leftovers->path, leftovers->is_file);

    if (r < 0)
        return r;
    r = fstat(temp.fd, &st) < 0 ? -errno : 0;
    if (leftovers->is_file)
        unlink(temp.path);
    else
        rmdir(temp.path);
    hr_synth_temp_end(&temp);
    if (r == 0)
        *ret_now_s = st.st_mtime;
    return r;
}

/* Is its lock, which we have, the word of all who could write there? */
static bool is_at_rest(const struct leftovers *leftovers, const char *boot, int64_t changed_s)
{
    int64_t now_s;

    if (strncmp(boot, leftovers->boot, BOOT_DIGITS) == 0 && strspn(boot, "0") < BOOT_DIGITS)
        return true; /* made under this very kernel */
    return read_clock(leftovers, &now_s) == 0 && now_s - changed_s >= REST_S;
}

/* Remove what we have the lock of, where nobody writes it any more. */
static void drop_locked(const struct leftovers *leftovers, int dir_fd, int fd, const char *name,
                        const char *boot, int64_t changed_s)
{
    const bool is_file = leftovers->is_file;
    char shown[384];

    hr_printable(name, shown, sizeof(shown));
    if (!is_file && !each_file(fd, false, &changed_s))
        return; /* no half model */
    if (!is_at_rest(leftovers, boot, changed_s))
        hr_log(HR_LOG_INFO,
               "%s: kept, another machine may be writing it; an hour after its last change synth "
               "removes it",
               shown);
    else if ((is_file || each_file(fd, true, &changed_s)) &&
             unlinkat(dir_fd, name, is_file ? 0 : AT_REMOVEDIR) == 0)
        hr_log(HR_LOG_INFO, "%s: removed, left by a run that was killed", shown);
}

static void drop(const struct leftovers *leftovers, int dir_fd, const char *name, const char *boot)
{
    const bool is_file = leftovers->is_file;
    const int flags = is_file ? O_RDWR | O_NONBLOCK : O_RDONLY | O_DIRECTORY;
    const int fd = openat(dir_fd, name, flags | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC);
    struct stat st;

    if (fd < 0)
        return;
    /* Under the lock once more: before it, its run may have come to its end and renamed it. */
    if (fstat(fd, &st) == 0 && st.st_uid == geteuid() &&
        (is_file ? S_ISREG(st.st_mode) : S_ISDIR(st.st_mode)) &&
        flock(fd, LOCK_EX | LOCK_NB) == 0 && is_still(fd, dir_fd, name))
        drop_locked(leftovers, dir_fd, fd, name, boot, st.st_mtime);
    close(fd);
}

void hr_synth_drop_leftovers(const char *path, const char *parent, bool is_file)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path, *boot;
    struct leftovers leftovers = {.path = path, .is_file = is_file};
    DIR *dir = opendir(parent);

    if (!dir)
        return;
    read_boot(leftovers.boot);
    for (const struct dirent *entry; (entry = readdir(dir));)
        if (is_temp_name(entry->d_name, base, &boot))
            drop(&leftovers, dirfd(dir), entry->d_name, boot);
    closedir(dir);
}
