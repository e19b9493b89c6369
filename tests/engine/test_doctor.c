/* SPDX-License-Identifier: Apache-2.0 */
/* test_doctor.c -- hr_doctor() on made-up machines: what was tried, memory, CPU, GPU; the whole. */
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

#include "made_up_machine.h"

/* ---- what was tried ----------------------------------------------------------------------- */

static void ask_io(const struct hr_io_trial *trial, const char *no_file)
{
    const struct hr_doctor d = machine_doctor();

    hr_doctor_io(&d, trial, no_file);
}

static void test_all_works(void **state)
{
    static const char *const names[] = {"io_uring",  "backend", "o_direct",
                                        "alignment", "memlock", "huge_pages"};
    const struct hr_io_trial trial = machine_trial();

    (void) state;
    unsetenv("HEADRACE_IO");
    machine_new();
    machine_put("sys/kernel/mm/transparent_hugepage", "enabled", "always [madvise] never\n");
    machine_put("proc", "meminfo", "HugePages_Total:       9\nHugePages_Free:        7\n");
    ask_io(&trial, NULL);
    assert_int_equal(n_found, HR_ARRAY_SIZE(names));
    for (size_t i = 0; i < n_found; i++)
        assert_found(names[i], HR_FINDING_OK, "", "");
    assert_found("backend", HR_FINDING_OK, "io_uring, direct", "");
    assert_found("alignment", HR_FINDING_OK, "4096", "");
    assert_found("memlock", HR_FINDING_OK, "a ring of 192 MiB was registered", "");
    assert_found("huge_pages", HR_FINDING_OK, "transparent ones: madvise; reserved and free: 7 ",
                 "");
}

static void test_no_io_uring(void **state)
{
    struct hr_io_trial trial = machine_trial();

    (void) state;
    machine_new();
    trial.backends[0].pinned_bytes = 0;
    trial.backends[0].why_not.code = -EPERM;
    ask_io(&trial, NULL);
    assert_found("io_uring", HR_FINDING_MISSING, "not permitted", "seccomp=unconfined");
    assert_found("backend", HR_FINDING_SLOW, "libaio", "seccomp=unconfined");
    machine_put("proc/sys/kernel", "io_uring_disabled", "2\n");
    ask_io(&trial, NULL);
    assert_found("io_uring", HR_FINDING_MISSING, "", "sudo sysctl kernel.io_uring_disabled=0");
    trial.backends[0].why_not.code = -ENOSYS;
    ask_io(&trial, NULL);
    assert_found("io_uring", HR_FINDING_MISSING, "", HR_NO_COMMAND);
    trial.backends[0].why_not.code = -ENOMEM;
    ask_io(&trial, NULL);
    assert_found("io_uring", HR_FINDING_MISSING, "", "--memlock=unlimited");
    trial.backends[1].why_not.code = trial.backends[2].why_not.code = -EIO;
    snprintf(trial.backends[2].why_not.message, 64, "it burns");
    ask_io(&trial, NULL);
    assert_found("backend", HR_FINDING_MISSING, "pread: it burns", "--memlock=unlimited");
    /* A build without it. */
    trial.backends[0] = (struct hr_io_backend_trial){.name = "pread"};
    trial.n_backends = 1;
    ask_io(&trial, NULL);
    assert_found("io_uring", HR_FINDING_MISSING, "this build", "liburing-dev");
    assert_found("backend", HR_FINDING_SLOW, "pread", "liburing-dev");
}

static void test_forced_backend(void **state)
{
    struct hr_io_trial trial = machine_trial();

    (void) state;
    setenv("HEADRACE_IO", "pread", 1);
    ask_io(&trial, NULL);
    assert_found("backend", HR_FINDING_SLOW, "HEADRACE_IO=pread", "unset HEADRACE_IO");
    setenv("HEADRACE_IO", "io_uring", 1);
    ask_io(&trial, NULL);
    assert_found("backend", HR_FINDING_OK, "HEADRACE_IO=io_uring", "");
    trial.backends[0].why_not.code = -EPERM;
    ask_io(&trial, NULL);
    assert_found("backend", HR_FINDING_MISSING, "does not work here", "unset");
    setenv("HEADRACE_IO", "warp", 1);
    ask_io(&trial, NULL);
    assert_found("backend", HR_FINDING_MISSING, "not in this build", "unset");
    unsetenv("HEADRACE_IO");
}

