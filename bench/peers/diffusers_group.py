# SPDX-License-Identifier: Apache-2.0
"""diffusers: group offload to disk, a block at a time. Weights are first copied into files of its own."""
import torch
from diffusers import QwenImageTransformer2DModel

import peer


def load(model, work):
    transformer = QwenImageTransformer2DModel.from_pretrained(model, torch_dtype=torch.bfloat16).eval()
    transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_device=torch.device("cpu"),
                                     offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=work)
    return transformer


peer.measure(load, peer.diffusers_forward)
