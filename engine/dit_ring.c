/* SPDX-License-Identifier: Apache-2.0 */
/* dit_ring.c -- memory that disk and device share: host memory that copies leave from, or a ring on
 * the device that the disk's bytes go straight into. */
#include <errno.h>

#include "engine/dit.h"

enum { PIECE_BYTES = 256 << 20, PAGES_BYTES = 2 << 20, TRACED_NS = 1000000 };

/* ---- host memory that the device knows ------------------------------------------------------ */

/* Where that fails copies are slower, which the device has said. @return whether it worked */
static bool register_host(struct hr_dit *dit, void *base, size_t n_bytes)
{
    hr_assert(dit->n_registered < HR_REGISTERED_MAX);
    if (hr_gpu_register_host(dit->gpu, base, n_bytes) < 0)
        return false;
    dit->registered[dit->n_registered++] = base;
    return true;
}

void hr_dit_register_ring(struct hr_dit *dit)
{
    void *base;
    size_t n_bytes;

    if (dit->budget.device_ring_bytes)
        return;
    hr_stream_ring(dit->stream, &base, &n_bytes);
    register_host(dit, base, n_bytes);
}

/* In pieces, between which it can be interrupted: pinning takes about a second for 10 GB. */
int hr_dit_register_resident(struct hr_dit *dit, struct hr_error *err)
{
    const uint64_t all = dit->resident.size_bytes, begin_ns = hr_now_ns();
    const uint64_t piece =
        hr_align_up(hr_max_u64(PIECE_BYTES, hr_div_ceil(all, HR_REGISTERED_MAX - 1)), PAGES_BYTES);
    bool works = true;

    for (uint64_t at = 0; works && at < all; at += piece) {
        if (atomic_load_explicit(&dit->cancelled, memory_order_relaxed))
            return hr_error_set(err, -ECANCELED, "interrupted");
        works = register_host(dit, dit->resident.store + at, (size_t) hr_min_u64(piece, all - at));
    }
    if (hr_now_ns() - begin_ns > TRACED_NS)
        hr_feed_trace_part(&dit->feed, "registering", 0, begin_ns);
    return 0;
}

void hr_dit_unregister(struct hr_dit *dit)
{
    while (dit->n_registered > 0)
        hr_gpu_unregister_host(dit->gpu, dit->registered[--dit->n_registered]);
}

/* ---- a ring on the device ------------------------------------------------------------------- */

int hr_dit_ring_check(const struct hr_dit_params *params, struct hr_error *err)
{
    const char *what = NULL;

    if (params->states)
        what = "a table of states";
    else if (params->onload_dtype == HR_ONLOAD_FP8)
        what = "an onload dtype of fp8";
    else if (params->manifest && params->verify != HR_VERIFY_OFF)
        what = "comparing with a manifest";
    if (!what || !hr_io_reads_into_device(params->stream.io))
        return 0;
    return hr_error_set(err, -EOPNOTSUPP,
                        "%s needs the weights in the host's memory, which I/O backend cufile reads "
                        "past; use another --io",
                        what);
}

static int begin_thread(void *user)
{
    return hr_gpu_begin_thread(user);
}

static void abandon(void *user)
{
    hr_gpu_abandon_ring(user);
}

const struct hr_reader_memory *hr_ring_memory_of(struct hr_reader_memory *memory,
                                                 struct hr_gpu *gpu)
{
    *memory = (struct hr_reader_memory){
        .begin_thread = begin_thread,
        .abandon = abandon,
        .user = gpu,
    };
    memory->base = hr_gpu_ring(gpu, &memory->size_bytes);
    return memory->base ? memory : NULL;
}

struct hr_gpu_params hr_ring_device(const char *device, uint64_t vram_bytes, uint64_t ring_bytes)
{
    return (struct hr_gpu_params){
        .device = device,
        .act = HR_DTYPE_F32, /* which all can; nothing is computed */
        .n_threads = 1,
        .vram_bytes = vram_bytes,
        .ring_bytes = ring_bytes,
    };
}
