/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_forward.c -- one forward pass, or several in a row, and what it took. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/cli.h"

struct run {
    const struct cli_options *o;
    struct hr_checkpoint *model;
    struct cli_tensors in;
    struct hr_dit *dit;
    float *velocity;   /* [n_targets, 16, h, w] */
    double *wall_s;    /* of each forward       */
    uint64_t n_repeat; /* 1 and more            */
    struct hr_dit_stats stats;
};

static struct hr_dit_params dit_params(const struct cli_options *o, uint64_t n_repeat)
{
    return (struct hr_dit_params){
        .stream =
            {
                .ring_bytes = o->ring_bytes,
                .block_bytes = (uint32_t) o->block_bytes,
                .depth = (uint32_t) o->depth,
                .io = o->io,
                .direct = (enum hr_direct) o->direct,
            },
        .device = o->device,
        .ram_bytes = o->ram_bytes,
        .n_threads = (uint32_t) o->n_threads,
        .precision = (enum hr_precision) o->precision,
        .activation = (enum hr_activation) o->activation,
        .zero_cond_t = o->zero_cond_t_on    ? HR_SWITCH_ON
                       : o->zero_cond_t_off ? HR_SWITCH_OFF
                                            : HR_SWITCH_AUTO,
        .timestep_rounding = o->timestep_rounding != 0,
        .n_layers = (uint32_t) o->n_layers,
        .n_forwards = (uint32_t) n_repeat,
        .progress = cli_progress_wanted(o) ? cli_progress_block : NULL,
    };
}

static int compute(struct run *run, struct hr_error *err)
{
    const struct hr_dit_params params = dit_params(run->o, run->n_repeat);
    const struct hr_latent *image = &run->in.inputs.images[0];
    int r = hr_dit_open(&run->dit, run->model, &params, &run->in.inputs, 1, err);

    if (r < 0)
        return r;
    cli_interrupt_target(run->dit);
    run->velocity = calloc((size_t) run->in.inputs.n_targets * HR_LATENT_CHANNELS * image->h,
                           image->w * sizeof(*run->velocity));
    run->wall_s = calloc(run->n_repeat, sizeof(*run->wall_s));
    if (!run->velocity || !run->wall_s) {
        snprintf(err->message, sizeof(err->message), "no memory for the result");
        return -1;
    }
    for (uint64_t i = 0; i < run->n_repeat && r == 0; i++) {
        r = hr_dit_forward(run->dit, &run->in.inputs, &run->velocity, err);
        if (r == 0)
            hr_dit_get_stats(run->dit, &run->stats);
        run->wall_s[i] = (double) run->stats.wall_ns / 1e9;
    }
    return r;
}

static int write_output(const struct run *run, struct hr_error *err)
{
    const struct hr_latent *image = &run->in.inputs.images[0];
    const uint64_t shape[] = {run->in.inputs.n_targets, HR_LATENT_CHANNELS, image->h, image->w};
    const bool layered = run->in.inputs.n_targets > 1;
    const struct hr_tensor_out velocity = {
        .name = "velocity",
        .data = run->velocity,
        .rank = layered ? 4 : 3,
        .shape = layered ? shape : shape + 1,
    };

    return run->o->output ? hr_tensors_write(run->o->output, &velocity, 1, err) : 0;
}

static double seconds(uint64_t ns)
{
    return (double) ns / 1e9;
}

static double gbps(uint64_t bytes, uint64_t ns)
{
    return ns ? (double) bytes / (double) ns : 0.0;
}

static json_t *blocks_json(const struct hr_dit_stats *s)
{
    json_t *blocks = json_array();

    for (uint32_t i = 0; i < s->n_blocks; i++)
        json_array_append_new(blocks, json_pack("{s:i, s:I, s:f, s:f}", "block", (int) i, "bytes",
                                                (json_int_t) s->blocks[i].bytes, "wall_s",
                                                seconds(s->blocks[i].wall_ns), "stall_disk_s",
                                                seconds(s->blocks[i].stall_disk_ns)));
    return blocks;
}

