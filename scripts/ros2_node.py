"""Run a policy as a ROS 2 node: cameras and joints in, commands out, 20 times a second.

python scripts/serve.py & python scripts/ros2_node.py                  # policy behind a websocket
python scripts/ros2_node.py node.policy=local node.dry_run=true        # no server, no command
python scripts/ros2_node.py robot=franka_osc --ros-args -r __ns:=/left -p url:=ws://gpu:8000

Every setting is also a ROS parameter of the same name, except lists of lists and the api_key.
SIGINT (Ctrl-C) and SIGTERM send a hold and end.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

from hydra_cli import run
from robot_loop import COLD_S, Source, build_source

from vega_policy.control.profile import RobotProfile
from vega_policy.control.schedule import ScheduleSettings
from vega_policy.deploy.loop import ended_by_signals
from vega_policy.deploy.ros2 import load_ros
from vega_policy.deploy.ros2.messages import Fingers, Topics
from vega_policy.deploy.ros2.node import NodeSettings, PolicyNode, make_node
from vega_policy.deploy.ros2.parameters import declared, split_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vega_policy.control.link import Link
    from vega_policy.spec import ActionSpec

log = logging.getLogger("scripts")

SETTINGS, ROS_ARGUMENTS = split_arguments(sys.argv[1:])


class Policy:
    """The policy of the robot loop, as the node asks for it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.image_px: int | None = source.info.image_px

    @property
    def action_spec(self) -> ActionSpec:
        """What its numbers mean."""
        return self.source.info.action_spec

    def link(self, *, timeout_s: float | None, report: Callable[[], Mapping[str, Any]]) -> Link:
        """Make a link."""
        return self.source.link(timeout_s=COLD_S if timeout_s is None else timeout_s, report=report)


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Run the node the configuration describes."""
    rclpy = load_ros().rclpy
    # rclpy's own handlers lost or crashed on one SIGTERM in eight.
    rclpy.init(args=ROS_ARGUMENTS, signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    node = make_node(config["node"]["name"])
    try:
        return drive(node, declared(node, config, secret=("api_key",)))
    finally:
        node.destroy_node()
        rclpy.shutdown()


def drive(node: Any, config: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """Connect to the policy, run until told to end, and say what happened."""
    ending = threading.Event()
    profile = RobotProfile.from_dict(config["robot"])
    source = build_source({**config, "loop": config["node"]}, profile)
    try:
        policy = PolicyNode(
            node,
            profile=profile,
            schedule=ScheduleSettings(**config["schedule"]),
            policy=Policy(source),
            settings=read_settings(config),
        )
        try:
            if config["node"]["activate"]:
                node.trigger_configure()
                if policy.fault is None:
                    node.trigger_activate()
            with ended_by_signals(ending.set):
                policy.spin(ending.is_set)
        finally:
            policy.cleanup()
    finally:
        source.close()
    return policy.report()


def read_settings(config: dict[str, Any]) -> NodeSettings:
    """Read the user's choices."""
    chosen = config["node"]
    topics, fingers = read_topics(config["topics"])
    names = ("arm", "dry_run", "need_estop", "lock_step", "wait_s", "timeout_s", "warm_up")
    return NodeSettings(topics=topics, fingers=fingers, **{name: chosen[name] for name in names})


def read_topics(config: dict[str, Any]) -> tuple[Topics, Fingers]:
    """Read names of topics and joints."""
    names = dict(config)
    first, second = names.pop("finger_joints")
    signs = names.pop("finger_signs")
    return Topics(**names), Fingers(joints=(first, second), signs=(signs[0], signs[1]))


if __name__ == "__main__":
    run("ros2_node", main, argv=SETTINGS)
