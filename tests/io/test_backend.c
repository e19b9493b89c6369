/* SPDX-License-Identifier: Apache-2.0 */
/* test_backend.c -- which backend is taken, what is said about the others, and what happens where
 * the system forbids something: each in a child process that gives up the right itself.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "config.h"
#include "io_testing.h"

enum { MIB = 1 << 20, SKIPPED = 77 };

static struct io_files disk;
static const uint64_t size = 3 * MIB + 5;
static const struct hr_read_range ranges[] = {
    {0, 3, MIB}, {0, MIB + 3, 100}, {0, 2 * MIB, MIB + 5}};

static int make_files(void **state)
{
    (void) state;
    io_files_make(&disk, ".", &size, 1);
    return 0;
}

static int remove_files(void **state)
{
    (void) state;
    io_files_remove(&disk);
    return 0;
}

/* Stream the file with the backend of that name. */
static int stream_with(const char *io, struct hr_stream_stats *ret_stats, struct hr_error *err)
{
    const struct hr_reader_params params = {
        .files = disk.files, .n_files = 1, .ring_bytes = 4 * MIB, .depth = 4, .io = io};
    struct io_caller caller = {0};

    return io_stream_once(&params, ranges, 3, 2, &caller, ret_stats, err);
}

/* Run a test in a child, for what cannot be undone. Its checks end with its exit status. */
static void in_child(int (*fn)(void))
{
    int status;
    const pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0)
        _exit(fn());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == SKIPPED)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* For use in children: says what failed and leaves. */
#define CHECK(cond)                                                    \
    do {                                                               \
        if (!(cond)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond); \
            return 1;                                                  \
        }                                                              \
    } while (0)

static void unknown_names_are_refused(void **state)
{
    struct hr_error err = {0};

    (void) state;
    assert_int_equal(stream_with("warp", NULL, &err), -EINVAL);
    assert_non_null(strstr(err.message, "'warp'"));
    assert_non_null(strstr(err.message, HAVE_LIBURING ? "auto, io_uring" : "auto, "));
    assert_int_equal(strstr(err.message, ", libaio, pread") != NULL, HAVE_LIBAIO);
    assert_null(strstr(err.message, "fault"));
}

static void environment_stands_in_for_auto(void **state)
{
    struct hr_stream_stats stats;

    (void) state;
    setenv("HEADRACE_IO", "pread", 1);
    assert_int_equal(stream_with(NULL, &stats, NULL), 0);
    assert_string_equal(stats.io_name, "pread");
    assert_int_equal(stream_with("auto", &stats, NULL), 0);
    assert_string_equal(stats.io_name, "pread");
    assert_int_equal(stream_with("fault", &stats, NULL), 0);
    assert_string_equal(stats.io_name, "fault");
    setenv("HEADRACE_IO", "warp", 1);
    assert_int_equal(stream_with(NULL, NULL, NULL), -EINVAL);
    setenv("HEADRACE_IO", "auto", 1);
    assert_int_equal(stream_with(NULL, NULL, NULL), 0);
    unsetenv("HEADRACE_IO");
}

static void choice_is_said_once(void **state)
{
    (void) state;
    io_log_capture(HR_LOG_INFO);
    assert_int_equal(stream_with("pread", NULL, NULL), 0);
    assert_int_equal(io_log_count("io: pread, "), 1);
    io_log_release();
}

/* The reader's own cost: nothing is read, all ranges come. */
static void null_backend_completes(void **state)
{
    const struct hr_reader_params params = {
        .files = disk.files, .n_files = 1, .ring_bytes = 4 * MIB, .io = "null"};
    struct hr_reader *reader = NULL;
    struct hr_slice slice;
    uint32_t n = 0;

    (void) state;
    assert_int_equal(hr_reader_create(&reader, &params, NULL), 0);
    assert_int_equal(hr_reader_start(reader, ranges, 3, 0, 1000, NULL), 0);
    for (; hr_reader_next(reader, &slice, NULL) == 1; n++)
        hr_reader_release(reader, slice.ticket);
    assert_int_equal(n, 3000);
    hr_reader_destroy(&reader);
}

/* ---- refusals --------------------------------------------------------------------------- */

