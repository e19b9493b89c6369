# SPDX-License-Identifier: Apache-2.0
"""What the programs of this folder and of peers/ share."""
import glob
import json
import os
import sys


def shards(model):
    """The files of a model: a folder's, or the one that is named."""
    files = sorted(glob.glob(os.path.join(model, "*.safetensors"))) if os.path.isdir(model) else [model]
    if not files:
        sys.exit(f"{model}: no .safetensors files")
    return files


def drop_from_cache(paths):
    for path in paths:
        with open(path, "rb") as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def diffusers_config(model):
    """Arguments of QwenImageTransformer2DModel."""
    with open(os.path.join(model, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    return {k: v for k, v in config.items() if not k.startswith("_") and k != "pooled_projection_dim"}


def make_tables(transformer):
    """Tables that are no parameters, of a model that was made on the meta device."""
    transformer.pos_embed = type(transformer.pos_embed)(theta=10000, axes_dim=[16, 56, 56], scale_rope=True)
