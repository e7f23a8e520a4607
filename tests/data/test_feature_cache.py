"""Cached features equal live ones, are computed once, and survive a kill in the middle."""

import numpy as np
import pytest
import torch

from vega_policy.data.chunks import ChunkDataset, DataSource
from vega_policy.data.feature_cache import FeatureCache, prior_fingerprint
from vega_policy.spec import ContractError
from vega_policy.testing.demos import write_suite


class Killed(Exception):
    """Stands for the end of the process."""


class Counting:
    """A prior that counts its frames and dies on demand."""

    def __init__(self, *, dies_after=None):
        self.frames = 0
        self.dies_after = dies_after

    def __call__(self, pixels, keys):
        assert len(keys) == len(pixels)
        if self.dies_after is not None and self.frames >= self.dies_after:
            raise Killed
        self.frames += len(pixels)
        pooled = torch.nn.functional.avg_pool2d(pixels.float().flatten(0, 1) / 255, 64)
        return pooled.flatten(2).mT.unflatten(0, pixels.shape[:2])


@pytest.fixture
def dataset(tmp_path):
    write_suite(tmp_path, n_demos=2)
    return ChunkDataset.open(DataSource(dirs=(tmp_path,), suites=("libero_object",)), horizon=8)


def open_cache(dataset, prior, *, dtype="float32", fingerprint="a"):
    rows = dataset.starts(held_out=False, fraction=0.0)
    return FeatureCache.open(
        dataset, rows=rows, compute=prior, fingerprint=fingerprint, dtype=dtype, batch_size=3
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_cached_features_equal_live_ones_in_the_stored_precision(dataset, dtype):
    cache = open_cache(dataset, Counting(), dtype=dtype)
    rows = dataset.starts(held_out=False, fraction=0.0)[[0, 5, -1]]
    live = Counting()(dataset.pixels(rows), [0] * 3).to(getattr(torch, dtype))
    assert torch.equal(cache(rows), live)


def test_only_frames_that_start_a_sample_are_computed_and_only_once(dataset):
    prior = Counting()
    open_cache(dataset, prior)
    n_samples = len(dataset.starts(held_out=False, fraction=0.0))
    n_files = len(dataset.files)
    assert prior.frames == n_samples + n_files  # one frame per file asks for the shape
    open_cache(dataset, prior)
    assert prior.frames == n_samples + n_files


def test_a_killed_computation_continues_where_it_stopped(dataset):
    dying = Counting(dies_after=10)
    with pytest.raises(Killed):
        open_cache(dataset, dying)
    rest = Counting()
    cache = open_cache(dataset, rest)
    whole = Counting()
    fresh = open_cache(dataset, whole, fingerprint="b")
    assert dying.frames + rest.frames <= whole.frames
    rows = dataset.starts(held_out=False, fraction=0.0)
    assert torch.equal(cache(rows), fresh(rows))


def test_features_that_do_not_fit_the_precision_say_what_to_set(dataset):
    def loud(pixels, keys):
        return Counting()(pixels, keys) + 1e6

    with pytest.raises(ContractError, match="bfloat16"):
        open_cache(dataset, loud, dtype="float16")


def test_the_fingerprint_sees_weights_hidden_buffers_and_settings():
    def prior(seed):
        torch.manual_seed(seed)
        module = torch.nn.Linear(2, 2)
        module.register_buffer("noise", torch.randn(3), persistent=False)
        return module

    module = prior(0)
    before = prior_fingerprint(module, {"timestep": 300})
    assert before == prior_fingerprint(prior(0), {"timestep": 300})
    assert before != prior_fingerprint(module, {"timestep": 200})
    module.noise[0] += 1
    assert before != prior_fingerprint(module, {"timestep": 300})
    assert np.unique([prior_fingerprint(prior(s), {}) for s in range(3)]).size == 3
