/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_plan.c -- what a run would read, hold and take, without running it. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

struct plan {
    const struct cli_options *o;
    bool loop; /* with --steps: as denoise; else as one forward */
    struct hr_checkpoint *model;
    struct hr_states *states;
    struct cli_tensors in[HR_SAMPLES_MAX];
    struct hr_picture pictures[HR_SAMPLES_MAX];
    uint32_t n_pictures;
    struct hr_dit_prediction prediction;
    struct hr_dit_forecast forecast;
    struct cli_map map;
};

/* Of --inputs, or one of the sizes that the other options say. */
static int take_pictures(struct plan *plan, struct hr_error *err)
{
    static const float unread = 0.0f; /* only sizes are used */
    const struct cli_options *o = plan->o;
    struct hr_picture *first = &plan->pictures[0];
    int r = cli_read_inputs(plan->in, o, plan->model, plan->loop, err);

    plan->n_pictures = o->inputs.n ? o->inputs.n : 1;
    for (uint32_t i = 0; i < o->inputs.n; i++)
        plan->pictures[i] = (struct hr_picture){
            .inputs = plan->in[i].inputs,
            .negative_emb = plan->in[i].negative_emb,
            .negative_mask = plan->in[i].negative_mask,
            .n_negative = plan->in[i].n_negative,
        };
    if (o->inputs.n > 0)
        return r;
    first->inputs = (struct hr_dit_inputs){
        .n_images = 1 + (uint32_t) o->n_references,
        .n_targets = 1,
        .n_text = o->n_text ? (uint32_t) o->n_text : CLI_TEXT_TOKENS_DEFAULT,
    };
    for (uint32_t i = 0; i < first->inputs.n_images; i++)
        first->inputs.images[i] = (struct hr_latent){
            .h = (uint32_t) (o->height ? o->height : CLI_PIXELS_DEFAULT) / 8,
            .w = (uint32_t) (o->width ? o->width : CLI_PIXELS_DEFAULT) / 8,
        };
    first->n_negative = (uint32_t) o->n_negative;
    first->negative_emb = o->n_negative ? &unread : NULL;
    return r;
}

static int predict(struct plan *plan, struct hr_error *err)
{
    const struct cli_options *o = plan->o;
    struct hr_dit_inputs inputs[HR_SAMPLES_MAX];
    struct hr_denoise_params params = {
        .dit = cli_dit_params(o),
        .n_steps = (uint32_t) o->n_steps,
        .cfg_scale = isnan(o->cfg_scale) ? 0.0f : (float) o->cfg_scale,
    };
    int r = cli_take_states(&plan->states, o, &params.dit, err);

    if (r < 0)
        return r;
    params.dit.memory = cli_map_add;
    params.dit.memory_user = &plan->map;
    for (uint32_t i = 0; i < plan->n_pictures; i++)
        inputs[i] = plan->pictures[i].inputs;
    r = plan->loop ? hr_denoise_predict(plan->model, &params, plan->pictures, plan->n_pictures,
                                        &plan->prediction, &plan->forecast, err)
                   : hr_dit_predict(plan->model, &params.dit, inputs, plan->n_pictures,
                                    &plan->prediction, &plan->forecast, err);
    if (r == 0 && plan->map.failed)
        r = cli_error(err, -ENOMEM, "no memory for the map of a run's buffers");
    return r;
}

/* Without modulation up front each step would read what now the first one reads. */
static uint64_t saved_bytes(const struct hr_dit_prediction *p)
{
    return (p->n_forwards - 1) * p->up_front_bytes;
}

/* Computing was measured with its copies, so it is their time where it is not much longer. */
static const char *bottleneck(const struct hr_dit_forecast *f)
{
    if (f->later_disk_ns > f->compute_ns)
        return "disk";
    return (double) f->link_ns > 0.9 * (double) f->compute_ns ? "link" : "compute";
}

