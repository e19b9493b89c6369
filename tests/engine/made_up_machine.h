/* SPDX-License-Identifier: Apache-2.0 */
/* made_up_machine.h -- for the tests of hr_doctor(): a /proc and /sys of their own, in which the
 * disk of a real file is whatever the test says; and what was found on it.
 *
 * Include after cmocka.h. */
#ifndef HR_MADE_UP_MACHINE_H
#define HR_MADE_UP_MACHINE_H

#include "engine/doctor.h"
#include "scratch.h"

/* ---- the machine: at first there is nothing, not even /proc ------------------------------- */

extern char machine_root[512];

void machine_new(void);
/* A file of it. */
void machine_put(const char *folder, const char *name, const char *text);
void machine_put_link(const char *folder, const char *name, const char *target);
/* A queue with the settings of a good NVMe drive. */
void machine_put_queue(const char *folder);
/* A link of at best 16 GT/s, 4 lanes; at node 1. */
void machine_put_pci(const char *folder, const char *speed, const char *width);

/* A file in the scratch folder, and making the block device at `folder` its disk. */
int machine_file(void);
void machine_set_disk(const char *folder);

#define PCI_FOLDER  "sys/devices/pci0000:00/0000:00:01.1/0000:01:00.0"
#define NVME_FOLDER PCI_FOLDER "/nvme/nvme0/nvme0n1"
/* A new one whose disk is a partition of that drive. */
void machine_new_nvme(const char *speed, const char *width);

/* A trial in which all was well. */
struct hr_io_trial machine_trial(void);

/* ---- what was found ------------------------------------------------------------------------- */

struct found {
    enum hr_finding_state state;
    char name[32], found[512], remedy[256];
};

extern unsigned n_found;
void found_keep(void *user, const struct hr_finding *finding);
/* A doctor for the machine who has found nothing yet. */
struct hr_doctor machine_doctor(void);
/* The first finding of a name; fails the test where there is none. */
const struct found *found_first(const char *name);
bool found_is_there(const char *name);
void found_check(int line, const char *name, enum hr_finding_state state, const char *text,
                 const char *remedy);

/* `state`, and words in what was found and in the remedy. */
#define assert_found(name, state, text, remedy) found_check(__LINE__, name, state, text, remedy)

#endif /* HR_MADE_UP_MACHINE_H */