static void test_less_than_wanted(void **state)
{
    struct hr_io_trial trial = machine_trial();

    (void) state;
    machine_new();
    trial.not_direct = "it lies in memory (tmpfs)";
    trial.backends[0].pinned_bytes = 0;
    trial.huge_bytes = trial.ring_bytes / 2;
    ask_io(&trial, NULL);
    assert_found("o_direct", HR_FINDING_MISSING, "tmpfs", "cp -a MODEL");
    assert_false(found_is_there("alignment"));
    assert_found("backend", HR_FINDING_OK, "io_uring, buffered", "");
    assert_found("memlock", HR_FINDING_SLOW, "not registered", "prlimit --pid $$");
    assert_found("huge_pages", HR_FINDING_SLOW, "96 of a ring's 192 MiB", "vm.nr_hugepages=96");
    machine_put("sys/kernel/mm/transparent_hugepage", "enabled", "always madvise [never]\n");
    ask_io(&trial, "Permission denied");
    assert_found("huge_pages", HR_FINDING_SLOW, "never", "echo madvise");
    assert_found("o_direct", HR_FINDING_MISSING, "Permission denied", "headrace doctor MODEL");
    machine_put("sys/kernel/mm/transparent_hugepage", "enabled", "[always] madvise never\n");
    ask_io(&trial, NULL);
    assert_found("huge_pages", HR_FINDING_SLOW, "always", "compact_memory");
}

/* ---- memory, CPU, NUMA, GPU ---------------------------------------------------------------- */

static const char meminfo[] = "MemTotal:       16000000 kB\nMemFree:  1 kB\n"
                              "MemAvailable:   8000000 kB\n";

static void ask_ram(void)
{
    const struct hr_doctor d = machine_doctor();
    const struct hr_room room = hr_room_read(d.root);

    hr_doctor_ram(&d, &room);
}

static void test_ram(void **state)
{
    (void) state;
    machine_new();
    ask_ram();
    assert_found("free_ram", HR_FINDING_MISSING, "does not say", "mount -t proc");
    machine_put("proc", "meminfo", meminfo);
    ask_ram();
    assert_found("free_ram", HR_FINDING_OK, "8.19 GB of 16.4", "");
    machine_put("proc", "meminfo", "MemTotal: 16000000 kB\nMemAvailable: 400000 kB\n");
    ask_ram();
    assert_found("free_ram", HR_FINDING_SLOW, "0.41 GB", "ps -eo rss");
    machine_put("proc", "meminfo", "MemTotal: 16000000 kB\nMemAvailable: 100000 kB\n");
    ask_ram();
    assert_found("free_ram", HR_FINDING_MISSING, "0.10 GB", "ps -eo rss");
}

/* The group with the least left counts, the own or one above; what is cached does not. */
static void test_control_groups(void **state)
{
    (void) state;
    machine_new();
    machine_put("proc", "meminfo", meminfo);
    machine_put("proc/self", "cgroup", "0::/a/b\n");
    machine_put("sys/fs/cgroup/a/b", "memory.max", "max\n");
    machine_put("sys/fs/cgroup/a", "memory.max", "1000000000\n");
    machine_put("sys/fs/cgroup/a", "memory.current", "800000000\n");
    machine_put("sys/fs/cgroup/a", "memory.stat", "anon 1\ninactive_file 300000000\n");
    ask_ram();
    assert_found("free_ram", HR_FINDING_SLOW, "may have 1.0 GB and holds 0.5", "docker update");

    /* A small group with much left, under a large one that is nearly full. */
    machine_put("sys/fs/cgroup/a/b", "memory.max", "600000000\n");
    machine_put("sys/fs/cgroup/a/b", "memory.current", "1000000\n");
    machine_put("sys/fs/cgroup/a", "memory.current", "1200000000\n");
    ask_ram();
    assert_found("free_ram", HR_FINDING_MISSING, "may have 1.0 GB and holds 0.9", "docker update");
    assert_int_equal(hr_room_read(machine_doctor().root).room_bytes, 100000000);

    /* What is cached of files read more than once can be had back as well. */
    machine_put("sys/fs/cgroup/a", "memory.stat",
                "inactive_file 300000000\nactive_file 200000000\n");
    assert_int_equal(hr_room_read(machine_doctor().root).room_bytes, 300000000);
    machine_put("sys/fs/cgroup/a", "memory.stat", "anon 1\ninactive_file 300000000\n");

    /* A full group leaves nothing, which is not the same as that nobody knows. */
    machine_put("sys/fs/cgroup/a", "memory.current", "1300000001\n");
    assert_int_equal(hr_room_read(machine_doctor().root).room_bytes, 0);
    machine_new();
    assert_int_equal(hr_room_read(machine_doctor().root).room_bytes, UINT64_MAX);

    /* The first interface, in a container whose group's folder is not there. */
    machine_new();
    machine_put("proc", "meminfo", meminfo);
    machine_put("proc/self", "cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/abc\n");
    machine_put("sys/fs/cgroup/memory", "memory.limit_in_bytes", "300000000\n");
    machine_put("sys/fs/cgroup/memory", "memory.usage_in_bytes", "100000000\n");
    ask_ram();
    assert_found("free_ram", HR_FINDING_MISSING, "may have 0.3 GB", "docker update");
    machine_put("sys/fs/cgroup/memory", "memory.limit_in_bytes", "9223372036854771712\n");
    ask_ram();
    assert_found("free_ram", HR_FINDING_OK, "8.19 GB of 16.4", "");
}

