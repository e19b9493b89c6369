/* SPDX-License-Identifier: Apache-2.0 */
/* headrace.h -- run diffusion transformers larger than memory by streaming weights from disk.
 *
 * Four layers, each usable without the ones below it in this list:
 *
 *   hr_checkpoint  what is in a model: tensors, dtypes, shapes, where their bytes lie
 *   hr_stream      those bytes in a given order, through one ring of bounded memory
 *   hr_dit         the Qwen-Image diffusion transformer, the stream's first user
 *   hr_denoise     its whole denoising loop
 *
 * and beside them hr_synth (models with known values), hr_tensors_write (small result files) and
 * hr_device_rates (what a device and the disk can do).
 *
 * Errors:     functions that can fail return 0 (or a count) or a negative errno, and fill *err
 *             (which may be NULL) with one line that names file, tensor and byte range. The first
 *             failure stays in *err until hr_error_clear(): it is the cause.
 *             -EINVAL argument, -EBADMSG malformed file, -ENOENT no such file or tensor,
 *             -EIO the disk or device failed, -ENOMEM, -ENODEV not on this machine,
 *             -EOPNOTSUPP not supported, -ECANCELED interrupted, -ERANGE a result that is not
 *             finite, -ESTALE a file was changed meanwhile; others are passed through.
 * Ownership:  objects are created and closed in pairs; close takes the address of the pointer,
 *             sets it to NULL and accepts NULL. Returned strings live as long as their object.
 * Threads:    an object is used by one thread at a time; *_interrupt() may be called from any
 *             thread and from a signal handler.
 * Memory:     everything is taken when an object is opened; nothing grows while it runs.
 */
#ifndef HEADRACE_H
#define HEADRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HR_VERSION "0.1.0"
#define HR_API     __attribute__((visibility("default")))

/* ---- errors and messages ------------------------------------------------------------ */

enum { HR_ERROR_BYTES = 1024 };

struct hr_error {
    int code;                     /* negative errno, 0 while nothing has failed  */
    char message[HR_ERROR_BYTES]; /* one line, no trailing newline               */
};

HR_API void hr_error_clear(struct hr_error *err);

enum hr_log_level { HR_LOG_ERROR, HR_LOG_WARN, HR_LOG_INFO, HR_LOG_DEBUG };

/* Called with one line, without a newline. May be called from the library's own threads. */
typedef void hr_log_fn(void *user, enum hr_log_level level, const char *message);

/* Send messages up to `level` to fn; fn NULL: standard error. Default: warnings, to standard
 * error. Not to be called while other functions of the library run. */
HR_API void hr_log_set(hr_log_fn *fn, void *user, enum hr_log_level level);

HR_API const char *hr_version(void);

/* ---- checkpoint --------------------------------------------------------------------- */

/* Element types of the safetensors format. Only F32, F16, BF16, F8_E4M3 and F8_E5M2 can be
 * computed with; tensors of the others can be listed and streamed. */
enum hr_dtype {
    HR_DTYPE_BOOL,
    HR_DTYPE_F4,
    HR_DTYPE_F6_E2M3,
    HR_DTYPE_F6_E3M2,
    HR_DTYPE_U8,
    HR_DTYPE_I8,
    HR_DTYPE_F8_E5M2,
    HR_DTYPE_F8_E4M3,
    HR_DTYPE_F8_E8M0,
    HR_DTYPE_F8_E4M3FNUZ,
    HR_DTYPE_F8_E5M2FNUZ,
    HR_DTYPE_I16,
    HR_DTYPE_U16,
    HR_DTYPE_F16,
    HR_DTYPE_BF16,
    HR_DTYPE_I32,
    HR_DTYPE_U32,
    HR_DTYPE_F32,
    HR_DTYPE_C64,
    HR_DTYPE_F64,
    HR_DTYPE_I64,
    HR_DTYPE_U64,
    HR_DTYPE_COUNT
};

/* The name as safetensors writes it, such as "BF16". */
HR_API const char *hr_dtype_name(enum hr_dtype dtype);
/* Bits of one element: 4, 6, 8, 16, 32 or 64. */
HR_API unsigned hr_dtype_bits(enum hr_dtype dtype);

struct hr_tensor {
    const char *name; /* as in the file, less a prefix common to single-file models      */
    enum hr_dtype dtype;
    uint32_t rank;         /* 0 for a scalar                                              */
    const uint64_t *shape; /* rank dimensions, outermost first                            */
    uint32_t shard_idx;    /* see hr_checkpoint_shard()                                   */
    uint64_t offset_bytes; /* of the first byte, from the start of the shard; any address */
    uint64_t size_bytes;
};

struct hr_shard {
    const char *path;
    uint64_t size_bytes;
    uint32_t n_tensors;
};

struct hr_checkpoint;

struct hr_checkpoint_params {
    /* One path: a diffusers folder (index and shards, or one file) or a .safetensors file.
     * Several: the shards of one model. Borrowed during the call. */
    const char *const *paths;
    uint32_t n_paths;
    /* Symbolic links in a folder must stay inside it or lead into this folder; NULL: the
     * Hugging Face cache, as HF_HUB_CACHE, HF_HOME or XDG_CACHE_HOME name it, or its default. */
    const char *cache_dir;
};

/* Open a model: reads the headers only, checks every rule of the format, keeps the shards open.
 * @return 0; -ENOENT no such file or shard, -EBADMSG malformed header, index or config,
 *         -EINVAL bad arguments, -ENOMEM, or the error of open() or read(). */
HR_API int hr_checkpoint_open(struct hr_checkpoint **ret_checkpoint,
                              const struct hr_checkpoint_params *params, struct hr_error *err);
HR_API void hr_checkpoint_close(struct hr_checkpoint **checkpoint);

/* Tensors are numbered 0..n-1 in order of their names. */
HR_API uint32_t hr_checkpoint_n_tensors(const struct hr_checkpoint *checkpoint);
HR_API const struct hr_tensor *hr_checkpoint_tensor(const struct hr_checkpoint *checkpoint,
                                                    uint32_t idx);
/* NULL when there is no tensor of that name. */
HR_API const struct hr_tensor *hr_checkpoint_find(const struct hr_checkpoint *checkpoint,
                                                  const char *name);
HR_API uint32_t hr_checkpoint_n_shards(const struct hr_checkpoint *checkpoint);
HR_API const struct hr_shard *hr_checkpoint_shard(const struct hr_checkpoint *checkpoint,
                                                  uint32_t idx);
/* The text of config.json, or NULL when the model came without one. */
HR_API const char *hr_checkpoint_config(const struct hr_checkpoint *checkpoint);

/* Read one whole tensor as it lies in the file.
 * @param size_bytes  the tensor's (else -EINVAL) */
