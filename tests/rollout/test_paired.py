"""Tests, intervals and power agree with scipy, statsmodels, published examples and counting."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, multinomial

from vega_policy.rollout.paired import Pairs, difference_interval, holm, judge, mcnemar
from vega_policy.rollout.power import (
    PlanSettings,
    design_table,
    detectable_difference,
    exact_power,
    pairs_needed,
    plan,
    unpaired_detectable,
    unpaired_needed,
)
from vega_policy.spec import ContractError

TABLES = [(0, 0, 0, 0), (5, 0, 0, 3), (0, 7, 0, 0), (0, 0, 9, 0), (0, 6, 6, 0), (90, 1, 8, 1)]


def random_tables(n):
    rng = np.random.default_rng(0)
    for _ in range(n):
        yield tuple(
            int(v) for v in rng.multinomial(rng.integers(1, 300), rng.dirichlet([2, 1, 1, 1]))
        )


def pairs_of(table):
    both, a_only, b_only, neither = table
    return Pairs(n_both=both, n_a_only=a_only, n_b_only=b_only, n_neither=neither)


@pytest.mark.parametrize("table", [*TABLES, *random_tables(30)])
def test_the_exact_test_is_that_of_statsmodels(table):
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    both, b, c, neither = table
    ours = mcnemar(b, c)
    if b + c == 0:
        assert ours == 1.0
        return
    theirs = contingency.mcnemar([[both, b], [c, neither]], exact=True)
    assert ours == pytest.approx(min(1.0, theirs.pvalue), abs=1e-12)


@pytest.mark.parametrize("n", [0, 1, 2, 10, 40])
def test_holm_is_that_of_statsmodels(n):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = np.random.default_rng(n).uniform(size=n) ** 3
    p_values[: n // 3] = p_values[0] if n else 0
    ours = holm(p_values.tolist())
    if n:
        assert ours == pytest.approx(multitest.multipletests(p_values, method="holm")[1], abs=1e-12)
    else:
        assert ours == []


@pytest.mark.parametrize(
    ("b", "c", "n", "interval"),
    [
        # Worked examples of the R package contingencytables (Fagerland, Lydersen, Laake).
        (1, 7, 21, (-0.517, -0.026)),
        (6, 16, 161, (-0.1240, -0.0054)),
    ],
)
def test_the_interval_is_the_published_one(b, c, n, interval):
    digits = 5e-4 if n == 21 else 5e-5
    assert difference_interval(b, c, n) == pytest.approx(interval, abs=digits)


@pytest.mark.parametrize("table", [*TABLES, *random_tables(60)])
def test_the_interval_is_where_the_score_test_stops_refusing(table):
    _, b, c, _ = table
    n = sum(table)
    low, high = difference_interval(b, c, n)
    assert -1 <= low <= (b - c) / max(1, n) <= high <= 1
    mirrored = difference_interval(c, b, n)
    assert mirrored == pytest.approx((-high, -low), abs=1e-9)
    if not n:
        assert (low, high) == (-1, 1)
        return
    assert high > low
    # At a difference of 0 the score is McNemar's, without continuity correction.
    if b + c:
        is_refused = (b - c) ** 2 / (b + c) > 1.959963984540054**2
        assert is_refused == (not low <= 0 <= high)
    for bound in (low, high):
        if -1 < bound < 1:
            assert abs(score(bound, b, c, n)) == pytest.approx(1.959963984540054, abs=1e-6)


def score(difference, b, c, n):
    """Tango's statistic with the restricted likelihood maximised by search, not by formula."""
    from scipy.optimize import minimize_scalar

    def minus_likelihood(q):
        p_b, p_c = q + difference, q
        rest = 1 - p_b - p_c
        terms = ((b, p_b), (c, p_c), (n - b - c, rest))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in terms if k)

    low, high = max(0.0, -difference), (1 - difference) / 2
    q = minimize_scalar(
        minus_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    ).x
    return (b - c - n * difference) / math.sqrt(n * (2 * q + difference * (1 - difference)))


@pytest.mark.parametrize(
    ("n", "p_b", "p_c"),
    [(20, 0.2, 0.1), (50, 0.03, 0.01), (50, 0.1, 0.1), (100, 0.02, 0.0), (100, 0.3, 0.1)],
)
def test_the_interval_covers_by_counting_every_outcome(n, p_b, p_c):
    covered = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            chance = multinomial.pmf([b, c, n - b - c], n, [p_b, p_c, 1 - p_b - p_c])
            if chance < 1e-9:
                continue
            low, high = difference_interval(b, c, n)
            covered += chance * (low <= p_b - p_c <= high)
    # An interval from a score test covers 95 % on average, not at every point.
    assert 0.93 < covered <= 1


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="discordant of 3"):
        difference_interval(2, 2, 3)


@pytest.mark.parametrize(("n", "difference", "discordant"), [(30, 0.2, 0.3), (50, 0.05, 0.05)])
def test_power_is_the_share_of_outcomes_that_the_test_separates(n, difference, discordant):
    p_b, p_c = (discordant + difference) / 2, (discordant - difference) / 2
    counted = sum(
        multinomial.pmf([b, c, n - b - c], n, [p_b, p_c, 1 - p_b - p_c])
        for b in range(n + 1)
        for c in range(n + 1 - b)
        if b + c and binomtest(b, b + c).pvalue <= 0.05
    )
    assert exact_power(n, difference=difference, discordant=discordant) == pytest.approx(
        counted, abs=1e-6
    )


