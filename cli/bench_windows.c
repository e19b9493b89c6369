/* SPDX-License-Identifier: Apache-2.0 */
/* bench_windows.c -- parts of a model at random places, and whether they can be measured at all. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "cli/bench.h"

enum { ALIGN_BYTES = 4096 };

static int compare_places(const void *a, const void *b, void *model)
{
    const struct hr_tensor *x = hr_checkpoint_find(model, *(const char *const *) a);
    const struct hr_tensor *y = hr_checkpoint_find(model, *(const char *const *) b);

    if (x->shard_idx != y->shard_idx)
        return x->shard_idx < y->shard_idx ? -1 : 1;
    return (x->offset_bytes > y->offset_bytes) - (x->offset_bytes < y->offset_bytes);
}

/* All tensors, or those of a forward through the first blocks. */
static int list_names(const struct hr_checkpoint *model, uint64_t n_layers, const char ***ret_names,
                      uint32_t *ret_n, struct hr_error *err)
{
    const uint32_t n = hr_checkpoint_n_tensors(model);

    if (n_layers > 0)
        return hr_dit_names(model, (uint32_t) n_layers, ret_names, ret_n, err);
    *ret_names = calloc(n ? n : 1, sizeof(**ret_names));
    if (!*ret_names)
        return cli_error(err, -ENOMEM, "no memory for a list of %u tensors", n);
    for (uint32_t i = 0; i < n; i++)
        (*ret_names)[i] = hr_checkpoint_tensor(model, i)->name;
    *ret_n = n;
    return 0;
}

int bench_windows_init(struct bench_windows *windows, const struct hr_checkpoint *model,
                       bool pass_order, uint64_t n_layers, struct hr_error *err)
{
    struct timespec now;
    uint32_t n_all;

    *windows = (struct bench_windows){.model = model};
    const int r = list_names(model, n_layers, &windows->in_files, &n_all, err);

    if (r < 0)
        return r;
    for (uint32_t i = 0; i < n_all; i++)
        if (hr_checkpoint_find(model, windows->in_files[i])->size_bytes > 0)
            windows->in_files[windows->n_files++] = windows->in_files[i];
    if (windows->n_files == 0)
        return cli_error(err, -EINVAL, "%s: holds no bytes to read",
                         hr_checkpoint_n_shards(model) ? hr_checkpoint_shard(model, 0)->path
                                                       : "the model");
    qsort_r(windows->in_files, windows->n_files, sizeof(*windows->in_files), compare_places,
            (void *) (uintptr_t) model);
    clock_gettime(CLOCK_REALTIME, &now);
    windows->random = (uint64_t) now.tv_nsec ^ ((uint64_t) now.tv_sec << 30) ^ 1;
    if (!pass_order)
        return 0;
    return hr_dit_names(model, (uint32_t) n_layers, &windows->in_pass, &windows->n_pass, err);
}

void bench_windows_uninit(struct bench_windows *windows)
{
    free(windows->in_files);
    free(windows->in_pass);
    windows->in_files = windows->in_pass = NULL;
}

uint64_t bench_random(struct bench_windows *windows, uint64_t n)
{
    uint64_t x = windows->random; /* xorshift64* */

    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    windows->random = x;
    return (x * 0x2545f4914f6cdd1du >> 11) % n;
}

static const struct hr_tensor *tensor_of(const struct bench_windows *windows, const char *name)
{
    return hr_checkpoint_find(windows->model, name);
}

/* From a random tensor on, in one shard where `one_shard`, until there are enough bytes; at the end
 * of the list, or of the shard, backwards from there. */
static void extend(struct bench_window *w, struct bench_windows *windows, const char **names,
                   uint32_t n, bool one_shard, uint64_t bytes)
{
    uint32_t first = (uint32_t) bench_random(windows, n), end = first;
    const uint32_t shard = tensor_of(windows, names[first])->shard_idx;

    w->bytes = 0;
    while (w->bytes < bytes && end < n) {
        const struct hr_tensor *t = tensor_of(windows, names[end]);

        if (one_shard && t->shard_idx != shard)
            break;
        w->bytes += t->size_bytes;
        end++;
    }
    while (w->bytes < bytes && first > 0) {
        const struct hr_tensor *t = tensor_of(windows, names[first - 1]);

        if (one_shard && t->shard_idx != shard)
            break;
        w->bytes += t->size_bytes;
        first--;
    }
    w->names = names + first;
    w->n_names = end - first;
}

