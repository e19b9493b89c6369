/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_denoise.c -- the whole loop: pictures' latents from noise and prompts. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/cli.h"

struct loop {
    struct cli_run run;
    struct hr_denoise *denoise;
    struct hr_denoise_step *steps; /* of this run */
    uint32_t n_steps;              /* of them     */
};

static void interrupt_denoise(void *denoise)
{
    hr_denoise_interrupt(denoise);
}

static void on_step(void *user, const struct hr_denoise_step *step)
{
    struct loop *loop = user;

    loop->steps[loop->n_steps++] = *step;
    cli_note_step(loop->run.o, step);
}

static uint32_t steps_wanted(const struct cli_options *o)
{
    return o->n_steps ? (uint32_t) o->n_steps : CLI_STEPS_DEFAULT;
}

static float or_zero(double value)
{
    return isnan(value) ? 0.0f : (float) value;
}

/* Once what the library borrows is there. */
static struct hr_denoise_params denoise_params(struct loop *loop)
{
    const struct cli_options *o = loop->run.o;

    return (struct hr_denoise_params){
        .dit = loop->run.params,
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
}

static int compute(struct loop *loop, struct hr_error *err)
{
    struct cli_run *run = &loop->run;
    const struct cli_options *o = run->o;
    struct hr_picture pictures[HR_SAMPLES_MAX];
    int r = cli_run_open(run, true, err);
    const struct hr_denoise_params params = denoise_params(loop);

    run->progress = (struct cli_progress){.what = "step", .n = params.n_steps};
    loop->steps = calloc(params.n_steps, sizeof(*loop->steps));
    if (r == 0 && !loop->steps)
        r = cli_error(err, -ENOMEM, "no memory for the result");
    for (uint32_t i = 0; i < o->inputs.n; i++)
        pictures[i] = (struct hr_picture){
            .inputs = run->inputs[i],
            .negative_emb = run->in[i].negative_emb,
            .negative_mask = run->in[i].negative_mask,
            .n_negative = run->in[i].n_negative,
            .seed = (o->seed == CLI_NO_SEED ? 0 : o->seed) + i,
            .init = run->in[i].init,
            .mask = run->in[i].mask,
        };
    if (r == 0)
        r = hr_denoise_open(&loop->denoise, run->model, &params, pictures, o->inputs.n, err);
    if (r < 0)
        return r;
    cli_interrupt_target(interrupt_denoise, loop->denoise);
    r = hr_denoise_run(loop->denoise, run->results, err);
    hr_denoise_get_stats(loop->denoise, &run->stats);
    return cli_run_write(run, "latents", r, err);
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
    const struct cli_times times = CLI_TIMES(s);
    json_t *obj = json_object();

    json_object_set_new(obj, "bytes_used", json_integer((json_int_t) s->bytes_used));
    json_object_set_new(obj, "gbps", json_real(cli_gbps(s->bytes_used, s->wall_ns)));
    cli_times_json(obj, &times);
    json_object_set_new(obj, "bound_by_disk",
                        json_real(cli_disk_share(s->stall_disk_ns, s->wall_ns)));
    return obj;
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
        json_pack("{s:s, s:i, s:o, s:o}", "verb", "denoise", "n_steps",
                  (int) steps_wanted(loop->run.o), "steps", steps, "loop", times_json(&total));

    cli_run_json(obj, &loop->run);
    for (uint32_t i = 0; i < loop->n_steps; i++)
        json_array_append_new(steps, step_json(&loop->steps[i]));
    return cli_print_json(obj);
}

static void print_text(const struct loop *loop)
{
    const struct hr_latent *image = &loop->run.inputs[0].images[0];
    const bool guided = loop->run.in[0].negative_emb && loop->run.o->cfg_scale != 1.0;
    char size[32];

    printf("denoise   %u step%s of %u, %u x %u pixels, %u picture%s%s, %s\n", loop->n_steps,
           loop->n_steps == 1 ? "" : "s", steps_wanted(loop->run.o), image->w * 8, image->h * 8,
           loop->run.o->inputs.n, loop->run.o->inputs.n > 1 ? "s" : "", guided ? ", guided" : "",
           loop->run.stats.device_name);
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
        const struct cli_times times = CLI_TIMES(&total);

        cli_times_text(&times, loop->run.stats.setup_ns);
        cli_stats_text(&loop->run.stats);
        cli_predicted_text(&loop->run.stats);
        cli_loras_text(loop->run.o, &loop->run.stats);
    }
    cli_print_output(loop->run.o, "latents", loop->run.inputs);
    if (loop->run.o->per_block)
        cli_blocks_text(&loop->run.stats);
}

int cli_denoise(const struct cli_options *o)
{
    struct loop loop = {.run.o = o};
    struct hr_error err = {0};
    int r, code;

    if (o->inputs.n == 0)
        return cli_usage("denoise needs --inputs FILE; headrace inputs makes one to try with");
    cli_catch_signals();
    r = compute(&loop, &err);
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
    cli_run_close(&loop.run);
    free(loop.steps);
    return code;
}
