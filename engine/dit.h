/* SPDX-License-Identifier: Apache-2.0 */
/* dit.h -- inside of the Qwen-Image DiT: geometry, weights in order of use, the device's arena.
 *
 *   dit_layout.c   which tensors, of which shapes, in which order (the plan of the stream)
 *   dit_tokens.c   latents <-> tokens, positions, rotary angles, timestep sinusoid (host, f32)
 *   dit_weights.c  the next weight, from the stream or resident, staged, used and given back
 *   dit_resident.c which weights stay in memory between passes
 *   dit_scales.c   scales of fp8 weights
 *   dit_lora.c     matrices of LoRAs, from their files to the device
 *   dit_cond.c     timestep -> modulation vectors, in each forward or for all steps at once
 *   dit_verify.c   weights compared with a manifest as they stream by
 *   dit_mods.c     where the vectors of all steps are kept
 *   dit_block.c    one transformer block
 *   dit_finite.c   NaN and infinity, found where they first appear
 *   dit_forward.c  embeddings, the loop over the blocks, the head
 *   dit_meter.c    how far a run is
 *   dit_budget.c   how memory is shared out
 *   dit_arena.c    what lies where in the device's arena
 *   dit_ring.c     memory that disk and device share
 *   dit.c          preparation, open, close, statistics
 *   predict.c      what a run would use, without running it
 *   predict_compute.c  and how long it would compute
 *
 * Notation: D width, NH heads of 128, J joint_attention_dim, S_i image tokens (targets, then
 * references), S_t text tokens, S = S_t + S_i with text first, C conditioning vectors (2 with
 * zero_cond_t, else 1).
 */
#ifndef HR_DIT_H
#define HR_DIT_H

#include <errno.h>
#include <stdatomic.h>

#include "common/common.h"
#include "engine/dit_meter.h"
#include "engine/dit_mods.h"
#include "engine/dit_resident.h"
#include "engine/dit_ring.h"
#include "engine/dit_verify.h"
#include "engine/lora.h"
#include "engine/stream.h"
#include "engine/weight_scale.h"
#include "formats/formats.h"
#include "gpu/gpu.h"
#include "io/io.h"

enum {
    HR_DIT_TOKEN_DIM = 64,     /* 16 channels of a 2 x 2 patch */
    HR_DIT_SINUSOID_DIM = 256, /* of the timestep */
    HR_DIT_ROPE_ANGLES = HR_HEAD_DIM / 2,
    HR_DIT_LAYERS_MAX = 10000,
    HR_DIT_HEADS_MAX = 1024,
    HR_DIT_JOINT_MAX = 65536,
    HR_DIT_SIDE_MAX = 1024, /* of a latent: 8192 pixels */
    HR_DIT_TEXT_MAX = 65536,
    HR_DIT_STEPS_MAX = 1000, /* of a loop, known up front */
};

/* ---- architecture and weights (dit_layout.c) ---------------------------------------- */

/* What one LoRA adds to a layer: scale * up down. On the device, as products want it. */
struct hr_dit_term {
    const struct hr_lora_term *file; /* its tensors                                          */
    void *down;   /* [rank, in] as in the file; merged: transposed                             */
    void *up;     /* [out, rank] as in the file; merged: F32, times scale, over the row's w_scale */
    float *scale; /* [1]                                                                       */
};

struct hr_linear_weights {
    const struct hr_tensor *weight; /* [out, in] */
    const struct hr_tensor *bias;   /* [out]     */
    bool planned;                   /* a forward uses it                                     */
    struct hr_weight_scale scale;   /* as read, until it is on the device                    */
    float *w_scale;                 /* device, see struct hr_linear; NULL: not scaled        */
    size_t w_scale_stride;
    struct hr_dit_term *terms; /* n_terms, in order of the files */
    uint32_t n_terms;
};

/* The weights of one stream, image or text, of one block. */
struct hr_stream_weights {
    struct hr_linear_weights mod;                      /* [6D, D] */
    const struct hr_tensor *norm_q;                    /* [128]   */
    const struct hr_tensor *norm_k;                    /* [128]   */
    struct hr_linear_weights to_q, to_k, to_v, to_out; /* [D, D]  */
    struct hr_linear_weights mlp_up;                   /* [4D, D] */
    struct hr_linear_weights mlp_down;                 /* [D, 4D] */
};

