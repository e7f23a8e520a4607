"""A recorded episode played again, to see whether it happens again.

A replay is a rollout of one episode into a folder of its own, by the worker that made the record
and with its environment variables; only then the two records are compared. Who answers is either
the recording itself, which tests the simulator, or the policy, which tests both.
"""

from __future__ import annotations

import difflib
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vega_policy.rollout.engine import EngineSettings, LocalEngine
from vega_policy.rollout.evaluate import made_with, schedule_of
from vega_policy.rollout.ledger import RunHeader, job_of, read_header, read_rows
from vega_policy.rollout.messages import Missing, WorkerSettings
from vega_policy.rollout.plan import inference_key
from vega_policy.rollout.provenance import commit, host, versions
from vega_policy.rollout.trace import Trace
from vega_policy.spec import (
    ActionChunk,
    ActionSpec,
    ContractError,
    EnvFault,
    EpisodeKey,
    EpisodeResult,
    Policy,
    PolicyFault,
    Simulator,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

log = logging.getLogger(__name__)

Mode = Literal["actions", "policy"]
"""Who answers: the recording, or the policy."""
Kind = Literal["record", "start", "actions", "state", "end"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first thing that is not as recorded."""

    kind: Kind
    """``record``: row and trace contradict each other, one was changed afterwards, and nothing was
    played. ``start``: the state after the reset. ``actions``: the policy answered something else.
    ``state``: the simulator moved elsewhere. ``end``: all states agree, yet the episode ended
    otherwise."""
    step: int | None
    """Control steps applied when it shows; 0 is the reset. None where no step can be named."""
    chunk: int | None
    """The inference it belongs to, counted from 0."""
    recorded: str
    here: str
    meaning: str
    """One sentence for the user."""

    def __str__(self) -> str:
        """Say where, what, and what was found."""
        where = "" if self.step is None else f" at step {self.step}"
        where += "" if self.chunk is None else f" (chunk {self.chunk})"
        return f"{self.kind}{where}: {self.meaning}; recorded {self.recorded}, here {self.here}"


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a replay showed."""

    episode: str
    mode: Mode
    steps: int
    """Control steps whose states were compared and agree."""
    chunks: int
    """Chunks played here."""
    outcome: str
    """Here; empty where nothing was played."""
    first_difference: Difference | None
    is_repeatable: bool | None
    """Whether a second replay gave the states of the first; None where it was not needed."""
    made_with: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """What differs between the record's making and here: version, processor; recorded, here."""
    video: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether everything was as recorded."""
        return self.first_difference is None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "episode": self.episode,
            "mode": self.mode,
            "steps": self.steps,
            "chunks": self.chunks,
            "outcome": self.outcome,
            "agrees": self.agrees,
            "first_difference": self.first_difference and asdict(self.first_difference),
            "is_repeatable": self.is_repeatable,
            "made_with": {name: list(pair) for name, pair in self.made_with.items()},
            "video": self.video,
        }


def find_episode(run_dir: Path, name: str) -> tuple[EpisodeResult, Trace]:
    """Return row and trace of an episode.

    Raises:
        ContractError: There is no such run or episode, or its trace is missing or damaged.
    """
    rows = {row.name: row for row in read_rows(run_dir)}
    if name not in rows:
        close = difflib.get_close_matches(name, rows, n=1, cutoff=0.3) or list(rows)[:1]
        advice = f"did you mean {close[0]!r}?" if close else "the ledger is empty"
        raise ContractError(f"unknown episode {name!r} of {run_dir} ({len(rows)} rows); {advice}")
    row = rows[name]
    path = run_dir / str(row.info.get("trace", f"traces/{name}.npz"))
    try:
        return row, Trace.load(path)
    except FileNotFoundError as error:
        raise ContractError(
            f"{name} has no trace at {path}; copy the run's traces/ folder beside its ledger, or "
            "play the episode again in a new run"
        ) from error
    except Exception as error:  # NumPy raises half a dozen types for a damaged archive
        raise ContractError(
            f"{path} is damaged ({type(error).__name__}: {error}); restore it from a copy of the "
            "run, or play the episode again in a new run"
        ) from error


def replay(
    run_dir: Path,
    episode: str,
    *,
    make_simulator: Callable[..., Simulator],
    action_spec: ActionSpec,
    policy: Policy | None = None,
    checkpoint_sha256: str | None = None,
    video: Path | None = None,
    timeout_s: float = 180.0,
) -> Replay:
    """Play a recorded episode again and compare every step.

    Args:
        run_dir: The run it was recorded in; only read.
        episode: `EpisodeResult.name`.
        make_simulator: See `WorkerSettings.make_simulator`; with the run's image size.
        action_spec: What the recorded numbers mean.
        policy: Asked again with the same keys, its actions compared too; None applies the
            recorded actions.
        checkpoint_sha256: Of the policy, to be compared with the record's.
        video: Every control step is rendered and filmed into this file.
        timeout_s: A simulator that says nothing for so long is taken for hung.

    Raises:
        ContractError: There is nothing to replay, or the simulator cannot be set up.
        EnvFault: The simulator broke.
    """
    header = read_header(run_dir)
    row, recorded = find_episode(run_dir, episode)
    schedule, latency_ms = schedule_of(header.defines)
    if policy is None and (schedule.name != "open_loop" or latency_ms):
        raise ContractError(
            f"{run_dir} was made with schedule {schedule.name} and {latency_ms:g} ms of latency, whose "
            "actions are no whole chunks; replay it with the policy (mode=policy)"
        )
    if video is not None and video.suffix != ".mp4":
        raise ContractError(f"video is {video}; name a file that ends in .mp4")
    mode: Mode = "actions" if policy is None else "policy"
    differs = _differs(row, header, checkpoint_sha256=checkpoint_sha256)
    altered = check_record(row, recorded)
    if altered is not None:
        return Replay(
            episode=episode,
            mode=mode,
            steps=0,
            chunks=0,
            outcome="",
            first_difference=altered,
            is_repeatable=None,
            made_with=differs,
        )
    answering = policy or _Recording(key=row.key, trace=recorded, action_spec=action_spec)
    stage = _Stage(
        row=row,
        policy=answering,
        make_simulator=make_simulator,
        header=header,
        timeout_s=timeout_s,
        draws_gate=policy is not None,
    )
    again, trace = stage.play(video)
    difference = compare(row, recorded, again, trace)
    is_repeatable = None
    if difference is not None:
        is_repeatable = stage.play(None)[1].sha256() == trace.sha256()
        difference = replace(
            difference, meaning=_explain(difference, differs, is_repeatable=is_repeatable)
        )
    return Replay(
        episode=episode,
        mode=mode,
        steps=_n_equal(recorded.digests, trace.digests),
        chunks=len(trace.counts),
        outcome=again.outcome,
        first_difference=difference,
        is_repeatable=is_repeatable,
        made_with=differs,
        video=None if video is None else str(video),
    )


def check_record(row: EpisodeResult, trace: Trace) -> Difference | None:
    """Compare an episode's row with its trace: what was changed after the fact shows here."""

    def altered(step: int | None, chunk: int | None, recorded: str, here: str) -> Difference:
        return Difference(
            kind="record",
            step=step,
            chunk=chunk,
            recorded=recorded,
            here=here,
            meaning="row and trace contradict each other: one of them was changed after it was "
            "written, so nothing was played",
        )

    shape = (row.n_steps, row.n_steps, row.n_chunks, row.n_steps)
    found = (len(trace.actions), len(trace.digests), len(trace.counts), int(trace.counts.sum()))
    if shape != found:
        words = "actions {}, digests {}, chunks {}, steps in chunks {}"
        return altered(None, None, words.format(*shape), words.format(*found))
    ends = np.cumsum(trace.counts)
    hashes = row.state_hashes[1:]
    for chunk, (end, recorded) in enumerate(zip(ends, hashes, strict=False)):
        here = f"{int(trace.digests[end - 1]):016x}"
        if here != recorded:
            return altered(int(end), chunk, recorded, here)
    last = f"{int(trace.digests[-1]):016x}" if len(trace.digests) else row.state_sha256[:16]
    if row.state_sha256[:16] != last:
        return altered(row.n_steps, row.n_chunks - 1, row.state_sha256[:16], last)
    expected = row.info.get("trace_sha256")
    if expected is not None and trace.sha256() != expected:
        return altered(None, None, f"trace {str(expected)[:16]}", f"trace {trace.sha256()[:16]}")
    return None


def compare(
    row: EpisodeResult, recorded: Trace, again: EpisodeResult, trace: Trace
) -> Difference | None:
    """Return the first difference between a record and a replay, None where there is none."""
    if row.state_hashes[:1] != again.state_hashes[:1]:
        return Difference(
            kind="start",
            step=0,
            chunk=0,
            recorded="".join(row.state_hashes[:1]),
            here="".join(again.state_hashes[:1]),
            meaning="the reset led to another state, before any action",
        )
    # What is asked of the simulator comes before what it answers.
    n = min(len(recorded.actions), len(trace.actions))
    other = np.flatnonzero((recorded.actions[:n] != trace.actions[:n]).any(axis=1))
    equal = _n_equal(recorded.digests, trace.digests)
    if len(other) and other[0] <= equal:
        at = int(other[0])
        size = float(np.abs(recorded.actions[at] - trace.actions[at]).max())
        return Difference(
            kind="actions",
            step=at + 1,
            chunk=_chunk_of(recorded, at),
            recorded=_numbers(recorded.actions[at]),
            here=_numbers(trace.actions[at]),
            meaning=f"the policy answered with other actions, by up to {size:.3g}",
        )
    if equal < min(len(recorded.digests), len(trace.digests)):
        return Difference(
            kind="state",
            step=equal + 1,
            chunk=_chunk_of(recorded, equal),
            recorded=f"{int(recorded.digests[equal]):016x}",
            here=f"{int(trace.digests[equal]):016x}",
            meaning="the same action led to another state",
        )
    ends = [
        f"{r.outcome} after {len(t.digests)} steps, {r.n_chunks} inferences"
        for r, t in ((row, recorded), (again, trace))
    ]
    if ends[0] != ends[1]:
        return Difference(
            kind="end",
            step=equal,
            chunk=None,
            recorded=ends[0],
            here=ends[1],
            meaning="every state agrees, yet the episode ended otherwise: the test for success or "
            "the step limit is another one",
        )
    return None


@dataclass(frozen=True, kw_only=True)
class _Recording:
    """A policy that answers what was answered before."""

    key: EpisodeKey
    trace: Trace
    action_spec: ActionSpec

    def act(self, batch: Sequence[object], *, keys: Sequence[int]) -> list[ActionChunk]:
        """Answer by the keys of the inferences alone; nothing is looked at."""
        places = {inference_key(self.key, i): i for i in range(len(self.trace.counts))}
        return [self._chunk(places.get(key)) for key, _ in zip(keys, batch, strict=True)]

    def _chunk(self, place: int | None) -> ActionChunk:
        if place is None:
            raise PolicyFault("the recording ends here")
        end = int(self.trace.counts[: place + 1].sum())
        actions = self.trace.actions[end - int(self.trace.counts[place]) : end]
        # A chunk is short where the episode ended in it; what follows is never applied.
        rest = self.action_spec.horizon - len(actions)
        return ActionChunk(actions=np.concatenate([actions, np.repeat(actions[-1:], rest, axis=0)]))


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """Plays one episode in a simulator process, into a folder that is thrown away."""

    row: EpisodeResult
    policy: Policy
    make_simulator: Callable[..., Simulator]
    header: RunHeader
    timeout_s: float
    draws_gate: bool

    def play(self, video: Path | None) -> tuple[EpisodeResult, Trace]:
        job, defines = job_of(self.row), self.header.defines
        schedule, latency_ms = schedule_of(defines)
        with tempfile.TemporaryDirectory(prefix="replay-") as folder:
            run_dir = Path(folder)
            engine = LocalEngine(
                policies={job.arm: self.policy},
                worker=WorkerSettings(
                    make_simulator=self.make_simulator,
                    action_spec=self.policy.action_spec,
                    run_dir=run_dir,
                    schedule=schedule,
                    latency_ms=latency_ms,
                    max_steps=defines.get("max_steps"),
                    video="none" if video is None else "all",
                    draw_gate=self.draws_gate,
                ),
                settings=EngineSettings(n_workers=1, max_restarts=0, timeout_s=self.timeout_s),
                log_dir=run_dir / "logs",
            )
            with closing(engine.run([job])) as outcomes:
                [outcome] = outcomes
            if isinstance(outcome, Missing):
                raise EnvFault(f"{job.name} cannot be replayed: {outcome.detail}")
            if video is not None:
                video.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(run_dir / str(outcome.info["video"]), video)
            return outcome, Trace.load(run_dir / str(outcome.info["trace"]))


def _differs(
    row: EpisodeResult, header: RunHeader, *, checkpoint_sha256: str | None
) -> dict[str, tuple[str, str]]:
    """Return what may explain a difference: recorded, here."""
    here = made_with(replace(header, versions=versions(), host=host(), commit=commit()))
    del here["checkpoint_sha256"]
    if checkpoint_sha256 is not None:
        here["checkpoint_sha256"] = checkpoint_sha256
    recorded = row.made_with or made_with(header)
    return {
        name: (recorded[name], value)
        for name, value in here.items()
        if name in recorded and recorded[name] != value
    }


def _explain(
    difference: Difference, differs: Mapping[str, tuple[str, str]], *, is_repeatable: bool
) -> str:
    parts = [difference.meaning]
    if not is_repeatable:
        parts.append("a second replay differed from the first, so something here is not repeatable")
    elif differs:
        listed = ", ".join(f"{name} {a or '?'} -> {b or '?'}" for name, (a, b) in differs.items())
        parts.append(f"a second replay agrees with the first; since the record changed: {listed}")
    else:
        parts.append(
            "a second replay agrees with the first, and versions and processor class are those of "
            "the record: look for changed files of the simulator, its assets or the policy"
        )
    return "; ".join(parts)


def _n_equal(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> int:
    """Return how many leading entries are equal."""
    n = min(len(a), len(b))
    other = np.flatnonzero(a[:n] != b[:n])
    return int(other[0]) if len(other) else n


def _chunk_of(trace: Trace, step: int) -> int:
    """Return the chunk the action at this place belongs to."""
    return int(np.searchsorted(np.cumsum(trace.counts), step, side="right"))


def _numbers(action: NDArray[np.float32]) -> str:
    return " ".join(f"{value:.6g}" for value in action)
