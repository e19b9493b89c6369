/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_inspect.c -- what is in a safetensors file or a model, and what a forward would stream. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

int cli_open_model(struct hr_checkpoint **ret_checkpoint, const struct cli_options *o,
                   struct hr_error *err)
{
    return hr_checkpoint_open(ret_checkpoint,
                              &(struct hr_checkpoint_params){
                                  .paths = o->paths,
                                  .n_paths = o->n_paths,
                                  .cache_dir = o->cache_dir,
                              },
                              err);
}

/* The tensors to list, and what of the model a forward streams, if it is one that can. */
struct listing {
    const struct cli_options *o;
    struct hr_checkpoint *model;
    const char **names; /* of a forward, in order; NULL: not a DiT */
    uint32_t n_names;
    struct hr_error why_not;
    uint64_t streamed_bytes;
};

static uint32_t n_listed(const struct listing *l)
{
    return l->o->streamed ? l->n_names : hr_checkpoint_n_tensors(l->model);
}

static const struct hr_tensor *listed(const struct listing *l, uint32_t i)
{
    return l->o->streamed ? hr_checkpoint_find(l->model, l->names[i])
                          : hr_checkpoint_tensor(l->model, i);
}

static json_t *tensor_json(const struct hr_tensor *t)
{
    json_t *shape = json_array();

    for (uint32_t i = 0; i < t->rank; i++)
        json_array_append_new(shape, json_integer((json_int_t) t->shape[i]));
    /* Names are UTF-8: the header was checked. */
    return json_pack("{s:s, s:s, s:o, s:i, s:I, s:I}", "name", t->name, "dtype",
                     hr_dtype_name(t->dtype), "shape", shape, "shard", (int) t->shard_idx,
                     "offset_bytes", (json_int_t) t->offset_bytes, "size_bytes",
                     (json_int_t) t->size_bytes);
}

static int print_json(const struct listing *l)
{
    json_t *shards = json_array(), *tensors = json_array();
    json_t *obj =
        json_pack("{s:s, s:o, s:o}", "verb", "inspect", "shards", shards, "tensors", tensors);

    for (uint32_t i = 0; i < hr_checkpoint_n_shards(l->model); i++) {
        const struct hr_shard *shard = hr_checkpoint_shard(l->model, i);

        json_array_append_new(
            shards, json_pack("{s:o, s:I, s:i}", "path", cli_json_text(shard->path), "size_bytes",
                              (json_int_t) shard->size_bytes, "n_tensors", (int) shard->n_tensors));
    }
    for (uint32_t i = 0; i < n_listed(l); i++)
        json_array_append_new(tensors, tensor_json(listed(l, i)));
    if (l->names)
        json_object_set_new(obj, "streamed",
                            json_pack("{s:i, s:I}", "n_tensors", (int) l->n_names, "bytes",
                                      (json_int_t) l->streamed_bytes));
    else
        json_object_set_new(obj, "not_streamed_because", cli_json_text(l->why_not.message));
    return cli_print_json(obj);
}

static void print_tensor(const struct hr_tensor *t)
{
    char size[32], name[512];

    printf("%-60s %-8s [", cli_printable(name, sizeof(name), t->name), hr_dtype_name(t->dtype));
    for (uint32_t i = 0; i < t->rank; i++)
        printf(i ? ", %" PRIu64 : "%" PRIu64, t->shape[i]);
    printf("]  %s\n", cli_size(size, t->size_bytes));
}

static void print_text(const struct listing *l)
{
    uint64_t per_dtype[HR_DTYPE_COUNT] = {0}, total = 0;
    char size[32];

    for (uint32_t i = 0; i < n_listed(l); i++)
        print_tensor(listed(l, i));
    for (uint32_t i = 0; i < hr_checkpoint_n_tensors(l->model); i++) {
        const struct hr_tensor *t = hr_checkpoint_tensor(l->model, i);

        per_dtype[t->dtype] += t->size_bytes;
        total += t->size_bytes;
    }
    printf("\ntotal     %" PRIu32 " tensors, %s (%" PRIu64 " bytes) in %" PRIu32 " files\n",
           hr_checkpoint_n_tensors(l->model), cli_size(size, total), total,
           hr_checkpoint_n_shards(l->model));
    for (unsigned d = 0; d < HR_DTYPE_COUNT; d++)
        if (per_dtype[d])
            printf("          %-8s %s\n", hr_dtype_name((enum hr_dtype) d),
                   cli_size(size, per_dtype[d]));
    if (l->names)
        printf("streamed  by one forward: %" PRIu32 " tensors, %s (%" PRIu64 " bytes)\n",
               l->n_names, cli_size(size, l->streamed_bytes), l->streamed_bytes);
    else
        printf("streamed  no forward: %s\n", l->why_not.message);
}

int cli_inspect(const struct cli_options *o)
{
    struct listing l = {.o = o};
    struct hr_error err = {0};
    int r = cli_open_model(&l.model, o, &err), code;

    if (r == 0) {
        r = hr_dit_names(l.model, (uint32_t) o->n_layers, &l.names, &l.n_names, &l.why_not);
        for (uint32_t i = 0; i < l.n_names; i++)
            l.streamed_bytes += hr_checkpoint_find(l.model, l.names[i])->size_bytes;
        if (r == -ENOMEM || (r < 0 && o->streamed))
            err = l.why_not;
    }
    if (err.code < 0) {
        code = cli_fail(&err);
    } else {
        if (!o->json)
            print_text(&l);
        code = o->json ? print_json(&l) : cli_flush();
    }
    free(l.names);
    hr_checkpoint_close(&l.model);
    return code;
}
