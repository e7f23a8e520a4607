"""The policy as a ROS 2 lifecycle node: topics in, one command per control step out.

Everything that decides is `vega_policy.control.Pilot`; here are the topics around it. One thread
runs all callbacks and never waits for the policy, which has its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vega_policy.control.estop import EmergencyStop
from vega_policy.control.hold import hold_action
from vega_policy.control.link import Command, Link, Reply, Seen
from vega_policy.control.pilot import Pilot
from vega_policy.control.schedule import ScheduleSettings, build_schedule
from vega_policy.control.start import start_problems, start_warnings, warm_up
from vega_policy.control.watchdog import Watchdog
from vega_policy.deploy.loop import Spread
from vega_policy.deploy.ros2 import load_ros
from vega_policy.deploy.ros2.messages import (
    NS,
    Fingers,
    Inbox,
    MessageProblem,
    Topics,
    read_fingers,
    read_image,
    read_pose,
    set_stamp,
    stamp_ns,
    write_command,
)
from vega_policy.spec import CAMERAS, ActionSpec, ContractError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vega_policy.control.profile import RobotProfile

log = logging.getLogger(__name__)

Phase = Literal["unconfigured", "inactive", "waiting", "warming_up", "ready"]
TELL_EVERY_S = 5.0
_KEPT = 20_000
"""Commands whose times are kept for the percentiles."""


class Answers(Protocol):
    """Where chunks come from."""

    @property
    def action_spec(self) -> ActionSpec:
        """What their numbers mean."""
        ...

    @property
    def image_px(self) -> int | None:
        """Side of the images it takes; None: any."""
        ...

    def link(self, *, timeout_s: float | None, report: Callable[[], Mapping[str, Any]]) -> Link:
        """Make a link; a ``timeout_s`` of None is that of a cold policy."""
        ...


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """What the user chooses about the node."""

    topics: Topics = field(default_factory=Topics)
    fingers: Fingers = field(default_factory=Fingers)
    arm: bool = False
    """Arms as soon as everything is there; else a person calls ``~/rearm``."""
    dry_run: bool = False
    """Decides and counts, publishes no command."""
    need_estop: bool = True
    """Without a publisher of the emergency stop nothing moves."""
    wait_s: float = 5.0
    """After so long without a topic its name is logged."""
    timeout_s: float = 1.0
    """After so long an answer is given up."""
    warm_up: int = 20
    """Inferences before anything moves, which tell the latency."""
    lock_step: bool = False
    """For a simulated robot that waits for its commands: one step per complete observation, time is
    that of its stamps, and the step waits for the policy."""


class PolicyNode:
    """A lifecycle node; its transitions may come from here or from ROS.

    Configured, it has its topics and hears the emergency stop. Active, it waits for every other
    end of its topics and a first observation, warms the policy up, compares, and is ready: armed by
    ``settings.arm`` or ``~/rearm``. Deactivated, it sends a hold and is silent.

    What keeps it from starting becomes `fault`; a missing topic does not, a robot may come later.

    With ROS's ``use_sim_time`` everything is measured in simulated seconds, the control rate too.

    Args:
        node: An ``rclpy`` lifecycle node, made by `make_node`.
        profile: The robot.
        schedule: What turns chunks into actions.
        policy: Where chunks come from.
        settings: See there.
    """

    def __init__(
        self,
        node: Any,  # noqa: ANN401 - ROS may not be installed
        *,
        profile: RobotProfile,
        schedule: ScheduleSettings,
        policy: Answers,
        settings: NodeSettings | None = None,
    ) -> None:
        self.node = node
        self.estop = EmergencyStop()
        self.fault: ContractError | None = None
        self.phase: Phase = "unconfigured"
        self.pilot: Pilot | None = None
        self._profile = profile
        self._schedule = schedule
        self._policy = policy
        self._settings = settings or NodeSettings()
        self._has_sim_time = bool(node.get_parameter("use_sim_time").value)
        if self._settings.lock_step:
            self._clock = self._step_clock
        else:
            self._clock = self._ros_clock if self._has_sim_time else time.monotonic
        self._answered_ns = 0
        """Stamp of the observation that was acted on last, in lock-step."""
        self._link: Link | None = None
        self._entities: list[tuple[Callable[[Any], Any], Any]] = []
        self._subscriptions: dict[str, Any] = {}
        self._publishers: dict[str, Any] = {}
        self._inbox = Inbox()
        self._refused: dict[str, str] = {}
        """Messages that could not be used, by part; until one that can."""
        self._estop_says: dict[str, bool] = {}
        self._gripper = profile.start_gripper
        self._told_s: dict[str, float] = {}
        self._waits_since_s = 0.0
        self._warming: _Warming | None = None
        self._watchdog: Watchdog | None = None
        self._reported: dict[str, Any] = {}
        """The pilot's report after the last step, for the server's page."""
        self._published_s = 0.0
        self._intervals_s: deque[float] = deque(maxlen=_KEPT)
        self._ages_s: deque[float] = deque(maxlen=_KEPT)
        node.add_managed_entity(_managed(self))

    # -- lifecycle --------------------------------------------------------------------------------

    def configure(self) -> None:
        """Make link, pilot, topics and services; nothing moves.

        Raises:
            ContractError: The policy does not fit the robot.
        """
        settings = self._settings
        problems = start_problems(self._profile, self._policy.action_spec, [], self._schedule)
        if problems:
            raise ContractError("this policy cannot drive this robot: " + "; ".join(problems))
        # Not the pilot's own report: it waits for the step, which in lock-step waits for the link.
        link = self._policy.link(timeout_s=settings.timeout_s, report=lambda: self._reported)
        self._link = link = Awaited(link) if settings.lock_step else link
        self.pilot = Pilot(
            profile=self._profile,
            schedule=build_schedule(self._schedule, self._profile.action),
            link=link,
            estop=self.estop,
            clock=self._clock,
            dry_run=settings.dry_run,
        )
        self._make_topics()
        self.phase = "inactive"

    def activate(self) -> None:
        """Begin to tick; see the class for what comes before the first command."""
        self.phase = "waiting"
        self._waits_since_s = time.monotonic()
        self._timer = self._make_timer(self._profile.period_s, self._tick)
        if not self._settings.lock_step:
            self._watchdog = Watchdog(
                hold_after_s=self._profile.hold_after_s,
                stop_after_s=self._profile.stop_after_s,
                on_hold=self._silent,
                on_stop=lambda: self.estop.press("the node hung", by="its watchdog"),
                clock=self._clock,
            )
            self._watchdog.start()

    def deactivate(self) -> None:
        """Send a hold to an arm that was told to move, and be silent."""
        if self.phase in ("unconfigured", "inactive"):
            return
        self.phase = "inactive"
        self.node.destroy_timer(self._timer)
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None
        if self._moves and not self.estop.is_pressed:
            self._publish_hold("the node ends")
        if self.pilot is not None:
            self.pilot.disarm()

    def cleanup(self) -> None:
        """Give up everything that `configure` made."""
        self.deactivate()
        for destroy, entity in self._entities:
            destroy(entity)
        self._entities, self._subscriptions, self._publishers = [], {}, {}
        if self._warming is not None:
            self._warming.close()
            self._warming = None
        if self._link is not None:
            self._link.close()
            self._link = None
        self._inbox = Inbox()
        self.phase = "unconfigured"

    def spin(self, until: Callable[[], bool]) -> None:
        """Run the callbacks in this thread until told to end, or until it cannot start.

        Raises:
            ContractError: It cannot start.
        """
        executor = load_ros().rclpy.executors.SingleThreadedExecutor()
        executor.add_node(self.node)
        try:
            while self.fault is None and not until():
                executor.spin_once(timeout_sec=0.05)
        finally:
            executor.remove_node(self.node)
            executor.shutdown()
        if self.fault is not None:
            raise self.fault

    def report(self) -> dict[str, Any]:
        """Return a JSON-ready summary."""
        pilot = {} if self.pilot is None else self.pilot.report()
        return {
            "phase": self.phase,
            **pilot,
            "interval_ms": _spread(self._intervals_s),
            "age_ms": _spread(self._ages_s),
        }

    # -- topics -----------------------------------------------------------------------------------

    def _make_topics(self) -> None:
        ros = load_ros()
        qos, topics, fingers = make_qos(), self._settings.topics, self._settings.fingers
        for camera in CAMERAS:
            self._subscribe(
                ros.sensors.Image, camera, getattr(topics, camera), qos.sensor, read_image
            )
        self._subscribe(ros.geometry.PoseStamped, "pose", topics.pose, qos.sensor, read_pose)
        self._subscribe(
            ros.sensors.JointState,
            "fingers",
            topics.fingers,
            qos.sensor,
            lambda message: read_fingers(message, fingers),
        )
        self._add(
            "instruction", ros.std.String, topics.instruction, qos.latched, self._on_instruction
        )
        # A latched subscription never hears a publisher that does not latch, and one that does not
        # latch misses what was said before it came: the stop is heard by both.
        for name, profile in (("estop", qos.loose), ("estop, latched", qos.latched)):
            self._add(
                name,
                ros.std.Bool,
                topics.estop,
                profile,
                lambda message, name=name: self._on_estop(name, is_pressed=message.data),
                needs_match=name == "estop",
            )
        events = ros.rclpy.event_handler.PublisherEventCallbacks(
            incompatible_qos=lambda event: self._on_mismatch(topics.command, event)
        )
        publish = self.node.create_publisher
        for name, kind, topic, profile, callbacks in (
            ("command", ros.sensors.Joy, topics.command, qos.command, events),
            ("heartbeat", ros.std.Header, topics.heartbeat, qos.sensor, None),
            ("diagnostics", ros.diagnostics.DiagnosticArray, "/diagnostics", qos.command, None),
        ):
            publisher = publish(kind, topic, profile, event_callbacks=callbacks)
            self._entities.append((self.node.destroy_publisher, publisher))
            self._publishers[name] = publisher
        for name, callback in (("~/stop", self._on_stop), ("~/rearm", self._on_rearm)):
            service = self.node.create_service(ros.services.Trigger, name, callback)
            self._entities.append((self.node.destroy_service, service))
        timer = self._make_timer(1.0, self._publish_diagnostics)
        self._entities.append((self.node.destroy_timer, timer))

    def _subscribe(
        self,
        kind: type,
        part: str,
        topic: str,
        qos: Any,  # noqa: ANN401
        read: Callable[[Any], Any],
    ) -> None:
        def on_message(message: Any) -> None:  # noqa: ANN401
            stamp = stamp_ns(message.header.stamp)
            try:
                value = read(message)
            except MessageProblem as problem:
                self._refused[part] = f"{topic}: {problem}"
                self._tell(topic, "%s: %s", topic, problem)
                return
            self._refused.pop(part, None)
            self._inbox.put(part, value, stamp=stamp, taken_s=self._on_our_clock(stamp))
            if self._settings.lock_step:
                self._step_if_complete()

        self._add(part, kind, topic, qos, on_message)

    def _add(
        self,
        name: str,
        kind: type,
        topic: str,
        qos: Any,  # noqa: ANN401
        callback: Callable[[Any], None],
        *,
        needs_match: bool = True,
    ) -> None:
        events = load_ros().rclpy.event_handler.SubscriptionEventCallbacks(
            incompatible_qos=lambda event: self._on_mismatch(topic, event, is_error=needs_match),
            use_default_callbacks=needs_match,
        )
        subscription = self.node.create_subscription(
            kind, topic, callback, qos, event_callbacks=events
        )
        self._entities.append((self.node.destroy_subscription, subscription))
        if needs_match:
            self._subscriptions[name] = subscription

    def _make_timer(self, period_s: float, callback: Callable[[], None]) -> Any:  # noqa: ANN401
        clock = load_ros().rclpy.clock
        if self._has_sim_time and not self._settings.lock_step:
            return self.node.create_timer(period_s, callback)
        # Not the node's clock: it jumps when somebody sets the time.
        steady = clock.Clock(clock_type=clock.ClockType.STEADY_TIME)
        return self.node.create_timer(period_s, callback, clock=steady)

    def _on_our_clock(self, stamp: int) -> float:
        """Return a header's time on the clock of the pilot."""
        if self._settings.lock_step or self._has_sim_time:
            return stamp / NS
        return time.monotonic() - (self.node.get_clock().now().nanoseconds - stamp) / NS

    def _ros_clock(self) -> float:
        return self.node.get_clock().now().nanoseconds / NS

    def _step_clock(self) -> float:
        return max(self._inbox.stamps.values(), default=0) / NS

    def _on_instruction(self, message: Any) -> None:  # noqa: ANN401
        text = message.data.strip()
        if text != self._inbox.instruction:
            log.info("instruction: %s", text)
            self._inbox.instruction = text
        if self._settings.lock_step:
            self._step_if_complete()

    def _on_estop(self, name: str, *, is_pressed: bool) -> None:
        self._estop_says[name] = is_pressed
        if is_pressed:
            self.estop.press("the topic says so", by=self._settings.topics.estop)

    def _on_stop(self, _: Any, response: Any) -> Any:  # noqa: ANN401
        self.estop.press("service ~/stop", by="its caller")
        response.success, response.message = True, "stopped; ~/rearm lets it move again"
        return response

    def _on_rearm(self, _: Any, response: Any) -> Any:  # noqa: ANN401
        if self.pilot is None or self.phase != "ready":
            problem = f"the node is {self.phase}; " + "; ".join(self._missing())
        elif any(self._estop_says.values()):
            problem = f"{self._settings.topics.estop} still says stop; have it say false first"
        else:
            problem = self._lost_estop()
        if problem or self.pilot is None:
            response.success, response.message = False, problem
            return response
        self.estop.release(by="the caller of ~/rearm")
        self.pilot.arm()
        if self._watchdog is not None:
            self._watchdog.rearm()  # else one that stopped the node would not watch it any more
        response.success, response.message = True, "armed"
        return response

    def _on_mismatch(self, topic: str, event: Any, *, is_error: bool = True) -> None:  # noqa: ANN401
        if not is_error:
            return
        policy = load_ros().rclpy.qos.qos_policy_name_from_kind(event.last_policy_kind)
        sentence = (
            f"the other end of {topic} has a quality of service that does not match ({policy}), so "
            "nothing would arrive; docs/ros2.md has the table of what is expected"
        )
        if self.phase == "ready":
            self._tell(f"{topic} qos", "%s", sentence)
        else:
            self.fault = ContractError(sentence)

    # -- before the first command -----------------------------------------------------------------

    def _missing(self) -> list[str]:
        """Name what has to be there before anything moves, one sentence each."""
        topics, settings = self._settings.topics, self._settings
        names = {"instruction": topics.instruction, "estop": topics.estop}
        missing = [
            f"nobody publishes {names.get(name) or getattr(topics, name)}"
            for name, subscription in self._subscriptions.items()
            if (name != "estop" or settings.need_estop) and not subscription.get_publisher_count()
        ]
        if (
            "command" in self._publishers
            and not settings.dry_run
            and not self._publishers["command"].get_subscription_count()
        ):
            missing.append(f"nobody subscribes to {topics.command}")
        missing += [
            f"{n} nodes publish {getattr(topics, name)}; one robot is enough"
            for name in (*CAMERAS, "pose")
            if name in self._subscriptions
            and (n := self._subscriptions[name].get_publisher_count()) > 1
        ]
        return missing or [
            self._refused.get(part) or f"no message came on {getattr(topics, part)}"
            for part in self._inbox.missing
        ]

    def _prepare(self) -> None:
        """Take the next step towards readiness."""
        missing = self._missing()
        seen = self._inbox.seen()
        if missing or seen is None:
            self.phase = "waiting"
            if time.monotonic() - self._waits_since_s >= self._settings.wait_s:
                self._tell("missing", "not started: %s", "; ".join(missing))
            return
        if self._warming is None:
            side = self._policy.image_px
            wrong = [
                f"{name} has {image.shape[1]} x {image.shape[0]} pixels, the policy takes {side}"
                for name, image in seen.observation.images.items()
                if side is not None and image.shape[:2] != (side, side)
            ]
            if wrong:
                self.fault = ContractError("; ".join(wrong) + "; resize what the cameras publish")
                return
            self._warming = _Warming(
                self._policy, self._inbox, n=self._settings.warm_up, clock=self._clock
            )
        self.phase = "warming_up"
        if not self._warming.is_done:
            return
        latencies_s, error = self._warming.latencies_s, self._warming.error
        problems = start_problems(
            self._profile, self._policy.action_spec, latencies_s, self._schedule
        )
        if error is not None or problems:
            self.fault = error or ContractError("not started: " + "; ".join(problems))
            return
        for warning in start_warnings(self._profile, latencies_s, self._schedule):
            log.warning("%s", warning)
        self.phase = "ready"
        if self._settings.arm and self.pilot is not None and not self.estop.is_pressed:
            self.pilot.arm()
        else:
            log.warning("ready and disarmed; ~/rearm (std_srvs/Trigger) arms")

    # -- every control step -----------------------------------------------------------------------

    @property
    def _moves(self) -> bool:
        pilot = self.pilot
        return pilot is not None and pilot.publishes and pilot.state in ("running", "holding")

    def _lost_estop(self) -> str:
        is_there = self._subscriptions["estop"].get_publisher_count() > 0
        if is_there or not self._settings.need_estop:
            return ""
        return f"nobody publishes {self._settings.topics.estop} any more"

    def _tick(self) -> None:
        if self._watchdog is not None:
            self._watchdog.fed()
        self._beat()
        if self.phase != "ready":
            self._prepare()
        elif not self._settings.lock_step:
            self._step(self.node.get_clock().now().nanoseconds)
        else:
            self._step_if_complete()

    def _step_if_complete(self) -> None:
        """Take a step where all parts of an observation that is not answered yet are there."""
        stamps = set(self._inbox.stamps.values())
        if self.phase != "ready" or self._inbox.missing or len(stamps) != 1:
            return
        stamp = stamps.pop()
        if stamp != self._answered_ns and self._moves:
            self._answered_ns = stamp
            self._step(stamp)

    def _step(self, now_ns: int) -> None:
        if self.pilot is None:
            return
        if self._moves and (lost := self._lost_estop()):
            self.estop.press(lost, by="the node")
        seen = self._inbox.seen()
        command = self.pilot.tick(seen)
        self._reported = self.pilot.report()
        # Pressed while the step was decided: the next one says so.
        if not self._moves or command.action is None or self.estop.is_pressed:
            return
        self._publish(command, now_ns)
        self._gripper = float(command.action[-1])
        now_s = self._clock()
        if self._published_s:
            self._intervals_s.append(now_s - self._published_s)
        self._published_s = now_s
        if command.kind == "action" and seen is not None:
            self._ages_s.append(now_s - seen.oldest_s)

    def _publish(self, command: Command, stamp: int) -> None:
        message = load_ros().sensors.Joy()
        write_command(message, command, stamp=stamp)
        self._publishers["command"].publish(message)

    def _publish_hold(self, reason: str) -> None:
        action = hold_action(self._profile.action, gripper=self._gripper)
        hold = Command(kind="hold", action=action, reason=reason)
        self._publish(hold, self.node.get_clock().now().nanoseconds)

    def _silent(self) -> None:
        """Hold from the watchdog's thread."""
        if self._moves:
            # First the hold: a log that blocks may be what the node hangs in.
            self._publish_hold("the node was silent")
            self._tell("silent", "no command for %g s: a hold is sent", self._profile.hold_after_s)

    def _beat(self) -> None:
        beat = load_ros().std.Header(
            frame_id=self.phase if self.pilot is None else self.pilot.state
        )
        set_stamp(beat.stamp, self.node.get_clock().now().nanoseconds)
        self._publishers["heartbeat"].publish(beat)

    def _publish_diagnostics(self) -> None:
        ros = load_ros().diagnostics
        report = self.report()
        missing = [] if self.phase == "ready" else self._missing()
        if report.get("state") == "stopped" or self.estop.is_pressed:
            level = ros.DiagnosticStatus.ERROR
        elif report.get("state") == "running":
            level = ros.DiagnosticStatus.OK
        else:
            level = ros.DiagnosticStatus.WARN
        message = "; ".join(missing) or self.estop.reason or report.get("reason") or self.phase
        status = ros.DiagnosticStatus(
            level=level,
            name=f"{self.node.get_name()}: policy",
            message=message,
            hardware_id=self._profile.name,
            values=[ros.KeyValue(key=key, value=text) for key, text in _flat(report)],
        )
        array = ros.DiagnosticArray(status=[status])
        set_stamp(array.header.stamp, self.node.get_clock().now().nanoseconds)
        self._publishers["diagnostics"].publish(array)

    def _tell(self, about: str, text: str, *values: object) -> None:
        """Warn, at most every few seconds about the same thing."""
        now_s = time.monotonic()
        if now_s - self._told_s.get(about, -TELL_EVERY_S) >= TELL_EVERY_S:
            self._told_s[about] = now_s
            log.warning(text, *values)


