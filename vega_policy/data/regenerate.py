"""Playing a published demonstration again: larger images, no idle steps, failures dropped.

The rules are those of OpenVLA's regenerated LIBERO sets. Each demonstration is started from its own
first state after ten settling steps; an action that does nothing (`is_idle`) is neither stored nor
executed, so the replay is another trajectory than the original; it is kept only if the goal holds
after its last step.

Two differences: simulator and robot states are those the stored images show (upstream puts the state
before the settling steps first), and nothing is rotated on the way, since images are upright here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vega_policy.data.libero_hdf5 import Demo

if TYPE_CHECKING:
    from collections.abc import Mapping

SETTLING_STEPS = 10
SETTLING_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
IDLE_NORM = 1e-4
"""An arm command shorter than this moves nothing."""


@dataclass(frozen=True, eq=False)
class Look:
    """What is stored of one moment."""

    agentview: NDArray[np.uint8]
    """(h, w, 3) RGB, upright."""
    wrist: NDArray[np.uint8]
    ee_state: NDArray[np.float64]
    """(6,) position and axis-angle."""
    gripper_state: NDArray[np.float64]
    """(2,) finger positions."""
    joint_state: NDArray[np.float64]
    """(7,)."""
    robot_state: NDArray[np.float64]
    """(9,) gripper, position, quaternion."""
    state: NDArray[np.float64]
    """(s,) flattened simulator state."""


class Replayer(Protocol):
    """A simulator of the task the demonstration is of."""

    def begin(self, state: NDArray[np.float64], *, index: int) -> None:
        """Reset for the ``index``-th time after seed 0 and put the scene into a state."""
        ...

    def look(self) -> Look:
        """Render and read the sensors."""
        ...

    def step(self, action: NDArray[np.float64]) -> bool:
        """Apply one action; returns whether the goal holds afterwards."""
        ...


def is_idle(action: NDArray[np.float64], previous: NDArray[np.float64] | None) -> bool:
    """Say whether an action moves neither the arm nor the gripper.

    Args:
        action: (7,).
        previous: The last action that was kept; None for the first, where only the arm counts.
    """
    is_still = bool(np.linalg.norm(action[:6]) < IDLE_NORM)
    return is_still and (previous is None or action[6] == previous[6])


def kept_steps(actions: NDArray[np.float64]) -> list[int]:
    """Return the steps of (t, 7) actions that are not idle."""
    kept: list[int] = []
    for step, action in enumerate(actions):
        if not is_idle(action, actions[kept[-1]] if kept else None):
            kept.append(step)
    return kept


def replay(
    replayer: Replayer,
    *,
    actions: NDArray[np.float64],
    first_state: NDArray[np.float64],
    index: int,
    instruction: str,
    attributes: Mapping[str, Any],
) -> Demo | None:
    """Play one demonstration again.

    Args:
        replayer: Of its task.
        actions: (t, 7) as recorded.
        first_state: (s,) of the recording.
        index: Number of the demonstration in its file: how often upstream had reset before.
        instruction: The task in words.
        attributes: What is remembered with the result.

    Returns:
        The new demonstration; None if it fails, or if nothing but idle steps was there.
    """
    replayer.begin(first_state, index=index)
    for _ in range(SETTLING_STEPS):
        replayer.step(np.array(SETTLING_ACTION))
    kept = kept_steps(actions)
    looks: list[Look] = []
    is_done = False
    for step in kept:
        looks.append(replayer.look())
        is_done = replayer.step(actions[step])
    if not is_done:
        return None
    n = len(kept)
    ends = (np.arange(n) == n - 1).astype(np.uint8)
    return Demo(
        agentview=np.stack([look.agentview for look in looks]),
        wrist=np.stack([look.wrist for look in looks]),
        ee_states=np.stack([look.ee_state for look in looks]),
        gripper_states=np.stack([look.gripper_state for look in looks]),
        joint_states=np.stack([look.joint_state for look in looks]),
        robot_states=np.stack([look.robot_state for look in looks]),
        actions=actions[kept],
        states=np.stack([look.state for look in looks]),
        rewards=ends,
        dones=ends,
        expert_mask=np.ones(n, dtype=np.uint8),
        instruction=instruction,
        attributes={
            **attributes,
            "regenerated": True,
            "n_recorded_steps": len(actions),
            "n_steps_to_success": n,
        },
    )
