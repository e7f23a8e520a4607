"""msgpack with NumPy arrays, byte for byte as openpi-client writes them, and a decoder that trusts nobody.

An array travels as a map with the bytes keys ``__ndarray__`` (true), ``data`` (C order), ``dtype``
(``dtype.str``) and ``shape``; a NumPy scalar as ``__npgeneric__``, ``data``, ``dtype``. Everything else is plain
msgpack with text keys. Python objects never travel: there is no pickle here, and a dtype that could
hold pointers is refused (openpi's own decoder takes it, and eight bytes then crash the process).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from vega_policy.spec import ContractError

_KINDS = "biuf"
"""Booleans, integers and floats; no objects, records, text, complex numbers or dates."""


class WireError(ContractError):
    """The other side sent what is no message of this protocol."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a decoder accepts."""

    max_bytes: int = 32 * 2**20
    """Of the whole message; two cameras of 1024 px are 6.3 MB."""
    max_dimensions: int = 4
    max_entries: int = 1024
    """Of one map or list."""
    max_total: int = 16384
    """Maps, lists and their entries, of the whole message: an empty list is one byte on the wire and
    sixty in memory, so that megabytes of them would take a gigabyte and seconds of the event loop."""
    max_depth: int = 16
    """Maps and lists within each other."""
    max_text: int = 65536
    """Bytes of one text."""


def pack(message: Any) -> bytes:  # noqa: ANN401 - any tree of plain values and arrays
    """Encode a message.

    Raises:
        TypeError: It holds something that is neither plain nor an array of numbers.
    """
    return bytes(msgpack.packb(message, default=_encode) or b"")


def unpack(data: bytes, *, limits: Limits | None = None) -> Any:  # noqa: ANN401 - whatever was sent
    """Decode a message; its arrays are copies that may be written to.

    Raises:
        WireError: It is too large, damaged, or holds what is not allowed.
    """
    allowed = limits or Limits()
    if len(data) > allowed.max_bytes:
        raise WireError(
            f"a message of {len(data)} bytes, {allowed.max_bytes} are allowed; send smaller images"
        )
    try:
        tree = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            max_str_len=allowed.max_text,
            max_bin_len=allowed.max_bytes,
            max_array_len=allowed.max_entries,
            max_map_len=allowed.max_entries,
            max_ext_len=0,
            object_hook=(count := _Count(allowed.max_total)),
            list_hook=count,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"a message that is no msgpack of this protocol: {error}") from error
    return _decode(tree, allowed, depth=0)


class _Count:
    """Ends the decoding of a message with too many entries while it is still small."""

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._left = allowed

    def __call__(self, node: Any) -> Any:  # noqa: ANN401 - whatever was sent
        self._left -= 1 + len(node)
        if self._left < 0:
            raise WireError(
                f"a message with more than {self._allowed} entries; send large data as arrays"
            )
        return node


def _encode(value: Any) -> dict[bytes, Any]:  # noqa: ANN401 - what msgpack does not know
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in _KINDS:
        raise TypeError(f"an array of dtype {value.dtype} cannot be sent; send numbers")
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(
        f"{type(value).__name__} cannot be sent; send text, numbers, lists, maps, arrays"
    )


def _decode(node: Any, limits: Limits, *, depth: int) -> Any:  # noqa: ANN401 - whatever was sent
    if depth > limits.max_depth:
        raise WireError(f"a message with more than {limits.max_depth} levels; send a flat one")
    if isinstance(node, list):
        return [_decode(item, limits, depth=depth + 1) for item in node]
    if not isinstance(node, dict):
        return node
    if b"__ndarray__" in node:
        return _array(node, limits)
    if b"__npgeneric__" in node:
        return _scalar(node)
    if not all(isinstance(key, str) for key in node):
        raise WireError("a message with a key that is not text; name every entry with text")
    return {key: _decode(value, limits, depth=depth + 1) for key, value in node.items()}


def _dtype(node: dict[Any, Any]) -> np.dtype[Any]:
    name = node.get(b"dtype")
    # Only the short form that NumPy writes: the constructor also takes recipes of records.
    if not isinstance(name, str) or not 2 <= len(name) <= 4:
        raise WireError(f"an array of dtype {name!r}; send booleans, integers or floats")
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError) as error:
        raise WireError(f"an array of unknown dtype {name!r}; send {_KINDS}") from error
    if dtype.kind not in _KINDS or dtype.itemsize > 8:  # longer ones differ by machine
        raise WireError(f"an array of dtype {name!r}; send booleans, integers or floats")
    return dtype


def _array(node: dict[Any, Any], limits: Limits) -> np.ndarray[Any, Any]:
    dtype, data, shape = _dtype(node), node.get(b"data"), node.get(b"shape")
    if not isinstance(data, bytes) or not isinstance(shape, list):
        raise WireError("an array without bytes or shape; send data, dtype and shape")
    are_sizes = all(type(n) is int and n >= 0 for n in shape)
    if len(shape) > limits.max_dimensions or not are_sizes:
        raise WireError(
            f"an array of shape {str(shape)[:100]}; send at most {limits.max_dimensions} sizes, none "
            "negative"
        )
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise WireError(
            f"an array of shape {shape} and dtype {dtype.str} has {len(data)} bytes instead of {expected}"
        )
    # Beside a 0 any size would have the right number of bytes, and NumPy raise what nobody expects.
    if math.prod(max(1, n) for n in shape) * dtype.itemsize > limits.max_bytes:
        raise WireError(f"an array of shape {str(shape)[:100]}; send a smaller one")
    return np.frombuffer(data, dtype=dtype).reshape(shape).copy()


def _scalar(node: dict[Any, Any]) -> np.generic:
    dtype, data = _dtype(node), node.get(b"data")
    if not isinstance(data, bool | int | float):
        raise WireError(f"a NumPy number that holds {type(data).__name__}; send a number")
    if not _fits(data, dtype):
        raise WireError(
            f"{data} does not fit a NumPy number of dtype {dtype.str}; send a larger one"
        )
    return dtype.type(data)


def _fits(number: float, dtype: np.dtype[Any]) -> bool:
    """Whether a number keeps its value: NumPy would wrap an integer and make a float infinite."""
    if dtype.kind == "b":
        return isinstance(number, bool)
    if dtype.kind != "f":
        return isinstance(number, int) and np.iinfo(dtype).min <= number <= np.iinfo(dtype).max
    return not math.isfinite(number) or abs(number) <= float(np.finfo(dtype).max)
