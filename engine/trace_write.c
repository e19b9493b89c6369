/* SPDX-License-Identifier: Apache-2.0 */
/* trace_write.c -- a trace as a file of Chrome's trace event format.
 *
 * https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: complete events
 * ("X") on one thread for each track, counters ("C"), names as metadata ("M"); ts and dur in
 * microseconds, here since the trace was opened. */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "engine/files.h"

enum track { STEPS = 1, DISK, COPY, COMPUTE };

static const struct {
    enum track track;
    const char *name; /* where the event has none */
} kinds[] = {
    [HR_TRACE_STEP] = {STEPS, "step"},
    [HR_TRACE_READ] = {DISK, "read"},
    [HR_TRACE_WAIT_SPACE] = {DISK, "waiting for ring space"},
    [HR_TRACE_COPY] = {COPY, "copy"},
    [HR_TRACE_WEIGHT] = {COMPUTE, "weight"},
    [HR_TRACE_PART] = {COMPUTE, "part"},
    [HR_TRACE_WAIT_DISK] = {COMPUTE, "waiting for the disk"},
};

static const char *const track_names[] = {
    [STEPS] = "steps", [DISK] = "disk", [COPY] = "copy to the device", [COMPUTE] = "compute"};

/* Names come from strangers' files, whose parser has let only UTF-8 through. */
static void put_string(FILE *f, const char *text)
{
    putc('"', f);
    for (const unsigned char *p = (const unsigned char *) text; *p; p++) {
        if (*p == '"' || *p == '\\')
            putc('\\', f);
        if (*p < 0x20)
            fprintf(f, "\\u%04x", *p);
        else
            putc(*p, f);
    }
    putc('"', f);
}

static void put_us(FILE *f, const char *key, uint64_t ns)
{
    fprintf(f, ",\"%s\":%llu.%03llu", key, (unsigned long long) (ns / 1000),
            (unsigned long long) (ns % 1000));
}

static void put_head(FILE *f, const struct hr_trace *trace)
{
    fprintf(f,
            "{\"displayTimeUnit\":\"ms\",\n\"otherData\":{\"version\":\"headrace %s\","
            "\"clock\":\"CLOCK_MONOTONIC\",\"origin_ns\":%llu,\"dropped_events\":%llu},\n"
            "\"traceEvents\":[\n{\"ph\":\"M\",\"pid\":1,\"name\":\"process_name\","
            "\"args\":{\"name\":\"headrace\"}}",
            hr_version(), (unsigned long long) hr_trace_origin_ns(trace),
            (unsigned long long) hr_trace_dropped(trace));
    for (unsigned track = STEPS; track <= COMPUTE; track++)
        fprintf(f,
                ",\n{\"ph\":\"M\",\"pid\":1,\"tid\":%u,\"name\":\"thread_name\","
                "\"args\":{\"name\":\"%s\"}},\n{\"ph\":\"M\",\"pid\":1,\"tid\":%u,"
                "\"name\":\"thread_sort_index\",\"args\":{\"sort_index\":%u}}",
                track, track_names[track], track, track);
}

static void put_args(FILE *f, const struct hr_trace_event *e)
{
    const unsigned long long bytes = e->bytes, a = e->a, b = e->b;

    switch (e->kind) {
    case HR_TRACE_STEP:
        fprintf(f, ",\"args\":{\"step\":%llu,\"bytes\":%llu}", a, bytes);
        break;
    case HR_TRACE_READ:
        fprintf(f, ",\"args\":{\"shard\":%u,\"offset\":%llu,\"bytes\":%llu,\"latency_us\":%.1f}",
                e->index, a, bytes, (double) e->extra / 1e3);
        break;
    case HR_TRACE_COPY:
    case HR_TRACE_WEIGHT:
        fprintf(f, ",\"args\":{\"row\":%llu,\"rows\":%llu,\"bytes\":%llu}", a, b, bytes);
        break;
    case HR_TRACE_PART:
        fprintf(f, ",\"args\":{\"index\":%u}", e->index);
        break;
    }
}

static void put_event(FILE *f, const struct hr_trace_event *e, uint64_t origin_ns)
{
    const enum track track = kinds[e->kind].track;

    fprintf(f, ",\n{\"ph\":\"X\",\"pid\":1,\"tid\":%u,\"cat\":\"%s\",\"name\":", (unsigned) track,
            kinds[e->kind].name);
    put_string(f, e->name ? e->name : kinds[e->kind].name);
    put_us(f, "ts", e->begin_ns - origin_ns);
    put_us(f, "dur", e->end_ns - e->begin_ns);
    put_args(f, e);
    putc('}', f);
    if (e->kind == HR_TRACE_READ) {
        fputs(",\n{\"ph\":\"C\",\"pid\":1,\"name\":\"ring\"", f);
        put_us(f, "ts", e->end_ns - origin_ns);
        fprintf(f, ",\"args\":{\"bytes\":%llu}}", (unsigned long long) e->b);
    }
}

/* @return 0 or a negative errno */
static int put_all(int fd, const struct hr_trace *trace)
{
    const int own_fd = dup(fd);
    FILE *f = own_fd >= 0 ? fdopen(own_fd, "w") : NULL;
    struct hr_trace_event event;
    int r = 0;

    if (!f) {
        r = -errno;
        if (own_fd >= 0)
            close(own_fd);
        return r;
    }
    put_head(f, trace);
    for (uint64_t i = 0; hr_trace_get(trace, i, &event); i++)
        if (event.kind != HR_TRACE_NONE)
            put_event(f, &event, hr_trace_origin_ns(trace));
    fputs("\n]}\n", f);
    errno = 0;
    if (fflush(f) != 0 || ferror(f))
        r = errno ? -errno : -EIO;
    if (fclose(f) != 0 && r == 0)
        r = -errno;
    return r;
}

int hr_trace_write(const struct hr_trace *trace, const char *path, struct hr_error *err)
{
    const uint64_t dropped = hr_trace_dropped(trace);
    struct hr_replacement file;
    char shown[256];
    int r = hr_replace_begin(&file, path, err);

    if (r < 0)
        return r;
    r = hr_replace_end(&file, put_all(file.fd, trace), err);
    if (r == 0 && dropped > 0)
        hr_log(HR_LOG_WARN, "%s: the trace was full; the last %llu events are not in it",
               hr_printable(path, shown, sizeof(shown)), (unsigned long long) dropped);
    return r;
}
