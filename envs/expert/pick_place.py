"""Pick an object and put it into a container, as a function of the simulator's state.

The expert holds no program counter: what to do next is read off the scene (is the object between
the fingers, is the hand above it, is it above the container). So it can take over at any moment,
after a failed grasp or from wherever a learned policy has left the arm, and label what it sees.
"""
# pyright: basic
# ruff: noqa: ANN401, SLF001

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envs.expert.geometry import Width, collision_points, subtree, widths
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""Grip frame with the fingers pointing down, hand at yaw 0."""
_MAX_OPENING = 0.072
"""Metres between the open fingers, with a margin."""
_GRASP_DEPTH = 0.036
"""Wanted height of an object's top above the grip site, metres."""
_SHAKE_PERIOD_S = 0.8
_OPEN, _CLOSE = -1.0, 1.0


@dataclass(frozen=True)
class Style:
    """What differs between demonstrations; all else follows from the scene."""

    speed: float = 1.0
    """Largest translation command, in (0, 1]; 1 is about 0.3 m/s."""
    gain: float = 12.0
    """Translation command per metre to go."""
    hover: float = 0.07
    """Height above the grasp at which the hand arrives, metres."""
    clearance: float = 0.05
    """Height of the object's bottom above the container's rim on the way, metres."""
    offset: tuple[float, float] = (0.0, 0.0)
    """Where in the container the object is put, metres from its centre."""

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Style:
        """Draw a mildly different style; narrow, so that cloned averages stay valid motions."""
        return cls(
            speed=float(rng.uniform(0.85, 1.0)),
            gain=float(rng.uniform(11.0, 13.0)),
            hover=float(rng.uniform(0.06, 0.08)),
            clearance=float(rng.uniform(0.04, 0.06)),
            offset=tuple(rng.uniform(-0.01, 0.01, 2)),
        )


@dataclass(frozen=True, eq=False)
class Grasp:
    """A top-down grasp, fixed to the object."""

    point: NDArray[np.float64]
    """(3,) in the object's frame, metres."""
    axis: NDArray[np.float64]
    """(3,) direction in which the fingers close, in the object's frame."""
    up: NDArray[np.float64]
    """(3,) the world's up in the object's frame when the grasp was planned."""


