/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_openmp.h -- keeps oneDNN serial inside our own threads.
 *
 * A build of oneDNN on OpenMP decides when a primitive is *made* how many threads will carry it
 * out, and takes the number from the thread that makes it. Its threads then spin for work on the
 * cores that ours and the disk's reader need. So ours make and run primitives with that number
 * at 1.
 */
#ifndef HR_GPU_CPU_OPENMP_H
#define HR_GPU_CPU_OPENMP_H

/* One OpenMP thread for what the calling thread does from now on.
 * @return what it was, for hr_openmp_restore(); 0 without OpenMP */
int hr_openmp_serial(void);
void hr_openmp_restore(int n_threads);

#endif /* HR_GPU_CPU_OPENMP_H */
