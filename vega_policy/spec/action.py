"""What a policy returns and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vega_policy.spec.errors import ContractError


@dataclass(frozen=True)
class ActionSpec:
    """Meaning of an action vector; checkpoint, data set and environment carry the same object."""

    size: int = 7
    """Numbers in one action."""
    horizon: int = 8
    """Actions in one chunk."""
    control: Literal["osc_pose_delta"] = "osc_pose_delta"
    """Operational-space pose controller: translation (3), rotation (3), gripper (1)."""
    rotation: Literal["axis_angle"] = "axis_angle"
    """Form of the three rotation numbers."""
    gripper: Literal["-1 open, +1 close"] = "-1 open, +1 close"
    """Sign convention of the last number."""
    rate_hz: float = 20.0
    """Control rate the actions were recorded at."""
    low: float = -1.0
    """Lower bound of every number."""
    high: float = 1.0
    """Upper bound of every number."""

    def disagreements(self, other: ActionSpec, *, ours: str, theirs: str) -> list[str]:
        """List every field in which two specifications differ, one sentence each."""
        a, b = asdict(self), asdict(other)
        return [
            f"action {name}: {ours} has {a[name]!r}, {theirs} has {b[name]!r}"
            for name in a
            if a[name] != b[name]
        ]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ActionSpec:
        """Read a specification back from JSON.

        Raises:
            ContractError: A field is unknown.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise ContractError(f"action specification has unknown fields: {', '.join(unknown)}")
        return cls(**values)


@dataclass(frozen=True, eq=False)
class ActionChunk:
    """The answer to one observation."""

    actions: NDArray[np.float32]
    """(horizon, size), ready for the environment: in the units and signs of the `ActionSpec`."""
    gate: Mapping[str, NDArray[np.float32]] | None = None
    """Per camera (h, w) on the token grid, weight of the semantic stream in [0, 1]; at 1 the
    prior is shut out. None where the policy has no gate."""
    timing_ms: Mapping[str, float] = field(default_factory=dict[str, float])
    """Milliseconds per stage, of the whole batch this answer was computed in."""
