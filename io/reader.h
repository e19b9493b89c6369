/* SPDX-License-Identifier: Apache-2.0 */
/* reader.h -- inside io/: placement of ranges in the ring, and the reader's own state.
 *
 * Positions in the ring are virtual: they only grow, byte `pos` lies at pos modulo the ring's size,
 * and what is live is always within one ring's size, [tail, head).
 */
#ifndef HR_IO_READER_H
#define HR_IO_READER_H

#include <stdatomic.h>

#include "io/backend.h"

/* ---- placement, reader_plan.c ------------------------------------------------------- */

enum {
    HR_PLAN_GAP_BYTES_MAX = 64 << 10, /* unused bytes that are read rather than skipped       */
    HR_PLAN_WINDOW_MIN = 64,          /* ranges placed and not yet released                   */
    HR_PLAN_WINDOW_MAX = 16384,
};

struct hr_plan_place {
    uint64_t pos;   /* of the range's first byte                                             */
    uint64_t begin; /* of what is kept for it: aligned, with the gap before it, into which a
                       block that is still being read may reach                              */
};

/* Ranges are numbered through all passes by `seq`; the first n_once are part of the first pass
 * only, see hr_plan_range_idx(). They are placed in order. One that follows its predecessor in the
 * same file directly, or after a small gap, continues its run, in which positions differ from file
 * offsets by a constant; any other starts a new run. A run is read in blocks that end at multiples
 * of block_bytes in the file, and lies in one piece in the ring. */
struct hr_plan {
    const struct hr_read_range *ranges; /* borrowed */
    uint32_t n_ranges;
    uint32_t n_once;  /* less than n_ranges */
    uint64_t n_total; /* ranges in all passes; UINT64_MAX: without end */
    uint64_t ring_bytes;
    uint64_t align_bytes; /* of reads and of the ring's size; a power of two */
    uint64_t block_bytes; /* a power of two, a multiple of align_bytes       */

    uint64_t seq;        /* next range to place                               */
    uint64_t first_live; /* oldest range not yet released                     */
    uint64_t head;       /* end of the aligned cover of all placed ranges     */
    uint64_t tail;       /* from here on up to head nothing may be overwritten */
    uint64_t cut;        /* blocks have been given out up to here             */
    uint64_t run_base;   /* position of the run's file's byte 0, modulo 2^64  */
    uint64_t run_limit;  /* the run must end here: a multiple of ring_bytes   */

    struct hr_plan_place *places; /* [window], of the live ranges */
    uint32_t window;              /* a power of two               */
};

struct hr_plan_block {
    uint64_t pos;
    uint64_t offset_bytes;
    uint32_t size_bytes; /* aligned; may reach beyond the end of the file */
    uint32_t file_idx;
};

enum hr_plan_result {
    HR_PLAN_BLOCK, /* *ret_block is to be read                               */
    HR_PLAN_HOLD,  /* a part of a block, which more ring space would lengthen */
    HR_PLAN_FULL,  /* no ring space for the next range                       */
    HR_PLAN_END,   /* all has been given out                                 */
};

/* The other fields of the first group are filled in; n_passes 0: without end. @return 0 or -ENOMEM.
 */
int hr_plan_init(struct hr_plan *plan, uint32_t n_passes);
void hr_plan_uninit(struct hr_plan *plan);

/* The next block to read, placing ranges as it needs them.
 * @param may_hold  give HR_PLAN_HOLD rather than a part of a block where that may help */
enum hr_plan_result hr_plan_next(struct hr_plan *plan, bool may_hold,
                                 struct hr_plan_block *ret_block);

/* The ranges before first_live are released: their space is free. */
void hr_plan_release(struct hr_plan *plan, uint64_t first_live);

static inline uint32_t hr_plan_range_idx(const struct hr_plan *plan, uint64_t seq)
{
    const uint32_t n_each = plan->n_ranges - plan->n_once;

    return seq < plan->n_ranges ? (uint32_t) seq
                                : plan->n_once + (uint32_t) ((seq - plan->n_once) % n_each);
}

