/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_forward.c -- one forward pass, or several in a row, and what it took. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/cli.h"

struct forward {
    struct cli_run run;
    struct hr_dit *dit;
    double *wall_s;    /* of each forward */
    uint64_t n_repeat; /* 1 and more      */
};

static void interrupt_dit(void *dit)
{
    hr_dit_interrupt(dit);
}

static int compute(struct forward *f, struct hr_error *err)
{
    struct cli_run *run = &f->run;
    int r = cli_run_open(run, false, err);

    for (uint32_t i = 0; i < run->o->inputs.n; i++)
        run->inputs[i].timestep = (float) run->o->timestep;
    run->params.n_forwards = (uint32_t) f->n_repeat;
    run->progress = (struct cli_progress){.what = "forward", .n = (uint32_t) f->n_repeat};
    f->wall_s = calloc(f->n_repeat, sizeof(*f->wall_s));
    if (r == 0 && !f->wall_s)
        r = cli_error(err, -ENOMEM, "no memory for the result");
    if (r == 0)
        r = hr_dit_open(&f->dit, run->model, &run->params, run->inputs, run->o->inputs.n, err);
    if (r < 0)
        return r;
    cli_interrupt_target(interrupt_dit, f->dit);
    for (uint64_t i = 0; i < f->n_repeat && r == 0; i++) {
        r = hr_dit_forward(f->dit, run->inputs, run->results, err);
        if (r == 0)
            hr_dit_get_stats(f->dit, &run->stats);
        f->wall_s[i] = cli_seconds(run->stats.wall_ns);
    }
    return cli_run_write(run, "velocity", r, err);
}

static int print_json(const struct forward *f)
{
    const struct hr_dit_stats *s = &f->run.stats;
    const struct cli_times times = CLI_TIMES(s);
    json_t *forwards = json_array(), *obj = json_object();

    json_object_set_new(obj, "verb", json_string("forward"));
    json_object_set_new(obj, "pass_bytes", json_integer((json_int_t) s->bytes_used));
    cli_times_json(obj, &times);
    json_object_set_new(obj, "bound_by_disk",
                        json_real(cli_disk_share(s->stall_disk_ns, s->wall_ns)));
    cli_run_json(obj, &f->run);
    for (uint64_t i = 0; i < f->n_repeat; i++)
        json_array_append_new(forwards, json_real(f->wall_s[i]));
    json_object_set_new(obj, "forwards_wall_s", forwards);
    return cli_print_json(obj);
}

static void print_text(const struct forward *f)
{
    const struct cli_run *run = &f->run;
    const struct hr_dit_stats *s = &run->stats;
    const struct hr_latent *image = &run->inputs[0].images[0];
    const struct cli_times times = CLI_TIMES(s);

    printf("forward   %u block%s, %u x %u pixels, %u image%s, %u text tokens, %s, %s\n",
           s->n_blocks, s->n_blocks == 1 ? "" : "s", image->w * 8, image->h * 8,
           run->inputs[0].n_images, run->inputs[0].n_images > 1 ? "s" : "", run->inputs[0].n_text,
           run->o->precision == HR_PRECISION_F32 ? "f32" : "bf16", s->device_name);
    cli_times_text(&times, s->setup_ns);
    if (f->n_repeat > 1) {
        printf("forwards ");
        for (uint64_t i = 0; i < f->n_repeat; i++)
            printf(" %.2f", f->wall_s[i]);
        printf(" s\n");
    }
    cli_stats_text(s);
    cli_predicted_text(s);
    cli_loras_text(run->o, s);
    cli_print_output(run->o, "velocity", run->inputs);
    if (run->o->per_block)
        cli_blocks_text(s);
}

int cli_forward(const struct cli_options *o)
{
    struct forward f = {.run.o = o, .n_repeat = o->n_repeat ? o->n_repeat : 1};
    struct hr_error err = {0};
    int r, code;

    if (o->inputs.n == 0)
        return cli_usage("forward needs --inputs FILE; headrace inputs makes one to try with");
    if (isnan(o->timestep))
        return cli_usage("forward needs --timestep T, which is sigma * 1000");
    cli_catch_signals();
    r = compute(&f, &err);
    cli_progress_clear();
    cli_interrupt_target(NULL, NULL);
    if (r < 0) {
        code = cli_fail(&err);
    } else {
        if (!o->json)
            print_text(&f);
        code = o->json ? print_json(&f) : cli_flush();
    }
    hr_dit_close(&f.dit);
    cli_run_close(&f.run);
    free(f.wall_s);
    return code;
}
