/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_denoise.c -- the whole loop: pictures' latents from noise and prompts. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

struct loop {
    const struct cli_options *o;
    struct hr_checkpoint *model;
    struct cli_tensors in[HR_SAMPLES_MAX];
    struct hr_dit_inputs inputs[HR_SAMPLES_MAX];
    float *latents[HR_SAMPLES_MAX]; /* each [n_targets, 16, h, w] */
    struct hr_denoise *denoise;
    struct hr_trace *trace;
    struct hr_manifest *manifest;
    struct hr_states *states;
    struct cli_progress progress;
    struct hr_denoise_step *steps; /* of this run */
    uint32_t n_steps;              /* of them     */
    struct hr_dit_stats stats;
};

static void interrupt_denoise(void *denoise)
{
    hr_denoise_interrupt(denoise);
}

static void on_step(void *user, const struct hr_denoise_step *step)
{
    struct loop *loop = user;

    loop->steps[loop->n_steps++] = *step;
    cli_note_step(loop->o, step);
}

static uint32_t steps_wanted(const struct cli_options *o)
{
    return o->n_steps ? (uint32_t) o->n_steps : CLI_STEPS_DEFAULT;
}

static float or_zero(double value)
{
    return isnan(value) ? 0.0f : (float) value;
}

static struct hr_denoise_params denoise_params(struct loop *loop)
{
    const struct cli_options *o = loop->o;
    struct hr_denoise_params params = {
        .dit = cli_dit_params(o),
        .n_steps = steps_wanted(o),
        .schedule = (enum hr_schedule) o->schedule,
        .strength = or_zero(o->strength),
        .mu_given = !isnan(o->mu),
        .mu = or_zero(o->mu),
        .cfg_scale = or_zero(o->cfg_scale),
        .cfg_norm = o->cfg_norm,
        .resume_dir = o->resume,
        .step = on_step,
        .step_user = loop,
    };

    loop->progress = (struct cli_progress){.what = "step", .n = params.n_steps};
    params.dit.progress = cli_progress_wanted(o) ? cli_progress_block : NULL;
    params.dit.progress_user = &loop->progress;
    return params;
}

static int take_results(struct loop *loop, struct hr_error *err)
{
    loop->steps = calloc(steps_wanted(loop->o), sizeof(*loop->steps));
    return cli_take_results(loop->o, loop->inputs, loop->latents, loop->steps != NULL, err);
}

static int run(struct loop *loop, struct hr_error *err)
{
    struct hr_denoise_params params = denoise_params(loop);
    struct hr_picture pictures[HR_SAMPLES_MAX];
    int r = take_results(loop, err);

    if (r == 0)
        r = cli_open_trace(&loop->trace, loop->o, err);
    params.dit.stream.trace = loop->trace;
    if (r == 0)
        r = cli_take_manifest(&loop->manifest, loop->o, &params.dit, err);
    if (r == 0)
        r = cli_take_states(&loop->states, loop->o, &params.dit, err);
    for (uint32_t i = 0; i < loop->o->inputs.n; i++)
        pictures[i] = (struct hr_picture){
            .inputs = loop->inputs[i],
            .negative_emb = loop->in[i].negative_emb,
            .negative_mask = loop->in[i].negative_mask,
            .n_negative = loop->in[i].n_negative,
            .seed = (loop->o->seed == CLI_NO_SEED ? 0 : loop->o->seed) + i,
            .init = loop->in[i].init,
            .mask = loop->in[i].mask,
        };
    if (r == 0)
        r = hr_denoise_open(&loop->denoise, loop->model, &params, pictures, loop->o->inputs.n, err);
    if (r < 0)
        return r;
    cli_interrupt_target(interrupt_denoise, loop->denoise);
    r = hr_denoise_run(loop->denoise, loop->latents, err);
    hr_denoise_get_stats(loop->denoise, &loop->stats);
    return cli_write_trace(loop->o, loop->trace, r, err);
}

/* Sums over the steps of this run; the peak is the last one's. */
static struct hr_denoise_step total_of(const struct loop *loop)
{
    struct hr_denoise_step total = {0};

    for (uint32_t i = 0; i < loop->n_steps; i++) {
        const struct hr_denoise_step *s = &loop->steps[i];

        total.bytes_used += s->bytes_used;
        total.wall_ns += s->wall_ns;
        total.stall_disk_ns += s->stall_disk_ns;
        total.stall_space_ns += s->stall_space_ns;
        total.compute_ns += s->compute_ns;
        total.disk_bytes += s->disk_bytes;
        total.disk_busy_ns += s->disk_busy_ns;
        total.peak_memory_bytes = s->peak_memory_bytes;
    }
    return total;
}

/* What a step and the sum of all have in common. */
static json_t *times_json(const struct hr_denoise_step *s)
{
    return json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:f}", "bytes_used",
                     (json_int_t) s->bytes_used, "gbps", cli_gbps(s->bytes_used, s->wall_ns),
                     "wall_s", cli_seconds(s->wall_ns), "stall_disk_s",
                     cli_seconds(s->stall_disk_ns), "stall_space_s", cli_seconds(s->stall_space_ns),
                     "compute_s", cli_seconds(s->compute_ns), "bound_by_disk",
                     cli_disk_share(s->stall_disk_ns, s->wall_ns), "disk_bytes",
                     (json_int_t) s->disk_bytes, "disk_busy_s", cli_seconds(s->disk_busy_ns));
}

