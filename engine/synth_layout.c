/* SPDX-License-Identifier: Apache-2.0 */
/* synth_layout.c -- the Qwen-Image architecture as tables; everything of a model but its values. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/dit.h"
#include "engine/files.h"
#include "engine/synth.h"

enum {
    PREFIX_MAX = 256,
    NAME_MAX_BYTES = 80, /* without the prefix */
};

static const uint64_t PUBLISHED_SHARD_BYTES = 5000000000;

const char hr_synth_index_name[] = "diffusion_pytorch_model.safetensors.index.json";

/* ---- tensors ------------------------------------------------------------------------ */

enum dim {
    DIM_NONE,
    DIM_IN,
    DIM_TIME,
    DIM_HEAD,
    DIM_JOINT,
    DIM_TWO,
    DIM_D,
    DIM_2D,
    DIM_4D,
    DIM_6D
};

/* A linear layer `in` -> `out` has name.weight [out, in] and name.bias [out]; without `in`, a norm
 * has name.weight [out]. */
struct part {
    const char *name;
    enum dim out, in;
};

static const struct part top_parts[] = {
    {"img_in", DIM_D, DIM_IN},
    {"txt_norm", DIM_JOINT, DIM_NONE},
    {"txt_in", DIM_D, DIM_JOINT},
    {"time_text_embed.timestep_embedder.linear_1", DIM_D, DIM_TIME},
    {"time_text_embed.timestep_embedder.linear_2", DIM_D, DIM_D},
    {"norm_out.linear", DIM_2D, DIM_D},
    {"proj_out", DIM_IN, DIM_D},
};

static const struct part block_parts[] = {
    {"img_mod.1", DIM_6D, DIM_D},
    {"txt_mod.1", DIM_6D, DIM_D},
    {"attn.to_q", DIM_D, DIM_D},
    {"attn.to_k", DIM_D, DIM_D},
    {"attn.to_v", DIM_D, DIM_D},
    {"attn.add_q_proj", DIM_D, DIM_D},
    {"attn.add_k_proj", DIM_D, DIM_D},
    {"attn.add_v_proj", DIM_D, DIM_D},
    {"attn.to_out.0", DIM_D, DIM_D},
    {"attn.to_add_out", DIM_D, DIM_D},
    {"attn.norm_q", DIM_HEAD, DIM_NONE},
    {"attn.norm_k", DIM_HEAD, DIM_NONE},
    {"attn.norm_added_q", DIM_HEAD, DIM_NONE},
    {"attn.norm_added_k", DIM_HEAD, DIM_NONE},
    {"img_mlp.net.0.proj", DIM_4D, DIM_D},
    {"img_mlp.net.2", DIM_D, DIM_4D},
    {"txt_mlp.net.0.proj", DIM_4D, DIM_D},
    {"txt_mlp.net.2", DIM_D, DIM_4D},
};

/* Parameters with the published sizes in place of zeros. */
struct sizes {
    uint32_t n_layers, n_heads, joint_dim;
    const char *prefix;
};

struct builder {
    struct hr_synth_layout *layout;
    const struct sizes *sizes;
    size_t name_bytes; /* room for each name */
};

static uint64_t dim_of(const struct sizes *sizes, enum dim dim)
{
    const uint64_t width = (uint64_t) HR_HEAD_DIM * sizes->n_heads;

    switch (dim) {
    case DIM_NONE:
        return 0;
    case DIM_IN:
        return 64;
    case DIM_TIME:
        return 256;
    case DIM_HEAD:
        return HR_HEAD_DIM;
    case DIM_JOINT:
        return sizes->joint_dim;
    case DIM_TWO:
        return 2;
    case DIM_D:
        return width;
    case DIM_2D:
        return 2 * width;
    case DIM_4D:
        return 4 * width;
    case DIM_6D:
        return 6 * width;
    }
    hr_assert(false);
}

static void add_tensor(struct builder *b, const char *block, const char *name, const char *suffix,
                       uint32_t rank, uint64_t rows, uint64_t columns)
{
    const uint32_t i = b->layout->n_entries++;
    char *full = b->layout->names + i * b->name_bytes;
    uint64_t *shape = b->layout->shapes + 2 * (size_t) i;
    const int len =
        snprintf(full, b->name_bytes, "%s%s%s%s", b->sizes->prefix, block, name, suffix);

    hr_assert(len > 0 && (size_t) len < b->name_bytes);
    shape[0] = rows;
    shape[1] = columns;
    b->layout->entries[i] = (struct hr_entry){
        .name = full,
        .dtype = b->layout->dtype,
        .rank = rank,
        .shape = shape,
    };
}

