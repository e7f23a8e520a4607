"""The one thing a robot loop calls: an observation in, a command out, at every control step."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vega_policy.control.hold import hold_action
from vega_policy.control.link import Command
from vega_policy.control.safety import SafetyFilter
from vega_policy.control.watchdog import Watchdog
from vega_policy.spec import ContractError, PolicyFault, SafetyStop

if TYPE_CHECKING:
    from collections.abc import Callable

    from vega_policy.control.estop import EmergencyStop
    from vega_policy.control.link import Link, Reply, Seen
    from vega_policy.control.profile import RobotProfile
    from vega_policy.control.schedule import Schedule

log = logging.getLogger(__name__)

State = Literal["disarmed", "running", "holding", "stopped"]
HoldReason = Literal[
    "disarmed", "no_observation", "bad_observation", "inference_failed", "no_action"
]
EventKind = Literal[
    "armed", "disarmed", "running", "hold", "stop", "intervention", "inference_failed"
]

TELL_EVERY_S = 1.0


@dataclass(eq=False, kw_only=True)
class PilotStats:
    """What happened since the pilot was built; for a display, not for decisions."""

    n_ticks: int = 0
    n_actions: int = 0
    holds: Counter[str] = field(default_factory=Counter)
    """Held control steps by `HoldReason`."""
    interventions: Counter[str] = field(default_factory=Counter)
    """Commands changed, by limit; the `SafetyFilter`'s own counts."""
    stops: int = 0
    n_asked: int = 0
    n_failed: int = 0
    """Questions without an answer that could be used."""
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    """Of the last answers."""


