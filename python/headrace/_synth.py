# SPDX-License-Identifier: Apache-2.0
"""headrace.synth: models with known values, to try things with."""
from __future__ import annotations

import os
from typing import Optional, Union

from ._library import check, choose, ffi, interruptible, lib, new_error, parse_count

DTYPES = {"bf16": lib.HR_DTYPE_BF16, "f16": lib.HR_DTYPE_F16, "f32": lib.HR_DTYPE_F32,
          "f8_e4m3": lib.HR_DTYPE_F8_E4M3, "f8_e5m2": lib.HR_DTYPE_F8_E5M2}


def synth(path: Union[str, os.PathLike], *, layers: int = 60, heads: int = 24, joint_dim: int = 3584,
          dtype: str = "bf16", shards: Optional[int] = None, zero_cond_t: bool = False, layered: bool = False,
          force: bool = False) -> None:
    """Write a model of the Qwen-Image architecture whose every value follows from its place.

    Args:
        path: folder to make; a name ending in .safetensors: one file.
        layers, heads, joint_dim: blocks, attention heads of 128, width of prompt embeddings; as
            published: 60, 24, 3584, which is 40.86 GB.
        dtype: "bf16", "f16", "f32", "f8_e4m3" or "f8_e5m2".
        shards: files; None: as published, about 5 GB each.
        zero_cond_t, layered: as Qwen-Image-Edit-2511 and Qwen-Image-Layered.
        force: replace an existing model.
    Raises:
        OSError: no space, the folder exists, or another error of the disk; nothing is left behind.
    """
    name, cancel, error = ffi.new("char[]", os.fsencode(path)), ffi.new("int *"), new_error()
    params = ffi.new("struct hr_synth_params *", {
        "path": name, "n_layers": parse_count(layers, "layers"), "n_heads": parse_count(heads, "heads"),
        "joint_dim": parse_count(joint_dim, "joint_dim"), "n_shards": parse_count(shards, "shards"),
        "dtype": choose(DTYPES, dtype, "dtype"), "zero_cond_t": zero_cond_t, "layered": layered, "force": force,
        "cancel": cancel})

    def stop() -> None:
        cancel[0] = 1

    check(interruptible(lambda: lib.hr_synth(params, error), stop), error)