static void add_parts(struct builder *b, const char *block, const struct part *parts, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const uint64_t out = dim_of(b->sizes, parts[i].out), in = dim_of(b->sizes, parts[i].in);

        add_tensor(b, block, parts[i].name, ".weight", in ? 2 : 1, out, in);
        if (in)
            add_tensor(b, block, parts[i].name, ".bias", 1, out, 0);
    }
}

static int compare_by_name(const void *a, const void *b)
{
    return strcmp(((const struct hr_entry *) a)->name, ((const struct hr_entry *) b)->name);
}

static int compare_by_name_reverse(const void *a, const void *b)
{
    return compare_by_name(b, a);
}

/* Order of the hashes of the names: as good as random, and always the same. */
static int compare_by_hash(const void *a, const void *b)
{
    const uint32_t x = hr_synth_rule(((const struct hr_entry *) a)->name, 1, 0).seed;
    const uint32_t y = hr_synth_rule(((const struct hr_entry *) b)->name, 1, 0).seed;

    return x == y ? compare_by_name(a, b) : x < y ? -1 : 1;
}

static int build_tensors(struct hr_synth_layout *layout, const struct hr_synth_params *params,
                         const struct sizes *sizes, struct hr_error *err)
{
    static int (*const orders[])(const void *, const void *) = {
        [HR_SYNTH_ORDER_NAME] = compare_by_name,
        [HR_SYNTH_ORDER_REVERSE] = compare_by_name_reverse,
        [HR_SYNTH_ORDER_SHUFFLE] = compare_by_hash,
    };
    /* Room for two of each part, and two tensors of variants. */
    const size_t n_max =
        2 * (HR_ARRAY_SIZE(top_parts) + 1 + (size_t) sizes->n_layers * HR_ARRAY_SIZE(block_parts));
    struct builder b = {layout, sizes, NAME_MAX_BYTES + strlen(sizes->prefix)};
    char block[32];

    layout->entries = calloc(n_max, sizeof(*layout->entries));
    layout->rules = calloc(n_max, sizeof(*layout->rules));
    layout->names = calloc(n_max, b.name_bytes);
    layout->shapes = calloc(n_max, 2 * sizeof(*layout->shapes));
    if (!layout->entries || !layout->rules || !layout->names || !layout->shapes)
        return hr_error_set(err, -ENOMEM, "no memory for a model of %u layers", sizes->n_layers);
    add_parts(&b, "", top_parts, HR_ARRAY_SIZE(top_parts));
    for (uint32_t i = 0; i < sizes->n_layers; i++) {
        snprintf(block, sizeof(block), "transformer_blocks.%u.", i);
        add_parts(&b, block, block_parts, HR_ARRAY_SIZE(block_parts));
    }
    if (params->layered)
        add_tensor(&b, "", "time_text_embed.addition_t_embedding", ".weight", 2,
                   dim_of(sizes, DIM_TWO), dim_of(sizes, DIM_D));
    /* A file has no config.json to say it, only this. */
    if (params->zero_cond_t && layout->is_file)
        add_tensor(&b, "", "__index_timestep_zero__", "", 1, 0, 0);
    hr_assert(layout->n_entries <= n_max);
    qsort(layout->entries, layout->n_entries, sizeof(*layout->entries), orders[params->order]);
    for (uint32_t i = 0; i < layout->n_entries; i++) {
        const struct hr_entry *entry = &layout->entries[i];

        layout->rules[i] =
            hr_synth_rule(entry->name + strlen(sizes->prefix), entry->rank, entry->shape[1]);
    }
    return 0;
}

/* ---- shards ------------------------------------------------------------------------- */

static uint64_t tensor_bytes(const struct hr_synth_layout *layout, uint32_t i)
{
    const struct hr_entry *entry = &layout->entries[i];

    return hr_shape_elements(entry->shape, entry->rank) * (hr_dtype_bits(entry->dtype) / 8);
}

