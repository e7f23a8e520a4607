"""Many questions, one policy: batches what waits, in a thread beside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from vega_policy.control import require_valid_chunk
from vega_policy.spec import ActionChunk, Observation, PolicyFault, VegaError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vega_policy.spec import Policy

log = logging.getLogger(__name__)


class QueueFull(VegaError):
    """There are as many questions waiting as are allowed; ask again later."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Answered:
    """A chunk, and what it took."""

    chunk: ActionChunk
    queue_s: float
    """From the question to the start of its inference."""
    infer_s: float
    batch: int
    """Observations that were answered in the same call."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _Question:
    observation: Observation
    key: int
    answer: asyncio.Future[Answered]
    asked_s: float


@dataclass(frozen=True, eq=False, kw_only=True)
class _Work:
    batch: list[_Question]
    results: asyncio.Future[list[ActionChunk | Exception]]

    def deliver(self, results: list[ActionChunk | Exception]) -> None:
        if not self.results.done():
            self.results.set_result(results)


class Batcher:
    """Asks the policy in one thread; the event loop never waits for it.

    A batch goes when it is full, when its first question has waited ``max_delay_s``, or when there
    is nobody else who could ask; while the policy computes, the next one gathers. A question whose asker
    is gone is not computed.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_batch: int,
        max_delay_s: float,
        max_waiting: int,
        n_askers: Callable[[], int],
    ) -> None:
        self._policy = policy
        self._n_askers = n_askers
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._max_waiting = max_waiting
        self._waiting: deque[_Question] = deque()
        self._came = asyncio.Event()
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        # Not an executor's thread, for which the end of the process would wait: one that hangs in
        # a driver must not keep a server from ending.
        self._thread = threading.Thread(target=self._compute, name="inference", daemon=True)
        self._task: asyncio.Task[None] | None = None

    @property
    def n_waiting(self) -> int:
        """Questions that are not being computed yet."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to answer; called in the event loop."""
        self._thread.start()
        self._task = asyncio.create_task(self._run(), name="batcher")

    async def close(self) -> None:
        """End; open questions are cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for question in self._waiting:
            question.answer.cancel()
        self._waiting.clear()
        self._work.put(None)

    async def ask(self, observation: Observation, *, key: int) -> Answered:
        """Return the answer; cancelling this call withdraws the question.

        Raises:
            QueueFull: Too many are waiting.
            ContractError: The observation is not what the policy was trained with.
            PolicyFault: It raised, or answered with what must not reach a motor.
        """
        if len(self._waiting) >= self._max_waiting:
            raise QueueFull(
                f"{len(self._waiting)} requests are waiting already; ask less often, or start "
                "another server"
            )
        question = _Question(
            observation=observation,
            key=key,
            answer=asyncio.get_running_loop().create_future(),
            asked_s=time.perf_counter(),
        )
        self._waiting.append(question)
        self._came.set()
        try:
            return await question.answer
        except asyncio.CancelledError:
            with contextlib.suppress(ValueError):  # it may be computed already
                self._waiting.remove(question)  # else those who left would keep others out
            raise

    async def _run(self) -> None:
        while True:
            batch = await self._gather()
            if not batch:
                continue
            started_s = time.perf_counter()
            work = _Work(batch=batch, results=asyncio.get_running_loop().create_future())
            self._work.put(work)
            results = await work.results
            infer_s = time.perf_counter() - started_s
            for question, result in zip(batch, results, strict=True):
                if question.answer.done():  # its asker left meanwhile
                    continue
                if isinstance(result, ActionChunk):
                    answered = Answered(
                        chunk=result,
                        queue_s=started_s - question.asked_s,
                        infer_s=infer_s,
                        batch=len(batch),
                    )
                    question.answer.set_result(answered)
                else:
                    question.answer.set_exception(result)

    async def _gather(self) -> list[_Question]:
        """Wait for questions and take a batch of those that are still wanted."""
        while not self._waiting:
            self._came.clear()
            await self._came.wait()
        deadline = self._waiting[0].asked_s + self._max_delay_s
        while len(self._waiting) < min(self._max_batch, self._n_askers()):
            left_s = deadline - time.perf_counter()
            if left_s <= 0:
                break
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), left_s)
            except TimeoutError:
                break
        batch: list[_Question] = []
        while self._waiting and len(batch) < self._max_batch:
            question = self._waiting.popleft()
            if not question.answer.done():
                batch.append(question)
        return batch

    def _compute(self) -> None:
        """Answer batches, in the inference thread."""
        while (work := self._work.get()) is not None:
            results = self._infer(work.batch)
            with contextlib.suppress(RuntimeError):  # the event loop ended meanwhile
                work.results.get_loop().call_soon_threadsafe(work.deliver, results)

    def _infer(self, batch: Sequence[_Question]) -> list[ActionChunk | Exception]:
        """Answer in the inference thread; what breaks a batch is found by asking one by one."""
        try:
            chunks = self._policy.act([q.observation for q in batch], keys=[q.key for q in batch])
            if len(chunks) != len(batch):
                raise PolicyFault(
                    f"the policy answered {len(batch)} observations with {len(chunks)} chunks"
                )
            for chunk in chunks:
                require_valid_chunk(chunk, self._policy.action_spec)
        except VegaError as error:
            return self._singly(batch) if len(batch) > 1 else [error]
        except Exception as error:  # the request boundary: a failed answer, not a dead server
            if len(batch) > 1:
                return self._singly(batch)
            log.exception("the policy failed")
            return [PolicyFault(f"the policy raised {type(error).__name__}: {error}")]
        return list(chunks)

    def _singly(self, batch: Sequence[_Question]) -> list[ActionChunk | Exception]:
        return [result for question in batch for result in self._infer([question])]
