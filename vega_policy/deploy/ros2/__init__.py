"""The policy as a ROS 2 node, and a simulator that plays its robot; `load_ros` needs ``rclpy``."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from vega_policy.spec import ContractError


@dataclass(frozen=True, kw_only=True)
class Ros:
    """The modules of ROS 2 that are used here."""

    rclpy: ModuleType
    parameters: ModuleType
    diagnostics: ModuleType
    geometry: ModuleType
    sensors: ModuleType
    std: ModuleType
    services: ModuleType
    graph: ModuleType


@cache
def load_ros() -> Ros:
    """Import ROS 2.

    Raises:
        ContractError: It is not installed for this Python.
    """
    load = importlib.import_module
    try:
        for part in (
            *("clock", "event_handler", "exceptions", "executors", "lifecycle", "node", "qos"),
            "signals",
        ):
            load(f"rclpy.{part}")
        return Ros(
            rclpy=load("rclpy"),
            parameters=load("rcl_interfaces.msg"),
            diagnostics=load("diagnostic_msgs.msg"),
            geometry=load("geometry_msgs.msg"),
            sensors=load("sensor_msgs.msg"),
            std=load("std_msgs.msg"),
            services=load("std_srvs.srv"),
            graph=load("rosgraph_msgs.msg"),
        )
    except ImportError as error:
        raise ContractError(
            f"ROS 2 is not installed for this Python ({error}); get it with "
            "pip install -e '.[ros]' -c constraints.txt"
        ) from error
