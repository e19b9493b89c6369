/* SPDX-License-Identifier: Apache-2.0 */
/* synth.c -- a model with known values: built under a temporary name beside its own, then renamed,
 * so that a model of that name is whole. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "engine/files.h"
#include "engine/synth.h"

enum { SHOWN_BYTES = 384 };

/* Where the model goes. */
struct target {
    char *path;
    struct hr_synth_temp temp;
    char *parent;
    mode_t mode; /* of what is at path, 0: nothing */
    char shown[SHOWN_BYTES];
};

static int fail(const struct target *target, struct hr_error *err, int code, const char *doing)
{
    char reason[128];

    return hr_error_set(err, code, "%s: cannot %s: %s", target->shown, doing,
                        hr_strerror(code, reason, sizeof(reason)));
}

static void target_uninit(struct target *target)
{
    free(target->path);
    hr_synth_temp_end(&target->temp);
    free(target->parent);
}

static int target_init(struct target *target, const char *path, struct hr_error *err)
{
    int r;

    *target = (struct target){.temp.fd = -1};
    hr_printable(path, target->shown, sizeof(target->shown));
    r = hr_file_target(path, &target->path, &target->mode);
    if (r < 0)
        return fail(target, err, r, "look at it");
    target->parent = hr_file_parent(target->path);
    return target->parent ? 0 : fail(target, err, -ENOMEM, "name its folder");
}

/* ---- what is there already ---------------------------------------------------------- */

/* The first file of a folder that no model has, "" when there is none.
 * @param ret_is_empty  nothing is in the folder at all */
static int find_stranger(const char *path, char ret_name[256], bool *ret_is_empty)
{
    const struct dirent *entry;
    DIR *dir = opendir(path);

    if (!dir)
        return -errno;
    ret_name[0] = '\0';
    *ret_is_empty = true;
    while ((entry = readdir(dir))) {
        if (hr_synth_is_dots(entry->d_name))
            continue;
        *ret_is_empty = false;
        if (!hr_synth_is_model_file(entry->d_name)) {
            snprintf(ret_name, 256, "%s", entry->d_name);
            break;
        }
    }
    closedir(dir);
    return 0;
}

/* Replacing deletes: only what is a model and nothing else, and only when told to. */
static int check_replaceable(const struct target *target, bool is_file, bool force,
                             struct hr_error *err)
{
    char stranger[256], shown[128];
    bool is_empty = false;
    int r;

    if (target->mode == 0)
        return 0;
    if (is_file ? !S_ISREG(target->mode) : !S_ISDIR(target->mode))
        return hr_error_set(err, -EEXIST, "%s: is %s; choose another name", target->shown,
                            hr_file_kind(target->mode));
    if (!is_file) {
        r = find_stranger(target->path, stranger, &is_empty);
        if (r < 0)
            return fail(target, err, r, "list the folder");
        if (is_empty)
            return 0;
        if (stranger[0])
            return hr_error_set(err, -EEXIST,
                                "%s: holds %s, which is no part of a model; it is not replaced, "
                                "choose another name",
                                target->shown, hr_printable(stranger, shown, sizeof(shown)));
    }
    if (!force)
        return hr_error_set(err, -EEXIST,
                            "%s: exists already; choose another name, or --force replaces it",
                            target->shown);
    return 0;
}

static int check_space(const struct target *target, uint64_t bytes, struct hr_error *err)
{
    struct statvfs fs;
    uint64_t free_bytes;

    if (statvfs(target->parent, &fs) < 0)
        return errno == ENOENT
                   ? hr_error_set(err, -ENOENT, "%s: its folder does not exist; make it first",
                                  target->shown)
                   : fail(target, err, -errno, "look at the folder it shall be in");
    free_bytes = (uint64_t) fs.f_bavail * fs.f_frsize;
    if (bytes > free_bytes)
        return hr_error_set(err, -ENOSPC, "%s: %.2f GB are needed, %.2f GB are free on that disk",
                            target->shown, (double) bytes / 1e9, (double) free_bytes / 1e9);
    return 0;
}

/* ---- making and publishing ---------------------------------------------------------- */

/* A file, or a folder of files. */
static void remove_model(const char *path)
{
    DIR *dir;

    if (unlink(path) == 0 || !(dir = opendir(path)))
        return;
    for (const struct dirent *entry; (entry = readdir(dir));)
        if (!hr_synth_is_dots(entry->d_name))
            unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
    rmdir(path);
}

