# SPDX-License-Identifier: Apache-2.0
"""What the programs of this folder share: the input, the clock, and what a process has used.

Each is run as `python PEER.py MODEL INPUTS WORK` by run.py: MODEL a folder of safetensors shards with config.json,
INPUTS made by `headrace inputs`, WORK an empty folder for whatever the peer writes. It loads, computes one
forward and two guided steps, writes WORK/velocity.npy and prints its figures as one line of JSON.
"""
import ctypes
import ctypes.util
import json
import mmap
import os
import sys
import threading
import time

import numpy as np

sys.path.insert(1, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import diffusers_config, drop_from_cache, make_tables, shards  # noqa: E402,F401

TIMESTEP = 500.0  # which bfloat16 holds, and its thousandth, too: no peer rounds it
PAGE = mmap.PAGESIZE


def cached_bytes(path):
    """Bytes of a file that lie in the page cache, by mincore()."""
    size = os.path.getsize(path)
    if size == 0:
        return 0
    libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    with open(path, "rb") as f:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, f.fileno(), 0)
    pages = (size + PAGE - 1) // PAGE
    present = np.zeros(pages, np.uint8)
    libc.mincore(address, size, present.ctypes.data)
    libc.munmap(address, size)
    return int((present & 1).sum()) * PAGE


def files_of(folder):
    return [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names]


def read_bytes():
    """Bytes that this process had fetched from disks, through the page cache or past it."""
    with open("/proc/self/io", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("read_bytes"))


def anonymous_bytes():
    """Memory that no file stands behind, huge pages and pinned buffers included."""
    with open("/proc/self/status", encoding="ascii") as f:
        fields = dict(line.split(":", 1) for line in f)
    return sum(int(fields[k].split()[0]) << 10 for k in ("RssAnon", "RssShmem", "HugetlbPages"))


class Peak(threading.Thread):
    """The most anonymous memory, looked at 50 times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes = 0
        self.start()

    def run(self):
        while True:
            self.bytes = max(self.bytes, anonymous_bytes())
            time.sleep(0.02)


def read_inputs(path):
    """latents [16, h, w], prompt_emb [n, 3584], negative_prompt_emb [m, 3584], all float32."""
    with open(path, "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        data = f.read()
    return {name: np.frombuffer(data[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"]).copy()
            for name, entry in header.items() if name != "__metadata__"}


def measure(load, forward, guided=None):
    """Run a peer.

    Args:
        load(model, work): whatever `forward` takes first.
        forward(loaded, latents, prompt_emb): the velocity [16, h, w] as float32.
        guided(loaded, latents, prompts): the velocities for both prompts; None: two forwards.
    """
    model, inputs, work = sys.argv[1:4]
    sample = read_inputs(inputs)
    latents, prompts = sample["latents"], [sample["prompt_emb"], sample["negative_prompt_emb"]]
    if guided is None:
        def guided(loaded, x, both):
            return [forward(loaded, x, p) for p in both]
    peak, result, mark = Peak(), {}, [time.monotonic(), read_bytes()]

    def lap(name):
        now = [time.monotonic(), read_bytes()]
        result[name + "_s"], result[name + "_bytes"] = now[0] - mark[0], now[1] - mark[1]
        mark[:] = now
        print(f"{os.path.basename(sys.argv[0])}: {name} {result[name + '_s']:.1f} s", file=sys.stderr, flush=True)

    loaded = load(model, work)
    lap("setup")
    velocity = forward(loaded, latents, prompts[0])
    lap("forward")
    guided(loaded, latents, prompts)
    lap("guided")
    guided(loaded, latents, prompts)
    lap("later")
    np.save(os.path.join(work, "velocity.npy"), velocity)
    result["peak_anonymous_bytes"] = peak.bytes
    result["page_cache_bytes"] = sum(cached_bytes(p) for p in shards(model) + files_of(work))
    result["extra_disk_bytes"] = sum(os.path.getsize(p) for p in files_of(work))
    print(json.dumps(result), flush=True)


# ---- for those that are built on diffusers' class --------------------------------------------------------

def diffusers_forward(transformer, latents, prompt_emb):
    import torch
    c, h, w = latents.shape
    tokens = latents.reshape(c, h // 2, 2, w // 2, 2).transpose(1, 3, 0, 2, 4).reshape(1, -1, 4 * c)
    with torch.no_grad():
        out = transformer(hidden_states=torch.from_numpy(tokens.copy()).bfloat16(),
                          encoder_hidden_states=torch.from_numpy(prompt_emb)[None].bfloat16(),
                          timestep=torch.tensor([TIMESTEP / 1000]).bfloat16(),
                          img_shapes=[[(1, h // 2, w // 2)]], return_dict=False)[0][0]
    out = out.float().numpy().reshape(h // 2, w // 2, c, 2, 2)
    return np.ascontiguousarray(out.transpose(2, 0, 3, 1, 4).reshape(c, h, w))
