"""The recorded numbers of the official protocol, against which an installation is checked.

Made by `envs.fidelity.record` with the official environment; shipped in ``golden/``:
``golden.json`` (fixtures, observations, notes), ``files.json`` (hashes of the benchmark's files),
``<name>.npz`` (actions and states of one contact-rich episode) and ``<name>-<camera>.png``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent / "golden"
STATE_EVERY = 10
"""Control steps between two states that are stored in full."""
PUBLISHED_PROPRIO = (
    *(-0.21124162683394807, -0.011090601889321502, 1.1742495176982402),
    *(3.140895396142254, -0.002847819833825949, -0.08773931027790592),
    *(0.03872336505859045, -0.0387222020954563),
)
"""The observation that OpenVLA-OFT publishes as a sample (MIT licence): libero_spatial task 0,
initial state 0, after ten settling steps of the first reset after ``seed(0)``."""


@dataclass(frozen=True)
class Episode:
    """One recorded episode: initial state 0 of a task, the first reset after ``seed(0)``."""

    name: str
    suite: str
    task_id: int
    has_frames: bool = False


EPISODES = (
    Episode("bowl", "libero_spatial", 0, has_frames=True),
    Episode("can", "libero_object", 0, has_frames=True),
    Episode("drawer", "libero_goal", 0),
    Episode("moka", "libero_10", 2),
    Episode("microwave", "libero_10", 9),
    Episode("book", "libero_10", 5),
)
"""The first is the one that the cheap check plays."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What was done in an episode and what came of it. n control steps after settling."""

    actions: NDArray[np.float32]
    """(n, 7), the last one reaches the goal."""
    hashes: NDArray[np.uint64]
    """(n + 1,) of the state after settling and after each step, see `state_hash`."""
    states: NDArray[np.float64]
    """(1 + n // STATE_EVERY, s): after settling and after every tenth step."""
    done: NDArray[np.float64]
    """(s,) when the goal is reached: the last state."""
    is_held_when_done: bool
    """Whether a finger still touches an object at that moment."""

    @classmethod
    def load(cls, path: Path) -> Trajectory:
        """Read one back."""
        with np.load(path) as arrays:
            fields = {name: arrays[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "is_held_when_done": bool(fields["is_held_when_done"])})

    def save(self, path: Path) -> None:
        """Write the arrays, compressed."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        np.savez_compressed(path, **arrays)


@dataclass(frozen=True)
class Golden:
    """``golden.json``."""

    made_with: dict[str, str]
    """Versions, processor class and renderer of the recording."""
    fixtures: dict[str, list[dict[str, list[float]]]]
    """Per episode name and reset index 0, 1, 2: fixture name to position (3) and quaternion (4)."""
    proprios: dict[str, list[list[float]]]
    """Per episode name: (8,) after settling and after every tenth step."""
    substeps: list[list[float]]
    """(25, 3): position of the hand after each physics step of the control step `substep_step` of
    the first episode, as its kinematics stand then."""
    substep_step: int
    """A step, counted from 0 after settling, in which the hand moves fast and touches nothing."""

    @classmethod
    def load(cls, folder: Path = FOLDER) -> Golden:
        """Read the shipped numbers."""
        return cls(**json.loads((folder / "golden.json").read_text()))


def load_files(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Read the hashes of the benchmark's files (see `envs.fidelity.files`)."""
    return json.loads((folder / "files.json").read_text())


def load_frame(episode: Episode, camera: str, folder: Path = FOLDER) -> NDArray[np.uint8]:
    """Read the recorded picture of a camera after settling, (px, px, 3)."""
    from PIL import Image

    with Image.open(folder / f"{episode.name}-{camera}.png") as picture:
        return np.asarray(picture.convert("RGB"))


def state_hash(state: NDArray[np.float64]) -> int:
    """Return the first 64 bits of the SHA-256 of a flattened float64 state."""
    data = np.ascontiguousarray(state, dtype=np.float64).tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
