"""What an episode is and what became of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["success", "failure", "policy_fault"]
FULL_ARM = "full"
"""The policy as it was trained."""


@dataclass(frozen=True, order=True)
class EpisodeKey:
    """What an episode *is*; never which worker ran it or when."""

    suite: str
    task_id: int
    init_state_id: int
    perturbation: str = "none"
    seed: int = 0
    repetition: int = 0

    def digest(self) -> int:
        """Return 63 bits that are the same in every process, on every machine."""
        text = json.dumps(asdict(self), sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def name(self) -> str:
        """Return a name that is unique within a run and usable as a file name."""
        tail = "" if self.perturbation == "none" else f"-{self.perturbation}"
        return (
            f"{self.suite}-task{self.task_id:02d}-init{self.init_state_id:03d}"
            f"-seed{self.seed}-rep{self.repetition}{tail}"
        )


@dataclass(frozen=True)
class EpisodeResult:
    """One row of the ledger."""

    key: EpisodeKey
    outcome: Outcome
    """``policy_fault``: the policy raised or returned an invalid chunk."""
    n_steps: int
    """Control steps applied, the settling steps at the start not counted."""
    n_chunks: int
    """Inferences asked for."""
    state_sha256: str
    """Hash of the final simulator state (float64, flattened), for replay."""
    wall_s: float
    """Seconds from reset to the end, waiting for inference included."""
    instruction: str = ""
    detail: str = ""
    """The message of a fault; empty otherwise."""
    info: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Numbers of the episode for the report (JSON values only)."""
    arm: str = FULL_ARM
    """Which variant of the policy played: episodes of two arms with equal keys are a pair."""
    state_hashes: tuple[str, ...] = ()
    """The first 16 hex digits of the hash of the simulator state at the first inference, then after
    every chunk: where two replays part is seen without simulating the rest."""
    made_with: Mapping[str, str] = field(default_factory=dict[str, str])
    """Checkpoint hash, versions and processor class, so that a row means something without its
    run: rows of several machines are merged by concatenation."""

    @property
    def name(self) -> str:
        """Unique within a run and usable as a file name."""
        return self.key.name() if self.arm == FULL_ARM else f"{self.key.name()}@{self.arm}"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> EpisodeResult:
        """Read a row back; unknown fields of a newer version are ignored."""
        known: dict[str, Any] = {k: v for k, v in row.items() if k in cls.__dataclass_fields__}
        of_key = EpisodeKey.__dataclass_fields__
        known["key"] = EpisodeKey(**{k: v for k, v in row["key"].items() if k in of_key})
        known["state_hashes"] = tuple(row.get("state_hashes", ()))
        return cls(**known)
