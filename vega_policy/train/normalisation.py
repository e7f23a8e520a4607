"""The training data, normalised by the statistics of its suites.

Shape legend: ``n`` rows (steps of all files of a data set).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vega_policy.policy.statistics import choose_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vega_policy.data.chunks import ChunkDataset
    from vega_policy.policy.statistics import DatasetStatistics


@dataclass(frozen=True, eq=False)
class NormalisedRows:
    """What the model is fed and asked for, row by row."""

    targets: NDArray[np.float32]
    """(n, 7) six numbers in [-1, 1], the gripper 1 open and 0 closed."""
    proprio: NDArray[np.float32]
    """(n, 8) in [-1, 1]."""


def normalised(
    dataset: ChunkDataset, statistics: Mapping[str, DatasetStatistics]
) -> NormalisedRows:
    """Normalise each row with the statistics of its suite.

    A number of an action that never varied becomes 0, as in OpenVLA-OFT. Its training does so with
    the proprioception too, its evaluation does not; here a policy is trained on what it will see.
    """
    targets = np.empty(dataset.targets.shape, dtype=np.float32)
    proprio = np.empty(dataset.proprio.shape, dtype=np.float32)
    for suite in {file.suite for file in dataset.files}:
        rows = dataset.rows_of_suite(suite)
        own = statistics[choose_key(statistics, suite)]
        targets[rows] = own.action.normalise_target(dataset.targets[rows])
        proprio[rows] = own.proprio.normalise(dataset.proprio[rows])
    return NormalisedRows(targets=targets, proprio=proprio)
