"""Features of a frozen prior, computed once per frame.

The prior's weights never change while a policy trains and its noise is a function of explicit keys, so
the features of a frame are too. They lie beside the decoded frames, in a folder named by a hash of
the prior: another prior, or other weights, gets its own. The cache is resumable: a row counts once
its features were written.

Shape legend: ``n`` rows of a file, ``b`` batch, ``v`` cameras, ``t`` tokens per camera, ``c`` width.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vega_policy.data.progress import Progress
from vega_policy.spec import ContractError
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from vega_policy.data.chunks import ChunkDataset
    from vega_policy.data.frames import Frames

logger = logging.getLogger(__name__)

FeatureDtype = Literal["float16", "bfloat16", "float32"]
_TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# NumPy has no bfloat16: its bits are stored as they are.
_STORED = {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32}

Compute = Callable[[Tensor, Sequence[int]], Tensor]
"""Turns (b, v, 3, h, w) uint8 frames and their noise keys into (b, v, t, c) features."""


def prior_fingerprint(prior: nn.Module, config: Mapping[str, Any]) -> str:
    """Hash a frozen prior: its configuration, noise included, and every weight and buffer."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    # Not the state dictionary, which leaves out buffers that are not saved with the weights.
    tensors = {**dict(prior.named_parameters()), **dict(prior.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()[:16]


class FeatureCache:
    """Prior features of the rows of a data set, memory-mapped per file."""

    def __init__(
        self, dataset: ChunkDataset, arrays: Sequence[NDArray[Any]], *, dtype: FeatureDtype
    ) -> None:
        self._dataset = dataset
        self._arrays = list(arrays)
        self._dtype: FeatureDtype = dtype

    @classmethod
    def open(
        cls,
        dataset: ChunkDataset,
        *,
        rows: NDArray[np.int64],
        compute: Compute,
        fingerprint: str,
        dtype: FeatureDtype = "float16",
        batch_size: int = 32,
    ) -> FeatureCache:
        """Open the features of some rows, computing those that are missing.

        Args:
            dataset: The frames.
            rows: Rows whose features will be asked for; of others nothing is stored.
            compute: The frozen prior.
            fingerprint: Of `prior_fingerprint`.
            dtype: How features are stored; ``float16`` is the most exact of the short ones.
            batch_size: Frames per call of ``compute``.

        Raises:
            ContractError: A feature is not finite in ``dtype``.
        """
        wanted = np.zeros(dataset.n_rows, dtype=bool)
        wanted[rows] = True
        arrays: list[NDArray[Any]] = []
        spans = zip(dataset.files, dataset.offsets, dataset.offsets[1:], strict=False)
        for file, begin, end in spans:
            arrays.append(
                _fill(
                    file,
                    np.flatnonzero(wanted[begin:end]),
                    compute=compute,
                    folder=file.folder / f"features-{fingerprint}-{dtype}",
                    dtype=dtype,
                    batch_size=batch_size,
                )
            )
        return cls(dataset, arrays, dtype=dtype)

    def __call__(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the (b, v, t, c) features of some rows, in the stored dtype."""
        shape = (len(rows), *self._arrays[0].shape[1:])
        out = np.empty(shape, dtype=self._arrays[0].dtype)
        for place, row in enumerate(rows):
            file, local = self._dataset.locate(int(row))
            out[place] = self._arrays[file][local]
        return torch.from_numpy(out).view(_TORCH[self._dtype])


def _fill(
    file: Frames,
    rows: NDArray[np.int64],
    *,
    compute: Compute,
    folder: Path,
    dtype: FeatureDtype,
    batch_size: int,
) -> NDArray[Any]:
    shape = _feature_shape(file, folder=folder, compute=compute)
    values = _memory_map(folder / "features.bin", _STORED[dtype], (len(file.actions), *shape))
    is_done = _memory_map(folder / "done.bin", np.uint8, (len(file.actions),))
    missing = rows[is_done[rows] == 0]
    if len(missing) == 0:
        return values
    what = f"prior features of {file.task}"
    with Progress(len(rows), what=what, unit="frames", start=len(rows) - len(missing)) as progress:
        for begin in range(0, len(missing), batch_size):
            chosen = missing[begin : begin + batch_size]
            features = _computed(file, chosen, compute=compute).to(_TORCH[dtype])
            if not torch.isfinite(features).all():
                raise ContractError(
                    f"prior features of {file.suite}/{file.task} are not finite in {dtype}, expected "
                    "finite numbers; set data.features.dtype=bfloat16 or check the prior's weights"
                )
            values[chosen] = (
                features.view(torch.uint16).numpy() if dtype == "bfloat16" else features.numpy()
            )
            # Only after its features: a kill in between makes a row be computed again, never be
            # taken for done. Both writes sit in the page cache, which a killed process leaves intact.
            is_done[chosen] = 1
            progress.update(len(chosen))
    return values


def _computed(file: Frames, rows: NDArray[np.int64], *, compute: Compute) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(file.images[rows]))
    with torch.inference_mode():
        return compute(pixels, [_key(file, int(row)) for row in rows]).detach().cpu().contiguous()


def _key(file: Frames, row: int) -> int:
    """Name the noise of one frame; a prior with constant noise ignores it."""
    digest = hashlib.sha256(f"{file.fingerprint}/{row}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _feature_shape(file: Frames, *, folder: Path, compute: Compute) -> tuple[int, ...]:
    """Return (v, t, c), asked of the prior once and then read from the folder."""
    note = folder / "shape.json"
    if not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shape = list(_computed(file, np.zeros(1, dtype=np.int64), compute=compute).shape[1:])
        write_atomic(note, json.dumps({"shape": shape}))
    return tuple(json.loads(note.read_text())["shape"])


def _memory_map(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    """Open a file of zeros for reading and writing; space is taken only where something is written."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with path.open("ab") as handle:
        handle.truncate(size)
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)