/* From now on the filter decides on this process's system calls. */
static int install(struct sock_filter *code, uint16_t n)
{
    const struct sock_fprog program = {.len = n, .filter = code};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0 ? -errno : 0;
}

/* From now on this system call fails with EPERM, as io_uring's do in a container. */
static int forbid(uint32_t call)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };

    return install(code, HR_ARRAY_SIZE(code));
}

static int forbidden_io_uring(void)
{
    struct hr_stream_stats stats;
    struct hr_error err = {0};

    if (forbid(SYS_io_uring_setup) < 0)
        return SKIPPED;
    io_log_capture(HR_LOG_INFO);
    CHECK(stream_with("auto", &stats, NULL) == 0);
    /* libaio reads directly only, which not every filesystem takes. */
    CHECK(strcmp(stats.io_name, HAVE_LIBAIO && stats.direct ? "libaio" : "pread") == 0);
    CHECK(io_log_count("io: libaio, direct, ") == (HAVE_LIBAIO && stats.direct));
    CHECK(io_log_count("io: io_uring does not work here: Operation not permitted; a seccomp") == 1);
    CHECK(io_log_count("kernel.io_uring_disabled") == 1);
    CHECK(stream_with("io_uring", NULL, &err) == -EPERM);
    CHECK(strstr(err.message, "io_uring") && strstr(err.message, "seccomp"));
    return 0;
}

static void forbidden_io_uring_is_passed_over(void **state)
{
    (void) state;
    if (!HAVE_LIBURING)
        skip();
    in_child(forbidden_io_uring);
}

static int nothing_works(void)
{
    struct hr_error err = {0};

    if (forbid(SYS_io_uring_setup) < 0 || forbid(SYS_io_setup) < 0 || forbid(SYS_pread64) < 0)
        return SKIPPED;
    io_log_capture(HR_LOG_WARN);
    CHECK(stream_with("auto", NULL, &err) == -ENODEV);
    CHECK(strstr(err.message, "pread: a trial read failed: Operation not permitted"));
    if (HAVE_LIBURING)
        CHECK(strstr(err.message, "io_uring: Operation not permitted; a seccomp"));
    return 0;
}

static void exhaustion_names_all_reasons(void **state)
{
    (void) state;
    in_child(nothing_works);
}

static int no_locked_memory(void)
{
    const struct rlimit none = {0, 0};
    struct hr_stream_stats stats;

    /* Root is exempt from the limit. /proc/self must stay ours when the user changes. */
    if (setrlimit(RLIMIT_MEMLOCK, &none) < 0)
        return SKIPPED;
    if (geteuid() == 0 &&
        (setresgid(65534, 65534, 65534) < 0 || setresuid(65534, 65534, 65534) < 0))
        return SKIPPED;
    prctl(PR_SET_DUMPABLE, 1);
    io_log_capture(HR_LOG_INFO);
    CHECK(stream_with("auto", &stats, NULL) == 0);
    if (strcmp(stats.io_name, "io_uring") == 0)
        CHECK(io_log_count("could not be registered") == 1 &&
              io_log_count("prlimit --pid $$") == 1);
    return 0;
}

static void locked_memory_is_not_needed(void **state)
{
    (void) state;
    in_child(no_locked_memory);
}

/* Of this process; a sanitizer may have a thread of its own. */
static rlim_t n_tasks(void)
{
    DIR *dir = opendir("/proc/self/task");
    const struct dirent *entry;
    rlim_t n = 0;

    while (dir && (entry = readdir(dir)))
        n += entry->d_name[0] != '.';
    if (dir)
        closedir(dir);
    return n;
}

/* Room for n more tasks, of a user that nobody else is. */
static int limit_tasks(rlim_t n)
{
    const struct rlimit limit = {n_tasks() + n, n_tasks() + n};
    const uid_t user = 100000 + (uid_t) getpid();

    /* Root is exempt from the limit. /proc/self must stay ours when the user changes. */
    if (setrlimit(RLIMIT_NPROC, &limit) < 0 || setresuid(user, user, user))
        return -errno;
    return prctl(PR_SET_DUMPABLE, 1);
}

static const char no_thread[] =
    "no thread for reading: Resource temporarily unavailable; raise the "
    "limit on processes (ulimit -u)";

