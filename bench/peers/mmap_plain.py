# SPDX-License-Identifier: Apache-2.0
"""No offloading at all: diffusers' class over mapped files, the kernel's page cache does the rest."""
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file

import peer


def load(model, work):
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel(**peer.diffusers_config(model))
    for shard in peer.shards(model):
        transformer.load_state_dict(load_file(shard), strict=False, assign=True)
    peer.make_tables(transformer)
    return transformer.eval()


peer.measure(load, peer.diffusers_forward)
