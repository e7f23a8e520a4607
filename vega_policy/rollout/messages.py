"""What the inference loop and a simulator process say to each other over their pipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vega_policy.control import ScheduleSettings
from vega_policy.rollout.frames import Frame
from vega_policy.rollout.plan import Job
from vega_policy.spec import (
    ActionChunk,
    ActionSpec,
    EpisodeResult,
    Observation,
    Simulator,
)

VideoMode = Literal["chunks", "all", "none"]
"""``chunks``: the frames the policy saw; ``all``: every control step is rendered; ``none``: no film,
and nothing is rendered that the policy does not see."""


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """First message to a worker: all it needs to know for its life."""

    make_simulator: Callable[..., Simulator]
    """Called with ``suite=`` and ``task_id=``. It travels by pickle, so it is a module-level
    function or class, or a `functools.partial` of one; the worker imports its module."""
    action_spec: ActionSpec
    """What the policy's numbers mean; the simulator must mean the same."""
    run_dir: Path
    """Videos and gate maps go below it."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    """What turns chunks into actions; by default every chunk is applied whole."""
    latency_ms: float = 0.0
    """From a question to its answer, in simulated time, in which the arm goes on as its schedule says."""
    max_steps: int | None = None
    """Step limit; None is the benchmark's."""
    video: VideoMode = "chunks"
    cameras: tuple[str, ...] = ()
    """Cameras side by side in the videos."""
    draw_gate: bool = True
    """Add a row with the gate maps over the camera images."""
    made_with: Mapping[str, str] = field(default_factory=dict[str, str])
    """Goes into every row as it is."""

    @property
    def delay_ticks(self) -> int:
        """Control steps from a question to its answer."""
        return math.ceil(self.latency_ms * self.action_spec.rate_hz / 1000 - 1e-9)

    @property
    def is_plain(self) -> bool:
        """Whether chunks are applied as in the published protocol: none of it is worth recording."""
        return self.schedule.name == "open_loop" and not self.delay_ticks


@dataclass(frozen=True)
class Run:
    """To a worker: play this episode."""

    job: Job
    attempt: int
    """1 for the first try."""


@dataclass(frozen=True, eq=False)
class Answer:
    """To a worker: the chunk it asked for."""

    chunk: ActionChunk


@dataclass(frozen=True)
class Faulted:
    """To a worker: the policy failed on its observation."""

    detail: str


@dataclass(frozen=True)
class Stop:
    """To a worker: there is no more to do."""


@dataclass(frozen=True, eq=False)
class Ask:
    """A worker's question: what to do now?"""

    observation: Observation
    """From a process on this machine its images are views of shared memory: read-only, and valid
    until the question is answered."""
    chunk_index: int


@dataclass(frozen=True, eq=False)
class Shown:
    """From a worker: an `Ask` whose images are on the board."""

    frames: tuple[Frame, ...]
    proprio: NDArray[np.float32]
    instruction: str
    chunk_index: int
    episode: int | None = None
    """See `Observation.episode`."""


@dataclass(frozen=True, eq=False)
class Done:
    """From a worker: the episode is over."""

    result: EpisodeResult


@dataclass(frozen=True)
class Broken:
    """From a worker, its last word: something raised."""

    detail: str
    cause: Literal["simulator", "contract", "storage"]
    """Only a broken simulator is worth trying again."""


@dataclass(frozen=True)
class Missing:
    """An episode without a row: the simulator broke every time it was tried."""

    job: Job
    detail: str


ToWorker = Run | Answer | Faulted | Stop
FromWorker = Shown | Done | Broken