static int no_reader_thread(void)
{
    struct hr_error err = {0};

    if (limit_tasks(0) < 0)
        return SKIPPED;
    CHECK(stream_with("pread", NULL, &err) == -EAGAIN);
    CHECK(strcmp(err.message, no_thread) == 0);
    return 0;
}

static int no_pread_thread(void)
{
    static const char prefix[] = "I/O backend pread does not work here: ";
    struct hr_error err = {0};

    if (limit_tasks(1) < 0)
        return SKIPPED;
    CHECK(stream_with("pread", NULL, &err) == -EAGAIN);
    CHECK(strncmp(err.message, prefix, strlen(prefix)) == 0);
    CHECK(strcmp(err.message + strlen(prefix), no_thread) == 0);
    return 0;
}

static void want_of_threads_is_named(void **state)
{
    (void) state;
    in_child(no_reader_thread);
    in_child(no_pread_thread);
}

/* ---- files ------------------------------------------------------------------------------ */

/* From now on the filesystem does not take O_DIRECT, in words that few use. */
static int forbid_direct(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_DIRECT, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EOPNOTSUPP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };

    return install(code, HR_ARRAY_SIZE(code));
}

static int direct_is_not_supported(void)
{
    struct hr_stream_stats stats;
    struct hr_error err = {0};

    if (forbid_direct() < 0)
        return SKIPPED;
    CHECK(stream_with("pread", &stats, &err) == 0);
    CHECK(!stats.direct && err.code == 0 && !err.message[0]);
    return 0;
}

static void refused_direct_is_no_error(void **state)
{
    (void) state;
    in_child(direct_is_not_supported);
}

/* A part smaller than what is read at a time, and one that is not there. */
static void odd_parts_have_a_state(void **state)
{
    struct hr_read_file file = disk.files[0];
    struct hr_range_state range;
    struct hr_error err = {0};

    (void) state;
    assert_int_equal(hr_io_range_state(&file, 100, 10, &range, NULL), 0);
    assert_int_equal(range.n_samples, 0);
    file.path = "odd\nname";
    assert_int_equal(hr_io_range_state(&file, size - 1, 10, &range, &err), -EINVAL);
    assert_string_equal(err.message,
                        "odd\\x0aname: has no bytes 3145732 to 3145741; it has 3145733");
}

/* The stream reads the file that was opened, whatever its path names now. */
static void replaced_path_is_no_matter(void **state)
{
    struct io_files file;
    struct io_caller caller = {0};
    struct hr_reader_params params = {.n_files = 1, .ring_bytes = 4 * MIB, .io = "pread"};

    (void) state;
    io_files_make(&file, ".", &size, 1);
    params.files = file.files;
    assert_int_equal(unlink(file.paths[0]), 0);
    assert_int_equal(io_stream_once(&params, ranges, 3, 1, &caller, NULL, NULL), 0);
    io_files_remove(&file);
}

static void buffered_on_demand(void **state)
{
    static const char *const names[] = {"pread", "io_uring"};

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(names); i++) {
        const struct hr_reader_params params = {.files = disk.files,
                                                .n_files = 1,
                                                .ring_bytes = 4 * MIB,
                                                .io = names[i],
                                                .direct = HR_DIRECT_OFF};
        struct io_caller caller = {0};
        struct hr_stream_stats stats = {.direct = true};
        struct hr_error err = {0};
        const int r = io_stream_once(&params, ranges, 3, 2, &caller, &stats, &err);

        if (r < 0 && strcmp(names[i], "io_uring") == 0)
            skip();
        assert_int_equal(r, 0);
        assert_false(stats.direct);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unknown_names_are_refused),
        cmocka_unit_test(environment_stands_in_for_auto),
        cmocka_unit_test(choice_is_said_once),
        cmocka_unit_test(null_backend_completes),
        cmocka_unit_test(forbidden_io_uring_is_passed_over),
        cmocka_unit_test(exhaustion_names_all_reasons),
        cmocka_unit_test(locked_memory_is_not_needed),
        cmocka_unit_test(want_of_threads_is_named),
        cmocka_unit_test(refused_direct_is_no_error),
        cmocka_unit_test(odd_parts_have_a_state),
        cmocka_unit_test(replaced_path_is_no_matter),
        cmocka_unit_test(buffered_on_demand),
    };

    return cmocka_run_group_tests_name("io backend", tests, make_files, remove_files);
}
