#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Wall time of a forward against its bound: max(bytes at fio's rate, compute with weights in memory).

usage: forward_bound.py HEADRACE MODEL_DIR INPUTS [--rounds 3] [-- OPTIONS OF headrace forward]

All three in one run, interleaved, since a disk that is shared changes within minutes. A round is
    ours, fio, compute alone, fio, ours
where fio reads the same files whole, in order, with io_uring, O_DIRECT, registered buffers and files, at the
best block size and depth of a small sweep at the start, and "compute alone" is the same forward with
`--io null`, which hands out ring memory without reading. Before each read by ours the files are dropped from
the page cache if they are in it. Prints each figure, the ratio of each round, and a verdict: where fio
differs from itself by more than 5 % in a round, that round says "noise".
"""
import argparse
import glob
import json
import os
import platform
import statistics
import subprocess
import sys

SWEEP = [("1M", 32), ("2M", 16), ("4M", 8), ("4M", 16), ("8M", 8), ("16M", 4)]


def shards(model):
    files = sorted(glob.glob(os.path.join(model, "*.safetensors"))) if os.path.isdir(model) else [model]
    if not files:
        sys.exit(f"{model}: no .safetensors files")
    return files


def fio(files, block, depth, size=None, offset=None):
    """Bytes per second over whole files, one after the other, or over a window of the first."""
    job = ["[global]", "ioengine=io_uring", "fixedbufs=1", "registerfiles=1", "direct=1", "rw=read",
           f"bs={block}", f"iodepth={depth}", "thread=1"]
    if size:
        job += [f"size={size}", f"offset={offset}"]
    for i, path in enumerate(files):
        job += [f"[shard{i}]", f"filename={path}", "stonewall"]
    command = ["fio", "--readonly", "--output-format=json", "-"]
    out = subprocess.run(command, input="\n".join(job) + "\n", capture_output=True, text=True, check=True).stdout
    reads = [j["read"] for j in json.loads(out[out.index("{"):])["jobs"]]
    return sum(r["io_bytes"] for r in reads) / (sum(r["runtime"] for r in reads) / 1000)


def best_of_sweep(files):
    """The settings with the best median of three interleaved windows of the largest file."""
    path = max(files, key=os.path.getsize)
    window = min(os.path.getsize(path) // 20, 1 << 30) >> 20 << 20
    rates = {s: [] for s in SWEEP}
    for turn in range(3):
        for i, setting in enumerate(SWEEP):
            rates[setting].append(fio([path], *setting, size=window, offset=window * (turn * len(SWEEP) + i)))
    for setting, values in rates.items():
        print(f"  fio {setting[0]:>3} x {setting[1]:<2}  " + "  ".join(f"{v / 1e9:.2f}" for v in values) + " GB/s")
    return max(SWEEP, key=lambda s: statistics.median(rates[s]))


def drop_from_cache(files):
    for path in files:
        with open(path, "rb") as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def forward(args, *options):
    out = subprocess.run([args.headrace, "forward", args.model, "--inputs", args.inputs, "--timestep", "750", "--json",
                          "--quiet", *args.options, *options], capture_output=True, text=True)
    if out.returncode != 0:
        sys.exit(out.stderr)
    return json.loads(out.stdout)


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        names = [line.split(":")[1].strip() for line in f if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{len(os.sched_getaffinity(0))} CPUs ({name}), Linux {platform.release()}"


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1])
    parser.add_argument("headrace")
    parser.add_argument("model")
    parser.add_argument("inputs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("options", nargs="*", help="after --: options of headrace forward")
    args = parser.parse_args()
    files = shards(args.model)
    print(f"machine  {machine()}\nmodel    {len(files)} files, {sum(map(os.path.getsize, files)) / 1e9:.2f} GB")
    block, depth = best_of_sweep(files)
    print(f"fio at its best: {block} x {depth}")

    ratios, noisy = [], 0
    for i in range(args.rounds):
        drop_from_cache(files)
        ours = [forward(args)]
        rates = [fio(files, block, depth)]
        compute = forward(args, "--io", "null")
        rates.append(fio(files, block, depth))
        drop_from_cache(files)
        ours.append(forward(args))

        disk_s = ours[0]["bytes_read"] / statistics.mean(rates)
        bound_s = max(disk_s, compute["wall_s"])
        wall_s = statistics.mean(o["wall_s"] for o in ours)
        spread = abs(rates[0] - rates[1]) / statistics.mean(rates)
        ratios.append(wall_s / bound_s)
        noisy += spread > 0.05
        print(f"round {i + 1}  ours {ours[0]['wall_s']:.2f} {ours[1]['wall_s']:.2f} s  fio {disk_s:.2f} s "
              f"({rates[0] / 1e9:.2f} {rates[1] / 1e9:.2f} GB/s, spread {spread:.0%})  "
              f"compute {compute['wall_s']:.2f} s  "
              f"ratio {ratios[-1]:.3f}{'  noise' if spread > 0.05 else ''}  peak "
              f"{max(o['peak_memory_bytes'] for o in ours) / 1e6:.0f} MB", flush=True)
    verdict = "inconclusive: noise" if noisy else ("within" if statistics.median(ratios) <= 1.10 else "above") + " 1.10"
    print(f"ratio    median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}: {verdict}")


main()