HR_API int hr_checkpoint_read(const struct hr_checkpoint *checkpoint,
                              const struct hr_tensor *tensor, void *dst, uint64_t size_bytes,
                              struct hr_error *err);

/* Read one whole tensor and convert it to float (F32, F16, BF16, F8_E4M3, F8_E5M2 only).
 * @param dst  n floats, n the tensor's element count (else -EINVAL) */
HR_API int hr_checkpoint_read_f32(const struct hr_checkpoint *checkpoint,
                                  const struct hr_tensor *tensor, float *dst, uint64_t n,
                                  struct hr_error *err);

/* ---- trace --------------------------------------------------------------------------- */

/* A record of what disk, device and computing did when: each read, each weight, each wait. */
struct hr_trace;

/* The memory, 64 bytes an event, is taken when a stream or a model is opened with the trace: as
 * many events as its plan can make, at most max_events (0: 1048576, 64 MiB), and counts towards
 * ram_bytes. Events beyond it are dropped and counted. One stream or model to a trace. */
HR_API int hr_trace_open(struct hr_trace **ret_trace, uint64_t max_events, struct hr_error *err);
/* Write what was recorded so far in Chrome's trace event format, for https://ui.perfetto.dev: whole
 * or not at all, like hr_tensors_write(). Before the checkpoint is closed, whose names it holds.
 * Dropped events are told in the file's metadata and by a warning. */
HR_API int hr_trace_write(const struct hr_trace *trace, const char *path, struct hr_error *err);
HR_API void hr_trace_close(struct hr_trace **trace);

/* ---- stream ------------------------------------------------------------------------- */

enum hr_switch { HR_SWITCH_AUTO, HR_SWITCH_ON, HR_SWITCH_OFF };
/* What zero stands for in hr_stream_params. */
enum {
    HR_RING_BYTES_DEFAULT = 201326592, /* 192 MiB */
    HR_BLOCK_BYTES_DEFAULT = 4194304,  /* 4 MiB   */
    HR_DEPTH_DEFAULT = 16,
    HR_TIMEOUT_S_DEFAULT = 120,
};
#define HR_TIMEOUT_NONE UINT32_MAX

enum hr_direct { HR_DIRECT_AUTO, HR_DIRECT_ON, HR_DIRECT_OFF };

/* All zero: the library's choice. */
struct hr_stream_params {
    uint64_t ring_bytes;   /* memory for weights in flight; 0: 192 MiB                          */
    uint32_t block_bytes;  /* bytes of one read; 0: as saved for this disk, else 4 MiB          */
    uint32_t depth;        /* reads in flight; 0: as saved for this disk, else 16. What is saved
                              (see hr_tuning) counts only where both are 0                      */
    const char *io;        /* "io_uring", "libaio", "pread", NULL or "auto": first that works;
                              the environment variable HEADRACE_IO stands in for NULL. "cufile",
                              for a model on a GPU only: GPUDirect Storage, from the disk into the
                              GPU's memory past the host's                                      */
    enum hr_direct direct; /* O_DIRECT; AUTO: where the filesystem takes it and the file is not
                              in the page cache already                                        */
    enum hr_switch huge_pages; /* OFF: the ring is of small pages. AUTO and ON: of huge ones as
                                  far as the kernel gives any                                  */
    uint32_t timeout_s;        /* a disk that answers no read for so long is given up: -ETIMEDOUT;
                                  0: HR_TIMEOUT_S_DEFAULT, HR_TIMEOUT_NONE: it is waited for     */
    struct hr_trace *trace;    /* records into it; borrowed until close; NULL: no trace           */
};

/* A tensor, or a band of rows of a large one: at most 32 MiB, cut by dtype and shape alone. Rows
 * are indices of the outermost dimension; where one of those is larger than 2 MiB, of the outermost
 * two flattened into one, or three, and so on. A scalar is one row. */
struct hr_unit {
    const struct hr_tensor *tensor;
    uint64_t row_begin;
    uint64_t n_rows;
    const void *data;    /* size_bytes bytes in the ring, at any address; valid until release */
    uint64_t size_bytes; /* equal to n_rows times the bytes of a row                          */
    uint64_t ticket;     /* the library's                                                     */
};

struct hr_stream_stats {
    const char *io_name;        /* backend in use, such as "io_uring"                             */
    bool direct;                /* every file is read with O_DIRECT                               */
    uint64_t ring_bytes;        /* memory held for the whole life of the stream                   */
    uint64_t device_ring_bytes; /* of a GPU's memory instead: "cufile"                         */
    uint32_t block_bytes;       /* as used                                                        */
    uint32_t depth;             /* as used                                                        */
    uint32_t depth_min;         /* less than depth: for a time, while the kernel lacked memory    */
    uint64_t bytes_read;        /* from the files, aligned covers and re-reads included           */
    uint64_t bytes_used;        /* of units handed out                                            */
    uint64_t reads;             /* requests completed                                             */
    uint64_t short_reads;       /* requests that were continued                                   */
    uint64_t retries;           /* requests repeated after EINTR, EAGAIN, ENOMEM or EIO           */
    uint64_t bounced_bytes;     /* of bytes_read, copied out of the page cache, not read directly */
    uint64_t pinned_bytes;      /* of the ring, registered with the kernel                        */
    uint64_t huge_bytes;        /* of the ring, in huge pages                                     */
    uint64_t cpu_ns;            /* CPU time of the reader thread                                  */
    uint64_t latency_p50_ns, latency_p99_ns, latency_p999_ns; /* of requests, within 6 %      */
    double in_flight; /* requests in flight, averaged over busy_ns                      */
    uint32_t n_files, n_files_direct; /* shards, and those that are read with O_DIRECT now     */
    bool tuned; /* block size and depth are those that hr_tuning_save() kept for this disk    */
    uint32_t n_devices;      /* disks that the shards lie on; each has `depth` of its own      */
    uint64_t units;          /* handed out                                                     */
    uint64_t busy_ns;        /* time with at least one read in flight                          */
    uint64_t stall_disk_ns;  /* time hr_stream_next() waited for bytes                         */
    uint64_t stall_space_ns; /* time the reader had nothing in flight for want of ring space   */
};

struct hr_stream;

/* Take all memory and open a backend; no reading yet. The checkpoint is borrowed until close. */
HR_API int hr_stream_open(struct hr_stream **ret_stream, const struct hr_checkpoint *checkpoint,
                          const struct hr_stream_params *params, struct hr_error *err);

/* Say what to stream and start reading: the tensors called `names`, in that order, `n_passes` times
 * over (0: without end), prefetching across the end of each pass; the first n_once of them only in
 * the first pass. Again once all units of the last pass have been handed out and released.
 * @return 0; -ENOENT no tensor of that name, -EINVAL n is not more than n_once, or the ring is too
 *         small for the largest unit (the message gives the size needed), -EBUSY the plan before
 *         is not used up, -ENOMEM. After a failure the stream is as it was. */