static int write_text(const struct target *target, int dir_fd, const char *name, const char *text,
                      struct hr_error *err)
{
    const int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    int r = fd < 0 ? -errno : hr_file_write(fd, text, strlen(text), 0);

    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    if (fd >= 0)
        close(fd);
    return r < 0 ? fail(target, err, r, "write its config.json and index") : 0;
}

/* Everything under the temporary name. */
static int write_model(const struct target *target, const struct hr_synth_layout *layout,
                       const struct hr_synth_params *params, struct hr_error *err)
{
    const int dir_fd = layout->is_file ? AT_FDCWD : target->temp.fd;
    const char *file_name = layout->is_file ? target->temp.path : NULL;
    int r = hr_synth_write_shards(layout, dir_fd, file_name, params, target->shown, err);

    if (r == 0 && layout->config)
        r = write_text(target, dir_fd, "config.json", layout->config, err);
    if (r == 0 && layout->index)
        r = write_text(target, dir_fd, hr_synth_index_name, layout->index, err);
    if (r == 0 && !layout->is_file && fsync(dir_fd) < 0 && errno != EINVAL)
        r = fail(target, err, -errno, "flush it");
    return r;
}

/* Give it its name. A file or an empty folder is replaced by rename(); a model's folder is
 * exchanged, and the old one is then under the temporary name. */
static int publish(const struct target *target, bool is_file, bool force, struct hr_error *err)
{
    int r = 0;

    if (is_file && !force) {
        if (renameat2(AT_FDCWD, target->temp.path, AT_FDCWD, target->path, RENAME_NOREPLACE) == 0)
            goto renamed;
        if (errno != EINVAL && errno != ENOSYS)
            return fail(target, err, -errno, "rename it into place");
    }
    if (rename(target->temp.path, target->path) < 0) {
        if (errno != EEXIST && errno != ENOTEMPTY)
            return fail(target, err, -errno, "rename it into place");
        if (!force)
            return fail(target, err, -EEXIST, "rename it into place");
        if (renameat2(AT_FDCWD, target->temp.path, AT_FDCWD, target->path, RENAME_EXCHANGE) < 0) {
            if (errno != EINVAL && errno != ENOSYS)
                return fail(target, err, -errno, "exchange it for the old model");
            remove_model(target->path); /* a filesystem that cannot exchange */
            if (rename(target->temp.path, target->path) < 0)
                return fail(target, err, -errno, "rename it into place");
        } else {
            remove_model(target->temp.path);
        }
    }
renamed:
    r = hr_file_sync_parent(target->path);
    return r < 0 ? fail(target, err, r, "flush its folder") : 0;
}

int hr_synth(const struct hr_synth_params *params, struct hr_error *err)
{
    struct hr_synth_layout layout;
    struct target target;
    int r;

    if (!params->path || !*params->path)
        return hr_error_set(err, -EINVAL, "a synthetic model needs a name");
    r = hr_synth_layout_init(&layout, params, err);
    if (r < 0)
        return r;
    r = target_init(&target, params->path, err);
    if (r == 0)
        r = check_replaceable(&target, layout.is_file, params->force, err);
    if (r == 0) {
        hr_synth_drop_leftovers(target.path, target.parent, layout.is_file);
        r = check_space(&target, layout.total_bytes, err);
    }
    if (r == 0) {
        r = hr_synth_temp_begin(&target.temp, target.path, layout.is_file);
        if (r < 0)
            fail(&target, err, r, "make its temporary name beside it");
    }
    if (r == 0) {
        if (params->n_shards > layout.n_shards)
            hr_log(HR_LOG_WARN, "%s: %u shards instead of %u: one for each tensor", target.shown,
                   layout.n_shards, params->n_shards);
        r = write_model(&target, &layout, params, err);
        if (r == 0)
            r = publish(&target, layout.is_file, params->force, err);
        if (r < 0)
            remove_model(target.temp.path);
        else if (params->progress)
            params->progress(params->progress_user, layout.total_bytes, layout.total_bytes);
    }
    target_uninit(&target);
    hr_synth_layout_uninit(&layout);
    return r;
}

uint64_t hr_synth_bytes(const struct hr_synth_params *params)
{
    struct hr_synth_layout layout;
    uint64_t bytes;

    if (hr_synth_layout_init(&layout, params, NULL) < 0)
        return 0;
    bytes = layout.total_bytes;
    hr_synth_layout_uninit(&layout);
    return bytes;
}
