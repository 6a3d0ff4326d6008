"""What goes over the socket: msgpack with NumPy arrays, byte for byte as openpi-client encodes them.

An array is the map {b"__ndarray__": true, b"data": bytes, b"dtype": "<f4", b"shape": [2, 3]}, a NumPy scalar
{b"__npgeneric__": true, b"data": value, b"dtype": "<f4"}. Numbers and truth values only: nothing is unpickled, and what
a message may cost in memory is bounded by its length.

NumPy and msgpack are all that this module imports: the client needs it.
"""

import math
from typing import Any

import msgpack
import numpy as np

DTYPES = {
    np.dtype(order + name).str: np.dtype(order + name)
    for name in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
    for order in "<>"
}
"""Types of numbers that an array may have, by their names in messages."""
MAX_DIMENSIONS = 8
# Of a list or map, and of all lists and maps of a message together: an empty list is one byte on the wire and 56 in
# memory.
MAX_LENGTH = 1024
MAX_ELEMENTS = 16_384


class MessageError(ValueError):
    """Bytes that are no message, or a value that cannot be put into one."""


def pack(value: Any) -> bytes:
    """Returns the message of a value: maps, lists, texts, bytes, numbers, None, and NumPy arrays of numbers.

    Raises:
        MessageError: something in it is none of these.
    """
    try:
        packer = msgpack.Packer(default=_pack_array, autoreset=False)
        packer.pack(value)
        return packer.bytes()
    except (TypeError, ValueError, OverflowError) as error:
        raise MessageError(f"cannot be sent: {error}") from error


def unpack(message: bytes) -> Any:
    """Returns the value of a message; its arrays are read-only.

    Raises:
        MessageError: the bytes are no such message, or hold more lists and maps than any would.
    """
    elements = 0

    def count(length: int) -> None:
        nonlocal elements
        elements += 1 + length
        if elements > MAX_ELEMENTS:
            raise MessageError(f"more than {MAX_ELEMENTS} values in lists and maps")

    def of_list(values: list[Any]) -> list[Any]:
        count(len(values))
        return values

    def of_map(values: dict[Any, Any]) -> Any:
        count(len(values))
        return _unpack_array(values)

    try:
        return msgpack.unpackb(
            message,
            object_hook=of_map,
            list_hook=of_list,
            ext_hook=_refuse_extension,
            max_array_len=MAX_LENGTH,
            max_map_len=MAX_LENGTH,
            max_ext_len=0,
        )
    except MessageError:
        raise
    # What msgpack raises has many kinds; text that is no UTF-8 and nesting without end are among them.
    except (
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
        msgpack.exceptions.UnpackException,
    ) as error:
        raise MessageError(f"no msgpack message ({error or type(error).__name__})") from error


def _pack_array(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.str not in DTYPES:
        raise TypeError(f"an array of {value.dtype}")
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a value of type {type(value).__name__}")


def _unpack_array(values: dict[Any, Any]) -> Any:
    if b"__ndarray__" in values:
        return _array(_dtype(values), values.get(b"data"), values.get(b"shape"))
    if b"__npgeneric__" in values:
        return _scalar(_dtype(values), values.get(b"data"))
    return values


def _dtype(values: dict[Any, Any]) -> np.dtype:
    name = values.get(b"dtype")
    if not isinstance(name, str) or name not in DTYPES:
        raise MessageError(f"an array of type {_shown(name)}; numbers and truth values are allowed")
    return DTYPES[name]


def _array(dtype: np.dtype, data: Any, shape: Any) -> np.ndarray:
    is_shape = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS
    if not is_shape or not all(type(size) is int and size >= 0 for size in shape):
        raise MessageError(f"an array of shape {_shown(shape)}")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        given = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise MessageError(f"an array of shape {shape} and type {dtype} in {given}")
    return np.ndarray(tuple(shape), dtype, data)


def _scalar(dtype: np.dtype, data: Any) -> np.generic:
    if not isinstance(data, bool | int | float):
        raise MessageError(f"a number of type {dtype} in {type(data).__name__}")
    try:
        with np.errstate(over="ignore"):
            return dtype.type(data)
    except (OverflowError, ValueError) as error:
        raise MessageError(f"{data} is no number of type {dtype}") from error


def _refuse_extension(code: int, data: bytes) -> Any:
    raise MessageError(f"msgpack extension {code}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}…"
