/* SPDX-License-Identifier: Apache-2.0 */
/* doctor_io.c -- backends, O_DIRECT, locked memory, huge pages: what the trial showed, and where it
 * failed, which setting is the likely cause. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "engine/doctor.h"

enum { REMEDY_BYTES = 256, REASON_BYTES = 128 };

static const struct hr_io_backend_trial *find(const struct hr_io_trial *trial, const char *name)
{
    for (uint32_t i = 0; i < trial->n_backends; i++)
        if (strcmp(trial->backends[i].name, name) == 0)
            return &trial->backends[i];
    return NULL;
}

/* ---- backends ------------------------------------------------------------------------ */

static const char *uring_remedy(const struct hr_doctor *d, const struct hr_io_backend_trial *uring)
{
    if (!uring)
        return "sudo apt-get install liburing-dev && meson setup --reconfigure build "
               "-During=enabled && ninja -C build";
    switch (uring->why_not.code) {
    case -EPERM:
    case -EACCES:
        if (hr_sys_number(0, "%s/proc/sys/kernel/io_uring_disabled", d->root) > 0)
            return "sudo sysctl kernel.io_uring_disabled=0";
        return "docker run --security-opt seccomp=unconfined IMAGE  # a seccomp filter forbids it";
    case -ENOSYS:
        return HR_NO_COMMAND "a kernel of Linux 5.11 or later with CONFIG_IO_URING=y is needed";
    case -ENOMEM:
        return "sudo prlimit --pid $$ --memlock=unlimited  # of this shell";
    default:
        return HR_NO_COMMAND "neither a limit nor a setting is known to cause this";
    }
}

static void say_uring(const struct hr_doctor *d, const struct hr_io_backend_trial *uring)
{
    char reason[REASON_BYTES];

    if (!uring)
        hr_doctor_say(d, HR_FINDING_MISSING, "io_uring", uring_remedy(d, uring),
                      "this build is without it");
    else if (uring->why_not.code == 0)
        hr_doctor_say(d, HR_FINDING_OK, "io_uring", NULL, "works, %d reads in flight",
                      HR_DEPTH_DEFAULT);
    else
        hr_doctor_say(d, HR_FINDING_MISSING, "io_uring", uring_remedy(d, uring),
                      "does not work here: %s",
                      hr_strerror(uring->why_not.code, reason, sizeof(reason)));
}

/* Which of them runs will use. */
static void say_backend(const struct hr_doctor *d, const struct hr_io_trial *trial,
                        const char *no_file)
{
    const struct hr_io_backend_trial *uring = find(trial, "io_uring"), *first = NULL;
    const char *how = no_file ? "" : trial->not_direct ? ", buffered" : ", direct";
    const char *forced = hr_env("HEADRACE_IO");
    char printable[64];

    if (forced && strcmp(forced, "auto") != 0) {
        const struct hr_io_backend_trial *named = find(trial, forced);
        const bool works = named && named->why_not.code == 0;

        hr_printable(forced, printable, sizeof(printable));
        hr_doctor_say(d,
                      !works           ? HR_FINDING_MISSING
                      : named == uring ? HR_FINDING_OK
                                       : HR_FINDING_SLOW,
                      "backend", works && named == uring ? NULL : "unset HEADRACE_IO",
                      "HEADRACE_IO=%s%s", printable,
                      works   ? ""
                      : named ? ", which does not work here"
                              : ", which is for tests or not in this build");
        return;
    }
    for (uint32_t i = 0; i < trial->n_backends && !first; i++)
        if (trial->backends[i].why_not.code == 0)
            first = &trial->backends[i];
    if (!first)
        hr_doctor_say(d, HR_FINDING_MISSING, "backend", uring_remedy(d, uring),
                      "none works; the last one, %s: %.300s",
                      trial->backends[trial->n_backends - 1].name,
                      trial->backends[trial->n_backends - 1].why_not.message);
    else
        hr_doctor_say(d, first == uring ? HR_FINDING_OK : HR_FINDING_SLOW, "backend",
                      first == uring ? NULL : uring_remedy(d, uring), "%s%s", first->name, how);
}

/* ---- direct reads -------------------------------------------------------------------- */