static int print_json(const struct plan *plan)
{
    const struct hr_dit_prediction *p = &plan->prediction;
    const struct hr_dit_forecast *f = &plan->forecast;
    json_t *obj = json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "verb", "plan",
        "n_steps", (json_int_t) p->n_forwards, "first_bytes", (json_int_t) p->first_bytes,
        "later_bytes", (json_int_t) p->later_bytes, "run_bytes", (json_int_t) p->run_bytes,
        "up_front_bytes", (json_int_t) p->up_front_bytes, "up_front_pays",
        (int) (saved_bytes(p) > 0), "up_front_saves_bytes", (json_int_t) saved_bytes(p),
        "peak_memory_bytes", (json_int_t) p->peak_memory_bytes, "ring_bytes",
        (json_int_t) p->ring_bytes, "activation_bytes", (json_int_t) p->activation_bytes,
        "resident_bytes", (json_int_t) p->resident_bytes, "mods_bytes", (json_int_t) p->mods_bytes,
        "mods_spilled", (int) p->mods_spilled);
    json_t *measured = json_pack(
        "{s:s, s:b, s:s, s:f, s:f, s:f, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:s}", "backend",
        f->io_name, "direct", (int) f->direct, "device", f->device_name, "link_gbps",
        cli_gbps(f->link_sample_bytes, f->link_sample_ns), "link_s", cli_seconds(f->link_ns),
        "disk_gbps", cli_gbps(f->disk_sample_bytes, f->disk_sample_ns), "disk_sample_bytes",
        (json_int_t) f->disk_sample_bytes, "up_front_compute_s",
        cli_seconds(f->up_front_compute_ns), "compute_s", cli_seconds(f->compute_ns), "disk_s",
        cli_seconds(f->later_disk_ns), "first_s", cli_seconds(f->first_ns), "later_s",
        cli_seconds(f->later_ns), "run_s", cli_seconds(f->run_ns), "bound_by", bottleneck(f));

    json_object_set_new(obj, "device_memory_bytes",
                        json_integer((json_int_t) p->device_memory_bytes));
    json_object_set_new(obj, "tokens", json_integer((json_int_t) f->n_tokens));
    json_object_set_new(obj, "compute_extrapolated", json_boolean(f->extrapolated));
    json_object_set_new(obj, "compute_sample_tokens",
                        f->extrapolated ? json_pack("[I, I]", (json_int_t) f->sample_tokens[0],
                                                    (json_int_t) f->sample_tokens[1])
                                        : json_null());
    json_object_set_new(obj, "device_ring_bytes", json_integer((json_int_t) p->device_ring_bytes));
    json_object_set_new(obj, "device_resident_bytes",
                        json_integer((json_int_t) p->device_resident_bytes));
    json_object_update(obj, measured);
    json_decref(measured);
    json_object_set_new(obj, "memory", cli_map_json(&plan->map));
    return cli_print_json(obj);
}

static void print_bytes(const struct hr_dit_prediction *p)
{
    char a[32], b[32], c[32];

    if (p->n_forwards == 1) {
        printf("bytes     %s of weights\n", cli_size(a, p->run_bytes));
        printf("up front  nothing: a single pass reads the modulation once either way\n");
        return;
    }
    printf("bytes     %s in the first step, %s in each later one, %s in all\n",
           cli_size(a, p->first_bytes), cli_size(b, p->later_bytes), cli_size(c, p->run_bytes));
    printf("up front  modulation of all steps, %s once; saves %s\n", cli_size(a, p->up_front_bytes),
           cli_size(b, saved_bytes(p)));
}

static void print_compute(const struct hr_dit_forecast *f)
{
    char text[32];

    printf("compute   %s a step, ", cli_duration(text, f->compute_ns));
    if (f->extrapolated)
        printf("extrapolated to %llu tokens from one and two blocks of %llu and %llu, measured",
               (unsigned long long) f->n_tokens, (unsigned long long) f->sample_tokens[0],
               (unsigned long long) f->sample_tokens[1]);
    else
        printf("from one and two blocks, measured");
    printf(" (%s)\n", f->device_name);
}