HR_API int hr_stream_plan(struct hr_stream *stream, const char *const *names, uint32_t n,
                          uint32_t n_once, uint32_t n_passes, struct hr_error *err);

/* Read in other blocks from the next hr_stream_plan() on.
 * @param block_bytes  a power of two from 64 KiB to 32 MiB
 * @param depth        1 to the depth that the stream was opened with
 * @return 0; -EINVAL out of range, -EBUSY the plan before is not used up */
HR_API int hr_stream_set_blocks(struct hr_stream *stream, uint32_t block_bytes, uint32_t depth,
                                struct hr_error *err);

/* Wait for the next unit in order. Bands of one tensor follow one another.
 * @return 1 with *ret_unit filled, 0 at the end of the last pass, or a negative errno: -EIO and
 *         others name file, tensor and byte range; -ETIMEDOUT the disk does not answer; -ESTALE a
 *         file was changed or replaced while it was read, found at the end of each pass;
 *         -ECANCELED after hr_stream_interrupt();
 *         -EDEADLK when the units still held leave no room for the next one. */
HR_API int hr_stream_next(struct hr_stream *stream, struct hr_unit *ret_unit, struct hr_error *err);

/* Give a unit's memory back. Units may be released in any order, each once; space becomes free
 * in the order of the plan. */
HR_API void hr_stream_release(struct hr_stream *stream, const struct hr_unit *unit);

HR_API void hr_stream_get_stats(const struct hr_stream *stream, struct hr_stream_stats *ret_stats);
/* Is this shard read with O_DIRECT at present? */
HR_API bool hr_stream_shard_direct(const struct hr_stream *stream, uint32_t shard_idx);
HR_API void hr_stream_interrupt(struct hr_stream *stream);
/* Waits for reads in flight, but after -ETIMEDOUT not: then the memory that they may yet write to,
 * the ring, is never given back. Units not yet released become invalid. */
HR_API void hr_stream_close(struct hr_stream **stream);

/* ---- the disk ------------------------------------------------------------------------ */

enum { HR_RANGE_SAMPLES = 64 };

/* Why a part of a shard may read faster than its disk. */
struct hr_range_state {
    uint64_t cached_bytes; /* in the page cache; 0 where the kernel does not tell             */
    bool extents_known;    /* the filesystem tells where its data lie                         */
    uint64_t odd_bytes;    /* without written bytes of their own: holes, unwritten, shared ... */
    const char *odd_kind;  /* the first kind of them, in words; NULL: none                     */
    uint32_t n_samples;    /* blocks of 4 KiB looked at, up to HR_RANGE_SAMPLES                */
    uint32_t n_alike;      /* of them zeros, or equal to another                               */
};

/* Reads samples without bringing anything into the page cache, where the filesystem allows it.
 * @return 0; -EINVAL not inside the shard, -ENOMEM, or the error of open() */
HR_API int hr_checkpoint_range_state(const struct hr_checkpoint *checkpoint, uint32_t shard_idx,
                                     uint64_t offset_bytes, uint64_t size_bytes,
                                     struct hr_range_state *ret_state, struct hr_error *err);

/* A block size and depth that were measured on one disk. */
struct hr_tuning {
    uint32_t block_bytes, depth;
    uint64_t bytes_per_s;                       /* median of the samples                      */
    uint64_t bytes_per_s_low, bytes_per_s_high; /* its 95 % interval                          */
    uint32_t n_samples;
    uint64_t time_s;     /* since 1970, when it was measured                           */
    char device[128];    /* filled in by load and save: the disk                       */
    char filesystem[16]; /* such as "ext4"                                             */
    char kernel[65];     /* the kernel's release                                       */
};

/* What was saved for the disk that holds most of the model, by this kernel and filesystem. Streams
 * use it on their own where neither block_bytes nor depth is given.
 * @param ret_path  NULL, or takes the file's name, for free(); NULL in it where none can be made
 * @return 1; 0 nothing saved; -EBADMSG a file that hr_tuning_save() did not write, -ENOMEM, or the
 *         error of open() or read() */
HR_API int hr_tuning_load(const struct hr_checkpoint *checkpoint, struct hr_tuning *ret_tuning,
                          char **ret_path, struct hr_error *err);
/* Save it under $XDG_CACHE_HOME/headrace or ~/.cache/headrace, one file for each disk.
 * @return 0; -EINVAL values out of range, -ENOENT neither of the two variables is set, or an error
 *         of mkdir(), open(), write() or rename() */
HR_API int hr_tuning_save(const struct hr_checkpoint *checkpoint, struct hr_tuning *tuning,
                          char **ret_path, struct hr_error *err);

/* ---- doctor ------------------------------------------------------------------------- */

enum hr_finding_state {
    HR_FINDING_OK,
    HR_FINDING_SLOW,    /* it works, and could be faster */
    HR_FINDING_MISSING, /* it is not there, or nobody says */
    HR_FINDING_STATES
};

/* "ok", "slow" or "missing". */
HR_API const char *hr_finding_state_name(enum hr_finding_state state);

struct hr_finding {
    enum hr_finding_state state;
    const char *name;   /* the same on every machine: "io_uring", "memlock", ...               */
    const char *found;  /* one line, safe to print                                             */
    const char *remedy; /* NULL where it is ok; else a line for a shell, or, where no command
                           helps, "nothing to paste: " and the reason                         */
};

/* Strings live until it returns. */
typedef void hr_finding_fn(void *user, const struct hr_finding *finding);

/* All zero: the current folder. */
struct hr_doctor_params {
    const char *path;      /* a model's folder or file; NULL: the current folder */
    const char *cache_dir; /* as of hr_checkpoint_params                         */
};

/* Ask this machine, and the filesystem of params->path, what decides the speed of a run: one call
 * of fn for each thing. What can be tried is tried: a ring of memory, a direct read, a read through
 * each backend, the devices. Needs no privileges; changes nothing, but where the path is a folder
 * without a model a file without a name is written to it (64 KiB) and given up.
 * @param params  NULL: all zero
 * @return 0, whatever was found; -EINVAL the path is no folder and no file, -ENOENT and others: it
 *         cannot be opened; -ENOMEM */
HR_API int hr_doctor(const struct hr_doctor_params *params, hr_finding_fn *fn, void *user,
                     struct hr_error *err);

/* ---- checksums ---------------------------------------------------------------------- */

/* What the bytes of a model were when the manifest was made: XXH3-128 of every tensor, of every
 * file's header and of config.json. It tells damage, not intent: XXH3 is no cryptographic hash.
 * Tensors that a checkpoint leaves out (those that its index does not list, or that lie beside the
 * model's prefix) are no part of it. */
struct hr_manifest;

