"""The demonstrator: reads the goal of a task and reaches it, predicate by predicate."""
# pyright: basic
# ruff: noqa: ANN401

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.expert.geometry import widths
from envs.expert.grasp import Grasp, fixed, plan_grasp, round_top
from envs.expert.hand import OPEN, Hand
from envs.expert.rotations import about, wrap_half, yaw_matrix
from envs.expert.scene import Goal, Joint, Region, Scene, Thing
from envs.expert.skills import Actions, Skills
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_ORDER = {"open": 0, "turnon": 1, "on": 2, "in": 2, "close": 3}
"""The predicates there is a skill for, and in which order goals are reached."""
_DRAWER_TILTS = (1.2, 1.05, 1.35)
_HANDLE_TILTS = (1.0, 0.8, 1.2)
"""Radians the hand leans, by attempt."""
_OPEN_ENOUGH = 0.65
"""Share of its way a drawer is open for things to be put in."""


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
    """Height of the object's bottom above what it is carried over, metres."""
    offset: tuple[float, float] = (0.0, 0.0)
    """Where in a wide container a thing is put, metres from its centre."""

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


def require_skills(goals: Sequence[Sequence[str]]) -> None:
    """Refuse goals that no skill reaches.

    Raises:
        ContractError: A predicate is unknown; all are listed.
    """
    unknown = sorted({goal[0] for goal in goals} - set(_ORDER))
    if unknown:
        raise ContractError(
            f"the expert has no skill for {', '.join(unknown)}, only for {', '.join(_ORDER)}; "
            "choose another task"
        )


