/* SPDX-License-Identifier: Apache-2.0 */
/* disk.c -- the disks under a file and what sysfs says of them: their queues, and the link of an
 * NVMe drive.
 *
 * A file's device number leads to a block device, or through the table of mounts to one (btrfs has
 * numbers of its own); a partition to its disk; a volume to those below it.
 */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "io/backend.h"

enum { VOLUMES_MAX = 32 }; /* looked into, one below the other or side by side */

static char *real_path(const char *root, const char *path)
{
    char full[PATH_MAX];

    if (snprintf(full, sizeof(full), "%s%s", root, path) >= (int) sizeof(full))
        return NULL;
    return realpath(full, NULL);
}

/* What is mounted there: "36 35 0:29 /subvolume /mnt rw - btrfs /dev/nvme0n1p2 rw". */
static bool mount_source(const char *root, int fd, char *buf, size_t buf_bytes)
{
    uint64_t mount_id = UINT64_MAX;
    char path[PATH_MAX], *line = NULL;
    size_t line_bytes = 0;
    bool found = false;

#ifdef STATX_MNT_ID
    struct statx sx;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &sx) == 0 && sx.stx_mask & STATX_MNT_ID)
        mount_id = sx.stx_mnt_id;
#else
    (void) fd;
#endif
    snprintf(path, sizeof(path), "%s/proc/self/mountinfo", root);
    FILE *f = fopen(path, "re");

    if (!f)
        return false;
    while (!found && getline(&line, &line_bytes, f) > 0) {
        const char *behind = strstr(line, " - ");
        char type[64], source[256];

        found = strtoull(line, NULL, 10) == mount_id && behind &&
                sscanf(behind, " - %63s %255s", type, source) == 2;
        if (found)
            snprintf(buf, buf_bytes, "%s", source);
    }
    free(line);
    fclose(f);
    return found;
}

void hr_io_whole_disk(char *folder)
{
    if (hr_sys_number(0, "%s/partition", folder) > 0)
        *strrchr(folder, '/') = '\0';
}

/* The folder in /sys/devices of the block device that holds the file; free() it. */
static char *block_folder(const char *root, int fd)
{
    char path[PATH_MAX], source[256];
    struct stat st;

    if (fstat(fd, &st) < 0)
        return NULL;
    snprintf(path, sizeof(path), "/sys/dev/block/%u:%u", major(st.st_dev), minor(st.st_dev));
    char *folder = real_path(root, path);

    if (folder || !mount_source(root, fd, source, sizeof(source)) ||
        strncmp(source, "/dev/", 5) != 0)
        return folder;
    char *node = real_path(root, source); /* /dev/mapper/x is a link to /dev/dm-0 */

    snprintf(path, sizeof(path), "/sys/class/block/%s", strrchr(node ? node : source, '/') + 1);
    free(node);
    return real_path(root, path);
}

/* Add what the volume at `folder` is made of to the list. @return there is something */
static bool add_slaves(char **folders, uint32_t *n_folders, const char *folder)
{
    const uint32_t n_before = *n_folders;
    char path[PATH_MAX];
    struct dirent *entry;

    snprintf(path, sizeof(path), "%s/slaves", folder);
    DIR *dir = opendir(path);

    while (dir && *n_folders < VOLUMES_MAX && (entry = readdir(dir))) {
        char slave[PATH_MAX + 256];

        if (entry->d_name[0] == '.')
            continue;
        snprintf(slave, sizeof(slave), "%s/%s", path, entry->d_name);
        folders[*n_folders] = realpath(slave, NULL);
        *n_folders += folders[*n_folders] != NULL;
    }
    if (dir)
        closedir(dir);
    return *n_folders > n_before;
}

/* The one in brackets of "none [mq-deadline] kyber". */
static void take_scheduler(struct hr_disk *disk, const char *folder)
{
    char text[128];
    const char *in_use = text;

    if (!hr_sys_line(text, sizeof(text), "%s/queue/scheduler", folder))
        return;
    char *bracket = strchr(text, '[');
    if (bracket)
        in_use = bracket + 1;
    snprintf(disk->scheduler, sizeof(disk->scheduler), "%.*s", (int) strcspn(in_use, "] "), in_use);
}

