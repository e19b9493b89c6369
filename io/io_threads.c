/* SPDX-License-Identifier: Apache-2.0 */
/* io_threads.c -- a few threads, each in one blocking read: what backends share whose reads block.
 *
 * Requests go through a queue to whichever thread is free, results come back through another.
 */
#include <errno.h>
#include <stdlib.h>

#include "io/io_threads.h"

static void *read_thread(void *arg)
{
    struct hr_io_threads *t = arg;
    const int begun = t->begin ? t->begin(t->io) : 0;

    pthread_mutex_lock(&t->mutex);
    t->n_begun++;
    t->failed = begun < 0 ? begun : t->failed;
    pthread_cond_signal(&t->finished);
    for (;;) {
        while (t->n_jobs == 0 && !t->stop)
            pthread_cond_wait(&t->work, &t->mutex);
        if (t->n_jobs == 0)
            break;
        const struct hr_io_job job = t->jobs[t->first_job];
        t->first_job = (t->first_job + 1) % t->depth;
        t->n_jobs--;
        pthread_mutex_unlock(&t->mutex);

        const int32_t result = t->read(t->io, &job);

        pthread_mutex_lock(&t->mutex);
        hr_assert(t->n_done < t->depth);
        t->done[(t->first_done + t->n_done++) % t->depth] =
            (struct hr_io_completion){.tag = job.request.tag, .result = result};
        pthread_cond_signal(&t->finished);
    }
    pthread_mutex_unlock(&t->mutex);
    return NULL;
}

void hr_io_threads_uninit(struct hr_io *io)
{
    struct hr_io_threads *t = io->priv;

    pthread_mutex_lock(&t->mutex);
    hr_assert(t->n_jobs == 0 && t->n_done == 0);
    t->stop = true;
    pthread_cond_broadcast(&t->work);
    pthread_mutex_unlock(&t->mutex);
    for (uint32_t i = 0; i < t->n_threads; i++)
        pthread_join(t->threads[i], NULL);
    pthread_cond_destroy(&t->finished);
    pthread_cond_destroy(&t->work);
    pthread_mutex_destroy(&t->mutex);
    free(t->done);
    free(t->jobs);
}

int hr_io_threads_init(struct hr_io *io, const char *name, struct hr_error *err)
{
    struct hr_io_threads *t = io->priv;
    const uint32_t n_threads = (uint32_t) hr_min_u64(io->params.depth, HR_IO_THREADS_MAX);

    t->io = io;
    t->depth = io->params.depth;
    pthread_mutex_init(&t->mutex, NULL);
    hr_io_cond_init(&t->work);
    hr_io_cond_init(&t->finished);
    t->jobs = calloc(t->depth, sizeof(*t->jobs));
    t->done = calloc(t->depth, sizeof(*t->done));
    int r = t->jobs && t->done ? 0 : hr_error_set(err, -ENOMEM, "out of memory");
    while (r == 0 && t->n_threads < n_threads) {
        r = hr_thread_start(&t->threads[t->n_threads], name, 0, read_thread, t);
        if (r == 0)
            t->n_threads++;
    }
    if (t->n_threads == 0) {
        hr_io_threads_uninit(io);
        return hr_io_error_thread(r, err);
    }
    /* Fewer threads than wished for read more slowly, but as well. Each must have begun: a thread
     * that does so later could outlive what begin() uses. */
    pthread_mutex_lock(&t->mutex);
    while (t->n_begun < t->n_threads)
        pthread_cond_wait(&t->finished, &t->mutex);
    r = t->failed;
    pthread_mutex_unlock(&t->mutex);
    if (r < 0)
        hr_io_threads_uninit(io);
    return r < 0 ? hr_error_set(err, r, "%s", t->begin_failed) : 0;
}

int hr_io_threads_submit(struct hr_io *io, const struct hr_io_request *requests, uint32_t n)
{
    struct hr_io_threads *t = io->priv;

    pthread_mutex_lock(&t->mutex);
    for (uint32_t i = 0; i < n; i++) {
        hr_assert(t->n_jobs < t->depth);
        t->jobs[(t->first_job + t->n_jobs++) % t->depth] = (struct hr_io_job){
            .request = requests[i],
            .fd = t->io->params.files[requests[i].file_idx].fd,
        };
        pthread_cond_signal(&t->work);
    }
    pthread_mutex_unlock(&t->mutex);
    return (int) n;
}

int hr_io_threads_reap(struct hr_io *io, struct hr_io_completion *done, uint32_t max,
                       uint64_t timeout_ns)
{
    struct hr_io_threads *t = io->priv;
    uint32_t n = 0;

    pthread_mutex_lock(&t->mutex);
    if (t->n_done == 0)
        hr_io_cond_wait(&t->finished, &t->mutex, timeout_ns);
    for (; n < max && t->n_done > 0; n++, t->n_done--) {
        done[n] = t->done[t->first_done];
        t->first_done = (t->first_done + 1) % t->depth;
    }
    pthread_mutex_unlock(&t->mutex);
    return (int) n;
}
