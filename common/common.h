/* SPDX-License-Identifier: Apache-2.0 */
/* common.h -- what every folder may use: errors, log, clock, small arithmetic, dtypes, trace,
 * process memory, values of /proc and /sys.
 *
 * It includes headrace.h for the few types shared with callers (hr_error, hr_dtype, log levels),
 * and nothing else of the project.
 */
#ifndef HR_COMMON_H
#define HR_COMMON_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "headrace.h"

#define HR_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define HR_PRINTF(f, a)  __attribute__((format(printf, f, a)))

/* Our own mistakes; on in release builds too. Never for files, devices or callers. */
#define hr_assert(cond) ((cond) ? (void) 0 : hr_assert_failed(#cond, __FILE__, __LINE__, __func__))
_Noreturn void hr_assert_failed(const char *cond, const char *file, int line, const char *func);

#define HR_KIB (UINT64_C(1) << 10)
#define HR_MIB (UINT64_C(1) << 20)
#define HR_GIB (UINT64_C(1) << 30)

/* ---- errors ------------------------------------------------------------------------- */

/* Store code and message unless an earlier failure is already stored, and return code. The first
 * message wins: it is the cause, later ones are consequences. err may be NULL.
 * @param code  negative errno */
int hr_error_set(struct hr_error *err, int code, const char *format, ...) HR_PRINTF(3, 4);

/* strerror() of a negative errno, thread-safe; the string is static or in buf. */
const char *hr_strerror(int code, char *buf, size_t buf_bytes);

/* Copy of text that is safe to print: control and non-ASCII bytes become \xNN, and the end of what
 * does not fit becomes "...". Names in messages come from strangers' files.
 * @return buf */
const char *hr_printable(const char *text, char *buf, size_t buf_bytes);

/* ---- log ---------------------------------------------------------------------------- */

void hr_log(enum hr_log_level level, const char *format, ...) HR_PRINTF(2, 3);

/* ---- clock and arithmetic ----------------------------------------------------------- */

uint64_t hr_now_ns(void); /* CLOCK_MONOTONIC */
uint64_t hr_clock_ns(clockid_t clock);
void hr_sleep_ns(uint64_t ns); /* shorter where a signal comes */

static inline struct timespec hr_timespec(uint64_t ns)
{
    return (struct timespec){
        .tv_sec = (time_t) (ns / 1000000000u),
        .tv_nsec = (long) (ns % 1000000000u),
    };
}

/* a: a power of two */
static inline uint64_t hr_align_down(uint64_t v, uint64_t a)
{
    return v & ~(a - 1);
}

static inline uint64_t hr_align_up(uint64_t v, uint64_t a)
{
    return (v + a - 1) & ~(a - 1);
}

static inline uint64_t hr_div_ceil(uint64_t v, uint64_t d)
{
    return v / d + (v % d != 0);
}

static inline uint64_t hr_min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t hr_max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Whole MiB for messages, rounded up */
static inline unsigned long long hr_mib(uint64_t bytes)
{
    return hr_div_ceil(bytes, HR_MIB);
}

/* a * b + c, or UINT64_MAX where that is less */
static inline uint64_t hr_mul_add_u64(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t v;

    return __builtin_mul_overflow(a, b, &v) || __builtin_add_overflow(v, c, &v) ? UINT64_MAX : v;
}

/* ---- dtypes ------------------------------------------------------------------------- */

/* @return 0, or -ENOENT for a name that safetensors does not know; exact case. */
int hr_dtype_parse(const char *name, enum hr_dtype *ret_dtype);
/* True for F32, F16, BF16, F8_E4M3, F8_E5M2: those that weights may have. */
bool hr_dtype_is_computable(enum hr_dtype dtype);

/* Whole bytes of one element; not for the dtypes of 4 and 6 bits. */
static inline size_t hr_dtype_bytes(enum hr_dtype dtype)
{
    return hr_dtype_bits(dtype) / 8;
}

/* ---- trace -------------------------------------------------------------------------- */

/* What a slice of time was. The first of each track are the track's number in the file. */
enum hr_trace_kind {
    HR_TRACE_NONE,
    HR_TRACE_STEP,       /* a forward; a: its number, from 1                                   */
    HR_TRACE_READ,       /* a: offset, b: live bytes of the ring, index: shard, extra: latency */
    HR_TRACE_WAIT_SPACE, /* the disk, for ring space                                           */
    HR_TRACE_COPY,       /* a band to the device; as HR_TRACE_WEIGHT                           */
    HR_TRACE_WEIGHT,     /* products of a band; a: its first row, b: rows                      */
    HR_TRACE_PART,       /* of a forward; index: block or 0                                    */
    HR_TRACE_WAIT_DISK,  /* computing, for a weight                                            */
};

struct hr_trace_event {
    uint64_t begin_ns, end_ns; /* of hr_now_ns() */
    const char *name;          /* must outlive the trace; NULL: the kind says it */
    uint64_t bytes, a, b, extra;
    uint32_t index;
    uint32_t kind; /* last: it publishes the rest */
};

