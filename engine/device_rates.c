/* SPDX-License-Identifier: Apache-2.0 */
/* device_rates.c -- rates of a device in one run: memory, turns, medians.
 *
 * What is compared is measured close together: each turn has a sample of every rate, every other
 * turn in the opposite order, and a share is the median of the turns' own ratios.
 */
#include "engine/device_rates.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/checkpoint.h"
#include "engine/stream.h"

enum {
    SLACK_BYTES = 24 << 20, /* stacks, tables, pages of libraries that are yet to be touched */
    RING_STEP_BYTES = 2 << 20,
    TURNS_MIN = 3,
    TURNS_MAX = 11,
};
#define TURNS_NS UINT64_C(30000000000) /* of all turns, where nothing else was asked for */

/* The largest for which there are memory and time. */
static const struct hr_rates_sizes all_sizes[] = {{4096, 8192}, {1024, 4096}, {256, 2048}};
static const double SQUARE_MAX_S = 0.7;
enum { N_SIZES = HR_ARRAY_SIZE(all_sizes), SMALL_SIDE = 2048 };

/* ---- memory ------------------------------------------------------------------------------- */

struct memory {
    struct hr_gpu_params gpu;
    struct hr_gpu_params past; /* ring_bytes 0: not wanted */
    uint64_t operand_bytes;    /* of the host                        */
    uint64_t band_bytes;
    uint64_t scratch_bytes; /* of the device, in the host         */
    uint64_t device_bytes;  /* of a device that has memory of its own */
    uint64_t ring_bytes;
};

/* All but the ring. */
static uint64_t beside_ring(const struct memory *m)
{
    return hr_memory_now().resident_bytes + SLACK_BYTES + m->operand_bytes + m->band_bytes +
           m->scratch_bytes;
}

static uint64_t ring_min(const struct hr_rates *rates, struct hr_error *err)
{
    const uint32_t n = hr_checkpoint_n_tensors(rates->checkpoint);
    const struct hr_tensor **tensors = calloc(n, sizeof(*tensors));
    uint64_t bytes = 0;

    if (!tensors) {
        hr_error_set(err, -ENOMEM, "no memory for %u tensors", n);
        return 0;
    }
    for (uint32_t i = 0; i < n; i++)
        tensors[i] = hr_checkpoint_tensor(rates->checkpoint, i);
    bytes = hr_align_up(hr_stream_ring_bytes_min(tensors, n), RING_STEP_BYTES);
    free(tensors);
    return bytes;
}

/* For operands of these sizes. @return whether the device allows them */
static bool size_up(struct memory *m, const struct hr_rates *rates,
                    const struct hr_rates_sizes *sizes)
{
    uint64_t past_bytes = 0;

    m->gpu.arena_bytes = hr_rates_arena_bytes(rates->act, sizes);
    bool fits = hr_gpu_device_bytes(&m->gpu, &m->device_bytes, NULL) == 0;

    m->operand_bytes = m->device_bytes ? 0 : m->gpu.arena_bytes;
    m->scratch_bytes = hr_gpu_scratch_bytes(&m->gpu);
    if (m->past.ring_bytes) {
        fits = hr_gpu_device_bytes(&m->past, &past_bytes, NULL) == 0 && fits;
        m->device_bytes += past_bytes;
        m->scratch_bytes += hr_gpu_scratch_bytes(&m->past);
    }
    return fits && (!m->gpu.vram_bytes || m->device_bytes <= m->gpu.vram_bytes);
}

static int refuse_vram(struct memory *m, const struct hr_rates *rates)
{
    const uint64_t limit = m->gpu.vram_bytes;

    m->gpu.vram_bytes = m->past.vram_bytes = INT64_MAX; /* no limit, and counted */
    size_up(m, rates, &all_sizes[N_SIZES - 1]);
    return hr_error_set(rates->err, -ENOMEM,
                        "the limit of device memory is %llu MiB, but measuring needs %llu MiB; "
                        "raise the limit",
                        hr_mib(limit), hr_mib(m->device_bytes));
}

