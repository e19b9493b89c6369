/* SPDX-License-Identifier: Apache-2.0 */
/* io_fault.c -- a disk as bad as the tests need it: reads through another backend and spoils
 * results by a small program and a seed. The language is described in backend.h.
 *
 * A short read overwrites what it did not report, so that a reader that takes the bytes anyway is
 * found out by their content.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/backend.h"

enum { INNER_NAME_BYTES = 16, POISON = 0xee, PERSISTENT = 0 };

struct fault_program {
    char inner[INNER_NAME_BYTES];
    uint64_t seed;
    uint64_t short_percent, eintr_percent, eagain_percent, nomem_percent;
    uint64_t enomem_percent, ebusy_percent; /* of submissions */
    uint64_t eio_offset, eio_times, eio_errno;
    uint64_t eof_offset, hang_offset;
    uint64_t einval, delay_us, reorder;
    uint64_t trial; /* not spared */
};

struct held {
    struct hr_io_request request;
    int32_t result;
    bool spoiled;    /* answered without reading      */
    bool arrived;    /* the result is known           */
    bool hung;       /* it never will be              */
    uint64_t due_ns; /* not handed out before         */
};

struct fault_io {
    struct fault_program program;
    struct hr_io *inner;
    struct held *held; /* [depth], n_held of them in order of submission */
    uint32_t n_held;
    uint64_t eio_left;
    uint64_t random;
};

static const char *forced_program;

void hr_io_fault_program(const char *program)
{
    forced_program = program;
}

