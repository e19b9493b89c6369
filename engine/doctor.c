/* SPDX-License-Identifier: Apache-2.0 */
/* doctor.c -- which file stands for the model, and in what order things are asked. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/doctor.h"
#include "engine/files.h"
#include "engine/model_folder.h"

enum { TRIAL_FILE_BYTES = 64 << 10, SHOWN_BYTES = 384, FOUND_BYTES = 512, REASON_BYTES = 128 };

const char *hr_finding_state_name(enum hr_finding_state state)
{
    static const char *const names[HR_FINDING_STATES] = {"ok", "slow", "missing"};

    return (unsigned) state < HR_FINDING_STATES ? names[state] : "unknown";
}

void hr_doctor_say(const struct hr_doctor *d, enum hr_finding_state state, const char *name,
                   const char *remedy, const char *format, ...)
{
    char found[FOUND_BYTES];
    va_list ap;

    hr_assert((state == HR_FINDING_OK) == (remedy == NULL));
    va_start(ap, format);
    vsnprintf(found, sizeof(found), format, ap);
    va_end(ap);
    d->fn(d->user, &(struct hr_finding){state, name, found, remedy});
}

/* ---- files to ask -------------------------------------------------------------------------- */

/* Open files that stand for what was named: one of each filesystem that the model lies on. */
struct subject {
    struct hr_read_file files[HR_DISKS_MAX];
    dev_t devices[HR_DISKS_MAX];
    uint32_t n_files;
    char no_file[REASON_BYTES]; /* why the first is none of this filesystem; "": it is one */
    int fd;                     /* on the filesystem: a file or the folder */
    bool owns_fd;
};

static void close_subject(struct subject *s)
{
    for (uint32_t i = 0; i < s->n_files; i++)
        close(s->files[i].fd);
    if (s->owns_fd)
        close(s->fd);
}

/* Takes fd. */
static void add_file(struct subject *s, int fd, uint64_t size_bytes, const char *path)
{
    struct stat st = {0};
    bool is_known = s->n_files == HR_DISKS_MAX;

    fstat(fd, &st);
    for (uint32_t i = 0; i < s->n_files; i++)
        is_known = is_known || s->devices[i] == st.st_dev;
    if (is_known) {
        close(fd);
        return;
    }
    s->devices[s->n_files] = st.st_dev;
    s->files[s->n_files++] =
        (struct hr_read_file){.fd = fd, .path = path, .size_bytes = size_bytes};
}

static int add_weights(struct subject *s, const struct hr_folder *folder,
                       const struct hr_folder_list *list, const char *path, struct hr_error *err)
{
    char shown[SHOWN_BYTES];

    for (uint32_t i = 0; i < list->n_weights; i++) {
        uint64_t size_bytes;
        int fd;
        const int r = hr_folder_open_file(folder, list->weights[i], &fd, &size_bytes, err);

        if (r < 0)
            return hr_error_set(err, r, "%s: %s cannot be opened", path,
                                hr_printable(list->weights[i], shown, sizeof(shown)));
        add_file(s, fd, size_bytes, path);
    }
    return 0;
}

static int write_block(int fd)
{
    static const char bytes[TRIAL_FILE_BYTES] = {1};
    const int r = hr_file_write(fd, bytes, sizeof(bytes), 0);

    if (r < 0)
        close(fd);
    return r;
}

/* A regular file of the folder that can be read. @return its descriptor or -1 */
static int any_file(const char *path, uint64_t *ret_bytes)
{
    DIR *dir = opendir(path);
    struct dirent *entry;
    int found = -1;
    mode_t mode;

    while (dir && found < 0 && (entry = readdir(dir))) {
        int fd;

        if (hr_file_open(dirfd(dir), entry->d_name, O_NOFOLLOW, &fd, ret_bytes, &mode) < 0)
            continue;
        if (*ret_bytes >= 4096)
            found = fd;
        else
            close(fd);
    }
    if (dir)
        closedir(dir);
    return found;
}

/* A folder without a model: a file without a name in it, or one that is there. Where there is
 * neither, a file in memory serves to try out the backends. */
static int add_stand_in(struct subject *s, const char *path, const char *shown,
                        struct hr_error *err)
{
    uint64_t size_bytes = TRIAL_FILE_BYTES;
    char reason[REASON_BYTES];
    int fd = open(path, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), r = fd < 0 ? -errno : 0;

