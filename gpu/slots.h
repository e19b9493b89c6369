/* SPDX-License-Identifier: Apache-2.0 */
/* slots.h -- where weights lie on a device of its own memory while they pass through.
 *
 * One region is given out as a ring, in order; a slot is freed in the same order. This is
 * arithmetic only: the device knows when a copy into a slot and the last product out of it are
 * done.
 */
#ifndef HR_GPU_SLOTS_H
#define HR_GPU_SLOTS_H

#include "common/common.h"

enum {
    HR_SLOTS_MAX = 64,   /* live at a time */
    HR_SLOT_ALIGN = 256, /* of offsets     */
};

struct hr_slots {
    uint64_t size_bytes;           /* a multiple of HR_SLOT_ALIGN                       */
    uint64_t head, tail;           /* positions that only grow, modulo size_bytes       */
    uint64_t oldest, next;         /* tickets: those from oldest on are live          */
    uint64_t begins[HR_SLOTS_MAX]; /* position of a live slot, ticket % MAX   */
};

void hr_slots_init(struct hr_slots *slots, uint64_t size_bytes);

/* Take a slot of 1..size_bytes bytes.
 * @param ret_offset  from the start of the region, a multiple of HR_SLOT_ALIGN
 * @param ret_ticket  counts up from 0
 * @return false: not before the oldest is given up (there is one then) */
bool hr_slots_take(struct hr_slots *slots, uint64_t size_bytes, uint64_t *ret_offset,
                   uint64_t *ret_ticket);

/* Give up the oldest, of which there is one. @return its ticket */
uint64_t hr_slots_pop(struct hr_slots *slots);

#endif /* HR_GPU_SLOTS_H */
