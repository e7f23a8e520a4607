"""A simulator process: plays the episodes it is told to, asks elsewhere what to do.

`vega_policy.rollout.engine` starts it as ``python -c "... main(<pipe>, <board>)"`` with its own
environment variables, so that thread counts are set before NumPy is imported, and it imports
neither torch nor the policy. `vega_policy.rollout.ray_engine` runs the same `Worker` in an actor.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vega_policy.control import build_schedule, require_valid_chunk
from vega_policy.control.hold import hold_action
from vega_policy.rollout.frames import FrameBoard
from vega_policy.rollout.gate_map import GateTrace
from vega_policy.rollout.ledger import GATES, TRACES, VIDEOS, storage_fault
from vega_policy.rollout.messages import (
    Answer,
    Ask,
    Broken,
    Done,
    Faulted,
    FromWorker,
    Run,
    Shown,
    Stop,
    ToWorker,
    VideoMode,
    WorkerSettings,
)
from vega_policy.rollout.trace import Trace, reset_options, state_bytes, state_digest
from vega_policy.rollout.video import CHUNK_FPS, film, write_mp4
from vega_policy.spec import (
    CAMERAS,
    ContractError,
    EpisodeKey,
    EpisodeResult,
    Observation,
    Outcome,
    PolicyFault,
    Simulator,
    StorageFault,
)
from vega_policy.spec.processes import end_with_parent

if TYPE_CHECKING:
    from pathlib import Path

    from vega_policy.rollout.plan import Job
    from vega_policy.rollout.schedule import Task
    from vega_policy.spec import ActionChunk

log = logging.getLogger(__name__)


_OPEN = -1.0
"""Gripper command of a hold before any action: as in the settling steps."""


class LoopGone(Exception):
    """The inference loop is gone; not an `EOFError`, which a simulator's file may raise too."""


