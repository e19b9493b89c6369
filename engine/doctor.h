/* SPDX-License-Identifier: Apache-2.0 */
/* doctor.h -- parts of hr_doctor(); each asks one thing of the machine and says what it found.
 *
 *   doctor.c          the file or folder that is asked about, the order
 *   doctor_io.c       what was tried out: backends, O_DIRECT, the ring's memory
 *   doctor_disk.c     filesystem and disks
 *   doctor_machine.c  memory, CPU, NUMA
 *   doctor_gpu.c      devices
 */
#ifndef HR_DOCTOR_H
#define HR_DOCTOR_H

#include "common/common.h"
#include "io/io.h"

struct hr_doctor {
    const char *root; /* "", or the folder of a made-up /proc and /sys */
    hr_finding_fn *fn;
    void *user;
};

/* @param remedy  NULL exactly where the state is OK */
void hr_doctor_say(const struct hr_doctor *d, enum hr_finding_state state, const char *name,
                   const char *remedy, const char *format, ...) HR_PRINTF(5, 6);

/* What a remedy begins with where no command helps. */
#define HR_NO_COMMAND "nothing to paste: "
/* Where the disk is not the right one. */
#define HR_MOVE_MODEL "cp -a MODEL FOLDER  # FOLDER on a local NVMe or SSD with ext4, xfs or btrfs"

void hr_doctor_kernel(const struct hr_doctor *d);
/* `no_file`: why there was no file on this filesystem to try; NULL: there was. */
void hr_doctor_io(const struct hr_doctor *d, const struct hr_io_trial *trial, const char *no_file);
/* What to do where the ring got no huge pages. */
const char *hr_doctor_huge_remedy(const struct hr_doctor *d, char *buf, size_t buf_bytes);
bool hr_doctor_has_huge(const struct hr_io_trial *trial);

/* `fd` is a file or folder on the filesystem. */
void hr_doctor_filesystem(const struct hr_doctor *d, int fd);
void hr_doctor_disk(const struct hr_doctor *d, const struct hr_disk *disk,
                    const struct hr_io_trial *trial);
void hr_doctor_no_disk(const struct hr_doctor *d, int fd);

void hr_doctor_ram(const struct hr_doctor *d, const struct hr_room *room);
/* @param disk_node  of the disk; -1: not known */
void hr_doctor_numa(const struct hr_doctor *d, int disk_node);
void hr_doctor_cpu(const struct hr_doctor *d);
void hr_doctor_gpu(const struct hr_doctor *d, const struct hr_read_file *file);
/* Whether files are read into this GPU's memory past the host's. */
void hr_doctor_gpu_direct(const struct hr_doctor *d, const char *device,
                          const struct hr_read_file *file);

/* hr_doctor() on a made-up /proc and /sys. */
int hr_doctor_run(const char *root, const struct hr_doctor_params *params, hr_finding_fn *fn,
                  void *user, struct hr_error *err);

#endif /* HR_DOCTOR_H */
