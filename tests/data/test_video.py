"""Frames come out upright, evenly, and the same every time."""

import json

import h5py
import numpy as np
import pytest

from vega_policy.data.video import hold_out, list_videos, read_clips, read_frames
from vega_policy.spec import ContractError


def write_task(path, *, n_demos=2, n_steps=6, first=0):
    """Frame ``t`` of demonstration ``k`` has grey level 40 k + t + first; its top left pixel is red."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "move"})
        for k in range(n_demos):
            frames = np.empty((n_steps, 16, 16, 3), dtype=np.uint8)
            frames[:] = (np.arange(n_steps) + 40 * k + first)[:, None, None, None]
            frames[:, 0, 0] = (255, 0, 0)
            for camera in ("agentview_rgb", "eye_in_hand_rgb"):
                data.create_dataset(f"demo_{k}/obs/{camera}", data=frames[:, ::-1, ::-1])
            data.create_dataset(f"demo_{k}/actions", data=np.zeros((n_steps, 7)))


def write_mp4(path, *, n_frames, side=16):
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=20)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for t in range(n_frames):
            image = np.full((side, side, 3), 20 * t, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def test_every_camera_of_every_demonstration_is_a_video(tmp_path):
    write_task(tmp_path / "toy" / "a_demo.hdf5")
    videos = list_videos(tmp_path, "toy")
    assert [(v.camera, v.n_frames) for v in videos] == [("agentview", 6), ("wrist", 6)] * 2
    assert len({v.episode for v in videos}) == 2


def test_single_demonstrations_count_only_until_their_task_file_exists(tmp_path):
    write_task(tmp_path / "toy" / "parts" / "a" / "attempt_0.hdf5", n_demos=1)
    write_task(tmp_path / "toy" / "parts" / "b" / "attempt_0.hdf5", n_demos=1)
    assert len(list_videos(tmp_path, "toy")) == 4
    write_task(tmp_path / "toy" / "a_demo.hdf5", n_demos=1)
    assert len(list_videos(tmp_path, "toy")) == 4


def test_frames_are_upright(tmp_path):
    write_task(tmp_path / "toy" / "a_demo.hdf5")
    frame = read_frames(list_videos(tmp_path, "toy")[0], [3])[0]
    assert frame[0, 0].tolist() == [255, 0, 0]
    assert (frame[1:] == 3).all()


def test_clips_are_consecutive_at_the_stride_and_the_same_every_time(tmp_path):
    write_task(tmp_path / "toy" / "a_demo.hdf5")
    videos = list_videos(tmp_path, "toy")
    options = {"n_clips": 5, "clip_frames": 3, "frame_stride": 2, "image_px": 16}
    clips = read_clips(videos, seed=0, **options)
    assert clips.shape == (5, 3, 16, 16, 3)
    assert (np.diff(clips[:, :, 8, 8, 0].astype(int), axis=1) == 2).all()
    assert np.array_equal(clips, read_clips(videos, seed=0, **options))
    assert not np.array_equal(clips, read_clips(videos, seed=1, **options))


def test_no_position_is_read_twice(tmp_path):
    write_task(tmp_path / "toy" / "a_demo.hdf5")
    clips = read_clips(list_videos(tmp_path, "toy"), n_clips=99, image_px=16, seed=0)
    levels = sorted(clips[:, 0, 8, 8, 0].tolist())
    assert levels == sorted(2 * [40 * k + t for k in range(2) for t in range(6)])


def test_mp4_frames_are_read_and_resized(tmp_path):
    write_mp4(tmp_path / "toy" / "videos" / "x.mp4", n_frames=8, side=32)
    videos = list_videos(tmp_path, "toy")
    assert [v.n_frames for v in videos] == [8]
    clips = read_clips(videos, n_clips=99, image_px=16, seed=0)
    assert clips.shape == (8, 1, 16, 16, 3)
    assert np.abs(clips[:, 0, 8, 8, 0].astype(int) - 20 * np.arange(8)).max() <= 6


def test_episodes_are_held_out_whole(tmp_path):
    write_task(tmp_path / "toy" / "a_demo.hdf5", n_demos=5)
    videos = list_videos(tmp_path, "toy")
    seen, unseen = hold_out(videos, fraction=0.2, seed=0)
    assert len(unseen) == 2
    assert not {v.episode for v in seen} & {v.episode for v in unseen}


def test_one_episode_is_too_little_to_hold_one_out(tmp_path):
    write_task(tmp_path / "toy" / "a_demo.hdf5", n_demos=1)
    with pytest.raises(ContractError, match="collect more"):
        hold_out(list_videos(tmp_path, "toy"), fraction=0.1, seed=0)


def test_clips_longer_than_every_video_are_refused(tmp_path):
    write_task(tmp_path / "toy" / "a_demo.hdf5")
    videos = list_videos(tmp_path, "toy")
    with pytest.raises(ContractError, match="shorten the clips"):
        read_clips(videos, n_clips=2, clip_frames=9, image_px=16, seed=0)


def test_a_broken_mp4_is_named(tmp_path):
    path = tmp_path / "toy" / "x.mp4"
    path.parent.mkdir()
    path.write_bytes(b"not a video")
    with pytest.raises(ContractError, match=r"x\.mp4 cannot be read"):
        list_videos(tmp_path, "toy")
