/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_forward.c -- one forward pass, or several in a row, and what it took. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/cli.h"

/* ---- shared with denoise ----------------------------------------------------------------------
 */

struct hr_stream_params cli_stream_params(const struct cli_options *o)
{
    return (struct hr_stream_params){
        .ring_bytes = o->ring_bytes,
        .block_bytes = (uint32_t) o->block_bytes,
        .depth = (uint32_t) o->depth,
        .io = o->io,
        .direct = (enum hr_direct) o->direct,
        .huge_pages = o->small_pages ? HR_SWITCH_OFF : HR_SWITCH_AUTO,
        .timeout_s = o->io_timeout ? (uint32_t) o->io_timeout : HR_TIMEOUT_NONE,
    };
}

struct hr_dit_params cli_dit_params(const struct cli_options *o)
{
    return (struct hr_dit_params){
        .stream = cli_stream_params(o),
        .device = o->device,
        .ram_bytes = o->ram_bytes,
        .vram_bytes = o->vram_bytes,
        .n_threads = (uint32_t) o->n_threads,
        .precision = (enum hr_precision) o->precision,
        .activation = (enum hr_activation) o->activation,
        .zero_cond_t = o->zero_cond_t_on    ? HR_SWITCH_ON
                       : o->zero_cond_t_off ? HR_SWITCH_OFF
                                            : HR_SWITCH_AUTO,
        .timestep_rounding = o->timestep_rounding != 0,
        .n_layers = (uint32_t) o->n_layers,
        .onload_dtype = (enum hr_onload_dtype) o->onload_dtype,
        .loras = o->loras,
        .n_loras = o->n_loras,
        .lora_mode = (enum hr_lora_mode) o->lora_mode,
    };
}

int cli_take_states(struct hr_states **ret_states, const struct cli_options *o,
                    struct hr_dit_params *params, struct hr_error *err)
{
    if (!o->states)
        return 0;
    const int r = hr_states_open(ret_states, o->states, err);

    params->states = *ret_states;
    return r;
}

int cli_take_manifest(struct hr_manifest **ret_manifest, const struct cli_options *o,
                      struct hr_dit_params *params, struct hr_error *err)
{
    if (!o->manifest || o->verify == HR_VERIFY_OFF)
        return 0;
    params->verify = o->verify == CLI_NOT_GIVEN ? HR_VERIFY_FIRST : (enum hr_verify_when) o->verify;
    const int r = hr_manifest_read(ret_manifest, o->manifest, err);

    params->manifest = *ret_manifest;
    return r;
}

int cli_read_inputs(struct cli_tensors *tensors, const struct cli_options *o,
                    const struct hr_checkpoint *model, bool loop, struct hr_error *err)
{
    struct cli_tensors_wanted wanted = {
        .loop = loop, .w = (uint32_t) o->width / 8, .h = (uint32_t) o->height / 8};
    bool any_noise = false;
    int r = hr_dit_joint_dim(model, &wanted.joint_dim, err);

    for (uint32_t i = 0; i < o->inputs.n && r == 0; i++) {
        r = cli_tensors_read(&tensors[i], o->inputs.items[i], &wanted, err);
        any_noise = any_noise || !tensors[i].inputs.images[0].data;
    }
    if (r == 0 && o->seed != CLI_NO_SEED && !any_noise)
        r = cli_error(err, -EINVAL,
                      "--seed: the inputs have latents, so no noise is drawn; leave it out");
    return r;
}

/* ---- forward ----------------------------------------------------------------------------------
 */

struct run {
    const struct cli_options *o;
    struct hr_checkpoint *model;
    struct cli_tensors in[HR_SAMPLES_MAX];
    struct hr_dit_inputs inputs[HR_SAMPLES_MAX];
    float *velocities[HR_SAMPLES_MAX]; /* each [n_targets, 16, h, w] */
    struct hr_dit *dit;
    struct hr_trace *trace;
    struct hr_manifest *manifest;
    struct hr_states *states;
    struct cli_progress progress;
    double *wall_s;    /* of each forward */
    uint64_t n_repeat; /* 1 and more      */
    struct hr_dit_stats stats;
};

static void interrupt_dit(void *dit)
{
    hr_dit_interrupt(dit);
}

static int take_results(struct run *run, struct hr_error *err)
{
    run->wall_s = calloc(run->n_repeat, sizeof(*run->wall_s));
    return cli_take_results(run->o, run->inputs, run->velocities, run->wall_s != NULL, err);
}

static int compute(struct run *run, struct hr_error *err)
{
    struct hr_dit_params params = cli_dit_params(run->o);
    int r;

    params.n_forwards = (uint32_t) run->n_repeat;
    run->progress = (struct cli_progress){.what = "forward", .n = (uint32_t) run->n_repeat};
    params.progress = cli_progress_wanted(run->o) ? cli_progress_block : NULL;
    params.progress_user = &run->progress;
    r = take_results(run, err);
    if (r == 0)
        r = cli_open_trace(&run->trace, run->o, err);
    params.stream.trace = run->trace;
    if (r == 0)
        r = cli_take_manifest(&run->manifest, run->o, &params, err);
    if (r == 0)
        r = cli_take_states(&run->states, run->o, &params, err);
    if (r == 0)
        r = hr_dit_open(&run->dit, run->model, &params, run->inputs, run->o->inputs.n, err);
    if (r < 0)
        return r;
    cli_interrupt_target(interrupt_dit, run->dit);
    for (uint64_t i = 0; i < run->n_repeat && r == 0; i++) {
        r = hr_dit_forward(run->dit, run->inputs, run->velocities, err);
        if (r == 0)
            hr_dit_get_stats(run->dit, &run->stats);
        run->wall_s[i] = cli_seconds(run->stats.wall_ns);
    }
    return cli_write_trace(run->o, run->trace, r, err);
}

