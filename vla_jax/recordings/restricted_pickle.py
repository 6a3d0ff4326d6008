"""Reads a pickle from another machine without running anything in it.

Unpickling calls whatever the file names. Here the only names that are known stand for numpy arrays, and even these
are inert stand-ins that remember their arguments; arrays are made from them afterwards, when shape, type and number
of bytes have been compared. Builtin containers, numbers and texts need no names at all.
"""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.untrusted_files import check_ordinary

MAX_PICKLE_BYTES = 1 << 30
MAX_DEPTH = 8
MAX_ENTRIES = 10_000_000


class _Dtype:
    """Stands for numpy.dtype."""

    def __init__(self, *args: Any) -> None:
        self.name = args[0] if args else None
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def resolve(self) -> np.dtype:
        """Returns the type, if it is one of numbers."""
        if not isinstance(self.name, str) or self.order not in ("<", ">", "=", "|"):
            raise ValueError("an array type is damaged")
        dtype = np.dtype(self.name)
        if dtype.kind not in "fiub" or dtype.subdtype is not None:
            raise ValueError(f"an array holds {self.name!r}, not numbers")
        return dtype.newbyteorder(self.order)


class _Array:
    """Stands for numpy.ndarray and numpy scalars."""

    def __init__(self, *args: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def resolve(self) -> np.ndarray:
        """Returns the array, read-only, if its bytes are as many as it says."""
        _, shape, dtype, is_fortran, data = self.state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
            raise ValueError("an array is damaged")
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"an array has the impossible shape {shape!r}"[:200])
        resolved = dtype.resolve()
        if int(np.prod(shape, dtype=object)) * resolved.itemsize != len(data):
            raise ValueError(f"an array of shape {shape} holds {len(data)} bytes")
        return np.frombuffer(data, resolved).reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: Any, data: Any) -> _Array:
    array = _Array()
    array.state = (1, (), dtype, False, _encode(data, "latin1") if isinstance(data, str) else data)
    return array


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.state = (1, shape, dtype, order == "F", data)
    return array


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    # How numpy's bytes are written in pickles of protocol 2 and below.
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("a byte string is damaged")
    return text.encode("latin1")


def _empty_bytes(*arguments: Any) -> bytes:
    # How the same protocols write an empty byte string.
    if arguments:
        raise ValueError("a byte string is damaged")
    return b""


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "bytes"): _empty_bytes,
    ("__builtin__", "bytes"): _empty_bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[_core + ".multiarray", "_reconstruct"] = _reconstruct
    _KNOWN[_core + ".multiarray", "scalar"] = _scalar
    _KNOWN[_core + ".numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in of a numpy name; refuses every other."""
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"wants to call {module}.{name}, which is refused: only numpy arrays and builtin containers are read"
            ) from None


def read_pickle(path: Path) -> Any:
    """Returns what a pickle holds: builtin containers, numbers, texts and numeric arrays (read-only).

    Raises:
        EpisodeError: the file is missing, damaged, too large, or asks for anything else.
    """
    try:
        check_ordinary(path, MAX_PICKLE_BYTES)
        return _Resolver().resolve(_Unpickler(io.BytesIO(path.read_bytes())).load())
    except FileNotFoundError as error:
        raise EpisodeError(f"{path.name}: is missing") from error
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        ImportError,
        LookupError,
        MemoryError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise EpisodeError(
            f"{path.name}: damaged or refused pickle ({str(error) or type(error).__name__})"
        ) from error


class _Resolver:
    """Makes arrays of the stand-ins in what was unpickled, as far as it is shallow and not too large."""

    def __init__(self) -> None:
        self._num_entries = 0

    def resolve(self, value: Any, depth: int = 0) -> Any:
        """Returns a value with its arrays. Raises ValueError."""
        # A pickle can share one list a billion times over; what the format needs is shallow and small.
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        if isinstance(value, _Array):
            return value.resolve()
        if isinstance(value, dict | list | tuple):
            self._num_entries += len(value)
            if self._num_entries > MAX_ENTRIES:
                raise ValueError(f"holds more than {MAX_ENTRIES} entries")
        if isinstance(value, dict):
            return {key: self.resolve(entry, depth + 1) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            if all(type(entry) in (str, int, float, bool, type(None)) for entry in value):
                return value
            return type(value)(self.resolve(entry, depth + 1) for entry in value)
        if value is None or isinstance(value, str | bytes | int | float):
            return value
        raise ValueError(f"holds a {type(value).__name__.lstrip('_')}")
