"""The control loop without ROS: observe, decide, apply, at a fixed rate."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from vega_policy.control.hold import hold_action
from vega_policy.control.link import Command, Seen
from vega_policy.control.watchdog import Watchdog
from vega_policy.spec import EnvFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vega_policy.control.estop import EmergencyStop
    from vega_policy.control.profile import RobotProfile
    from vega_policy.deploy.robot import Robot

GRACE = 0.1
"""Fraction of a period by which a step may begin late; beyond it its deadline is missed."""
_KEPT = 200_000
"""Steps whose times are kept for the percentiles: almost three hours at 20 Hz."""

Ended = Literal["asked to", "time is up", "done"]

log = logging.getLogger(__name__)


class Decides(Protocol):
    """The part of `vega_policy.control.pilot.Pilot` that a loop needs."""

    @property
    def publishes(self) -> bool:
        """Whether commands are sent; False in a dry run."""
        ...

    def tick(self, seen: Seen | None) -> Command:
        """Return what the robot is told now."""
        ...


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Percentiles of a duration, in milliseconds."""

    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Iterable[float], *, largest: float) -> Spread:
        """Summarise durations; ``largest`` may be older than those that are kept."""
        values = 1000 * np.fromiter(seconds, dtype=np.float64)
        p50, p99 = np.percentile(values, [50, 99]) if len(values) else (0.0, 0.0)
        return cls(p50=round(p50, 3), p99=round(p99, 3), max=round(1000 * largest, 3))


