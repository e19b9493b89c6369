/* SPDX-License-Identifier: Apache-2.0 */
/* reader_plan.c -- where in the ring each range goes and which blocks are read; pure arithmetic.
 *
 * Nothing is ever moved: a range lies in the ring as it lies in the file, modulo the alignment, so
 * the aligned reads put every byte where it is used.
 */
#include <errno.h>
#include <stdlib.h>

#include "io/reader.h"

static uint64_t pow2_at_least(uint64_t v)
{
    uint64_t p = 1;

    while (p < v)
        p *= 2;
    return p;
}

int hr_plan_init(struct hr_plan *plan, uint32_t n_passes)
{
    hr_assert(plan->n_ranges > plan->n_once && plan->ring_bytes % plan->align_bytes == 0);
    hr_assert(plan->block_bytes % plan->align_bytes == 0);

    const uint64_t n_each = plan->n_ranges - plan->n_once;

    plan->n_total = n_passes ? plan->n_once + n_each * n_passes : UINT64_MAX;
    plan->window = (uint32_t) pow2_at_least(
        hr_min_u64(hr_max_u64(plan->n_ranges, HR_PLAN_WINDOW_MIN), HR_PLAN_WINDOW_MAX));
    plan->places = calloc(plan->window, sizeof(*plan->places));
    return plan->places ? 0 : -ENOMEM;
}

void hr_plan_uninit(struct hr_plan *plan)
{
    free(plan->places);
    plan->places = NULL;
}

/* Does range seq follow its predecessor closely in the file? */
static bool follows(const struct hr_plan *plan, uint64_t seq)
{
    if (seq == 0)
        return false;
    const struct hr_read_range *prev = hr_plan_range(plan, seq - 1);
    const struct hr_read_range *next = hr_plan_range(plan, seq);
    const uint64_t prev_end = prev->offset_bytes + prev->size_bytes;

    return next->file_idx == prev->file_idx && next->offset_bytes >= prev_end &&
           next->offset_bytes - prev_end <= HR_PLAN_GAP_BYTES_MAX;
}

/* Where range seq goes if it lengthens the present run, space allowing. Not across the ring's end,
 * and not when the page that it shares with its predecessor has been given up. */
static bool continues(const struct hr_plan *plan, uint64_t seq, struct hr_plan_place *ret_place)
{
    if (seq >= plan->n_total || !follows(plan, seq))
        return false;
    const struct hr_read_range *prev = hr_plan_range(plan, seq - 1);
    const struct hr_read_range *next = hr_plan_range(plan, seq);
    const uint64_t prev_end = plan->run_base + prev->offset_bytes + prev->size_bytes;
    const struct hr_plan_place place = {
        .pos = plan->run_base + next->offset_bytes,
        .begin = hr_align_down(prev_end, plan->align_bytes),
    };

    if (place.begin < plan->tail ||
        hr_align_up(place.pos + next->size_bytes, plan->align_bytes) > plan->run_limit)
        return false;
    *ret_place = place;
    return true;
}

/* Does a cover that ends at `end` fit into the ring and the window? */
static bool fits(const struct hr_plan *plan, uint64_t end)
{
    return end - plan->tail <= plan->ring_bytes && plan->seq - plan->first_live < plan->window;
}

static void record(struct hr_plan *plan, const struct hr_plan_place *place, uint64_t end)
{
    plan->places[plan->seq++ & (plan->window - 1)] = *place;
    plan->head = end;
}

/* Place the next range. @return false: no space, or too many ranges are live */
static bool place_next(struct hr_plan *plan)
{
    const struct hr_read_range *range = hr_plan_range(plan, plan->seq);
    const uint64_t align = plan->align_bytes;
    struct hr_plan_place place;

    if (continues(plan, plan->seq, &place)) {
        const uint64_t end = hr_align_up(place.pos + range->size_bytes, align);

        if (!fits(plan, end))
            return false;
        record(plan, &place, end);
        return true;
    }

    const uint64_t shift = range->offset_bytes & (align - 1);
    const uint64_t cover_bytes = hr_align_up(shift + range->size_bytes, align);
    uint64_t begin = plan->head;

    hr_assert(cover_bytes <= plan->ring_bytes && plan->cut == plan->head);
    if (begin % plan->ring_bytes + cover_bytes > plan->ring_bytes)
        begin += plan->ring_bytes - begin % plan->ring_bytes;
    if (plan->first_live == plan->seq)
        plan->tail = begin;
    if (!fits(plan, begin + cover_bytes))
        return false;
    place = (struct hr_plan_place){.pos = begin + shift, .begin = begin};
    plan->cut = begin;
    plan->run_base = place.pos - range->offset_bytes;
    plan->run_limit = begin - begin % plan->ring_bytes + plan->ring_bytes;
    record(plan, &place, begin + cover_bytes);
    return true;
}

enum hr_plan_result hr_plan_next(struct hr_plan *plan, bool may_hold,
                                 struct hr_plan_block *ret_block)
{
    struct hr_plan_place place;
    uint64_t end;

    for (;;) {
        /* The next multiple of block_bytes in the file, as a position. */
        end = hr_align_down(plan->cut - plan->run_base, plan->block_bytes) + plan->block_bytes +
              plan->run_base;
        if (plan->seq > 0 && end <= plan->head)
            break;
        const bool part = plan->cut < plan->head;
        if (part && !continues(plan, plan->seq, &place)) {
            end = plan->head;
            break;
        }
        if (plan->seq == plan->n_total)
            return HR_PLAN_END;
        if (place_next(plan))
            continue;
        if (!part)
            return HR_PLAN_FULL;
        if (may_hold)
            return HR_PLAN_HOLD;
        end = plan->head;
        break;
    }
    *ret_block = (struct hr_plan_block){
        .pos = plan->cut,
        .offset_bytes = plan->cut - plan->run_base,
        .size_bytes = (uint32_t) (end - plan->cut),
        .file_idx = hr_plan_range(plan, plan->seq - 1)->file_idx,
    };
    plan->cut = end;
    return HR_PLAN_BLOCK;
}

void hr_plan_release(struct hr_plan *plan, uint64_t first_live)
{
    hr_assert(first_live >= plan->first_live && first_live <= plan->seq);

    if (first_live == plan->first_live)
        return;
    plan->first_live = first_live;
    const uint64_t live =
        first_live == plan->seq ? plan->head : plan->places[first_live & (plan->window - 1)].begin;
    hr_assert(live >= plan->tail && live <= plan->head);
    plan->tail = live;
}
