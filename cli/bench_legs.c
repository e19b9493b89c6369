/* SPDX-License-Identifier: Apache-2.0 */
/* bench_legs.c -- one reading of one window, ours or fio's, between two looks at the disk's own
 * counter.
 *
 * fio is asked for what it does best on such a file, https://fio.readthedocs.io: io_uring with
 * registered buffers and file, O_DIRECT, one thread. --invalidate=0: it is not to drop anybody's
 * page cache. Its rate is its own bytes over its own run time, without its start.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/bench.h"

extern char **environ;

enum { OUTPUT_BYTES_MAX = 1 << 20, SECTOR_BYTES = 512 };

/* Bytes that the disk under `path` has read since it was there, see the kernel's
 * Documentation/block/stat.rst. */
static bool disk_counter(const char *path, uint64_t *ret_bytes)
{
    unsigned long long ios, merges, sectors;
    char name[64];
    struct stat st;
    bool known;
    FILE *f;

    if (stat(path, &st) < 0)
        return false;
    snprintf(name, sizeof(name), "/sys/dev/block/%u:%u/stat", major(st.st_dev), minor(st.st_dev));
    f = fopen(name, "re");
    if (!f)
        return false;
    known = fscanf(f, "%llu %llu %llu", &ios, &merges, &sectors) == 3;
    fclose(f);
    if (known)
        *ret_bytes = sectors * SECTOR_BYTES;
    return known;
}

static const char *shard_path(const struct bench_windows *windows,
                              const struct bench_window *window)
{
    return hr_checkpoint_shard(windows->model, window->shard_idx)->path;
}

static void count(struct bench_gates *gates, bool known, uint64_t before, const char *path,
                  uint64_t asked_bytes)
{
    uint64_t after;

    if (!known || !disk_counter(path, &after)) {
        gates->not_counted = true;
        return;
    }
    gates->counted_bytes += after - before;
    gates->asked_bytes += asked_bytes;
}

int bench_leg_ours(struct bench_leg *ret_leg, struct hr_stream *stream,
                   const struct bench_windows *windows, const struct bench_window *window,
                   struct bench_gates *gates, struct hr_error *err)
{
    const char *path = shard_path(windows, window);
    struct hr_stream_stats first, last;
    struct bench_leg leg = {0};
    struct hr_unit unit;
    uint64_t before = 0;
    const bool known = disk_counter(path, &before);
    int r;

    hr_stream_get_stats(stream, &first);
    const uint64_t begin_ns = cli_now_ns();
    r = hr_stream_plan(stream, window->names, window->n_names, 0, 1, err);
    while (r >= 0 && (r = hr_stream_next(stream, &unit, err)) > 0)
        hr_stream_release(stream, &unit);
    if (r < 0)
        return r;
    leg.ns = cli_now_ns() - begin_ns;
    hr_stream_get_stats(stream, &last);
    leg.bytes = last.bytes_used - first.bytes_used;
    count(gates, known, before, path, last.bytes_read - first.bytes_read);
    *ret_leg = leg;
    return 0;
}

/* ---- fio ---------------------------------------------------------------------------------- */

/* The end of a process that was spawned. @return 0 or an errno, positive as posix_spawn()'s */
static int wait_for(pid_t pid, int *ret_status)
{
    if (cli_interrupted)
        kill(pid, SIGTERM);
    while (waitpid(pid, ret_status, 0) < 0)
        if (errno != EINTR)
            return errno;
    return 0;
}

/* Run fio and take what it prints. @return 0 or a negative errno; -ENOENT: there is none */
static int run_fio(char *const *argv, char **ret_output, int *ret_status)
{
    char *output = malloc(OUTPUT_BYTES_MAX);
    posix_spawn_file_actions_t actions;
    int ends[2], r;
    size_t len = 0;
    ssize_t got = 0;
    pid_t pid;

    if (!output)
        return -ENOMEM;
    if (pipe2(ends, O_CLOEXEC) < 0) {
        r = -errno;
        free(output);
        return r;
    }
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
    r = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    while (r == 0 && len < OUTPUT_BYTES_MAX - 1 &&
           ((got = read(ends[0], output + len, OUTPUT_BYTES_MAX - 1 - len)) > 0 ||
            (got < 0 && errno == EINTR && !cli_interrupted)))
        len += got > 0 ? (size_t) got : 0;
    close(ends[0]);
    if (r == 0)
        r = wait_for(pid, ret_status);
    output[len] = '\0';
    if (r == 0)
        *ret_output = output;
    else
        free(output);
    return -r;
}

static int fail_fio(int r, struct hr_error *err)
{
    return cli_error(err, r, "fio: cannot be run: %s", strerror(-r));
}

/* fio takes ":" in a file name for a separator. */
static char *escape_colons(const char *path)
{
    char *escaped = malloc(2 * strlen(path) + 1), *p = escaped;

    for (const char *c = path; escaped && *c; c++) {
        if (*c == ':' || *c == '\\')
            *p++ = '\\';
        *p++ = *c;
    }
    if (escaped)
        *p = '\0';
    return escaped;
}

static double percentile(const json_t *read, const char *name)
{
    return json_number_value(
        json_object_get(json_object_get(json_object_get(read, "clat_ns"), "percentile"), name));
}

