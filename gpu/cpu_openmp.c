/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_openmp.c -- see cpu_openmp.h. OpenMP is looked up at run time: which one there is, if any, is
 * the matrix library's choice. */
#include "gpu/cpu_openmp.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>

static void (*set_num_threads)(int n);
static int (*get_max_threads)(void);

static void look_up(void)
{
    *(void **) &get_max_threads = dlsym(RTLD_DEFAULT, "omp_get_max_threads");
    if (get_max_threads)
        *(void **) &set_num_threads = dlsym(RTLD_DEFAULT, "omp_set_num_threads");
}

int hr_openmp_serial(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, look_up);
    if (!set_num_threads)
        return 0;
    const int n_threads = get_max_threads();

    if (n_threads != 1)
        set_num_threads(1);
    return n_threads;
}

void hr_openmp_restore(int n_threads)
{
    if (n_threads > 1)
        set_num_threads(n_threads);
}
