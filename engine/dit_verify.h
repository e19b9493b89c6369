/* SPDX-License-Identifier: Apache-2.0 */
/* dit_verify.h -- the weights of a run of forwards, compared with a manifest as they stream by.
 *
 * A thread of its own hashes the bands, in order, while they are computed with: hashing is as
 * serial as a tensor is long, and where the disk is the bound the other cores are idle. A band
 * stays in the ring until both are done.
 *
 * Covered: headers and config.json when the model is opened, then every tensor that streams, at its
 * last band. Not covered: tensors that no forward needs, copies that stay in memory after they have
 * been compared, and other files (inputs, LoRAs). */
#ifndef HR_DIT_VERIFY_H
#define HR_DIT_VERIFY_H

#include <pthread.h>
#include <stdatomic.h>

#include "engine/verify.h"

enum { HR_VERIFY_UNITS_MAX = 128 }; /* more than a feed ever holds */

struct hr_dit_verify {
    const struct hr_checkpoint *checkpoint;
    const struct hr_manifest *manifest;
    bool always;      /* in every pass; else each tensor once                                */
    uint8_t *checked; /* for each tensor; set by the thread once the tensor's last band came */
    struct hr_tensor_hash hash;     /* the thread's                                              */
    atomic_uint_fast64_t bytes, ns; /* compared so far, and what it took                     */

    pthread_t thread;
    bool is_started;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    struct hr_unit units[HR_VERIFY_UNITS_MAX]; /* n_done to n_posted, in a ring */
    uint64_t n_posted, n_done;
    bool stop;
    struct hr_error failure; /* the first */
};

/* All but the bytes of tensors is compared here.
 * @param plan  n_plan tensors that will stream
 * @return 0, -EBADMSG something differs, or the error of reading a header */
int hr_dit_verify_init(struct hr_dit_verify *verify, const struct hr_checkpoint *checkpoint,
                       const struct hr_manifest *manifest, bool always,
                       const struct hr_tensor *const *plan, uint32_t n_plan, struct hr_error *err);
/* Before the first unit: the thread, and memory for what it has compared. */
int hr_dit_verify_start(struct hr_dit_verify *verify, struct hr_error *err);
void hr_dit_verify_uninit(struct hr_dit_verify *verify);

/* Have the next unit of the stream compared; its bytes must stay until that is done.
 * @param ret_ticket  for hr_dit_verify_is_done(); 0: the unit needs no comparing
 * @return 0, or -EBADMSG naming tensor and bytes where one before was found wrong */
int hr_dit_verify_unit(struct hr_dit_verify *verify, const struct hr_unit *unit,
                       uint64_t *ret_ticket, struct hr_error *err);
/* Whether the unit is hashed, and its bytes are free; with `wait` it waits, and returns true. */
bool hr_dit_verify_is_done(struct hr_dit_verify *verify, uint64_t ticket, bool wait);
/* Wait for all units; nothing where nothing is compared. @return 0 or -EBADMSG as above */
int hr_dit_verify_end(struct hr_dit_verify *verify, struct hr_error *err);

#endif /* HR_DIT_VERIFY_H */
