/* SPDX-License-Identifier: Apache-2.0 */
/* test_header.c -- the safetensors header: what is legal, every error with its words, writing. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "formats/formats.h"

#define ENTRY(name, dtype, shape, begin, end)                                               \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" #begin \
    "," #end "]}"

/* Parse a copy that ends where the text does, so that a sanitizer sees one byte too many. */
static int parse_bytes(struct hr_header *ret_header, const char *json, size_t json_bytes,
                       uint64_t data_bytes, struct hr_error *err)
{
    char *copy = malloc(json_bytes ? json_bytes : 1);
    int r;

    assert_non_null(copy);
    memcpy(copy, json, json_bytes);
    r = hr_header_parse(ret_header, copy, json_bytes, 8 + json_bytes + data_bytes, "file.st", err);
    free(copy);
    return r;
}

static void expect_bad_bytes(const char *json, size_t json_bytes, uint64_t data_bytes,
                             const char *const words[2])
{
    static const struct hr_header untouched = {.n_entries = 77};
    struct hr_header header = untouched;
    struct hr_error err = {0};

    assert_int_equal(parse_bytes(&header, json, json_bytes, data_bytes, &err), -EBADMSG);
    assert_memory_equal(&header, &untouched, sizeof(header));
    assert_int_equal(err.code, -EBADMSG);
    assert_ptr_equal(strstr(err.message, "file.st: "), err.message);
    assert_null(strchr(err.message, '\n'));
    for (unsigned i = 0; i < 2; i++) {
        if (!strstr(err.message, words[i]))
            fail_msg("\"%s\" is not in: %s", words[i], err.message);
    }
}

static void expect_bad(const char *json, uint64_t data_bytes, const char *word, const char *name)
{
    const char *const words[2] = {word, name};

    expect_bad_bytes(json, strlen(json), data_bytes, words);
}

static void parse_good(struct hr_header *ret_header, const char *json, uint64_t data_bytes)
{
    struct hr_error err = {0};

    if (parse_bytes(ret_header, json, strlen(json), data_bytes, &err) < 0)
        fail_msg("%s", err.message);
}

/* ---- length ------------------------------------------------------------------------- */

static void test_length(void **state)
{
    const uint8_t first[8] = {0x10, 0x01};
    const uint8_t largest[8] = {0x00, 0xe1, 0xf5, 0x05}; /* 100,000,000 */
    const uint8_t one_more[8] = {0x01, 0xe1, 0xf5, 0x05};
    const uint8_t huge[8] = {255, 255, 255, 255, 255, 255, 255, 255};
    const uint8_t sum_wraps[8] = {0xf8, 255, 255, 255, 255, 255, 255, 255};
    struct hr_error err = {0};
    uint64_t n = 5;

    (void) state;
    assert_int_equal(hr_header_length(first, 0x118, "f", &n, &err), 0);
    assert_int_equal(n, 0x110);
    assert_int_equal(hr_header_length(largest, 100000008, "f", &n, &err), 0);
    assert_int_equal(n, 100000000);
    n = 5;
    for (uint64_t bytes = 0; bytes < 8; bytes++) {
        hr_error_clear(&err);
        assert_int_equal(hr_header_length(first, bytes, "f", &n, &err), -EBADMSG);
        assert_non_null(strstr(err.message, "f: not a safetensors file"));
    }
    hr_error_clear(&err);
    assert_int_equal(hr_header_length(first, 0x117, "f", &n, &err), -EBADMSG);
    assert_string_equal(err.message, "f: truncated: a header of 272 bytes in a file of 279");
    hr_error_clear(&err);
    assert_int_equal(hr_header_length(one_more, UINT64_MAX, "f", &n, &err), -EBADMSG);
    assert_non_null(strstr(err.message, "100000001 bytes, at most 100000000"));
    assert_int_equal(hr_header_length(huge, UINT64_MAX, "f", &n, NULL), -EBADMSG);
    assert_int_equal(hr_header_length(sum_wraps, 16, "f", &n, NULL), -EBADMSG);
    assert_int_equal(n, 5);
}