static void print_text(const struct plan *plan)
{
    const struct hr_dit_prediction *p = &plan->prediction;
    const struct hr_dit_forecast *f = &plan->forecast;
    const struct hr_latent *image = &plan->pictures[0].inputs.images[0];
    char a[32], b[32], c[32], d[32];

    printf("plan      %u step%s, %u block%s, %u x %u pixels\n", p->n_forwards,
           p->n_forwards == 1 ? "" : "s", p->n_blocks, p->n_blocks == 1 ? "" : "s", image->w * 8,
           image->h * 8);
    print_bytes(p);
    printf("memory    at most %s of the whole process (ring %s, activations %s, modulation %s%s)\n",
           cli_size(a, p->peak_memory_bytes), cli_size(b, p->ring_bytes),
           cli_size(c, p->activation_bytes), cli_size(d, p->mods_bytes),
           p->mods_spilled ? " in a file" : "");
    printf("resident  %s of weights stay in memory between steps\n",
           cli_size(a, p->resident_bytes));
    if (p->device_memory_bytes > 0)
        printf("device    at most %s of its own memory (activations %s, ring %s, weights that stay "
               "%s)\n",
               cli_size(a, p->device_memory_bytes), cli_size(b, p->activation_bytes),
               cli_size(d, p->device_ring_bytes), cli_size(c, p->device_resident_bytes));
    printf("disk      %.2f GB/s over %s, measured (%s%s): %s a step\n",
           cli_gbps(f->disk_sample_bytes, f->disk_sample_ns), cli_size(a, f->disk_sample_bytes),
           f->io_name, f->direct ? ", direct" : ", buffered", cli_duration(b, f->later_disk_ns));
    if (f->link_sample_ns > 0)
        printf("link      %.2f GB/s, measured: %s a step\n",
               cli_gbps(f->link_sample_bytes, f->link_sample_ns), cli_duration(a, f->link_ns));
    else
        printf("link      none: %s\n", strcmp(f->io_name, "cufile") == 0
                                           ? "the disk's bytes go straight to the device"
                                           : "the device computes on the host's memory");
    print_compute(f);
    if (p->n_forwards == 1)
        printf("time      %s\n", cli_duration(a, f->run_ns));
    else
        printf("time      %s for the first step, %s for each later one, %s in all\n",
               cli_duration(a, f->first_ns), cli_duration(b, f->later_ns),
               cli_duration(c, f->run_ns));
    printf("bound by  %s\n", bottleneck(f));
    if (plan->o->verbose)
        cli_map_print(&plan->map);
}

int cli_plan(const struct cli_options *o)
{
    struct plan plan = {.o = o, .loop = o->n_steps > 0};
    struct hr_error err = {0};
    int r, code;

    if (o->inputs.n > 0 && (o->n_text || o->n_negative || o->n_references))
        return cli_usage("--inputs says how many tokens and references there are; leave out "
                         "--text-tokens, --negative-tokens and --references");
    if (!plan.loop && (o->n_negative || !isnan(o->cfg_scale)))
        return cli_usage("guidance is a matter of a loop; give --steps N");
    r = cli_open_model(&plan.model, o, &err);
    if (r == 0)
        r = take_pictures(&plan, &err);
    if (r == 0)
        r = predict(&plan, &err);
    if (r < 0) {
        code = cli_fail(&err);
    } else {
        if (!o->json)
            print_text(&plan);
        code = o->json ? print_json(&plan) : cli_flush();
    }
    for (uint32_t i = 0; i < o->inputs.n; i++)
        cli_tensors_free(&plan.in[i]);
    cli_map_free(&plan.map);
    hr_states_close(&plan.states);
    hr_checkpoint_close(&plan.model);
    return code;
}
