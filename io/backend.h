/* SPDX-License-Identifier: Apache-2.0 */
/* backend.h -- inside io/: one interface for every way of getting file bytes into memory, the
 * files it reads and the memory it reads into.
 *
 * A backend is a const struct of functions plus private state. The reader above it validates,
 * cuts, retries and counts; a backend only moves bytes and never interprets a result. To add one:
 * copy io_null.c, implement the hooks, put it into backends[] in backend.c, fastest first.
 *
 * Ownership:  a request's buffer belongs to the backend from submit() until reap() returns its
 *             completion.
 * Threads:    an instance is created, used and destroyed on one thread.
 * Errors:     0 or a count, or a negative errno; callers never look at errno.
 */
#ifndef HR_IO_BACKEND_H
#define HR_IO_BACKEND_H

#include <pthread.h>

#include "io/io.h"

/* ---- files, file.c ------------------------------------------------------------------ */

enum { HR_IO_ALIGN_BYTES = 4096 }; /* smallest alignment used: any disk's, and a page */

/* A file as the backends read it: the caller's descriptor opened anew, so that flags and
 * read-ahead state are ours alone. */
struct hr_io_file {
    const struct hr_read_file *source; /* borrowed                                             */
    int fd;                            /* ours                                                 */
    int fd_retired;                    /* -1, or the O_DIRECT descriptor that fd replaced: reads
                                          may still be under way on it, so it is closed last   */
    uint32_t align_bytes;              /* of offset, size and address; >= HR_IO_ALIGN_BYTES    */
    uint64_t device;                   /* st_dev                                               */
    _Atomic bool direct;
    bool cached; /* buffered because it lies in the page cache                                 */
    const char *why_buffered; /* why O_DIRECT was wanted and does not work; NULL otherwise     */
};

/* Open `source` again for streaming, with O_DIRECT where `direct` and the filesystem agree. AUTO
 * also reads those buffered that nearly all lie in the page cache.
 * @return 0; -EOPNOTSUPP HR_DIRECT_ON is refused here, -ESTALE the path now names another file (and
 *         /proc is missing), or the error of open(). */
int hr_io_file_open(struct hr_io_file *ret_file, const struct hr_read_file *source,
                    enum hr_direct direct, struct hr_error *err);
/* Open `source` again with O_DIRECT, whatever lies in the page cache.
 * @return as above; -EOPNOTSUPP without a message, *ret_why says it */
int hr_io_file_open_direct(struct hr_io_file *ret_file, const struct hr_read_file *source,
                           const char **ret_why, struct hr_error *err);
/* Read without O_DIRECT from now on. Reads in flight keep the old descriptor. */
int hr_io_file_go_buffered(struct hr_io_file *file, struct hr_error *err);
void hr_io_file_close(struct hr_io_file *file);

/* ---- disks, disk.c ------------------------------------------------------------------ */

/* The folder in /sys/devices of a partition becomes that of its disk; another stays. */
void hr_io_whole_disk(char *folder);

/* ---- memory, ring.c ----------------------------------------------------------------- */

#define HR_RING_UNIT_BYTES (2 * HR_MIB) /* a huge page */

struct hr_ring {
    uint8_t *base; /* aligned to HR_RING_UNIT_BYTES */
    uint64_t size_bytes;
    uint64_t huge_bytes; /* of them in huge pages, as far as /proc tells */
};

/* Map and touch size_bytes (a multiple of HR_RING_UNIT_BYTES). @return 0 or -ENOMEM. */
int hr_ring_init(struct hr_ring *ring, uint64_t size_bytes, bool huge_pages, struct hr_error *err);
void hr_ring_uninit(struct hr_ring *ring); /* a zeroed ring is fine */

/* ---- backends ----------------------------------------------------------------------- */

struct hr_io_request {
    uint64_t offset_bytes; /* aligned where the file is direct, as size and buf               */
    uint64_t tag;          /* comes back in the completion                                    */
    void *buf;             /* inside the registered memory                                    */
    uint32_t size_bytes;   /* 1..HR_BLOCK_BYTES_MAX                                           */
    uint32_t file_idx;
};

struct hr_io_completion {
    uint64_t tag;
    int32_t result; /* bytes read, perhaps fewer than asked, or a negative errno */
};

/* Whether a completion says that the disk could not read a place. */
bool hr_io_is_disk_error(int code);

enum { HR_IO_BATCH = 64 };         /* most requests or completions per call */
#define HR_IO_TAG_PROBE UINT64_MAX /* the read that tries a backend out */

/* Borrowed until destroy. */
struct hr_io_params {
    const struct hr_io_file *files;
    uint32_t n_files;
    uint32_t depth; /* requests in flight at most       */
    void *buf;      /* all requests read into this range */
    size_t buf_bytes;
    const struct hr_reader_memory *memory; /* where buf is a device's; else NULL */
    uint32_t block_bytes;                  /* size of the probing read */
    uint64_t timeout_ns;                   /* for the probing read; 0: as long as it takes */
};

struct hr_io {
    const struct hr_io_backend *backend;
    struct hr_io_params params;
    void *priv;            /* backend->priv_bytes, zeroed                         */
    uint64_t pinned_bytes; /* of params.buf, registered with the kernel by init() */
};