static int print_json(const struct run *run)
{
    const struct hr_dit_stats *s = &run->stats;
    json_t *forwards = json_array();
    json_t *obj = json_pack(
        "{s:s, s:I, s:f, s:f, s:f, s:f, s:f, s:I, s:f}", "verb", "forward", "pass_bytes",
        (json_int_t) s->bytes_used, "wall_s", cli_seconds(s->wall_ns), "stall_disk_s",
        cli_seconds(s->stall_disk_ns), "stall_space_s", cli_seconds(s->stall_space_ns), "compute_s",
        cli_seconds(s->compute_ns), "bound_by_disk", cli_disk_share(s->stall_disk_ns, s->wall_ns),
        "disk_bytes", (json_int_t) s->disk_bytes, "disk_busy_s", cli_seconds(s->disk_busy_ns));

    cli_stats_json(obj, s);
    cli_predicted_json(obj, s);
    cli_loras_json(obj, run->o, s);
    cli_settings_json(obj, run->o, run->inputs);
    for (uint64_t i = 0; i < run->n_repeat; i++)
        json_array_append_new(forwards, json_real(run->wall_s[i]));
    json_object_set_new(obj, "forwards_wall_s", forwards);
    if (run->o->output)
        json_object_set_new(obj, "output", cli_json_text(run->o->output));
    if (run->o->per_block)
        cli_blocks_json(obj, s);
    return cli_print_json(obj);
}

static void print_text(const struct run *run)
{
    const struct hr_dit_stats *s = &run->stats;
    const struct hr_latent *image = &run->inputs[0].images[0];
    const double disk = cli_disk_share(s->stall_disk_ns, s->wall_ns);

    printf("forward   %u blocks, %u x %u pixels, %u image%s, %u text tokens, %s, %s\n", s->n_blocks,
           image->w * 8, image->h * 8, run->inputs[0].n_images,
           run->inputs[0].n_images > 1 ? "s" : "", run->inputs[0].n_text,
           run->o->precision == HR_PRECISION_F32 ? "f32" : "bf16", s->device_name);
    printf("time      %.2f s: waiting for the disk %.2f s, computing %.2f s; set-up %.3f s\n",
           cli_seconds(s->wall_ns), cli_seconds(s->stall_disk_ns), cli_seconds(s->compute_ns),
           cli_seconds(s->setup_ns));
    printf("bound by  disk %.0f %%, compute %.0f %%; the disk waited for computing %.2f s\n",
           100.0 * disk, 100.0 * (1.0 - disk), cli_seconds(s->stall_space_ns));
    if (run->n_repeat > 1) {
        printf("forwards ");
        for (uint64_t i = 0; i < run->n_repeat; i++)
            printf(" %.2f", run->wall_s[i]);
        printf(" s\n");
    }
    cli_stats_text(s);
    cli_predicted_text(s);
    cli_loras_text(run->o, s);
    cli_print_output(run->o, "velocity", run->inputs);
    if (run->o->per_block)
        cli_blocks_text(s);
}

static int run_all(struct run *run, struct hr_error *err)
{
    int r = cli_open_model(&run->model, run->o, err);

    if (r == 0)
        r = cli_check_output(run->o, run->model, err);
    if (r == 0)
        r = cli_read_inputs(run->in, run->o, run->model, false, err);
    for (uint32_t i = 0; i < run->o->inputs.n; i++) {
        run->inputs[i] = run->in[i].inputs;
        run->inputs[i].timestep = (float) run->o->timestep;
    }
    if (r == 0)
        r = compute(run, err);
    if (r == 0 && run->o->output)
        r = cli_write_results(run->o, "velocity", run->inputs, run->velocities, err);
    return r;
}

int cli_forward(const struct cli_options *o)
{
    struct run run = {.o = o, .n_repeat = o->n_repeat ? o->n_repeat : 1};
    struct hr_error err = {0};
    int r, code;

    if (o->inputs.n == 0)
        return cli_usage("forward needs --inputs FILE; headrace inputs makes one to try with");
    if (isnan(o->timestep))
        return cli_usage("forward needs --timestep T, which is sigma * 1000");
    cli_catch_signals();
    r = run_all(&run, &err);
    cli_progress_clear();
    cli_interrupt_target(NULL, NULL);
    if (r < 0) {
        code = cli_fail(&err);
    } else {
        if (!o->json)
            print_text(&run);
        code = o->json ? print_json(&run) : cli_flush();
    }
    hr_dit_close(&run.dit);
    hr_trace_close(&run.trace);
    for (uint32_t i = 0; i < o->inputs.n; i++) {
        cli_tensors_free(&run.in[i]);
        free(run.velocities[i]);
    }
    hr_checkpoint_close(&run.model);
    hr_manifest_close(&run.manifest);
    hr_states_close(&run.states);
    free(run.wall_s);
    return code;
}
