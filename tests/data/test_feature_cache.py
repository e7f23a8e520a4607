"""Cached features equal live ones, are computed once, and survive a kill in the middle."""

import time

import numpy as np
import pytest
import torch

from vega_policy.data.chunks import ChunkDataset, DataSource
from vega_policy.data.feature_cache import FeatureCache
from vega_policy.data.frames import Frames
from vega_policy.spec import ContractError, StorageFault
from vega_policy.testing.demos import write_suite
from vega_policy.vision.prior.store import FeatureStore, PriorIdentity


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


def identity(fingerprint="a", **changes):
    return PriorIdentity(fingerprint=fingerprint, shape=(4, 3), **changes)


@pytest.fixture
def dataset(tmp_path):
    write_suite(tmp_path, n_demos=2)
    return open_dataset(tmp_path)


def open_dataset(folder):
    return ChunkDataset.open(DataSource(dirs=(folder,), suites=("libero_object",)), horizon=8)


def starts(dataset):
    return dataset.starts(held_out=False, fraction=0.0)


def open_cache(dataset, prior, *, dtype="float32", whose=None):
    return FeatureCache.open(
        dataset,
        rows=starts(dataset),
        compute=prior,
        identity=whose or identity(),
        dtype=dtype,
        batch_size=3,
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_cached_features_equal_live_ones_in_the_stored_precision(dataset, dtype):
    for _ in ("cold", "warm"):
        cache = open_cache(dataset, Counting(), dtype=dtype)
        rows = starts(dataset)[[0, 5, -1]]
        live = Counting()(dataset.pixels(rows), [0] * 3).to(getattr(torch, dtype))
        assert torch.equal(cache(rows), live)


def test_only_frames_that_start_a_sample_are_computed_and_only_once(dataset):
    prior = Counting()
    open_cache(dataset, prior)
    assert prior.frames == len(starts(dataset))
    open_cache(dataset, prior)
    assert prior.frames == len(starts(dataset))


@pytest.mark.parametrize(("device", "size"), [("cpu", 1), ("cuda", 3)])
def test_a_cpu_computes_one_observation_a_pass_so_that_bits_are_those_of_a_rollout(
    dataset, device, size
):
    passes = []

    def prior(pixels, keys):
        passes.append(len(pixels))
        return Counting()(pixels, keys)

    open_cache(dataset, prior, whose=identity(device=device))
    assert max(passes) == size


def test_a_killed_computation_continues_where_it_stopped(dataset):
    dying = Counting(dies_after=10)
    with pytest.raises(Killed):
        open_cache(dataset, dying)
    rest, whole = Counting(), Counting()
    cache = open_cache(dataset, rest)
    fresh = open_cache(dataset, whole, whose=identity("b"))
    assert dying.frames + rest.frames < whole.frames + 3  # at most one batch is lost
    assert rest.frames < whole.frames
    assert torch.equal(cache(starts(dataset)), fresh(starts(dataset)))


def test_a_rollout_finds_what_training_stored(dataset):
    cache = open_cache(dataset, Counting())
    root = dataset.files[0].folder.parent.parent / "features"
    store = FeatureStore(root, identity())
    pixels = dataset.pixels(starts(dataset)[:2])
    prior = Counting()
    assert torch.equal(store.read(pixels, keys=[0, 0], compute=prior), cache(starts(dataset)[:2]))
    assert prior.frames == 0


def test_keyed_noise_is_found_by_row_although_the_frames_are_equal(dataset):
    def prior(pixels, keys):
        noise = torch.tensor(keys, dtype=torch.float64).float().view(-1, 1, 1, 1)
        return noise.expand(len(pixels), 2, 4, 3)

    cache = open_cache(dataset, prior, whose=identity(uses_keys=True))
    rows = starts(dataset)
    assert len(torch.unique(cache(rows)[:, 0, 0, 0])) == len(rows)
    assert torch.equal(cache(rows), open_cache(dataset, Counting(), whose=cache._identity)(rows))


def test_a_record_that_is_damaged_while_training_reads_is_computed_again(dataset):
    prior = Counting()
    cache = open_cache(dataset, prior)
    rows = starts(dataset)
    before = cache(rows)
    root = dataset.files[0].folder.parent.parent / "features"
    [data] = root.glob("*/*.features")
    raw = bytearray(data.read_bytes())
    raw[5] ^= 1
    data.write_bytes(raw)
    computed = prior.frames
    assert torch.equal(cache(rows), before)
    assert prior.frames == computed + 1
    assert torch.equal(cache(rows), before)
    assert prior.frames == computed + 1


def test_features_that_do_not_fit_the_precision_say_what_to_set(dataset):
    def loud(pixels, keys):
        return Counting()(pixels, keys) + 1e6

    with pytest.raises(ContractError, match="bfloat16"):
        open_cache(dataset, loud, dtype="float16")


def test_a_disk_that_refuses_stops_training_with_a_sentence(dataset):
    root = dataset.files[0].folder.parent.parent / "features"
    root.write_text("a file where the folder should be")
    with pytest.raises(StorageFault, match="make room, or"):
        open_cache(dataset, Counting())


def test_frames_are_hashed_once(dataset, tmp_path, monkeypatch):
    open_cache(dataset, Counting())
    monkeypatch.setattr("vega_policy.data.feature_cache.frame_digest", None)
    open_cache(open_dataset(tmp_path), Counting())


def test_fifty_thousand_cached_rows_open_in_seconds(tmp_path):
    n = 50_000
    folder = tmp_path / "suite" / "task"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (n, 2, 3, 4, 4), dtype=np.uint8)
    file = Frames(
        folder=folder,
        fingerprint="f",
        suite="suite",
        task="task",
        instruction="go",
        images=images,
        actions=np.zeros((n, 7)),
        proprio=np.zeros((n, 8), dtype=np.float32),
        expert_mask=np.ones(n, dtype=np.uint8),
        frame_mask=np.ones(n, dtype=np.uint8),
        lengths=np.array([n]),
    )
    dataset = ChunkDataset([file], horizon=8)
    whose = PriorIdentity(fingerprint="a", shape=(1, 1), device="cuda")

    def prior(pixels, keys):
        assert len(keys) == len(pixels)
        return pixels[:, :, 0, :1, :1].float()

    def opened():
        began = time.perf_counter()
        cache = FeatureCache.open(
            dataset, rows=np.arange(n), compute=prior, identity=whose, batch_size=5000
        )
        return cache, time.perf_counter() - began

    opened()
    cache, wall_s = opened()
    assert wall_s < 10  # 1 s on an idle machine
    rows = np.array([49_999, 3, 3])
    assert torch.equal(cache(rows).float(), prior(dataset.pixels(rows), [0] * 3))
