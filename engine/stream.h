/* SPDX-License-Identifier: Apache-2.0 */
/* stream.h -- what the rest of engine/ needs of the stream beyond headrace.h. */
#ifndef HR_STREAM_H
#define HR_STREAM_H

#include "common/common.h"

/* The smallest ring_bytes with which these tensors can be streamed, holding one unit at a time. */
uint64_t hr_stream_ring_bytes_min(const struct hr_tensor *const *tensors, uint32_t n);
/* The most events that one pass over these tensors adds to a trace, reading in blocks of
 * block_bytes (0: the default) and using each unit once. */
uint64_t hr_stream_trace_events(const struct hr_tensor *const *tensors, uint32_t n,
                                uint32_t block_bytes);

/* The ring of an open stream, which lasts until it is closed. */
void hr_stream_ring(const struct hr_stream *stream, void **ret_base, size_t *ret_bytes);

#endif /* HR_STREAM_H */
