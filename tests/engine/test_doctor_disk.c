/* SPDX-License-Identifier: Apache-2.0 */
/* test_doctor_disk.c -- disks of made-up machines, as hr_doctor() finds and judges them. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "made_up_machine.h"

/* Ask for all disks under machine_file(). */
static void ask_disks(const struct hr_io_trial *trial)
{
    const struct hr_io_trial good = machine_trial();
    const struct hr_doctor d = machine_doctor();
    struct hr_disk disks[HR_DISKS_MAX];
    const uint32_t n = hr_io_disks(disks, machine_root, machine_file());

    for (uint32_t i = 0; i < n; i++)
        hr_doctor_disk(&d, &disks[i], trial ? trial : &good);
    if (n == 0)
        hr_doctor_no_disk(&d, machine_file());
}

/* ---- disks -------------------------------------------------------------------------------- */

static void test_nvme(void **state)
{
    static const char *const names[] = {"disk", "scheduler", "requests", "queue", "link"};
    struct hr_disk disks[HR_DISKS_MAX];

    (void) state;
    machine_new_nvme("16.0 GT/s PCIe\n", "4\n");
    ask_disks(NULL);
    for (size_t i = 0; i < HR_ARRAY_SIZE(names); i++)
        assert_found(names[i], HR_FINDING_OK, "nvme0n1", "");
    assert_int_equal(n_found, HR_ARRAY_SIZE(names));
    assert_found("disk", HR_FINDING_OK, "nvme0n1 Fast Drive 2TB", "");
    assert_found("scheduler", HR_FINDING_OK, "none", "");
    assert_found("requests", HR_FINDING_OK, "a read of 4096 KiB is cut into 2 ", "");
    assert_found("link", HR_FINDING_OK, "16.0 GT/s x4, 7.9 GB/s", "");
    assert_int_equal(hr_io_disks(disks, machine_root, machine_file()), 1);
    assert_int_equal(disks[0].node, 1);
}

static void test_narrow_link(void **state)
{
    (void) state;
    machine_new_nvme("8.0 GT/s PCIe\n", "4\n");
    ask_disks(NULL);
    assert_found("link", HR_FINDING_SLOW, "8.0 GT/s x4, 3.9 GB/s; the drive has 16.0 GT/s x4",
                 "sudo lspci -vvs 0000:01:00.0");
    machine_new_nvme("16.0 GT/s PCIe\n", "1\n");
    ask_disks(NULL);
    assert_found("link", HR_FINDING_SLOW, "16.0 GT/s x1", "another slot");
    machine_new_nvme("Unknown\n", "63\n"); /* nothing is said where it is not known */
    machine_put_pci("sys/devices/pci0000:00/0000:00:01.1", "8.0 GT/s PCIe\n", "1\n");
    ask_disks(NULL);
    assert_false(found_is_there("link"));
}

/* The drive's folder is of the subsystem, the controller's beside it. */
static void test_nvme_of_several_ways(void **state)
{
    const char *const subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0";

    (void) state;
    machine_new();
    machine_put_queue("sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1");
    machine_put_pci(PCI_FOLDER, "16.0 GT/s PCIe\n", "4\n");
    machine_put(PCI_FOLDER "/nvme/nvme0", "model", "x\n");
    machine_put_link(subsystem, "nvme0", PCI_FOLDER "/nvme/nvme0");
    machine_set_disk("sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1");
    ask_disks(NULL);
    assert_found("link", HR_FINDING_OK, "16.0 GT/s x4", "");
}

static void test_spinning_disk(void **state)
{
    const char *const folder = "sys/devices/pci0000:00/0000:00:17.0/ata1/host0/block/sda";
    const char *const queue = "sys/devices/pci0000:00/0000:00:17.0/ata1/host0/block/sda/queue";

    (void) state;
    machine_new();
    machine_put_queue(folder);
    machine_put(queue, "rotational", "1\n");
    machine_put(queue, "scheduler", "none mq-deadline kyber [bfq]\n");
    machine_put(queue, "max_sectors_kb", "128\n");
    machine_put(queue, "max_hw_sectors_kb", "32767\n");
    machine_put(queue, "nr_requests", "64\n");
    machine_set_disk(folder);
    ask_disks(NULL);
    assert_found("disk", HR_FINDING_SLOW, "sda", "cp -a MODEL");
    assert_found("scheduler", HR_FINDING_SLOW, "sda: bfq",
                 "echo mq-deadline | sudo tee /sys/block/sda/queue/scheduler");
    assert_found("requests", HR_FINDING_SLOW, "cut into 32",
                 "echo 4096 | sudo tee /sys/block/sda/queue/max_sectors_kb");
    assert_found("queue", HR_FINDING_SLOW, "nr_requests 64; 16 reads in flight make 512 requests",
                 "headrace tune");
    assert_false(found_is_there("link"));
    /* What the hardware does not take has no remedy, and is no fault. */
    machine_put(queue, "max_hw_sectors_kb", "128\n");
    machine_put(queue, "scheduler", "[mq-deadline] none\n");
    ask_disks(NULL);
    assert_found("requests", HR_FINDING_OK, "cut into 32", "");
    assert_found("scheduler", HR_FINDING_OK, "mq-deadline", "");
}