static int refuse_ram(const struct memory *m, const struct hr_rates *rates, uint64_t limit,
                      uint64_t ring)
{
    return hr_error_set(
        rates->err, -ENOMEM,
        "%s %llu MiB, but measuring needs %llu MiB: operands %llu, bands to copy %llu, scratch "
        "%llu, ring %llu, process and libraries the rest; %s",
        rates->params->ram_bytes ? "the memory limit is" : "memory has room for", hr_mib(limit),
        hr_mib(beside_ring(m) + ring), hr_mib(m->operand_bytes), hr_mib(m->band_bytes),
        hr_mib(m->scratch_bytes), hr_mib(ring),
        rates->params->ram_bytes ? "raise the limit" : "close other programs");
}

/* Whether the device has memory of its own: then it has some to count. */
static bool has_copies(const struct memory *m)
{
    struct hr_gpu_params gpu = m->gpu;
    uint64_t bytes;

    gpu.vram_bytes = INT64_MAX;
    return hr_gpu_device_bytes(&gpu, &bytes, NULL) == 0 && bytes > 0;
}

/* The largest sizes that memory allows; only with the smallest a smaller ring. */
static int choose_memory(struct memory *m, struct hr_rates *rates)
{
    const struct hr_rates_params *p = rates->params;
    const uint64_t least = ring_min(rates, rates->err);
    const uint64_t asked = p->stream.ring_bytes ? p->stream.ring_bytes : HR_RING_BYTES_DEFAULT;
    const uint64_t ring =
        hr_align_up(hr_max_u64(asked, p->stream.ring_bytes ? 0 : least), RING_STEP_BYTES);
    const uint64_t limit = p->ram_bytes ? p->ram_bytes
                                        : hr_mul_add_u64(1, hr_room_read("").room_bytes,
                                                         hr_memory_now().resident_bytes);
    bool any = false;

    if (least == 0)
        return -ENOMEM;
    if (m->past.ring_bytes) {
        int r = hr_gpu_check(&m->past, rates->err);

        if (r == 0)
            r = hr_gpu_device_bytes(&m->past, &m->device_bytes, rates->err);
        if (r < 0)
            return r;
        m->past.ring_bytes = ring;
    }
    rates->has_copies = has_copies(m);
    m->band_bytes =
        rates->has_copies ? UINT64_C(2) * HR_RATES_REGISTERED_BYTES : HR_RATES_BAND_BYTES;
    for (size_t i = 0; i < N_SIZES; i++) {
        if (!size_up(m, rates, &all_sizes[i]))
            continue;
        any = true;
        rates->sizes = all_sizes[i];
        m->ring_bytes = ring;
        if (beside_ring(m) + ring <= limit)
            return 0;
    }
    if (!any)
        return refuse_vram(m, rates);
    if (!p->stream.ring_bytes && beside_ring(m) + least <= limit) {
        m->ring_bytes = hr_align_down(limit - beside_ring(m), RING_STEP_BYTES);
        return 0;
    }
    return refuse_ram(m, rates, limit, p->stream.ring_bytes ? ring : least);
}

static int take_bands(struct hr_rates *rates, size_t n_bytes)
{
    void *p = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return hr_error_set(rates->err, -ENOMEM, "no memory for bands of %llu MiB",
                            hr_mib(n_bytes));
    if (rates->params->stream.huge_pages != HR_SWITCH_OFF)
        madvise(p, n_bytes, MADV_HUGEPAGE); /* as the ring's */
    madvise(p, n_bytes, MADV_DONTFORK);     /* as well */
    rates->bands = p;
    rates->bands_bytes = n_bytes;
    return 0;
}

