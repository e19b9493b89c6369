/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_pool.h -- threads that share the tasks of one operation at a time.
 *
 * The caller is one of the threads. Tasks are handed out one by one, so a thread that the disk's
 * reader displaces takes fewer of them. A task's result may depend on its index alone.
 */
#ifndef HR_GPU_CPU_POOL_H
#define HR_GPU_CPU_POOL_H

#include <stdatomic.h>

#include "common/common.h"

struct hr_pool;

/* @param thread_idx  0 .. n_threads - 1: which scratch to use; 0 is the caller */
typedef void hr_pool_fn(void *ctx, size_t task_idx, unsigned thread_idx);

/* @param cancelled  looked at before each task; lives as long as the pool, NULL: never set
 * @return 0, -ENOMEM, or -EAGAIN when the system has no more threads */
int hr_pool_open(struct hr_pool **ret_pool, unsigned n_threads, const atomic_int *cancelled);
void hr_pool_close(struct hr_pool **pool);

/* Call fn for the tasks 0 .. n_tasks - 1 and wait for all. One caller at a time.
 * @return 0, or -ECANCELED when some were not begun because *cancelled was set; those that had
 *         begun are finished */
int hr_pool_run(struct hr_pool *pool, hr_pool_fn *fn, void *ctx, size_t n_tasks);

#endif /* HR_GPU_CPU_POOL_H */
