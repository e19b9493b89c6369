/* SPDX-License-Identifier: Apache-2.0 */
/* denoise.c -- the denoising loop: noise, schedule, one pass over the weights per step for all
 * pictures and both prompts, guidance, Euler step, state of each step for going on. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/dit.h"
#include "engine/resume.h"
#include "engine/sampler.h"

enum {
    STEPS_MAX = HR_DIT_STEPS_MAX,
    MU_MAX = 20, /* e^mu is 1.6 to 2.5 for the sizes in use, and must be a float */
};

struct picture {
    struct hr_picture given;
    float *latents;       /* [n_targets, 16, h, w] */
    uint64_t n_floats;    /* of latents            */
    bool guided;          /* it has a negative prompt, as a sample of its own */
    float *velocities[2]; /* positive, negative    */
};

struct hr_denoise {
    struct hr_denoise_params params;
    struct picture *pictures;
    uint32_t n_pictures;
    struct hr_dit_inputs samples[HR_SAMPLES_MAX];
    float *velocities[HR_SAMPLES_MAX];
    uint32_t n_samples;
    float sigmas[STEPS_MAX + 1];
    uint32_t step; /* done */
    struct hr_resume *resume;
    struct hr_dit *dit; /* NULL: no step is left */
};

/* ---- checks ------------------------------------------------------------------------------- */

static int check_params(struct hr_denoise_params *p, struct hr_error *err)
{
    if (p->n_steps < 1 || p->n_steps > STEPS_MAX)
        return hr_error_set(err, -EINVAL, "%u steps; expected 1 to %d", p->n_steps, STEPS_MAX);
    if (p->strength == 0.0f)
        p->strength = 1.0f;
    if (!(p->strength > 0.0f && p->strength <= 1.0f))
        return hr_error_set(err, -EINVAL, "the strength is %g; expected more than 0, up to 1",
                            (double) p->strength);
    if (p->cfg_scale == 0.0f)
        p->cfg_scale = HR_CFG_SCALE_DEFAULT;
    if (!isfinite(p->cfg_scale))
        return hr_error_set(err, -EINVAL, "the guidance scale is %g; expected a number",
                            (double) p->cfg_scale);
    if (p->mu_given && !(p->mu >= -MU_MAX && p->mu <= MU_MAX))
        return hr_error_set(err, -EINVAL, "mu is %g; expected %d to %d", (double) p->mu, -MU_MAX,
                            MU_MAX);
    return 0;
}

static size_t target_tokens(const struct hr_picture *picture)
{
    return (size_t) (picture->inputs.images[0].h / 2) * (picture->inputs.images[0].w / 2);
}

static int check_picture(const struct hr_denoise *d, const struct hr_picture *first,
                         const struct hr_picture *picture, uint32_t idx, struct hr_error *err)
{
    struct hr_error cause = {0};
    const int r = hr_dit_check_images(&picture->inputs, &cause);

    if (r < 0)
        return hr_error_set(err, r, "picture %u: %s", idx, cause.message);
    if (target_tokens(picture) != target_tokens(first))
        return hr_error_set(err, -EINVAL,
                            "picture %u has %zu target tokens and the first %zu; pictures of "
                            "different size have different timesteps, run them apart",
                            idx, target_tokens(picture), target_tokens(first));
    if (d->params.strength < 1.0f && !picture->init)
        return hr_error_set(err, -EINVAL,
                            "a strength of %g needs an image to start from (init_latents in the "
                            "inputs), and picture %u has none",
                            (double) d->params.strength, idx);
    if (picture->mask && !picture->init)
        return hr_error_set(err, -EINVAL,
                            "picture %u has a mask, but no latents to keep outside it", idx);
    return 0;
}

/* ---- samples ------------------------------------------------------------------------------ */

static bool wants_guidance(const struct hr_denoise *d, const struct hr_picture *picture)
{
    return picture->negative_emb && d->params.cfg_scale != 1.0f;
}

/* Latents at the first sigma: given or drawn noise, over the latents to start from. */
static void start_latents(const struct hr_denoise *d, struct picture *p)
{
    const struct hr_dit_inputs *in = &p->given.inputs;
    const uint64_t n_each = p->n_floats / in->n_targets;

    hr_noise(p->latents, p->given.seed, p->n_floats);
    for (uint32_t i = 0; i < in->n_targets; i++)
        if (in->images[i].data)
            memcpy(p->latents + i * n_each, in->images[i].data, n_each * sizeof(float));
    if (p->given.init)
        hr_add_noise(p->latents, p->given.init, d->sigmas[0], p->n_floats);
}

