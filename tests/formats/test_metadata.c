/* SPDX-License-Identifier: Apache-2.0 */
/* test_metadata.c -- one string of a header's metadata. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "formats/formats.h"

#define ENTRY "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}"

static void test_metadata_string(void **state)
{
    static const char json[] =
        "{" ENTRY ",\"__metadata__\": {\"x\":\"1\",\"k\\u0065y\":\"v\\n\"} }";
    static const char none[] = "{}", bad[] = "{\"__metadata__\":{\"key\":[1]}}";
    struct hr_error err = {0};
    char *text = NULL;

    (void) state;
    assert_int_equal(hr_header_metadata(&text, json, strlen(json), "key", "f", &err), 1);
    assert_string_equal(text, "v\n");
    free(text);
    text = NULL;
    assert_int_equal(hr_header_metadata(&text, json, strlen(json), "a", "f", &err), 0);
    assert_int_equal(hr_header_metadata(&text, none, strlen(none), "key", "f", &err), 0);
    assert_int_equal(err.code, 0);
    assert_int_equal(hr_header_metadata(&text, bad, strlen(bad), "key", "f", &err), -EBADMSG);
    assert_non_null(strstr(err.message, "f: metadata key \"key\": not a string"));
    assert_null(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_metadata_string),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