static void test_sizes_disagree(void **state)
{
    struct hr_header header;
    struct hr_error err = {0};

    (void) state;
    assert_int_equal(hr_header_parse(&header, "{}", 2, 9, "f", &err), -EBADMSG);
    assert_non_null(strstr(err.message, "f: a header of 2 bytes does not fit a file of 9"));
    assert_int_equal(hr_header_parse(&header, "{}", 2, 7, "f", NULL), -EBADMSG);
    assert_int_equal(
        hr_header_parse(&header, "{}", HR_HEADER_BYTES_MAX + 1ull, UINT64_MAX, "f", NULL),
        -EBADMSG);
}

/* ---- legal -------------------------------------------------------------------------- */

static void test_empty(void **state)
{
    struct hr_header header;

    (void) state;
    parse_good(&header, "{}", 0);
    assert_int_equal(header.n_entries, 0);
    assert_int_equal(header.data_begin_bytes, 10);
    hr_header_uninit(&header);
    assert_null(header.entries);
    parse_good(&header, " \r\n\t{ \"__metadata__\" : { } } \n", 0);
    assert_int_equal(header.n_entries, 0);
    hr_header_uninit(&header);
}

/* Order of the file, not of the text; equal addresses by name; scalars and empty tensors. */
static void test_order(void **state)
{
    static const char *const names[] = {"a", "s", "z", "m", "zz"};
    static const uint64_t begins[] = {0, 0, 0, 8, 12};
    struct hr_header header;

    (void) state;
    parse_good(&header,
               "{" ENTRY("m", "F32", "", 8, 12) "," ENTRY("z", "F32", "2,0,3", 0, 0) "," ENTRY(
                   "s", "F16", "2,2", 0, 8) "," ENTRY("a", "U8", "0", 0,
                                                      0) "," ENTRY("zz", "U8", "0", 12, 12) "}  ",
               12);
    assert_int_equal(header.n_entries, 5);
    for (unsigned i = 0; i < 5; i++) {
        assert_string_equal(header.entries[i].name, names[i]);
        assert_int_equal(header.entries[i].begin_bytes, header.data_begin_bytes + begins[i]);
    }
    assert_int_equal(header.entries[1].rank, 2);
    assert_int_equal(header.entries[1].dtype, HR_DTYPE_F16);
    assert_int_equal(header.entries[1].shape[1], 2);
    assert_int_equal(header.entries[1].size_bytes, 8);
    assert_int_equal(header.entries[3].rank, 0);
    assert_null(header.entries[3].shape);
    assert_int_equal(hr_shape_elements(header.entries[3].shape, 0), 1);
    assert_int_equal(hr_shape_elements(header.entries[2].shape, 3), 0);
    hr_header_uninit(&header);
}

static void test_legal_forms(void **state)
{
    static const struct {
        const char *json;
        uint64_t data_bytes;
    } cases[] = {
        {"{" ENTRY("", "U8", "1", 0, 1) "}", 1},
        {"{" ENTRY("\\u00e9\\ud83d\\ude00\\\"/\\\\", "U8", "1", 0, 1) "}", 1},
        {"{" ENTRY("\xc3\xa9\xf0\x9f\x98\x80", "U8", "1", 0, 1) "}", 1},
        {"{" ENTRY("f4", "F4", "3,2", 0, 3) "}", 3},
        {"{" ENTRY("f6", "F6_E2M3", "4", 0, 3) "}", 3},
        {"{" ENTRY("c", "C64", "2", 0, 16) "}", 16},
        {"{" ENTRY("big", "U8", "9223372036854775807,0", 0, 0) "}", 0},
        {"{" ENTRY("k", "U8", "9007199254740993", 0, 9007199254740993) "}", 9007199254740993},
        {"{\"x\":{\"extra\":[-0,1.5,1e300,99999999999999999999,null,{\"y\":true}],\"dtype\":\"U8\","
         "\"shape\":[],\"data_offsets\":[0,1]}}",
         1},
        {"{\"__metadata__\":{\"\":\"\",\"format\":\"pt\",\"dtype\":\"[{\"}}", 0},
        {"{\"__metad\\u0061ta__\":{\"a\":\"b\"}}", 0},
    };
    struct hr_header header;

    (void) state;
    for (unsigned i = 0; i < HR_ARRAY_SIZE(cases); i++) {
        parse_good(&header, cases[i].json, cases[i].data_bytes);
        hr_header_uninit(&header);
    }
    parse_good(&header, cases[1].json, 1);
    assert_string_equal(header.entries[0].name, "\xc3\xa9\xf0\x9f\x98\x80\"/\\");
    hr_header_uninit(&header);
    parse_good(&header, cases[7].json, 9007199254740993);
    assert_true(header.entries[0].shape[0] == 9007199254740993);
    hr_header_uninit(&header);
}

