"""Who plays what next, and when an episode is given up; the same for every engine."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from vega_policy.rollout.messages import Missing, Run
from vega_policy.spec import EnvFault

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from vega_policy.rollout.plan import Job
    from vega_policy.spec import EpisodeResult

log = logging.getLogger(__name__)

Task = tuple[str, int]
OnFault: TypeAlias = "Callable[[Job, int, str], None]"


class Engine(Protocol):
    """Plays episodes."""

    def run(self, jobs: Iterable[Job]) -> Generator[EpisodeResult | Missing]:
        """Play the episodes and yield each as it ends, in no particular order.

        Close the iterator (`contextlib.closing`) to end early.

        Raises:
            ContractError: The user has to act (a library is missing, policy and simulator disagree).
            EnvFault: Simulators break one after the other without finishing an episode.
            StorageFault: A disk refuses.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How the work is spread; nothing here changes a row."""

    n_workers: int
    """Simulator processes alive at a time."""
    max_batch: int = 16
    """Observations answered in one call of the policy. On a GPU 1 makes rows independent of who was
    asked together, to the last bit; on a CPU they are so anyway."""
    max_delay_ms: float = 5.0
    """Longest an observation waits for others to join its batch. A batch also goes as soon as
    every live worker is waiting."""
    max_restarts: int = 3
    """How often an episode is tried again after its simulator broke."""
    timeout_s: float = 180.0
    """A worker that says nothing for so long, while it is its turn, is taken for hung."""


def task_of(job: Job) -> Task:
    """Return what a worker keeps a simulator for."""
    return (job.key.suite, job.key.task_id)


class JobQueue:
    """Episodes left to play, by task, since building a task's simulator is what costs."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._tasks: dict[Task, list[Job]] = {}
        for job in jobs:
            self.put_back(job)

    def __len__(self) -> int:
        return sum(len(jobs) for jobs in self._tasks.values())

    def put_back(self, job: Job) -> None:
        """Add an episode at the end of its task."""
        self._tasks.setdefault(task_of(job), []).append(job)

    def take(self, current: Task | None, taken: set[Task | None]) -> Job | None:
        """Take an episode: of the current task, else of one nobody plays, else of the longest."""
        if current not in self._tasks:
            free = [task for task in self._tasks if task not in taken]
            current = max(free or self._tasks, key=lambda t: len(self._tasks[t]), default=None)
        if current is None:
            return None
        jobs = self._tasks[current]
        job = jobs.pop(0)
        if not jobs:
            del self._tasks[current]
        return job


class Attempts:
    """Counts how often each episode was tried, and says when to give up."""

    def __init__(
        self, queue: JobQueue, settings: EngineSettings, on_fault: OnFault | None, *, where: object
    ) -> None:
        """Start counting.

        Args:
            queue: Where an episode that broke goes back to.
            settings: Holds the limits.
            on_fault: Called with job, attempt and message whenever a simulator breaks.
            where: Where the user finds what the workers wrote.
        """
        self._queue = queue
        self._settings = settings
        self._on_fault = on_fault
        self._where = where
        self._tries: Counter[Job] = Counter()
        self._n_faults_in_a_row = 0

    def start(self, job: Job) -> Run:
        """Return the order to play an episode, once more where it was played before."""
        self._tries[job] += 1
        return Run(job, self._tries[job])

    def ended(self) -> None:
        """Note that an episode came to its end."""
        self._n_faults_in_a_row = 0

    def broke(self, run: Run, detail: str) -> Missing | None:
        """Put an episode back whose simulator broke, or return what is left of it.

        Raises:
            EnvFault: Nothing but faults for a while.
        """
        log.warning("%s, attempt %d: %s", run.job.name, run.attempt, detail)
        if self._on_fault is not None:
            self._on_fault(run.job, run.attempt, detail)
        self._n_faults_in_a_row += 1
        limit = (1 + self._settings.max_restarts) * max(2, self._settings.n_workers)
        if self._n_faults_in_a_row >= limit:
            raise EnvFault(
                f"the simulator broke {limit} times in a row, last: {detail}; the workers' output "
                f"is in {self._where}"
            )
        if run.attempt > self._settings.max_restarts:
            return Missing(run.job, detail)
        self._queue.put_back(run.job)
        return None
