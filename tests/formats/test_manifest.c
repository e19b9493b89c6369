/* SPDX-License-Identifier: Apache-2.0 */
/* test_manifest.c -- manifests: what is written reads back, and each error has its words. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "formats/formats.h"

#define HASH   "\"0123456789abcdef0fedcba987654321\""
#define BEGIN  "{\"headrace_manifest\":1,\"hash\":\"xxh3-128\","
#define FILE_F "\"f.safetensors\":{\"size_bytes\":100,\"mtime_ns\":5,\"header\":" HASH "}"
#define FILES  "\"files\":{" FILE_F "},"
#define WEIGHT \
    "{\"file\":\"f.safetensors\",\"type\":\"F32 [2]\",\"range\":[60,68],\"data\":" HASH "}"

/* Of a copy that ends where the text does. */
static int parse(struct hr_manifest *ret_manifest, const char *json, struct hr_error *err)
{
    const size_t bytes = strlen(json);
    char *copy = malloc(bytes ? bytes : 1);
    int r;

    assert_non_null(copy);
    memcpy(copy, json, bytes);
    r = hr_manifest_parse(ret_manifest, copy, bytes, "man.json", err);
    free(copy);
    return r;
}

static void expect_bad(const char *json, const char *word)
{
    struct hr_manifest manifest = {.n_tensors = 77};
    struct hr_error err = {0};

    assert_int_equal(parse(&manifest, json, &err), -EBADMSG);
    assert_int_equal(manifest.n_tensors, 77);
    if (!strstr(err.message, "man.json: ") || !strstr(err.message, word))
        fail_msg("\"%s\" is not in: %s", word, err.message);
}

static void expect_bad_tensor(const char *tensor, const char *word)
{
    char json[1024];

    snprintf(json, sizeof(json), BEGIN FILES "\"tensors\":{\"w\":%s}}", tensor);
    expect_bad(json, word);
}

static void expect_bad_file(const char *file, const char *word)
{
    char json[1024];

    snprintf(json, sizeof(json), BEGIN "\"files\":{\"f\":%s},\"tensors\":{}}", file);
    expect_bad(json, word);
}

static void test_written_and_read(void **state)
{
    struct hr_manifest_file files[] = {{"a", 100, 7, {1, 2}}, {"b \"\xc3\xa9", 200, 0, {3, 4}}};
    struct hr_manifest_tensor tensors[] = {{"x", "BF16 [2, 3]", 1, 50, 12, {UINT64_MAX, 0}},
                                           {"y", "F32 []", 0, 90, 4, {5, 6}}};
    const struct hr_manifest manifest = {
        .files = files,
        .n_files = 2,
        .tensors = tensors,
        .n_tensors = 2,
        .has_config = true,
        .config = {7, 8},
    };
    struct hr_manifest got;
    struct hr_error err = {0};
    char *text;
    size_t bytes;

    (void) state;
    assert_int_equal(hr_manifest_build(&text, &bytes, &manifest, &err), 0);
    assert_int_equal(strlen(text), bytes);
    assert_int_equal(parse(&got, text, &err), 0);
    assert_int_equal(got.n_files, 2);
    assert_string_equal(got.files[1].name, files[1].name);
    assert_int_equal(got.files[0].mtime_ns, 7);
    assert_int_equal(got.files[1].header.low, 4);
    assert_int_equal(got.n_tensors, 2);
    assert_string_equal(got.tensors[0].type, "BF16 [2, 3]");
    assert_int_equal(got.tensors[0].file_idx, 1);
    assert_int_equal(got.tensors[0].begin_bytes, 50);
    assert_int_equal(got.tensors[0].size_bytes, 12);
    assert_true(got.tensors[0].hash.high == UINT64_MAX && got.tensors[0].hash.low == 0);
    assert_true(got.has_config && got.config.high == 7 && got.config.low == 8);
    hr_manifest_uninit(&got);
    free(text);
    tensors[0].name = "\xff";
    assert_int_equal(hr_manifest_build(&text, &bytes, &manifest, &err), -EINVAL);
    assert_non_null(strstr(err.message, "no UTF-8"));
}

static void test_any_order(void **state)
{
    struct hr_manifest got;
    struct hr_error err = {0};

    (void) state;
    assert_int_equal(parse(&got,
                           "{\"tensors\":{\"w\":" WEIGHT "},\"files\":{" FILE_F
                           "},\"hash\":\"xxh3-128\",\"headrace_manifest\":1}",
                           &err),
                     0);
    assert_int_equal(got.n_tensors, 1);
    assert_false(got.has_config);
    hr_manifest_uninit(&got);
}

