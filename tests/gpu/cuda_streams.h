/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_streams.h -- streams of the played runtime: work is done when it is asked for or, with
 * HEADRACE_TEST_PLAYED=late, at some time between that and when somebody waits for it.
 */
#ifndef HR_TESTS_GPU_CUDA_STREAMS_H
#define HR_TESTS_GPU_CUDA_STREAMS_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Have run(arg) called in the order of the stream. */
void hr_played_ask(cudaStream_t stream, void (*run)(void *arg), void *arg);

/* Whether a copy would cross an edge of registered host memory, which the runtime refuses. */
int hr_played_crosses(const void *p, size_t size);

/* When no stream is left: nothing may be registered any more. */
void hr_played_last_stream_ends(void);

#ifdef __cplusplus
}

#include <functional>

namespace player
{
void ask(cudaStream_t stream, std::function<void()> work);
}
#endif

#endif /* HR_TESTS_GPU_CUDA_STREAMS_H */
