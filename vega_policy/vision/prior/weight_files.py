"""Files of weights: safetensors and PyTorch's own, mapped into memory instead of copied.

Never pickles: PyTorch's files are read with ``weights_only=True``.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vega_policy.spec.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

Reader = tuple[set[str], "Callable[[str], Tensor]"]


def shards(folder: Path, stem: str) -> list[Path]:
    """Return the weight files ``stem*`` of a folder: those its index lists, or all.

    Raises:
        CheckpointError: There are none, or one the index lists is missing; all are named.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        files = sorted(folder.glob(f"{stem}*.safetensors"))
        if not files:
            raise CheckpointError(
                f"{folder} holds no weights; expected {stem}*.safetensors; download it again"
            )
        return files
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)}, which {index.name} lists; download it again"
        )
    return [folder / name for name in names]


@contextmanager
def open_weights(file: Path) -> Generator[Reader]:
    """Give the names in a file and a function that returns the tensor of a name.

    The tensors are mapped: a page is read when it is used, and none is written back. A ``.pt`` with
    a bare tensor has the one name "".

    Raises:
        CheckpointError: The file is cut off or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    mapped = held = None
    try:
        if file.suffix == ".safetensors":
            mapped = safe_open(file, framework="pt")
        else:
            held = torch.load(
                file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
            )
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({str(error).splitlines()[0][:120]}); it is damaged or of "
            "another kind, copy it again"
        ) from error
    if mapped is not None:
        with mapped as handle:
            yield set(handle.keys()), handle.get_tensor
    else:
        tensors: dict[str, Tensor] = {"": held} if isinstance(held, Tensor) else held or {}
        yield set(tensors), tensors.__getitem__