/* Take the memory for n events, or for as many as the trace may have; again: nothing.
 * @return 0 or -ENOMEM */
int hr_trace_reserve(struct hr_trace *trace, uint64_t n_events);
/* Bytes that hr_trace_reserve() would take; trace NULL: 0. */
uint64_t hr_trace_reserve_bytes(const struct hr_trace *trace, uint64_t n_events);
/* From any thread; trace NULL: does nothing. */
void hr_trace_add(struct hr_trace *trace, const struct hr_trace_event *event);
/* Events from 0 on; false: no more. ret_event->kind is HR_TRACE_NONE where one is in the making. */
bool hr_trace_get(const struct hr_trace *trace, uint64_t idx, struct hr_trace_event *ret_event);
uint64_t hr_trace_dropped(const struct hr_trace *trace);
uint64_t hr_trace_origin_ns(const struct hr_trace *trace);

/* ---- this process ------------------------------------------------------------------- */

struct hr_memory {
    uint64_t resident_bytes; /* VmRSS + HugetlbPages: all that the process holds now */
    uint64_t peak_bytes;     /* VmHWM + HugetlbPages                                 */
};

/* Zeros when /proc is not there. */
struct hr_memory hr_memory_now(void);

/* What this process could still take, bytes: of the machine, and within the limits of its control
 * groups; UINT64_MAX where neither is said. */
struct hr_room {
    uint64_t available_bytes, total_bytes; /* of the machine; 0: not said */
    /* Of the group with the least left, its own or one above; limit_bytes UINT64_MAX: no limit. */
    uint64_t limit_bytes, used_bytes;
    uint64_t room_bytes; /* what the machine has or what is left of the limit, the smaller */
};
/* @param root  what stands before /proc and /sys: "", or a made-up tree */
struct hr_room hr_room_read(const char *root);

/* The value of an environment variable; NULL where it is not set, or empty. */
const char *hr_env(const char *name);

/* CPUs this process may run on, at least 1. */
unsigned hr_n_cpus(void);

/* A thread that leaves all signals to the caller's threads. `name` up to 15 characters; stack_bytes
 * 0: the system's choice. @return 0 or a negative errno */
int hr_thread_start(pthread_t *ret_thread, const char *name, size_t stack_bytes,
                    void *(*fn)(void *), void *arg);

/* ---- libraries that are looked for when they are wanted --------------------------------- */

/* A function of a library, and where its address goes in a table of pointers. */
struct hr_symbol {
    const char *name;
    size_t at;
    bool is_optional; /* NULL where it is not there */
};

/* The first of these that can be loaded. A name without a folder is looked for as the linker does:
 * LD_LIBRARY_PATH, and what is loaded already, come first. @return NULL: none */
void *hr_library_open(const char *const *names, size_t n);
/* Fill in the table. @return NULL, or the name of a function that is missing: the table is then of
 * no use */
const char *hr_library_bind(void *library, void *table, const struct hr_symbol *symbols, size_t n);

/* Whether a library is there, for the whole process; a static one begins as HR_LIBRARY_INIT. */
struct hr_library {
    pthread_mutex_t mutex;
    bool is_loaded;
};
#define HR_LIBRARY_INIT                  \
    {                                    \
        PTHREAD_MUTEX_INITIALIZER, false \
    }
/* Call load() unless it has worked before; several threads may ask at once.
 * @return 0, or load()'s error */
int hr_library_load(struct hr_library *library, int (*load)(struct hr_error *err),
                    struct hr_error *err);

/* ---- /proc and /sys ------------------------------------------------------------------- */

/* First line of the file whose path is made as by printf, less white space around it.
 * @return it is not empty; else buf is "" */
bool hr_sys_line(char *buf, size_t buf_bytes, const char *format, ...) HR_PRINTF(3, 4);
/* The whole number that such a file begins with, or `unknown`. */
uint64_t hr_sys_number(uint64_t unknown, const char *format, ...) HR_PRINTF(2, 3);
/* The number behind `field`, such as "MemFree:", at the start of a line of a file; or `unknown`. */
uint64_t hr_sys_field(uint64_t unknown, const char *path, const char *field);
/* The same for n fields in one reading, so that they are of one moment; a value whose field is not
 * there is left as it is. */
void hr_sys_fields(const char *path, const char *const *fields, uint64_t *values, size_t n);

struct hr_pci_link {
    char address[32];      /* such as "0000:01:00.0"                          */
    double gtps, gtps_max; /* of a lane, 10^9 transfers a second: now, at best */
    unsigned width, width_max;
};
/* The link of the device whose folder in /sys/devices this is. @return it says so */
bool hr_pci_link_read(struct hr_pci_link *ret_link, const char *folder);
/* What such a link carries, in GB/s, packets not counted. */
double hr_pci_link_gbps(double gtps, unsigned width);

#endif /* HR_COMMON_H */
