"""What the ROS 2 messages mean to the policy; works on any object with a message's fields.

Standard messages only: own types would need a ROS build of both sides.

    sensor_msgs/Image           a camera, upright, ``rgb8`` or ``bgr8``
    geometry_msgs/PoseStamped   end effector in the frame of the workspace
    sensor_msgs/JointState      fingers, among whatever other joints
    std_msgs/String             the instruction
    std_msgs/Bool               the emergency stop
    sensor_msgs/Joy             the command: the one standard message with a time stamp and a vector
                                of numbers from -1 to 1 that have no unit
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vega_policy.control.link import Command, Seen
from vega_policy.spec import AGENTVIEW, CAMERAS, WRIST, Observation
from vega_policy.spec.rotation import quat_to_axis_angle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

NS = 1_000_000_000
_CHANNELS = {"rgb8": slice(None), "bgr8": slice(None, None, -1)}


class MessageProblem(ValueError):
    """A message that cannot be used; the sentence says why."""


@dataclass(frozen=True, kw_only=True)
class Topics:
    """Names; relative ones are completed by the node's namespace."""

    agentview: str = "agentview/image_raw"
    wrist: str = "wrist/image_raw"
    pose: str = "ee_pose"
    fingers: str = "joint_states"
    instruction: str = "instruction"
    estop: str = "estop"
    command: str = "policy/command"
    heartbeat: str = "policy/heartbeat"


@dataclass(frozen=True, kw_only=True)
class Fingers:
    """Which joints of a ``JointState`` are the fingers, and their signs.

    A Franka driver counts both fingers as positive, the training data the second as negative.
    """

    joints: tuple[str, str] = ("panda_finger_joint1", "panda_finger_joint2")
    signs: tuple[float, float] = (1.0, -1.0)


class Stamp(Protocol):
    """``builtin_interfaces/Time``."""

    sec: int
    nanosec: int


def stamp_ns(stamp: Stamp) -> int:
    """Return a time stamp in nanoseconds."""
    return stamp.sec * NS + stamp.nanosec


def set_stamp(stamp: Stamp, ns: int) -> None:
    """Write a time in nanoseconds into a message."""
    stamp.sec, stamp.nanosec = divmod(ns, NS)


def read_image(message: Any) -> NDArray[np.uint8]:  # noqa: ANN401
    """Return the (h, w, 3) RGB image of a ``sensor_msgs/Image``.

    Raises:
        MessageProblem: Another encoding, or fewer bytes than its size needs.
    """
    if message.encoding not in _CHANNELS:
        raise MessageProblem(
            f"encoding is {message.encoding!r}, expected {' or '.join(_CHANNELS)}; convert it first"
        )
    h, w, step = message.height, message.width, message.step
    if min(h, w) < 1 or step < 3 * w or len(message.data) != h * step:
        raise MessageProblem(f"{len(message.data)} bytes for {h} rows of {step} ({w} pixels)")
    rows = np.frombuffer(message.data, np.uint8).reshape(h, step)[:, : 3 * w]
    return np.ascontiguousarray(rows.reshape(h, w, 3)[..., _CHANNELS[message.encoding]])


def read_pose(message: Any) -> NDArray[np.float64]:  # noqa: ANN401
    """Return position and axis-angle (6,) of a ``geometry_msgs/PoseStamped``.

    A quaternion and its negative are one orientation and two axis-angles. The training data has
    the one around +x; drivers choose as they like, so the sign is set here.

    Raises:
        MessageProblem: The quaternion has not length 1.
    """
    p, q = message.pose.position, message.pose.orientation
    quaternion = np.array([q.x, q.y, q.z, q.w])
    length = float(np.linalg.norm(quaternion))
    if not math.isclose(length, 1.0, abs_tol=1e-3):
        raise MessageProblem(f"the quaternion has length {length:.4g}, expected 1")
    if quaternion[0] < 0:
        quaternion = -quaternion
    return np.concatenate([[p.x, p.y, p.z], quat_to_axis_angle(quaternion)])


