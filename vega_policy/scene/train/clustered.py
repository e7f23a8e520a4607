"""Means over questions with intervals that know that questions of one scene are alike.

Questions about one room share its furniture, so they are no independent draws; rooms are. The chance of
training is not in the intervals: they say what other rooms would give the same weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over questions."""

    value: float
    interval: tuple[float, float]
    """Of the mean, at 95 % if not said otherwise; infinite with fewer than two scenes."""
    n: int
    """Questions."""
    n_scenes: int

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval: what a difference is called separated by."""
        return self.interval[0] > 0 or self.interval[1] < 0


def clustered_mean(
    values: Mapping[str, float], scenes: Mapping[str, str], *, confidence: float = 0.95
) -> Mean:
    """Return the mean over questions with its cluster-robust interval.

    With ``T_s`` the sum and ``n_s`` the number of the values of scene ``s``, ``S`` scenes and ``n``
    questions, the variance of the mean ``m`` is ``S / (S - 1) * sum (T_s - m n_s)^2 / n^2``: the
    linearised variance of a ratio estimate (Cochran 1977, Sampling Techniques, chapter 6), which
    is also the clustered standard error of Miller 2024 (arXiv:2411.00640) times ``S / (S - 1)``. The
    interval is Student's with ``S - 1`` degrees of freedom.

    Args:
        values: By question.
        scenes: Scene of each question.
        confidence: Of the interval.

    Raises:
        ValueError: There are no values.
    """
    from scipy.stats import t

    if not values:
        raise ValueError("no values to average")
    names = sorted({scenes[key] for key in values})
    total, count = np.zeros(len(names)), np.zeros(len(names))
    place = {name: i for i, name in enumerate(names)}
    for key, value in values.items():
        total[place[scenes[key]]] += value
        count[place[scenes[key]]] += 1
    n, s = int(count.sum()), len(names)
    mean = float(total.sum() / n)
    if s < 2:
        return Mean(value=mean, interval=(-math.inf, math.inf), n=n, n_scenes=s)
    variance = s / (s - 1) * float(np.square(total - mean * count).sum()) / n**2
    half = float(t.ppf(0.5 + confidence / 2, s - 1)) * math.sqrt(variance)
    return Mean(value=mean, interval=(mean - half, mean + half), n=n, n_scenes=s)


def paired_difference(
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    scenes: Mapping[str, str],
    *,
    confidence: float = 0.95,
) -> Mean:
    """Return the mean over questions of ours minus theirs; see `clustered_mean`.

    Raises:
        ValueError: The two answered different questions.
    """
    if ours.keys() != theirs.keys():
        differ = sorted(ours.keys() ^ theirs.keys())
        raise ValueError(f"{len(differ)} questions have one answer only, {differ[:3]} first")
    return clustered_mean(
        {key: ours[key] - theirs[key] for key in ours}, scenes, confidence=confidence
    )