    if (r == 0)
        r = write_block(fd);
    if (r < 0) {
        snprintf(s->no_file, sizeof(s->no_file), "%s", hr_strerror(r, reason, sizeof(reason)));
        fd = any_file(path, &size_bytes);
    }
    if (fd >= 0) {
        s->no_file[0] = '\0';
    } else {
        size_bytes = TRIAL_FILE_BYTES;
        fd = memfd_create("headrace-doctor", MFD_CLOEXEC);
        if (fd < 0)
            return hr_error_set(err, -errno, "%s: no file to try reading with, not even in memory",
                                shown);
        r = write_block(fd);
        if (r < 0)
            return hr_error_set(err, r, "%s: no memory for a file to try reading with", shown);
    }
    add_file(s, fd, size_bytes, shown);
    return 0;
}

static int take_folder(struct subject *s, const struct hr_doctor_params *params, const char *path,
                       const char *shown, struct hr_error *err)
{
    struct hr_folder_list list;
    struct hr_folder folder;
    int r = hr_folder_open_model(&folder, &list, path, params->cache_dir, err);

    if (r < 0)
        return r;
    r = list.n_weights > 0 ? add_weights(s, &folder, &list, shown, err)
                           : add_stand_in(s, path, shown, err);
    if (r == 0) {
        s->fd = s->no_file[0] ? dup(folder.fd) : s->files[0].fd;
        s->owns_fd = s->no_file[0];
        if (s->fd < 0)
            r = hr_error_set(err, -errno, "%s: no descriptor is left", shown);
    }
    hr_folder_list_uninit(&list);
    hr_folder_close(&folder);
    return r;
}

static int take_subject(struct subject *s, const struct hr_doctor_params *params, const char *shown,
                        struct hr_error *err)
{
    const char *path = params->path ? params->path : ".";
    char reason[REASON_BYTES];
    uint64_t size_bytes;
    struct stat st;
    mode_t mode;
    int fd, r;

    s->fd = -1;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return take_folder(s, params, path, shown, err);
    r = hr_file_open(AT_FDCWD, path, 0, &fd, &size_bytes, &mode);
    if (r == -EINVAL && mode != 0 && !S_ISREG(mode))
        return hr_error_set(err, r, "%s: is %s; name a model's folder or file", shown,
                            hr_file_kind(mode));
    if (r < 0)
        return hr_error_set(err, r, "%s: cannot open: %s", shown,
                            hr_strerror(r, reason, sizeof(reason)));
    add_file(s, fd, size_bytes, shown);
    s->fd = fd;
    return 0;
}

/* ---- the round ------------------------------------------------------------------------------ */

/* The ring that runs take, or as much as does no harm here. */
static uint64_t trial_ring_bytes(const struct hr_room *room)
{
    if (room->room_bytes >= 2 * (uint64_t) HR_RING_BYTES_DEFAULT)
        return HR_RING_BYTES_DEFAULT;
    return hr_max_u64(hr_align_down(room->room_bytes / 4, 2 * HR_MIB), 2 * HR_MIB);
}

static void ask(const struct hr_doctor *d, const struct subject *s, const struct hr_room *room,
                const struct hr_io_trial *trial)
{
    int node = -1;

    hr_doctor_kernel(d);
    hr_doctor_io(d, trial, s->no_file[0] ? s->no_file : NULL);
    hr_doctor_filesystem(d, s->fd);
    for (uint32_t i = 0; i < s->n_files; i++) {
        const int fd = i == 0 ? s->fd : s->files[i].fd;
        struct hr_disk disks[HR_DISKS_MAX];
        const uint32_t n_disks = hr_io_disks(disks, d->root, fd);

        for (uint32_t k = 0; k < n_disks; k++)
            hr_doctor_disk(d, &disks[k], trial);
        if (n_disks == 0)
            hr_doctor_no_disk(d, fd);
        else if (i == 0)
            node = disks[0].node;
    }
    hr_doctor_numa(d, node);
    hr_doctor_ram(d, room);
    hr_doctor_cpu(d);
    hr_doctor_gpu(d, &s->files[0]);
}

int hr_doctor_run(const char *root, const struct hr_doctor_params *params, hr_finding_fn *fn,
                  void *user, struct hr_error *err)
{
    const struct hr_doctor d = {.root = root, .fn = fn, .user = user};
    const struct hr_room room = hr_room_read(d.root);
    struct subject subject = {0};
    struct hr_io_trial trial;
    char shown[SHOWN_BYTES];

    hr_printable(params->path ? params->path : ".", shown, sizeof(shown));
    int r = take_subject(&subject, params, shown, err);
    if (r == 0)
        r = hr_io_try(&trial, &subject.files[0], trial_ring_bytes(&room), err);
    if (r == 0)
        ask(&d, &subject, &room, &trial);
    close_subject(&subject);
    return r;
}

int hr_doctor(const struct hr_doctor_params *params, hr_finding_fn *fn, void *user,
              struct hr_error *err)
{
    static const struct hr_doctor_params none = {0};

    return hr_doctor_run("", params ? params : &none, fn, user, err);
}
