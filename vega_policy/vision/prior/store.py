"""Features of frozen priors on disk, found by what they were computed from.

A prior is frozen and its noise is a function of explicit keys, so its features are a function of
the frame. A record is found by the prior's identity and the bytes of the frame, never by where the
frame came from: training, rollouts and scene heads share one store.

On disk: ``<root>/<prior>-<device>-<dtype>/<time>-<process>.features`` holds records of one size, and
the ``.index`` beside it says for each whose they are. Both only grow. A writer holds a lock and
writes an index entry after its features, so whatever a kill leaves is cut off by the next writer; a
reader takes no lock. Every record carries a checksum, which is verified whenever it is read.

Shape legend: ``b`` batch, ``v`` views (cameras), ``n`` tokens of one view, ``c`` width, ``k`` records.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import struct
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vega_policy.spec.errors import ContractError, StorageFault
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray

    from vega_policy.vision.prior.config import PriorConfig

logger = logging.getLogger(__name__)

FeatureDtype = Literal["float16", "bfloat16", "float32"]
TORCH_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
Compute = Callable[[Tensor, Sequence[int]], Tensor]
"""Turns (b, v, 3, h, w) frames and their noise keys into (b, v, n, c) features."""

LAYOUT = 1
"""Raised whenever the meaning of the files or of an address changes."""
DIGEST_BYTES = 16

_ENTRY = struct.Struct(f"<{DIGEST_BYTES}sI")  # address, checksum of address and features
_HEADER_BYTES = 32
_SEGMENT_BYTES = 512 * 2**20
_SEGMENT = re.compile(r"\d{20}-\d+")
_DATA, _INDEX = ".features", ".index"


def prior_fingerprint(prior: nn.Module, config: Mapping[str, Any]) -> str:
    """Hash a frozen prior: its configuration, noise included, and every weight and constant.

    Left out are the cadence, which says when the prior runs and not what it answers, and the path of
    the prompt, which is hashed itself.
    """
    said = {k: v for k, v in config.items() if k not in ("cadence", "prompt_file")}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for name, module in prior.named_modules():  # diffusers' settings hold the scale of the latents
        settings = getattr(module, "config", None)
        if isinstance(settings, Mapping):
            own = {k: v for k, v in settings.items() if k[0] != "_"}  # no paths, no versions
            digest.update(f"{name} {json.dumps(own, sort_keys=True, default=str)}".encode())
    # Not the state dictionary, which leaves out buffers that are not saved with the weights. A
    # tensor kept as a plain attribute (the prompt) counts too, unless its name calls it private.
    plain = {k: v for k, v in vars(prior).items() if isinstance(v, Tensor) and k[0] != "_"}
    tensors = {**plain, **dict(prior.named_parameters()), **dict(prior.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy())
    return digest.hexdigest()[:16]


def frame_digest(frame: NDArray[np.generic]) -> bytes:
    """Hash one frame (3, h, w) with its size and type."""
    digest = hashlib.sha256(f"{frame.dtype} {frame.shape}".encode())
    digest.update(np.ascontiguousarray(frame).data)
    return digest.digest()[:DIGEST_BYTES]


def frame_digests(pixels: Tensor) -> list[list[bytes]]:
    """Hash the frames of observations (b, v, 3, h, w), view by view."""
    return [[frame_digest(frame) for frame in views] for views in pixels.cpu().numpy()]


@dataclass(frozen=True)
class PriorIdentity:
    """What decides a prior's answer, beside the frames."""

    fingerprint: str
    """Of `prior_fingerprint`."""
    shape: tuple[int, int]
    """(n, c) of one view."""
    joins_views: bool = False
    """A view's features depend on the other views: the prior sees a clip."""
    uses_keys: bool = False
    """Its noise is drawn from the observation's key."""
    device: str = "cpu"
    """Kind of device it runs on: the last bits differ between kinds."""

    @classmethod
    def of(cls, prior: nn.Module | None) -> PriorIdentity:
        """Look at a prior; hashing its weights takes about a second per 1.5 GB.

        Raises:
            ContractError: It has no weights, so that computing is cheaper than looking up.
        """
        first = None if prior is None else next(prior.parameters(), None)
        if prior is None or first is None:
            raise ContractError(
                f"a prior without weights ({type(prior).__name__}) has no features worth storing; run "
                "without a feature store"
            )
        config: PriorConfig = prior.config  # pyright: ignore[reportAssignmentType] - every prior's
        return cls(
            fingerprint=prior_fingerprint(prior, asdict(config)),
            shape=(config.grid**2, config.width),
            joins_views=config.frames == "clip",
            uses_keys=config.noise == "keyed",
            device=first.device.type,
        )

    def addresses(
        self, digests: Sequence[Sequence[bytes]], keys: Sequence[int]
    ) -> list[list[bytes]]:
        """Return where the features of each view of each observation are found.

        The number of views is part of an address: the last bits of a convolution's answer depend on
        how many frames share its pass, and an observation is one pass.

        Args:
            digests: Of `frame_digests`, (b, v).
            keys: The (b,) noise keys; without effect unless ``uses_keys``.
        """
        return [self._of_observation(views, key) for views, key in zip(digests, keys, strict=True)]

    def _of_observation(self, views: Sequence[bytes], key: int) -> list[bytes]:
        count = len(views).to_bytes(4, "little")
        if not (self.joins_views or self.uses_keys):
            return [_hash(count, view) for view in views]
        drawn = str(key if self.uses_keys else "").encode()
        whole = _hash(count, *views, drawn)
        return [_hash(whole, place.to_bytes(4, "little")) for place in range(len(views))]


