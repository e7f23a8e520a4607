"""How fast a rollout is, on the same episodes as the official loop, and whether both agree."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vega_policy.rollout.engine import EngineSettings, LocalEngine
from vega_policy.rollout.messages import Missing, WorkerSettings
from vega_policy.rollout.plan import Job, inference_key
from vega_policy.rollout.trace import Trace
from vega_policy.spec import EnvFault, EpisodeKey, EpisodeResult, Observation, Policy

if TYPE_CHECKING:
    from pathlib import Path

    from vega_policy.spec import ActionChunk, ActionSpec, Simulator


_FEWEST_ASKED = 10
_BUILD_S = 0.2
"""A worker that has its scene already needs microseconds."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One way of playing the episodes."""

    n_workers: int
    steps_per_s: float
    """Control steps per second of wall time while every worker was playing; building scenes does
    not count, resets do."""
    wall_s: float
    """Start to end, everything included."""
    seconds: Mapping[str, float]
    """Where a worker's time went, per control step."""
    rows: Sequence[EpisodeResult]
    digests: Mapping[EpisodeKey, NDArray[np.uint64]]
    """State after every control step."""


@dataclass(eq=False)
class WatchedPolicy:
    """A policy that gets images of its own size, and a stopwatch.

    The published evaluation renders larger than a small policy looks at; the images are averaged
    down by a whole factor.
    """

    policy: Policy
    image_px: int | None = None
    """What the policy wants; None leaves images as they are."""
    asked: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    """When each call came, in seconds of the monotonic clock, and how many observations it had."""

    @property
    def action_spec(self) -> ActionSpec:
        """What the returned numbers mean."""
        return self.policy.action_spec

    def act(self, batch: Sequence[Observation], *, keys: Sequence[int]) -> list[ActionChunk]:
        """See `vega_policy.spec.Policy`."""
        self.asked.append((time.monotonic(), len(batch)))
        return self.policy.act([self._fitted(o) for o in batch], keys=keys)

    def _fitted(self, observation: Observation) -> Observation:
        if self.image_px is None:
            return observation
        images = {c: averaged(image, self.image_px) for c, image in observation.images.items()}
        return Observation(
            images=images, proprio=observation.proprio, instruction=observation.instruction
        )


def averaged(image: NDArray[np.uint8], px: int) -> NDArray[np.uint8]:
    """Average (H, H, 3) down to (px, px, 3) by a whole factor."""
    factor = len(image) // px
    if factor * px != len(image):
        raise ValueError(f"{len(image)} px is no multiple of {px} px")
    parts = image.reshape(px, factor, px, factor, 3).mean(axis=(1, 3))
    return np.rint(parts).astype(np.uint8)


def official_key(suite: str, task_id: int, init_state_id: int, chunk: int) -> int:
    """Return the key of an inference of the official loop: the one our workers use."""
    return inference_key(EpisodeKey(suite, task_id, init_state_id), chunk)


def play(
    *,
    policy: WatchedPolicy,
    make_simulator: Callable[..., Simulator],
    keys: Sequence[EpisodeKey],
    n_workers: int,
    run_dir: Path,
) -> Measured:
    """Play episodes with so many workers; nothing is rendered that the policy does not see.

    Raises:
        EnvFault: A simulator broke.
    """
    policy.asked.clear()
    engine = LocalEngine(
        policies={"full": policy},
        worker=WorkerSettings(
            make_simulator=make_simulator,
            action_spec=policy.action_spec,
            run_dir=run_dir,
            video="none",
        ),
        settings=EngineSettings(n_workers=n_workers),
        log_dir=run_dir / "logs",
    )
    started = time.monotonic()
    rows: list[EpisodeResult] = []
    ends: list[float] = []
    with contextlib.closing(engine.run([Job(key) for key in keys])) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Missing):
                raise EnvFault(f"{outcome.job.name}: {outcome.detail}")
            rows.append(outcome)
            ends.append(time.monotonic())
    return Measured(
        n_workers=n_workers,
        steps_per_s=_steps_per_s(rows, ends, policy.asked, n_workers),
        wall_s=time.monotonic() - started,
        seconds=_shares(rows),
        rows=rows,
        digests={r.key: Trace.load(run_dir / str(r.info["trace"])).digests for r in rows},
    )


def _steps_per_s(
    rows: Sequence[EpisodeResult],
    ends: Sequence[float],
    asked: Sequence[tuple[float, int]],
    n_workers: int,
) -> float:
    """Return the rate between the moment all scenes stand and the last hand-out of an episode.

    In between no worker is idle. What is built later, since a worker went on to another task, is
    taken off.
    """
    n_steps, n_asked = sum(r.n_steps for r in rows), sum(n for _, n in asked)
    handed_out = [end - r.wall_s for r, end in zip(rows, ends, strict=True)]
    builds = sorted(
        (at + r.info["run"]["build_s"], r.info["run"]["build_s"])
        for r, at in zip(rows, handed_out, strict=True)
        if r.info["run"]["build_s"] > _BUILD_S
    )
    begin = builds[min(n_workers, len(builds)) - 1][0]
    seconds = max(handed_out) - begin - sum(s for at, s in builds if at > begin) / n_workers
    inside = sum(n for t, n in asked if begin <= t < max(handed_out))
    if seconds <= 0 or inside < _FEWEST_ASKED:
        raise EnvFault(
            f"all {n_workers} workers played together for {max(seconds, 0):.1f} s and {inside} "
            "inferences, too little to measure; use more episodes"
        )
    return inside * n_steps / n_asked / seconds


def _shares(rows: Sequence[EpisodeResult]) -> dict[str, float]:
    steps = sum(r.n_steps for r in rows)
    runs: list[Mapping[str, Any]] = [r.info["run"] for r in rows]
    whole = sum(r.wall_s for r in rows) - sum(r["build_s"] for r in runs)
    found = {
        "reset and settling": sum(r["reset_s"] for r in runs),
        "physics and drawing": sum(r["simulate_s"] for r in runs),
        "waiting for the policy": sum(sum(r["wait_ms"]) for r in runs) / 1000,
    }
    found["rest"] = whole - sum(found.values())
    return {name: s / steps for name, s in found.items()}
