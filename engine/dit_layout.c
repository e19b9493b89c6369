/* SPDX-License-Identifier: Apache-2.0 */
/* dit_layout.c -- which tensors the Qwen-Image DiT has, of which shapes, in which order of use.
 *
 * The tables say it all: each line is a tensor, where it goes in our structs and its shape. The
 * order of the lines is the order in which the forward pass asks for them, and so the order in
 * which the disk is read. Names and shapes are those of the published checkpoints.
 *
 * Layers of many tokens (the image's) take longer to compute than to read, those of few tokens
 * (modulation, the text's) the other way round. So the two kinds alternate in portions that the
 * ring holds: while the image's are computed, the ring fills with what comes next. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "engine/dit.h"
#include "engine/files.h"

enum dim { NONE, ONE_D, TWO_D, FOUR_D, SIX_D, HEAD, TOKEN, SINUSOID, JOINT, TWO };

enum when {
    ALWAYS,
    FOR_TEXT, /* in the last block, only its unused text output needs it */
    LAYERED,  /* only the layered release has it                         */
};

struct spec {
    const char *name;
    size_t member;       /* offset of the tensor's pointer */
    enum dim rows, cols; /* cols NONE: a vector            */
    enum when when;
    bool is_linear;     /* the weight of a linear layer, member of a struct hr_linear_weights */
    bool is_modulation; /* of a block; goes with the conditioning */
};

#define LINEAR(base, name_, member_, out, in, when, is_modulation)                                 \
    {name_ ".bias", offsetof(struct base, member_.bias), out, NONE, when, false, is_modulation},   \
    {                                                                                              \
        name_ ".weight", offsetof(struct base, member_.weight), out, in, when, true, is_modulation \
    }
#define BLOCK_LINEAR(name_, member_, out, in, when) \
    LINEAR(hr_block_weights, name_, member_, out, in, when, false)
#define BLOCK_MODULATION(name_, member_) \
    LINEAR(hr_block_weights, name_, member_, SIX_D, ONE_D, ALWAYS, true)
#define MODEL_LINEAR(name_, member_, out, in) \
    LINEAR(hr_dit_model, name_, member_, out, in, ALWAYS, false)
#define GAIN(name_, member_, when)                                                            \
    {                                                                                         \
        name_ ".weight", offsetof(struct hr_block_weights, member_), HEAD, NONE, when, false, \
            false                                                                             \
    }

/* The conditioning, which follows from the timestep alone, apart from the rest: it can come first.
 */
static const struct spec specs_time[] = {
    MODEL_LINEAR("time_text_embed.timestep_embedder.linear_1", time_1, ONE_D, SINUSOID),
    {"time_text_embed.addition_t_embedding.weight", offsetof(struct hr_dit_model, addition_t), TWO,
     ONE_D, LAYERED, false, false},
    MODEL_LINEAR("time_text_embed.timestep_embedder.linear_2", time_2, ONE_D, ONE_D),
};

static const struct spec specs_in[] = {
    MODEL_LINEAR("img_in", img_in, ONE_D, TOKEN),
    {"txt_norm.weight", offsetof(struct hr_dit_model, txt_norm), JOINT, NONE, ALWAYS, false, false},
    MODEL_LINEAR("txt_in", txt_in, ONE_D, JOINT),
};

static const struct spec specs_block[] = {
    GAIN("attn.norm_q", img.norm_q, ALWAYS),
    GAIN("attn.norm_k", img.norm_k, ALWAYS),
    GAIN("attn.norm_added_q", txt.norm_q, FOR_TEXT),
    GAIN("attn.norm_added_k", txt.norm_k, ALWAYS),
    BLOCK_MODULATION("img_mod.1", img.mod),
    BLOCK_LINEAR("attn.to_q", img.to_q, ONE_D, ONE_D, ALWAYS),
    BLOCK_LINEAR("attn.to_k", img.to_k, ONE_D, ONE_D, ALWAYS),
    BLOCK_LINEAR("attn.to_v", img.to_v, ONE_D, ONE_D, ALWAYS),
    BLOCK_MODULATION("txt_mod.1", txt.mod),
    BLOCK_LINEAR("attn.add_q_proj", txt.to_q, ONE_D, ONE_D, FOR_TEXT),
    BLOCK_LINEAR("attn.add_k_proj", txt.to_k, ONE_D, ONE_D, ALWAYS),
    BLOCK_LINEAR("attn.add_v_proj", txt.to_v, ONE_D, ONE_D, ALWAYS),
    BLOCK_LINEAR("attn.to_out.0", img.to_out, ONE_D, ONE_D, ALWAYS),
    BLOCK_LINEAR("attn.to_add_out", txt.to_out, ONE_D, ONE_D, FOR_TEXT),
    BLOCK_LINEAR("txt_mlp.net.0.proj", txt.mlp_up, FOUR_D, ONE_D, FOR_TEXT),
    BLOCK_LINEAR("txt_mlp.net.2", txt.mlp_down, ONE_D, FOUR_D, FOR_TEXT),
    BLOCK_LINEAR("img_mlp.net.0.proj", img.mlp_up, FOUR_D, ONE_D, ALWAYS),
    BLOCK_LINEAR("img_mlp.net.2", img.mlp_down, ONE_D, FOUR_D, ALWAYS),
};

