"""Features of a frozen prior for the rows of a data set, computed once per frame.

They lie in the `FeatureStore` beside the decoded frames, where rollouts may look for them too. What
belongs to the data alone is kept with the data: the digest of every frame, so that a later opening
hashes nothing.

Shape legend: ``n`` rows of a file, ``b`` batch, ``v`` cameras, ``t`` tokens per camera, ``c`` width.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vega_policy.data.progress import Progress
from vega_policy.spec import ContractError
from vega_policy.spec.files import atomic_path
from vega_policy.vision.prior.store import (
    DIGEST_BYTES,
    LAYOUT,
    TORCH_DTYPES,
    Compute,
    FeatureDtype,
    FeatureStore,
    PriorIdentity,
    frame_digest,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vega_policy.data.chunks import ChunkDataset
    from vega_policy.data.frames import Frames

logger = logging.getLogger(__name__)

FOLDER = "features"
"""Below the folder of the decoded frames, for all priors and data of it."""


class FeatureCache:
    """Prior features by row, read from the store."""

    def __init__(
        self,
        dataset: ChunkDataset,
        stores: Sequence[FeatureStore],
        *,
        compute: Compute,
        batch_size: int,
    ) -> None:
        """Look up where the features of every row are found; see `open`."""
        self._dataset = dataset
        self._stores = list(stores)
        self._compute = compute
        self._batch_size = batch_size
        self._identity = stores[0].identity
        self._dtype: FeatureDtype = stores[0].dtype
        self._addresses = np.concatenate([_addresses(f, self._identity) for f in dataset.files])
        """(n, v, DIGEST_BYTES) uint8, of all files."""

    @classmethod
    def open(
        cls,
        dataset: ChunkDataset,
        *,
        rows: NDArray[np.int64],
        compute: Compute,
        identity: PriorIdentity,
        dtype: FeatureDtype = "float16",
        batch_size: int = 32,
    ) -> FeatureCache:
        """Open the features of some rows, computing those that are missing.

        Args:
            dataset: The frames.
            rows: Rows whose features will be asked for; of others nothing is stored.
            compute: The frozen prior; takes uint8 frames.
            identity: Of that prior.
            dtype: How features are stored; ``float16`` is the most exact of the short ones.
            batch_size: Observations per call of ``compute`` on a GPU. On a CPU it is always one: so
                features equal those of a rollout to the bit, and larger passes are slower.

        Raises:
            ContractError: A feature is not finite in ``dtype``.
            StorageFault: The disk refuses; what was computed before stays.
        """
        roots = [file.folder.parent.parent / FOLDER for file in dataset.files]
        by_root = {root: FeatureStore(root, identity, dtype=dtype) for root in dict.fromkeys(roots)}
        cache = cls(
            dataset, [by_root[root] for root in roots], compute=compute, batch_size=batch_size
        )
        for number, (begin, end) in enumerate(
            zip(dataset.offsets, dataset.offsets[1:], strict=False)
        ):
            cache._fill(number, rows[(rows >= begin) & (rows < end)])
        return cache

    def __call__(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the (b, v, t, c) features of some rows, in the stored dtype.

        A record that was damaged since the opening is computed again.
        """
        v = self._addresses.shape[1]
        out = torch.empty(len(rows), v, *self._identity.shape, dtype=TORCH_DTYPES[self._dtype])
        files = np.searchsorted(self._dataset.offsets, rows, side="right") - 1
        stores = np.array([id(self._stores[f]) for f in files])
        for which in np.unique(stores):
            places = np.flatnonzero(stores == which)
            store = self._stores[files[places[0]]]
            features, found = store.get(self._flat(rows[places]))
            out[torch.from_numpy(places)] = features.unflatten(0, (-1, v))
            for place in places[~found.reshape(-1, v).all(axis=1)]:
                chosen = rows[place : place + 1]
                out[place] = self._computed(chosen)[0]
                store.offer(self._flat(chosen), out[place])
        return out

    def _fill(self, number: int, rows: NDArray[np.int64]) -> None:
        """Compute and store what is missing of one file."""
        file, store = self._dataset.files[number], self._stores[number]
        missing = self._missing(store, rows)
        if len(missing) == 0:
            return
        n_there = len(rows) - len(missing)
        what = f"prior features of {file.task}"
        with Progress(len(rows), what=what, unit="frames", start=n_there) as progress:
            for begin in range(0, len(missing), self._batch_size):
                part = missing[begin : begin + self._batch_size]
                chosen = self._missing(store, part)  # another process may have been faster
                if len(chosen):
                    features = self._computed(chosen)
                    if not torch.isfinite(features).all():
                        raise ContractError(
                            f"prior features of {file.suite}/{file.task} are not finite in "
                            f"{self._dtype}, expected finite numbers; set "
                            "data.features.dtype=bfloat16 or check the prior's weights"
                        )
                    store.add(self._flat(chosen), features.flatten(0, 1))
                progress.update(len(part))

    def _missing(self, store: FeatureStore, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        v = self._addresses.shape[1]
        return rows[~store.has(self._flat(rows)).reshape(-1, v).all(axis=1)]

    def _computed(self, rows: NDArray[np.int64]) -> Tensor:
        """Run the prior on some rows: (b, v, t, c) in the stored dtype, on the host."""
        pixels = self._dataset.pixels(rows)
        keys = [self._key(int(row)) for row in rows]
        size = 1 if self._identity.device == "cpu" else self._batch_size
        with torch.inference_mode():
            parts = [
                self._compute(pixels[i : i + size], keys[i : i + size])
                for i in range(0, len(rows), size)
            ]
        return torch.cat(parts).detach().to(TORCH_DTYPES[self._dtype]).cpu()

    def _flat(self, rows: NDArray[np.int64]) -> list[bytes]:
        raw = self._addresses[rows].tobytes()
        return [raw[i : i + DIGEST_BYTES] for i in range(0, len(raw), DIGEST_BYTES)]

    def _key(self, row: int) -> int:
        file, local = self._dataset.locate(row)
        return noise_key(self._dataset.files[file], local)


def noise_key(file: Frames, row: int) -> int:
    """Name the noise of one frame; a prior with constant noise ignores it."""
    digest = hashlib.sha256(f"{file.fingerprint}/{row}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _addresses(file: Frames, identity: PriorIdentity) -> NDArray[np.uint8]:
    """Return where the features of each row of a file are found: (n, v, DIGEST_BYTES)."""
    digests = _digests(file)
    n, v = digests.shape[:2]
    raw = digests.tobytes()
    views = [raw[i : i + DIGEST_BYTES] for i in range(0, len(raw), DIGEST_BYTES)]
    observations = [views[i * v : (i + 1) * v] for i in range(n)]
    keys = [noise_key(file, row) if identity.uses_keys else 0 for row in range(n)]
    found = b"".join(a for row in identity.addresses(observations, keys) for a in row)
    return np.frombuffer(found, dtype=np.uint8).reshape(n, v, DIGEST_BYTES)


def _digests(file: Frames) -> NDArray[np.uint8]:
    """Return the digest of every frame of a file (n, v, DIGEST_BYTES), hashing it only once."""
    path = file.folder / f"digests-{LAYOUT}.npy"
    n, v = file.images.shape[:2]
    if not path.exists():
        _hash_frames(file, path)
    digests = np.load(path)
    if digests.shape != (n, v, DIGEST_BYTES):
        raise ContractError(
            f"{path} is {digests.shape}, expected {(n, v, DIGEST_BYTES)}; delete it, it is made anew"
        )
    return digests


def _hash_frames(file: Frames, path: Path) -> None:
    n, v = file.images.shape[:2]
    digests = np.zeros((n, v, DIGEST_BYTES), dtype=np.uint8)
    with Progress(n, what=f"hashing the frames of {file.task}", unit="frames") as progress:
        for row in range(n):
            if file.frame_mask[row]:
                for view, frame in enumerate(file.images[row]):
                    digests[row, view] = np.frombuffer(frame_digest(frame), dtype=np.uint8)
            progress.update(1)
    with atomic_path(path) as temporary:
        np.save(temporary, digests)
