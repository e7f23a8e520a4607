"""What is kept of an episode so that it can be played again and checked step by step."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vega_policy.rollout.plan import CLEAN, SAMPLED_START
from vega_policy.spec.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vega_policy.spec import EpisodeKey


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """The actions of an episode and the state they led to."""

    actions: NDArray[np.float32]
    """(n, 7) as the simulator got them."""
    digests: NDArray[np.uint64]
    """(n,) `state_digest` after each control step."""
    counts: NDArray[np.int64]
    """(n_chunks,) control steps of each chunk; they add up to n."""

    @classmethod
    def of(
        cls,
        *,
        actions: Sequence[NDArray[np.float32]],
        digests: Sequence[int],
        counts: Sequence[int],
    ) -> Trace:
        """Gather what was kept chunk by chunk."""
        return cls(
            actions=np.concatenate(actions) if actions else np.zeros((0, 7), np.float32),
            digests=np.array(digests, dtype=np.uint64),
            counts=np.array(counts, dtype=np.int64),
        )

    def sha256(self) -> str:
        """Return the hash of everything in it; the row keeps it, so that a change is noticed."""
        digest = hashlib.sha256()
        for values, kind in ((self.actions, "<f4"), (self.digests, "<u8"), (self.counts, "<i8")):
            digest.update(repr(values.shape).encode())
            digest.update(np.ascontiguousarray(values, dtype=kind).tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write an npz without pickle, atomically."""
        with atomic_path(path) as temporary:
            np.savez_compressed(
                temporary, actions=self.actions, digests=self.digests, counts=self.counts
            )

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read a trace back."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(
                actions=stored["actions"], digests=stored["digests"], counts=stored["counts"]
            )


def reset_options(key: EpisodeKey) -> dict[str, Any]:
    """Return what `Simulator.reset` has to be told to start this episode."""
    options: dict[str, Any] = {"init_state_id": key.init_state_id}
    if key.perturbation == SAMPLED_START:
        options["init_state"] = "sampled"
    elif key.perturbation != CLEAN:
        options |= {"perturbation": key.perturbation, "repetition": key.repetition}
    return options


def state_bytes(state: NDArray[np.float64]) -> bytes:
    """Return the bytes that are hashed: float64, little endian, in order."""
    return np.ascontiguousarray(state, dtype="<f8").tobytes()


def state_digest(state: NDArray[np.float64]) -> int:
    """Return the first 64 bits of the SHA-256 of a state."""
    return int.from_bytes(hashlib.sha256(state_bytes(state)).digest()[:8], "big")
