/* SPDX-License-Identifier: Apache-2.0 */
/* formats.h -- what the bytes of a model mean: values of dtypes, safetensors headers, shard index,
 * config, manifest; and what is said about a model: its table of states, measured figures of a
 * disk.
 *
 * Pure functions of memory: no files, no threads, no device. Everything parsed here comes from
 * strangers; a malformed text gives -EBADMSG and one line saying what is wrong and where, a
 * well-formed one that is not ours -EOPNOTSUPP. Messages name tensors; the caller puts the file's
 * name in front by passing `what`, used as "what: message".
 */
#ifndef HR_FORMATS_H
#define HR_FORMATS_H

#include <jansson.h>

#include "common/common.h"

/* ---- values of dtypes --------------------------------------------------------------- */

/* Convert n elements of a computable dtype at any address to float, exactly. NaNs stay NaN (payload
 * unspecified), E4M3 is the "FN" form: no infinities, 0x7f and 0xff are NaN. */
void hr_dtype_to_f32(float *dst, const void *src, enum hr_dtype dtype, size_t n);
/* Convert n floats to dtype, rounding to nearest, ties to even. Beyond the range: F16, BF16 and
 * F8_E5M2 give infinity, F8_E4M3 NaN (as torch did; since 2.13 at the latest it gives 448).
 * NaN stays NaN. dst at any address. */
void hr_dtype_from_f32(void *dst, const float *src, enum hr_dtype dtype, size_t n);

