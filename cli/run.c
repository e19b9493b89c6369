/* SPDX-License-Identifier: Apache-2.0 */
/* run.c -- what forward and denoise have in common: from the options to the library's parameters,
 * what is opened before the model is computed, and what is written after it. */
#include <errno.h>
#include <stdlib.h>

#include "cli/cli.h"

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
        .attention = (enum hr_attention_by) o->attention,
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

/* Read --manifest, if it was given, and have `params` use it. */
static int take_manifest(struct hr_manifest **ret_manifest, const struct cli_options *o,
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

int cli_run_open(struct cli_run *run, bool loop, struct hr_error *err)
{
    const struct cli_options *o = run->o;
    int r = cli_open_model(&run->model, o, err);

    run->params = cli_dit_params(o);
    run->params.progress = cli_progress_wanted(o) ? cli_progress_block : NULL;
    run->params.progress_user = &run->progress;
    if (r == 0)
        r = cli_check_output(o, run->model, err);
    if (r == 0)
        r = cli_read_inputs(run->in, o, run->model, loop, err);
    for (uint32_t i = 0; i < o->inputs.n; i++)
        run->inputs[i] = run->in[i].inputs;
    if (r == 0)
        r = cli_take_results(o, run->inputs, run->results, err);
    if (r == 0)
        r = cli_open_trace(&run->trace, o, err);
    run->params.stream.trace = run->trace;
    if (r == 0)
        r = take_manifest(&run->manifest, o, &run->params, err);
    if (r == 0)
        r = cli_take_states(&run->states, o, &run->params, err);
    return r;
}

int cli_run_write(const struct cli_run *run, const char *name, int r, struct hr_error *err)
{
    r = cli_write_trace(run->o, run->trace, r, err);
    if (r == 0 && run->o->output)
        r = cli_write_results(run->o, name, run->inputs, run->results, err);
    return r;
}

void cli_run_json(json_t *obj, const struct cli_run *run)
{
    bool is_guided = false;

    for (uint32_t i = 0; i < run->o->inputs.n; i++)
        is_guided = is_guided || run->in[i].negative_emb;
    cli_stats_json(obj, &run->stats);
    cli_predicted_json(obj, &run->stats);
    cli_loras_json(obj, run->o, &run->stats);
    cli_settings_json(obj, run->o, run->inputs, is_guided);
    if (run->o->per_block)
        cli_blocks_json(obj, &run->stats);
    if (run->o->output)
        json_object_set_new(obj, "output", cli_json_text(run->o->output));
}

void cli_run_close(struct cli_run *run)
{
    hr_trace_close(&run->trace);
    for (uint32_t i = 0; i < run->o->inputs.n; i++) {
        cli_tensors_free(&run->in[i]);
        free(run->results[i]);
    }
    hr_checkpoint_close(&run->model);
    hr_manifest_close(&run->manifest);
    hr_states_close(&run->states);
}