/* NVMe drives that may be reached by several ways hang in no one's folder: that of the first
 * controller beside them, "nvme0" of nvme-subsys0/nvme0n1. NULL: there is none; free() it. */
static char *controller_folder(const char *folder)
{
    char parent[PATH_MAX], path[PATH_MAX + 256];
    struct dirent *entry;
    char *found = NULL;

    snprintf(parent, sizeof(parent), "%.*s", (int) (strrchr(folder, '/') - folder), folder);
    DIR *dir = opendir(parent);

    while (dir && !found && (entry = readdir(dir))) {
        const char *digits = entry->d_name + 4;

        if (strncmp(entry->d_name, "nvme", 4) != 0 || !isdigit((unsigned char) *digits) ||
            digits[strspn(digits, "0123456789")] != '\0')
            continue;
        snprintf(path, sizeof(path), "%s/%s", parent, entry->d_name);
        found = realpath(path, NULL);
    }
    if (dir)
        closedir(dir);
    return found;
}

/* Link and node are those of the nearest device above that has them. */
static void look_up_the_tree(struct hr_disk *disk, const char *folder)
{
    const bool wants_link = strncmp(disk->name, "nvme", 4) == 0;
    char *path = strdup(folder), *slash, text[32];
    bool is_asked = false;

    for (; path && path[0]; *slash = '\0') {
        if (disk->node < 0 && hr_sys_line(text, sizeof(text), "%s/numa_node", path))
            disk->node = (int) strtol(text, NULL, 10);
        if (wants_link && !is_asked &&
            hr_sys_line(text, sizeof(text), "%s/current_link_speed", path)) {
            disk->has_link = hr_pci_link_read(&disk->link, path);
            is_asked = true; /* those further up are of bridges */
        }
        slash = strrchr(path, '/');
        if (!slash)
            break;
    }
    free(path);
}

static struct hr_disk disk_of(const char *folder)
{
    struct hr_disk disk = {
        .n_requests = (uint32_t) hr_sys_number(0, "%s/queue/nr_requests", folder),
        .max_segments = (uint32_t) hr_sys_number(0, "%s/queue/max_segments", folder),
        .max_sectors_kib = (uint32_t) hr_sys_number(0, "%s/queue/max_sectors_kb", folder),
        .max_hw_sectors_kib = (uint32_t) hr_sys_number(0, "%s/queue/max_hw_sectors_kb", folder),
        .read_ahead_kib = (uint32_t) hr_sys_number(0, "%s/queue/read_ahead_kb", folder),
        .spins = hr_sys_number(0, "%s/queue/rotational", folder) != 0,
        .node = -1,
    };

    snprintf(disk.name, sizeof(disk.name), "%.31s", strrchr(folder, '/') + 1);
    hr_sys_line(disk.model, sizeof(disk.model), "%s/device/model", folder);
    take_scheduler(&disk, folder);
    disk.is_virtual =
        strstr(folder, "/virtio") || strstr(folder, "/vmbus") || strncmp(disk.name, "xvd", 3) == 0;
    look_up_the_tree(&disk, folder);
    if (!disk.has_link && strncmp(disk.name, "nvme", 4) == 0) {
        char *controller = controller_folder(folder);

        if (controller)
            look_up_the_tree(&disk, controller);
        free(controller);
    }
    return disk;
}

static bool is_listed(const struct hr_disk *disks, uint32_t n, const char *folder)
{
    for (uint32_t i = 0; i < n; i++)
        if (strcmp(disks[i].name, strrchr(folder, '/') + 1) == 0)
            return true;
    return false;
}

uint32_t hr_io_disks(struct hr_disk ret_disks[HR_DISKS_MAX], const char *root, int fd)
{
    char *folders[VOLUMES_MAX] = {block_folder(root, fd)};
    uint32_t n_folders = folders[0] != NULL, n = 0;

    for (uint32_t i = 0; i < n_folders; i++) {
        hr_io_whole_disk(folders[i]);
        if (!add_slaves(folders, &n_folders, folders[i]) && n < HR_DISKS_MAX &&
            !is_listed(ret_disks, n, folders[i]))
            ret_disks[n++] = disk_of(folders[i]);
    }
    for (uint32_t i = 0; i < n_folders; i++)
        free(folders[i]);
    return n;
}
