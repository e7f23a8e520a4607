"""Frames that a decoder and a server must survive: valid requests, damaged by every means."""

from __future__ import annotations

import pickle
import random
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from vega_policy.deploy.codec import pack
from vega_policy.deploy.wire import EXTRAS_KEY, RequestExtras, to_request
from vega_policy.spec import CAMERAS, Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_HEADERS = (
    *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"),  # a list and a map of 2^32 - 1 entries
    *(b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"),  # as many bytes, and as much text
    *(b"\xc9\xff\xff\xff\xff\x01", b"\xd6\xff\x00\x00\x00\x00", b"\xc1", b"\xc7\x00\x05"),
)
"""Beginnings of msgpack values that promise what does not follow, or what is not allowed."""
_DTYPES = ("|O", "O", "O8", "|V8", "<M8", "<m8", "<c8", "<U4", "|S4", "f,f", "<f16", ">f8", "")
_SIZES = (-1, 0, 1, 3, 2**31, 2**62, 2**63, 2**64 - 1, 1.0, "1", None, True)
_VALUES = (
    *(None, True, False, 0, -1, 2**63, 2**64 - 1, 1e308, float("nan"), float("inf")),
    *("", "x" * 3000, "\x00", b"", b"\x80\x04.", [], [[]], {}, {"": {}}, {b"__ndarray__": True}),
)


def valid_request(number: int = 0, *, px: int = 16, request_id: str | None = None) -> bytes:
    """Return a request that a server of made-up policies answers."""
    rng = np.random.default_rng(number)
    images = {name: rng.integers(0, 255, (px, px, 3), np.uint8) for name in CAMERAS}
    proprio = rng.normal(size=8).astype(np.float32)
    observation = Observation(images, proprio, "reach the red block")
    extras = None if request_id is None else RequestExtras(request_id=request_id, key=number)
    return pack(to_request(observation, extras))


def fuzz_frames(n: int, *, seed: int = 0, marker: Path | None = None) -> Iterator[bytes]:
    """Yield ``n`` frames, the same ones for the same seed.

    Args:
        n: How many.
        seed: Of everything.
        marker: A file that unpickling some of them would make.
    """
    rng = random.Random(seed)  # noqa: S311 - reproducible on purpose
    valid = [valid_request(i, request_id=f"{i}" if i % 2 else None) for i in range(8)]
    trees = [msgpack.unpackb(frame, strict_map_key=False) for frame in valid]
    pickled = [pickle.dumps(_Touch(marker or Path("fuzz-marker"))), pickle.dumps(np.zeros(3))]
    bytewise = (_flip, _cut, _drop, _repeat, _insert_header, _insert_noise)
    for _ in range(n):
        kind = rng.random()
        if kind < 0.45:
            frame = _tree(rng, trees[rng.randrange(len(trees))])
        elif kind < 0.85:
            frame = rng.choice(valid)
            for _ in range(rng.choice((1, 1, 1, 2, 8))):
                frame = rng.choice(bytewise)(rng, frame)
        elif kind < 0.9:
            a, b = rng.choice(valid), rng.choice(valid)
            frame = a[: rng.randrange(len(a))] + b[rng.randrange(len(b)) :]
        elif kind < 0.93:
            frame = _bomb(rng)
        elif kind < 0.96:
            frame = rng.choice(pickled)
        else:
            frame = rng.randbytes(rng.choice((0, 1, 2, 16, 300, 5000)))
        yield frame


class _Touch:
    """Its unpickling makes a file: proof that somebody unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def _flip(rng: random.Random, frame: bytes) -> bytes:
    damaged = bytearray(frame)
    # Mostly where the structure is: in between there are long stretches of pixels.
    reach = len(damaged) if rng.random() < 0.3 else min(len(damaged), 80)
    for _ in range(rng.choice((1, 2, 5))):
        if damaged:
            damaged[rng.randrange(max(1, reach))] = rng.randrange(256)
    return bytes(damaged)


def _cut(rng: random.Random, frame: bytes) -> bytes:
    return frame[: rng.randrange(len(frame) + 1)]


def _drop(rng: random.Random, frame: bytes) -> bytes:
    start = rng.randrange(len(frame) + 1)
    return frame[:start] + frame[start + rng.choice((1, 2, 50)) :]


def _repeat(rng: random.Random, frame: bytes) -> bytes:
    start = rng.randrange(len(frame) + 1)
    return frame[:start] + frame[start : start + 20] * rng.choice((2, 3, 20)) + frame[start:]


def _insert_header(rng: random.Random, frame: bytes) -> bytes:
    at = rng.randrange(min(len(frame), 80) + 1)
    return frame[:at] + rng.choice(_HEADERS) + frame[at:]


def _insert_noise(rng: random.Random, frame: bytes) -> bytes:
    at = rng.randrange(len(frame) + 1)
    return frame[:at] + rng.randbytes(rng.choice((1, 4, 64))) + frame[at:]


def _bomb(rng: random.Random) -> bytes:
    """Return a small message that is large once it is decoded."""
    inner = rng.choice((b"\x90", b"\x80", b"\x01", b"\xa0", b"\xc0"))
    row = b"\xdc" + struct.pack(">H", 1024) + inner * 1024
    if rng.random() < 0.5:
        return b"\x91" * rng.choice((20, 600, 5000)) + inner
    return b"\xdc" + struct.pack(">H", 200) + row * 200


def _tree(rng: random.Random, tree: dict[Any, Any]) -> bytes:
    """Return a message that is msgpack, and wrong in one or two places."""
    damaged = _copy(tree)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.choice(_maps(damaged))
        key = rng.choice([*at, "new", b"__ndarray__", EXTRAS_KEY])
        if key == b"dtype" and rng.random() < 0.8:
            at[key] = rng.choice(_DTYPES)
        elif key == b"shape" and rng.random() < 0.8:
            at[key] = [rng.choice(_SIZES) for _ in range(rng.randrange(7))]
            if rng.random() < 0.7:  # the bytes that a size of 0 asks for
                at[b"data"] = b""
        elif rng.random() < 0.15:
            at.pop(key, None)
        elif rng.random() < 0.15:
            at[rng.choice((0, b"bytes", "", "x" * 300, None, 1.5))] = _copy(at.get(key))
        else:
            at[key] = _copy(rng.choice(_VALUES))
    return msgpack.packb(damaged) or b""


def _copy(node: Any) -> Any:  # noqa: ANN401 - a tree
    if isinstance(node, dict):
        return {key: _copy(value) for key, value in node.items()}
    return [_copy(value) for value in node] if isinstance(node, list) else node


def _maps(node: dict[Any, Any]) -> list[dict[Any, Any]]:
    inner = [m for value in node.values() if isinstance(value, dict) for m in _maps(value)]
    return [node, *inner]