/* Where the window's tensors lie in their shard, to whole pages. */
static void find_extent(struct bench_window *w, const struct bench_windows *windows)
{
    const struct hr_tensor *first = tensor_of(windows, w->names[0]);
    const struct hr_tensor *last = tensor_of(windows, w->names[w->n_names - 1]);
    const uint64_t begin = first->offset_bytes / ALIGN_BYTES * ALIGN_BYTES;
    const uint64_t end = last->offset_bytes + last->size_bytes;

    w->shard_idx = first->shard_idx;
    w->offset_bytes = begin;
    w->size_bytes = (end - begin) / ALIGN_BYTES * ALIGN_BYTES;
}

struct bench_window bench_window_pick(struct bench_windows *windows, uint64_t bytes)
{
    struct bench_window window = {0}, in_pass;

    extend(&window, windows, windows->in_files, windows->n_files, true, bytes);
    find_extent(&window, windows);
    if (windows->in_pass) {
        extend(&in_pass, windows, windows->in_pass, windows->n_pass, false, bytes);
        window.names = in_pass.names;
        window.n_names = in_pass.n_names;
        window.bytes = in_pass.bytes;
    }
    return window;
}

/* ---- gates -------------------------------------------------------------------------------- */

int bench_gates_look(struct bench_gates *gates, const struct bench_windows *windows,
                     const struct bench_window *window, bool after, struct hr_error *err)
{
    struct hr_range_state state;
    const int r = hr_checkpoint_range_state(windows->model, window->shard_idx, window->offset_bytes,
                                            window->size_bytes, &state, err);

    if (r < 0)
        return r;
    if (after) {
        gates->cached_after_bytes += state.cached_bytes;
        return 0;
    }
    gates->bytes += window->size_bytes;
    gates->cached_bytes += state.cached_bytes;
    gates->odd_bytes += state.odd_bytes;
    gates->extents_unknown |= !state.extents_known;
    gates->n_samples += state.n_samples;
    gates->n_alike += state.n_alike;
    if (!gates->odd_kind)
        gates->odd_kind = state.odd_kind;
    return 0;
}

const char *bench_gates_refuse(const struct bench_gates *g, char *buf, size_t buf_bytes)
{
    const double bytes = g->bytes ? (double) g->bytes : 1.0;
    const uint64_t cached =
        g->cached_bytes > g->cached_after_bytes ? g->cached_bytes : g->cached_after_bytes;

    if (g->bytes == 0)
        snprintf(buf, buf_bytes, "less than a page was read");
    else if ((double) cached >= 0.01 * bytes)
        snprintf(buf, buf_bytes, "%.0f %% of what was read lay in the page cache %s",
                 100.0 * (double) cached / bytes,
                 cached == g->cached_bytes ? "before" : "afterwards");
    else if (g->odd_bytes > 0)
        snprintf(buf, buf_bytes, "%.1f %% of what was read is %s",
                 100.0 * (double) g->odd_bytes / bytes, g->odd_kind);
    else if (g->extents_unknown)
        snprintf(buf, buf_bytes, "the filesystem does not tell where the bytes lie (FIEMAP)");
    else if (g->n_alike * 10 > g->n_samples)
        snprintf(buf, buf_bytes, "%u of %u sampled blocks are zeros or repeat others", g->n_alike,
                 g->n_samples);
    else if (g->not_counted)
        snprintf(buf, buf_bytes, "the filesystem has no disk of its own that counts its reads");
    else if ((double) g->counted_bytes < 0.97 * (double) g->asked_bytes ||
             (double) g->counted_bytes > 1.03 * (double) g->asked_bytes)
        snprintf(buf, buf_bytes,
                 "%.2f GB were asked for, and the disk counted %.2f GB: another program read, or "
                 "the bytes came from elsewhere",
                 (double) g->asked_bytes / 1e9, (double) g->counted_bytes / 1e9);
    else
        return NULL;
    return buf;
}
