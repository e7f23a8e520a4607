"""Training samples: an observation and the chunk of expert actions that followed it.

A sample starts at step ``t`` of a demonstration and is the frame at ``t`` with ``actions[t : t + horizon]``.
There is no padding: the last ``horizon - 1`` steps of a demonstration never start a sample, and neither
does a step whose chunk holds an action that the expert did not choose, nor one without an image.

Shape legend: ``n`` rows (steps of all files, concatenated), ``b`` batch, ``v`` cameras, ``h, w`` image.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vega_policy.data.episodes import open_suites
from vega_policy.data.frames import Frames, FrameTransform, open_frames
from vega_policy.data.part import WHOLE, Part, part_size
from vega_policy.data.statistics import action_targets, compute_statistics
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vega_policy.data.episodes import EpisodeSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples on the host, ready for the model but for the device."""

    rows: NDArray[np.int64]
    """(b,) which frames these are, counted over all files."""
    pixels: Tensor
    """(b, v, 3, h, w) uint8."""
    proprio: Tensor
    """(b, 8) float32, normalised."""
    targets: Tensor
    """(b, horizon, 7) float32, normalised."""
    tasks: Tensor
    """(b,) int64, index into `ChunkDataset.instructions`."""
    prior_features: Tensor | None = None
    """(b, v, tokens, width) where they are cached."""


@dataclass(frozen=True)
class DataSource:
    """Which demonstrations to read."""

    dirs: tuple[Path, ...]
    """Folders with one folder per suite, or LeRobot or RLDS data sets themselves; several are read as
    one data set."""
    suites: tuple[str, ...]
    cache_dir: Path | None = None
    """Where decoded frames and features go; ``<dir>/.cache`` where None."""
    transform: FrameTransform | None = None
    """What frames go through before they are kept; None keeps them as recorded."""
    skip_damaged: bool = False
    """Leave out files and episodes that cannot be read, with a warning each; reads everything once
    more before it starts."""