struct hr_block_weights {
    struct hr_stream_weights img, txt;
};

struct hr_dit_model {
    struct hr_config config; /* as the tensors say */
    uint32_t n_layers;       /* to be run          */
    uint32_t width;          /* D                  */
    bool zero_cond_t;
    struct hr_linear_weights time_1, time_2, img_in, txt_in, norm_out, proj_out;
    const struct hr_tensor *txt_norm;
    const struct hr_tensor *addition_t; /* [2, D], layered only, else NULL */
    struct hr_block_weights *blocks;    /* of all layers of the model */
    struct hr_linear_weights **linears; /* n_linears, all of them, in order of use */
    uint32_t n_linears;
    const struct hr_tensor **plan; /* n_plan, in order of use */
    uint32_t n_plan;
    uint32_t n_once; /* leading tensors of the plan that only the first pass needs */
};

/* Find and check every tensor.
 * @param up_front  the conditioning (timestep embedding, modulation) comes first and once
 * @param complete  plan also what only the last block's text output needs
 * @return 0 or as hr_dit_open() */
int hr_dit_model_init(struct hr_dit_model *model, const struct hr_checkpoint *checkpoint,
                      const struct hr_dit_params *params, bool up_front, bool complete,
                      struct hr_error *err);
void hr_dit_model_uninit(struct hr_dit_model *model);

/* ---- tokens (dit_tokens.c) ----------------------------------------------------------- */

/* Sizes of one call, from its inputs. */
struct hr_dit_geometry {
    uint32_t n_images, n_targets;
    struct {
        uint32_t h, w;   /* of the latent                 */
        size_t n_tokens; /* (h/2) * (w/2)                 */
    } images[HR_IMAGES_MAX];
    size_t n_target_tokens, n_img, n_txt, n_all;
    size_t n_first; /* tokens of image 0: those that zero_cond_t leaves at the real timestep */
};

/* How many images there are, and their sizes; what needs no model.
 * @return 0, or -EINVAL naming what is wrong */
int hr_dit_check_images(const struct hr_dit_inputs *inputs, struct hr_error *err);
/* @return 0, or -EINVAL naming what is wrong */
int hr_dit_geometry_init(struct hr_dit_geometry *ret_geometry, const struct hr_dit_model *model,
                         const struct hr_dit_inputs *inputs, struct hr_error *err);
bool hr_dit_geometry_equal(const struct hr_dit_geometry *a, const struct hr_dit_geometry *b);

/* tokens[l][c*4 + py*2 + px] = latent[c][2Y+py][2X+px], l = Y * (w/2) + X; and its inverse. */
void hr_dit_pack(float *tokens, const struct hr_latent *latent);
void hr_dit_unpack(float *latent, const float *tokens, uint32_t h, uint32_t w);

/* cos and sin of the 64 rotary angles of every token, text first: [S, 64, 2]. Angles 0..7 turn with
 * the frame, 8..35 with y, 36..63 with x; qwen_image: fp32 throughout. text_index: position of each
 * kept text token in the prompt before padding was dropped, [S_t]. */
void hr_dit_rope(float *cos_sin, const struct hr_dit_geometry *geometry, bool layered,
                 const uint32_t *text_index);

/* [cos(1000 tau f_k) 128, sin 128], f_k = exp(-ln(10000) k / 128), tau = timestep / 1000. */
void hr_dit_sinusoid(float *u, float tau);
/* tau of a timestep; with rounding both t and t/1000 are rounded to bf16 first. */
float hr_dit_tau(float timestep, bool rounding);

/* ---- weights in use (dit_weights.c) --------------------------------------------------- */

/* The consumer's end of the stream. Units whose bytes the device may still be reading wait in
 * `pending`, oldest first. */
enum { HR_PENDING_MAX = 64 };

