"""An arm without an arm: it records every command and says which of them were unsafe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vega_policy.control.link import Command, Seen
from vega_policy.control.profile import RobotProfile
from vega_policy.spec import AGENTVIEW, CAMERAS, WRIST, EnvFault, Observation

if TYPE_CHECKING:
    from collections.abc import Sequence

_SLACK = 1 + 1e-4
"""Relative; the commands are float32."""


@dataclass
class FakeClock:
    """Seconds that pass when told to."""

    now_s: float = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


@dataclass(eq=False)
class FakeRobot:
    """Goes exactly where it is told; its sensors break on request.

    Implements `vega_policy.deploy.robot.Robot`.
    """

    profile: RobotProfile
    clock: Callable[[], float]
    instruction: str = "reach the red block"
    camera_px: int = 16
    position_m: NDArray[np.float64] = field(default_factory=lambda: np.array([0.4, 0.0, 0.3]))
    commands: list[tuple[float, Command]] = field(default_factory=list[tuple[float, Command]])
    """All that were applied, with their times."""
    path_m: list[NDArray[np.float64]] = field(default_factory=list)
    """Position before each of them."""
    calls: list[str] = field(default_factory=list[str])
    """``hold``, ``stop`` and ``close``, as they were called."""
    stale_s: float = 0.0
    """How old every part of an observation is."""
    skew_s: float = 0.0
    """How much older the wrist image is."""
    frozen: str = ""
    """Camera that repeats its last image."""
    proprio_fault: float = 0.0
    """Added to the proprioception; NaN breaks it."""
    is_blind: bool = False
    """Whether `observe` raises."""
    _n_seen: int = 0
    _images: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    def observe(self) -> Seen | None:
        """Draw noise, different every time."""
        if self.is_blind:
            raise EnvFault("the fake camera was told to fail")
        self._n_seen += 1
        rng = np.random.default_rng(self._n_seen)
        for name in CAMERAS:
            if name != self.frozen:
                shape = (self.camera_px, self.camera_px, 3)
                self._images[name] = rng.integers(0, 255, shape, np.uint8)
        proprio = np.concatenate([self.position_m, np.zeros(3), [0.04, -0.04]])
        taken_s = self.clock() - self.stale_s
        return Seen(
            observation=Observation(
                dict(self._images),
                (proprio + self.proprio_fault).astype(np.float32),
                self.instruction,
            ),
            stamps_s={AGENTVIEW: taken_s, WRIST: taken_s - self.skew_s, "proprio": taken_s},
        )

    def apply(self, command: Command) -> None:
        """Move, and remember."""
        self.commands.append((self.clock(), command))
        self.path_m.append(self.position_m)
        if command.action is not None:
            self.position_m = self.position_m + self.profile.translation_m * command.action[:3]

    def hold(self) -> None:
        """Note it."""
        self.calls.append("hold")

    def stop(self) -> None:
        """Note it."""
        self.calls.append("stop")

    def close(self) -> None:
        """Note it."""
        self.calls.append("close")

    @property
    def kinds(self) -> list[str]:
        """Kind of each command."""
        return [command.kind for _, command in self.commands]

    def unsafe(self) -> list[str]:
        """List every command that broke a limit of the profile, one sentence each."""
        return unsafe_commands(
            self.profile, [command for _, command in self.commands], path_m=self.path_m
        )

    @property
    def largest_jump_m(self) -> float:
        """Largest difference between the translations of two successive commands."""
        moves = [self.profile.translation_m * c.action[:3] for _, c in self.commands]  # pyright: ignore[reportOptionalSubscript]
        pairs = zip([np.zeros(3), *moves], moves, strict=False)
        return max((float(np.linalg.norm(b - a)) for a, b in pairs), default=0.0)


def unsafe_commands(
    profile: RobotProfile,
    commands: Sequence[Command],
    *,
    path_m: Sequence[NDArray[np.floating[Any]]] | None = None,
) -> list[str]:
    """List every command that breaks a limit; written without the safety filter, to check it.

    Args:
        profile: The limits.
        commands: In the order they were sent, from standstill.
        path_m: Position of the end effector before each of them, for the workspace.
    """
    limits, spec, period_s = profile.limits, profile.action, profile.period_s
    found: list[str] = []
    before = np.zeros(6)
    for number, command in enumerate(commands):
        if command.action is None:
            found.append(f"{number}: {command.kind} was sent without an action")
            continue
        action = np.asarray(command.action, dtype=np.float64)
        if action.shape != (spec.size,) or not np.isfinite(action).all():
            found.append(f"{number}: {action.tolist()} is not {spec.size} finite numbers")
            continue
        if action.min() < spec.low - 1e-3 or action.max() > spec.high + 1e-3:
            found.append(f"{number}: {action.tolist()} is out of bounds")
        if command.kind == "hold" and np.any(action[:6]):
            found.append(f"{number}: a hold that moves, {action.tolist()}")
        motion = np.concatenate(
            [profile.translation_m * action[:3], profile.rotation_rad * action[3:6]]
        )
        metres, radians = np.linalg.norm(motion[:3]), np.linalg.norm(motion[3:])
        change = motion - before if command.kind == "action" else np.zeros(6)
        for what, size, limit in (
            ("step in m", metres, limits.max_step_m),
            ("step in rad", radians, limits.max_step_rad),
            ("speed in m/s", metres / period_s, limits.max_speed_m_s),
            ("speed in rad/s", radians / period_s, limits.max_speed_rad_s),
            ("change in m", np.linalg.norm(change[:3]), limits.max_change_m),
            ("change in rad", np.linalg.norm(change[3:]), limits.max_change_rad),
        ):
            if limit is not None and size > limit * _SLACK:
                found.append(f"{number}: {what} {size:.4f}, allowed {limit:g}")
        if path_m is not None and limits.workspace_m is not None:
            low, high = (np.asarray(corner) for corner in limits.workspace_m)
            place = np.asarray(path_m[number])
            outward = np.maximum(place + motion[:3] - high, low - place - motion[:3])
            if (outward > np.maximum(0, np.maximum(place - high, low - place)) + 1e-6).any():
                found.append(f"{number}: out of the workspace, from {place} by {motion[:3]}")
        before = motion
    return found
