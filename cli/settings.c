/* SPDX-License-Identifier: Apache-2.0 */
/* settings.c -- what a run was asked for and where it ran, for its JSON. */
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"

static void set_size(json_t *obj, const char *key, uint64_t bytes)
{
    json_object_set_new(obj, key, cli_json_bytes(bytes, bytes > 0));
}

static void set_number(json_t *obj, const char *key, double value)
{
    json_object_set_new(obj, key, isnan(value) ? json_null() : json_real(value));
}

static json_t *finished_at(void)
{
    const time_t now = time(NULL);
    char text[32] = "";
    struct tm tm;

    if (gmtime_r(&now, &tm))
        strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &tm);
    return json_string(text);
}

static json_t *settings_of(const struct cli_options *o, const struct hr_dit_inputs *inputs,
                           bool is_guided)
{
    const double cfg_scale = is_guided && isnan(o->cfg_scale) ? HR_CFG_SCALE_DEFAULT : o->cfg_scale;
    const struct hr_latent *image = &inputs->images[0];
    json_t *obj = json_pack(
        "{s:s, s:o, s:i, s:i, s:i, s:i, s:i, s:s, s:s, s:s, s:s}", "version", hr_version(),
        "finished", finished_at(), "pictures", (int) o->inputs.n, "width", (int) image->w * 8,
        "height", (int) image->h * 8, "images", (int) inputs->n_images, "text_tokens",
        (int) inputs->n_text, "precision", o->precision == HR_PRECISION_F32 ? "f32" : "bf16",
        "activation", o->activation == HR_ACTIVATION_QUICK_GELU ? "quick_gelu" : "gelu_tanh",
        "onload_dtype", o->onload_dtype == HR_ONLOAD_FP8 ? "fp8" : "model", "attention",
        o->attention == HR_ATTENTION_CUDNN ? "cudnn" : "own");

    json_object_set_new(obj, "model", cli_json_text(o->paths[0]));
    json_object_set_new(obj, "states", cli_json_text(o->states));
    json_object_set_new(obj, "manifest", cli_json_text(o->manifest));
    set_size(obj, "ram_bytes", o->ram_bytes);
    set_size(obj, "vram_bytes", o->vram_bytes);
    set_number(obj, "timestep", o->timestep);
    set_number(obj, "cfg_scale", cfg_scale);
    return obj;
}

/* The first "model name" of /proc/cpuinfo, null where there is none. */
static json_t *cpu_name(void)
{
    FILE *f = fopen("/proc/cpuinfo", "re");
    char line[512];
    json_t *name = NULL;

    while (f && !name && fgets(line, sizeof(line), f)) {
        char *value = strncmp(line, "model name", 10) == 0 ? strchr(line, ':') : NULL;

        if (value) {
            value[strcspn(value, "\n")] = '\0';
            name = cli_json_text(value + 1 + strspn(value + 1, " "));
        }
    }
    if (f)
        fclose(f);
    return name ? name : json_null();
}

static int usable_cpus(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set)
                                                        : (int) sysconf(_SC_NPROCESSORS_ONLN);
}

static json_t *machine(void)
{
    const long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
    char text[3 * sizeof(((struct utsname *) NULL)->sysname)] = "";
    struct utsname names;

    if (uname(&names) == 0)
        snprintf(text, sizeof(text), "%s %s %s", names.sysname, names.release, names.machine);
    json_t *obj = json_pack("{s:o, s:i, s:o}", "cpu", cpu_name(), "cpus", usable_cpus(), "system",
                            cli_json_text(text));

    set_size(obj, "memory_bytes",
             pages > 0 && page_bytes > 0 ? (uint64_t) pages * (uint64_t) page_bytes : 0);
    return obj;
}

void cli_settings_json(json_t *obj, const struct cli_options *o, const struct hr_dit_inputs *inputs,
                       bool is_guided)
{
    json_object_set_new(obj, "settings", settings_of(o, inputs, is_guided));
    json_object_set_new(obj, "machine", machine());
}
