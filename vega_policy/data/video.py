"""Frames and short clips from rollout videos; actions and labels are not looked at.

A video is one camera of one episode: of a LIBERO HDF5 file, or an mp4. Which frames are read is a
function of the arguments alone, so a second run sees the same ones.

Shape legend: ``n`` clips, ``t`` frames of a clip, ``p`` image size.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.data.libero_hdf5 import (
    SUFFIX,
    DemoRef,
    list_demos,
    open_demo,
    read_frame_mask,
    read_images,
)
from vega_policy.spec import CAMERAS, ContractError
from vega_policy.spec.names import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Video:
    """Where one video lies."""

    source: DemoRef | Path
    """A demonstration, or an mp4 file."""
    camera: str
    """A name of `spec.CAMERAS`; empty for an mp4, which shows one camera."""
    n_frames: int
    seen: tuple[int, ...] | None = None
    """The frames that were drawn, rising; None: all."""

    def starts(self, *, clip_frames: int, frame_stride: int) -> NDArray[np.int64]:
        """Return where a clip may begin so that each of its frames was drawn."""
        span = (clip_frames - 1) * frame_stride + 1
        begins = np.arange(max(0, self.n_frames - span + 1))
        if self.seen is None:
            return begins
        drawn = np.zeros(self.n_frames, dtype=bool)
        drawn[list(self.seen)] = True
        return begins[[bool(drawn[b : b + span : frame_stride].all()) for b in begins]]

    @property
    def episode(self) -> str:
        """What the cameras of one episode share."""
        if isinstance(self.source, Path):
            return str(self.source)
        return f"{self.source.file}:{self.source.name}"


def list_videos(data_dir: Path | str, suite: str) -> list[Video]:
    """List the videos below ``<data_dir>/<suite>``: each camera of each demonstration, and mp4 files.

    Demonstrations come from task files, and, for a task that has no task file yet, from the single
    demonstrations below ``parts/<task>``.

    Raises:
        ContractError: There are none.
    """
    folder = Path(data_dir) / suite
    if not folder.is_dir() and Path(data_dir).is_dir():
        there = [path.name for path in _visible(Path(data_dir).iterdir())]
        raise ContractError(
            f"no videos of suite {suite!r} in {data_dir}: {nearest(suite, there)}; "
            "run scripts/collect.py or set data.dir and suite"
        )
    files = _visible(folder.glob("*.hdf5"))
    merged = {path.name.removesuffix(SUFFIX) for path in files}
    files += [
        path for path in _visible(folder.glob("parts/*/*.hdf5")) if path.parent.name not in merged
    ]
    videos = [
        Video(source=demo, camera=camera, n_frames=demo.n_steps, seen=seen)
        for demo in list_demos(files)
        for seen in [_seen(demo)]
        for camera in CAMERAS
    ]
    videos += [
        Video(source=path, camera="", n_frames=_count_mp4_frames(path))
        for path in _visible(folder.rglob("*.mp4"))
    ]
    if not videos:
        raise ContractError(
            f"no videos in {folder}: 0 files, expected LIBERO demonstrations (*.hdf5) or *.mp4; "
            "run scripts/collect.py or set data.dir and suite"
        )
    return videos


def hold_out(
    videos: Sequence[Video], *, fraction: float, seed: int
) -> tuple[list[Video], list[Video]]:
    """Split into training and held-out videos by episode, at least one episode on either side.

    Raises:
        ContractError: There are fewer than two episodes.
    """
    episodes = sorted({video.episode for video in videos})
    if len(episodes) < 2:
        raise ContractError(
            f"{len(episodes)} episode, expected at least 2 so that one can be held out; collect more"
        )
    n_held = min(max(1, round(fraction * len(episodes))), len(episodes) - 1)
    held = set(np.random.default_rng(seed).permutation(episodes)[:n_held].tolist())
    return (
        [video for video in videos if video.episode not in held],
        [video for video in videos if video.episode in held],
    )


def read_clips(
    videos: Sequence[Video],
    *,
    n_clips: int,
    clip_frames: int = 1,
    frame_stride: int = 1,
    image_px: int,
    seed: int,
) -> NDArray[np.uint8]:
    """Read clips spread evenly at random over the videos, each position at most once.

    Args:
        videos: Where to read.
        n_clips: How many at most; fewer where the videos hold fewer.
        clip_frames: Frames of one clip.
        frame_stride: Every how many frames of the video one is taken.
        image_px: Side of the frames returned; square frames of another size are resized to it.
        seed: Which positions are drawn.

    Returns:
        (n, t, p, p, 3) RGB, upright, ordered by video.

    Raises:
        ContractError: No video is long enough, or frames are not square.
    """
    span = (clip_frames - 1) * frame_stride + 1
    begins_of = [v.starts(clip_frames=clip_frames, frame_stride=frame_stride) for v in videos]
    counts = np.array([len(begins) for begins in begins_of])
    total = int(counts.sum())
    if total == 0:
        longest = max((video.n_frames for video in videos), default=0)
        raise ContractError(
            f"no clip of {clip_frames} frames at stride {frame_stride}: the longest of "
            f"{len(videos)} videos has {longest} frames, expected {span}; shorten the clips"
        )
    chosen = np.random.default_rng(seed).permutation(total)[:n_clips]
    starts: defaultdict[int, list[int]] = defaultdict(list)
    ends = np.cumsum(counts)
    for position in np.sort(chosen):
        index = int(np.searchsorted(ends, position, side="right"))
        starts[index].append(int(begins_of[index][position - (ends[index] - counts[index])]))
    clips = np.empty((len(chosen), clip_frames, image_px, image_px, 3), dtype=np.uint8)
    filled = 0
    for index, begins in starts.items():
        at = sorted({b + i * frame_stride for b in begins for i in range(clip_frames)})
        frames = dict(zip(at, _resized(read_frames(videos[index], at), image_px), strict=True))
        for begin in begins:
            clips[filled] = [frames[begin + i * frame_stride] for i in range(clip_frames)]
            filled += 1
    return clips


def read_frames(video: Video, at: Sequence[int]) -> NDArray[np.uint8]:
    """Read some frames (len(at), H, W, 3) of a video; ``at`` rises.

    Raises:
        ContractError: The file cannot be read, or ends before the last frame asked for.
    """
    if isinstance(video.source, Path):
        return _read_mp4(video.source, at)
    with open_demo(video.source) as group:
        return read_images(group, video.camera, at=at)


def _seen(demo: DemoRef) -> tuple[int, ...] | None:
    with open_demo(demo) as group:
        mask = read_frame_mask(group)
    return None if mask is None else tuple(np.flatnonzero(mask).tolist())


def _read_mp4(path: Path, at: Sequence[int]) -> NDArray[np.uint8]:
    wanted = set(at)
    found: list[NDArray[np.uint8]] = []
    for index, frame in enumerate(_decode_mp4(path)):
        if index in wanted:
            found.append(frame)
        if len(found) == len(wanted):
            return np.stack(found)
    raise ContractError(
        f"{path} ended after {len(found)} of the {len(wanted)} frames asked for; write it again"
    )


def _decode_mp4(path: Path) -> Iterator[NDArray[np.uint8]]:
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
    except (FFmpegError, OSError, IndexError) as error:
        raise ContractError(
            f"{path} cannot be read: {error}, expected an mp4 video; write it again or move it away"
        ) from error


def _count_mp4_frames(path: Path) -> int:
    return sum(1 for _ in _decode_mp4(path))


def _resized(frames: NDArray[np.uint8], image_px: int) -> NDArray[np.uint8]:
    height, width = frames.shape[1:3]
    if height != width:
        raise ContractError(
            f"frames are {width}x{height}, expected square ones as the policy's cameras give; "
            "render or crop the videos square"
        )
    if height == image_px:
        return frames
    from PIL import Image

    size = (image_px, image_px)
    return np.stack(
        [np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in frames]
    )


def _visible(paths: Iterator[Path]) -> list[Path]:
    """Sort paths and leave out temporary files, whose names start with a dot."""
    return sorted(path for path in paths if not path.name.startswith("."))