/* LoRAs of the model; all zero: none. */
struct hr_dit_lora {
    struct hr_lora *files;
    enum hr_lora_mode mode;
    struct hr_dit_term *terms; /* n_terms, of all layers that a forward uses                     */
    uint32_t n_terms;
    uint32_t rank_max; /* of all terms of a layer together */
    float *low;        /* device, [rows of all products of a layer, rank_max]: scale * x down^T  */
    float *merged;     /* device, HR_DIT_MERGED_FLOATS: rows of a weight with its terms in it    */
    float *ones;       /* device, [in] of the widest layer                                       */
};

/* A band of a weight on its way through the device. */
struct hr_dit_band {
    struct hr_unit unit;
    struct hr_gpu_weight weight;
    enum hr_dtype dtype; /* of the weight: the tensor's, or that in which it is kept */
    bool streamed;       /* the unit is the ring's, not a resident weight's          */
    bool staged;         /* else it lies on the device for good                      */
    uint64_t ticket;     /* of its comparing with the manifest; 0: none              */
    uint64_t copy_ns;    /* when its copy to a device was asked for; 0: it has none  */
    uint64_t copied_bytes;
};

struct hr_feed {
    struct hr_stream *stream;
    struct hr_gpu *gpu;
    const atomic_int *cancelled;
    struct hr_resident_set *resident, *on_device;
    struct hr_dit_verify *verify; /* NULL: off */
    struct hr_trace *trace;       /* or NULL */
    const struct hr_dit_lora *lora;
    struct hr_dit_band pending[HR_PENDING_MAX];
    unsigned n_pending;
    uint64_t copy_end_ns; /* when the last copy to a device was seen to be done; for the trace */
    float *bias; /* device scratch, bias_max floats: biases leave the ring on arrival, since a
                    bias held through its weight would pin the ring space of the whole layer */
    size_t bias_max;
    uint64_t bytes_used; /* counters only grow; the caller takes differences */
    uint64_t stall_ns, compute_ns;
    uint64_t copied_bytes; /* staged elsewhere than they lay */
    uint64_t begin_ns;     /* of the operation that is running */
};

/* Add a slice of computing to the trace, if there is one: part `name` of a forward, begun at
 * begin_ns and done now. */
void hr_feed_trace_part(struct hr_feed *feed, const char *name, uint32_t idx, uint64_t begin_ns);

/* Next in the plan must be `tensor`; convert it to n floats at dst (device). */
int hr_feed_vector(struct hr_feed *feed, const struct hr_tensor *tensor, float *dst, size_t n,
                   struct hr_error *err);
/* Next in the plan must be the layer's bias and then the bands of its weight. Each of the n
 * products p[i] says all but w, w_dtype, scales, terms, bias and n_out, for the whole layer; all
 * use a band before it is given back, so that n samples cost one pass over the weights. */
int hr_feed_linear(struct hr_feed *feed, const struct hr_linear_weights *layer,
                   const struct hr_linear *p, uint32_t n, struct hr_error *err);
/* Give all units back, waiting for the device. */
void hr_feed_flush(struct hr_feed *feed);

/* Run one device operation, counted as compute; -ECANCELED when interrupted before it. */
#define HR_FEED_RUN(feed, err, call) \
    (hr_feed_begin((feed), (err)) < 0 ? -ECANCELED : hr_feed_end((feed), (call), (err)))
int hr_feed_begin(struct hr_feed *feed, struct hr_error *err);
int hr_feed_end(struct hr_feed *feed, int r, struct hr_error *err);

/* ---- the running model ----------------------------------------------------------------- */

/* Memory of a run, in the order in which it is spoken for. */
struct hr_dit_budget {
    uint64_t process_bytes; /* held before the model was opened */
    /* Of a device's own memory, arena and weights that stay there included; 0: the arena is host
     * memory. */
    uint64_t device_bytes;
    uint64_t arena_bytes, host_bytes, mods_bytes, trace_bytes, scratch_bytes;
    uint64_t ring_bytes;        /* of the host's memory */
    uint64_t device_ring_bytes; /* else, and part of device_bytes */
    uint64_t keep_bytes;        /* of weights that must stay, filled in      */
    uint64_t resident_bytes;    /* what resident weights may take at most    */
};

/* Called with intermediate results, for tests: rows x cols floats on the host. */
typedef void hr_dit_tap_fn(void *user, const char *name, const float *data, size_t rows,
                           size_t cols);

