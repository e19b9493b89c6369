# SPDX-License-Identifier: Apache-2.0
"""Diffusion transformers larger than memory, streamed from disk.

`Model` runs the Qwen-Image DiT, `open()` reads any safetensors model; `headrace.diffusers` and
`headrace.diffsynth` put it into the pipelines of those libraries.
"""
import importlib as _importlib
from typing import Any as _Any

from ._library import lib as _lib
from ._library import log_level, text as _text
from ._synth import synth
from .model import BlockStats, Inputs, Model, Picture, Stats
from .reader import Band, Reader, StreamStats, TensorInfo, open

__version__ = _text(_lib.hr_version())
__all__ = ["Band", "BlockStats", "Inputs", "Model", "Picture", "Reader", "Stats", "StreamStats", "TensorInfo",
           "log_level", "open", "synth"]


def __getattr__(name: str) -> _Any:
    """headrace.diffusers and headrace.diffsynth, imported when first asked for: they need those libraries."""
    without = f"module {__name__!r} has no attribute {name!r}"
    if name not in ("diffusers", "diffsynth"):
        raise AttributeError(without)
    try:
        return _importlib.import_module(f"{__name__}.{name}")
    except ImportError as e:
        raise AttributeError(f"{without}: {e}") from e
