# SPDX-License-Identifier: Apache-2.0
"""accelerate: disk_offload(). Weights are first copied into its own format; each module's are read by name."""
import accelerate
import torch
from diffusers import QwenImageTransformer2DModel

import peer


def load(model, work):
    with accelerate.init_empty_weights():
        transformer = QwenImageTransformer2DModel(**peer.diffusers_config(model)).eval()
    accelerate.load_checkpoint_in_model(transformer, model, device_map={"": "disk"}, offload_folder=work,
                                        dtype=torch.bfloat16)
    return accelerate.disk_offload(transformer, work, execution_device=torch.device("cpu"))


peer.measure(load, peer.diffusers_forward)
