"""Settings as ROS parameters: what a launch file says goes before the command line's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vega_policy.deploy.ros2 import load_ros
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SCALARS = (bool, int, float, str)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the script's own arguments, and those from ``--ros-args`` on."""
    at = list(arguments).index("--ros-args") if "--ros-args" in arguments else len(arguments)
    return list(arguments[:at]), list(arguments[at:])


def declared(
    node: Any,  # noqa: ANN401 - ROS may not be installed
    config: Mapping[str, Any],
    *,
    secret: Sequence[str] = (),
) -> dict[str, Any]:
    """Declare every setting as a read-only parameter; return the settings with ROS's overrides.

    Args:
        node: An ``rclpy`` node.
        config: Nested settings; the name of a parameter is the dotted path.
        secret: Dotted names that no other node is to read.

    Raises:
        ContractError: An override has another type than the setting.
    """
    return _declared(node, config, prefix="", secret=frozenset(secret))


def _declared(
    node: Any,  # noqa: ANN401
    config: Mapping[str, Any],
    *,
    prefix: str,
    secret: frozenset[str],
) -> dict[str, Any]:
    ros = load_ros()
    settings: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            settings[key] = _declared(node, value, prefix=f"{name}.", secret=secret)
        elif name in secret or not _fits(value):
            settings[key] = value
        else:
            about = ros.parameters.ParameterDescriptor(read_only=True, dynamic_typing=value is None)
            try:
                given = node.declare_parameter(name, value, about).value
            except ros.rclpy.exceptions.InvalidParameterTypeException as error:
                raise ContractError(
                    f"ROS parameter {name} has another type than {value!r}: {error}"
                ) from error
            settings[key] = list(given) if isinstance(value, list) else given
    return settings


def _fits(value: object) -> bool:
    """Whether ROS has a type for it."""
    if isinstance(value, list):
        return bool(value) and any(all(type(x) is kind for x in value) for kind in _SCALARS)
    return value is None or isinstance(value, _SCALARS)
