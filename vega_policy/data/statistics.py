"""Statistics of a data set, in the layout OpenVLA-OFT publishes with its checkpoints.

The formulas that use them belong to the policy; here they are only counted. Quantiles are taken over
every step, after the gripper became a training target (1 open, 0 closed), in float32, as in
OpenVLA-OFT. One difference: steps whose action the expert did not choose are left out of the action
statistics, since no target contains them; public files have no such steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vega_policy.spec.gripper import command_to_target

if TYPE_CHECKING:
    from numpy.typing import NDArray

ACTION_MASK = (True, True, True, True, True, True, False)
"""Which action numbers are normalised: all but the gripper."""


def action_targets(actions: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Turn (t, 7) environment commands into unnormalised targets: the gripper becomes 1 open, 0 closed."""
    targets = np.asarray(actions, dtype=np.float32).copy()
    targets[..., 6] = command_to_target(targets[..., 6])
    return targets


def compute_statistics(
    *,
    targets: NDArray[np.float32],
    proprio: NDArray[np.float32],
    expert_mask: NDArray[np.uint8],
    n_trajectories: int,
) -> dict[str, Any]:
    """Count the statistics of one data set.

    Args:
        targets: (t, 7) of `action_targets`, every step of every demonstration.
        proprio: (t, 8).
        expert_mask: (t,) 1 where the expert chose the action.
        n_trajectories: Number of demonstrations.

    Returns:
        ``action`` and ``proprio`` (mean, std, max, min, q01, q99; the action also its mask),
        ``num_transitions`` and ``num_trajectories``, JSON values only.
    """
    return {
        "action": {**_moments(targets[expert_mask.astype(bool)]), "mask": list(ACTION_MASK)},
        "proprio": _moments(proprio),
        "num_transitions": len(targets),
        "num_trajectories": n_trajectories,
    }


def _moments(values: NDArray[np.float32]) -> dict[str, list[float]]:
    rows = {
        "mean": values.mean(axis=0, dtype=np.float64),
        "std": values.std(axis=0, dtype=np.float64),
        "max": values.max(axis=0),
        "min": values.min(axis=0),
        "q01": np.quantile(values, 0.01, axis=0),
        "q99": np.quantile(values, 0.99, axis=0),
    }
    return {name: [float(x) for x in row] for name, row in rows.items()}
