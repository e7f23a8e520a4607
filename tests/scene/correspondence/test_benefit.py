"""A relation over few priors says that it is none."""

import pytest
from scipy.stats import spearmanr

from vega_policy.scene.correspondence import consistency_and_benefit
from vega_policy.spec import ContractError


def related(xs, ys):
    names = [f"prior {i}" for i in range(len(xs))]
    return consistency_and_benefit(
        dict(zip(names, xs, strict=True)), dict(zip(names, ys, strict=True))
    )


def test_perfect_order_of_four_is_no_conclusion_of_five_is_one():
    four = related([1, 2, 3, 4], [5, 6, 7, 8])
    assert (four.spearman, four.p_value) == (pytest.approx(1.0), pytest.approx(2 / 24))
    assert "even a perfect order could be chance" in four.verdict
    assert "n = 4" in four.verdict
    five = related([1, 2, 3, 4, 5], [5, 6, 7, 8, 9])
    assert five.p_value == pytest.approx(2 / 120)
    assert "no conclusion" not in five.verdict


def test_weak_relation_is_chance():
    found = related([1, 2, 3, 4, 5, 6], [2, 1, 6, 3, 5, 4])
    assert found.spearman == pytest.approx(spearmanr([1, 2, 3, 4, 5, 6], [2, 1, 6, 3, 5, 4])[0])
    assert "chance alone gives this" in found.verdict


def test_many_priors_use_random_orders_and_ties_are_ranked():
    xs = [1, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    found = related(xs, [x * x for x in xs])
    assert found.spearman == pytest.approx(1.0)
    assert found.p_value == pytest.approx(1e-4, abs=3e-4)


def test_unknown_and_unpaired_values_are_named():
    found = consistency_and_benefit(
        {"a": 0.1, "b": None, "c": float("nan"), "d": 1.0}, {"a": 1.0, "b": 2.0, "c": 3.0, "e": 4.0}
    )
    assert found.names == ("a",)
    assert found.unpaired == ("b", "c", "d", "e")
    assert "n = 1: no conclusion" in found.verdict


def test_values_that_do_not_vary_give_no_relation():
    assert related([1, 1, 1, 1], [1, 2, 3, 4]).spearman is None


def test_names_without_a_pair_are_an_error():
    with pytest.raises(ContractError, match="name the rows of the scores like the arms"):
        consistency_and_benefit({"a": 1.0}, {"b": 1.0})