static void test_rank_64(void **state)
{
    char json[1024] = "{\"r\":{\"dtype\":\"U8\",\"data_offsets\":[0,1],\"shape\":[1";
    struct hr_header header;

    (void) state;
    for (unsigned i = 1; i < HR_RANK_MAX; i++)
        strcat(json, ",1");
    strcat(json, "]}}");
    parse_good(&header, json, 1);
    assert_int_equal(header.entries[0].rank, 64);
    hr_header_uninit(&header);
    strcpy(json + strlen(json) - 3, ",1]}}");
    expect_bad(json, 1, "more than 64 dimensions", "\"r\"");
}

/* ---- errors ------------------------------------------------------------------------- */

static void test_not_json(void **state)
{
    (void) state;
    expect_bad("", 0, "byte 0", "expected an object");
    expect_bad("  ", 0, "byte 2", "expected an object");
    expect_bad("[]", 0, "byte 0", "expected an object");
    expect_bad("\xef\xbb\xbf{}", 0, "byte 0", "expected an object");
    expect_bad("{", 0, "byte 1", "expected a key");
    expect_bad("{}x", 0, "byte 2", "something follows");
    expect_bad("{}{}", 0, "byte 2", "something follows");
    expect_bad("{,}", 0, "byte 1", "expected a key");
    expect_bad("{\"a", 0, "byte 1", "ends inside the string");
    expect_bad("{\"a\\", 0, "byte 1", "ends inside the string");
    expect_bad("{\"a\"}", 0, "byte 4", "expected :");
    expect_bad("{\"a\":}", 0, "byte 5", "expected a value");
    expect_bad("{\"a\":", 0, "byte 5", "ends inside the value");
    expect_bad("{\"a\":{\"b\":\"c", 0, "byte 5", "ends inside the value");
    expect_bad("{" ENTRY("a", "U8", "1", 0, 1) ",}", 1, "expected a key", "byte 53");
    expect_bad("{" ENTRY("a", "U8", "1", 0, 1) " \"b\":1}", 1, "expected , or }", "byte 53");
    expect_bad("{\"a\":{\"dtype\":\"U8\",}}", 0, "tensor \"a\": malformed JSON", "byte");
    expect_bad("{\"a\":{]}}", 0, "tensor \"a\": malformed JSON", "byte");
    expect_bad("{\"a\":{'dtype':'U8'}}", 0, "tensor \"a\": malformed JSON", "byte");
}

static void test_text_rules(void **state)
{
    const char *const nul[2] = {"malformed JSON", "byte"};
    static const char raw_nul[] = "{\"a\0b\":{}}";
    static const char nul_outside[] = "{}\0";

    (void) state;
    expect_bad("{\"a\\u0000b\":{}}", 0, "malformed JSON at byte", "u0000");
    expect_bad("{\"a\":{\"dtype\":\"U8\\u0000\"}}", 0, "tensor \"a\"", "u0000");
    expect_bad_bytes(raw_nul, sizeof(raw_nul) - 1, 0, nul);
    expect_bad_bytes(nul_outside, sizeof(nul_outside) - 1, 0, nul);
    expect_bad("{\"\xff\":{}}", 0, "malformed JSON", "unable to decode");
    expect_bad("{\"\xc0\xaf\":{}}", 0, "malformed JSON", "unable to decode");
    expect_bad("{\"\xed\xa0\x80\":{}}", 0, "malformed JSON", "unable to decode");
    expect_bad("{\"\xf4\x90\x80\x80\":{}}", 0, "malformed JSON", "unable to decode");
    expect_bad("{\"\\ud800\":{}}", 0, "malformed JSON", "Unicode");
    expect_bad("{\"\\udc00x\":{}}", 0, "malformed JSON", "Unicode");
    expect_bad("{\"\\x41\":{}}", 0, "malformed JSON", "escape");
    expect_bad("{\"a\nb\":{}}", 0, "malformed JSON", "unexpected newline");
    expect_bad("{\"a\":{\"dtype\":\"\xff\"}}", 0, "tensor \"a\"", "unable to decode");
}

