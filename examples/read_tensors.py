#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Stream all tensors of a safetensors model. usage: read_tensors.py [MODEL]; without one a model is made up."""
import importlib.util
import os
import sys
import tempfile
import time

import headrace


def read(path):
    # numpy has no bfloat16
    with headrace.open(path, framework="torch" if importlib.util.find_spec("torch") else "numpy") as model:
        begin, total = time.monotonic(), 0
        for band in model.bands(prefetch="192MiB"):  # views of the ring, valid until the next one
            total += band.data.nbytes
        seconds = time.monotonic() - begin
        print(f"{len(model)} tensors, {total / 1e9:.2f} GB in {seconds:.2f} s: {total / 1e9 / seconds:.2f} GB/s "
              f"({model.stats.io_name}, {'direct' if model.stats.direct else 'through the page cache'})")
        name = model.keys()[0]
        print(f"{name}: {model.info(name).dtype} {list(model.info(name).shape)}, first value "
              f"{model.get_f32(name).flat[0]:.4f}")


if len(sys.argv) > 1:
    try:
        read(sys.argv[1])
    except (OSError, ValueError) as error:
        sys.exit(str(error))
else:
    with tempfile.TemporaryDirectory() as folder:
        headrace.synth(os.path.join(folder, "model"), layers=4, heads=8, joint_dim=512, dtype="f32")
        read(os.path.join(folder, "model"))