/* Device buffers of one sample; shapes in brackets, F32 unless act. */
struct hr_dit_buffers {
    float *img;      /* [S_i, D] residual stream                             */
    float *txt;      /* [S_t, D] residual stream                             */
    void *normed;    /* [S, D] act: modulated input, then attention's output */
    float *work;     /* [max(S_i, S_t), D]: queries, keys before their norm  */
    void *q, *k, *v; /* [S, D] act                                           */
    void *hidden;    /* [max(S_i, S_t), 4D] act; overlies work, q, k, v      */
    float *cos_sin;  /* [S, 64, 2]                                           */
    float *tokens;   /* [S_i, 64]; overlies work                             */
    float *prompt;   /* [S_t, J]; overlies work                              */
};

/* Device buffers that all samples share. R conditioning rows: one for each timestep known up front,
 * or one; and with zero_cond_t one more, the last, for timestep 0. */
struct hr_dit_shared {
    float *sinusoid;    /* [R, 256]                                       */
    float *time_hidden; /* [R, D]                                         */
    float *cond;        /* [max(R, 2), D]: silu(temb)                     */
    float *ones;        /* [D], for layered                               */
    float *rows;        /* [R, 6D]: vectors of one layer; NULL: not up front */
    float *mods;        /* a step's vectors: for each block (one block, when not up front) image
                           [C, 6D] and text [6D], then the head's [2D]: scale, shift */
    float *gains;       /* [4, 128]: norm_q, norm_k of image, then of text */
    float *txt_gain;    /* [J]                                            */
    float *bias;        /* [6D]                                           */
    uint32_t *flags;    /* of streams that are not finite, dit_finite.c   */
};

/* One of the inputs that go through the weights together. */
struct hr_dit_sample {
    struct hr_dit_geometry geometry;
    struct hr_dit_buffers buffers;
    uint32_t *text_index; /* [S_t]: place in the prompt of each token that is no padding */
};

struct hr_dit {
    const struct hr_checkpoint *checkpoint;
    struct hr_dit_model model;
    enum hr_activation activation;
    enum hr_dtype act;
    bool timestep_rounding;
    struct hr_gpu *gpu;
    void *registered[HR_REGISTERED_MAX]; /* host memory that the device knows */
    uint32_t n_registered;
    struct hr_reader_memory ring_memory; /* the ring, where it lies on the device */
    struct hr_stream_blocks blocks;      /* of the stream, chosen before the budget */
    struct hr_stream *stream;
    struct hr_feed feed;
    struct hr_dit_budget budget;
    uint64_t vram_bytes; /* the limit of the device's memory; 0: none, or it was exceeded */
    struct hr_dit_sample *samples; /* n_samples */
    uint32_t n_samples;
    struct hr_dit_shared shared;
    float *host;      /* tokens, prompt, angles and results on their way */
    uint32_t *flags;  /* shared.flags on the host */
    float *timesteps; /* n_forwards, when known up front; NULL: not */
    struct hr_dit_mods mods;
    struct hr_resident_set resident, on_device; /* no weight is in both */
    struct hr_dit_verify verify;
    struct hr_dit_lora lora;
    uint32_t n_forwards, n_done;
    atomic_int cancelled;
    struct hr_meter meter;
    hr_dit_progress_fn *progress;
    void *progress_user;
    hr_dit_tap_fn *tap;
    void *tap_user;
    bool complete;
    int failed; /* the first failure of a forward: the stream is out of step, later calls repeat it
                 */
    struct hr_dit_stats stats;
    struct hr_dit_block_stats *block_stats;
};

/* All of hr_dit_open() that takes no memory worth mentioning: checks, plan, budget, the choice of
 * resident weights, stats.predicted. `complete`: see below. */
int hr_dit_prepare(struct hr_dit **ret_dit, const struct hr_checkpoint *checkpoint,
                   const struct hr_dit_params *params, const struct hr_dit_inputs *inputs,
                   uint32_t n_inputs, bool complete, struct hr_error *err);

/* hr_dit_open() with intermediate results for tests. `complete` also computes what no output needs:
 * the text half of the last block, and the head of reference rows. */
