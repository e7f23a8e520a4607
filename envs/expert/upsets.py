"""Ways an episode goes wrong before the expert has its turn: it must be able to start from there.

An upset plays in the simulation until the scene is as a failed policy would leave it. Nothing of it is
recorded: a demonstration begins where the expert takes over.
"""
# pyright: basic
# ruff: noqa: ANN401

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from envs.expert.goals import GoalExpert, Style
from envs.expert.hand import OPEN
from envs.expert.rotations import about

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from envs.expert.scene import Thing

Upset = Literal["dropped", "knocked", "wandered"]
"""``dropped``: the gripper opens while something is carried, or, where nothing is, in the middle of the
work. ``knocked``: the things of the goal lie on their side. ``wandered``: the arm moved at random for
up to three seconds, gripper included, as an untrained policy would."""
UPSETS: tuple[Upset, ...] = get_args(Upset)
_LIFTED_M = 0.04
_LET_GO_STEPS = 8
_LONGEST_DRIVE = 150
_SETTLE_STEPS = 16


def upset(simulation: Any, kind: Upset, rng: np.random.Generator) -> int:
    """Bring the scene into such a state.

    Args:
        simulation: An `envs.simulation.LiberoSimulation`, just reset; it is changed.
        kind: What goes wrong.
        rng: Decides when and how.

    Returns:
        The control steps it took.
    """
    play = {"dropped": _drop, "knocked": _knock, "wandered": _wander}[kind]
    return play(simulation, rng)


def _drop(simulation: Any, rng: np.random.Generator) -> int:
    expert = GoalExpert(simulation, style=Style.sample(rng))
    things = _goal_things(expert)
    rest = [thing.bottom for thing in things]
    further = int(rng.integers(0, 25))
    stop = int(rng.integers(30, _LONGEST_DRIVE))
    for step in range(_LONGEST_DRIVE):
        is_carried = any(
            expert.hand.holds(thing.geoms) and thing.bottom > low + _LIFTED_M
            for thing, low in zip(things, rest, strict=True)
        )
        further -= is_carried
        if further < 0 or (not is_carried and step >= stop):
            break
        if simulation.step(expert.act()):
            break
    move = np.r_[rng.uniform(-0.5, 0.5, 2), rng.uniform(-0.1, 0.3), np.zeros(3), OPEN]
    for _ in range(_LET_GO_STEPS):
        simulation.step(move)
    return step + 1 + _LET_GO_STEPS


def _knock(simulation: Any, rng: np.random.Generator) -> int:
    for thing in _goal_things(GoalExpert(simulation)):
        lay_over(simulation, thing, rng)
    still = np.r_[np.zeros(6), OPEN]
    for _ in range(_SETTLE_STEPS):
        simulation.step(still)
    return _SETTLE_STEPS


def lay_over(simulation: Any, thing: Thing, rng: np.random.Generator) -> None:
    """Turn a thing onto its side where it stands, a little above its support, and let it fall."""
    import mujoco

    mj: Any = mujoco

    model, data = simulation.model, simulation.data
    joint = int(model.body_jntadr[thing.root])
    start = int(model.jnt_qposadr[joint])
    low = thing.bottom
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.array([np.cos(angle), np.sin(angle), 0.0])
    turned = about(axis, float(rng.uniform(1.0, 1.7))) @ thing.rotation
    quaternion = np.zeros(4)
    mj.mju_mat2Quat(quaternion, turned.ravel())
    data.qpos[start + 3 : start + 7] = quaternion
    mj.mj_forward(getattr(model, "_model", model), getattr(data, "_data", data))
    data.qpos[start + 2] += low + 0.01 - thing.bottom
    mj.mj_forward(getattr(model, "_model", model), getattr(data, "_data", data))


def _wander(simulation: Any, rng: np.random.Generator) -> int:
    n_steps = int(rng.integers(15, 60))
    action = _random_action(rng)
    for step in range(n_steps):
        if step % 8 == 0:
            action = _random_action(rng)
        simulation.step(action)
    return n_steps


def _random_action(rng: np.random.Generator) -> NDArray[np.float64]:
    return np.r_[rng.uniform(-1, 1, 3), rng.uniform(-0.3, 0.3, 3), rng.choice([-1.0, 1.0])]


def _goal_things(expert: GoalExpert) -> list[Thing]:
    """List the things the goal moves, once each."""
    scene = expert.scene
    names = dict.fromkeys(goal[1] for goal in scene.goals if goal[0] in ("on", "in"))
    return [scene.things[name] for name in names if name in scene.things]
