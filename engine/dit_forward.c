/* SPDX-License-Identifier: Apache-2.0 */
/* dit_forward.c -- one forward pass: embeddings, the blocks, the head.
 *
 * Embeddings, modulation and head run in f32 in every precision: they are 0.1 % of the arithmetic,
 * and rounding their inputs would cost more accuracy than all 60 blocks. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/dit.h"

void hr_dit_tap(struct hr_dit *dit, const char *name, const void *data, enum hr_dtype dtype,
                size_t rows, size_t cols)
{
    const size_t n = rows * cols;

    if (!dit->tap)
        return;
    float *values = calloc(n, sizeof(*values));
    void *raw = calloc(n, hr_dtype_bits(dtype) / 8);

    hr_assert(values && raw); /* only tests have a tap */
    hr_gpu_download(dit->gpu, raw, data, n * hr_dtype_bits(dtype) / 8);
    hr_dtype_to_f32(values, raw, dtype, n);
    dit->tap(dit->tap_user, name, values, rows, cols);
    free(raw);
    free(values);
}

int hr_dit_upload(struct hr_dit *dit, float *dst, const float *src, size_t n, struct hr_error *err)
{
    return HR_FEED_RUN(&dit->feed, err, hr_gpu_upload(dit->gpu, dst, src, n * sizeof(*src)));
}

struct hr_linear hr_dit_linear_f32(const struct hr_dit *dit, const struct hr_linear_weights *w,
                                   const float *x, size_t n_tokens, enum hr_epilogue epilogue,
                                   float *out)
{
    return (struct hr_linear){
        .x = x,
        .x_dtype = HR_DTYPE_F32,
        .x_stride = (size_t) w->weight->shape[1],
        .n_tokens = n_tokens,
        .n_in = (size_t) w->weight->shape[1],
        .epilogue = epilogue,
        .out = out,
        .out_dtype = HR_DTYPE_F32,
        .out_stride = (size_t) w->weight->shape[0],
        .gate = epilogue == HR_EPILOGUE_GATED_RESIDUAL ? dit->shared.ones : NULL,
        .gate_split = n_tokens,
    };
}

/* Pack the images of one sample and put them on the device. */
static int upload_image(struct hr_dit *dit, const struct hr_dit_sample *sample,
                        const struct hr_dit_inputs *in, struct hr_error *err)
{
    const struct hr_dit_geometry *g = &sample->geometry;
    float *tokens = dit->host;

    for (uint32_t i = 0; i < g->n_images; i++) {
        hr_dit_pack(tokens, &in->images[i]);
        tokens += g->images[i].n_tokens * HR_DIT_TOKEN_DIM;
    }
    return hr_dit_upload(dit, sample->buffers.tokens, dit->host, g->n_img * HR_DIT_TOKEN_DIM, err);
}

static int embed_image(struct hr_dit *dit, const struct hr_dit_inputs *in, struct hr_error *err)
{
    const struct hr_linear_weights *w = &dit->model.img_in;
    struct hr_linear p[HR_SAMPLES_MAX];
    int r = 0;

    for (uint32_t i = 0; i < dit->n_samples && r == 0; i++) {
        const struct hr_dit_sample *sample = &dit->samples[i];

        r = upload_image(dit, sample, &in[i], err);
        p[i] = hr_dit_linear_f32(dit, w, sample->buffers.tokens, sample->geometry.n_img,
                                 HR_EPILOGUE_STORE, sample->buffers.img);
    }
    if (r < 0)
        return r;
    hr_dit_tap(dit, "tokens", p[0].x, HR_DTYPE_F32, p[0].n_tokens, HR_DIT_TOKEN_DIM);
    r = hr_feed_linear(&dit->feed, w, p, dit->n_samples, err);
    if (r == 0)
        hr_dit_tap(dit, "img_in", p[0].out, HR_DTYPE_F32, p[0].n_tokens, dit->model.width);
    return r;
}

/* Drop the padding of one prompt and put it on the device, with the angles of its sample. */
static int upload_text(struct hr_dit *dit, const struct hr_dit_sample *sample,
                       const struct hr_dit_inputs *in, struct hr_error *err)
{
    const size_t J = dit->model.config.joint_attention_dim;
    const struct hr_dit_geometry *g = &sample->geometry;
    size_t kept = 0;
    int r;

    for (uint32_t j = 0; j < in->n_text; j++) {
        if (in->prompt_mask && !in->prompt_mask[j])
            continue;
        memcpy(dit->host + kept * J, in->prompt_emb + j * J, J * sizeof(float));
        sample->text_index[kept++] = j;
    }
    hr_assert(kept == g->n_txt);
    r = hr_dit_upload(dit, sample->buffers.prompt, dit->host, g->n_txt * J, err);
    if (r < 0)
        return r;
    hr_dit_rope(dit->host, g, dit->model.config.use_layer3d_rope, sample->text_index);
    return hr_dit_upload(dit, sample->buffers.cos_sin, dit->host, g->n_all * 2 * HR_DIT_ROPE_ANGLES,
                         err);
}