static const struct spec specs_norm_out[] = {
    MODEL_LINEAR("norm_out.linear", norm_out, TWO_D, ONE_D),
};

static const struct spec specs_out[] = {
    MODEL_LINEAR("proj_out", proj_out, TOKEN, ONE_D),
};

static const char block_prefix[] = "transformer_blocks.";

static uint64_t dim_size(const struct hr_dit_model *model, enum dim dim)
{
    switch (dim) {
    case ONE_D:
        return model->width;
    case TWO_D:
        return 2 * (uint64_t) model->width;
    case FOUR_D:
        return 4 * (uint64_t) model->width;
    case SIX_D:
        return 6 * (uint64_t) model->width;
    case HEAD:
        return HR_HEAD_DIM;
    case TOKEN:
        return HR_DIT_TOKEN_DIM;
    case SINUSOID:
        return HR_DIT_SINUSOID_DIM;
    case JOINT:
        return model->config.joint_attention_dim;
    case TWO:
        return 2;
    case NONE:
        break;
    }
    hr_assert(!"a dimension that is none");
    return 0;
}

/* ---- what kind of model the tensors are ----------------------------------------------- */

/* Layouts that look alike but would give a wrong picture if their extra tensors were ignored. */
static int refuse_others(const struct hr_checkpoint *checkpoint, struct hr_error *err)
{
    static const struct {
        const char *tensor, *model;
    } others[] = {
        {"modulation.1.weight", "Qwen-Image 2.1"},
        {"txt_in.text_norm.weight", "Qwen-Image 2.1"},
        {"controlnet_x_embedder.weight", "a ControlNet"},
        {"controlnet_blocks.0.x_rms.weight", "a blockwise ControlNet"},
        {"double_blocks.0.img_attn.qkv.weight", "FLUX"},
        {"single_transformer_blocks.0.proj_mlp.weight", "FLUX"},
        {"blocks.0.self_attn.q.weight", "Wan"},
        {"blocks.0.attn1.to_q.weight", "Wan"},
        {"cap_embedder.1.weight", "Z-Image"},
    };

    for (size_t i = 0; i < HR_ARRAY_SIZE(others); i++)
        if (hr_checkpoint_find(checkpoint, others[i].tensor))
            return hr_error_set(err, -EOPNOTSUPP,
                                "%s: has a tensor %s, so it is %s, which is not supported; use "
                                "Qwen-Image, -2512, -Edit or -Layered",
                                hr_checkpoint_path(checkpoint), others[i].tensor, others[i].model);
    return 0;
}

/* Highest block number + 1 among the names; 0 when there is none. */
static uint32_t count_layers(const struct hr_checkpoint *checkpoint)
{
    uint32_t n_layers = 0;

    for (uint32_t t = 0; t < hr_checkpoint_n_tensors(checkpoint); t++) {
        const char *name = hr_checkpoint_tensor(checkpoint, t)->name;
        unsigned idx = 0;
        int end = 0;

        if (strncmp(name, block_prefix, sizeof(block_prefix) - 1) != 0)
            continue;
        name += sizeof(block_prefix) - 1;
        if (name[0] >= '0' && name[0] <= '9' && sscanf(name, "%5u.%n", &idx, &end) == 1 && end > 0)
            n_layers = idx + 1 > n_layers ? idx + 1 : n_layers;
    }
    return n_layers;
}

static int read_sizes(struct hr_dit_model *model, const struct hr_checkpoint *checkpoint,
                      struct hr_error *err)
{
    const struct hr_tensor *img_in = hr_checkpoint_find(checkpoint, "img_in.weight");
    const struct hr_tensor *txt_norm = hr_checkpoint_find(checkpoint, "txt_norm.weight");
    char shape[64];