@dataclass(frozen=True, kw_only=True)
class LoopSummary:
    """What happened in all runs of a loop together."""

    seconds: float
    ticks: int
    missed_deadlines: int
    """Control periods in which no step began within `GRACE` of its start."""
    jitter_ms: Spread
    """How late the steps began."""
    tick_ms: Spread
    """How long the steps took, from looking to the command's being sent."""
    actions: int
    holds: int
    stopped: int
    """Steps at which nothing was sent, because the arm was stopped."""
    broken_observations: int = 0
    """Steps at which the robot could not look."""
    watchdog_holds: int = 0
    """How often the loop itself was silent for too long."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


class RobotLoop:
    """Ticks at the profile's rate until told to end.

    Deadlines are multiples of the period after the start, so delays do not add up. A step that
    comes too late is left out: two commands never follow each other in a burst.

    Args:
        robot: Arm and cameras.
        pilot: Decides; where it does not publish (a dry run), nothing is sent.
        profile: Rate, patience and the meaning of a hold.
        estop: Pressed by the watchdog when the loop hangs.
        status_s: Seconds between two status lines in the log.
        clock: Seconds, never going back.
        wait: Waits so many seconds; only a test with its own clock replaces it.
    """

    def __init__(
        self,
        robot: Robot,
        pilot: Decides,
        *,
        profile: RobotProfile,
        estop: EmergencyStop,
        status_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._robot = robot
        self._pilot = pilot
        self._profile = profile
        self._estop = estop
        self._status_s = status_s
        self._clock = clock
        # No event: a handler that sets one may wait for a lock of the very thread it interrupted.
        self._is_ending = False
        self._wait = wait or time.sleep
        self._gripper = profile.start_gripper
        self._started_s = -math.inf
        """Of the last step."""
        self._is_stopped = False
        self._record = _Record()

    def end(self) -> None:
        """Have `run` send a hold and return; from any thread or signal handler."""
        self._is_ending = True

    def run(
        self, *, seconds: float | None = None, until: Callable[[], bool] | None = None
    ) -> Ended:
        """Tick until the time is up, ``until`` says so, or `end` is called.

        However it ends, an arm that was told to move is told to hold.

        Raises:
            EnvFault: A command could not be sent; the arm was stopped.
        """
        watchdog = Watchdog(
            hold_after_s=self._profile.hold_after_s,
            stop_after_s=self._profile.stop_after_s,
            on_hold=self._silent,
            on_stop=self._silent_for_long,
            clock=self._clock,
        )
        watchdog.start()
        begun = self._clock()
        try:
            return self._tick_until(begun, watchdog, seconds=seconds, until=until)
        finally:
            self._record.seconds += self._clock() - begun
            watchdog.close()
            self._send_hold()

    def summary(self) -> LoopSummary:
        """Return what happened so far."""
        return self._record.summary()

    def _tick_until(
        self,
        begun: float,
        watchdog: Watchdog,
        *,
        seconds: float | None,
        until: Callable[[], bool] | None,
    ) -> Ended:
        self._started_s = -math.inf
        n_periods = math.inf if seconds is None else round(seconds / self._profile.period_s)
        period = 0
        while True:
            if until is not None and until():
                return "done"
            due, late_s = self._next_deadline(begun, period)
            if self._is_ending:
                return "asked to"
            self._record.n_missed += int(min(due, n_periods)) - period
            if due >= n_periods:
                return "time is up"
            self._record.n_missed += late_s > GRACE * self._profile.period_s
            looked = self._clock()
            command = self._pilot.tick(self._observe())
            if self._estop.is_pressed and command.kind != "stop":
                # Pressed while the step was decided, which may have taken long.
                why = f"emergency stop: {self._estop.reason}"
                command = Command(kind="stop", action=None, reason=why, tick=command.tick)
            self._send(command)
            if command.kind == "stop":
                watchdog.fed()
            else:
                watchdog.rearm()  # a person armed again: it has to watch again too
            self._record.add(command, late_s=late_s, took_s=self._clock() - looked)
            self._report()
            period = due + 1

    def _next_deadline(self, begun: float, period: int) -> tuple[int, float]:
        """Wait for the next deadline that can be met; return its number and how late it is."""
        period_s = self._profile.period_s
        earliest = max(self._clock(), self._started_s + period_s)
        due = max(period, math.ceil((earliest - begun) / period_s - GRACE))
        left_s = begun + due * period_s - self._clock()
        if left_s > 0 and not self._is_ending:
            self._wait(left_s)
        self._started_s = self._clock()
        # However late it wakes, it steps: skipping again could go on for ever.
        return due, max(0.0, self._started_s - begun - due * period_s)

    def _observe(self) -> Seen | None:
        try:
            return self._robot.observe()
        except EnvFault as fault:
            record = self._record
            record.n_broken += 1
            if record.n_broken == 1 or record.n_broken % 100 == 0:
                log.warning("the robot cannot look (%d times so far): %s", record.n_broken, fault)
            return None

    def _send(self, command: Command) -> None:
        if not self._pilot.publishes:
            return
        try:
            if command.kind == "stop" or command.action is None:
                if not self._is_stopped:
                    self._robot.stop()
                    log.warning("the arm is stopped: %s", command.reason)
                self._is_stopped = True
                return
            self._robot.apply(command)
        except Exception:  # whatever a driver raises: its arm may still be moving
            self._is_stopped = True
            self._robot.stop()
            raise
        self._gripper = float(command.action[-1])
        self._is_stopped = False

    def _send_hold(self) -> None:
        if not self._pilot.publishes or self._is_stopped:
            return
        why = "the loop ends"
        if self._estop.is_pressed:
            self._send(Command(kind="stop", action=None, reason=why))
            return
        action = hold_action(self._profile.action, gripper=self._gripper)
        self._send(Command(kind="hold", action=action, reason=why))

    def _silent(self) -> None:
        # Says nothing here: a log that blocks may be what the loop hangs in.
        self._record.n_watchdog_holds += 1
        if self._pilot.publishes:
            self._robot.hold()

    def _silent_for_long(self) -> None:
        # The next step, if it comes, stops the arm once more: what hung may have been an `apply`.
        try:
            if self._pilot.publishes:
                self._robot.stop()
        finally:
            self._estop.press(f"no command for {self._profile.stop_after_s:g} s", by="watchdog")

    def _report(self) -> None:
        record = self._record
        if record.n_watchdog_holds > record.n_told_holds:
            record.n_told_holds = record.n_watchdog_holds
            log.warning("no command for %g s: the arm was held", self._profile.hold_after_s)
        if self._clock() - record.reported_s < self._status_s:
            return
        if math.isfinite(record.reported_s):
            log.info("%s", record.line())
        record.reported_s = self._clock()


class _Record:
    """Counts of all runs."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.n_missed = 0
        self.n_broken = 0
        self.n_watchdog_holds = 0
        self.n_told_holds = 0
        """Of these, how many the log knows of."""
        self.reported_s = -math.inf
        self._kinds: Counter[str] = Counter()
        self._n_changed = 0
        self._last = Command(kind="hold", action=None)
        self._late_s: deque[float] = deque(maxlen=_KEPT)
        self._took_s: deque[float] = deque(maxlen=_KEPT)
        self._latest_s = self._longest_s = 0.0

    def add(self, command: Command, *, late_s: float, took_s: float) -> None:
        self._late_s.append(late_s)
        self._took_s.append(took_s)
        self._latest_s = max(self._latest_s, late_s)
        self._longest_s = max(self._longest_s, took_s)
        self._kinds[command.kind] += 1
        self._n_changed += bool(command.interventions)
        self._last = command

    def line(self) -> str:
        now = f"{self._last.kind}, {self._last.reason}" if self._last.reason else self._last.kind
        return (
            f"step {self._kinds.total()} ({now}): {self._kinds['action']} actions, "
            f"{self._n_changed} of them changed, {self._kinds['hold']} holds, "
            f"{self._kinds['stop']} stopped, {self.n_missed} missed deadlines"
        )

    def summary(self) -> LoopSummary:
        return LoopSummary(
            seconds=round(self.seconds, 3),
            ticks=self._kinds.total(),
            missed_deadlines=self.n_missed,
            jitter_ms=Spread.of(self._late_s, largest=self._latest_s),
            tick_ms=Spread.of(self._took_s, largest=self._longest_s),
            actions=self._kinds["action"],
            holds=self._kinds["hold"],
            stopped=self._kinds["stop"],
            broken_observations=self.n_broken,
            watchdog_holds=self.n_watchdog_holds,
        )


@contextmanager
def ended_by_signals(
    end: Callable[[], None], signals: Iterable[int] = (signal.SIGINT, signal.SIGTERM)
) -> Iterator[None]:
    """Have the first of these signals end the loop; the second does what it usually does.

    Only in the main thread.
    """
    before = {number: signal.getsignal(number) for number in signals}

    def on_signal(number: int, _: object) -> None:
        signal.signal(number, before[number])
        end()
        log.info("%s: the loop ends", signal.Signals(number).name)

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