/* All zero: the library's choice. */
struct hr_verify_params {
    struct hr_stream_params stream;
    void (*progress)(void *user, uint64_t bytes_done, uint64_t bytes_total);
    void *progress_user;
    const volatile int *cancel; /* polled; not 0: stop with -ECANCELED */
};

/* Read all tensors once, in the order of the files. Close the manifest.
 * @return 0; -EINVAL two files of the model have the same name, or an error of the stream */
HR_API int hr_manifest_make(struct hr_manifest **ret_manifest,
                            const struct hr_checkpoint *checkpoint,
                            const struct hr_verify_params *params, struct hr_error *err);
/* @return 0; -EBADMSG no manifest, or a malformed one; or the error of open() or read() */
HR_API int hr_manifest_read(struct hr_manifest **ret_manifest, const char *path,
                            struct hr_error *err);
/* Write the manifest, JSON, so that `path` is whole or untouched. */
HR_API int hr_manifest_write(const struct hr_manifest *manifest, const char *path,
                             struct hr_error *err);
/* The same text in memory, ending in NUL; free() it. */
HR_API int hr_manifest_text(const struct hr_manifest *manifest, char **ret_text,
                            struct hr_error *err);
HR_API uint32_t hr_manifest_n_tensors(const struct hr_manifest *manifest);
HR_API void hr_manifest_close(struct hr_manifest **manifest);

enum hr_damage_kind {
    HR_DAMAGE_FILE_MISSING, /* listed, and no file of the model                       */
    HR_DAMAGE_FILE_EXTRA,   /* a file of the model that is not listed                 */
    HR_DAMAGE_FILE_SIZE,
    HR_DAMAGE_HEADER, /* other bytes than when the manifest was made                  */
    HR_DAMAGE_CONFIG, /* config.json: other bytes, or one of the two has none         */
    HR_DAMAGE_TENSOR_MISSING,
    HR_DAMAGE_TENSOR_EXTRA,
    HR_DAMAGE_TENSOR_TYPE, /* another dtype, shape or size                            */
    HR_DAMAGE_TENSOR_DATA, /* other bytes                                             */
};

struct hr_damage {
    enum hr_damage_kind kind;
    const char *file;   /* its name without folders                                      */
    const char *tensor; /* NULL: the file as a whole                                     */
    uint64_t begin_bytes, size_bytes; /* in the file: of the tensor, the header, the file */
    const char *was, *is;             /* TENSOR_TYPE: such as "BF16 [64, 3072]"; FILE_SIZE: such as
                                         "123 bytes"; else NULL */
};

/* What is damaged, in one line that is safe to print. @return buf */
HR_API const char *hr_damage_text(const struct hr_damage *damage, char *buf, size_t buf_bytes);

typedef void hr_damage_fn(void *user, const struct hr_damage *damage);

struct hr_verify_stats {
    uint32_t n_tensors; /* whose bytes were compared */
    uint64_t bytes;     /* of them                   */
    uint64_t wall_ns;
    struct hr_stream_stats stream;
};

/* Read all tensors that are both listed and there, once, in the order of the files, and compare.
 * @param damage     called for each difference: files first, then tensors in the order of the
 *                   files, then those that are missing. May be NULL
 * @param ret_stats  may be NULL
 * @return how many differences; -EINVAL the manifest shares no tensor with the model; or an error
 *         of the stream */
HR_API int hr_verify(const struct hr_checkpoint *checkpoint, const struct hr_manifest *manifest,
                     const struct hr_verify_params *params, hr_damage_fn *damage, void *user,
                     struct hr_verify_stats *ret_stats, struct hr_error *err);

/* ---- Qwen-Image DiT ----------------------------------------------------------------- */

enum hr_precision {
    HR_PRECISION_BF16, /* bf16 inputs to matrix products and attention, all else f32 */
    HR_PRECISION_F32
};

enum hr_activation {
    HR_ACTIVATION_GELU_TANH, /* the model's own, as in diffusers     */
    HR_ACTIVATION_QUICK_GELU /* x * sigmoid(1.702 x), as in DiffSynth */
};

enum {
    HR_LATENT_CHANNELS = 16,
    HR_IMAGES_MAX = 32,  /* of one input                       */
    HR_SAMPLES_MAX = 16, /* inputs in one pass over the weights */
};

/* One VAE latent [16, h, w] f32, normalised per channel; h and w even, 2..1024. */
struct hr_latent {
    const float *data;
    uint32_t h, w;
};

struct hr_dit_inputs {
    /* Targets first (one; for a layered model the composite and its layers), then reference
     * images (for a layered model: the condition, last). */
    struct hr_latent images[HR_IMAGES_MAX];
    uint32_t n_images;
    uint32_t n_targets;
    const float *prompt_emb;    /* [n_text, joint_attention_dim] f32                            */
    const uint8_t *prompt_mask; /* [n_text], 0: padding, dropped; NULL: no padding              */
    uint32_t n_text;
    float timestep; /* sigma * 1000, in 0..1000                                                */
};

enum hr_verify_when {
    HR_VERIFY_FIRST,  /* each tensor the first time it streams */
    HR_VERIFY_ALWAYS, /* each time                             */
    HR_VERIFY_OFF
};

struct hr_dit_progress {
    uint32_t block_idx; /* of this forward, finished; 0 while the modulation of all is computed */
    uint32_t n_blocks;
    uint64_t bytes_used; /* weights, of this forward */
    uint64_t elapsed_ns; /* of this forward */
    uint32_t forward_idx, n_forwards;
    uint64_t run_bytes_used, run_bytes_total; /* of all n_forwards                       */
    uint64_t run_elapsed_ns;
    uint64_t eta_ns; /* until the last forward is done; from bytes and computing so far  */
    /* Of the run so far; each only grows. */
    uint64_t disk_bytes;     /* read from the files, aligned covers included                 */
    uint64_t disk_busy_ns;   /* with at least one read in flight                             */
    uint64_t stall_space_ns; /* the disk waiting for ring space, for computing               */
    uint64_t stall_disk_ns;  /* computing waiting for weights                                */
    uint64_t compute_ns;     /* in the device's operations                                   */
    uint64_t copied_bytes;   /* weights copied to a device with memory of its own; 0: none is */
};
typedef void hr_dit_progress_fn(void *user, const struct hr_dit_progress *progress);

/* A LoRA: scale * up down is added to the weights of the layers that it names. */
struct hr_lora_file {
    const char *path; /* a .safetensors file; borrowed during the call */
    float strength;   /* finite; 1: as trained, 0: has no effect       */
};

enum hr_lora_mode {
    HR_LORA_RUNTIME, /* y + up (scale down x), in f32: exact, whatever the weights' dtype */
    HR_LORA_MERGED   /* (W + scale up down) x, summed in f32, rounded as the product's inputs are:
                        what pipelines that fuse LoRAs compute                              */
};