/* What a backend can read into. */
enum hr_io_memory { HR_IO_MEMORY_HOST, HR_IO_MEMORY_DEVICE };

struct hr_io_backend {
    const char *name;
    enum hr_io_memory memory;
    size_t priv_bytes;

    /* Required. On failure nothing stays behind and *err says why and what helps. */
    int (*init)(struct hr_io *io, struct hr_error *err);
    /* Required. Nothing is in flight. */
    void (*uninit)(struct hr_io *io);
    /* Required. Queue up to n <= HR_IO_BATCH requests; the caller keeps to the depth. They need not
     * be under way before the next reap(). Returns how many were taken, or -ENOMEM, -EAGAIN,
     * -EBUSY when it was none: collect completions first. */
    int (*submit)(struct hr_io *io, const struct hr_io_request *requests, uint32_t n);
    /* Required. Wait up to timeout_ns for a completion and return 1..max of them, or 0: none yet.
     * -ENOMEM, -EAGAIN, -EBUSY, -EINTR: none now, queued requests are kept; other errors are final.
     */
    int (*reap)(struct hr_io *io, struct hr_io_completion *done, uint32_t max, uint64_t timeout_ns);
    /* Optional. What a result of -EPROTO was, and what to do. @return buf */
    const char *(*words)(struct hr_io *io, char *buf, size_t buf_bytes);
    /* Optional. files[file_idx].fd has changed. */
    int (*file_changed)(struct hr_io *io, uint32_t file_idx);
};

extern const struct hr_io_backend hr_io_backend_uring;
extern const struct hr_io_backend hr_io_backend_aio;
extern const struct hr_io_backend hr_io_backend_pread;
extern const struct hr_io_backend hr_io_backend_cufile;
extern const struct hr_io_backend hr_io_backend_null;
extern const struct hr_io_backend hr_io_backend_null_device;
extern const struct hr_io_backend hr_io_backend_fault;

/* Bring up backend `name`, or with NULL or "auto" what HEADRACE_IO names, or else, as with
 * HR_IO_FIRST, the first of the list that can read the first block of a file. A named backend is
 * never substituted.
 * @return 0; -EINVAL no such name (the message lists them), -ENODEV none works (all reasons),
 *         -ETIMEDOUT the trial read has not come back: *ret_io is then the backend, which may still
 *         use its parameters and must never be destroyed; or the error of the named one. */
int hr_io_create(struct hr_io **ret_io, const char *name, const struct hr_io_params *params,
                 struct hr_error *err);
/* As above for one name, without a trial read. */
int hr_io_create_named(struct hr_io **ret_io, const char *name, const struct hr_io_params *params,
                       struct hr_error *err);
/* Bring up each backend that may be chosen without being named, read a block, and take it down.
 * params->timeout_ns is 0. */
uint32_t hr_io_try_backends(struct hr_io_backend_trial ret_trials[HR_BACKENDS_MAX],
                            const struct hr_io_params *params);
/* What to say of a result: the system's words for an errno, or the backend's own. @return buf */
const char *hr_io_words(struct hr_io *io, int code, char *buf, size_t buf_bytes);
/* Nothing may be in flight. Accepts a pointer to NULL. */
void hr_io_destroy(struct hr_io **io);

/* Longest sleep of a thread that waits, so that it notices an interruption; and the pause of one to
 * whom the kernel refuses what it asks for. */
enum { HR_IO_WAIT_NS = 100 * 1000000, HR_IO_PAUSE_NS = 1000000 };

/* A thread could not be started. @return code */
int hr_io_error_thread(int code, struct hr_error *err);

/* Waits that end by themselves: initialise a condition on the monotonic clock; wait on it
 * for at most wait_ns. */
void hr_io_cond_init(pthread_cond_t *cond);
void hr_io_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex, uint64_t wait_ns);

/* ---- fault injection, io_fault.c ----------------------------------------------------- */

/* The backend "fault" reads through another one and spoils some of the results, as a
 * comma-separated program says; the same program and order of requests give the same faults.
 *
 *   inner=NAME             the backend that reads: pread (default), io_uring
 *   seed=N                 of the random choices; default 1
 *   short=P                P % of the reads report fewer bytes; the bytes behind are overwritten
 *   eintr=P, eagain=P      P % fail so
 *   enomem=P, ebusy=P      P % of the submissions are refused so
 *   nomem=P                P % of the reads fail with ENOMEM
 *   eio=OFFSET[:TIMES]     reads over this byte of any file fail, the trial read too; TIMES 0 or
 *                          absent: for good
 *   errno=N                the number of the error with which they do; default EIO's
 *   hang=OFFSET            reads over this byte of any file never come back
 *   einval=1               reads from direct files fail with EINVAL
 *   eof=OFFSET             files end there
 *   delay=US               completions come up to US microseconds late
 *   reorder=1              and in random order
 *   trial=1                the trial read, too, meets all these; else only eio, errno and hang
 *
 * P 100 means always. The program is the last one given to hr_io_fault_program(), else that in the
 * environment variable HEADRACE_FAULTS. */
void hr_io_fault_program(const char *program); /* borrowed; NULL: back to the environment */

#endif /* HR_IO_BACKEND_H */
