"""Tensors of files that are described at once and read one by one."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from vega_policy.spec import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of a checkpoint, not read yet."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    """Returns the tensor; what comes from safetensors is a private map of the file, so it takes no
    memory until it is used, and writing to it does not reach the file."""


def read_safetensors(files: Iterable[Path]) -> dict[str, Stored]:
    """Describe every tensor of these files; only their headers are read.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    result: dict[str, Stored] = {}
    for path in files:
        for name, entry in _header(path).items():
            result[name] = Stored(tuple(entry["shape"]), partial(_read, path, name))
    return result


def _read(path: Path, name: str) -> Tensor:
    # Opened anew for each: a map of its own is given back as soon as this tensor is not needed.
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def shards(folder: Path) -> list[Path]:
    """Return the safetensors files of a model: one, or those its index names.

    Raises:
        CheckpointError: There is none, one is missing, or the index does not agree with them.
    """
    if not (folder / INDEX).is_file():
        if (folder / SINGLE).is_file():
            return [folder / SINGLE]
        raise CheckpointError(
            f"{folder} has neither {INDEX} nor {SINGLE}; download the whole checkpoint directory"
        )
    where = read_json(folder / INDEX).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise CheckpointError(f"{folder / INDEX} has no weight_map; download it again")
    files = [folder / name for name in sorted(set(where.values()))]
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)} of the {len(files)} files its index names; "
            "download what is missing"
        )
    held = {f.name: set(_header(f)) for f in files}
    wrong = [f"{key} (not in {name})" for key, name in where.items() if key not in held[name]]
    wrong += [f"{key} (not in the index)" for keys in held.values() for key in keys - where.keys()]
    if wrong:
        raise CheckpointError(
            f"{folder / INDEX} and its files disagree on {len(wrong)} weights: "
            f"{', '.join(sorted(wrong)[:8])}; they are of different checkpoints, download all again"
        )
    return files


def read_pt(path: Path, *, prefix: str) -> dict[str, Stored]:
    """Describe every tensor of a ``.pt`` file; pickled code is refused.

    Args:
        path: A state dictionary as `torch.save` writes it.
        prefix: Put in front of each name, in place of the ``module.`` of a distributed wrapper.

    Raises:
        CheckpointError: It is damaged, or anything else than a dictionary of tensors.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        # Not in torch's words, which advise to run the file's code.
        raise CheckpointError(
            f"{path} holds more than plain tensors; files that run code when read are refused, take "
            "one that `torch.save` wrote of a state dictionary"
        ) from error
    except Exception as error:
        first = str(error).strip().split("\n")[0].split(". ")[0]
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {first}); download it again"
        ) from error
    if not isinstance(values, dict) or not all(isinstance(v, Tensor) for v in values.values()):
        raise CheckpointError(f"{path} holds no dictionary of tensors; download it again")
    return {
        prefix + key.removeprefix("module."): Stored(tuple(value.shape), lambda value=value: value)
        for key, value in values.items()
    }


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: The file is not one.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, expected a JSON object")
    return values


def _header(path: Path) -> Mapping[str, Any]:
    """Return what a safetensors file says it holds, once its size agrees."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError(f"its header should take {length:,} of {size:,} bytes")
            entries: dict[str, Any] = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        expected = 8 + length + max((e["data_offsets"][1] for e in entries.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file ({error}); download it again"
        ) from error
    if size != expected:
        raise CheckpointError(
            f"{path} has {size:,} bytes, its header describes {expected:,}: it was not downloaded "
            "to the end; download it again"
        )
    return entries
