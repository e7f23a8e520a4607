"""What a directory in the published layout holds, found by the names of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vega_policy.policy.published.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_FOLDER,
    unwrapped,
    with_adapter,
)
from vega_policy.policy.published.hub import is_hub_id, snapshot
from vega_policy.policy.published.keys import ACTION_HEAD, NOISY_ACTION, PROPRIO
from vega_policy.policy.published.tensors import (
    INDEX,
    SINGLE,
    Stored,
    read_json,
    read_pt,
    read_safetensors,
    shards,
)
from vega_policy.spec import CheckpointError

CONFIG, STATISTICS, TOKENIZER = "config.json", "dataset_statistics.json", "tokenizer.json"
VISION_BACKBONE = "vision_backbone."
COMPONENTS = (ACTION_HEAD, PROPRIO, NOISY_ACTION, VISION_BACKBONE)
"""Files beside the main weights: ``<name>--<training step>_checkpoint.pt``."""
MODEL_TYPE = "openvla"


@dataclass(frozen=True, kw_only=True)
class PublishedFolder:
    """A checkpoint in the published layout; nothing in it is ever written."""

    path: Path
    """What the user named: component files, statistics and, unless it is an adapter, all else."""
    model: Path
    """Configuration and main weights; another directory than ``path`` where that is an adapter."""
    adapter: Path | None
    """An adapter whose weights are not yet in ``model``."""

    @classmethod
    def open(cls, path: Path, *, base: Path | str | None = None) -> PublishedFolder:
        """Find the parts.

        Args:
            path: A checkpoint directory, one with an adapter instead of the main weights, or an
                adapter directory itself; the last has its component files beside it.
            base: Directory or hub id an adapter was trained on; None is the one it names.

        Raises:
            CheckpointError: The directory is none of these, or the base is not to be found.
        """
        if _has_weights(path):
            return cls(path=path, model=path, adapter=None)
        if (path / ADAPTER_CONFIG).is_file():
            beside = path if list(path.glob("*--*_checkpoint.pt")) else path.parent
            return cls(path=beside, model=_base(path, base), adapter=path)
        if (path / ADAPTER_FOLDER / ADAPTER_CONFIG).is_file():
            adapter = path / ADAPTER_FOLDER
            return cls(path=path, model=_base(adapter, base), adapter=adapter)
        raise CheckpointError(
            f"{path} has no weights: neither {INDEX}, {SINGLE} nor {ADAPTER_FOLDER}/; download the "
            "whole checkpoint directory"
        )

    @property
    def config(self) -> dict[str, Any]:
        """The published configuration; files of code it names are never run.

        Raises:
            CheckpointError: It is that of another architecture.
        """
        values = read_json(self.model / CONFIG)
        if values.get("model_type") != MODEL_TYPE:
            raise CheckpointError(
                f"{self.model / CONFIG} is of model_type {values.get('model_type')!r}, expected "
                f"{MODEL_TYPE!r}; only OpenVLA and OpenVLA-OFT checkpoints can be read"
            )
        return values

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer's file."""
        return next((f for d in (self.path, self.model) if (f := d / TOKENIZER).is_file()), None)

    @property
    def statistics(self) -> Path | None:
        """The statistics of fine-tuning; a base model has none."""
        file = self.path / STATISTICS
        return file if file.is_file() else None

    @property
    def is_base(self) -> bool:
        """Whether this is a model before fine-tuning: no head and no statistics of its own."""
        return self.statistics is None and self.component(ACTION_HEAD) is None

    def component(self, name: str) -> Path | None:
        """Return the file of a component, one of `COMPONENTS`.

        Raises:
            CheckpointError: There are several.
        """
        files = sorted(self.path.glob(f"{name.removesuffix('.')}--*_checkpoint.pt"))
        if len(files) > 1:
            raise CheckpointError(
                f"{self.path} has {', '.join(f.name for f in files)}, expected one training step; "
                "move the others away"
            )
        return files[0] if files else None

    def component_tensors(self, name: str) -> dict[str, Stored]:
        """Describe the weights of a component; empty where there is no such file."""
        file = self.component(name)
        if file is None:
            return {}
        if name == VISION_BACKBONE:
            return unwrapped(read_pt(file, prefix=""), where=file)
        return read_pt(file, prefix=name)

    def tensors(self) -> dict[str, Stored]:
        """Describe every weight of the checkpoint, adapters added, by its published name."""
        weights = read_safetensors(shards(self.model))
        if self.adapter is not None:
            weights = with_adapter(weights, self.adapter)
        for name in COMPONENTS:
            weights |= self.component_tensors(name)
        return weights


def is_published(folder: Path) -> bool:
    """Return whether a directory looks like the published layout rather than ours."""
    if any((f / ADAPTER_CONFIG).is_file() for f in (folder, folder / ADAPTER_FOLDER)):
        return True
    return (folder / CONFIG).is_file() and "model_type" in read_json(folder / CONFIG)


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (INDEX, SINGLE))


def _base(adapter: Path, base: Path | str | None) -> Path:
    wanted = base or read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    if wanted and _has_weights(Path(wanted)):
        return Path(wanted)
    if wanted and is_hub_id(str(wanted)):
        return snapshot(str(wanted))
    raise CheckpointError(
        f"{adapter} was trained on {wanted!r}, which is not here; pass the directory or hub id of "
        "that checkpoint as base"
    )
