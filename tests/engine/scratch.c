/* SPDX-License-Identifier: Apache-2.0 */
/* scratch.c -- see scratch.h. */
#include <dirent.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "formats/formats.h"
#include "scratch.h"

static char root[256];
static char lines[8192];

static void keep_line(void *user, enum hr_log_level level, const char *message)
{
    const size_t len = strlen(lines);

    (void) user;
    (void) level;
    snprintf(lines + len, sizeof(lines) - len, "%s\n", message);
}

const char *scratch_log(void)
{
    static char copy[sizeof(lines)];

    memcpy(copy, lines, sizeof(lines));
    lines[0] = '\0';
    return copy;
}

int scratch_setup(void **state)
{
    const char *base = getenv("TMPDIR");

    (void) state;
    snprintf(root, sizeof(root), "%s/headrace-XXXXXX", base && *base ? base : "/tmp");
    hr_log_set(keep_line, NULL, HR_LOG_INFO);
    return mkdtemp(root) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void) st;
    (void) type;
    (void) ftw;
    return remove(path);
}

int scratch_teardown(void **state)
{
    (void) state;
    return nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

const char *scratch(const char *format, ...)
{
    static char paths[16][512];
    static unsigned next;
    char *path = paths[next++ % HR_ARRAY_SIZE(paths)];
    int len = snprintf(path, sizeof(paths[0]), "%s/", root);
    va_list ap;

    va_start(ap, format);
    vsnprintf(path + len, sizeof(paths[0]) - (size_t) len, format, ap);
    va_end(ap);
    return path;
}

const char *scratch_list(const char *path)
{
    static char names[4096];
    struct dirent **entries;
    size_t len = 0;
    const int n = scandir(path, &entries, NULL, alphasort);

    assert_true(n >= 0);
    names[0] = '\0';
    for (int i = 0; i < n; i++) {
        if (strcmp(entries[i]->d_name, ".") != 0 && strcmp(entries[i]->d_name, "..") != 0)
            len += (size_t) snprintf(names + len, sizeof(names) - len, "%s ", entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    return names;
}

void scratch_folder(const char *path)
{
    assert_int_equal(mkdir(path, 0777), 0);
}

static void write_bytes(const char *path, const void *bytes, size_t n)
{
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

void scratch_text(const char *path, const char *text)
{
    write_bytes(path, text, strlen(text));
}

void scratch_weights(const char *path, const char *names)
{
    enum { N_MAX = 32 };
    static const uint64_t shape[] = {2};
    struct hr_entry entries[N_MAX];
    char copy[1024], *header, *file;
    size_t header_bytes;
    uint32_t n = 0;

    snprintf(copy, sizeof(copy), "%s", names);
    for (char *save, *name = strtok_r(copy, " ", &save); name; name = strtok_r(NULL, " ", &save)) {
        assert_true(n < N_MAX);
        entries[n++] =
            (struct hr_entry){.name = name, .dtype = HR_DTYPE_F32, .rank = 1, .shape = shape};
    }
    assert_works(hr_header_build(&header, &header_bytes, entries, n, 0, &err));
    file = calloc(1, header_bytes + n * 2 * sizeof(float));
    assert_non_null(file);
    memcpy(file, header, header_bytes);
    for (uint32_t k = 0; k < n; k++) {
        const float values[] = {(float) k, -(float) k};

        memcpy(file + header_bytes + k * sizeof(values), values, sizeof(values));
    }
    write_bytes(path, file, header_bytes + n * 2 * sizeof(float));
    free(file);
    free(header);
}
