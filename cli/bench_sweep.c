/* SPDX-License-Identifier: Apache-2.0 */
/* bench_sweep.c -- settings against each other on a disk that others use, too.
 *
 * The same setting can differ five times over within a quarter of an hour, so no setting is
 * measured by itself: in each turn each is measured once, in random order, and turns are repeated.
 */
#include <errno.h>
#include <string.h>

#include "cli/bench.h"

#define MIB               (1u << 20)
#define BESIDE_RING_BYTES (48u * MIB) /* code, headers, this program's own lists */

/* Bytes in flight are what counts; the block size matters little beyond 1 MiB. */
static const struct bench_setting few[] = {
    {1 * MIB, 16}, {1 * MIB, 32}, {2 * MIB, 16}, {4 * MIB, 8},
    {4 * MIB, 16}, {8 * MIB, 8},  {16 * MIB, 4},
};

void bench_sweep_settings(struct bench_sweep *sweep, bool whole_grid)
{
    memset(sweep, 0, sizeof(*sweep));
    if (!whole_grid) {
        for (size_t i = 0; i < sizeof(few) / sizeof(few[0]); i++)
            sweep->samples[sweep->n_settings++].setting = few[i];
        return;
    }
    for (uint32_t block = MIB / 4; block <= 16 * MIB; block *= 2)
        for (uint32_t in_flight = 4 * MIB; in_flight <= 128 * MIB; in_flight *= 2)
            if (in_flight >= block && in_flight / block <= BENCH_DEPTH_MAX)
                sweep->samples[sweep->n_settings++].setting =
                    (struct bench_setting){block, in_flight / block};
}

int bench_sweep_turn(struct bench_sweep *sweep, struct hr_stream *stream,
                     struct bench_windows *windows, uint64_t window_bytes,
                     struct bench_gates *gates, struct hr_error *err)
{
    uint32_t order[BENCH_SETTINGS_MAX];
    int r = 0;

    for (uint32_t i = 0; i < sweep->n_settings; i++) { /* Fisher and Yates, inside out */
        const uint32_t j = (uint32_t) bench_random(windows, i + 1);

        order[i] = order[j];
        order[j] = i;
    }
    for (uint32_t i = 0; i < sweep->n_settings && r == 0; i++) {
        struct bench_sample *sample = &sweep->samples[order[i]];
        const struct bench_window window = bench_window_pick(windows, window_bytes);
        const struct bench_window other = bench_window_pick(windows, window_bytes);
        struct bench_leg leg;

        if (cli_interrupted)
            return cli_error(err, -ECANCELED, "interrupted");
        r = hr_stream_set_blocks(stream, sample->setting.block_bytes, sample->setting.depth, err);
        if (r == 0)
            r = bench_leg_ours(&leg, stream, windows, &window, gates, err);
        if (r == 0)
            sample->ours[sweep->n_turns] = bench_rate(&leg);
        if (r == 0 && sweep->has_fio)
            r = bench_leg_fio(&leg, &sample->setting, windows, &other, gates, err);
        if (r == 0 && sweep->has_fio)
            sample->fio[sweep->n_turns] = bench_rate(&leg);
    }
    sweep->n_turns += r == 0;
    return r;
}

static double median_of(const struct bench_sweep *sweep, uint32_t i, bool fio)
{
    return bench_median(fio ? sweep->samples[i].fio : sweep->samples[i].ours, sweep->n_turns);
}

uint32_t bench_sweep_best(const struct bench_sweep *sweep, bool fio)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < sweep->n_settings; i++)
        if (median_of(sweep, i, fio) > median_of(sweep, best, fio))
            best = i;
    return best;
}

double bench_sweep_rate(const struct bench_sweep *sweep, bool fio)
{
    return median_of(sweep, bench_sweep_best(sweep, fio), fio);
}

static uint64_t in_flight(const struct bench_sweep *sweep, uint32_t i)
{
    return (uint64_t) sweep->samples[i].setting.block_bytes * sweep->samples[i].setting.depth;
}

uint32_t bench_sweep_choose(const struct bench_sweep *sweep)
{
    const uint32_t best = bench_sweep_best(sweep, false);
    uint32_t chosen = best;

    for (uint32_t i = 0; i < sweep->n_settings; i++)
        if (median_of(sweep, i, false) >= 0.98 * median_of(sweep, best, false) &&
            in_flight(sweep, i) < in_flight(sweep, chosen))
            chosen = i;
    return chosen;
}

int bench_window_bytes(uint64_t *ret_bytes, double seconds, struct hr_stream *stream,
                       struct bench_windows *windows, struct hr_error *err)
{
    const double min = 8.0 * MIB, max = 1024.0 * MIB;
    struct bench_gates unused = {0};
    double bytes = 64.0 * MIB;

    /* Twice: the first reading also wakes the disk up. */
    for (int i = 0; i < 2; i++) {
        const struct bench_window window = bench_window_pick(windows, (uint64_t) bytes);
        struct bench_leg leg;
        const int r = bench_leg_ours(&leg, stream, windows, &window, &unused, err);

        if (r < 0)
            return r;
        bytes = bench_rate(&leg) * 1e9 * seconds;
        bytes = bytes < min ? min : bytes > max ? max : bytes;
    }
    *ret_bytes = (uint64_t) bytes;
    return 0;
}

void bench_interrupt(void *stream)
{
    hr_stream_interrupt(stream);
}

int bench_open_stream(struct hr_stream **ret_stream, const struct cli_options *o,
                      const struct hr_checkpoint *model, struct bench_setting setting,
                      struct hr_error *err)
{
    struct hr_stream_params params = cli_stream_params(o);

    if (o->ram_bytes > 0) {
        const uint64_t ring = params.ring_bytes ? params.ring_bytes : HR_RING_BYTES_DEFAULT;

        if (o->ram_bytes < BESIDE_RING_BYTES + MIB)
            return cli_error(
                err, -EINVAL, "--ram: %llu MiB is too little; expected at least %u MiB",
                (unsigned long long) o->ram_bytes >> 20, (BESIDE_RING_BYTES >> 20) + 1);
        params.ring_bytes = o->ram_bytes - BESIDE_RING_BYTES;
        if (params.ring_bytes > ring)
            params.ring_bytes = ring;
    }
    params.block_bytes = setting.block_bytes;
    params.depth = setting.depth;
    return hr_stream_open(ret_stream, model, &params, err);
}