static int add_picture(struct hr_denoise *d, const struct hr_picture *given, struct hr_error *err)
{
    struct picture *p = &d->pictures[d->n_pictures++];
    const struct hr_dit_inputs *in = &given->inputs;

    p->given = *given;
    p->guided = wants_guidance(d, given);
    p->n_floats = (uint64_t) in->n_targets * HR_LATENT_CHANNELS * in->images[0].h * in->images[0].w;
    p->latents = calloc(p->n_floats, sizeof(float));
    for (unsigned i = 0; i <= p->guided; i++)
        p->velocities[i] = calloc(p->n_floats, sizeof(float));
    if (!p->latents || !p->velocities[0] || (p->guided && !p->velocities[1]))
        return hr_error_set(err, -ENOMEM, "no memory for latents");
    if (d->n_samples + 1 + p->guided > HR_SAMPLES_MAX)
        return hr_error_set(err, -EINVAL,
                            "more than %d prompts, negative ones included, in one pass; run fewer "
                            "pictures at a time",
                            HR_SAMPLES_MAX);
    for (unsigned i = 0; i <= p->guided; i++) {
        struct hr_dit_inputs *sample = &d->samples[d->n_samples];

        *sample = *in;
        for (uint32_t t = 0; t < in->n_targets; t++)
            sample->images[t].data = p->latents + t * (p->n_floats / in->n_targets);
        if (i == 1) {
            sample->prompt_emb = given->negative_emb;
            sample->prompt_mask = given->negative_mask;
            sample->n_text = given->n_negative;
        }
        d->velocities[d->n_samples++] = p->velocities[i];
    }
    return 0;
}

static void make_schedule(struct hr_denoise *d, const struct hr_picture *first)
{
    hr_schedule_sigmas(d->sigmas, &(struct hr_schedule_params){
                                      .kind = d->params.schedule,
                                      .n_steps = d->params.n_steps,
                                      .n_tokens = (uint32_t) target_tokens(first),
                                      .strength = d->params.strength,
                                      .mu = d->params.mu_given ? d->params.mu : NAN,
                                  });
}

/* ---- going on ----------------------------------------------------------------------------- */

static void add_picture_facts(struct hr_resume *r, const struct picture *p, uint32_t idx,
                              uint32_t joint_dim)
{
    const struct hr_dit_inputs *in = &p->given.inputs;
    const size_t row = joint_dim * sizeof(float);
    char name[48];

    snprintf(name, sizeof(name), "size of picture %u", idx);
    hr_resume_fact(r, name, "%u images, %u targets, %u x %u", in->n_images, in->n_targets,
                   in->images[0].h, in->images[0].w);
    snprintf(name, sizeof(name), "initial latents of picture %u", idx);
    hr_resume_fact_hash(r, name, p->latents, p->n_floats * sizeof(float));
    snprintf(name, sizeof(name), "prompt of picture %u", idx);
    hr_resume_fact_hash(r, name, in->prompt_emb, in->n_text * row);
    if (in->prompt_mask) {
        snprintf(name, sizeof(name), "prompt mask of picture %u", idx);
        hr_resume_fact_hash(r, name, in->prompt_mask, in->n_text);
    }
    if (p->guided) {
        snprintf(name, sizeof(name), "negative prompt of picture %u", idx);
        hr_resume_fact_hash(r, name, p->given.negative_emb, p->given.n_negative * row);
    }
    if (p->guided && p->given.negative_mask) {
        snprintf(name, sizeof(name), "negative mask of picture %u", idx);
        hr_resume_fact_hash(r, name, p->given.negative_mask, p->given.n_negative);
    }
    if (p->given.mask) {
        snprintf(name, sizeof(name), "inpainting mask of picture %u", idx);
        hr_resume_fact_hash(r, name, p->given.mask,
                            (size_t) in->images[0].h * in->images[0].w * sizeof(float));
        /* Without a mask they are in the initial latents, and have no effect after those. */
        snprintf(name, sizeof(name), "kept latents of picture %u", idx);
        hr_resume_fact_hash(r, name, p->given.init, p->n_floats * sizeof(float));
    }
}

static void add_reference_facts(struct hr_resume *r, const struct picture *p, uint32_t idx)
{
    const struct hr_dit_inputs *in = &p->given.inputs;

    for (uint32_t i = in->n_targets; i < in->n_images; i++) {
        const struct hr_latent *image = &in->images[i];
        char name[48];

        snprintf(name, sizeof(name), "reference %u of picture %u", i - in->n_targets, idx);
        hr_resume_fact_hash(r, name, image->data,
                            (size_t) HR_LATENT_CHANNELS * image->h * image->w * sizeof(float));
    }
}

