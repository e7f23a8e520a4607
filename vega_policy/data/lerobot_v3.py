"""LeRobot data sets, format v3.0, read without LeRobot.

Several episodes share a parquet file, and a video file for each camera. A row of
``meta/episodes/*.parquet`` says which files hold an episode, where in them it begins, and for videos
from which second. Images are PNG files within the parquet, or frames of the videos; both are upright.
Actions have the units and signs of the environment.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vega_policy.data.episodes import Episode, EpisodeRef, Format, task_name
from vega_policy.spec import AGENTVIEW, WRIST, ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

    import pyarrow
    from av import VideoFrame
    from numpy.typing import NDArray

CAMERA_KEYS = {
    AGENTVIEW: ("observation.images.image", "observation.images.agentview", "image"),
    WRIST: (
        "observation.images.image2",
        "observation.images.wrist_image",
        "observation.images.wrist",
        "wrist_image",
    ),
}
"""What public conversions of LIBERO call the cameras; the first name is the one we write."""
STATE_KEYS = ("observation.state", "state")
ACTION_KEYS = ("action", "actions")
JOINT_KEY = "observation.states.joint_state"
MASK_KEY = "expert_mask"
ATTRIBUTES_KEY = "vega_attributes"
"""Column of the episodes' table with how an episode was made, as JSON."""
_ADVICE = "record or download the data set again, or skip the episode with skip_damaged=true"


@dataclass(frozen=True, eq=False)
class _Features:
    """Which columns hold what."""

    action: str
    state: str
    cameras: Mapping[str, str]
    is_video: Mapping[str, bool]
    has_joints: bool
    has_mask: bool


@dataclass(frozen=True, eq=False)
class LeRobotReader:
    """One LeRobot folder; its ``train`` split is everything."""

    path: Path
    refs: tuple[EpisodeRef, ...]
    left_out: tuple[str, ...]
    rate_hz: float
    _features: _Features
    _rows: Mapping[EpisodeRef, Mapping[str, Any]]
    """The episodes' table, without its statistics."""
    _info: Mapping[str, Any]
    _file_starts: Mapping[Path, int]
    """Index of the first step in each parquet file."""
    format: Format = "lerobot"
    is_jpeg: bool = False

    @classmethod
    def open(cls, path: Path, *, skip_damaged: bool) -> LeRobotReader:
        """Read the description and the table of episodes; steps and images are not looked at.

        Raises:
            ContractError: pyarrow is not installed, the format has another version, the features are
                not those of LIBERO, or a table is damaged.
        """
        info = _read_info(path)
        features = _find_features(path, info)
        instructions = _read_tasks(path)
        found: dict[EpisodeRef, Mapping[str, Any]] = {}
        starts: dict[Path, int] = {}
        problems: list[str] = []
        for row in _read_episode_rows(path):
            number = int(row["episode_index"])
            try:
                ref = _ref(path, info, row, instructions)
                begin = int(row["dataset_from_index"])
            except (KeyError, TypeError, ValueError, IndexError) as error:
                problem = f"{path} episode {number} is described wrongly: {error!r}; {_ADVICE}"
                if not skip_damaged:
                    raise ContractError(problem) from error
                problems.append(problem)
                continue
            starts[ref.file] = min(begin, starts.get(ref.file, begin))
            found[ref] = row
        n_expected = info.get("total_episodes")
        if n_expected != len(found) + len(problems):
            problem = (
                f"{path} lists {len(found)} episodes, meta/info.json says {n_expected}; the folder was "
                "not finished or mixes two versions, download it again"
            )
            if not skip_damaged:
                raise ContractError(f"{problem}, or use what is listed with skip_damaged=true")
            problems.append(problem)
        return cls(
            path=path,
            refs=tuple(found),
            left_out=tuple(problems),
            rate_hz=float(info["fps"]),
            _features=features,
            _rows=found,
            _info=info,
            _file_starts=starts,
        )

    def read(self, ref: EpisodeRef, *, at: Sequence[int] | None) -> Episode:
        """Read one episode.

        Raises:
            ContractError: The parquet file or a video is missing, damaged or of another data set.
        """
        import pyarrow
        from av.error import FFmpegError

        try:
            return self._read(ref, at=at)
        except (
            *(pyarrow.ArrowException, FFmpegError, OSError),
            *(ValueError, KeyError, TypeError, IndexError),
        ) as error:
            text = str(error).splitlines()[0] if str(error) else repr(error)
            raise ContractError(f"{ref} cannot be read: {text}; {_ADVICE}") from error

    def _read(self, ref: EpisodeRef, *, at: Sequence[int] | None) -> Episode:
        features, row = self._features, self._rows[ref]
        cameras = features.cameras if at is None or len(at) else {}
        stored = [key for key in cameras.values() if not features.is_video[key]]
        columns = [features.action, features.state, "episode_index", "frame_index", *stored]
        columns += [JOINT_KEY] * features.has_joints + [MASK_KEY] * features.has_mask
        first = int(row["dataset_from_index"]) - self._file_starts[ref.file]
        table = _read_rows(ref.file, first=first, n=ref.n_steps, columns=columns)
        numbers = np.asarray(table["episode_index"])
        if not (numbers == int(row["episode_index"])).all():
            raise ValueError(f"its rows belong to episode {sorted(set(numbers.tolist()))}")
        if not (np.asarray(table["frame_index"]) == np.arange(ref.n_steps)).all():
            raise ValueError("its frames are not numbered from 0 on")
        steps = range(ref.n_steps) if at is None else at
        images = {
            camera: self._video_frames(ref, key, steps)
            if features.is_video[key]
            else np.stack([_decode(table[key][i].as_py()) for i in steps])
            for camera, key in cameras.items()
        }
        mask = np.asarray(table[MASK_KEY]) if features.has_mask else np.ones(ref.n_steps)
        return Episode(
            images=images,
            proprio=_matrix(table, features.state, np.float32),
            actions=_matrix(table, features.action, np.float32).astype(np.float64),
            expert_mask=mask.reshape(-1).astype(np.uint8),
            joint_states=_matrix(table, JOINT_KEY, np.float64) if features.has_joints else None,
            instruction=ref.instruction,
            attributes=json.loads(row.get(ATTRIBUTES_KEY) or "{}"),
        )

    def _video_frames(
        self, ref: EpisodeRef, key: str, steps: Sequence[int] | range
    ) -> NDArray[np.uint8]:
        row = self._rows[ref]
        path = self.path / str(self._info["video_path"]).format(
            video_key=key,
            chunk_index=int(row[f"videos/{key}/chunk_index"]),
            file_index=int(row[f"videos/{key}/file_index"]),
        )
        begin_s = float(row[f"videos/{key}/from_timestamp"])
        wanted = sorted(set(steps))
        frames = _decode_frames(path, [begin_s + s / self.rate_hz for s in wanted], self.rate_hz)
        return frames if len(wanted) == len(steps) else frames[np.searchsorted(wanted, steps)]


