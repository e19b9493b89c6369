/* SPDX-License-Identifier: Apache-2.0 */
/* stream.h -- what the rest of engine/ needs of the stream beyond headrace.h. */
#ifndef HR_STREAM_H
#define HR_STREAM_H

#include "common/common.h"
#include "engine/tuning.h"
#include "io/io.h"

/* The smallest ring_bytes with which these tensors can be streamed, holding one unit at a time. */
uint64_t hr_stream_ring_bytes_min(const struct hr_tensor *const *tensors, uint32_t n);
/* The most events that one pass over these tensors adds to a trace, reading in blocks of
 * block_bytes and using each unit once. */
uint64_t hr_stream_trace_events(const struct hr_tensor *const *tensors, uint32_t n,
                                uint32_t block_bytes);

/* How a stream will read: as given; where nothing is given as saved for the disk, or by default. */
struct hr_stream_blocks {
    uint32_t block_bytes, depth;
    bool is_tuned;
    struct hr_tuning tuning; /* what was saved, when is_tuned */
};
struct hr_stream_blocks hr_stream_choose_blocks(const struct hr_checkpoint *checkpoint,
                                                const struct hr_stream_params *params);
/* hr_stream_open() with the choice made before.
 * @param memory  of a device, for the ring; borrowed until close. NULL: the host's */
int hr_stream_open_blocks(struct hr_stream **ret_stream, const struct hr_checkpoint *checkpoint,
                          const struct hr_stream_params *params,
                          const struct hr_stream_blocks *blocks,
                          const struct hr_reader_memory *memory, struct hr_error *err);

/* Are the files as they were when the stream was opened? @return 0 or -ESTALE with a message */
int hr_stream_check_files(const struct hr_stream *stream, struct hr_error *err);

/* The ring of an open stream, which lasts until it is closed. */
void hr_stream_ring(const struct hr_stream *stream, void **ret_base, size_t *ret_bytes);

#endif /* HR_STREAM_H */
