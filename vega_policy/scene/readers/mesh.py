"""Vertices of a ScanNet mesh (``_vh_clean_2.ply``).

Written here since the usual package is GPL and a mesh library is large: vertices come first in these
files and have numbers of fixed size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}


def read_vertices(path: Path) -> NDArray[np.float64]:
    """Read (n, 3) vertices, world frame, of an ascii or little-endian ply file.

    Raises:
        ContractError: The file is missing, cut off or of another kind.
    """
    if not path.is_file():
        raise ContractError(f"no mesh {path}; put the scan's _vh_clean_2.ply there")
    data = path.read_bytes()
    head, found, body = data.partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    kind = next((line[1] for line in lines if line[:1] == ["format"] and len(line) > 1), "")
    elements = [k for k, line in enumerate(lines) if line[:1] == ["element"]]
    if not found or not elements or lines[elements[0]][1:2] != ["vertex"]:
        raise ContractError(f"{path} is not a ply file that begins with vertices")
    last = elements[1] if len(elements) > 1 else len(lines)
    properties = [line for line in lines[elements[0] : last] if line[:1] == ["property"]]
    names = [line[-1] for line in properties]
    known = {"x", "y", "z"} <= set(names) and all(
        len(line) == 3 and line[1] in _TYPES for line in properties
    )
    count = lines[elements[0]][-1]
    if not known or len(set(names)) < len(names) or not count.isdecimal():
        raise ContractError(
            f"{path} has {count} vertices with properties {names}, expected x, y, z and numbers"
        )
    n = int(count)
    types = ["<" + _TYPES[line[1]] for line in properties]
    try:
        if kind == "binary_little_endian":
            table = np.frombuffer(body, np.dtype(list(zip(names, types, strict=True))), count=n)
            return np.stack([table[axis].astype(np.float64) for axis in "xyz"], axis=1)
        if kind == "ascii":
            words = np.array(body.split()[: n * len(names)], dtype=np.float64)
            return words.reshape(n, len(names))[:, [names.index(axis) for axis in "xyz"]]
    except ValueError as error:
        raise ContractError(f"{path} is cut off ({error}); copy it again") from error
    raise ContractError(f"{path} has format {kind!r}, expected ascii or binary_little_endian")
