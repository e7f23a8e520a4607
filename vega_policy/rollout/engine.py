"""One inference loop, many simulator processes on this machine.

The loop sleeps until a process says something, batches the observations that are waiting, asks the
policy once, and sends the chunks back. Images come through shared memory, all else through a pipe
per process. An episode is the same whichever process plays it: its initial state, its seed and the
key of each inference come from its `EpisodeKey` alone.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import IO, TYPE_CHECKING

from vega_policy.control import require_valid_chunk
from vega_policy.rollout.frames import FrameBoard
from vega_policy.rollout.messages import (
    Answer,
    Ask,
    Broken,
    Done,
    Faulted,
    FromWorker,
    Missing,
    Run,
    Shown,
    Stop,
    ToWorker,
    WorkerSettings,
)
from vega_policy.rollout.plan import Job, inference_key
from vega_policy.rollout.schedule import (
    Attempts,
    EngineSettings,
    JobQueue,
    OnFault,
    Task,
    task_of,
)
from vega_policy.spec import (
    ContractError,
    EnvFault,
    EpisodeResult,
    Observation,
    PolicyFault,
    StorageFault,
)
from vega_policy.spec.processes import worker_environment

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from vega_policy.spec import ActionChunk, Policy

log = logging.getLogger(__name__)

_START = "import sys; from vega_policy.rollout.worker import main; main(*map(int, sys.argv[1:]))"


class LocalEngine:
    """Plays episodes in simulator processes and asks the policy in this one."""

    def __init__(
        self,
        *,
        policies: Mapping[str, Policy],
        worker: WorkerSettings,
        settings: EngineSettings,
        log_dir: Path,
        on_fault: OnFault | None = None,
    ) -> None:
        """Set up; processes start with `run`.

        Args:
            policies: By arm; called in the thread that iterates over `run`.
            worker: What every simulator process is told.
            settings: How the work is spread.
            log_dir: Each worker's output goes to a file in it.
            on_fault: Called with job, attempt and message whenever a simulator breaks.
        """
        self._policies = policies
        self._worker = worker
        self._settings = settings
        self._log_dir = log_dir
        self._on_fault = on_fault

    def run(self, jobs: Iterable[Job]) -> Generator[EpisodeResult | Missing]:
        """Play the episodes and yield each as it ends, in no particular order.

        Close the iterator (`contextlib.closing`) to end the processes early.

        Raises:
            ContractError: A worker found that the user has to act (a library is missing, policy
                and simulator disagree).
            EnvFault: Simulators break one after the other without finishing an episode.
            StorageFault: The disk refuses.
        """
        queue = JobQueue(jobs)
        room = min(self._settings.n_workers, len(queue))
        attempts = Attempts(queue, self._settings, self._on_fault, where=self._log_dir)
        session = _Session(self._settings, queue, attempts)
        try:
            for number in range(room):
                session.seats.append(
                    _Seat(number=number, settings=self._worker, log_dir=self._log_dir)
                )
            for seat in session.seats:
                session.employ(seat)
            while busy := [seat for seat in session.seats if seat.run is not None]:
                timeout_s = session.patience_s(busy)
                said = wait([seat.pipe for seat in busy], timeout_s)
                for seat in busy:
                    if seat.pipe in said:
                        yield from session.hear(seat)
                    elif seat.is_hung(self._settings.timeout_s):
                        detail = f"no sign of life for {self._settings.timeout_s:g} s"
                        yield from session.broke(seat, detail)
                if session.is_batch_due():
                    batch = session.take_batch()
                    answers = answer_arms(self._policies, [(b.job, b.ask) for b in batch])
                    for waiting, reply in zip(batch, answers, strict=True):
                        yield from session.say(waiting.seat, reply)
        finally:
            for seat in session.seats:
                seat.end()


def answer_arms(
    policies: Mapping[str, Policy], questions: Sequence[tuple[Job, Ask]]
) -> list[Answer | Faulted]:
    """Ask each arm's policy what concerns it; return the answers in the order of the questions."""
    answers: dict[int, Answer | Faulted] = {}
    for arm, policy in policies.items():
        mine = [i for i, (job, _) in enumerate(questions) if job.arm == arm]
        if mine:
            asks = [questions[i][1] for i in mine]
            keys = [inference_key(questions[i][0].key, questions[i][1].chunk_index) for i in mine]
            answers |= zip(mine, answer(policy, asks, keys), strict=True)
    return [answers[i] for i in range(len(questions))]


