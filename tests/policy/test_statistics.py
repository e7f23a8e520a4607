"""BOUNDS_Q99: the formulas of OpenVLA-OFT, their inverse, and the JSON they are kept in."""

import json

import numpy as np
import pytest

from vega_policy.policy.statistics import choose_key, load_statistics, save_statistics
from vega_policy.spec import CheckpointError
from vega_policy.testing.tiny_policy import tiny_statistics


def test_unnormalising_inverts_normalising_between_the_quantiles():
    bounds = tiny_statistics().action
    x = np.random.default_rng(0).uniform(bounds.q01, bounds.q99, (5, 7))
    np.testing.assert_allclose(bounds.unnormalise(bounds.normalise(x)), x, atol=1e-9)


def test_published_numbers():
    """q01 and q99 of the published LIBERO-10 statistics, first number of the proprioception."""
    bounds = tiny_statistics().proprio
    q01, q99 = -0.3899900782108307, 0.1530261474847791
    bounds.q01[0], bounds.q99[0] = q01, q99
    x = np.tile(bounds.q01, (3, 1))
    x[:, 0] = [q01, q99, -1.0]
    np.testing.assert_allclose(bounds.normalise(x)[:, 0], [-1.0, 1.0, -1.0], atol=1e-7)


def test_the_gripper_passes_through_and_a_constant_number_becomes_zero_in_training():
    bounds = tiny_statistics().action
    bounds.min[0] = bounds.max[0] = bounds.q01[0] = bounds.q99[0] = 0.25
    x = np.array([[0.25, 0, 0, 0, 0, 0, 0.7]])
    assert bounds.normalise_target(x)[0, 0] == 0
    assert bounds.normalise(x)[0, 0] == -1
    assert bounds.normalise(x)[0, 6] == 0.7
    assert bounds.unnormalise(x)[0, 6] == 0.7


def test_the_other_rule_maps_lowest_and_highest():
    """The rule of OpenVLA-OFT's ALOHA policies; numbers that are not masked in pass through."""
    bounds = tiny_statistics().by("bounds").action
    ends = np.stack([bounds.min, bounds.max])
    np.testing.assert_allclose(bounds.normalise(ends)[:, :6], [[-1.0] * 6, [1.0] * 6], atol=1e-7)
    assert np.array_equal(bounds.normalise(ends)[:, 6], ends[:, 6])
    x = np.random.default_rng(0).uniform(bounds.min, bounds.max, (5, 7))
    np.testing.assert_allclose(bounds.unnormalise(bounds.normalise(x)), x, atol=1e-9)
    assert not np.allclose(bounds.normalise(x), tiny_statistics().action.normalise(x))


def test_the_untouched_numbers_are_not_clipped():
    assert tiny_statistics().action.normalise(np.full((1, 7), 3.0))[0].tolist() == [1.0] * 6 + [3.0]


def test_several_entries_survive_the_file(tmp_path):
    path = tmp_path / "dataset_statistics.json"
    save_statistics(path, {"a": tiny_statistics(), "b": tiny_statistics()})
    loaded = load_statistics(path)
    assert sorted(loaded) == ["a", "b"]
    assert loaded["a"].to_dict() == tiny_statistics().to_dict()


def test_published_proprioception_has_no_mask(tmp_path):
    path = tmp_path / "dataset_statistics.json"
    entry = tiny_statistics().to_dict()
    del entry["proprio"]["mask"]
    path.write_text(json.dumps({"a": entry}))
    assert load_statistics(path)["a"].proprio.mask.all()


def test_a_key_is_chosen_by_name_suffix_or_because_it_is_the_only_one():
    one = {"libero_10_no_noops": tiny_statistics()}
    assert choose_key(one, None) == choose_key(one, "libero_10") == "libero_10_no_noops"
    with pytest.raises(CheckpointError, match="did you mean 'libero_10_no_noops'"):
        choose_key(one, "libero_11")
    with pytest.raises(CheckpointError, match="set unnorm_key to one of a, b"):
        choose_key({"a": tiny_statistics(), "b": tiny_statistics()}, None)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "dataset_statistics.json"
    path.write_text('{"a": {"action": {}}}')
    with pytest.raises(CheckpointError, match="holds no data set statistics"):
        load_statistics(path)
