/* SPDX-License-Identifier: Apache-2.0 */
/* stats.c -- statistics of streams and runs, as JSON and as lines. */
#include <stdio.h>
#include <time.h>

#include "cli/cli.h"

double cli_seconds(uint64_t ns)
{
    return (double) ns / 1e9;
}

uint64_t cli_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}

double cli_now_s(void)
{
    return cli_seconds(cli_now_ns());
}

double cli_gbps(uint64_t bytes, uint64_t ns)
{
    return ns ? (double) bytes / (double) ns : 0.0;
}

double cli_disk_share(uint64_t stall_disk_ns, uint64_t wall_ns)
{
    return wall_ns ? (double) stall_disk_ns / (double) wall_ns : 0.0;
}

static double cpu_s_per_gb(const struct hr_stream_stats *s)
{
    return s->bytes_read ? (double) s->cpu_ns / (double) s->bytes_read : 0.0;
}

static void set_bool(json_t *obj, const char *key, bool value)
{
    json_object_set_new(obj, key, json_boolean(value));
}

void cli_stream_json(json_t *obj, const struct hr_stream_stats *s)
{
    const struct {
        const char *key;
        uint64_t value;
    } counts[] = {
        {"bytes_read", s->bytes_read},
        {"bytes_used", s->bytes_used},
        {"ring_bytes", s->ring_bytes},
        {"device_ring_bytes", s->device_ring_bytes},
        {"pinned_bytes", s->pinned_bytes},
        {"huge_bytes", s->huge_bytes},
        {"block_bytes", s->block_bytes},
        {"iodepth", s->depth},
        {"reads", s->reads},
        {"short_reads", s->short_reads},
        {"retries", s->retries},
        {"bounced_bytes", s->bounced_bytes},
        {"files", s->n_files},
        {"files_direct", s->n_files_direct},
        {"disks", s->n_devices},
    };
    const struct {
        const char *key;
        double value;
    } numbers[] = {
        {"disk_gbps", cli_gbps(s->bytes_read, s->busy_ns)},
        {"cpu_s_per_gb", cpu_s_per_gb(s)},
        {"in_flight", s->in_flight},
        {"latency_p50_ms", (double) s->latency_p50_ns / 1e6},
        {"latency_p99_ms", (double) s->latency_p99_ns / 1e6},
        {"latency_p999_ms", (double) s->latency_p999_ns / 1e6},
    };

    json_object_set_new(obj, "backend", json_string(s->io_name));
    set_bool(obj, "direct", s->direct);
    set_bool(obj, "tuned", s->tuned);
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        json_object_set_new(obj, counts[i].key, json_integer((json_int_t) counts[i].value));
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        json_object_set_new(obj, numbers[i].key, json_real(numbers[i].value));
}

void cli_stats_json(json_t *obj, const struct hr_dit_stats *s)
{
    const bool driver_says = s->device_peak_bytes > 0;
    json_t *members =
        json_pack("{s:s, s:f, s:I, s:I, s:I, s:I, s:b}", "device", s->device_name, "setup_s",
                  cli_seconds(s->setup_ns), "peak_memory_bytes", (json_int_t) s->peak_memory_bytes,
                  "activation_bytes", (json_int_t) s->activation_bytes, "resident_bytes",
                  (json_int_t) s->resident_bytes, "mods_bytes", (json_int_t) s->mods_bytes,
                  "mods_spilled", (int) s->mods_spilled);

    cli_stream_json(obj, &s->stream);
    json_object_update(obj, members);
    json_decref(members);
    json_object_set_new(obj, "lossy", json_boolean(s->lossy_bytes > 0));
    json_object_set_new(obj, "lossy_bytes", json_integer((json_int_t) s->lossy_bytes));
    json_object_set_new(obj, "verified_bytes", json_integer((json_int_t) s->verified_bytes));
    json_object_set_new(obj, "copied_bytes", json_integer((json_int_t) s->copied_bytes));
    json_object_set_new(obj, "device_resident_bytes",
                        json_integer((json_int_t) s->device_resident_bytes));
    json_object_set_new(obj, "verify_s", json_real(cli_seconds(s->verify_ns)));
    json_object_set_new(obj, "device_peak_bytes",
                        cli_json_bytes(s->device_peak_bytes, driver_says));
    json_object_set_new(obj, "device_context_bytes",
                        cli_json_bytes(s->device_context_bytes, driver_says));
}

void cli_times_json(json_t *obj, const struct cli_times *t)
{
    json_object_set_new(obj, "wall_s", json_real(cli_seconds(t->wall_ns)));
    json_object_set_new(obj, "stall_disk_s", json_real(cli_seconds(t->stall_disk_ns)));
    json_object_set_new(obj, "stall_space_s", json_real(cli_seconds(t->stall_space_ns)));
    json_object_set_new(obj, "compute_s", json_real(cli_seconds(t->compute_ns)));
    json_object_set_new(obj, "disk_bytes", json_integer((json_int_t) t->disk_bytes));
    json_object_set_new(obj, "disk_busy_s", json_real(cli_seconds(t->disk_busy_ns)));
}

