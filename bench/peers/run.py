#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The same model, input and memory limit for each way of computing a DiT that does not fit: one table.

usage: run.py HEADRACE MODEL [--memory 8GiB] [--size 256] [--text 64] [--work FOLDER] [--only NAME ...]

MODEL is made by `headrace synth`; the Python that runs this has torch, diffusers 0.42, accelerate, diffsynth
2.1 (without its dependencies) and headrace. Each peer runs by itself, from a cold page cache, in a memory
cgroup of --memory, page cache included, where this process may make one; where not, the table says "no
limit". One forward, then two guided steps (of two prompts). headrace runs first and last: what lies between its
two rows is the disk's doing. "difference" is to headrace in f32 with the peer's activation: relative RMS, and
the largest of any value.
What fails is in the table with its reason.
"""
import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile

import numpy as np

import peer

HERE = os.path.dirname(os.path.abspath(__file__))
PEERS = [("headrace", "headrace_stream.py", {}),
         ("headrace, ram = limit", "headrace_stream.py", {"HEADRACE_RAM": "limit"}),
         ("mmap", "mmap_plain.py", {}),
         ("accelerate disk_offload", "accelerate_disk.py", {}),
         ("diffusers group offload", "diffusers_group.py", {}),
         ("DiffSynth disk states", "diffsynth_disk.py", {}),
         ("headrace, again", "headrace_stream.py", {})]


def size(text):
    for suffix, shift in (("GiB", 30), ("MiB", 20)):
        if text.endswith(suffix):
            return int(float(text[:-3]) * (1 << shift))
    return int(text)


class MemoryGroup:
    """A cgroup of version 1 or 2 below our own; `path` is None where there can be none."""

    def __init__(self, limit):
        self.path = None
        for parent, name in self._parents():
            path = os.path.join(parent, f"headrace-peers-{os.getpid()}")
            try:
                os.mkdir(path)
            except OSError:
                continue
            try:
                with open(os.path.join(path, name), "w", encoding="ascii") as f:
                    f.write(str(limit))
            except OSError:
                os.rmdir(path)
                continue
            self.path = path
            return

    @staticmethod
    def _parents():
        with open("/proc/self/cgroup", encoding="ascii") as f:
            for line in f:
                _, controllers, own = line.strip().split(":", 2)
                if controllers == "":
                    yield "/sys/fs/cgroup" + own, "memory.max"
                elif "memory" in controllers.split(","):
                    yield "/sys/fs/cgroup/memory" + own, "memory.limit_in_bytes"

    def enter(self):
        """In the child, before it becomes the peer."""
        if self.path:
            with open(os.path.join(self.path, "cgroup.procs"), "w", encoding="ascii") as f:
                f.write(str(os.getpid()))

    def close(self):
        if self.path:
            os.rmdir(self.path)


def run_peer(script, extra, args, inputs, group):
    work = tempfile.mkdtemp(dir=args.work)
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
           **{k: str(size(args.memory) - (64 << 20)) if v == "limit" else v for k, v in extra.items()}}
    peer.drop_from_cache(peer.shards(args.model))
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.run([sys.executable, os.path.join(HERE, script), args.model, inputs, work], env=env,
                                 stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=group.enter)
        log.seek(0)
        lines = [line for line in log.read().splitlines() if line.strip()]
    try:
        if process.returncode != 0:
            why = "killed: the memory limit" if process.returncode == -9 else lines[-1] if lines else "no word"
            return {"failed": why}
        result = json.loads(process.stdout.splitlines()[-1])
        result["velocity"] = np.load(os.path.join(work, "velocity.npy"))
        return result
    finally:
        shutil.rmtree(work)


def reference(args, inputs, activation):
    path = os.path.join(args.work, "reference.safetensors")
    subprocess.run([args.headrace, "forward", args.model, "--inputs", inputs, "--timestep", str(peer.TIMESTEP),
                    "--precision", "f32", "--activation", activation, "--output", path, "--quiet"], check=True,
                   stdout=subprocess.DEVNULL)
    velocity = peer.read_inputs(path)["velocity"]
    os.remove(path)
    return velocity


def print_row(name, result, want):
    if "failed" in result:
        print(f"| {name} | failed: {result['failed'][:160]} |", flush=True)
        return
    got = result["velocity"]
    rms = np.linalg.norm(got - want) / np.linalg.norm(want)
    gb = {k: result[k] / 1e9 for k in result if k.endswith("_bytes")}
    print(f"| {name} | {result['setup_s']:.1f} | {result['forward_s']:.1f} "
          f"| {result['guided_s']:.1f}, {result['later_s']:.1f} "
          f"| {gb['setup_bytes']:.1f}, {gb['forward_bytes']:.1f}, {gb['guided_bytes']:.1f}, {gb['later_bytes']:.1f} "
          f"| {gb['peak_anonymous_bytes']:.2f} | {gb['page_cache_bytes']:.1f} | {gb['extra_disk_bytes']:.1f} "
          f"| {rms:.1e}, {np.abs(got - want).max():.3f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1])
    parser.add_argument("headrace")
    parser.add_argument("model")
    parser.add_argument("--memory", default="8GiB", help="limit on memory and page cache of each peer")
    parser.add_argument("--size", type=int, default=256, help="pixels, of each side")
    parser.add_argument("--text", type=int, default=64, help="tokens of both prompts")
    parser.add_argument("--work", help="folder on the model's disk for what the peers write; default: beside MODEL")
    parser.add_argument("--only", nargs="*", default=[], help="words in the names of those to run")
    args = parser.parse_args()
    args.work = tempfile.mkdtemp(dir=args.work or os.path.dirname(os.path.abspath(args.model)))
    group = MemoryGroup(size(args.memory))
    try:
        inputs = os.path.join(args.work, "inputs.safetensors")
        subprocess.run([args.headrace, "inputs", args.model, "--width", str(args.size), "--height", str(args.size),
                        "--text-tokens", str(args.text), "--negative-tokens", str(args.text), "--output", inputs],
                       check=True, stdout=subprocess.DEVNULL)
        want = {a: reference(args, inputs, a) for a in ("gelu_tanh", "quick_gelu")}
        total = sum(map(os.path.getsize, peer.shards(args.model)))
        print(f"model {total / 1e9:.2f} GB, {args.size}x{args.size} pixels, {args.text} text tokens, "
              f"{len(os.sched_getaffinity(0))} CPUs, Linux {platform.release()}, "
              + (f"memory limit {args.memory}" if group.path else "no limit on memory: no cgroup can be made here"))
        print("\n| | setup s | forward s | guided steps s | GB read: setup, forward, guided steps | peak anonymous GB "
              "| page cache GB | extra disk GB | difference: relative RMS, largest |\n"
              "| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for name, script, extra in PEERS:
            if not args.only or any(word in name for word in args.only):
                print_row(name, run_peer(script, extra, args, inputs, group),
                          want["quick_gelu" if "DiffSynth" in name else "gelu_tanh"])
    finally:
        group.close()
        shutil.rmtree(args.work)


main()
