"""The emergency stop: anybody presses it, it stays pressed until a person releases it.

Software only, not safety-rated: beside an arm there has to be a button that cuts its power.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


class EmergencyStop:
    """A latch; every method may be called from every thread."""

    def __init__(self) -> None:
        """Start released."""
        self._lock = threading.RLock()  # pressed by a signal handler, it may be held here
        self._reason = ""
        self._n_presses = 0
        self._is_pressed = threading.Event()
        self._callbacks: list[Callable[[bool, str], None]] = []

    @property
    def is_pressed(self) -> bool:
        """Whether nothing may move."""
        return self._is_pressed.is_set()

    @property
    def n_presses(self) -> int:
        """How often it was pressed while released: who looks seldom sees a press that is over."""
        return self._n_presses

    @property
    def reason(self) -> str:
        """Why and by whom it was pressed first; empty while released."""
        return self._reason

    def press(self, reason: str, by: str) -> None:
        """Stop everything; pressed again, it keeps its first reason."""
        text = f"{reason} (pressed by {by})"
        with self._lock:
            if self._is_pressed.is_set():
                return
            self._reason = text
            self._n_presses += 1
            self._is_pressed.set()
        log.warning("emergency stop: %s", text)
        self._tell(is_pressed=True, text=text)

    def release(self, by: str) -> None:
        """Allow motion again; whoever moves has to be armed again besides.

        Raises:
            ContractError: Nobody is named: a program must not release by itself.
        """
        if not by.strip():
            raise ContractError("nobody is named for the release; say who looked at the robot")
        with self._lock:
            if not self._is_pressed.is_set():
                return
            self._is_pressed.clear()
            self._reason = ""
        text = f"released by {by}"
        log.warning("emergency stop: %s", text)
        self._tell(is_pressed=False, text=text)

    def on_change(self, callback: Callable[[bool, str], None]) -> None:
        """Have a function called with the new state and a text, in the thread that changes it."""
        with self._lock:
            self._callbacks.append(callback)

    def _tell(self, *, is_pressed: bool, text: str) -> None:
        for callback in tuple(self._callbacks):
            try:
                callback(is_pressed, text)
            except Exception:  # one broken listener must not keep the news from the others
                log.exception("a listener of the emergency stop failed")