enum { HR_LORA_FILES_MAX = 8, HR_LORA_NAMES_SHOWN = 4 };

/* What became of one file. */
struct hr_lora_report {
    uint32_t n_modules; /* layers to which it adds a term                          */
    uint32_t n_ignored; /* tensors that fit no linear layer of the model           */
    const char *ignored[HR_LORA_NAMES_SHOWN]; /* the first of them, as in the file; NULL beyond
                                                 the last                                 */
};

/* A table of where weights are to be: JSON, a list of {"module": pattern, "offload": PLACE,
 * "onload": PLACE, "preparing": PLACE, "computation": PLACE}, PLACE {"dtype": D, "device": "disk"
 * or "cpu"}, with the meaning of DiffSynth-Studio's vram_config. The pattern is a shell's, for the
 * name of a tensor or of a module that holds it; the first entry that matches counts.
 *
 * - offload or onload on "cpu": kept in memory from the first forward on; must fit ram_bytes
 * - both on "disk", preparing on "cpu": kept where ram_bytes leaves room, as without a table
 * - all three on "disk": streamed in each forward
 *
 * A state left out is the one before it; a dtype left out is the file's own. Weights are kept as
 * the file has them, so a dtype that would round them is refused; that of the computation must be
 * the run's precision. What is read once (by a single forward, or up front where timesteps are
 * given) is never kept. */
struct hr_states;

/* @return 0; -EBADMSG naming entry, state and key; or the error of open() or read() */
HR_API int hr_states_open(struct hr_states **ret_states, const char *path, struct hr_error *err);
HR_API void hr_states_close(struct hr_states **states);

/* How weights are kept in memory between passes. */
enum hr_onload_dtype {
    HR_ONLOAD_MODEL, /* as in the model's files                                                  */
    HR_ONLOAD_FP8    /* lossy: matrices of the blocks cast to F8_E4M3, so that about twice as many
                        stay. From the first pass on they are used so; which ones follows from
                        ram_bytes and what the process holds, and so do the bits of the result   */
};

/* What a part of memory holds. */
enum hr_memory_kind {
    HR_MEMORY_ACTIVATIONS,
    HR_MEMORY_SCALES,  /* of weights; `name` is the weight's            */
    HR_MEMORY_LORA,    /* matrices, by their names in the file, scales and room to apply them */
    HR_MEMORY_WEIGHTS, /* that stay on a GPU                            */
    HR_MEMORY_DEVICE,  /* what else a GPU takes: slots, scratch, allowances for its driver */
};

/* A part of the one arena, or of a GPU's other memory. */
struct hr_memory_part {
    const char *name;
    enum hr_memory_kind kind;
    int32_t sample_idx;   /* of which input; -1: of all                                         */
    const char *overlies; /* the part of the same input in whose bytes it lies, with others at other
                             times, so that it counts in no sum; NULL: bytes of its own         */
    enum hr_dtype dtype;
    uint32_t rank; /* 1..3 dimensions */
    uint64_t shape[3];
    uint64_t offset_bytes; /* in the arena; UINT64_MAX: not in it */
    uint64_t size_bytes;   /* as taken, a little more than shape and dtype say */
};
typedef void hr_memory_fn(void *user, const struct hr_memory_part *part);

/* Which kernel computes attention on a GPU. */
enum hr_attention_by {
    HR_ATTENTION_OWN,  /* the library's                                                           */
    HR_ATTENTION_CUDNN /* cuDNN's, 9.13.1 or later, in bf16; other bits, close to the library's.
                          Where it cannot, hr_dit_open() fails with the reason                    */
};

/* All zero: the library's choice. */
struct hr_dit_params {
    struct hr_stream_params stream;
    const char *device;  /* "cpu", "cuda", "cuda:1"; NULL or "auto": a GPU that can be used, or
                            the CPU                                                          */
    uint64_t ram_bytes;  /* upper bound on the whole process: code, ring, activations; 0: what the
                            inputs need and a ring of 192 MiB                                */
    uint64_t vram_bytes; /* upper bound on the memory of a GPU, an allowance for driver and
                            libraries included; in several forwards what it leaves keeps weights
                            there. 0: what the inputs need */
    uint64_t resident_max_bytes; /* of weights kept in memory between passes, out of what ram_bytes
                           leaves; 0: all that it leaves                                    */
    enum hr_onload_dtype onload_dtype;
    uint32_t n_threads; /* 0: one for each CPU that this process may use                    */
    enum hr_precision precision;
    enum hr_activation activation;
    enum hr_attention_by attention; /* CUDNN: on a GPU alone, -ENODEV elsewhere                 */
    enum hr_switch zero_cond_t;     /* AUTO: from config.json or the marker tensor              */
    const struct hr_states *states; /* which weights stay in memory and which are streamed; borrowed
                                       during open; NULL: the library's choice, as for weights that
                                       the table does not name                              */
    bool timestep_rounding;         /* round the timestep to bf16 as bf16 pipelines do          */
    uint32_t n_layers;              /* only the first blocks; 0: all                            */
    uint32_t n_forwards;            /* how many forwards will follow one another; 0: 1, UINT32_MAX:
                                       without end. Reading runs on across the end of each but the
                                       last                                                     */
    /* The timesteps of the n_forwards forwards, in order, or NULL when they are not known: with two
     * or more, the modulation vectors of all are computed up front, and a third of the model is
     * read once instead of in each forward. Same bits either way. */
    const float *timesteps;
    /* Compare headers with the manifest now and tensors as they stream by; a difference is -EBADMSG
     * and names tensor and bytes. Tensors that no forward streams are not compared. NULL: nothing
     * is. Borrowed until close. */
    const struct hr_manifest *manifest;
    enum hr_verify_when verify;
    const char *spill_dir; /* for modulation vectors beyond a tenth of ram_bytes; NULL: TMPDIR, but
                              hr_denoise takes its resume_dir if it has one                     */
    const struct hr_lora_file *loras; /* borrowed during the call */
    uint32_t n_loras;                 /* up to HR_LORA_FILES_MAX  */
    enum hr_lora_mode lora_mode;
    hr_dit_progress_fn *progress; /* after each block, also up front; on the caller's thread */
    void *progress_user;
    /* Told of every part of the arena in order, then of a GPU's other memory, while the run is
     * opened or predicted; names live during the call. What overlies nothing sums up to
     * activation_bytes: the first three kinds; all kinds, on a GPU, to device_memory_bytes. */
    hr_memory_fn *memory;
    void *memory_user;
};

