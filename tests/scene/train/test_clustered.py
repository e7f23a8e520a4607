"""Intervals know that questions about one scene are alike."""

import math

import numpy as np
import pytest

from vega_policy.scene.train.clustered import clustered_mean, paired_difference


def test_one_question_a_scene_gives_students_interval():
    from scipy.stats import t

    values = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    found = clustered_mean(
        {str(i): v for i, v in enumerate(values)}, {str(i): f"scene{i}" for i in range(6)}
    )
    half = t.ppf(0.975, 5) * values.std(ddof=1) / math.sqrt(6)
    assert found.interval == pytest.approx((values.mean() - half, values.mean() + half))


def test_asking_the_same_thing_ten_times_narrows_nothing():
    once = clustered_mean({"a": 1.0, "b": 0.0, "c": 1.0}, {"a": "a", "b": "b", "c": "c"})
    values = {f"{s}{i}": v for s, v in (("a", 1.0), ("b", 0.0), ("c", 1.0)) for i in range(10)}
    often = clustered_mean(values, {key: key[0] for key in values})
    assert often.interval == pytest.approx(once.interval)
    assert (often.n, often.n_scenes) == (30, 3)


def test_intervals_of_paired_differences_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        scene_effect = rng.normal(0, 1, 12)
        ours = {f"{s}-{q}": scene_effect[s] + rng.normal() for s in range(12) for q in range(5)}
        found = paired_difference(
            ours, dict.fromkeys(ours, 0.0), {k: k.split("-")[0] for k in ours}
        )
        hits += found.interval[0] <= 0 <= found.interval[1]
    assert 0.92 < hits / 400 < 0.98


def test_one_scene_has_no_interval():
    assert clustered_mean({"a": 1.0}, {"a": "s"}).interval == (-math.inf, math.inf)


def test_arms_that_answered_different_questions_are_not_compared():
    with pytest.raises(ValueError, match="1 questions"):
        paired_difference({"a": 1.0}, {}, {"a": "s"})