class ChunkDataset:
    """Every decoded file of some folders, and which rows start a sample."""

    def __init__(self, files: Sequence[Frames], *, horizon: int) -> None:
        """Join decoded files.

        Raises:
            ContractError: There is no file, or the files differ in image size; all are listed.
        """
        if not files:
            raise ContractError(
                "0 demonstration files, expected at least 1; set the data directory"
            )
        sizes = {f"{f.suite}/{f.task}": f.images.shape[1:] for f in files}
        if len(set(sizes.values())) > 1:
            listed = "; ".join(f"{name} {size}" for name, size in sizes.items())
            raise ContractError(f"files differ in image size: {listed}; keep one size per run")
        self.files = list(files)
        self.horizon = horizon
        self.offsets = np.cumsum([0, *(len(f.actions) for f in files)])
        """Row at which each file begins, and the end."""
        self.instructions = sorted({f.instruction for f in files})
        self.task_of_row = np.concatenate(
            [np.full(len(f.actions), self.instructions.index(f.instruction)) for f in files]
        )
        self.proprio = np.concatenate([f.proprio for f in files])
        """(n, 8) in metres and radians."""
        self.targets = np.concatenate([action_targets(f.actions) for f in files])
        """(n, 7) unnormalised, gripper 1 open and 0 closed."""
        self.expert_mask = np.concatenate([f.expert_mask for f in files])
        self.frame_mask = np.concatenate([f.frame_mask for f in files])

    @classmethod
    def open(cls, source: DataSource, *, horizon: int) -> ChunkDataset:
        """Open the demonstrations of a source, decoding what was not decoded yet.

        Raises:
            ContractError: A folder holds no demonstrations, or files do not fit together.
        """
        # Every folder is looked up before the first file is decoded, which can take minutes.
        found = [
            (_checked(episodes, source), suite, _cache_folder(source, folder))
            for folder, suite, episodes in open_suites(
                source.dirs, source.suites, skip_damaged=source.skip_damaged
            )
        ]
        frames = [
            open_frames(
                episodes.of_task(task), suite=suite, cache_dir=cache, transform=source.transform
            )
            for episodes, suite, cache in found
            for task in episodes.tasks
        ]
        return cls(frames, horizon=horizon)

    @property
    def n_rows(self) -> int:
        """Steps over all files."""
        return int(self.offsets[-1])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = self.files[0].images.shape[-2:]
        return height, width

    def starts(
        self, *, held_out: bool, fraction: float, demos_per_task: int | None = None
    ) -> NDArray[np.int64]:
        """Return the rows that start a sample, of the training or of the held-out demonstrations.

        Args:
            held_out: Which of the two parts.
            fraction: Share of the demonstrations that is held out; chosen by a hash of suite, task
                and number, so that adding demonstrations moves none to the other part.
            demos_per_task: Train on the first so many of each task that are not held out, folder
                after folder; None is all of them. What is held out stays the same, whatever the number.

        Raises:
            ContractError: A task has fewer than ``demos_per_task``.
        """
        found: list[NDArray[np.int64]] = []
        for _, begin, end in self._demos(
            held_out=held_out, fraction=fraction, demos_per_task=demos_per_task
        ):
            starts = begin + _chunk_starts(self.expert_mask[begin:end], self.horizon)
            found.append(starts[self.frame_mask[starts] != 0])
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def statistics(
        self, *, fraction: float = 0.0, demos_per_task: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """Return the statistics of each suite, keyed by its name.

        Those of all demonstrations; with ``demos_per_task`` of the ones `starts` trains on, since the
        bounds of actions that a policy never saw would be a hint.
        """
        share = 0.0 if demos_per_task is None else fraction
        demos = self._demos(held_out=False, fraction=share, demos_per_task=demos_per_task)
        result: dict[str, dict[str, Any]] = {}
        for suite in sorted({f.suite for f in self.files}):
            spans = [(begin, end) for file, begin, end in demos if file.suite == suite]
            rows = np.concatenate([np.arange(*span) for span in spans])
            if not self.expert_mask[rows].any():
                raise ContractError(
                    f"{suite} has 0 steps whose action the expert chose in {len(rows)}, expected at least "
                    "1: statistics are counted over these; collect demonstrations, or mend expert_mask"
                )
            result[suite] = compute_statistics(
                targets=self.targets[rows],
                proprio=self.proprio[rows],
                expert_mask=self.expert_mask[rows],
                n_trajectories=len(spans),
            )
        return result

    def _demos(
        self, *, held_out: bool, fraction: float, demos_per_task: int | None
    ) -> list[tuple[Frames, int, int]]:
        """Return the file, first row and end of the demonstrations of one part."""
        found: dict[tuple[str, str], list[tuple[Frames, int, int]]] = {}
        for file, offset in zip(self.files, self.offsets, strict=False):
            ends = int(offset) + np.cumsum(file.lengths)
            found.setdefault((file.suite, file.task), []).extend(
                (file, int(end - length), int(end))
                for number, (length, end) in enumerate(zip(file.lengths, ends, strict=True))
                if _is_held_out(f"{file.suite}/{file.task}/{number}", fraction) == held_out
            )
        if held_out or demos_per_task is None:
            return [demo for demos in found.values() for demo in demos]
        if short := {k: len(v) for k, v in found.items() if len(v) < demos_per_task}:
            listed = "; ".join(f"{suite}/{task} has {n}" for (suite, task), n in short.items())
            raise ContractError(
                f"demos_per_task is {demos_per_task}, and after holding out {fraction:.0%}: {listed}; "
                "collect more, or ask for fewer"
            )
        return [demo for demos in found.values() for demo in demos[:demos_per_task]]

    def rows_of_suite(self, suite: str) -> NDArray[np.int64]:
        """Return all rows of one suite."""
        spans = zip(self.files, self.offsets, self.offsets[1:], strict=False)
        return np.concatenate([np.arange(a, b) for f, a, b in spans if f.suite == suite])

    def locate(self, row: int) -> tuple[int, int]:
        """Return the file that holds a row, and the row within it."""
        file = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return file, row - int(self.offsets[file])

    def pixels(self, rows: NDArray[np.int64], *, pin: bool = False) -> Tensor:
        """Copy frames out of the memory maps: (b, v, 3, h, w) uint8."""
        shape = (len(rows), *self.files[0].images.shape[1:])
        out = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
        view = out.numpy()
        for place, row in enumerate(rows):
            file, local = self.locate(int(row))
            view[place] = self.files[file].images[local]
        return out


class ChunkBatches:
    """Batches by number: batch ``k`` is a pure function of the seed and ``k``.

    A resumed run therefore continues with the batch the killed one would have drawn next. Epochs are
    shuffled one by one and laid end to end; a batch may reach from one into the next.
    """

    def __init__(
        self,
        dataset: ChunkDataset,
        *,
        starts: NDArray[np.int64],
        targets: NDArray[np.float32],
        proprio: NDArray[np.float32],
        batch_size: int,
        seed: int,
        features: Callable[[NDArray[np.int64]], Tensor] | None = None,
        pin: bool = False,
        part: Part = WHOLE,
    ) -> None:
        """Prepare.

        Args:
            dataset: The frames.
            starts: (m,) rows that start a sample.
            targets: (n, 7) normalised actions of every row.
            proprio: (n, 8) normalised.
            batch_size: Samples in a whole batch.
            seed: Of the shuffling.
            features: Cached prior features by row; None where the prior runs with the model.
            pin: Lay the batch in page-locked memory, for a GPU.
            part: What this process assembles of each batch.

        Raises:
            ContractError: There are no samples, or the parts of a batch are not equal.
        """
        if len(starts) == 0:
            raise ContractError(
                f"0 training samples in {dataset.n_rows} steps, expected at least 1: no demonstration has "
                f"{dataset.horizon} expert actions in a row; collect more"
            )
        self._dataset = dataset
        self._starts = starts
        self._targets = torch.from_numpy(targets)
        self._proprio = torch.from_numpy(proprio)
        self._tasks = torch.from_numpy(dataset.task_of_row)
        self._batch_size = batch_size
        self._own_size = part_size(batch_size, count=part.count)
        self._seed = seed
        self._features = features
        self._pin = pin
        self._part = part
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._steps = torch.arange(dataset.horizon)

    @property
    def n_samples(self) -> int:
        """Samples in one epoch."""
        return len(self._starts)

    @property
    def batches_per_epoch(self) -> float:
        """Batches that show every sample once."""
        return len(self._starts) / self._batch_size

    def rows(self, k: int) -> NDArray[np.int64]:
        """Return the rows of the whole batch ``k`` in shuffled order."""
        places = np.arange(k * self._batch_size, (k + 1) * self._batch_size)
        epochs, within = np.divmod(places, len(self._starts))
        parts = [self._order(int(e))[within[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(parts)

    def batch(self, k: int) -> Batch:
        """Assemble this process's part of batch ``k``."""
        size = self._own_size
        return self.assemble(self.rows(k)[self._part.index * size :][:size])

    def in_order(self, limit: int) -> list[NDArray[np.int64]]:
        """Return at most ``limit`` samples, spread evenly over all, in pieces that a process can hold."""
        size = self._own_size
        count = min(limit, len(self._starts))
        chosen = self._starts[np.linspace(0, len(self._starts) - 1, count).astype(np.int64)]
        return [chosen[i : i + size] for i in range(0, count, size)]

    def assemble(self, rows: NDArray[np.int64]) -> Batch:
        """Assemble the samples that start at some rows."""
        index = torch.from_numpy(rows)
        return Batch(
            rows=rows,
            pixels=self._dataset.pixels(rows, pin=self._pin),
            proprio=self._proprio[index],
            targets=self._targets[index[:, None] + self._steps],
            tasks=self._tasks[index],
            prior_features=None if self._features is None else self._features(rows),
        )

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            self._orders[epoch] = self._starts[generator.permutation(len(self._starts))]
        return self._orders[epoch]


def _chunk_starts(mask: NDArray[np.uint8], horizon: int) -> NDArray[np.int64]:
    """Return the steps from which ``horizon`` steps in a row are set in ``mask``."""
    if len(mask) < horizon:
        return np.zeros(0, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(mask != 0, horizon)
    return np.flatnonzero(windows.all(axis=1))


def _is_held_out(name: str, fraction: float) -> bool:
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return number / 2**64 < fraction


def _checked(episodes: EpisodeSource, source: DataSource) -> EpisodeSource:
    if not source.skip_damaged:
        return episodes
    for problem in episodes.left_out:
        logger.warning("left out: %s", problem)
    return episodes.without_damaged()


def _cache_folder(source: DataSource, folder: Path) -> Path:
    """Return where a data folder is decoded to: in itself, or below a common cache by its path."""
    if source.cache_dir is None:
        return folder / ".cache"
    return source.cache_dir / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
