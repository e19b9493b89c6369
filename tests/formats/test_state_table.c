/* SPDX-License-Identifier: Apache-2.0 */
/* test_state_table.c -- the table of states: what is accepted, and each message. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "formats/formats.h"

static int parse(struct hr_state_table *ret_table, const char *json, struct hr_error *err)
{
    const size_t bytes = strlen(json);
    char *copy = malloc(bytes ? bytes : 1); /* ends where the text does */
    int r;

    assert_non_null(copy);
    memcpy(copy, json, bytes);
    r = hr_state_table_parse(ret_table, copy, bytes, "states.json", err);
    free(copy);
    return r;
}

static void expect(const char *json, const char *word)
{
    struct hr_state_table table = {.n = 77};
    struct hr_error err = {0};
    const int r = parse(&table, json, &err);

    if (r != -EBADMSG || !strstr(err.message, word) ||
        strncmp(err.message, "states.json: ", 13) != 0)
        fail_msg("%s: %d, expected \"%s\"; got: %s", json, r, word, err.message);
    assert_int_equal(table.n, 77);
}

#define ONE(members) "[{\"module\": \"*\", " members "}]"

static void test_accepted(void **state)
{
    struct hr_state_table table;
    struct hr_error err = {0};
    const struct hr_state_entry *e;

    (void) state;
    if (parse(&table,
              "[{\"module\": \"a.*\", \"offload\": {\"dtype\": \"disk\", \"device\": \"disk\"},"
              " \"onload\": {\"dtype\": \"torch.bfloat16\", \"device\": \"cpu\"},"
              " \"preparing\": {\"device\": \"cpu\", \"dtype\": \"float32\"},"
              " \"computation\": {\"dtype\": \"bfloat16\", \"device\": \"cpu\"}},"
              " {\"offload\": {\"dtype\": \"disk\"}, \"module\": \"b\"}]",
              &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(table.n, 2);
    e = &table.entries[0];
    assert_string_equal(e->module, "a.*");
    assert_true(e->places[HR_STATE_OFFLOAD].on_disk && !e->places[HR_STATE_OFFLOAD].has_dtype);
    assert_false(e->places[HR_STATE_ONLOAD].on_disk);
    assert_int_equal(e->places[HR_STATE_ONLOAD].dtype, HR_DTYPE_BF16);
    assert_int_equal(e->places[HR_STATE_PREPARING].dtype, HR_DTYPE_F32);
    assert_true(e->places[HR_STATE_COMPUTATION].given);
    /* A state left out is the one before it, but for the computation. */
    e = &table.entries[1];
    assert_true(e->places[HR_STATE_ONLOAD].on_disk && e->places[HR_STATE_PREPARING].on_disk);
    assert_false(e->places[HR_STATE_COMPUTATION].given);
    hr_state_table_uninit(&table);
    assert_null(table.entries);
}

static void test_refused(void **state)
{
    char many[20000] = "[";

    (void) state;
    expect("", "empty");
    expect("{}", "no list");
    expect("[]", "1 to 4096");
    expect("[1]", "entry 1: is no object");
    expect("[{}]", "entry 1: module");
    expect("[{\"module\": 3}]", "module");
    expect("[{\"module\": \"\"}]", "module");
    expect("[{\"module\": \"a\"}, {\"module\": \"b\"}]", "entry 1 (\"a\"): offload is missing");
    expect(ONE("\"offload\": {\"device\": \"disk\"}, \"vram_limit\": 3"),
           "\"vram_limit\" is not known");
    expect(ONE("\"offload\": \"disk\""), "offload is no object");
    expect(ONE("\"offload\": {\"device\": \"disk\", \"pin\": 1}"), "offload: key \"pin\"");
    expect(ONE("\"offload\": {}"), "offload: the device is missing");
    expect(ONE("\"offload\": {\"dtype\": \"float32\"}"), "offload: the device is missing");
    expect(ONE("\"offload\": {\"device\": 1}"), "device is no text");
    expect(ONE("\"offload\": {\"device\": \"disk\"}, \"onload\": {\"device\": \"cuda:0\"}"),
           "onload: device \"cuda:0\"");
    expect(ONE("\"offload\": {\"device\": \"cpu\", \"dtype\": \"int8\"}"), "dtype \"int8\"");
    expect(ONE("\"offload\": {\"device\": \"cpu\", \"dtype\": 8}"), "no text");
    expect(ONE("\"offload\": {\"device\": \"cpu\", \"dtype\": \"disk\"}"), "dtype \"disk\"");
    expect(ONE("\"offload\": {\"device\": \"cpu\"}, \"computation\": {\"device\": \"disk\"}"),
           "computation: nothing is computed");
    expect("[{\"module\": \"a\", \"module\": \"b\"}]", "module");
    expect("[{\"module\": \"a\"}] x", "");
    for (size_t i = 0; i < 4097; i++)
        strncat(many, i ? ",{}" : "{}", sizeof(many) - strlen(many) - 1);
    strncat(many, "]", sizeof(many) - strlen(many) - 1);
    expect(many, "1 to 4096");
    snprintf(many, sizeof(many), "[{\"module\": \"%0300d\"}]", 7);
    expect(many, "1 to 255");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepted),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
