#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write golden_values.h: outputs of diffusers' own QwenImageTransformer2DModel in f32.

Needs torch and diffusers (0.42 was used); the tests need neither, they read the header. The model is
the reduced one: 2 layers, 2 heads, joint dim 96, every value from its tensor's name and index, as
hr_synth() makes it. Usage: make_golden.py > golden_values.h
"""
import sys

import numpy as np
import torch
from diffusers import QwenImageTransformer2DModel


def seed(name):
    h = 0x811C9DC5
    for c in name.encode():
        h = (h ^ c) * 0x01000193 & 0xFFFFFFFF
    return h


def units(name, n):
    h = np.uint32(seed(name)) + np.uint32(0x9E3779B9) * np.arange(1, n + 1, dtype=np.uint32)
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> np.uint32(16)
    return (h >> np.uint32(8)).astype(np.float64) * 2.0**-24 * 2 - 1


def value(name, shape):
    u = units(name, int(np.prod(shape))).reshape(shape)
    modulation = "_mod.1." in name or name.startswith("norm_out.linear.")
    if name == "time_text_embed.addition_t_embedding.weight":
        u = u * 0.5
    elif name.endswith(".bias"):
        u = u * (0.5 if modulation else 0.1)
    elif len(shape) == 1:
        u = 1 + 0.25 * u
    else:
        u = u * ((0.5 if modulation else 1.0) * np.sqrt(3.0 / shape[1]))
    return torch.from_numpy(u.astype(np.float32))


def model(**flags):
    m = QwenImageTransformer2DModel(num_layers=2, num_attention_heads=2, joint_attention_dim=96, **flags)
    m.load_state_dict({k: value(k, tuple(v.shape)) for k, v in m.state_dict().items()})
    return m.eval()


def quick_gelu(m):
    """DiffSynth's activation in place of tanh-GELU."""
    for block in m.transformer_blocks:
        for mlp in (block.img_mlp, block.txt_mlp):
            up = mlp.net[0].proj
            mlp.net[0].forward = lambda x, up=up: (lambda y: y * torch.sigmoid(1.702 * y))(up(x))
    return m


def latent(name, h, w):
    return torch.from_numpy((units(name, 16 * h * w) * 1.7).astype(np.float32)).reshape(16, h, w)


def pack(x):
    c, h, w = x.shape
    return x.reshape(c, h // 2, 2, w // 2, 2).permute(1, 3, 0, 2, 4).reshape(h // 2 * (w // 2), c * 4)


@torch.no_grad()
def run(m, images, layered=False, n_text=4):
    tokens = torch.cat([pack(x) for x in images])[None]
    prompt = torch.from_numpy((units("prompt", n_text * 96) * 3).astype(np.float32)).reshape(1, n_text, 96)
    shapes = [[(1, x.shape[1] // 2, x.shape[2] // 2) for x in images]]
    extra = {"additional_t_cond": torch.zeros(1, dtype=torch.long)} if layered else {}
    return m(hidden_states=tokens, encoder_hidden_states=prompt, timestep=torch.tensor([0.75]), img_shapes=shapes,
             return_dict=False, **extra)[0][0].numpy()


def show(name, rows):
    print(f"\nstatic const float golden_{name}[{rows.size}] = {{")
    flat = [f"{v:.9g}" for v in rows.ravel()]
    flat = [v + ("f" if "." in v or "e" in v else ".0f") for v in flat]
    for i in range(0, len(flat), 6):
        print("    " + ", ".join(flat[i:i + 6]) + ",")
    print("};")
    print(f"{name}: sum {rows.sum():.4f} abs {np.abs(rows).sum():.4f}", rows.shape, rows[0, :4], file=sys.stderr)


def main():
    target, reference = latent("latent", 6, 10), latent("reference", 4, 6)
    layer, condition = latent("layer1", 6, 10), latent("condition", 6, 10)
    print("/* SPDX-License-Identifier: Apache-2.0 */")
    print("/* golden_values.h -- made by make_golden.py from diffusers' QwenImageTransformer2DModel in f32:")
    print(" * rows of proj_out, [tokens, 64], references included. Not to be edited. */\n/* clang-format off */")
    plain = model()
    show("a", run(plain, [target]))
    show("b", run(plain, [target, reference]))
    show("a_quick", run(quick_gelu(model()), [target]))
    show("c", run(model(zero_cond_t=True), [target, reference]))
    show("d", run(model(use_additional_t_cond=True, use_layer3d_rope=True), [target, layer, condition], layered=True))


main()