static void test_duplicates(void **state)
{
    (void) state;
    expect_bad("{" ENTRY("dup", "U8", "0", 0, 0) "," ENTRY("b", "U8", "0", 0,
                                                           0) "," ENTRY("dup", "U8", "0", 0, 0) "}",
               0, "tensor \"dup\" appears twice", "");
    expect_bad("{" ENTRY("dup", "U8", "0", 0, 0) "," ENTRY("d\\u0075p", "U8", "0", 0, 0) "}", 0,
               "tensor \"dup\" appears twice", "");
    expect_bad("{\"a\":{\"dtype\":\"U8\",\"d\\u0074ype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]"
               "}}",
               1, "tensor \"a\"", "duplicate");
    expect_bad("{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1],\"x\":{\"y\":1,\"y\":2"
               "}}}",
               1, "tensor \"a\"", "duplicate");
    expect_bad("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "\"__metadata__\" appears twice",
               "");
    expect_bad("{\"__metadata__\":{\"k\":\"1\",\"\\u006b\":\"2\"}}", 0,
               "metadata key \"k\" appears twice", "");
}

static void test_metadata(void **state)
{
    (void) state;
    expect_bad("{\"__metadata__\":null}", 0, "__metadata__ is no object", "");
    expect_bad("{\"__metadata__\":[]}", 0, "__metadata__ is no object", "");
    expect_bad("{\"__metadata__\":\"x\"}", 0, "__metadata__ is no object", "");
    expect_bad("{\"__metadata__\":{\"key\":1}}", 0, "metadata key \"key\"", "not a string");
    expect_bad("{\"__metadata__\":{\"key\":null}}", 0, "metadata key \"key\"", "not a string");
    expect_bad("{\"__metadata__\":{\"key\":{}}}", 0, "metadata key \"key\"", "not a string");
    expect_bad("{\"__metadata__\":{\"key\":\"\xff\"}}", 0, "metadata key \"key\"",
               "unable to decode");
}

static void test_depth(void **state)
{
    char *json = malloc(200000);

    (void) state;
    assert_non_null(json);
    strcpy(json, "{\"deep\":");
    memset(json + 8, '[', 100000);
    strcpy(json + 100008, "}");
    expect_bad(json, 0, "more than 32 brackets inside one another", "byte 40");
    free(json);
}

static void test_large_value(void **state)
{
    const size_t bytes = 3u << 20;
    char *json = malloc(bytes + 100);
    struct hr_header header;

    (void) state;
    assert_non_null(json);
    strcpy(json, "{\"large\":[");
    for (size_t i = 10; i < bytes; i += 3)
        memcpy(json + i, "{},", 4);
    strcat(json + bytes - 10, "0]}");
    expect_bad(json, 0, "tensor \"large\"", "at most 1048576 are expected");
    /* A long string is not. */
    strcpy(json, "{\"__metadata__\":{\"x\":\"");
    memset(json + 22, 'y', bytes);
    strcpy(json + 22 + bytes, "\"}}");
    parse_good(&header, json, 0);
    hr_header_uninit(&header);
    free(json);
}