def _decode_frames(path: Path, times_s: Sequence[float], rate_hz: float) -> NDArray[np.uint8]:
    """Decode the frames shown at some rising times."""
    import av

    frames: list[NDArray[np.uint8]] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        base = stream.time_base
        if base is None:
            raise ValueError(f"{path.name} has no time base")
        last_s = -np.inf
        decoder = iter(())
        for time_s in times_s:
            # Far jumps seek to the key frame before; near ones decode on.
            if time_s - last_s > 1.0:
                container.seek(max(0, int((time_s - 0.5 / rate_hz) / base)), stream=stream)
                decoder = container.decode(stream)
            for frame in decoder:
                if _time_s(frame, base) >= time_s - 0.5 / rate_hz:
                    break
            else:
                raise ValueError(f"{path.name} ends before {time_s:.2f} s")
            if _time_s(frame, base) > time_s + 0.5 / rate_hz:
                raise ValueError(f"{path.name} has no frame at {time_s:.2f} s")
            frames.append(np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8))
            last_s = time_s
    return np.stack(frames)


def _time_s(frame: VideoFrame, base: Fraction) -> float:
    return float(frame.pts * base) if frame.pts is not None else -1.0


def _read_rows(path: Path, *, first: int, n: int, columns: list[str]) -> pyarrow.Table:
    """Read some rows of a parquet file, touching only the row groups that hold them."""
    from pyarrow import parquet

    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = [i for i, end in enumerate(ends) if end > first and end - sizes[i] < first + n]
        if not groups or ends[-1] < first + n:
            raise ValueError(
                f"the file has {int(ends[-1]) if sizes else 0} rows, expected {first + n}"
            )
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise ValueError(f"the file has no column {', '.join(missing)}")
        table = file.read_row_groups(groups, columns=columns)
        return table.slice(first - int(ends[groups[0]] - sizes[groups[0]]), n)


def _matrix(table: pyarrow.Table, key: str, dtype: type[np.floating[Any]]) -> NDArray[Any]:
    rows = table[key].to_pylist()
    return np.array(rows, dtype=dtype)