static inline uint32_t hr_plan_pass_idx(const struct hr_plan *plan, uint64_t seq)
{
    const uint32_t n_each = plan->n_ranges - plan->n_once;

    return seq < plan->n_ranges ? 0 : (uint32_t) ((seq - plan->n_once) / n_each);
}

static inline const struct hr_read_range *hr_plan_range(const struct hr_plan *plan, uint64_t seq)
{
    return &plan->ranges[hr_plan_range_idx(plan, seq)];
}

/* Position of the first byte of a live range. */
static inline uint64_t hr_plan_pos(const struct hr_plan *plan, uint64_t seq)
{
    hr_assert(seq >= plan->first_live && seq < plan->seq);
    return plan->places[seq & (plan->window - 1)].pos;
}

/* ---- the reader ---------------------------------------------------------------------- */

/* A read in the making. Blocks are numbered in order of position. */
struct hr_block {
    struct hr_plan_block at;
    uint32_t need_bytes; /* that must arrive: less than at.size_bytes at the end of a file       */
    uint32_t done_bytes; /* that have arrived, aligned down where the file is direct             */
    uint32_t ask_bytes;  /* of the next or present request, from done_bytes on                   */
    uint32_t tries;      /* requests without progress since done_bytes last grew                 */
    uint64_t refused_ns; /* when the kernel first refused one of them; 0: it has not             */
    uint64_t asked_ns;   /* when the present request was submitted                               */
    bool finished;
    bool asked_direct; /* by the present request    */
    bool asked_again;  /* the smallest part failed once already */
};

/* Requests to one disk. Blocks are cut in the order of use; each waits for a place among the reads
 * of its disk. */
struct hr_device_queue {
    uint64_t device; /* st_dev                                                            */
    uint64_t *items; /* [n_blocks] blocks with a request to submit, circular              */
    uint32_t first, n;
    uint32_t in_flight;
};

enum { HR_LATENCY_BUCKETS = 62 * 8 };
struct hr_latencies {
    atomic_uint_fast64_t counts[HR_LATENCY_BUCKETS];
};

/* What the reader's thread and the caller share; guarded by mutex. */
struct hr_handover {
    pthread_mutex_t mutex;
    pthread_cond_t caller_wakes; /* ranges are ready, the reader has started, failed or is stuck */
    pthread_cond_t reader_wakes; /* space is free, there is a list of ranges, or stop            */
    /* PAUSING: all that the thread was given has been used; it goes back to IDLE. */
    enum {
        HR_READER_SETUP,
        HR_READER_IDLE,
        HR_READER_RUNNING,
        HR_READER_PAUSING,
        HR_READER_STOPPING
    } state;
    uint64_t n_ready;    /* ranges whose bytes have arrived               */
    uint64_t n_taken;    /* handed out                                    */
    uint64_t first_live; /* oldest range not yet given back               */
    uint8_t *released;   /* [window] of the ranges first_live..n_taken    */
    bool caller_waits;
    bool reader_idles;
    bool stuck;                                /* for want of space, with nothing in flight */
    uint64_t stuck_at;                         /* first_live when it was found so           */
    struct hr_error failure;                   /* code 0: none. Final once it is set        */
    struct hr_stream_stats stats;              /* the reader's, as of its last synchronisation */
    uint64_t units, bytes_used, stall_disk_ns; /* of all starts */
};

struct hr_reader {
    struct hr_reader_params params;
    struct hr_io_file *files; /* [params.n_files] */
    uint32_t n_files_open;
    struct hr_ring ring;
    pthread_t thread;
    bool thread_started;
    atomic_bool interrupted;
    struct hr_handover *shared;