static void test_entry_form(void **state)
{
    (void) state;
    expect_bad("{\"a\":null}", 0, "tensor \"a\"", "expected an object");
    expect_bad("{\"a\":[\"U8\",[],[0,1]]}", 1, "tensor \"a\"", "expected an object");
    expect_bad("{\"a\":{}}", 0, "tensor \"a\"", "dtype is missing");
    expect_bad("{\"a\":{\"dtype\":8}}", 0, "tensor \"a\"", "dtype is missing or no string");
    expect_bad("{" ENTRY("a", "u8", "1", 0, 1) "}", 1, "tensor \"a\"", "unknown dtype u8");
    expect_bad("{" ENTRY("a", "F128\\n", "1", 0, 1) "}", 1, "tensor \"a\"",
               "unknown dtype F128\\x0a; expected one of safetensors' such as BF16, F16, F32, "
               "F8_E4M3");
    expect_bad("{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "tensor \"a\"",
               "shape is missing");
    expect_bad("{\"a\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}", 1, "tensor \"a\"",
               "shape is missing or no array");
    expect_bad("{\"a\":{\"dtype\":\"U8\",\"shape\":[]}}", 1, "tensor \"a\"",
               "data_offsets is missing");
    expect_bad("{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0]}}", 1, "tensor \"a\"",
               "no pair");
    expect_bad("{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1,1]}}", 1,
               "tensor \"a\"", "no pair");
    expect_bad("{\"a\\u0007\\u00ff\":{}}", 0, "tensor \"a\\x07\\xc3\\xbf\"", "dtype is missing");
}

static void test_integers(void **state)
{
    static const char *const wrong[] = {
        "1.0",
        "1e0",
        "1E0",
        "-0",
        "-0.0",
        "-1",
        "9223372036854775808",
        "18446744073709551617",
        "1e1",
        "\"1\"",
        "null",
        "true",
        "[1]",
        "99999999999999999999999999999999999999999",
        "-9223372036854775808",
        "-9223372036854775809",
    };
    char json[300];

    (void) state;
    for (unsigned i = 0; i < HR_ARRAY_SIZE(wrong); i++) {
        snprintf(json, sizeof(json),
                 "{\"int\":{\"dtype\":\"U8\",\"shape\":[%s],\"data_offsets\":[0,1]}}", wrong[i]);
        expect_bad(json, 1, "tensor \"int\"", "shape holds something else than an integer");
        snprintf(json, sizeof(json),
                 "{\"int\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%s,1]}}", wrong[i]);
        expect_bad(json, 1, "tensor \"int\"", "data_offsets holds something else than an integer");
        snprintf(json, sizeof(json),
                 "{\"int\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,%s]}}", wrong[i]);
        expect_bad(json, 1, "tensor \"int\"", "data_offsets holds something else than an integer");
    }
    /* No JSON at all. */
    expect_bad("{" ENTRY("int", "U8", "01", 0, 1) "}", 1, "tensor \"int\"", "malformed");
    expect_bad("{" ENTRY("int", "U8", "+1", 0, 1) "}", 1, "tensor \"int\"", "malformed");
    expect_bad("{" ENTRY("int", "U8", "1.", 0, 1) "}", 1, "tensor \"int\"", "malformed");
    expect_bad("{" ENTRY("int", "U8", "0x1", 0, 1) "}", 1, "tensor \"int\"", "malformed");
    expect_bad("{" ENTRY("int", "U8", "1,", 0, 1) "}", 1, "tensor \"int\"", "malformed");
    expect_bad("{" ENTRY("int", "U8", "NaN", 0, 1) "}", 1, "tensor \"int\"", "malformed");
    expect_bad("{" ENTRY("int", "U8", "1e999", 0, 1) "}", 1, "tensor \"int\"", "overflow");
}

static void test_sizes(void **state)
{
    (void) state;
    expect_bad("{" ENTRY("a", "U8", "4294967296,4294967296", 0, 0) "}", 0, "tensor \"a\"",
               "product of the shape overflows");
    expect_bad("{" ENTRY("a", "U8", "4294967296,4294967296,0", 0, 0) "}", 0, "tensor \"a\"",
               "product of the shape overflows");
    expect_bad("{" ENTRY("a", "F32", "2305843009213693952", 0, 0) "}", 0, "tensor \"a\"",
               "size in bits overflows");
    expect_bad("{" ENTRY("a", "F4", "3", 0, 1) "}", 1, "tensor \"a\"", "no whole number of bytes");
    expect_bad("{" ENTRY("a", "F6_E3M2", "2", 0, 1) "}", 1, "tensor \"a\"",
               "no whole number of bytes");
    expect_bad("{" ENTRY("a", "BF16", "2", 0, 3) "}", 3, "tensor \"a\"",
               "data_offsets hold 3 bytes, shape and dtype BF16 ask for 4");
    expect_bad("{" ENTRY("a", "U8", "", 0, 0) "}", 0, "tensor \"a\"", "hold 0 bytes");
}