static int embed_text(struct hr_dit *dit, const struct hr_dit_inputs *in, struct hr_error *err)
{
    const size_t J = dit->model.config.joint_attention_dim;
    const struct hr_linear_weights *w = &dit->model.txt_in;
    struct hr_linear p[HR_SAMPLES_MAX];
    int r = hr_feed_vector(&dit->feed, dit->model.txt_norm, dit->shared.txt_gain, J, err);

    for (uint32_t i = 0; i < dit->n_samples && r == 0; i++) {
        const struct hr_dit_sample *sample = &dit->samples[i];
        float *prompt = sample->buffers.prompt;

        p[i] = hr_dit_linear_f32(dit, w, prompt, sample->geometry.n_txt, HR_EPILOGUE_STORE,
                                 sample->buffers.txt);
        r = upload_text(dit, sample, &in[i], err);
        if (r == 0)
            r = HR_FEED_RUN(&dit->feed, err,
                            hr_gpu_rmsnorm(dit->gpu, prompt, prompt, dit->shared.txt_gain,
                                           sample->geometry.n_txt, J));
    }
    if (r < 0)
        return r;
    hr_dit_tap(dit, "txt_norm", p[0].x, HR_DTYPE_F32, p[0].n_tokens, J);
    r = hr_feed_linear(&dit->feed, w, p, dit->n_samples, err);
    if (r == 0)
        hr_dit_tap(dit, "txt_in", p[0].out, HR_DTYPE_F32, p[0].n_tokens, dit->model.width);
    return r;
}

struct hr_meter_now hr_dit_meter_now(const struct hr_dit *dit, uint32_t block_idx)
{
    return (struct hr_meter_now){
        .now_ns = hr_now_ns(),
        .bytes_used = dit->feed.bytes_used,
        .compute_ns = dit->feed.compute_ns,
        .block_idx = block_idx,
    };
}

void hr_dit_report_progress(struct hr_dit *dit, uint32_t block_idx)
{
    const struct hr_meter *meter = &dit->meter;
    const struct hr_meter_now now = hr_dit_meter_now(dit, block_idx);
    struct hr_stream_stats stream;

    if (!dit->progress)
        return;
    hr_stream_get_stats(dit->stream, &stream);
    dit->progress(dit->progress_user, &(struct hr_dit_progress){
                                          .block_idx = block_idx,
                                          .n_blocks = dit->model.n_layers,
                                          .bytes_used = now.bytes_used - meter->bytes_before,
                                          .elapsed_ns = now.now_ns - meter->begin_ns,
                                          .forward_idx = dit->n_done,
                                          .n_forwards = dit->n_forwards,
                                          .run_bytes_used = now.bytes_used,
                                          .run_bytes_total = hr_meter_run_bytes(meter),
                                          .run_elapsed_ns = now.now_ns - meter->run_begin_ns,
                                          .eta_ns = hr_meter_eta_ns(meter, &now),
                                          .disk_bytes = stream.bytes_read,
                                          .disk_busy_ns = stream.busy_ns,
                                          .stall_space_ns = stream.stall_space_ns,
                                          .stall_disk_ns = dit->feed.stall_ns,
                                          .compute_ns = dit->feed.compute_ns,
                                          .copied_bytes = dit->feed.copied_bytes,
                                      });
}

static int embed(struct hr_dit *dit, const struct hr_dit_inputs *in, struct hr_error *err)
{
    int r = hr_dit_finite_begin(dit, err);

    if (r == 0)
        r = embed_image(dit, in, err);
    if (r == 0)
        r = embed_text(dit, in, err);
    if (r == 0)
        r = hr_dit_finite_part(dit, 0, err);
    return r;
}

static int run_blocks(struct hr_dit *dit, struct hr_error *err)
{
    struct hr_stream_stats before, after;

    hr_stream_get_stats(dit->stream, &after);
    for (uint32_t i = 0; i < dit->model.n_layers; i++) {
        const uint64_t begin_ns = hr_now_ns();
        const uint64_t bytes = dit->feed.bytes_used, stall_ns = dit->feed.stall_ns;
        const uint64_t compute_ns = dit->feed.compute_ns;
        int r;

        before = after;
        r = hr_dit_block(dit, i, err);

        if (r == 0)
            r = hr_dit_finite_part(dit, i + 1, err);
        if (r < 0)
            return r;
        hr_stream_get_stats(dit->stream, &after);
        dit->block_stats[i] = (struct hr_dit_block_stats){
            .bytes = dit->feed.bytes_used - bytes,
            .wall_ns = hr_now_ns() - begin_ns,
            .stall_disk_ns = dit->feed.stall_ns - stall_ns,
            .begin_ns = begin_ns - dit->meter.begin_ns,
            .compute_ns = dit->feed.compute_ns - compute_ns,
            .disk_bytes = after.bytes_read - before.bytes_read,
            .disk_busy_ns = after.busy_ns - before.busy_ns,
            .stall_space_ns = after.stall_space_ns - before.stall_space_ns,
        };
        hr_feed_trace_part(&dit->feed, "block", i, begin_ns);
        hr_dit_report_progress(dit, i + 1);
    }
    /* Damage that led to NaN is to be named as what it is. */
    const int r = hr_dit_verify_end(&dit->verify, err);

    return r < 0 ? r : hr_dit_finite_end(dit, err);
}

