/* SPDX-License-Identifier: Apache-2.0 */
/* bench_stream.c -- the stream with nothing behind it: each unit is given back as it comes.
 *
 * One line of JSON. With `null` as backend nothing is read either, and what is left is our own cost
 * per unit. Usage: bench_stream MODEL [BACKEND [auto|on|off [MIB]]]: a model is streamed in the
 * order of a forward, or of names, until MIB MiB have come (default: all of it).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/common.h"

static uint32_t list_names(const struct hr_checkpoint *model, const char ***ret_names)
{
    uint32_t n;

    if (hr_dit_names(model, 0, ret_names, &n, NULL) == 0)
        return n;
    n = hr_checkpoint_n_tensors(model);
    *ret_names = calloc(n, sizeof(**ret_names));
    for (uint32_t i = 0; *ret_names && i < n; i++)
        (*ret_names)[i] = hr_checkpoint_tensor(model, i)->name;
    return *ret_names ? n : 0;
}

static void report(const struct hr_stream_stats *s, uint64_t wall_ns)
{
    const double gb = (double) s->bytes_read / 1e9;

    printf("{\"backend\": \"%s\", \"files\": %u, \"files_direct\": %u, \"wall_s\": %.4f, "
           "\"gbps\": %.3f, \"units\": %llu, \"ns_per_unit\": %.0f, \"cpu_s_per_gb\": %.5f, "
           "\"in_flight\": %.2f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"p999_ms\": %.3f, "
           "\"bounced_gb\": %.3f, \"short\": %llu, \"retried\": %llu, \"pinned_mib\": %llu, "
           "\"huge_mib\": %llu}\n",
           s->io_name, s->n_files, s->n_files_direct, (double) wall_ns / 1e9,
           (double) s->bytes_used / (double) wall_ns, (unsigned long long) s->units,
           (double) wall_ns / (double) hr_max_u64(s->units, 1),
           gb > 0.0 ? (double) s->cpu_ns / 1e9 / gb : 0.0, s->in_flight,
           (double) s->latency_p50_ns / 1e6, (double) s->latency_p99_ns / 1e6,
           (double) s->latency_p999_ns / 1e6, (double) s->bounced_bytes / 1e9,
           (unsigned long long) s->short_reads, (unsigned long long) s->retries,
           (unsigned long long) (s->pinned_bytes / HR_MIB),
           (unsigned long long) (s->huge_bytes / HR_MIB));
}

static int run(struct hr_checkpoint *model, const struct hr_stream_params *params,
               uint64_t bytes_max, struct hr_error *err)
{
    struct hr_stream *stream = NULL;
    struct hr_stream_stats stats = {0};
    struct hr_unit unit;
    const char **names = NULL;
    const uint32_t n = list_names(model, &names);
    uint64_t bytes = 0;
    int r = hr_stream_open(&stream, model, params, err);
    const uint64_t begin_ns = hr_now_ns();

    if (r == 0)
        r = hr_stream_plan(stream, names, n, 0, 1, err);
    while (r >= 0 && bytes < bytes_max && (r = hr_stream_next(stream, &unit, err)) > 0) {
        bytes += unit.size_bytes;
        hr_stream_release(stream, &unit);
    }
    if (r >= 0) {
        hr_stream_get_stats(stream, &stats);
        report(&stats, hr_now_ns() - begin_ns);
    }
    hr_stream_close(&stream);
    free(names);
    return r;
}

int main(int argc, char **argv)
{
    struct hr_checkpoint *model = NULL;
    struct hr_error err = {0};
    struct hr_stream_params params = {.io = argc > 2 ? argv[2] : NULL};
    const uint64_t mib = argc > 4 ? strtoull(argv[4], NULL, 10) : 0;

    if (argc < 2 || argc > 5) {
        fprintf(stderr, "usage: %s MODEL [BACKEND [auto|on|off [MIB]]]\n", argv[0]);
        return 2;
    }
    if (argc > 3)
        params.direct = strcmp(argv[3], "on") == 0    ? HR_DIRECT_ON
                        : strcmp(argv[3], "off") == 0 ? HR_DIRECT_OFF
                                                      : HR_DIRECT_AUTO;
    const char *path = argv[1];
    int r = hr_checkpoint_open(&model, &(struct hr_checkpoint_params){.paths = &path, .n_paths = 1},
                               &err);

    if (r == 0)
        r = run(model, &params, mib ? mib * HR_MIB : UINT64_MAX, &err);
    hr_checkpoint_close(&model);
    if (r < 0)
        fprintf(stderr, "%s\n", err.message);
    return r < 0;
}
