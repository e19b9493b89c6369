/* SPDX-License-Identifier: Apache-2.0 */
/* dit_ring.h -- a ring on a device, as a reader takes it. */
#ifndef HR_DIT_RING_H
#define HR_DIT_RING_H

#include "gpu/gpu.h"
#include "io/io.h"

enum { HR_REGISTERED_MAX = 65 }; /* pieces of the host's memory: the ring, and resident weights */

/* The device's ring. @return memory, borrowing gpu; or NULL: there is none */
const struct hr_reader_memory *hr_ring_memory_of(struct hr_reader_memory *memory,
                                                 struct hr_gpu *gpu);
/* A device that is used for its ring alone, to measure reading. */
struct hr_gpu_params hr_ring_device(const char *device, uint64_t vram_bytes, uint64_t ring_bytes);

#endif /* HR_DIT_RING_H */
