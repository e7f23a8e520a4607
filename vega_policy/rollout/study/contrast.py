"""The difference of two arms over training seeds and episodes, with an interval that means both.

Letters: s training seeds (rows), e episodes (columns), d the paired differences (s, e): 1 where the
arm alone succeeded, -1 where the reference alone did, else 0. Both arms are trained with the same
seeds and play the same episodes.

An interval over episodes alone would be about these trained weights, one over seeds alone about these
episodes; readers want to know about the next training run on the next episodes. So a difference
counts only where it stands against the spread over seeds, the spread over episodes, and both together
(two-way clustered: Cameron, Gelbach and Miller 2011, with Satterthwaite's degrees of freedom); the
widest interval is reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from vega_policy.rollout.paired import holm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

Verdict = Literal["better", "worse", "not separated"]
"""Of the arm against the reference; ``not separated`` is not "equal"."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """An arm against the reference; differences are shares, the arm minus the reference."""

    name: str
    n_seeds: int
    n_episodes: int
    difference: float
    by_seed: tuple[float, ...]
    """Difference of each training seed."""
    error_seeds: float
    """Standard error from the spread between seeds; 0 with one."""
    error_episodes: float
    """Standard error from the spread between episodes, each with all its seeds."""
    interval: tuple[float, float]
    """The widest of three: t over seeds, over episodes, over both together; (-1, 1) with one seed."""
    p_value: float
    """The largest of the three tests'; 1 with one seed."""
    p_adjusted: float
    """Holm's, over the contrasts that were tested together."""
    verdict: Verdict
    detectable: float | None
    """Difference that such a study finds with the wanted power, given the spread seen here; None
    with one seed."""


def contrast(
    differences: Mapping[str, NDArray[np.float64]],
    *,
    alpha: float = 0.05,
    power: float = 0.8,
) -> list[Contrast]:
    """Test arms against one reference; their p values are adjusted for one another.

    Args:
        differences: (s, e) by name of the arm.
        alpha: Chance of any false "better" or "worse"; an interval covers 1 - alpha.
        power: What ``detectable`` is for.

    Raises:
        ValueError: An arm has no seed, or fewer than two episodes.
    """
    whole = {name: np.asarray(d, dtype=np.float64) for name, d in differences.items()}
    for name, d in whole.items():
        if d.ndim != 2 or d.shape[0] < 1 or d.shape[1] < 2:
            raise ValueError(f"differences of {name} have shape {d.shape}; pass (seeds, episodes)")
    p_values = [_p_value(d) for d in whole.values()]
    results: list[Contrast] = []
    for (name, d), p, adjusted in zip(whole.items(), p_values, holm(p_values), strict=True):
        mean, (n_seeds, n_episodes) = float(d.mean()), d.shape
        verdict: Verdict = "not separated"
        if adjusted <= alpha:
            verdict = "better" if mean > 0 else "worse"
        results.append(
            Contrast(
                name=name,
                n_seeds=n_seeds,
                n_episodes=n_episodes,
                difference=mean,
                by_seed=tuple(float(x) for x in d.mean(axis=1)),
                error_seeds=_error(d.mean(axis=1)),
                error_episodes=_error(d.mean(axis=0)),
                interval=_interval(d, alpha=alpha),
                p_value=p,
                p_adjusted=adjusted,
                verdict=verdict,
                detectable=_least(d, alpha=alpha / len(whole), power=power),
            )
        )
    return results


def detectable(
    *,
    n_seeds: int,
    n_episodes: int,
    discordant: float,
    seed_sd: float,
    n_contrasts: int = 1,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float | None:
    """Return the smallest difference a study finds, from what is assumed before it runs.

    Args:
        n_seeds: Training seeds of each arm.
        n_episodes: Episodes each trained policy plays.
        discordant: Share of pairs of episodes that end differently.
        seed_sd: Standard deviation, over training seeds, of the true difference.
        n_contrasts: Arms that are tested together; the bound is Bonferroni's.
        alpha: Chance of any false finding.
        power: Chance to find it.

    Returns:
        A share; None with one seed, which tells nothing about another training.
    """
    if n_seeds < 2:
        return None
    error = math.sqrt((seed_sd**2 + discordant / n_episodes) / n_seeds)
    return _detectable(error, n_seeds - 1, alpha=alpha / max(1, n_contrasts), power=power)


def _ways(d: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Return standard error and degrees of freedom, over seeds, over episodes and over both."""
    (seeds, df_seeds), (episodes, df_episodes) = ways = [
        (_error(d.mean(axis=axis)), d.shape[1 - axis] - 1.0) for axis in (1, 0)
    ]
    # What seeds and episodes share, the noise of a single outcome, is in both errors: counted once.
    rest = d - d.mean(axis=1, keepdims=True) - d.mean(axis=0, keepdims=True) + d.mean()
    noise = float((rest**2).sum()) / (df_seeds * df_episodes * d.size)
    both = max(seeds**2 + episodes**2 - noise, seeds**2, episodes**2)
    spread = seeds**4 / df_seeds + episodes**4 / df_episodes
    df = (seeds**2 + episodes**2) ** 2 / spread if spread else df_episodes
    return [*ways, (math.sqrt(both), df)]


def _error(means: NDArray[np.float64]) -> float:
    return float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else 0.0


def _interval(d: NDArray[np.float64], *, alpha: float) -> tuple[float, float]:
    from scipy import stats

    if d.shape[0] < 2:
        return (-1.0, 1.0)
    mean = float(d.mean())
    reach = max(float(stats.t.ppf(1 - alpha / 2, df)) * error for error, df in _ways(d))
    return (max(-1.0, mean - reach), min(1.0, mean + reach))


def _p_value(d: NDArray[np.float64]) -> float:
    from scipy import stats

    mean = float(d.mean())
    if d.shape[0] < 2 or mean == 0:
        return 1.0
    return max(
        float(2 * stats.t.sf(abs(mean) / error, df)) if error else 0.0 for error, df in _ways(d)
    )


def _least(d: NDArray[np.float64], *, alpha: float, power: float) -> float | None:
    if d.shape[0] < 2:
        return None
    return max(_detectable(error, df, alpha=alpha, power=power) for error, df in _ways(d))


def _detectable(error: float, df: float, *, alpha: float, power: float) -> float:
    """Solve the power of the t test for the difference."""
    from scipy import optimize, stats

    if error == 0:
        return 0.0
    critical = float(stats.t.ppf(1 - alpha / 2, df))

    def shortfall(ratio: float) -> float:
        return float(stats.nct.sf(critical, df, ratio)) - power

    return error * float(optimize.brentq(shortfall, 0.0, 20.0 * critical))  # pyright: ignore[reportArgumentType]
