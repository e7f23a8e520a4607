"""A video gives the frames that its numbers say."""

import sys

import numpy as np
import pytest

from vega_policy.scene.annotations import VsiRow
from vega_policy.scene.readers.scannet import uniform_indices
from vega_policy.scene.readers.video import missing_videos, read_uniform_frames, write_video
from vega_policy.spec import ContractError


def striped(n):
    """Return frames whose eight stripes are the bits of their number."""
    bits = [(i >> np.arange(8)) & 1 for i in range(n)]
    return [
        np.tile(np.repeat(b, 8)[None, :, None] * 255, (32, 1, 3)).astype(np.uint8) for b in bits
    ]


def number_of(frame):
    return int(((frame[16, 4::8, 0] > 128) << np.arange(8)).sum())


@pytest.mark.parametrize("n", [1, 7, 32, 33, 100])
def test_thirty_two_even_frames_or_all(tmp_path, n):
    write_video(tmp_path / "a.mp4", striped(n))
    frames = read_uniform_frames(tmp_path / "a.mp4")
    seen = [number_of(frame) for frame in frames]
    assert seen == uniform_indices(n, n_frames=32)
    assert frames[0].shape == (32, 64, 3)


def test_red_stays_red(tmp_path):
    red = np.zeros((32, 48, 3), np.uint8)
    red[..., 0] = 200
    write_video(tmp_path / "a.mp4", [red] * 3)
    assert np.abs(read_uniform_frames(tmp_path / "a.mp4")[1].mean((0, 1)) - [200, 0, 0]).max() < 12


def test_a_missing_video_is_named(tmp_path):
    with pytest.raises(ContractError, match="no video"):
        read_uniform_frames(tmp_path / "a.mp4")


@pytest.mark.parametrize("content", [b"", b"not a video at all"])
def test_a_file_that_is_no_video_is_named(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ContractError, match=r"a\.mp4 is not a readable video"):
        read_uniform_frames(tmp_path / "a.mp4")


def test_a_video_that_is_cut_off_is_named(tmp_path):
    write_video(tmp_path / "a.mp4", striped(60))
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(ContractError, match=r"a\.mp4"):
        read_uniform_frames(tmp_path / "a.mp4")


def test_images_of_odd_or_mixed_sizes_are_refused(tmp_path):
    with pytest.raises(ContractError, match="even height"):
        write_video(tmp_path / "a.mp4", [np.zeros((31, 48, 3), np.uint8)])
    with pytest.raises(ContractError, match="expected one"):
        write_video(tmp_path / "a.mp4", [*striped(1), np.zeros((64, 64, 3), np.uint8)])


def test_without_pyav_it_says_what_to_install(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", striped(2))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ContractError, match="pip install av"):
        read_uniform_frames(tmp_path / "a.mp4")


def test_videos_that_questions_need_are_listed_once(tmp_path):
    rows = [
        VsiRow(
            id=i,
            dataset="scannet",
            scene_name=name,
            question_type="object_counting",
            question="How many?",
            ground_truth="2",
        )
        for i, name in enumerate(["a", "b", "b", "c"])
    ]
    write_video(tmp_path / "scannet" / "a.mp4", striped(1))
    assert missing_videos(tmp_path, rows) == [
        tmp_path / "scannet" / "b.mp4",
        tmp_path / "scannet" / "c.mp4",
    ]
