"""Whatever happens to the store, what it serves is what the prior answered."""

import fcntl
import multiprocessing
import os
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from vega_policy.spec import ContractError, StorageFault
from vega_policy.testing.tiny_policy import tiny_config
from vega_policy.vision.prior import PriorConfig, build_prior
from vega_policy.vision.prior.store import (
    FeatureStore,
    PriorIdentity,
    frame_digests,
    prior_fingerprint,
)

N, C = 4, 8


def identity(fingerprint="a", **changes):
    return PriorIdentity(fingerprint=fingerprint, shape=(N, C), **changes)


def open_store(root, fingerprint="a", **settings):
    return FeatureStore(root, identity(fingerprint), **settings)


def frames(*seeds, views=2):
    rows = [np.random.default_rng(s).integers(0, 256, (views, 3, 6, 6), np.uint8) for s in seeds]
    return torch.from_numpy(np.stack(rows))


class Prior:
    """Features that name their frame and key, and a count of the passes."""

    def __init__(self, *, uses_keys=False, joins_views=False):
        self.seen = []
        self.uses_keys, self.joins_views = uses_keys, joins_views

    def __call__(self, pixels, keys):
        self.seen.append(len(pixels))
        base = pixels.float().mean((2, 3, 4))
        if self.joins_views:
            base = base + 10 * pixels.float().mean((1, 2, 3, 4))[:, None]
        if self.uses_keys:
            base = base + torch.tensor(keys)[:, None]
        return base[..., None, None] + torch.linspace(0, 1, N * C).view(N, C)


def files(root, suffix):
    return sorted(root.glob(f"*/*{suffix}"))


def read(store, pixels, prior, keys=None):
    return store.read(pixels, keys=keys or [0] * len(pixels), compute=prior)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_read_back_equals_what_was_computed_in_the_stored_precision(tmp_path, dtype):
    prior, pixels = Prior(), frames(0, 1, 2)
    live = prior(pixels, [0] * 3).to(getattr(torch, dtype))
    for _ in range(2):
        assert torch.equal(read(open_store(tmp_path, dtype=dtype), pixels, prior), live)
    assert prior.seen == [3, 3]  # one live, one through the store


def test_only_missing_observations_are_computed_in_one_pass(tmp_path):
    prior, store = Prior(), open_store(tmp_path)
    read(store, frames(0, 2), prior)
    answer = read(store, frames(0, 1, 2, 3), prior)
    assert prior.seen == [2, 2]
    assert torch.equal(answer, Prior()(frames(0, 1, 2, 3), [0] * 4))


def test_a_view_is_found_beside_another_one_but_never_among_another_number_of_views(tmp_path):
    prior, store = Prior(), open_store(tmp_path)
    both = frames(0, 1)
    read(store, both, prior)
    crossed = torch.stack([both[0, 0], both[1, 1]])[None]
    read(store, crossed, prior)
    assert prior.seen == [2]
    read(store, both[:, :1], prior)  # one frame in a pass differs in the last bits
    assert prior.seen == [2, 2]


@pytest.mark.parametrize("kind", ["joins_views", "uses_keys"])
def test_features_that_depend_on_more_than_the_frame_are_found_by_all_of_it(tmp_path, kind):
    prior = Prior(**{kind: True})
    store = FeatureStore(tmp_path, identity(**{kind: True}))
    both = frames(0, 1)
    mixed = torch.stack([both[0], both[1], torch.stack([both[0, 0], both[1, 1]])])
    asked = [(mixed, [0, 0, 0]), (mixed, [5, 0, 7]), (mixed.flip(1), [0, 0, 0])]
    for pixels, keys in asked * 2:
        assert torch.equal(read(store, pixels, prior, keys), Prior(**{kind: True})(pixels, keys))
    n_first = len(prior.seen)
    for pixels, keys in asked:
        read(store, pixels, prior, keys)
    assert len(prior.seen) == n_first


def test_another_prior_precision_or_device_finds_nothing(tmp_path):
    read(open_store(tmp_path), frames(0), Prior())
    for other in (
        open_store(tmp_path, "b"),
        open_store(tmp_path, dtype="float16"),
        FeatureStore(tmp_path, identity(device="cuda")),
    ):
        prior = Prior()
        read(other, frames(0), prior)
        assert prior.seen == [1]


def test_files_of_another_prior_are_not_served_even_from_the_right_folder(tmp_path, caplog):
    other = open_store(tmp_path, "b")
    read(other, frames(0), Prior())
    other.folder.rename(open_store(tmp_path).folder)
    prior, store = Prior(), open_store(tmp_path)
    read(store, frames(0), prior)
    assert prior.seen == [1]
    assert "not of this feature store" in caplog.text
    assert read(open_store(tmp_path), frames(0), prior).shape == (1, 2, N, C)
    assert prior.seen == [1]


