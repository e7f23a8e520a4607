"""RLDS data sets in the layout of ``openvla/modified_libero_rlds``, read and written without TensorFlow.

A folder holds ``dataset_info.json``, ``features.json`` and the shards
``<name>-train.tfrecord-00003-of-00016``; a record is an episode, its steps flattened:
``steps/observation/image`` and ``wrist_image`` are lists of JPEG or PNG files (upright),
``steps/observation/state`` and ``steps/action`` are runs of 8 and 7 float32 a step, in the units and
signs of the environment. ``steps/expert_mask`` and ``episode_metadata/attributes`` are ours; public
sets lack them and are read as if the expert had chosen every action.
"""

from __future__ import annotations

import io
import json
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from vega_policy.data.episodes import CONTROL_HZ, Episode, EpisodeRef, Format, task_name
from vega_policy.data.tfrecords import (
    DamagedRecord,
    Feature,
    checked,
    content,
    frame_record,
    parse_example,
    records,
    write_example,
)
from vega_policy.spec import AGENTVIEW, WRIST, ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

IMAGE_KEYS = {AGENTVIEW: "steps/observation/image", WRIST: "steps/observation/wrist_image"}
ACTION_KEY = "steps/action"
STATE_KEY = "steps/observation/state"
JOINT_KEY = "steps/observation/joint_state"
INSTRUCTION_KEY = "steps/language_instruction"
MASK_KEY = "steps/expert_mask"
ATTRIBUTES_KEY = "episode_metadata/attributes"
NEEDED = (ACTION_KEY, STATE_KEY, INSTRUCTION_KEY, *IMAGE_KEYS.values())
VERSION = "1.0.0"
SHARD_BYTES = 128 * 1024**2
"""A shard is closed when it is larger than this."""
_SHARD = re.compile(r"(?P<name>.+)-(?P<split>[^-]+)\.tfrecord-(?P<index>\d{5})-of-(?P<total>\d{5})")
_JPEG_QUALITY = 95
_JPEG_START = b"\xff\xd8"


@dataclass(frozen=True, eq=False)
class RldsReader:
    """The ``train`` split of one RLDS folder; every record is an episode."""

    path: Path
    refs: tuple[EpisodeRef, ...]
    left_out: tuple[str, ...]
    _records: Mapping[EpisodeRef, memoryview]
    """Slices of the memory-mapped shards."""
    format: Format = "rlds"
    rate_hz: float = CONTROL_HZ

    @property
    def is_jpeg(self) -> bool:
        """Whether the images are JPEG files, judged by the first."""
        example = parse_example(content(self._records[self.refs[0]]))
        files = example[IMAGE_KEYS[AGENTVIEW]].items()
        return bool(files) and bytes(files[0][:2]) == _JPEG_START

    @classmethod
    def open(cls, path: Path, *, skip_damaged: bool) -> RldsReader:
        """List the episodes; images are neither read nor checked here.

        Raises:
            ContractError: Shards are missing, damaged or of several data sets.
        """
        shards, problems = _shards(path)
        if problems and not skip_damaged:
            raise ContractError("; ".join(problems))
        found: dict[EpisodeRef, memoryview] = {}
        for shard, expected in shards:
            before = len(found)
            try:
                for number, record in enumerate(records(_mapped(shard))):
                    ref, problem = _listed(shard, number, record)
                    if ref is not None:
                        found[ref] = record
                    elif skip_damaged:
                        problems.append(problem)
                    else:
                        raise ContractError(problem)
            except DamagedRecord as error:
                problem = (
                    f"{shard} is damaged after {len(found) - before} episodes: {error}; download the "
                    "shard again, or use the rest with skip_damaged=true"
                )
                if not skip_damaged:
                    raise ContractError(problem) from error
                problems.append(problem)
                continue
            n = len(found) - before
            if expected is not None and n != expected:
                problem = (
                    f"{shard} has {n} episodes, dataset_info.json says {expected}; download the shard "
                    "again, or use what is there with skip_damaged=true"
                )
                if not skip_damaged:
                    raise ContractError(problem)
                problems.append(problem)
        return cls(path=path, refs=tuple(found), left_out=tuple(problems), _records=found)

    def read(self, ref: EpisodeRef, *, at: Sequence[int] | None) -> Episode:
        """Read one episode; its checksum is compared.

        Raises:
            ContractError: The record or an image is damaged.
        """
        try:
            example = parse_example(checked(self._records[ref]))
            return _episode(example, ref, at=at)
        except (DamagedRecord, OSError, ValueError, KeyError, IndexError) as error:
            raise ContractError(
                f"{ref} cannot be read: {error}; download the shard again, or skip it with "
                "skip_damaged=true"
            ) from error


