"""The state of a training run on disk, complete or absent.

A checkpoint is a folder ``step-<number>`` with ``tensors.safetensors`` and ``state.json``. It is written
under a hidden name and renamed when every byte has reached the disk, so a kill at any moment leaves
the older checkpoints and at most a hidden folder, which the next save removes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vega_policy.spec import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

KEEP = 2
"""Checkpoints kept beside each other."""


@dataclass(frozen=True, eq=False)
class RunState:
    """Everything a run needs to continue as if it had never stopped."""

    step: int
    """Updates done."""
    tensors: Mapping[str, Tensor]
    """Weights, averages, moments and random states by name, on the CPU."""
    info: Mapping[str, Any]
    """JSON values: what the run was made with, and the time spent."""


def save(folder: Path, state: RunState) -> Path:
    """Write a checkpoint and drop all but the last `KEEP`."""
    folder.mkdir(parents=True, exist_ok=True)
    for hidden in folder.glob(".step-*"):
        shutil.rmtree(hidden, ignore_errors=True)
    target = folder / f"step-{state.step:09d}"
    temporary = folder / f".{target.name}"
    temporary.mkdir()
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.tensors.items()}
    save_file(tensors, temporary / "tensors.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": state.step, **state.info}, indent=2))
    for path in temporary.iterdir():
        _sync(path)
    if target.exists():
        shutil.rmtree(target)
    temporary.replace(target)
    _sync(folder)
    for old in saved(folder)[:-KEEP]:
        shutil.rmtree(old)
    return target


def saved(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def load_latest(folder: Path) -> RunState | None:
    """Read the newest checkpoint; None where there is none.

    Raises:
        CheckpointError: It cannot be read.
    """
    found = saved(folder)
    if not found:
        return None
    try:
        tensors = load_file(found[-1] / "tensors.safetensors")
        info = json.loads((found[-1] / "state.json").read_text())
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{found[-1]} cannot be read: {error}, expected a complete checkpoint; delete this folder "
            "to continue from the one before it"
        ) from error
    return RunState(step=int(info.pop("step")), tensors=tensors, info=info)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the optimiser's tensors under the names of the parameters they belong to."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = value
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    *,
    share: Callable[..., Tensor] = lambda tensor, *, like: tensor.to(like.device),
) -> None:
    """Put back what `optimizer_tensors` returned.

    ``share`` returns what this process holds of a whole tensor; see `Ranks.share`.
    """
    for name, tensor in tensors.items():
        kind, key, parameter_name = [*name.split("/", 2), "", ""][:3]
        if kind != "optimizer":
            continue
        parameter = parameters[parameter_name]
        # The step counter of Adam stays a float32 scalar on its own device.
        if tensor.ndim:
            optimizer.state[parameter][key] = share(tensor, like=parameter)
        else:
            device = parameter.device if optimizer.defaults.get("fused") else "cpu"
            optimizer.state[parameter][key] = tensor.to(device)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
