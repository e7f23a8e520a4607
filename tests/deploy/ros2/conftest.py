"""A robot on the other end of the topics, in the process of the test; skipped without ROS 2."""

import os
import time

import numpy as np
import pytest

from vega_policy.control.profile import RobotProfile
from vega_policy.control.schedule import ScheduleSettings
from vega_policy.deploy.ros2 import load_ros
from vega_policy.deploy.ros2.messages import (
    Fingers,
    Topics,
    read_command,
    set_stamp,
    write_fingers,
    write_image,
    write_pose,
)
from vega_policy.deploy.ros2.node import NodeSettings, PolicyNode, make_node, make_qos
from vega_policy.spec import ActionSpec
from vega_policy.testing.fake_env import BLOCK_RGB
from vega_policy.testing.fake_link import FakeLink

GIVE_UP_S = 60.0
"""The machine may be busy; a test that passes needs a second or two."""
PROPRIO = np.array([0.1, -0.2, 0.3, 3.0, 0.2, -0.1, 0.04, -0.04])
# Patient: a busy machine must not look like a camera that failed.
PROFILE = RobotProfile.from_dict(
    {
        "name": "patient",
        "translation_m": 0.05,
        "rotation_rad": 0.5,
        "start_gripper": -1.0,
        "frozen_ticks": 0,
        "limits": {},
        "observation_age_s": 1.0,
        "camera_skew_s": 1.0,
        "hold_after_s": 20.0,
        "stop_after_s": 60.0,
    }
)


class FakePolicy:
    """Answers at once, always the same chunk."""

    image_px = None
    action_spec = ActionSpec()

    def __init__(self):
        self.rows = np.full((8, 7), 0.25, np.float32)
        self.rows[:, -1] = 1.0

    def link(self, **_):
        return FakeLink(clock=time.monotonic, answer=lambda _: self.rows)


class Robot:
    """Publishes what it is told to and keeps what it hears."""

    def __init__(self, rclpy, *, estop_qos=None, instruction_qos=None):
        self.ros, self.qos, self.topics = load_ros(), make_qos(), Topics()
        self.rclpy = rclpy
        self.node = rclpy.create_node("robot")
        self.executor = rclpy.executors.SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.parts = {"agentview", "wrist", "pose", "fingers"}
        self.encoding = "rgb8"
        self.px = 8
        self.commands, self.beats, self.diagnostics = [], [], []
        publish, topics, sensors = self.node.create_publisher, self.topics, self.ros.sensors
        self._publishers = {
            "agentview": publish(sensors.Image, topics.agentview, self.qos.sensor),
            "wrist": publish(sensors.Image, topics.wrist, self.qos.sensor),
            "pose": publish(self.ros.geometry.PoseStamped, topics.pose, self.qos.sensor),
            "fingers": publish(sensors.JointState, topics.fingers, self.qos.sensor),
            "instruction": publish(
                self.ros.std.String, topics.instruction, instruction_qos or self.qos.latched
            ),
            "estop": publish(self.ros.std.Bool, topics.estop, estop_qos or self.qos.latched),
        }
        self.say("instruction", "stack the block")
        subscribe = self.node.create_subscription
        subscribe(
            sensors.Joy,
            topics.command,
            lambda m: self.commands.append(read_command(m)),
            self.qos.command,
        )
        subscribe(
            self.ros.std.Header,
            topics.heartbeat,
            lambda m: self.beats.append(m.frame_id),
            self.qos.sensor,
        )
        subscribe(
            self.ros.diagnostics.DiagnosticArray,
            "/diagnostics",
            lambda m: self.diagnostics.append(m.status[0]),
            10,
        )

    def lose(self, name):
        self.parts.discard(name)
        self.node.destroy_publisher(self._publishers.pop(name))

    def say(self, name, data):
        kind = self.ros.std.Bool if isinstance(data, bool) else self.ros.std.String
        self._publishers[name].publish(kind(data=data))

    def look(self):
        now = self.node.get_clock().now().nanoseconds
        shade = (now // 10_000_000) % 256
        image = np.full((self.px, self.px, 3), shade, np.uint8)
        image[2:4, 2:4] = BLOCK_RGB  # without a block the made-up policy is lost
        sensors = self.ros.sensors
        for part in sorted(self.parts):
            if part == "pose":
                message = self.ros.geometry.PoseStamped()
                write_pose(message, PROPRIO)
            elif part == "fingers":
                message = sensors.JointState()
                write_fingers(message, PROPRIO, Fingers())
            else:
                message = sensors.Image()
                write_image(message, image)
                message.encoding = self.encoding
            set_stamp(message.header.stamp, now)
            self._publishers[part].publish(message)

    def spin_until(self, is_reached, what):
        """Look 30 times a second and run all callbacks until something is so."""
        give_up, looked_s = time.monotonic() + GIVE_UP_S, 0.0
        while not is_reached():
            assert time.monotonic() < give_up, f"waited in vain for {what}"
            if time.monotonic() - looked_s > 0.03:
                looked_s = time.monotonic()
                self.look()
            self.executor.spin_once(timeout_sec=0.01)

    def call(self, name):
        """Call a Trigger service of the policy node."""
        client = self.node.create_client(self.ros.services.Trigger, f"/vega_policy/{name}")
        self.spin_until(client.service_is_ready, f"service {name}")
        future = client.call_async(self.ros.services.Trigger.Request())
        self.spin_until(future.done, f"an answer of {name}")
        self.node.destroy_client(client)
        return future.result()

    def hear_more(self, n=3):
        """Wait for so many more commands; return them."""
        there = len(self.commands)
        self.spin_until(lambda: len(self.commands) >= there + n, "commands")
        return self.commands[there:]

    def hear_beats(self, state, n=5):
        """Wait for heartbeats with a state; return the commands that came with them."""
        there, before = len(self.commands), len(self.beats)
        self.spin_until(lambda: self.beats[before:].count(state) >= n, f"{n} beats of {state}")
        return self.commands[there:]


@pytest.fixture
def rclpy(monkeypatch):
    """An initialised rclpy that hears no other test."""
    pytest.importorskip("rclpy", exc_type=ImportError)
    monkeypatch.setenv("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    module = load_ros().rclpy
    module.init(args=[], signal_handler_options=module.signals.SignalHandlerOptions.NO)
    yield module
    module.shutdown()


@pytest.fixture
def robot(rclpy):
    made = []

    def make(**options):
        made.append(Robot(rclpy, **options))
        return made[-1]

    yield make
    for one in made:
        one.node.destroy_node()


@pytest.fixture
def policy_node(rclpy):  # noqa: ARG001 - it has to be initialised
    """Makes a `PolicyNode`, and has the robot's executor run it."""
    made = []

    def make(robot, *, policy=None, is_active=True, **settings):
        node = make_node()
        robot.executor.add_node(node)
        made.append(
            PolicyNode(
                node,
                profile=PROFILE,
                schedule=ScheduleSettings(name="open_loop"),
                policy=policy or FakePolicy(),
                settings=NodeSettings(**{"warm_up": 1, "arm": True, **settings}),
            )
        )
        if is_active:
            node.trigger_configure()
            node.trigger_activate()
        return made[-1]

    yield make
    for one in made:
        one.cleanup()
        one.node.destroy_node()


@pytest.fixture
def running(robot, policy_node):
    """A robot and the node that moves it."""
    arm = robot()
    arm.say("estop", False)  # noqa: FBT003
    node = policy_node(arm)
    arm.hear_more()
    return arm, node