def _listed(shard: Path, number: int, record: memoryview) -> tuple[EpisodeRef | None, str]:
    """Return what a record is, or why that cannot be said."""
    try:
        example = parse_example(content(record))
        missing = [key for key in NEEDED if key not in example]
        if missing:
            raise DamagedRecord(
                f"it has no {', '.join(missing)}, it has {', '.join(sorted(example)) or 'nothing'}"
            )
        words = example[INSTRUCTION_KEY].items()
        n_values = example[ACTION_KEY].n_floats()
        if not words or n_values % 7:
            raise DamagedRecord(f"{n_values} action numbers and {len(words)} instructions")
        instruction = bytes(words[0]).decode()
    except (DamagedRecord, UnicodeDecodeError) as error:
        return None, (
            f"{shard} record {number} cannot be read: {error}, expected an episode as in "
            "openvla/modified_libero_rlds; download the shard again, or skip it with "
            "skip_damaged=true"
        )
    return EpisodeRef(
        file=shard,
        name=f"record {number}",
        task=task_name(instruction),
        instruction=instruction,
        n_steps=n_values // 7,
    ), ""


def _episode(
    example: Mapping[str, Feature], ref: EpisodeRef, *, at: Sequence[int] | None
) -> Episode:
    t = ref.n_steps
    images: dict[str, NDArray[np.uint8]] = {}
    for camera, key in IMAGE_KEYS.items() if at is None or len(at) else ():
        files = example[key].items()
        if len(files) != t:
            raise DamagedRecord(f"{len(files)} images of {camera}, expected {t}")
        images[camera] = np.stack(
            [decode_image(files[i]) for i in (range(t) if at is None else at)]
        )
    mask = example.get(MASK_KEY)
    joints = example.get(JOINT_KEY)
    attributes = example.get(ATTRIBUTES_KEY)
    return Episode(
        images=images,
        proprio=example[STATE_KEY].floats().reshape(-1, 8),
        actions=example[ACTION_KEY].floats().reshape(-1, 7).astype(np.float64),
        expert_mask=np.ones(t, np.uint8) if mask is None else mask.ints().astype(np.uint8),
        joint_states=None if joints is None else joints.floats().reshape(-1, 7).astype(np.float64),
        instruction=ref.instruction,
        attributes={} if attributes is None else json.loads(bytes(attributes.items()[0])),
    )


