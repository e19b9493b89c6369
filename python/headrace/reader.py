# SPDX-License-Identifier: Apache-2.0
"""headrace.open: any safetensors model, tensor by tensor or as a stream through a ring of bounded memory."""
from __future__ import annotations

import dataclasses
import json
import math
import os
import threading
import weakref
from typing import Any, Iterable, Iterator, Optional, Sequence, Union

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
        whole = self._empty(t)
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
        for tensor, unit in self._units(names, prefetch, passes):
            yield Band(text(tensor.name), unit.row_begin, unit.n_rows, self._view(tensor, unit))

    def stream(self, names: Optional[Iterable[str]] = None, prefetch: Size = "192MiB",
               passes: int = 1) -> Iterator[tuple[str, Any]]:
        """Stream whole tensors as (name, tensor), each in memory of its own, that stays valid.

        Arguments as those of `bands()`. Each byte is copied once, out of the ring; where the next
        tensors are not yet wanted, reading stops at the ring's size.
        """
        whole, filled = None, 0
        for tensor, unit in self._units(names, prefetch, passes):
            if whole is None:
                whole, filled = self._empty(tensor), 0
            if unit.size_bytes:
                source = np.frombuffer(ffi.buffer(unit.data, unit.size_bytes), np.uint8)
                np.copyto(whole.raw[filled:filled + unit.size_bytes], source)
            filled += unit.size_bytes
            if filled == tensor.size_bytes:
                done, whole = whole.tensor, None
                yield text(tensor.name), done

    @property
    def stats(self) -> Optional[StreamStats]:
        """Of the last stream that ended or was closed."""
        return self._stats

    def close(self) -> None:
        """Also ends the streams that have begun: what asks them for more gets a ValueError."""
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

    def _units(self, names: Optional[Iterable[str]], prefetch: Size, passes: int) -> Iterator[tuple[Any, Any]]:
        names = self.keys() if names is None else list(names)
        if not names:
            return
        for name in names:  # before the first read: no such tensor, or a type that is not to be had
            self._dtype(self._checkpoint.find(name))
        ring_bytes, n_passes = parse_size(prefetch, "prefetch"), parse_count(passes, "passes", least=0)
        with self._lock:
            stream = _Stream(self._checkpoint, names, ring_bytes, n_passes)
            self._streams.add(stream)
        try:
            while stream.next():
                yield stream.unit.tensor, stream.unit
                stream.release()
        finally:
            self._stats = stream.close() or self._stats

    def _dtype(self, tensor: Any) -> Any:
        name = text(lib.hr_dtype_name(tensor.dtype))
        numpy_name, torch_name = DTYPES.get(name, ("", ""))
        if self.framework == "torch" and torch_name:
            import torch
            if hasattr(torch, torch_name):
                return getattr(torch, torch_name)
        if self.framework == "numpy" and numpy_name:
            return np.dtype(numpy_name)
        advice = "; open with framework='torch', or use get_f32()" if torch_name and self.framework == "numpy" else ""
        raise ValueError(f"{text(tensor.name)}: {self.framework} has no type for {name}{advice}")

    def _empty(self, tensor: Any) -> "_Whole":
        dtype, shape = self._dtype(tensor), _shape(tensor)
        if self.framework == "torch":
            import torch
            whole = torch.empty(shape, dtype=dtype)
            return _Whole(whole, whole.reshape(-1).view(torch.uint8).numpy() if whole.numel() else None)
        whole = np.empty(shape, dtype)
        return _Whole(whole, whole.reshape(-1).view(np.uint8))

    def _view(self, tensor: Any, unit: Any) -> Any:
        dtype, shape = self._dtype(tensor), _shape(tensor)
        if unit.size_bytes == 0:
            return self._empty(tensor).tensor
        n_rows = tensor.size_bytes * unit.n_rows // unit.size_bytes  # of the whole tensor
        outer = min(1, len(shape))
        while math.prod(shape[:outer]) != n_rows:
            outer += 1
        buffer = ffi.buffer(unit.data, unit.size_bytes)
        if self.framework == "torch":
            import torch
            return torch.frombuffer(buffer, dtype=dtype).reshape(unit.n_rows, *shape[outer:])
        view = np.frombuffer(buffer, dtype).reshape(unit.n_rows, *shape[outer:])
        view.flags.writeable = False
        return view


class _Stream:
    """A stream of the library, open until its end or until the reader is closed, in whatever thread."""

    def __init__(self, checkpoint: Checkpoint, names: Sequence[str], ring_bytes: int, passes: int):
        self._lock, self._handle = threading.RLock(), ffi.new("struct hr_stream **")
        self.unit = ffi.new("struct hr_unit *")
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

    def next(self) -> bool:
        """Whether there is one more unit, which is then in `unit`."""
        error = new_error()
        with self._lock:
            return check(lib.hr_stream_next(self._open(), self.unit, error), error) > 0

    def release(self) -> None:
        with self._lock:
            lib.hr_stream_release(self._open(), self.unit)

    def close(self) -> Optional[StreamStats]:
        """Its statistics; None where it was closed before."""
        with self._lock:
            if self._handle[0] == ffi.NULL:
                return None
            stats = ffi.new("struct hr_stream_stats *")
            lib.hr_stream_get_stats(self._handle[0], stats)
            lib.hr_stream_close(self._handle)
            return from_struct(StreamStats, stats)


@dataclasses.dataclass
class _Whole:
    tensor: Any
    raw: Any  # its bytes, as numpy


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape[i] for i in range(tensor.rank))


def open(path: Union[str, os.PathLike, Sequence[Union[str, os.PathLike]]], framework: str = "numpy") -> Reader:
    """Open a safetensors model for reading: a `Reader`."""
    return Reader(path, framework)