static bool print_json(const struct run *run)
{
    const struct hr_dit_stats *s = &run->stats;
    json_t *forwards = json_array();
    json_t *obj = json_pack(
        "{s:s, s:s, s:b, s:s, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, "
        "s:I, "
        "s:I}",
        "verb", "forward", "backend", s->stream.io_name, "direct", (int) s->stream.direct, "device",
        s->device_name, "bytes_read", (json_int_t) s->stream.bytes_read, "bytes_used",
        (json_int_t) s->stream.bytes_used, "wall_s", seconds(s->wall_ns), "disk_gbps",
        gbps(s->stream.bytes_read, s->stream.busy_ns), "stall_disk_s", seconds(s->stall_disk_ns),
        "compute_s", seconds(s->compute_ns), "setup_s", seconds(s->setup_ns), "peak_memory_bytes",
        (json_int_t) s->peak_memory_bytes, "ring_bytes", (json_int_t) s->stream.ring_bytes,
        "activation_bytes", (json_int_t) s->activation_bytes, "block_bytes",
        (json_int_t) s->stream.block_bytes, "iodepth", (json_int_t) s->stream.depth, "reads",
        (json_int_t) s->stream.reads, "short_reads", (json_int_t) s->stream.short_reads, "retries",
        (json_int_t) s->stream.retries);

    for (uint64_t i = 0; i < run->n_repeat; i++)
        json_array_append_new(forwards, json_real(run->wall_s[i]));
    json_object_set_new(obj, "forwards_wall_s", forwards);
    if (run->o->output)
        json_object_set_new(obj, "output", json_string(run->o->output));
    if (run->o->per_block)
        json_object_set_new(obj, "blocks", blocks_json(s));
    return cli_print_json(obj);
}

static void print_text(const struct run *run)
{
    const struct hr_dit_stats *s = &run->stats;
    const struct hr_latent *image = &run->in.inputs.images[0];
    char a[32], b[32], c[32];

    printf("forward   %u blocks, %u x %u pixels, %u images, %u text tokens, %s, %s\n", s->n_blocks,
           image->w * 8, image->h * 8, run->in.inputs.n_images, run->in.inputs.n_text,
           run->o->precision == HR_PRECISION_F32 ? "f32" : "bf16", s->device_name);
    printf("time      %.2f s: waiting for the disk %.2f s, computing %.2f s; set-up %.3f s\n",
           seconds(s->wall_ns), seconds(s->stall_disk_ns), seconds(s->compute_ns),
           seconds(s->setup_ns));
    if (run->n_repeat > 1) {
        printf("forwards ");
        for (uint64_t i = 0; i < run->n_repeat; i++)
            printf(" %.2f", run->wall_s[i]);
        printf(" s\n");
    }
    printf("disk      %s read at %.2f GB/s (%s%s, %s x %u)\n", cli_size(a, s->stream.bytes_read),
           gbps(s->stream.bytes_read, s->stream.busy_ns), s->stream.io_name,
           s->stream.direct ? ", direct" : ", buffered", cli_size(b, s->stream.block_bytes),
           s->stream.depth);
    printf("memory    peak %s of the whole process (ring %s, activations %s)\n",
           cli_size(a, s->peak_memory_bytes), cli_size(b, s->stream.ring_bytes),
           cli_size(c, s->activation_bytes));
    if (run->o->output)
        printf("output    %s: velocity [16, %u, %u] F32\n", run->o->output, image->h, image->w);
    else
        printf("output    not written: no --output\n");
    if (run->o->per_block)
        for (uint32_t i = 0; i < s->n_blocks; i++)
            printf("block %3u  %s in %.3f s, of which waiting for the disk %.3f s\n", i,
                   cli_size(a, s->blocks[i].bytes), seconds(s->blocks[i].wall_ns),
                   seconds(s->blocks[i].stall_disk_ns));
}

static int run_all(struct run *run, struct hr_error *err)
{
    uint32_t joint_dim;
    int r = cli_open_model(&run->model, run->o, err);

    if (r == 0)
        r = hr_dit_joint_dim(run->model, &joint_dim, err);
    if (r == 0)
        r = cli_tensors_read(&run->in, run->o->inputs, joint_dim, err);
    run->in.inputs.timestep = (float) run->o->timestep;
    if (r == 0)
        r = compute(run, err);
    if (r == 0)
        r = write_output(run, err);
    return r;
}

int cli_forward(const struct cli_options *o)
{
    struct run run = {.o = o, .n_repeat = o->n_repeat ? o->n_repeat : 1};
    struct hr_error err = {0};
    int r, code;

    if (!o->inputs)
        return cli_usage("forward needs --inputs FILE; headrace inputs makes one to try with");
    if (!o->timestep_given)
        return cli_usage("forward needs --timestep T, which is sigma * 1000");
    if (!(o->timestep >= 0.0 && o->timestep <= 1000.0)) {
        fprintf(stderr, "headrace: --timestep: %g is not a number from 0 to 1000 (sigma * 1000)\n",
                o->timestep);
        return CLI_FAILED;
    }
    cli_catch_signals();
    r = run_all(&run, &err);
    cli_progress_clear();
    if (r < 0) {
        code = cli_fail(&err);
    } else {
        if (!o->json)
            print_text(&run);
        code = o->json && !print_json(&run) ? CLI_FAILED : cli_flush();
    }
    cli_interrupt_target(NULL);
    hr_dit_close(&run.dit);
    cli_tensors_free(&run.in);
    hr_checkpoint_close(&run.model);
    free(run.velocity);
    free(run.wall_s);
    return code;
}
