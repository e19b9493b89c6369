/* SPDX-License-Identifier: Apache-2.0 */
/* slots.c -- see slots.h. */
#include "gpu/slots.h"

void hr_slots_init(struct hr_slots *slots, uint64_t size_bytes)
{
    hr_assert(size_bytes >= HR_SLOT_ALIGN);
    *slots = (struct hr_slots){.size_bytes = hr_align_down(size_bytes, HR_SLOT_ALIGN)};
}

bool hr_slots_take(struct hr_slots *slots, uint64_t size_bytes, uint64_t *ret_offset,
                   uint64_t *ret_ticket)
{
    const uint64_t takes = hr_align_up(size_bytes, HR_SLOT_ALIGN);

    hr_assert(size_bytes > 0 && takes <= slots->size_bytes);
    if (slots->oldest == slots->next)
        slots->head = slots->tail = 0; /* an empty ring has no end that must be skipped */
    const uint64_t left = slots->size_bytes - slots->head % slots->size_bytes;
    /* A slot lies in one piece: what is left before the end of the region is passed over. */
    const uint64_t begin = takes <= left ? slots->head : slots->head + left;

    if (slots->next - slots->oldest == HR_SLOTS_MAX ||
        begin + takes - slots->tail > slots->size_bytes)
        return false;
    slots->begins[slots->next % HR_SLOTS_MAX] = begin;
    slots->head = begin + takes;
    *ret_offset = begin % slots->size_bytes;
    *ret_ticket = slots->next++;
    return true;
}

uint64_t hr_slots_pop(struct hr_slots *slots)
{
    hr_assert(slots->oldest < slots->next);
    const uint64_t ticket = slots->oldest++;

    slots->tail =
        slots->oldest < slots->next ? slots->begins[slots->oldest % HR_SLOTS_MAX] : slots->head;
    return ticket;
}
