/* SPDX-License-Identifier: Apache-2.0 */
/* doctor_disk.c -- the filesystem, and what of each disk's settings cuts up or delays large reads.
 */
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "engine/doctor.h"

enum {
    BLOCK_KIB = HR_BLOCK_BYTES_DEFAULT >> 10,
    PAGE_KIB = 4,
    /* A disk's own limit per request below which raising it is worth a remedy. */
    SECTORS_KIB_MIN = 512,
    REMEDY_BYTES = 256,
};

/* For results, states of a loop and the modulation of its steps. */
#define FREE_BYTES_MIN (HR_GIB)

static bool is_local(const char *filesystem)
{
    static const char *const others[] = {"nfs", "cifs", "9p", "fuse"};

    for (size_t i = 0; i < HR_ARRAY_SIZE(others); i++)
        if (strcmp(filesystem, others[i]) == 0)
            return false;
    return true;
}

void hr_doctor_filesystem(const struct hr_doctor *d, int fd)
{
    struct hr_device_identity id = {.filesystem = "unknown"};
    struct statvfs fs;
    char name[32];

    hr_io_device_identity(fd, &id);
    hr_printable(id.filesystem, name, sizeof(name));
    if (is_local(id.filesystem))
        hr_doctor_say(d, HR_FINDING_OK, "filesystem", NULL, "%s", name);
    else
        hr_doctor_say(d, HR_FINDING_SLOW, "filesystem", HR_MOVE_MODEL, "%s, not of a local disk",
                      name);
    if (fstatvfs(fd, &fs) < 0)
        return;
    const uint64_t free_bytes = (uint64_t) fs.f_bavail * fs.f_frsize;
    const double total_gb = (double) fs.f_blocks * (double) fs.f_frsize / 1e9;

    if (free_bytes >= FREE_BYTES_MIN)
        hr_doctor_say(d, HR_FINDING_OK, "free_disk", NULL, "%.1f GB of %.1f",
                      (double) free_bytes / 1e9, total_gb);
    else
        hr_doctor_say(d, HR_FINDING_MISSING, "free_disk",
                      "du -xh . | sort -h | tail -n 20  # what takes the space here",
                      "%.2f GB of %.1f: little room for results and saved steps",
                      (double) free_bytes / 1e9, total_gb);
}

void hr_doctor_no_disk(const struct hr_doctor *d, int fd)
{
    struct hr_device_identity id = {.filesystem = "unknown"};
    const char *remedy = HR_NO_COMMAND "what lies below is for others to know";
    char name[32], path[512];

    hr_io_device_identity(fd, &id);
    snprintf(path, sizeof(path), "%s/sys/dev/block", d->root);
    if (access(path, F_OK) != 0)
        remedy = "sudo mount -t sysfs sysfs /sys  # in a container: its host knows";
    else if (strcmp(id.filesystem, "tmpfs") == 0)
        remedy = HR_NO_COMMAND "the files lie in memory";
    else if (strcmp(id.filesystem, "overlay") == 0)
        remedy = "docker run -v FOLDER:/models IMAGE  # FOLDER on a disk's own filesystem";
    hr_doctor_say(d, HR_FINDING_MISSING, "disk", remedy,
                  "sysfs names no disk under this filesystem (%s)",
                  hr_printable(id.filesystem, name, sizeof(name)));
}

/* ---- one disk -------------------------------------------------------------------------- */

static void say_kind(const struct hr_doctor *d, const struct hr_disk *disk)
{
    char model[96];

    hr_printable(disk->model, model, sizeof(model));
    if (disk->spins && !disk->is_virtual)
        hr_doctor_say(d, HR_FINDING_SLOW, "disk", HR_MOVE_MODEL, "%s %s: it spins", disk->name,
                      model);
    else
        hr_doctor_say(d, HR_FINDING_OK, "disk", NULL, "%s%s%s%s", disk->name, *model ? " " : "",
                      model, disk->is_virtual ? ", of a virtual machine" : "");
}

/* bfq is made to be fair between processes, kyber for the latency of small reads: it lets fewer
 * through when they take longer than 2 ms, as reads of 4 MiB do. */
static void say_scheduler(const struct hr_doctor *d, const struct hr_disk *disk)
{
    const bool in_the_way =
        strcmp(disk->scheduler, "bfq") == 0 || strcmp(disk->scheduler, "kyber") == 0;
    char remedy[REMEDY_BYTES];

    if (!disk->scheduler[0])
        return;
    snprintf(remedy, sizeof(remedy), "echo %s | sudo tee /sys/block/%s/queue/scheduler",
             disk->spins && !disk->is_virtual ? "mq-deadline" : "none", disk->name);
    hr_doctor_say(d, in_the_way ? HR_FINDING_SLOW : HR_FINDING_OK, "scheduler",
                  in_the_way ? remedy : NULL, "%s: %s", disk->name, disk->scheduler);
}

