# SPDX-License-Identifier: Apache-2.0
"""accelerate: a device map with the blocks on "disk". They are first copied into its own format, a file for each
tensor, and read by name when a module is called. (All modules on "disk", by {"": "disk"}, is refused by its loader.)
"""
import glob
import os

import accelerate
import torch
from diffusers import QwenImageTransformer2DModel

import peer


def load(model, work):
    with accelerate.init_empty_weights():
        transformer = QwenImageTransformer2DModel(**peer.diffusers_config(model)).eval()
    places = {name: "cpu" for name, _ in transformer.named_children() if name != "transformer_blocks"}
    places.update({f"transformer_blocks.{i}": "disk" for i in range(len(transformer.transformer_blocks))})
    index = glob.glob(os.path.join(model, "*.index.json"))
    return accelerate.load_checkpoint_and_dispatch(transformer, (index or peer.shards(model))[0], device_map=places,
                                                   offload_folder=work, dtype=torch.bfloat16)


peer.measure(load, peer.diffusers_forward)
