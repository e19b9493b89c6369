# SPDX-License-Identifier: Apache-2.0
"""Arrays of callers as memory that the library reads and writes. F32 in the CPU's memory is used as it lies."""
from __future__ import annotations

import sys
from typing import Any, Optional, Sequence

import numpy as np

from ._library import ffi


def is_torch(x: Any) -> bool:
    return type(x).__module__.split(".")[0] == "torch" and hasattr(x, "detach")


def as_numpy(x: Any, what: str) -> np.ndarray:
    """A view of x where it lies in the CPU's memory in a type that numpy has, else a copy in F32."""
    try:
        if is_torch(x):
            x = x.detach().cpu()
            if not x.dtype.is_floating_point or str(x.dtype) in ("torch.float32", "torch.float64"):
                return x.numpy()
            return x.float().numpy()
        if not isinstance(x, np.ndarray) and hasattr(x, "__dlpack__"):
            return np.from_dlpack(x)
        return np.asarray(x)
    except (BufferError, TypeError, RuntimeError) as e:
        raise ValueError(f"{what}: {type(x).__name__} cannot be read as an array: {e}") from e


def as_f32(x: Any, what: str, *shapes: Sequence[Optional[int]]) -> np.ndarray:
    """x as contiguous F32 of one of the shapes, in which None stands for any size."""
    a = as_numpy(x, what)
    if a.dtype.kind not in "fiu":
        raise ValueError(f"{what}: dtype {a.dtype}; expected float32")
    for shape in shapes:
        if len(shape) == a.ndim and all(n is None or n == m for n, m in zip(shape, a.shape)):
            return np.ascontiguousarray(a, dtype=np.float32)
    expected = " or ".join("[" + ", ".join("any" if n is None else str(n) for n in s) + "]" for s in shapes)
    raise ValueError(f"{what}: shape {list(a.shape)}; expected {expected}")


def as_mask(x: Any, what: str, n: int) -> np.ndarray:
    """x [n] or [1, n] as bytes, 0 or 1."""
    a = as_numpy(x, what)
    if a.shape not in ((n,), (1, n)):
        raise ValueError(f"{what}: shape {list(a.shape)}; expected [{n}]")
    return np.ascontiguousarray(a.reshape(n) != 0, dtype=np.uint8)


def f32_pointer(a: Optional[np.ndarray]) -> Any:
    """The address of an F32 array; None: NULL. The caller keeps the array alive."""
    return ffi.NULL if a is None else ffi.cast("float *", a.ctypes.data)


def like(result: np.ndarray, x: Any) -> Any:
    """The result as a torch tensor of the same memory where x is one."""
    return sys.modules["torch"].from_numpy(result) if is_torch(x) else result
