"""Play the robot of scripts/ros2_node.py from a simulation: one episode, through ROS 2 topics.

python scripts/ros2_simulated_robot.py simulated.task=1
python scripts/ros2_simulated_robot.py simulated.speed=0.2        # node: --ros-args -p use_sim_time:=true
python scripts/ros2_simulated_robot.py simulated.lock_step=true   # node: node.lock_step=true
"""

from __future__ import annotations

import hashlib
import sys
import threading
from dataclasses import asdict
from typing import Any

import numpy as np
from hydra_cli import run
from rollout import build_suite
from ros2_node import read_topics

from vega_policy.control.profile import RobotProfile
from vega_policy.deploy.loop import Spread, ended_by_signals
from vega_policy.deploy.ros2 import load_ros
from vega_policy.deploy.ros2.parameters import split_arguments
from vega_policy.deploy.ros2.simulated_robot import SimulatedRobot

SETTINGS, ROS_ARGUMENTS = split_arguments(sys.argv[1:])


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Play the episode the configuration describes."""
    rclpy = load_ros().rclpy
    chosen = config["simulated"]
    topics, fingers = read_topics(config["topics"])
    suite, make = build_suite(config["suite"])
    simulator = make(suite=suite.name, task_id=chosen["task"], camera_px=chosen["camera_px"])
    ending = threading.Event()
    rclpy.init(args=ROS_ARGUMENTS, signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    node = rclpy.node.Node(chosen["name"])
    try:
        seen, _ = simulator.reset(
            seed=chosen["seed"], options={"init_state_id": chosen["init_state"]}
        )
        robot = SimulatedRobot(
            node,
            simulator,
            seen,
            profile=RobotProfile.from_dict(config["robot"]),
            topics=topics,
            fingers=fingers,
            lock_step=chosen["lock_step"],
            speed=chosen["speed"],
        )
        with ended_by_signals(ending.set):
            robot.run(until=ending.is_set, patience_s=chosen["patience_s"])
        state = np.ascontiguousarray(simulator.sim_state(), dtype="<f8")
        return {
            "success": robot.is_success,
            "steps": robot.n_steps,
            "told_to_hold": robot.n_told_to_hold,
            "held_by_itself": robot.n_holds,
            "command_age_ms": {
                "n": len(robot.ages_s),
                **asdict(Spread.of(robot.ages_s, largest=max(robot.ages_s, default=0.0))),
            },
            "state_sha256": hashlib.sha256(state.tobytes()).hexdigest(),
        }
    finally:
        node.destroy_node()
        rclpy.shutdown()
        simulator.close()


if __name__ == "__main__":
    run("ros2_simulated_robot", main, argv=SETTINGS)