class GoalExpert:
    """Demonstrator for the goals of LIBERO's suites, from any state of the scene.

    Args:
        simulation: An `envs.simulation.LiberoSimulation`; only read, never written.
        style: What varies between demonstrations.

    Raises:
        ContractError: There is no skill for one of the goals.
    """

    def __init__(self, simulation: Any, *, style: Style | None = None) -> None:
        self.style = style or Style()
        self.scene = Scene(simulation)
        require_skills(self.scene.goals)
        self.hand = Hand(simulation, gain=self.style.gain, speed=self.style.speed)
        self.skills = Skills(
            self.scene, self.hand, hover=self.style.hover, clearance=self.style.clearance
        )
        self._failed: dict[Goal, list[Grasp]] = {}
        self._tries: dict[Goal, int] = {}
        self._program = self._run()

    def act(self) -> NDArray[np.float64]:
        """Return the next action for the scene as it is: (7,) in [-1, 1]."""
        return next(self._program)

    def _run(self) -> Actions:
        while True:
            goal = next((g for g in self._ordered() if not self.scene.holds(g)), None)
            if goal is None:
                yield from self._rest()
                continue
            tries = self._tries[goal] = self._tries.get(goal, -1) + 1
            yielded = False
            for action in self._achieve(goal, tries):
                yielded = True
                yield action
            if not yielded:
                yield self.hand.command(np.array([0.0, 0.0, 0.05]), grip=OPEN)

    def _ordered(self) -> list[Goal]:
        """Return the goals in the order in which they can be reached, with what they need first."""
        scene, needed = self.scene, []
        for goal in scene.goals:
            if goal[0] == "in" and not scene.holds(goal):
                joint = scene.joint(goal[2]) if scene.region(goal[2]) else None
                if joint is not None and joint.is_slide:
                    open_at = scene.wanted(goal[2], "open")
                    if scene.value(joint) / open_at < _OPEN_ENOUGH:
                        needed.append(("open", goal[2]))
        return sorted([*needed, *scene.goals], key=lambda g: _ORDER[g[0]])

    def _rest(self) -> Actions:
        """Let go and rise a little; the goal is reached."""
        yield from self.skills.open_fingers()
        yield self.hand.command(np.array([0.0, 0.0, 0.03]), grip=OPEN)

    def _achieve(self, goal: Goal, tries: int) -> Actions:
        scene, skills = self.scene, self.skills
        predicate, name = goal[0], goal[1]
        if predicate in ("open", "close", "turnon"):
            joint = scene.require_joint(name)
            until = scene.wanted(name, predicate)
            if predicate == "turnon":
                yield from skills.turn(joint, self._part(joint.body), until=until)
            elif predicate == "open":
                yield from skills.pull_open(joint, until=until, tilt=_DRAWER_TILTS[tries % 3])
            elif joint.is_slide:
                yield from skills.push_shut(joint, until=until)
            else:
                yield from skills.swing_shut(joint, self._part(joint.body), until=until)
            return
        thing = scene.things[name]
        region = scene.region(goal[2])
        chamber = self._side_opening(region) if predicate == "in" else None
        if not self.hand.holds(thing.geoms):
            grasp = (
                self._handle_grasp(thing, chamber, tries)
                if chamber is not None
                else self._grasp(thing, goal)
            )
            self._failed.setdefault(goal, []).append(grasp)
            yield from skills.pick(thing, grasp)
            if not self.hand.holds(thing.geoms):
                yield from skills.open_fingers()
                yield from skills.back_off(height=0.08)
                return
        if chamber is not None and region is not None:
            yield from skills.insert(thing, region, inward=chamber)
            return
        if region is not None and self._is_flat(thing):
            yield from skills.drag(thing, lambda: scene.site(goal[2]))
            return
        yield from self._put(goal, thing, region)

    def _put(self, goal: Goal, thing: Thing, region: Region | None) -> Actions:
        scene = self.scene
        is_there = lambda: scene.holds(goal)  # noqa: E731
        if region is None:
            other = scene.things[goal[2]]
            inside = other.bottom + 0.012
            yield from self.skills.put(
                thing,
                place=lambda: other.position[:2],
                support=lambda: inside,
                rim=other.top,
                is_there=is_there,
            )
            return
        shift = np.zeros(2)
        if goal[0] == "in" and region.half[:2].min() > 0.05:
            shift += self.style.offset
        mates = [
            g[1] for g in scene.goals if g[0] == goal[0] and g[2] == goal[2] and g[1] != goal[1]
        ]
        if goal[0] == "on" and mates:  # side by side along the longer way
            axis = int(region.half[1] >= region.half[0])
            sign = 1.0 if goal[1] < mates[0] else -1.0
            both = np.ptp(thing.points[:, axis]) + np.ptp(scene.things[mates[0]].points[:, axis])
            shift[axis] = sign * min(both / 4 + 0.006, region.half[axis] - 0.01)
        parent = scene.things.get(region.parent or "")
        floor = region.position[2] - region.half[2]
        rim = None
        support = region.position[2] + 0.012
        anchor = None
        rotation = None
        drop = 0.01
        if goal[0] == "in":
            joint = scene.joint(goal[2])
            rim = floor + 2 * region.half[2]
            if parent is not None and joint is None:
                rim = parent.top
            support = floor + 0.02
            fits = min(widths(thing.points), key=lambda w: w.width)
            if joint is None and 2 * region.half[:2].min() < fits.width + 0.06:
                # A narrow compartment: its thin way is the thing's.
                wanted = 0.0 if region.half[0] < region.half[1] else np.pi / 2
                rotation = yaw_matrix(wrap_half(wanted - fits.yaw)) @ self.hand.rotation
                anchor = lambda: min(widths(thing.points), key=lambda w: w.width).centre  # noqa: E731
            if joint is not None and joint.is_slide and parent is not None:
                shift = shift + self._under_the_sky(thing, region, joint, parent)
            drop = 0.05
        yield from self.skills.put(
            thing,
            place=lambda: scene.site(goal[2]) + shift,
            support=lambda: support,
            rim=rim,
            anchor=anchor,
            rotation=rotation,
            is_there=is_there,
            drop=drop,
        )

    def _under_the_sky(
        self, thing: Thing, region: Region, joint: Joint, cabinet: Thing
    ) -> NDArray[np.float64]:
        """Return (2,) how far out of a drawer's middle a thing clears the cabinet above it."""
        scene = self.scene
        out = scene.axis(joint) * np.sign(scene.wanted(region.name, "open"))
        above = scene.walls(cabinet, without=joint.body)
        above = above[above[:, 2] > region.position[2] + region.half[2]]
        side = np.abs((above - region.position) @ np.array([-out[1], out[0], 0.0]))
        above = above[side < 0.05]
        if len(above) == 0:
            return np.zeros(2)
        radius = float(np.ptp(thing.points[:, :2] @ out[:2])) / 2
        wanted = float((above @ out).max()) + radius + 0.012 - float(region.position @ out)
        room = max(0.0, float(region.half @ np.abs(out)) - radius)
        return out[:2] * min(max(wanted, 0.0), room)

    def _grasp(self, thing: Thing, goal: Goal) -> Grasp:
        around = self.scene.around(thing.position, radius=0.35, without=(thing.name,))
        return plan_grasp(thing, self.hand, around, avoid=self._failed.get(goal, ()))

    def _is_flat(self, thing: Thing) -> bool:
        """Whether a thing is too wide and too low to be taken: a plate, even one that leans."""
        extent = np.sort(np.ptp((thing.points - thing.position) @ thing.rotation, axis=0))
        return bool(extent[0] < 0.035 and extent[1] > 0.12)

    def _side_opening(self, region: Region | None) -> NDArray[np.float64] | None:
        """Return the way into a chamber with a ceiling; None where it is open at the top."""
        if region is None or region.parent is None:
            return None
        joint = self.scene.joint(region.parent)
        if joint is None or joint.is_slide:
            return None
        walls = self.scene.walls(self.scene.things[region.parent], without=joint.body)
        local = walls - region.position
        is_level = np.abs(local[:, 2]) < 0.5 * region.half[2]
        for axis in (0, 1):
            is_in_line = is_level & (np.abs(local[:, 1 - axis]) < 0.5 * region.half[1 - axis])
            for sign in (1.0, -1.0):
                if not (is_in_line & (sign * local[:, axis] > 0.0)).any():
                    inward = np.zeros(3)
                    inward[axis] = -sign
                    return inward
        return None

    def _handle_grasp(self, thing: Thing, inward: NDArray[Any], tries: int) -> Grasp:
        """Take a mug by its handle, the hand tilted so that it fits through a door."""
        points = thing.points
        _, centre, _ = round_top(points, thing.own_up)
        away = np.linalg.norm(points[:, :2] - centre, axis=1)
        handle = points[away > away.max() - 0.014]
        place = handle.mean(axis=0) + 0.006 * inward
        tilt = _HANDLE_TILTS[tries % 3]
        yaw = float(np.arctan2(inward[1], inward[0])) + np.pi / 2
        down = self.hand.facing_down(yaw)
        rotation = about(np.cross(down[:, 2], inward), tilt) @ down
        return fixed(thing, "handle", place, rotation)

    def _part(self, body: int) -> Thing:
        return Thing(self.scene, f"part {body}", body)
