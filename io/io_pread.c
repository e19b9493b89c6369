/* SPDX-License-Identifier: Apache-2.0 */
/* io_pread.c -- the backend that works everywhere: pread() on a few threads. */
#include <errno.h>
#include <unistd.h>

#include "io/io_threads.h"

static int32_t pread_job(struct hr_io *io, const struct hr_io_job *job)
{
    (void) io;
    const ssize_t n = pread(job->fd, job->request.buf, job->request.size_bytes,
                            (int64_t) job->request.offset_bytes);

    return n < 0 ? -errno : (int32_t) n;
}

static int pread_init(struct hr_io *io, struct hr_error *err)
{
    struct hr_io_threads *t = io->priv;

    t->read = pread_job;
    return hr_io_threads_init(io, "hr-pread", err);
}

const struct hr_io_backend hr_io_backend_pread = {
    .name = "pread",
    .priv_bytes = sizeof(struct hr_io_threads),
    .init = pread_init,
    .uninit = hr_io_threads_uninit,
    .submit = hr_io_threads_submit,
    .reap = hr_io_threads_reap,
};
