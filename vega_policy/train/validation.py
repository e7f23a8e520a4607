"""How far the average weights are from the expert on demonstrations they never saw.

Shape legend: ``m`` samples, ``t`` steps of a chunk.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vega_policy.policy.statistics import choose_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vega_policy.data.chunks import Batch, ChunkDataset
    from vega_policy.policy.statistics import DatasetStatistics
    from vega_policy.train.learner import Learner

POSITION_UNIT_MM = 50.0
ROTATION_UNIT_DEG = math.degrees(0.5)
"""What an action of 1 asks of robosuite's OSC_POSE controller, at its default output range."""
NAMES = ("x_mm", "y_mm", "z_mm", "roll_deg", "pitch_deg", "yaw_deg")


def validate(
    learner: Learner,
    batches: Sequence[Batch],
    *,
    dataset: ChunkDataset,
    statistics: Mapping[str, DatasetStatistics],
) -> dict[str, float]:
    """Compare predictions with held-out chunks.

    Returns:
        ``val/loss`` (L1 of normalised actions, whatever the head was trained by), ``val/first_loss`` (of the first
        step alone), ``val/<number>`` mean absolute errors of one control step in millimetres and
        degrees, and ``val/gripper_accuracy``. Empty where nothing is held out.
    """
    if not batches:
        return {}
    errors: list[Tensor] = []
    right: list[Tensor] = []
    physical: list[Tensor] = []
    with learner.average.applied():
        for batch in batches:
            predicted = learner.predict(batch).cpu()
            error = (predicted - batch.targets).abs()
            errors.append(error)
            right.append((predicted[..., 6] > 0.5) == (batch.targets[..., 6] > 0.5))
            physical.append(error[..., :6] * _units(batch, dataset, statistics))
    error = torch.cat(errors)
    per_number = torch.cat(physical).mean(dim=(0, 1)).tolist()
    return {
        "val/loss": float(error.mean()),
        "val/first_loss": float(error[:, 0].mean()),
        **{f"val/{name}": value for name, value in zip(NAMES, per_number, strict=True)},
        "val/gripper_accuracy": float(torch.cat(right).float().mean()),
    }


def _units(
    batch: Batch, dataset: ChunkDataset, statistics: Mapping[str, DatasetStatistics]
) -> Tensor:
    """Return (m, 1, 6) millimetres or degrees per unit of normalised action."""
    unit = np.array([POSITION_UNIT_MM] * 3 + [ROTATION_UNIT_DEG] * 3)
    rows = [
        0.5 * (bounds.q99 - bounds.q01)[:6] * unit
        for bounds in (
            statistics[
                choose_key(statistics, dataset.files[dataset.locate(int(row))[0]].suite)
            ].action
            for row in batch.rows
        )
    ]
    return torch.from_numpy(np.stack(rows)).float().unsqueeze(1)
