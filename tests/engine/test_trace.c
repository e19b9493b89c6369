/* SPDX-License-Identifier: Apache-2.0 */
/* test_trace.c -- the buffer of a trace and its file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/common.h"
#include "scratch.h"

static json_t *written(const struct hr_trace *trace)
{
    const char *path = scratch("trace.json");
    json_error_t json_err;

    assert_works(hr_trace_write(trace, path, &err));
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &json_err);

    assert_non_null(root);
    return root;
}

/* Events named `name` in the file. */
static unsigned count(const json_t *root, const char *name)
{
    const json_t *events = json_object_get(root, "traceEvents");
    unsigned n = 0;

    for (size_t i = 0; i < json_array_size(events); i++)
        n += strcmp(json_string_value(json_object_get(json_array_get(events, i), "name")), name) ==
             0;
    return n;
}

static json_int_t dropped(const json_t *root)
{
    return json_integer_value(
        json_object_get(json_object_get(root, "otherData"), "dropped_events"));
}

static void add(struct hr_trace *trace, const char *name)
{
    const uint64_t now = hr_now_ns();

    hr_trace_add(trace, &(struct hr_trace_event){
                            .kind = HR_TRACE_WEIGHT, .name = name, .begin_ns = now, .end_ns = now});
}

static void test_full(void **state)
{
    struct hr_trace *trace = NULL;
    json_t *root;

    (void) state;
    assert_int_equal(hr_trace_open(&trace, 10, NULL), 0);
    assert_int_equal(hr_trace_reserve_bytes(trace, 7), 7 * 64);
    assert_int_equal(hr_trace_reserve_bytes(trace, UINT64_MAX), 10 * 64);
    assert_int_equal(hr_trace_reserve(trace, 1000), 0);
    assert_int_equal(hr_trace_reserve_bytes(trace, 1000), 0); /* it is there */
    for (unsigned i = 0; i < 10; i++)
        add(trace, "w");
    root = written(trace);
    assert_int_equal(count(root, "w"), 10);
    assert_int_equal(dropped(root), 0);
    assert_string_equal(scratch_log(), "");
    json_decref(root);
    for (unsigned i = 0; i < 3; i++)
        add(trace, "w");
    root = written(trace);
    assert_int_equal(count(root, "w"), 10);
    assert_int_equal(dropped(root), 3);
    assert_non_null(strstr(scratch_log(), "3 events"));
    json_decref(root);
    hr_trace_close(&trace);
    assert_null(trace);
}

/* Names may hold whatever a checkpoint's may. */
static void test_names(void **state)
{
    static const char name[] = "a \"quoted\" \\ name\twith \x01 and \xc3\xa9";
    struct hr_trace *trace = NULL;
    json_t *root;

    (void) state;
    assert_int_equal(hr_trace_open(&trace, 0, NULL), 0);
    add(trace, name); /* no memory yet: dropped */
    assert_int_equal(hr_trace_reserve(trace, 2), 0);
    add(trace, name);
    root = written(trace);
    assert_int_equal(count(root, name), 1);
    json_decref(root);
    assert_fails(hr_trace_write(trace, scratch("none/trace.json"), &err), -ENOENT, "none/trace");
    hr_trace_close(&trace);
}

enum { THREADS = 4, EVENTS_EACH = 5000 };

static void *add_many(void *trace)
{
    for (unsigned i = 0; i < EVENTS_EACH; i++)
        add(trace, "many");
    return NULL;
}

static void test_threads(void **state)
{
    struct hr_trace *trace = NULL;
    pthread_t threads[THREADS];
    json_t *root;

    (void) state;
    assert_int_equal(hr_trace_open(&trace, 0, NULL), 0);
    assert_int_equal(hr_trace_reserve(trace, THREADS * EVENTS_EACH), 0);
    for (unsigned i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, add_many, trace), 0);
    json_decref(written(trace)); /* while they are at it */
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    root = written(trace);
    assert_int_equal(count(root, "many"), THREADS * EVENTS_EACH);
    assert_int_equal(dropped(root), 0);
    json_decref(root);
    hr_trace_close(&trace);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
