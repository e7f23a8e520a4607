"""A link to a policy that runs in a thread: of this process, or a client's that waits for it."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vega_policy.control.link import Reply, Seen
from vega_policy.spec import Observation

if TYPE_CHECKING:
    from collections.abc import Callable

    from vega_policy.spec import ActionChunk, ActionSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Question:
    """Asked; who holds the same object may answer it."""

    observation: Observation
    tick: int
    key: int
    asked_s: float


class ThreadLink:
    """Runs ``act`` in one thread, one question at a time; see `vega_policy.control.link.Link`.

    An answer that comes after its time-out or after `reset` belongs to a question that is not
    open any more and is dropped. While the thread is still busy with such a one, the next
    question waits behind it, with its own time-out running.
    """

    def __init__(
        self,
        act: Callable[[Observation, int], ActionChunk],
        *,
        action_spec: ActionSpec,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the thread.

        Args:
            act: Called with an observation and the key of its random draws, which counts up over
                the life of the link; what it raises is a failed inference.
            action_spec: What the numbers of its chunks mean.
            timeout_s: After so long a question counts as failed.
            clock: Seconds, never going back.
        """
        self._act = act
        self._action_spec = action_spec
        self._timeout_s = timeout_s
        self._clock = clock
        self._changed = threading.Condition()
        self._open: _Question | None = None
        """The question the loop waits for."""
        self._next: _Question | None = None
        """The question the thread has not begun."""
        self._reply: Reply | None = None
        self._key = 0
        self._is_closed = False
        self._begin_episode()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @property
    def action_spec(self) -> ActionSpec:
        """What the numbers of the chunks mean."""
        return self._action_spec

    def ask(self, seen: Seen, *, tick: int) -> None:
        """See `vega_policy.control.link.Link.ask`; names the episode where nobody did."""
        with self._changed:
            if self._is_closed:
                raise ValueError("asked a link that is closed")
            if self._open is not None:
                raise ValueError(f"the question of tick {self._open.tick} is still open")
            observation = seen.observation
            if observation.episode is None:
                observation = replace(
                    observation, episode=self._episode, inference=self._n_inferences
                )
            self._open = self._next = _Question(
                observation=observation, tick=tick, key=self._key, asked_s=self._clock()
            )
            self._key += 1
            self._n_inferences += 1
            self._changed.notify_all()

    def poll(self) -> Reply | None:
        """See `vega_policy.control.link.Link.poll`."""
        with self._changed:
            question, reply = self._open, self._reply
            if question is None:
                return None
            if reply is None:
                waited_s = self._clock() - question.asked_s
                if waited_s < self._timeout_s:
                    return None
                detail = f"no answer within {self._timeout_s:g} s"
                reply = Reply(tick=question.tick, chunk=None, detail=detail, latency_s=waited_s)
            self._forget()
            return reply

    def reset(self) -> None:
        """See `vega_policy.control.link.Link.reset`."""
        with self._changed:
            self._forget()
            self._begin_episode()

    def close(self) -> None:
        """End the thread; one that is stuck in ``act`` ends with it, or with the process."""
        with self._changed:
            self._is_closed = True
            self._forget()
            self._changed.notify_all()
        self._thread.join(timeout=1.0)

    def _forget(self) -> None:
        self._open = self._next = self._reply = None

    def _begin_episode(self) -> None:
        # A name, not a seed: a server tells the episodes of all its robots apart by it.
        self._episode = uuid.uuid4().int >> 65
        self._n_inferences = 0

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._next is not None)
                question, self._next = self._next, None
            if question is None:
                return
            reply = self._answer(question)
            with self._changed:
                if self._open is question:
                    self._reply = reply

    def _answer(self, question: _Question) -> Reply:
        chunk: ActionChunk | None = None
        detail = ""
        try:
            chunk = self._act(question.observation, question.key)
        except Exception as error:  # the request boundary: a failed inference, not a dead loop
            detail = f"{type(error).__name__}: {error}"
            log.debug("inference failed", exc_info=True)
        return Reply(
            tick=question.tick,
            chunk=chunk,
            detail=detail,
            latency_s=self._clock() - question.asked_s,
        )