int hr_dit_open_tapped(struct hr_dit **ret_dit, const struct hr_checkpoint *checkpoint,
                       const struct hr_dit_params *params, const struct hr_dit_inputs *inputs,
                       uint32_t n_inputs, hr_dit_tap_fn *tap, void *tap_user, bool complete,
                       struct hr_error *err);
/* Hand rows x cols device values to the tap, if there is one. Only the first sample is tapped. */
void hr_dit_tap(struct hr_dit *dit, const char *name, const void *data, enum hr_dtype dtype,
                size_t rows, size_t cols);

/* ---- budget (dit_budget.c) ---------------------------------------------------------------- */

/* Share out ram_bytes, or without a limit take what is needed and a good ring. process_bytes,
 * arena_bytes and keep_bytes are filled in. @return 0, or -ENOMEM saying what would be needed */
int hr_dit_budget_make(struct hr_dit_budget *budget, const struct hr_dit *dit,
                       const struct hr_dit_params *params, const struct hr_gpu_params *gpu_params,
                       struct hr_error *err);
/* Before that: where files are to be read into the device's memory, the size of the ring there,
 * also put into gpu_params. @return 0, or -ENOMEM the size that was given is too small */
int hr_dit_budget_device_ring(struct hr_dit_budget *budget, const struct hr_dit_model *model,
                              const struct hr_dit_params *params, struct hr_gpu_params *gpu_params,
                              struct hr_error *err);
/* Compare it with what the device's driver sees, for the statistics; more than the limit is said
 * once. */
void hr_dit_ask_driver(struct hr_dit *dit);
/* All of it but resident weights; an upper bound of what the process will hold. */
uint64_t hr_dit_budget_total(const struct hr_dit_budget *budget);
/* Of the one buffer through which everything goes to and from the device. */
size_t hr_dit_host_floats(const struct hr_dit *dit);
/* What modulation vectors of all steps may take of memory before they go to a file. */
uint64_t hr_dit_mods_memory_max(const struct hr_dit_params *params);
/* The most events that the run adds to a trace. */
uint64_t hr_dit_trace_events(const struct hr_dit *dit);

/* ---- memory that disk and device share (dit_ring.c) ------------------------------------------ */

/* @return 0, or -EOPNOTSUPP where files are read past the host's memory, naming what needs them
 * there */
int hr_dit_ring_check(const struct hr_dit_params *params, struct hr_error *err);
/* Tell the device of the host's memory that weights come from: the stream's ring; and, when the
 * first pass has filled them and their pages are there, the weights that stay. */
void hr_dit_register_ring(struct hr_dit *dit);
/* @return 0 or -ECANCELED */
int hr_dit_register_resident(struct hr_dit *dit, struct hr_error *err);
void hr_dit_unregister(struct hr_dit *dit);

/* ---- arena (dit_arena.c) ------------------------------------------------------------------ */

/* Bytes of the arena that are shared out once more. */
struct hr_region {
    const char *name;
    char *base; /* NULL: not taken */
    uint64_t offset_bytes;
};

/* All passes over the arena's layout, which count, tell or take, go through here. */
struct hr_carver {
    struct hr_gpu *gpu; /* to take from; NULL: nothing is taken  */
    hr_memory_fn *tell; /* of each buffer; NULL: nobody          */
    void *tell_user;
    enum hr_memory_kind kind; /* of the buffers that follow, and whose they are */
    int32_t sample_idx;
    const struct hr_region *region; /* in which they lie; NULL: the arena */
    uint64_t at_bytes, end_bytes;   /* of the next buffer; the furthest so far */
};
/* The next buffer, of `rank` dimensions. @return its address, NULL where nothing is taken */
void *hr_carve(struct hr_carver *c, const char *name, enum hr_dtype dtype, const uint64_t *shape,
               uint32_t rank);