/* Rows of a sample that the head computes. */
static size_t head_rows(const struct hr_dit *dit, const struct hr_dit_sample *sample)
{
    return dit->complete ? sample->geometry.n_img : sample->geometry.n_target_tokens;
}

/* work = LN(img) * (1 + scale) + shift; here scale comes first. */
static int norm_out(struct hr_dit *dit, const struct hr_dit_sample *sample, const float *mod,
                    struct hr_error *err)
{
    const size_t D = dit->model.width, n = head_rows(dit, sample);
    const struct hr_layernorm_modulate p = {
        .out = sample->buffers.work,
        .out_dtype = HR_DTYPE_F32,
        .x = sample->buffers.img,
        .shift = mod + D,
        .scale = mod,
        .split = n,
        .n_tokens = n,
        .width = D,
    };
    return HR_FEED_RUN(&dit->feed, err, hr_gpu_layernorm_modulate(dit->gpu, &p));
}

static int download_velocity(struct hr_dit *dit, const struct hr_dit_sample *sample,
                             float *velocity, struct hr_error *err)
{
    const struct hr_dit_geometry *g = &sample->geometry;
    const size_t n = g->n_target_tokens * HR_DIT_TOKEN_DIM;
    const int r =
        HR_FEED_RUN(&dit->feed, err,
                    hr_gpu_download(dit->gpu, dit->host, sample->buffers.img, n * sizeof(float)));

    if (r < 0)
        return r;
    for (size_t i = 0; i < n; i++)
        if (!isfinite(dit->host[i]))
            return hr_error_set(err, -ERANGE,
                                "%s: the result is not finite at token %zu: the weights or inputs "
                                "hold NaN or overflow; check the files",
                                hr_checkpoint_path(dit->checkpoint), i / HR_DIT_TOKEN_DIM);
    for (uint32_t i = 0; i < g->n_targets; i++) {
        const size_t at = i * g->n_first * HR_DIT_TOKEN_DIM;

        hr_dit_unpack(velocity + at, dit->host + at, g->images[i].h, g->images[i].w);
    }
    return 0;
}

/* velocity = proj_out(norm_out(img)), which takes the place of the residual stream: it has served.
 */
static int head(struct hr_dit *dit, float *const *velocities, struct hr_error *err)
{
    const struct hr_linear_weights *w = &dit->model.proj_out;
    struct hr_linear p[HR_SAMPLES_MAX];
    const float *mod = NULL;
    int r = hr_dit_cond_head(dit, &mod, err);

    for (uint32_t i = 0; i < dit->n_samples && r == 0; i++) {
        const struct hr_dit_sample *sample = &dit->samples[i];

        r = norm_out(dit, sample, mod, err);
        p[i] = hr_dit_linear_f32(dit, w, sample->buffers.work, head_rows(dit, sample),
                                 HR_EPILOGUE_STORE, sample->buffers.img);
    }
    if (r < 0)
        return r;
    hr_dit_tap(dit, "head", p[0].x, HR_DTYPE_F32, p[0].n_tokens, dit->model.width);
    r = hr_feed_linear(&dit->feed, w, p, dit->n_samples, err);
    if (r == 0)
        hr_dit_tap(dit, "proj_out", p[0].out, HR_DTYPE_F32, p[0].n_tokens, HR_DIT_TOKEN_DIM);
    for (uint32_t i = 0; i < dit->n_samples && r == 0; i++)
        r = download_velocity(dit, &dit->samples[i], velocities[i], err);
    return r;
}

