# SPDX-License-Identifier: Apache-2.0
"""headrace.open: any safetensors model, tensor by tensor or as a stream through a ring of bounded memory."""
from __future__ import annotations

import dataclasses
import json
import math
import os
import threading
import weakref
from typing import Any, Callable, Iterable, Iterator, Optional, Sequence, Union

import numpy as np

from ._library import Checkpoint, Size, check, choose, ffi, lib, new_error, parse_count, parse_size, text

#: dtype of the format -> name in numpy, name in torch
DTYPES = {
    "BOOL": ("bool", "bool"), "U8": ("uint8", "uint8"), "I8": ("int8", "int8"), "I16": ("int16", "int16"),
    "U16": ("uint16", "uint16"), "I32": ("int32", "int32"), "U32": ("uint32", "uint32"), "I64": ("int64", "int64"),
    "U64": ("uint64", "uint64"), "F16": ("float16", "float16"), "F32": ("float32", "float32"),
    "F64": ("float64", "float64"), "C64": ("complex64", "complex64"), "BF16": ("", "bfloat16"),
    "F8_E4M3": ("", "float8_e4m3fn"), "F8_E5M2": ("", "float8_e5m2"),
    "F8_E4M3FNUZ": ("", "float8_e4m3fnuz"), "F8_E5M2FNUZ": ("", "float8_e5m2fnuz"),
}


@dataclasses.dataclass(frozen=True)
class StreamStats:
    """What a stream has done; see `struct hr_stream_stats`. Times in nanoseconds."""

    io_name: str
    direct: bool
    ring_bytes: int
    device_ring_bytes: int
    block_bytes: int
    depth: int
    bytes_read: int
    bytes_used: int
    reads: int
    retries: int
    bounced_bytes: int
    in_flight: float
    busy_ns: int
    stall_disk_ns: int
    stall_space_ns: int
    latency_p50_ns: int
    latency_p99_ns: int
    latency_p999_ns: int


def from_struct(cls: Any, struct: Any, **given: Any) -> Any:
    """A dataclass whose fields are called as those of the structure."""
    values = dict(given)
    for field in dataclasses.fields(cls):
        if field.name not in values:
            value = getattr(struct, field.name)
            values[field.name] = text(value) if isinstance(value, ffi.CData) else value
    return cls(**values)


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor of the files: dtype as the format writes it, shape, and where its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int
    file: str


@dataclasses.dataclass(frozen=True)
class Band:
    """Rows row_begin .. row_begin + n_rows - 1 of a tensor, where they lie in the ring.

    `data` is [n_rows, ...] (the outermost dimension; where one row is larger than 2 MiB, outer
    dimensions are flattened into one) and valid until the next band is asked for or the reader is
    closed. It may lie at an odd address, as the file has it.
    """

    name: str
    row_begin: int
    n_rows: int
    data: Any