class Pilot:
    """Joins link, schedule, safety filter, watchdog and emergency stop into one decision per tick.

    It starts disarmed and moves nothing before `arm`. ``running`` and ``holding`` change by
    themselves. ``stopped`` stays until a person arms again: after the emergency stop, after a
    command or chunk that must not reach a motor, after an error nobody expected, and after
    ``stop_after_s`` without an action.

    A hold is the controller's own, with the last accepted gripper; never the last action again.
    A failed inference is a hold at once, though the last chunk may have rows left: what broke the
    policy is not known to be harmless. The first answer ends it, from standstill.

    One thread calls `tick`; the rest may be called from any.
    """

    def __init__(
        self,
        *,
        profile: RobotProfile,
        schedule: Schedule,
        link: Link,
        estop: EmergencyStop,
        clock: Callable[[], float] = time.monotonic,
        dry_run: bool = False,
        on_event: Callable[[EventKind, str], None] | None = None,
    ) -> None:
        """Set up, disarmed.

        Args:
            profile: The robot.
            schedule: Built for the same action specification.
            link: To the policy; the caller closes it.
            estop: Pressed by whoever wants to.
            clock: The one that stamps the observations, in seconds.
            dry_run: Decide and count everything; see `publishes`.
            on_event: Called at changes of state and with new trouble, of a kind that comes by
                itself at most once a second; returns quickly.

        Raises:
            ContractError: Policy and robot mean different things by an action; all differences.
        """
        problems = profile.action.disagreements(
            link.action_spec, ours=f"the robot {profile.name}", theirs="the policy"
        )
        if problems:
            raise ContractError("robot and policy disagree: " + "; ".join(problems))
        self._profile = profile
        self._schedule = schedule
        self._link = link
        self._estop = estop
        self._clock = clock
        self._dry_run = dry_run
        self._on_event = on_event
        self._lock = threading.RLock()
        self._filter = SafetyFilter(profile, clock=clock)
        self._watchdog = Watchdog(
            hold_after_s=profile.hold_after_s, stop_after_s=profile.stop_after_s, clock=clock
        )
        self.stats = PilotStats(interventions=self._filter.counts)
        self._state: State = "disarmed"
        self._reason = ""
        self._was_armed = False
        self._told_s: dict[str, float] = {}
        self._n_presses = estop.n_presses
        """Of the emergency stop, when it was armed."""
        self._gripper = profile.start_gripper
        hold_action(profile.action, gripper=self._gripper)  # refused now, not when it is needed
        self._begin()

    @property
    def state(self) -> State:
        """What it does now."""
        return self._state

    @property
    def reason(self) -> str:
        """Why it does not simply run; empty where it does."""
        return self._reason

    @property
    def publishes(self) -> bool:
        """Whether commands may be sent; False in a dry run, and the loop sends nothing at all.

        So before the first `arm`: a hold would open the fingers of an arm that carries something.
        """
        return not self._dry_run and (self._was_armed or self._state == "stopped")

    def arm(self) -> None:
        """Allow motion, from standstill and with nothing left of an earlier chunk.

        The policy should be warm (`vega_policy.control.start.warm_up`): a first action that takes
        longer than ``stop_after_s`` is a stop.

        Raises:
            ContractError: The emergency stop is pressed.
        """
        with self._lock:
            n_presses = self._estop.n_presses  # before it is looked at: a press since then counts
            if self._estop.is_pressed:
                raise ContractError(
                    f"the emergency stop is pressed: {self._estop.reason}; release it, then arm"
                )
            if self._state in ("running", "holding"):
                return
            self._begin()
            self._was_armed = True
            self._n_presses = n_presses
            self._watchdog.rearm()
            self._enter("holding", "armed, no action yet")
            self._tell("armed", "armed")

    def disarm(self) -> None:
        """End motion with a hold; a stop stays one."""
        with self._lock:
            if self._state != "stopped":
                self._begin()
                self._enter("disarmed", "disarmed")
                self._tell("disarmed", "disarmed")

    def reset(self) -> None:
        """Begin an episode: tick 0, gripper as at the start, every open question forgotten."""
        with self._lock:
            self._gripper = self._profile.start_gripper
            self._begin()
            if self._state in ("running", "holding"):
                self._watchdog.rearm()

    def tick(self, seen: Seen | None) -> Command:
        """Return the command of this control step; at once, and whatever the policy does.

        Args:
            seen: The newest observation, the same one again where there is no newer; None: none.
        """
        with self._lock:
            tick, self._tick = self._tick, self._tick + 1
            self.stats.n_ticks += 1
            try:
                return self._decide(seen, tick)
            except (PolicyFault, SafetyStop) as error:
                return self._stop(str(error), tick)
            except Exception as error:  # a control loop that dies leaves an arm without commands
                log.exception("control step %d", tick)
                return self._stop(f"{type(error).__name__}: {error}", tick)

    def report(self) -> dict[str, Any]:
        """Return a JSON-ready summary, for `vega_policy.deploy.wire.RequestExtras.report`."""
        with self._lock:
            stats = self.stats
            latency_ms = [1000 * s for s in stats.latencies_s]
            return {
                "state": self._state,
                "reason": self._reason,
                "dry_run": self._dry_run,
                "schedule": type(self._schedule).__name__,
                "ticks": stats.n_ticks,
                "actions": stats.n_actions,
                "holds": dict(stats.holds),
                "interventions": dict(stats.interventions),
                "stops": stats.stops,
                "failed": stats.n_failed,
                "latency_ms": round(latency_ms[-1], 2) if latency_ms else None,
                "latency_p99_ms": (
                    round(float(np.percentile(latency_ms, 99)), 2) if latency_ms else None
                ),
            }

    def _decide(self, seen: Seen | None, tick: int) -> Command:
        if self._estop.is_pressed:
            return self._stop(f"emergency stop: {self._estop.reason}", tick)
        if self._state == "stopped":
            return Command(kind="stop", action=None, reason=self._reason, tick=tick)
        if self._state != "disarmed" and self._estop.n_presses != self._n_presses:
            return self._stop("emergency stop: pressed and released between two steps", tick)
        if self._state == "disarmed":
            return self._hold("disarmed", "disarmed", tick)
        if self._watchdog.poll() == "stop":
            why = f"no action for {self._profile.stop_after_s:g} s"
            return self._stop(f"{why}; last: {self._reason}" if self._reason else why, tick)
        self._hear(tick)
        if seen is None:
            return self._hold("no_observation", "no observation", tick)
        problems = self._filter.observation_problems(seen, self._clock())
        if problems:
            return self._hold("bad_observation", "; ".join(problems), tick)
        if self._schedule.should_ask(tick):
            self._link.ask(seen, tick=tick)
            self._schedule.asked(tick)
            self._open = tick
            self.stats.n_asked += 1
            self._hear(tick)
        if self._failure:
            return self._hold("inference_failed", self._failure, tick)
        action = self._schedule.next(tick)
        if action is None:
            return self._hold("no_action", "no action for this step, an answer is under way", tick)
        position_m = np.asarray(seen.observation.proprio)[:3]
        action, interventions = self._filter.command(action, position_m=position_m)
        self._watchdog.fed()
        self._gripper = float(action[-1])
        self.stats.n_actions += 1
        self._note(interventions)
        if self._state != "running":
            self._enter("running", "")
            self._tell("running", "runs")
        return Command(
            kind="action",
            action=action,
            reason=f"changed by {', '.join(interventions)}" if interventions else "",
            interventions=interventions,
            tick=tick,
            chunk_tick=self._chunk_tick,
        )

    def _hear(self, tick: int) -> None:
        reply = self._link.poll()
        if reply is None:
            return
        if reply.tick != self._open:
            log.warning("dropped an answer to step %d, asked was %s", reply.tick, self._open)
            return
        self._open = None
        if reply.chunk is None:
            self._fail(reply)
            self._schedule.lost(reply.tick)
            return
        try:
            self._schedule.accept(reply.chunk, asked=reply.tick, now=tick)
        except PolicyFault:
            self.stats.n_failed += 1
            raise
        self.stats.latencies_s.append(reply.latency_s)
        self._chunk_tick = reply.tick
        self._failure = ""

    def _fail(self, reply: Reply) -> None:
        self.stats.n_failed += 1
        if not self._failure:
            self._tell("inference_failed", reply.detail)
        self._failure = f"no chunk: {reply.detail}"

    def _hold(self, why: HoldReason, reason: str, tick: int) -> Command:
        self.stats.holds[why] += 1
        self._filter.held()
        self._names = ()
        if self._state == "running":
            self._enter("holding", reason)
            self._tell("hold", reason)
        self._reason = reason
        return Command(
            kind="hold",
            action=hold_action(self._profile.action, gripper=self._gripper),
            reason=reason,
            tick=tick,
            chunk_tick=self._chunk_tick,
        )

    def _stop(self, reason: str, tick: int) -> Command:
        if self._state != "stopped":
            self.stats.stops += 1
            self._enter("stopped", reason)
            log.error("stopped: %s", reason)
            self._tell("stop", reason)
        return Command(kind="stop", action=None, reason=self._reason, tick=tick)

    def _begin(self) -> None:
        """Forget what was asked, answered and seen."""
        self._schedule.reset()
        self._link.reset()
        self._filter.reset()
        self._tick = 0
        self._open: int | None = None
        self._chunk_tick: int | None = None
        self._failure = ""
        self._names: tuple[str, ...] = ()

    def _enter(self, state: State, reason: str) -> None:
        self._state, self._reason = state, reason

    def _note(self, interventions: tuple[str, ...]) -> None:
        if interventions and interventions != self._names:
            self._tell("intervention", ", ".join(interventions))
        self._names = interventions

    def _tell(self, kind: EventKind, text: str) -> None:
        now_s = self._clock()
        is_asked_for = kind in ("armed", "disarmed", "stop")
        if not is_asked_for and now_s - self._told_s.get(kind, -math.inf) < TELL_EVERY_S:
            return
        self._told_s[kind] = now_s
        log.info("%s: %s", kind, text)
        if self._on_event is not None:
            try:
                self._on_event(kind, text)
            except Exception:  # a display must not end the motion of a robot
                log.exception("a listener of the pilot failed")
