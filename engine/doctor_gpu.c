/* SPDX-License-Identifier: Apache-2.0 */
/* doctor_gpu.c -- the device that runs compute on, and the GPU: opened as a run would, and where
 * that fails, what of it is there. */
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "engine/dit_ring.h"
#include "engine/doctor.h"
#include "gpu/gpu.h"

enum {
    NVIDIA = 0x10de,
    CLASS_DISPLAY = 0x03,
    DIRECT_RING_BYTES = 8 << 20,
    DIRECT_TIMEOUT_S = 10,
};

/* @return 0 and the device's name, or a negative errno with the reason */
static int open_device(const char *device, char *name, size_t name_bytes, struct hr_error *err)
{
    struct hr_gpu *gpu = NULL;
    const int r = hr_gpu_open(&gpu,
                              &(struct hr_gpu_params){
                                  .device = device,
                                  .act = HR_DTYPE_BF16,
                                  .arena_bytes = HR_MIB,
                              },
                              err);

    if (r < 0)
        return r;
    hr_printable(hr_gpu_name(gpu), name, name_bytes);
    hr_gpu_close(&gpu);
    return 0;
}

/* What a run without --device computes on. */
static void say_device(const struct hr_doctor *d)
{
    const char *forced = hr_env("HEADRACE_DEVICE");
    struct hr_error err = {0};
    char name[160];

    if (open_device(NULL, name, sizeof(name), &err) == 0)
        hr_doctor_say(d, HR_FINDING_OK, "device", NULL, "%s", name);
    else
        hr_doctor_say(d, HR_FINDING_MISSING, "device",
                      forced ? "unset HEADRACE_DEVICE"
                             : HR_NO_COMMAND "the reason is of the device's own",
                      "%.400s", err.message);
}

/* ---- what sysfs and the driver say ------------------------------------------------------- */

/* Folder of the first NVIDIA GPU on the bus; free() it. NULL: none. */
static char *find_gpu(const char *root)
{
    char path[PATH_MAX], folder[PATH_MAX + 256], text[32];
    struct dirent *entry;
    char *found = NULL;

    snprintf(path, sizeof(path), "%s/sys/bus/pci/devices", root);
    DIR *dir = opendir(path);

    while (dir && !found && (entry = readdir(dir))) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(folder, sizeof(folder), "%s/%s", path, entry->d_name);
        if (hr_sys_line(text, sizeof(text), "%s/vendor", folder) &&
            strtoul(text, NULL, 16) == NVIDIA &&
            hr_sys_line(text, sizeof(text), "%s/class", folder) &&
            strtoul(text, NULL, 16) >> 16 == CLASS_DISPLAY)
            found = realpath(folder, NULL);
    }
    if (dir)
        closedir(dir);
    return found;
}

/* "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu ..." -> "550.54.14" */
static bool driver_version(const char *root, char *buf, size_t buf_bytes)
{
    char line[256], *save, *word;

    if (!hr_sys_line(line, sizeof(line), "%s/proc/driver/nvidia/version", root))
        return false;
    for (word = strtok_r(line, " \t", &save); word; word = strtok_r(NULL, " \t", &save)) {
        const size_t digits = strspn(word, "0123456789");

        if (digits > 1 && word[digits] == '.' && strspn(word, "0123456789.") == strlen(word)) {
            snprintf(buf, buf_bytes, "%s", word);
            return true;
        }
    }
    return false;
}

static const char *gpu_remedy(bool on_bus, bool has_driver, const struct hr_error *err)
{
    if (!on_bus && !has_driver)
        return HR_NO_COMMAND "this machine has no NVIDIA GPU; the CPU computes";
    if (!has_driver)
        return "sudo apt-get install nvidia-driver && sudo reboot";
    if (!HAVE_CUDA)
        return "meson setup --reconfigure build -Dgpu=enabled && ninja -C build  # needs nvcc 12.8";
    if (strstr(err->message, "too old"))
        return "sudo apt-get install --only-upgrade nvidia-driver && sudo reboot";
    if (strstr(err->message, "cublasLt"))
        return "pip install nvidia-cublas  # then its folder into LD_LIBRARY_PATH";
    if (strstr(err->message, "--precision f32"))
        return "headrace forward --precision f32 --device cuda  # and the other options";
    return "nvidia-smi  # and CUDA_VISIBLE_DEVICES, which may hide a GPU";
}

