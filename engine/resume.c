/* SPDX-License-Identifier: Apache-2.0 */
/* resume.c -- see resume.h. */
#include "engine/resume.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/checkpoint.h"
#include "engine/files.h"
#include "engine/xxh3.h"

enum { STATE_BYTES_MAX = 1 << 20, STATE_VERSION = 1 };

static const char state_name[] = "state.json";

/* ---- facts ---------------------------------------------------------------------------------- */

void hr_resume_fact(struct hr_resume *resume, const char *name, const char *format, ...)
{
    struct hr_fact *fact = &resume->facts[resume->n_facts++];
    va_list ap;

    hr_assert(resume->n_facts <= HR_FACTS_MAX);
    snprintf(fact->name, sizeof(fact->name), "%s", name);
    va_start(ap, format);
    vsnprintf(fact->value, sizeof(fact->value), format, ap);
    va_end(ap);
}

static void add_hash(struct hr_resume *resume, const char *name, XXH128_hash_t hash)
{
    hr_resume_fact(resume, name, "%016llx%016llx", (unsigned long long) hash.high64,
                   (unsigned long long) hash.low64);
}

void hr_resume_fact_hash(struct hr_resume *resume, const char *name, const void *data, size_t n)
{
    add_hash(resume, name, XXH3_128bits(data, n));
}

void hr_resume_fact_model(struct hr_resume *resume, const struct hr_checkpoint *checkpoint)
{
    XXH3_state_t *state = XXH3_createState();

    hr_assert(state);
    XXH3_128bits_reset(state);
    for (uint32_t i = 0; i < hr_checkpoint_n_shards(checkpoint); i++) {
        const struct hr_shard *shard = hr_checkpoint_shard(checkpoint, i);

        XXH3_128bits_update(state, &shard->size_bytes, sizeof(shard->size_bytes));
    }
    for (uint32_t i = 0; i < hr_checkpoint_n_tensors(checkpoint); i++) {
        const struct hr_tensor *t = hr_checkpoint_tensor(checkpoint, i);
        const uint64_t numbers[] = {(uint64_t) t->dtype, t->rank, t->shard_idx, t->offset_bytes,
                                    t->size_bytes};

        XXH3_128bits_update(state, t->name, strlen(t->name) + 1);
        XXH3_128bits_update(state, numbers, sizeof(numbers));
        XXH3_128bits_update(state, t->shape, t->rank * sizeof(t->shape[0]));
    }
    const char *config = hr_checkpoint_config(checkpoint);

    if (config)
        XXH3_128bits_update(state, config, strlen(config));
    add_hash(resume, "model", XXH3_128bits_digest(state));
    XXH3_freeState(state);
}

/* One file, a piece at a time. */
static int hash_file(XXH3_state_t *state, int fd, uint64_t size_bytes, const char *shown,
                     struct hr_error *err)
{
    const size_t piece_max = 1 << 20;
    void *piece = malloc(piece_max);
    char reason[128];
    int r = piece ? 0 : -ENOMEM;

    for (uint64_t at = 0; at < size_bytes && r == 0; at += piece_max) {
        const size_t n = (size_t) hr_min_u64(piece_max, size_bytes - at);

        r = hr_file_read(fd, piece, n, at);
        if (r == 0)
            XXH3_128bits_update(state, piece, n);
    }
    free(piece);
    return r == 0 ? 0
                  : hr_error_set(err, r, "%s: cannot read it to compare with the saved run: %s",
                                 shown, hr_strerror(r, reason, sizeof(reason)));
}

int hr_resume_fact_content(struct hr_resume *resume, const char *name,
                           const struct hr_checkpoint *file, struct hr_error *err)
{
    XXH3_state_t *state = XXH3_createState();
    int r = 0;

    hr_assert(state);
    XXH3_128bits_reset(state);
    for (uint32_t i = 0; i < hr_checkpoint_n_shards(file) && r == 0; i++)
        r = hash_file(state, hr_checkpoint_fd(file, i), hr_checkpoint_shard(file, i)->size_bytes,
                      hr_checkpoint_shard_shown(file, i), err);
    if (r == 0)
        add_hash(resume, name, XXH3_128bits_digest(state));
    XXH3_freeState(state);
    return r;
}

/* ---- reading -------------------------------------------------------------------------------- */