@pytest.mark.parametrize("where", [".features", ".index"])
@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_changed_byte_is_found_and_the_features_are_computed_again(tmp_path, where, place):
    prior, pixels = Prior(), frames(*range(3))
    before = read(open_store(tmp_path), pixels, prior)
    [path] = files(tmp_path, where)
    raw = bytearray(path.read_bytes())
    raw[place] ^= 4
    path.write_bytes(raw)
    for _ in range(2):
        store = open_store(tmp_path)
        assert torch.equal(read(store, pixels, prior), before)
    assert len(prior.seen) == 2  # the repaired record goes before the damaged one


@pytest.mark.parametrize("suffix", [".features", ".index"])
def test_a_file_that_was_cut_short_loses_its_end_only(tmp_path, suffix):
    prior, pixels = Prior(), frames(*range(4))
    before = read(open_store(tmp_path), pixels, prior)
    [path] = files(tmp_path, suffix)
    os.truncate(path, path.stat().st_size - 5)
    assert torch.equal(read(open_store(tmp_path), pixels, prior), before)
    assert prior.seen == [4, 1]
    assert torch.equal(read(open_store(tmp_path), pixels, Prior()), before)


def start_writer(root, first, end=100_000):
    """Write frames one by one in another process and say each number on the pipe."""
    # Forked: importing all of this again would take the test's time many times over.
    context = multiprocessing.get_context("fork")
    pipe, said = context.Pipe(duplex=False)

    def write():
        for number in range(first, end):
            read(open_store(root, segment_bytes=3000), frames(number), Prior())
            said.send(number)

    writer = context.Process(target=write)
    writer.start()
    said.close()
    return writer, pipe


def test_processes_that_write_the_same_and_other_frames_at_once_agree(tmp_path):
    started = [start_writer(tmp_path, first, first + 40) for first in (0, 0, 20)]
    for writer, _ in started:
        writer.join(60)
    assert [writer.exitcode for writer, _ in started] == [0, 0, 0]
    store, prior = open_store(tmp_path), Prior()
    pixels = frames(*range(60))
    assert torch.equal(read(store, pixels, prior), Prior()(pixels, [0] * 60))
    assert prior.seen == []
    assert len(store) == 2 * 60
    assert sum(p.stat().st_size for p in files(tmp_path, ".features")) == 2 * 60 * N * C * 4


def test_a_killed_writer_leaves_nothing_that_is_served_and_the_next_one_goes_on(tmp_path):
    first = 0
    for delay_s in (0.0, 0.003, 0.011):
        writer, pipe = start_writer(tmp_path, first)
        for _ in range(20):
            first = pipe.recv() + 1
        time.sleep(delay_s)
        writer.kill()
        writer.join()
        store, prior = open_store(tmp_path), Prior()
        pixels = frames(*range(first))
        assert torch.equal(read(store, pixels, prior), Prior()(pixels, [0] * first))
        assert prior.seen == []


def test_what_a_kill_leaves_between_features_and_index_is_overwritten(tmp_path):
    prior = Prior()
    read(open_store(tmp_path), frames(0), prior)
    [data], [index] = files(tmp_path, ".features"), files(tmp_path, ".index")
    with data.open("ab") as handle:
        handle.write(b"half of a record")
    with index.open("ab") as handle:
        handle.write(b"half")
    (data.parent / f"{10**19}-1.features").write_bytes(b"no index yet")
    store = open_store(tmp_path, segment_bytes=2 * N * C * 4)
    assert torch.equal(read(store, frames(0, 1), prior), Prior()(frames(0, 1), [0, 0]))
    assert prior.seen == [1, 1]
    assert torch.equal(
        read(open_store(tmp_path), frames(0, 1), Prior()), read(store, frames(0, 1), prior)
    )
    assert len(open_store(tmp_path)) == 4
    assert not (data.parent / f"{10**19}-1.features").exists()


def test_a_reader_finds_what_another_process_added_since(tmp_path):
    reader, writer, prior = open_store(tmp_path), open_store(tmp_path), Prior()
    read(writer, frames(0), prior)
    read(reader, frames(0), prior)
    read(writer, frames(1), prior)
    read(reader, frames(1), prior)
    assert prior.seen == [1, 1]


def test_a_reader_does_not_wait_for_a_writer(tmp_path):
    prior = Prior()
    read(open_store(tmp_path), frames(0), prior)
    with (tmp_path / "lock").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        read(open_store(tmp_path), frames(0), prior)
    assert prior.seen == [1]


def test_a_disk_that_refuses_is_said_once_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    store, prior = open_store(tmp_path), Prior()
    read(store, frames(0), prior)
    with monkeypatch.context() as patched:
        patched.setattr("vega_policy.vision.prior.store._write", refuse)
        for number in (1, 2):
            live = Prior()(frames(number), [0])
            assert torch.equal(read(store, frames(number), prior), live)
        assert caplog.text.count("No space left on device") == 1
        with pytest.raises(StorageFault, match="make room, or name another folder"):
            open_store(tmp_path).add([b"x" * 16], torch.zeros(1, N, C))
    assert torch.equal(read(open_store(tmp_path), frames(0), Prior()), live_of(0))