class Reader:
    """A model's tensors, read without the page cache where the disk allows; as `safetensors.safe_open`.

    Args:
        path: a folder (index and shards, or one file), a .safetensors file, or several: shards of one model.
        framework: "numpy" or "torch": what tensors are returned as. numpy has no bfloat16 or float8;
            such tensors can be read with `get_f32()`.
    Raises:
        OSError: no such file, or it cannot be read. ValueError: malformed.
    """

    def __init__(self, path: Union[str, os.PathLike, Sequence[Union[str, os.PathLike]]], framework: str = "numpy"):
        names = {"numpy": "numpy", "torch": "torch", "np": "numpy", "pt": "torch"}
        self.framework = choose(names, framework, "framework")
        self._checkpoint = Checkpoint(path)
        self._stats: Optional[StreamStats] = None
        self._lock = threading.RLock()  # held while streams are opened, and while all is closed
        self._streams: weakref.WeakSet[_Stream] = weakref.WeakSet()

    def keys(self) -> list[str]:
        """Names of all tensors, in order."""
        return [text(t.name) for t in self._checkpoint.tensors()]

    def info(self, name: str) -> TensorInfo:
        t = self._checkpoint.find(name)
        return TensorInfo(name=name, dtype=text(lib.hr_dtype_name(t.dtype)), shape=_shape(t),
                          offset_bytes=t.offset_bytes, size_bytes=t.size_bytes,
                          file=text(lib.hr_checkpoint_shard(self._checkpoint.pointer, t.shard_idx).path))

    def config(self) -> Optional[dict]:
        """The model's config.json, or None."""
        config = self._checkpoint.config()
        return json.loads(config) if config else None

    def get_tensor(self, name: str) -> Any:
        """One whole tensor in new memory, as the reader's framework has it."""
        t = self._checkpoint.find(name)
        whole = self._empty(self._layout(t))
        if t.size_bytes:
            error = new_error()
            check(lib.hr_checkpoint_read(self._checkpoint.pointer, t, ffi.from_buffer(whole.raw), t.size_bytes, error),
                  error)
        return whole.tensor

    def get_f32(self, name: str) -> np.ndarray:
        """One whole F32, F16, BF16, F8_E4M3 or F8_E5M2 tensor, converted to float32."""
        t, error = self._checkpoint.find(name), new_error()
        dst = np.empty(_shape(t), np.float32)
        check(lib.hr_checkpoint_read_f32(self._checkpoint.pointer, t, ffi.cast("float *", dst.ctypes.data), dst.size,
                                         error), error)
        return dst

    def bands(self, names: Optional[Iterable[str]] = None, prefetch: Size = "192MiB",
              passes: int = 1) -> Iterator[Band]:
        """Stream tensors as bands of rows, at most 32 MiB each, without a copy: views of the ring.

        Args:
            names: which, in this order; None: all.
            prefetch: memory of the ring: how far reading is ahead.
            passes: how many times over, reading on across the end of each; 0: without end.
        """
        return self._units(names, prefetch, passes, self._band)

    def stream(self, names: Optional[Iterable[str]] = None, prefetch: Size = "192MiB",
               passes: int = 1) -> Iterator[tuple[str, Any]]:
        """Stream whole tensors as (name, tensor), each in memory of its own, that stays valid.

        Arguments as those of `bands()`. Each byte is copied once, out of the ring; where the next
        tensors are not yet wanted, reading stops at the ring's size.
        """
        whole, filled = None, 0

        def copy(layout: _Layout, unit: Any) -> Optional[tuple[str, Any]]:
            """The tensor, once this is its last unit."""
            nonlocal whole, filled
            if whole is None:
                whole, filled = self._empty(layout), 0
            if unit.size_bytes:
                source = np.frombuffer(ffi.buffer(unit.data, unit.size_bytes), np.uint8)
                np.copyto(whole.raw[filled:filled + unit.size_bytes], source)
            filled += unit.size_bytes
            if filled < layout.size_bytes:
                return None
            done, whole = whole.tensor, None
            return layout.name, done

        return (pair for pair in self._units(names, prefetch, passes, copy) if pair)

    @property
    def stats(self) -> Optional[StreamStats]:
        """Of the last stream that ended or was closed."""
        return self._stats

    def close(self) -> None:
        """Also ends the streams that have begun: what asks them for more gets a ValueError.

        Other threads may be in streams meanwhile, but in no other method of the reader.
        """
        with self._lock:
            for stream in list(self._streams):
                self._stats = stream.close() or self._stats
            self._checkpoint.close()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __len__(self) -> int:
        return lib.hr_checkpoint_n_tensors(self._checkpoint.pointer)

    def __contains__(self, name: str) -> bool:
        return lib.hr_checkpoint_find(self._checkpoint.pointer, name.encode()) != ffi.NULL

    def _units(self, names: Optional[Iterable[str]], prefetch: Size, passes: int,
               take: Callable[[_Layout, Any], Any]) -> Iterator[Any]:
        """What `take` makes of each unit: while it does, nobody closes the stream. Then the unit is given back."""
        ring_bytes, n_passes = parse_size(prefetch, "prefetch"), parse_count(passes, "passes", least=0)
        with self._lock:
            names = self.keys() if names is None else list(names)
            if not names:
                return
            # before the first read: no such tensor, or a type that is not to be had
            layouts = {name: self._layout(self._checkpoint.find(name)) for name in names}
            stream = _Stream(self._checkpoint, names, ring_bytes, n_passes)
            self._streams.add(stream)
        try:
            while True:
                with stream.lock:
                    unit = stream.next()
                    if unit is None:
                        return
                    taken = take(layouts[text(unit.tensor.name)], unit)
                yield taken
                stream.release(unit)
        finally:
            self._stats = stream.close() or self._stats

    def _layout(self, tensor: Any) -> _Layout:
        name = text(tensor.name)
        dtype = self._dtype(name, text(lib.hr_dtype_name(tensor.dtype)))
        return _Layout(name, dtype, _shape(tensor), tensor.size_bytes)

    def _dtype(self, tensor_name: str, name: str) -> Any:
        numpy_name, torch_name = DTYPES.get(name, ("", ""))
        if self.framework == "torch" and torch_name:
            import torch
            if hasattr(torch, torch_name):
                return getattr(torch, torch_name)
        if self.framework == "numpy" and numpy_name:
            return np.dtype(numpy_name)
        advice = "; open with framework='torch', or use get_f32()" if torch_name and self.framework == "numpy" else ""
        raise ValueError(f"{tensor_name}: {self.framework} has no type for {name}{advice}")

    def _empty(self, layout: _Layout) -> _Whole:
        if self.framework == "torch":
            import torch
            whole = torch.empty(layout.shape, dtype=layout.dtype)
            return _Whole(whole, whole.reshape(-1).view(torch.uint8).numpy() if whole.numel() else None)
        whole = np.empty(layout.shape, layout.dtype)
        return _Whole(whole, whole.reshape(-1).view(np.uint8))

    def _band(self, layout: _Layout, unit: Any) -> Band:
        return Band(layout.name, unit.row_begin, unit.n_rows, self._view(layout, unit))

    def _view(self, layout: _Layout, unit: Any) -> Any:
        if unit.size_bytes == 0:
            return self._empty(layout).tensor
        n_rows = layout.size_bytes * unit.n_rows // unit.size_bytes  # of the whole tensor
        rank = len(layout.shape)
        outer = next(n for n in range(min(1, rank), rank + 1) if math.prod(layout.shape[:n]) == n_rows)
        shape = (unit.n_rows, *layout.shape[outer:])
        buffer = ffi.buffer(unit.data, unit.size_bytes)
        if self.framework == "torch":
            import torch
            return torch.frombuffer(buffer, dtype=layout.dtype).reshape(shape)
        view = np.frombuffer(buffer, layout.dtype).reshape(shape)
        view.flags.writeable = False
        return view