def answer(policy: Policy, asks: Sequence[Ask], keys: Sequence[int]) -> list[Answer | Faulted]:
    """Ask the policy about a batch; its errors become faults of the episodes they belong to.

    When a batch fails each observation is tried alone, so that one bad episode does not take the
    others with it.

    Raises:
        ContractError: The policy was trained with other observations.
        EnvFault: The machine failed and not the policy: no memory, a broken GPU, a file gone. No
            episode may count as failed for that.
    """
    try:
        chunks = policy.act([ask.observation for ask in asks], keys=keys)
        if len(chunks) != len(asks):
            raise PolicyFault(f"{len(chunks)} chunks for {len(asks)} observations")
    except ContractError:
        raise  # the user has to act, and every other episode would say the same
    except (EnvFault, MemoryError, OSError) as error:
        raise EnvFault(
            f"the machine failed while the policy was asked ({type(error).__name__}: {error}); no "
            "episode was counted for it, start the same command again to continue"
        ) from error
    except Exception as error:  # the episode boundary: re-classified as a policy fault
        if len(asks) > 1:
            return [
                reply
                for ask, key in zip(asks, keys, strict=True)
                for reply in answer(policy, [ask], [key])
            ]
        log.warning("the policy failed", exc_info=error)
        return [Faulted(f"{type(error).__name__}: {error}")]
    return [_checked(policy, chunk) for chunk in chunks]


def _checked(policy: Policy, chunk: ActionChunk) -> Answer | Faulted:
    try:
        require_valid_chunk(chunk, policy.action_spec)
    except PolicyFault as error:
        return Faulted(str(error))
    return Answer(chunk)


@dataclass(frozen=True, eq=False)
class _Waiting:
    seat: _Seat
    job: Job
    ask: Ask
    since_s: float


class _Session:
    """The state of one `LocalEngine.run`."""

    def __init__(self, settings: EngineSettings, queue: JobQueue, attempts: Attempts) -> None:
        self.seats: list[_Seat] = []
        self._settings = settings
        self._queue = queue
        self._attempts = attempts
        self._waiting: list[_Waiting] = []
        """In the order they asked."""

    def employ(self, seat: _Seat) -> None:
        """Give a free worker its next episode, one of the task it has loaded if there is one."""
        taken = {s.task for s in self.seats if s is not seat and s.run is not None}
        job = self._queue.take(seat.task, taken)
        if job is None:
            seat.dismiss()
            return
        seat.task = task_of(job)
        seat.run = self._attempts.start(job)
        seat.send(seat.run)

    def hear(self, seat: _Seat) -> Iterator[EpisodeResult | Missing]:
        """Take what a worker says."""
        try:
            message = seat.pipe.recv()
        except (EOFError, OSError):
            yield from self.broke(seat, seat.cause_of_death())
            return
        seat.heard_s = time.monotonic()
        run = seat.run
        match message:
            case Shown() as shown if run is not None:
                seat.is_waiting = True
                self._waiting.append(_Waiting(seat, run.job, seat.look(shown), seat.heard_s))
            case Done(result):
                self._attempts.ended()
                seat.run = None
                self.employ(seat)
                yield result
            case Broken(detail, "contract"):
                raise ContractError(detail)
            case Broken(detail, "storage"):
                raise StorageFault(detail)
            case Broken(detail):
                yield from self.broke(seat, detail)
            case _:
                raise RuntimeError(f"unexpected message {message!r}")

    def say(self, seat: _Seat, reply: Answer | Faulted) -> Iterator[EpisodeResult | Missing]:
        """Send a worker what it waits for."""
        seat.is_waiting = False
        seat.heard_s = time.monotonic()
        if not seat.send(reply):
            yield from self.broke(seat, seat.cause_of_death())

    def broke(self, seat: _Seat, detail: str) -> Iterator[Missing]:
        """Replace a worker whose simulator broke; its episode is tried again, up to a limit.

        Raises:
            EnvFault: Nothing but faults for a while.
        """
        run = seat.run
        self._waiting = [entry for entry in self._waiting if entry.seat is not seat]
        seat.restart()
        if run is None:
            return
        missing = self._attempts.broke(run, detail)
        if missing is not None:
            yield missing
        # A worker that went idle may be needed again for the episode that was put back.
        for free in [s for s in self.seats if s.run is None]:
            if len(self._queue):
                free.revive()
                self.employ(free)

    def patience_s(self, busy: Sequence[_Seat]) -> float:
        """Return how long the loop may sleep if nobody says anything."""
        now = time.monotonic()
        silent = [s.heard_s for s in busy if not s.is_waiting]
        ends = [min(silent) + self._settings.timeout_s] if silent else []
        if self._waiting:
            ends.append(self._waiting[0].since_s + self._settings.max_delay_ms / 1000)
        return max(0.0, min(ends) - now) if ends else 0.0

    def is_batch_due(self) -> bool:
        """Whether the policy should be asked now."""
        if not self._waiting:
            return False
        n_busy = sum(seat.run is not None for seat in self.seats)
        waited_ms = 1000 * (time.monotonic() - self._waiting[0].since_s)
        return (
            len(self._waiting) >= min(self._settings.max_batch, n_busy)
            or waited_ms >= self._settings.max_delay_ms
        )

    def take_batch(self) -> list[_Waiting]:
        """Take the observations that waited longest."""
        batch = self._waiting[: self._settings.max_batch]
        self._waiting = self._waiting[self._settings.max_batch :]
        return batch