static int fail(const struct hr_resume *resume, struct hr_error *err, int code, const char *what)
{
    char shown[256], text[128];

    if (code == -EBADMSG)
        return hr_error_set(err, code,
                            "%s/%s: %s; it is no state of a denoising run, name another folder",
                            hr_printable(resume->folder, shown, sizeof(shown)), state_name, what);
    return hr_error_set(err, code, "%s: %s: %s", hr_printable(resume->folder, shown, sizeof(shown)),
                        what, hr_strerror(code, text, sizeof(text)));
}

/* The text of state.json; *ret_text NULL when there is none. */
static int read_state(const struct hr_resume *resume, char **ret_text, size_t *ret_bytes,
                      struct hr_error *err)
{
    const int dir_fd = open(resume->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    uint64_t bytes = 0;
    mode_t mode;
    int fd, r;

    *ret_text = NULL;
    if (dir_fd < 0)
        return fail(resume, err, -errno, "opening the folder");
    r = hr_file_open(dir_fd, state_name, 0, &fd, &bytes, &mode);
    close(dir_fd);
    if (r == -ENOENT)
        return 0;
    if (r < 0)
        return fail(resume, err, r, "opening state.json");
    if (bytes > STATE_BYTES_MAX) {
        close(fd);
        return fail(resume, err, -EBADMSG, "larger than 1 MiB");
    }
    *ret_text = malloc(bytes + 1);
    r = *ret_text ? hr_file_read(fd, *ret_text, bytes, 0) : -ENOMEM;
    close(fd);
    *ret_bytes = bytes;
    if (r == 0)
        return 0;
    free(*ret_text);
    *ret_text = NULL;
    return fail(resume, err, r, "reading state.json");
}

static bool has_fact(const struct hr_resume *resume, const char *name)
{
    for (uint32_t i = 0; i < resume->n_facts; i++)
        if (strcmp(resume->facts[i].name, name) == 0)
            return true;
    return false;
}

/* Every fact must be there with the same value, and no other. */
static int compare(const struct hr_resume *resume, json_t *facts, struct hr_error *err)
{
    char shown[256], was[80], name[80];
    const char *key;
    json_t *value_was;

    for (uint32_t i = 0; i < resume->n_facts; i++) {
        const struct hr_fact *fact = &resume->facts[i];
        const char *value = json_string_value(json_object_get(facts, fact->name));

        if (value && strcmp(value, fact->value) == 0)
            continue;
        return hr_error_set(err, -EINVAL,
                            "%s: the run kept there had another %s: %s, now %s; name another "
                            "folder, or delete this one",
                            hr_printable(resume->folder, shown, sizeof(shown)), fact->name,
                            value ? hr_printable(value, was, sizeof(was)) : "none", fact->value);
    }
    json_object_foreach(facts, key, value_was) {
        const char *value = json_string_value(value_was);

        if (has_fact(resume, key))
            continue;
        return hr_error_set(
            err, -EINVAL,
            "%s: the run kept there had a %s: %s, now none; name another folder, or "
            "delete this one",
            hr_printable(resume->folder, shown, sizeof(shown)),
            hr_printable(key, name, sizeof(name)),
            value ? hr_printable(value, was, sizeof(was)) : "?");
    }
    return 0;
}

/* Names like "step-12.safetensors", so that a state can never lead out of its folder. */
static void latents_name(char buf[64], uint32_t step)
{
    snprintf(buf, 64, "step-%u.safetensors", step);
}

static int read_latents(struct hr_resume *resume, uint32_t step, float *const *latents,
                        const uint64_t *n_floats, uint32_t n, struct hr_error *err)
{
    struct hr_checkpoint *file = NULL;
    char file_name[64], name[32];
    char *path;
    int r;

    latents_name(file_name, step);
    path = hr_file_join(resume->folder, file_name);
    if (!path)
        return hr_error_set(err, -ENOMEM, "no memory for a path");
    r = hr_checkpoint_open(
        &file, &(struct hr_checkpoint_params){.paths = (const char *const *) &path, .n_paths = 1},
        err);
    for (uint32_t i = 0; i < n && r == 0; i++) {
        snprintf(name, sizeof(name), "latents.%u", i);
        const struct hr_tensor *tensor = hr_checkpoint_find(file, name);

        r = tensor ? hr_checkpoint_read_f32(file, tensor, latents[i], n_floats[i], err)
                   : fail(resume, err, -EBADMSG, "its file of latents lacks one");
    }
    hr_checkpoint_close(&file);
    free(path);
    return r;
}

int hr_resume_load(struct hr_resume *resume, float *const *latents, const uint64_t *n_floats,
                   uint32_t n, struct hr_error *err)
{
    size_t bytes = 0;
    char *text;
    int r;

    resume->step = 0;
    if (mkdir(resume->folder, 0777) < 0 && errno != EEXIST)
        return fail(resume, err, -errno, "making the folder");
    r = read_state(resume, &text, &bytes, err);
    if (r < 0 || !text)
        return r;

    json_t *state = NULL;

    /* Of what is no JSON the parts are missing below. */
    r = hr_json_parse(&state, text, bytes, state_name, NULL) == -ENOMEM ? -ENOMEM : 0;
    free(text);
    if (r < 0)
        return fail(resume, err, r, "reading state.json");
    json_t *facts = json_object_get(state, "facts");
    const json_t *step = json_object_get(state, "step");
    const json_int_t value = json_integer_value(step);

    if (json_integer_value(json_object_get(state, "version")) != STATE_VERSION ||
        !json_is_object(facts) || !json_is_integer(step) || value < 1 || value > 1000000)
        r = fail(resume, err, -EBADMSG, "lacks version, step or facts");
    if (r == 0)
        r = compare(resume, facts, err);
    if (r == 0)
        r = read_latents(resume, (uint32_t) value, latents, n_floats, n, err);
    if (r == 0)
        resume->step = (uint32_t) value;
    json_decref(state);
    return r;
}

/* ---- writing -------------------------------------------------------------------------------- */

/* @return free() it; NULL without memory */
static char *state_text(const struct hr_resume *resume, uint32_t step)
{
    json_t *facts = json_object(), *state = NULL;
    bool complete = facts != NULL;
    char *text = NULL;

    for (uint32_t i = 0; i < resume->n_facts && complete; i++)
        complete = json_object_set_new(facts, resume->facts[i].name,
                                       json_string(resume->facts[i].value)) == 0;
    if (complete)
        state = json_pack("{s:i, s:i, s:O}", "version", STATE_VERSION, "step", (int) step, "facts",
                          facts);
    if (state)
        text = json_dumps(state, JSON_INDENT(2));
    json_decref(state);
    json_decref(facts);
    return text;
}

static int write_state(const struct hr_resume *resume, uint32_t step, struct hr_error *err)
{
    char *text = state_text(resume, step), *path = hr_file_join(resume->folder, state_name);
    struct hr_replacement file;
    int r = path && text ? hr_replace_begin(&file, path, err)
                         : fail(resume, err, -ENOMEM, "writing state.json");

    if (r == 0)
        r = hr_replace_end(&file, hr_file_write(file.fd, text, strlen(text), 0), err);
    free(path);
    free(text);
    return r;
}

int hr_resume_save(struct hr_resume *resume, uint32_t step, float *const *latents,
                   const uint64_t *n_floats, uint32_t n, struct hr_error *err)
{
    struct hr_tensor_out tensors[HR_SAMPLES_MAX];
    char names[HR_SAMPLES_MAX][32], file_name[64];
    char *path;
    int r;

    hr_assert(n <= HR_SAMPLES_MAX && step > resume->step);
    for (uint32_t i = 0; i < n; i++) {
        snprintf(names[i], sizeof(names[i]), "latents.%u", i);
        tensors[i] = (struct hr_tensor_out){names[i], latents[i], 1, &n_floats[i]};
    }
    latents_name(file_name, step);
    path = hr_file_join(resume->folder, file_name);
    r = path ? hr_tensors_write(path, tensors, n, err)
             : hr_error_set(err, -ENOMEM, "no memory for a path");
    free(path);
    if (r == 0)
        r = write_state(resume, step, err);
    if (r < 0)
        return r;
    if (resume->step > 0) {
        latents_name(file_name, resume->step);
        path = hr_file_join(resume->folder, file_name);
        if (path)
            unlink(path); /* of no more use; if it stays, it is only in the way */
        free(path);
    }
    resume->step = step;
    return 0;
}
