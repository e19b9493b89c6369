# SPDX-License-Identifier: Apache-2.0
"""The DiT of DiffSynth-Studio's QwenImagePipeline (diffsynth 2.1): its weights stay on the disk.

A script whose DiT has `vram_config` states with offload "disk" changes by one line, before
`QwenImagePipeline.from_pretrained`:

    headrace.diffsynth.register()

One that has a pipeline without a DiT gives it one:

    headrace.diffsynth.enable(pipe, "Qwen-Image/transformer")

Both prompts of guidance go through the weights in one pass, and the conditioning weights are read once
a run. LoRA is loaded and cleared as always, by `pipe.load_lora(pipe.dit, ...)` and `pipe.clear_lora()`.
"""
from __future__ import annotations

import os
from typing import Any, Optional, Sequence, Union

import torch
from diffsynth.configs import VRAM_MANAGEMENT_MODULE_MAPS
from diffsynth.core.vram.initialization import skip_model_initialization
from diffsynth.core.vram.layers import (AutoTorchModule, AutoWrappedLinear, AutoWrappedModule, LoRAHotLoadMixin,
                                        enable_vram_management)
from diffsynth.diffusion.base_pipeline import BasePipeline
from diffsynth.models.model_loader import ModelPool
from diffsynth.models.qwen_image_dit import QwenImageDiT
from diffsynth.pipelines import qwen_image
from diffsynth.pipelines.qwen_image import QwenImagePipeline

from ._library import Size
from ._lora import save_temporary
from .model import Inputs, Model, timestep_of
from .reader import Reader

DIT = "diffsynth.models.qwen_image_dit.QwenImageDiT"
MODULE_MAP = {
    "diffsynth.models.qwen_image_dit.RMSNorm": "headrace.diffsynth.StreamedModule",
    "torch.nn.Linear": "headrace.diffsynth.StreamedLinear",
    "torch.nn.Embedding": "headrace.diffsynth.StreamedModule",
}
#: arguments of model_fn_qwen_image that change the result and that the library does not have
UNSUPPORTED = ("blockwise_controlnet_conditioning", "entity_prompt_emb", "edit_rope_interpolation", "kv_cache")

_model_fn = qwen_image.model_fn_qwen_image
_cfg_guided_model_fn = BasePipeline.cfg_guided_model_fn
_load_models_to_device = BasePipeline.load_models_to_device
_check_free_vram = AutoTorchModule.check_free_vram
_options: dict[str, Any] = {}


class _Streamed(AutoTorchModule):
    """A module of the DiT that has no weights in memory, in whatever state."""

    def __init__(self, module: torch.nn.Module, *, name: str = "", disk_map: Any = None, quantize: Any = None,
                 metadata: Any = None, **states: Any):
        super().__init__(**states)
        self.name, self.disk_map = name, disk_map

    def offload(self) -> None:
        pass

    def onload(self) -> None:
        pass

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(f"{self.name}: the DiT is computed as a whole; call the pipeline's model_fn")


def _from_disk(states: dict[str, Any]) -> bool:
    return "disk" in (states.get("offload_device"), states.get("offload_dtype"))


class StreamedModule(_Streamed):
    """In the module map for norms and embeddings; where weights are not on the disk, DiffSynth's own."""

    def __new__(cls, module: torch.nn.Module, **states: Any) -> Any:
        return super().__new__(cls) if _from_disk(states) else AutoWrappedModule(module, **states)


class StreamedLinear(_Streamed, LoRAHotLoadMixin):
    """In the module map for linears; where weights are not on the disk, DiffSynth's own."""

    def __new__(cls, module: torch.nn.Module, **states: Any) -> Any:
        return super().__new__(cls) if _from_disk(states) else AutoWrappedLinear(module, **states)

    def __init__(self, module: torch.nn.Linear, **states: Any):
        super().__init__(module, **states)
        self.in_features, self.out_features = module.in_features, module.out_features
        self.init_lora_hotload()


