/* SPDX-License-Identifier: Apache-2.0 */
/* dit_meter.h -- how far a run of forwards is, and how long the rest will take.
 *
 * A run has three kinds of bytes: those read once, up front; the first pass, which also reads what
 * will stay in memory; and the later passes. Counting forwards alone would call a run of 20 steps
 * 5 % done after the first, when 8 % of its bytes have been read. */
#ifndef HR_DIT_METER_H
#define HR_DIT_METER_H

#include "common/common.h"

struct hr_meter {
    uint32_t n_forwards; /* UINT32_MAX: without end         */
    uint32_t n_blocks;
    uint64_t up_front_bytes; /* once, before the first pass        */
    uint64_t first_bytes;    /* of the first pass, without those   */
    uint64_t later_bytes;    /* of each later pass                 */

    uint64_t run_begin_ns;    /* 0: no forward has begun                          */
    uint64_t begin_ns;        /* of the present forward                           */
    uint64_t bytes_before;    /* counters when it began                           */
    uint64_t compute_before;  /* likewise, in the device's operations             */
    uint64_t up_front_ns;     /* of the first forward, up front                   */
    uint64_t up_front_cpu_ns; /* of it in the device's operations                 */
    uint64_t later_ns;        /* of later forwards that are done, all of them     */
    uint64_t expected_ns;     /* of a later forward, as the first one promises    */
    uint32_t n_done;
};

/* Counters of the run, which only grow. */
struct hr_meter_now {
    uint64_t now_ns;
    uint64_t bytes_used, compute_ns;
    uint32_t block_idx; /* blocks of the present forward that are finished */
};

static inline uint64_t hr_meter_run_bytes(const struct hr_meter *meter)
{
    return hr_mul_add_u64(meter->n_forwards - 1, meter->later_bytes,
                          meter->up_front_bytes + meter->first_bytes);
}

void hr_meter_begin(struct hr_meter *meter, const struct hr_meter_now *now);
/* The conditioning of all steps is done; the blocks of the first forward come now. */
void hr_meter_up_front_done(struct hr_meter *meter, const struct hr_meter_now *now);
/* A forward is done. */
void hr_meter_end(struct hr_meter *meter, const struct hr_meter_now *now);
/* Nanoseconds that the rest of the run will take; 0: none, nothing is known yet, or it has no end.
 */
uint64_t hr_meter_eta_ns(const struct hr_meter *meter, const struct hr_meter_now *now);

#endif /* HR_DIT_METER_H */
