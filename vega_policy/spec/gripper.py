"""Gripper conventions, defined once.

Environment command: -1 opens, +1 closes. Training target of OpenVLA-OFT: 1 is open, 0 is closed,
regressed without normalisation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def command_to_target(command: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Turn environment commands (-1 open, +1 close) into training targets (1 open, 0 closed)."""
    return (1.0 - np.clip(command, 0.0, 1.0)).astype(np.float32)


def target_to_command(target: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Turn regressed targets into commands: above 0.5 opens (-1), below closes (+1), 0.5 is 0."""
    return (-np.sign(2.0 * np.asarray(target) - 1.0)).astype(np.float32)
