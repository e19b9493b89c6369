/* SPDX-License-Identifier: Apache-2.0 */
/* device.c -- which disk a file lies on, in words that are the same tomorrow.
 *
 * st_dev is handed out anew at each boot, so a serial number or a uuid is taken where sysfs has
 * one. Filesystems that span disks or have no disk (btrfs, overlay, network) have no entry there;
 * for them it is the filesystem's own id.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <sys/vfs.h>

#include "io/backend.h"

/* From linux/magic.h and the filesystems' own headers; the number for all others. */
static const struct {
    uint32_t magic;
    const char *name;
} filesystems[] = {
    {0xef53, "ext4"},      {0x58465342, "xfs"},      {0x9123683e, "btrfs"}, {0x794c7630, "overlay"},
    {0x01021994, "tmpfs"}, {0x6969, "nfs"},          {0xf2f52010, "f2fs"},  {0x2fc12fc1, "zfs"},
    {0x65735546, "fuse"},  {0x01021997, "9p"},       {0x4d44, "vfat"},      {0x2011bab0, "exfat"},
    {0xff534d42, "cifs"},  {0xca451a4e, "bcachefs"},
};

static bool name_block_device(dev_t dev, char *buf, size_t buf_bytes)
{
    static const char *const names[] = {"device/serial", "serial",  "wwid",
                                        "device/wwid",   "dm/uuid", "md/uuid"};
    char link[64], value[96], *folder, *base;
    bool named = false;

    snprintf(link, sizeof(link), "/sys/dev/block/%u:%u", major(dev), minor(dev));
    folder = realpath(link, NULL);
    if (!folder)
        return false;
    hr_io_whole_disk(folder);
    base = strrchr(folder, '/') + 1;
    for (size_t i = 0; i < HR_ARRAY_SIZE(names) && !named; i++)
        if (hr_sys_line(value, sizeof(value), "%s/%s", folder, names[i])) {
            snprintf(buf, buf_bytes, "%s %s", base, value);
            named = true;
        }
    if (!named)
        snprintf(buf, buf_bytes, "%s %u:%u", base, major(dev), minor(dev));
    free(folder);
    return true;
}

int hr_io_device_identity(int fd, struct hr_device_identity *ret_identity)
{
    struct hr_device_identity id = {0};
    struct statfs fs;
    struct utsname uts;
    struct stat st;

    if (fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0 || uname(&uts) < 0)
        return -errno;
    snprintf(id.filesystem, sizeof(id.filesystem), "0x%lx", (unsigned long) fs.f_type);
    for (size_t i = 0; i < HR_ARRAY_SIZE(filesystems); i++)
        if ((uint32_t) fs.f_type == filesystems[i].magic)
            snprintf(id.filesystem, sizeof(id.filesystem), "%s", filesystems[i].name);
    snprintf(id.kernel, sizeof(id.kernel), "%.*s", (int) sizeof(id.kernel) - 1, uts.release);
    if (!name_block_device(st.st_dev, id.device, sizeof(id.device))) {
        int fsid[2];

        memcpy(fsid, &fs.f_fsid, sizeof(fsid));
        if (fsid[0] || fsid[1])
            snprintf(id.device, sizeof(id.device), "fsid %08x%08x", (unsigned) fsid[1],
                     (unsigned) fsid[0]);
        else
            snprintf(id.device, sizeof(id.device), "dev %u:%u", major(st.st_dev), minor(st.st_dev));
    }
    *ret_identity = id;
    return 0;
}
