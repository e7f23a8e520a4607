"""Watches in a thread of its own that commands keep coming, whatever else is stuck."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

Freshness = Literal["fresh", "hold", "stop"]


class Watchdog:
    """No fresh command for a while: hold; for longer: stop, until a person re-arms.

    Before the first command it says ``hold``: nothing moves yet, so there is nothing to end.
    """

    def __init__(
        self,
        *,
        hold_after_s: float,
        stop_after_s: float,
        on_hold: Callable[[], None] | None = None,
        on_stop: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; `poll` works at once, `start` has a thread call it.

        Args:
            hold_after_s: Without a command for so long, ``on_hold`` is called, once.
            stop_after_s: The same with ``on_stop``, after which commands change nothing.
            on_hold: Called in the thread that polls; returns quickly.
            on_stop: Likewise.
            clock: Seconds, never going back.
        """
        self._hold_after_s = hold_after_s
        self._stop_after_s = stop_after_s
        self._on_hold = on_hold
        self._on_stop = on_stop
        self._clock = clock
        self._lock = threading.Lock()
        self._last_s: float | None = None
        self._state: Freshness = "hold"
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def fed(self) -> None:
        """Note a fresh command; without effect once stopped."""
        with self._lock:
            self._last_s = self._clock()
            if self._state != "stop":
                self._state = "fresh"

    def rearm(self) -> None:
        """Leave the stop, because a person said so; counts from now."""
        with self._lock:
            self._last_s = self._clock()
            self._state = "fresh"

    def poll(self) -> Freshness:
        """Return the state now, and tell whom it concerns where it just got worse."""
        tell: Callable[[], None] | None = None
        with self._lock:
            if self._last_s is not None and self._state != "stop":
                silent_s = self._clock() - self._last_s
                if silent_s >= self._stop_after_s:
                    self._state, tell = "stop", self._on_stop
                elif silent_s >= self._hold_after_s and self._state == "fresh":
                    self._state, tell = "hold", self._on_hold
            state = self._state
        if tell is not None:
            tell()
        return state

    def start(self) -> None:
        """Poll in a thread until `close`, four times per ``hold_after_s``."""
        if self._thread is not None:
            raise ValueError("the watchdog runs already")
        self._closing.clear()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; not from a callback of the watchdog."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._closing.wait(self._hold_after_s / 4):
            try:
                self.poll()
            except Exception:  # the last one who watches must not die of a failed callback
                log.exception("what the watchdog called failed")
