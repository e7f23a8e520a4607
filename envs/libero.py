"""LIBERO as a Gymnasium environment that follows the published evaluation protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs import perturbations
from envs.perturbations import Perturbation
from envs.simulation import LiberoSimulation
from envs.suites import HORIZONS, Task, get_task, init_states, split_suite
from vega_policy.spec import CAMERAS, ActionSpec, ContractError, EpisodeKey

if TYPE_CHECKING:
    from collections.abc import Mapping

SETTLING_STEPS = 10
SETTLING_ACTION = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float64)
"""Applied while the objects come to rest, before the policy sees anything."""


_N_JOINTS = 7
_JOINT_NOISE_RAD = 0.02
"""Standard deviation of the arm's joints over LIBERO's evaluation states (0.021 to 0.025)."""


class LiberoEnv(gymnasium.Env[dict[str, Any], NDArray[np.float64]]):
    """One LIBERO task, 20 Hz, both cameras upright, proprioception of 8 numbers.

    Episode ``k`` of the official protocol (one environment per task, ``seed(0)``, the ``k``-th
    reset, initial state ``k``, ten settling steps) is ``reset(seed=0, options={"init_state_id":
    k})``, in any order and in any process. States are equal in float64, images to the pixel.

    Observation: ``agentview`` and ``wrist`` (camera_px, camera_px, 3) uint8 RGB; ``proprio`` (8,)
    float32 (see `vega_policy.spec.Observation`).
    Action: (7,) in [-1, 1]; see `vega_policy.spec.ActionSpec`.
    Reward: 1 on the step that reaches the goal, else 0. Terminated: goal reached. Truncated: the
    suite's step limit.

    Args:
        suite: ``libero_spatial``, ``libero_object``, ``libero_goal``, ``libero_10``,
            ``libero_90``; or a suite of LIBERO-PRO (``libero_goal_swap``), which makes its
            perturbation what ``reset`` does unless told otherwise.
        task_id: Index in the benchmark's default order.
        camera_px: Side of the square images; 256 in the published evaluation, 128 in the
            published demonstrations.
        render: False leaves images out of the observation and needs no GL library.

    Raises:
        ContractError: Unknown suite or task, no LIBERO distribution, no off-screen GL chosen.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self, *, suite: str, task_id: int, camera_px: int = 128, render: bool = True
    ) -> None:
        self.suite, self._usual_perturbation = split_suite(suite)
        self.task = get_task(self.suite, task_id, self._usual_perturbation)
        self.instruction = self.task.instruction
        self.max_steps = HORIZONS[self.suite]
        self.action_spec = ActionSpec()
        self.camera_px = camera_px
        self.render_mode = "rgb_array"
        self.renders = render
        self._cameras = CAMERAS if render else ()
        self.simulation = LiberoSimulation(self.task, render=render)
        self.perturbation = Perturbation()
        self._n_steps = 0
        self.action_space = spaces.Box(-1.0, 1.0, (self.action_spec.size,), np.float64)
        image = spaces.Box(0, 255, (camera_px, camera_px, 3), np.uint8)
        proprio = spaces.Box(-np.inf, np.inf, (8,), np.float32)
        self.observation_space = spaces.Dict(
            {**dict.fromkeys(self._cameras, image), "proprio": proprio}
        )

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seed of the sequence of resets; None means 0, the official one.
            options: ``init_state_id``: which evaluation initial state (default 0).
                ``perturbation``: a name of `envs.perturbations.names` (default: the suite's own,
                ``none`` for a stock suite). ``repetition``: the episode key's; it decides, with
                the rest of the key, what a perturbation draws.
                ``reset_index``: which reset after ``seed`` decides the fixtures (default: the
                initial state's own number, as in the official order of episodes).
                ``init_state``: "sampled" keeps the placement that the reset drew instead of an
                evaluation state (for demonstrations).

        Raises:
            ContractError: An unknown option or perturbation, or an initial state that the suite
                does not have.
        """
        super().reset(seed=seed)
        wanted = dict(options or {})
        state_id = int(wanted.pop("init_state_id", 0))
        index = int(wanted.pop("reset_index", state_id))
        name = perturbations.require(wanted.pop("perturbation", self._usual_perturbation))
        repetition = int(wanted.pop("repetition", 0))
        is_sampled = wanted.pop("init_state", "evaluation") == "sampled"
        if wanted:
            raise ContractError(
                f"unknown reset options {sorted(wanted)}; "
                "valid: init_state, init_state_id, perturbation, repetition, reset_index"
            )
        key = EpisodeKey(self.suite, self.task.task_id, state_id, name, seed or 0, repetition)
        task = get_task(self.suite, self.task.task_id, name)
        states = init_states(self.suite, self.task.task_id, name)
        if not is_sampled and not 0 <= state_id < len(states):
            raise ContractError(
                f"{self.task.name} has initial states 0 to {len(states) - 1}, got {state_id}; "
                "choose one of these"
            )
        self._require_scene(task)
        self.perturbation = perturbations.make(key)
        self.instruction = self.perturbation.rewrite(task.instruction)
        self.simulation.seed(0 if seed is None else seed)
        self.simulation.reset(index=index)
        self.perturbation.edit(self.simulation.model)
        start = self._sampled_state(seed=seed or 0, index=index) if is_sampled else states[state_id]
        self.simulation.set_state(self.perturbation.start(start, self.simulation.model))
        for _ in range(SETTLING_STEPS):
            self.simulation.step(SETTLING_ACTION)
        self._n_steps = 0
        return self._observe(), {"instruction": self.instruction}

    def _require_scene(self, task: Task) -> None:
        """Build another scene if the task is set in another one than is there."""
        if task.bddl_file != self.simulation.task.bddl_file or not self.simulation.is_open:
            self.simulation.close()  # first: two scenes are 3 GB
            self.simulation = LiberoSimulation(task, render=self.renders)
        self.task = task

    def _sampled_state(self, *, seed: int, index: int) -> NDArray[np.float64]:
        """Keep the placement of the reset and move the arm as LIBERO's published states do."""
        state = self.simulation.state()
        noise = np.random.default_rng([seed, index]).normal(0.0, _JOINT_NOISE_RAD, _N_JOINTS)
        state[1 : 1 + _N_JOINTS] += noise
        return state

    def step(
        self, action: NDArray[Any]
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Apply one action and look."""
        return self.step_chunk(np.asarray(action)[None])

    def step_chunk(
        self, actions: NDArray[Any], *, look_when_over: bool = True, look: bool = True
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Apply actions one after the other; only the last observation is rendered.

        Args:
            actions: (n, 7), n >= 1. Ends early when the goal is reached or the step limit is.
            look_when_over: False leaves the images out of the observation that ends the episode,
                for a caller that shows it to nobody.
            look: False leaves them out in any case, for a caller that asks `look` when it wants them.

        Returns:
            Gymnasium's five values; ``info["n_steps"]`` counts the actions applied, and
            ``info["states"]`` (n_steps, s) is the simulator state after each of them.

        Raises:
            ContractError: The actions have another shape or are not finite.
            EnvFault: The physics became unstable.
        """
        actions = np.asarray(actions, dtype=np.float64)
        if actions.ndim != 2 or actions.shape[1] != self.action_spec.size or not len(actions):
            raise ContractError(
                f"actions have shape {actions.shape}, expected (n, {self.action_spec.size}); "
                "pass one row per control step"
            )
        if not np.isfinite(actions).all():
            raise ContractError("actions hold NaN or infinity; stop the policy that made them")
        success, done = False, 0
        states: list[NDArray[np.float64]] = []
        for action in actions:
            success = self.simulation.step(action)
            states.append(self.simulation.state())
            done += 1
            self._n_steps += 1
            if success or self._n_steps >= self.max_steps:
                break
        truncated = not success and self._n_steps >= self.max_steps
        info = {"n_steps": done, "states": np.stack(states)}
        looks = look and (look_when_over or not (success or truncated))
        return self._observe(looks=looks), float(success), success, truncated, info

    def look(self) -> dict[str, Any]:
        """Return the observation of this moment; no time passes."""
        return self._observe()

    def _observe(self, *, looks: bool = True) -> dict[str, Any]:
        images = {name: self._image(name) for name in self._cameras if looks}
        return {**images, "proprio": self.simulation.sample.proprio}

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """Return the third-person camera."""
        return self._image("agentview")

    def _image(self, camera: str) -> NDArray[np.uint8]:
        image = self.simulation.image(camera, self.camera_px)
        return self.perturbation.look(image, camera=camera, step=self._n_steps)

    def sim_state(self) -> NDArray[np.float64]:
        """Return the flattened MuJoCo state: time, qpos, qvel."""
        return self.simulation.state()

    def close(self) -> None:
        """Release the simulator and its GL context."""
        self.simulation.close()
