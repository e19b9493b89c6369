# SPDX-License-Identifier: Apache-2.0
"""The C library: loading it, its errors as exceptions, and calls that Ctrl-C can end."""
from __future__ import annotations

import errno
import operator
import os
import re
import signal
import threading
from typing import Any, Callable, Optional, Union

from ._header import ffi

lib = ffi.dlopen(os.path.join(os.path.dirname(os.path.abspath(__file__)), "libheadrace.so"))

#: Codes that say "what you gave cannot be used"; all others are OSError.
VALUE_ERRORS = {errno.EINVAL, errno.EBADMSG, errno.EOPNOTSUPP, errno.ENODATA}

Size = Union[int, str, None]


def text(pointer: Any) -> str:
    """A C string as str; NULL as the empty one."""
    return ffi.string(pointer).decode("utf-8", "replace") if pointer != ffi.NULL else ""


def new_error() -> Any:
    return ffi.new("struct hr_error *")


def check(result: int, error: Any) -> int:
    """The result of a function of the library, or its error as an exception with its message."""
    if result >= 0:
        return result
    message = text(error.message) or os.strerror(-result)
    if -result in VALUE_ERRORS:
        raise ValueError(message)
    raise OSError(-result, message)


class SignalsHeld:
    """Within it Python's handlers of signals run as ever, but what they raise is only noted in `raised`.

    So what has to be done as a whole is: nothing raises between two bytecodes of it. Handlers run on
    the main thread; on others there is nothing to hold.
    """

    def __init__(self) -> None:
        self.raised: list[BaseException] = []
        self._holds = False  # where a handler is left in place by what others raise, it does no harm
        self._handlers: dict[int, Callable[[int, Any], Any]] = {}
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in signal.valid_signals()}
            self._handlers = {number: handler for number, handler in found.items() if callable(handler)}
        self._noting = self._handle  # bound once: this very object is looked for

    def _handle(self, number: int, frame: Any) -> None:
        try:
            self._handlers[number](number, frame)
        except BaseException as e:
            if not self._holds:
                raise
            self.raised.append(e)

    def __enter__(self) -> "SignalsHeld":
        for number in self._handlers:
            signal.signal(number, self._noting)
        self._holds = True
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            for number, handler in self._handlers.items():
                if signal.getsignal(number) is self._noting:  # not where a handler has set another
                    signal.signal(number, handler)
        finally:
            self._holds = False


def interruptible(call: Callable[[], int], interrupt: Callable[[], None]) -> int:
    """Run `call`, which blocks in the library without the interpreter's lock.

    Python handles signals on its main thread and only between bytecodes, so there the call goes to a
    thread of its own: whatever a handler raises (KeyboardInterrupt) calls `interrupt`, waits for the
    call to end, since what it works on is the caller's to free, and is raised then.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    ended = threading.Lock()
    result: list[Any] = []

    def work() -> None:
        try:
            result.append(call())
        except BaseException as e:  # of Python code around the library's function
            result.append(e)
        finally:
            ended.release()

    ended.acquire()
    with SignalsHeld() as signals:
        threading.Thread(target=work, name="headrace", daemon=True).start()
        while not ended.acquire(timeout=0.1):
            if signals.raised:
                interrupt()  # again and again: the first may have come before the library began
    if signals.raised:
        raise signals.raised[0]
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def parse_size(size: Size, what: str) -> int:
    """Bytes of 400000000, "400MiB", "1.5 GB"; None: 0, the library's choice."""
    units = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    if size is None:
        return 0
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*", size.upper())
        if not match or (match[3] and not match[2]):
            raise ValueError(f"{what}: {size!r} is no size; expected bytes, or a number with KiB MiB GiB KB MB GB")
        unit = 1024 ** "_KMGT".index(match[2]) if match[3] else units[match[2]]
        size = int(float(match[1]) * unit)
    if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
        raise ValueError(f"{what}: {size!r} is no size; expected a positive number of bytes")
    return size


def parse_count(value: Optional[int], what: str, most: int = 2**32 - 1, least: int = 1) -> int:
    """A whole number in a range; None: 0, the library's choice."""
    if value is None:
        return 0
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{what}: {value!r} is no whole number") from None
    if not least <= number <= most:
        raise ValueError(f"{what}: {value} is out of range; expected {least} to {most}")
    return number


def choose(table: dict, key: Any, what: str) -> Any:
    try:
        return table[key]
    except (KeyError, TypeError):  # TypeError: of what has no hash
        raise ValueError(f"{what} {key!r}; expected {' or '.join(map(str, table))}") from None


def log_level(level: str) -> None:
    """Which messages go to standard error: "error", "warn" (the default), "info" or "debug".

    Not to be called while a model or a stream works.
    """
    levels = {"error": lib.HR_LOG_ERROR, "warn": lib.HR_LOG_WARN, "info": lib.HR_LOG_INFO, "debug": lib.HR_LOG_DEBUG}
    lib.hr_log_set(ffi.NULL, ffi.NULL, choose(levels, level, "log level"))


class Checkpoint:
    """The headers of a model's files, open for reading. Shared by models and readers."""

    def __init__(self, path: Any):
        paths = [path] if isinstance(path, (str, bytes, os.PathLike)) else list(path)
        if not paths:
            raise ValueError("no path of a model was given")
        strings = [ffi.new("char[]", os.fsencode(p)) for p in paths]
        array = ffi.new("char *[]", strings)
        error, handle = new_error(), ffi.new("struct hr_checkpoint **")
        params = ffi.new("struct hr_checkpoint_params *",
                         {"paths": ffi.cast("const char *const *", array), "n_paths": len(strings)})
        check(lib.hr_checkpoint_open(handle, params, error), error)
        self._handle = handle

    @property
    def pointer(self) -> Any:
        if self._handle[0] == ffi.NULL:
            raise ValueError("the model is closed")
        return self._handle[0]

    def close(self) -> None:
        if lib is not None and self._handle[0] != ffi.NULL:
            lib.hr_checkpoint_close(self._handle)

    def tensors(self) -> list[Any]:
        """All tensors in order of their names, as struct hr_tensor."""
        pointer = self.pointer
        return [lib.hr_checkpoint_tensor(pointer, i) for i in range(lib.hr_checkpoint_n_tensors(pointer))]

    def find(self, name: str) -> Any:
        found = lib.hr_checkpoint_find(self.pointer, name.encode())
        if found == ffi.NULL:
            raise OSError(errno.ENOENT, f"{self.path()}: no tensor {name!r}")
        return found

    def path(self) -> str:
        return text(lib.hr_checkpoint_shard(self.pointer, 0).path)

    def config(self) -> Optional[str]:
        """The text of config.json, or None."""
        return text(lib.hr_checkpoint_config(self.pointer)) or None

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()