def decode_image(data: bytes | memoryview) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG file: (h, w, 3).

    JPEG is decoded with the fast integer transform, as TensorFlow does by default.
    """
    raw = bytes(data)
    if raw[:2] == _JPEG_START:
        import simplejpeg

        return simplejpeg.decode_jpeg(raw, colorspace="RGB", fastdct=True, fastupsample=False)
    from PIL import Image

    with Image.open(io.BytesIO(raw)) as image:
        return np.asarray(image.convert("RGB"))


def encode_image(image: NDArray[np.uint8], kind: Literal["jpeg", "png"]) -> bytes:
    """Encode an (h, w, 3) image: PNG without loss, or JPEG as TensorFlow Datasets does (quality 95)."""
    from PIL import Image

    file = io.BytesIO()
    if kind == "png":
        Image.fromarray(image).save(file, "PNG", compress_level=1)
    else:
        Image.fromarray(image).save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=2)
    return file.getvalue()


@dataclass(eq=False)
class RldsWriter:
    """Writes episodes as one RLDS split, shard by shard."""

    folder: Path
    """Exists and is empty."""
    name: str
    """Of the data set, in the names of the shards."""
    images: Literal["jpeg", "png"] = "jpeg"
    """``png`` loses nothing and is larger."""
    shard_bytes: int = SHARD_BYTES
    _lengths: list[int] = field(default_factory=list[int])
    _n_bytes: int = 0
    _shard: BinaryIO | None = None
    _size: tuple[int, int] | None = None

    def add(self, episode: Episode, *, task: str) -> None:
        """Append one episode.

        Raises:
            ContractError: Its images have another size than the first episode's.
        """
        height, width = episode.images[AGENTVIEW].shape[1:3]
        size = (height, width)
        if self._size not in (None, size):
            raise ContractError(
                f"images of {task} are {size}, those before were {self._size}; an RLDS set has one size"
            )
        self._size = size
        if self._shard is None:
            self._shard = self._part(len(self._lengths)).open("wb")
            self._lengths.append(0)
        data = write_example(self._features(episode, task))
        self._shard.write(frame_record(data))
        self._lengths[-1] += 1
        self._n_bytes += len(data)
        if self._shard.tell() >= self.shard_bytes:
            self._shard.close()
            self._shard = None

    def close(self) -> None:
        """Give the shards their names and write the description."""
        if self._shard is not None:
            self._shard.close()
        total = len(self._lengths)
        for index in range(total):
            name = f"{self.name}-train.tfrecord-{index:05d}-of-{total:05d}"
            self._part(index).replace(self.folder / name)
        info = {
            "fileFormat": "tfrecord",
            "moduleName": "vega_policy.data.rlds",
            "name": self.name,
            "releaseNotes": {VERSION: "Written by vega_policy."},
            "splits": [
                {
                    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                    "name": "train",
                    "numBytes": str(self._n_bytes),
                    "shardLengths": [str(n) for n in self._lengths],
                }
            ],
            "version": VERSION,
        }
        described = _describe(self._size or (0, 0), self.images)
        (self.folder / "features.json").write_text(json.dumps(described, indent=4))
        (self.folder / "dataset_info.json").write_text(json.dumps(info, indent=2))

    def _part(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}"

    def _features(
        self, episode: Episode, task: str
    ) -> dict[str, Sequence[bytes] | NDArray[np.generic]]:
        t = episode.n_steps
        ends = (np.arange(t) == t - 1).astype(np.int64)
        joints = episode.joint_states
        if joints is None:
            raise ContractError(
                f"an episode of {task} has no joint states, which the RLDS layout of LIBERO holds; "
                "convert to lerobot or hdf5 instead"
            )
        return {
            **{
                key: [encode_image(image, self.images) for image in episode.images[camera]]
                for camera, key in IMAGE_KEYS.items()
            },
            STATE_KEY: episode.proprio,
            JOINT_KEY: joints.astype(np.float32),
            ACTION_KEY: episode.actions.astype(np.float32),
            INSTRUCTION_KEY: [episode.instruction.encode()] * t,
            MASK_KEY: episode.expert_mask.astype(np.int64),
            "steps/discount": np.ones(t, dtype=np.float32),
            "steps/reward": ends.astype(np.float32),
            "steps/is_first": (np.arange(t) == 0).astype(np.int64),
            "steps/is_last": ends,
            "steps/is_terminal": ends,
            "episode_metadata/file_path": [task.encode()],
            ATTRIBUTES_KEY: [json.dumps(dict(episode.attributes), sort_keys=True).encode()],
        }


def _shards(path: Path) -> tuple[list[tuple[Path, int | None]], list[str]]:
    """Return the shards of the train split with the episodes each should have, and what is wrong."""
    named = [
        (file, match)
        for file in sorted(path.glob("*.tfrecord-*"))
        if (match := _SHARD.fullmatch(file.name)) and match["split"] == "train"
    ]
    if not named:
        raise ContractError(
            f"{path} has no shards of the train split, expected <name>-train.tfrecord-00000-of-00016 "
            "and so on; download the data set again"
        )
    sets = sorted({(match["name"], match["total"]) for _, match in named})
    if len(sets) > 1:
        raise ContractError(
            f"{path} mixes shards of several sets: "
            f"{', '.join(f'{name} of {int(total)}' for name, total in sets)}; keep one of them"
        )
    total = int(sets[0][1])
    there = {int(match["index"]) for _, match in named}
    problems = [
        f"{path} lacks shard {index} of {total}; download it, or use the rest with skip_damaged=true"
        for index in range(total)
        if index not in there
    ]
    lengths = _shard_lengths(path)
    if lengths is not None and len(lengths) != total:
        raise ContractError(
            f"{path}: dataset_info.json speaks of {len(lengths)} shards, their names of {total}; "
            "the files are of different versions, download the data set again"
        )
    return [
        (file, None if lengths is None else lengths[int(match["index"])]) for file, match in named
    ], problems


def _shard_lengths(path: Path) -> list[int] | None:
    file = path / "dataset_info.json"
    if not file.is_file():
        return None
    try:
        info: dict[str, Any] = json.loads(file.read_text())
        splits = {split["name"]: split for split in info["splits"]}
        return [int(n) for n in splits["train"]["shardLengths"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ContractError(
            f"{file} cannot be read: {error!r}, expected the description of a TFDS data set with a "
            "train split; download it again"
        ) from error


def _mapped(shard: Path) -> memoryview:
    with shard.open("rb") as file:
        if shard.stat().st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _describe(size: tuple[int, int], images: str) -> dict[str, Any]:
    """Return ``features.json``, which TensorFlow Datasets reads the records by."""

    def tensor(kind: str, dtype: str, *shape: int) -> dict[str, Any]:
        dimensions = {"dimensions": [str(n) for n in shape]} if shape else {}
        return {
            "pythonClassName": f"tensorflow_datasets.core.features.{kind}",
            "tensor": {"shape": dimensions, "dtype": dtype, "encoding": "none"},
        }

    def vector(n: int) -> dict[str, Any]:
        return tensor("tensor_feature.Tensor", "float32", n)

    def scalar(dtype: str) -> dict[str, Any]:
        return tensor("scalar.Scalar", dtype)

    def group(**features: dict[str, Any]) -> dict[str, Any]:
        return {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "featuresDict": {"features": features},
        }

    image = {
        "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
        "image": {
            "shape": {"dimensions": [str(size[0]), str(size[1]), "3"]},
            "dtype": "uint8",
            "encodingFormat": images,
        },
    }
    text = {
        "pythonClassName": "tensorflow_datasets.core.features.text_feature.Text",
        "text": {},
    }
    step = group(
        action=vector(7),
        discount=scalar("float32"),
        expert_mask=scalar("bool"),
        is_first=scalar("bool"),
        is_last=scalar("bool"),
        is_terminal=scalar("bool"),
        language_instruction=text,
        observation=group(image=image, joint_state=vector(7), state=vector(8), wrist_image=image),
        reward=scalar("float32"),
    )
    steps = {
        "pythonClassName": "tensorflow_datasets.core.features.dataset_feature.Dataset",
        "sequence": {"feature": step, "length": "-1"},
    }
    return group(episode_metadata=group(attributes=text, file_path=text), steps=steps)
