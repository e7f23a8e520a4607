"""Two policies on the same episodes: is there a difference, and how large.

Letters: n pairs; b of them won by A alone, c won by B alone. The difference is A minus B, (b - c)/n.
The pairs that both win or both lose say nothing about which is better, but they do say how large a
difference can be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from vega_policy.rollout.power import detectable_difference

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Verdict = Literal["separated: A is better", "separated: B is better", "not separated"]
"""``not separated`` is not "equal": it says that these pairs do not tell."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The fourfold table of paired episodes."""

    n_both: int = 0
    """Won by both."""
    n_a_only: int = 0
    """b: won by A, not by B."""
    n_b_only: int = 0
    """c: won by B, not by A."""
    n_neither: int = 0

    @classmethod
    def of(cls, outcomes: Iterable[tuple[bool, bool]]) -> Pairs:
        """Count pairs of (A won, B won)."""
        found = list(outcomes)
        return cls(
            n_both=found.count((True, True)),
            n_a_only=found.count((True, False)),
            n_b_only=found.count((False, True)),
            n_neither=found.count((False, False)),
        )

    @property
    def n(self) -> int:
        """All pairs."""
        return self.n_both + self.n_a_only + self.n_b_only + self.n_neither

    @property
    def successes_a(self) -> int:
        """Episodes won by A."""
        return self.n_both + self.n_a_only

    @property
    def successes_b(self) -> int:
        """Episodes won by B."""
        return self.n_both + self.n_b_only

    @property
    def discordant(self) -> float | None:
        """Share of pairs that end differently; None without pairs."""
        return (self.n_a_only + self.n_b_only) / self.n if self.n else None

    @property
    def difference(self) -> float | None:
        """Success rate of A minus that of B; None without pairs."""
        return (self.n_a_only - self.n_b_only) / self.n if self.n else None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the pairs of one group say."""

    name: str
    pairs: Pairs
    interval: tuple[float, float]
    """Of the difference; not adjusted for the number of groups."""
    p_value: float
    p_adjusted: float
    """Holm's, over the groups that were tested together."""
    verdict: Verdict
    detectable: float | None
    """Smallest difference that a test like this one finds with the wanted power, given the share
    of discordant pairs seen here; None where no difference is large enough."""

    @property
    def difference(self) -> float:
        """Success rate of A minus that of B; 0 without pairs."""
        return self.pairs.difference or 0.0

    @property
    def is_best_case(self) -> bool:
        """Whether ``detectable`` needs more discordant pairs than there were, won by one alone."""
        return self.detectable is not None and self.detectable > (self.pairs.discordant or 0.0)


def judge(
    groups: Sequence[tuple[str, Pairs]], *, alpha: float = 0.05, power: float = 0.8
) -> list[Finding]:
    """Test groups that belong together; their p values are adjusted for one another.

    The verdict follows the exact test. The interval rests on a score test, which is a little less
    strict: with few discordant pairs it can exclude 0 where the verdict is ``not separated``.

    Args:
        groups: Name and pairs of each.
        alpha: Chance of any false "separated" among the groups; the interval covers 1 - alpha.
        power: What ``detectable`` is for.
    """
    p_values = [mcnemar(pairs.n_a_only, pairs.n_b_only) for _, pairs in groups]
    return [
        Finding(
            name=name,
            pairs=pairs,
            interval=difference_interval(
                pairs.n_a_only, pairs.n_b_only, pairs.n, confidence=1 - alpha
            ),
            p_value=p,
            p_adjusted=adjusted,
            verdict=_verdict(pairs, is_significant=adjusted <= alpha),
            # Holm asks this much of the first of several groups: what is safe to promise each.
            detectable=detectable_difference(
                pairs.n,
                discordant=pairs.discordant or 0.0,
                alpha=alpha / len(groups),
                power=power,
            ),
        )
        for (name, pairs), p, adjusted in zip(groups, p_values, holm(p_values), strict=True)
    ]


def _verdict(pairs: Pairs, *, is_significant: bool) -> Verdict:
    if not is_significant:
        return "not separated"
    if pairs.n_a_only > pairs.n_b_only:
        return "separated: A is better"
    return "separated: B is better"


def mcnemar(b: int, c: int) -> float:
    """Return the two-sided p value of McNemar's exact test: heads and tails of a fair coin.

    1 where no pair is discordant.
    """
    from scipy.stats import binomtest

    return float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values that are looked at together (Holm 1979), in the order they came."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def difference_interval(b: int, c: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of the difference of two paired success rates.

    Tango 1998, Statistics in Medicine 17:891-908: every difference that the score test does not
    refuse. It has width where no pair is discordant, stays within -1 to 1, and is among the three
    that Fagerland, Lydersen and Laake 2014 (Statistics in Medicine 33:2850-2875) recommend.
    ``(-1, 1)`` without pairs.

    Raises:
        ValueError: There are more discordant pairs than pairs, or a negative number.
    """
    if min(b, c) < 0 or b + c > n:
        raise ValueError(f"{b} and {c} discordant of {n} pairs")
    if n == 0:
        return (-1.0, 1.0)
    from scipy.optimize import brentq

    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    estimate = (b - c) / n

    def root(sign: float, left: float, right: float) -> float:
        found = brentq(lambda d: sign * _score(d, b=b, c=c, n=n) - z, left, right, xtol=1e-12)
        return float(found)  # pyright: ignore[reportArgumentType] - only full_output has two

    low = root(1, -1.0, estimate) if estimate > -1 else estimate
    high = root(-1, estimate, 1.0) if estimate < 1 else estimate
    return (low, high)


def _score(difference: float, *, b: int, c: int, n: int) -> float:
    """Return the standardised distance of what was seen from ``difference`` (Tango's T)."""
    distance = b - c - n * difference
    if abs(distance) < 1e-12 * n:
        return 0.0
    # The likeliest share of "B alone", given the difference: larger root of 2n q^2 + h q + k = 0.
    h = -b - c + (2 * n - b + c) * difference
    k = -c * difference * (1 - difference)
    q = (math.sqrt(max(0.0, h * h - 8 * n * k)) - h) / (4 * n)
    variance = n * (2 * q + difference * (1 - difference))
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)