static uint32_t requests_of(uint32_t request_kib)
{
    return (uint32_t) hr_div_ceil(BLOCK_KIB, request_kib ? request_kib : BLOCK_KIB);
}

/* How many requests one read becomes. A request takes so many bytes and so many separate pieces of
 * memory, which are pages of 4 KiB or, in huge pages, the whole.
 * @return requests, as things are now */
static uint32_t say_requests(const struct hr_doctor *d, const struct hr_disk *disk,
                             const struct hr_io_trial *trial)
{
    const uint32_t sectors_kib = disk->max_sectors_kib;
    const uint64_t pages_kib = (uint64_t) disk->max_segments * PAGE_KIB;
    const uint32_t huge = requests_of(sectors_kib);
    const uint32_t small =
        pages_kib ? requests_of((uint32_t) hr_min_u64(pages_kib, sectors_kib)) : huge;
    const uint32_t now = hr_doctor_has_huge(trial) ? huge : small;
    enum hr_finding_state state = HR_FINDING_OK;
    char remedy[REMEDY_BYTES], hardware[32] = "any";

    if (disk->max_hw_sectors_kib < UINT32_C(1) << 20)
        snprintf(hardware, sizeof(hardware), "%u", disk->max_hw_sectors_kib);
    if (sectors_kib < SECTORS_KIB_MIN && disk->max_hw_sectors_kib > sectors_kib) {
        state = HR_FINDING_SLOW;
        snprintf(remedy, sizeof(remedy), "echo %u | sudo tee /sys/block/%s/queue/max_sectors_kb",
                 (uint32_t) hr_min_u64(disk->max_hw_sectors_kib, BLOCK_KIB), disk->name);
    } else if (now > huge) {
        state = HR_FINDING_SLOW;
        hr_doctor_huge_remedy(d, remedy, sizeof(remedy));
    }
    hr_doctor_say(d, state, "requests", state == HR_FINDING_OK ? NULL : remedy,
                  "%s: a read of %d KiB is cut into %u (max_sectors_kb %u, of the hardware %s; "
                  "max_segments %u)%s",
                  disk->name, BLOCK_KIB, now, sectors_kib, hardware, disk->max_segments,
                  now > huge ? "; fewer with huge pages" : "");
    return now;
}

static void say_queue(const struct hr_doctor *d, const struct hr_disk *disk,
                      const struct hr_io_trial *trial, uint32_t n_each)
{
    const uint32_t wanted = HR_DEPTH_DEFAULT * n_each;
    const bool fits = disk->n_requests >= wanted;
    char read_ahead[64] = "";

    if (trial->not_direct)
        snprintf(read_ahead, sizeof(read_ahead), "; read_ahead_kb %u", disk->read_ahead_kib);
    hr_doctor_say(d, fits ? HR_FINDING_OK : HR_FINDING_SLOW, "queue",
                  fits ? NULL : "headrace tune MODEL  # finds a depth for this queue",
                  "%s: nr_requests %u; %d reads in flight make %u requests%s", disk->name,
                  disk->n_requests, HR_DEPTH_DEFAULT, wanted, read_ahead);
}

static void say_link(const struct hr_doctor *d, const struct hr_disk *disk)
{
    const struct hr_pci_link *link = &disk->link;
    const bool best = link->gtps >= link->gtps_max && link->width >= link->width_max;
    char remedy[REMEDY_BYTES];

    if (!disk->has_link)
        return;
    snprintf(remedy, sizeof(remedy),
             "sudo lspci -vvs %s | grep Lnk  # then another slot, or its speed in the firmware",
             link->address);
    hr_doctor_say(d, best ? HR_FINDING_OK : HR_FINDING_SLOW, "link", best ? NULL : remedy,
                  "%s: PCIe %.1f GT/s x%u, %.1f GB/s; the drive has %.1f GT/s x%u, %.1f GB/s",
                  disk->name, link->gtps, link->width, hr_pci_link_gbps(link->gtps, link->width),
                  link->gtps_max, link->width_max,
                  hr_pci_link_gbps(link->gtps_max, link->width_max));
}

void hr_doctor_disk(const struct hr_doctor *d, const struct hr_disk *disk,
                    const struct hr_io_trial *trial)
{
    say_kind(d, disk);
    say_scheduler(d, disk);
    if (disk->max_sectors_kib > 0) {
        const uint32_t n_each = say_requests(d, disk, trial);

        if (disk->n_requests > 0)
            say_queue(d, disk, trial, n_each);
    }
    say_link(d, disk);
}
