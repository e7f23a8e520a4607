"""Statistics of a data set, and the normalisation of proprioception and actions by them.

Shape legend: ``b`` batch, ``t`` steps of a chunk, ``a`` numbers of an action, ``p`` numbers of the
proprioception.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vega_policy.spec import CheckpointError
from vega_policy.spec.files import write_atomic
from vega_policy.spec.names import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

Floats = NDArray[np.float64]
Rule = Literal["bounds_q99", "bounds"]
"""What is mapped to -1 and 1: the 1st and 99th percentile, or the lowest and highest value."""
_FIELDS = ("mean", "std", "min", "max", "q01", "q99", "mask")


@dataclass(frozen=True, eq=False)
class Bounds:
    """Per-number statistics of one quantity; all arrays have its size."""

    mean: Floats
    std: Floats
    min: Floats
    max: Floats
    q01: Floats
    q99: Floats
    mask: NDArray[np.bool_]
    """False where values pass through untouched (the gripper)."""
    rule: Rule = "bounds_q99"

    @property
    def low(self) -> Floats:
        """What becomes -1."""
        return self.q01 if self.rule == "bounds_q99" else self.min

    @property
    def high(self) -> Floats:
        """What becomes 1."""
        return self.q99 if self.rule == "bounds_q99" else self.max

    def sizes(self) -> dict[str, int]:
        """Return how many numbers each field has; all should agree."""
        return {name: len(getattr(self, name)) for name in _FIELDS}

    def normalise(self, values: NDArray[Any]) -> Floats:
        """Map `low` to -1 and `high` to 1, and clip to [-1, 1].

        Training of OpenVLA-OFT also makes a number that never varied 0 (`normalise_target`); its
        evaluation would clip untouched numbers too, of which proprioception has none.
        """
        x = np.asarray(values, dtype=np.float64)
        scaled = 2.0 * (x - self.low) / (self.high - self.low + 1e-8) - 1.0
        return np.where(self.mask, np.clip(scaled, -1.0, 1.0), x)

    def normalise_target(self, values: NDArray[Any]) -> Floats:
        """`normalise` as in training: a number that never varied becomes 0."""
        constant = self.mask & (self.min == self.max)
        return np.where(constant, 0.0, self.normalise(values))

    def unnormalise(self, values: NDArray[Any]) -> Floats:
        """Invert `normalise` in float64, without clipping."""
        y = np.asarray(values, dtype=np.float64)
        scaled = 0.5 * (y + 1.0) * (self.high - self.low + 1e-8) + self.low
        return np.where(self.mask, scaled, y)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {name: getattr(self, name).tolist() for name in _FIELDS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Bounds:
        """Read statistics back; an absent mask is all True, as in published proprioception."""
        arrays: dict[str, Any] = {
            name: np.asarray(values[name], dtype=np.float64)
            for name in ("mean", "std", "min", "max", "q01", "q99")
        }
        mask = values.get("mask", [True] * len(arrays["q01"]))
        return cls(**arrays, mask=np.asarray(mask, dtype=bool))


@dataclass(frozen=True, eq=False)
class DatasetStatistics:
    """Statistics of one data set."""

    action: Bounds
    """Of training targets: six masked-in numbers, then the gripper (1 open, 0 closed), untouched."""
    proprio: Bounds
    num_transitions: int
    num_trajectories: int

    def by(self, rule: Rule) -> DatasetStatistics:
        """Return the same statistics, to be normalised with by another rule.

        A file of statistics does not hold the rule; the policy's configuration does.
        """
        return dataclasses.replace(
            self,
            action=dataclasses.replace(self.action, rule=rule),
            proprio=dataclasses.replace(self.proprio, rule=rule),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary in the published layout."""
        return {
            "action": self.action.to_dict(),
            "proprio": self.proprio.to_dict(),
            "num_transitions": self.num_transitions,
            "num_trajectories": self.num_trajectories,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetStatistics:
        """Read statistics back."""
        return cls(
            action=Bounds.from_dict(values["action"]),
            proprio=Bounds.from_dict(values["proprio"]),
            num_transitions=int(values["num_transitions"]),
            num_trajectories=int(values["num_trajectories"]),
        )


def save_statistics(path: Path | str, statistics: Mapping[str, DatasetStatistics]) -> None:
    """Write ``dataset_statistics.json``, one entry per data set."""
    text = json.dumps({k: v.to_dict() for k, v in statistics.items()}, indent=2)
    write_atomic(path, text + "\n")


def parse_statistics(values: Mapping[str, Any]) -> dict[str, DatasetStatistics]:
    """Read the JSON layout, one entry per data set."""
    return {name: DatasetStatistics.from_dict(entry) for name, entry in values.items()}


def load_statistics(path: Path | str) -> dict[str, DatasetStatistics]:
    """Read ``dataset_statistics.json``.

    Raises:
        CheckpointError: The file is not JSON of the published layout.
    """
    try:
        return parse_statistics(json.loads(Path(path).read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} holds no data set statistics ({type(error).__name__}: {error}); expected "
            "{name: {action: {q01, q99, ...}, proprio: {...}, num_transitions, num_trajectories}}"
        ) from error


def choose_key(statistics: Mapping[str, DatasetStatistics], wanted: str | None) -> str:
    """Return the entry to normalise with.

    Args:
        statistics: What the checkpoint carries.
        wanted: Name of a data set or suite; None is allowed where there is only one.

    Raises:
        CheckpointError: The name is unknown, or absent where there are several.
    """
    if wanted is None:
        if len(statistics) == 1:
            return next(iter(statistics))
        raise CheckpointError(
            f"the checkpoint carries statistics of {len(statistics)} data sets and none was chosen; "
            f"set unnorm_key to one of {', '.join(sorted(statistics))}"
        )
    key = key_of_suite(statistics, wanted)
    if key is None:
        raise CheckpointError(f"unknown unnorm_key {wanted!r}; {nearest(wanted, statistics)}")
    return key


def key_of_suite(statistics: Mapping[str, DatasetStatistics], suite: str) -> str | None:
    """Return the entry of a suite, or None; OpenVLA-OFT's names end in ``_no_noops``."""
    return next((k for k in (suite, f"{suite}_no_noops") if k in statistics), None)
