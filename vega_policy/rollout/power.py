"""What a comparison can see: power of the exact McNemar test, before anything is run.

The share of discordant pairs, those that end differently, decides it: two policies that mostly win
and lose the same episodes are told apart by far fewer of them than two unrelated ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from vega_policy.rollout.table import aligned, points, sensitivity
from vega_policy.spec import ContractError

PAIRS = (50, 100, 200, 500, 1000, 2000, 5000)
"""Rows of a table where nothing else is asked for."""
DISCORDANT = (0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What is to be planned; one of ``pairs`` and ``difference`` may be open."""

    pairs: int | list[int] | None = None
    """Episodes that each of two policies plays."""
    difference: float | None = None
    """Between the success rates, as a share."""
    discordant: float | list[float] | None = None
    """Share of pairs that end differently; None takes the outcomes of the policies for
    independent, which pairing only improves on."""
    rate: float = 0.95
    """Success rate near which the policies are."""
    tests: int = 1
    """Tests that are adjusted for one another."""
    alpha: float = 0.05
    power: float = 0.8

    def problems(self) -> list[str]:
        """List what cannot be meant, one sentence each."""
        found: list[str] = []
        for name, values in (
            ("alpha", [self.alpha]),
            ("power", [self.power]),
            ("rate", [self.rate]),
            ("difference", _as_list(self.difference)),
            ("discordant", _as_list(self.discordant)),
        ):
            found += [
                f"{name} is {v!r}; write a share between 0 and 1, such as 0.05"
                for v in values
                if isinstance(v, bool) or not isinstance(v, int | float) or not 0 < v < 1
            ]
        for name, values in (("pairs", _as_list(self.pairs)), ("tests", [self.tests])):
            found += [
                f"{name} is {v!r}; write a whole number of at least 1"
                for v in values
                if isinstance(v, bool) or not isinstance(v, int) or v < 1
            ]
        if not found and self.difference is not None and self.discordant is not None:
            found += [
                f"a difference of {self.difference} needs at least that share of pairs that end "
                f"differently, discordant is {d}"
                for d in _as_list(self.discordant)
                if d < self.difference
            ]
        if not found and self.difference is not None and self.partner is None:
            found.append(
                f"no two success rates differ by {self.difference} where one of them is "
                f"{self.rate}; write a rate of at least {self.difference} or at most "
                f"{1 - self.difference:.3g}"
            )
        return found

    @property
    def partner(self) -> float | None:
        """Success rate of the other policy: the lower one where that is one; None without any."""
        if self.difference is None or self.rate >= self.difference:
            return self.rate - (self.difference or 0.0)
        higher = self.rate + self.difference
        return higher if higher <= 1 else None


@dataclass(frozen=True, kw_only=True)
class DesignRow:
    """One possible comparison."""

    pairs: int
    discordant: float
    difference: float | None
    """What is found with the wanted power; None where nothing is. More than ``discordant`` is the
    best case: so many pairs end differently, and one policy wins them all."""
    power: float
    """How often that difference is found, by the exact test."""
    unpaired: float | None
    """The difference that as many unpaired episodes per policy find or, where the difference was
    given, how many of these it takes."""

    @property
    def is_best_case(self) -> bool:
        """Whether the difference needs more discordant pairs than ``discordant``."""
        return self.difference is not None and self.difference > self.discordant


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a plan comes to."""

    settings: PlanSettings
    asked: DesignRow
    """For the first of what was asked for."""
    rows: tuple[DesignRow, ...]
    """For these and other values, ordered by pairs, then by discordance."""

    @property
    def is_for_difference(self) -> bool:
        """Whether the number of pairs was sought, and not the difference."""
        return self.settings.pairs is None and self.settings.difference is not None

    def to_json(self) -> dict[str, Any]:
        """Return the result in JSON's types; differences as shares."""
        asked, settings = self.asked, self.settings
        unpaired = "pairs_unpaired" if self.is_for_difference else "detectable_unpaired"

        def values(row: DesignRow) -> dict[str, Any]:
            return {
                "pairs": row.pairs,
                "discordant": row.discordant,
                "detectable": row.difference,
                "is_best_case": row.is_best_case,
                unpaired: row.unpaired,
            }

        return {
            **values(asked),
            **(
                {"difference": settings.difference, "power_reached": asked.power}
                if settings.difference is not None
                else {}
            ),
            "alpha": settings.alpha,
            "tests": settings.tests,
            "power": settings.power,
            "rate": settings.rate,
            "table": [values(row) for row in self.rows],
        }


