/* SPDX-License-Identifier: Apache-2.0 */
/* sysfs.c -- single values out of /proc and /sys. */
#include <ctype.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/common.h"

static bool first_line(char *buf, size_t buf_bytes, const char *path)
{
    FILE *f = fopen(path, "re");

    buf[0] = '\0';
    if (!f)
        return false;
    if (!fgets(buf, (int) buf_bytes, f))
        buf[0] = '\0';
    fclose(f);

    size_t n = strlen(buf);

    while (n > 0 && isspace((unsigned char) buf[n - 1]))
        buf[--n] = '\0';
    const size_t blanks = strspn(buf, " \t");

    memmove(buf, buf + blanks, n + 1 - blanks);
    return buf[0] != '\0';
}

bool hr_sys_line(char *buf, size_t buf_bytes, const char *format, ...)
{
    char path[PATH_MAX];
    va_list ap;

    va_start(ap, format);
    vsnprintf(path, sizeof(path), format, ap);
    va_end(ap);
    return first_line(buf, buf_bytes, path);
}

uint64_t hr_sys_number(uint64_t unknown, const char *format, ...)
{
    char path[PATH_MAX], text[64], *end;
    va_list ap;

    va_start(ap, format);
    vsnprintf(path, sizeof(path), format, ap);
    va_end(ap);
    if (!first_line(text, sizeof(text), path))
        return unknown;
    const uint64_t value = strtoull(text, &end, 10);

    return end == text ? unknown : value;
}

void hr_sys_fields(const char *path, const char *const *fields, uint64_t *values, size_t n)
{
    FILE *f = fopen(path, "re");
    char line[512];

    while (f && fgets(line, sizeof(line), f))
        for (size_t i = 0; i < n; i++) {
            const size_t len = strlen(fields[i]);

            if (strncmp(line, fields[i], len) == 0 && isspace((unsigned char) line[len]))
                values[i] = strtoull(line + len, NULL, 10);
        }
    if (f)
        fclose(f);
}

uint64_t hr_sys_field(uint64_t unknown, const char *path, const char *field)
{
    uint64_t value = unknown;

    hr_sys_fields(path, &field, &value, 1);
    return value;
}

/* "16.0 GT/s PCIe"; where nothing is plugged in "Unknown" and 0 or 255 lanes. */
static double rate(const char *folder, const char *name)
{
    char text[64];

    return hr_sys_line(text, sizeof(text), "%s/%s", folder, name) ? strtod(text, NULL) : 0.0;
}

bool hr_pci_link_read(struct hr_pci_link *ret_link, const char *folder)
{
    const char *slash = strrchr(folder, '/');
    struct hr_pci_link link = {
        .gtps = rate(folder, "current_link_speed"),
        .gtps_max = rate(folder, "max_link_speed"),
        .width = (unsigned) hr_sys_number(0, "%s/current_link_width", folder),
        .width_max = (unsigned) hr_sys_number(0, "%s/max_link_width", folder),
    };

    if (!(link.gtps > 0) || !(link.gtps_max > 0) || link.width - 1 > 63 || link.width_max - 1 > 63)
        return false;
    snprintf(link.address, sizeof(link.address), "%s", slash ? slash + 1 : folder);
    *ret_link = link;
    return true;
}

double hr_pci_link_gbps(double gtps, unsigned width)
{
    return gtps * width / 8 * (gtps > 5.5 ? 128.0 / 130.0 : 8.0 / 10.0);
}
