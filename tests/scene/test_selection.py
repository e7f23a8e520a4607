"""Which objects grounding scores mean."""

import numpy as np
import pytest
import torch

from vega_policy.scene.selection import select_many, select_one


def test_one_object_is_chosen_although_the_zero_target_wins():
    assert select_one([0.1, 0.3, 0.9]) == 1
    with pytest.raises(ValueError, match="at least one box"):
        select_one([0.1])


def test_many_objects_are_chosen_until_four_tenths_of_the_mass():
    assert select_many([0.1, 0.3, 0.9]) == []
    assert select_many([0.9]) == []
    assert select_many([0.0, 0.9, 0.1]) == [1]
    scores = 0.07 * np.log([0.3, 0.25, 0.2, 0.25])
    scores[-1] -= 1e-4
    assert select_many(scores) == [0, 1]
    assert select_many(0.07 * np.log([0.39, 0.02, 0.29, 0.3])) == [0, 2]
    assert select_many([0.2, 0.1, 0.1], mass=1.1) == [0, 1], "all, where none reaches the mass"


def test_the_choice_is_the_one_of_a_sum_that_stops_at_the_mass():
    rng = np.random.default_rng(0)
    for _ in range(200):
        scores = rng.normal(scale=0.1, size=rng.integers(2, 30)).astype(np.float32)
        chosen = select_many(scores)
        share = (torch.from_numpy(scores) / 0.07).softmax(0).tolist()
        if max(share) == share[-1]:
            assert chosen == []
            continue
        assert [share[i] for i in chosen] == sorted(share[:-1], reverse=True)[: len(chosen)]
        assert sum(share[i] for i in chosen[:-1]) < 0.4
        assert sum(share[i] for i in chosen) >= 0.4 or len(chosen) == len(share) - 1
