"""What a robot is to the software between two inferences: meaning of its commands, and limits."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from vega_policy.spec import ActionSpec, ContractError

if TYPE_CHECKING:
    from collections.abc import Mapping

Box = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Lower and upper corner in metres."""


@dataclass(frozen=True, kw_only=True)
class SafetyLimits:
    """What a command may do; a limit that is None is not there.

    Lengths and angles are those of one control period: at 20 Hz, 0.085 m and 0.125 rad are what
    a Franka Panda may move at all (1.7 m/s, 2.5 rad/s).
    """

    max_step_m: float | None = None
    """Largest translation; a longer one is shortened, its direction kept."""
    max_step_rad: float | None = None
    """Largest rotation; a larger one is reduced, its axis kept."""
    max_change_m: float | None = None
    """Largest difference between the translations of two successive commands."""
    max_change_rad: float | None = None
    """The same for rotations."""
    max_speed_m_s: float | None = None
    """Largest speed of the end effector; a bound of the robot, beside the step the user allows."""
    max_speed_rad_s: float | None = None
    workspace_m: Box | None = None
    """Where the end effector may be, in the frame of the observation's position; a command that
    leads out of it is cut at the wall."""

    def __post_init__(self) -> None:
        """Refuse a limit that is no number above zero: a NaN would limit nothing."""
        for name, value in asdict(self).items():
            if name != "workspace_m" and value is not None:
                _require_above_zero(value, where=f"robot.limits.{name}")


@dataclass(frozen=True, kw_only=True)
class RobotProfile:
    """One robot: the meaning of a command in metres and radians, its limits, its patience."""

    name: str
    action: ActionSpec = field(default_factory=ActionSpec)
    """What its controller takes; a policy with another specification is refused."""
    translation_m: float
    """Metres that a command of 1 stands for. No default: LIBERO and deoxys have 0.05."""
    rotation_rad: float
    """Radians that a command of 1 stands for. No default: LIBERO has 0.5, stock deoxys 1.0."""
    start_gripper: float
    """Gripper command of a hold before any command was accepted, in the signs of ``action``."""
    limits: SafetyLimits
    observation_age_s: float = 0.1
    """Older than this an observation is stale and the robot holds. Two periods at 20 Hz."""
    camera_skew_s: float = 0.05
    """Largest difference between the time stamps of one observation's cameras."""
    frozen_ticks: int = 10
    """After so many observations with the same bytes a camera counts as frozen; 0: never."""
    hold_after_s: float = 0.1
    """Without a fresh command for so long, the robot side holds."""
    stop_after_s: float = 1.0
    """Without a fresh command for so long, motion stops until a person releases it."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in (
            "translation_m",
            "rotation_rad",
            "observation_age_s",
            "camera_skew_s",
            "hold_after_s",
            "stop_after_s",
        ):
            _require_above_zero(getattr(self, name), where=f"robot.{name}")
        if not self.action.low <= self.start_gripper <= self.action.high:
            raise ContractError(
                f"robot.start_gripper is {self.start_gripper}; use a gripper command from "
                f"{self.action.low:g} to {self.action.high:g} ({self.action.gripper})"
            )
        if self.stop_after_s <= self.hold_after_s:
            raise ContractError(
                f"robot.stop_after_s is {self.stop_after_s}, not above robot.hold_after_s "
                f"({self.hold_after_s}); a robot holds before it stops"
            )

    @property
    def period_s(self) -> float:
        """Seconds between two commands."""
        return 1.0 / self.action.rate_hz

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RobotProfile:
        """Read a profile from YAML or JSON.

        Raises:
            ContractError: A field is unknown or missing, or cannot be meant.
        """
        fields = dict(values)
        limits = dict(fields.pop("limits", {}))
        _require_fields(fields, cls, where="robot", given={"limits"})
        _require_fields(limits, SafetyLimits, where="robot.limits")
        if limits.get("workspace_m") is not None:
            limits["workspace_m"] = _box(limits["workspace_m"])
        action = ActionSpec.from_dict(fields.pop("action", {}))
        return cls(**fields, action=action, limits=SafetyLimits(**limits))


def _require_above_zero(value: Any, *, where: str) -> None:  # noqa: ANN401 - the user wrote it
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ContractError(f"{where} is {value!r}; use a number above zero")


def _require_fields(
    values: Mapping[str, Any], kind: type, *, where: str, given: set[str] | None = None
) -> None:
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(values) - known)
    missing = sorted(
        f.name
        for f in fields(kind)
        if f.default is MISSING
        and f.default_factory is MISSING
        and f.name not in values
        and f.name not in (given or set())
    )
    if unknown or missing:
        wrong = [f"unknown: {', '.join(unknown)}"] * bool(unknown)
        wrong += [f"missing: {', '.join(missing)}"] * bool(missing)
        raise ContractError(
            f"{where} has wrong fields ({'; '.join(wrong)}); it has {sorted(known)}"
        )


def _box(values: Any) -> Box:  # noqa: ANN401 - whatever the user wrote
    try:
        low, high = (tuple(float(x) for x in corner) for corner in values)
    except (TypeError, ValueError):
        low = high = ()
    if len(low) != 3 or len(high) != 3 or not all(a < b for a, b in zip(low, high, strict=True)):
        raise ContractError(
            f"robot.limits.workspace_m is {values!r}; write [[x, y, z], [x, y, z]] in metres, the "
            "lower corner first"
        )
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])