    if (!img_in || !txt_norm)
        return hr_error_set(err, -ENOENT,
                            "%s: no tensor %s, so this is not a Qwen-Image DiT; name its "
                            "transformer folder or its .safetensors file",
                            hr_checkpoint_path(checkpoint),
                            img_in ? "txt_norm.weight" : "img_in.weight");
    if (img_in->rank != 2 || img_in->shape[1] != HR_DIT_TOKEN_DIM || img_in->shape[0] == 0 ||
        img_in->shape[0] % HR_HEAD_DIM != 0 || img_in->shape[0] / HR_HEAD_DIM > HR_DIT_HEADS_MAX)
        return hr_error_set(err, -EBADMSG,
                            "%s: tensor img_in.weight has the shape [%s]; expected [width, %d], "
                            "width a multiple of %d up to %d",
                            hr_checkpoint_shard_shown(checkpoint, img_in->shard_idx),
                            hr_shape_print(img_in, shape, sizeof(shape)), HR_DIT_TOKEN_DIM,
                            HR_HEAD_DIM, HR_DIT_HEADS_MAX * HR_HEAD_DIM);
    if (txt_norm->rank != 1 || txt_norm->shape[0] == 0 || txt_norm->shape[0] > HR_DIT_JOINT_MAX)
        return hr_error_set(err, -EBADMSG,
                            "%s: tensor txt_norm.weight has the shape [%s]; expected [n], n 1 to "
                            "%d, the width of the prompt embedding",
                            hr_checkpoint_shard_shown(checkpoint, txt_norm->shard_idx),
                            hr_shape_print(txt_norm, shape, sizeof(shape)), HR_DIT_JOINT_MAX);
    model->width = (uint32_t) img_in->shape[0];
    model->config.num_attention_heads = model->width / HR_HEAD_DIM;
    model->config.joint_attention_dim = (uint32_t) txt_norm->shape[0];
    model->config.num_layers = count_layers(checkpoint);
    return 0;
}

/* config.json can be absent; where it speaks, it must not contradict the tensors. */
static int check_number(const char *path, const char *key, uint32_t in_config, uint32_t in_tensors,
                        struct hr_error *err)
{
    if (in_config == 0 || in_config == in_tensors)
        return 0;
    return hr_error_set(err, -EBADMSG,
                        "%s: the tensors say %s %u, but config.json says %u; a shard is missing or "
                        "the config belongs to another model",
                        path, key, in_tensors, in_config);
}

static int reconcile(struct hr_dit_model *model, const struct hr_checkpoint *checkpoint,
                     const struct hr_dit_params *params, struct hr_error *err)
{
    const char *path = hr_checkpoint_path(checkpoint);
    struct hr_config config;
    int r = hr_checkpoint_get_config(checkpoint, &config, err);

    if (r == 0)
        r = check_number(path, "num_layers", config.num_layers, model->config.num_layers, err);
    if (r == 0)
        r = check_number(path, "num_attention_heads", config.num_attention_heads,
                         model->config.num_attention_heads, err);
    if (r == 0)
        r = check_number(path, "joint_attention_dim", config.joint_attention_dim,
                         model->config.joint_attention_dim, err);
    if (r < 0)
        return r;
    if (model->config.num_layers == 0 || model->config.num_layers > HR_DIT_LAYERS_MAX)
        return hr_error_set(err, -EBADMSG,
                            "%s: %u transformer blocks; expected 1 to %d; a shard is missing, or "
                            "the file is no whole model",
                            path, model->config.num_layers, HR_DIT_LAYERS_MAX);
    model->n_layers = params->n_layers ? params->n_layers : model->config.num_layers;
    if (model->n_layers > model->config.num_layers)
        return hr_error_set(err, -EINVAL, "%s: has %u blocks, %u were asked for", path,
                            model->config.num_layers, model->n_layers);
    /* The layered model is told by its extra tensor, which no other release has. */
    const bool layered =
        hr_checkpoint_find(checkpoint, "time_text_embed.addition_t_embedding.weight") != NULL;
    if ((config.use_layer3d_rope || config.use_additional_t_cond) && !layered)
        return hr_error_set(err, -ENOENT,
                            "%s: config.json describes a layered model, but the tensor "
                            "time_text_embed.addition_t_embedding.weight is missing",
                            path);
    model->config.use_layer3d_rope = model->config.use_additional_t_cond = layered;
    model->zero_cond_t = params->zero_cond_t == HR_SWITCH_AUTO
                             ? config.zero_cond_t || hr_checkpoint_has_zero_cond_marker(checkpoint)
                             : params->zero_cond_t == HR_SWITCH_ON;
    model->config.zero_cond_t = model->zero_cond_t;
    return 0;
}