static void test_cpu(void **state)
{
    static const struct {
        const char *text, *found;
        enum hr_finding_state state;
    } cases[] = {
        {"processor : 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx avx2 avx512f avx512_bf16\n",
         "avx2 avx512f avx512_bf16", HR_FINDING_OK},
        {"model name\t: Some CPU\nflags\t\t: avx2 amx_bf16 amx_tile\n", "avx2 amx_bf16",
         HR_FINDING_OK},
        {"model name\t: Some CPU\nflags\t\t: fpu avx2x xavx512f avx2\n",
         "avx2; products of bf16 are not in hardware", HR_FINDING_SLOW},
        {"model name\t: Some CPU\nflags\t\t: fpu sse2\n", "no vector instructions",
         HR_FINDING_SLOW},
        {"processor\t: 0\nFeatures\t: fp asimd bf16\n", "asimd bf16", HR_FINDING_OK},
        {"", "does not say", HR_FINDING_MISSING},
    };

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(cases); i++) {
        const struct hr_doctor d = machine_doctor();

        machine_new();
        machine_put("proc", "cpuinfo", cases[i].text);
        hr_doctor_cpu(&d);
        assert_found("cpu", cases[i].state, cases[i].found, "");
    }
}

static void test_numa(void **state)
{
    const struct hr_doctor d = {.root = machine_root, .fn = found_keep};

    (void) state;
    machine_new();
    (void) machine_doctor();
    hr_doctor_numa(&d, 0);
    assert_found("numa", HR_FINDING_OK, "1 node", "");
    machine_put("sys/devices/system/node/node0", "cpulist", "0-1000\n");
    machine_put("sys/devices/system/node/node1", "cpulist", "1001-1003,1010\n");
    (void) machine_doctor();
    hr_doctor_numa(&d, 0);
    assert_found("numa", HR_FINDING_OK, "2 nodes, the disk at node 0", "");
    (void) machine_doctor();
    hr_doctor_numa(&d, 1);
    assert_found("numa", HR_FINDING_SLOW, "the disk at node 1", "taskset -cp 1001-1003,1010 $$");
    (void) machine_doctor();
    hr_doctor_numa(&d, -1);
    assert_found("numa", HR_FINDING_OK, "2 nodes", "");
}

#define GPU_FOLDER "sys/devices/pci0000:00/0000:02:00.0"

static struct hr_read_file any_file(void)
{
    return (struct hr_read_file){.fd = machine_file(), .path = "any", .size_bytes = 3};
}

static void ask_gpu(void)
{
    const struct hr_doctor d = machine_doctor();
    const struct hr_read_file file = any_file();

    hr_doctor_gpu(&d, &file);
}

/* With a library of cuFile's name, see tests/io/fake_cufile.c. */
static void test_gpu_direct(void **state)
{
    const struct hr_read_file file = any_file();
    struct hr_doctor d = machine_doctor();

    (void) state;
    setenv("FAKE_CUFILE", "no-path", 1);
    hr_doctor_gpu_direct(&d, "emulated", &file);
    unsetenv("FAKE_CUFILE");
    if (strstr(found_first("gpu_direct")->found, "directly or not at all")) {
        assert_found("gpu_direct", HR_FINDING_MISSING, "", HR_MOVE_MODEL);
    } else {
        assert_found("gpu_direct", HR_FINDING_MISSING, "no direct path from the disk", "gdscheck");
        d = machine_doctor();
        hr_doctor_gpu_direct(&d, "emulated", &file);
        assert_found("gpu_direct", HR_FINDING_OK, "--io cufile", "");
    }
}