/* Where memory cannot be registered the device says so, and copies are slower. */
static void register_memory(struct hr_rates *rates)
{
    size_t ring_bytes;
    void *ring;

    if (!rates->has_copies)
        return;
    hr_stream_ring(rates->stream, &ring, &ring_bytes);
    if (hr_gpu_register_host(rates->gpu, ring, ring_bytes) == 0)
        rates->registered_ring = ring;
    rates->is_registered =
        hr_gpu_register_host(rates->gpu, rates->bands, HR_RATES_REGISTERED_BYTES) == 0;
}

/* A stream into the device's memory, in the same blocks as the other. */
static int open_past(struct hr_rates *rates, const struct hr_gpu_params *params)
{
    struct hr_stream_params stream = rates->params->stream;
    const struct hr_stream_blocks blocks = hr_stream_choose_blocks(rates->checkpoint, &stream);
    const int r = hr_gpu_open(&rates->past, params, rates->err);

    if (r < 0)
        return r;
    stream.trace = NULL;
    return hr_stream_open_blocks(&rates->past_stream, rates->checkpoint, &stream, &blocks,
                                 hr_ring_memory_of(&rates->past_ring, rates->past), rates->err);
}

static int take_memory(struct hr_rates *rates, const struct memory *m)
{
    struct hr_stream_params stream = rates->params->stream;
    int r = hr_gpu_open(&rates->gpu, &m->gpu, rates->err);

    stream.ring_bytes = m->ring_bytes;
    stream.trace = NULL;
    if (r == 0)
        r = take_bands(rates, (size_t) m->band_bytes);
    if (m->past.ring_bytes)
        stream.io = HR_IO_FIRST;
    if (r == 0)
        r = hr_stream_open(&rates->stream, rates->checkpoint, &stream, rates->err);
    if (r == 0 && m->past.ring_bytes)
        r = open_past(rates, &m->past);
    if (r < 0)
        return r;
    hr_rates_take_operands(rates);
    register_memory(rates);
    return 0;
}

static void give_back(struct hr_rates *rates)
{
    if (rates->registered_ring)
        hr_gpu_unregister_host(rates->gpu, rates->registered_ring);
    if (rates->is_registered)
        hr_gpu_unregister_host(rates->gpu, rates->bands);
    hr_stream_close(&rates->stream);
    hr_stream_close(&rates->past_stream);
    hr_gpu_close(&rates->past);
    hr_gpu_close(&rates->gpu);
    if (rates->bands)
        munmap(rates->bands, rates->bands_bytes);
    free(rates->names);
}

/* What memory allows may still take too long. */
static int choose_sizes_in_time(struct hr_rates *rates)
{
    const struct hr_work square = hr_rates_square(rates, SMALL_SIDE);
    uint64_t ns = 0;
    int r = hr_rates_time(rates, &square, 1, &ns);

    if (r == 0)
        r = hr_rates_time(rates, &square, 1, &ns);
    for (size_t i = 0; i < N_SIZES && r == 0; i++) {
        const double s = 1e-9 * (double) ns * pow((double) all_sizes[i].side / SMALL_SIDE, 3.0);

        if (all_sizes[i].side > rates->sizes.side || (s > SQUARE_MAX_S && i + 1 < N_SIZES))
            continue;
        rates->sizes = all_sizes[i];
        break;
    }
    return r;
}

/* ---- turns -------------------------------------------------------------------------------- */

struct table {
    struct hr_rate rates[HR_RATES_MAX];
    struct hr_work works[HR_RATES_MAX];
    uint32_t n, n_turns;
    double *values; /* [n, n_turns] */
};

static double *value_of(const struct table *t, uint32_t i, uint32_t turn)
{
    return &t->values[(size_t) i * t->n_turns + turn];
}

