"""Settings as ROS parameters."""

import pytest

from vega_policy.deploy.ros2.parameters import declared
from vega_policy.spec import ContractError

CONFIG = {
    "api_key": "secret",
    "schedule": {"name": "asynchronous", "n_execute": None, "blend": 1.0},
    "topics": {"finger_joints": ["left", "right"], "finger_signs": [1.0, -1.0]},
    "robot": {"action": {}, "limits": {"workspace_m": [[0, 0, 0], [1, 1, 1]]}},
}


@pytest.fixture
def node_with(rclpy):
    made = []

    def make(*overrides):
        arguments = ["--ros-args", *(word for o in overrides for word in ("-p", o))]
        made.append(rclpy.create_node("parameters", cli_args=arguments))
        return made[-1]

    yield make
    for node in made:
        node.destroy_node()


def test_every_setting_is_a_parameter_and_the_secret_is_none(node_with):
    node = node_with()
    assert declared(node, CONFIG, secret=("api_key",)) == CONFIG
    assert node.get_parameter("schedule.name").value == "asynchronous"
    assert node.get_parameter("topics.finger_joints").value == ["left", "right"]
    assert not node.has_parameter("api_key")


def test_what_ros_says_goes_first(node_with):
    node = node_with("schedule.name:=open_loop", "schedule.n_execute:=4", "api_key:=other")
    settings = declared(node, CONFIG, secret=("api_key",))
    assert settings["schedule"] == {"name": "open_loop", "n_execute": 4, "blend": 1.0}
    assert settings["api_key"] == "secret"


def test_another_type_is_refused(node_with):
    with pytest.raises(ContractError, match=r"schedule\.blend has another type than 1\.0"):
        declared(node_with("schedule.blend:=often"), CONFIG)


def test_a_parameter_does_not_change_while_the_node_runs(node_with, rclpy):
    node = node_with()
    declared(node, CONFIG)
    (result,) = node.set_parameters([rclpy.Parameter("schedule.name", value="open_loop")])
    assert not result.successful
