"""LeRobot data sets, format v3.0, written without LeRobot and readable by it.

Besides the features a LeRobot policy for LIBERO expects (``observation.images.image`` and ``image2``,
``observation.state``, ``action``) the files hold the arm's joints and which actions the expert chose.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vega_policy.data.lerobot_v3 import (
    ACTION_KEYS,
    ATTRIBUTES_KEY,
    CAMERA_KEYS,
    JOINT_KEY,
    MASK_KEY,
    STATE_KEYS,
    require_pyarrow,
)
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow
    from av import VideoFrame

    from vega_policy.data.episodes import Episode

VERSION = "v3.0"
CHUNK_FILES = 1000
"""Files in a folder."""
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = f"data/{_FILE}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{_FILE}.mp4"
EPISODES_PATH = f"meta/episodes/{_FILE}.parquet"
QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
_N_IMAGES_FOR_STATISTICS = 100
_NAMES = {
    STATE_KEYS[0]: ["x", "y", "z", "rx", "ry", "rz", "finger_left", "finger_right"],
    ACTION_KEYS[0]: ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"],
    JOINT_KEY: [f"joint_{i}" for i in range(7)],
}


@dataclass(eq=False)
class LeRobotWriter:
    """Writes episodes as one LeRobot folder; unreadable until `close`."""

    folder: Path
    """Exists and is empty."""
    rate_hz: float
    images: Literal["video", "png"] = "video"
    """``video``: AV1, small and lossy. ``png``: within the parquet files, without loss."""
    crf: int = 30
    """Of the videos: lower is better and larger; 30 is LeRobot's own."""
    data_file_mb: float = DATA_FILE_MB
    video_file_mb: float = VIDEO_FILE_MB
    _tasks: dict[str, int] = field(default_factory=dict[str, int])
    _episodes: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    _statistics: dict[str, _Statistics] = field(default_factory=dict[str, "_Statistics"])
    _features: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    _n_frames: int = 0
    _data: _DataFile | None = None
    _videos: dict[str, _VideoFile] = field(default_factory=dict[str, "_VideoFile"])

    def add(self, episode: Episode, *, task: str) -> None:
        """Append one episode.

        Raises:
            ContractError: pyarrow is missing, or the episode differs from the first in what it holds.
        """
        require_pyarrow()
        features = self._describe(episode)
        if self._features and features != self._features:
            raise ContractError(
                f"an episode of {task} has the features {_shapes(features)}, those before had "
                f"{_shapes(self._features)}; a LeRobot set has one kind of episode"
            )
        self._features = features
        n, begin = episode.n_steps, self._n_frames
        number = len(self._episodes)
        task_index = self._tasks.setdefault(episode.instruction, len(self._tasks))
        cameras = {CAMERA_KEYS[camera][0]: images for camera, images in episode.images.items()}
        columns: dict[str, NDArray[Any]] = {
            STATE_KEYS[0]: episode.proprio.astype(np.float32),
            ACTION_KEYS[0]: episode.actions.astype(np.float32),
            MASK_KEY: episode.expert_mask.astype(bool),
            "timestamp": (np.arange(n) / self.rate_hz).astype(np.float32),
            "frame_index": np.arange(n),
            "episode_index": np.full(n, number),
            "index": np.arange(begin, begin + n),
            "task_index": np.full(n, task_index),
        }
        if episode.joint_states is not None:
            columns[JOINT_KEY] = episode.joint_states.astype(np.float32)
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [episode.instruction],
            "length": n,
            **self._write_steps(columns, cameras),
            "dataset_from_index": begin,
            "dataset_to_index": begin + n,
        }
        for key, images in cameras.items() if self.images == "video" else ():
            row |= self._write_frames(key, images)
        for key, statistics in self._measure(columns, cameras).items():
            self._statistics.setdefault(key, type(statistics)()).join(statistics)
            row |= {f"stats/{key}/{k}": v for k, v in statistics.summary().items()}
        row |= {
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            ATTRIBUTES_KEY: json.dumps(dict(episode.attributes), sort_keys=True),
        }
        self._episodes.append(row)
        self._n_frames += n

    def close(self) -> None:
        """Finish the files and write the description."""
        if self._data is not None:
            self._data.close()
        for video in self._videos.values():
            video.close()
        meta = self.folder / "meta"
        meta.mkdir(exist_ok=True)
        self._write_tables()
        stats = {key: statistics.summary() for key, statistics in self._statistics.items()}
        (meta / "stats.json").write_text(json.dumps(stats, indent=4))
        info = {
            "codebase_version": VERSION,
            "robot_type": "panda",
            "total_episodes": len(self._episodes),
            "total_frames": self._n_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": int(self.rate_hz) if self.rate_hz.is_integer() else self.rate_hz,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.images == "video" else None,
            "features": self._features,
        }
        (meta / "info.json").write_text(json.dumps(info, indent=4))

    def _describe(self, episode: Episode) -> dict[str, dict[str, Any]]:
        features: dict[str, dict[str, Any]] = {}
        for camera, images in episode.images.items():
            height, width = images.shape[1:3]
            feature: dict[str, Any] = {
                "dtype": "video" if self.images == "video" else "image",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
            }
            if self.images == "video":
                feature["info"] = {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "av1",
                    "video.pix_fmt": "yuv420p",
                    "video.is_depth_map": False,
                    "video.fps": int(self.rate_hz),
                    "video.channels": 3,
                    "has_audio": False,
                }
            features[CAMERA_KEYS[camera][0]] = feature
        for key, names in _NAMES.items():
            if key != JOINT_KEY or episode.joint_states is not None:
                features[key] = {"dtype": "float32", "shape": [len(names)], "names": names}
        features[MASK_KEY] = {"dtype": "bool", "shape": [1], "names": None}
        for key in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
            dtype = "float32" if key == "timestamp" else "int64"
            features[key] = {"dtype": dtype, "shape": [1], "names": None}
        return features

    def _write_steps(
        self, columns: Mapping[str, NDArray[Any]], cameras: Mapping[str, NDArray[np.uint8]]
    ) -> dict[str, int]:
        import pyarrow

        arrays: dict[str, pyarrow.Array] = {}
        for key in self._features:
            if key in cameras and self.images == "png":
                kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
                cells = [
                    {"bytes": _png(image), "path": f"frame-{i:06d}.png"}
                    for i, image in enumerate(cameras[key])
                ]
                arrays[key] = pyarrow.array(cells, type=kind)
            elif key in columns and columns[key].ndim == 2:
                flat = pyarrow.array(columns[key].ravel())
                arrays[key] = pyarrow.FixedSizeListArray.from_arrays(flat, columns[key].shape[1])
            elif key in columns:
                arrays[key] = pyarrow.array(columns[key])
        table = pyarrow.table(arrays)
        if self._data is not None and self._data.size_mb >= self.data_file_mb:
            self._data.close()
            self._data = _DataFile(self.folder, self._data.index + 1, table.schema)
        if self._data is None:
            self._data = _DataFile(self.folder, 0, table.schema)
        self._data.write(table)
        return _place("data", self._data.index)

    def _write_frames(self, key: str, images: NDArray[np.uint8]) -> dict[str, Any]:
        video = self._videos.get(key)
        if video is not None and video.size_mb >= self.video_file_mb:
            video.close()
        if video is None or video.is_closed:
            index = 0 if video is None else video.index + 1
            path = self.folder / VIDEO_PATH.format(video_key=key, **_split(index))
            video = _VideoFile(path, index, rate_hz=self.rate_hz, crf=self.crf)
            self._videos[key] = video
        begin_s = video.n_frames / self.rate_hz
        video.write(images)
        return {
            **_place(f"videos/{key}", video.index),
            f"videos/{key}/from_timestamp": begin_s,
            f"videos/{key}/to_timestamp": video.n_frames / self.rate_hz,
        }

    def _measure(
        self, columns: Mapping[str, NDArray[Any]], cameras: Mapping[str, NDArray[np.uint8]]
    ) -> dict[str, _Statistics]:
        found: dict[str, _Statistics] = {
            key: _Vectors([values.reshape(len(values), -1).astype(np.float64)])
            for key, values in columns.items()
            if key != MASK_KEY
        }
        for key, images in cameras.items():
            count = min(len(images), _N_IMAGES_FOR_STATISTICS)
            chosen = images[np.linspace(0, len(images) - 1, count).round().astype(np.int64)]
            found[key] = _Pixels.of(chosen)
        return found

    def _write_tables(self) -> None:
        import pyarrow
        from pyarrow import parquet

        tasks = pyarrow.table(
            {"task_index": pyarrow.array(self._tasks.values()), "task": list(self._tasks)}
        )
        # LeRobot looks an instruction up by the index of a pandas table.
        note = {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                _pandas_column("task_index", "int64"),
                _pandas_column("task", "unicode"),
            ],
            "pandas_version": "2.3.3",
        }
        tasks = tasks.replace_schema_metadata({"pandas": json.dumps(note)})
        parquet.write_table(tasks, self.folder / "meta" / "tasks.parquet")
        path = self.folder / EPISODES_PATH.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(self._episodes), path)