class Streamer:
    """A streamed DiT's model in the library, opened when first used."""

    def __init__(self, dit: QwenImageDiT):
        self.dit, self.lora = dit, []  # (layer, A, B): kept, so that a new tensor is no old one
        self.lora_files: list[str] = []  # read whenever the model is opened
        self.model = Model(**self._options())

    def _options(self) -> dict[str, Any]:
        """Device, precision and limits as the states of the DiT's linears say."""
        s = self.dit.img_in
        precisions = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "bf16"}
        if s.computation_dtype not in precisions:
            raise ValueError(f"computation_dtype {s.computation_dtype}; expected bfloat16, float16 or float32")
        device = str(s.computation_device)
        options = {"path": s.disk_map.path, "device": device, "ram": None, "activation": "quick_gelu",
                   "precision": precisions[s.computation_dtype]}
        if device.split(":")[0] != "cpu" and s.vram_limit is not None:
            options["vram"] = int(s.vram_limit * 2**30)
        if "disk" == s.onload_device == s.preparing_device:
            options["resident"] = 1  # nothing is to stay in memory
        return {**options, **_options}

    def forward(self, prompts: Sequence[dict], shared: dict, timesteps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Velocities for each prompt, in one pass, as `model_fn_qwen_image` gives them.

        Args:
            prompts: arguments of model_fn that differ, `prompt_emb` [1, n_text, 3584] among them.
            shared: the others: latents [1 (layered: layers + 1), 16, h, w], references.
            timesteps: of this step and those that follow, sigma * 1000, in the pipeline's dtype.
        """
        for name in UNSUPPORTED:
            if any(p.get(name) is not None and p.get(name) is not False for p in (shared, *prompts)):
                raise ValueError(f"{name} is not supported by headrace")
        latents = shared["latents"]
        references = list(_listed(shared.get("context_latents"))) + list(_listed(shared.get("edit_latents")))
        references += _listed(shared.get("layer_input_latents"))
        samples = [Inputs(latents, p["prompt_emb"], references) for p in prompts]
        steps = [timestep_of(float((t / 1000).float())) for t in timesteps]
        self.model.zero_cond_t = bool(shared.get("zero_cond_t"))
        self._set_lora()
        done = self.model.forward_many(samples, steps[0], timesteps=steps, progress=False)
        return [v.to(latents.device, latents.dtype) for v in done]

    def _set_lora(self) -> None:
        """What `load_lora` has put beside the linears, where it has changed."""
        layers = [m for m in self.dit.modules() if isinstance(m, StreamedLinear) and m.lora_A_weights]
        lora = [(m, a, b) for m in layers for a, b in zip(m.lora_A_weights, m.lora_B_weights)]
        if len(lora) == len(self.lora) and all(x is y for p, q in zip(lora, self.lora) for x, y in zip(p, q)):
            return
        if any(m.lora_merger is not None for m in layers):
            raise ValueError("a LoRA merger is not supported by headrace")
        self._remove_files()
        for i in range(max((len(m.lora_A_weights) for m in layers), default=0)):
            tensors = {}
            for m in layers:
                if i < len(m.lora_A_weights):
                    tensors[m.name + ".lora_A.weight"] = m.lora_A_weights[i]
                    tensors[m.name + ".lora_B.weight"] = m.lora_B_weights[i]
            self.lora_files.append(save_temporary(tensors))
        self.model.set_lora(self.lora_files)
        self.lora = lora

    def _remove_files(self) -> None:
        for path in self.lora_files:
            os.remove(path)
        self.lora_files = []

    def __del__(self) -> None:
        self._remove_files()


def _listed(x: Any) -> list:
    return [] if x is None else list(x) if isinstance(x, (list, tuple)) else [x]


def streamer(dit: Any) -> Optional[Streamer]:
    """Of a DiT whose modules are those of this file; None for any other."""
    if not isinstance(getattr(dit, "img_in", None), StreamedLinear):
        return None
    if "headrace" not in dit.__dict__:
        dit.headrace = Streamer(dit)
    return dit.headrace


def model_fn_qwen_image(dit: Any = None, **kwargs: Any) -> torch.Tensor:
    """DiffSynth's function of that name, for streamed DiTs too."""
    found = streamer(dit)
    if found is None:
        return _model_fn(dit=dit, **kwargs)
    return found.forward([kwargs], kwargs, [kwargs["timestep"].reshape(-1)[0]])[0]


def cfg_guided_model_fn(pipe: Any, model_fn: Any, cfg_scale: float, inputs_shared: dict, inputs_posi: dict,
                        inputs_nega: dict, **others: Any) -> torch.Tensor:
    """The pipeline's method of that name: both prompts of a streamed DiT in one pass."""
    found = streamer(others.get("dit"))
    one_sided = any(inputs_shared.get(k) is not None for k in ("positive_only_lora", "negative_only_lora"))
    if found is None or one_sided:
        return _cfg_guided_model_fn(pipe, model_fn, cfg_scale, inputs_shared, inputs_posi, inputs_nega, **others)
    prompts = [inputs_posi, inputs_nega] if cfg_scale != 1.0 else [inputs_posi]
    timestep = others["timestep"]
    ahead = pipe.scheduler.timesteps[others["progress_id"]:].to(timestep.dtype)
    results = found.forward(prompts, {**inputs_shared, **others}, list(ahead))
    if cfg_scale == 1.0:
        return results[0]
    posi, nega = results
    return nega + cfg_scale * (posi - nega)


def load_models_to_device(pipe: Any, model_names: Sequence[str]) -> None:
    """The pipeline's method, which empties the cache of a GPU, for a CPU too."""
    if pipe.device_type != "cpu":
        return _load_models_to_device(pipe, model_names)
    if not pipe.vram_management_enabled:
        return
    for state, wanted in (("offload", False), ("onload", True)):
        for name, model in pipe.named_children():
            if (name in model_names) == wanted and getattr(model, "vram_management_enabled", False):
                for module in [model] if hasattr(model, state) else model.modules():
                    if hasattr(module, state):
                        getattr(module, state)()


def check_free_vram(module: Any) -> bool:
    """The modules' method, for a CPU too, which has no VRAM."""
    return module.computation_device_type != "cpu" and _check_free_vram(module)


def register(**options: Any) -> None:
    """Have DiTs that are loaded from now on, with offload state "disk", computed by headrace.

    Of the states of `vram_config` it takes the computation's device and dtype; `vram_limit` (GiB) bounds
    the device's memory; weights stay in memory between steps, within `ram`, unless onload and preparing
    are "disk" too. Pipelines with disk states then also run on a CPU alone.

    Args:
        options: of `headrace.Model`, such as ram="12GiB", instead of what the states say.
    """
    _options.clear()
    _options.update(options)
    VRAM_MANAGEMENT_MODULE_MAPS[DIT] = dict(MODULE_MAP)
    qwen_image.model_fn_qwen_image = model_fn_qwen_image
    QwenImagePipeline.cfg_guided_model_fn = cfg_guided_model_fn
    QwenImagePipeline.load_models_to_device = load_models_to_device
    AutoTorchModule.check_free_vram = check_free_vram


class _Files:
    """What stands for DiffSynth's map of a model's files: only where they are."""

    def __init__(self, path: Any):
        self.path = path


def enable(pipe: QwenImagePipeline, path: Union[str, os.PathLike, Sequence[Union[str, os.PathLike]]], *,
           vram_limit: Optional[float] = None, ram: Size = None, **options: Any) -> None:
    """Give a pipeline whose DiT was not loaded one whose weights stay on the disk.

    Args:
        path: the transformer's folder, a .safetensors file, or shards.
        vram_limit: GiB of the device's memory.
        ram: upper bound on the memory of the whole process; None: activations and a ring of 192 MiB.
        options: of `headrace.Model`; device and precision are otherwise the pipeline's.
    """
    if pipe.dit is not None:
        raise ValueError("enable: the pipeline has a DiT already; load it without one")
    with_options = {"ram": ram, **options}
    register(**_options)
    layered, n_layers = _what_is_it(path)
    with skip_model_initialization():
        dit = QwenImageDiT(num_layers=n_layers, use_layer3d_rope=layered, use_additional_t_cond=layered)
    states: dict[str, Any] = {f"{s}_{what}": "disk" for s in ("offload", "onload") for what in ("dtype", "device")}
    for s in ("preparing", "computation"):
        states[f"{s}_dtype"], states[f"{s}_device"] = pipe.torch_dtype, pipe.device
    module_map = {_import(source): _import(target) for source, target in MODULE_MAP.items()}
    dit = enable_vram_management(dit, module_map, vram_config=states, vram_limit=vram_limit, disk_map=_Files(path))
    saved = dict(_options)
    try:
        _options.update(with_options)
        streamer(dit)  # opened now: what is wrong with the files is said here
    finally:
        _options.clear()
        _options.update(saved)
    pipe.dit = dit.eval()
    pipe.model_fn = model_fn_qwen_image


def _what_is_it(path: Any) -> tuple[bool, int]:
    with Reader(path) as reader:
        blocks = [int(k.split(".")[1]) for k in reader.keys() if k.startswith("transformer_blocks.")]
        if not blocks:
            raise ValueError(f"{path}: no transformer_blocks among its tensors")
        return "time_text_embed.addition_t_embedding.weight" in reader, max(blocks) + 1


def _import(name: str) -> Any:
    return ModelPool().import_model_class(name)
