/* SPDX-License-Identifier: Apache-2.0 */
/* outputs.c -- where results go: checked before the work, written after it. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"

/* A file that will be written, and the option that names it. */
struct output {
    const char *option, *path;
};

/* Where it comes to lie: behind a link, as writing follows it. */
struct place {
    struct stat folder;
    char name[NAME_MAX + 1];
};

static int refuse(struct hr_error *err, int code, const struct output *output, const char *why)
{
    char shown[512];

    return cli_error(err, code, "%s: %s: %s", output->option,
                     cli_printable(shown, sizeof(shown), output->path), why);
}

static bool is_one(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static bool is_same(const struct stat *output, const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && is_one(&st, output);
}

/* The folder that will hold the result must be there and be writable. */
static int find_place(const struct output *output, struct place *ret_place, struct hr_error *err)
{
    char *target = realpath(output->path, NULL), *folder;
    int r = 0;

    if (!target)
        target = strdup(output->path);
    if (!target)
        return refuse(err, -ENOMEM, output, "no memory");
    const char *slash = strrchr(target, '/'), *name = slash ? slash + 1 : target;

    folder = slash ? strndup(target, (size_t) (name - target)) : strdup(".");
    if (!folder)
        r = refuse(err, -ENOMEM, output, "no memory");
    else if (strlen(name) > NAME_MAX)
        r = refuse(err, -ENAMETOOLONG, output, "the name is too long");
    else if (stat(folder, &ret_place->folder) < 0 || access(folder, W_OK | X_OK) < 0)
        r = refuse(err, -errno, output,
                   errno == ENOENT ? "its folder does not exist"
                                   : "its folder cannot be written to");
    else
        snprintf(ret_place->name, sizeof(ret_place->name), "%s", name);
    free(folder);
    free(target);
    return r;
}

/* Whether it is the config or an index beside that file of the model. */
static bool describes(const struct stat *st, const char *shard)
{
    const char *slash = strrchr(shard, '/');
    char *folder = slash ? strndup(shard, (size_t) (slash - shard) + 1) : strdup(".");
    DIR *dir = folder ? opendir(folder) : NULL;
    const struct dirent *entry;
    bool found = false;

    while (dir && !found && (entry = readdir(dir))) {
        const size_t len = strlen(entry->d_name);
        const bool is_index = len > 11 && strcmp(entry->d_name + len - 11, ".index.json") == 0;
        struct stat other;

        found = (is_index || strcmp(entry->d_name, "config.json") == 0) &&
                fstatat(dirfd(dir), entry->d_name, &other, 0) == 0 && is_one(st, &other);
    }
    if (dir)
        closedir(dir);
    free(folder);
    return found;
}

/* Why a file that is there must not be written over; NULL: it may be. */
static const char *reason_to_keep(const struct stat *st, const struct cli_options *o,
                                  const struct hr_checkpoint *model)
{
    for (uint32_t i = 0; i < hr_checkpoint_n_shards(model); i++)
        if (is_same(st, hr_checkpoint_shard(model, i)->path) ||
            describes(st, hr_checkpoint_shard(model, i)->path))
            return "is a part of the model; name another file";
    for (uint32_t i = 0; i < o->inputs.n; i++)
        if (is_same(st, o->inputs.items[i]))
            return "is one of the inputs; name another file";
    for (uint32_t i = 0; i < o->n_loras; i++)
        if (is_same(st, o->loras[i].path))
            return "is one of the LoRAs; name another file";
    if (o->manifest && is_same(st, o->manifest))
        return "is the --manifest too; name another file";
    if (o->states && is_same(st, o->states))
        return "is the --states too; name another file";
    return NULL;
}

/* @return 1 a file is there, which would be replaced; 0 nothing is; or why neither can be written
 */
static int look_at(const struct output *output, struct stat *ret_st, struct place *ret_place,
                   struct hr_error *err)
{
    bool is_there;

    if (!output->path[0])
        return refuse(err, -EINVAL, output, "an empty name");
    if (strcmp(output->path, "-") == 0)
        return refuse(err, -EINVAL, output,
                      "it cannot go to standard output; name a file, or ./- for one called so");
    is_there = stat(output->path, ret_st) == 0;
    if (!is_there && lstat(output->path, ret_st) == 0)
        return refuse(err, -EINVAL, output, "is a link to nothing; remove it or name another file");
    if (is_there && !S_ISREG(ret_st->st_mode))
        return refuse(err, -EINVAL, output, "is there already and is no regular file");
    const int r = find_place(output, ret_place, err);

    return r < 0 ? r : is_there;
}

/* Nothing where the option was not given. */
static int check_path(const struct output *output, const struct cli_options *o,
                      const struct hr_checkpoint *model, struct place *ret_place,
                      struct hr_error *err)
{
    const char *why;
    struct stat st;

    if (!output->path)
        return 0;
    const int r = look_at(output, &st, ret_place, err);

    if (r < 0)
        return r;
    why = r > 0 ? reason_to_keep(&st, o, model) : NULL;
    if (!why && o->resume && is_same(&ret_place->folder, o->resume))
        why = "lies in the folder of --resume; name another file";
    return why ? refuse(err, -EINVAL, output, why) : 0;
}

int cli_check_output(const struct cli_options *o, const struct hr_checkpoint *model,
                     struct hr_error *err)
{
    const struct output outputs[] = {
        {"--output", o->output}, {"--trace", o->trace}, {"--plot", o->plot}};
    enum { N = sizeof(outputs) / sizeof(outputs[0]) };
    struct place places[N];

    for (int i = 0; i < N; i++) {
        const int r = check_path(&outputs[i], o, model, &places[i], err);

        if (r < 0)
            return r;
        for (int k = 0; k < i && outputs[i].path; k++)
            if (outputs[k].path && is_one(&places[k].folder, &places[i].folder) &&
                strcmp(places[k].name, places[i].name) == 0)
                return cli_error(err, -EINVAL, "%s and %s name one file; name another one",
                                 outputs[k].option, outputs[i].option);
    }
    return 0;
}

int cli_check_page(const struct cli_options *o, struct hr_error *err)
{
    const struct output output = {"--output", o->output};
    const char *const inputs[] = {o->paths[0], o->trace, o->plan};
    struct place place;
    struct stat st;
    const int r = look_at(&output, &st, &place, err);

    for (size_t i = 0; i < sizeof(inputs) / sizeof(inputs[0]) && r > 0; i++)
        if (inputs[i] && is_same(&st, inputs[i]))
            return refuse(err, -EINVAL, &output,
                          "is one of the files that the page is made from; name another file");
    return r < 0 ? r : 0;
}

/* @return 0 or a negative errno */
static int write_temp(const char *temp, cli_put *put, const void *user)
{
    FILE *f = fopen(temp, "wxe");
    int r = 0;

    if (!f)
        return -errno;
    errno = 0;
    put(f, user);
    if (fflush(f) != 0 || ferror(f) || fsync(fileno(f)) < 0)
        r = errno ? -errno : -EIO;
    if (fclose(f) != 0 && r == 0)
        r = -errno;
    if (cli_interrupted && r == 0)
        r = -ECANCELED;
    if (r < 0)
        unlink(temp);
    return r;
}

int cli_write_whole(const char *path, const char *what, cli_put *put, const void *user,
                    struct hr_error *err)
{
    char *target = realpath(path, NULL), *temp = NULL, shown[512];
    uint32_t number = 0;
    int r = 0;

    /* What a killed process has left is in nobody's way: in containers process numbers repeat. */
    if (getrandom(&number, sizeof(number), GRND_NONBLOCK) < 0)
        number = (uint32_t) getpid();

    if (!target)
        target = strdup(path);
    if (!target || asprintf(&temp, "%s.tmp-%08x", target, number) < 0) {
        free(target);
        return cli_error(err, -ENOMEM, "no memory for %s", what);
    }
    r = write_temp(temp, put, user);
    if (r == 0 && rename(temp, target) < 0) {
        r = -errno;
        unlink(temp);
    }
    free(temp);
    free(target);
    if (r == -ECANCELED)
        return cli_error(err, r, "interrupted");
    return r < 0 ? cli_error(err, r, "%s: cannot write %s: %s",
                             cli_printable(shown, sizeof(shown), path), what, strerror(-r))
                 : 0;
}

int cli_open_trace(struct hr_trace **ret_trace, const struct cli_options *o, struct hr_error *err)
{
    return o->trace ? hr_trace_open(ret_trace, 0, err) : 0;
}

int cli_write_trace(const struct cli_options *o, const struct hr_trace *trace, int r,
                    struct hr_error *err)
{
    if (!trace || (r < 0 && r != -ECANCELED))
        return r;
    const int r_trace =
        hr_trace_write(trace, o->trace, err); /* err keeps an interruption's words */

    return r < 0 ? r : r_trace;
}

int cli_take_results(const struct cli_options *o, const struct hr_dit_inputs *inputs,
                     float **values, struct hr_error *err)
{
    for (uint32_t i = 0; i < o->inputs.n; i++) {
        const struct hr_latent *image = &inputs[i].images[0];

        values[i] = calloc((size_t) inputs[i].n_targets * HR_LATENT_CHANNELS * image->h,
                           image->w * sizeof(float));
        if (!values[i])
            return cli_error(err, -ENOMEM, "no memory for the result");
    }
    return 0;
}

static bool is_layered(const struct hr_dit_inputs *inputs)
{
    return inputs->n_targets > 1;
}

int cli_write_results(const struct cli_options *o, const char *name,
                      const struct hr_dit_inputs *inputs, float *const *values,
                      struct hr_error *err)
{
    struct hr_tensor_out tensors[HR_SAMPLES_MAX];
    uint64_t shapes[HR_SAMPLES_MAX][4];
    char names[HR_SAMPLES_MAX][32];

    for (uint32_t i = 0; i < o->inputs.n; i++) {
        const struct hr_latent *image = &inputs[i].images[0];
        const bool layered = is_layered(&inputs[i]);

        shapes[i][0] = inputs[i].n_targets;
        shapes[i][1] = HR_LATENT_CHANNELS;
        shapes[i][2] = image->h;
        shapes[i][3] = image->w;
        snprintf(names[i], sizeof(names[i]), o->inputs.n > 1 ? "%s.%u" : "%s", name, i);
        tensors[i] = (struct hr_tensor_out){
            .name = names[i],
            .data = values[i],
            .rank = layered ? 4 : 3,
            .shape = layered ? shapes[i] : shapes[i] + 1,
        };
    }
    return hr_tensors_write(o->output, tensors, o->inputs.n, err);
}

void cli_print_output(const struct cli_options *o, const char *name,
                      const struct hr_dit_inputs *inputs)
{
    const struct hr_latent *image = &inputs[0].images[0];
    char layers[16] = "", shown[512];

    if (is_layered(&inputs[0]))
        snprintf(layers, sizeof(layers), "%u, ", inputs[0].n_targets);
    if (o->output)
        printf("output    %s: %s [%s16, %u, %u] F32%s\n",
               cli_printable(shown, sizeof(shown), o->output), name, layers, image->h, image->w,
               o->inputs.n > 1 ? ", and of the other inputs" : "");
    else
        printf("output    not written: no --output\n");
}
