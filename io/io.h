/* SPDX-License-Identifier: Apache-2.0 */
/* io.h -- bytes of files into one ring of memory, in order, as fast as the disk allows.
 *
 * The one idea: the caller gives a list of byte ranges in the order in which it will use them; a
 * reader thread walks the list, joins neighbours into large reads, places each range in the ring
 * congruent to its file offset (modulo the disk's alignment), so that a range is a view into the
 * ring and no byte is ever moved, and keeps the disk busy as long as the ring has room. The caller
 * takes ranges in order and gives them back; freed space is read into again at once.
 *
 *   reader_plan.c  ranges -> placement in the ring -> aligned block reads (pure, no I/O)
 *   ring.c         the memory: huge pages where there are any, touched when created
 *   reader.c       the thread: depth, hand-over, statistics
 *   reader_api.c   the functions below
 *   reader_done.c  what becomes of a read: short ones, repetitions, bad sectors, lost O_DIRECT
 *   backend.c      choice of a backend; io_uring.c, io_aio.c, io_pread.c, io_cufile.c, io_null.c
 *                  and io_fault.c implement it; io_threads.c helps those whose reads block
 *   file.c         O_DIRECT and its alignment, asked from the file itself
 *   page_cache.c   what of a file is in memory already
 *   extents.c      whether a part of a file has bytes on a disk at all
 *   device.c       which disk that is
 *   disk.c         what sysfs says of it
 *   trial.c        what works here, found by doing it
 *   latency.c      percentiles
 *
 * Inside the folder io/backend.h holds the backend's interface; other folders need only this file.
 */
#ifndef HR_IO_H
#define HR_IO_H

#include "common/common.h"

struct hr_read_file {
    int fd;           /* open for reading; borrowed, stays open and is never read through */
    const char *path; /* for messages                                                      */
    uint64_t size_bytes;
};

/* size_bytes >= 1, at most HR_RANGE_BYTES_MAX, inside the file. */
struct hr_read_range {
    uint32_t file_idx;
    uint64_t offset_bytes;
    uint64_t size_bytes;
};

enum {
    HR_RANGE_BYTES_MAX = 32 << 20,
    HR_BLOCK_BYTES_MIN = 64 << 10,
    HR_BLOCK_BYTES_MAX = 32 << 20,
    HR_DEPTH_MAX = 1024,
    HR_DEVICES_MAX = 8,            /* with a depth of their own; others share the last one */
    HR_ALIGN_BYTES_MAX = 64 << 10, /* of O_DIRECT; a file that wants more is read buffered */
};

/* Memory of a device, for backends that read into it past the host's: the ring lies there then, and
 * slices are addresses of the device. */
struct hr_reader_memory {
    void *base; /* aligned to 64 KiB, as is the size */
    uint64_t size_bytes;
    /* Called first by each thread that hands addresses of the device to other libraries.
     * @return 0 or -ENODEV */
    int (*begin_thread)(void *user);
    /* The reader could not be taken down: reads may write into the memory for good. */
    void (*abandon)(void *user);
    void *user;
};

struct hr_reader_params {
    const struct hr_read_file *files; /* borrowed until destroy */
    uint32_t n_files;
    const struct hr_reader_memory *memory; /* NULL: the host's, taken by the reader; borrowed until
                                              destroy. Files are read directly then              */
    uint64_t ring_bytes;  /* > 0, rounded up to 2 MiB; without memory                     */
    uint32_t block_bytes; /* 0: default; a power of two between the limits                */
    uint32_t depth;       /* of each device; 0: default; 1..HR_DEPTH_MAX                  */
    const char *io;       /* backend; NULL or "auto": HEADRACE_IO, else the first that works.
                             A backend that was named is never substituted                */
    enum hr_direct direct;
    uint32_t timeout_s; /* of a disk without any answer; 0: HR_TIMEOUT_S_DEFAULT; HR_TIMEOUT_NONE */
    bool small_pages;   /* no huge pages for the ring */
    /* Writes what a range is ("tensor x, rows a to b") for error messages; NULL: nothing. */
    void (*describe)(void *user, uint32_t range_idx, char *buf, size_t buf_bytes);
    void *describe_user;
    struct hr_trace *trace; /* borrowed until destroy; NULL: none */
};

/* A range whose bytes have arrived. */
struct hr_slice {
    uint32_t range_idx;
    uint32_t pass_idx;
    const void *data;
    uint64_t ticket; /* for hr_reader_release() */
};

/* As a backend's name: the first that works, whatever the environment says. */
#define HR_IO_FIRST "first"

/* Whether the backend that this name, or HEADRACE_IO, stands for reads into memory of a device. */
bool hr_io_reads_into_device(const char *io);

struct hr_reader;

/* Take the ring, start the thread, which opens the backend and probes it by reading one block, and
 * wait for its verdict; nothing else is read yet. Reports once, at HR_LOG_INFO, which backend was
 * taken and at HR_LOG_WARN what was rejected, with errno and remedy.
 * @return 0; -EINVAL parameters out of range, -ENODEV no backend works (names all reasons),
 *         -EOPNOTSUPP HR_DIRECT_ON where a file's system refuses it, or a backend for the other
 * kind of memory, -ENOMEM. */
int hr_reader_create(struct hr_reader **ret_reader, const struct hr_reader_params *params,
                     struct hr_error *err);

/* The ring, for devices that copy out of it: memory to be registered with them. */
void hr_reader_ring(const struct hr_reader *reader, void **ret_base, size_t *ret_bytes);

