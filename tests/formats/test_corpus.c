/* SPDX-License-Identifier: Apache-2.0 */
/* test_corpus.c -- every file that make_corpus.py writes gets the verdict that it wrote. */
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "formats/formats.h"
#include "tests/formats/read_file.h"

static const char *corpus_dir;

/* @return 0 with *ret_n the tensors of the file, or the parser's error */
static int parse_header(const uint8_t *data, size_t bytes, uint32_t *ret_n, struct hr_error *err)
{
    const uint8_t none[8] = {0};
    struct hr_header header;
    uint64_t json_bytes;
    int r = hr_header_length(bytes < 8 ? none : data, bytes, "file", &json_bytes, err);

    if (r == 0)
        r = hr_header_parse(&header, (const char *) data + 8, (size_t) json_bytes, bytes, "file",
                            err);
    if (r < 0)
        return r;
    *ret_n = header.n_entries;
    hr_header_uninit(&header);
    return 0;
}

static int parse_index(const uint8_t *data, size_t bytes, uint32_t *ret_n, struct hr_error *err)
{
    struct hr_index index;
    const int r = hr_index_parse(&index, (const char *) data, bytes, "file", err);

    if (r < 0)
        return r;
    *ret_n = index.n_entries;
    hr_index_uninit(&index);
    return 0;
}

static int parse_config(const uint8_t *data, size_t bytes, uint32_t *ret_n, struct hr_error *err)
{
    struct hr_config config;

    *ret_n = 0;
    return hr_config_parse(&config, (const char *) data, bytes, "file", err);
}

static int parse_manifest(const uint8_t *data, size_t bytes, uint32_t *ret_n, struct hr_error *err)
{
    struct hr_manifest manifest;
    const int r = hr_manifest_parse(&manifest, (const char *) data, bytes, "file", err);

    if (r < 0)
        return r;
    *ret_n = manifest.n_tensors;
    hr_manifest_uninit(&manifest);
    return 0;
}

static int verdict_code(const char *verdict)
{
    if (strcmp(verdict, "EBADMSG") == 0)
        return -EBADMSG;
    if (strcmp(verdict, "EOPNOTSUPP") == 0)
        return -EOPNOTSUPP;
    assert_string_equal(verdict, "ok");
    return 0;
}

/* @return false, having said so, when the parser thinks otherwise */
static bool check_file(const char *name, const char *verdict, const char *detail)
{
    char path[PATH_MAX];
    struct hr_error err = {0};
    const int expected = verdict_code(verdict);
    uint32_t n = 0;
    uint8_t *data;
    size_t bytes;
    int r;

    snprintf(path, sizeof(path), "%s/%s", corpus_dir, name);
    data = read_file(path, &bytes);
    assert_non_null(data);
    if (strncmp(name, "header/", 7) == 0)
        r = parse_header(data, bytes, &n, &err);
    else if (strncmp(name, "index/", 6) == 0)
        r = parse_index(data, bytes, &n, &err);
    else if (strncmp(name, "manifest/", 9) == 0)
        r = parse_manifest(data, bytes, &n, &err);
    else
        r = parse_config(data, bytes, &n, &err);
    free(data);
    if (r == expected && r == 0 && n == strtoul(detail, NULL, 10))
        return true;
    if (r == expected && r < 0 && strstr(err.message, detail) && !strchr(err.message, '\n'))
        return true;
    print_error("%s: expected %s \"%s\"; got %d, n = %u, \"%s\"\n", name, verdict, detail, r, n,
                err.message);
    return false;
}

static void test_verdicts(void **state)
{
    char path[PATH_MAX], line[1024];
    unsigned n_good = 0, n_bad = 0, n_wrong = 0;
    FILE *f;

    (void) state;
    snprintf(path, sizeof(path), "%s/verdicts.txt", corpus_dir);
    f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof(line), f)) {
        char *rest = line;
        const char *name = strsep(&rest, "\t");
        const char *verdict = strsep(&rest, "\t");
        const char *detail = strsep(&rest, "\n");

        assert_non_null(detail);
        n_wrong += !check_file(name, verdict, detail);
        if (strcmp(verdict, "ok") == 0)
            n_good++;
        else
            n_bad++;
    }
    fclose(f);
    print_message("%u valid, %u hostile, %u wrong\n", n_good, n_bad, n_wrong);
    assert_true(n_good >= 30 && n_bad >= 100);
    assert_int_equal(n_wrong, 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_verdicts)};

    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER (written by make_corpus.py)\n", argv[0]);
        return 2;
    }
    corpus_dir = argv[1];
    return cmocka_run_group_tests_name("corpus", tests, NULL, NULL);
}