class FeatureStore:
    """Features of one prior, in one precision.

    Any number of processes may read and write the same folder; one thread of each uses an object.
    Nothing is written before the first `add`.
    """

    def __init__(
        self,
        root: Path | str,
        identity: PriorIdentity,
        *,
        dtype: FeatureDtype = "float32",
        max_gb: float | None = None,
        segment_bytes: int = _SEGMENT_BYTES,
    ) -> None:
        """Describe the store.

        Args:
            root: Folder of the stores of all priors.
            identity: Whose features these are.
            dtype: How they are kept; with ``float32`` a stored answer equals a computed one bit for bit.
            max_gb: Limit of the whole root; when it is passed the oldest files of any prior go. None
                keeps everything.
            segment_bytes: Size at which a new file is begun.
        """
        self.root = Path(root)
        self.identity = identity
        self.dtype: FeatureDtype = dtype
        self.folder = self.root / f"{identity.fingerprint}-{identity.device}-{dtype}"
        self._max_bytes = None if max_gb is None else int(max_gb * 1e9)
        self._record_bytes = int(np.prod(identity.shape)) * TORCH_DTYPES[dtype].itemsize
        if self._max_bytes is not None:
            segment_bytes = min(segment_bytes, self._max_bytes // 8)
        self._per_segment = max(1, segment_bytes // self._record_bytes)
        said = [LAYOUT, identity.fingerprint, identity.device, *identity.shape, dtype]
        self._header = hashlib.sha256(json.dumps(said).encode()).digest()
        self._segments: dict[str, _Segment | None] = {}
        """By name; None for a file that is not of this store."""
        self._places: dict[bytes, tuple[_Segment, int]] = {}
        self._is_refused = False
        self._refresh()

    def __len__(self) -> int:
        """Return how many frames are known."""
        return len(self._places)

    def has(self, addresses: Sequence[bytes]) -> NDArray[np.bool_]:
        """Tell which records there are, as far as the index says; their features are not read."""
        self._look_for(addresses)
        return np.array([address in self._places for address in addresses], dtype=np.bool_)

    def get(self, addresses: Sequence[bytes]) -> tuple[Tensor, NDArray[np.bool_]]:
        """Look records up; damaged ones count as absent.

        Returns:
            Features (k, n, c) in the stored precision, and which of them were found; the others are
            undefined.
        """
        self._look_for(addresses)
        raw = np.empty((len(addresses), self._record_bytes), dtype=np.uint8)
        found = np.zeros(len(addresses), dtype=np.bool_)
        for row, address in enumerate(addresses):
            place = self._places.get(address)
            if place is None:
                continue
            found[row] = place[0].load(place[1], address, raw[row])
            if not found[row]:
                logger.warning(
                    "%s: record %d is damaged; it is not used and is computed again", *place
                )
                del self._places[address]
        features = torch.from_numpy(raw).view(TORCH_DTYPES[self.dtype])
        return features.view(-1, *self.identity.shape), found

    def add(self, addresses: Sequence[bytes], features: Tensor) -> None:
        """Append records; those that are there already are left out.

        Args:
            addresses: Of `PriorIdentity.addresses`.
            features: (k, n, c), rounded to the stored precision.

        Raises:
            StorageFault: The disk refuses; the records before are whole.
            ValueError: The features have another shape.
        """
        expected = (len(addresses), *self.identity.shape)
        if features.shape != expected:
            raise ValueError(f"features are {tuple(features.shape)}, expected {expected}")
        rounded = features.detach().to(TORCH_DTYPES[self.dtype]).cpu().contiguous()
        raw = rounded.reshape(len(addresses), -1).view(torch.uint8).numpy()
        try:
            with _locked(self.root):
                self._refresh()
                new = {a: r for a, r in zip(addresses, raw, strict=True) if a not in self._places}
                self._append(list(new.items()))
                self._drop_oldest()
        except OSError as error:
            raise StorageFault(
                f"cannot store features in {self.folder}: {error.strerror or error}; make room, or "
                "name another folder"
            ) from error

    def read(self, pixels: Tensor, *, keys: Sequence[int], compute: Compute) -> Tensor:
        """Return the features of observations, computing and storing those that are missing.

        An observation is computed as a whole, so that it is the pass it would be without a store.
        Where the disk refuses, the run goes on without storing.

        Args:
            pixels: (b, v, 3, h, w) as ``compute`` takes them.
            keys: (b,) noise keys.
            compute: The prior; called once, with the observations that are missing.

        Returns:
            (b, v, n, c) in the stored precision, on the CPU.
        """
        b, v = pixels.shape[:2]
        addresses = self.identity.addresses(frame_digests(pixels), keys)
        flat, found = self.get([a for views in addresses for a in views])
        features = flat.unflatten(0, (b, v))
        missing = np.flatnonzero(~found.reshape(b, v).all(axis=1))
        if len(missing):
            fresh = compute(pixels[missing], [keys[i] for i in missing])
            features[missing] = fresh.to(features)
            chosen = [a for i in missing for a in addresses[i]]
            self.offer(chosen, features[missing].flatten(0, 1))
        return features

    def clear(self) -> None:
        """Remove this prior's records; other processes compute anew what they do not find."""
        if not self.folder.exists():
            return
        with _locked(self.root):
            for index in self.folder.glob(f"*{_INDEX}"):
                _remove(index)
            self._refresh()

    def offer(self, addresses: Sequence[bytes], features: Tensor) -> None:
        """Append records as `add` does; where the disk refuses, say so once and go on without."""
        if self._is_refused:
            return
        try:
            self.add(addresses, features)
        except StorageFault as error:
            self._is_refused = True
            logger.warning("%s; going on without storing", error)

    def _look_for(self, addresses: Sequence[bytes]) -> None:
        if any(address not in self._places for address in addresses):
            self._refresh()

    def _refresh(self) -> None:
        """Take note of what other processes wrote or removed."""
        names = sorted(p.stem for p in self.folder.glob(f"*{_INDEX}") if _SEGMENT.fullmatch(p.stem))
        gone = {s for name, s in self._segments.items() if name not in names}
        if gone:
            self._segments = {n: s for n, s in self._segments.items() if n in names}
            self._places = {a: p for a, p in self._places.items() if p[0] not in gone}
        for name in names:
            if name not in self._segments:
                with suppress(FileNotFoundError):  # removed since it was listed
                    self._segments[name] = _Segment.open(
                        self.folder / name, header=self._header, record_bytes=self._record_bytes
                    )
            segment = self._segments.get(name)
            if segment is not None:
                self._places |= {address: (segment, i) for i, address in segment.news()}

    def _append(self, records: list[tuple[bytes, NDArray[np.uint8]]]) -> None:
        while records:
            own = [s for s in self._segments.values() if s is not None]
            if not own or own[-1].n_records >= self._per_segment:
                self._begin_segment()
                continue
            room = self._per_segment - own[-1].n_records
            own[-1].append(records[:room])
            records = records[room:]
            self._refresh()

    def _begin_segment(self) -> None:
        self.folder.mkdir(exist_ok=True)
        for data in self.folder.glob(f"*{_DATA}"):  # a writer was killed before the index existed
            if not data.with_suffix(_INDEX).exists():
                data.unlink()
        last = max((int(name[:20]) for name in self._segments), default=0)
        path = self.folder / f"{max(time.time_ns(), last + 1):020d}-{os.getpid()}"
        path.with_suffix(_DATA).touch()
        write_atomic(path.with_suffix(_INDEX), self._header)
        self._refresh()

    def _drop_oldest(self) -> None:
        if self._max_bytes is None:
            return
        sizes = {
            index: index.stat().st_size + _size(index.with_suffix(_DATA))
            for index in self.root.glob(f"*/*{_INDEX}")
            if _SEGMENT.fullmatch(index.stem)
        }
        *old, _newest = sorted(sizes, key=lambda index: index.stem)
        total = sum(sizes.values())
        for index in old:
            if total <= self._max_bytes:
                break
            total -= sizes[index]
            logger.info("removing %s, the oldest features: the store is full", index.stem)
            _remove(index)
        self._refresh()


class _Segment:
    """One pair of files, open for reading."""

    def __init__(self, path: Path, *, record_bytes: int) -> None:
        self._path = path
        self._record_bytes = record_bytes
        self._data = path.with_suffix(_DATA).open("rb", buffering=0)
        self._index = path.with_suffix(_INDEX).open("rb", buffering=0)
        self._sums: list[int] = []

    @classmethod
    def open(cls, path: Path, *, header: bytes, record_bytes: int) -> _Segment | None:
        """Open a segment, or return None for a file of something else."""
        with path.with_suffix(_INDEX).open("rb") as index:
            if index.read(_HEADER_BYTES) == header:
                return cls(path, record_bytes=record_bytes)
        logger.warning("%s is not of this feature store; it is left alone", path)
        return None

    def __str__(self) -> str:
        return str(self._path.with_suffix(_DATA))

    @property
    def n_records(self) -> int:
        """Records known so far."""
        return len(self._sums)

    def news(self) -> list[tuple[int, bytes]]:
        """Return number and address of the records that are new since the last call."""
        known = self.n_records
        whole = min(
            (os.fstat(self._index.fileno()).st_size - _HEADER_BYTES) // _ENTRY.size,
            os.fstat(self._data.fileno()).st_size // self._record_bytes,
        )
        if whole <= known:
            return []
        count, offset = (whole - known) * _ENTRY.size, _HEADER_BYTES + known * _ENTRY.size
        raw = os.pread(self._index.fileno(), count, offset)
        entries = list(_ENTRY.iter_unpack(raw[: len(raw) // _ENTRY.size * _ENTRY.size]))
        self._sums += [checksum for _, checksum in entries]
        return [(known + i, address) for i, (address, _) in enumerate(entries)]

    def load(self, number: int, address: bytes, out: NDArray[np.uint8]) -> bool:
        """Read a record into ``out`` and return whether it is what was written."""
        n_read = os.preadv(self._data.fileno(), [out.data], number * self._record_bytes)
        return n_read == self._record_bytes and _checksum(address, out) == self._sums[number]

    def append(self, records: Sequence[tuple[bytes, NDArray[np.uint8]]]) -> None:
        """Write records behind those that are known; the caller holds the lock and has read all."""
        n = self.n_records
        with (
            self._path.with_suffix(_DATA).open("r+b", buffering=0) as data,
            self._path.with_suffix(_INDEX).open("r+b", buffering=0) as index,
        ):
            ends = (n * self._record_bytes, _HEADER_BYTES + n * _ENTRY.size)
            _cut(data.fileno(), index.fileno(), ends)
            try:
                _write(data.fileno(), b"".join(raw.data for _, raw in records), ends[0])
                entries = [_ENTRY.pack(a, _checksum(a, raw)) for a, raw in records]
                _write(index.fileno(), b"".join(entries), ends[1])
            except BaseException:
                with suppress(OSError):
                    _cut(data.fileno(), index.fileno(), ends)
                raise


def _cut(data: int, index: int, ends: tuple[int, int]) -> None:
    """Cut off what a killed or refused writer left; the index first, which promises the rest."""
    os.ftruncate(index, ends[1])
    os.ftruncate(data, ends[0])


def _write(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        n = os.pwrite(descriptor, view, offset)
        view, offset = view[n:], offset + n


def _checksum(address: bytes, raw: NDArray[np.uint8]) -> int:
    # Of the address too: a record that lies where another belongs must not be served for it.
    return zlib.crc32(raw.data, zlib.crc32(address))


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()[:DIGEST_BYTES]


def _remove(index: Path) -> None:
    index.unlink(missing_ok=True)
    index.with_suffix(_DATA).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _locked(root: Path) -> Generator[None]:
    """Be the only writer of a root; the lock ends with the process, however it ends."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
