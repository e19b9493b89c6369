/* SPDX-License-Identifier: Apache-2.0 */
/* rates_disk.c -- the model's bytes through the ring, alone and while bands are copied.
 *
 * A thread takes what arrives. Beside copies it hands each band to the device's thread, which
 * copies it before others that lie ready in memory, and gives it back to the ring once it is
 * copied, as a run does. So neither the link nor the disk is ever idle. Parts of the model follow
 * one another from reading to reading, so that nothing is read again before all else was.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/device_rates.h"
#include "engine/stream.h"

#define POLL_NS      UINT64_C(2000000)
#define FIRST_BYTES  (UINT64_C(64) << 20)
#define WINDOW_BYTES (UINT64_C(4) << 30) /* at most */

enum {
    PASSES_MAX = 1000, /* over a model that is smaller than a reading                       */
    HELD_MAX = 4,      /* bands of the disk that wait for their copies, in half of the ring */
};

struct reading {
    struct hr_stream *stream;
    bool has_copies;
    uint64_t n_held;     /* bands that may be held at a time                    */
    uint64_t n_released; /* the reading thread's                                */
    pthread_t thread;
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t changed;
    struct hr_unit held[HELD_MAX];       /* number i at i % HELD_MAX       */
    uint64_t n_given, n_taken, n_copied; /* so many by either thread       */
    bool is_done, stop;
    uint64_t bytes, end_ns;
    int result;
    struct hr_error err;
};

/* ---- the model's bytes -------------------------------------------------------------------- */

static int in_file_order(const void *a, const void *b, void *checkpoint)
{
    const struct hr_tensor *x = hr_checkpoint_find(checkpoint, *(const char *const *) a);
    const struct hr_tensor *y = hr_checkpoint_find(checkpoint, *(const char *const *) b);

    if (x->shard_idx != y->shard_idx)
        return x->shard_idx < y->shard_idx ? -1 : 1;
    return (x->offset_bytes > y->offset_bytes) - (x->offset_bytes < y->offset_bytes);
}

int hr_rates_list_names(struct hr_rates *rates)
{
    const uint32_t n = hr_checkpoint_n_tensors(rates->checkpoint);
    union {
        const void *read_only;
        void *plain;
    } checkpoint = {rates->checkpoint};

    rates->names = calloc(2 * (size_t) n + 1, sizeof(*rates->names));
    if (!rates->names)
        return hr_error_set(rates->err, -ENOMEM, "no memory for %u names", n);
    for (uint32_t i = 0; i < n; i++) {
        const struct hr_tensor *tensor = hr_checkpoint_tensor(rates->checkpoint, i);

        if (tensor->size_bytes > 0)
            rates->names[rates->n_names++] = tensor->name;
        rates->model_bytes += tensor->size_bytes;
    }
    if (rates->n_names == 0)
        return hr_error_set(rates->err, -EINVAL, "the model holds no bytes to read");
    qsort_r(rates->names, rates->n_names, sizeof(*rates->names), in_file_order, checkpoint.plain);
    memcpy(rates->names + rates->n_names, rates->names, rates->n_names * sizeof(*rates->names));
    return 0;
}

/* Have the stream read about window_bytes from where the last reading ended. */
static int plan(struct hr_rates *rates, struct hr_stream *stream)
{
    const char **first = rates->names + rates->next_name;
    const uint32_t n_passes =
        (uint32_t) hr_min_u64(hr_div_ceil(rates->window_bytes, rates->model_bytes), PASSES_MAX);
    uint64_t bytes = 0;
    uint32_t n = 0;

    while (n < rates->n_names && (n_passes > 1 || bytes < rates->window_bytes))
        bytes += hr_checkpoint_find(rates->checkpoint, first[n++])->size_bytes;
    rates->next_name = (rates->next_name + n) % rates->n_names;
    return hr_stream_plan(stream, first, n, 0, n_passes, rates->err);
}

/* ---- the thread that takes what arrives --------------------------------------------------- */

/* Give back what is copied, until fewer than `max` bands are held. @return whether to go on */
static bool make_room(struct reading *reading, uint64_t max)
{
    pthread_mutex_lock(&reading->lock);
    while (!reading->stop && reading->n_given - reading->n_copied >= max)
        pthread_cond_wait(&reading->changed, &reading->lock);
    const bool goes_on = !reading->stop;
    const uint64_t until = goes_on ? reading->n_copied : reading->n_released;

    pthread_mutex_unlock(&reading->lock);
    for (; reading->n_released < until; reading->n_released++)
        hr_stream_release(reading->stream, &reading->held[reading->n_released % HELD_MAX]);
    return goes_on;
}

static void hand_over(struct reading *reading, const struct hr_unit *unit)
{
    pthread_mutex_lock(&reading->lock);
    reading->held[reading->n_given++ % HELD_MAX] = *unit;
    pthread_mutex_unlock(&reading->lock);
}

static void *reading_main(void *arg)
{
    struct reading *reading = arg;
    struct hr_unit unit;
    uint64_t bytes = 0;
    int r = 1;

    while (r == 1 && make_room(reading, reading->n_held)) {
        r = hr_stream_next(reading->stream, &unit, &reading->err);
        if (r < 1)
            break;
        bytes += unit.size_bytes;
        if (reading->has_copies)
            hand_over(reading, &unit);
        else
            hr_stream_release(reading->stream, &unit);
    }
    make_room(reading, 1);
    pthread_mutex_lock(&reading->lock);
    reading->result = r;
    reading->bytes = bytes;
    reading->end_ns = hr_now_ns();
    reading->is_done = true;
    pthread_mutex_unlock(&reading->lock);
    return NULL;
}

