#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compare a velocity of `headrace forward` with diffusers' own QwenImageTransformer2DModel.

usage: compare_diffusers.py MODEL_DIR INPUTS VELOCITY --timestep T [--quick-gelu] [--dtype f32|bf16]

Needs torch, diffusers (0.42) and safetensors, and memory for the whole model in that dtype: use a model of
few blocks (headrace synth MODEL --layers 2). Prints the relative RMS and the largest difference; exit 1
when the relative RMS is above --bound (default 1e-4).
"""
import argparse
import sys

import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file

from common import diffusers_config, make_tables, shards


def pack(x):
    c, h, w = x.shape
    return x.reshape(c, h // 2, 2, w // 2, 2).permute(1, 3, 0, 2, 4).reshape(h // 2 * (w // 2), c * 4)


def unpack(tokens, h, w):
    return tokens.reshape(h // 2, w // 2, 16, 2, 2).permute(2, 0, 3, 1, 4).reshape(16, h, w)


def load_model(folder, dtype):
    config, weights = diffusers_config(folder), {}
    for shard in shards(folder):
        weights.update(load_file(shard))
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(**config)
    model.load_state_dict({k: v.to(dtype) for k, v in weights.items()}, assign=True)
    make_tables(model)
    return model.eval(), config


def quick_gelu(model):
    for block in model.transformer_blocks:
        for mlp in (block.img_mlp, block.txt_mlp):
            up = mlp.net[0].proj
            mlp.net[0].forward = lambda x, up=up: (lambda y: y * torch.sigmoid(1.702 * y))(up(x))


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("inputs")
    parser.add_argument("velocity")
    parser.add_argument("--timestep", type=float, required=True)
    parser.add_argument("--quick-gelu", action="store_true")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--bound", type=float, default=1e-4)
    args = parser.parse_args()
    dtype = torch.float32 if args.dtype == "f32" else torch.bfloat16

    model, config = load_model(args.model, dtype)
    if args.quick_gelu:
        quick_gelu(model)
    inputs = load_file(args.inputs)
    latents = inputs["latents"].float()
    targets = list(latents) if latents.dim() == 4 else [latents]
    references = [inputs[f"reference.{i}"].float() for i in range(sum(k.startswith("reference.") for k in inputs))]
    images = targets + references
    prompt = inputs["prompt_emb"].float().reshape(1, -1, config["joint_attention_dim"]).to(dtype)
    extra = {"additional_t_cond": torch.zeros(1, dtype=torch.long)} if config.get("use_additional_t_cond") else {}
    out = model(hidden_states=torch.cat([pack(x) for x in images])[None].to(dtype), encoder_hidden_states=prompt,
                timestep=torch.tensor([args.timestep / 1000], dtype=dtype),
                img_shapes=[[(1, x.shape[1] // 2, x.shape[2] // 2) for x in images]], return_dict=False, **extra)[0][0]
    h, w = targets[0].shape[1:]
    n = h // 2 * (w // 2)
    want = torch.stack([unpack(out[i * n:(i + 1) * n].float(), h, w) for i in range(len(targets))])
    got = load_file(args.velocity)["velocity"].float().reshape(want.shape)
    rms = ((got - want).norm() / want.norm()).item()
    print(f"relative RMS {rms:.3e}, largest difference {(got - want).abs().max().item():.3e} "
          f"(largest value {want.abs().max().item():.3f}), diffusers in {args.dtype}")
    return 0 if rms <= args.bound else 1


sys.exit(main())