static void add_facts(struct hr_denoise *d, const struct hr_checkpoint *checkpoint,
                      uint32_t joint_dim)
{
    const struct hr_denoise_params *p = &d->params;
    struct hr_resume *r = d->resume;

    hr_resume_fact_model(r, checkpoint);
    hr_resume_fact(r, "number of steps", "%u", p->n_steps);
    hr_resume_fact_hash(r, "schedule", d->sigmas, (p->n_steps + 1) * sizeof(d->sigmas[0]));
    hr_resume_fact(r, "guidance", "%.9g%s", (double) p->cfg_scale, p->cfg_norm ? " normed" : "");
    hr_resume_fact(r, "precision", "%s", p->dit.precision == HR_PRECISION_F32 ? "f32" : "bf16");
    if (p->dit.onload_dtype == HR_ONLOAD_FP8)
        hr_resume_fact(r, "dtype of resident weights", "fp8");
    hr_resume_fact(r, "activation", "%d", (int) p->dit.activation);
    hr_resume_fact(r, "number of blocks", "%u", p->dit.n_layers);
    hr_resume_fact(r, "zero_cond_t", "%d", (int) p->dit.zero_cond_t);
    hr_resume_fact(r, "timestep rounding", "%d", (int) p->dit.timestep_rounding);
    for (uint32_t i = 0; i < d->n_pictures; i++) {
        add_picture_facts(r, &d->pictures[i], i, joint_dim);
        add_reference_facts(r, &d->pictures[i], i);
    }
}

/* Other versions of a library have other kernels, and other bits. */
static int add_attention_fact(struct hr_denoise *d, struct hr_error *err)
{
    const struct hr_dit_params *p = &d->params.dit;
    const struct hr_gpu_params gpu_params = {
        .device = p->device,
        .act = p->precision == HR_PRECISION_F32 ? HR_DTYPE_F32 : HR_DTYPE_BF16,
        .attention = p->attention,
    };
    char name[48];
    int r = 0;

    if (p->attention != HR_ATTENTION_CUDNN)
        return 0;
    r = hr_gpu_attention_name(&gpu_params, name, sizeof(name), err);
    if (r == 0)
        hr_resume_fact(d->resume, "kernel of attention", "%s", name);
    return r;
}

/* LoRAs by their whole content: two of one training have the same header. */
static int add_lora_facts(struct hr_denoise *d, struct hr_error *err)
{
    const struct hr_dit_params *p = &d->params.dit;
    char name[48];
    int r = 0;

    for (uint32_t i = 0; i < p->n_loras && i < HR_LORA_FILES_MAX && r == 0; i++) {
        struct hr_checkpoint *file = NULL;

        r = hr_checkpoint_open(
            &file, &(struct hr_checkpoint_params){.paths = &p->loras[i].path, .n_paths = 1}, err);
        snprintf(name, sizeof(name), "LoRA %u", i);
        if (r == 0)
            r = hr_resume_fact_content(d->resume, name, file, err);
        snprintf(name, sizeof(name), "strength of LoRA %u", i);
        hr_resume_fact(d->resume, name, "%.9g", (double) p->loras[i].strength);
        hr_checkpoint_close(&file);
    }
    if (p->n_loras > 0)
        hr_resume_fact(d->resume, "LoRA mode", "%s",
                       p->lora_mode == HR_LORA_MERGED ? "merged" : "runtime");
    return r;
}

/* Latents and their sizes, as hr_resume_load() and hr_resume_save() want them. */
struct latents_list {
    float *data[HR_SAMPLES_MAX];
    uint64_t n_floats[HR_SAMPLES_MAX];
};

static struct latents_list list_latents(const struct hr_denoise *d)
{
    struct latents_list list;

    for (uint32_t i = 0; i < d->n_pictures; i++) {
        list.data[i] = d->pictures[i].latents;
        list.n_floats[i] = d->pictures[i].n_floats;
    }
    return list;
}