struct hr_dit_block_stats {
    uint64_t bytes;          /* of weights used               */
    uint64_t wall_ns;        /* first unit asked to last used */
    uint64_t stall_disk_ns;  /* of it waiting for the disk    */
    uint64_t begin_ns;       /* since the forward began       */
    uint64_t compute_ns;     /* of wall_ns in the device's operations           */
    uint64_t disk_bytes;     /* read meanwhile, for this block or those to come */
    uint64_t disk_busy_ns;   /* of wall_ns with at least one read in flight     */
    uint64_t stall_space_ns; /* of wall_ns the disk waiting for ring space      */
};

/* What a run will use, known before its first read. Bytes are exact, of weights: aligned reads take
 * a little more. Memory is an upper bound. */
struct hr_dit_prediction {
    uint32_t n_forwards, n_blocks;
    uint64_t first_bytes;       /* in the first forward                                      */
    uint64_t up_front_bytes;    /* of them the modulation of all forwards, which later ones need
                                   not read; 0: each forward computes its own                */
    uint64_t later_bytes;       /* in each later forward                                     */
    uint64_t run_bytes;         /* in all                                                    */
    uint64_t peak_memory_bytes; /* of the process, at most                                   */
    uint64_t ring_bytes, activation_bytes;
    uint64_t device_ring_bytes;     /* of a GPU's memory instead: stream.io "cufile"             */
    uint64_t resident_bytes;        /* weights that stay in memory from the first forward on     */
    uint64_t device_resident_bytes; /* others, that stay on a GPU within vram_bytes            */
    uint64_t mods_bytes;            /* modulation vectors                                        */
    bool mods_spilled;              /* they go to a temporary file                               */
    uint64_t device_memory_bytes;   /* of a GPU, at most; 0: computing takes none                */
};

struct hr_dit_stats {
    struct hr_stream_stats stream;
    const char *device_name; /* such as "cpu (oneDNN 2.6, 2 threads, avx512_core_bf16)" */
    uint64_t wall_ns;        /* of the last forward                                     */
    uint64_t compute_ns;     /* of it in the device's operations                        */
    uint64_t stall_disk_ns;  /* of it waiting for weights                               */
    uint64_t stall_space_ns; /* of it the disk waiting for ring space, for computing    */
    uint64_t eta_ns;         /* what the forwards that are left will take, estimated    */
    uint64_t bytes_used;     /* weights used in the last forward                        */
    uint64_t begin_ns;       /* of the last forward, since the first one began          */
    uint64_t disk_bytes;     /* read from the files during the last forward             */
    uint64_t disk_busy_ns;   /* of wall_ns with at least one read in flight             */
    uint64_t copied_bytes;   /* in the last forward, to a device with its own memory    */
    uint64_t setup_ns;       /* hr_dit_open() up to the first read                      */
    struct hr_dit_prediction predicted; /* by hr_dit_open()                                */
    uint64_t resident_bytes;            /* weights kept in memory from the first pass on          */
    uint64_t device_resident_bytes;     /* others, kept on a GPU                                  */
    /* Of a GPU, the most that its driver reported beyond what it had reported before the run, when
     * the model was open and after the first two forwards and the last: of this process, or of all
     * where it does not tell them apart, as in containers. 0: none, or it does not say. */
    uint64_t device_peak_bytes;
    uint64_t device_context_bytes; /* of them its own and its libraries', before a forward */
    uint64_t activation_bytes;     /* arena for activations                                 */
    uint64_t mods_bytes;        /* modulation vectors of all steps, 0: computed in each forward  */
    bool mods_spilled;          /* they are in a temporary file                                  */
    uint64_t verified_bytes;    /* compared with the manifest, in all forwards             */
    uint64_t verify_ns;         /* what that took                                          */
    uint64_t peak_memory_bytes; /* of the process: VmHWM and huge pages                 */
    uint32_t n_blocks;
    const struct hr_dit_block_stats *blocks; /* n_blocks of the last forward            */
    uint64_t lossy_bytes;                    /* of resident_bytes, rounded to fp8 */
    uint64_t lora_bytes;                     /* of activation_bytes, held for LoRAs */
    uint32_t n_loras;
    struct hr_lora_report loras[HR_LORA_FILES_MAX]; /* names live until close */
};

struct hr_dit;

/* Check the checkpoint against the model, take all memory for inputs of the given sizes and start
 * reading. The checkpoint is borrowed until close; of `inputs` only sizes and masks are used.
 * @param n_inputs  1..HR_SAMPLES_MAX inputs that go through the weights together, such as a
 * positive and a negative prompt; each gives the bits that it gives alone
 * @return 0; -ENOENT tensor or LoRA missing, -EBADMSG wrong shape, config or LoRA, -EOPNOTSUPP
 *         dtype, model or kind of LoRA not supported, -ENOMEM budget too small (the message says
 *         what is needed), -EINVAL. */
HR_API int hr_dit_open(struct hr_dit **ret_dit, const struct hr_checkpoint *checkpoint,
                       const struct hr_dit_params *params, const struct hr_dit_inputs *inputs,
                       uint32_t n_inputs, struct hr_error *err);

/* Width that prompt_emb must have: joint_attention_dim, as the checkpoint's tensors tell. Usable
 * before hr_dit_open(). */
HR_API int hr_dit_joint_dim(const struct hr_checkpoint *checkpoint, uint32_t *ret_dim,
                            struct hr_error *err);

/* One forward: the flow velocity of the targets, noise minus data.
 * @param inputs      as many as were given to hr_dit_open(), of the same sizes and as many unmasked
 *                    tokens, one timestep for all
 * @param velocities  for each input [n_targets, 16, h, w] f32; undefined after a failure
 * @return 0; -EINVAL inputs differ from those given to hr_dit_open(), timesteps differ or are no
 *         number in 0..1000; -ENODATA all n_forwards are done; -ERANGE NaN or infinity, the message
 *         names the block; -EBADMSG a tensor is not what the manifest says; -ECANCELED after
 *         hr_dit_interrupt(); or an error of the stream or the device. After the last four the
 *         model is of no more use: later calls give the same code. */
HR_API int hr_dit_forward(struct hr_dit *dit, const struct hr_dit_inputs *inputs,
                          float *const *velocities, struct hr_error *err);

HR_API void hr_dit_get_stats(const struct hr_dit *dit, struct hr_dit_stats *ret_stats);
HR_API void hr_dit_interrupt(struct hr_dit *dit);
HR_API void hr_dit_close(struct hr_dit **dit);

