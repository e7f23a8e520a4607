"""LIBERO evaluated as published, step for step: the reference for states, pixels and speed.

What OpenVLA-OFT's evaluation does, and no more: one ``OffScreenRenderEnv`` per task, ``seed(0)``
once, episodes in order, each with a full ``reset`` (the scene is compiled anew), ``set_init_state``
and ten settling steps, both cameras rendered at every control step. Nothing is cached, skipped or
reordered, so this is slow on purpose: `envs.simulation` has to give the same numbers faster.

Upstream also prepares the policy's image at every step, including those whose image nobody uses.
That belongs to the policy and is left out here, in favour of the official loop's speed.
"""
# pyright: basic
# ruff: noqa: ANN401

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envs.installed import libero_module, quiet
from envs.libero import SETTLING_ACTION, SETTLING_STEPS
from envs.suites import HORIZONS, get_task, init_states, split_suite
from vega_policy.spec import ContractError
from vega_policy.spec.rotation import quat_to_axis_angle

if TYPE_CHECKING:
    from types import TracebackType

CAMERA_PX = 256
"""Side of the images in the published evaluation."""


@dataclass(frozen=True, eq=False)
class Moment:
    """What the official loop holds after a control step."""

    state: NDArray[np.float64]
    """Flattened MuJoCo state: time, qpos, qvel."""
    images: dict[str, NDArray[np.uint8]]
    """``agentview`` and ``wrist``, (px, px, 3) RGB, rotated by 180 degrees as the policy sees
    them."""
    proprio: NDArray[np.float64]
    """(8,): end effector position, axis-angle, gripper joints."""
    is_success: bool
    """``done`` of this step: the goal predicate holds, whether or not something is still held."""


Act = Callable[[Moment], NDArray[Any]]
"""The policy: a moment to a chunk of actions, (n, 7), all of which are played."""


class OfficialEnv:
    """One task of a suite under the official protocol.

    Args:
        suite: ``libero_spatial``, ``libero_object``, ``libero_goal``, ``libero_10``, ``libero_90``,
            or a suite of LIBERO-PRO, such as ``libero_goal_swap``.
        task_id: Index in the benchmark's default order.
        camera_px: Side of the square images.

    Raises:
        ContractError: Unknown suite or task, or no LIBERO distribution.
    """

    def __init__(self, *, suite: str, task_id: int, camera_px: int = CAMERA_PX) -> None:
        stock, perturbation = split_suite(suite)
        self.task = get_task(stock, task_id, perturbation)
        self.max_steps = HORIZONS[stock]
        self._init_states = init_states(stock, task_id, perturbation)
        self._n_started = 0
        with quiet():
            self._env: Any = libero_module("libero.libero.envs").OffScreenRenderEnv(
                bddl_file_name=str(self.task.bddl_file),
                camera_heights=camera_px,
                camera_widths=camera_px,
            )
            # The global generator of NumPy: whoever draws from it moves every later fixture.
            self._env.seed(0)

    def start(self) -> Moment:
        """Start the next episode: the n-th call resets for the n-th time, to initial state n.

        Raises:
            ContractError: All initial states have been used.
        """
        if self._n_started >= len(self._init_states):
            raise ContractError(
                f"{self.task.name} has {len(self._init_states)} initial states and all are used; "
                "make a new OfficialEnv"
            )
        with quiet():
            self._env.reset()
        self._env.set_init_state(self._init_states[self._n_started])
        self._n_started += 1
        for _ in range(SETTLING_STEPS - 1):
            self._env.step(SETTLING_ACTION.tolist())
        return self.step(SETTLING_ACTION)

    def step(self, action: NDArray[Any]) -> Moment:
        """Apply one action for 1/20 s and render both cameras."""
        seen, _, is_done, _ = self._env.step(np.asarray(action, dtype=np.float64).tolist())
        return Moment(
            state=np.array(self._env.get_sim_state(), dtype=np.float64),
            images={
                "agentview": np.ascontiguousarray(seen["agentview_image"][::-1, ::-1]),
                "wrist": np.ascontiguousarray(seen["robot0_eye_in_hand_image"][::-1, ::-1]),
            },
            proprio=np.concatenate(
                [
                    seen["robot0_eef_pos"],
                    quat_to_axis_angle(seen["robot0_eef_quat"]),
                    seen["robot0_gripper_qpos"],
                ]
            ),
            is_success=bool(is_done),
        )

    def episode(self, act: Act, *, max_steps: int | None = None) -> Iterator[Moment]:
        """Play the next episode; yield the moment after settling, then after every control step.

        Ends after the step that reaches the goal, or at the suite's step limit.

        Args:
            act: Asked whenever its last chunk has been played to the end.
            max_steps: Fewer steps than the suite's limit.
        """
        limit = self.max_steps if max_steps is None else min(max_steps, self.max_steps)
        moment = self.start()
        yield moment
        queue: list[NDArray[Any]] = []
        for _ in range(limit):
            if not queue:
                queue = list(act(moment))
            moment = self.step(queue.pop(0))
            yield moment
            if moment.is_success:
                return

    @property
    def handle(self) -> Any:
        """The robosuite environment, for reading the scene. Its model changes at each reset."""
        return self._env.env

    def close(self) -> None:
        """Free the scene and its GL context."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def __enter__(self) -> OfficialEnv:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()