static json_t *step_json(const struct hr_denoise_step *s)
{
    json_t *obj = times_json(s);

    json_object_set_new(obj, "step", json_integer(s->n_done));
    json_object_set_new(obj, "begin_s", json_real(cli_seconds(s->begin_ns)));
    json_object_set_new(obj, "sigma", json_real((double) s->sigma));
    json_object_set_new(obj, "peak_memory_bytes", json_integer((json_int_t) s->peak_memory_bytes));
    return obj;
}

static int print_json(const struct loop *loop)
{
    const struct hr_denoise_step total = total_of(loop);
    json_t *steps = json_array();
    json_t *obj =
        json_pack("{s:s, s:i, s:o, s:o}", "verb", "denoise", "n_steps", (int) steps_wanted(loop->o),
                  "steps", steps, "loop", times_json(&total));

    cli_stats_json(obj, &loop->stats);
    cli_predicted_json(obj, &loop->stats);
    cli_loras_json(obj, loop->o, &loop->stats);
    cli_settings_json(obj, loop->o, loop->inputs);
    if (loop->o->per_block)
        cli_blocks_json(obj, &loop->stats);
    for (uint32_t i = 0; i < loop->n_steps; i++)
        json_array_append_new(steps, step_json(&loop->steps[i]));
    if (loop->o->output)
        json_object_set_new(obj, "output", cli_json_text(loop->o->output));
    return cli_print_json(obj);
}

static void print_text(const struct loop *loop)
{
    const struct hr_latent *image = &loop->inputs[0].images[0];
    const bool guided = loop->in[0].negative_emb && loop->o->cfg_scale != 1.0;
    char size[32];

    printf("denoise   %u steps of %u, %u x %u pixels, %u picture%s%s, %s\n", loop->n_steps,
           steps_wanted(loop->o), image->w * 8, image->h * 8, loop->o->inputs.n,
           loop->o->inputs.n > 1 ? "s" : "", guided ? ", guided" : "", loop->stats.device_name);
    for (uint32_t i = 0; i < loop->n_steps; i++) {
        const struct hr_denoise_step *s = &loop->steps[i];

        printf("step %3u  sigma %.4f  %s in %.2f s, %.2f GB/s: waiting for the disk %.2f s, "
               "computing %.2f s; the disk waiting %.2f s\n",
               s->n_done, (double) s->sigma, cli_size(size, s->bytes_used), cli_seconds(s->wall_ns),
               cli_gbps(s->bytes_used, s->wall_ns), cli_seconds(s->stall_disk_ns),
               cli_seconds(s->compute_ns), cli_seconds(s->stall_space_ns));
    }
    if (loop->n_steps > 0) {
        const struct hr_denoise_step total = total_of(loop);
        const double disk = cli_disk_share(total.stall_disk_ns, total.wall_ns);

        printf("time      %.2f s: waiting for the disk %.2f s, computing %.2f s; set-up %.3f s\n",
               cli_seconds(total.wall_ns), cli_seconds(total.stall_disk_ns),
               cli_seconds(total.compute_ns), cli_seconds(loop->stats.setup_ns));
        printf("bound by  disk %.0f %%, compute %.0f %%; the disk waited for computing %.2f s\n",
               100.0 * disk, 100.0 * (1.0 - disk), cli_seconds(total.stall_space_ns));
        cli_stats_text(&loop->stats);
        cli_predicted_text(&loop->stats);
        cli_loras_text(loop->o, &loop->stats);
    }
    cli_print_output(loop->o, "latents", loop->inputs);
    if (loop->o->per_block)
        cli_blocks_text(&loop->stats);
}

static int run_all(struct loop *loop, struct hr_error *err)
{
    int r = cli_open_model(&loop->model, loop->o, err);

    if (r == 0)
        r = cli_check_output(loop->o, loop->model, err);
    if (r == 0)
        r = cli_read_inputs(loop->in, loop->o, loop->model, true, err);
    for (uint32_t i = 0; i < loop->o->inputs.n; i++)
        loop->inputs[i] = loop->in[i].inputs;
    if (r == 0)
        r = run(loop, err);
    if (r == 0 && loop->o->output)
        r = cli_write_results(loop->o, "latents", loop->inputs, loop->latents, err);
    return r;
}

int cli_denoise(const struct cli_options *o)
{
    struct loop loop = {.o = o};
    struct hr_error err = {0};
    int r, code;

    if (o->inputs.n == 0)
        return cli_usage("denoise needs --inputs FILE; headrace inputs makes one to try with");
    cli_catch_signals();
    r = run_all(&loop, &err);
    cli_progress_clear();
    cli_interrupt_target(NULL, NULL);
    if (r < 0) {
        code = cli_fail(&err);
    } else {
        if (!o->json)
            print_text(&loop);
        code = o->json ? print_json(&loop) : cli_flush();
    }
    hr_denoise_close(&loop.denoise);
    hr_trace_close(&loop.trace);
    for (uint32_t i = 0; i < o->inputs.n; i++) {
        cli_tensors_free(&loop.in[i]);
        free(loop.latents[i]);
    }
    hr_checkpoint_close(&loop.model);
    hr_manifest_close(&loop.manifest);
    hr_states_close(&loop.states);
    free(loop.steps);
    return code;
}
