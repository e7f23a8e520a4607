"""The expert's vocabulary: grasp, carry, put down, open, close, turn, push.

A skill is a generator of actions (7,); it ends when it has nothing more to do, whether or not it came
off: the caller looks at the scene. Every step is feedback from the state as it is, so that a push or a
slip on the way is corrected, and a skill can begin anywhere.
"""
# pyright: basic

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envs.expert.geometry import widths
from envs.expert.hand import CLOSE, OPEN
from envs.expert.rotations import about, upright

if TYPE_CHECKING:
    from envs.expert.grasp import Grasp
    from envs.expert.hand import Hand
    from envs.expert.scene import Joint, Region, Scene, Thing

Actions = Generator[NDArray[np.float64], None, None]
Pose = tuple[NDArray[np.float64], NDArray[np.float64]]
_UP = np.array([0.0, 0.0, 1.0])
_STALLED_STEPS = 14
_STRAIGHT_RAD, _BENT_RAD = 0.08, 0.35
_PUSHED_M = 0.02
"""A distance that grows by this much begins anew: the arm was pushed, it is not stuck."""


class Skills:
    """Motions of one hand in one scene.

    Args:
        scene: Where.
        hand: With what.
        hover: Height above a target at which the hand arrives, metres.
        clearance: Height at which things are carried over others, metres.
    """

    def __init__(self, scene: Scene, hand: Hand, *, hover: float, clearance: float) -> None:
        self.scene, self.hand = scene, hand
        self.hover, self.clearance = hover, clearance

    # -- moving -----------------------------------------------------------------------------------

    def approach(
        self,
        pose: Callable[[], Pose],
        *,
        grip: float = OPEN,
        hover: float | None = None,
        tolerance: float = 0.010,
        without: tuple[str, ...] = (),
        limit: int = 120,
    ) -> Actions:
        """Come to a pose along the fingers' direction, from a safe height where it is far.

        The farther aside of the approach line, the farther back on it the hand has to be: a cone,
        so that the motion has no corner and no stop.
        """
        hand = self.hand
        hover = self.hover if hover is None else hover
        target, rotation = pose()
        over = self.scene.top_between(hand.position, target, radius=0.07, without=without)
        travel = over + 0.045
        watch = _Progress()
        for _ in range(limit):
            if hand.elbow_room < _STRAIGHT_RAD:
                yield from self.bend_elbow(grip=grip)
            target, rotation = pose()
            approach = rotation[:, 2]
            error = target - hand.position
            along = float(error @ approach)
            aside = error - along * approach
            off, twist = float(np.linalg.norm(aside)), hand.twist_to(rotation)
            if off < tolerance and abs(along) < tolerance and twist < 0.15:
                return
            is_close = off < 0.02 and abs(along) < 0.02 and twist < 0.15
            patience = _STALLED_STEPS // 2 if is_close else _STALLED_STEPS
            if watch.is_stuck(off + abs(along) + 0.1 * twist, patience) and off < 0.03:
                return
            back = np.clip((off - 0.008) / 0.03, 0.0, 1.0) * hover
            if twist > 0.3:
                back = hover
            wish = error - back * approach
            far = float(np.linalg.norm(wish[:2]))
            if far > 0.10:
                wish[2] = max(wish[2], travel - hand.position[2])
                if hand.position[2] < travel - 0.05:
                    wish[:2] *= 0.25  # too low and too far: rise first
            yield hand.command(wish, rotation=rotation, grip=grip)

    def go(
        self,
        target: Callable[[], NDArray[np.float64]],
        *,
        rotation: NDArray[Any] | None = None,
        grip: float,
        tolerance: float = 0.012,
        speed: float = 1.0,
        limit: int = 60,
    ) -> Actions:
        """Go straight to a place."""
        watch = _Progress()
        for _ in range(limit):
            error = target() - self.hand.position
            left = float(np.linalg.norm(error))
            twist = 0.0 if rotation is None else self.hand.twist_to(rotation)
            if (left < tolerance and twist < 0.15) or watch.is_stuck(left + 0.1 * twist):
                return
            yield self.hand.command(error, rotation=rotation, grip=grip, speed=speed)

    def bend_elbow(self, *, grip: float, limit: int = 20) -> Actions:
        """Bend a straight arm: back towards the base while the fingers tip outward.

        A straight elbow is a singularity: neither a pull nor a turn alone gets out of it.
        """
        for _ in range(limit):
            if self.hand.elbow_room > _BENT_RAD:
                return
            outward = self.hand.outward
            action = self.hand.command(-0.1 * outward, grip=grip)
            action[3:6] = 0.7 * np.cross(_UP, outward)
            yield action

    def close_fingers(
        self, *, geoms: NDArray[np.bool_] | None = None, rotation: NDArray[Any] | None = None
    ) -> Actions:
        """Close until the fingers press; on marked geoms, until both touch, or for 16 steps."""
        place = self.hand.position
        for _ in range(16):
            pressed = self.hand.command_so_far
            if pressed > (0.4 if geoms is not None and self.hand.holds(geoms) else 1.0):
                return
            yield self.hand.command(
                0.5 * (place - self.hand.position), rotation=rotation, grip=CLOSE
            )

    def open_fingers(self, *, until: float = -0.99) -> Actions:
        """Open where the hand is."""
        while self.hand.command_so_far > until:
            yield self.hand.command(np.zeros(3), grip=OPEN)

    def back_off(self, *, height: float, direction: NDArray[Any] = _UP, limit: int = 30) -> Actions:
        """Leave with open fingers along a direction, metres."""
        goal = self.hand.position + height * np.asarray(direction)
        yield from self.go(lambda: goal, grip=OPEN, tolerance=0.03, limit=limit)

    # -- things -----------------------------------------------------------------------------------

    def pick(self, thing: Thing, grasp: Grasp) -> Actions:
        """Take hold of a thing; ends with closed fingers, or early if it tipped over."""
        yield from self.approach(lambda: grasp.pose(thing), without=(thing.name,))
        place, _ = grasp.pose(thing)
        if np.linalg.norm(place - self.hand.position) < 0.035:
            yield from self.close_fingers(geoms=thing.geoms, rotation=grasp.pose(thing)[1])

    def put(
        self,
        thing: Thing,
        *,
        place: Callable[[], NDArray[np.float64]],
        support: Callable[[], float],
        rim: float | None = None,
        anchor: Callable[[], NDArray[np.float64]] | None = None,
        rotation: NDArray[Any] | None = None,
        is_there: Callable[[], bool],
        drop: float = 0.01,
        tolerance: float = 0.012,
        limit: int = 150,
    ) -> Actions:
        """Carry a held thing somewhere and let it go there; ends early if it is lost.

        Args:
            thing: What is held.
            place: (2,) where its anchor is wanted.
            support: Height its bottom comes to rest at.
            rim: Height of the border of a container that it must pass over.
            anchor: (2,) the point of the thing that goes to ``place``; None: its origin.
            rotation: How the hand is wanted to be turned; None: fingers straight down.
            is_there: Whether it counts as put; then it is let go at once.
            drop: Height above the support at which it is let go, metres.
            tolerance: Horizontal, metres.
            limit: Control steps.
        """
        hand, scene = self.hand, self.scene
        anchor = anchor or (lambda: thing.position[:2])
        start = hand.position
        goal = place()
        over = scene.top_between(start, np.r_[goal, 0.0], radius=0.115, without=(thing.name,))
        at_goal = max(support(), rim if rim is not None else -9.0)
        leaning = hand.rotation
        way_out = start[:2] + self._way_out(thing)
        is_covered = bool(np.linalg.norm(way_out - start[:2]) > 0.0)
        watch, lost = _Progress(), 0
        for _ in range(limit):
            lost = 0 if hand.holds(thing.geoms) else lost + 1
            if lost > 4 and hand.command_so_far > 0.5:
                return
            wanted = rotation if rotation is not None else upright(hand.rotation)
            if thing.bottom < over and np.linalg.norm(hand.position[:2] - start[:2]) < 0.08:
                wanted = leaning  # it leans away from what stands beside the thing
            aside = place() - anchor()
            distance = float(np.linalg.norm(aside))
            bottom = thing.bottom
            height = bottom - support()
            near = distance < max(tolerance, 0.03 if rim is not None else tolerance)
            turned = hand.twist_to(wanted) < 0.12
            if near and turned and (height < drop or (is_there() and height < drop + 0.05)):
                break
            if near and height < drop + 0.04 and watch.is_stuck(height):
                break
            if is_covered:
                out = way_out - hand.position[:2]
                is_covered = bool(np.linalg.norm(out) > 0.012) and not watch.is_stuck(
                    float(np.linalg.norm(out))
                )
                wish = np.r_[out, 0.02 if bottom < scene.table + 0.015 else 0.0]
            elif distance > 0.05:
                up = max(over, at_goal) + self.clearance - bottom
                # Sideways motion opens up as the thing rises; no corner, no waiting.
                share = np.clip(1.0 - (up - 0.02) / 0.08, 0.0, 1.0)
                wish = np.r_[aside * share, up]
            elif near and turned:
                wish = np.r_[aside, support() - bottom]
                if not watch.is_stuck(height):
                    wish[2] = max(wish[2], -0.06)
            else:
                hold_up = at_goal + 0.3 * self.clearance - bottom
                wish = np.r_[aside, max(hold_up, -0.02) if bottom < at_goal + 0.1 else -0.02]
            speed = 1.0 if distance > 0.05 else 0.7
            yield hand.command(wish, rotation=wanted, grip=CLOSE, speed=speed)
        yield from self.open_fingers()
        yield from self.back_off(height=0.10)

    def _way_out(self, thing: Thing) -> NDArray[np.float64]:
        """Return (2,) the shortest way on which a thing gets from under what hangs over it."""
        points, top = thing.points, thing.top
        above = self.scene.around(thing.position, radius=0.35, without=(thing.name,))
        above = above[(above[:, 2] > top + 0.01) & (above[:, 2] < top + 0.40), :2]
        half = np.ptp(points[:, :2], axis=0) / 2 + 0.015
        for distance in np.arange(0.0, 0.15, 0.015):
            for angle in np.arange(0.0, 2 * np.pi, np.pi / 8) if distance else (0.0,):
                step = distance * np.array([np.cos(angle), np.sin(angle)])
                if not (np.abs(above - thing.middle - step) < half).all(axis=1).any():
                    return step
        return np.zeros(2)

    def drag(
        self, thing: Thing, place: Callable[[], NDArray[np.float64]], *, limit: int = 150
    ) -> Actions:
        """Move a flat thing that is held at its rim along the table."""
        hand, watch = self.hand, _Progress()
        rotation, height = hand.rotation, hand.position[2]
        for _ in range(limit):
            left = place() - thing.middle
            distance = float(np.linalg.norm(left))
            if distance < 0.006 or watch.is_stuck(distance) or not any(hand.touching(thing.geoms)):
                break
            wish = np.r_[left, height + 0.002 - hand.position[2]]
            yield hand.command(wish, rotation=rotation, grip=CLOSE, speed=0.8)
        yield from self.open_fingers()
        yield from self.back_off(height=0.10)

    # -- fixtures ---------------------------------------------------------------------------------

    def pull_open(self, joint: Joint, *, until: float, tilt: float) -> Actions:
        """Open a drawer: hook the bar of its handle, pull along the joint."""
        hand, scene = self.hand, self.scene
        out = scene.axis(joint) * np.sign(until - scene.value(joint))
        bar = self._handle(joint, out)
        down = hand.facing_down(float(np.arctan2(out[1], out[0])))
        rotation = about(np.cross(down[:, 2], -out), tilt) @ down
        depth = 0.006 * rotation[:, 2]
        geoms = np.arange(scene.model.ngeom) == bar

        yield from self.approach(
            lambda: (np.array(scene.data.geom_xpos[bar]) + depth, rotation),
            grip=OPEN,
            hover=0.10,
            tolerance=0.009,
            limit=140,
        )
        if np.linalg.norm(scene.data.geom_xpos[bar] + depth - hand.position) > 0.03:
            return
        yield from self.close_fingers(geoms=geoms, rotation=rotation)
        watch = _Progress()
        sign = np.sign(until - scene.value(joint))
        for _ in range(90):
            left = (until - scene.value(joint)) * sign
            has_slipped = not any(hand.touching(geoms)) and left > 0.01
            if left < 0.0 or watch.is_stuck(left) or has_slipped:
                break
            yield hand.command(out * 0.06, rotation=rotation, grip=CLOSE)
        yield from self.open_fingers(until=-0.4)
        yield from self.back_off(height=0.10, direction=-rotation[:, 2] + 0.3 * out)

    def push_shut(self, joint: Joint, *, until: float, tilt: float = 0.5) -> Actions:
        """Close a drawer: press its front with closed fingers, along the joint."""
        hand, scene = self.hand, self.scene
        inward = scene.axis(joint) * np.sign(until - scene.value(joint))
        bar = self._handle(joint, -inward)
        down = hand.facing_down(float(np.arctan2(inward[1], inward[0])) + np.pi / 2)
        rotation = about(np.cross(down[:, 2], inward), tilt) @ down

        def front() -> Pose:
            return np.array(scene.data.geom_xpos[bar]) - 0.05 * inward, rotation

        yield from self.approach(front, grip=CLOSE, tolerance=0.025)
        sign = np.sign(until - scene.value(joint))
        watch = _Progress()
        for _ in range(90):
            left = (until - scene.value(joint)) * sign
            if left < 0.003 or watch.is_stuck(left):
                break
            error = scene.data.geom_xpos[bar] + 0.05 * inward - hand.position
            yield hand.command(error, rotation=rotation, grip=CLOSE)
        yield from self.go(
            lambda place=hand.position - 0.08 * inward: place, grip=CLOSE, tolerance=0.03, limit=20
        )

    def _handle(self, joint: Joint, out: NDArray[Any]) -> int:
        """Return the box of a drawer that is farthest out."""
        model, data = self.scene.model, self.scene.data
        boxes = [
            g
            for g in range(model.ngeom)
            if model.geom_bodyid[g] == joint.body
            and model.geom_type[g] == 6
            and model.geom_contype[g]
        ]
        return max(boxes, key=lambda g: float(data.geom_xpos[g] @ out))

    def turn(self, joint: Joint, knob: Thing, *, until: float) -> Actions:
        """Turn a knob about its vertical axis."""
        hand, scene = self.hand, self.scene
        points = knob.points
        top = points[:, 2].max()
        ridge = min(widths(points[points[:, 2] > top - 0.012]), key=lambda w: w.width)
        rotation = hand.facing_down(ridge.yaw)
        grip_at = np.r_[ridge.centre, top - 0.018]
        yield from self.approach(lambda: (grip_at, rotation), tolerance=0.008)
        yield from self.close_fingers(rotation=rotation)
        sign = float(np.sign(until - scene.value(joint)))
        sense = sign * float(np.sign(scene.axis(joint)[2]))
        watch = _Progress()
        for _ in range(80):
            left = (until - scene.value(joint)) * sign
            if left < 0.0 or watch.is_stuck(left):
                break
            wanted = about(_UP, 0.35 * sense) @ hand.rotation
            yield hand.command(grip_at - hand.position, rotation=wanted, grip=CLOSE)
        yield from self.open_fingers(until=-0.5)
        yield from self.back_off(height=0.12)

    def swing_shut(self, joint: Joint, door: Thing, *, until: float) -> Actions:
        """Close a hinged door: follow its arc with closed fingers behind it."""
        hand, scene = self.hand, self.scene
        anchor = np.array(scene.data.xanchor[joint.id])[:2]
        sign = float(np.sign(until - scene.value(joint)))
        sense = sign * float(np.sign(scene.axis(joint)[2]))
        points = door.points
        far = points[np.argsort(-np.linalg.norm(points[:, :2] - anchor, axis=1))[:60]]
        edge = far.mean(axis=0)[:2] - anchor
        radius, angle = 0.85 * float(np.linalg.norm(edge)), float(np.arctan2(edge[1], edge[0]))
        first = scene.value(joint)
        height = float((points[:, 2].max() + points[:, 2].min()) / 2)
        rotation = upright(hand.rotation)

        def at(lag: float) -> NDArray[np.float64]:
            turned = angle + sense * (abs(scene.value(joint) - first) + lag)
            return np.r_[anchor + radius * np.array([np.cos(turned), np.sin(turned)]), height]

        behind = at(-0.35)
        yield from self.approach(
            lambda: (behind, rotation), grip=CLOSE, hover=0.2, tolerance=0.025, limit=140
        )
        watch = _Progress()
        for _ in range(160):
            left = (until - scene.value(joint)) * sign
            if left < 0.0 or (watch.is_stuck(left) and left < 0.3):
                return
            yield hand.command(at(0.12) - hand.position, rotation=rotation, grip=CLOSE)

    def insert(self, thing: Thing, region: Region, *, inward: NDArray[Any]) -> Actions:
        """Put a held thing into a chamber that is open to the side, then draw the hand back."""
        hand = self.hand
        rotation = hand.rotation
        # Over the sill, in line with the opening, in, down.
        lift = 0.055
        goal = region.position - inward * max(0.0, float(region.half @ np.abs(inward)) - 0.05)
        floor = float(region.position[2] - region.half[2])
        yield from self.go(
            lambda p=hand.position + _UP * lift: p, rotation=rotation, grip=CLOSE, speed=0.7
        )
        side = np.array([-inward[1], inward[0], 0.0])
        for along in (False, True):
            for _ in range(120):
                if not hand.holds(thing.geoms):
                    return
                error = goal - thing.position
                move = side * float(error @ side)
                if along:
                    move = move + inward * float(error @ inward)
                if np.linalg.norm(move) < 0.012:
                    break
                rise = max(floor, self.scene.table) + 0.03 - thing.bottom
                yield hand.command(np.r_[move[:2], rise], rotation=rotation, grip=CLOSE, speed=0.8)
        yield from self.go(
            lambda p=hand.position - _UP * 0.05: p,
            rotation=rotation,
            grip=CLOSE,
            speed=0.5,
            limit=20,
        )
        yield from self.open_fingers()
        yield from self.back_off(height=0.16, direction=-inward, limit=40)


class _Progress:
    """Notices that a distance has stopped shrinking."""

    def __init__(self) -> None:
        self._best, self._since = np.inf, 0

    def is_stuck(self, left: float, patience: int = _STALLED_STEPS) -> bool:
        was_pushed_away = left > self._best + _PUSHED_M
        if left < self._best - 0.0008 or was_pushed_away:
            self._best, self._since = left, 0
        else:
            self._since += 1
        return self._since > patience
