/* SPDX-License-Identifier: Apache-2.0 */
/* test_no_memory.c -- a header is read while jansson lacks memory: an error, or the same header. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "formats/formats.h"

static int parse(struct hr_header *ret_header, const char *json, uint64_t data_bytes,
                 struct hr_error *err)
{
    const size_t bytes = strlen(json);

    return hr_header_parse(ret_header, json, bytes, 8 + bytes + data_bytes, "file.st", err);
}

static unsigned n_allocations_left;

static void *failing_malloc(size_t bytes)
{
    return n_allocations_left && n_allocations_left-- ? malloc(bytes) : NULL;
}

static unsigned n_allocations, failing_allocation;

static void *once_failing_malloc(size_t bytes)
{
    return ++n_allocations == failing_allocation ? NULL : malloc(bytes);
}

/* One allocation of jansson fails, the others do not: an error or the same header, never a name or
 * a number that lacks a character because its buffer could not grow. */
static void test_one_failed_allocation(void **state)
{
    static const char name[] =
        "transformer_blocks.0.attn.a_name_that_outgrows_every_small_buffer.weight";
    static const char json[] =
        "{\"__metadata__\":{\"a key of more than fifteen bytes\":\"and a value as long as that\"},"
        "\"transformer_blocks.0.attn.a_name_that_outgrows_every_small_buffer.weight\":"
        "{\"dtype\":\"U8\",\"shape\":[0,1234567890123456789],\"data_offsets\":[0,0]}}";
    unsigned n_failed = 0;

    (void) state;
    for (failing_allocation = 1;; failing_allocation++) {
        struct hr_header header;
        struct hr_error err = {0};

        n_allocations = 0;
        json_set_alloc_funcs(once_failing_malloc, free);
        const int r = parse(&header, json, 0, &err);
        json_set_alloc_funcs(malloc, free);
        if (r == 0) {
            assert_int_equal(header.n_entries, 1);
            assert_string_equal(header.entries[0].name, name);
            assert_true(header.entries[0].shape[1] == UINT64_C(1234567890123456789));
            hr_header_uninit(&header);
        }
        n_failed += r < 0;
        if (n_allocations < failing_allocation)
            break;
    }
    assert_true(n_failed > 20);
}

/* jansson without memory at each of its allocations in turn. Where its lexer lacks memory jansson
 * calls the text malformed; that aside, the error says what it is, and nothing leaks. */
static void test_no_memory(void **state)
{
    static const char json[] = "{\"__metadata__\":{\"a\":\"b\"},"
                               "\"x\":{\"dtype\":\"U8\",\"shape\":[1,1],\"data_offsets\":[0,1]}}";
    unsigned n_failed = 0;
    int r = -1;

    (void) state;
    json_set_alloc_funcs(failing_malloc, free);
    for (unsigned n = 0; r < 0 && n < 1000; n++) {
        struct hr_header header;
        struct hr_error err = {0};

        n_allocations_left = n;
        r = parse(&header, json, 1, &err);
        if (r == 0) {
            hr_header_uninit(&header);
        } else {
            n_failed++;
            if (r != -ENOMEM)
                assert_non_null(strstr(err.message, "malformed JSON"));
            assert_non_null(strstr(err.message, "file.st: "));
        }
    }
    json_set_alloc_funcs(malloc, free);
    assert_int_equal(r, 0);
    assert_true(n_failed > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_one_failed_allocation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
