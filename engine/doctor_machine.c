/* SPDX-License-Identifier: Apache-2.0 */
/* doctor_machine.c -- kernel, memory and the limits on it, NUMA, the CPU. */
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "engine/doctor.h"

/* A forward at 256 x 256 takes 240 MB; at 1024 x 1024, 430. */
#define ROOM_BYTES_MIN    (256 * HR_MIB)
#define ROOM_BYTES_PLENTY (768 * HR_MIB)

void hr_doctor_kernel(const struct hr_doctor *d)
{
    struct utsname uts;
    char release[96], machine[96];

    if (uname(&uts) < 0)
        return;
    hr_doctor_say(d, HR_FINDING_OK, "kernel", NULL, "%s %s, %s", uts.sysname,
                  hr_printable(uts.release, release, sizeof(release)),
                  hr_printable(uts.machine, machine, sizeof(machine)));
}

/* ---- memory ----------------------------------------------------------------------------- */

void hr_doctor_ram(const struct hr_doctor *d, const struct hr_room *room)
{
    const bool limited =
        room->limit_bytes != UINT64_MAX && room->room_bytes != room->available_bytes;
    const char *remedy = limited
                             ? "docker update --memory 2g --memory-swap 2g CONTAINER  # or "
                               "MemoryMax= of the unit"
                             : "ps -eo rss,pid,comm --sort=-rss | head  # what takes the memory";
    char group[96] = "";

    if (room->room_bytes == UINT64_MAX) {
        hr_doctor_say(d, HR_FINDING_MISSING, "free_ram",
                      "sudo mount -t proc proc /proc  # without it, give --ram to each run",
                      "/proc does not say");
        return;
    }
    if (room->limit_bytes != UINT64_MAX)
        snprintf(group, sizeof(group), "; the control group may have %.1f GB and holds %.1f",
                 (double) room->limit_bytes / 1e9, (double) room->used_bytes / 1e9);
    hr_doctor_say(d,
                  room->room_bytes >= ROOM_BYTES_PLENTY ? HR_FINDING_OK
                  : room->room_bytes >= ROOM_BYTES_MIN  ? HR_FINDING_SLOW
                                                        : HR_FINDING_MISSING,
                  "free_ram", room->room_bytes >= ROOM_BYTES_PLENTY ? NULL : remedy,
                  "%.2f GB of %.1f%s", (double) room->available_bytes / 1e9,
                  (double) room->total_bytes / 1e9, group);
}

/* ---- NUMA ------------------------------------------------------------------------------- */

/* How many CPUs of a list such as "0-3,8" this process may run on; 1 where it cannot be said. */
static unsigned n_ours(const char *list)
{
    cpu_set_t cpus;
    unsigned n = 0;

    if (sched_getaffinity(0, sizeof(cpus), &cpus) < 0)
        return 1;
    for (const char *at = list; *at;) {
        char *end;
        const unsigned long first = strtoul(at, &end, 10);
        unsigned long last = first;

        if (end == at)
            break;
        if (*end == '-')
            last = strtoul(end + 1, &end, 10);
        for (unsigned long cpu = first; cpu <= last && cpu < CPU_SETSIZE; cpu++)
            n += CPU_ISSET(cpu, &cpus) != 0;
        at = *end == ',' ? end + 1 : end;
    }
    return n;
}

void hr_doctor_numa(const struct hr_doctor *d, int disk_node)
{
    enum { NODES = 64, LIST_BYTES = 512 };
    char list[LIST_BYTES], path[512], where[64] = "", remedy[LIST_BYTES + 64];
    unsigned n_nodes = 0;
    bool far = false;

    for (int node = 0; node < NODES; node++) {
        snprintf(path, sizeof(path), "%s/sys/devices/system/node/node%d", d->root, node);
        n_nodes += access(path, F_OK) == 0;
    }
    if (n_nodes > 1 && disk_node >= 0) {
        snprintf(where, sizeof(where), ", the disk at node %d", disk_node);
        far = hr_sys_line(list, sizeof(list), "%s/sys/devices/system/node/node%d/cpulist", d->root,
                          disk_node) &&
              n_ours(list) == 0;
    }
    if (far)
        snprintf(remedy, sizeof(remedy), "taskset -cp %s $$  # this shell beside the disk", list);
    hr_doctor_say(d, far ? HR_FINDING_SLOW : HR_FINDING_OK, "numa", far ? remedy : NULL,
                  "%u node%s%s%s", n_nodes ? n_nodes : 1, n_nodes > 1 ? "s" : "", where,
                  far ? ", none of whose CPUs this process may use" : "");
}

/* ---- CPU -------------------------------------------------------------------------------- */

/* What stands behind "name : " in /proc/cpuinfo, of the first CPU. free() it; NULL: nothing. */
static char *cpuinfo(const char *root, const char *name)
{
    char path[512], *line = NULL, *value = NULL;
    const size_t n = strlen(name);
    size_t line_bytes = 0;

    snprintf(path, sizeof(path), "%s/proc/cpuinfo", root);
    FILE *f = fopen(path, "re");

    while (f && !value && getline(&line, &line_bytes, f) > 0) {
        const char *colon = strchr(line, ':');

        if (strncmp(line, name, n) != 0 || !colon || strspn(line + n, " \t") + line + n != colon)
            continue;
        line[strcspn(line, "\n")] = '\0';
        value = strdup(colon + 1 + (colon[1] == ' '));
    }
    free(line);
    if (f)
        fclose(f);
    return value;
}

static bool has_word(const char *words, const char *word)
{
    const size_t n = strlen(word);

    for (const char *at = words; at && (at = strstr(at, word)); at += n)
        if ((at == words || at[-1] == ' ') && (at[n] == ' ' || at[n] == '\0'))
            return true;
    return false;
}

void hr_doctor_cpu(const struct hr_doctor *d)
{
    /* As /proc/cpuinfo of x86-64 and, from "asimd" on, of AArch64 calls them. */
    static const struct {
        const char *flag;
        bool multiplies_bf16;
    } features[] = {
        {"avx2", false},    {"avx512f", false}, {"avx512_bf16", true},
        {"amx_bf16", true}, {"asimd", false},   {"bf16", true},
    };
    static const char remedy[] =
        HR_NO_COMMAND "a CPU with AVX512-BF16 or AMX is needed; in a virtual machine, one that "
                      "passes them on";
    char *model = cpuinfo(d->root, "model name"), *flags = cpuinfo(d->root, "flags");
    char printable[96], list[128] = "";
    bool has_bf16 = false;
    size_t len = 0;

    if (!flags)
        flags = cpuinfo(d->root, "Features");
    for (size_t i = 0; i < HR_ARRAY_SIZE(features); i++) {
        if (!has_word(flags, features[i].flag))
            continue;
        has_bf16 = has_bf16 || features[i].multiplies_bf16;
        len += (size_t) snprintf(list + len, sizeof(list) - len, " %s", features[i].flag);
    }
    hr_printable(model ? model : "unknown", printable, sizeof(printable));
    if (!flags)
        hr_doctor_say(d, HR_FINDING_MISSING, "cpu", "sudo mount -t proc proc /proc",
                      "/proc does not say");
    else
        hr_doctor_say(d, has_bf16 ? HR_FINDING_OK : HR_FINDING_SLOW, "cpu",
                      has_bf16 ? NULL : remedy, "%s, %u of its CPUs for this process:%s%s",
                      printable, hr_n_cpus(), len ? list : " no vector instructions that help",
                      has_bf16 ? "" : "; products of bf16 are not in hardware");
    free(model);
    free(flags);
}
