/* SPDX-License-Identifier: Apache-2.0 */
/* test_tensor_file.c -- result files: readable, aligned, whole or untouched. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/common.h"
#include "scratch.h"

static const float data[] = {1.5f, -2, 3, -4, 5, 1e-42f};
static const uint64_t shape[] = {2, 3};

static const struct hr_tensor_out tensors[] = {
    {"velocity", data, 2, shape},
    {"scalar", data + 1, 0, NULL},
    {"empty", NULL, 2, (const uint64_t[]){0, 7}},
};

static void assert_file(const char *path)
{
    const struct hr_checkpoint_params params = {&path, 1, NULL};
    struct hr_checkpoint *checkpoint;
    const struct hr_tensor *tensor;
    float got[6];

    assert_works(hr_checkpoint_open(&checkpoint, &params, &err));
    assert_int_equal(hr_checkpoint_n_tensors(checkpoint), 3);
    tensor = hr_checkpoint_find(checkpoint, "velocity");
    assert_int_equal(tensor->rank, 2);
    assert_int_equal(tensor->shape[1], 3);
    assert_int_equal(tensor->offset_bytes % 8, 0);
    assert_works(hr_checkpoint_read_f32(checkpoint, tensor, got, 6, &err));
    assert_memory_equal(got, data, sizeof(got));
    tensor = hr_checkpoint_find(checkpoint, "scalar");
    assert_works(hr_checkpoint_read_f32(checkpoint, tensor, got, 1, &err));
    assert_true(got[0] == -2);
    hr_checkpoint_close(&checkpoint);
}

static void test_write(void **state)
{
    struct stat st;

    (void) state;
    assert_works(hr_tensors_write(scratch("a.safetensors"), tensors, 3, &err));
    assert_file(scratch("a.safetensors"));
    /* An old file is replaced, through a link too. */
    scratch_text(scratch("b"), "old");
    assert_int_equal(symlink("b", scratch("l.safetensors")), 0);
    assert_works(hr_tensors_write(scratch("l.safetensors"), tensors, 3, &err));
    assert_file(scratch("b"));
    assert_int_equal(lstat(scratch("l.safetensors"), &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_works(hr_tensors_write(scratch("none.safetensors"), NULL, 0, &err));
    assert_string_equal(scratch_list(scratch("%s", "")),
                        "a.safetensors b l.safetensors none.safetensors ");
}

/* In a container each run may have the number of one that was killed. */
static void test_left_by_another(void **state)
{
    (void) state;
    scratch_text(scratch(".left.tmp-%ld", (long) getpid()), "half a file");
    assert_works(hr_tensors_write(scratch("left"), tensors, 3, &err));
    assert_file(scratch("left"));
}

static void test_relative_path(void **state)
{
    char *old = getcwd(NULL, 0);

    (void) state;
    assert_int_equal(chdir(scratch("%s", "")), 0);
    assert_works(hr_tensors_write("r.safetensors", tensors, 3, &err));
    assert_file("r.safetensors");
    assert_int_equal(chdir(old), 0);
    free(old);
}

static void test_refused_targets(void **state)
{
    (void) state;
    assert_fails(hr_tensors_write("/dev/null", tensors, 3, &err), -EINVAL,
                 "/dev/null: is a device");
    assert_fails(hr_tensors_write(scratch("%s", ""), tensors, 3, &err), -EINVAL, "is a folder");
    assert_int_equal(mkfifo(scratch("f"), 0666), 0);
    assert_fails(hr_tensors_write(scratch("f"), tensors, 3, &err), -EINVAL, "is a FIFO");
    assert_int_equal(symlink("nowhere", scratch("l")), 0);
    assert_fails(hr_tensors_write(scratch("l"), tensors, 3, &err), -ENOENT, "l: cannot ");
    assert_fails(hr_tensors_write(scratch("none/a"), tensors, 3, &err), -ENOENT, "none/a: cannot ");
    assert_fails(hr_tensors_write("", tensors, 3, &err), -EINVAL, "no name");
    assert_string_equal(scratch_list(scratch("%s", "")), "f l ");
}

static void test_bad_tensors(void **state)
{
    const struct hr_tensor_out twice[] = {tensors[0], tensors[0]};
    const struct hr_tensor_out no_data[] = {{"a", NULL, 2, shape}};
    const struct hr_tensor_out no_name[] = {{NULL, data, 2, shape}};

    (void) state;
    assert_fails(hr_tensors_write(scratch("a"), twice, 2, &err), -EINVAL, "\"velocity\"");
    assert_fails(hr_tensors_write(scratch("a"), no_data, 1, &err), -EINVAL, "no data");
    assert_fails(hr_tensors_write(scratch("a"), no_name, 1, &err), -EINVAL, "no name");
    assert_string_equal(scratch_list(scratch("%s", "")), "");
}

/* Running out of space, which a limit on the size of files stands for. */
static void test_write_error(void **state)
{
    struct rlimit limit;
    struct hr_error error = {0};
    int code;

    (void) state;
    assert_works(hr_tensors_write(scratch("a.safetensors"), tensors, 3, &err));
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    const struct rlimit small_limit = {64, limit.rlim_max};

    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small_limit), 0);
    code = hr_tensors_write(scratch("a.safetensors"), tensors, 1, &error);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(code, -EFBIG);
    assert_non_null(strstr(error.message, "a.safetensors: cannot write it"));
    assert_file(scratch("a.safetensors"));
    assert_string_equal(scratch_list(scratch("%s", "")), "a.safetensors ");
}

int main(void)
{
#define scratch_test(f) cmocka_unit_test_setup_teardown(f, scratch_setup, scratch_teardown)
    const struct CMUnitTest tests[] = {
        scratch_test(test_write),           scratch_test(test_relative_path),
        scratch_test(test_refused_targets), scratch_test(test_bad_tensors),
        scratch_test(test_write_error),     scratch_test(test_left_by_another),
    };

    return cmocka_run_group_tests_name("tensor_file", tests, NULL, NULL);
}
