/* SPDX-License-Identifier: Apache-2.0 */
/* io_testing.h -- for the tests of io/: files with known bytes, and a caller that checks them.
 *
 * Byte i of file f is a function of (f, i), so that a byte from a wrong place is seen.
 */
#ifndef HR_IO_TESTING_H
#define HR_IO_TESTING_H

#include "io/backend.h"

enum { IO_TESTING_FILES_MAX = 4 };

struct io_files {
    char dir[64];
    char paths[IO_TESTING_FILES_MAX][96];
    struct hr_read_file files[IO_TESTING_FILES_MAX];
    uint32_t n;
};

/* Files of these sizes in a new folder below `parent`; fails the test if that cannot be done. */
void io_files_make(struct io_files *set, const char *parent, const uint64_t *sizes, uint32_t n);
void io_files_remove(struct io_files *set);
/* In a bare root /dev/shm is an ordinary folder. */
bool io_is_tmpfs(const char *folder);

/* Drive these files, which are the test's own, out of the page cache, or else AUTO reads them from
 * there. */
void io_uncache(const struct hr_read_file *files, uint32_t n);

/* Do n bytes equal those of the file from offset on? Prints the first that does not. */
bool io_bytes_ok(uint32_t file_idx, uint64_t offset, const void *data, uint64_t n);

uint32_t io_random(uint64_t *state); /* 32 bits */
/* n ranges: overlapping, backwards, adjacent, with gaps, of 1 byte, up to the end of the file. */
void io_random_ranges(const struct io_files *set, struct hr_read_range *ranges, uint32_t n,
                      uint32_t size_max, uint64_t *random);

struct io_caller {
    uint32_t
        hold_max; /* ranges held at a time; 0: each is given back before the next is asked for */
    bool shuffle; /* give back in random order */
    uint32_t sleep_us; /* after each range */
    uint64_t seed;
    uint64_t n_taken; /* out: ranges that came */
};

/* Take ranges until the end or an error, check the order and every byte.
 * @return what the last hr_reader_next() did */
int io_caller_run(struct io_caller *caller, struct hr_reader *reader,
                  const struct hr_read_range *ranges, uint32_t n, struct hr_error *err);

/* Uncache where direct is AUTO, create, start, run and destroy. *ret_stats may be NULL. */
int io_stream_once(const struct hr_reader_params *params, const struct hr_read_range *ranges,
                   uint32_t n, uint32_t n_passes, struct io_caller *caller,
                   struct hr_stream_stats *ret_stats, struct hr_error *err);

/* Lines logged since, for tests of what is said and how often. */
void io_log_capture(enum hr_log_level level);
uint32_t io_log_count(const char *part); /* lines that contain it */
void io_log_release(void);

#endif /* HR_IO_TESTING_H */
