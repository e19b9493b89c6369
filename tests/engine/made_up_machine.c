/* SPDX-License-Identifier: Apache-2.0 */
/* made_up_machine.c -- see made_up_machine.h. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cmocka.h>

#include "made_up_machine.h"

/* ---- what was found --------------------------------------------------------------------- */

enum { FOUND_MAX = 96 };

unsigned n_found;
static struct found found[FOUND_MAX];

/* A remedy exactly where it is not ok; lines without control bytes. */
void found_keep(void *user, const struct hr_finding *finding)
{
    struct found *f = &found[n_found++];

    (void) user;
    assert_true(n_found < FOUND_MAX);
    assert_int_equal(finding->state == HR_FINDING_OK, finding->remedy == NULL);
    assert_null(strpbrk(finding->found, "\n\r\t"));
    assert_true(finding->found[0] != '\0');
    f->state = finding->state;
    snprintf(f->name, sizeof(f->name), "%s", finding->name);
    snprintf(f->found, sizeof(f->found), "%s", finding->found);
    snprintf(f->remedy, sizeof(f->remedy), "%s", finding->remedy ? finding->remedy : "");
}

const struct found *found_first(const char *name)
{
    for (unsigned i = 0; i < n_found; i++)
        if (strcmp(found[i].name, name) == 0)
            return &found[i];
    fail_msg("nothing was found of %s", name);
    return NULL;
}

bool found_is_there(const char *name)
{
    for (unsigned i = 0; i < n_found; i++)
        if (strcmp(found[i].name, name) == 0)
            return true;
    return false;
}

void found_check(int line, const char *name, enum hr_finding_state state, const char *text,
                 const char *remedy)
{
    const struct found *f = found_first(name);

    if (f->state != state || !strstr(f->found, text) || !strstr(f->remedy, remedy))
        fail_msg("line %d: %s is %s: %s; %s", line, f->name, hr_finding_state_name(f->state),
                 f->found, f->remedy);
}

/* ---- machines ---------------------------------------------------------------------------- */

char machine_root[512];

struct hr_doctor machine_doctor(void)
{
    n_found = 0;
    return (struct hr_doctor){.root = machine_root, .fn = found_keep};
}

void machine_new(void)
{
    static unsigned n;

    snprintf(machine_root, sizeof(machine_root), "%s", scratch("machine%u", n++));
    scratch_folder(machine_root);
}

static void make_folders(char *path)
{
    for (char *slash = strchr(path + strlen(machine_root) + 1, '/'); slash;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(path, 0777) < 0)
            assert_int_equal(errno, EEXIST);
        *slash = '/';
    }
}

void machine_put(const char *folder, const char *name, const char *text)
{
    char path[2048];

    snprintf(path, sizeof(path), "%s/%s/%s", machine_root, folder, name);
    make_folders(path);
    scratch_text(path, text);
}

void machine_put_link(const char *folder, const char *name, const char *target)
{
    char path[2048], full[2048];

    snprintf(path, sizeof(path), "%s/%s/%s", machine_root, folder, name);
    make_folders(path);
    snprintf(full, sizeof(full), "%s/%s", machine_root, target);
    assert_int_equal(symlink(full, path), 0);
}

void machine_put_queue(const char *folder)
{
    char queue[512];

    snprintf(queue, sizeof(queue), "%s/queue", folder);
    machine_put(queue, "scheduler", "[none] mq-deadline kyber bfq \n");
    machine_put(queue, "nr_requests", "1023\n");
    machine_put(queue, "max_segments", "512\n");
    machine_put(queue, "max_sectors_kb", "2048\n");
    machine_put(queue, "max_hw_sectors_kb", "2048\n");
    machine_put(queue, "read_ahead_kb", "128\n");
    machine_put(queue, "rotational", "0\n");
}

void machine_put_pci(const char *folder, const char *speed, const char *width)
{
    machine_put(folder, "current_link_speed", speed);
    machine_put(folder, "current_link_width", width);
    machine_put(folder, "max_link_speed", "16.0 GT/s PCIe\n");
    machine_put(folder, "max_link_width", "4\n");
    machine_put(folder, "numa_node", "1\n");
}

int machine_file(void)
{
    static int fd = -1;

    if (fd < 0) {
        scratch_text(scratch("any"), "any");
        fd = open(scratch("any"), O_RDONLY | O_CLOEXEC);
    }
    assert_true(fd >= 0);
    return fd;
}

void machine_set_disk(const char *folder)
{
    struct stat st;
    char name[64];

    assert_int_equal(fstat(machine_file(), &st), 0);
    snprintf(name, sizeof(name), "%u:%u", major(st.st_dev), minor(st.st_dev));
    machine_put_link("sys/dev/block", name, folder);
}

struct hr_io_trial machine_trial(void)
{
    struct hr_io_trial trial = {
        .ring_bytes = HR_RING_BYTES_DEFAULT,
        .huge_bytes = HR_RING_BYTES_DEFAULT,
        .align_bytes = 4096,
        .n_backends = 3,
    };

    trial.backends[0] =
        (struct hr_io_backend_trial){.name = "io_uring", .pinned_bytes = trial.ring_bytes};
    trial.backends[1].name = "libaio";
    trial.backends[2].name = "pread";
    return trial;
}

void machine_new_nvme(const char *speed, const char *width)
{
    machine_new();
    machine_put_queue(NVME_FOLDER);
    machine_put(NVME_FOLDER "/device", "model", "Fast Drive 2TB   \n");
    machine_put(NVME_FOLDER "/nvme0n1p2", "partition", "2\n");
    machine_put_pci(PCI_FOLDER, speed, width);
    machine_set_disk(NVME_FOLDER "/nvme0n1p2");
}
