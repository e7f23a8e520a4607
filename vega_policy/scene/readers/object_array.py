"""NumPy files of Python objects, opened without the power to run code.

Several published ScanNet files are ``.npy`` arrays of dictionaries, which NumPy stores as a pickle. An
ordinary unpickler calls whatever the file names; this one knows arrays and numbers and nothing else.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from pathlib import Path

_ARRAY_MODULES = {"numpy.core.multiarray", "numpy._core.multiarray"}
_ALLOWED = {
    **{(module, "_reconstruct"): None for module in _ARRAY_MODULES},
    **{(module, "scalar"): None for module in _ARRAY_MODULES},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - as in the base class
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        known = _ALLOWED[module, name]
        return super().find_class(module, name) if known is None else known


def read_object_array(path: Path) -> list[dict[str, Any]]:
    """Read an ``.npy`` file that holds a list of dictionaries of plain values.

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
            array = _ArraysOnly(handle).load()
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ContractError(
            f"{path} is not an array of dictionaries of plain values ({error}); copy it again"
        ) from error
    items = list(np.ravel(array))
    if not all(isinstance(item, dict) for item in items):
        raise ContractError(f"{path} holds other things than dictionaries; copy it again")
    return items
