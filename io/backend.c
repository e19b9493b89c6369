/* SPDX-License-Identifier: Apache-2.0 */
/* backend.c -- which backend reads: one list in order of preference, and a trial read that decides.
 *
 * What the user names is taken or refused, never replaced; what is chosen for him is said once, and
 * so is every backend that was passed over, with the reason and the remedy.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "io/backend.h"

/* In order of preference. Those that are `named` are never chosen, only asked for; those for tests
 * are not told of. */
static const struct {
    const struct hr_io_backend *backend;
    enum { CHOSEN, NAMED, FOR_TESTS } use;
} backends[] = {
#if HAVE_LIBURING
    {&hr_io_backend_uring, CHOSEN},
#endif
#if HAVE_LIBAIO
    {&hr_io_backend_aio, CHOSEN},
#endif
    {&hr_io_backend_pread, CHOSEN},    {&hr_io_backend_cufile, NAMED},
    {&hr_io_backend_null, FOR_TESTS},  {&hr_io_backend_null_device, FOR_TESTS},
    {&hr_io_backend_fault, FOR_TESTS},
};

/* A backend writes into the host's memory, or lets a device do so. */
static int check_memory(const struct hr_io_backend *backend, const struct hr_io_params *params,
                        struct hr_error *err)
{
    if (backend->memory == HR_IO_MEMORY_DEVICE && !params->memory)
        return hr_error_set(err, -EOPNOTSUPP,
                            "it reads into the memory of a GPU, and only forward, denoise and plan "
                            "on one (--device cuda) and bench --device have a place for that");
    if (backend->memory == HR_IO_MEMORY_HOST && params->memory)
        return hr_error_set(err, -EOPNOTSUPP, "it cannot read into the memory of a GPU");
    return 0;
}

static int open_backend(struct hr_io **ret_io, const struct hr_io_backend *backend,
                        const struct hr_io_params *params, struct hr_error *err)
{
    struct hr_io *io;
    int r = check_memory(backend, params, err);

    if (r < 0)
        return r;
    io = calloc(1, sizeof(*io));
    if (!io)
        return hr_error_set(err, -ENOMEM, "out of memory");
    io->backend = backend;
    io->params = *params;
    io->priv = calloc(1, backend->priv_bytes);
    r = io->priv ? backend->init(io, err) : hr_error_set(err, -ENOMEM, "out of memory");
    if (r < 0) {
        free(io->priv);
        free(io);
        return r;
    }
    *ret_io = io;
    return 0;
}

void hr_io_destroy(struct hr_io **io)
{
    if (!*io)
        return;
    (*io)->backend->uninit(*io);
    free((*io)->priv);
    free(*io);
    *io = NULL;
}

const char *hr_io_words(struct hr_io *io, int code, char *buf, size_t buf_bytes)
{
    if (code == -EPROTO && io->backend->words)
        return io->backend->words(io, buf, buf_bytes);
    return hr_strerror(code, buf, buf_bytes);
}

bool hr_io_is_disk_error(int code)
{
    switch (code) {
    case -EIO: /* and what the block layer says instead: bad medium, protection, target, path */
    case -ENODATA:
    case -EILSEQ:
    case -EREMOTEIO:
    case -ETIMEDOUT:
    case -ENOLINK:
        return true;
    default:
        return false;
    }
}

#define PROBE_PATIENCE_NS UINT64_C(1000000000)

/* The kernel may take it another time. */
static bool is_transient(int code)
{
    return code == -EINTR || code == -EAGAIN || code == -EBUSY || code == -ENOMEM;
}

/* One request and its answer, with patience for transient refusals.
 * @return bytes read or a negative errno */