static void say_direct(const struct hr_doctor *d, const struct hr_io_trial *trial,
                       const char *no_file)
{
    if (no_file) {
        hr_doctor_say(d, HR_FINDING_MISSING, "o_direct", "headrace doctor MODEL",
                      "no file here to try it with: %s", no_file);
        return;
    }
    if (trial->not_direct) {
        hr_doctor_say(d, HR_FINDING_MISSING, "o_direct", HR_MOVE_MODEL, "not on this file: %s",
                      trial->not_direct);
        return;
    }
    hr_doctor_say(d, HR_FINDING_OK, "o_direct", NULL, "works");
    hr_doctor_say(d, HR_FINDING_OK, "alignment", NULL, "%u bytes of direct reads",
                  trial->align_bytes);
}

/* ---- memory of the ring --------------------------------------------------------------- */

static void say_memlock(const struct hr_doctor *d, const struct hr_io_trial *trial)
{
    static const char remedy[] =
        "sudo prlimit --pid $$ --memlock=unlimited  # of this shell; for good: ulimits of the "
        "container, or /etc/security/limits.conf";
    const struct hr_io_backend_trial *uring = find(trial, "io_uring");
    const bool uring_works = uring && uring->why_not.code == 0;
    struct rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};
    char text[64] = "no limit";

    getrlimit(RLIMIT_MEMLOCK, &limit);
    if (limit.rlim_max != RLIM_INFINITY)
        snprintf(text, sizeof(text), "limit %llu KiB",
                 (unsigned long long) (limit.rlim_max / HR_KIB));
    if (uring_works && uring->pinned_bytes == trial->ring_bytes)
        hr_doctor_say(d, HR_FINDING_OK, "memlock", NULL, "%s; a ring of %llu MiB was registered",
                      text, hr_mib(trial->ring_bytes));
    else if (uring_works || limit.rlim_max < HR_RING_BYTES_DEFAULT)
        hr_doctor_say(d, HR_FINDING_SLOW, "memlock", remedy,
                      "%s; a ring of %llu MiB is not registered, and reads cost more CPU time",
                      text, hr_mib(trial->ring_bytes));
    else
        hr_doctor_say(d, HR_FINDING_OK, "memlock", NULL, "%s", text);
}

/* The setting of transparent huge pages, the one in brackets. */
static const char *huge_setting(const struct hr_doctor *d, char *buf, size_t buf_bytes)
{
    char line[128];

    if (!hr_sys_line(line, sizeof(line), "%s/sys/kernel/mm/transparent_hugepage/enabled", d->root))
        return NULL;
    const char *bracket = strchr(line, '[');

    snprintf(buf, buf_bytes, "%.*s", bracket ? (int) strcspn(bracket + 1, "]") : 0,
             bracket ? bracket + 1 : line);
    return buf;
}

bool hr_doctor_has_huge(const struct hr_io_trial *trial)
{
    return trial->huge_bytes >= trial->ring_bytes - trial->ring_bytes / 10;
}

const char *hr_doctor_huge_remedy(const struct hr_doctor *d, char *buf, size_t buf_bytes)
{
    char setting[32];

    if (!huge_setting(d, setting, sizeof(setting)))
        snprintf(buf, buf_bytes, "sudo sysctl vm.nr_hugepages=%d", HR_RING_BYTES_DEFAULT >> 21);
    else if (strcmp(setting, "never") == 0)
        snprintf(buf, buf_bytes,
                 "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled");
    else
        snprintf(buf, buf_bytes, "echo 1 | sudo tee /proc/sys/vm/compact_memory");
    return buf;
}

static void say_huge_pages(const struct hr_doctor *d, const struct hr_io_trial *trial)
{
    char setting[32] = "", remedy[REMEDY_BYTES], meminfo[512];
    const bool has = hr_doctor_has_huge(trial);
    const char *said = huge_setting(d, setting, sizeof(setting));

    snprintf(meminfo, sizeof(meminfo), "%s/proc/meminfo", d->root);
    hr_doctor_say(d, has ? HR_FINDING_OK : HR_FINDING_SLOW, "huge_pages",
                  has ? NULL : hr_doctor_huge_remedy(d, remedy, sizeof(remedy)),
                  "%llu of a ring's %llu MiB; transparent ones: %s; reserved and free: %llu of 2 "
                  "MiB",
                  hr_mib(trial->huge_bytes), hr_mib(trial->ring_bytes), said ? said : "not there",
                  (unsigned long long) hr_sys_field(0, meminfo, "HugePages_Free:"));
}

void hr_doctor_io(const struct hr_doctor *d, const struct hr_io_trial *trial, const char *no_file)
{
    say_uring(d, find(trial, "io_uring"));
    say_backend(d, trial, no_file);
    say_direct(d, trial, no_file);
    say_memlock(d, trial);
    say_huge_pages(d, trial);
}
