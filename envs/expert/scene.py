"""What the expert knows of a scene: things, regions, joints and goals, from the simulator."""
# pyright: basic
# ruff: noqa: ANN401, SLF001

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envs.expert.geometry import collision_points, subtree
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

Goal = tuple[str, ...]
"""A predicate and its arguments, as in the problem file: ``("in", "bowl", "drawer_region")``."""
_SLIDE, _HINGE = 2, 3


class Thing:
    """A body with everything below it, as points that move with it."""

    def __init__(self, scene: Scene, name: str, root: int) -> None:
        self.name, self.root = name, root
        self._data = scene.data
        model = scene.model
        self.geoms = np.isin(model.geom_bodyid, subtree(model, root))
        """Marks the geoms that belong to it."""
        self._local = (collision_points(model, scene.data, root) - self.position) @ self.rotation

    @property
    def position(self) -> NDArray[np.float64]:
        """(3,) of the origin, metres."""
        return np.array(self._data.xpos[self.root])

    @property
    def rotation(self) -> NDArray[np.float64]:
        """(3, 3)."""
        return np.array(self._data.xmat[self.root].reshape(3, 3))

    @property
    def points(self) -> NDArray[np.float64]:
        """(p, 3) on the surfaces; joints below the root are taken as they were at the start."""
        return self._local @ self.rotation.T + self.position

    @property
    def top(self) -> float:
        """Height of the highest point."""
        return float(self.points[:, 2].max())

    @property
    def bottom(self) -> float:
        """Height of the lowest point."""
        return float(self.points[:, 2].min())

    @property
    def own_up(self) -> NDArray[np.float64]:
        """(3,) the axis of its own that points up most, in the world."""
        axes = self.rotation
        best = int(np.abs(axes[2]).argmax())
        return axes[:, best] * np.sign(axes[2, best])

    @property
    def middle(self) -> NDArray[np.float64]:
        """(2,) middle of the horizontal extent."""
        xy = self.points[:, :2]
        return (xy.max(axis=0) + xy.min(axis=0)) / 2


@dataclass(frozen=True, eq=False)
class Region:
    """A box in which, or above which, something is wanted."""

    name: str
    position: NDArray[np.float64]
    """(3,) centre, metres."""
    half: NDArray[np.float64]
    """(3,) half extents along the world's axes, metres."""
    parent: str | None
    """The fixture or object it belongs to; None for a part of the table."""


@dataclass(frozen=True)
class Joint:
    """A drawer, door or knob."""

    id: int
    body: int
    is_slide: bool


class Scene:
    """A LIBERO scene; only read."""

    def __init__(self, simulation: Any) -> None:
        self.env, self.model, self.data = simulation.handle, simulation.model, simulation.data
        self.goals: list[Goal] = [tuple(g) for g in self.env.parsed_problem["goal_state"]]
        names = [*self.env.objects_dict, *self.env.fixtures_dict]
        self.things = {
            n: Thing(self, n, self.model.body(self.env.get_object(n).root_body).id) for n in names
        }
        self.table = float(np.median([self.things[n].bottom for n in self.env.objects_dict]))

    def holds(self, goal: Goal) -> bool:
        """Return whether a predicate is true now."""
        return bool(self.env._eval_predicate(list(goal)))

    def region(self, name: str) -> Region | None:
        """Return a region as it is now; None where the name is an object's."""
        site = self.env.object_sites_dict.get(name)
        if site is None:
            return None
        index = self.model.site(name).id
        turned = np.abs(self.data.site_xmat[index].reshape(3, 3))
        return Region(
            name=name,
            position=np.array(self.data.site_xpos[index]),
            half=turned @ self.model.site_size[index],
            parent=getattr(site, "parent_name", None),
        )

    def site(self, name: str) -> NDArray[np.float64]:
        """Return (2,) where a region is now."""
        return np.array(self.data.site_xpos[self.model.site(name).id][:2])

    def require_joint(self, name: str) -> Joint:
        """Return the joint of a goal that needs one.

        Raises:
            ContractError: There is none.
        """
        joint = self.joint(name)
        if joint is None:
            raise ContractError(
                f"{name} has no joint that could be moved; the problem file asks for the impossible"
            )
        return joint

    def joint(self, name: str) -> Joint | None:
        """Return the joint of a region, or the only hinge of a fixture; None without one."""
        site = self.env.object_sites_dict.get(name)
        names = (site if site is not None else self.env.get_object(name)).joints or ()
        joints = [self.model.joint(n).id for n in names]
        joints = [j for j in joints if self.model.jnt_type[j] in (_SLIDE, _HINGE)]
        if not joints:
            return None
        index = joints[0]
        is_slide = bool(self.model.jnt_type[index] == _SLIDE)
        return Joint(id=index, body=int(self.model.jnt_bodyid[index]), is_slide=is_slide)

    def value(self, joint: Joint) -> float:
        """Return a joint's position, metres or radians."""
        return float(self.data.qpos[self.model.jnt_qposadr[joint.id]])

    def wanted(self, name: str, state: str) -> float:
        """Return the middle of the range in which a fixture counts as ``open``, ``turnon``, ..."""
        site = self.env.object_sites_dict.get(name)
        owner = self.env.get_object(name if site is None else site.parent_name)
        return float(np.mean(owner.object_properties["articulation"][f"default_{state}_ranges"]))

    def axis(self, joint: Joint) -> NDArray[np.float64]:
        """Return (3,) the world direction of a joint's axis."""
        return self.data.xmat[joint.body].reshape(3, 3) @ self.model.jnt_axis[joint.id]

    def walls(self, thing: Thing, *, without: int) -> NDArray[np.float64]:
        """Return a fixture's points (p, 3) but for those of one body, its door."""
        return collision_points(self.model, self.data, thing.root, without=without)

    def around(
        self, centre: NDArray[Any], *, radius: float, without: Sequence[str] = ()
    ) -> NDArray[np.float64]:
        """Return points (p, 3) of all things but some within a horizontal distance, as they are."""
        clouds = [np.full((1, 3), 9.0)]
        for name, thing in self.things.items():
            if name not in without:
                moved = self._current(thing)
                near = np.linalg.norm(moved[:, :2] - centre[:2], axis=1) < radius
                clouds.append(moved[near])
        return np.concatenate(clouds)

    def top_between(
        self, start: NDArray[Any], end: NDArray[Any], *, radius: float, without: Sequence[str]
    ) -> float:
        """Return the height of the highest point near the straight way between two places."""
        way = end[:2] - start[:2]
        length = float(np.linalg.norm(way))
        points = self.around((start + end) / 2, radius=length / 2 + radius, without=without)[1:]
        if len(points) == 0:
            return self.table
        share = np.clip((points[:, :2] - start[:2]) @ way / max(length, 1e-6) ** 2, 0.0, 1.0)
        aside = np.linalg.norm(points[:, :2] - start[:2] - share[:, None] * way, axis=1)
        near = points[aside < radius]
        return float(max(self.table, near[:, 2].max())) if len(near) else self.table

    def _current(self, thing: Thing) -> NDArray[np.float64]:
        """Return a thing's points; those of fixtures with joints are measured anew."""
        if thing.name in self.env.fixtures_dict and self.env.get_object(thing.name).joints:
            return collision_points(self.model, self.data, thing.root)
        return thing.points
