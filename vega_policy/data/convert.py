"""From one format to another, episode by episode.

The result appears under its name only when it is whole: it is written into a hidden folder beside it,
which the next conversion to the same place removes if a kill left it there.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from vega_policy.data.progress import Progress
from vega_policy.spec import ContractError
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from vega_policy.data.episodes import Episode, EpisodeRef, EpisodeSource

logger = logging.getLogger(__name__)

FORMATS = ("hdf5", "lerobot", "rlds")
Images = Literal["lossless", "lossy"]


class EpisodeWriter(Protocol):
    """Takes episodes one after the other."""

    def add(self, episode: Episode, *, task: str) -> None:
        """Append one episode of a task (its file-name form)."""
        ...

    def close(self) -> None:
        """Write what is known only at the end; before it nothing can be read."""
        ...


@dataclass(frozen=True)
class Converted:
    """What was written."""

    episodes: int
    frames: int
    skipped: Sequence[str]
    """What was left out as damaged, one sentence each."""
    out: Path


def convert(
    source: EpisodeSource,
    to: Path,
    *,
    format: str,  # noqa: A002 - the word of the command line
    images: Images = "lossy",
    crf: int = 30,
    name: str | None = None,
    skip_damaged: bool = False,
) -> Converted:
    """Write the episodes of a data set in another format.

    Args:
        source: Of `open_episodes`.
        to: Folder to make; its parents are made too.
        format: One of `FORMATS`.
        images: ``lossy``: AV1 video in LeRobot, JPEG of quality 95 in RLDS; ``lossless``: PNG. HDF5 is
            always lossless.
        crf: Quality of the video, lower is better and larger.
        name: Of an RLDS set, in its file names; by default that of the folder.
        skip_damaged: Leave out episodes that cannot be read.

    Raises:
        ContractError: ``to`` is there already, the format is unknown, or an episode cannot be read
            and ``skip_damaged`` is not set; nothing is left behind then.
    """
    require_name(format, FORMATS, what="format")
    if to.exists():
        raise ContractError(f"{to} is there already; choose another folder, or delete it")
    _remove_stale(to)
    hidden = to.with_name(f".{to.name}.{os.getpid()}")
    hidden.mkdir(parents=True)
    skipped = list(source.left_out)
    n_episodes = n_frames = 0
    try:
        writer = _writer(
            format,
            hidden,
            images=images,
            crf=crf,
            rate_hz=source.rate_hz,
            name=name or to.name,
        )
        total = int(source.lengths.sum())
        with Progress(total, what=f"converting to {format}", unit="frames") as progress:
            for index, ref in enumerate(source.refs):
                try:
                    episode = source.episode(index)
                except ContractError as error:
                    if not skip_damaged:
                        raise
                    logger.warning("left out: %s", error)
                    skipped.append(str(error))
                else:
                    _require_images(episode, ref)
                    writer.add(episode, task=ref.task)
                    n_episodes += 1
                    n_frames += episode.n_steps
                progress.update(ref.n_steps)
        if not n_episodes:
            raise ContractError(f"{source.path}: not one of {len(source)} episodes can be read")
        writer.close()
        hidden.replace(to)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return Converted(episodes=n_episodes, frames=n_frames, skipped=tuple(skipped), out=to)


def _writer(
    kind: str, folder: Path, *, images: Images, crf: int, rate_hz: float, name: str
) -> EpisodeWriter:
    if kind == "hdf5":
        from vega_policy.data.hdf5_episodes import Hdf5Writer

        return Hdf5Writer(folder)
    if kind == "lerobot":
        from vega_policy.data.lerobot_writer import LeRobotWriter

        stored: Literal["png", "video"] = "png" if images == "lossless" else "video"
        return LeRobotWriter(folder, rate_hz=rate_hz, images=stored, crf=crf)
    from vega_policy.data.rlds import RldsWriter

    return RldsWriter(folder, name=name, images="png" if images == "lossless" else "jpeg")


def _require_images(episode: Episode, ref: EpisodeRef) -> None:
    """Other formats cannot say that a frame is missing, and a black one would be a lie."""
    if episode.frame_mask is None or episode.frame_mask.all():
        return
    raise ContractError(
        f"{ref} has images at {int(episode.frame_mask.sum())} of {episode.n_steps} steps, expected all of "
        "them: it was collected with collect.look_every above 1; draw them again with "
        "scripts/convert.py regenerate=true, or collect with collect.look_every=1"
    )


def _remove_stale(to: Path) -> None:
    """Remove what conversions to the same place left when they were killed."""
    for folder in to.parent.glob(f".{to.name}.*"):
        pid = folder.name.rpartition(".")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            logger.info("removing %s, left by a conversion that was killed", folder)
            shutil.rmtree(folder, ignore_errors=True)
