"""The node and a robot, over real topics, in one process."""

import logging

import numpy as np
import pytest

from vega_policy.deploy.ros2.messages import NS


@pytest.fixture(params=["volatile, best effort", "latched, reliable"])
def estop_qos(request, rclpy):
    qos = rclpy.qos
    if request.param.startswith("volatile"):
        return qos.QoSProfile(depth=1, reliability=qos.ReliabilityPolicy.BEST_EFFORT)
    return qos.QoSProfile(depth=1, durability=qos.DurabilityPolicy.TRANSIENT_LOCAL)


def test_the_chunk_arrives_as_commands_with_a_time_stamp(running):
    robot, node = running
    (action, stamp, is_hold), *_ = robot.hear_more()
    np.testing.assert_array_equal(action, np.float32([0.25] * 6 + [1]))
    assert not is_hold
    assert abs(robot.node.get_clock().now().nanoseconds - stamp) < 60 * NS
    assert node.pilot.state == "running"


def test_lifecycle_moves_only_while_active_and_ends_with_a_hold(robot, policy_node):
    arm = robot()
    node = policy_node(arm, is_active=False, arm=False)
    assert node.phase == "unconfigured"
    node.node.trigger_configure()
    assert node.phase == "inactive"
    node.node.trigger_activate()
    assert node.phase == "waiting"
    arm.spin_until(lambda: node.phase == "ready", "readiness")
    assert arm.hear_beats("disarmed") == []
    assert arm.call("rearm").success
    assert not arm.hear_more()[-1][2]
    node.node.trigger_deactivate()
    arm.spin_until(lambda: arm.commands[-1][2], "a hold")
    np.testing.assert_array_equal(arm.commands[-1][0], np.float32([0] * 6 + [1]))  # gripper stays
    node.node.trigger_activate()
    arm.spin_until(lambda: node.phase == "ready", "readiness again")
    assert arm.hear_beats("disarmed") == []
    node.node.trigger_deactivate()
    node.node.trigger_cleanup()
    assert node.phase == "unconfigured"


def test_a_stop_of_any_publisher_is_heard_latched_and_ended_by_a_person(
    robot, policy_node, estop_qos
):
    arm = robot(estop_qos=estop_qos)
    arm.say("estop", False)  # noqa: FBT003
    node = policy_node(arm)
    arm.hear_more()
    arm.say("estop", True)  # noqa: FBT003
    arm.spin_until(lambda: node.pilot.state == "stopped", "the stop")
    arm.hear_beats("stopped", n=1)  # what was on its way has arrived
    assert arm.hear_beats("stopped") == []
    assert "still says stop" in arm.call("rearm").message
    arm.say("estop", False)  # noqa: FBT003
    assert arm.hear_beats("stopped") == []  # the topic presses, it does not release
    arm.spin_until(lambda: arm.call("rearm").success, "the release")
    assert not arm.hear_more()[-1][2]


def test_a_stop_that_was_latched_before_the_node_came_keeps_it_still(robot, policy_node):
    arm = robot()
    arm.say("estop", True)  # noqa: FBT003
    node = policy_node(arm)
    arm.spin_until(lambda: node.phase == "ready", "readiness")
    assert arm.hear_beats("stopped") == []
    assert node.estop.is_pressed


def test_the_stop_service_stops(running):
    robot, node = running
    assert robot.call("stop").success
    robot.hear_beats("stopped", n=1)
    assert robot.hear_beats("stopped") == []
    assert "~/stop" in node.estop.reason
    assert robot.call("rearm").success
    assert robot.hear_more()


def test_a_stop_button_that_vanishes_is_a_stop(running):
    robot, node = running
    robot.lose("estop")
    robot.spin_until(lambda: node.pilot.state == "stopped", "the stop")
    assert "nobody publishes estop" in node.estop.reason
    assert "nobody publishes estop" in robot.call("rearm").message


def test_a_camera_that_stops_is_a_hold_and_its_return_ends_it(running):
    robot, node = running
    robot.parts.discard("wrist")
    robot.spin_until(lambda: robot.commands[-1][2], "a hold")
    np.testing.assert_array_equal(robot.commands[-1][0], np.float32([0] * 6 + [1]))
    assert node.pilot.stats.holds["bad_observation"]
    robot.parts.add("wrist")
    robot.spin_until(lambda: not robot.commands[-1][2], "motion")


def test_a_missing_topic_is_named(robot, policy_node, caplog):
    arm = robot()
    arm.lose("wrist")
    with caplog.at_level(logging.WARNING):
        node = policy_node(arm, wait_s=0.0)
        arm.spin_until(
            lambda: any(d.message == "nobody publishes wrist/image_raw" for d in arm.diagnostics),
            "the diagnosis",
        )
    assert node.phase == "waiting"
    assert "not started" in caplog.text
    assert "nobody publishes wrist/image_raw" in caplog.text
    assert "nobody publishes wrist/image_raw" in arm.call("rearm").message


def test_a_topic_without_messages_and_one_that_cannot_be_read_are_named(robot, policy_node):
    arm = robot()
    arm.encoding = "mono8"
    arm.parts.discard("pose")
    policy_node(arm)
    sentences = ("encoding is 'mono8', expected rgb8", "no message came on ee_pose")
    arm.spin_until(
        lambda: any(all(s in d.message for s in sentences) for d in arm.diagnostics),
        "the diagnosis",
    )
    assert arm.commands == []


def test_a_second_robot_on_the_same_topics_is_refused(robot, policy_node):
    first, second = robot(), robot()
    first.executor.add_node(second.node)
    policy_node(first)
    first.spin_until(
        lambda: any("2 nodes publish agentview" in d.message for d in first.diagnostics),
        "the diagnosis",
    )


def test_a_quality_of_service_that_does_not_match_is_a_start_error(robot, policy_node):
    node = policy_node(robot(instruction_qos=1))  # volatile: a late node would never hear it
    with pytest.raises(Exception, match=r"instruction .* does not match \(DURABILITY"):
        node.spin(lambda: False)


def test_images_of_another_size_than_the_policy_takes_are_a_start_error(robot, policy_node):
    arm = robot()

    class Fixed(type(policy_node(arm, is_active=False)._policy)):
        image_px = 128

    node = policy_node(arm, policy=Fixed())
    arm.spin_until(lambda: node.fault is not None, "the refusal")
    assert "agentview has 8 x 8 pixels, the policy takes 128" in str(node.fault)


def test_a_dry_run_decides_and_publishes_nothing(robot, policy_node):
    arm = robot()
    node = policy_node(arm, dry_run=True)
    assert arm.hear_beats("running") == []
    assert node.pilot.stats.n_actions


def test_the_diagnosis_says_what_the_pilot_did(running):
    robot, _ = running
    robot.spin_until(
        lambda: robot.diagnostics and robot.diagnostics[-1].level == b"\x00", "a diagnosis"
    )
    values = {pair.key: pair.value for pair in robot.diagnostics[-1].values}
    assert robot.diagnostics[-1].hardware_id == "patient"
    assert values["state"] == "running"
    assert int(values["actions"]) > 0
    assert float(values["interval_ms.p50"]) > 0


def test_a_policy_that_breaks_is_a_hold_with_the_last_gripper(robot, policy_node):
    arm = robot()
    node = policy_node(arm)
    arm.hear_more()
    node._link.fails = "it broke"
    arm.spin_until(lambda: arm.commands[-1][2], "a hold")
    assert arm.commands[-1][0][-1] == 1.0
    node._link.fails = ""
    arm.spin_until(lambda: not arm.commands[-1][2], "motion")