class PickPlaceExpert:
    """Demonstrator for goals of the form ``(In object container_region)``.

    Args:
        simulation: An `envs.simulation.LiberoSimulation`; only read, never written.
        style: What varies between demonstrations.

    Raises:
        ContractError: The goal is not one pick-and-place.
    """

    def __init__(self, simulation: Any, *, style: Style | None = None) -> None:
        self._env, self._model, self._data = simulation.handle, simulation.model, simulation.data
        self.style = style or Style()
        goal = self._env.parsed_problem["goal_state"]
        self._object_name, self._region_name = require_pick_place(goal)
        region = self._env.object_sites_dict[self._region_name]
        self._object = self._body(self._object_name)
        self._container = self._body(region.parent_name)
        self._region = self._model.site(self._region_name).id
        self._is_object_geom = np.isin(self._model.geom_bodyid, subtree(self._model, self._object))
        self._grip_site = self._model.site("gripper0_grip_site").id
        self._fingers = [
            {self._model.geom(name).id for name in names}
            for names in (
                ("gripper0_finger1_collision", "gripper0_finger1_pad_collision"),
                ("gripper0_finger2_collision", "gripper0_finger2_pad_collision"),
            )
        ]
        self._gripper = self._env.robots[0].gripper
        left = self._model.body("gripper0_leftfinger").id
        right = self._model.body("gripper0_rightfinger").id
        self._closing_axis = self._grip_pose()[1].T @ (
            self._data.xpos[left] - self._data.xpos[right]
        )
        self._closing_axis /= np.linalg.norm(self._closing_axis)
        points = collision_points(self._model, self._data, self._object)
        self._local_points = (points - self._position()) @ self._rotation()
        container = collision_points(self._model, self._data, self._container)
        self._rim_above_origin = container[:, 2].max() - self._data.xpos[self._container][2]
        self._grasp = self._plan()

    # -- the scene --------------------------------------------------------------------------------

    def _body(self, name: str) -> int:
        return self._model.body(self._env.get_object(name).root_body).id

    def _position(self) -> NDArray[np.float64]:
        return np.array(self._data.xpos[self._object])

    def _rotation(self) -> NDArray[np.float64]:
        return np.array(self._data.xmat[self._object].reshape(3, 3))

    def _points(self) -> NDArray[np.float64]:
        return self._local_points @ self._rotation().T + self._position()

    def _grip_pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        site = self._grip_site
        return np.array(self._data.site_xpos[site]), self._data.site_xmat[site].reshape(3, 3).copy()

    def _rim(self) -> float:
        return float(self._data.xpos[self._container][2] + self._rim_above_origin)

    def _is_held(self) -> bool:
        return all(self._touching())

    def _touching(self) -> list[bool]:
        """Return, per finger, whether it touches the object."""
        first, second = self._data.contact.geom1, self._data.contact.geom2
        is_object = self._is_object_geom
        others = {*first[is_object[second]].tolist(), *second[is_object[first]].tolist()}
        return [bool(finger & others) for finger in self._fingers]

    def _is_let_go(self) -> bool:
        """Whether the object is loose, and in the container or falling into it."""
        points = self._points()
        aside = (points[:, :2].max(axis=0) + points[:, :2].min(axis=0)) / 2
        aside -= self._data.site_xpos[self._region][:2]
        is_over = np.linalg.norm(aside) < 0.06 and points[:, 2].min() < self._rim()
        return bool(is_over or self._is_inside()) and not self._is_held()

    def _is_inside(self) -> bool:
        return bool(self._env._check_success())

    # -- the plan ---------------------------------------------------------------------------------

    def _plan(self) -> Grasp:
        """Choose height, direction and place of a top-down grasp on the object as it lies now."""
        points = self._points()
        obstacles = self._obstacles()
        top, bottom = points[:, 2].max(), points[:, 2].min()
        wanted = max(top - _GRASP_DEPTH, bottom + 0.012)
        hand_yaw = self._hand_yaw()
        best: tuple[float, NDArray[np.float64], float] | None = None
        for z in np.arange(
            max(top - 0.006, bottom + 0.008), max(bottom + 0.006, top - 0.06), -0.006
        ):
            slab = points[np.abs(points[:, 2] - z) < 0.010]
            above = points[points[:, 2] > z - 0.010]
            if len(slab) < 8:
                continue
            for width, whole in zip(widths(slab), widths(above), strict=True):
                closing = np.array([np.cos(width.yaw), np.sin(width.yaw)])
                off_centre = abs(float((width.centre - whole.centre) @ closing))
                room = max(width.width, whole.width + 2 * off_centre)
                if width.width < 0.006:
                    continue
                # A turn of the wrist costs time; a wide object costs tolerance.
                turn = abs(_wrap_half(width.yaw - hand_yaw))
                cost = abs(z - wanted) / 0.01 + 2.0 * turn + room / 0.015
                # An object too wide in every direction is tried at its narrowest: a failed
                # attempt is an honest outcome, and it may have been turned by then.
                cost += 1000.0 * max(0.0, room - _MAX_OPENING) / 0.001
                for shift in _shifts(slab, width):
                    across = np.array([-closing[1], closing[0]])
                    point = np.r_[width.centre + shift * across, z]
                    blocked = _hand_penetration(obstacles - point, closing)
                    total = cost + abs(shift) / 0.01 + blocked / 0.001
                    if best is None or total < best[0] - 1e-9:
                        best = (total, point, width.yaw)
        if best is None:
            middle = (points[:, :2].max(axis=0) + points[:, :2].min(axis=0)) / 2
            best = (0.0, np.r_[middle, wanted], hand_yaw)
        _, point, yaw = best
        rotation = self._rotation()
        axis = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        return Grasp(
            point=rotation.T @ (point - self._position()),
            axis=rotation.T @ axis,
            up=rotation.T @ np.array([0.0, 0.0, 1.0]),
        )

    def _obstacles(self) -> NDArray[np.float64]:
        bodies = [self._model.body(o.root_body).id for o in self._env.objects_dict.values()]
        clouds = [
            collision_points(self._model, self._data, body)
            for body in bodies
            if body != self._object
        ]
        return np.concatenate([*clouds, np.full((1, 3), 9.0)])

    def _hand_yaw(self) -> float:
        axis = _DOWN @ self._closing_axis
        return float(np.arctan2(axis[1], axis[0]))

    # -- acting -----------------------------------------------------------------------------------

    def act(self) -> NDArray[np.float64]:
        """Return the next action for the scene as it is: (7,) in [-1, 1]."""
        position, rotation = self._grip_pose()
        held = self._is_held()
        if not held and (self._rotation() @ self._grasp.up)[2] < 0.9:
            self._grasp = self._plan()  # it fell over
        if self._is_let_go():
            return self._retreat(position, rotation)
        return self._carry(rotation) if held else self._reach(position, rotation)

    def _reach(self, position: NDArray[Any], rotation: NDArray[Any]) -> NDArray[np.float64]:
        target = self._rotation() @ self._grasp.point + self._position()
        axis = self._rotation() @ self._grasp.axis
        turn = _wrap_half(float(np.arctan2(axis[1], axis[0])) - self._hand_yaw())
        wanted = _yaw_matrix(turn) @ _DOWN
        error = target - position
        aside = float(np.linalg.norm(error[:2]))
        twist = float(np.linalg.norm(_axis_angle(wanted @ rotation.T)))
        is_at = aside < 0.012 and abs(error[2]) < 0.012 and twist < 0.15
        if is_at or (self._closing() > 0.0 and aside < 0.02 and abs(error[2]) < 0.02):
            return self._command(error * 0.5, wanted, rotation, _CLOSE)
        # A cone above the object: the farther aside, the higher the hand has to be.
        cone = np.clip((aside - 0.008) / 0.03, 0.0, 1.0) * self.style.hover
        if twist > 0.3:
            cone = self.style.hover
        error[2] = target[2] + cone - position[2]
        if position[2] < target[2] + 0.8 * cone and aside > 0.05:
            error[:2] *= 0.3  # too low and too far: rise first
        return self._command(error, wanted, rotation, _OPEN)

    def _carry(self, rotation: NDArray[Any]) -> NDArray[np.float64]:
        wanted = rotation if self._closing() < 1.0 else _upright(rotation)
        points = self._points()
        rim = self._rim()
        goal = self._data.site_xpos[self._region][:2] + np.array(self.style.offset)
        middle = (points[:, :2].max(axis=0) + points[:, :2].min(axis=0)) / 2
        aside = goal - middle
        distance = float(np.linalg.norm(aside))
        bottom = points[:, 2].min()
        over = rim + self.style.clearance - bottom
        if distance < 0.05 and (self._is_inside() or bottom < rim - 0.04):
            return self._command(np.zeros(3), wanted, rotation, _OPEN)
        if self._closing() < 0.6:
            return self._command(np.zeros(3), wanted, rotation, _CLOSE)
        if distance < 0.03:
            over = rim - 0.10 - bottom  # lower into the container
        # Sideways motion opens up as the object rises; no corner, no waiting.
        is_high = np.clip(1.0 - (over - 0.02) / 0.08, 0.0, 1.0) if distance > 0.12 else 1.0
        return self._command(np.r_[aside * is_high, over], wanted, rotation, _CLOSE)

    def _retreat(self, position: NDArray[Any], rotation: NDArray[Any]) -> NDArray[np.float64]:
        rise = np.clip(self._rim() + 0.20 - position[2], 0.0, 0.1)
        if self._closing() > -0.99:
            return self._command(np.zeros(3), rotation, rotation, _OPEN)
        if any(self._touching()) and not self._is_inside():
            # A carton's gable can hang on one open finger: shake it off across the fingers.
            across = np.cross(rotation @ self._closing_axis, [0.0, 0.0, 1.0])
            swing = np.sin(2 * np.pi * self._data.time / _SHAKE_PERIOD_S)
            return self._command(0.08 * swing * across, rotation, rotation, _OPEN)
        return self._command(np.r_[0.0, 0.0, rise], rotation, rotation, _OPEN)

    def _closing(self) -> float:
        """Return the gripper's accumulated command: -1 fully open, +1 fully closed."""
        return float(self._gripper.current_action[-1])

    def _command(
        self,
        error: NDArray[Any],
        wanted: NDArray[Any],
        rotation: NDArray[Any],
        grip: float,
    ) -> NDArray[np.float64]:
        move = error * self.style.gain
        move *= min(1.0, self.style.speed / max(float(np.linalg.norm(move)), 1e-9))
        twist = np.clip(_axis_angle(wanted @ rotation.T) * 1.5, -0.6, 0.6)
        return np.r_[np.clip(move, -1, 1), twist, grip]


