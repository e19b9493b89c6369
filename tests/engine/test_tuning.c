/* SPDX-License-Identifier: Apache-2.0 */
/* test_tuning.c -- saved figures of a disk: kept, found again, refused when they are not ours; and
 * what a part of a file would measure. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/common.h"
#include "engine/checkpoint.h"
#include "engine/tuning.h"
#include "tests/engine/model_fixture.h"

static struct model_fixture model;
static char cache[64];
static char last_warning[HR_ERROR_BYTES];

static void keep_warning(void *user, enum hr_log_level level, const char *message)
{
    (void) user;
    if (level == HR_LOG_WARN)
        snprintf(last_warning, sizeof(last_warning), "%s", message);
}

static const struct hr_tuning good = {
    .block_bytes = 1 << 20,
    .depth = 24,
    .bytes_per_s = 2000000000,
    .bytes_per_s_low = 1900000000,
    .bytes_per_s_high = 2100000000,
    .n_samples = 5,
    .time_s = 1700000000,
};

static struct hr_stream_stats stats_of_new_stream(const struct hr_stream_params *params)
{
    struct hr_stream *stream = NULL;
    struct hr_stream_stats stats;
    struct hr_error err = {0};

    if (hr_stream_open(&stream, model.checkpoint, params, &err) < 0)
        fail_msg("%s", err.message);
    hr_stream_get_stats(stream, &stats);
    hr_stream_close(&stream);
    return stats;
}

static void test_saved_and_used(void **state)
{
    struct hr_tuning tuning = {0}, saved = good;
    struct hr_error err = {0};
    char *path = NULL;

    (void) state;
    assert_int_equal(hr_tuning_load(model.checkpoint, &tuning, NULL, &err), 0);
    assert_false(stats_of_new_stream(NULL).tuned);

    assert_int_equal(hr_tuning_save(model.checkpoint, &saved, &path, &err), 0);
    assert_memory_equal(path, cache, strlen(cache));
    free(path);
    assert_int_equal(hr_tuning_load(model.checkpoint, &tuning, &path, &err), 1);
    free(path);
    assert_memory_equal(&tuning, &saved, sizeof(tuning));
    assert_true(strlen(tuning.device) > 0 && strlen(tuning.kernel) > 0);

    struct hr_stream_stats stats = stats_of_new_stream(NULL);
    assert_true(stats.tuned);
    assert_int_equal(stats.block_bytes, good.block_bytes);
    assert_int_equal(stats.depth, good.depth);
    /* One value given: both are the user's or the defaults. */
    stats = stats_of_new_stream(&(struct hr_stream_params){.depth = 3});
    assert_false(stats.tuned);
    assert_int_equal(stats.block_bytes, 4 << 20);
    assert_int_equal(stats.depth, 3);
    stats = stats_of_new_stream(&(struct hr_stream_params){.block_bytes = 2 << 20});
    assert_false(stats.tuned);
    assert_int_equal(stats.depth, 16);
}

static void test_bad_values_are_not_saved(void **state)
{
    struct hr_tuning bad[] = {good, good, good, good, good};

    (void) state;
    bad[0].block_bytes = 3 << 20;
    bad[1].block_bytes = 4096;
    bad[2].depth = 0;
    bad[3].bytes_per_s = 0;
    bad[4].bytes_per_s_low = good.bytes_per_s + 1;
    for (size_t i = 0; i < HR_ARRAY_SIZE(bad); i++)
        assert_int_equal(hr_tuning_save(model.checkpoint, &bad[i], NULL, NULL), -EINVAL);
}