def live_of(*seeds):
    return Prior()(frames(*seeds), [0] * len(seeds))


def test_the_oldest_files_of_any_prior_go_when_the_root_is_full(tmp_path):
    record = N * C * 4
    limit = {"max_gb": 24 * record / 1e9}
    read(open_store(tmp_path, "older", **limit), frames(0, 1), Prior())
    store = open_store(tmp_path, **limit)
    for number in range(40):
        read(store, frames(number), Prior())
    size = sum(
        p.stat().st_size for p in (*files(tmp_path, ".features"), *files(tmp_path, ".index"))
    )
    assert size <= 24 * record
    prior = Prior()
    read(open_store(tmp_path, "older"), frames(0), prior)
    read(open_store(tmp_path), frames(0), prior)
    assert len(prior.seen) == 2
    prior = Prior()
    assert torch.equal(read(open_store(tmp_path), frames(39, 38), prior), live_of(39, 38))
    assert torch.equal(read(store, frames(39, 0), prior), live_of(39, 0))
    assert prior.seen == []


def test_clearing_removes_one_priors_features_also_for_those_who_have_them_open(tmp_path):
    mine, theirs, other = open_store(tmp_path), open_store(tmp_path), open_store(tmp_path, "b")
    for store in (mine, theirs, other):
        read(store, frames(0), Prior())
    mine.clear()
    prior = Prior()
    read(mine, frames(1), prior)
    assert torch.equal(read(theirs, frames(0, 1), prior), live_of(0, 1))
    read(open_store(tmp_path), frames(0, 1), prior)
    read(other, frames(0), prior)
    assert prior.seen == [1, 1]  # frame 1 anew, and frame 0, which was cleared


def test_looking_for_features_creates_no_folder(tmp_path):
    store = open_store(tmp_path / "store")
    assert not store.has([b"x" * 16]).any()
    store.clear()
    assert not (tmp_path / "store").exists()


def test_a_store_of_a_real_prior_answers_as_the_prior_does(tmp_path):
    prior = build_prior(tiny_config().prior)
    store = FeatureStore(tmp_path, PriorIdentity.of(prior))
    pixels = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (2, 2, 3, 32, 32), np.uint8)
    )

    def compute(x, keys):
        return prior.features(x.float() / 127.5 - 1, keys=keys)

    for _ in range(2):
        for row in pixels:
            live = compute(row[None], [0])
            assert torch.equal(store.read(row[None], keys=[0], compute=compute), live)
    assert len(store) == 4


def test_a_prior_without_weights_is_not_worth_a_store():
    with pytest.raises(ContractError, match="without a feature store"):
        PriorIdentity.of(build_prior(PriorConfig(name="zero")))
    with pytest.raises(ContractError, match="without a feature store"):
        PriorIdentity.of(None)


def test_the_fingerprint_sees_weights_hidden_buffers_constants_and_settings():
    def prior(seed):
        torch.manual_seed(seed)
        module = torch.nn.Linear(2, 2)
        module.register_buffer("noise", torch.randn(3), persistent=False)
        module.prompt = torch.randn(2)
        module._scratch = torch.randn(1)
        return module

    module = prior(0)
    before = prior_fingerprint(module, {"timestep": 300})
    assert before == prior_fingerprint(prior(0), {"timestep": 300})
    assert before != prior_fingerprint(module, {"timestep": 200})
    module._scratch += 1
    assert before == prior_fingerprint(module, {"timestep": 300})
    for part in (module.noise, module.prompt, module.bias.data, module.weight.data):
        part[0] += 1
        assert before != prior_fingerprint(module, {"timestep": 300})
        part[0] -= 1
    assert np.unique([prior_fingerprint(prior(s), {}) for s in range(3)]).size == 3


def test_the_identity_is_that_of_the_saved_prior_and_knows_no_cadence(tmp_path):
    config = tiny_config().prior
    prior = build_prior(config)
    before = PriorIdentity.of(prior)
    prior.features(torch.zeros(1, 2, 3, 32, 32), keys=[0])
    assert PriorIdentity.of(prior) == before
    prior.save(tmp_path)
    assert PriorIdentity.of(build_prior(config, path=tmp_path)) == before
    slow = replace(config, cadence=4)
    assert PriorIdentity.of(build_prior(slow, path=tmp_path)) == before
    for change in ({"timestep": 200.0}, {"noise_seed": 1}, {"block_index": 0}, {"sees": "black"}):
        other = build_prior(replace(config, **change), path=tmp_path)
        assert PriorIdentity.of(other).fingerprint != before.fingerprint, change
    assert PriorIdentity.of(prior).fingerprint == prior_fingerprint(prior, asdict(config))


def test_frames_of_another_size_have_another_digest():
    flat = torch.zeros(1, 1, 3, 4, 4, dtype=torch.uint8)
    assert frame_digests(flat) != frame_digests(flat.view(1, 1, 3, 2, 8))