/* ---- binding --------------------------------------------------------------------------- */

/* Tensors in order of use. */
struct list {
    const struct hr_tensor **tensors;
    uint32_t n;
};

struct binding {
    struct hr_dit_model *model;
    const struct hr_checkpoint *checkpoint;
    struct list once, each; /* of the plan */
    uint32_t n_missing;
    char missing[256]; /* the first of them */
    struct hr_error *err;
};

static int check_tensor(const struct binding *b, const struct hr_tensor *tensor,
                        const struct spec *spec)
{
    const uint32_t rank = spec->cols == NONE ? 1 : 2;
    const uint64_t rows = dim_size(b->model, spec->rows);
    const uint64_t cols = rank == 2 ? dim_size(b->model, spec->cols) : 1;
    const char *path = hr_checkpoint_shard_shown(b->checkpoint, tensor->shard_idx);
    char want[64], got[64];

    if (!hr_dtype_is_computable(tensor->dtype))
        return hr_error_set(b->err, -EOPNOTSUPP,
                            "%s: tensor %s is %s, which cannot be computed with; expected BF16, "
                            "F16, F32, F8_E4M3 or F8_E5M2",
                            path, tensor->name, hr_dtype_name(tensor->dtype));
    if (tensor->rank == rank && tensor->shape[0] == rows && (rank == 1 || tensor->shape[1] == cols))
        return 0;
    snprintf(want, sizeof(want), rank == 2 ? "%llu, %llu" : "%llu", (unsigned long long) rows,
             (unsigned long long) cols);
    return hr_error_set(b->err, -EBADMSG, "%s: tensor %s has the shape [%s]; expected [%s]", path,
                        tensor->name, hr_shape_print(tensor, got, sizeof(got)), want);
}

/* Find one tensor, check it, and put it into its struct and, if it is used, a list. */
static int bind_tensor(struct binding *b, const struct spec *spec, const char *prefix, void *base,
                       struct list *list)
{
    char name[128];

    snprintf(name, sizeof(name), "%s%s", prefix, spec->name);
    const struct hr_tensor *tensor = hr_checkpoint_find(b->checkpoint, name);

    if (!tensor) {
        if (b->n_missing++ == 0)
            snprintf(b->missing, sizeof(b->missing), "%s", name);
        return 0;
    }
    memcpy((char *) base + spec->member, &tensor, sizeof(tensor));
    if (list)
        list->tensors[list->n++] = tensor;
    if (spec->is_linear) {
        struct hr_linear_weights *linear =
            (void *) ((char *) base + spec->member - offsetof(struct hr_linear_weights, weight));

        linear->planned = list != NULL;
        b->model->linears[b->model->n_linears++] = linear;
    }
    return check_tensor(b, tensor, spec);
}

/* A table of the top level. */
#define BIND_TOP(b, specs, list) bind_top(b, specs, HR_ARRAY_SIZE(specs), list)
static int bind_top(struct binding *b, const struct spec *specs, size_t n, struct list *list)
{
    int r = 0;

    for (size_t i = 0; i < n && r == 0; i++)
        if (specs[i].when != LAYERED || b->model->config.use_additional_t_cond)
            r = bind_tensor(b, &specs[i], "", b->model, list);
    return r;
}

static int bind_block(struct binding *b, uint32_t block, struct list *conditioning, bool complete)
{
    struct hr_dit_model *model = b->model;
    /* Blocks beyond n_layers are not run, but a model that lacks one is broken all the same. */
    const bool runs = block < model->n_layers, last = block + 1 == model->n_layers;
    struct hr_block_weights *weights = &model->blocks[block];
    char prefix[64];
    int r = 0;

    snprintf(prefix, sizeof(prefix), "%s%u.", block_prefix, block);
    for (size_t i = 0; i < HR_ARRAY_SIZE(specs_block) && r == 0; i++) {
        const bool dead = last && specs_block[i].when == FOR_TEXT && !complete;
        struct list *list = specs_block[i].is_modulation ? conditioning : &b->each;

        r = bind_tensor(b, &specs_block[i], prefix, weights, runs && !dead ? list : NULL);
    }
    return r;
}

