#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Wall time of a forward against its bound: max(bytes at fio's rate, compute with weights in memory).

usage: forward_bound.py HEADRACE MODEL_DIR INPUTS [--rounds 3] [--steps N] [-- OPTIONS OF headrace]

With --steps it is that of a denoising loop: the sum of the bounds of what is read once, up front, and of each step.

All in one run, interleaved, since a disk that is shared changes within minutes. A round is
    ours, fio, compute alone, compute beside fio, fio, ours
where fio reads the same files whole, in order, with io_uring, O_DIRECT, registered buffers and files, at the
best block size and depth of a small sweep at the start (in huge pages where enough are reserved:
`sysctl vm.nr_hugepages=256`), and "compute alone" is the same forward with `--io null`, which hands out ring
memory without reading. "Compute beside fio" is that again while fio reads at the rate at which ours had
read: in a virtual machine a disk costs its owner CPU time, which /proc/stat counts as "steal", whoever reads.
Before each read by ours the files are dropped from the page cache if they are in it. Prints each figure, the
ratio of each round to max(disk, compute alone) and to max(disk, compute beside fio), and a verdict by the
first: where fio differs from itself by more than 5 % in a round, that round says "noise".
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

from common import drop_from_cache, shards

SWEEP = [("1M", 32), ("2M", 16), ("4M", 8), ("4M", 16), ("8M", 8), ("16M", 4)]


def huge_pages_free():
    with open("/proc/meminfo", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("HugePages_Free")) * 2 >= 128


def fio_job(files, block, depth, *more):
    job = ["[global]", "ioengine=io_uring", "fixedbufs=1", "registerfiles=1", "direct=1", "rw=read", "invalidate=0",
           f"bs={block}", f"iodepth={depth}", "thread=1", *more]
    if huge_pages_free():
        job += ["iomem=shmhuge", "hugepage-size=2m"]
    names = ":".join(path.replace(":", "\\:") for path in files)
    job += ["[shards]", f"filename={names}", f"nrfiles={len(files)}", "file_service_type=sequential"]
    return "\n".join(job) + "\n"


def fio(files, block, depth, *more):
    """Bytes per second over whole files, one after the other, or what `more` says."""
    time.sleep(1)  # huge pages that a process had registered with io_uring come back a little after its end
    command = ["fio", "--readonly", "--output-format=json", "-"]
    out = subprocess.run(command, input=fio_job(files, block, depth, *more), capture_output=True, text=True,
                         check=True).stdout
    reads = [j["read"] for j in json.loads(out[out.index("{"):])["jobs"]]
    return sum(r["io_bytes"] for r in reads) / (sum(r["runtime"] for r in reads) / 1000)


