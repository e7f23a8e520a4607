"""Evenly spaced frames of a video, as the VSI-Bench models are shown them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vega_policy.scene.readers.scannet import uniform_indices
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vega_policy.scene.annotations import VsiRow


def video_path(root: Path | str, row: VsiRow) -> Path:
    """Return where the video of a question lies: ``<root>/<dataset>/<scene>.mp4``."""
    return Path(root) / row.dataset / f"{row.scene_name}.mp4"


def missing_videos(root: Path | str, rows: Sequence[VsiRow]) -> list[Path]:
    """Return the videos of questions that are not there, each once, sorted."""
    return sorted({path for row in rows if not (path := video_path(root, row)).is_file()})


def read_uniform_frames(path: Path | str, *, n_frames: int = 32) -> list[NDArray[np.uint8]]:
    """Read frames at even steps from the first to the last, rounded down; all if there are fewer.

    The video is decoded twice, once to count: headers lie about the number of frames.

    Args:
        path: A video file.
        n_frames: How many.

    Returns:
        (h, w, 3) RGB images.

    Raises:
        ContractError: The file is missing, no video, or broken; PyAV is not installed.
    """
    file = Path(path)
    if not file.is_file():
        raise ContractError(f"no video {file}; where videos go is in docs/scene_data.md")
    n = sum(1 for _ in _decoded(file))
    if n == 0:
        raise ContractError(f"{file} has no frames; copy it again")
    wanted = set(uniform_indices(n, n_frames=n_frames))
    return [
        np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
        for i, frame in enumerate(_decoded(file))
        if i in wanted
    ]


def write_video(path: Path | str, images: Sequence[NDArray[np.uint8]], *, fps: int = 10) -> None:
    """Write RGB images of one even size as H.264 mp4, atomically.

    Raises:
        ContractError: There is no image, sizes are mixed or odd, or PyAV is not installed.
    """
    from vega_policy.spec.files import atomic_path

    av = _av()
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) != 1 or sizes[0][0] % 2 or sizes[0][1] % 2:
        raise ContractError(f"images have sizes {sizes}, expected one of even height and width")
    height, width = sizes[0]
    with atomic_path(path) as temporary, av.open(str(temporary), mode="w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def _decoded(file: Path) -> Any:  # noqa: ANN401 - a generator of PyAV frames, imported late
    av = _av()
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ContractError(f"{file} has no video stream; copy it again")
            yield from container.decode(container.streams.video[0])
    except (av.FFmpegError, ValueError) as error:  # ValueError: damaged names of its streams
        raise ContractError(f"{file} is not a readable video ({error}); copy it again") from error


def _av() -> Any:  # noqa: ANN401 - the module
    try:
        import av
    except ImportError as error:
        raise ContractError(f"videos need PyAV: {error}; pip install av") from error
    return av
