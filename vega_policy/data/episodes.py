"""One way to read demonstrations, whatever format they are stored in.

`open_episodes` recognises LIBERO HDF5 files, a LeRobot v3 folder and an RLDS folder of TFRecords, and
gives an `EpisodeSource`. An episode means the same in all of them: images upright, actions as the
environment takes them (gripper -1 open, +1 close), 8 numbers of proprioception. What a format stores
otherwise is turned in its reader and nowhere else.

Shape legend: ``t`` steps, ``h, w`` image size.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vega_policy.data.libero_hdf5 import SUFFIX, task_files
from vega_policy.spec import CAMERAS, ContractError

logger = logging.getLogger(__name__)

Format = Literal["hdf5", "lerobot", "rlds"]
CONTROL_HZ = 20.0
"""Rate of LIBERO's control steps, for formats that do not say."""
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True, eq=False)
class Episode:
    """One demonstration; the observation at ``t`` was seen before the action at ``t``."""

    images: Mapping[str, NDArray[np.uint8]]
    """(t, h, w, 3) RGB, upright, of each camera of `spec.CAMERAS`; (len(at), h, w, 3) where only
    some steps were asked for."""
    proprio: NDArray[np.float32]
    """(t, 8) metres and radians, see `spec.Observation`."""
    actions: NDArray[np.float64]
    """(t, 7) environment commands, gripper -1 open and +1 close."""
    expert_mask: NDArray[np.uint8]
    """(t,) 1 where the expert chose the action; all 1 where a file does not say."""
    instruction: str
    """The task in words."""
    joint_states: NDArray[np.float64] | None = None
    """(t, 7) arm joints in radians, where they are stored."""
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """How the demonstration was made, where that is stored; JSON values only."""
    frame_mask: NDArray[np.uint8] | None = None
    """(t,) 1 where images were drawn, elsewhere they are black; None: everywhere."""

    @property
    def n_steps(self) -> int:
        """Number of actions."""
        return len(self.actions)


@dataclass(frozen=True)
class EpisodeRef:
    """Where one episode lies, and what is known of it without reading it."""

    file: Path
    name: str
    """What finds it in the file, for example ``demo_3``, ``episode 12`` or ``record 4``."""
    task: str
    """File-name form of the task; episodes of one task are decoded together."""
    instruction: str
    n_steps: int

    def __str__(self) -> str:
        return f"{self.file} {self.name}"


class Reader(Protocol):
    """What a format has to offer.

    Its errors are `ContractError`, each one sentence with the file and the episode.
    """

    @property
    def format(self) -> Format:
        """How the data set is stored."""
        ...

    @property
    def path(self) -> Path:
        """Its folder or file."""
        ...

    @property
    def rate_hz(self) -> float:
        """Steps a second, as stored."""
        ...

    @property
    def is_jpeg(self) -> bool:
        """Whether images went through JPEG files."""
        ...

    @property
    def refs(self) -> Sequence[EpisodeRef]:
        """Its episodes, in order."""
        ...

    @property
    def left_out(self) -> Sequence[str]:
        """What could not be listed, one sentence each; empty unless damaged files may be skipped."""
        ...

    def read(self, ref: EpisodeRef, *, at: Sequence[int] | None) -> Episode:
        """Read one episode, and the images of some steps (all where None)."""
        ...


