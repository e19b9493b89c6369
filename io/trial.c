/* SPDX-License-Identifier: Apache-2.0 */
/* trial.c -- what works on this machine and with this file, found by doing it once: the ring, the
 * direct read, each backend. What streams do is asked, not what a version promises. */
#include <errno.h>

#include "io/backend.h"

static int try_with_ring(struct hr_io_trial *trial, const struct hr_read_file *source,
                         const struct hr_ring *ring, struct hr_error *err)
{
    struct hr_io_file file;
    int r = hr_io_file_open_direct(&file, source, &trial->not_direct, err);

    if (r == 0) {
        trial->not_direct = NULL;
        trial->align_bytes = file.align_bytes;
    } else if (r == -EOPNOTSUPP) {
        r = hr_io_file_open(&file, source, HR_DIRECT_OFF, err);
    }
    if (r < 0)
        return r;
    trial->n_backends =
        hr_io_try_backends(trial->backends, &(struct hr_io_params){
                                                .files = &file,
                                                .n_files = 1,
                                                .depth = HR_DEPTH_DEFAULT,
                                                .buf = ring->base,
                                                .buf_bytes = ring->size_bytes,
                                                .block_bytes = HR_BLOCK_BYTES_DEFAULT,
                                            });
    hr_io_file_close(&file);
    return 0;
}

int hr_io_try(struct hr_io_trial *ret_trial, const struct hr_read_file *file, uint64_t ring_bytes,
              struct hr_error *err)
{
    struct hr_io_trial trial = {0};
    struct hr_ring ring = {0};
    int r = hr_ring_init(&ring, hr_align_up(ring_bytes, HR_RING_UNIT_BYTES), true, err);

    if (r < 0)
        return r;
    trial.ring_bytes = ring.size_bytes;
    trial.huge_bytes = ring.huge_bytes;
    r = try_with_ring(&trial, file, &ring, err);
    hr_ring_uninit(&ring);
    if (r == 0)
        *ret_trial = trial;
    return r;
}
