/* SPDX-License-Identifier: Apache-2.0 */
/* stream.h -- what the rest of engine/ needs of the stream beyond headrace.h. */
#ifndef HR_STREAM_H
#define HR_STREAM_H

#include "common/common.h"

enum { HR_STREAM_RING_BYTES_DEFAULT = 192 << 20 };

/* The smallest ring_bytes with which these tensors can be streamed, holding one unit at a time. */
uint64_t hr_stream_ring_bytes_min(const struct hr_tensor *const *tensors, uint32_t n);

#endif /* HR_STREAM_H */