/* One sample of the i-th rate; with that of the copies beside the disk comes the disk's, too. */
static int sample(struct hr_rates *rates, struct table *t, uint32_t i, uint32_t turn)
{
    const struct hr_work *work = &t->works[i];
    double *value = value_of(t, i, turn);
    uint64_t ns;
    int r;

    if (t->rates[i].not_measured || work->kind == HR_WORK_DISK_BESIDE)
        return 0;
    if (work->kind == HR_WORK_DISK)
        return hr_rates_read(rates, rates->stream, value, NULL);
    if (work->kind == HR_WORK_DISK_PAST)
        return hr_rates_read(rates, rates->past_stream, value, NULL);
    if (work->kind == HR_WORK_BESIDE) { /* the list has the disk's two further on */
        hr_assert(t->works[i + 2].kind == HR_WORK_DISK_BESIDE);
        return hr_rates_read(rates, rates->stream, value_of(t, i + 2, turn), value);
    }
    r = hr_rates_time(rates, work, work->n_ops, &ns);
    *value = work->amount * (double) work->n_ops / (double) ns *
             (t->rates[i].unit == HR_RATE_TFLOPS ? 1e-3 : 1.0);
    return r;
}

/* Warm up, and choose how often each is repeated and how many turns there are. */
static int prepare(struct hr_rates *rates, struct table *t)
{
    uint64_t turn_ns = 2 * HR_RATES_DISK_NS, ns;
    int r;

    t->n = hr_rates_list(rates, t->rates, t->works);
    r = hr_rates_calibrate_disk(rates);
    for (uint32_t i = 0; i < t->n && r == 0; i++) /* what cannot be computed is said here */
        if (t->works[i].kind == HR_WORK_ATTENTION)
            r = hr_gpu_attention_prepare(rates->gpu, &t->works[i].attention, rates->err);
    for (uint32_t i = 0; i < t->n && r == 0; i++) {
        const int kind = t->works[i].kind;

        turn_ns += kind == HR_WORK_DISK_PAST ? HR_RATES_DISK_NS : 0;
        if (t->rates[i].not_measured || kind == HR_WORK_DISK || kind == HR_WORK_BESIDE ||
            kind == HR_WORK_DISK_BESIDE || kind == HR_WORK_DISK_PAST)
            continue;
        r = hr_rates_calibrate(rates, &t->works[i], &ns);
        turn_ns += ns;
    }
    t->n_turns = rates->params->n_turns;
    if (t->n_turns == 0)
        t->n_turns = (uint32_t) hr_max_u64(hr_min_u64(TURNS_NS / turn_ns, TURNS_MAX), TURNS_MIN);
    t->values = calloc((size_t) t->n * t->n_turns, sizeof(*t->values));
    if (r == 0 && !t->values)
        r = hr_error_set(rates->err, -ENOMEM, "no memory for the values of %u turns", t->n_turns);
    return r;
}

static int take_turns(struct hr_rates *rates, struct table *t)
{
    const struct hr_rates_params *p = rates->params;
    int r = 0;

    if (p->progress)
        p->progress(p->progress_user, 0, p->n_turns);
    r = prepare(rates, t);
    for (uint32_t turn = 0; turn < t->n_turns && r == 0; turn++) {
        if (p->progress)
            p->progress(p->progress_user, turn + 1, t->n_turns);
        for (uint32_t i = 0; i < t->n && r == 0; i++)
            r = sample(rates, t, turn % 2 ? t->n - 1 - i : i, turn);
    }
    return r;
}

/* ---- results ------------------------------------------------------------------------------ */

static int compare(const void *a, const void *b)
{
    const double x = *(const double *) a, y = *(const double *) b;

    return (x > y) - (x < y);
}