/* How long a run would take on this machine, from short measurements. */
struct hr_dit_forecast {
    const char *io_name; /* backend that read the sample */
    bool direct;
    char device_name[128];
    uint64_t disk_sample_bytes, disk_sample_ns; /* read of the model's own tensors                */
    uint64_t up_front_compute_ns; /* of the modulation of all forwards, where it comes up front   */
    uint64_t compute_ns;          /* of a forward without that, from one and two blocks           */
    uint64_t n_tokens;            /* of all inputs, text included                                 */
    /* compute_ns is not of blocks on so many tokens, which take more than seconds, but from two
     * sizes of one input that take less: attention by pairs of tokens, all else by tokens. Several
     * inputs: and from two of the first size, which tell what each one costs. */
    bool extrapolated;
    uint64_t sample_tokens[2];
    uint64_t later_disk_ns; /* of a later forward, or the only one: its bytes alone         */
    /* Copies to a device that has its own memory, which compute_ns waits for, too, but for weights
     * that stay there; 0: it computes on the host's. */
    uint64_t link_sample_bytes, link_sample_ns;
    uint64_t link_ns; /* of those of a later forward, or the only one, without modulation that came
                         up front and weights that stay on the device */
    /* Disk, link and computing at the same time: the longest of them. */
    uint64_t first_ns, later_ns, run_ns;
};

/* What a run with these parameters would use, without running it. Of `inputs` only sizes and masks
 * are used.
 * @param ret_forecast  NULL: nothing is measured. Else at most 1 GiB of the model is read, for 1.5
 *                      s at most, and one and two blocks are computed on zeros, of fewer tokens
 *                      where the inputs' own would take long: a few seconds
 * @return as hr_dit_open(): what it refuses is refused here with the same words */
HR_API int hr_dit_predict(const struct hr_checkpoint *checkpoint,
                          const struct hr_dit_params *params, const struct hr_dit_inputs *inputs,
                          uint32_t n_inputs, struct hr_dit_prediction *ret_prediction,
                          struct hr_dit_forecast *ret_forecast, struct hr_error *err);

/* The names of the tensors that one forward streams, in order.
 * @param ret_names  array of *ret_n names, free() it; the strings belong to the checkpoint */
HR_API int hr_dit_names(const struct hr_checkpoint *checkpoint, uint32_t n_layers,
                        const char ***ret_names, uint32_t *ret_n, struct hr_error *err);

/* ---- rates of a device ----------------------------------------------------------------- */

enum { HR_RATES_MAX = 20, HR_RATES_TURNS_MAX = 1000 };

enum hr_rate_unit {
    HR_RATE_GBPS,  /* 10^9 bytes a second                                                  */
    HR_RATE_TFLOPS /* 10^12 operations a second; of a product 2 for each token, row and column */
};

/* One kind of work. Values are of the turns: their median, the least and the most. */
struct hr_rate {
    /* Such as "disk alone", "MLP up, 4096 x 3072 -> 12288"; unique up to its comma. */
    char name[64];
    enum hr_rate_unit unit;
    const char *not_measured; /* why there are no values; NULL: there are                    */
    double median, low, high;
    int32_t share_of; /* the rate that it is compared with, an index; -1: none          */
    double share;     /* median of the turns' ratios to that one                        */
};

/* All zero: the library's choice. */
struct hr_rates_params {
    struct hr_stream_params stream; /* no trace                                                  */
    const char *device;             /* as of hr_dit_params                                       */
    enum hr_precision precision;    /* inputs of products and attention                          */
    enum hr_attention_by attention; /* as of hr_dit_params                                       */
    uint32_t n_threads;             /* 0: one for each CPU that this process may use             */
    uint64_t ram_bytes;             /* upper bound on the whole process; 0: what is free         */
    uint64_t vram_bytes;            /* upper bound on the memory of a GPU; 0: none               */
    uint32_t n_turns; /* up to HR_RATES_TURNS_MAX; 0: 3 to 11, as about 30 s allow         */
    void (*progress)(void *user, uint32_t turn, uint32_t n_turns); /* before each; 0: warming up */
    void *progress_user;
    const volatile int *cancel; /* polled between operations; not 0: stop with -ECANCELED    */
};

/* The rates, in this order: copies to the device from ordinary and from registered memory and while
 * the disk reads; the disk alone, beside those copies, and with stream.io "cufile" past the host's
 * memory, where all else is measured by the first backend that works; weights of each dtype through
 * a product of few tokens; a large square product, which is the peak that products and attention
 * are compared with; products at the sizes of the 20B model, and attention. */
struct hr_device_rates {
    char device_name[128];
    uint32_t n_turns;
    /* Of the picture whose sizes were computed: 4096, or 1024 or 256 where the device is slow or
     * memory is scarce. */
    uint32_t n_tokens;
    uint64_t peak_memory_bytes;   /* of the process: VmHWM and huge pages               */
    uint64_t device_memory_bytes; /* of a GPU, at most; 0: computing takes none              */
    uint64_t device_peak_bytes;   /* as its driver reported at the end, when all is loaded   */
    uint64_t wall_ns;
    struct hr_stream_stats stream; /* of all that was read */
    struct hr_rate rates[HR_RATES_MAX];
    uint32_t n_rates;
};

/* How fast a device takes weights and computes with them, and what disk and copies lose when both
 * work. Each turn measures all rates, every other one in the opposite order. A device that computes
 * on the ring is copied nothing: those rates say so.
 * @return 0; -EINVAL the model has no bytes, or too many turns; -ENODEV no such device; -ENOMEM a
 *         limit is too small (the message says what is needed); -ECANCELED; or an error of the
 *         stream or the device */
HR_API int hr_device_rates(struct hr_device_rates *ret_rates,
                           const struct hr_checkpoint *checkpoint,
                           const struct hr_rates_params *params, struct hr_error *err);

/* ---- denoising loop ------------------------------------------------------------------ */

enum hr_schedule {
    HR_SCHEDULE_DYNAMIC,  /* shift by picture size, stretched to end at 0.02: the model's own    */
    HR_SCHEDULE_LIGHTNING /* e^mu = 3 at every size, no stretch: the 4 and 8 step distilled LoRAs */
};

/* One picture: target and references as in `inputs`, of which the timestep is not used. */
struct hr_picture {
    /* images[0].data: initial latents, noise at sigma 1; NULL: from the seed. The other images:
     * references, or for a layered model further targets (NULL: from the seed) and the condition.
     */
    struct hr_dit_inputs inputs;
    const float *negative_emb; /* [n_negative, joint_attention_dim] f32; NULL: no guidance        */
    const uint8_t *negative_mask; /* [n_negative], 0: padding; NULL: none                         */
    uint32_t n_negative;
    uint64_t seed;     /* of noise that was not given                                           */
    const float *init; /* [n_targets, 16, h, w] latents to start from (strength < 1) or to keep
                          outside the mask; NULL: none                                          */
    const float *mask; /* [h, w], 1: repaint, 0: keep `init`; NULL: none                        */
};