static void test_ranges(void **state)
{
    (void) state;
    expect_bad("{" ENTRY("a", "U8", "1", 1, 0) "}", 1, "tensor \"a\"", "end before they begin");
    expect_bad("{" ENTRY("a", "U8", "2", 0, 2) "}", 1, "tensor \"a\"", "behind the end of the");
    expect_bad("{" ENTRY("a", "U8", "1", 9223372036854775806, 9223372036854775807) "}", 1,
               "tensor \"a\"", "behind the end of the");
    expect_bad("{" ENTRY("a", "U8", "1", 1, 2) "}", 2, "tensor \"a\"", "a hole before it");
    expect_bad("{" ENTRY("a", "U8", "2", 0, 2) "," ENTRY("b", "U8", "2", 3, 5) "}", 5,
               "tensor \"b\"", "a hole before it");
    expect_bad("{" ENTRY("a", "U8", "2", 0, 2) "," ENTRY("b", "U8", "2", 1, 3) "}", 3,
               "tensor \"b\"", "overlaps");
    expect_bad("{" ENTRY("a", "U8", "2", 0, 2) "," ENTRY("b", "U8", "2", 0, 2) "}", 2, "tensor \"",
               "overlaps");
    expect_bad("{" ENTRY("a", "U8", "2", 0, 2) "," ENTRY("e", "U8", "0", 1, 1) "}", 2,
               "tensor \"e\"", "overlaps");
    expect_bad("{" ENTRY("a", "U8", "2", 0, 2) "}", 3, "the tensors end at byte",
               "something appended");
    expect_bad("{}", 1, "the tensors end at byte 10, the file at 11", "");
}

/* ---- size ------------------------------------------------------------------------ */

static void test_many(void **state)
{
    enum { N = 20000 };
    struct hr_entry *entries = calloc(N, sizeof(*entries));
    char(*names)[32] = calloc(N, sizeof(*names));
    const uint64_t shape[1] = {3};
    struct hr_header header;
    size_t bytes;
    char *text;

    (void) state;
    for (unsigned i = 0; i < N; i++) {
        snprintf(names[i], sizeof(names[i]), "blocks.%u.weight", i);
        entries[i] =
            (struct hr_entry){.name = names[i], .dtype = HR_DTYPE_BF16, .rank = 1, .shape = shape};
    }
    assert_int_equal(hr_header_build(&text, &bytes, entries, N, 0, NULL), 0);
    assert_int_equal(
        hr_header_parse(&header, text + 8, bytes - 8, bytes + (uint64_t) N * 6, "f", NULL), 0);
    assert_int_equal(header.n_entries, N);
    for (unsigned i = 0; i < N; i++) {
        assert_string_equal(header.entries[i].name, names[i]);
        assert_int_equal(header.entries[i].begin_bytes, entries[i].begin_bytes);
    }
    hr_header_uninit(&header);
    free(text);
    free(names);
    free(entries);
}

/* ---- writing ------------------------------------------------------------------------ */

static void test_build(void **state)
{
    const uint64_t shape[2] = {2, 3};
    struct hr_entry entries[3] = {
        {.name = "b\"\\\n\xc3\xa9", .dtype = HR_DTYPE_F32, .rank = 2, .shape = shape},
        {.name = "a", .dtype = HR_DTYPE_F8_E4M3, .rank = 2, .shape = shape},
        {.name = "scalar", .dtype = HR_DTYPE_F64},
    };

    (void) state;
    for (uint32_t pad = 0; pad < 20; pad++) {
        struct hr_header header;
        uint64_t json_bytes;
        size_t bytes;
        char *text;

        assert_int_equal(hr_header_build(&text, &bytes, entries, 3, pad, NULL), 0);
        assert_int_equal((bytes - pad) % 8, 0);
        assert_int_equal(
            hr_header_length((const uint8_t *) text, bytes + 38, "f", &json_bytes, NULL), 0);
        assert_int_equal(json_bytes, bytes - 8);
        assert_int_equal(hr_header_parse(&header, text + 8, bytes - 8, bytes + 38, "f", NULL), 0);
        assert_int_equal(header.n_entries, 3);
        assert_int_equal(entries[0].begin_bytes, bytes);
        assert_int_equal(entries[1].begin_bytes, bytes + 24);
        assert_int_equal(entries[2].size_bytes, 8);
        for (unsigned i = 0; i < 3; i++) {
            assert_string_equal(header.entries[i].name, entries[i].name);
            assert_int_equal(header.entries[i].dtype, entries[i].dtype);
            assert_int_equal(header.entries[i].rank, entries[i].rank);
            assert_int_equal(header.entries[i].begin_bytes, entries[i].begin_bytes);
            assert_int_equal(header.entries[i].size_bytes, entries[i].size_bytes);
        }
        hr_header_uninit(&header);
        free(text);
    }
}

