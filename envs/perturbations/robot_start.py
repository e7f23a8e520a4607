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
"""Root mean square, over the seven arm joints, of the change from the initial state."""
CLEARANCE_M = 0.05
"""Nothing comes closer to the robot than this that was not as close in the initial state."""
_N_JOINTS = 7
_N_TRIES = 200


class RobotStart(Perturbation):
    """Another joint configuration before the settling steps; fingers and objects stay.

    The direction of the change is random, its size is the level's. Configurations near anything
    or beyond a joint limit are drawn again. The clearance is for the settling steps: the controller
    holds the orientation that the hand has after a reset, and turns the hand back to it.
    """

    def start(self, state: NDArray[np.float64], model: Any) -> NDArray[np.float64]:
        """Move the arm's joints.

        Raises:
            EnvFault: No configuration keeps clear of the scene.
        """
        import mujoco

        mj: Any = mujoco
        rng = np.random.default_rng(self.digest)
        low, high = model.jnt_range[:_N_JOINTS].T
        size = JOINT_RAD[self.level - 1] * np.sqrt(_N_JOINTS)
        scratch = mj.MjData(model)  # the episode's own data keep their warm start
        usual = _near_robot(model, scratch, state)
        for _ in range(_N_TRIES):
            direction = rng.normal(size=_N_JOINTS)
            moved = np.array(state)
            moved[1 : 1 + _N_JOINTS] += size * direction / np.linalg.norm(direction)
            joints = moved[1 : 1 + _N_JOINTS]
            is_inside = bool(np.all((joints > low) & (joints < high)))
            if is_inside and _near_robot(model, scratch, moved) <= usual:
                return moved
        raise EnvFault(
            f"no arm configuration without a collision in {_N_TRIES} draws; the initial state "
            "leaves the arm no room, use a lower level"
        )


def _near_robot(model: Any, data: Any, state: NDArray[np.float64]) -> set[tuple[int, int]]:
    """Return the pairs of geoms closer than the clearance, of which the robot owns one."""
    import mujoco

    mj: Any = mujoco
    robots = [geom for geom in range(model.ngeom) if _is_robots(model, geom)]
    margin, flags = np.array(model.geom_margin), model.opt.disableflags
    try:
        model.geom_margin[robots] = CLEARANCE_M
        # Its bounding boxes were made for the margins at compilation.
        model.opt.disableflags |= int(mj.mjtDisableBit.mjDSBL_MIDPHASE)
        data.qpos[:] = state[1 : 1 + model.nq]
        mj.mj_kinematics(model, data)
        mj.mj_comPos(model, data)
        mj.mj_collision(model, data)
    finally:
        model.geom_margin[:] = margin
        model.opt.disableflags = flags
    pairs = {(int(contact.geom1), int(contact.geom2)) for contact in data.contact}
    return {pair for pair in pairs if not set(robots).isdisjoint(pair)}


def _is_robots(model: Any, geom: int) -> bool:
    import mujoco

    mj: Any = mujoco
    body = int(model.geom_bodyid[geom])
    name = mj.mj_id2name(model, mj.mjtObj.mjOBJ_BODY, body) or ""
    return name.startswith(("robot0", "gripper0"))
