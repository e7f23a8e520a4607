"""What runs in the processes of a Ray cluster: policies and simulators."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vega_policy.rollout.engine import answer_arms
from vega_policy.rollout.ledger import FILES
from vega_policy.rollout.messages import Answer, Ask, Broken, Done, Faulted, Run, WorkerSettings
from vega_policy.rollout.plan import Job
from vega_policy.rollout.provenance import cpu_class, versions
from vega_policy.rollout.worker import Worker
from vega_policy.spec import ContractError, EnvFault, EpisodeResult, VegaError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vega_policy.rollout.schedule import EngineSettings
    from vega_policy.spec import Policy

log = logging.getLogger(__name__)

LOADING_S = 1800.0
"""Longest time for a checkpoint to load, or for an inference actor to be started elsewhere."""


@dataclass(frozen=True, eq=False)
class Played:
    """From a simulator actor: a finished episode."""

    result: EpisodeResult
    files: Mapping[str, bytes]
    """Content by path within the run."""


class InferenceActor:
    """Holds the policies; answers what is waiting, in batches bounded in size and delay."""

    def __init__(
        self, make_policies: Callable[[], Mapping[str, Policy]], settings: EngineSettings
    ) -> None:
        self._settings = settings
        self._waiting: list[_Question] = []
        self._n_clients = settings.n_workers
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._policies: Mapping[str, Policy] = {}
        self._problem: VegaError | None = None
        try:
            self._policies = make_policies()
        except VegaError as error:
            self._problem = error
        self._changed: asyncio.Event | None = None
        self._loop: asyncio.Task[None] | None = None

    async def problem(self) -> VegaError | None:
        """Return why there is no policy, once it is loaded or not."""
        return self._problem

    async def expect(self, n_clients: int) -> None:
        """Take note of how many simulators may ask at the same time."""
        self._n_clients = n_clients
        if self._changed is not None:
            self._changed.set()

    async def ask(self, job: Job, ask: Ask) -> Answer | Faulted | Broken:
        """Answer one observation, together with others that are waiting."""
        if self._changed is None:
            self._changed = asyncio.Event()
            self._loop = asyncio.create_task(self._serve(self._changed))
        question = _Question(job, ask)
        self._waiting.append(question)
        self._changed.set()
        return await question.reply

    async def _serve(self, changed: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while (patience_s := self._patience_s()) != 0.0:
                changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), patience_s)
            size = self._settings.max_batch
            batch, self._waiting = self._waiting[:size], self._waiting[size:]
            pairs = [(question.job, question.ask) for question in batch]
            try:
                replies: list[Any] = await loop.run_in_executor(
                    self._thread, answer_arms, self._policies, pairs
                )
            except ContractError as error:
                replies = [Broken(str(error), "contract")] * len(batch)
            except Exception as error:  # the request boundary: the episodes are tried again
                log.exception("the policy's process failed")
                replies = [Broken(f"{type(error).__name__}: {error}", "simulator")] * len(batch)
            for question, reply in zip(batch, replies, strict=True):
                if not question.reply.done():
                    question.reply.set_result(reply)

    def _patience_s(self) -> float | None:
        """Return how long a batch may still wait: 0 is not at all, None is for the next event."""
        if not self._waiting:
            return None
        if len(self._waiting) >= min(self._settings.max_batch, max(1, self._n_clients)):
            return 0.0
        waited_s = time.monotonic() - self._waiting[0].since_s
        return max(0.0, self._settings.max_delay_ms / 1000 - waited_s)


@dataclass(eq=False)
class _Question:
    job: Job
    ask: Ask
    since_s: float = field(default_factory=time.monotonic)
    reply: asyncio.Future[Any] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class SimulatorActor:
    """Plays episodes with the same `Worker` as a local process."""

    def __init__(self, settings: WorkerSettings, inference: Any, timeout_s: float) -> None:  # noqa: ANN401
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
        self._settings = settings
        self._inference = inference
        self._timeout_s = timeout_s
        self._worker: Worker | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def play(self, run: Run) -> Played | Broken:
        """Play one episode; after `Broken` the actor is of no more use."""
        if self._worker is None:
            others = _other_versions(self._settings.made_with)
            if others:
                return Broken(others, "contract")
            made_with = {**self._settings.made_with, "cpu_class": cpu_class()}
            settings = replace(self._settings, made_with=made_with)
            self._worker = Worker(settings=settings, ask=self._ask, folder=self._make_folder)
        self._set_alarm()
        try:
            said = self._worker.attempt(run)
            if not isinstance(said, Done):
                return said
            folder = self._make_folder()
            names = [said.result.info[kind] for kind in FILES if kind in said.result.info]
            return Played(said.result, {name: (folder / name).read_bytes() for name in names})
        finally:
            faulthandler.cancel_dump_traceback_later()
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    def _make_folder(self) -> Path:
        """Return a place for the files of the episode that ended, until they are sent."""
        if self._folder is None:
            # Not before: an actor may be killed at any moment of an episode.
            self._folder = tempfile.TemporaryDirectory(prefix="vega-episode-")
        return Path(self._folder.name)

    def _ask(self, job: Job, question: Ask) -> Answer | Faulted:
        import ray

        faulthandler.cancel_dump_traceback_later()
        reply: Any = ray.get(self._inference.ask.remote(job, question), timeout=LOADING_S)
        self._set_alarm()
        if isinstance(reply, Broken):
            raise (
                ContractError(reply.detail) if reply.cause == "contract" else EnvFault(reply.detail)
            )
        return reply

    def _set_alarm(self) -> None:
        """End this process when a call of the simulator hangs, even one that holds Python's lock."""
        faulthandler.dump_traceback_later(self._timeout_s, exit=True)


def _other_versions(made_with: Mapping[str, str]) -> str:
    """Return what is installed here and not where the run was started; "" if all is the same."""
    here = versions()
    others = [
        f"{name} is {version}, the run has {made_with[name]}"
        for name, version in here.items()
        if name in made_with and made_with[name] != version
    ]
    return (
        f"node {os.uname().nodename} cannot take part: {'; '.join(others)}; install the same there"
        if others
        else ""
    )