static void expect_no_build(struct hr_entry *entries, uint32_t n, uint32_t pad, const char *word)
{
    struct hr_error err = {0};
    char *text = NULL;
    size_t bytes = 0;

    assert_int_equal(hr_header_build(&text, &bytes, entries, n, pad, &err), -EINVAL);
    assert_null(text);
    if (!strstr(err.message, word))
        fail_msg("\"%s\" is not in: %s", word, err.message);
}

static void test_build_refuses(void **state)
{
    const uint64_t wraps[2] = {UINT64_C(1) << 32, UINT64_C(1) << 32};
    const uint64_t above[2] = {0, UINT64_C(1) << 63};
    const uint64_t three[1] = {3}, large_bytes = (UINT64_C(1) << 61) - 1;
    static const char *const names[] = {"a", "b", "c"};
    struct hr_entry twice[2] = {{.name = "t"}, {.name = "t"}}, large[3];

    (void) state;
    expect_no_build(&(struct hr_entry){.name = "x\xff"}, 1, 0, "x\\xff\": the name is no valid");
    expect_no_build(&(struct hr_entry){.name = "__metadata__"}, 1, 0, "keeps this name");
    expect_no_build(&(struct hr_entry){.name = "x", .dtype = HR_DTYPE_COUNT}, 1, 0,
                    "\"x\": unknown dtype");
    expect_no_build(&(struct hr_entry){.name = "x", .rank = 65}, 1, 0, "\"x\": more than 64");
    expect_no_build(&(struct hr_entry){.name = "x", .rank = 2, .shape = wraps}, 1, 0,
                    "\"x\": the product of the shape overflows");
    expect_no_build(&(struct hr_entry){.name = "x", .rank = 2, .shape = above}, 1, 0,
                    "\"x\": the shape holds more than 2^63-1");
    for (int i = 0; i < 3; i++)
        large[i] = (struct hr_entry){
            .name = names[i], .dtype = HR_DTYPE_U8, .rank = 1, .shape = &large_bytes};
    expect_no_build(large, 3, 0, "\"c\": too large");
    expect_no_build(
        &(struct hr_entry){.name = "x", .dtype = HR_DTYPE_F4, .rank = 1, .shape = three}, 1, 0,
        "\"x\": the size is no whole");
    expect_no_build(twice, 2, 0, "\"t\": given twice");
    expect_no_build(twice, 1, UINT32_MAX, "at most 100000000");
    expect_no_build(twice, 1, HR_HEADER_BYTES_MAX, "at most 100000000");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_length),        cmocka_unit_test(test_sizes_disagree),
        cmocka_unit_test(test_empty),         cmocka_unit_test(test_order),
        cmocka_unit_test(test_legal_forms),   cmocka_unit_test(test_rank_64),
        cmocka_unit_test(test_not_json),      cmocka_unit_test(test_text_rules),
        cmocka_unit_test(test_duplicates),    cmocka_unit_test(test_metadata),
        cmocka_unit_test(test_depth),         cmocka_unit_test(test_large_value),
        cmocka_unit_test(test_entry_form),    cmocka_unit_test(test_integers),
        cmocka_unit_test(test_sizes),         cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_many),          cmocka_unit_test(test_build),
        cmocka_unit_test(test_build_refuses),
    };

    return cmocka_run_group_tests_name("header", tests, NULL, NULL);
}