/* As published: filled one after the other up to a limit. */
static uint32_t split_by_size(const struct hr_synth_layout *layout, struct hr_synth_shard *shards)
{
    uint64_t bytes = 0;
    uint32_t n = 0;

    for (uint32_t i = 0; i < layout->n_entries; i++) {
        const uint64_t more = tensor_bytes(layout, i);

        if (n == 0 || bytes + more > PUBLISHED_SHARD_BYTES) {
            shards[n++].first_entry = i;
            bytes = 0;
        }
        shards[n - 1].n_entries++;
        bytes += more;
    }
    return n;
}

/* Into n shards of about the same size, none of them empty. */
static void split_evenly(const struct hr_synth_layout *layout, struct hr_synth_shard *shards,
                         uint32_t n)
{
    uint64_t left_bytes = 0;
    uint32_t at = 0;

    for (uint32_t i = 0; i < layout->n_entries; i++)
        left_bytes += tensor_bytes(layout, i);
    for (uint32_t s = 0; s < n; s++) {
        const uint32_t n_after = n - s - 1;
        const uint64_t goal = left_bytes / (n - s);
        uint64_t bytes = 0;

        shards[s].first_entry = at;
        do
            bytes += tensor_bytes(layout, at++);
        while (layout->n_entries - at > n_after && (n_after == 0 || bytes < goal));
        shards[s].n_entries = at - shards[s].first_entry;
        left_bytes -= bytes;
    }
    hr_assert(at == layout->n_entries);
}

static int build_shards(struct hr_synth_layout *layout, const struct hr_synth_params *params,
                        struct hr_error *err)
{
    uint32_t n = layout->is_file ? 1 : params->n_shards;

    layout->shards = calloc(layout->n_entries, sizeof(*layout->shards));
    if (!layout->shards)
        return hr_error_set(err, -ENOMEM, "no memory for the shards of a model");
    n = (uint32_t) hr_min_u64(n, layout->n_entries);
    layout->n_shards = n ? n : split_by_size(layout, layout->shards);
    if (n)
        split_evenly(layout, layout->shards, n);
    for (uint32_t s = 0; s < layout->n_shards; s++) {
        struct hr_synth_shard *shard = &layout->shards[s];
        const struct hr_entry *last;
        int r;

        if (layout->n_shards == 1)
            snprintf(shard->name, sizeof(shard->name), "diffusion_pytorch_model.safetensors");
        else
            snprintf(shard->name, sizeof(shard->name),
                     "diffusion_pytorch_model-%05u-of-%05u.safetensors", s + 1, layout->n_shards);
        r = hr_header_build(&shard->header, &shard->header_bytes,
                            layout->entries + shard->first_entry, shard->n_entries,
                            params->header_pad_bytes, err);
        if (r < 0)
            return r;
        last = &layout->entries[shard->first_entry + shard->n_entries - 1];
        shard->file_bytes = last->begin_bytes + last->size_bytes;
        layout->total_bytes += shard->file_bytes;
    }
    return 0;
}

static char *build_index(const struct hr_synth_layout *layout)
{
    json_t *map = json_object(), *root;
    json_int_t total = 0;
    char *text;
    int r = 0;

    for (uint32_t s = 0; s < layout->n_shards; s++) {
        const struct hr_synth_shard *shard = &layout->shards[s];

        for (uint32_t i = 0; i < shard->n_entries; i++) {
            const struct hr_entry *entry = &layout->entries[shard->first_entry + i];

            total += (json_int_t) entry->size_bytes;
            r |= json_object_set_new(map, entry->name, json_string(shard->name));
        }
    }
    root = json_pack("{s:{s:I},s:o}", "metadata", "total_size", total, "weight_map", map);
    text = root && r == 0 ? json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    json_decref(root);
    return text;
}

