/* SPDX-License-Identifier: Apache-2.0 */
/* io_cufile.c -- GPUDirect Storage: from the disk into a GPU's memory, past the host's.
 *
 * cuFile also works where there is no such path, by reading into the host's memory and copying: it
 * calls that compatibility mode and does not say when it does so. Our own ring does the same with
 * fewer copies, so this backend is brought up only where that mode is off and the files are
 * accepted all the same.
 *
 * The library is loaded at run time. Its driver stays open as long as the process lives: others in
 * it may use it as well.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/cufile_abi.h"
#include "io/io_threads.h"

struct cufile_io {
    struct hr_io_threads threads; /* first: it is the threads' as well */
    void **handles;               /* [n_files] */
    uint32_t n_handles;
    bool buffer_registered;
    pthread_mutex_t mutex;
    char words[96]; /* of the first failure that has no errno; empty: none */
};

static struct hr_cufile_fns cufile; /* filled once, by the first load that succeeds */

/* ---- the library ---------------------------------------------------------------------------- */

#define SYMBOL(name, is_optional)                                         \
    {                                                                     \
        "cuFile" #name, offsetof(struct hr_cufile_fns, name), is_optional \
    }

static int bind_symbols(void *library, struct hr_error *err)
{
    static const struct hr_symbol symbols[] = {
        SYMBOL(DriverOpen, false),
        SYMBOL(DriverGetProperties, false),
        SYMBOL(HandleRegister, false),
        SYMBOL(HandleDeregister, false),
        SYMBOL(BufRegister, false),
        SYMBOL(BufDeregister, false),
        SYMBOL(Read, false),
        SYMBOL(SetParameterBool, true),
        SYMBOL(GetParameterBool, true),
    };
    struct hr_cufile_fns fns;
    const char *missing = hr_library_bind(library, &fns, symbols, HR_ARRAY_SIZE(symbols));

    _Static_assert(sizeof(fns) == HR_ARRAY_SIZE(symbols) * sizeof(void *), "every function");
    if (missing)
        return hr_error_set(err, -ENODEV,
                            "libcufile has no %s; version 1 is needed, as of the CUDA toolkit "
                            "or pip's nvidia-cufile",
                            missing);
    cufile = fns;
    return 0;
}

/* The words for a status. @return buf */
static const char *status_text(struct hr_cufile_error status, char *buf, size_t buf_bytes)
{
    static const struct {
        int code;
        const char *text;
    } texts[] = {
        {HR_CUFILE_NO_DRIVER, "the nvidia-fs driver is not loaded"},
        {HR_CUFILE_NO_PLATFORM, "not supported on this platform"},
        {HR_CUFILE_NO_FILE, "no direct path from the disk of this file"},
        {HR_CUFILE_NO_GPU, "not supported by this GPU"},
        {HR_CUFILE_MAPPING_TOO_LARGE, "larger than what may be pinned"},
        {HR_CUFILE_FILE_TYPE, "no regular file"},
        {HR_CUFILE_NOT_DIRECT, "the file is not open for direct reads"},
        {HR_CUFILE_PERMISSION, "permission denied"},
        {HR_CUFILE_PINNING_FAILED, "memory of the GPU cannot be pinned"},
    };

    for (size_t i = 0; i < HR_ARRAY_SIZE(texts); i++)
        if (texts[i].code == status.code) {
            snprintf(buf, buf_bytes, "%s (cuFile error %d)", texts[i].text, status.code);
            return buf;
        }
    if (status.code == HR_CUFILE_CUDA_ERROR)
        snprintf(buf, buf_bytes, "CUDA error %d (cuFile error %d)", status.cuda, status.code);
    else
        snprintf(buf, buf_bytes, "cuFile error %d", status.code);
    return buf;
}

/* Ways on which reads go through the host's memory without a word. */
static const struct detour {
    const char *setting; /* of its cufile.json                            */
    const char *env;     /* goes before that; the library reads it itself */
    int param;
    unsigned control;
} detours[] = {
    {"allow_compat_mode", "CUFILE_ALLOW_COMPAT_MODE", HR_CUFILE_PARAM_ALLOW_COMPAT_MODE,
     HR_CUFILE_CONTROL_COMPAT_MODE},
    {"force_compat_mode", "CUFILE_FORCE_COMPAT_MODE", HR_CUFILE_PARAM_FORCE_COMPAT_MODE, 0},
    {"vanilla_posix_io_mode", NULL, HR_CUFILE_PARAM_POSIX_MODE, HR_CUFILE_CONTROL_POSIX_MODE},
    {"gds_fallback_io", NULL, HR_CUFILE_PARAM_FALLBACK, HR_CUFILE_CONTROL_FALLBACK},
};