def _decode(cell: object) -> NDArray[np.uint8]:
    from PIL import Image

    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise ValueError("an image is not stored in the parquet file")
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _read_info(path: Path) -> dict[str, Any]:
    require_pyarrow()
    file = path / "meta" / "info.json"
    try:
        info: dict[str, Any] = json.loads(file.read_text())
        version = str(info["codebase_version"])
        _ = info["fps"], info["features"], info["data_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ContractError(
            f"{file} cannot be read: {error!r}, expected the description of a LeRobot data set; "
            "download it again"
        ) from error
    if not version.startswith("v3."):
        raise ContractError(
            f"{path} is a LeRobot data set of format {version}, expected v3.0; convert it with LeRobot's "
            "lerobot.datasets.v30.convert_dataset_v21_to_v30"
        )
    return info


def require_pyarrow() -> None:
    """Raise a `ContractError` that names the extra to install where pyarrow cannot be imported."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ContractError(
            f"LeRobot data sets need pyarrow: {error}; pip install 'vega-policy[data]'"
        ) from error


def _find_features(path: Path, info: Mapping[str, Any]) -> _Features:
    features: Mapping[str, Mapping[str, Any]] = info["features"]

    def first(names: Sequence[str], what: str, shape: tuple[int, ...] | None = None) -> str:
        for name in names:
            if name in features and shape in (None, tuple(features[name]["shape"])):
                return name
        listed = "; ".join(f"{k} {tuple(v['shape'])}" for k, v in features.items())
        wanted = f"{' or '.join(names)}{'' if shape is None else f' of shape {shape}'}"
        raise ContractError(
            f"{path} has no {what}, it has {listed}; expected {wanted}, as in LeRobot's conversions of "
            "LIBERO; rename the feature"
        )

    cameras = {camera: first(names, f"camera {camera}") for camera, names in CAMERA_KEYS.items()}
    return _Features(
        action=first(ACTION_KEYS, "action", (7,)),
        state=first(STATE_KEYS, "state", (8,)),
        cameras=cameras,
        is_video={key: features[key]["dtype"] == "video" for key in cameras.values()},
        has_joints=JOINT_KEY in features,
        has_mask=MASK_KEY in features,
    )


def _read_tasks(path: Path) -> dict[int, str]:
    """Read the instructions by number; the text column has another name in each LeRobot release."""
    table = _read_table(path / "meta" / "tasks.parquet")
    texts = [name for name in table.column_names if name != "task_index"]
    if len(texts) != 1 or len(table.column_names) != 2:
        raise ContractError(
            f"{path}/meta/tasks.parquet has the columns {', '.join(table.column_names)}, expected "
            "task_index and the instructions; download it again"
        )
    numbers = table["task_index"].to_pylist()
    return dict(zip(numbers, table[texts[0]].to_pylist(), strict=True))


def _read_episode_rows(path: Path) -> list[dict[str, Any]]:
    files = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise ContractError(
            f"{path}/meta/episodes has no parquet file, expected the table of episodes of format v3.0; "
            "the folder is of another version or was not finished, download it again"
        )
    rows: list[dict[str, Any]] = []
    for file in files:
        rows += _read_table(file, leave_out="stats/").to_pylist()
    return sorted(rows, key=lambda row: int(row["episode_index"]))


def _read_table(path: Path, *, leave_out: str | None = None) -> pyarrow.Table:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = [
                name
                for name in file.schema_arrow.names
                if leave_out is None or not name.startswith(leave_out)
            ]
            return file.read(columns=names)
    except (pyarrow.ArrowException, OSError) as error:
        raise ContractError(
            f"{path} cannot be read: {str(error).splitlines()[0]}; it was not finished or is "
            "damaged, download it again"
        ) from error


def _ref(
    path: Path, info: Mapping[str, Any], row: Mapping[str, Any], instructions: Mapping[int, str]
) -> EpisodeRef:
    known = set(instructions.values())
    words = str(row["tasks"][0])
    if words not in known:
        raise ValueError(f"its task {words!r} is not in meta/tasks.parquet")
    file = str(info["data_path"]).format(
        chunk_index=int(row["data/chunk_index"]), file_index=int(row["data/file_index"])
    )
    n = int(row["length"])
    if int(row["dataset_to_index"]) - int(row["dataset_from_index"]) != n:
        raise ValueError(f"its length is {n}, its rows are not as many")
    return EpisodeRef(
        file=path / file,
        name=f"episode {int(row['episode_index'])}",
        task=task_name(words),
        instruction=words,
        n_steps=n,
    )