static int go_on(struct hr_denoise *d, const struct hr_checkpoint *checkpoint, struct hr_error *err)
{
    const struct latents_list list = list_latents(d);
    uint32_t joint_dim = 0;
    int r = hr_dit_joint_dim(checkpoint, &joint_dim, err);

    if (r < 0)
        return r;
    d->resume = calloc(1, sizeof(*d->resume));
    if (!d->resume)
        return hr_error_set(err, -ENOMEM, "no memory for the state of the run");
    d->resume->folder = d->params.resume_dir;
    add_facts(d, checkpoint, joint_dim);
    r = add_attention_fact(d, err);
    if (r == 0)
        r = add_lora_facts(d, err);
    if (r < 0)
        return r;
    r = hr_resume_load(d->resume, list.data, list.n_floats, d->n_pictures, err);
    if (r < 0)
        return r;
    d->step = d->resume->step;
    if (d->step > d->params.n_steps)
        return hr_error_set(err, -EBADMSG, "%s: says that %u of %u steps are done",
                            d->params.resume_dir, d->step, d->params.n_steps);
    if (d->step > 0)
        hr_log(HR_LOG_INFO, "going on after step %u of %u", d->step, d->params.n_steps);
    return 0;
}

/* ---- open and close ----------------------------------------------------------------------- */

/* Of the steps that are left. @param timesteps  [STEPS_MAX] to be filled and kept */
static struct hr_dit_params dit_params(const struct hr_denoise *d, float *timesteps)
{
    struct hr_dit_params params = d->params.dit;

    for (uint32_t i = d->step; i < d->params.n_steps; i++)
        timesteps[i - d->step] = d->sigmas[i] * 1000.0f;
    params.timesteps = timesteps;
    params.n_forwards = d->params.n_steps - d->step;
    if (!params.spill_dir)
        params.spill_dir = d->params.resume_dir;
    return params;
}

static int open_dit(struct hr_denoise *d, const struct hr_checkpoint *checkpoint,
                    struct hr_error *err)
{
    float timesteps[STEPS_MAX];
    const struct hr_dit_params params = dit_params(d, timesteps);

    return hr_dit_open(&d->dit, checkpoint, &params, d->samples, d->n_samples, err);
}

/* Checks, schedule, samples: all but noise, what an earlier run left, and the model. */
static int prepare(struct hr_denoise *d, const struct hr_picture *pictures, uint32_t n,
                   struct hr_error *err)
{
    int r = check_params(&d->params, err);

    if (r == 0 && (n < 1 || n > HR_SAMPLES_MAX))
        r = hr_error_set(err, -EINVAL, "%u pictures; expected 1 to %d", n, HR_SAMPLES_MAX);
    for (uint32_t i = 0; i < n && r == 0; i++)
        r = check_picture(d, &pictures[0], &pictures[i], i, err);
    if (r < 0)
        return r;
    make_schedule(d, &pictures[0]);
    d->pictures = calloc(n, sizeof(*d->pictures));
    if (!d->pictures)
        return hr_error_set(err, -ENOMEM, "no memory for %u pictures", n);
    for (uint32_t i = 0; i < n && r == 0; i++)
        r = add_picture(d, &pictures[i], err);
    return r;
}

static int open_parts(struct hr_denoise *d, const struct hr_checkpoint *checkpoint,
                      const struct hr_picture *pictures, uint32_t n, struct hr_error *err)
{
    int r = prepare(d, pictures, n, err);

    for (uint32_t i = 0; i < n && r == 0; i++)
        start_latents(d, &d->pictures[i]);
    if (r == 0 && d->params.resume_dir)
        r = go_on(d, checkpoint, err);
    if (r == 0 && d->step < d->params.n_steps)
        r = open_dit(d, checkpoint, err);
    return r;
}

int hr_denoise_open(struct hr_denoise **ret_denoise, const struct hr_checkpoint *checkpoint,
                    const struct hr_denoise_params *params, const struct hr_picture *pictures,
                    uint32_t n_pictures, struct hr_error *err)
{
    struct hr_denoise *d = calloc(1, sizeof(*d));
    int r;

    if (!d)
        return hr_error_set(err, -ENOMEM, "no memory for a denoising loop");
    d->params = *params;
    r = open_parts(d, checkpoint, pictures, n_pictures, err);
    if (r < 0)
        hr_denoise_close(&d);
    else
        *ret_denoise = d;
    return r;
}

int hr_denoise_predict(const struct hr_checkpoint *checkpoint,
                       const struct hr_denoise_params *params, const struct hr_picture *pictures,
                       uint32_t n_pictures, struct hr_dit_prediction *ret_prediction,
                       struct hr_dit_forecast *ret_forecast, struct hr_error *err)
{
    struct hr_denoise *d = calloc(1, sizeof(*d));
    float timesteps[STEPS_MAX];
    int r;