class EpisodeSource:
    """The episodes of one data set, in a fixed order."""

    def __init__(
        self, reader: Reader, refs: Sequence[EpisodeRef], left_out: Sequence[str] = ()
    ) -> None:
        """Show some episodes of a reader; `open_episodes` makes the reader."""
        self._reader = reader
        self.refs = tuple(refs)
        self.left_out = tuple(left_out)
        """What was damaged and is not among the episodes, one sentence each."""

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.refs)

    @property
    def path(self) -> Path:
        """Folder or file of the data set."""
        return self._reader.path

    @property
    def format(self) -> Format:
        """How it is stored."""
        return self._reader.format

    @property
    def rate_hz(self) -> float:
        """Steps a second, as the data set says."""
        return self._reader.rate_hz

    @property
    def is_jpeg(self) -> bool:
        """Whether images went through JPEG files, as a published policy's did in training."""
        return self._reader.is_jpeg

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(episodes,) number of steps of each."""
        return np.array([ref.n_steps for ref in self.refs], dtype=np.int64)

    @property
    def instructions(self) -> tuple[str, ...]:
        """The different instructions, sorted."""
        return tuple(sorted({ref.instruction for ref in self.refs}))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The different tasks, in the order in which LIBERO files of them are sorted."""
        names = dict.fromkeys(ref.task for ref in self.refs)
        if self.format == "hdf5":
            return tuple(names)  # files come sorted
        return tuple(sorted(names, key=lambda name: f"{name}{SUFFIX}"))

    def of_task(self, task: str) -> EpisodeSource:
        """Return the episodes of one task, in the same order."""
        return EpisodeSource(self._reader, [ref for ref in self.refs if ref.task == task])

    def episode(self, index: int, *, at: Sequence[int] | None = None) -> Episode:
        """Read one episode.

        Args:
            index: Which one, from 0.
            at: Steps whose images are wanted; all where None, none where empty.

        Raises:
            ContractError: The file or the episode is damaged, or not as the format says.
        """
        ref = self.refs[index]
        episode = self._reader.read(ref, at=at)
        problems = _problems(episode, ref, n_images=ref.n_steps if at is None else len(at))
        if problems:
            raise ContractError(
                f"{ref}: {'; '.join(problems)}; {_advice(self.format)}, or skip it with "
                "skip_damaged=true"
            )
        return episode

    def without_damaged(self) -> EpisodeSource:
        """Read everything once and return what can be read; the rest is in ``left_out``.

        Costs as much as decoding the data set.
        """
        good: list[EpisodeRef] = []
        left_out = list(self.left_out)
        for index, ref in enumerate(self.refs):
            try:
                self.episode(index)
            except ContractError as error:
                left_out.append(str(error))
                logger.warning("left out: %s", error)
            else:
                good.append(ref)
        return EpisodeSource(self._reader, good, left_out)


def open_episodes(path: Path | str, *, skip_damaged: bool = False) -> EpisodeSource:
    """Open a data set of any known format.

    Args:
        path: A LIBERO HDF5 file or a folder of them; a LeRobot folder (with ``meta/info.json``); an
            RLDS folder (with ``dataset_info.json`` and TFRecords), or the folder with its version.
        skip_damaged: List what can be listed where a file is damaged; see also
            `EpisodeSource.without_damaged`, which looks into every episode.

    Raises:
        ContractError: Nothing known is there, two formats are mixed, the version is another, or a
            file is damaged and ``skip_damaged`` is not set.
    """
    found = recognise(Path(path))
    if found is None:
        raise ContractError(
            f"{path} is no data set: {_listing(Path(path))}, expected LIBERO *.hdf5 files, a LeRobot v3 "
            "folder (meta/info.json) or an RLDS folder (dataset_info.json, *.tfrecord-*); "
            "give the folder that holds them"
        )
    kind, root = found
    if kind == "hdf5":
        from vega_policy.data.hdf5_episodes import Hdf5Reader

        reader: Reader = Hdf5Reader.open(root, skip_damaged=skip_damaged)
    elif kind == "lerobot":
        from vega_policy.data.lerobot_v3 import LeRobotReader

        reader = LeRobotReader.open(root, skip_damaged=skip_damaged)
    else:
        from vega_policy.data.rlds import RldsReader

        reader = RldsReader.open(root, skip_damaged=skip_damaged)
    if not reader.refs:
        lost = f"; left out: {'; '.join(reader.left_out)}" if reader.left_out else ""
        raise ContractError(
            f"{path} has 0 demonstrations, expected at least 1; collect or delete it{lost}"
        )
    return EpisodeSource(reader, reader.refs, reader.left_out)


def open_suite(folder: Path | str, suite: str, *, skip_damaged: bool = False) -> EpisodeSource:
    """Open the demonstrations of a suite in a data folder.

    They are in ``<folder>/<suite>``, in ``<folder>/<suite>_no_noops`` (the name of the published RLDS
    sets), or the folder itself is a LeRobot or RLDS data set.

    Raises:
        ContractError: There are none, or they cannot be opened.
    """
    path = find_suite(folder, suite)
    if path is None:
        task_files(folder, suite)  # raises, and says what is there instead
        raise ContractError(f"no demonstrations in {folder}")
    return open_episodes(path, skip_damaged=skip_damaged)


