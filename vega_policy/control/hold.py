"""How a controller is told to stay where it is; declared per controller, never guessed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vega_policy.spec import ActionSpec, ContractError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DELTAS = ("osc_pose_delta",)
"""Controllers whose command is a change of the pose at execution."""


def hold_action(spec: ActionSpec, *, gripper: float) -> NDArray[np.float32]:
    """Return the command (size,) that keeps the arm where it is and the fingers as told last.

    A zero change refers to the measured pose: drift and pushes are accepted, not corrected.

    Raises:
        ContractError: The controller has no declared hold; zeros would be a pose to one that
            takes poses.
    """
    require_delta(spec, what="holding")
    action = np.zeros(spec.size, dtype=np.float32)
    action[-1] = gripper
    return action


def require_delta(spec: ActionSpec, *, what: str) -> None:
    """Refuse what is right for changes of a pose only.

    Raises:
        ContractError: The controller takes something else.
    """
    if spec.control not in DELTAS:
        raise ContractError(
            f"{what} is declared for {', '.join(DELTAS)}, not for the controller {spec.control!r}; "
            "add what it needs to vega_policy/control/hold.py"
        )
