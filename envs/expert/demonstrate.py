"""One demonstration: a freshly drawn scene, the expert at the controls, everything recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from envs.expert.goals import GoalExpert, Style
from envs.expert.upsets import Upset, upset
from envs.suites import init_states
from vega_policy.data.libero_hdf5 import Demo
from vega_policy.spec import CAMERAS, ContractError, EnvFault, Observation

if TYPE_CHECKING:
    from envs.libero import LiberoEnv

_TAIL_STEPS = 10
"""Recorded after success, so that the last decisions before it begin a whole chunk."""
_MIN_EVALUATION_DISTANCE = 1e-4
"""Metres and quaternion units; nearer than this a start would be an evaluation initial state."""

_MAX_DRAWS = 20
_MAX_SLIP_M = 0.04
_FREE_JOINT = 0

Learner = Callable[[Observation, int], NDArray[np.float32]]
"""Observation and random key to a chunk of (horizon, 7) actions."""


@dataclass(frozen=True)
class Disturbances:
    """Pushes that make the expert show how to recover; the steps are marked as not the expert's."""

    probability: float = 0.7
    """Chance that a demonstration is disturbed at all."""
    max_pushes: int = 3
    steps: tuple[int, int] = (4, 10)
    """Shortest and longest push, control steps."""
    strength: float = 0.9
    """Largest translation command added."""


@dataclass(frozen=True)
class Attempt:
    """What one attempt gave."""

    outcome: Literal["success", "failure", "learner"]
    """``failure``: the goal was not reached within the suite's step limit. ``learner``: the learner
    ended the episode before the expert's turn came, so nothing is said about the expert."""
    demo: Demo | None
    """The recording of a success; None where the environment renders no images."""
    n_steps: int
    """Control steps until success, or until the attempt was given up."""


def demonstrate(
    env: LiberoEnv,
    *,
    seed: int,
    disturbances: Disturbances | None = None,
    learner: Learner | None = None,
    max_learner_chunks: int = 0,
    first: Upset | None = None,
    look_every: int = 1,
) -> Attempt:
    """Let the expert solve the task once, from a placement drawn from ``seed``.

    With a learner, it drives first for a random number of chunks; what is recorded begins when
    the expert takes over, in a state that the learner brought about (DAgger, arXiv:1011.0686, with
    whole expert trajectories as labels).

    Args:
        env: An environment of the task.
        seed: Decides the placement, the arm's start, the expert's style and every disturbance.
        disturbances: None for none.
        learner: The policy that drives first.
        max_learner_chunks: Largest number of chunks it drives.
        first: What goes wrong before the expert's turn; None for nothing. It is not recorded, and
            the expert has the suite's step limit from there.
        look_every: Images are drawn at one in so many steps, from a step that ``seed`` decides.

    Raises:
        ContractError: The drawn placement coincides with an evaluation initial state.
        EnvFault: The physics became unstable, or no placement is whole.
    """
    rng = np.random.default_rng(seed)
    observation, reset_index = _reset_to_whole_scene(env, seed=seed)
    distance = evaluation_distance(env)
    if distance < _MIN_EVALUATION_DISTANCE:
        raise ContractError(
            f"seed {seed} of {env.task.name} draws an evaluation initial state (distance "
            f"{distance:.1e}); demonstrations must not start there, take another seed"
        )
    n_learner_steps = 0
    if learner is not None:
        for chunk in range(int(rng.integers(0, max_learner_chunks + 1))):
            actions = learner(_observation(env, observation), seed + chunk)
            observation, _, success, truncated, info = env.step_chunk(actions)
            n_learner_steps += info["n_steps"]
            if success or truncated:
                return Attempt(outcome="learner", demo=None, n_steps=n_learner_steps)
    n_upset_steps = 0 if first is None else upset(env.simulation, first, rng)
    style = Style.sample(rng)
    expert = GoalExpert(env.simulation, style=style)
    pushes = _draw_pushes(rng, disturbances)
    recording = _Recording(env, look_every=look_every, seed=seed) if env.renders else None
    n_success = None
    for step in range(env.max_steps):
        action, push = expert.act(), pushes.get(step)
        if push is not None and n_success is None:
            action = np.clip(action + push, -1.0, 1.0)
        if recording:
            recording.before(action, is_expert=push is None or n_success is not None)
        is_success = env.simulation.step(action)
        if recording:
            recording.after(is_success=is_success)
        if is_success and n_success is None:
            n_success = step + 1
        if n_success is not None and step + 1 >= n_success + _TAIL_STEPS:
            break
    if n_success is None:
        return Attempt(outcome="failure", demo=None, n_steps=env.max_steps)
    if recording is None:
        return Attempt(outcome="success", demo=None, n_steps=n_success)
    attributes = {
        "seed": seed,
        "reset_index": reset_index,
        "suite": env.task.suite,
        "task_id": env.task.task_id,
        "start": "learner" if n_learner_steps else first or "sampled",
        "n_learner_steps": n_learner_steps,
        "n_upset_steps": n_upset_steps,
        "n_steps_to_success": n_success,
        "n_pushed_steps": len(pushes),
        "style": asdict(style),
        "evaluation_distance": distance,
    }
    demo = recording.finish(env.instruction, attributes)
    return Attempt(outcome="success", demo=demo, n_steps=n_success)


