"""NumPy files of Python objects, opened without the power to run code.

Several published ScanNet files are ``.npy`` arrays of dictionaries, which NumPy stores as a pickle. An
ordinary unpickler calls whatever the file names. This one gives stand-ins written here for the four
names such a file needs, and refuses every other. NumPy's own are not used even for those: rebuilding
an array from a damaged state can crash the process.
"""

from __future__ import annotations

import pickle
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from pathlib import Path

_NUMBERS = {"f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class _Array:
    """Stands for ``numpy.ndarray``: keeps what the array holds as a list."""

    values: list[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, _, content = state
        if isinstance(content, bytes):
            self.values = dtype.read(content).tolist()
        elif isinstance(content, list) and shape == (len(content),):
            self.values = content
        else:
            raise ValueError(f"an array of shape {shape}")


class _Dtype:
    """Stands for ``numpy.dtype``: a name and a byte order."""

    def __init__(self, name: str, *_: object) -> None:
        self._name = name
        self._order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = state[1] if state[1] in {"<", ">"} else "<"

    def read(self, content: bytes) -> np.ndarray[Any, Any]:
        if self._name not in _NUMBERS or not isinstance(content, bytes):
            raise ValueError(f"numbers of type {self._name}")
        return np.frombuffer(content, np.dtype(self._order + self._name))


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, content: bytes) -> object:
    return dtype.read(content).item()


_STAND_INS: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    **{
        (module, name): stand_in
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name, stand_in in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    },
}


class _StandInsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - as in the base class
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _STAND_INS[module, name]


def read_object_array(path: Path) -> list[dict[str, Any]]:
    """Read an ``.npy`` file that holds a list of dictionaries of plain values.

    Arrays inside become flat lists, NumPy numbers plain ones.

    Raises:
        ContractError: The file is missing, broken, of another kind, or names code.
    """
    if not path.is_file():
        raise ContractError(f"no file {path}; where each data set goes is in docs/scene_data.md")
    try:
        with path.open("rb") as handle:
            version = npy.read_magic(handle)
            header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            _, _, dtype = header[version](handle)
            if dtype != np.dtype(object):
                raise ValueError(f"it holds {dtype}")
            array = _StandInsOnly(handle).load()
    except (
        pickle.UnpicklingError,
        AttributeError,
        EOFError,
        IndexError,
        KeyError,
        MemoryError,
        OverflowError,
        RuntimeError,
        SyntaxError,
        TypeError,
        TokenError,
        ValueError,
    ) as error:  # a damaged header or pickle fails in any of these ways
        raise ContractError(
            f"{path} is not an array of dictionaries of plain values ({error}); copy it again"
        ) from error
    items = array.values if isinstance(array, _Array) else None
    if items is None or not all(isinstance(item, dict) for item in items):
        raise ContractError(f"{path} holds other things than dictionaries; copy it again")
    return [{key: _plain(value) for key, value in item.items()} for item in items]


def centre_and_size(item: dict[str, Any]) -> list[Any]:
    """Return ``center_position`` and ``size`` in one list, wrong lengths kept for the check of a box."""
    parts = [item.get("center_position"), item.get("size")]
    return [value for part in parts if isinstance(part, list | tuple) for value in part]


def _plain(value: object) -> object:
    return value.values if isinstance(value, _Array) else value