/* @return true where the text is the result of a job that read something */
static bool parse_fio(const char *text, struct bench_leg *ret_leg)
{
    const char *begin = strchr(text, '{'); /* warnings come before */
    json_t *root = begin ? json_loads(begin, JSON_DISABLE_EOF_CHECK, NULL) : NULL;
    json_t *job = json_array_get(json_object_get(root, "jobs"), 0);
    json_t *read = json_object_get(job, "read");
    const double seconds = json_number_value(json_object_get(read, "runtime")) / 1e3;
    struct bench_leg leg = {
        .bytes = (uint64_t) json_number_value(json_object_get(read, "io_bytes")),
        .ns = (uint64_t) (seconds * 1e9),
        .cpu_s = (json_number_value(json_object_get(job, "usr_cpu")) +
                  json_number_value(json_object_get(job, "sys_cpu"))) /
                 100.0 * seconds,
        .latency_p50_ns = percentile(read, "50.000000"),
        .latency_p99_ns = percentile(read, "99.000000"),
        .latency_p999_ns = percentile(read, "99.900000"),
    };
    const bool good =
        job && json_integer_value(json_object_get(job, "error")) == 0 && leg.bytes > 0;

    json_decref(root);
    if (good && leg.ns == 0)
        leg.ns = 1000000; /* it counts milliseconds */
    *ret_leg = leg;
    return good;
}

/* Bytes of a huge page where as many are free as `bytes` need, else 0. fio's buffers can lie in
 * those that the administrator has reserved (vm.nr_hugepages), not in transparent ones as our ring.
 */
static uint64_t reserved_huge_page(uint64_t bytes)
{
    unsigned long long n_free = 0, page_kib = 0;
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];

    while (f && fgets(line, sizeof(line), f)) {
        sscanf(line, "HugePages_Free: %llu", &n_free);
        sscanf(line, "Hugepagesize: %llu", &page_kib);
    }
    if (f)
        fclose(f);
    /* Two more: it aligns each buffer. */
    return page_kib > 0 && n_free >= (bytes >> 10) / page_kib + 2 ? page_kib << 10 : 0;
}

int bench_leg_fio(struct bench_leg *ret_leg, const struct bench_setting *setting,
                  const struct bench_windows *windows, const struct bench_window *window,
                  struct bench_gates *gates, struct hr_error *err)
{
    const char *path = shard_path(windows, window);
    char *escaped = escape_colons(path), *output = NULL, offset[48], size[48], block[32], depth[32];
    char *file = NULL, page[48];
    const uint64_t page_bytes =
        reserved_huge_page((uint64_t) setting->block_bytes * setting->depth);
    uint64_t before = 0;
    const bool known = disk_counter(path, &before);
    int status = 0, r;

    if (!escaped || asprintf(&file, "--filename=%s", escaped) < 0)
        file = NULL;
    free(escaped);
    if (!file)
        return cli_error(err, -ENOMEM, "out of memory");
    snprintf(offset, sizeof(offset), "--offset=%" PRIu64, window->offset_bytes);
    snprintf(size, sizeof(size), "--size=%" PRIu64, window->size_bytes);
    snprintf(block, sizeof(block), "--bs=%u", setting->block_bytes);
    snprintf(depth, sizeof(depth), "--iodepth=%u", setting->depth);
    snprintf(page, sizeof(page), "--hugepage-size=%" PRIu64, page_bytes);
    char name[] = "--name=window", engine[] = "--ioengine=io_uring", fixed[] = "--fixedbufs=1",
         registered[] = "--registerfiles=1", direct[] = "--direct=1", rw[] = "--rw=read",
         readonly[] = "--readonly", thread[] = "--thread", keep[] = "--invalidate=0",
         format[] = "--output-format=json", fio[] = "fio", huge[] = "--mem=shmhuge";
    char *argv[] = {fio,
                    name,
                    file,
                    offset,
                    size,
                    block,
                    depth,
                    engine,
                    fixed,
                    registered,
                    direct,
                    rw,
                    readonly,
                    thread,
                    keep,
                    format,
                    page_bytes ? huge : NULL,
                    page,
                    NULL};

    r = run_fio(argv, &output, &status);
    free(file);
    if (r < 0)
        return fail_fio(r, err);
    if (cli_interrupted)
        r = cli_error(err, -ECANCELED, "interrupted");
    else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || !parse_fio(output, ret_leg))
        r = cli_error(err, -EIO, "fio failed on %s: %.*s", path, (int) strcspn(output, "\n"),
                      output);
    else
        count(gates, known, before, path, ret_leg->bytes);
    ret_leg->huge_pages = page_bytes > 0;
    free(output);
    return r;
}

int bench_fio_version(char *buf, size_t buf_bytes, bool *ret_found, struct hr_error *err)
{
    char fio[] = "fio", version[] = "--version";
    char *argv[] = {fio, version, NULL}, *output;
    int status;
    int r = run_fio(argv, &output, &status);

    *ret_found = false;
    if (r == -ENOENT || r == -ENOTDIR || r == -EACCES) /* not there, or not for this user */
        return 0;
    if (r < 0)
        return fail_fio(r, err);
    const int len = (int) strcspn(output, "\n");

    *ret_found = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (cli_interrupted)
        r = cli_error(err, -ECANCELED, "interrupted");
    else if (*ret_found)
        snprintf(buf, buf_bytes, "%.*s", len, output);
    else
        r = cli_error(err, -EIO,
                      "fio --version failed: %.*s; repair it, or take it out of PATH to go without",
                      len, output);
    free(output);
    return r;
}
