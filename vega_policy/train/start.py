"""The policy a run starts from, looked at before its weights are loaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vega_policy.policy import from_pretrained
from vega_policy.policy.grafting import grafted_config
from vega_policy.policy.pretrained import load_config, resolve, statistics_of
from vega_policy.policy.published import PublishedFolder, is_published
from vega_policy.train.config import TrainConfig

if TYPE_CHECKING:
    from vega_policy.policy import VegaPolicy
    from vega_policy.policy.config import PolicyConfig


@dataclass(frozen=True)
class Start:
    """A checkpoint on disk, and what a run makes of it."""

    config: TrainConfig
    folder: Path
    is_base: bool
    """A model before fine-tuning, such as ``openvla/openvla-7b``: it has no head, and statistics of
    other robots."""

    @classmethod
    def of(cls, config: TrainConfig) -> Start | None:
        """Find what ``init_from`` names; None where a run starts from random weights.

        Raises:
            CheckpointError: There is no such checkpoint.
        """
        if config.init_from is None:
            return None
        folder = resolve(config.init_from)
        is_base = is_published(folder) and PublishedFolder.open(folder).is_base
        return cls(config=config, folder=folder, is_base=is_base)

    @property
    def keeps_statistics(self) -> bool:
        """Whether its statistics stay; those of a base model do only if that is asked for."""
        wanted = self.config.statistics
        return wanted == "checkpoint" or (wanted == "auto" and not self.is_base)

    def sha256(self) -> str:
        """Hash its weights."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @property
    def policy_config(self) -> PolicyConfig:
        """Of the policy that will be trained, read without any weight."""
        own = load_config(self.folder, settings=self._settings)
        asked = self.config.policy
        widen = self.config.graft_widen
        is_there = (own.prior, own.fusion) == (asked.prior, asked.fusion) and not widen
        if not self.config.graft or is_there:
            return own
        return grafted_config(
            own, prior=asked.prior, fusion=asked.fusion, projector=asked.projector, widen=widen
        )

    def load(self) -> VegaPolicy:
        """Load it, on the CPU and without a graft."""
        any_key = next(iter(statistics_of(self.folder)), None)
        return from_pretrained(self.folder, unnorm_key=any_key, settings=self._settings)

    @property
    def _settings(self) -> dict[str, Any] | None:
        """Return what a base model leaves open: the parts that are new, and the robot."""
        if not self.is_base:
            return None
        asked = self.config.policy.to_dict()
        semantic = {key: asked["semantic"][key] for key in ("film", "film_init")}
        parts = ("cameras", "proprio_size", "normalisation", "action", "head")
        return {"semantic": semantic, **{key: asked[key] for key in parts}}