    /* From here on the thread's own (set up before it runs). */
    struct hr_io *io;
    struct hr_plan plan;
    struct hr_block *blocks; /* [n_blocks] first_block..next_block are in the making */
    uint32_t n_blocks;       /* a power of two                                       */
    uint64_t first_block, next_block;
    /* One backend and one thread for all disks, with a queue and a depth for each: threads would
     * each need their share of the ring, and what share that is changes from range to range. */
    struct hr_device_queue devices[HR_DEVICES_MAX];
    uint32_t n_devices;
    uint32_t *file_device; /* [params.n_files]                                      */
    uint32_t queue_n;      /* of all disks                                          */
    uint32_t in_flight;    /* of all disks                                          */
    uint32_t depth_max;    /* that the backend was made for                         */
    uint32_t depth;        /* at present: of params.depth or, short of memory, less */
    uint32_t good_reads;   /* since depth was changed                               */
    bool lacks_memory;     /* the kernel says so, since depth was last looked at    */
    bool wants_pause;      /* before the next try of what the kernel refused        */
    bool told_memory;      /* a warning has said so                                 */
    uint64_t refused_ns;   /* since when the kernel does not do anything; 0: it does */
    uint64_t good_ns;      /* when the last read came back with bytes               */
    uint64_t failed_block; /* UINT64_MAX: none. Earlier blocks are still finished   */
    struct hr_error failure;
    uint64_t n_ready;
    bool caller_waits; /* as of the last synchronisation */
    struct hr_stream_stats stats;
    uint64_t busy_since_ns; /* while in_flight > 0 */
    uint64_t answered_ns;   /* when the last read came back, or the first of none in flight began */
    bool is_slow;           /* a warning has told that none comes                               */
    /* Reads in flight have not come back within the timeout and are not waited for. Whatever they
     * may still touch is never freed. Read by others only after the thread has ended. */
    bool abandoned;
    struct hr_reader *next_abandoned;
    uint64_t latency_sum_ns;
    uint64_t traced_ns;            /* end of the last slice of the disk in the trace */
    struct hr_latencies latencies; /* written by the thread, read by anyone */
};

static inline struct hr_block *hr_reader_block(struct hr_reader *reader, uint64_t block_idx)
{
    return &reader->blocks[block_idx & (reader->n_blocks - 1)];
}

static inline struct hr_device_queue *hr_reader_queue(struct hr_reader *reader, uint32_t file_idx)
{
    return &reader->devices[reader->file_device[file_idx]];
}

/* ---- latency.c -------------------------------------------------------------------------- */

void hr_latency_add(struct hr_latencies *latencies, uint64_t ns);
/* share 0.5: the median. 0 when nothing was added. */
uint64_t hr_latency_percentile(const struct hr_latencies *latencies, double share);

/* ---- reader_done.c: completions -------------------------------------------------------- */

/* Take in one completion that came at now_ns: count it, and queue what remains of its block. */
void hr_reader_complete(struct hr_reader *reader, const struct hr_io_completion *done,
                        uint64_t now_ns);
/* Queue the next request of a block, in front where it is a repetition. */
void hr_reader_enqueue(struct hr_reader *reader, uint64_t block_idx, bool in_front);
/* The block cannot be read from done_bytes on: `size_bytes` there are bad. Blocks before it are
 * still read, later ones are given up. */
void hr_reader_fail(struct hr_reader *reader, uint64_t block_idx, uint64_t size_bytes, int code,
                    const char *what);
/* Give up when nothing has come back for the timeout. */
void hr_reader_check_hang(struct hr_reader *reader);
/* The kernel takes no more requests just now (`submitting`), or tells of none. */
void hr_reader_refused(struct hr_reader *reader, int code, bool submitting);
/* Once a round: fewer reads at a time where the kernel has lacked memory since the last, and more
 * again when it has not for a while. */
void hr_reader_adapt_depth(struct hr_reader *reader);

/* ---- reader.c ------------------------------------------------------------------------------ */

void *hr_reader_thread(void *reader);

static inline bool hr_reader_interrupted(const struct hr_reader *reader)
{
    return atomic_load_explicit(&reader->interrupted, memory_order_relaxed);
}

#endif /* HR_IO_READER_H */
