# SPDX-License-Identifier: Apache-2.0
"""The targets of the whole model on a GPU: a forward of 1024x1024 pixels and 5 text tokens against the disk and
the link, its memory, and with all weights on the GPU its arithmetic against the fastest product that is to be had:
PyTorch's of 8192 x 8192 x 8192 where python3 has it with CUDA, or our own large square one.

Part of gpu_acceptance.py. As many of the 60 blocks as disk, time and GPU allow; each row says how many.
"""
import json
import os
import shutil
import statistics

from common import drop_from_cache, shards

BLOCKS, BLOCK_BYTES, WIDTH = 60, 681e6, 3072
TEXT_TOKENS = 5
RATIO_MAX, SHARE_MIN, MEMORY_MAX = 1.10, 0.60, 1.0e9
# Over the model: read by ours and alone twice each, and once for each kind of attention to stay; written, as slowly as
# two reads.
PASSES = 8


def tera_operations(n_blocks, size):
    """Of one forward, in 10^12; a product counts 2 for each token, row and column. Without embeddings and head."""
    image, width = (size // 16) ** 2, WIDTH
    products = 2 * 12 * width * width * (image + TEXT_TOKENS)  # q, k, v, out and the MLP, of both streams
    attention = 4 * (image + TEXT_TOKENS) ** 2 * width
    modulation = 2 * 2 * 6 * width * width
    return n_blocks * (products + attention + modulation) / 1e12


TORCH = """
import time, torch
a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
times, until = [], time.monotonic() + 1.5  # of which the first half brings the clocks up
while time.monotonic() < until:
    begin.record(); c = a @ b; end.record(); end.synchronize()
    times.append(begin.elapsed_time(end))
times = sorted(times[len(times) // 2:])
print(2 * 8192**3 / times[len(times) // 2] / 1e9)
"""


def peak_tflops(run, square):
    """@return the device's rate of products in bf16, and whose it is"""
    why = "PyTorch was not asked"
    if run.args.device == "cuda":
        # PyTorch finds its own libraries
        code, out, why = run.command("python3", "-c", TORCH, LD_LIBRARY_PATH=os.environ.get("LD_LIBRARY_PATH", ""))
        if code == 0 and float(out) > square:
            return float(out), "PyTorch's product"
    return square, f"our square product; {why}"


def blocks_that_fit(run, work, disk_gbps):
    """By the disk's space, with a tenth left free, and by the time that is left."""
    space = 0.9 * shutil.disk_usage(work).free
    time = 0.8 * run.left() * disk_gbps * 1e9 / PASSES
    return max(1, min(run.args.blocks, int(min(space, time) / BLOCK_BYTES)))


def output_of(run, *words):
    """Of a command that must work."""
    code, out, tail = run.command(*words)
    if code:
        raise RuntimeError(f"{' '.join(str(word) for word in words[:2])}: exit {code}: {tail}")
    return out


def forward(run, model, inputs, *options):
    return json.loads(output_of(run, run.path("cli/headrace"), "forward", model, "--inputs", inputs, "--timestep", 750,
                                "--device", run.args.device, "--json", "--quiet", *options))


def read_alone(run, model):
    """Seconds for the same bytes in the same order, with nothing behind them."""
    return json.loads(output_of(run, run.path("bench/bench_stream"), model))["wall_s"]


def spread(values):
    return (max(values) - min(values)) / statistics.mean(values)


def against_disk_and_link(run, model, inputs, what, link_gbps):
    """Ours, alone, without reading, alone, ours: a disk that is shared changes within minutes."""
    def ours(*options):
        drop_from_cache(shards(model))
        return forward(run, model, inputs, "--vram", run.args.vram, *options)

    def without_ours():
        drop_from_cache(shards(model))
        return read_alone(run, model)

    both, alone = [ours()], [without_ours()]
    copied = ours("--io", "null")  # copies and computes
    alone.append(without_ours())
    both.append(ours())
    memory(run, what, both[0])
    walls = [stats["wall_s"] for stats in both]
    link_s = both[0]["copied_bytes"] / link_gbps / 1e9 if link_gbps else 0.0
    bound_s = max(statistics.mean(alone), link_s)
    ratio = statistics.mean(walls) / bound_s
    text = (f"{walls[0]:.2f} {walls[1]:.2f} s, disk alone {alone[0]:.2f} {alone[1]:.2f} s, link {link_s:.2f} s, link "
            f"and computing {copied['wall_s']:.2f} s: {ratio:.3f}")
    if not both[0]["direct"]:
        result, text = "none", text + "; through the page cache"
    elif copied["wall_s"] > bound_s:
        result, text = "none", text + "; bound by computing"
    elif ratio > RATIO_MAX and max(spread(alone), spread(walls)) > 0.05:
        result = "noise"
    else:
        result = "ok" if ratio <= RATIO_MAX else "FAIL"
    run.row(f"{what}, to max(disk, link)", result, text)


def memory(run, what, stats):
    if stats["device_peak_bytes"] is None:
        run.row(f"{what}, memory of the GPU", "none", "the driver does not say")
        return
    above = stats["device_peak_bytes"] - stats["device_context_bytes"]
    context, predicted = stats["device_context_bytes"] / 1e9, stats["predicted"]["device_memory_bytes"] / 1e9
    text = (f"{above / 1e9:.3f} GB above driver and libraries ({context:.3f} GB when opened); predicted at most "
            f"{predicted:.3f} GB, an allowance for those included")
    run.row(f"{what}, memory of the GPU", "ok" if above <= MEMORY_MAX else "FAIL", text)


def all_on_the_gpu(run, model, inputs, n_blocks, square, attentions):
    """The later of several forwards, of as many blocks as the GPU's memory holds."""
    n = min(n_blocks, int((run.gpu_bytes() - 3e9) / BLOCK_BYTES))
    if n < 1 or not square:
        run.row("all weights on the GPU", "none", "too little memory, or no square product to compare with")
        return
    peak, whose = peak_tflops(run, square)
    vram = f"{int(n * BLOCK_BYTES / 2**20) + 2600}MiB"
    for attention in attentions:
        stats = forward(run, model, inputs, "--vram", vram, "--repeat", 4, "--layers", n, "--attention", attention)
        seconds = min(stats["forwards_wall_s"][1:])
        tflops = tera_operations(n, run.args.size) / seconds
        share = tflops / peak
        text = (f"{seconds:.3f} s, {tflops:.3g} TFLOP/s, {100 * share:.0f} % of {peak:.3g} ({whose}), "
                f"{stats['copied_bytes'] / 1e6:.0f} MB copied")
        good = share >= SHARE_MIN and stats["copied_bytes"] == 0
        run.row(f"{n} blocks on the GPU, attention {attention}", "ok" if good else "FAIL", text)


def full(run, work, rates, attentions):
    """@param rates  medians by the first words of their names, of `bench --device`"""
    n = blocks_that_fit(run, work, rates.get("disk alone", 1.0))
    model, inputs = os.path.join(work, "full"), os.path.join(work, "full.safetensors")
    headrace, size = run.path("cli/headrace"), run.args.size
    what = f"{n} blocks, {size}x{size}"
    try:
        output_of(run, headrace, "synth", model, "--layers", n)
        output_of(run, headrace, "inputs", model, "--width", size, "--height", size, "--text-tokens", TEXT_TOKENS,
                  "--output", inputs)
        against_disk_and_link(run, model, inputs, what, rates.get("copy from registered memory"))
        all_on_the_gpu(run, model, inputs, n, rates.get("square"), attentions)
    except (RuntimeError, KeyError, ValueError) as e:
        run.row(what, "FAIL", str(e))
    finally:
        shutil.rmtree(model, ignore_errors=True)
