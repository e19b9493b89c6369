/* SPDX-License-Identifier: Apache-2.0 */
/* trace.c -- the buffer of a trace: filled by several threads, never waited for. */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/common.h"

enum { MAX_EVENTS_DEFAULT = 1 << 20 };

/* A place is claimed by counting up, filled, and published by its kind, which comes last. */
_Static_assert(sizeof(struct hr_trace_event) == 64, "as headrace.h says");
enum { FILLED_BYTES = offsetof(struct hr_trace_event, kind) };

struct hr_trace {
    uint64_t max_events;
    uint64_t origin_ns;
    struct hr_trace_event *places; /* n_places */
    uint64_t n_places;
    atomic_uint_fast64_t n_claimed;
};

int hr_trace_open(struct hr_trace **ret_trace, uint64_t max_events, struct hr_error *err)
{
    struct hr_trace *trace = calloc(1, sizeof(*trace));

    if (!trace)
        return hr_error_set(err, -ENOMEM, "no memory for a trace");
    trace->max_events = max_events ? max_events : MAX_EVENTS_DEFAULT;
    trace->origin_ns = hr_now_ns();
    *ret_trace = trace;
    return 0;
}

void hr_trace_close(struct hr_trace **trace)
{
    if (!*trace)
        return;
    if ((*trace)->places)
        munmap((*trace)->places, (*trace)->n_places * sizeof(struct hr_trace_event));
    free(*trace);
    *trace = NULL;
}

uint64_t hr_trace_reserve_bytes(const struct hr_trace *trace, uint64_t n_events)
{
    if (!trace || trace->places)
        return 0;
    return hr_max_u64(hr_min_u64(n_events, trace->max_events), 1) * sizeof(struct hr_trace_event);
}

int hr_trace_reserve(struct hr_trace *trace, uint64_t n_events)
{
    const uint64_t bytes = hr_trace_reserve_bytes(trace, n_events);

    if (bytes == 0)
        return 0;
    /* Pages come as they are used. */
    void *places = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (places == MAP_FAILED)
        return -ENOMEM;
    trace->places = places;
    trace->n_places = bytes / sizeof(struct hr_trace_event);
    return 0;
}

void hr_trace_add(struct hr_trace *trace, const struct hr_trace_event *event)
{
    if (!trace)
        return;
    const uint64_t idx = atomic_fetch_add_explicit(&trace->n_claimed, 1, memory_order_relaxed);

    if (idx >= trace->n_places)
        return;
    memcpy(&trace->places[idx], event, FILLED_BYTES);
    __atomic_store_n(&trace->places[idx].kind, event->kind, __ATOMIC_RELEASE);
}

bool hr_trace_get(const struct hr_trace *trace, uint64_t idx, struct hr_trace_event *ret_event)
{
    if (idx >= atomic_load_explicit(&trace->n_claimed, memory_order_relaxed) ||
        idx >= trace->n_places)
        return false;
    ret_event->kind = __atomic_load_n(&trace->places[idx].kind, __ATOMIC_ACQUIRE);
    if (ret_event->kind != HR_TRACE_NONE)
        memcpy(ret_event, &trace->places[idx], FILLED_BYTES);
    return true;
}

uint64_t hr_trace_dropped(const struct hr_trace *trace)
{
    const uint64_t n = atomic_load_explicit(&trace->n_claimed, memory_order_relaxed);

    return n > trace->n_places ? n - trace->n_places : 0;
}

uint64_t hr_trace_origin_ns(const struct hr_trace *trace)
{
    return trace->origin_ns;
}