/* Sorts them. */
static double median(double *values, uint32_t n)
{
    qsort(values, n, sizeof(*values), compare);
    return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

static int evaluate(const struct hr_rates *rates, struct table *t)
{
    double *sorted = calloc(t->n_turns, sizeof(*sorted));

    if (!sorted)
        return hr_error_set(rates->err, -ENOMEM, "no memory for the values of %u turns",
                            t->n_turns);
    for (uint32_t i = 0; i < t->n; i++) {
        struct hr_rate *rate = &t->rates[i];

        if (rate->share_of >= 0 && t->rates[rate->share_of].not_measured)
            rate->share_of = -1;
        if (rate->not_measured) {
            rate->share_of = -1;
            continue;
        }
        for (uint32_t turn = 0; turn < t->n_turns && rate->share_of >= 0; turn++)
            sorted[turn] = *value_of(t, i, turn) / *value_of(t, (uint32_t) rate->share_of, turn);
        rate->share = rate->share_of >= 0 ? median(sorted, t->n_turns) : 0.0;
        memcpy(sorted, value_of(t, i, 0), t->n_turns * sizeof(*sorted));
        rate->median = median(sorted, t->n_turns);
        rate->low = sorted[0];
        rate->high = sorted[t->n_turns - 1];
    }
    free(sorted);
    return 0;
}

static int measure(struct hr_rates *rates, struct table *t, struct memory *m)
{
    int r = hr_rates_list_names(rates);

    if (r == 0)
        r = choose_memory(m, rates);
    if (r == 0)
        r = take_memory(rates, m);
    if (r == 0)
        r = choose_sizes_in_time(rates);
    if (r == 0)
        r = hr_rates_fill(rates);
    if (r == 0)
        r = take_turns(rates, t);
    return r == 0 ? evaluate(rates, t) : r;
}

static void report(struct hr_device_rates *ret, const struct hr_rates *rates, const struct table *t,
                   const struct memory *m)
{
    struct hr_gpu_memory driver;

    hr_gpu_memory(rates->gpu, &driver);
    *ret = (struct hr_device_rates){
        .n_turns = t->n_turns,
        .n_tokens = rates->sizes.n_tokens,
        .peak_memory_bytes = hr_memory_now().peak_bytes,
        .device_memory_bytes = m->device_bytes,
        .device_peak_bytes = m->device_bytes > 0 ? driver.used_bytes : 0,
        .n_rates = t->n,
    };
    snprintf(ret->device_name, sizeof(ret->device_name), "%s", hr_gpu_name(rates->gpu));
    hr_stream_get_stats(rates->stream, &ret->stream);
    memcpy(ret->rates, t->rates, sizeof(ret->rates));
}

int hr_device_rates(struct hr_device_rates *ret_rates, const struct hr_checkpoint *checkpoint,
                    const struct hr_rates_params *params, struct hr_error *err)
{
    static const struct hr_rates_params defaults;
    const uint64_t begin_ns = hr_now_ns();
    struct hr_rates rates = {.checkpoint = checkpoint, .err = err};
    struct table table = {.values = NULL};
    struct memory m = {.ring_bytes = 0};
    int r;

    rates.params = params ? params : &defaults;
    rates.act = rates.params->precision == HR_PRECISION_F32 ? HR_DTYPE_F32 : HR_DTYPE_BF16;
    if (rates.params->n_turns > HR_RATES_TURNS_MAX)
        return hr_error_set(err, -EINVAL, "%u turns: at most %d are taken", rates.params->n_turns,
                            HR_RATES_TURNS_MAX);
    m.gpu = (struct hr_gpu_params){
        .device = rates.params->device,
        .act = rates.act,
        .n_threads = rates.params->n_threads,
        .slot_bytes = HR_RATES_REGISTERED_BYTES,
        .vram_bytes = rates.params->vram_bytes,
        .attention = rates.params->attention,
    };
    if (hr_io_reads_into_device(rates.params->stream.io))
        m.past = hr_ring_device(rates.params->device, rates.params->vram_bytes, RING_STEP_BYTES);
    r = measure(&rates, &table, &m);
    if (r == 0) {
        report(ret_rates, &rates, &table, &m);
        ret_rates->wall_ns = hr_now_ns() - begin_ns;
    }
    give_back(&rates);
    free(table.values);
    return r;
}