class _DataFile:
    """A parquet file that grows by one row group an episode."""

    def __init__(self, folder: Path, index: int, schema: pyarrow.Schema) -> None:
        from pyarrow import parquet

        self.index = index
        self._path = folder / DATA_PATH.format(**_split(index))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = parquet.ParquetWriter(
            self._path, schema, compression="snappy", write_page_checksum=True
        )

    def write(self, table: pyarrow.Table) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()

    @property
    def size_mb(self) -> float:
        return self._path.stat().st_size / 2**20


class _VideoFile:
    """An mp4 that grows by the frames of one episode after the other."""

    def __init__(self, path: Path, index: int, *, rate_hz: float, crf: int) -> None:
        import av

        self.index = index
        self.n_frames = 0
        self.is_closed = False
        self._n_bytes = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w")
        # A key frame every second frame, as LeRobot has it, so that any frame is found fast. Its
        # preset 12 is for tests of the encoder, which warns of artefacts.
        options = {"g": "2", "crf": str(crf), "preset": "10"}
        rate = Fraction(rate_hz).limit_denominator(1000)
        self._stream = self._container.add_stream("libsvtav1", rate, options=options)
        self._stream.pix_fmt = "yuv420p"

    def write(self, images: NDArray[np.uint8]) -> None:
        import av

        if not self.n_frames:
            self._stream.height, self._stream.width = images.shape[1:3]
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            self._encode(frame)
        self.n_frames += len(images)

    def close(self) -> None:
        if not self.is_closed:
            self._encode(None)
            self._container.close()
            self.is_closed = True

    @property
    def size_mb(self) -> float:
        return self._n_bytes / 2**20

    def _encode(self, frame: VideoFrame | None) -> None:
        packets = self._stream.encode(frame)
        self._n_bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)


