# SPDX-License-Identifier: Apache-2.0
"""DiffSynth-Studio: vram_config with "disk" states for offload and onload, on the CPU.

Its pipeline does not run on a CPU alone (it empties the cache of a GPU); the DiT and its `model_fn` do, which is
what is measured. Its DiT has quick-GELU, and is compared with ours in quick-GELU.
"""
import importlib.machinery
import importlib.util
import sys
import types

if importlib.util.find_spec("torchvision") is None:  # imported for videos only
    import transformers.image_utils  # noqa: F401  decides first that there is none
    for name in ("torchvision", "torchvision.transforms"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)

import torch
from diffsynth.configs import VRAM_MANAGEMENT_MODULE_MAPS
from diffsynth.core.loader.model import load_model
from diffsynth.models.model_loader import ModelPool
from diffsynth.models.qwen_image_dit import QwenImageDiT
from diffsynth.pipelines.qwen_image import model_fn_qwen_image

import peer

STATES = {"offload_dtype": "disk", "offload_device": "disk", "onload_dtype": "disk", "onload_device": "disk",
          "preparing_dtype": torch.bfloat16, "preparing_device": "cpu", "computation_dtype": torch.bfloat16,
          "computation_device": "cpu"}


def load(model, work):
    modules = VRAM_MANAGEMENT_MODULE_MAPS["diffsynth.models.qwen_image_dit.QwenImageDiT"]
    imported = ModelPool().import_model_class
    return load_model(QwenImageDiT, peer.shards(model), {"num_layers": peer.diffusers_config(model)["num_layers"]},
                      torch.bfloat16, "cpu", use_disk_map=True,
                      module_map={imported(k): imported(v) for k, v in modules.items()}, vram_config=STATES)


def forward(dit, latents, prompt_emb):
    with torch.no_grad():
        return model_fn_qwen_image(dit=dit, latents=torch.from_numpy(latents)[None].bfloat16(),
                                   timestep=torch.tensor([peer.TIMESTEP]).bfloat16(),
                                   prompt_emb=torch.from_numpy(prompt_emb)[None].bfloat16(),
                                   prompt_emb_mask=torch.ones(1, len(prompt_emb), dtype=torch.long),
                                   height=latents.shape[1] * 8, width=latents.shape[2] * 8)[0].float().numpy()


peer.measure(load, forward)
