/* SPDX-License-Identifier: Apache-2.0 */
/* room.c -- how much memory this process could still take: of the machine, and within the limits of
 * its control groups, which a container's memory limit is. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/common.h"

#define NO_LIMIT UINT64_MAX

/* Files of a control group, by version of the interface. */
static const struct group_files {
    const char *folder, *limit, *used, *cached[2]; /* what is cached of files can be had back */
} group_v1 = {"/sys/fs/cgroup/memory",
              "memory.limit_in_bytes",
              "memory.usage_in_bytes",
              {"total_inactive_file", "total_active_file"}},
  group_v2 = {"/sys/fs/cgroup", "memory.max", "memory.current", {"inactive_file", "active_file"}};

/* What is left of a limit; all of UINT64_MAX where there is none. */
static uint64_t left_of(uint64_t limit_bytes, uint64_t used_bytes)
{
    return limit_bytes > used_bytes ? limit_bytes - used_bytes : 0;
}

static void look_at_group(struct hr_room *room, const struct group_files *files, const char *path)
{
    const uint64_t limit = hr_sys_number(NO_LIMIT, "%s/%s", path, files->limit);
    uint64_t cached[2] = {0};
    char stat_path[PATH_MAX + 16];

    /* The first interface writes "no limit" as a large number. */
    if (limit == NO_LIMIT || (room->total_bytes > 0 && limit >= room->total_bytes))
        return;
    snprintf(stat_path, sizeof(stat_path), "%s/memory.stat", path);
    const uint64_t holds = hr_sys_number(0, "%s/%s", path, files->used);
    hr_sys_fields(stat_path, files->cached, cached, HR_ARRAY_SIZE(cached));
    const uint64_t used = left_of(holds, cached[0] + cached[1]);

    if (left_of(limit, used) < left_of(room->limit_bytes, room->used_bytes)) {
        room->limit_bytes = limit;
        room->used_bytes = used;
    }
}

/* The group and all above it. In a container the group's own folder may not be there: its root is
 * then mounted as the topmost. */
static void look_at_groups(struct hr_room *room, const char *root, const struct group_files *files,
                           const char *group)
{
    char path[PATH_MAX];
    const int base = snprintf(path, sizeof(path), "%s%s", root, files->folder);

    snprintf(path + base, sizeof(path) - (size_t) base, "%s", group);
    for (;;) {
        char *slash = strrchr(path, '/');

        look_at_group(room, files, path);
        if (slash < path + base)
            break;
        *slash = '\0';
    }
}

struct hr_room hr_room_read(const char *root)
{
    struct hr_room room = {.limit_bytes = NO_LIMIT, .room_bytes = UINT64_MAX};
    char path[512], line[PATH_MAX];

    snprintf(path, sizeof(path), "%s/proc/meminfo", root);
    room.available_bytes = hr_sys_field(0, path, "MemAvailable:") * HR_KIB;
    room.total_bytes = hr_sys_field(0, path, "MemTotal:") * HR_KIB;
    snprintf(path, sizeof(path), "%s/proc/self/cgroup", root);
    FILE *f = fopen(path, "re");

    while (f && fgets(line, sizeof(line), f)) { /* "4:memory:/group", "0::/group" */
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;

        if (!group)
            continue;
        *group++ = '\0';
        group[strcspn(group, "\n")] = '\0';
        if (strcmp(group, "/") == 0)
            group[0] = '\0';
        if (controllers[1] == '\0')
            look_at_groups(&room, root, &group_v2, group);
        else if (strstr(controllers + 1, "memory"))
            look_at_groups(&room, root, &group_v1, group);
    }
    if (f)
        fclose(f);
    if (room.available_bytes > 0)
        room.room_bytes = room.available_bytes;
    room.room_bytes = hr_min_u64(room.room_bytes, left_of(room.limit_bytes, room.used_bytes));
    return room;
}
