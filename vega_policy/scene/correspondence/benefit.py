"""Do priors whose features agree between views also help more? A relation, with its honest n."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

LEAST = 5
"""With fewer priors not even a perfect order has p < 0.05 (4: two of 24 orders)."""
_EXACT = 8
"""Up to this many, every order is tried."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """Rank correlation over priors, each of which counts once."""

    names: tuple[str, ...]
    consistency: tuple[float, ...]
    benefit: tuple[float, ...]
    spearman: float | None
    """None with fewer than three priors, or where one side does not vary."""
    p_value: float | None
    """Two-sided permutation p; None as above."""
    unpaired: tuple[str, ...]
    """Names that only one side has, or whose value is unknown."""

    @property
    def n(self) -> int:
        """Priors that have both values."""
        return len(self.names)

    @property
    def verdict(self) -> str:
        """What may be said."""
        if self.spearman is None or self.p_value is None:
            return f"n = {self.n}: no conclusion, a relation needs at least three different priors"
        words = f"Spearman {self.spearman:+.2f} over n = {self.n} priors, permutation p = {self.p_value:.3f}"
        if self.n < LEAST:
            return f"{words}: no conclusion, with n < {LEAST} even a perfect order could be chance"
        if self.p_value >= 0.05:
            return f"{words}: no conclusion, chance alone gives this"
        return f"{words}: related in these runs; the same seeds and scenes stand behind every point"


def consistency_and_benefit(
    consistency: Mapping[str, float | None], benefit: Mapping[str, float | None]
) -> Relation:
    """Relate a score of each prior to what it gained.

    Args:
        consistency: Score by prior, for example `CorrespondenceScore.gap`.
        benefit: Gain by prior, for example the success rate of its arm minus that without a prior.

    Raises:
        ContractError: No name is in both.
    """

    def is_known(name: str) -> bool:
        pair = (consistency.get(name), benefit.get(name))
        return all(value is not None and math.isfinite(value) for value in pair)

    names = [name for name in consistency if is_known(name)]
    if not names:
        raise ContractError(
            f"scores are of {', '.join(consistency)} and benefits of {', '.join(benefit)}; name the "
            "rows of the scores like the arms of the study"
        )
    x = np.array([consistency[name] for name in names], dtype=float)
    y = np.array([benefit[name] for name in names], dtype=float)
    rho = p_value = None
    if len(names) >= 3 and np.ptp(x) > 0 and np.ptp(y) > 0:
        x_rank, y_rank = (_standardised(rankdata(values)) for values in (x, y))
        rho = float(x_rank @ y_rank)
        # The given order is among the draws, so that p is never 0.
        if len(names) <= _EXACT:
            draws = np.array(list(permutations(range(len(y)))))
        else:
            rng = np.random.default_rng(0)
            draws = np.array([np.arange(len(y)), *(rng.permutation(len(y)) for _ in range(9999))])
        p_value = float(np.mean(np.abs(y_rank[draws] @ x_rank) >= abs(rho) - 1e-12))
    return Relation(
        names=tuple(names),
        consistency=tuple(x.tolist()),
        benefit=tuple(y.tolist()),
        spearman=rho,
        p_value=p_value,
        unpaired=tuple(n for n in dict.fromkeys([*consistency, *benefit]) if n not in names),
    )


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values of mean 0 and length 1: the product of two is their correlation."""
    centred = values - values.mean()
    return centred / np.linalg.norm(centred)
