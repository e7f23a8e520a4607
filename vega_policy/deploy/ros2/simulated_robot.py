"""A simulator that plays the robot on the other end of the topics."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from vega_policy.control.hold import hold_action
from vega_policy.deploy.ros2 import load_ros
from vega_policy.deploy.ros2.messages import (
    NS,
    Fingers,
    Topics,
    read_command,
    set_stamp,
    write_fingers,
    write_image,
    write_pose,
)
from vega_policy.deploy.ros2.node import make_qos
from vega_policy.spec import CAMERAS, EnvFault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from vega_policy.control.profile import RobotProfile
    from vega_policy.spec import Simulator

log = logging.getLogger(__name__)

AGAIN_S = 0.2
"""In lock-step, seconds after which an observation that got no command is sent again."""


class SimulatedRobot:
    """Cameras, joints, fingers, a released emergency stop; takes one control step per command.

    At its own pace it looks at the control rate, and holds like an arm whose commands stopped: not
    before the first one. In lock-step its time stands still until the command with the time stamp
    of its last observation came, so that an episode does not depend on the speed of anything.

    Args:
        node: An ``rclpy`` node.
        simulator: Closed by the caller.
        seen: What its reset returned: the episode is begun.
        profile: Rate and patience.
        topics: Names.
        fingers: Names and signs of the joints.
        lock_step: See above.
        speed: Simulated seconds in a second, told on ``/clock``: below 1 for a machine that draws
            slower than the cameras, with ``use_sim_time`` in the policy node. Not in lock-step.
    """

    def __init__(
        self,
        node: Any,  # noqa: ANN401 - ROS may not be installed
        simulator: Simulator,
        seen: Mapping[str, Any],
        *,
        profile: RobotProfile,
        topics: Topics,
        fingers: Fingers,
        lock_step: bool,
        speed: float = 1.0,
    ) -> None:
        self._node = node
        self._simulator = simulator
        self._seen = seen
        self._profile = profile
        self._fingers = fingers
        self._is_lock_step = lock_step
        self._speed = speed
        self._begun = time.monotonic(), node.get_clock().now().nanoseconds
        self._gripper = profile.start_gripper
        self._commands: deque[tuple[NDArray[np.float32], int]] = deque()
        self._stamp = self._now_ns()
        self.is_over = False
        """Whether the episode is: goal reached, or the step limit."""
        self.is_success = False
        self.n_steps = 0
        """Control steps of the episode."""
        self.n_holds = 0
        """Steps held by itself because no command came."""
        self.ages_s: list[float] = []
        """From a command's time stamp to its arrival, in simulated seconds; none in lock-step."""
        self.n_told_to_hold = 0
        """Commands that were holds."""
        qos, ros = make_qos(), load_ros()
        self._cameras = {
            name: node.create_publisher(ros.sensors.Image, getattr(topics, name), qos.sensor)
            for name in CAMERAS
        }
        self._pose = node.create_publisher(ros.geometry.PoseStamped, topics.pose, qos.sensor)
        self._joints = node.create_publisher(ros.sensors.JointState, topics.fingers, qos.sensor)
        self._instruction = node.create_publisher(ros.std.String, topics.instruction, qos.latched)
        self._estop = node.create_publisher(ros.std.Bool, topics.estop, qos.latched)
        is_slow = speed != 1 and not lock_step
        self._time = node.create_publisher(ros.graph.Clock, "/clock", 10) if is_slow else None
        node.create_subscription(ros.sensors.Joy, topics.command, self._on_command, qos.command)
        self._estop.publish(ros.std.Bool(data=False))
        self._instruction.publish(ros.std.String(data=simulator.instruction))

    def run(self, *, until: Callable[[], bool], patience_s: float) -> None:
        """Play until the episode is over or told to end.

        Raises:
            EnvFault: No command came for ``patience_s``.
        """
        executor = load_ros().rclpy.executors.SingleThreadedExecutor()
        executor.add_node(self._node)
        play = self._play_lock_step if self._is_lock_step else self._play
        self._commanded_s = self._looked_s = time.monotonic()
        self._has_moved = False
        self._show()
        try:
            while not self.is_over and not until():
                executor.spin_once(timeout_sec=0.005)
                self._tell_time()
                play()
                if time.monotonic() - self._commanded_s > patience_s:
                    raise EnvFault(f"no command for {patience_s:g} s; see to the policy node")
        finally:
            executor.remove_node(self._node)
            executor.shutdown()

    def _on_command(self, message: Any) -> None:  # noqa: ANN401
        action, stamp, is_hold = read_command(message)
        self._commands.append((action, stamp))
        if not self._is_lock_step:
            self.ages_s.append((self._now_ns() - stamp) / NS)
        self._commanded_s = time.monotonic()
        self.n_told_to_hold += is_hold

    def _play_lock_step(self) -> None:
        while self._commands and not self.is_over:
            action, stamp = self._commands.popleft()
            if stamp != self._stamp:
                log.warning("a command for another observation than the last is left out")
                continue
            self._step(action)
            self._stamp += round(self._profile.period_s * NS)
            self._show()
        if time.monotonic() - self._looked_s > AGAIN_S:
            self._show()

    def _play(self) -> None:
        now_s = time.monotonic()
        period_s, hold_after_s = self._profile.period_s, self._profile.hold_after_s
        is_due = (now_s - self._looked_s) * self._speed >= period_s
        is_silent = self._has_moved and (now_s - self._commanded_s) * self._speed > hold_after_s
        if self._commands:
            while self._commands and not self.is_over:
                self._step(self._commands.popleft()[0])
        elif is_due and is_silent:
            self.n_holds += 1
            self._step(hold_action(self._profile.action, gripper=self._gripper))
        elif not is_due:
            return
        self._stamp = self._now_ns()
        self._show()

    def _now_ns(self) -> int:
        begun_s, begun_ns = self._begun
        return begun_ns + round((time.monotonic() - begun_s) * self._speed * NS)

    def _tell_time(self) -> None:
        if self._time is not None:
            message = load_ros().graph.Clock()
            set_stamp(message.clock, self._now_ns())
            self._time.publish(message)

    def _step(self, action: NDArray[np.float32]) -> None:
        self._seen, _, success, truncated, info = self._simulator.step_chunk(action[None])
        self.is_success, self.is_over = bool(success), bool(success or truncated)
        self.n_steps += int(info["n_steps"])
        self._gripper = float(action[-1])
        self._has_moved = True

    def _show(self) -> None:
        ros = load_ros()
        self._looked_s = time.monotonic()
        pose, joints = ros.geometry.PoseStamped(), ros.sensors.JointState()
        write_pose(pose, self._seen["proprio"])
        write_fingers(joints, self._seen["proprio"], self._fingers)
        for message, publisher in ((pose, self._pose), (joints, self._joints)):
            set_stamp(message.header.stamp, self._stamp)
            publisher.publish(message)
        for camera, publisher in self._cameras.items():
            message = ros.sensors.Image()
            write_image(message, self._seen[camera])
            set_stamp(message.header.stamp, self._stamp)
            message.header.frame_id = camera
            publisher.publish(message)
