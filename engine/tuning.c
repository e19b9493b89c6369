/* SPDX-License-Identifier: Apache-2.0 */
/* tuning.c -- measured block sizes and depths, kept for each disk; and what else is asked of the
 * disk under a checkpoint.
 *
 * The file's name is made of all that the figures depend on: disk, filesystem and kernel. A new
 * kernel finds nothing, and reads with the defaults until it has been measured.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "engine/checkpoint.h"
#include "engine/files.h"
#include "engine/tuning.h"
#include "formats/formats.h"
#include "io/io.h"

enum { TUNING_BYTES_MAX = 64 << 10, SHOWN_BYTES = 384 };

/* ---- whose figures, and where ------------------------------------------------------------- */

/* The shard whose disk counts: where most of the model lies on one of several disks, a shard of
 * that one. */
static uint32_t main_shard(const struct hr_checkpoint *checkpoint)
{
    uint64_t best_bytes = 0;
    uint32_t best = 0;

    for (uint32_t i = 0; i < hr_checkpoint_n_shards(checkpoint); i++) {
        struct stat st, other;
        uint64_t bytes = 0;

        if (fstat(hr_checkpoint_fd(checkpoint, i), &st) < 0)
            continue;
        for (uint32_t j = 0; j < hr_checkpoint_n_shards(checkpoint); j++)
            if (fstat(hr_checkpoint_fd(checkpoint, j), &other) == 0 && other.st_dev == st.st_dev)
                bytes += (uint64_t) other.st_size;
        if (bytes > best_bytes) {
            best_bytes = bytes;
            best = i;
        }
    }
    return best;
}

static int identify(const struct hr_checkpoint *checkpoint, struct hr_tuning *tuning,
                    struct hr_error *err)
{
    const uint32_t shard = main_shard(checkpoint);
    struct hr_device_identity id;
    char reason[128];
    const int r = hr_io_device_identity(hr_checkpoint_fd(checkpoint, shard), &id);

    if (r < 0)
        return hr_error_set(err, r, "%s: cannot tell its disk: %s",
                            hr_checkpoint_shard_shown(checkpoint, shard),
                            hr_strerror(r, reason, sizeof(reason)));
    hr_printable(id.device, tuning->device, sizeof(tuning->device));
    hr_printable(id.filesystem, tuning->filesystem, sizeof(tuning->filesystem));
    hr_printable(id.kernel, tuning->kernel, sizeof(tuning->kernel));
    return 0;
}

/* "$XDG_CACHE_HOME/headrace/disk-0123456789abcdef.json"; the XDG base directory specification says
 * that a relative value is to be ignored. @return NULL: neither variable says where */
static char *tuning_path(const struct hr_tuning *tuning)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    const bool has_cache = cache && cache[0] == '/';
    char key[256], *path;

    if (!has_cache && !(home && home[0] == '/'))
        return NULL;
    snprintf(key, sizeof(key), "%s\n%s\n%s", tuning->device, tuning->filesystem, tuning->kernel);
    if (asprintf(&path, "%s%s/headrace/disk-%016llx.json", has_cache ? cache : home,
                 has_cache ? "" : "/.cache",
                 (unsigned long long) XXH3_64bits(key, strlen(key))) < 0)
        return NULL;
    return path;
}

/* ---- load and save ------------------------------------------------------------------------ */

/* @return 1, 0 there is no such file, or a negative errno */
static int load_from(const char *path, const struct hr_tuning *here, struct hr_tuning *ret_tuning,
                     struct hr_error *err)
{
    struct hr_error reading = {0};
    char shown[SHOWN_BYTES], *text;
    size_t bytes;
    int r = hr_file_read_text(path, "the figures of this disk", TUNING_BYTES_MAX, &text, &bytes,
                              &reading);

    hr_printable(path, shown, sizeof(shown));
    if (r == -ENOENT || r == -ENOTDIR)
        return 0;
    if (r < 0)
        return hr_error_set(err, r, "%s", reading.message);
    r = hr_tuning_parse(ret_tuning, text, bytes, shown, err);
    free(text);
    if (r < 0)
        return r;
    if (strcmp(ret_tuning->device, here->device) != 0 ||
        strcmp(ret_tuning->filesystem, here->filesystem) != 0 ||
        strcmp(ret_tuning->kernel, here->kernel) != 0)
        return hr_error_set(err, -EBADMSG, "%s: is of another disk, filesystem or kernel", shown);
    return 1;
}

int hr_tuning_load(const struct hr_checkpoint *checkpoint, struct hr_tuning *ret_tuning,
                   char **ret_path, struct hr_error *err)
{
    struct hr_tuning here = {0}, tuning = {0};
    char *path = NULL;
    int r = identify(checkpoint, &here, err);

    if (r == 0)
        path = tuning_path(&here);
    if (path)
        r = load_from(path, &here, &tuning, err);
    if (r == 1)
        *ret_tuning = tuning;
    if (ret_path && r >= 0)
        *ret_path = path;
    else
        free(path);
    return r;
}