static int read_once(struct hr_io *io, const struct hr_io_request *request, bool *ret_hangs)
{
    const uint64_t begin_ns = hr_now_ns();
    struct hr_io_completion done;
    bool queued = false;

    for (;;) {
        const bool is_patient = hr_now_ns() - begin_ns < PROBE_PATIENCE_NS;
        int r = 0;

        if (!queued)
            r = io->backend->submit(io, request, 1);
        queued = queued || r == 1;
        if (queued)
            r = io->backend->reap(io, &done, 1, HR_IO_WAIT_NS);
        if (r == 1 && !(is_patient && is_transient(done.result)))
            return done.result;
        queued = queued && r != 1;
        if (r < 0 && !is_transient(r))
            return r;
        /* A queued read must be waited for: its buffer is not ours before. */
        if (!queued && !is_patient)
            return r < 0 ? r : -EAGAIN;
        *ret_hangs =
            queued && io->params.timeout_ns > 0 && hr_now_ns() - begin_ns >= io->params.timeout_ns;
        if (*ret_hangs)
            return -ETIMEDOUT;
        if (r != 0 || !queued)
            hr_sleep_ns(HR_IO_PAUSE_NS);
    }
}

/* Read the first block of the first file that has one. */
static int probe(struct hr_io *io, struct hr_error *err)
{
    const struct hr_io_params *params = &io->params;
    char text[256], path[512];

    for (uint32_t i = 0; i < params->n_files; i++) {
        const uint64_t file_bytes = params->files[i].source->size_bytes;

        if (file_bytes == 0)
            continue;
        const uint64_t cover_bytes = hr_align_up(file_bytes, params->files[i].align_bytes);
        const struct hr_io_request request = {
            .file_idx = i,
            .buf = params->buf,
            .size_bytes = (uint32_t) hr_min_u64(hr_min_u64(params->block_bytes, params->buf_bytes),
                                                cover_bytes),
            .tag = HR_IO_TAG_PROBE,
        };
        bool hangs = false;
        const int r = read_once(io, &request, &hangs);

        if (hangs)
            return hr_error_set(err, r, "%s: bytes 0 to %u: the disk has not answered for %u s",
                                hr_printable(params->files[i].source->path, path, sizeof(path)),
                                request.size_bytes - 1,
                                (unsigned) (params->timeout_ns / 1000000000u));
        /* A bad disk is no reason to doubt the backend; the stream will name the place. */
        if (r >= 0 || hr_io_is_disk_error(r))
            return 0;
        return hr_error_set(err, r, "a trial read failed: %s%s",
                            hr_io_words(io, r, text, sizeof(text)),
                            is_transient(r) ? ", for 1 s; close other programs" : "");
    }
    return 0;
}

static int open_and_probe(struct hr_io **ret_io, const struct hr_io_backend *backend,
                          const struct hr_io_params *params, struct hr_error *err)
{
    struct hr_io *io = NULL;
    int r = open_backend(&io, backend, params, err);

    if (r == 0) {
        r = probe(io, err);
        if (r < 0 && r != -ETIMEDOUT)
            hr_io_destroy(&io);
    }
    if (io)
        *ret_io = io;
    return r;
}

static int find_backend(const struct hr_io_backend **ret_backend, const char *name,
                        struct hr_error *err)
{
    char allowed[128] = "auto", printable[64];
    size_t len = strlen(allowed);

    for (size_t i = 0; i < HR_ARRAY_SIZE(backends); i++) {
        if (strcmp(backends[i].backend->name, name) == 0) {
            *ret_backend = backends[i].backend;
            return 0;
        }
        if (backends[i].use != FOR_TESTS)
            len += (size_t) snprintf(allowed + len, sizeof(allowed) - len, ", %s",
                                     backends[i].backend->name);
    }
    return hr_error_set(err, -EINVAL, "I/O backend '%s' is not in this build; there are: %s",
                        hr_printable(name, printable, sizeof(printable)), allowed);
}

int hr_io_create_named(struct hr_io **ret_io, const char *name, const struct hr_io_params *params,
                       struct hr_error *err)
{
    const struct hr_io_backend *backend;
    const int r = find_backend(&backend, name, err);

