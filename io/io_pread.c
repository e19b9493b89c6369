/* SPDX-License-Identifier: Apache-2.0 */
/* io_pread.c -- the backend that works everywhere: a few threads, each in one blocking pread().
 *
 * Requests go through a queue to whichever thread is free, results come back through another.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "io/backend.h"

enum { THREADS_MAX = 8 };

struct job {
    struct hr_io_request request;
    int fd;
};

struct pread_io {
    pthread_mutex_t mutex;
    pthread_cond_t work;     /* jobs waiting, or stop */
    pthread_cond_t finished; /* results waiting       */
    struct job *jobs;        /* [depth], n_jobs from first_job on, circular */
    uint32_t first_job, n_jobs;
    struct hr_io_completion *done; /* [depth], circular */
    uint32_t first_done, n_done;
    uint32_t depth;
    bool stop;
    pthread_t threads[THREADS_MAX];
    uint32_t n_threads;
};

static void *pread_thread(void *arg)
{
    struct pread_io *p = arg;

    pthread_mutex_lock(&p->mutex);
    for (;;) {
        while (p->n_jobs == 0 && !p->stop)
            pthread_cond_wait(&p->work, &p->mutex);
        if (p->n_jobs == 0)
            break;
        const struct job job = p->jobs[p->first_job];
        p->first_job = (p->first_job + 1) % p->depth;
        p->n_jobs--;
        pthread_mutex_unlock(&p->mutex);

        const ssize_t n = pread(job.fd, job.request.buf, job.request.size_bytes,
                                (int64_t) job.request.offset_bytes);
        const int32_t result = n < 0 ? -errno : (int32_t) n;

        pthread_mutex_lock(&p->mutex);
        hr_assert(p->n_done < p->depth);
        p->done[(p->first_done + p->n_done++) % p->depth] =
            (struct hr_io_completion){.tag = job.request.tag, .result = result};
        pthread_cond_signal(&p->finished);
    }
    pthread_mutex_unlock(&p->mutex);
    return NULL;
}

static void pread_uninit(struct hr_io *io)
{
    struct pread_io *p = io->priv;

    pthread_mutex_lock(&p->mutex);
    hr_assert(p->n_jobs == 0 && p->n_done == 0);
    p->stop = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->mutex);
    for (uint32_t i = 0; i < p->n_threads; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->finished);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->mutex);
    free(p->done);
    free(p->jobs);
}

static int pread_init(struct hr_io *io, struct hr_error *err)
{
    struct pread_io *p = io->priv;
    const uint32_t n_threads = (uint32_t) hr_min_u64(io->params.depth, THREADS_MAX);

    p->depth = io->params.depth;
    pthread_mutex_init(&p->mutex, NULL);
    hr_io_cond_init(&p->work);
    hr_io_cond_init(&p->finished);
    p->jobs = calloc(p->depth, sizeof(*p->jobs));
    p->done = calloc(p->depth, sizeof(*p->done));
    int r = p->jobs && p->done ? 0 : hr_error_set(err, -ENOMEM, "out of memory");
    while (r == 0 && p->n_threads < n_threads) {
        r = hr_thread_start(&p->threads[p->n_threads], "hr-pread", 0, pread_thread, p);
        if (r == 0)
            p->n_threads++;
    }
    /* Fewer threads than wished for read more slowly, but as well. */
    if (p->n_threads > 0)
        return 0;
    pread_uninit(io);
    return hr_io_error_thread(r, err);
}

static int pread_submit(struct hr_io *io, const struct hr_io_request *requests, uint32_t n)
{
    struct pread_io *p = io->priv;

    pthread_mutex_lock(&p->mutex);
    for (uint32_t i = 0; i < n; i++) {
        hr_assert(p->n_jobs < p->depth);
        p->jobs[(p->first_job + p->n_jobs++) % p->depth] = (struct job){
            .request = requests[i],
            .fd = io->params.files[requests[i].file_idx].fd,
        };
        pthread_cond_signal(&p->work);
    }
    pthread_mutex_unlock(&p->mutex);
    return (int) n;
}

static int pread_reap(struct hr_io *io, struct hr_io_completion *done, uint32_t max,
                      uint64_t timeout_ns)
{
    struct pread_io *p = io->priv;
    uint32_t n = 0;

    pthread_mutex_lock(&p->mutex);
    if (p->n_done == 0)
        hr_io_cond_wait(&p->finished, &p->mutex, timeout_ns);
    for (; n < max && p->n_done > 0; n++, p->n_done--) {
        done[n] = p->done[p->first_done];
        p->first_done = (p->first_done + 1) % p->depth;
    }
    pthread_mutex_unlock(&p->mutex);
    return (int) n;
}

const struct hr_io_backend hr_io_backend_pread = {
    .name = "pread",
    .priv_bytes = sizeof(struct pread_io),
    .init = pread_init,
    .uninit = pread_uninit,
    .submit = pread_submit,
    .reap = pread_reap,
};
