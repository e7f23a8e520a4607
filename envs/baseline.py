"""The official evaluation loop with a stopwatch: what a faster harness is compared with."""
# pyright: basic

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from envs.official import Moment, OfficialEnv
from vega_policy.spec import Observation, Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, eq=False, kw_only=True)
class TimedEpisode:
    """One episode of the official loop; seconds of wall time."""

    is_success: bool
    digests: NDArray[np.uint64]
    """(n,) digest of the state after each control step."""
    wall_s: float
    """From the reset to the end."""
    reset_s: float
    """Reset, initial state and settling steps, the pictures drawn meanwhile included."""
    render_s: float
    """Drawing, wherever it happened."""
    policy_s: float


def play_official(
    *,
    suite: str,
    task_id: int,
    n_episodes: int,
    camera_px: int,
    make_policy: Callable[[], Policy],
    key_of: Callable[[int, int], int],
    digest: Callable[[NDArray[np.float64]], int],
) -> tuple[float, list[TimedEpisode]]:
    """Play the first episodes of a task one after the other, as published.

    Args:
        suite: See `OfficialEnv`.
        task_id: See `OfficialEnv`.
        n_episodes: Initial states 0 to ``n_episodes - 1``, in order.
        camera_px: Side of the rendered images.
        make_policy: Called once; all actions of a chunk are played.
        key_of: Initial state and number of the chunk to the key of the inference.
        digest: State to 64 bits.

    Returns:
        Seconds it took to build the scene, and the episodes.
    """
    policy = make_policy()
    started = time.perf_counter()
    with OfficialEnv(suite=suite, task_id=task_id, camera_px=camera_px) as env:
        built_s = time.perf_counter() - started
        played = [
            _episode(env, policy, lambda chunk, i=i: key_of(i, chunk), digest)
            for i in range(n_episodes)
        ]
    return built_s, played


def _episode(
    env: OfficialEnv,
    policy: Policy,
    key_of: Callable[[int], int],
    digest: Callable[[NDArray[np.float64]], int],
) -> TimedEpisode:
    with _drawing_timed() as drawn:
        started = time.perf_counter()
        moment = env.start()
        reset_s = time.perf_counter() - started
        digests: list[int] = []
        policy_s, n_chunks = 0.0, 0
        while not moment.is_success and len(digests) < env.max_steps:
            asked = time.perf_counter()
            [chunk] = policy.act([_observation(env, moment)], keys=[key_of(n_chunks)])
            policy_s += time.perf_counter() - asked
            n_chunks += 1
            for action in chunk.actions[: env.max_steps - len(digests)]:
                moment = env.step(action)
                digests.append(digest(moment.state))
                if moment.is_success:
                    break
        return TimedEpisode(
            is_success=moment.is_success,
            digests=np.array(digests, dtype=np.uint64),
            wall_s=time.perf_counter() - started,
            reset_s=reset_s,
            render_s=sum(drawn),
            policy_s=policy_s,
        )


def _observation(env: OfficialEnv, moment: Moment) -> Observation:
    return Observation(
        images=moment.images,
        proprio=moment.proprio.astype(np.float32),
        instruction=env.task.instruction,
    )


@contextmanager
def _drawing_timed() -> Iterator[list[float]]:
    """Collect the seconds of every call of robosuite's renderer, for all scenes of this process."""
    from robosuite.utils.binding_utils import MjSim

    seconds: list[float] = []
    draw = MjSim.render

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        started = time.perf_counter()
        try:
            return draw(self, *args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - started)

    with mock.patch.object(MjSim, "render", timed):
        yield seconds