void cli_times_text(const struct cli_times *t, uint64_t setup_ns)
{
    const double disk = cli_disk_share(t->stall_disk_ns, t->wall_ns);

    printf("time      %.2f s: waiting for the disk %.2f s, computing %.2f s; set-up %.3f s\n",
           cli_seconds(t->wall_ns), cli_seconds(t->stall_disk_ns), cli_seconds(t->compute_ns),
           cli_seconds(setup_ns));
    printf("bound by  disk %.0f %%, compute %.0f %%; the disk waited for computing %.2f s\n",
           100.0 * disk, 100.0 * (1.0 - disk), cli_seconds(t->stall_space_ns));
}

void cli_blocks_json(json_t *obj, const struct hr_dit_stats *s)
{
    json_t *blocks = json_array();

    for (uint32_t i = 0; i < s->n_blocks; i++) {
        const struct hr_dit_block_stats *b = &s->blocks[i];
        const struct cli_times times = CLI_TIMES(b);
        json_t *block = json_pack("{s:i, s:I, s:f}", "block", (int) i, "bytes",
                                  (json_int_t) b->bytes, "begin_s", cli_seconds(b->begin_ns));

        cli_times_json(block, &times);
        json_array_append_new(blocks, block);
    }
    json_object_set_new(obj, "blocks", blocks);
}

void cli_blocks_text(const struct hr_dit_stats *s)
{
    char a[32];

    for (uint32_t i = 0; i < s->n_blocks; i++)
        printf("block %3u  %s in %.3f s, of which waiting for the disk %.3f s\n", i,
               cli_size(a, s->blocks[i].bytes), cli_seconds(s->blocks[i].wall_ns),
               cli_seconds(s->blocks[i].stall_disk_ns));
}

void cli_stats_text(const struct hr_dit_stats *s)
{
    const struct hr_stream_stats *stream = &s->stream;
    char a[32], b[32], c[32];

    printf("disk      %s read at %.2f GB/s (%s, %s, %u KiB x %u%s)\n",
           cli_size(a, stream->bytes_read), cli_gbps(stream->bytes_read, stream->busy_ns),
           stream->io_name, stream->direct ? "direct" : "buffered", stream->block_bytes >> 10,
           stream->depth, stream->tuned ? " as tuned" : "");
    printf("reads     %.1f in flight, p50 %.1f ms, p99 %.1f ms, p99.9 %.1f ms; CPU %.4f s per GB",
           stream->in_flight, (double) stream->latency_p50_ns / 1e6,
           (double) stream->latency_p99_ns / 1e6, (double) stream->latency_p999_ns / 1e6,
           cpu_s_per_gb(stream));
    if (stream->bounced_bytes > 0)
        printf("; %s through the page cache", cli_size(a, stream->bounced_bytes));
    if (stream->short_reads + stream->retries > 0)
        printf("; %llu short, %llu repeated", (unsigned long long) stream->short_reads,
               (unsigned long long) stream->retries);
    putchar('\n');
    printf("memory    peak %s of the whole process (ring %s, activations %s)\n",
           cli_size(a, s->peak_memory_bytes), cli_size(b, stream->ring_bytes),
           cli_size(c, s->activation_bytes));
    if (s->predicted.device_memory_bytes > 0)
        printf("device    at most %s of its own memory (ring %s, weights that stay %s)\n",
               cli_size(a, s->predicted.device_memory_bytes),
               cli_size(b, stream->device_ring_bytes), cli_size(c, s->device_resident_bytes));
    if (s->device_peak_bytes > 0)
        printf("driver    reports %s of the device's memory for this run, %s of it its own\n",
               cli_size(a, s->device_peak_bytes), cli_size(b, s->device_context_bytes));
    if (s->lossy_bytes > 0)
        printf("lossy     weights that stay in memory, %s, are rounded to fp8 (--onload-dtype)\n",
               cli_size(a, s->lossy_bytes));
    if (s->verified_bytes > 0)
        printf("verified  %s, as in the manifest, in %.2f s\n", cli_size(a, s->verified_bytes),
               cli_seconds(s->verify_ns));
}

void cli_predicted_json(json_t *obj, const struct hr_dit_stats *s)
{
    const struct hr_dit_prediction *p = &s->predicted;

    json_object_set_new(
        obj, "predicted",
        json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "bytes_used", (json_int_t) p->run_bytes,
                  "first_bytes", (json_int_t) p->first_bytes, "later_bytes",
                  (json_int_t) p->later_bytes, "up_front_bytes", (json_int_t) p->up_front_bytes,
                  "peak_memory_bytes", (json_int_t) p->peak_memory_bytes, "device_memory_bytes",
                  (json_int_t) p->device_memory_bytes));
}

void cli_predicted_text(const struct hr_dit_stats *s)
{
    char a[32], b[32], c[32], d[32];

    printf("predicted %s of weights, at most %s of memory; used %s and %s\n",
           cli_size(a, s->predicted.run_bytes), cli_size(b, s->predicted.peak_memory_bytes),
           cli_size(c, s->stream.bytes_used), cli_size(d, s->peak_memory_bytes));
}
