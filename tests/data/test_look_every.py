"""Demonstrations with images at some steps only: nothing may train on, or pass on, a black frame."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vega_policy.data.chunks import ChunkDataset, DataSource
from vega_policy.data.convert import convert
from vega_policy.data.episodes import open_suite
from vega_policy.data.libero_hdf5 import list_demos, read_demo, write_demo
from vega_policy.data.video import list_videos, read_clips
from vega_policy.spec import ContractError
from vega_policy.testing.demos import make_demo

if TYPE_CHECKING:
    from pathlib import Path

N_STEPS, EVERY, FIRST, HORIZON = 30, 4, 2, 8
SUITE = "libero_object"


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    demo = make_demo(0, n_steps=N_STEPS, px=32)
    mask = np.zeros(N_STEPS, dtype=np.uint8)
    mask[FIRST::EVERY] = 1
    keep = mask[:, None, None, None]
    # What is outside the mask must not reach the file, whatever it holds.
    sparse = replace(demo, frame_mask=mask)
    write_demo(tmp_path / SUITE / "a_demo.hdf5", sparse)
    np.savez(tmp_path / "kept.npz", agentview=demo.agentview * keep, wrist=demo.wrist * keep)
    return tmp_path


def test_frames_that_were_drawn_come_back_and_the_others_are_black(folder: Path) -> None:
    demo = read_demo(list_demos([folder / SUITE / "a_demo.hdf5"])[0])
    kept = np.load(folder / "kept.npz")
    assert demo.frame_mask is not None
    assert demo.frame_mask.sum() == 7
    assert np.array_equal(demo.agentview, kept["agentview"])
    assert np.array_equal(demo.wrist, kept["wrist"])


def test_a_sample_starts_only_where_there_is_an_image(folder: Path) -> None:
    dataset = ChunkDataset.open(DataSource(dirs=(folder,), suites=(SUITE,)), horizon=HORIZON)
    starts = dataset.starts(held_out=False, fraction=0.0)
    assert starts.tolist() == [2, 6, 10, 14, 18, 22]
    assert dataset.n_rows == N_STEPS
    kept = np.load(folder / "kept.npz")["agentview"][starts]
    assert np.array_equal(dataset.pixels(starts)[:, 0].numpy(), kept.transpose(0, 3, 1, 2))


def test_clips_hold_no_black_frame(folder: Path) -> None:
    videos = list_videos(folder, SUITE)
    clips = read_clips(videos, n_clips=99, clip_frames=2, frame_stride=EVERY, image_px=32, seed=0)
    assert len(clips) == 2 * 6  # two cameras, seven frames
    assert (clips.reshape(len(clips) * 2, -1).max(axis=1) > 0).all()
    with pytest.raises(ContractError, match="no clip of 2 frames at stride 2"):
        read_clips(videos, n_clips=99, clip_frames=2, frame_stride=2, image_px=32, seed=0)


def test_other_formats_are_not_given_black_frames(folder: Path, tmp_path: Path) -> None:
    source = open_suite(folder, SUITE)
    with pytest.raises(ContractError, match="images at 7 of 30 steps, expected all"):
        convert(source, tmp_path / "out", format="rlds")
    assert not (tmp_path / "out").exists()