class Worker:
    """Plays episodes; keeps the simulator while the task stays the same."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        ask: Callable[[Job, Ask], Answer | Faulted],
        folder: Callable[[], Path] | None = None,
    ) -> None:
        """Set up; the first episode builds the simulator.

        Args:
            settings: What stays the same over all episodes.
            ask: Has the policy answer; blocks until it has.
            folder: Asked at the end of an episode where its files go; None is the run directory.
        """
        self._settings = settings
        self._folder = folder or (lambda: settings.run_dir)
        self._ask = ask
        self._schedule = build_schedule(settings.schedule, settings.action_spec)
        self._simulator: Simulator | None = None
        self._task: Task | None = None

    def attempt(self, run: Run) -> Done | Broken:
        """Play an episode and say how it went; after `Broken` the worker is of no more use.

        Raises:
            LoopGone: Nobody is there to ask.
        """
        try:
            return Done(self.play(run.job, attempt=run.attempt))
        except LoopGone:
            raise
        except ContractError as error:
            return Broken(str(error), "contract")
        except StorageFault as error:
            return Broken(str(error), "storage")
        except Exception as error:  # the process boundary: re-classified as a broken simulator
            log.exception("episode %s", run.job.name)
            return Broken(traceback.format_exception_only(error)[-1].strip(), "simulator")

    def close(self) -> None:
        """Release the simulator."""
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None

    def play(self, job: Job, *, attempt: int) -> EpisodeResult:
        """Play one episode from reset to its end and write its trace, video and gate maps."""
        started = time.perf_counter()
        key = job.key
        simulator = self._simulator_for(key)
        built_s = time.perf_counter() - started
        settings = self._settings
        observation, _ = simulator.reset(seed=key.seed, options=reset_options(key))
        reset_s = time.perf_counter() - started - built_s
        if settings.max_steps is not None:
            simulator.max_steps = settings.max_steps
        limit = simulator.max_steps
        name = _number(f"{job.name} {attempt}")
        episode = _Recorder(simulator, video=settings.video)
        episode.see(observation)
        outcome: Outcome = "failure"
        detail = ""
        schedule = self._schedule
        schedule.reset()
        arrivals: dict[int, tuple[int, ActionChunk]] = {}
        gripper = _OPEN
        while episode.n_steps < limit:
            tick = episode.n_steps
            asked = time.perf_counter()
            question = _question(observation, simulator, episode.n_chunks, name=name)
            reply = self._ask(job, question)
            episode.wait_ms.append(1000 * (time.perf_counter() - asked))
            if isinstance(reply, Faulted):
                outcome, detail = "policy_fault", reply.detail
                break
            try:
                require_valid_chunk(reply.chunk, settings.action_spec)
            except PolicyFault as error:
                outcome, detail = "policy_fault", str(error)
                break
            episode.asked(reply.chunk)
            schedule.asked(tick)
            arrivals[tick + settings.delay_ticks] = tick, reply.chunk
            actions, is_held = self._until_next_question(
                range(tick, limit), arrivals, gripper=gripper
            )
            gripper = float(actions[-1, -1])
            observation, succeeded, is_over = episode.apply(actions, is_held=is_held)
            if succeeded:
                outcome = "success"
            if succeeded or is_over:
                break
        # Files are written before the row exists: a row promises its files.
        try:
            files = self._write(job, episode, outcome, self._folder())
        except OSError as error:
            raise storage_fault(error, settings.run_dir) from error
        wall_s = time.perf_counter() - started
        return EpisodeResult(
            key=key,
            arm=job.arm,
            outcome=outcome,
            n_steps=episode.n_steps,
            n_chunks=episode.n_chunks,
            state_sha256=hashlib.sha256(state_bytes(simulator.sim_state())).hexdigest(),
            state_hashes=tuple(episode.state_hashes),
            wall_s=round(wall_s, 4),
            instruction=simulator.instruction,
            detail=detail,
            made_with=settings.made_with,
            info={
                **files,
                "gate_mean": episode.gate_mean(),
                **({} if settings.is_plain else {"holds": episode.n_holds}),
                # What depends on the machine and the moment, kept apart from what does not.
                "run": {
                    "attempt": attempt,
                    "build_s": round(built_s, 4),
                    "reset_s": round(reset_s, 4),
                    "simulate_s": round(episode.simulate_s, 4),
                    "wait_ms": [round(ms, 2) for ms in episode.wait_ms],
                    "policy_ms": [
                        {k: round(float(v), 2) for k, v in t.items()} for t in episode.policy_ms
                    ],
                },
            },
        )

    def _until_next_question(
        self, ticks: range, arrivals: dict[int, tuple[int, ActionChunk]], *, gripper: float
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the actions (n, size) until the policy is asked again, and which of them hold.

        Answers arrive meanwhile; they do not depend on what the simulator does, so all steps can be
        handed to it at once and nothing is drawn that nobody looks at.
        """
        schedule, spec = self._schedule, self._settings.action_spec
        actions: list[NDArray[np.float32]] = []
        is_held: list[bool] = []
        for tick in ticks:
            if tick in arrivals:
                asked, chunk = arrivals.pop(tick)
                schedule.accept(chunk, asked=asked, now=tick)
            if actions and schedule.should_ask(tick):
                break
            action = schedule.next(tick)
            is_held.append(action is None)
            if action is None:
                action = hold_action(spec, gripper=gripper)
            actions.append(action)
            gripper = float(action[-1])
        return np.stack(actions), np.array(is_held)

    def _simulator_for(self, key: EpisodeKey) -> Simulator:
        """Return the task's simulator; building one costs seconds and gigabytes, so one is kept."""
        task = (key.suite, key.task_id)
        if self._simulator is not None and self._task == task:
            return self._simulator
        self.close()
        simulator = self._settings.make_simulator(suite=key.suite, task_id=key.task_id)
        problems = self._settings.action_spec.disagreements(
            simulator.action_spec, ours="the policy", theirs="the simulator"
        )
        if problems:
            raise ContractError("policy and simulator disagree: " + "; ".join(problems))
        self._simulator, self._task = simulator, task
        return simulator

    def _write(
        self, job: Job, episode: _Recorder, outcome: Outcome, folder: Path
    ) -> dict[str, str]:
        settings = self._settings
        steps = episode.trace()
        files = {"trace": f"{TRACES}/{job.name}.npz", "trace_sha256": steps.sha256()}
        steps.save(folder / files["trace"])
        trace = GateTrace.of(
            [g for g in episode.chunk_gates if g is not None], episode.chunk_images
        )
        if trace is not None:
            files["gates"] = f"{GATES}/{job.name}.npz"
            trace.save(folder / files["gates"])
        if settings.video != "none":
            files["video"] = f"{VIDEOS}/{job.name}.mp4"
            frames = film(
                episode.images,
                episode.gates,
                cameras=settings.cameras or CAMERAS,
                outcome=outcome,
                draw_gate=settings.draw_gate,
            )
            rate_hz = settings.action_spec.rate_hz
            fps = round(rate_hz) if settings.video == "all" else CHUNK_FPS
            write_mp4(folder / files["video"], frames, fps=fps)
        return files