/* The speed of a GPU's link falls while it rests; its lanes do not. */
static void say_gpu_link(const struct hr_doctor *d, const char *folder)
{
    struct hr_pci_link link;
    char remedy[160];

    if (!hr_pci_link_read(&link, folder))
        return;
    const bool best = link.width >= link.width_max;

    snprintf(remedy, sizeof(remedy), "sudo lspci -vvs %s | grep Lnk  # then a slot with more lanes",
             link.address);
    hr_doctor_say(d, best ? HR_FINDING_OK : HR_FINDING_SLOW, "gpu_link", best ? NULL : remedy,
                  "PCIe x%u of x%u, up to %.1f GB/s", link.width, link.width_max,
                  hr_pci_link_gbps(link.gtps_max, link.width));
}

/* @return 0: the file's first bytes have come into the GPU's memory past the host's */
static int try_direct(const char *device, const struct hr_read_file *file, struct hr_error *err)
{
    const struct hr_gpu_params params = hr_ring_device(device, 0, DIRECT_RING_BYTES);
    struct hr_reader_memory memory;
    struct hr_reader *reader = NULL;
    struct hr_gpu *gpu = NULL;
    int r = hr_gpu_open(&gpu, &params, err);

    if (r < 0)
        return r;
    r = hr_reader_create(&reader,
                         &(struct hr_reader_params){
                             .files = file,
                             .n_files = 1,
                             .memory = hr_ring_memory_of(&memory, gpu),
                             .io = "cufile",
                             .timeout_s = DIRECT_TIMEOUT_S,
                         },
                         err);
    hr_reader_destroy(&reader);
    hr_gpu_close(&gpu);
    return r;
}

void hr_doctor_gpu_direct(const struct hr_doctor *d, const char *device,
                          const struct hr_read_file *file)
{
    const char *remedy = "/usr/local/cuda/gds/tools/gdscheck -p  # says what the machine lacks";
    struct hr_error err = {0};

    if (try_direct(device, file, &err) == 0) {
        hr_doctor_say(d, HR_FINDING_OK, "gpu_direct", NULL,
                      "cuFile reads past the host's memory: --io cufile");
        return;
    }
    if (strstr(err.message, "libcufile.so.0 is not found"))
        remedy = "pip install nvidia-cufile  # then its folder into LD_LIBRARY_PATH";
    else if (strstr(err.message, "directly or not at all"))
        remedy = HR_MOVE_MODEL;
    hr_doctor_say(d, HR_FINDING_MISSING, "gpu_direct", remedy, "%.400s", err.message);
}

void hr_doctor_gpu(const struct hr_doctor *d, const struct hr_read_file *file)
{
    char *folder = find_gpu(d->root), version[32] = "", name[160];
    const bool has_driver = driver_version(d->root, version, sizeof(version));
    struct hr_error err = {0};

    say_device(d);
    const bool works = open_device("cuda", name, sizeof(name), &err) == 0;

    if (works)
        hr_doctor_say(d, HR_FINDING_OK, "gpu", NULL, "%s", name);
    else
        hr_doctor_say(d, HR_FINDING_MISSING, "gpu", gpu_remedy(folder != NULL, has_driver, &err),
                      "%.400s", err.message);
    if (has_driver)
        hr_doctor_say(d, HR_FINDING_OK, "gpu_driver", NULL, "%s", version);
    else if (folder)
        hr_doctor_say(d, HR_FINDING_MISSING, "gpu_driver",
                      "sudo apt-get install nvidia-driver && sudo reboot",
                      "%s has none of NVIDIA's", strrchr(folder, '/') + 1);
    if (folder)
        say_gpu_link(d, folder);
    if (works)
        hr_doctor_gpu_direct(d, "cuda", file);
    free(folder);
}