/* Nothing was given yet, or all of it has been handed out and given back. */
bool hr_reader_at_rest(const struct hr_reader *reader);

/* Read in other blocks from the next hr_reader_start() on.
 * @param depth  at most what the reader was created with
 * @return 0; -EINVAL out of range, -EBUSY ranges given before are not all used and released */
int hr_reader_set_blocks(struct hr_reader *reader, uint32_t block_bytes, uint32_t depth,
                         struct hr_error *err);

/* Start the thread on `ranges`, n_passes times over (0: without end); the first n_once of them are
 * read in the first pass only. Again once all of that has been handed out and released.
 * @param ranges  borrowed until the next start or destroy
 * @return 0; -EBUSY it has not; -EINVAL n is not more than n_once, or the ring is smaller than
 *         hr_reader_ring_bytes_min(); -ENOMEM */
int hr_reader_start(struct hr_reader *reader, const struct hr_read_range *ranges, uint32_t n,
                    uint32_t n_once, uint32_t n_passes, struct hr_error *err);

/* The smallest ring that can stream these ranges when the caller holds one at a time. */
uint64_t hr_reader_ring_bytes_min(const struct hr_read_range *ranges, uint32_t n);

/* Wait for the next range in order.
 * @return 1; 0 after the last; -EIO and others with file, byte range and describe()'s words;
 *         -ETIMEDOUT; -ECANCELED; -EDEADLK the ranges still held leave no room for the next. */
int hr_reader_next(struct hr_reader *reader, struct hr_slice *ret_slice, struct hr_error *err);

/* In any order, each once; space becomes free in the order of the ranges. */
void hr_reader_release(struct hr_reader *reader, uint64_t ticket);

/* Counters so far; see headrace.h. May be called while streaming. */
void hr_reader_get_stats(const struct hr_reader *reader, struct hr_stream_stats *ret_stats);

/* Is this file read with O_DIRECT at present? */
bool hr_reader_file_direct(const struct hr_reader *reader, uint32_t file_idx);

/* Bytes of this part of a file that lie in the page cache; 0 where the kernel does not say. */
uint64_t hr_io_cached_bytes(int fd, uint64_t offset_bytes, uint64_t size_bytes);

/* What a part of a file would measure; see headrace.h.
 * @return 0; -EINVAL no part of the file, -ENOMEM, or the error of open() */
int hr_io_range_state(const struct hr_read_file *source, uint64_t offset_bytes, uint64_t size_bytes,
                      struct hr_range_state *ret_state, struct hr_error *err);

/* The disk of a file, the same after a reboot where the disk has a serial number. As sysfs has it:
 * print it through hr_printable(). */
struct hr_device_identity {
    char device[128]; /* such as "nvme0n1 S4EWNX0R123456"; else the filesystem's id, or st_dev */
    char filesystem[16];
    char kernel[65];
};
/* @return 0 or a negative errno */
int hr_io_device_identity(int fd, struct hr_device_identity *ret_identity);

/* What sysfs says of one disk. 0, "": it does not say. */
struct hr_disk {
    char name[32]; /* such as "nvme0n1" */
    char model[48];
    char scheduler[32]; /* the one in use */
    uint32_t n_requests, max_segments, max_sectors_kib, max_hw_sectors_kib, read_ahead_kib;
    bool spins;      /* or says so: virtual disks do, whatever lies behind them */
    bool is_virtual; /* of a virtual machine */
    bool has_link;
    struct hr_pci_link link; /* of the disk, where it has one of its own: NVMe */
    int node;                /* NUMA; -1: not said */
};

enum { HR_DISKS_MAX = 8 };

/* The disks under an open file, those under a RAID, LVM or encrypted volume included.
 * @param root  "", or the folder of a made-up /proc and /sys
 * @return how many, at most HR_DISKS_MAX; 0: none is known (network, memory, overlay), or there is
 *         no sysfs */
uint32_t hr_io_disks(struct hr_disk ret_disks[HR_DISKS_MAX], const char *root, int fd);

struct hr_io_backend_trial {
    const char *name;
    struct hr_error why_not; /* code 0: a read through it came back */
    uint64_t pinned_bytes;   /* of the ring, registered with the kernel */
};

enum { HR_BACKENDS_MAX = 4 };

struct hr_io_trial {
    uint64_t ring_bytes, huge_bytes; /* that was taken for it; of it in huge pages */
    const char *not_direct;          /* NULL: O_DIRECT works; else why not         */
    uint32_t align_bytes;            /* of direct reads                            */
    /* Those that are chosen without being named, in order of preference, as far as this build has
     * them. */
    struct hr_io_backend_trial backends[HR_BACKENDS_MAX];
    uint32_t n_backends;
};

/* Take a ring, open the file with O_DIRECT, read its first block through each backend, and give all
 * of it back.
 * @return 0, also when nothing works; -ENOMEM, or the error of open() */
int hr_io_try(struct hr_io_trial *ret_trial, const struct hr_read_file *file, uint64_t ring_bytes,
              struct hr_error *err);

/* Async-signal-safe. Waiting and later hr_reader_next() return -ECANCELED within 100 ms. */
void hr_reader_interrupt(struct hr_reader *reader);

/* Waits for reads in flight, joins the thread, frees. After a disk gave no answer within the
 * timeout the ring, the descriptors and the backend stay for good: see reader_api.c. */
void hr_reader_destroy(struct hr_reader **reader);

#endif /* HR_IO_H */