/* Make the folders that lead to `path`; 0700 as the XDG specification wants. */
static int make_folders(const char *path)
{
    char *copy = strdup(path);
    int r = copy ? 0 : -ENOMEM;

    for (char *p = copy ? strchr(copy + 1, '/') : NULL; p && r == 0; p = strchr(p + 1, '/')) {
        *p = '\0';
        if (mkdir(copy, 0700) < 0 && errno != EEXIST)
            r = -errno;
        *p = '/';
    }
    free(copy);
    return r;
}

/* The whole file or none of it: others may read it at this moment. */
static int write_to(const char *path, const char *text, struct hr_error *err)
{
    struct hr_replacement file;
    int r = make_folders(path);
    char shown[SHOWN_BYTES], reason[128];

    if (r < 0)
        return hr_error_set(err, r, "%s: cannot make its folder: %s",
                            hr_printable(path, shown, sizeof(shown)),
                            hr_strerror(r, reason, sizeof(reason)));
    r = hr_replace_begin(&file, path, err);
    return r < 0 ? r : hr_replace_end(&file, hr_file_write(file.fd, text, strlen(text), 0), err);
}

int hr_tuning_save(const struct hr_checkpoint *checkpoint, struct hr_tuning *tuning,
                   char **ret_path, struct hr_error *err)
{
    char *path, *text;
    int r = identify(checkpoint, tuning, err);

    if (r == 0)
        r = hr_tuning_check(tuning, "tuning", err);
    if (r < 0)
        return r;
    path = tuning_path(tuning);
    if (!path)
        return hr_error_set(err, -ENOENT,
                            "nowhere to keep the figures: set XDG_CACHE_HOME or HOME to a folder");
    text = hr_tuning_build(tuning);
    r = text ? write_to(path, text, err) : hr_error_set(err, -ENOMEM, "no memory for the figures");
    free(text);
    if (ret_path && r == 0)
        *ret_path = path;
    else
        free(path);
    return r;
}

/* ---- use ------------------------------------------------------------------------------------ */

bool hr_tuning_apply(const struct hr_checkpoint *checkpoint, struct hr_tuning *ret_tuning)
{
    struct hr_error err = {0};
    char day[32];
    const int r = hr_tuning_load(checkpoint, ret_tuning, NULL, &err);

    if (r < 0)
        hr_log(HR_LOG_WARN, "%s; the defaults are used, headrace tune measures anew", err.message);
    if (r != 1)
        return false;
    const time_t time_s = (time_t) ret_tuning->time_s;
    struct tm tm;

    strftime(day, sizeof(day), "%Y-%m-%d", gmtime_r(&time_s, &tm));
    hr_log(HR_LOG_INFO, "io: %u KiB x %u, measured on this disk at %.2f GB/s on %s",
           ret_tuning->block_bytes >> 10, ret_tuning->depth, (double) ret_tuning->bytes_per_s / 1e9,
           day);
    return true;
}

void hr_tuning_compare(const struct hr_tuning *tuning, const struct hr_stream_stats *stats)
{
    /* Only a disk that was kept busy shows what it can do: not the end of a small file, and not a
     * stream that waited for its user to give space back. */
    const bool disk_was_the_bound =
        stats->n_files_direct == stats->n_files && stats->bytes_read >= HR_TUNING_BYTES_MIN &&
        stats->depth_min == stats->depth && stats->in_flight >= 0.75 * stats->depth;

    if (!disk_was_the_bound || stats->busy_ns == 0)
        return;
    const double rate = (double) stats->bytes_read / (double) stats->busy_ns;

    if (rate * 1e9 < HR_TUNING_SHARE_MIN * (double) tuning->bytes_per_s_low)
        hr_log(HR_LOG_WARN,
               "the disk gave %.2f GB/s; %u KiB x %u was measured at %.2f GB/s (%.2f to %.2f) "
               "before: another program may use the disk, or headrace tune is due again",
               rate, tuning->block_bytes >> 10, tuning->depth, (double) tuning->bytes_per_s / 1e9,
               (double) tuning->bytes_per_s_low / 1e9, (double) tuning->bytes_per_s_high / 1e9);
}

int hr_checkpoint_range_state(const struct hr_checkpoint *checkpoint, uint32_t shard_idx,
                              uint64_t offset_bytes, uint64_t size_bytes,
                              struct hr_range_state *ret_state, struct hr_error *err)
{
    if (shard_idx >= hr_checkpoint_n_shards(checkpoint))
        return hr_error_set(err, -EINVAL, "there is no shard %u", shard_idx);
    const struct hr_shard *shard = hr_checkpoint_shard(checkpoint, shard_idx);
    const struct hr_read_file file = {
        .fd = hr_checkpoint_fd(checkpoint, shard_idx),
        .path = shard->path,
        .size_bytes = shard->size_bytes,
    };

    return hr_io_range_state(&file, offset_bytes, size_bytes, ret_state, err);
}