class Awaited:
    """A link whose questions are answered when `ask` returns; for a robot that waits meanwhile."""

    def __init__(self, link: Link) -> None:
        self._inner = link
        self._reply: Reply | None = None

    @property
    def action_spec(self) -> ActionSpec:
        """See `Link.action_spec`."""
        return self._inner.action_spec

    def ask(self, seen: Seen, *, tick: int) -> None:
        """See `Link.ask`; waits for the answer or its time-out."""
        self._inner.ask(seen, tick=tick)
        while (reply := self._inner.poll()) is None:
            time.sleep(0.001)
        self._reply = reply

    def poll(self) -> Reply | None:
        """See `Link.poll`."""
        reply, self._reply = self._reply, None
        return reply

    def reset(self) -> None:
        """See `Link.reset`."""
        self._reply = None
        self._inner.reset()

    def close(self) -> None:
        """See `Link.close`."""
        self._inner.close()


class _Warming:
    """Warm-up in a thread, with a link of its own."""

    def __init__(
        self, policy: Answers, inbox: Inbox, *, n: int, clock: Callable[[], float]
    ) -> None:
        self.latencies_s: list[float] = []
        self.error: ContractError | None = None
        self._inbox = inbox
        self._n = n
        self._clock = clock
        self._is_closing = False
        self._link = policy.link(timeout_s=None, report=dict)
        self._thread = threading.Thread(target=self._run, name="warm-up", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether there is a result."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """Give up."""
        self._is_closing = True
        self._thread.join(timeout=1.0)

    def _look(self) -> Seen:
        seen = self._inbox.seen()
        if seen is None or self._is_closing:
            raise ContractError("the node ends before the policy is warm")
        return seen

    def _run(self) -> None:
        try:
            if self._n:
                begun, begun_s = time.monotonic(), self._clock()
                measured = warm_up(self._link, self._look, n=self._n)
                # The link counts real seconds, the loop maybe simulated ones.
                speed = (self._clock() - begun_s) / (time.monotonic() - begun)
                self.latencies_s = [speed * latency_s for latency_s in measured]
        except ContractError as error:
            self.error = error
        except Exception as error:  # the thread's boundary: a start-up error like any other
            log.exception("warm-up")
            self.error = ContractError(f"the policy cannot be asked: {error}")
        finally:
            self._link.close()


@dataclass(frozen=True)
class Qos:
    """Profiles of the topics, in ``rclpy``'s type."""

    sensor: Any
    """Best effort, depth 1: the newest or nothing."""
    latched: Any
    """Reliable, depth 1, and whoever comes later gets the last one."""
    loose: Any
    """What every publisher matches."""
    command: Any
    """Reliable, depth 1."""


def make_qos() -> Qos:
    """Return the profiles; needs ``rclpy``."""
    qos = load_ros().rclpy.qos
    best_effort = qos.ReliabilityPolicy.BEST_EFFORT
    return Qos(
        sensor=qos.QoSProfile(depth=1, reliability=best_effort),
        latched=qos.QoSProfile(depth=1, durability=qos.DurabilityPolicy.TRANSIENT_LOCAL),
        loose=qos.QoSProfile(depth=10, reliability=best_effort),
        command=qos.QoSProfile(depth=1),
    )


def make_node(name: str = "vega_policy") -> Any:  # noqa: ANN401
    """Return a lifecycle node; ``rclpy.init`` was called."""
    return load_ros().rclpy.lifecycle.LifecycleNode(name)


def _managed(owner: PolicyNode) -> Any:  # noqa: ANN401
    """Return what tells the owner of the node's transitions."""
    lifecycle = load_ros().rclpy.lifecycle
    results = lifecycle.TransitionCallbackReturn

    def answer(transition: Callable[[], None]) -> Any:  # noqa: ANN401
        try:
            transition()
        except ContractError as error:
            owner.fault = error
            return results.FAILURE
        except Exception:
            log.exception("a transition of the node failed")  # rclpy itself would not say why
            return results.ERROR
        return results.SUCCESS

    class Managed(lifecycle.ManagedEntity):
        def on_configure(self, _: object) -> Any:  # noqa: ANN401
            return answer(owner.configure)

        def on_activate(self, _: object) -> Any:  # noqa: ANN401
            return answer(owner.activate)

        def on_deactivate(self, _: object) -> Any:  # noqa: ANN401
            return answer(owner.deactivate)

        def on_cleanup(self, _: object) -> Any:  # noqa: ANN401
            return answer(owner.cleanup)

        on_shutdown = on_error = on_cleanup

    return Managed()


def _spread(seconds: deque[float]) -> dict[str, float]:
    values = list(seconds)
    spread = Spread.of(values, largest=max(values, default=0.0))
    return {"n": len(values), "p50": spread.p50, "p99": spread.p99, "max": spread.max}


def _flat(report: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in report.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, str(value)))
    return pairs
