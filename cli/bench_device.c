/* SPDX-License-Identifier: Apache-2.0 */
/* bench_device.c -- what a device takes and computes, and what disk and copies lose to each other.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/bench.h"

enum { TOKENS_FULL = 4096 };

int bench_check_options(const struct cli_options *o)
{
    static const struct {
        const char *name;
        bool of_device;
    } options[] = {
        {"--quads", false},    {"--order", false},    {"--sweep", false}, {"--plot", false},
        {"--layers", false},   {"--turns", true},     {"--vram", true},   {"--threads", true},
        {"--precision", true}, {"--attention", true},
    };
    const bool has_device = o->device != NULL;

    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
        if (options[i].of_device != has_device && cli_is_given(o, options[i].name))
            return cli_usage("%s has no effect %s --device; leave %s", options[i].name,
                             has_device ? "with" : "without",
                             has_device ? "one of the two out" : "it out, or name a device");
    return CLI_OK;
}

static const char *unit_of(const struct hr_rate *rate)
{
    return rate->unit == HR_RATE_GBPS ? "GB/s" : "TFLOP/s";
}

static json_t *rate_json(const struct hr_device_rates *rates, const struct hr_rate *rate)
{
    const bool is_known = !rate->not_measured, has_share = rate->share_of >= 0;

    return json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o}", "name", rate->name, "unit",
                     unit_of(rate), "median", is_known ? json_real(rate->median) : json_null(),
                     "low", is_known ? json_real(rate->low) : json_null(), "high",
                     is_known ? json_real(rate->high) : json_null(), "share",
                     has_share ? json_real(rate->share) : json_null(), "share_of",
                     has_share ? json_string(rates->rates[rate->share_of].name) : json_null(),
                     "not_measured", is_known ? json_null() : json_string(rate->not_measured));
}

static int print_json(const struct cli_options *o, const struct hr_device_rates *rates)
{
    json_t *list = json_array();
    json_t *obj = json_pack(
        "{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:f}", "verb", "bench", "device", rates->device_name,
        "precision", o->precision == HR_PRECISION_F32 ? "f32" : "bf16", "turns",
        (json_int_t) rates->n_turns, "picture_tokens", (json_int_t) rates->n_tokens,
        "peak_memory_bytes", (json_int_t) rates->peak_memory_bytes, "device_memory_bytes",
        (json_int_t) rates->device_memory_bytes, "seconds", cli_seconds(rates->wall_ns));

    for (uint32_t i = 0; i < rates->n_rates; i++)
        json_array_append_new(list, rate_json(rates, &rates->rates[i]));
    json_object_set_new(obj, "rates", list);
    json_object_set_new(obj, "device_peak_bytes",
                        cli_json_bytes(rates->device_peak_bytes, rates->device_peak_bytes > 0));
    cli_stream_json(obj, &rates->stream);
    return cli_print_json(obj);
}

static void print_rate(const struct hr_device_rates *rates, const struct hr_rate *rate)
{
    const int decimals = rate->median < 1.0 ? 3 : 2;
    char span[40];

    if (rate->not_measured) {
        printf("%-34s %s\n", rate->name, rate->not_measured);
        return;
    }
    snprintf(span, sizeof(span), "%.*f to %.*f", decimals, rate->low, decimals, rate->high);
    printf("%-34s %8.*f %-8s", rate->name, decimals, rate->median, unit_of(rate));
    if (rate->share_of < 0) {
        printf(" %s\n", span);
        return;
    }
    const char *other = rates->rates[rate->share_of].name;

    printf(" %-18s %3.0f %% of %.*s\n", span, 100.0 * rate->share, (int) strcspn(other, ","),
           other);
}

static void print_text(const struct cli_options *o, const struct hr_device_rates *rates)
{
    const struct hr_stream_stats *s = &rates->stream;
    char size[32], taken[32];

    printf("bench     %s, %s\n", rates->device_name,
           o->precision == HR_PRECISION_F32 ? "f32" : "bf16");
    printf("turns     %u in %.0f s: medians, the least and the most\n", rates->n_turns,
           cli_seconds(rates->wall_ns));
    printf("memory    peak %s of the whole process", cli_size(size, rates->peak_memory_bytes));
    if (rates->device_memory_bytes > 0)
        printf("; at most %s of the device", cli_size(size, rates->device_memory_bytes));
    if (rates->device_peak_bytes > 0)
        printf(", its driver reports %s", cli_size(size, rates->device_peak_bytes));
    printf("\nsizes     of a picture of %u tokens%s\n", rates->n_tokens,
           rates->n_tokens < TOKENS_FULL ? ", as memory and time allow" : "");
    printf("disk      %s, %s, %u KiB x %u, %s read%s\n\n", s->io_name,
           s->direct ? "direct" : "buffered", s->block_bytes >> 10, s->depth,
           cli_size(taken, s->bytes_read),
           s->bounced_bytes > 0 ? "; through the page cache, so its rate is not the disk's" : "");
    for (uint32_t i = 0; i < rates->n_rates; i++)
        print_rate(rates, &rates->rates[i]);
}

static void progress(void *user, uint32_t turn, uint32_t n_turns)
{
    (void) user;
    if (turn == 0)
        cli_progress_note("warming up");
    else
        cli_progress_note("turn %u of %u", turn, n_turns);
}

int bench_device(const struct cli_options *o)
{
    const struct hr_rates_params params = {
        .stream = cli_stream_params(o),
        .device = o->device,
        .precision = (enum hr_precision) o->precision,
        .attention = (enum hr_attention_by) o->attention,
        .n_threads = (uint32_t) o->n_threads,
        .ram_bytes = o->ram_bytes,
        .vram_bytes = o->vram_bytes,
        .n_turns = (uint32_t) o->n_turns,
        .progress = cli_progress_wanted(o) ? progress : NULL,
        .cancel = &cli_interrupted,
    };
    struct hr_checkpoint *model = NULL;
    struct hr_device_rates rates;
    struct hr_error err = {0};
    int r;

    cli_catch_signals();
    r = cli_open_model(&model, o, &err);
    if (r == 0)
        r = hr_device_rates(&rates, model, &params, &err);
    hr_checkpoint_close(&model);
    cli_progress_clear();
    if (r < 0)
        return cli_fail(&err);
    if (o->json)
        return print_json(o, &rates);
    print_text(o, &rates);
    return cli_flush();
}
