"""What a preflight check found: one sentence for the user, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Area = Literal["simulator", "policy", "machine"]
Status = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """The outcome of one preflight check."""

    area: Area
    name: str
    """Short and stable, in words with underscores: ``fixture_placement``."""
    status: Status
    """``failed``: numbers made here cannot be trusted. ``warning``: they can, with care.
    ``skipped``: could not be looked at; ``found`` says why."""
    found: str
    """What was found, with numbers and units."""
    expected: str = ""
    """What a good set-up shows."""
    fix: str = ""
    """What to do; set wherever the status is ``failed`` or ``warning``."""
    wall_s: float = 0.0
    """Seconds the check took."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Check:
        """Read a check back; unknown fields of a newer version are ignored."""
        return cls(**{k: v for k, v in row.items() if k in cls.__dataclass_fields__})
