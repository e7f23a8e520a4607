"""LIBERO HDF5 files, ours and the published ones, as episodes; and episodes as such files.

Layout and rotation are those of `libero_hdf5`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from vega_policy.data.episodes import CONTROL_HZ, Episode, EpisodeRef, Format
from vega_policy.data.libero_hdf5 import (
    ATTRIBUTES_KEY,
    SUFFIX,
    DemoRef,
    list_demos,
    open_demo,
    read_frame_mask,
    read_images,
    read_low_dimensional,
    write_images,
)
from vega_policy.spec import CAMERAS, ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, eq=False)
class Hdf5Reader:
    """Task files of one folder, or one file."""

    path: Path
    refs: tuple[EpisodeRef, ...]
    left_out: tuple[str, ...]
    format: Format = "hdf5"
    rate_hz: float = CONTROL_HZ
    is_jpeg: bool = False

    @classmethod
    def open(cls, path: Path, *, skip_damaged: bool) -> Hdf5Reader:
        """List the demonstrations of a file, or of every file of a folder, sorted by name.

        Raises:
            ContractError: A file cannot be read.
        """
        files = [path]
        if path.is_dir():
            files = sorted(f for f in path.glob("*.hdf5") if not f.name.startswith("."))
        refs: list[EpisodeRef] = []
        left_out: list[str] = []
        for file in files:
            try:
                found = [_ref(demo) for demo in list_demos([file])]
                if not found:
                    raise ContractError(
                        f"{file} has 0 demonstrations, expected at least 1; collect or delete it"
                    )
                refs += found
            except ContractError as error:
                if not skip_damaged:
                    raise
                left_out.append(str(error))
        return cls(path=path, refs=tuple(refs), left_out=tuple(left_out))

    def read(self, ref: EpisodeRef, *, at: Sequence[int] | None) -> Episode:
        """Read one demonstration.

        Raises:
            ContractError: An array is missing or cannot be decompressed.
        """
        demo = DemoRef(file=ref.file, name=ref.name, n_steps=ref.n_steps, instruction="")
        try:
            with open_demo(demo) as group:
                wanted = CAMERAS if at is None or len(at) else ()
                low = read_low_dimensional(group)
                joints: Any = group.get("obs/joint_states")
                return Episode(
                    images={camera: read_images(group, camera, at=at) for camera in wanted},
                    proprio=low["proprio"],
                    actions=low["actions"],
                    expert_mask=low["expert_mask"],
                    frame_mask=read_frame_mask(group),
                    joint_states=None if joints is None else np.asarray(joints[()], np.float64),
                    instruction=ref.instruction,
                    attributes=json.loads(str(group.attrs.get(ATTRIBUTES_KEY, "{}"))),
                )
        except (OSError, RuntimeError, ValueError, KeyError, IndexError) as error:
            raise ContractError(
                f"{ref} cannot be read: {error}; collect or download the file again, or skip it with "
                "skip_damaged=true"
            ) from error


class Hdf5Writer:
    """Writes episodes as task files ``<folder>/<task>_demo.hdf5``.

    What an episode does not have (simulator states, rewards of the original file) is not invented:
    such files train a policy and cannot be replayed.
    """

    def __init__(self, folder: Path) -> None:
        """Write into a folder that exists."""
        self._folder = folder
        self._counts: dict[str, int] = {}
        self._totals: dict[str, int] = {}

    def add(self, episode: Episode, *, task: str) -> None:
        """Append one episode to the file of its task."""
        number = self._counts.get(task, 0)
        with h5py.File(self._file(task), "a") as file:
            data = file.require_group("data")
            if number == 0:
                problem = {"language_instruction": episode.instruction}
                data.attrs["problem_info"] = json.dumps(problem)
                data.attrs["tag"] = "libero-v1"
                data.attrs["macros_image_convention"] = "opengl"
            group = data.create_group(f"demo_{number}")
            group.attrs["num_samples"] = episode.n_steps
            group.attrs[ATTRIBUTES_KEY] = json.dumps(dict(episode.attributes), sort_keys=True)
            obs = group.create_group("obs")
            for camera in CAMERAS:
                write_images(obs, camera, episode.images[camera])
            proprio = episode.proprio.astype(np.float64)
            for name, array in (
                ("ee_states", proprio[:, :6]),
                ("ee_pos", proprio[:, :3]),
                ("ee_ori", proprio[:, 3:6]),
                ("gripper_states", proprio[:, 6:]),
                ("joint_states", episode.joint_states),
            ):
                if array is not None:
                    obs.create_dataset(name, data=array)
            group.create_dataset("actions", data=episode.actions)
            group.create_dataset("expert_mask", data=episode.expert_mask)
        self._counts[task] = number + 1
        self._totals[task] = self._totals.get(task, 0) + episode.n_steps

    def close(self) -> None:
        """Write what is known only at the end."""
        for task, count in self._counts.items():
            with h5py.File(self._file(task), "a") as file:
                file["data"].attrs["num_demos"] = count
                file["data"].attrs["total"] = self._totals[task]

    def _file(self, task: str) -> Path:
        return self._folder / f"{task}{SUFFIX}"


def _ref(demo: DemoRef) -> EpisodeRef:
    task = demo.file.name.removesuffix(SUFFIX).removesuffix(".hdf5")
    return EpisodeRef(
        file=demo.file,
        name=demo.name,
        task=task,
        instruction=demo.instruction,
        n_steps=demo.n_steps,
    )