static inline uint16_t hr_f32_to_bf16(float f)
{
    union {
        float f;
        uint32_t u;
    } v = {.f = f};

    if ((v.u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t) ((v.u >> 16) | 0x40); /* keep a NaN a NaN, made quiet */
    return (uint16_t) ((v.u + 0x7fffu + ((v.u >> 16) & 1)) >> 16);
}

static inline float hr_bf16_to_f32(uint16_t b)
{
    union {
        uint32_t u;
        float f;
    } v = {.u = (uint32_t) b << 16};

    return v.f;
}

/* ---- safetensors header ------------------------------------------------------------- */

enum {
    HR_RANK_MAX = 64,
    HR_HEADER_BYTES_MAX = 100000000, /* as the reference implementation */
};

struct hr_entry {
    const char *name; /* UTF-8, no NUL; owned by the header */
    enum hr_dtype dtype;
    uint32_t rank;
    const uint64_t *shape; /* owned by the header; NULL for rank 0 */
    uint64_t begin_bytes;  /* from the start of the file           */
    uint64_t size_bytes;
};

struct hr_header {
    struct hr_entry *entries; /* n_entries, in order of begin_bytes, then of name */
    uint32_t n_entries;
    uint64_t data_begin_bytes; /* 8 + length of the JSON */
    void *storage;             /* names and shapes       */
};

/* Check the first 8 bytes of a file against its size.
 * @return 0 with the JSON's length, or -EBADMSG */
int hr_header_length(const uint8_t first[8], uint64_t file_bytes, const char *what,
                     uint64_t *ret_json_bytes, struct hr_error *err);

/* Parse the JSON of a header under all the rules: valid UTF-8, one object, no duplicate keys at any
 * level (also when written with escapes), no NUL in names or values, integers only and exact, known
 * dtype, rank <= 64, products checked for overflow, ranges contiguous from 0 to the end of the file
 * without holes or overlap, sizes that match shapes. Unknown keys of an entry and `__metadata__`
 * (a map of strings) are checked for form and ignored.
 * @param json  json_bytes bytes, need not end in NUL
 * @return 0, -EBADMSG or -ENOMEM; *ret_header is written on success only */
int hr_header_parse(struct hr_header *ret_header, const char *json, size_t json_bytes,
                    uint64_t file_bytes, const char *what, struct hr_error *err);
void hr_header_uninit(struct hr_header *header);

/* One string of the `__metadata__` of a header that hr_header_parse() has accepted.
 * @param ret_text  free() it
 * @return 1, 0 when there is no such key, -EBADMSG or -ENOMEM */
int hr_header_metadata(char **ret_text, const char *json, size_t json_bytes, const char *key,
                       const char *what, struct hr_error *err);

/* Elements of a shape; 1 for rank 0. The product has been checked when it came from a header. */
uint64_t hr_shape_elements(const uint64_t *shape, uint32_t rank);

/* Bytes of a tensor from dtype and shape.
 * @return NULL, or what is wrong. As in the reference implementation the product is taken from the
 *         left, and overflows even when a later dimension is 0. */
const char *hr_entry_bytes(const struct hr_entry *entry, uint64_t *ret_bytes);

/* A header for writing. Entries' names, dtypes, shapes and order are given, begin_bytes and
 * size_bytes are filled in; spaces are added so that the data begin at a multiple of 8, then
 * pad_bytes spaces more.
 * @param ret_text   8 bytes of length and the JSON, *ret_bytes long; free() it
 * @return 0, -ENOMEM or -EINVAL for a name that JSON cannot hold */
int hr_header_build(char **ret_text, size_t *ret_bytes, struct hr_entry *entries,
                    uint32_t n_entries, uint32_t pad_bytes, struct hr_error *err);

/* ---- shard index -------------------------------------------------------------------- */

struct hr_index {
    const char **shards; /* n_shards file names, sorted, each a base name ending in .safetensors */
    uint32_t n_shards;
    struct hr_index_entry {
        const char *name; /* tensor */
        uint32_t shard_idx;
    } * entries; /* n_entries, sorted by name */
    uint32_t n_entries;
    void *storage;
};

/* Parse model.safetensors.index.json. File names that are not one plain base name (separators,
 * "..", NUL, empty, other suffix) are -EBADMSG. metadata.total_size is information, not checked. */
int hr_index_parse(struct hr_index *ret_index, const char *json, size_t json_bytes,
                   const char *what, struct hr_error *err);
void hr_index_uninit(struct hr_index *index);

/* ---- manifest ----------------------------------------------------------------------- */

enum { HR_MANIFEST_BYTES_MAX = 2 * HR_HEADER_BYTES_MAX };

struct hr_hash {
    uint64_t high, low; /* XXH3-128; as text 32 hexadecimal digits, high first */
};

/* headrace.h's hr_manifest: what a model's bytes were when it was made. */
struct hr_manifest {
    struct hr_manifest_file {
        const char *name; /* base name                                              */
        uint64_t size_bytes;
        uint64_t mtime_ns;     /* since 1970; information                           */
        struct hr_hash header; /* of the 8 bytes of length and the JSON behind them */
    } * files;                 /* n_files, sorted by name                           */
    uint32_t n_files;
    struct hr_manifest_tensor {
        const char *name;
        const char *type; /* dtype and shape, such as "BF16 [64, 3072]"             */
        uint32_t file_idx;
        uint64_t begin_bytes, size_bytes; /* in the file                            */
        struct hr_hash hash;
    } * tensors; /* n_tensors, sorted by name                                       */
    uint32_t n_tensors;
    bool has_config;
    struct hr_hash config; /* of config.json */
    void *storage;
};

/* @return 0; -EBADMSG, also for a key that is not known: it may mean that more must be checked */
int hr_manifest_parse(struct hr_manifest *ret_manifest, const char *json, size_t json_bytes,
                      const char *what, struct hr_error *err);
/* The text, one line for each file and tensor, free() it.
 * @return 0, -ENOMEM, or -EINVAL for a name that JSON cannot hold */
int hr_manifest_build(char **ret_text, size_t *ret_bytes, const struct hr_manifest *manifest,
                      struct hr_error *err);
/* Put the files in order, so that one can be found. */
void hr_manifest_sort_files(struct hr_manifest *manifest);
/* @param name  the base name. @return NULL: it is not among the files */
const struct hr_manifest_file *hr_manifest_find_file(const struct hr_manifest *manifest,
                                                     const char *name);
void hr_manifest_uninit(struct hr_manifest *manifest);

/* ---- other JSON ------------------------------------------------------------------------- */

/* Parse a text of at most 1 MiB as strictly as the files above, with no loss for want of memory.
 * @param ret_root  owned by the caller
 * @return 0, -EBADMSG or -ENOMEM */
int hr_json_parse(json_t **ret_root, const char *text, size_t bytes, const char *what,
                  struct hr_error *err);

/* ---- table of states ---------------------------------------------------------------- */

enum { HR_STATE_ENTRIES_MAX = 4096 };

/* Of a module of the model, as in DiffSynth-Studio: while another model is at work; while this one
 * is; where there is room beyond that; while it is computed. */
enum hr_state { HR_STATE_OFFLOAD, HR_STATE_ONLOAD, HR_STATE_PREPARING, HR_STATE_COMPUTATION };
enum { HR_STATES = 4 };

struct hr_state_place {
    bool given;
    bool on_disk; /* else in the memory of the host */
    bool has_dtype, dtype_on_disk;
    enum hr_dtype dtype;
};

struct hr_state_table {
    struct hr_state_entry {
        char module[256]; /* a pattern as of fnmatch() */
        struct hr_state_place places[HR_STATES];
    } * entries;
    uint32_t n;
};

/* Devices are "disk" and "cpu"; a state that is left out is the one before it, but for the
 * computation. @return 0; -EBADMSG naming entry, state and key; -ENOMEM */
int hr_state_table_parse(struct hr_state_table *ret_table, const char *json, size_t json_bytes,
                         const char *what, struct hr_error *err);
void hr_state_table_uninit(struct hr_state_table *table);
const char *hr_state_name(enum hr_state state);
/* As PyTorch calls it. */
const char *hr_state_dtype_name(enum hr_dtype dtype);

/* ---- model config ------------------------------------------------------------------- */

/* Qwen-Image's config.json; 0 or false where a key is absent. All but the flags must then agree
 * with the tensors, which decide. */
struct hr_config {
    uint32_t num_layers;          /* 1..10000  */
    uint32_t num_attention_heads; /* 1..1024   */
    uint32_t attention_head_dim;  /* 128 only  */
    uint32_t in_channels;         /* 64 only   */
    uint32_t out_channels;        /* 16 only   */
    uint32_t patch_size;          /* 2 only    */
    uint32_t joint_attention_dim; /* 1..65536  */
    uint32_t axes_dims_rope[3];   /* 16, 56, 56 only */
    bool zero_cond_t;
    bool use_additional_t_cond;
    bool use_layer3d_rope;
};

/* @return 0; -EBADMSG malformed or a number out of the ranges above; -EOPNOTSUPP another model's
 *         `_class_name`, or `guidance_embeds` true; unknown keys are ignored. */
int hr_config_parse(struct hr_config *ret_config, const char *json, size_t json_bytes,
                    const char *what, struct hr_error *err);
/* The text of a config.json for `config`, free() it; NULL without memory. */
char *hr_config_build(const struct hr_config *config);

/* ---- measured figures of a disk --------------------------------------------------------- */

/* @return 0 or -EINVAL, naming what is out of range */
int hr_tuning_check(const struct hr_tuning *tuning, const char *what, struct hr_error *err);
/* Parse what hr_tuning_build() wrote. @return 0, -EBADMSG or -ENOMEM */
int hr_tuning_parse(struct hr_tuning *ret_tuning, const char *json, size_t json_bytes,
                    const char *what, struct hr_error *err);
/* free() it; NULL without memory, or for a text that is not UTF-8. */
char *hr_tuning_build(const struct hr_tuning *tuning);

#endif /* HR_FORMATS_H */
