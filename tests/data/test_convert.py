"""A conversion is whole or not there."""

import os

import pytest

from vega_policy.data import convert as module
from vega_policy.data.convert import convert
from vega_policy.data.episodes import open_episodes
from vega_policy.spec import ContractError
from vega_policy.testing.demos import write_suite

SUITE = "libero_object"


@pytest.fixture
def source(tmp_path):
    return open_episodes(write_suite(tmp_path / "original", px=32, n_demos=2) / SUITE)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_there_is_not_overwritten(source, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ContractError, match="is there already"):
        convert(source, tmp_path / "out", format="rlds")


def test_an_unknown_format_is_answered_with_the_nearest(source, tmp_path):
    with pytest.raises(ContractError, match="did you mean 'lerobot'"):
        convert(source, tmp_path / "out", format="lerobt")


@pytest.mark.parametrize("kind", ["hdf5", "lerobot", "rlds"])
def test_an_interrupted_conversion_leaves_nothing(source, tmp_path, monkeypatch, kind):
    calls = []

    def interrupted(self, index, *, at=None):
        calls.append(index)
        if index == 2:
            raise KeyboardInterrupt
        return original(self, index, at=at)

    original = type(source).episode
    monkeypatch.setattr(type(source), "episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out" / "set", format=kind, images="lossless")
    assert calls == [0, 1, 2]
    assert names(tmp_path / "out") == []


def test_what_a_kill_left_is_removed_by_the_next_conversion(source, tmp_path):
    dead, alive = tmp_path / ".out.999999999", tmp_path / f".out.{os.getppid()}"
    dead.mkdir()
    alive.mkdir()
    convert(source, tmp_path / "out", format="rlds")
    assert not dead.exists()
    assert alive.exists()


def test_a_folder_is_named_only_when_it_is_whole(source, tmp_path, monkeypatch):
    seen = []
    real = module.Progress.update

    def update(self, n, note=""):
        seen.append((tmp_path / "out").exists())
        real(self, n, note)

    monkeypatch.setattr(module.Progress, "update", update)
    result = convert(source, tmp_path / "out", format="hdf5")
    assert seen == [False] * 4
    assert (result.episodes, result.frames) == (4, 58)
    assert len(open_episodes(result.out)) == 4


def test_damaged_episodes_stop_a_conversion_or_are_listed(tmp_path):
    import h5py

    folder = write_suite(tmp_path / "original", px=32, n_demos=2) / SUITE
    with h5py.File(min(folder.glob("*.hdf5")), "a") as file:
        del file["data/demo_1/obs/agentview_rgb"]
    source = open_episodes(folder)
    with pytest.raises(ContractError, match=r"demo_1 has no 'obs/agentview_rgb'|agentview_rgb"):
        convert(source, tmp_path / "out", format="rlds")
    assert not (tmp_path / "out").exists()
    result = convert(source, tmp_path / "out", format="rlds", skip_damaged=True)
    assert (result.episodes, len(result.skipped)) == (3, 1)
    assert len(open_episodes(tmp_path / "out")) == 3