class _Seat:
    """A place for one worker process; the process may be replaced."""

    def __init__(self, *, number: int, settings: WorkerSettings, log_dir: Path) -> None:
        self.log_path = log_dir / f"worker-{number}.log"
        self.run: Run | None = None
        self.task: Task | None = None
        self.is_waiting = False
        self.heard_s = 0.0
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._is_dismissed = False
        self.revive()

    def revive(self) -> None:
        """Start a process where there is none, or one that was dismissed."""
        if self._process is not None and not self._is_dismissed:
            return
        self._kill()
        ours, theirs = socket.socketpair()
        self._board = FrameBoard.make()
        self.pipe: Connection[ToWorker | WorkerSettings, FromWorker] = Connection(ours.detach())
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with theirs, self.log_path.open("ab") as output:
            self._process = _spawn([theirs.fileno(), self._board.descriptor], output)
        self.send(self._settings)

    def restart(self) -> None:
        """Kill the process and start another."""
        self._kill()
        self.revive()

    def send(self, message: ToWorker | WorkerSettings) -> bool:
        """Say something; False when nobody is there to hear it."""
        self.heard_s = time.monotonic()
        try:
            self.pipe.send(message)
        except OSError:
            return False
        return True

    def look(self, shown: Shown) -> Ask:
        """Return the question with the images as they lie in shared memory."""
        seen = Observation(
            images=self._board.read(shown.frames),
            proprio=shown.proprio,
            instruction=shown.instruction,
            episode=shown.episode,
            inference=shown.chunk_index,
        )
        return Ask(seen, shown.chunk_index)

    def is_hung(self, timeout_s: float) -> bool:
        """Whether it is the worker's turn and it has said nothing for too long."""
        return not self.is_waiting and time.monotonic() - self.heard_s > timeout_s

    def cause_of_death(self) -> str:
        """Say how the process ended, with the last line it wrote."""
        try:
            code = self._process.wait(timeout=5) if self._process is not None else 0
        except subprocess.TimeoutExpired:
            return "the simulator process closed its pipe without ending"
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        lines = self.log_path.read_text(errors="replace").strip().splitlines()
        tail = f": {lines[-1][:300]}" if lines and code > 0 else ""
        return f"the simulator process died ({how}){tail}"

    def dismiss(self) -> None:
        """Let an idle process end by itself, which frees its memory while others still work."""
        if self._process is not None and not self._is_dismissed:
            self._is_dismissed = True
            self.send(Stop())

    def end(self) -> None:
        """End the process: politely when it is idle, at once when it is in an episode."""
        if self._process is not None and self.run is None:
            self.dismiss()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                log.info("%s did not end when told to", self.log_path.stem)
        self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self.pipe.close()
            self._board.close()
        self._process, self._is_dismissed = None, False
        self.run, self.task, self.is_waiting = None, None, False


def _spawn(descriptors: list[int], output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", _START, str(os.getpid()), *map(str, descriptors)],
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=worker_environment(os.environ),
    )
