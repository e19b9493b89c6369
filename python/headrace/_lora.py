# SPDX-License-Identifier: Apache-2.0
"""LoRA in the pipelines of diffusers: adapters by name, with weights, as its own models have them."""
from __future__ import annotations

import itertools
import os
import tempfile
from typing import Any, Optional, Sequence, Union

from .model import Model


def save_temporary(state_dict: dict[str, Any]) -> str:
    """Tensors as a safetensors file that the caller removes: the library reads LoRA from files."""
    from safetensors.torch import save_file
    handle, path = tempfile.mkstemp(prefix="headrace-lora-", suffix=".safetensors")
    os.close(handle)
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in state_dict.items()}, path)
    except BaseException:
        os.remove(path)
        raise
    return path


class Adapters:
    """Mixed into a transformer that has a `model`."""

    model: Model

    def _init_adapters(self) -> None:
        self._adapters: dict[str, str] = {}  # name -> file
        self._temporary: list[str] = []
        self._weights: dict[str, float] = {}
        self._enabled, self._scale = True, 1.0

    def load_lora_adapter(self, lora: Union[str, os.PathLike, dict[str, Any]], prefix: Optional[str] = "transformer",
                          adapter_name: Optional[str] = None, network_alphas: Any = None, metadata: Any = None,
                          **_: Any) -> None:
        """Add a LoRA: a file, or tensors by name. `pipe.load_lora_weights()` ends here too.

        What is wrong with it is said by the next forward, as a ValueError.
        """
        if network_alphas:
            raise ValueError("network_alphas are not supported; keep alpha beside the tensors")
        name = adapter_name or next(n for i in itertools.count() if (n := f"default_{i}") not in self._adapters)
        if name in self._adapters:
            raise ValueError(f"there is an adapter {name!r} already; give another adapter_name")
        if isinstance(lora, dict):
            if any(k.endswith("lora_alpha") for k in metadata or {}):
                lora = with_alpha(lora, metadata)
            path = save_temporary(lora)
            self._temporary.append(path)
        else:
            path = os.fspath(lora)
        self._adapters[name], self._weights[name] = path, 1.0
        self._use_adapters()

    def set_adapters(self, adapter_names: Union[str, Sequence[str]],
                     weights: Union[None, float, Sequence[Optional[float]]] = None) -> None:
        """Use these adapters, with these weights (1 where None is given), and no others."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        values = list(weights) if isinstance(weights, (list, tuple)) else [weights] * len(names)
        unknown = [n for n in names if n not in self._adapters]
        if unknown or len(values) != len(names):
            raise ValueError(f"set_adapters: {names} with {len(values)} weights; there are {list(self._adapters)}")
        self._weights = {n: 1.0 if w is None else float(w) for n, w in zip(names, values)}
        self._use_adapters()

    def delete_adapters(self, adapter_names: Union[str, Sequence[str]]) -> None:
        for name in [adapter_names] if isinstance(adapter_names, str) else list(adapter_names):
            path = self._adapters.pop(name, None)
            self._weights.pop(name, None)
            if path in self._temporary:
                self._temporary.remove(path)
                os.remove(path)
        self._use_adapters()

    def unload_lora(self) -> None:
        self.delete_adapters(list(self._adapters))

    def enable_lora(self) -> None:
        self._enabled = True
        self._use_adapters()

    def disable_lora(self) -> None:
        self._enabled = False
        self._use_adapters()

    @property
    def peft_config(self) -> dict[str, str]:
        """Names of the adapters; diffusers asks for them here."""
        return dict(self._adapters)

    def active_adapters(self) -> list[str]:
        return list(self._weights) if self._enabled else []

    def _apply_scale(self, scale: float) -> None:
        if scale != self._scale:
            self._scale = scale
            self._use_adapters()

    def _use_adapters(self) -> None:
        weights = self._weights if self._enabled else {}
        self.model.set_lora([(self._adapters[n], w * self._scale) for n, w in weights.items()])

    def __del__(self) -> None:
        for path in self.__dict__.get("_temporary", []):
            if os.path.exists(path):
                os.remove(path)


def with_alpha(lora: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """Alpha of an adapter's metadata (one for all modules) as tensors beside each pair."""
    import torch
    alpha = {float(v) for k, v in metadata.items() if k.split(".")[-1] == "lora_alpha"}
    if len(alpha) != 1 or any(metadata.get(k) for k in metadata if k.split(".")[-1] == "alpha_pattern"):
        raise ValueError("an adapter with several alphas in its metadata is not supported")
    result = dict(lora)
    for key in lora:
        if key.endswith(".lora_A.weight"):
            result[key.replace(".lora_A.weight", ".alpha")] = torch.tensor(next(iter(alpha)))
    return result