def plan(settings: PlanSettings) -> Design:
    """Work out what pairs can show, or how many pairs a difference takes.

    Raises:
        ContractError: The settings cannot be meant; every problem is listed.
    """
    problems = settings.problems()
    if problems:
        raise ContractError("; ".join(problems))
    wanted = settings.difference
    independent = round(2 * settings.rate * (1 - settings.rate), 6)
    shares = _as_list(settings.discordant) or [max(independent, wanted or 0.0)]
    counts = _as_list(settings.pairs)
    if counts or wanted is None:
        counts = counts or [500]
        asked = _row_for_pairs(counts[0], shares[0], settings)
        rows = [
            _row_for_pairs(n, share, settings)
            for n in sorted({*counts, *PAIRS})
            for share in sorted({*shares, *DISCORDANT})
        ]
    else:
        asked = _row_for_difference(wanted, shares[0], settings)
        rows = [
            _row_for_difference(wanted, share, settings)
            for share in sorted({*shares, *(d for d in DISCORDANT if d >= wanted)})
        ]
    return Design(settings=settings, asked=asked, rows=tuple(rows))


def design_table(design: Design) -> str:
    """Lay out a plan for a terminal, with the answer in words below."""
    settings, asked = design.settings, design.asked
    share = f"{100 * asked.discordant:.3g} %"
    often = f"{100 * settings.power:.0f} %"
    level = f"level {settings.alpha:g}" + (
        f", Holm over {settings.tests} tests" if settings.tests > 1 else ""
    )
    if design.is_for_difference:
        lines = [(f"{100 * r.discordant:.3g} %", f"{r.pairs:,}") for r in design.rows]
        lines.append(("unpaired", f"{asked.unpaired:,} per policy"))
        head = (
            "ending differently",
            f"pairs for {points(settings.difference, signed=False)} points",
        )
        answer = (
            f"A difference of {points(settings.difference, signed=False)} points is found in "
            f"{often} of comparisons with {asked.pairs:,} pairs, if {share} of them end differently."
        )
        return "\n".join([aligned(head, lines, [], words=(0,)), "", f"{answer} ({level})"])
    shares = sorted({r.discordant for r in design.rows})
    unpaired = {r.pairs: r.unpaired for r in design.rows}
    rows = {(r.pairs, r.discordant): r for r in design.rows}
    mark = "*" if any(r.is_best_case for r in design.rows) else ""
    head = (
        "pairs",
        *(f"{100 * s:.3g} %" + " " * len(mark) for s in shares),
        f"unpaired near {100 * settings.rate:g} %",
    )
    lines = [
        (
            f"{n:,}",
            *(
                points(rows[n, s].difference, signed=False)
                + (mark if rows[n, s].is_best_case else " " * len(mark))
                for s in shares
            ),
            points(unpaired[n], signed=False),
        )
        for n in sorted(unpaired)
    ]
    answer = sensitivity(
        asked.pairs,
        discordant=asked.discordant,
        detectable=asked.difference,
        power=settings.power,
        as_here=False,
    )
    if asked.unpaired is not None:
        answer += (
            f" As many episodes that are not paired find {points(asked.unpaired, signed=False)}."
        )
    if settings.difference is not None:
        answer += (
            f"\nA difference of {points(settings.difference, signed=False)} points would be found "
            f"in {100 * asked.power:.0f} % of them."
        )
    title = "smallest difference found, in points, by share of pairs that end differently"
    best = (
        "* at best: if so many pairs end differently, more than the column says, and one wins all"
    )
    starred = [best] if mark else []
    return "\n".join([title, aligned(head, lines, []), *starred, "", f"{answer} ({level})"])


def _row_for_pairs(n: int, discordant: float, settings: PlanSettings) -> DesignRow:
    alpha = settings.alpha / settings.tests
    found = detectable_difference(n, discordant=discordant, alpha=alpha, power=settings.power)
    looked_for = settings.difference if settings.difference is not None else found
    return DesignRow(
        pairs=n,
        discordant=discordant,
        difference=found,
        power=exact_power(
            n,
            difference=looked_for or 0.0,
            discordant=max(discordant, looked_for or 0.0),
            alpha=alpha,
        ),
        unpaired=unpaired_detectable(n, rate=settings.rate, alpha=alpha, power=settings.power),
    )


def _row_for_difference(difference: float, discordant: float, settings: PlanSettings) -> DesignRow:
    alpha = settings.alpha / settings.tests
    n = pairs_needed(difference, discordant=discordant, alpha=alpha, power=settings.power)
    if settings.partner is None:  # `PlanSettings.problems` says so before.
        raise ValueError(f"no success rate is {difference} away from {settings.rate}")
    return DesignRow(
        pairs=n,
        discordant=discordant,
        difference=difference,
        power=exact_power(n, difference=difference, discordant=discordant, alpha=alpha),
        unpaired=unpaired_needed(
            settings.rate, settings.partner, alpha=alpha, power=settings.power
        ),
    )