def best_of_sweep(files):
    """The settings with the best median of three interleaved windows of the largest file."""
    path = max(files, key=os.path.getsize)
    window = min(os.path.getsize(path) // 20, 1 << 30) >> 20 << 20
    rates = {s: [] for s in SWEEP}
    for turn in range(3):
        for i, setting in enumerate(SWEEP):
            rates[setting].append(fio([path], *setting, f"size={window}", f"offset={window * (turn * len(SWEEP) + i)}"))
    for setting, values in rates.items():
        print(f"  fio {setting[0]:>3} x {setting[1]:<2}  " + "  ".join(f"{v / 1e9:.2f}" for v in values) + " GB/s")
    return max(SWEEP, key=lambda s: statistics.median(rates[s]))


def forward(args, *options):
    """Or the loop: what --json says, `wall_s` of all of it."""
    verb = ["denoise", "--steps", str(args.steps)] if args.steps else ["forward", "--timestep", "750"]
    out = subprocess.run([args.headrace, *verb, args.model, "--inputs", args.inputs, "--json", "--quiet", *args.options,
                          *options], capture_output=True, text=True)
    if out.returncode != 0:
        sys.exit(out.stderr)
    result = json.loads(out.stdout)
    result.setdefault("wall_s", result.get("loop", {}).get("wall_s"))
    return result


def bound(args, ours, compute, rate):
    """Seconds at `rate` bytes per second: all of the disk's, and the bound."""
    disk_s = ours["bytes_read"] / rate
    if not args.steps:
        return disk_s, max(disk_s, compute["wall_s"])
    predicted, walls = ours["predicted"], [step["wall_s"] for step in compute["steps"]]
    later_s = statistics.mean(walls[1:]) if len(walls) > 1 else walls[0]
    up_front_s = max(predicted["up_front_bytes"] / rate, walls[0] - later_s)
    first_s = max((predicted["first_bytes"] - predicted["up_front_bytes"]) / rate, later_s)
    return disk_s, up_front_s + first_s + (len(walls) - 1) * max(predicted["later_bytes"] / rate, later_s)


def steal_s():
    with open("/proc/stat", encoding="ascii") as f:
        return int(f.readline().split()[8]) / os.sysconf("SC_CLK_TCK")


def compute_beside_fio(args, files, setting, rate):
    """The forward without reading, while fio reads at `rate` bytes per second; and the steal meanwhile."""
    with tempfile.NamedTemporaryFile("w", suffix=".fio") as job:
        job.write(fio_job(files, *setting, f"rate={int(rate)}", "loops=1000"))
        job.flush()
        time.sleep(1)
        reader = subprocess.Popen(["fio", "--readonly", job.name], stdout=subprocess.DEVNULL)
        time.sleep(1)  # it has its memory
        try:
            before = steal_s()
            result = forward(args, "--io", "null")
            if reader.poll() is not None:
                sys.exit("fio ended before the forward beside it: it read too fast, or failed")
            return result, steal_s() - before
        finally:
            reader.terminate()
            reader.wait()


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        names = [line.split(":")[1].strip() for line in f if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{len(os.sched_getaffinity(0))} CPUs ({name}), Linux {platform.release()}"


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1].removeprefix("usage: "))
    parser.add_argument("headrace")
    parser.add_argument("model")
    parser.add_argument("inputs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    own = sys.argv[1:sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    args = parser.parse_args(own)
    args.options = sys.argv[len(own) + 2:]
    files = shards(args.model)
    print(f"machine  {machine()}\nmodel    {len(files)} files, {sum(map(os.path.getsize, files)) / 1e9:.2f} GB")
    block, depth = best_of_sweep(files)
    print(f"fio at its best: {block} x {depth}, {'huge' if huge_pages_free() else 'small'} pages")

    ratios, ratios_beside, noisy = [], [], 0
    for i in range(args.rounds):
        drop_from_cache(files)
        ours = [forward(args)]
        rates = [fio(files, block, depth)]
        compute = forward(args, "--io", "null")
        beside, stolen_s = compute_beside_fio(args, files, (block, depth), ours[0]["bytes_read"] / ours[0]["wall_s"])
        rates.append(fio(files, block, depth))
        drop_from_cache(files)
        ours.append(forward(args))

        disk_s, bound_s = bound(args, ours[0], compute, statistics.mean(rates))
        beside_s = bound(args, ours[0], beside, statistics.mean(rates))[1]
        wall_s = statistics.mean(o["wall_s"] for o in ours)
        spread = abs(rates[0] - rates[1]) / statistics.mean(rates)
        ratios.append(wall_s / bound_s)
        ratios_beside.append(wall_s / beside_s)
        noisy += spread > 0.05
        print(f"round {i + 1}  ours {ours[0]['wall_s']:.2f} {ours[1]['wall_s']:.2f} s  fio {disk_s:.2f} s "
              f"({rates[0] / 1e9:.2f} {rates[1] / 1e9:.2f} GB/s, spread {spread:.0%})  "
              f"compute {compute['wall_s']:.2f} s, beside fio {beside['wall_s']:.2f} s (steal {stolen_s:.1f} s)  "
              f"ratio {ratios[-1]:.3f}, {ratios_beside[-1]:.3f}{'  noise' if spread > 0.05 else ''}  peak "
              f"{max(o['peak_memory_bytes'] for o in ours) / 1e6:.0f} MB", flush=True)
    verdict = "inconclusive: noise" if noisy else ("within" if statistics.median(ratios) <= 1.10 else "above") + " 1.10"
    print(f"ratio    median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}: {verdict}")
    print(f"         to the computing beside fio {statistics.median(ratios_beside):.3f}, {min(ratios_beside):.3f} to "
          f"{max(ratios_beside):.3f}")


main()
