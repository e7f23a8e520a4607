"""Statistics of the training data, and the data normalised by them.

Shape legend: ``n`` rows (steps of all files of a data set).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vega_policy.policy.statistics import DatasetStatistics, compute_statistics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vega_policy.data.chunks import ChunkDataset


@dataclass(frozen=True, eq=False)
class NormalisedRows:
    """What the model is fed and asked for, row by row."""

    targets: NDArray[np.float32]
    """(n, 7) six numbers in [-1, 1], the gripper 1 open and 0 closed."""
    proprio: NDArray[np.float32]
    """(n, 8) in [-1, 1]."""


def measure(dataset: ChunkDataset) -> dict[str, DatasetStatistics]:
    """Measure the statistics of each suite, keyed by its name.

    Every step counts, as in OpenVLA-OFT, with one difference: actions that the expert did not choose
    are left out of the action statistics, since no target contains them.
    """
    result: dict[str, DatasetStatistics] = {}
    for suite in sorted({file.suite for file in dataset.files}):
        rows = dataset.rows_of_suite(suite)
        n_demos = sum(len(f.lengths) for f in dataset.files if f.suite == suite)
        whole, chosen = (
            compute_statistics(dataset.targets[r], dataset.proprio[r], num_trajectories=n_demos)
            for r in (rows, rows[dataset.expert_mask[rows] != 0])
        )
        result[suite] = replace(whole, action=chosen.action)
    return result


def normalised(
    dataset: ChunkDataset, statistics: Mapping[str, DatasetStatistics]
) -> NormalisedRows:
    """Normalise each row with the statistics of its suite."""
    targets = np.empty(dataset.targets.shape, dtype=np.float32)
    proprio = np.empty(dataset.proprio.shape, dtype=np.float32)
    for suite in {file.suite for file in dataset.files}:
        rows = dataset.rows_of_suite(suite)
        targets[rows] = statistics[suite].action.normalise_target(dataset.targets[rows])
        proprio[rows] = statistics[suite].proprio.normalise(dataset.proprio[rows])
    return NormalisedRows(targets=targets, proprio=proprio)