def open_suites(
    folders: Sequence[Path | str], suites: Sequence[str], *, skip_damaged: bool = False
) -> list[tuple[Path, str, EpisodeSource]]:
    """Open the demonstrations of some suites in some data folders: folder, suite and episodes of each.

    A folder that lacks a suite which another folder has is passed over, and the log says so.

    Raises:
        ContractError: No folder has one of the suites, a folder has none of them, a folder is one data
            set and would count once for every suite, or what is there cannot be opened.
    """
    roots = [Path(folder) for folder in folders]
    found = {(f, s): find_suite(f, s) for f in roots for s in suites}
    for folder in roots:
        mine = [s for s in suites if found[folder, s] == folder]
        if len(mine) > 1:
            raise ContractError(
                f"{folder} is one data set, expected a folder for each of {', '.join(mine)}; ask for one "
                f"suite, or move it to {folder}/<suite>"
            )
        if all(found[folder, s] is None for s in suites):
            task_files(folder, suites[0])  # raises, and says what is there instead
    for suite in suites:
        if all(found[f, suite] is None for f in roots):
            task_files(roots[0], suite)
    opened: list[tuple[Path, str, EpisodeSource]] = []
    for (folder, suite), path in found.items():
        if path is None:
            logger.info("%s has no %s", folder, suite)
            continue
        opened.append((folder, suite, open_episodes(path, skip_damaged=skip_damaged)))
    return opened


def find_suite(folder: Path | str, suite: str) -> Path | None:
    """Return where a data folder keeps the demonstrations of a suite; None where it has none."""
    for path in (Path(folder) / suite, Path(folder) / f"{suite}_no_noops", Path(folder)):
        found = recognise(path)
        if found is not None and (path != Path(folder) or found[0] != "hdf5"):
            return path
    return None


def recognise(path: Path) -> tuple[Format, Path] | None:
    """Return the format of what lies at a path, and where it begins; None where nothing does.

    Raises:
        ContractError: Files of two formats lie in one folder, or several versions of an RLDS set.
    """
    if path.is_file():
        return ("hdf5", path) if path.suffix in (".hdf5", ".h5") else None
    if not path.is_dir():
        return None
    is_there: dict[Format, bool] = {
        "hdf5": any(_visible(path, "*.hdf5")),
        "lerobot": (path / "meta" / "info.json").is_file(),
        "rlds": (path / "dataset_info.json").is_file() or any(_visible(path, "*.tfrecord*")),
    }
    kinds: list[Format] = [kind for kind, there in is_there.items() if there]
    if len(kinds) > 1:
        raise ContractError(
            f"{path} mixes the formats {' and '.join(kinds)}, expected one; move one of them away"
        )
    if kinds:
        return kinds[0], path
    versions = [p for p in _visible(path, "*.*.*") if _VERSION.fullmatch(p.name) and p.is_dir()]
    if len(versions) > 1:
        raise ContractError(
            f"{path} holds the versions {', '.join(p.name for p in versions)}; give the folder of one"
        )
    return recognise(versions[0]) if versions else None


def task_name(instruction: str) -> str:
    """Turn an instruction into the name a LIBERO task file of it would have."""
    return re.sub(r"[^a-z0-9]+", "_", instruction.lower()).strip("_") or "task"


def _problems(episode: Episode, ref: EpisodeRef, *, n_images: int) -> list[str]:
    t = ref.n_steps
    problems = [
        f"{name} is {array.shape}, expected {expected}"
        for name, array, expected in (
            ("actions", episode.actions, (t, 7)),
            ("proprio", episode.proprio, (t, 8)),
            ("expert_mask", episode.expert_mask, (t,)),
            ("frame_mask", episode.frame_mask, (t,)),
        )
        if array is not None and array.shape != expected
    ]
    problems += [
        f"{name} has a number that is not finite"
        for name, array in (("actions", episode.actions), ("proprio", episode.proprio))
        if not np.isfinite(array).all()
    ]
    for camera in CAMERAS if n_images else ():
        images = episode.images.get(camera)
        if images is None:
            problems.append(f"there are no images of {camera}")
        elif images.ndim != 4 or len(images) != n_images or images.shape[3] != 3:
            problems.append(f"{camera} is {images.shape}, expected ({n_images}, h, w, 3)")
    if t == 0:
        problems.append("it has 0 steps")
    return problems


def _advice(kind: Format) -> str:
    return {
        "hdf5": "collect or download it again",
        "lerobot": "record or download the data set again",
        "rlds": "download the shard again",
    }[kind]


def _visible(folder: Path, pattern: str) -> list[Path]:
    return sorted(p for p in folder.glob(pattern) if not p.name.startswith("."))


def _listing(path: Path) -> str:
    if not path.exists():
        return "nothing is there"
    if path.is_file():
        return f"it is a file of {path.stat().st_size} bytes"
    names = [p.name for p in _visible(path, "*")]
    return f"it holds {', '.join(names[:6]) or 'nothing'}{' ...' if len(names) > 6 else ''}"
