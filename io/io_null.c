/* SPDX-License-Identifier: Apache-2.0 */
/* io_null.c -- the backend that reads nothing: every request is complete at once and the memory
 * keeps what it held. It measures what the reader itself costs, and is the skeleton of a backend.
 */
#include <errno.h>
#include <stdlib.h>

#include "io/backend.h"

struct null_io {
    struct hr_io_completion *done; /* [depth] */
    uint32_t n_done;
};

static int null_init(struct hr_io *io, struct hr_error *err)
{
    struct null_io *null = io->priv;

    null->done = calloc(io->params.depth, sizeof(*null->done));
    return null->done ? 0 : hr_error_set(err, -ENOMEM, "out of memory");
}

static void null_uninit(struct hr_io *io)
{
    struct null_io *null = io->priv;

    hr_assert(null->n_done == 0);
    free(null->done);
}

static int null_submit(struct hr_io *io, const struct hr_io_request *requests, uint32_t n)
{
    struct null_io *null = io->priv;

    for (uint32_t i = 0; i < n; i++) {
        const uint64_t file_bytes = io->params.files[requests[i].file_idx].source->size_bytes;
        const uint64_t left = file_bytes - hr_min_u64(file_bytes, requests[i].offset_bytes);

        hr_assert(null->n_done < io->params.depth);
        null->done[null->n_done++] = (struct hr_io_completion){
            .tag = requests[i].tag,
            .result = (int32_t) hr_min_u64(left, requests[i].size_bytes),
        };
    }
    return (int) n;
}

static int null_reap(struct hr_io *io, struct hr_io_completion *done, uint32_t max,
                     uint64_t timeout_ns)
{
    struct null_io *null = io->priv;
    uint32_t n = 0;

    (void) timeout_ns;
    while (n < max && null->n_done > 0)
        done[n++] = null->done[--null->n_done];
    return (int) n;
}

const struct hr_io_backend hr_io_backend_null = {
    .name = "null",
    .priv_bytes = sizeof(struct null_io),
    .init = null_init,
    .uninit = null_uninit,
    .submit = null_submit,
    .reap = null_reap,
};

/* The same for a ring that lies on a device. */
const struct hr_io_backend hr_io_backend_null_device = {
    .name = "null_device",
    .memory = HR_IO_MEMORY_DEVICE,
    .priv_bytes = sizeof(struct null_io),
    .init = null_init,
    .uninit = null_uninit,
    .submit = null_submit,
    .reap = null_reap,
};