static int bind_all(struct binding *b, bool up_front, bool complete)
{
    struct hr_dit_model *model = b->model;
    struct list *conditioning = up_front ? &b->once : &b->each;
    int r = BIND_TOP(b, specs_time, conditioning);

    if (r == 0)
        r = BIND_TOP(b, specs_in, &b->each);
    for (uint32_t block = 0; block < model->config.num_layers && r == 0; block++)
        r = bind_block(b, block, conditioning, complete);
    if (r == 0)
        r = BIND_TOP(b, specs_norm_out, conditioning);
    if (r == 0)
        r = BIND_TOP(b, specs_out, &b->each);
    return r;
}

/* One array, what comes once in front. */
static int make_plan(struct binding *b, bool up_front, bool complete)
{
    struct hr_dit_model *model = b->model;
    const uint32_t n_max = hr_checkpoint_n_tensors(b->checkpoint);
    int r;

    model->blocks = calloc(model->config.num_layers, sizeof(*model->blocks));
    model->linears = calloc(n_max, sizeof(*model->linears));
    model->plan = calloc(n_max, sizeof(*model->plan));
    b->once.tensors = calloc(n_max, sizeof(*b->once.tensors));
    b->each.tensors = calloc(n_max, sizeof(*b->each.tensors));
    if (!model->blocks || !model->linears || !model->plan || !b->once.tensors || !b->each.tensors)
        r = hr_error_set(b->err, -ENOMEM, "no memory for the plan of %u blocks",
                         model->config.num_layers);
    else
        r = bind_all(b, up_front, complete);
    for (uint32_t i = 0; r == 0 && i < b->once.n; i++)
        model->plan[model->n_plan++] = b->once.tensors[i];
    for (uint32_t i = 0; r == 0 && i < b->each.n; i++)
        model->plan[model->n_plan++] = b->each.tensors[i];
    model->n_once = b->once.n;
    free(b->once.tensors);
    free(b->each.tensors);
    return r;
}

int hr_dit_model_init(struct hr_dit_model *model, const struct hr_checkpoint *checkpoint,
                      const struct hr_dit_params *params, bool up_front, bool complete,
                      struct hr_error *err)
{
    struct binding b = {.model = model, .checkpoint = checkpoint, .err = err};
    int r;

    *model = (struct hr_dit_model){0};
    r = refuse_others(checkpoint, err);
    if (r == 0)
        r = read_sizes(model, checkpoint, err);
    if (r == 0)
        r = reconcile(model, checkpoint, params, err);
    if (r == 0)
        r = make_plan(&b, up_front, complete);
    if (r == 0 && b.n_missing > 0)
        r = hr_error_set(err, -ENOENT,
                         "%s: tensor %s is missing%s; a shard is missing or the download is "
                         "incomplete",
                         hr_checkpoint_path(checkpoint), b.missing,
                         b.n_missing > 1 ? ", and others are" : "");
    if (r < 0)
        hr_dit_model_uninit(model);
    return r;
}

void hr_dit_model_uninit(struct hr_dit_model *model)
{
    for (uint32_t i = 0; i < model->n_linears; i++)
        hr_weight_scale_uninit(&model->linears[i]->scale);
    free(model->linears);
    free(model->blocks);
    free(model->plan);
    *model = (struct hr_dit_model){0};
}

int hr_dit_joint_dim(const struct hr_checkpoint *checkpoint, uint32_t *ret_dim,
                     struct hr_error *err)
{
    struct hr_dit_model model = {0};
    int r = refuse_others(checkpoint, err);

    if (r == 0)
        r = read_sizes(&model, checkpoint, err);

    if (r == 0)
        *ret_dim = model.config.joint_attention_dim;
    return r;
}

int hr_dit_names(const struct hr_checkpoint *checkpoint, uint32_t n_layers, const char ***ret_names,
                 uint32_t *ret_n, struct hr_error *err)
{
    const struct hr_dit_params params = {.n_layers = n_layers};
    struct hr_dit_model model;
    int r = hr_dit_model_init(&model, checkpoint, &params, false, false, err);

    if (r < 0)
        return r;
    const char **names = calloc(model.n_plan, sizeof(*names));

    if (names) {
        for (uint32_t i = 0; i < model.n_plan; i++)
            names[i] = model.plan[i]->name;
        *ret_names = names;
        *ret_n = model.n_plan;
    } else {
        r = hr_error_set(err, -ENOMEM, "no memory for %u names", model.n_plan);
    }
    hr_dit_model_uninit(&model);
    return r;
}