@dataclass(eq=False)
class _Vectors:
    """Every value of a feature, for exact statistics."""

    rows: list[NDArray[np.float64]] = field(default_factory=list[Any])

    def join(self, other: _Statistics) -> None:
        if isinstance(other, _Vectors):
            self.rows += other.rows

    def summary(self) -> dict[str, Any]:
        values = np.concatenate(self.rows)
        result: dict[str, Any] = {
            "min": values.min(axis=0),
            "max": values.max(axis=0),
            "mean": values.mean(axis=0),
            "std": values.std(axis=0),
            "count": np.array([len(values)]),
        }
        for q in QUANTILES:
            result[f"q{round(q * 100):02d}"] = np.quantile(values, q, axis=0)
        return {key: value.tolist() for key, value in result.items()}


@dataclass(eq=False)
class _Pixels:
    """How often each grey level occurs in each channel of some images."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), dtype=np.int64))
    n_images: int = 0

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> _Pixels:
        counts = [np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)]
        return cls(counts=np.stack(counts), n_images=len(images))

    def join(self, other: _Statistics) -> None:
        if isinstance(other, _Pixels):
            self.counts = self.counts + other.counts
            self.n_images += other.n_images

    def summary(self) -> dict[str, Any]:
        levels = np.arange(256) / 255
        share = self.counts / self.counts.sum(axis=1, keepdims=True)
        below = np.cumsum(share, axis=1)
        mean = share @ levels
        there = self.counts > 0
        result: dict[str, NDArray[np.float64]] = {
            "min": levels[there.argmax(axis=1)],
            "max": levels[255 - there[:, ::-1].argmax(axis=1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(share @ levels**2 - mean**2, 0)),
        }
        for q in QUANTILES:
            result[f"q{round(q * 100):02d}"] = levels[(below >= q - 1e-12).argmax(axis=1)]
        shaped = {key: value.reshape(3, 1, 1).tolist() for key, value in result.items()}
        return {**shaped, "count": [self.n_images]}


_Statistics = _Vectors | _Pixels


def _png(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _split(index: int) -> dict[str, int]:
    chunk, file = divmod(index, CHUNK_FILES)
    return {"chunk_index": chunk, "file_index": file}


def _place(prefix: str, index: int) -> dict[str, int]:
    return {f"{prefix}/{key}": value for key, value in _split(index).items()}


def _pandas_column(name: str, kind: str) -> dict[str, Any]:
    numpy_type = "int64" if kind == "int64" else "object"
    return {
        "name": name,
        "field_name": name,
        "pandas_type": kind,
        "numpy_type": numpy_type,
        "metadata": None,
    }


def _shapes(features: Mapping[str, Mapping[str, Any]]) -> str:
    cells: Sequence[str] = [f"{key} {tuple(f['shape'])}" for key, f in features.items()]
    return ", ".join(cells)