/* A file that is not ours costs one warning that names it, and nothing else. */
static void test_strange_files(void **state)
{
    static const char *const texts[] = {
        "",
        "{",
        "[]",
        "{\"version\": 2}",
        "{\"version\": 1, \"block_bytes\": -1}",
        "{\"version\": 1, \"version\": 1}",
        "{\"version\": 1, \"block_bytes\": 1048576, \"iodepth\": 100000, \"bytes_per_s\": 1, "
        "\"bytes_per_s_low\": 1, \"bytes_per_s_high\": 1, \"samples\": 1, \"time\": 1, "
        "\"device\": \"a\", \"filesystem\": \"b\", \"kernel\": \"c\"}",
        "{\"version\": 1, \"block_bytes\": 1048576, \"iodepth\": 8, \"bytes_per_s\": 1, "
        "\"bytes_per_s_low\": 1, \"bytes_per_s_high\": 1, \"samples\": 1, \"time\": 1, "
        "\"device\": \"a\", \"filesystem\": \"b\", \"kernel\": \"c\"}",
    };
    struct hr_tuning tuning = good;
    char *path = NULL;

    (void) state;
    assert_int_equal(hr_tuning_save(model.checkpoint, &tuning, &path, NULL), 0);
    hr_log_set(keep_warning, NULL, HR_LOG_WARN);
    for (size_t i = 0; i < HR_ARRAY_SIZE(texts); i++) {
        FILE *f = fopen(path, "w");

        assert_non_null(f);
        fputs(texts[i], f);
        fclose(f);
        assert_int_equal(hr_tuning_load(model.checkpoint, &tuning, NULL, NULL), -EBADMSG);
        last_warning[0] = '\0';
        assert_false(stats_of_new_stream(NULL).tuned);
        assert_non_null(strstr(last_warning, path));
    }
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(hr_tuning_load(model.checkpoint, &tuning, NULL, NULL), -EINVAL);
    assert_int_equal(rmdir(path), 0);
    hr_log_set(NULL, NULL, HR_LOG_WARN);
    free(path);
}

/* In small blocks there are more reads to be recorded than by default. */
static void test_trace_has_room(void **state)
{
    const uint32_t n = hr_checkpoint_n_tensors(model.checkpoint);
    const char **names = calloc(n, sizeof(*names));
    struct hr_tuning tuning = good;
    struct hr_trace *trace = NULL;
    struct hr_stream *stream = NULL;
    struct hr_error err = {0};
    struct hr_unit unit;
    char *path = NULL;
    int r;

    (void) state;
    assert_non_null(names);
    for (uint32_t i = 0; i < n; i++)
        names[i] = hr_checkpoint_tensor(model.checkpoint, i)->name;
    tuning.block_bytes = 64 << 10;
    assert_int_equal(hr_tuning_save(model.checkpoint, &tuning, &path, &err), 0);
    assert_int_equal(hr_trace_open(&trace, 0, &err), 0);
    assert_int_equal(
        hr_stream_open(&stream, model.checkpoint, &(struct hr_stream_params){.trace = trace}, &err),
        0);
    r = hr_stream_plan(stream, names, n, 0, 1, &err);
    while (r >= 0 && (r = hr_stream_next(stream, &unit, &err)) > 0)
        hr_stream_release(stream, &unit);
    assert_int_equal(r, 0);
    assert_int_equal(hr_trace_dropped(trace), 0);
    hr_stream_close(&stream);
    hr_trace_close(&trace);
    unlink(path);
    free(path);
    free(names);
}

/* Other blocks are no longer those that were measured; a refusal changes nothing. */
static void test_other_blocks(void **state)
{
    struct hr_tuning tuning = good;
    struct hr_stream *stream = NULL;
    struct hr_stream_stats stats;
    struct hr_error err = {0};
    char *path = NULL;

    (void) state;
    assert_int_equal(hr_tuning_save(model.checkpoint, &tuning, &path, &err), 0);
    assert_int_equal(hr_stream_open(&stream, model.checkpoint, NULL, &err), 0);
    assert_int_equal(hr_stream_set_blocks(stream, 3 << 20, 1, &err), -EINVAL);
    hr_stream_get_stats(stream, &stats);
    assert_true(stats.tuned);
    assert_int_equal(stats.block_bytes, good.block_bytes);
    assert_int_equal(hr_stream_set_blocks(stream, 2 << 20, 1, NULL), 0);
    hr_stream_get_stats(stream, &stats);
    assert_false(stats.tuned);
    hr_stream_close(&stream);
    unlink(path);
    free(path);
}

/* A run that was bound by a disk much slower than saved says so; any other does not. */
static void test_slow_disk_is_said(void **state)
{
    const struct hr_stream_stats slow = {
        .n_files = 1,
        .n_files_direct = 1,
        .bytes_read = 2 * HR_TUNING_BYTES_MIN,
        .busy_ns = 2 * HR_TUNING_BYTES_MIN, /* 1 GB/s, 1.9 were the low end */
        .in_flight = 20.0,
        .depth = 24,
        .depth_min = 24,
    };
    struct hr_stream_stats other[6];

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(other); i++)
        other[i] = slow;
    other[0].busy_ns = slow.busy_ns * 2 / 3; /* 1.5 GB/s */
    other[1].bytes_read = other[1].busy_ns = HR_TUNING_BYTES_MIN / 2;
    other[2].in_flight = 10.0; /* its user was the slower one */
    other[3].n_files_direct = 0;
    other[4].busy_ns = 0;
    other[5].depth_min = 3; /* the kernel lacked memory */
    hr_log_set(keep_warning, NULL, HR_LOG_WARN);
    for (size_t i = 0; i < HR_ARRAY_SIZE(other); i++) {
        last_warning[0] = '\0';
        hr_tuning_compare(&good, &other[i]);
        assert_string_equal(last_warning, "");
    }
    hr_tuning_compare(&good, &slow);
    assert_non_null(strstr(last_warning, "gave 1.00 GB/s"));
    assert_non_null(strstr(last_warning, "headrace tune"));
    hr_log_set(NULL, NULL, HR_LOG_WARN);
}

