"""What a command and an observation have to be before an arm moves; nothing is fixed silently."""

from __future__ import annotations

import logging
import math
import time
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from vega_policy.control.hold import require_delta
from vega_policy.spec import SafetyStop

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vega_policy.control.link import Seen
    from vega_policy.control.profile import RobotProfile

log = logging.getLogger(__name__)

PROPRIO_SIZE = 8
TOLERANCE = 1e-3
"""Beyond a bound of the action specification, in its units, what still counts as rounding."""
ROUNDING = 1e-5
"""The same for norms, relative: a command cut once is not cut again."""
LOG_EVERY_S = 1.0


class SafetyFilter:
    """Keeps commands within the limits of a profile; one per robot, not for several threads.

    The state is what was let through last. A command that is refused never becomes part of it, so
    that a NaN does not open the door for the jump behind it.
    """

    def __init__(
        self, profile: RobotProfile, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Set up for an arm that stands still.

        Args:
            profile: Limits, and what a command means in metres and radians.
            clock: Spaces the log messages, nothing else.

        Raises:
            ContractError: The controller does not take changes of a pose, for which every limit
                here is written.
        """
        require_delta(profile.action, what="the safety filter")
        self._profile = profile
        self._clock = clock
        self.counts: Counter[str] = Counter()
        """Commands changed, by the name of the limit; kept over `reset`."""
        self._logged_s: dict[str, float] = {}
        self._last = np.zeros(6)
        """Accepted motion, metres (3) and radians (3)."""
        self._stamps_s: dict[str, float] = {}
        self._same: dict[str, tuple[int, int]] = {}
        """By camera: checksum of the last image, and how many in a row had it."""

    def reset(self) -> None:
        """Begin an episode: the arm stands still, no observation was seen."""
        self.held()
        self._stamps_s.clear()
        self._same.clear()

    def held(self) -> None:
        """Note that the arm was held: the next command starts from no motion."""
        self._last = np.zeros(6)

    def command(
        self, action: NDArray[np.float32], *, position_m: NDArray[np.floating[Any]] | None = None
    ) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        """Return what may be sent, and the names of the limits that changed it.

        In this order: finite, bounds, step, speed, change since the last command, workspace. The
        walls come last and win: in front of one, the change may be larger than its limit.

        Args:
            action: (size,) in the units of the profile's action specification.
            position_m: (3,) of the end effector, in the frame of the workspace box.

        Returns:
            The very same object where no limit applied, else a new array.

        Raises:
            SafetyStop: The action has the wrong shape or is not finite, or there is a workspace
                and no position. The state is untouched.
        """
        spec, limits, period_s = self._profile.action, self._profile.limits, self._profile.period_s
        given = np.asarray(action)
        if given.shape != (spec.size,) or not np.isfinite(given).all():
            raise SafetyStop(
                f"the command is {given.tolist()}, expected {spec.size} finite numbers; something "
                "between policy and robot is broken"
            )
        position = self._position(position_m)
        scale = np.repeat([self._profile.translation_m, self._profile.rotation_rad], 3)
        names: list[str] = []

        bounded = given.astype(np.float64)
        if (bounded < spec.low - TOLERANCE).any() or (bounded > spec.high + TOLERANCE).any():
            bounded = np.clip(bounded, spec.low, spec.high)
            names.append("bounds")
        motion = bounded[:6] * scale
        for name, part, limit in (
            ("step_m", slice(0, 3), limits.max_step_m),
            ("step_rad", slice(3, 6), limits.max_step_rad),
            ("speed_m_s", slice(0, 3), _times(limits.max_speed_m_s, period_s)),
            ("speed_rad_s", slice(3, 6), _times(limits.max_speed_rad_s, period_s)),
        ):
            if _is_beyond(motion[part], limit):
                motion[part] = _shortened(motion[part], limit)
                names.append(name)
        for name, part, limit in (
            ("change_m", slice(0, 3), limits.max_change_m),
            ("change_rad", slice(3, 6), limits.max_change_rad),
        ):
            change = motion[part] - self._last[part]
            if _is_beyond(change, limit):
                motion[part] = self._last[part] + _shortened(change, limit)
                names.append(name)
        if limits.workspace_m is not None and position is not None:
            low, high = (np.asarray(corner) for corner in limits.workspace_m)
            # Beyond a wall only the way back is open; the filter itself never pulls.
            room = np.minimum(low - position, 0), np.maximum(high - position, 0)
            inside = np.clip(motion[:3], *room)
            if np.abs(inside - motion[:3]).max() > ROUNDING * self._profile.translation_m:
                motion[:3] = inside
                names.append("workspace")

        self._last = motion
        if not names:
            return action, ()
        self._report(names)
        sent = np.concatenate([motion / scale, bounded[6:]]).astype(np.float32)
        return sent, tuple(names)

    def observation_problems(self, seen: Seen, now_s: float) -> list[str]:
        """Say why an observation must not be acted on; empty where it may be.

        Called once per control step: it remembers time stamps and images. The same observation
        may come again while it is fresh (a camera slower than the loop).
        """
        observation, stamps = seen.observation, dict(seen.stamps_s)
        problems = [
            f"{name} has no time stamp"
            for name in (*observation.images, "proprio")
            if name not in stamps
        ]
        is_new = {name: stamp != self._stamps_s.get(name) for name, stamp in stamps.items()}
        for name, stamp in stamps.items():
            problems += self._stamp_problems(name, stamp, now_s)
        cameras = [stamps[c] for c in observation.images if c in stamps]
        skew_s = max(cameras) - min(cameras) if cameras else 0.0
        if not skew_s <= self._profile.camera_skew_s:
            problems.append(
                f"the cameras are {1000 * skew_s:.0f} ms apart, allowed are "
                f"{1000 * self._profile.camera_skew_s:.0f}"
            )
        proprio = np.asarray(observation.proprio)
        if proprio.shape != (PROPRIO_SIZE,) or not np.isfinite(proprio).all():
            problems.append(
                f"proprio is {proprio.tolist()}, expected {PROPRIO_SIZE} finite numbers"
            )
        for name, image in observation.images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                problems.append(
                    f"{name} has shape {image.shape} and dtype {image.dtype}, expected "
                    "(h, w, 3) uint8"
                )
            elif self._is_frozen(name, image, is_new=is_new.get(name, True)):
                problems.append(
                    f"{name} is frozen: its last {self._same[name][1]} images are the same"
                )
        return problems

    def _position(
        self, position_m: NDArray[np.floating[Any]] | None
    ) -> NDArray[np.floating[Any]] | None:
        if self._profile.limits.workspace_m is None:
            return None
        position = None if position_m is None else np.asarray(position_m, dtype=np.float64)
        if position is None or position.shape != (3,) or not np.isfinite(position).all():
            raise SafetyStop(
                f"the position of the end effector is {position_m}, and the profile "
                f"{self._profile.name} has a workspace; give the position or take the workspace "
                "out of the profile"
            )
        return position

    def _stamp_problems(self, name: str, stamp_s: float, now_s: float) -> list[str]:
        profile = self._profile
        last_s = self._stamps_s.get(name, -math.inf)
        problems: list[str] = []
        if stamp_s < last_s:
            problems.append(f"the time stamp of {name} went back by {last_s - stamp_s:.3f} s")
        age_s = now_s - stamp_s
        if not age_s <= profile.observation_age_s:
            problems.append(
                f"{name} is {1000 * age_s:.0f} ms old, allowed are "
                f"{1000 * profile.observation_age_s:.0f}"
            )
        elif age_s < -profile.observation_age_s:
            problems.append(
                f"{name} is stamped {-age_s:.3f} s ahead of the loop's clock; use one clock"
            )
        if math.isfinite(stamp_s):
            self._stamps_s[name] = stamp_s
        return problems

    def _is_frozen(self, name: str, image: NDArray[np.uint8], *, is_new: bool) -> bool:
        if self._profile.frozen_ticks == 0:
            return False
        # A checksum, not the image: drivers reuse their buffers. 0.1 ms for 256 x 256.
        checksum = zlib.crc32(np.ascontiguousarray(image).data)
        last, n = self._same.get(name, (None, 0))
        if checksum != last:
            self._same[name] = checksum, 1
        elif is_new:
            self._same[name] = checksum, n + 1
        return self._same[name][1] > self._profile.frozen_ticks

    def _report(self, names: list[str]) -> None:
        now_s = self._clock()
        for name in names:
            self.counts[name] += 1
            if now_s - self._logged_s.get(name, -math.inf) >= LOG_EVERY_S:
                self._logged_s[name] = now_s
                log.warning("limit %s changed a command, %d so far", name, self.counts[name])


def _times(limit: float | None, factor: float) -> float | None:
    return None if limit is None else limit * factor


def _is_beyond(vector: NDArray[np.float64], limit: float | None) -> bool:
    return limit is not None and float(np.linalg.norm(vector)) > limit * (1 + ROUNDING)


def _shortened(vector: NDArray[np.float64], limit: float | None) -> NDArray[np.float64]:
    norm = float(np.linalg.norm(vector))
    return vector if limit is None or norm <= limit else vector * (limit / norm)