static int build_texts(struct hr_synth_layout *layout, const struct hr_synth_params *params,
                       const struct sizes *sizes, struct hr_error *err)
{
    const struct hr_config config = {
        .num_layers = sizes->n_layers,
        .num_attention_heads = sizes->n_heads,
        .attention_head_dim = HR_HEAD_DIM,
        .in_channels = 64,
        .out_channels = 16,
        .patch_size = 2,
        .joint_attention_dim = sizes->joint_dim,
        .axes_dims_rope = {16, 56, 56},
        .zero_cond_t = params->zero_cond_t,
        .use_additional_t_cond = params->layered,
        .use_layer3d_rope = params->layered,
    };

    if (layout->is_file)
        return 0;
    layout->config = hr_config_build(&config);
    if (layout->n_shards > 1)
        layout->index = build_index(layout);
    if (!layout->config || (layout->n_shards > 1 && !layout->index))
        return hr_error_set(err, -ENOMEM, "no memory for config.json and the index");
    layout->total_bytes += strlen(layout->config) + (layout->index ? strlen(layout->index) : 0);
    return 0;
}

/* ---- all ---------------------------------------------------------------------------- */

static int check_params(const struct hr_synth_params *params, struct sizes *ret_sizes,
                        bool *ret_is_file, struct hr_error *err)
{
    const struct sizes sizes = {
        .n_layers = params->n_layers ? params->n_layers : HR_SYNTH_LAYERS_DEFAULT,
        .n_heads = params->n_heads ? params->n_heads : HR_SYNTH_HEADS_DEFAULT,
        .joint_dim = params->joint_dim ? params->joint_dim : HR_SYNTH_JOINT_DIM_DEFAULT,
        .prefix = params->prefix ? params->prefix : "",
    };

    *ret_is_file = params->path && hr_has_suffix(params->path, ".safetensors");
    if (sizes.n_layers > HR_DIT_LAYERS_MAX || sizes.n_heads > HR_DIT_HEADS_MAX ||
        sizes.joint_dim > HR_DIT_JOINT_MAX)
        return hr_error_set(err, -EINVAL,
                            "%u layers, %u heads, joint dimension %u: at most %d, %d and %d",
                            sizes.n_layers, sizes.n_heads, sizes.joint_dim, HR_DIT_LAYERS_MAX,
                            HR_DIT_HEADS_MAX, HR_DIT_JOINT_MAX);
    if (params->dtype != HR_DTYPE_BOOL &&
        ((unsigned) params->dtype >= HR_DTYPE_COUNT || !hr_dtype_is_computable(params->dtype)))
        return hr_error_set(err, -EINVAL, "dtype %s: must be F32, F16, BF16, F8_E4M3 or F8_E5M2",
                            (unsigned) params->dtype < HR_DTYPE_COUNT ? hr_dtype_name(params->dtype)
                                                                      : "unknown");
    if ((unsigned) params->order > HR_SYNTH_ORDER_SHUFFLE)
        return hr_error_set(err, -EINVAL, "order %u: there are only 0 to %d",
                            (unsigned) params->order, HR_SYNTH_ORDER_SHUFFLE);
    if (strlen(sizes.prefix) > PREFIX_MAX)
        return hr_error_set(err, -EINVAL, "a prefix of %zu bytes: at most %d", strlen(sizes.prefix),
                            PREFIX_MAX);
    if (*ret_is_file && params->n_shards > 1)
        return hr_error_set(err, -EINVAL,
                            "%u shards do not fit one .safetensors file; name a folder",
                            params->n_shards);
    *ret_sizes = sizes;
    return 0;
}

int hr_synth_layout_init(struct hr_synth_layout *ret_layout, const struct hr_synth_params *params,
                         struct hr_error *err)
{
    struct hr_synth_layout layout = {0};
    struct sizes sizes;
    int r = check_params(params, &sizes, &layout.is_file, err);

    if (r < 0)
        return r;
    layout.dtype = params->dtype == HR_DTYPE_BOOL ? HR_DTYPE_BF16 : params->dtype;
    r = build_tensors(&layout, params, &sizes, err);
    if (r == 0)
        r = build_shards(&layout, params, err);
    if (r == 0)
        r = build_texts(&layout, params, &sizes, err);
    if (r < 0) {
        hr_synth_layout_uninit(&layout);
        return r;
    }
    *ret_layout = layout;
    return 0;
}

void hr_synth_layout_uninit(struct hr_synth_layout *layout)
{
    for (uint32_t s = 0; s < layout->n_shards; s++)
        free(layout->shards[s].header);
    free(layout->shards);
    free(layout->entries);
    free(layout->rules);
    free(layout->names);
    free(layout->shapes);
    free(layout->config);
    free(layout->index);
    *layout = (struct hr_synth_layout){0};
}