static int check_inputs(const struct hr_dit *dit, const struct hr_dit_inputs *inputs,
                        struct hr_error *err)
{
    for (uint32_t i = 0; i < dit->n_samples; i++) {
        const float timestep = inputs[i].timestep;
        struct hr_dit_geometry geometry;
        const int r = hr_dit_geometry_init(&geometry, &dit->model, &inputs[i], err);

        if (r < 0)
            return r;
        if (!hr_dit_geometry_equal(&geometry, &dit->samples[i].geometry))
            return hr_error_set(err, -EINVAL,
                                "input %u differs in size or unmasked tokens from the one that the "
                                "model was opened for; open it again for these",
                                i);
        if (!(timestep >= 0.0f && timestep <= 1000.0f))
            return hr_error_set(err, -EINVAL,
                                "the timestep is %g; expected sigma * 1000, from 0 to 1000",
                                (double) timestep);
        if (timestep != inputs[0].timestep)
            return hr_error_set(err, -EINVAL,
                                "inputs that share a pass over the weights share the timestep, but "
                                "the first has %g and input %u has %g",
                                (double) inputs[0].timestep, i, (double) timestep);
    }
    return 0;
}

static int run(struct hr_dit *dit, const struct hr_dit_inputs *inputs, float *const *velocities,
               struct hr_error *err)
{
    const struct hr_meter_now begin = hr_dit_meter_now(dit, 0);
    const uint64_t stall_ns = dit->feed.stall_ns, copied_bytes = dit->feed.copied_bytes;
    struct hr_stream_stats before, after;
    uint64_t part_ns;
    int r;

    hr_stream_get_stats(dit->stream, &before);
    hr_meter_begin(&dit->meter, &begin);
    r = dit->n_done == 1 ? hr_dit_register_resident(dit, err) : 0;
    if (r == 0)
        r = hr_dit_cond_begin(dit, inputs[0].timestep, err);
    hr_feed_trace_part(&dit->feed, "conditioning", 0, begin.now_ns);
    part_ns = hr_now_ns();
    if (r == 0)
        r = embed(dit, inputs, err);
    hr_feed_trace_part(&dit->feed, "embeddings", 0, part_ns);
    if (r == 0)
        r = run_blocks(dit, err);
    part_ns = hr_now_ns();
    if (r == 0)
        r = head(dit, velocities, err);
    hr_feed_trace_part(&dit->feed, "head", 0, part_ns);
    hr_feed_flush(&dit->feed);
    if (r == 0)
        r = hr_dit_verify_end(&dit->verify, err);

    const struct hr_meter_now end = hr_dit_meter_now(dit, 0);

    /* Its end need not be that of a pass of the stream, which looks at the files there. */
    if (r == 0 && end.bytes_used > begin.bytes_used)
        r = hr_stream_check_files(dit->stream, err);
    if (r == 0)
        hr_meter_end(&dit->meter, &end);
    if (dit->feed.trace)
        hr_trace_add(dit->feed.trace, &(struct hr_trace_event){
                                          .kind = HR_TRACE_STEP,
                                          .begin_ns = begin.now_ns,
                                          .end_ns = end.now_ns,
                                          .bytes = end.bytes_used - begin.bytes_used,
                                          .a = dit->n_done + 1,
                                      });
    hr_stream_get_stats(dit->stream, &after);
    dit->stats.begin_ns = begin.now_ns - dit->meter.run_begin_ns;
    dit->stats.wall_ns = end.now_ns - begin.now_ns;
    dit->stats.compute_ns = end.compute_ns - begin.compute_ns;
    dit->stats.stall_disk_ns = dit->feed.stall_ns - stall_ns;
    dit->stats.stall_space_ns = after.stall_space_ns - before.stall_space_ns;
    dit->stats.disk_bytes = after.bytes_read - before.bytes_read;
    dit->stats.disk_busy_ns = after.busy_ns - before.busy_ns;
    dit->stats.copied_bytes = dit->feed.copied_bytes - copied_bytes;
    dit->stats.bytes_used = end.bytes_used - begin.bytes_used;
    dit->stats.eta_ns = hr_meter_eta_ns(&dit->meter, &end);
    return r;
}

int hr_dit_forward(struct hr_dit *dit, const struct hr_dit_inputs *inputs, float *const *velocities,
                   struct hr_error *err)
{
    int r = check_inputs(dit, inputs, err);

    if (r < 0)
        return r;
    if (dit->failed)
        return hr_error_set(err, dit->failed, "an earlier forward failed; open the model again");
    if (dit->n_done == dit->n_forwards)
        return hr_error_set(err, -ENODATA,
                            "all %u forwards that the model was opened for are done; open it "
                            "again, for more forwards",
                            dit->n_forwards);
    if (dit->timesteps && inputs[0].timestep != dit->timesteps[dit->n_done])
        return hr_error_set(
            err, -EINVAL, "forward %u has the timestep %g, but the model was opened for %g",
            dit->n_done, (double) inputs[0].timestep, (double) dit->timesteps[dit->n_done]);
    r = run(dit, inputs, velocities, err);
    if (r < 0) {
        dit->failed = r;
        return r;
    }
    dit->n_done++;
    hr_dit_ask_driver(dit);
    return 0;
}
