"""TFRecord files and the `tf.train.Example` messages in them, without TensorFlow.

A record is its length (8 bytes, little-endian), a masked CRC-32C of those bytes, the data, and a masked
CRC-32C of the data. The data is a protocol-buffer map from names to lists of bytes, floats or whole
numbers; it is walked in place, so that finding one number in a record of 30 MB of images costs
nothing but that number.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

Kind = Literal["bytes", "floats", "ints"]
_KINDS: dict[int, Kind] = {1: "bytes", 2: "floats", 3: "ints"}
_NUMBERS: dict[Kind, int] = {kind: number for number, kind in _KINDS.items()}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_HEADER_BYTES = 12
_FOOTER_BYTES = 4


class DamagedRecord(ValueError):
    """The bytes are not a record, or not an Example."""


@dataclass(frozen=True)
class Feature:
    """One named list of an Example, not decoded yet."""

    kind: Kind
    data: memoryview
    """The list message."""

    def floats(self) -> NDArray[np.float32]:
        """Return the numbers of a list of floats."""
        self._require("floats")
        parts = [_float32(value) for value in self._values(_FIXED32)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    def n_floats(self) -> int:
        """Count the numbers of a list of floats without decoding them."""
        self._require("floats")
        return sum(len(value) for value in self._values(_FIXED32)) // 4

    def ints(self) -> NDArray[np.int64]:
        """Return the numbers of a list of whole numbers."""
        self._require("ints")
        found: list[int] = []
        for number, wire, value in _fields(self.data):
            if number != 1:
                continue
            if wire == _VARINT:
                found.append(int.from_bytes(value, "little"))
            elif wire == _BYTES:
                position = 0
                while position < len(value):
                    item, position = _varint(value, position)
                    found.append(item)
        return np.array(found, dtype=np.uint64).astype(np.int64)

    def items(self) -> list[memoryview]:
        """Return the parts of a list of bytes; nothing is copied."""
        self._require("bytes")
        return list(self._values(None))

    def _values(self, unpacked: int | None) -> Iterator[memoryview]:
        """Yield the raw values; numbers come in one packed run, or one by one in old files."""
        for number, wire, value in _fields(self.data):
            if number == 1 and wire in (_BYTES, unpacked):
                yield value

    def _require(self, kind: Kind) -> None:
        if self.kind != kind:
            raise DamagedRecord(f"a list of {self.kind}, expected {kind}")


def records(data: memoryview) -> Iterator[memoryview]:
    """Walk the records of a file; the content is not checked, see `checked`.

    Yields:
        The whole record, with its length and both checksums.

    Raises:
        DamagedRecord: The file ends within a record, or a length is damaged.
    """
    position = 0
    while position < len(data):
        header = data[position : position + _HEADER_BYTES]
        if len(header) < _HEADER_BYTES:
            raise DamagedRecord(f"the file ends at byte {len(data)} within a length")
        length, crc = struct.unpack("<QI", header)
        if crc != masked_crc(header[:8]):
            raise DamagedRecord(f"the length at byte {position} does not match its checksum")
        end = position + _HEADER_BYTES + length + _FOOTER_BYTES
        if end > len(data):
            raise DamagedRecord(f"the file ends at byte {len(data)}, the record ends at {end}")
        yield data[position:end]
        position = end


def content(record: memoryview) -> memoryview:
    """Return the data of a record, unchecked."""
    return record[_HEADER_BYTES:-_FOOTER_BYTES]


def checked(record: memoryview) -> memoryview:
    """Return the data of a record after comparing it with its checksum.

    Raises:
        DamagedRecord: They differ.
    """
    data = content(record)
    if struct.unpack("<I", record[-_FOOTER_BYTES:])[0] != masked_crc(data):
        raise DamagedRecord("the data does not match its checksum")
    return data


def parse_example(data: memoryview) -> dict[str, Feature]:
    """Find the features of an Example.

    Raises:
        DamagedRecord: The bytes are no Example.
    """
    found: dict[str, Feature] = {}
    for features in _messages(data, 1):
        for entry in _messages(features, 1):
            key = next(_messages(entry, 1), None)
            value = next(_messages(entry, 2), None)
            if key is None or value is None:
                continue
            for number, wire, values in _fields(value):
                if number in _KINDS and wire == _BYTES:
                    found[bytes(key).decode()] = Feature(kind=_KINDS[number], data=values)
    return found


def write_example(features: Mapping[str, Sequence[bytes] | NDArray[np.generic]]) -> bytes:
    """Encode an Example: lists of bytes, and arrays of float32 or of whole numbers, flattened."""
    entries: list[bytes] = []
    for key in sorted(features):
        values = features[key]
        if isinstance(values, np.ndarray):
            is_float = values.dtype.kind == "f"
            kind: Kind = "floats" if is_float else "ints"
            packed = (
                values.astype("<f4").tobytes()
                if is_float
                else b"".join(_encode_varint(int(v)) for v in values.ravel())
            )
            message = _field(1, packed)
        else:
            kind, message = "bytes", b"".join(_field(1, value) for value in values)
        feature = _field(_NUMBERS[kind], message)
        entries.append(_field(1, _field(1, key.encode()) + _field(2, feature)))
    return _field(1, b"".join(entries))


def frame_record(data: bytes) -> bytes:
    """Return the data as a record of a file."""
    length = struct.pack("<Q", len(data))
    return b"".join(
        (length, struct.pack("<I", masked_crc(length)), data, struct.pack("<I", masked_crc(data)))
    )


def masked_crc(data: bytes | memoryview) -> int:
    """Return the CRC-32C of some bytes as TFRecord stores it: rotated and shifted.

    Raises:
        ContractError: google-crc32c is not installed.
    """
    crc = _crc32c()(bytes(data))
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _crc32c() -> Callable[[bytes], int]:
    try:
        import google_crc32c
    except ImportError as error:
        raise ContractError(
            "TFRecord files need google-crc32c, which is not installed; "
            "pip install 'vega-policy[data]'"
        ) from error
    return google_crc32c.value


def _fields(data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yield number, wire type and raw value of the fields of a message."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, end = _varint(data, position)
            yield number, wire, memoryview(value.to_bytes(8, "little"))
        else:
            if wire == _BYTES:
                length, position = _varint(data, position)
            elif wire in (_FIXED32, _FIXED64):
                length = 4 if wire == _FIXED32 else 8
            else:
                raise DamagedRecord(f"a field of wire type {wire}")
            end = position + length
            if end > len(data):
                raise DamagedRecord("a field is longer than its message")
            yield number, wire, data[position:end]
        position = end


def _messages(data: memoryview, number: int) -> Iterator[memoryview]:
    return (value for n, wire, value in _fields(data) if n == number and wire == _BYTES)


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
    raise DamagedRecord("a number does not end")


def _encode_varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(data)) + data


def _float32(data: memoryview) -> NDArray[np.float32]:
    if len(data) % 4:
        raise DamagedRecord(f"a list of floats has {len(data)} bytes")
    return np.frombuffer(data, dtype="<f4")
