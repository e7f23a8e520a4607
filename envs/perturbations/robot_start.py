"""The arm begins elsewhere."""
# pyright: basic
# ruff: noqa: ANN401

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from envs.perturbations.base import Perturbation
from vega_policy.spec import EnvFault

if TYPE_CHECKING:
    from numpy.typing import NDArray

JOINT_RAD = (0.05, 0.1, 0.2)
"""Standard deviation of each arm joint about the initial state's."""
_N_JOINTS = 7
_N_TRIES = 100


class RobotStart(Perturbation):
    """Another joint configuration before the settling steps; fingers and objects stay.

    Configurations that touch something or break a joint limit are drawn again.
    """

    def start(self, state: NDArray[np.float64], model: Any) -> NDArray[np.float64]:
        """Move the arm's joints."""
        import mujoco

        mj: Any = mujoco
        rng = np.random.default_rng(self.digest)
        low, high = model.jnt_range[:_N_JOINTS].T
        scratch = mj.MjData(model)  # the episode's own data keep their warm start
        usual = _robot_contacts(model, scratch, state)
        for _ in range(_N_TRIES):
            moved = np.array(state)
            moved[1 : 1 + _N_JOINTS] += rng.normal(0.0, JOINT_RAD[self.level - 1], _N_JOINTS)
            joints = moved[1 : 1 + _N_JOINTS]
            is_inside = bool(np.all((joints > low) & (joints < high)))
            if is_inside and _robot_contacts(model, scratch, moved) <= usual:
                return moved
        raise EnvFault(
            f"no arm configuration without a collision in {_N_TRIES} draws; the initial state "
            "leaves the arm no room, use a lower level"
        )


def _robot_contacts(model: Any, data: Any, state: NDArray[np.float64]) -> set[tuple[int, int]]:
    """Return the pairs of geoms that touch and of which the robot owns one."""
    import mujoco

    mj: Any = mujoco
    data.qpos[:] = state[1 : 1 + model.nq]
    mj.mj_kinematics(model, data)
    mj.mj_comPos(model, data)
    mj.mj_collision(model, data)
    touching = set[tuple[int, int]]()
    for contact in data.contact:
        pair = (int(contact.geom1), int(contact.geom2))
        if any(_is_robots(model, geom) for geom in pair):
            touching.add(pair)
    return touching


def _is_robots(model: Any, geom: int) -> bool:
    import mujoco

    mj: Any = mujoco
    body = int(model.geom_bodyid[geom])
    name = mj.mj_id2name(model, mj.mjtObj.mjOBJ_BODY, body) or ""
    return name.startswith(("robot0", "gripper0"))
