"""Episodes as films: both cameras side by side, the gate maps below them."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.rollout.gate_map import overlay
from vega_policy.spec.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vega_policy.spec import Outcome

CHUNK_FPS = 5
"""One frame per inference: about twice real time for chunks of 8 actions at 20 Hz."""
HOLD = 3
"""Times the last frame is shown, framed in the colour of the outcome."""
SCALE = 2
_FRAME: dict[str, tuple[int, int, int]] = {
    "success": (46, 160, 67),
    "failure": (207, 72, 60),
    "policy_fault": (180, 120, 20),
}


def film(
    images: Sequence[Mapping[str, NDArray[np.uint8]]],
    gates: Sequence[Mapping[str, NDArray[np.float32]] | None],
    *,
    cameras: Sequence[str],
    outcome: Outcome,
    draw_gate: bool = True,
) -> list[NDArray[np.uint8]]:
    """Lay out the frames of an episode.

    Args:
        images: Per frame the camera images, (H, W, 3) each.
        gates: Per frame the gate maps, (h, w) each, of the inference the frame belongs to.
        cameras: Which cameras, from left to right.
        outcome: Colours the frame around the last picture.
        draw_gate: Add the row of gate maps where there are any.

    Returns:
        Frames (H', W', 3) uint8 of equal, even size.
    """
    maps = [g for g in gates if g is not None]
    with_gate = draw_gate and bool(maps)
    values = np.concatenate([g[c].ravel() for g in maps for c in cameras if c in g] or [[0.0]])
    low, high = float(values.min()), float(values.max())
    frames: list[NDArray[np.uint8]] = []
    for pictures, gate in zip(images, gates, strict=True):
        rows = [[_enlarge(pictures[c]) for c in cameras]]
        if with_gate:
            rows.append(
                [
                    overlay(picture, gate[c], low=low, high=high)
                    if gate is not None and c in gate
                    else (picture // 2).astype(np.uint8)
                    for c, picture in zip(cameras, rows[0], strict=True)
                ]
            )
        frame = np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
        frames.append(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])
    return [*frames, *[_framed(frames[-1], outcome)] * HOLD] if frames else []


def write_mp4(path: Path, frames: Iterable[NDArray[np.uint8]], *, fps: int) -> None:
    """Encode H.264 in yuv420p, which every browser plays; the file appears whole or not at all.

    Args:
        path: Ends in ``.mp4``.
        frames: (H, W, 3) uint8, H and W even.
        fps: Frames per second.
    """
    import av

    with (
        atomic_path(path) as temporary,
        av.open(str(temporary), "w", options={"movflags": "+faststart"}) as container,
    ):
        stream = None
        for number, frame in enumerate(frames):
            if stream is None:
                stream = container.add_stream("libx264", rate=fps)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.thread_count = 1
                stream.options = {"preset": "veryfast", "crf": "25"}
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(picture))
        if stream is not None:
            container.mux(stream.encode(None))


def first_frame(path: Path) -> NDArray[np.uint8] | None:
    """Return the first picture of a video, (H, W, 3); None where it cannot be read."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0), None)
    except (FFmpegError, OSError):
        return None
    return None if frame is None else frame.to_ndarray(format="rgb24").astype(np.uint8)


def _enlarge(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    size = (image.shape[1] * SCALE, image.shape[0] * SCALE)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _framed(frame: NDArray[np.uint8], outcome: Outcome) -> NDArray[np.uint8]:
    framed = frame.copy()
    for edge in (np.s_[:6], np.s_[-6:], np.s_[:, :6], np.s_[:, -6:]):
        framed[edge] = _FRAME[outcome]
    return framed
