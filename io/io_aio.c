/* SPDX-License-Identifier: Apache-2.0 */
/* io_aio.c -- the kernel's older asynchronous interface, for direct reads where io_uring is
 * forbidden, as in many containers.
 *
 * Only O_DIRECT makes it asynchronous: a buffered io_submit() waits for the disk. So it refuses
 * files that are read through the page cache; one that loses O_DIRECT on the way is read with
 * pread() on the spot, which is slow and right.
 */
#include <errno.h>
#include <libaio.h>
#include <stdlib.h>
#include <unistd.h>

#include "io/backend.h"

struct aio_io {
    io_context_t context;
    struct hr_io_completion *done; /* [depth] results that need no waiting */
    uint32_t n_done;
    uint32_t in_kernel;
};

static int aio_init(struct hr_io *io, struct hr_error *err)
{
    struct aio_io *aio = io->priv;
    char text[128];

    for (uint32_t i = 0; i < io->params.n_files; i++)
        if (!io->params.files[i].direct)
            return hr_error_set(err, -EOPNOTSUPP,
                                "it reads with O_DIRECT only, and not all files are read so");
    aio->done = calloc(io->params.depth, sizeof(*aio->done));
    if (!aio->done)
        return hr_error_set(err, -ENOMEM, "out of memory");
    const int r = io_setup((int) io->params.depth, &aio->context);
    if (r < 0) {
        free(aio->done);
        return hr_error_set(err, r, "%s%s", hr_strerror(r, text, sizeof(text)),
                            r == -EAGAIN ? "; raise sysctl fs.aio-max-nr"
                            : r == -EPERM || r == -EACCES
                                ? "; a seccomp filter forbids io_setup (containers: "
                                  "--security-opt seccomp=unconfined)"
                                : "");
    }
    return 0;
}

static void aio_uninit(struct hr_io *io)
{
    struct aio_io *aio = io->priv;

    hr_assert(aio->n_done == 0 && aio->in_kernel == 0);
    io_destroy(aio->context);
    free(aio->done);
}

static void add_done(struct hr_io *io, uint64_t tag, int64_t result)
{
    struct aio_io *aio = io->priv;

    hr_assert(aio->n_done < io->params.depth);
    aio->done[aio->n_done++] = (struct hr_io_completion){.tag = tag, .result = (int32_t) result};
}

static void read_now(struct hr_io *io, const struct hr_io_request *request)
{
    const ssize_t n = pread(io->params.files[request->file_idx].fd, request->buf,
                            request->size_bytes, (int64_t) request->offset_bytes);

    add_done(io, request->tag, n < 0 ? -errno : n);
}

static int aio_submit(struct hr_io *io, const struct hr_io_request *requests, uint32_t n)
{
    struct aio_io *aio = io->priv;
    struct iocb blocks[HR_IO_BATCH], *list[HR_IO_BATCH];
    uint32_t n_direct = 0;

    while (n_direct < n && io->params.files[requests[n_direct].file_idx].direct) {
        const struct hr_io_request *request = &requests[n_direct];

        io_prep_pread(&blocks[n_direct], io->params.files[request->file_idx].fd, request->buf,
                      request->size_bytes, (long long) request->offset_bytes);
        blocks[n_direct].data = (void *) (uintptr_t) request->tag;
        list[n_direct] = &blocks[n_direct];
        n_direct++;
    }
    if (n_direct == 0) {
        read_now(io, &requests[0]);
        return 1;
    }
    const int r = io_submit(aio->context, n_direct, list);
    if (r > 0) {
        aio->in_kernel += (uint32_t) r;
        return r;
    }
    if (r == 0 || r == -EAGAIN || r == -ENOMEM || r == -EINTR)
        return r == -ENOMEM ? r : -EAGAIN;
    /* What is wrong with the first request is its result, and not ours to judge. */
    add_done(io, requests[0].tag, r);
    return 1;
}

static int aio_reap(struct hr_io *io, struct hr_io_completion *done, uint32_t max,
                    uint64_t timeout_ns)
{
    struct aio_io *aio = io->priv;
    struct io_event events[HR_IO_BATCH];
    struct timespec timeout = hr_timespec(timeout_ns);
    uint32_t n = 0;

    while (n < max && aio->n_done > 0)
        done[n++] = aio->done[--aio->n_done];
    if (n > 0 || aio->in_kernel == 0)
        return (int) n;
    const int r =
        io_getevents(aio->context, 1, max < HR_IO_BATCH ? max : HR_IO_BATCH, events, &timeout);
    if (r < 0)
        return r;
    for (; n < (uint32_t) r; n++)
        done[n] = (struct hr_io_completion){.tag = (uintptr_t) events[n].data,
                                            .result = (int32_t) (long) events[n].res};
    aio->in_kernel -= n;
    return (int) n;
}

const struct hr_io_backend hr_io_backend_aio = {
    .name = "libaio",
    .priv_bytes = sizeof(struct aio_io),
    .init = aio_init,
    .uninit = aio_uninit,
    .submit = aio_submit,
    .reap = aio_reap,
};