def read_fingers(message: Any, fingers: Fingers) -> NDArray[np.float64]:  # noqa: ANN401
    """Return the finger positions (2,) of a ``sensor_msgs/JointState``, signed as in training.

    Raises:
        MessageProblem: A finger is not among its joints.
    """
    by_name = dict(zip(message.name, message.position, strict=False))
    missing = [name for name in fingers.joints if name not in by_name]
    if missing:
        raise MessageProblem(f"no position of {', '.join(missing)}; it has {sorted(by_name)}")
    return np.array([s * by_name[n] for n, s in zip(fingers.joints, fingers.signs, strict=True)])


def read_command(message: Any) -> tuple[NDArray[np.float32], int, bool]:  # noqa: ANN401
    """Return action (size,), time stamp in nanoseconds, and whether it is a hold."""
    return (
        np.asarray(message.axes, dtype=np.float32),
        stamp_ns(message.header.stamp),
        bool(message.buttons and message.buttons[0]),
    )


def write_image(message: Any, image: NDArray[np.uint8]) -> None:  # noqa: ANN401
    """Fill a ``sensor_msgs/Image`` with an (h, w, 3) RGB image."""
    message.height, message.width = image.shape[:2]
    message.encoding, message.step = "rgb8", 3 * image.shape[1]
    message.data = image.tobytes()  # a list takes a hundred times as long


def write_pose(message: Any, proprio: NDArray[np.floating[Any]]) -> None:  # noqa: ANN401
    """Fill a ``geometry_msgs/PoseStamped`` with the first six numbers of a proprioception."""
    rotation = np.asarray(proprio[3:6], dtype=np.float64)
    angle = float(np.linalg.norm(rotation))
    xyz = rotation * (math.sin(angle / 2) / angle) if angle else rotation
    p, q = message.pose.position, message.pose.orientation
    p.x, p.y, p.z = (float(x) for x in proprio[:3])
    q.x, q.y, q.z, q.w = *(float(x) for x in xyz), math.cos(angle / 2)


def write_fingers(
    message: Any,  # noqa: ANN401
    proprio: NDArray[np.floating[Any]],
    fingers: Fingers,
) -> None:
    """Fill a ``sensor_msgs/JointState`` with the last two numbers of a proprioception."""
    message.name = list(fingers.joints)
    message.position = [s * float(x) for s, x in zip(fingers.signs, proprio[6:8], strict=True)]


def write_command(message: Any, command: Command, *, stamp: int) -> None:  # noqa: ANN401
    """Fill a ``sensor_msgs/Joy``: the action in ``axes``, 1 in ``buttons`` where it is a hold."""
    if command.action is None:
        raise ValueError("a stop is the silence of the topic, not a message")
    set_stamp(message.header.stamp, stamp)
    message.axes = [float(x) for x in command.action]
    message.buttons = [int(command.kind == "hold")]


@dataclass(frozen=True, eq=False)
class _Newest:
    value: Any
    stamp: int
    """Of its header, in nanoseconds."""
    taken_s: float
    """The same on the loop's clock."""


@dataclass(eq=False)
class Inbox:
    """The newest of each message; together they are an observation."""

    instruction: str = ""
    _newest: dict[str, _Newest] = field(default_factory=dict, repr=False)

    PARTS = (AGENTVIEW, WRIST, "pose", "fingers")

    def put(self, part: str, value: NDArray[Any], *, stamp: int, taken_s: float) -> None:
        """Keep a part in place of the one before."""
        self._newest[part] = _Newest(value, stamp, taken_s)

    @property
    def missing(self) -> list[str]:
        """Parts that never came."""
        return [
            *(part for part in self.PARTS if part not in self._newest),
            *(["instruction"] if not self.instruction else []),
        ]

    @property
    def stamps(self) -> Mapping[str, int]:
        """Nanoseconds, by part."""
        return {part: newest.stamp for part, newest in self._newest.items()}

    def seen(self) -> Seen | None:
        """Return the newest of everything; None while something never came."""
        if self.missing:
            return None
        new = dict(self._newest)
        proprio = np.concatenate([new["pose"].value, new["fingers"].value]).astype(np.float32)
        images = {camera: new[camera].value for camera in CAMERAS}
        stamps_s = {camera: new[camera].taken_s for camera in CAMERAS}
        stamps_s["proprio"] = min(new["pose"].taken_s, new["fingers"].taken_s)
        return Seen(observation=Observation(images, proprio, self.instruction), stamps_s=stamps_s)