/* ---- the device's thread ------------------------------------------------------------------ */

/* A copy that was asked for. */
struct copying {
    struct hr_gpu_weight weight;
    bool is_asked, is_unit;
};

/* Until the host's bytes are free; a band of the disk goes back to its thread. */
static void finish(const struct hr_rates *rates, struct reading *reading, struct copying *copying)
{
    if (copying->is_asked)
        hr_gpu_host_is_free(rates->gpu, &copying->weight, true);
    if (copying->is_asked && copying->is_unit) {
        pthread_mutex_lock(&reading->lock);
        reading->n_copied++;
        pthread_cond_signal(&reading->changed);
        pthread_mutex_unlock(&reading->lock);
    }
    copying->is_asked = false;
}

/* A band of the disk, where one waits. */
static bool take(struct reading *reading, struct hr_unit *ret_unit)
{
    pthread_mutex_lock(&reading->lock);
    const bool waits = reading->n_taken < reading->n_given;

    if (waits)
        *ret_unit = reading->held[reading->n_taken++ % HELD_MAX];
    pthread_mutex_unlock(&reading->lock);
    return waits;
}

/* Ask for one more copy, then wait for the one before: two are under way. */
static int copy_next(const struct hr_rates *rates, struct reading *reading, struct copying *last,
                     uint64_t *bytes)
{
    const uint64_t i = *bytes / HR_RATES_BAND_BYTES % HR_RATES_BANDS;
    struct copying next = {.is_asked = true};
    struct hr_unit unit = {.data = rates->bands + i * HR_RATES_BAND_BYTES,
                           .size_bytes = HR_RATES_BAND_BYTES};

    next.is_unit = take(reading, &unit);
    const int r = hr_gpu_stage(rates->gpu, &next.weight, unit.data, unit.size_bytes);

    if (r < 0)
        return hr_rates_device_failed(rates, r);
    hr_gpu_unstage(rates->gpu, &next.weight);
    finish(rates, reading, last);
    *last = next;
    *bytes += unit.size_bytes;
    return 0;
}

static bool is_done(struct reading *reading)
{
    pthread_mutex_lock(&reading->lock);
    const bool done = reading->is_done;
    pthread_mutex_unlock(&reading->lock);
    return done;
}

static void stop(struct reading *reading)
{
    hr_stream_interrupt(reading->stream);
    pthread_mutex_lock(&reading->lock);
    reading->stop = true;
    pthread_cond_signal(&reading->changed);
    pthread_mutex_unlock(&reading->lock);
}

/* Copies, or nothing, until all has arrived. @param copied  bytes */
static int accompany(const struct hr_rates *rates, struct reading *reading, uint64_t *copied)
{
    struct copying last = {0};
    int r = 0;

    while (r == 0 && !is_done(reading)) {
        r = hr_rates_go_on(rates);
        if (r == 0 && reading->has_copies)
            r = copy_next(rates, reading, &last, copied);
        else if (r == 0)
            hr_sleep_ns(POLL_NS);
    }
    finish(rates, reading, &last); /* also of what will not be measured: the ring lives on */
    return r;
}

static int read_window(struct hr_rates *rates, struct reading *reading, uint64_t *copied)
{
    char text[128];
    int r = hr_thread_start(&reading->thread, "hr-rates", 0, reading_main, reading);

    if (r < 0)
        return hr_error_set(rates->err, r,
                            "no thread for reading: %s; raise the limit on processes (ulimit -u)",
                            hr_strerror(r, text, sizeof(text)));
    r = accompany(rates, reading, copied);
    if (r < 0)
        stop(reading);
    pthread_join(reading->thread, NULL);
    if (r == 0 && reading->result < 0)
        r = hr_error_set(rates->err, reading->result, "%s", reading->err.message);
    return r;
}

int hr_rates_read(struct hr_rates *rates, struct hr_stream *stream, double *ret_disk,
                  double *ret_copy)
{
    struct reading reading = {.stream = stream, .has_copies = ret_copy != NULL};
    size_t ring_bytes;
    void *ring;

    hr_stream_ring(stream, &ring, &ring_bytes);
    reading.n_held = hr_max_u64(hr_min_u64(ring_bytes / 2 / HR_RATES_BAND_BYTES, HELD_MAX), 1);
    const uint64_t begin_ns = hr_now_ns();
    uint64_t copied = 0;
    int r = plan(rates, stream);

    if (r < 0)
        return r;
    pthread_mutex_init(&reading.lock, NULL);
    pthread_cond_init(&reading.changed, NULL);
    r = read_window(rates, &reading, &copied);
    pthread_cond_destroy(&reading.changed);
    pthread_mutex_destroy(&reading.lock);
    if (r < 0)
        return r;
    *ret_disk = (double) reading.bytes / (double) hr_max_u64(reading.end_ns - begin_ns, 1);
    if (ret_copy)
        *ret_copy = (double) copied / (double) hr_max_u64(hr_now_ns() - begin_ns, 1);
    return 0;
}

int hr_rates_calibrate_disk(struct hr_rates *rates)
{
    rates->window_bytes = FIRST_BYTES;
    /* Twice: the first reading also wakes the disk up. */
    for (int i = 0; i < 2; i++) {
        double gbps;
        const int r = hr_rates_read(rates, rates->stream, &gbps, NULL);

        if (r < 0)
            return r;
        rates->window_bytes = hr_max_u64(
            hr_min_u64((uint64_t) (gbps * (double) HR_RATES_DISK_NS), WINDOW_BYTES), FIRST_BYTES);
    }
    return 0;
}
