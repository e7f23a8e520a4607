"""Directories of scene models: written whole or not at all, read without ever being written to.

``config.json``, ``backbone/`` (the Hugging Face layout: a published model can be put there),
``heads.safetensors`` (everything trained that is not the backbone's), ``tokenizer/`` and ``prior/``.
"""

# pyright: reportUnknownMemberType=false
# ruff: noqa: ANN401
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import vega_policy
from vega_policy.scene.heads.config import from_dict, to_dict
from vega_policy.spec import CheckpointError, ContractError
from vega_policy.vision.prior import AnyPrior, build_prior

if TYPE_CHECKING:
    import torch

FORMAT = 1
CONFIG, HEADS = "config.json", "heads.safetensors"
BACKBONE, TOKENIZER, PRIOR = "backbone", "tokenizer", "prior"
SHIPPED = Path(vega_policy.__file__).parent / "assets" / "scene"
"""Models that come with the package; their folder names can be given in place of a path."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What a directory holds, ready for a model's constructor."""

    config: Any
    backbone: Any
    tokenizer: PreTrainedTokenizerFast
    prior: AnyPrior | None
    heads: Mapping[str, Tensor]


def save_parts(
    path: Path | str,
    *,
    kind: str,
    config: Any,
    backbone: Any,
    tokenizer: PreTrainedTokenizerFast,
    prior: AnyPrior | None,
    heads: Mapping[str, Tensor],
) -> None:
    """Write a directory beside ``path`` and move it there when it is complete.

    Raises:
        ContractError: ``path`` exists and is not a scene model.
    """
    target = Path(path)
    if target.exists() and any(target.iterdir()) and not (target / HEADS).is_file():
        raise ContractError(
            f"{target} exists and is not a scene model ({HEADS} missing); choose another directory"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        backbone.save_pretrained(new / BACKBONE)
        tokenizer.save_pretrained(new / TOKENIZER)
        if prior is not None:
            prior.save(new / PRIOR)
        own = {k: v.detach().cpu().contiguous() for k, v in heads.items()}
        save_file(own, new / HEADS, metadata={"format": "pt"})
        said = {"vega_scene": FORMAT, "kind": kind, "config": to_dict(config)}
        (new / CONFIG).write_text(json.dumps(said, indent=2) + "\n")
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def load_parts(
    path: Path | str, *, kind: str, config: Any, backbone: Any, dtype: torch.dtype | None = None
) -> Parts:
    """Read a directory.

    Args:
        path: What `save_parts` wrote, or the name of a model that comes with the package.
        kind: What it must be.
        config: Class of its settings.
        backbone: Class of its backbone.
        dtype: Of every weight but the prior's; None keeps that of the files.

    Raises:
        CheckpointError: Something is missing or of another kind; all is listed.
    """
    folder = SHIPPED / path if (SHIPPED / path).is_dir() and not Path(path).is_dir() else Path(path)
    missing = [n for n in (CONFIG, HEADS, BACKBONE, TOKENIZER) if not (folder / n).exists()]
    if missing:
        raise CheckpointError(
            f"{folder} is no scene model: {', '.join(missing)} missing; expected a directory that "
            f"save_pretrained has written, or one of {sorted(f.name for f in SHIPPED.glob('*'))}"
        )
    said = json.loads((folder / CONFIG).read_text())
    if said.get("vega_scene") != FORMAT or said.get("kind") != kind:
        raise CheckpointError(
            f"{folder / CONFIG} is of format {said.get('vega_scene')!r} and kind "
            f"{said.get('kind')!r}, expected {FORMAT} and {kind!r}; use a directory of this model"
        )
    try:
        settings = from_dict(config, said["config"])
    except (KeyError, ContractError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    vision = settings.vision
    prior = None
    if vision.fusion.uses_prior:
        prior = build_prior(vision.prior, path=folder / PRIOR)
    # Copied, not mapped: where a matrix starts in memory decides which kernel reads it, and a loaded
    # model must give the bits of the one that was saved.
    heads = {k: v.to(dtype, copy=True) for k, v in load_file(folder / HEADS).items()}
    network = backbone.from_pretrained(folder / BACKBONE, dtype=dtype or "auto")
    for weight in network.parameters():
        weight.data = weight.data.clone()
    return Parts(
        config=settings,
        backbone=network,
        tokenizer=PreTrainedTokenizerFast.from_pretrained(
            folder / TOKENIZER, local_files_only=True
        ),
        prior=prior,
        heads=heads,
    )
