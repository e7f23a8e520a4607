"""Decoded frames of one task, laid out flat so that a random frame costs one memory copy.

Decompressing images inside a training loop would eat the cores the loop needs. The demonstrations of a
task are decoded once into a memory map, from whatever format they are stored in; the folder's name
holds a fingerprint of the content, so a task that was collected anew is decoded anew and the old
folder goes.

Shape legend: ``n`` steps of the task, ``v`` cameras in the order of `spec.CAMERAS`, ``h, w`` image.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vega_policy.data.progress import Progress
from vega_policy.spec import CAMERAS, ContractError

if TYPE_CHECKING:
    from vega_policy.data.episodes import Episode, EpisodeRef, EpisodeSource

logger = logging.getLogger(__name__)

LAYOUT = 2
"""Raised whenever the meaning of the cached arrays changes."""
_LOW_DIMENSIONAL = ("actions", "proprio", "expert_mask", "frame_mask")


@dataclass(frozen=True, eq=False)
class FrameTransform:
    """A change that every frame goes through once, when it is decoded: the model's image path."""

    name: str
    """Names the folder of the results; another change needs another name."""
    px: int
    """Side of the resulting image."""
    apply: Callable[[Sequence[NDArray[np.uint8]]], Tensor]
    """Turns (h, w, 3) images into (n, 3, px, px) uint8."""
    apply_to_jpeg: Callable[[Sequence[NDArray[np.uint8]]], Tensor] | None = None
    """The same for images that were JPEG files already; ``apply`` where None."""


@dataclass(frozen=True, eq=False)
class Frames:
    """The demonstrations of one task, decoded."""

    folder: Path
    """Where the arrays lie; features of these frames are cached beside it."""
    fingerprint: str
    suite: str
    task: str
    instruction: str
    images: NDArray[np.uint8]
    """(n, v, 3, h, w), upright, memory-mapped."""
    actions: NDArray[np.float64]
    """(n, 7) environment commands."""
    proprio: NDArray[np.float32]
    """(n, 8)."""
    expert_mask: NDArray[np.uint8]
    """(n,) 1 where the expert chose the action."""
    frame_mask: NDArray[np.uint8]
    """(n,) 1 where there is an image; the others are black and take no space on the disk."""
    lengths: NDArray[np.int64]
    """(demos,) steps of each demonstration, in the order of the rows."""


def open_frames(
    source: EpisodeSource,
    *,
    suite: str,
    cache_dir: Path,
    transform: FrameTransform | None = None,
) -> Frames:
    """Open the decoded frames of a task, decoding it first where that was not done yet.

    A kill while decoding leaves a hidden folder that the next call removes; what `open_frames`
    returns was always completed.

    Args:
        source: Episodes of one task (`EpisodeSource.of_task`), at least one.
        suite: What the task is a part of.
        cache_dir: Where the arrays go.
        transform: What frames go through before they are kept.

    Raises:
        ContractError: An episode cannot be read, or the images differ in size.
    """
    refs = source.refs
    fingerprint = _fingerprint(source)
    task = refs[0].task
    # A folder of its own for each transform, so that none takes another's results for stale.
    root = cache_dir if transform is None else cache_dir / transform.name
    folder = root / suite / f"{task}-{fingerprint}"
    if not (folder / "meta.json").exists():
        _decode(source, folder=folder, task=task, transform=transform)
    with np.load(folder / "low.npz") as low:
        arrays = {key: low[key] for key in (*_LOW_DIMENSIONAL, "lengths")}
    # Mode "c" gives a writable view without ever writing to the file: torch warns about others.
    images = np.load(folder / "images.npy", mmap_mode="c")
    return Frames(
        folder=folder,
        fingerprint=fingerprint if transform is None else f"{fingerprint}-{transform.name}",
        suite=suite,
        task=task,
        instruction=refs[0].instruction,
        images=images,
        **arrays,
    )


