/* SPDX-License-Identifier: Apache-2.0 */
/* io_threads.h -- inside io/: blocking reads made into a backend by a few threads. */
#ifndef HR_IO_THREADS_H
#define HR_IO_THREADS_H

#include "io/backend.h"

enum { HR_IO_THREADS_MAX = 8 };

struct hr_io_job {
    struct hr_io_request request;
    int fd; /* of its file when it was submitted */
};

/* The fields of the first group are the backend's to fill in, the others zero. */
struct hr_io_threads {
    int32_t (*read)(struct hr_io *io, const struct hr_io_job *job); /* bytes or -errno */
    int (*begin)(struct hr_io *io);                                 /* of each thread; or NULL  */
    const char *begin_failed; /* what to say then                                          */

    struct hr_io *io;
    pthread_mutex_t mutex;
    pthread_cond_t work;     /* jobs waiting, or stop */
    pthread_cond_t finished; /* results waiting       */
    struct hr_io_job *jobs;  /* [depth], n_jobs from first_job on, circular */
    uint32_t first_job, n_jobs;
    struct hr_io_completion *done; /* [depth], circular */
    uint32_t first_done, n_done;
    uint32_t depth;
    bool stop;
    uint32_t n_begun;
    int failed; /* a begin() that did */
    pthread_t threads[HR_IO_THREADS_MAX];
    uint32_t n_threads;
};

/* Hooks of a backend whose private state begins with struct hr_io_threads.
 * @param name  of the threads, at most 15 characters */
int hr_io_threads_init(struct hr_io *io, const char *name, struct hr_error *err);
void hr_io_threads_uninit(struct hr_io *io);
int hr_io_threads_submit(struct hr_io *io, const struct hr_io_request *requests, uint32_t n);
int hr_io_threads_reap(struct hr_io *io, struct hr_io_completion *done, uint32_t max,
                       uint64_t timeout_ns);

#endif /* HR_IO_THREADS_H */