/* @param control  as the driver tells */
static bool is_open_to(const struct detour *detour, unsigned control)
{
    const char *set = detour->env ? getenv(detour->env) : NULL;
    bool on = false;

    if (detour->control)
        return control & detour->control;
    if (cufile.GetParameterBool &&
        cufile.GetParameterBool(detour->param, &on).code == HR_CUFILE_SUCCESS)
        return on;
    return set && strcasecmp(set, "false") != 0 && strcmp(set, "0") != 0;
}

static int check_is_direct(struct hr_error *err)
{
    struct hr_cufile_properties properties = {0};
    const struct hr_cufile_error status = cufile.DriverGetProperties(&properties);
    char text[96];

    if (status.code != HR_CUFILE_SUCCESS)
        return hr_error_set(err, -ENODEV,
                            "cuFile's properties: %s; see NVIDIA's gdscheck -p, or use another "
                            "--io",
                            status_text(status, text, sizeof(text)));
    for (size_t i = 0; i < HR_ARRAY_SIZE(detours); i++)
        if (is_open_to(&detours[i], properties.nvfs.control_flags))
            return hr_error_set(err, -EOPNOTSUPP,
                                "cuFile may read through the host's memory, for its %s is on; set "
                                "\"%s\": false in its cufile.json%s%s, or use another --io",
                                detours[i].setting, detours[i].setting,
                                detours[i].env ? " and unset " : "",
                                detours[i].env ? detours[i].env : "");
    return 0;
}

static int load(struct hr_error *err)
{
    static const char *const names[] = {"libcufile.so.0", "/usr/local/cuda/lib64/libcufile.so.0"};
    struct hr_cufile_error status;
    void *library = hr_library_open(names, HR_ARRAY_SIZE(names));
    char text[96];

    if (!library)
        return hr_error_set(err, -ENODEV,
                            "libcufile.so.0 is not found; install the CUDA toolkit's cuFile or "
                            "pip's nvidia-cufile and name its folder in LD_LIBRARY_PATH");
    const int r = bind_symbols(library, err);

    if (r < 0) {
        dlclose(library);
        return r;
    }
    /* For the whole process, and without effect on a driver that somebody in it has opened; what
     * holds is asked afterwards. */
    for (size_t i = 0; i < HR_ARRAY_SIZE(detours) && cufile.SetParameterBool; i++)
        (void) cufile.SetParameterBool(detours[i].param, false);
    status = cufile.DriverOpen();
    if (status.code != HR_CUFILE_SUCCESS && status.code != HR_CUFILE_ALREADY_OPEN)
        return hr_error_set(err, -ENODEV, "%s; see NVIDIA's gdscheck -p, or use another --io",
                            status_text(status, text, sizeof(text)));
    return check_is_direct(err);
}

/* Readers may be opened on several threads at once. */
static int load_once(struct hr_error *err)
{
    static struct hr_library library = HR_LIBRARY_INIT;

    return hr_library_load(&library, load, err);
}

/* ---- the backend ---------------------------------------------------------------------------- */

static int begin_thread(struct hr_io *io)
{
    const struct hr_reader_memory *memory = io->params.memory;

    return memory->begin_thread ? memory->begin_thread(memory->user) : 0;
}

/* Whether an errno means what it does for a read of ours. Others are cuFile's own business, as is
 * EINVAL: what was asked for is what it wants. */
static bool is_of_the_disk(int code)
{
    return hr_io_is_disk_error(-code) || code == EINTR || code == EAGAIN || code == ENOMEM;
}

/* Keep the words of the first. @return what the reader asks the words of: the last word, neither
 * the disk's nor one that passes */
static int32_t failed(struct cufile_io *c, const char *words)
{
    pthread_mutex_lock(&c->mutex);
    if (!c->words[0])
        snprintf(c->words, sizeof(c->words), "%s", words);
    pthread_mutex_unlock(&c->mutex);
    return -EPROTO;
}

static const char *cufile_words(struct hr_io *io, char *buf, size_t buf_bytes)
{
    struct cufile_io *c = io->priv;

    pthread_mutex_lock(&c->mutex);
    snprintf(buf, buf_bytes, "%s; see NVIDIA's gdscheck -p, or use another --io", c->words);
    pthread_mutex_unlock(&c->mutex);
    return buf;
}