static void test_virtual_disk(void **state)
{
    const char *const folder = "sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda";
    const char *const queue = "sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda/queue";
    struct hr_io_trial trial = machine_trial();

    (void) state;
    machine_new();
    machine_put_queue(folder);
    machine_put(queue, "rotational", "1\n"); /* as they say */
    machine_put(queue, "scheduler", "none [kyber]\n");
    machine_put(queue, "max_sectors_kb", "4096\n");
    machine_put(queue, "max_segments", "254\n");
    machine_put("sys/kernel/mm/transparent_hugepage", "enabled", "always madvise [never]\n");
    machine_set_disk(folder);
    ask_disks(NULL);
    assert_found("disk", HR_FINDING_OK, "vda, of a virtual machine", "");
    assert_found("scheduler", HR_FINDING_SLOW, "kyber", "echo none |");
    assert_found("requests", HR_FINDING_OK, "cut into 1 ", "");
    trial.huge_bytes = 0;
    trial.not_direct = "its filesystem does not take O_DIRECT";
    ask_disks(&trial);
    assert_found("requests", HR_FINDING_SLOW, "cut into 5 ", "echo madvise | sudo tee");
    assert_found("queue", HR_FINDING_OK, "read_ahead_kb 128", "");
}

static void test_volume_of_two_disks(void **state)
{
    (void) state;
    machine_new();
    machine_put_queue("sys/devices/virtual/block/dm-0");
    machine_put_queue("sys/devices/a/block/sda");
    machine_put_queue("sys/devices/b/block/sdb");
    machine_put("sys/devices/a/block/sda/sda1", "partition", "1\n");
    machine_put("sys/devices/a/block/sda/sda2", "partition", "2\n");
    machine_put_link("sys/devices/virtual/block/dm-0/slaves", "sda1",
                     "sys/devices/a/block/sda/sda1");
    machine_put_link("sys/devices/virtual/block/dm-0/slaves", "sda2",
                     "sys/devices/a/block/sda/sda2");
    machine_put_link("sys/devices/virtual/block/dm-0/slaves", "sdb", "sys/devices/b/block/sdb");
    machine_set_disk("sys/devices/virtual/block/dm-0");

    struct hr_disk disks[HR_DISKS_MAX];

    assert_int_equal(hr_io_disks(disks, machine_root, machine_file()), 2);
    assert_true(strcmp(disks[0].name, disks[1].name) != 0);
    assert_memory_equal(disks[0].name, "sd", 2);
    assert_memory_equal(disks[1].name, "sd", 2);
}

/* A filesystem with device numbers of its own: the table of mounts knows the disk. */
static void test_by_mount(void **state)
{
    struct hr_disk disks[HR_DISKS_MAX];
    char line[256];

    (void) state;
#ifdef STATX_MNT_ID
    struct statx sx;

    machine_new();
    if (statx(machine_file(), "", AT_EMPTY_PATH, STATX_MNT_ID, &sx) < 0 ||
        !(sx.stx_mask & STATX_MNT_ID))
        skip();
    machine_put_queue(NVME_FOLDER);
    machine_put(NVME_FOLDER "/nvme0n1p2", "partition", "2\n");
    machine_put("dev", "nvme0n1p2", "");
    machine_put_link("dev/mapper", "root", "dev/nvme0n1p2");
    machine_put_link("sys/class/block", "nvme0n1p2", NVME_FOLDER "/nvme0n1p2");
    snprintf(line, sizeof(line),
             "1%llu 1 0:5 / /x rw - btrfs /dev/other rw\n"
             "%llu 1 0:29 /sub /mnt rw shared:1 - btrfs /dev/mapper/root rw,ssd\n",
             (unsigned long long) sx.stx_mnt_id, (unsigned long long) sx.stx_mnt_id);
    machine_put("proc/self", "mountinfo", line);
    assert_int_equal(hr_io_disks(disks, machine_root, machine_file()), 1);
    assert_string_equal(disks[0].name, "nvme0n1");
    snprintf(line, sizeof(line), "%llu 1 0:29 / / rw - overlay overlay rw\n",
             (unsigned long long) sx.stx_mnt_id);
    machine_put("proc/self", "mountinfo", line);
    assert_int_equal(hr_io_disks(disks, machine_root, machine_file()), 0);
#else
    (void) disks;
    (void) line;
    skip();
#endif
}

static void test_no_sysfs(void **state)
{
    (void) state;
    machine_new();
    ask_disks(NULL);
    assert_found("disk", HR_FINDING_MISSING, "names no disk", "mount -t sysfs");
    machine_put("sys/dev/block", "9999:9999", ""); /* there, but of other disks */
    ask_disks(NULL);
    assert_found("disk", HR_FINDING_MISSING, "names no disk", "");
    assert_null(strstr(found_first("disk")->remedy, "mount -t sysfs"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nvme),
        cmocka_unit_test(test_narrow_link),
        cmocka_unit_test(test_nvme_of_several_ways),
        cmocka_unit_test(test_spinning_disk),
        cmocka_unit_test(test_virtual_disk),
        cmocka_unit_test(test_volume_of_two_disks),
        cmocka_unit_test(test_by_mount),
        cmocka_unit_test(test_no_sysfs),
    };

    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
