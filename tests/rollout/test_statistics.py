"""Intervals are Wilson's, and tallies count what they say."""

import dataclasses

import pytest
from scipy.stats import binomtest

from vega_policy.rollout.statistics import groups, summarise
from vega_policy.rollout.table import table
from vega_policy.spec import EpisodeKey, EpisodeResult
from vega_policy.spec.intervals import wilson


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (185, 200)])
def test_the_interval_is_scipys(k, n):
    theirs = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_interval_never_leaves_zero_to_one():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 5)[0] == 0.0
    assert wilson(5, 5)[1] == 1.0


def row(task_id, init_state_id, outcome, n_steps):
    return EpisodeResult(
        key=EpisodeKey("s", task_id, init_state_id),
        outcome=outcome,
        n_steps=n_steps,
        n_chunks=1,
        state_sha256="",
        wall_s=0.0,
    )


def test_faults_count_as_episodes_without_success():
    summary = summarise(
        [row(0, 0, "success", 10), row(0, 1, "failure", 40), row(2, 0, "policy_fault", 4)],
        task_ids=[0, 1, 2],
    )
    assert list(summary.tasks) == [0, 1, 2]
    assert summary.tasks[1].rate is None
    total = summary.total
    assert (total.episodes, total.successes, total.policy_faults) == (3, 1, 1)
    assert total.mean_steps_success == 10
    assert total.mean_steps == 18
    lines = table(summary, {0: "pick", 1: "place", 2: "push"}).splitlines()
    assert "1 / 2" in lines[2]
    assert "0 / 0" in lines[3]
    assert "1 / 3" in lines[-1]


def test_groups_come_as_asked_with_clean_episodes_of_the_full_arm_first():
    def of(arm, perturbation, state=0):
        key = EpisodeKey("s", 0, state, perturbation)
        return dataclasses.replace(row(0, state, "success", 1), key=key, arm=arm)

    rows = [of("b", "x"), of("full", "y"), of("full", "none", 1), of("full", "none", 0)]
    found = groups(rows, asked=[("full", "z"), ("full", "y"), ("full", "none"), ("b", "none")])
    assert list(found) == [
        ("full", "none"),
        ("full", "z"),
        ("full", "y"),
        ("b", "none"),
        ("b", "x"),
    ]
    assert [r.key.init_state_id for r in found["full", "none"]] == [0, 1]
    assert found["full", "z"] == []
    assert list(groups(rows)) == [("full", "none"), ("full", "y"), ("b", "x")]