/* HR_CARVE(c, name, dtype, dimensions ...) */
#define HR_CARVE(c, name, dtype, ...)                         \
    hr_carve((c), (name), (dtype), (uint64_t[]){__VA_ARGS__}, \
             sizeof((uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t))
/* Everything in the arena. */
void hr_dit_carve(struct hr_dit *dit, struct hr_carver *c);
/* Tell of that, and of what else a device takes of its own memory. */
void hr_dit_tell_memory(struct hr_dit *dit, const struct hr_gpu_params *gpu_params,
                        hr_memory_fn *tell, void *user);

/* Blocks finished in the present forward, for the caller's progress line. */
void hr_dit_report_progress(struct hr_dit *dit, uint32_t block_idx);
struct hr_meter_now hr_dit_meter_now(const struct hr_dit *dit, uint32_t block_idx);

/* Put n floats on the device. */
int hr_dit_upload(struct hr_dit *dit, float *dst, const float *src, size_t n, struct hr_error *err);
/* out = epilogue(x w^T + bias), x [n_tokens, in], out [n_tokens, out], dense and F32. */
struct hr_linear hr_dit_linear_f32(const struct hr_dit *dit, const struct hr_linear_weights *w,
                                   const float *x, size_t n_tokens, enum hr_epilogue epilogue,
                                   float *out);

/* ---- conditioning (dit_cond.c) ----------------------------------------------------------- */

/* Sizes that depend on whether the timesteps are known up front. */
size_t hr_dit_cond_rows(const struct hr_dit *dit);        /* R */
size_t hr_dit_cond_step_floats(const struct hr_dit *dit); /* of shared.mods */

/* Begin a forward: the vectors of its timestep, from the store, or the first layers of their
 * computation. The first forward fills the store. */
int hr_dit_cond_begin(struct hr_dit *dit, float timestep, struct hr_error *err);
/* Modulation vectors of a block: of the image [C, 6D], or of the text [1, 6D]. */
int hr_dit_cond_block(struct hr_dit *dit, uint32_t idx, bool is_image, const float **ret_mod,
                      struct hr_error *err);
/* Of the head: [2D], scale first. */
int hr_dit_cond_head(struct hr_dit *dit, const float **ret_mod, struct hr_error *err);

/* ---- scales of fp8 weights (dit_scales.c) -------------------------------------------------- */

/* Read the scales of all planned weights. @return as hr_weight_scale_read(); -EOPNOTSUPP also where
 * something else than a linear layer is scaled */
int hr_dit_scales_read(struct hr_dit *dit, struct hr_error *err);
void hr_dit_scales_carve(struct hr_dit *dit, struct hr_carver *c);
/* Put them on the device. */
int hr_dit_scales_load(struct hr_dit *dit, struct hr_error *err);

/* ---- LoRAs (dit_lora.c) --------------------------------------------------------------------- */

enum { HR_DIT_MERGED_FLOATS = 4 << 20 };

/* Match the files with the model; reads headers only. @return as hr_lora_open() */
int hr_dit_lora_open(struct hr_dit *dit, const struct hr_dit_params *params, struct hr_error *err);
/* Warn of what fits nothing. */
void hr_dit_lora_warn(const struct hr_dit *dit);
void hr_dit_lora_close(struct hr_dit *dit);
void hr_dit_lora_carve(struct hr_dit *dit, struct hr_carver *c);
/* Floats of dit->host through which the matrices go. */
uint64_t hr_dit_lora_host_floats(const struct hr_dit *dit);
/* Read the matrices and put them on the device, after the scales of the weights were read. */
int hr_dit_lora_load(struct hr_dit *dit, struct hr_error *err);

/* ---- NaN and infinity (dit_finite.c) ------------------------------------------------------ */

uint32_t hr_dit_finite_flags(const struct hr_dit *dit); /* of shared.flags */
/* A forward begins. */
int hr_dit_finite_begin(struct hr_dit *dit, struct hr_error *err);
/* Look at the residual streams after part 0, the embeddings, or part i + 1, block i. */
int hr_dit_finite_part(struct hr_dit *dit, uint32_t part, struct hr_error *err);
/* @return 0, -ERANGE naming the first part and the stream that was not finite after it, or the
 *         device's error */
int hr_dit_finite_end(struct hr_dit *dit, struct hr_error *err);

/* Have the device's kernels for the attention of all blocks ready. @return 0 or -errno */
int hr_dit_prepare_attention(struct hr_dit *dit, struct hr_error *err);
/* One block; idx counts from 0. */
int hr_dit_block(struct hr_dit *dit, uint32_t idx, struct hr_error *err);

#endif /* HR_DIT_H */