static void test_nowhere_to_save(void **state)
{
    struct hr_tuning tuning = good;
    struct hr_error err = {0};
    char *home = getenv("HOME") ? strdup(getenv("HOME")) : NULL;

    (void) state;
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HOME");
    assert_int_equal(hr_tuning_save(model.checkpoint, &tuning, NULL, &err), -ENOENT);
    assert_non_null(strstr(err.message, "XDG_CACHE_HOME"));
    assert_int_equal(hr_tuning_load(model.checkpoint, &tuning, NULL, NULL), 0);
    setenv("XDG_CACHE_HOME", "/proc/nothing/can/be/made/here", 1);
    hr_error_clear(&err);
    assert_true(hr_tuning_save(model.checkpoint, &tuning, NULL, &err) < 0);
    assert_non_null(strstr(err.message, "/proc/nothing"));
    setenv("XDG_CACHE_HOME", cache, 1);
    if (home)
        setenv("HOME", home, 1);
    free(home);
}

/* Written bytes of their own are no reason for doubt; a hole is, and so are zeros. */
static void test_range_state(void **state)
{
    const struct hr_shard *shard = hr_checkpoint_shard(model.checkpoint, 0);
    struct hr_range_state range;
    struct hr_error err = {0};
    struct stat st;

    (void) state;
    assert_int_equal(hr_checkpoint_range_state(model.checkpoint, 0, 1 << 20,
                                               shard->size_bytes - (1 << 20), &range, &err),
                     0);
    assert_int_equal(range.n_samples, HR_RANGE_SAMPLES);
    assert_true(range.n_alike < HR_RANGE_SAMPLES / 10);
    assert_int_equal(
        hr_checkpoint_range_state(model.checkpoint, 0, 1, shard->size_bytes, &range, &err),
        -EINVAL);
    assert_int_equal(hr_checkpoint_range_state(model.checkpoint, 99, 0, 1, &range, &err), -EINVAL);

    /* From here on its last 8 MiB are a hole. */
    const int fd = hr_checkpoint_fd(model.checkpoint, 0);
    const int writable = open(shard->path, O_RDWR);

    assert_true(writable >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(ftruncate(writable, st.st_size - (8 << 20)), 0);
    assert_int_equal(ftruncate(writable, st.st_size), 0);
    assert_int_equal(fsync(writable), 0);
    assert_int_equal(hr_checkpoint_range_state(model.checkpoint, 0, shard->size_bytes - (8 << 20),
                                               8 << 20, &range, &err),
                     0);
    assert_int_equal(range.n_alike, range.n_samples);
    if (range.extents_known) {
        assert_true(range.odd_bytes >= (8 << 20) - 4096);
        assert_string_equal(range.odd_kind, "a hole");
    }
    close(writable);
}

static int set_up(void **state)
{
    (void) state;
    strcpy(cache, "/tmp/headrace-tuning-XXXXXX");
    if (!mkdtemp(cache))
        return -1;
    setenv("XDG_CACHE_HOME", cache, 1);
    model_fixture_open(&model,
                       &(struct hr_synth_params){.n_layers = 2, .n_heads = 4, .joint_dim = 96});
    return 0;
}

static int tear_down(void **state)
{
    char folder[96], path[400];
    struct dirent *entry;

    (void) state;
    model_fixture_close(&model);
    snprintf(folder, sizeof(folder), "%s/headrace", cache);
    DIR *dir = opendir(folder);
    while (dir && (entry = readdir(dir))) {
        snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
        unlink(path);
    }
    if (dir)
        closedir(dir);
    rmdir(folder);
    return rmdir(cache); /* nothing else is left there */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_saved_and_used),    cmocka_unit_test(test_bad_values_are_not_saved),
        cmocka_unit_test(test_strange_files),     cmocka_unit_test(test_nowhere_to_save),
        cmocka_unit_test(test_slow_disk_is_said), cmocka_unit_test(test_range_state),
        cmocka_unit_test(test_trace_has_room),    cmocka_unit_test(test_other_blocks),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