    if (!d)
        return hr_error_set(err, -ENOMEM, "no memory for a denoising loop");
    d->params = *params;
    d->params.resume_dir = NULL;
    r = prepare(d, pictures, n_pictures, err);
    if (r == 0) {
        const struct hr_dit_params dit = dit_params(d, timesteps);

        r = hr_dit_predict(checkpoint, &dit, d->samples, d->n_samples, ret_prediction, ret_forecast,
                           err);
    }
    hr_denoise_close(&d);
    return r;
}

void hr_denoise_close(struct hr_denoise **denoise)
{
    struct hr_denoise *d = *denoise;

    if (!d)
        return;
    hr_dit_close(&d->dit);
    for (uint32_t i = 0; i < d->n_pictures; i++) {
        free(d->pictures[i].velocities[0]);
        free(d->pictures[i].velocities[1]);
        free(d->pictures[i].latents);
    }
    free(d->pictures);
    free(d->resume);
    free(d);
    *denoise = NULL;
}

/* ---- the loop ------------------------------------------------------------------------------ */

/* Guidance, inpainting and the Euler step of one picture. */
static void advance(const struct hr_denoise *d, struct picture *p)
{
    const float sigma = d->sigmas[d->step], next = d->sigmas[d->step + 1];
    const struct hr_dit_inputs *in = &p->given.inputs;
    const uint32_t h = in->images[0].h, w = in->images[0].w;
    const uint64_t n_each = p->n_floats / in->n_targets;

    for (uint32_t i = 0; i < in->n_targets; i++) {
        float *v = p->velocities[0] + i * n_each, *x = p->latents + i * n_each;

        if (p->guided && d->params.cfg_norm)
            hr_guide_normed(v, p->velocities[1] + i * n_each, d->params.cfg_scale, h, w);
        else if (p->guided)
            hr_guide(v, p->velocities[1] + i * n_each, d->params.cfg_scale, n_each);
        if (p->given.mask)
            hr_inpaint(v, x, p->given.init + i * n_each, p->given.mask, sigma, h, w);
        hr_step(x, v, sigma, next, n_each);
    }
}

static void report(const struct hr_denoise *d)
{
    struct hr_dit_stats stats;

    if (!d->params.step)
        return;
    hr_dit_get_stats(d->dit, &stats);
    d->params.step(d->params.step_user, &(struct hr_denoise_step){
                                            .n_done = d->step,
                                            .n_steps = d->params.n_steps,
                                            .sigma = d->sigmas[d->step - 1],
                                            .bytes_used = stats.bytes_used,
                                            .wall_ns = stats.wall_ns,
                                            .stall_disk_ns = stats.stall_disk_ns,
                                            .stall_space_ns = stats.stall_space_ns,
                                            .compute_ns = stats.compute_ns,
                                            .begin_ns = stats.begin_ns,
                                            .disk_bytes = stats.disk_bytes,
                                            .disk_busy_ns = stats.disk_busy_ns,
                                            .eta_ns = stats.eta_ns,
                                            .peak_memory_bytes = stats.peak_memory_bytes,
                                        });
}

static int run_step(struct hr_denoise *d, struct hr_error *err)
{
    const struct latents_list list = list_latents(d);
    int r;

    for (uint32_t i = 0; i < d->n_samples; i++)
        d->samples[i].timestep = d->sigmas[d->step] * 1000.0f;
    r = hr_dit_forward(d->dit, d->samples, d->velocities, err);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < d->n_pictures; i++)
        advance(d, &d->pictures[i]);
    d->step++;
    if (d->resume)
        r = hr_resume_save(d->resume, d->step, list.data, list.n_floats, d->n_pictures, err);
    if (r == 0)
        report(d);
    return r;
}

int hr_denoise_run(struct hr_denoise *denoise, float *const *latents, struct hr_error *err)
{
    while (denoise->step < denoise->params.n_steps) {
        const int r = run_step(denoise, err);

        if (r < 0)
            return r;
    }
    for (uint32_t i = 0; i < denoise->n_pictures; i++)
        memcpy(latents[i], denoise->pictures[i].latents,
               denoise->pictures[i].n_floats * sizeof(float));
    return 0;
}

void hr_denoise_get_stats(const struct hr_denoise *denoise, struct hr_dit_stats *ret_stats)
{
    if (denoise->dit)
        hr_dit_get_stats(denoise->dit, ret_stats);
    else
        *ret_stats = (struct hr_dit_stats){.device_name = "none", .stream.io_name = "none"};
}

void hr_denoise_interrupt(struct hr_denoise *denoise)
{
    if (denoise->dit)
        hr_dit_interrupt(denoise->dit);
}