def _number(name: str) -> int:
    """Return 63 bits that stand for a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def _question(
    observation: Mapping[str, Any], simulator: Simulator, chunk_index: int, *, name: int
) -> Ask:
    seen = Observation(
        images={c: np.asarray(observation[c]) for c in CAMERAS},
        proprio=np.asarray(observation["proprio"], dtype=np.float32),
        instruction=simulator.instruction,
        episode=name,
        inference=chunk_index,
    )
    return Ask(seen, chunk_index)


@dataclass(eq=False)
class _Recorder:
    """What is kept of an episode while it runs."""

    simulator: Simulator
    video: VideoMode
    images: list[dict[str, NDArray[np.uint8]]] = field(default_factory=list)
    """Frames of the video."""
    gates: list[Mapping[str, NDArray[np.float32]] | None] = field(default_factory=list)
    """One per frame: the gate of the inference that led to it; the first frame has the first."""
    seen: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    """The latest images."""
    chunk_images: list[dict[str, NDArray[np.uint8]]] = field(default_factory=list)
    chunk_gates: list[Mapping[str, NDArray[np.float32]] | None] = field(default_factory=list)
    policy_ms: list[Mapping[str, float]] = field(default_factory=list)
    wait_ms: list[float] = field(default_factory=list)
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    """Of the state after each control step."""
    counts: list[int] = field(default_factory=list)
    """Control steps of each chunk."""
    state_hashes: list[str] = field(default_factory=list)
    simulate_s: float = 0.0
    n_steps: int = 0
    n_chunks: int = 0
    n_holds: int = 0
    """Control steps for which there was no action."""

    def __post_init__(self) -> None:
        """Keep the state the first inference sees."""
        self.state_hashes.append(f"{state_digest(self.simulator.sim_state()):016x}")

    def see(self, observation: Mapping[str, Any]) -> None:
        """Keep the images of an observation, as the next frame where there is a video."""
        self.seen = {c: np.asarray(observation[c], dtype=np.uint8) for c in CAMERAS}
        if self.video != "none":
            self.images.append(self.seen)
            self.gates.append(self.chunk_gates[-1] if self.chunk_gates else None)

    def asked(self, chunk: ActionChunk) -> None:
        """Keep the answer to what was seen last."""
        self.chunk_images.append(self.seen)
        self.chunk_gates.append(chunk.gate)
        if self.video != "none":
            # The picture the policy saw carries the gate it answered with.
            self.gates[-1] = chunk.gate
        self.policy_ms.append(chunk.timing_ms)
        self.n_chunks += 1

    def apply(
        self, actions: NDArray[np.float32], *, is_held: NDArray[np.bool_]
    ) -> tuple[dict[str, Any], bool, bool]:
        """Apply actions; return the observation, whether the task succeeded and whether it ended.

        One call per inference renders one picture; one call per action renders them all, and moves
        the simulator just the same. Without a video nobody looks at where an episode ended.
        """
        has_video = self.video != "none"
        started = time.perf_counter()
        observation: dict[str, Any] = {}
        succeeded = is_over = False
        before = self.n_steps
        for part in np.split(actions, len(actions)) if self.video == "all" else [actions]:
            observation, _, succeeded, is_over, info = self.simulator.step_chunk(
                part, look_when_over=has_video
            )
            self.n_steps += int(info["n_steps"])
            self.digests += [state_digest(state) for state in info["states"]]
            if has_video or not (succeeded or is_over):
                self.see(observation)
            if succeeded or is_over:
                break
        self.simulate_s += time.perf_counter() - started
        self.counts.append(self.n_steps - before)
        self.actions.append(actions[: self.counts[-1]])
        self.n_holds += int(is_held[: self.counts[-1]].sum())
        self.state_hashes.append(f"{self.digests[-1]:016x}")
        return observation, bool(succeeded), bool(is_over)

    def trace(self) -> Trace:
        """Return what a replay needs."""
        return Trace.of(actions=self.actions, digests=self.digests, counts=self.counts)

    def gate_mean(self) -> dict[str, list[float]]:
        """Return the mean gate per camera at every inference; empty without a gate."""
        gates = [g for g in self.chunk_gates if g is not None]
        cameras = list(gates[0]) if gates else []
        return {c: [round(float(np.mean(g[c])), 5) for g in gates] for c in cameras}


def main(parent: int, pipe_descriptor: int, board_descriptor: int) -> None:
    """Serve on an inherited pipe until told to stop or until the other side is gone."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
    # Ctrl-C reaches the whole process group; the inference loop decides when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)
    pipe: Connection[Any, Any] = Connection(pipe_descriptor)
    board = FrameBoard(board_descriptor)
    with contextlib.suppress(LoopGone):
        try:
            settings: WorkerSettings = _hear(pipe)
        except (ImportError, AttributeError) as error:
            detail = f"the simulator cannot be imported in its process: {error}"
            _say(pipe, Broken(detail, "contract"))
            return
        _serve(pipe, board, settings)


def _serve(
    pipe: Connection[FromWorker, ToWorker], board: FrameBoard, settings: WorkerSettings
) -> None:
    """Play what is asked for until told to stop.

    Raises:
        LoopGone: There is nobody to ask any more.
    """

    def ask(_job: Job, question: Ask) -> Answer | Faulted:
        seen = question.observation
        frames = board.write(seen.images)
        shown = Shown(
            frames, seen.proprio, seen.instruction, question.chunk_index, episode=seen.episode
        )
        _say(pipe, shown)
        match _hear(pipe):
            case Answer() | Faulted() as reply:
                return reply
            case Run() | Stop() as other:
                raise RuntimeError(f"asked for a chunk, got {other!r}")

    worker = Worker(settings=settings, ask=ask)
    while isinstance(order := _hear(pipe), Run):
        said = worker.attempt(order)
        _say(pipe, said)
        if isinstance(said, Broken):
            return
    worker.close()


_Heard = TypeVar("_Heard")
_GONE = (EOFError, BrokenPipeError, ConnectionResetError)


def _say(pipe: Connection[Any, Any], message: object) -> None:
    try:
        pipe.send(message)
    except _GONE as error:
        raise LoopGone from error


def _hear(pipe: Connection[Any, _Heard]) -> _Heard:
    try:
        return pipe.recv()
    except _GONE as error:
        raise LoopGone from error
