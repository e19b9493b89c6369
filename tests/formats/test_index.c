/* SPDX-License-Identifier: Apache-2.0 */
/* test_index.c -- the shard index: order, and file names that must not lead anywhere. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "formats/formats.h"

/* Of a copy that ends where the text does. */
static int parse(struct hr_index *ret_index, const char *json, struct hr_error *err)
{
    const size_t bytes = strlen(json);
    char *copy = malloc(bytes ? bytes : 1);
    int r;

    assert_non_null(copy);
    memcpy(copy, json, bytes);
    r = hr_index_parse(ret_index, copy, bytes, "model.index", err);
    free(copy);
    return r;
}

static void expect_bad(const char *json, const char *word, const char *name)
{
    const char *const words[3] = {"model.index: ", word, name};
    struct hr_index index = {.n_entries = 77};
    struct hr_error err = {0};

    assert_int_equal(parse(&index, json, &err), -EBADMSG);
    assert_int_equal(index.n_entries, 77);
    for (unsigned i = 0; i < 3; i++) {
        if (!strstr(err.message, words[i]))
            fail_msg("\"%s\" is not in: %s", words[i], err.message);
    }
}

static void test_published_form(void **state)
{
    static const struct {
        const char *name;
        uint32_t shard_idx;
    } entries[] = {{"a.weight", 1}, {"b.bias", 0}, {"b.weight", 2}, {"c", 1}};
    struct hr_index index;
    struct hr_error err = {0};

    (void) state;
    assert_int_equal(parse(&index,
                           "{\"metadata\":{\"total_size\":40860802176},\"weight_map\":{"
                           "\"b.weight\":\"m-00003-of-00003.safetensors\","
                           "\"c\":\"m-00002-of-00003.safetensors\","
                           "\"b.bias\":\"m-00001-of-00003.safetensors\","
                           "\"a.weight\":\"m-00002-of-00003.safetensors\"}}\n",
                           &err),
                     0);
    assert_int_equal(index.n_shards, 3);
    assert_string_equal(index.shards[0], "m-00001-of-00003.safetensors");
    assert_string_equal(index.shards[2], "m-00003-of-00003.safetensors");
    assert_int_equal(index.n_entries, HR_ARRAY_SIZE(entries));
    for (unsigned i = 0; i < HR_ARRAY_SIZE(entries); i++) {
        assert_string_equal(index.entries[i].name, entries[i].name);
        assert_int_equal(index.entries[i].shard_idx, entries[i].shard_idx);
    }
    hr_index_uninit(&index);
    assert_null(index.entries);
}

static void test_metadata_is_information(void **state)
{
    static const char *const metadata[] = {
        "\"metadata\":{\"total_size\":1.5e300}",
        "\"metadata\":null",
        "\"metadata\":[-0]",
        "\"metadata\":{\"total_size\":99999999999999999999}",
        "\"other\":\"x\"",
    };

    (void) state;
    for (unsigned i = 0; i < HR_ARRAY_SIZE(metadata); i++) {
        char json[200];
        struct hr_index index;

        snprintf(json, sizeof(json), "{%s,\"weight_map\":{\"t\":\"x.safetensors\"}}", metadata[i]);
        assert_int_equal(parse(&index, json, NULL), 0);
        hr_index_uninit(&index);
    }
}

static void test_file_names(void **state)
{
    static const struct {
        const char *file, *word;
    } cases[] = {
        {"", "does not end in .safetensors"},
        {".safetensors", "does not end in .safetensors"},
        {"..", "does not end in .safetensors"},
        {"model.bin", "does not end in .safetensors"},
        {"x.SAFETENSORS", "does not end in .safetensors"},
        {"x.safetensors ", "does not end in .safetensors"},
        {"x.safetensors.index.json", "does not end in .safetensors"},
        {"../x.safetensors", "is no plain file name"},
        {"/etc/x.safetensors", "is no plain file name"},
        {"a/x.safetensors", "is no plain file name"},
        {"..\\\\x.safetensors", "is no plain file name"},
        {"\\u002e\\u002e\\u002fx.safetensors", "is no plain file name"},
        {"a\\nb.safetensors", "holds a control character"},
        {"a\\u007fb.safetensors", "holds a control character"},
        {"a\\u0000b.safetensors", "u0000"},
        {"a\xff.safetensors", "unable to decode"},
    };
    char json[600];

    (void) state;
    for (unsigned i = 0; i < HR_ARRAY_SIZE(cases); i++) {
        snprintf(json, sizeof(json), "{\"weight_map\":{\"ok\":\"y.safetensors\",\"t.w\":\"%s\"}}",
                 cases[i].file);
        expect_bad(json, cases[i].word, "tensor \"t.w\"");
    }
    snprintf(json, sizeof(json), "{\"weight_map\":{\"t\":\"%0300d.safetensors\"}}", 0);
    expect_bad(json, "is longer than 255 bytes", "tensor \"t\"");
}

static void test_form(void **state)
{
    (void) state;
    expect_bad("", "expected an object", "");
    expect_bad("[]", "expected an object", "");
    expect_bad("{}", "no weight_map; expected an index, {\"weight_map\": {TENSOR: FILE}}", "");
    expect_bad("{\"metadata\":{\"total_size\":1}}", "no weight_map", "");
    expect_bad("{\"weight_map\":{}}", "weight_map is empty", "");
    expect_bad("{\"weight_map\":null}", "weight_map is no object", "");
    expect_bad("{\"weight_map\":[[\"a\",\"b.safetensors\"]]}", "weight_map is no object", "");
    expect_bad("{\"weight_map\":{\"t\":1}}", "is no string", "tensor \"t\"");
    expect_bad("{\"weight_map\":{\"t\":[\"x.safetensors\"]}}", "is no string", "tensor \"t\"");
    expect_bad("{\"weight_map\":{\"t\":\"x.safetensors\"}", "expected , or }", "");
    expect_bad("{\"weight_map\":{\"t\":\"x.safetensors\"}}}", "something follows", "");
    expect_bad("{\"metadata\":{\"x\":01},\"weight_map\":{\"t\":\"x.safetensors\"}}", "malformed",
               "key \"metadata\"");
}

static void test_duplicates(void **state)
{
    (void) state;
    expect_bad("{\"weight_map\":{\"t\":\"x.safetensors\",\"u\":\"x.safetensors\","
               "\"\\u0074\":\"x.safetensors\"}}",
               "appears twice", "tensor \"t\"");
    expect_bad("{\"weight_map\":{\"t\":\"x.safetensors\"},\"weight_map\":{\"u\":\"x.safetensors\"}"
               "}",
               "appears twice", "key \"weight_map\"");
    expect_bad("{\"weight_map\":{\"t\":\"x.safetensors\"},\"metadata\":{\"a\":1,\"a\":2}}",
               "duplicate", "key \"metadata\"");
}

static void test_too_long(void **state)
{
    struct hr_index index;
    struct hr_error err = {0};

    (void) state;
    assert_int_equal(hr_index_parse(&index, "", HR_HEADER_BYTES_MAX + 1ull, "f", &err), -EBADMSG);
    assert_non_null(strstr(err.message, "f: an index of 100000001 bytes"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_form), cmocka_unit_test(test_metadata_is_information),
        cmocka_unit_test(test_file_names),     cmocka_unit_test(test_form),
        cmocka_unit_test(test_duplicates),     cmocka_unit_test(test_too_long),
    };

    return cmocka_run_group_tests_name("index", tests, NULL, NULL);
}
