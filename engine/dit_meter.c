/* SPDX-License-Identifier: Apache-2.0 */
/* dit_meter.c -- progress of a run of forwards, and an estimate of its rest. */
#include "engine/dit_meter.h"

static uint64_t scaled(uint64_t ns, uint64_t part, uint64_t whole)
{
    return whole ? (uint64_t) ((double) ns * (double) part / (double) whole) : 0;
}

void hr_meter_begin(struct hr_meter *meter, const struct hr_meter_now *now)
{
    if (meter->run_begin_ns == 0)
        meter->run_begin_ns = now->now_ns;
    meter->begin_ns = now->now_ns;
    meter->bytes_before = now->bytes_used;
    meter->compute_before = now->compute_ns;
}

void hr_meter_up_front_done(struct hr_meter *meter, const struct hr_meter_now *now)
{
    meter->up_front_ns = now->now_ns - meter->begin_ns;
    meter->up_front_cpu_ns = now->compute_ns - meter->compute_before;
}

/* What a later forward will take, where `bytes` of the first one, not counting what came up front,
 * have taken so long: as long as its bytes take, but never less than its computing. */
static uint64_t later_from_first(const struct hr_meter *meter, const struct hr_meter_now *now,
                                 uint64_t bytes)
{
    const uint64_t wall_ns = now->now_ns - meter->begin_ns - meter->up_front_ns;
    const uint64_t compute_ns = now->compute_ns - meter->compute_before - meter->up_front_cpu_ns;

    return hr_max_u64(scaled(wall_ns, meter->later_bytes, bytes),
                      scaled(compute_ns, meter->first_bytes, bytes));
}

void hr_meter_end(struct hr_meter *meter, const struct hr_meter_now *now)
{
    if (meter->n_done++ == 0)
        meter->expected_ns = later_from_first(meter, now, meter->first_bytes);
    else
        meter->later_ns += now->now_ns - meter->begin_ns;
}

static uint64_t eta_in_first(const struct hr_meter *meter, const struct hr_meter_now *now)
{
    const uint64_t elapsed_ns = now->now_ns - meter->begin_ns;
    const uint64_t bytes = now->bytes_used - meter->bytes_before;

    if (bytes <= meter->up_front_bytes)
        return scaled(elapsed_ns, hr_meter_run_bytes(meter) - bytes, bytes);
    const uint64_t blocks_bytes = hr_min_u64(bytes - meter->up_front_bytes, meter->first_bytes);

    return hr_mul_add_u64(
        meter->n_forwards - 1, later_from_first(meter, now, blocks_bytes),
        scaled(elapsed_ns - meter->up_front_ns, meter->first_bytes - blocks_bytes, blocks_bytes));
}

uint64_t hr_meter_eta_ns(const struct hr_meter *meter, const struct hr_meter_now *now)
{
    if (meter->run_begin_ns == 0 || meter->n_done >= meter->n_forwards ||
        meter->n_forwards == UINT32_MAX)
        return 0;
    if (meter->n_done == 0)
        return eta_in_first(meter, now);
    const uint64_t each_ns =
        meter->n_done > 1 ? meter->later_ns / (meter->n_done - 1) : meter->expected_ns;
    const uint64_t left_ns = hr_mul_add_u64(meter->n_forwards - meter->n_done, each_ns, 0);

    return left_ns - scaled(each_ns, now->block_idx, meter->n_blocks);
}
