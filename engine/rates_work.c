/* SPDX-License-Identifier: Apache-2.0 */
/* rates_work.c -- a device's copies and operations, timed. */
#include <errno.h>

#include "engine/device_rates.h"

enum { OPS_MAX = 1000 };

int hr_rates_go_on(const struct hr_rates *rates)
{
    const volatile int *cancel = rates->params->cancel;

    return cancel && *cancel ? hr_error_set(rates->err, -ECANCELED, "interrupted") : 0;
}

int hr_rates_device_failed(const struct hr_rates *rates, int r)
{
    char text[128];

    if (r == 0)
        return 0;
    return hr_error_set(rates->err, r, "device %s failed while it was measured: %s",
                        hr_gpu_name(rates->gpu), hr_strerror(r, text, sizeof(text)));
}

static int copy_band(const struct hr_rates *rates, bool registered, uint64_t i)
{
    const unsigned char *band = rates->bands + (registered ? 0 : HR_RATES_REGISTERED_BYTES) +
                                i % HR_RATES_BANDS * HR_RATES_BAND_BYTES;
    struct hr_gpu_weight weight;
    const int r = hr_gpu_stage(rates->gpu, &weight, band, HR_RATES_BAND_BYTES);

    if (r == 0)
        hr_gpu_unstage(rates->gpu, &weight);
    return r;
}

/* The i-th of a sample. */
static int ask(const struct hr_rates *rates, const struct hr_work *work, uint64_t i)
{
    struct hr_linear linear;

    switch (work->kind) {
    case HR_WORK_COPY:
    case HR_WORK_REGISTERED:
        return copy_band(rates, work->kind == HR_WORK_REGISTERED, i);
    case HR_WORK_LINEAR:
        linear = work->linear;
        linear.w = (const unsigned char *) linear.w + i % work->n_w * work->w_step_bytes;
        return hr_gpu_linear(rates->gpu, &linear);
    case HR_WORK_ATTENTION:
        return hr_gpu_attention(rates->gpu, &work->attention);
    default:
        break;
    }
    hr_assert(!"work of the device alone");
    return -EINVAL;
}

int hr_rates_time(const struct hr_rates *rates, const struct hr_work *work, uint64_t n_ops,
                  uint64_t *ret_ns)
{
    const uint64_t begin_ns = hr_now_ns();
    int r = 0;

    for (uint64_t i = 0; i < n_ops && r == 0; i++) {
        r = hr_rates_go_on(rates);
        if (r == 0)
            r = hr_rates_device_failed(rates, ask(rates, work, i));
    }
    if (r == 0)
        r = hr_rates_device_failed(rates, hr_gpu_sync(rates->gpu));
    *ret_ns = hr_max_u64(hr_now_ns() - begin_ns, 1);
    return r;
}

int hr_rates_calibrate(const struct hr_rates *rates, struct hr_work *work, uint64_t *ret_ns)
{
    uint64_t n = 1, ns = 0;
    int r = hr_rates_time(rates, work, 1, &ns);

    /* The first takes what a later one does not: pages, kernels that are loaded, clocks. */
    while (r == 0) {
        r = hr_rates_time(rates, work, n, &ns);
        if (ns >= HR_RATES_SAMPLE_NS / 4 || n >= OPS_MAX)
            break;
        n *= 4;
    }
    const uint64_t each_ns = hr_max_u64(ns / n, 1);

    work->n_ops = hr_max_u64(hr_min_u64(HR_RATES_SAMPLE_NS / each_ns, OPS_MAX), 1);
    *ret_ns = work->n_ops * each_ns;
    return r;
}
