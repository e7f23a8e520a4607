"""Demonstrations as strips of frames: a row for each task, a picture for each suite."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from envs.suites import tasks
from vega_policy.spec import AGENTVIEW, ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from envs.suites import Task
    from vega_policy.data.libero_hdf5 import DemoRef

_CAPTION_PX = 15
_GAP_PX = 2


def write_filmstrips(
    data_dir: Path, suite: str, path: Path, *, n_frames: int = 8, quality: int = 78
) -> list[int]:
    """Write one JPEG with the first whole demonstration of each task of a suite.

    Undisturbed ones are preferred. The last frame is the one after success.

    Args:
        data_dir: As given to ``scripts/collect.py``; only read.
        suite: Its name.
        path: Where the picture goes.
        n_frames: Frames a row, from first to success at even distances.
        quality: Of the JPEG.

    Returns:
        The tasks of which there is no demonstration.

    Raises:
        ContractError: There is no demonstration at all.
    """
    from PIL import Image, ImageDraw

    from vega_policy.spec.files import atomic_path

    rows: list[tuple[str, NDArray[np.uint8]]] = []
    missing: list[int] = []
    for task in tasks(suite):
        ref = _choose(data_dir / suite, task)
        if ref is None:
            missing.append(task.task_id)
        else:
            rows.append((f"{task.task_id}  {task.instruction}", _frames(ref, n_frames)))
    if not rows:
        raise ContractError(
            f"no demonstrations of {suite} in {data_dir / suite}; run scripts/collect.py first, or "
            "name the folder with data_dir"
        )
    px = rows[0][1].shape[1]
    size = n_frames * (px + _GAP_PX) - _GAP_PX, len(rows) * (px + _CAPTION_PX)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for r, (caption, frames) in enumerate(rows):
        top = r * (px + _CAPTION_PX)
        draw.text((2, top + 1), caption, fill="black")
        for c, frame in enumerate(frames):
            canvas.paste(Image.fromarray(frame), (c * (px + _GAP_PX), top + _CAPTION_PX))
    with atomic_path(path) as temporary:
        canvas.save(temporary, quality=quality, optimize=True)
    return missing


def _choose(folder: Path, task: Task) -> DemoRef | None:
    from vega_policy.data.libero_hdf5 import ATTRIBUTES_KEY, SUFFIX, list_demos, open_demo

    files: Sequence[Path] = sorted((folder / "parts" / task.name).glob("attempt_*.hdf5"))
    merged = folder / f"{task.name}{SUFFIX}"
    if not files:
        files = [merged] if merged.is_file() else []
    first = None
    for ref in list_demos(files):
        with open_demo(ref) as group:
            attributes = json.loads(str(group.attrs.get(ATTRIBUTES_KEY, "{}")))
        if not attributes.get("n_pushed_steps", 0):
            return ref
        first = first or ref
    return first


def _frames(ref: DemoRef, n_frames: int) -> NDArray[np.uint8]:
    """Return (n, h, w, 3) frames at even distances, taken where there are images."""
    from vega_policy.data.libero_hdf5 import open_demo, read_frame_mask, read_images

    with open_demo(ref) as group:
        mask = read_frame_mask(group)
        seen = np.arange(ref.n_steps) if mask is None else np.flatnonzero(mask)
        wanted = np.linspace(0, ref.n_steps - 1, n_frames)
        at = [int(seen[np.abs(seen - step).argmin()]) for step in wanted]
        return read_images(group, AGENTVIEW, at=at)