static void test_form(void **state)
{
    (void) state;
    expect_bad("", "expected an object");
    expect_bad("[]", "expected an object");
    expect_bad("{}", "no manifest of checksums");
    expect_bad(BEGIN "\"files\":{}}", "no manifest of checksums");
    expect_bad(BEGIN "\"tensors\":{}}", "no manifest of checksums");
    expect_bad("{\"hash\":\"xxh3-128\",\"files\":{},\"tensors\":{}}", "no manifest of checksums");
    expect_bad("{\"headrace_manifest\":1,\"files\":{},\"tensors\":{}}", "no manifest of checksums");
    expect_bad("{\"headrace_manifest\":2}", "another version");
    expect_bad("{\"headrace_manifest\":\"1\"}", "another version");
    expect_bad("{\"headrace_manifest\":1,\"hash\":\"md5\"}", "another hash");
    expect_bad(BEGIN "\"more\":1}", "key \"more\": is not known");
    expect_bad(BEGIN "\"config\":\"12\"}", "key \"config\": expected a hash");
    expect_bad(BEGIN "\"files\":[],\"tensors\":{}}", "expected an object");
    expect_bad(BEGIN "\"files\":{},\"tensors\":[]}", "expected an object");
    expect_bad(BEGIN FILES "\"tensors\":{}", "expected , or }");
    expect_bad(BEGIN FILES FILES "\"tensors\":{}}", "key \"files\" appears twice");
    expect_bad(BEGIN "\"files\":{" FILE_F "," FILE_F "},\"tensors\":{}}", "appears twice");
    expect_bad(BEGIN FILES "\"tensors\":{\"w\":" WEIGHT ",\"\\u0077\":" WEIGHT "}}",
               "tensor \"w\" appears twice");
}

static void test_values(void **state)
{
    static const char *const files[] = {
        "1",
        "{}",
        "{\"size_bytes\":-1,\"mtime_ns\":5,\"header\":" HASH "}",
        "{\"size_bytes\":1,\"mtime_ns\":1.5,\"header\":" HASH "}",
        "{\"size_bytes\":1,\"mtime_ns\":1,\"header\":\"0123\"}",
        "{\"size_bytes\":1,\"mtime_ns\":1,\"header\":\"0123456789ABCDEF0fedcba987654321\"}",
        "{\"size_bytes\":1,\"mtime_ns\":1,\"header\":" HASH ",\"more\":1}"};
    static const char *const tensors[] = {
        "1",
        "{}",
        "{\"file\":\"f.safetensors\",\"type\":\"F32 [2]\",\"range\":[60],\"data\":" HASH "}",
        "{\"file\":1,\"type\":\"F32 [2]\",\"range\":[60,68],\"data\":" HASH "}",
        "{\"file\":\"f.safetensors\",\"type\":[2],\"range\":[60,68],\"data\":" HASH "}",
        "{\"file\":\"f.safetensors\",\"type\":\"F32 [2]\",\"range\":[60,-0],\"data\":" HASH "}",
        "{\"file\":\"f.safetensors\",\"type\":\"F32 [2]\",\"range\":[60,68],\"data\":1}"};

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(files); i++)
        expect_bad_file(files[i], "file \"f\": expected size_bytes");
    for (size_t i = 0; i < HR_ARRAY_SIZE(tensors); i++)
        expect_bad_tensor(tensors[i], "tensor \"w\": expected file, type");
    expect_bad_tensor("{\"file\":\"g\",\"type\":\"F32 [2]\",\"range\":[60,68],\"data\":" HASH "}",
                      "its file is not among the files");
    expect_bad_tensor("{\"file\":\"f.safetensors\",\"type\":\"F32 [2]\",\"range\":[60,101],"
                      "\"data\":" HASH "}",
                      "its range is not inside its file");
    expect_bad_tensor("{\"file\":\"f.safetensors\",\"type\":\"F32 [2]\",\"range\":[60,59],"
                      "\"data\":" HASH "}",
                      "its range is not inside its file");
}

static void test_too_long(void **state)
{
    struct hr_manifest manifest;
    struct hr_error err = {0};

    (void) state;
    assert_int_equal(hr_manifest_parse(&manifest, "", HR_MANIFEST_BYTES_MAX + 1ull, "f", &err),
                     -EBADMSG);
    assert_non_null(strstr(err.message, "f: a manifest of 200000001 bytes"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_written_and_read),
        cmocka_unit_test(test_any_order),
        cmocka_unit_test(test_form),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_too_long),
    };

    return cmocka_run_group_tests_name("manifest", tests, NULL, NULL);
}