def _reset_to_whole_scene(env: LiberoEnv, *, seed: int) -> tuple[dict[str, Any], int]:
    """Draw placements until nothing is thrown aside; return the observation and which it was.

    LIBERO's sampler may set a bowl into a plate; the contact then shoots it off the table. No
    evaluation initial state is like that.
    """
    for index in range(_MAX_DRAWS):
        observation, _ = env.reset(
            seed=seed, options={"init_state": "sampled", "reset_index": index}
        )
        if largest_slip(env) < _MAX_SLIP_M:
            return observation, index
    raise EnvFault(
        f"{_MAX_DRAWS} placements of {env.task.name} with seed {seed} each throw something aside; "
        "take another seed"
    )


def largest_slip(env: LiberoEnv) -> float:
    """Return how far, metres, an object has moved sideways since it was placed."""
    model = env.simulation.model
    starts = [
        int(start)
        for start, kind in zip(model.jnt_qposadr, model.jnt_type, strict=True)
        if kind == _FREE_JOINT
    ]
    before, now = env.simulation.placement[1:], env.simulation.data.qpos
    slips = [np.linalg.norm(now[s : s + 2] - before[s : s + 2]) for s in starts]
    return float(max(slips, default=0.0))


def evaluation_distance(env: LiberoEnv) -> float:
    """Return how far the objects lie from the nearest evaluation initial state.

    The largest difference of any object coordinate (metres, quaternion units), minimised over
    the states; robot joints do not count, so a moved arm does not hide a repeated scene.
    """
    robot = 1 + 9  # time, seven arm joints, two fingers
    n_positions = int(env.simulation.model.nq) + 1
    mine = env.simulation.placement[robot:n_positions]
    others = init_states(env.task.suite, env.task.task_id)[:, robot:n_positions]
    return float(np.abs(others - mine).max(axis=1).min())


def _observation(env: LiberoEnv, values: dict[str, Any]) -> Observation:
    images = {name: values[name] for name in values if name != "proprio"}
    return Observation(images=images, proprio=values["proprio"], instruction=env.instruction)


def _draw_pushes(
    rng: np.random.Generator, disturbances: Disturbances | None
) -> dict[int, NDArray[np.float64]]:
    """Draw, for some steps of the first 80, what is added to the action."""
    if disturbances is None or rng.random() >= disturbances.probability:
        return {}
    pushes: dict[int, NDArray[np.float64]] = {}
    for _ in range(int(rng.integers(1, disturbances.max_pushes + 1))):
        start = int(rng.integers(3, 80))
        length = int(rng.integers(disturbances.steps[0], disturbances.steps[1] + 1))
        direction = rng.normal(size=3)
        direction *= rng.uniform(0.4, 1.0) * disturbances.strength / np.linalg.norm(direction)
        push = np.r_[direction, rng.uniform(-0.15, 0.15, 3), 0.0]
        for step in range(start, start + length):
            pushes[step] = push
    return pushes


class _Recording:
    """The arrays of a demonstration while it grows."""

    def __init__(self, env: LiberoEnv, *, look_every: int, seed: int) -> None:
        self._env = env
        self._look_every = look_every
        self._first_look = seed % look_every
        self._unseen = np.zeros((env.camera_px, env.camera_px, 3), dtype=np.uint8)
        self._rows: dict[str, list[Any]] = {
            name: []
            for name in (
                *("agentview", "wrist", "ee_states", "gripper_states", "joint_states"),
                *("robot_states", "actions", "states", "rewards", "expert_mask"),
                "frame_mask",
            )
        }

    def before(self, action: NDArray[np.float64], *, is_expert: bool) -> None:
        simulation, px = self._env.simulation, self._env.camera_px
        step = len(self._rows["actions"])
        looks = step % self._look_every == self._first_look
        sample = simulation.sample
        robot = [sample.gripper, sample.eef_position, sample.eef_quaternion]
        for name, value in {
            **{c: simulation.image(c, px) if looks else self._unseen for c in CAMERAS},
            "frame_mask": np.uint8(looks),
            "ee_states": sample.ee_state,
            "gripper_states": sample.gripper,
            "joint_states": sample.joints,
            "robot_states": np.concatenate(robot),
            "actions": action,
            "states": simulation.state(),
            "expert_mask": np.uint8(is_expert),
        }.items():
            self._rows[name].append(value)

    def after(self, *, is_success: bool) -> None:
        self._rows["rewards"].append(np.uint8(is_success))

    def finish(self, instruction: str, attributes: dict[str, Any]) -> Demo:
        arrays: dict[str, Any] = {name: np.stack(rows) for name, rows in self._rows.items()}
        arrays["dones"] = np.zeros(len(arrays["actions"]), dtype=np.uint8)
        arrays["dones"][-1] = 1
        return Demo(**arrays, instruction=instruction, attributes=attributes)
