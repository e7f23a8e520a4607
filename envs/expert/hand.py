"""The robot's hand: where it is, what it touches, and how a wish becomes an action."""
# pyright: basic
# ruff: noqa: ANN401

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from envs.expert.rotations import DOWN, axis_angle, wrap_half, yaw_matrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPEN, CLOSE = -1.0, 1.0
"""Gripper commands."""
MAX_OPENING = 0.072
"""Metres between the open fingers, with a margin."""


class Hand:
    """The Panda hand of a LIBERO simulation; only read.

    Args:
        simulation: An `envs.simulation.LiberoSimulation`.
        gain: Translation command per metre to go.
        speed: Largest translation command, in (0, 1]; 1 is about 0.3 m/s.
    """

    def __init__(self, simulation: Any, *, gain: float, speed: float) -> None:
        self._model, self._data = simulation.model, simulation.data
        self._gripper = simulation.handle.robots[0].gripper
        self._gain, self._speed = gain, speed
        model = self._model
        self._site = model.site("gripper0_grip_site").id
        self._fingers = [
            {model.geom(name).id for name in names}
            for names in (
                ("gripper0_finger1_collision", "gripper0_finger1_pad_collision"),
                ("gripper0_finger2_collision", "gripper0_finger2_pad_collision"),
            )
        ]
        self._elbow = model.joint("robot0_joint4")
        self._base = model.body("robot0_link0").id
        self._left = model.body("gripper0_leftfinger").id
        self._right = model.body("gripper0_rightfinger").id
        axis = self.rotation.T @ (self._data.xpos[self._left] - self._data.xpos[self._right])
        self._closing_axis = axis / np.linalg.norm(axis)

    @property
    def position(self) -> NDArray[np.float64]:
        """(3,) of the point between the finger tips, metres."""
        return np.array(self._data.site_xpos[self._site])

    @property
    def rotation(self) -> NDArray[np.float64]:
        """(3, 3); the third column points out of the hand along the fingers."""
        return self._data.site_xmat[self._site].reshape(3, 3).copy()

    @property
    def closing_axis(self) -> NDArray[np.float64]:
        """(3,) direction in which the fingers close, in the world."""
        return self.rotation @ self._closing_axis

    @property
    def yaw(self) -> float:
        """Horizontal direction in which the fingers close at rest, radians."""
        axis = DOWN @ self._closing_axis
        return float(np.arctan2(axis[1], axis[0]))

    @property
    def elbow_room(self) -> float:
        """Radians the elbow is bent; near 0 the arm is straight and hardly obeys commands."""
        return float(self._elbow.range[1] - self._data.qpos[int(self._elbow.qposadr[0])])

    @property
    def outward(self) -> NDArray[np.float64]:
        """(3,) horizontal direction from the robot's base to the hand."""
        way = self.position - self._data.xpos[self._base]
        way[2] = 0.0
        return way / max(float(np.linalg.norm(way)), 1e-6)

    @property
    def command_so_far(self) -> float:
        """The gripper's accumulated command: -1 fully open, +1 fully closed."""
        return float(self._gripper.current_action[-1])

    def facing_down(self, yaw: float) -> NDArray[np.float64]:
        """Return the rotation with the fingers down that closes along ``yaw``, nearest to rest."""
        return yaw_matrix(wrap_half(yaw - self.yaw)) @ DOWN

    def closing_in(self, rotation: NDArray[Any]) -> NDArray[np.float64]:
        """Return (3,) the world direction in which the fingers would close."""
        return rotation @ self._closing_axis

    def touching(self, geoms: NDArray[np.bool_]) -> list[bool]:
        """Return, per finger, whether it touches one of the marked geoms."""
        first, second = self._data.contact.geom1, self._data.contact.geom2
        others = {*first[geoms[second]].tolist(), *second[geoms[first]].tolist()}
        return [bool(finger & others) for finger in self._fingers]

    def holds(self, geoms: NDArray[np.bool_]) -> bool:
        """Return whether both fingers touch the marked geoms."""
        return all(self.touching(geoms))

    def twist_to(self, wanted: NDArray[Any]) -> float:
        """Return the angle to a rotation, radians."""
        return float(np.linalg.norm(axis_angle(wanted @ self.rotation.T)))

    def command(
        self,
        error: NDArray[Any],
        *,
        rotation: NDArray[Any] | None = None,
        grip: float,
        speed: float = 1.0,
    ) -> NDArray[np.float64]:
        """Return an action (7,) that moves by ``error`` (3,) metres and turns to ``rotation``.

        Args:
            error: What is left to go.
            rotation: None keeps the hand's.
            grip: `OPEN` or `CLOSE`.
            speed: Share of the full speed.
        """
        move = np.asarray(error, dtype=np.float64) * self._gain
        move *= min(1.0, self._speed * speed / max(float(np.linalg.norm(move)), 1e-9))
        twist = np.zeros(3)
        if rotation is not None:
            twist = np.clip(axis_angle(rotation @ self.rotation.T) * 1.5, -0.6, 0.6)
        return np.r_[np.clip(move, -1.0, 1.0), twist, grip]