struct hr_denoise_step {
    uint32_t n_done; /* steps, of this run and those it resumes */
    uint32_t n_steps;
    float sigma;                /* at which the step began           */
    uint64_t bytes_used;        /* weights                           */
    uint64_t wall_ns;           /* of the step                       */
    uint64_t stall_disk_ns;     /* of it waiting for weights         */
    uint64_t stall_space_ns;    /* of it the disk waiting for ring space, for computing */
    uint64_t compute_ns;        /* of it in the device's operations  */
    uint64_t begin_ns;          /* since the first step of this run began                */
    uint64_t disk_bytes;        /* read from the files meanwhile                         */
    uint64_t disk_busy_ns;      /* of wall_ns with at least one read in flight           */
    uint64_t eta_ns;            /* what the steps that are left will take, estimated     */
    uint64_t peak_memory_bytes; /* of the process so far         */
};
typedef void hr_denoise_step_fn(void *user, const struct hr_denoise_step *step);

/* What zero stands for in hr_denoise_params. */
enum { HR_CFG_SCALE_DEFAULT = 4 };

/* All zero but for the steps: the library's choice. */
struct hr_denoise_params {
    struct hr_dit_params dit; /* n_forwards and timesteps are the loop's own; its progress is called
                                 within each step                                                 */
    uint32_t n_steps;         /* 1..1000                                                          */
    enum hr_schedule schedule;
    float strength; /* of img2img, in (0, 1]; 0: 1                                                */
    bool mu_given;
    float mu;        /* of the dynamic schedule, -20 to 20, instead of the size's own             */
    float cfg_scale; /* v = v_neg + scale (v_pos - v_neg); 0: 4; 1: no guidance                   */
    bool cfg_norm;   /* scale each token back to the positive prediction's norm, as diffusers     */
    const char *resume_dir;   /* keep each finished step there, and go on from the last; borrowed
                                 until close                                                      */
    hr_denoise_step_fn *step; /* after each step                                                  */
    void *step_user;
};

struct hr_denoise;

/* Everything up to the first read: checks, noise, schedule, memory. The checkpoint is borrowed
 * until close; of the pictures nothing is kept but copies of the latents, so prompts and references
 * are borrowed too. All pictures, each with its negative prompt, go through the weights together:
 * at most HR_SAMPLES_MAX of both, of the same number of target tokens.
 * @return as hr_dit_open(); -EINVAL also where resume_dir holds a run of other inputs or settings
 */
HR_API int hr_denoise_open(struct hr_denoise **ret_denoise, const struct hr_checkpoint *checkpoint,
                           const struct hr_denoise_params *params,
                           const struct hr_picture *pictures, uint32_t n_pictures,
                           struct hr_error *err);
/* Run all remaining steps.
 * @param latents  for each picture [n_targets, 16, h, w], written on success only
 * @return 0; as hr_dit_forward(), -ECANCELED after hr_denoise_interrupt(), or an error of writing
 *         to resume_dir */
HR_API int hr_denoise_run(struct hr_denoise *denoise, float *const *latents, struct hr_error *err);
/* Of the transformer; zero where resume_dir held a finished run and none was needed. */
HR_API void hr_denoise_get_stats(const struct hr_denoise *denoise, struct hr_dit_stats *ret_stats);
/* As hr_dit_predict(), for a loop of which no step is done: resume_dir is not looked at, and of the
 * pictures only sizes and masks are used; negative_emb tells that there is a negative prompt. */
HR_API int hr_denoise_predict(const struct hr_checkpoint *checkpoint,
                              const struct hr_denoise_params *params,
                              const struct hr_picture *pictures, uint32_t n_pictures,
                              struct hr_dit_prediction *ret_prediction,
                              struct hr_dit_forecast *ret_forecast, struct hr_error *err);
HR_API void hr_denoise_interrupt(struct hr_denoise *denoise);
HR_API void hr_denoise_close(struct hr_denoise **denoise);

/* ---- writing ------------------------------------------------------------------------ */

struct hr_tensor_out {
    const char *name;
    const float *data; /* F32 */
    uint32_t rank;
    const uint64_t *shape;
};

/* Write a safetensors file of F32 tensors: to a temporary name beside `path`, flushed, then
 * renamed, so that `path` is whole or untouched. */
HR_API int hr_tensors_write(const char *path, const struct hr_tensor_out *tensors, uint32_t n,
                            struct hr_error *err);

/* What zero stands for in hr_synth_params: the published sizes. */
enum {
    HR_SYNTH_LAYERS_DEFAULT = 60,
    HR_SYNTH_HEADS_DEFAULT = 24,
    HR_SYNTH_JOINT_DIM_DEFAULT = 3584,
};

enum hr_synth_order { HR_SYNTH_ORDER_NAME, HR_SYNTH_ORDER_REVERSE, HR_SYNTH_ORDER_SHUFFLE };

/* A model of the Qwen-Image architecture whose every value follows from its tensor's name and
 * index (32-bit FNV-1a of the name, then a mixing function). Zero: the published sizes. */
struct hr_synth_params {
    const char *path;          /* folder to make; a name ending in .safetensors: one file    */
    uint32_t n_layers;         /* 60                                                         */
    uint32_t n_heads;          /* 24, of 128 each                                            */
    uint32_t joint_dim;        /* 3584                                                       */
    uint32_t n_shards;         /* as published: about 5 GB each                              */
    enum hr_dtype dtype;       /* F32, F16, BF16, F8_E4M3, F8_E5M2; 0 (BOOL) stands for BF16 */
    bool zero_cond_t;          /* Edit-2511                                                  */
    bool layered;              /* one more tensor, layered RoPE                              */
    bool force;                /* replace an existing model                                  */
    uint32_t header_pad_bytes; /* spaces after the header's JSON: odd tensor addresses       */
    enum hr_synth_order order; /* of the tensors in the files                                */
    const char *prefix;        /* before each name, such as "model.diffusion_model."         */
    void (*progress)(void *user, uint64_t bytes_done, uint64_t bytes_total);
    void *progress_user;
    const volatile int *cancel; /* polled; not 0: stop and remove what was written */
};

/* @return 0; -ENOSPC with what is needed and what is free, -EEXIST, -ECANCELED, -EINVAL or the
 *         error of a system call. On failure nothing is left behind; what a killed call for the
 *         same path left beside it, `path`.tmp-PID-NUMBER, the next one removes. */
HR_API int hr_synth(const struct hr_synth_params *params, struct hr_error *err);
/* Bytes that hr_synth() would write, headers included; for a check of free space. 0 where it would
 * refuse the parameters. */
HR_API uint64_t hr_synth_bytes(const struct hr_synth_params *params);
/* The value generator itself: elements first to first + n - 1 of the tensor `name`, by the rule
 * that fits the name; see hr_synth_params.
 * @param n_in   columns of the tensor, where its rank is 2
 * @param scale  0: the rule's own; else u * scale (inputs) */
HR_API void hr_synth_values(float *dst, const char *name, uint64_t first, uint64_t n, uint32_t rank,
                            uint64_t n_in, double scale);

#ifdef __cplusplus
}
#endif
#endif /* HEADRACE_H */