def require_pick_place(goal: Sequence[Sequence[str]]) -> tuple[str, str]:
    """Return the object and the region of a goal state that is one ``(In object region)``.

    Raises:
        ContractError: The goal is another one.
    """
    if len(goal) != 1 or goal[0][0] != "in":
        raise ContractError(
            f"the expert solves one (In object region) goal, got {goal}; "
            "choose a task of libero_object"
        )
    return goal[0][1], goal[0][2]


def _shifts(slab: NDArray[Any], width: Width) -> NDArray[np.float64]:
    """List where along an elongated object it can be grasped, metres from its middle."""
    across = np.array([-np.sin(width.yaw), np.cos(width.yaw)])
    extent = (slab[:, :2] - width.centre) @ across
    reach = max(0.0, float(np.ptp(extent)) / 2 - 0.018)
    return np.array([0.0, -reach, -reach / 2, reach / 2, reach]) if reach > 0.005 else np.zeros(1)


def _hand_penetration(points: NDArray[Any], closing: NDArray[Any]) -> float:
    """Return how deep points, relative to the grip site, lie in the hand or the open fingers.

    Hand and fingers are boxes; sizes are those of the Panda hand's collision geometry, rounded up.
    """
    along = np.abs(points[:, :2] @ closing)
    across = np.abs(points[:, :2] @ np.array([-closing[1], closing[0]]))
    z = points[:, 2]
    hand = np.minimum.reduce([0.112 - along, 0.042 - across, z - 0.040, 0.30 - z])
    fingers = np.minimum.reduce(
        [0.062 - along, along - 0.030, 0.016 - across, z + 0.012, 0.045 - z]
    )
    return float(max(0.0, hand.max(), fingers.max()))


def _wrap_half(angle: float) -> float:
    """Wrap an undirected axis angle to [-pi/2, pi/2)."""
    return (angle + np.pi / 2) % np.pi - np.pi / 2


def _yaw_matrix(angle: float) -> NDArray[np.float64]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _upright(rotation: NDArray[Any]) -> NDArray[np.float64]:
    """Return the nearest hand rotation whose fingers point straight down."""
    x = rotation[:, 0] - np.array([0.0, 0.0, rotation[2, 0]])
    x /= np.linalg.norm(x)
    z = np.array([0.0, 0.0, -1.0])
    return np.stack([x, np.cross(z, x), z], axis=1)


def _axis_angle(rotation: NDArray[Any]) -> NDArray[np.float64]:
    vector = np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    sine, cosine = np.linalg.norm(vector) / 2, (np.trace(rotation) - 1) / 2
    if sine < 1e-8:
        return np.zeros(3)
    return vector / (2 * sine) * np.arctan2(sine, cosine)
