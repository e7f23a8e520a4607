"""LIBERO's table tops as scenes: freshly drawn placements, never those of the evaluation."""
# pyright: basic
# ruff: noqa: ANN401, SLF001

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.libero import LiberoEnv
from envs.scan.boxes import bounds
from envs.scan.rendered import Thing
from vega_policy.spec.episode import EpisodeKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CAMERA = "agentview"
_VISUAL_GROUP = 1
_IN_M = 0.03
"""How far below a thing's top another may touch it and still be on it, not in it."""
_UPRIGHT = 0.8
"""Least vertical part of a contact's normal where one thing bears another."""
_MAIN = "_main"
_COLOURS = ("black", "white", "red", "yellow", "green", "blue", "brown", "pink")
_NAMES = {
    "akita black bowl": ("bowl", "black"),
    "glazed rim porcelain ramekin": ("ramekin", ""),
    "wooden cabinet": ("cabinet", ""),
    "flat stove": ("stove", ""),
    "white yellow mug": ("mug", ""),
    "porcelain mug": ("mug", "white"),
    "red coffee mug": ("mug", "red"),
    "wooden two layer shelf": ("shelf", "brown"),
    "desk caddy": ("caddy", ""),
    "short fridge": ("refrigerator", ""),
}
"""Label and colour word where the rule of `label_of` does not give them."""
_FOLDED = np.array([0.0, -1.4, 0.0, -2.7, 0.0, 1.6, 0.8])
"""Arm drawn back over its base, out of the pictures."""


class TableTop:
    """One task's scene, without a GL context of its own.

    Args:
        suite: A suite of `envs.suites`.
        task_id: Index of the task.
    """

    def __init__(self, *, suite: str, task_id: int) -> None:
        self._env = LiberoEnv(suite=suite, task_id=task_id, render=False)
        self._suite, self._task_id = suite, task_id

    def draw(self, *, seed: int, index: int) -> None:
        """Draw placement ``index`` of a seed and let it come to rest."""
        import mujoco

        mj: Any = mujoco
        key = EpisodeKey(self._suite, self._task_id, index, perturbation="scan", seed=seed)
        # Seed 0 is the evaluation's: its fixtures would stand where those do.
        self._env.reset(
            seed=1 + key.digest() % (2**31 - 1),
            options={"init_state": "sampled", "reset_index": 0},
        )
        robot = self._env.simulation.handle.robots[0]
        self.data.qpos[robot._ref_joint_pos_indexes] = _FOLDED
        mj.mj_forward(self.model, self.data)

    @property
    def model(self) -> Any:
        """The compiled ``mujoco.MjModel``."""
        return self._env.simulation.model

    @property
    def data(self) -> Any:
        """The ``mujoco.MjData``."""
        return self._env.simulation.data

    def things(self) -> tuple[Thing, ...]:
        """List the objects and fixtures as they stand now."""
        import mujoco

        mj: Any = mujoco
        model = self.model
        found: list[Thing] = []
        roots: list[int] = []
        for body in np.flatnonzero(model.body_parentid == 0)[1:]:
            name = str(mj.mj_id2name(model, mj.mjtObj.mjOBJ_BODY, int(body)))
            if not name.endswith(_MAIN):
                continue
            is_drawn = (model.geom_group == _VISUAL_GROUP) & (self._alpha() > 0)
            geoms = np.flatnonzero(is_drawn & (model.body_rootid[model.geom_bodyid] == body))
            label, colour = label_of(name.removesuffix(_MAIN))
            if len(geoms):
                axes = _upright(self.data.xmat[body].reshape(3, 3))
                found.append(
                    Thing(label=label, colour=colour, geoms=tuple(map(int, geoms)), axes=axes)
                )
                roots.append(int(body))
        carriers = self._carriers(roots, found)
        return tuple(replace(thing, stands_on=carriers.get(i)) for i, thing in enumerate(found))

    def _carriers(self, roots: Sequence[int], things: Sequence[Thing]) -> dict[int, int]:
        """Return what each of some things stands on, by index, as the simulator's contacts say.

        A thing inside another, a bowl in a drawer, stands on nothing; so does one on the table.
        """
        model, data = self.model, self.data
        place = {body: i for i, body in enumerate(roots)}
        tops: dict[int, float] = {}
        carriers: dict[int, int] = {}
        for contact in data.contact[: data.ncon]:
            geoms = contact.geom1, contact.geom2
            a, b = (place.get(int(model.body_rootid[model.geom_bodyid[g]])) for g in geoms)
            normal_z = float(contact.frame[2])
            if a is None or b is None or a == b or abs(normal_z) < _UPRIGHT:
                continue
            # The normal points from the first geom to the second.
            below, above = (a, b) if normal_z > 0 else (b, a)
            if below not in tops:
                tops[below] = float(bounds(model, data, things[below].geoms, np.eye(3))[1][2])
            if contact.pos[2] > tops[below] - _IN_M:
                carriers[above] = below
        return carriers

    def middle(self) -> NDArray[np.float64]:
        """Return the mean place (3,) of the things that can be moved, else of all."""
        model = self.model
        roots = np.flatnonzero(model.body_parentid == 0)[1:]
        free = [b for b in roots if model.body_jntnum[b] and model.body_dofnum[b] == 6]
        return np.mean(self.data.xpos[free or list(roots)], axis=0)

    def _alpha(self) -> NDArray[np.float64]:
        model = self.model
        alpha = np.array(model.geom_rgba[:, 3])
        has = model.geom_matid >= 0
        alpha[has] = model.mat_rgba[model.geom_matid[has], 3]
        return alpha

    def close(self) -> None:
        """Release the simulator."""
        self._env.close()


def label_of(name: str) -> tuple[str, str]:
    """Return the class and the colour word, or an empty one, of a LIBERO object's name.

    ``white_cabinet_1`` is a white cabinet; two colour words in a name count as none.
    """
    words = re.sub(r"_\d+$", "", name).replace("_", " ")
    if words in _NAMES:
        return _NAMES[words]
    first, _, rest = words.partition(" ")
    return (rest, first) if rest and first in _COLOURS else (words, "")


def _upright(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return axes (3, 3), one a row, with the heading of a body and z up."""
    # The axis that lies flattest says best where the body heads.
    flattest = rotation[:, int(np.argmin(np.abs(rotation[2])))][:2]
    x, y = flattest / np.linalg.norm(flattest)
    return np.array([[x, y, 0.0], [-y, x, 0.0], [0.0, 0.0, 1.0]])