def _as_list(value: Any) -> list[Any]:  # noqa: ANN401 - from a configuration
    return [] if value is None else value if isinstance(value, list) else [value]


def exact_power(n: int, *, difference: float, discordant: float, alpha: float = 0.05) -> float:
    """Return how often McNemar's exact test would separate two policies.

    Args:
        n: Pairs.
        difference: Between the true success rates.
        discordant: Share of pairs that end differently; at least the difference, since that many
            must.
        alpha: Level of the test.
    """
    import numpy as np
    from scipy.stats import binom

    _require_share(difference, discordant)
    if n == 0 or discordant == 0:
        return 0.0
    spread = 9 * math.sqrt(n * discordant * (1 - discordant)) + 9
    m = np.arange(
        max(1, math.floor(n * discordant - spread)), min(n, math.ceil(n * discordant + spread)) + 1
    )
    # The smallest number on one side at which the two-sided test of m pairs rejects.
    critical = binom.isf(alpha / 2, m, 0.5) + 1
    favoured = min(1.0, (discordant + abs(difference)) / (2 * discordant))
    rejects = binom.sf(critical - 1, m, favoured) + binom.cdf(m - critical, m, favoured)
    return float(np.sum(binom.pmf(m, n, discordant) * rejects))


def detectable_difference(
    n: int, *, discordant: float, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Return the smallest difference that McNemar's exact test finds with the given power.

    Where more discordant pairs than ``discordant`` are needed for it, the difference is that of
    policies of which one wins every discordant pair.

    Args:
        n: Pairs.
        discordant: Share of pairs expected to end differently.
        alpha: Level of the test.
        power: How often the difference is to be found.

    Returns:
        The difference between the success rates, to 1e-6 from above; None where n is too small for
        any.
    """

    def reaches(difference: float) -> bool:
        share = max(discordant, difference)
        return exact_power(n, difference=difference, discordant=share, alpha=alpha) >= power

    if not reaches(1.0):
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return math.ceil(high * 1e6) / 1e6


def pairs_needed(
    difference: float,
    *,
    discordant: float,
    alpha: float = 0.05,
    power: float = 0.8,
    is_exact: bool = True,
) -> int:
    """Return how many pairs it takes to find a difference.

    Args:
        difference: Between the true success rates.
        discordant: Share of pairs that end differently, at least the difference.
        alpha: Level of the test.
        power: How often the difference is to be found.
        is_exact: For McNemar's exact test; else the usual normal approximation (Connor 1987,
            Biometrics 43:207-211, eq. 3), which asks for somewhat less.

    Raises:
        ValueError: The difference is not between 0 and the share of discordant pairs.
    """
    _require_share(difference, discordant)
    if difference == 0:
        raise ValueError("no number of pairs separates policies that do not differ")
    d, z_alpha, z_power = abs(difference), _z(1 - alpha / 2), _z(power)
    root = z_alpha * math.sqrt(discordant) + z_power * math.sqrt(discordant - d * d)
    approximate = math.ceil((root / d) ** 2)
    if not is_exact:
        return approximate

    def reaches(n: int) -> bool:
        return exact_power(n, difference=d, discordant=discordant, alpha=alpha) >= power

    low, high = 0, max(8, approximate)
    while not reaches(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def unpaired_needed(
    rate_a: float, rate_b: float, *, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Return how many episodes **each** policy needs if the episodes are not paired.

    The usual normal approximation (Fleiss, Levin and Paik 2003, eq. 4.14, without continuity
    correction).

    Raises:
        ValueError: The rates are equal.
    """
    if rate_a == rate_b:
        raise ValueError("no number of episodes separates policies that do not differ")
    mean = (rate_a + rate_b) / 2
    root = _z(1 - alpha / 2) * math.sqrt(2 * mean * (1 - mean)) + _z(power) * math.sqrt(
        rate_a * (1 - rate_a) + rate_b * (1 - rate_b)
    )
    return math.ceil((root / (rate_a - rate_b)) ** 2)


def unpaired_detectable(
    n: int, *, rate: float, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Return the smallest drop from ``rate`` that n unpaired episodes per policy find.

    None where a drop to 0 would not be found.
    """

    def reaches(drop: float) -> bool:
        return unpaired_needed(rate, rate - drop, alpha=alpha, power=power) <= n

    if rate <= 0 or not reaches(rate):
        return None
    low, high = 0.0, rate
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return math.ceil(high * 1e6) / 1e6


def _z(share: float) -> float:
    return NormalDist().inv_cdf(share)


def _require_share(difference: float, discordant: float) -> None:
    if not 0 <= abs(difference) <= discordant <= 1:
        raise ValueError(
            f"a difference of {difference} needs at least that share of discordant pairs, "
            f"and at most 1, got {discordant}"
        )