/* splitmix64 */
static uint64_t next_random(struct fault_io *fault)
{
    uint64_t z = fault->random += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static bool chance(struct fault_io *fault, uint64_t percent)
{
    return percent > 0 && next_random(fault) % 100 < percent;
}

static int bad_program(struct hr_error *err, const char *item)
{
    char text[64];

    return hr_error_set(err, -EINVAL, "fault program: '%s' is not understood",
                        hr_printable(item, text, sizeof(text)));
}

static int parse_item(struct fault_program *program, char *item, struct hr_error *err)
{
    const struct {
        const char *key;
        uint64_t *value;
    } keys[] = {
        {"seed", &program->seed},           {"short", &program->short_percent},
        {"eintr", &program->eintr_percent}, {"eagain", &program->eagain_percent},
        {"nomem", &program->nomem_percent}, {"enomem", &program->enomem_percent},
        {"ebusy", &program->ebusy_percent}, {"eio", &program->eio_offset},
        {"eof", &program->eof_offset},      {"einval", &program->einval},
        {"delay", &program->delay_us},      {"reorder", &program->reorder},
        {"hang", &program->hang_offset},    {"errno", &program->eio_errno},
        {"trial", &program->trial},
    };
    char *value = strchr(item, '=');

    if (!value)
        return bad_program(err, item);
    const size_t key_len = (size_t) (value++ - item);
    if (key_len == 5 && strncmp(item, "inner", key_len) == 0 && strlen(value) < INNER_NAME_BYTES) {
        snprintf(program->inner, sizeof(program->inner), "%s", value);
        return 0;
    }
    for (size_t i = 0; i < HR_ARRAY_SIZE(keys); i++) {
        char *end;

        if (strlen(keys[i].key) != key_len || strncmp(item, keys[i].key, key_len) != 0)
            continue;
        *keys[i].value = strtoull(value, &end, 10);
        if (*end == ':' && keys[i].value == &program->eio_offset)
            program->eio_times = strtoull(end + 1, &end, 10);
        return *end || end == value ? bad_program(err, item) : 0;
    }
    return bad_program(err, item);
}

static int parse_program(struct fault_program *program, struct hr_error *err)
{
    const char *text = forced_program ? forced_program : getenv("HEADRACE_FAULTS");
    char *save, *copy = strdup(text ? text : "");
    int r = 0;

    if (!copy)
        return hr_error_set(err, -ENOMEM, "out of memory");
    for (char *item = strtok_r(copy, ",", &save); item && r == 0; item = strtok_r(NULL, ",", &save))
        r = parse_item(program, item, err);
    free(copy);
    return r;
}

static int fault_init(struct hr_io *io, struct hr_error *err)
{
    struct fault_io *fault = io->priv;

    fault->program = (struct fault_program){.inner = "pread",
                                            .seed = 1,
                                            .eio_offset = UINT64_MAX,
                                            .eio_errno = EIO,
                                            .eof_offset = UINT64_MAX,
                                            .hang_offset = UINT64_MAX};
    int r = parse_program(&fault->program, err);
    if (r < 0)
        return r;
    if (strcmp(fault->program.inner, "fault") == 0)
        return hr_error_set(err, -EINVAL, "fault program: inner=fault");
    fault->random = fault->program.seed;
    fault->eio_left = fault->program.eio_times;
    fault->held = calloc(io->params.depth, sizeof(*fault->held));
    if (!fault->held)
        return hr_error_set(err, -ENOMEM, "out of memory");
    r = hr_io_create_named(&fault->inner, fault->program.inner, &io->params, err);
    if (r < 0)
        free(fault->held);
    return r;
}

static void fault_uninit(struct hr_io *io)
{
    struct fault_io *fault = io->priv;

    hr_assert(fault->n_held == 0);
    hr_io_destroy(&fault->inner);
    free(fault->held);
}

static bool is_over(const struct hr_io_request *request, uint64_t offset)
{
    return offset >= request->offset_bytes && offset - request->offset_bytes < request->size_bytes;
}

/* Of the bad place; 0: it is not read, or has recovered. */
static int32_t disk_error(struct fault_io *fault, const struct hr_io_request *request)
{
    const struct fault_program *program = &fault->program;

    if (!is_over(request, program->eio_offset))
        return 0;
    if (program->eio_times != PERSISTENT) {
        if (fault->eio_left == 0)
            return 0;
        fault->eio_left--;
    }
    return -(int32_t) program->eio_errno;
}

/* An error instead of a read; 0: read. */
static int32_t pick_error(struct fault_io *fault, const struct hr_io_file *file,
                          const struct hr_io_request *request)
{
    const struct fault_program *program = &fault->program;
    const int32_t error = program->einval && file->direct ? -EINVAL : disk_error(fault, request);

    if (error < 0)
        return error;
    if (chance(fault, program->eintr_percent))
        return -EINTR;
    if (chance(fault, program->eagain_percent))
        return -EAGAIN;
    return chance(fault, program->nomem_percent) ? -ENOMEM : 0;
}

/* The trial read meets what belongs to a place of the disk, and the rest on demand. */
static bool is_spared(const struct fault_io *fault, const struct hr_io_request *request)
{
    return request->tag == HR_IO_TAG_PROBE && !fault->program.trial;
}

static int fault_submit(struct hr_io *io, const struct hr_io_request *requests, uint32_t n)
{
    struct fault_io *fault = io->priv;
    const bool spared = is_spared(fault, &requests[0]);

    if (!spared && chance(fault, fault->program.enomem_percent))
        return -ENOMEM;
    if (!spared && chance(fault, fault->program.ebusy_percent))
        return -EBUSY;
    for (uint32_t i = 0; i < n; i++) {
        const struct hr_io_file *file = &io->params.files[requests[i].file_idx];
        const uint64_t delay_ns = fault->program.delay_us * 1000;
        struct held held = {.request = requests[i],
                            .hung = is_over(&requests[i], fault->program.hang_offset)};

        held.result =
            spared ? disk_error(fault, &requests[i]) : pick_error(fault, file, &requests[i]);
        held.spoiled = held.arrived = held.result < 0;
        if (!spared && delay_ns > 0)
            held.due_ns = hr_now_ns() + next_random(fault) % delay_ns;
        if (!held.spoiled && !held.hung) {
            const int r = fault->inner->backend->submit(fault->inner, &requests[i], 1);

            if (r < 1)
                return i > 0 ? (int) i : r;
        }
        hr_assert(fault->n_held < io->params.depth);
        fault->held[fault->n_held++] = held;
    }
    return (int) n;
}

/* A true result becomes the one to report. */
static int32_t spoil(struct fault_io *fault, const struct held *held, int32_t result)
{
    const uint64_t offset = held->request.offset_bytes;
    int32_t keep = result;

    if (result <= 0 || is_spared(fault, &held->request))
        return result;
    if (fault->program.eof_offset < offset + (uint64_t) keep)
        keep =
            fault->program.eof_offset > offset ? (int32_t) (fault->program.eof_offset - offset) : 0;
    if (keep > 1 && chance(fault, fault->program.short_percent))
        keep = 1 + (int32_t) (next_random(fault) % (uint64_t) keep);
    memset((uint8_t *) held->request.buf + keep, POISON,
           held->request.size_bytes - (uint32_t) keep);
    return keep;
}

/* Collect what the inner backend has. */
static int pull(struct fault_io *fault)
{
    struct hr_io_completion done[HR_IO_BATCH];
    uint32_t n_out = 0;

    for (uint32_t i = 0; i < fault->n_held; i++)
        n_out += !fault->held[i].arrived && !fault->held[i].hung;
    if (n_out == 0)
        return 0;
    const int n = fault->inner->backend->reap(fault->inner, done, HR_IO_BATCH, 0);
    for (int i = 0; i < n; i++) {
        uint32_t k = 0;

        while (fault->held[k].request.tag != done[i].tag)
            hr_assert(++k < fault->n_held);
        fault->held[k].result = spoil(fault, &fault->held[k], done[i].result);
        fault->held[k].arrived = true;
    }
    return n;
}

/* Hand out what is due: the first such, or any when reordering. */
static uint32_t hand_out(struct fault_io *fault, struct hr_io_completion *done, uint32_t max)
{
    const uint64_t now = hr_now_ns();
    uint32_t n = 0;

    for (uint32_t tries = fault->n_held; tries > 0 && n < max && fault->n_held > 0; tries--) {
        const uint32_t start =
            fault->program.reorder ? (uint32_t) (next_random(fault) % fault->n_held) : 0;
        uint32_t k = 0;

        for (; k < fault->n_held; k++) {
            const struct held *held = &fault->held[(start + k) % fault->n_held];
            if (held->arrived && held->due_ns <= now)
                break;
        }
        if (k == fault->n_held)
            break;
        k = (start + k) % fault->n_held;
        done[n++] = (struct hr_io_completion){.tag = fault->held[k].request.tag,
                                              .result = fault->held[k].result};
        memmove(&fault->held[k], &fault->held[k + 1], (--fault->n_held - k) * sizeof(*fault->held));
    }
    return n;
}

static int fault_reap(struct hr_io *io, struct hr_io_completion *done, uint32_t max,
                      uint64_t timeout_ns)
{
    struct fault_io *fault = io->priv;
    const uint64_t until = hr_now_ns() + timeout_ns;

    for (;;) {
        const int r = pull(fault);
        const uint32_t n = hand_out(fault, done, max);

        if (n > 0 || r < 0 || hr_now_ns() >= until)
            return n > 0 ? (int) n : r < 0 ? r : 0;
        hr_sleep_ns(50000);
    }
}

static int fault_file_changed(struct hr_io *io, uint32_t file_idx)
{
    struct fault_io *fault = io->priv;
    const struct hr_io_backend *inner = fault->inner->backend;

    return inner->file_changed ? inner->file_changed(fault->inner, file_idx) : 0;
}

const struct hr_io_backend hr_io_backend_fault = {
    .name = "fault",
    .priv_bytes = sizeof(struct fault_io),
    .init = fault_init,
    .uninit = fault_uninit,
    .submit = fault_submit,
    .reap = fault_reap,
    .file_changed = fault_file_changed,
};
