"""A control: the prior is shown a frame of another moment in place of what the camera sees.

Its features are then real features of real frames, only not of this one: what a policy gains from them it
does not gain from their content. Which frame of the bank is shown is decided by what the camera saw, so
that an observation always has the same features, in training and in a rollout, and they can be cached.

Shape legend: ``k`` frames of the bank, ``b`` batch, ``v`` views, ``h, w`` image size.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vega_policy.spec.errors import CheckpointError, ContractError

BANK = "bank.safetensors"
BANK_SIZE = 128
"""Moments a bank keeps, spread over the training data."""


def from_bank(frames: Tensor, bank: Tensor) -> Tensor:
    """Replace every frame by one of the same camera from the bank.

    Args:
        frames: (b, v, 3, h, w) in [-1, 1].
        bank: (k, v, 3, h, w) uint8, of the same cameras and size.

    Returns:
        (b, v, 3, h, w) in [-1, 1]. A frame that is in the bank itself is never shown as itself.

    Raises:
        ContractError: Cameras or size differ.
    """
    if frames.shape[1:] != bank.shape[1:]:
        raise ContractError(
            f"frames are {tuple(frames.shape[1:])}, the bank of prior.sees=other holds "
            f"{tuple(bank.shape[1:])}; train this control with the cameras it is to be played with"
        )
    seen = ((frames + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    chosen = torch.empty(frames.shape, dtype=torch.uint8)
    for b, views in enumerate(seen):
        for v, view in enumerate(views):
            place = int.from_bytes(hashlib.sha256(view.tobytes()).digest()[:8], "big") % len(bank)
            if torch.equal(bank[place, v], torch.from_numpy(view)):
                place = (place + 1) % len(bank)
            chosen[b, v] = bank[place, v]
    return (chosen.float() / 127.5 - 1.0).to(frames.device, frames.dtype)


def save_bank(bank: Tensor, folder: Path | str) -> None:
    """Write a bank beside the prior's weights."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file({"frames": bank.contiguous()}, Path(folder) / BANK)


def load_bank(folder: Path | str) -> Tensor | None:
    """Read the bank of a prior; None where there is none yet, as before training.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = Path(folder) / BANK
    if not path.is_file():
        return None
    try:
        return load_file(path)["frames"]
    except (SafetensorError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; train the control again") from error