/* Some versions give -1 and their own code as errno. */
static int32_t read_job(struct hr_io *io, const struct hr_io_job *job)
{
    struct cufile_io *c = io->priv;
    const struct hr_io_request *request = &job->request;
    const off_t at = (off_t) ((uint8_t *) request->buf - (uint8_t *) io->params.buf);
    const ssize_t n = cufile.Read(c->handles[request->file_idx], io->params.buf,
                                  request->size_bytes, (off_t) request->offset_bytes, at);
    char text[96];

    const int code = n == -1 ? errno : (int) -n;

    if (n >= 0)
        return (int32_t) n;
    if (n == -1 && is_of_the_disk(code))
        return -code;
    if (code > HR_CUFILE_ERRORS)
        return failed(c, status_text((struct hr_cufile_error){.code = code}, text, sizeof(text)));
    return failed(c, hr_strerror(code ? -code : -EPROTO, text, sizeof(text)));
}

static void forget(struct hr_io *io)
{
    struct cufile_io *c = io->priv;

    while (c->n_handles > 0)
        cufile.HandleDeregister(c->handles[--c->n_handles]);
    free(c->handles);
    if (c->buffer_registered)
        (void) cufile.BufDeregister(io->params.buf);
    pthread_mutex_destroy(&c->mutex);
}

static int register_files(struct hr_io *io, struct hr_error *err)
{
    struct cufile_io *c = io->priv;
    char text[96], path[512];

    c->handles = calloc(io->params.n_files, sizeof(*c->handles));
    if (!c->handles)
        return hr_error_set(err, -ENOMEM, "out of memory");
    while (c->n_handles < io->params.n_files) {
        const struct hr_io_file *file = &io->params.files[c->n_handles];
        struct hr_cufile_description description = {.type = HR_CUFILE_HANDLE_FD,
                                                    .file.fd = file->fd};
        const struct hr_cufile_error status =
            cufile.HandleRegister(&c->handles[c->n_handles], &description);

        if (status.code != HR_CUFILE_SUCCESS)
            return hr_error_set(err, -EOPNOTSUPP,
                                "%s: %s; see NVIDIA's gdscheck -p, or use another --io",
                                hr_printable(file->source->path, path, sizeof(path)),
                                status_text(status, text, sizeof(text)));
        c->n_handles++;
    }
    return 0;
}

static int register_ring(struct hr_io *io, struct hr_error *err)
{
    struct cufile_io *c = io->priv;
    const struct hr_cufile_error status =
        cufile.BufRegister(io->params.buf, io->params.buf_bytes, 0);
    char text[96];

    if (status.code != HR_CUFILE_SUCCESS)
        return hr_error_set(err, -ENOMEM,
                            "the ring of %llu MiB on the GPU cannot be registered: %s; try a "
                            "smaller --ring",
                            hr_mib(io->params.buf_bytes), status_text(status, text, sizeof(text)));
    c->buffer_registered = true;
    return 0;
}

static int cufile_init(struct hr_io *io, struct hr_error *err)
{
    struct cufile_io *c = io->priv;
    int r = begin_thread(io); /* cuFile takes the calling thread's GPU */

    c->threads.read = read_job;
    c->threads.begin = begin_thread;
    c->threads.begin_failed = "the GPU does not answer; see dmesg, or use another --io";
    if (r < 0)
        return hr_error_set(err, r, "%s", c->threads.begin_failed);
    pthread_mutex_init(&c->mutex, NULL);
    r = load_once(err);
    if (r == 0)
        r = register_ring(io, err);
    if (r == 0)
        r = register_files(io, err);
    if (r == 0)
        r = hr_io_threads_init(io, "hr-cufile", err);
    if (r < 0)
        forget(io);
    return r;
}

static void cufile_uninit(struct hr_io *io)
{
    hr_io_threads_uninit(io);
    forget(io);
}

const struct hr_io_backend hr_io_backend_cufile = {
    .name = "cufile",
    .memory = HR_IO_MEMORY_DEVICE,
    .priv_bytes = sizeof(struct cufile_io),
    .init = cufile_init,
    .uninit = cufile_uninit,
    .submit = hr_io_threads_submit,
    .reap = hr_io_threads_reap,
    .words = cufile_words,
};
