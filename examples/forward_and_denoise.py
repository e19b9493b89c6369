#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One forward and a short denoising loop with a model of made-up values, in numpy. usage: forward_and_denoise.py"""
import os
import tempfile

import headrace
import numpy as np

rng = np.random.default_rng(0)
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "model")
    headrace.synth(path, layers=4, heads=4, joint_dim=256)  # the published sizes: headrace.synth(path)
    prompt, negative = (rng.standard_normal((n, 256), dtype=np.float32) for n in (12, 5))
    latents = rng.standard_normal((16, 32, 32), dtype=np.float32)  # 256 x 256 pixels

    with headrace.Model(path, ram="1GiB") as model:
        velocity = model.forward(latents, prompt, timestep=750)
        print(f"velocity {velocity.shape}, {velocity.dtype}, deviation {velocity.std():.3f}")

        result = model.denoise(prompt, negative_emb=negative, width=256, height=256, seed=1, steps=4,
                               progress=lambda done, n: print(f"step {done} of {n}"))
        print(f"latents {result.shape}; the last step read {model.stats.bytes_used / 1e6:.0f} MB, "
              f"the process took {model.stats.peak_memory_bytes / 1e6:.0f} MB at most")
