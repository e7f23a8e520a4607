"""What the messages mean; no ROS 2 needed."""

from types import SimpleNamespace as Fields

import numpy as np
import pytest

from vega_policy.control.link import Command
from vega_policy.deploy.ros2.messages import (
    Fingers,
    Inbox,
    MessageProblem,
    read_command,
    read_fingers,
    read_image,
    read_pose,
    write_command,
    write_fingers,
    write_image,
    write_pose,
)
from vega_policy.deploy.ros2.parameters import split_arguments


def image(data, *, encoding="rgb8", step=None, shape=(2, 3)):
    h, w = shape
    return Fields(height=h, width=w, step=step or 3 * w, encoding=encoding, data=bytes(data))


def pose(quaternion):
    x, y, z, w = quaternion
    return Fields(
        pose=Fields(position=Fields(x=1.0, y=2.0, z=3.0), orientation=Fields(x=x, y=y, z=z, w=w))
    )


def test_an_image_comes_back_as_it_was_sent():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    message = Fields()
    write_image(message, pixels)
    np.testing.assert_array_equal(read_image(message), pixels)


def test_bgr_is_turned_and_padding_left_out():
    rows = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0], [11, 12, 13, 14, 15, 16, 17, 18, 19, 0, 0]]
    read = read_image(image([*rows[0], *rows[1]], encoding="bgr8", step=11))
    assert read.tolist()[0] == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert read.flags.c_contiguous


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (image(range(18), encoding="mono8"), "'mono8', expected rgb8 or bgr8"),
        (image(range(17)), "17 bytes for 2 rows of 9"),
        (image([], shape=(0, 3)), "0 bytes"),
        (image(range(10), step=5), "10 bytes for 2 rows of 5"),
    ],
)
def test_an_image_that_cannot_be_read_says_why(message, says):
    with pytest.raises(MessageProblem, match=says):
        read_image(message)


def test_pose_and_fingers_come_back_to_the_bit():
    generator = np.random.default_rng(1)
    for _ in range(1000):
        rotation = generator.normal([3.1, 0, 0], [0.1, 0.4, 0.1])  # as in the training data
        proprio = np.float32([*generator.normal(size=3), *rotation, 0.04, -0.04])
        a, b = pose([0, 0, 0, 1]), Fields()
        write_pose(a, proprio)
        write_fingers(b, proprio, Fingers())
        read = np.concatenate([read_pose(a), read_fingers(b, Fingers())]).astype(np.float32)
        np.testing.assert_array_equal(read, proprio)


def test_both_signs_of_a_quaternion_are_one_pose_near_the_training_data():
    quaternion = np.array([0.996, -0.086, -0.001, -0.02])
    quaternion /= np.linalg.norm(quaternion)
    read = read_pose(pose(quaternion))
    np.testing.assert_array_equal(read, read_pose(pose(-quaternion)))
    assert read[3] > np.pi  # beyond pi, not the short way round: see vega_policy.spec.rotation


def test_a_quaternion_that_was_never_set_is_refused():
    with pytest.raises(MessageProblem, match="length 0"):
        read_pose(pose([0, 0, 0, 0]))


def test_fingers_are_found_by_name_and_signed_as_in_training():
    joints = ["elbow", "panda_finger_joint2", "panda_finger_joint1"]
    message = Fields(name=joints, position=[1.0, 0.02, 0.03])
    assert read_fingers(message, Fingers()).tolist() == [0.03, -0.02]
    with pytest.raises(MessageProblem, match="no position of left"):
        read_fingers(message, Fingers(joints=("left", "elbow")))


def test_a_command_says_whether_it_is_a_hold():
    action = np.float32([0.1, 0, 0, 0, 0, 0, 1])
    message = Fields(header=Fields(stamp=Fields()))
    write_command(message, Command(kind="hold", action=action), stamp=7_000_000_005)
    read, stamp, is_hold = read_command(message)
    np.testing.assert_array_equal(read, action)
    assert (stamp, is_hold) == (7_000_000_005, True)
    with pytest.raises(ValueError, match="silence"):
        write_command(message, Command(kind="stop", action=None), stamp=0)


def test_an_observation_is_complete_only_with_all_its_parts():
    inbox = Inbox()
    parts = {"agentview": np.zeros((2, 2, 3)), "wrist": np.ones((2, 2, 3)), "pose": np.arange(6.0)}
    for number, (name, value) in enumerate(parts.items()):
        inbox.put(name, value, stamp=number, taken_s=10.0 + number)
    assert inbox.missing == ["fingers", "instruction"]
    assert inbox.seen() is None
    inbox.put("fingers", np.array([0.1, -0.1]), stamp=9, taken_s=9.0)
    inbox.instruction = "go"
    seen = inbox.seen()
    assert seen.observation.proprio.tolist() == pytest.approx([0, 1, 2, 3, 4, 5, 0.1, -0.1])
    assert seen.stamps_s == {"agentview": 10.0, "wrist": 11.0, "proprio": 9.0}  # of the older half


def test_arguments_of_ros_are_kept_apart():
    assert split_arguments(["a=1", "--ros-args", "-p", "b:=2"]) == (
        ["a=1"],
        ["--ros-args", "-p", "b:=2"],
    )
    assert split_arguments(["a=1"]) == (["a=1"], [])
