/* SPDX-License-Identifier: Apache-2.0 */
/* io_uring.c -- the fast backend: one ring for all files, memory and files registered once, so that
 * a read of many megabytes costs one entry in a queue and no page table walk.
 *
 * What the kernel supports is found out by asking for it. Ring, submission and reaping stay on one
 * thread, which the newer setup flags demand.
 */
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "io/backend.h"

/* One registered buffer is at most 1 GiB. They overlap by the largest read, so that every read lies
 * within one of them wherever it begins. */
#define BUFFER_BYTES  HR_GIB
#define BUFFER_STRIDE (BUFFER_BYTES - HR_BLOCK_BYTES_MAX)

struct uring_io {
    struct io_uring ring;
    size_t n_buffers; /* 0: not registered */
    bool files_registered;
};

/* Newest flags first; those that the kernel does not know are dropped from the right. They save
 * wake-ups: without them reads are as correct, only dearer. */
static int queue_init(struct io_uring *ring, uint32_t depth)
{
    static const unsigned ladder[] = {
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, /* 6.1 */
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN, /* 5.19 */
        IORING_SETUP_SUBMIT_ALL,                             /* 5.18 */
        0,
    };
    int r = -EINVAL;

    for (size_t i = 0; i < HR_ARRAY_SIZE(ladder) && r == -EINVAL; i++) {
        struct io_uring_params params = {
            .flags = ladder[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
            .cq_entries = 2 * depth,
        };

        r = io_uring_queue_init_params(depth, ring, &params);
    }
    return r;
}

/* Its hard half takes root: ulimit would be refused. */
#define RAISE "sudo prlimit --pid $$ --memlock=unlimited"

static int refuse(struct hr_error *err, int code)
{
    char text[128];
    const char *remedy = "";

    if (code == -EPERM || code == -EACCES)
        remedy = "; a seccomp filter (containers: --security-opt seccomp=unconfined) or "
                 "sysctl kernel.io_uring_disabled (0 allows it) forbids it";
    else if (code == -ENOSYS)
        remedy = "; this kernel has no io_uring, or not what is needed of it (Linux 5.11)";
    else if (code == -ENOMEM)
        remedy = "; raise the limit on locked memory: " RAISE;
    return hr_error_set(err, code, "%s%s", hr_strerror(code, text, sizeof(text)), remedy);
}

/* Locked memory counts against a limit whose soft half we may raise ourselves. */
static void raise_memlock(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_MEMLOCK, &limit);
    }
}

static int register_buffers(struct uring_io *uring, uint8_t *buf, size_t buf_bytes)
{
    const size_t n =
        buf_bytes <= BUFFER_BYTES ? 1 : 1 + hr_div_ceil(buf_bytes - BUFFER_BYTES, BUFFER_STRIDE);
    struct iovec *parts = calloc(n, sizeof(*parts));

    if (!parts)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        parts[i].iov_base = buf + i * BUFFER_STRIDE;
        parts[i].iov_len = hr_min_u64(BUFFER_BYTES, buf_bytes - i * BUFFER_STRIDE);
    }
    raise_memlock();
    const int r = io_uring_register_buffers(&uring->ring, parts, (unsigned) n);
    free(parts);
    uring->n_buffers = r < 0 ? 0 : n;
    return r;
}

static int register_files(struct io_uring *ring, const struct hr_io_params *params)
{
    int *fds = calloc(params->n_files, sizeof(*fds));

    if (!fds)
        return -ENOMEM;
    for (uint32_t i = 0; i < params->n_files; i++)
        fds[i] = params->files[i].fd;
    const int r = io_uring_register_files(ring, fds, params->n_files);
    free(fds);
    return r;
}