def _decode(
    source: EpisodeSource, *, folder: Path, task: str, transform: FrameTransform | None
) -> None:
    refs = source.refs
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    for stale in _stale(folder, task=task):
        logger.info("removing %s, decoded from an older file of this task", stale)
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir(parents=True)
    height, width = source.episode(0, at=(0,)).images[CAMERAS[0]].shape[1:3]
    total = sum(ref.n_steps for ref in refs)
    apply = None if transform is None else transform.apply
    if transform is not None and transform.apply_to_jpeg is not None and source.is_jpeg:
        apply = transform.apply_to_jpeg
    side = (height, width) if transform is None else (transform.px, transform.px)
    shape = (total, len(CAMERAS), 3, *side)
    images = np.lib.format.open_memmap(
        temporary / "images.npy", mode="w+", dtype=np.uint8, shape=shape
    )
    low: dict[str, list[NDArray[np.generic]]] = {key: [] for key in _LOW_DIMENSIONAL}
    row = 0
    with Progress(total, what=f"decoding {task}", unit="frames") as progress:
        for index, ref in enumerate(refs):
            episode = source.episode(index)
            seen = np.flatnonzero(_frame_mask(episode))
            for view, camera in enumerate(CAMERAS):
                frames = _frames(episode, camera, ref=ref, size=(height, width))[seen]
                # Rows that are never written stay holes in the file.
                images[row + seen, view] = (
                    frames.transpose(0, 3, 1, 2) if apply is None else apply(list(frames)).numpy()
                )
            for key, values in _low_dimensional(episode).items():
                low[key].append(values)
            row += ref.n_steps
            progress.update(ref.n_steps)
    images.flush()
    del images
    np.savez(
        temporary / "low.npz",
        lengths=np.array([ref.n_steps for ref in refs], dtype=np.int64),
        **{key: np.concatenate(values) for key, values in low.items()},
    )
    meta = {"layout": LAYOUT, "file": refs[0].file.name, "demos": len(refs), "steps": total}
    (temporary / "meta.json").write_text(json.dumps(meta, indent=2))
    try:
        temporary.replace(folder)
    except OSError:
        # Another process decoded the same task meanwhile: a folder that is not empty stays as it is.
        if not (folder / "meta.json").exists():
            raise
        shutil.rmtree(temporary, ignore_errors=True)


def _frames(
    episode: Episode, camera: str, *, ref: EpisodeRef, size: tuple[int, int]
) -> NDArray[np.uint8]:
    images = episode.images[camera]
    if images.shape != (ref.n_steps, *size, 3):
        raise ContractError(
            f"{ref}: {camera} is {images.shape}, expected {(ref.n_steps, *size, 3)} "
            "as in the first demonstration; keep one image size per file"
        )
    return images


def _low_dimensional(episode: Episode) -> dict[str, NDArray[np.generic]]:
    return {
        "actions": episode.actions,
        "proprio": episode.proprio,
        "expert_mask": episode.expert_mask,
        "frame_mask": _frame_mask(episode),
    }


def _frame_mask(episode: Episode) -> NDArray[np.uint8]:
    if episode.frame_mask is not None:
        return episode.frame_mask
    return np.ones(episode.n_steps, dtype=np.uint8)


def _stale(folder: Path, *, task: str) -> list[Path]:
    """Return folders of other contents of the same task, and hidden ones whose writer is gone."""
    width = len(folder.name) - len(task)
    old = [
        p
        for p in folder.parent.glob(f"{task}-*")
        if p != folder and len(p.name) == len(task) + width
    ]
    for hidden in folder.parent.glob(f".{task}-*"):
        pid = hidden.name.rpartition(".")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            old.append(hidden)
    return old


def _fingerprint(source: EpisodeSource) -> str:
    """Hash what distinguishes one content from another without decoding every image."""
    digest = hashlib.sha256(f"layout {LAYOUT}".encode())
    for index, ref in enumerate(source.refs):
        episode = source.episode(index, at=(0, ref.n_steps - 1))
        for values in _low_dimensional(episode).values():
            digest.update(np.ascontiguousarray(values).tobytes())
        for camera in CAMERAS:
            digest.update(episode.images[camera].tobytes())
        digest.update(ref.instruction.encode())
    return digest.hexdigest()[:16]