def test_no_difference_is_separated_at_most_as_often_as_alpha():
    for n in (10, 50, 500, 3000):
        for discordant in (0.01, 0.1, 0.5):
            assert exact_power(n, difference=0, discordant=discordant) <= 0.05


def test_the_published_sample_sizes_come_out():
    """What it takes to tell 97.0 % from 97.3 %: 48,300 unpaired, 17,400 and 8,700 in pairs."""
    assert unpaired_needed(0.97, 0.973) == pytest.approx(48_300, rel=0.001)
    for discordant, pairs in ((0.02, 17_400), (0.01, 8_700)):
        usual = pairs_needed(0.003, discordant=discordant, is_exact=False)
        assert usual == pytest.approx(pairs, rel=0.005)
        # The exact test is stricter than the approximation of it.
        assert usual < pairs_needed(0.003, discordant=discordant) < 1.07 * usual


def test_unpaired_numbers_are_near_those_of_statsmodels():
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    power = pytest.importorskip("statsmodels.stats.power")
    for a, b in ((0.97, 0.973), (0.9, 0.8), (0.5, 0.6)):
        effect = proportion.proportion_effectsize(a, b)
        theirs = power.NormalIndPower().solve_power(effect, power=0.8, alpha=0.05)
        assert unpaired_needed(a, b) == pytest.approx(theirs, rel=0.03)


@pytest.mark.parametrize(("n", "discordant"), [(50, 0.1), (500, 0.02), (500, 0.0), (2000, 0.1)])
def test_pairs_and_detectable_difference_are_each_others_inverse(n, discordant):
    found = detectable_difference(n, discordant=discordant)
    assert found is not None
    share = max(found, discordant)
    assert exact_power(n, difference=found, discordant=share) >= 0.8
    if found < discordant:
        less = exact_power(n, difference=found - 2e-4, discordant=discordant)
        assert less < 0.8
        assert pairs_needed(found, discordant=discordant) == pytest.approx(n, abs=2)
    drop = unpaired_detectable(n, rate=0.95)
    assert drop is not None
    assert unpaired_needed(0.95, 0.95 - drop) == pytest.approx(n, abs=1)


def test_a_handful_of_pairs_separates_nothing():
    # Five heads in a row happen to a fair coin too often.
    assert detectable_difference(5, discordant=1.0) is None
    assert detectable_difference(6, discordant=0.0) is not None
    assert detectable_difference(0, discordant=0.0) is None


def test_the_verdict_follows_the_adjusted_p_value_and_never_says_equal():
    clear = Pairs(n_both=5, n_a_only=1, n_b_only=12)
    slight = Pairs(n_both=5, n_a_only=6, n_neither=1)
    none = Pairs(n_both=20)
    alone = judge([("slight", slight)])[0]
    assert alone.p_value == 0.03125
    assert alone.verdict == "separated: A is better"
    findings = judge([("clear", clear), ("slight", slight), ("none", none), ("empty", Pairs())])
    assert [f.verdict for f in findings] == [
        "separated: B is better",
        "not separated",
        "not separated",
        "not separated",
    ]
    assert findings[1].p_adjusted == pytest.approx(3 * 0.03125)
    assert findings[2].interval[0] < 0 < findings[2].interval[1]
    empty = findings[3]
    assert (empty.pairs.difference, empty.interval, empty.p_value) == (None, (-1, 1), 1)
    assert empty.detectable is None


def test_no_difference_is_promised_that_the_discordant_pairs_do_not_allow():
    design = plan(PlanSettings(pairs=50, discordant=0.01))
    assert design.asked.is_best_case
    said = design_table(design)
    assert "of which 1 % end differently, no difference is found in 80 %" in said
    assert "if 15.4 % end differently and one policy wins all of these" in said
    for row in design.rows:
        if not row.is_best_case and row.difference is not None:
            assert row.difference <= row.discordant
    assert "*" not in design_table(plan(PlanSettings(difference=0.02)))
    finding = judge([("one lost", Pairs(n_both=49, n_a_only=1))])[0]
    assert finding.is_best_case


@pytest.mark.parametrize(
    ("rate", "difference", "is_possible"),
    [
        (0.95, 0.96, False),
        (0.95, 0.95, True),
        (0.5, 0.4, True),
        (0.3, 0.7, True),
        (0.5, 0.6, False),
    ],
)
def test_a_difference_needs_two_rates(rate, difference, is_possible):
    settings = PlanSettings(rate=rate, difference=difference)
    assert (settings.problems() == []) == is_possible
    if is_possible:
        assert plan(settings).asked.pairs > 0


def test_a_plan_lists_every_problem():
    with pytest.raises(ContractError) as caught:
        plan(PlanSettings(pairs=0, discordant=1.5, alpha=0.0, tests=True))
    for part in ("pairs is 0", "discordant is 1.5", "alpha is 0.0", "tests is True"):
        assert part in str(caught.value)