class _Stream:
    """A stream of the library, open until its end or until the reader is closed, in whatever thread.

    `close()` waits for `lock`: the memory of a unit stays while it is held.
    """

    def __init__(self, checkpoint: Checkpoint, names: Sequence[str], ring_bytes: int, passes: int):
        self.lock, self._handle = threading.RLock(), ffi.new("struct hr_stream **")
        strings, error = [ffi.new("char[]", name.encode()) for name in names], new_error()
        params = ffi.new("struct hr_stream_params *", {"ring_bytes": ring_bytes})
        check(lib.hr_stream_open(self._handle, checkpoint.pointer, params, error), error)
        array = ffi.new("char *[]", strings)
        try:
            check(lib.hr_stream_plan(self._handle[0], ffi.cast("const char *const *", array), len(names), 0, passes,
                                     error), error)
        except BaseException:
            self.close()
            raise

    def _open(self) -> Any:
        if self._handle[0] == ffi.NULL:
            raise ValueError("the model is closed")
        return self._handle[0]

    def next(self) -> Any:
        """The next unit, or None at the end."""
        unit, error = ffi.new("struct hr_unit *"), new_error()
        with self.lock:
            return unit if check(lib.hr_stream_next(self._open(), unit, error), error) > 0 else None

    def release(self, unit: Any) -> None:
        with self.lock:
            lib.hr_stream_release(self._open(), unit)

    def close(self) -> Optional[StreamStats]:
        """Its statistics; None where it was closed before."""
        with self.lock:
            if self._handle[0] == ffi.NULL:
                return None
            stats = ffi.new("struct hr_stream_stats *")
            lib.hr_stream_get_stats(self._handle[0], stats)
            lib.hr_stream_close(self._handle)
            return from_struct(StreamStats, stats)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What arrays are made by, taken from the checkpoint while it is open."""

    name: str
    dtype: Any  # of numpy or torch
    shape: tuple[int, ...]
    size_bytes: int


@dataclasses.dataclass(frozen=True)
class _Whole:
    tensor: Any
    raw: Any  # its bytes, as numpy


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape[i] for i in range(tensor.rank))


def open(path: Union[str, os.PathLike, Sequence[Union[str, os.PathLike]]], framework: str = "numpy") -> Reader:
    """Open a safetensors model for reading: a `Reader`."""
    return Reader(path, framework)