    return r < 0 ? r : open_backend(ret_io, backend, params, err);
}

static int create_first(struct hr_io **ret_io, const struct hr_io_params *params,
                        struct hr_error *err)
{
    char reasons[HR_ERROR_BYTES / 2] = "";
    size_t len = 0;

    for (size_t i = 0; i < HR_ARRAY_SIZE(backends); i++) {
        const char *name = backends[i].backend->name;
        struct hr_error why = {0};

        if (backends[i].use != CHOSEN)
            continue;
        if (open_and_probe(ret_io, backends[i].backend, params, &why) == 0)
            return 0;
        if (why.code == -ETIMEDOUT)
            return hr_error_set(err, why.code, "%s", why.message);
        /* Where it was not meant to work, nobody need do anything. */
        hr_log(why.code == -EOPNOTSUPP ? HR_LOG_INFO : HR_LOG_WARN, "io: %s does not work here: %s",
               name, why.message);
        if (len < sizeof(reasons))
            len += (size_t) snprintf(reasons + len, sizeof(reasons) - len, "%s%s: %s",
                                     len > 0 ? "; " : "", name, why.message);
    }
    return hr_error_set(err, -ENODEV, "no I/O backend works here: %s", reasons);
}

/* @return NULL: none is named */
static const char *resolve(const char *name)
{
    if (!name || strcmp(name, "auto") == 0)
        name = hr_env("HEADRACE_IO");
    return name && (strcmp(name, "auto") == 0 || strcmp(name, HR_IO_FIRST) == 0) ? NULL : name;
}

bool hr_io_reads_into_device(const char *io)
{
    const char *name = resolve(io);
    const struct hr_io_backend *backend;

    return name && find_backend(&backend, name, NULL) == 0 &&
           backend->memory == HR_IO_MEMORY_DEVICE;
}

int hr_io_create(struct hr_io **ret_io, const char *name, const struct hr_io_params *params,
                 struct hr_error *err)
{
    const struct hr_io_backend *backend;
    struct hr_error why = {0};

    name = resolve(name);
    if (!name)
        return create_first(ret_io, params, err);

    int r = find_backend(&backend, name, err);
    if (r < 0)
        return r;
    r = open_and_probe(ret_io, backend, params, &why);
    if (r == -ETIMEDOUT)
        return hr_error_set(err, r, "%s", why.message);
    if (r < 0)
        return hr_error_set(err, r, "I/O backend %s does not work here: %s", name, why.message);
    return 0;
}

uint32_t hr_io_try_backends(struct hr_io_backend_trial ret_trials[HR_BACKENDS_MAX],
                            const struct hr_io_params *params)
{
    uint32_t n = 0;

    hr_assert(params->timeout_ns == 0); /* a backend that hangs could not be taken down */
    for (size_t i = 0; i < HR_ARRAY_SIZE(backends); i++) {
        struct hr_io_backend_trial trial = {.name = backends[i].backend->name};
        struct hr_io *io = NULL;

        if (backends[i].use != CHOSEN)
            continue;
        if (open_and_probe(&io, backends[i].backend, params, &trial.why_not) == 0) {
            trial.pinned_bytes = io->pinned_bytes;
            hr_io_destroy(&io);
        }
        hr_assert(n < HR_BACKENDS_MAX);
        ret_trials[n++] = trial;
    }
    return n;
}

/* ---- threads ------------------------------------------------------------------------ */

int hr_io_error_thread(int code, struct hr_error *err)
{
    char text[128];

    return hr_error_set(err, code,
                        "no thread for reading: %s; raise the limit on processes (ulimit -u)",
                        hr_strerror(code, text, sizeof(text)));
}

void hr_io_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

void hr_io_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex, uint64_t wait_ns)
{
    const struct timespec until = hr_timespec(hr_now_ns() + wait_ns);

    pthread_cond_timedwait(cond, mutex, &until);
}