static int uring_init(struct hr_io *io, struct hr_error *err)
{
    struct uring_io *uring = io->priv;
    const struct hr_io_params *params = &io->params;
    char text[128];

    int r = queue_init(&uring->ring, params->depth);
    if (r < 0)
        return refuse(err, r);
    if (!(uring->ring.features & IORING_FEAT_EXT_ARG) ||
        !(uring->ring.features & IORING_FEAT_NODROP)) {
        io_uring_queue_exit(&uring->ring);
        return refuse(err, -ENOSYS);
    }

    r = register_buffers(uring, params->buf, params->buf_bytes);
    io->pinned_bytes = r < 0 ? 0 : params->buf_bytes;
    if (r < 0) /* INFO: ordinary users have a limit of 8 MiB, and reads are as right without */
        hr_log(HR_LOG_INFO,
               "io: io_uring: %zu MiB could not be registered (%s), reads cost more CPU time; "
               "raise the limit on locked memory: " RAISE,
               (size_t) (params->buf_bytes / HR_MIB), hr_strerror(r, text, sizeof(text)));
    r = register_files(&uring->ring, params);
    uring->files_registered = r == 0;
    if (r < 0)
        hr_log(HR_LOG_DEBUG, "io: io_uring: files not registered: %s",
               hr_strerror(r, text, sizeof(text)));
    return 0;
}

static void uring_uninit(struct hr_io *io)
{
    struct uring_io *uring = io->priv;

    io_uring_queue_exit(&uring->ring);
}

static int uring_submit(struct hr_io *io, const struct hr_io_request *requests, uint32_t n)
{
    struct uring_io *uring = io->priv;

    /* The kernel learns of them in uring_reap(), in the same call that waits. */
    for (uint32_t i = 0; i < n; i++) {
        const struct hr_io_request *request = &requests[i];
        const struct hr_io_file *file = &io->params.files[request->file_idx];
        const int fd = uring->files_registered ? (int) request->file_idx : file->fd;
        struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);

        hr_assert(sqe);
        if (uring->n_buffers > 0) {
            const size_t at = (size_t) ((uint8_t *) request->buf - (uint8_t *) io->params.buf);

            io_uring_prep_read_fixed(sqe, fd, request->buf, request->size_bytes,
                                     request->offset_bytes,
                                     (int) hr_min_u64(at / BUFFER_STRIDE, uring->n_buffers - 1));
        } else {
            io_uring_prep_read(sqe, fd, request->buf, request->size_bytes, request->offset_bytes);
        }
        unsigned flags = uring->files_registered ? IOSQE_FIXED_FILE : 0;
        /* A cached read is a copy; it belongs on a worker, not between our submissions. */
        if (!file->direct)
            flags |= IOSQE_ASYNC;
        io_uring_sqe_set_flags(sqe, flags);
        io_uring_sqe_set_data64(sqe, request->tag);
    }
    return (int) n;
}

static int uring_reap(struct hr_io *io, struct hr_io_completion *done, uint32_t max,
                      uint64_t timeout_ns)
{
    struct uring_io *uring = io->priv;
    const struct timespec timeout = hr_timespec(timeout_ns);
    struct __kernel_timespec ts = {.tv_sec = timeout.tv_sec, .tv_nsec = timeout.tv_nsec};
    struct io_uring_cqe *cqe;
    unsigned head;
    uint32_t n = 0;

    const int r = io_uring_submit_and_wait_timeout(&uring->ring, &cqe, 1, &ts, NULL);
    hr_assert(!io_uring_cq_has_overflow(&uring->ring));
    io_uring_for_each_cqe(&uring->ring, head, cqe) {
        if (n == max)
            break;
        done[n++] =
            (struct hr_io_completion){.tag = io_uring_cqe_get_data64(cqe), .result = cqe->res};
    }
    io_uring_cq_advance(&uring->ring, n);
    if (n > 0 || r >= 0 || r == -ETIME)
        return (int) n;
    return r;
}

static int uring_file_changed(struct hr_io *io, uint32_t file_idx)
{
    struct uring_io *uring = io->priv;
    const int fd = io->params.files[file_idx].fd;

    if (!uring->files_registered)
        return 0;
    const int r = io_uring_register_files_update(&uring->ring, file_idx, &fd, 1);
    return r < 0 ? r : 0;
}

const struct hr_io_backend hr_io_backend_uring = {
    .name = "io_uring",
    .priv_bytes = sizeof(struct uring_io),
    .init = uring_init,
    .uninit = uring_uninit,
    .submit = uring_submit,
    .reap = uring_reap,
    .file_changed = uring_file_changed,
};
