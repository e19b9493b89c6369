/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_pool.c -- see cpu_pool.h.
 *
 * A job is open while its tasks are handed out. A worker joins an open job under the lock and is
 * then counted in n_active; the caller closes the job and waits until that count is zero. A worker
 * that wakes too late finds the job closed and sleeps again: nobody waits for it.
 *
 * Between operations of one layer only microseconds pass, so both sides look for a short while
 * before they sleep; longer would take the CPU from the thread that reads the disk.
 */
#include "gpu/cpu_pool.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "gpu/cpu_openmp.h"

/* Small stacks: of larger ones the system would make huge pages. */
enum { SPIN_NS = 20000, STACK_BYTES = 1 << 20 };

struct worker {
    struct hr_pool *pool;
    pthread_t thread;
    unsigned idx;
};

struct hr_pool {
    pthread_mutex_t lock;
    pthread_cond_t wake; /* a job opened, or stop */
    pthread_cond_t left; /* n_active became 0     */
    /* Written under the lock; the two atomics are also looked at while spinning, without it. */
    hr_pool_fn *fn;
    void *ctx;
    size_t n_tasks;
    bool is_open;
    bool stop;
    atomic_uint n_jobs;
    atomic_uint n_active;

    atomic_size_t next_task;
    const atomic_int *cancelled; /* or NULL */

    unsigned n_workers;
    struct worker workers[];
};

static void cpu_relax(void)
{
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
}

static bool is_cancelled(const struct hr_pool *pool)
{
    return pool->cancelled && atomic_load_explicit(pool->cancelled, memory_order_relaxed) != 0;
}

static void run_tasks(struct hr_pool *pool, hr_pool_fn *fn, void *ctx, size_t n_tasks,
                      unsigned thread_idx)
{
    while (!is_cancelled(pool)) {
        const size_t task = atomic_fetch_add_explicit(&pool->next_task, 1, memory_order_relaxed);

        if (task >= n_tasks)
            return;
        fn(ctx, task, thread_idx);
    }
}

/* Look for a new job for a while; the lock tells the truth later. */
static void spin_for_job(struct hr_pool *pool, unsigned seen)
{
    const uint64_t end_ns = hr_now_ns() + SPIN_NS;

    while (atomic_load_explicit(&pool->n_jobs, memory_order_relaxed) == seen &&
           hr_now_ns() < end_ns)
        cpu_relax();
}

static void *worker_main(void *arg)
{
    const struct worker *worker = (const struct worker *) arg;
    struct hr_pool *pool = worker->pool;
    unsigned seen = 0;

    hr_openmp_serial();
    pthread_mutex_lock(&pool->lock);
    while (!pool->stop) {
        if (!pool->is_open || atomic_load_explicit(&pool->n_jobs, memory_order_relaxed) == seen) {
            pthread_cond_wait(&pool->wake, &pool->lock);
            continue;
        }
        hr_pool_fn *fn = pool->fn;
        void *ctx = pool->ctx;
        const size_t n_tasks = pool->n_tasks;

        seen = atomic_load_explicit(&pool->n_jobs, memory_order_relaxed);
        atomic_fetch_add_explicit(&pool->n_active, 1, memory_order_relaxed);
        pthread_mutex_unlock(&pool->lock);

        run_tasks(pool, fn, ctx, n_tasks, worker->idx);

        pthread_mutex_lock(&pool->lock);
        if (atomic_fetch_sub_explicit(&pool->n_active, 1, memory_order_relaxed) == 1)
            pthread_cond_signal(&pool->left);
        pthread_mutex_unlock(&pool->lock);

        spin_for_job(pool, seen);
        pthread_mutex_lock(&pool->lock);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static void close_job(struct hr_pool *pool)
{
    const uint64_t end_ns = hr_now_ns() + SPIN_NS;

    while (atomic_load_explicit(&pool->n_active, memory_order_relaxed) > 0 && hr_now_ns() < end_ns)
        cpu_relax();
    pthread_mutex_lock(&pool->lock);
    pool->is_open = false;
    while (atomic_load_explicit(&pool->n_active, memory_order_relaxed) > 0)
        pthread_cond_wait(&pool->left, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}

int hr_pool_run(struct hr_pool *pool, hr_pool_fn *fn, void *ctx, size_t n_tasks)
{
    const int openmp_threads = hr_openmp_serial(); /* the caller's own setting */
    size_t n_begun = 0;

    if (pool->n_workers == 0 || n_tasks == 1) {
        while (n_begun < n_tasks && !is_cancelled(pool))
            fn(ctx, n_begun++, 0);
    } else {
        pthread_mutex_lock(&pool->lock);
        hr_assert(!pool->is_open);
        pool->fn = fn;
        pool->ctx = ctx;
        pool->n_tasks = n_tasks;
        atomic_store_explicit(&pool->next_task, 0, memory_order_relaxed);
        atomic_fetch_add_explicit(&pool->n_jobs, 1, memory_order_relaxed);
        pool->is_open = true;
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);

        run_tasks(pool, fn, ctx, n_tasks, 0);
        close_job(pool);
        n_begun = atomic_load_explicit(&pool->next_task, memory_order_relaxed);
    }
    hr_openmp_restore(openmp_threads);
    return n_begun < n_tasks ? -ECANCELED : 0;
}

int hr_pool_open(struct hr_pool **ret_pool, unsigned n_threads, const atomic_int *cancelled)
{
    struct hr_pool *pool = calloc(1, sizeof(*pool) + n_threads * sizeof(pool->workers[0]));
    int rc = 0;

    hr_assert(n_threads >= 1);
    if (!pool)
        return -ENOMEM;
    pool->cancelled = cancelled;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->left, NULL);
    /* Signals are the caller's; cpu_gemm.c says why not theirs. */
    while (pool->n_workers + 1 < n_threads && rc == 0) {
        struct worker *worker = &pool->workers[pool->n_workers];

        *worker = (struct worker){.pool = pool, .idx = pool->n_workers + 1};
        rc = hr_thread_start(&worker->thread, "hr-compute", STACK_BYTES, worker_main, worker);
        pool->n_workers += rc == 0;
    }
    if (rc < 0) {
        hr_pool_close(&pool);
        return rc;
    }
    *ret_pool = pool;
    return 0;
}

void hr_pool_close(struct hr_pool **pool)
{
    struct hr_pool *p = *pool;

    *pool = NULL;
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->n_workers; i++)
        pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->left);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p);
}