static void test_gpu(void **state)
{
    (void) state;
    machine_new();
    ask_gpu();
    assert_found("device", HR_FINDING_OK, "cpu", "");
    if (found_first("gpu")->state != HR_FINDING_OK) /* there may be a real one */
        assert_found("gpu", HR_FINDING_MISSING, "cuda", "no NVIDIA GPU");
    assert_false(found_is_there("gpu_driver") || found_is_there("gpu_link"));

    machine_put(GPU_FOLDER, "vendor", "0x10de\n");
    machine_put(GPU_FOLDER, "class", "0x040300\n"); /* its sound */
    machine_put_link("sys/bus/pci/devices", "0000:02:00.0", GPU_FOLDER);
    ask_gpu();
    assert_false(found_is_there("gpu_driver"));
    machine_put(GPU_FOLDER, "class", "0x030000\n");
    machine_put_pci(GPU_FOLDER, "2.5 GT/s PCIe\n", "4\n"); /* at rest: no fault */
    ask_gpu();
    assert_found("gpu_driver", HR_FINDING_MISSING, "0000:02:00.0", "install nvidia-driver");
    assert_found("gpu_link", HR_FINDING_OK, "x4 of x4, up to 7.9 GB/s", "");
    machine_put(GPU_FOLDER, "max_link_width", "16\n");
    machine_put(
        "proc/driver/nvidia", "version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC\n");
    ask_gpu();
    assert_found("gpu_driver", HR_FINDING_OK, "550.54.14", "");
    assert_found("gpu_link", HR_FINDING_SLOW, "x4 of x16", "sudo lspci -vvs 0000:02:00.0");
}

/* ---- the whole ----------------------------------------------------------------------------- */

static int run(const char *path)
{
    n_found = 0;
    return hr_doctor_run(machine_root, &(struct hr_doctor_params){.path = path}, found_keep, NULL,
                         NULL);
}

static void test_whole_round(void **state)
{
    static const char *const names[] = {
        "kernel",    "io_uring", "backend", "o_direct", "memlock", "huge_pages", "filesystem",
        "free_disk", "disk",     "numa",    "free_ram", "cpu",     "device",     "gpu"};

    (void) state;
    machine_new_nvme("16.0 GT/s PCIe\n", "4\n");
    machine_put("proc", "meminfo", "MemTotal: 16000000 kB\nMemAvailable: 100000 kB\n");
    scratch_folder(scratch("model"));
    scratch_weights(scratch("model/a.safetensors"), "a b");
    scratch_folder(scratch("pipeline"));
    scratch_folder(scratch("pipeline/transformer"));
    scratch_weights(scratch("pipeline/transformer/a.safetensors"), "a b");
    scratch_folder(scratch("empty"));
    const char *const paths[] = {scratch("model"), scratch("model/a.safetensors"),
                                 scratch("pipeline"), scratch("empty")};

    for (size_t p = 0; p < HR_ARRAY_SIZE(paths); p++) {
        assert_int_equal(run(paths[p]), 0);
        for (size_t i = 0; i < HR_ARRAY_SIZE(names); i++)
            (void) found_first(names[i]);
        assert_found("disk", HR_FINDING_OK, "nvme0n1", "");
        /* Memory is scarce on this machine: the ring that is tried out is small. */
        assert_non_null(strstr(found_first("huge_pages")->found, " of a ring's 24 MiB"));
    }
    assert_string_equal(scratch_list(paths[3]), ""); /* nothing is left in it */
}

static void test_paths_that_fail(void **state)
{
    (void) state;
    machine_new();
    assert_fails(hr_doctor_run(machine_root, &(struct hr_doctor_params){.path = scratch("no_such")},
                               found_keep, NULL, &err),
                 -ENOENT, "no_such: cannot open");
    assert_int_equal(mkfifo(scratch("fifo"), 0600), 0);
    assert_fails(hr_doctor_run(machine_root, &(struct hr_doctor_params){.path = scratch("fifo")},
                               found_keep, NULL, &err),
                 -EINVAL, "fifo: is a FIFO");
    scratch_folder(scratch("bad"));
    assert_int_equal(symlink("nowhere", scratch("bad/a.safetensors")), 0);
    assert_true(run(scratch("bad")) < 0);
    assert_int_equal(n_found, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_works),
        cmocka_unit_test(test_no_io_uring),
        cmocka_unit_test(test_forced_backend),
        cmocka_unit_test(test_less_than_wanted),
        cmocka_unit_test(test_ram),
        cmocka_unit_test(test_control_groups),
        cmocka_unit_test(test_cpu),
        cmocka_unit_test(test_numa),
        cmocka_unit_test(test_gpu),
        cmocka_unit_test(test_gpu_direct),
        cmocka_unit_test(test_whole_round),
        cmocka_unit_test(test_paths_that_fail),
    };

    setenv("HEADRACE_DEVICE", "cpu", 1); /* of automatic choices */
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
