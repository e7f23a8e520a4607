"""The HDF5 layout of the public LIBERO demonstrations: reading, writing and merging it.

One file per task, ``<data_dir>/<suite>/<task>_demo.hdf5``, with one group ``data/demo_<k>`` per
demonstration. Images are stored as the simulator gives them (rotated by 180 degrees) and are upright
in memory: the rotation happens here and nowhere else. Beyond the public layout we store
``expert_mask`` and, as JSON, how the demonstration was made; public files lack both and are read as
if the expert had chosen every action.

Shape legend: ``t`` steps, ``h, w`` image size, ``s`` size of the flattened simulator state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vega_policy.spec import AGENTVIEW, WRIST, ContractError
from vega_policy.spec.files import atomic_path

IMAGE_KEYS = {AGENTVIEW: "agentview_rgb", WRIST: "eye_in_hand_rgb"}
"""Our camera names and the names in the files."""
ATTRIBUTES_KEY = "vega_attributes"
SUFFIX = "_demo.hdf5"


@dataclass(frozen=True, eq=False)
class Demo:
    """One demonstration; the observation at ``t`` was seen before the action at ``t``."""

    agentview: NDArray[np.uint8]
    """(t, h, w, 3) RGB, upright."""
    wrist: NDArray[np.uint8]
    """(t, h, w, 3) RGB, upright."""
    ee_states: NDArray[np.float64]
    """(t, 6) position in metres and axis-angle in radians (convention of `spec.rotation`)."""
    gripper_states: NDArray[np.float64]
    """(t, 2) finger positions in metres."""
    joint_states: NDArray[np.float64]
    """(t, 7) arm joints in radians."""
    robot_states: NDArray[np.float64]
    """(t, 9) gripper (2), end-effector position (3) and quaternion (4), as LIBERO stores them."""
    actions: NDArray[np.float64]
    """(t, 7) environment commands, gripper -1 open and +1 close."""
    states: NDArray[np.float64]
    """(t, s) flattened simulator states, before each action."""
    rewards: NDArray[np.uint8]
    """(t,) 1 at the step that succeeded."""
    dones: NDArray[np.uint8]
    """(t,) 1 at the last step."""
    expert_mask: NDArray[np.uint8]
    """(t,) 1 where the expert chose the action, 0 where a disturbance or a learner did."""
    instruction: str
    """The task in words."""
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """How the demonstration was made (start, seed, versions, ...); JSON values only."""
    model_file: str = ""
    """The MuJoCo XML, where it is kept."""
    frame_mask: NDArray[np.uint8] | None = None
    """(t,) 1 where images were drawn; elsewhere they are black. None: everywhere."""

    @property
    def n_steps(self) -> int:
        """Number of actions."""
        return len(self.actions)

    @property
    def proprio(self) -> NDArray[np.float32]:
        """(t, 8) what a policy sees of the robot: ``ee_states`` and ``gripper_states``."""
        return np.concatenate([self.ee_states, self.gripper_states], axis=1).astype(np.float32)


@dataclass(frozen=True)
class TaskAttributes:
    """What a task file says about its task."""

    instruction: str
    problem_name: str
    """LIBERO's problem class, for example ``Libero_Floor_Manipulation``."""
    bddl_file_name: str
    """Path of the BDDL file, relative to LIBERO's BDDL folder."""
    domain_name: str = "robosuite"
    env_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What robomimic-style tooling needs to rebuild the environment; JSON values only."""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Ours: how the file was made; JSON values only."""


@dataclass(frozen=True)
class DemoRef:
    """Where one demonstration lies."""

    file: Path
    name: str
    """Group below ``data``, for example ``demo_3``."""
    n_steps: int
    instruction: str


def write_demo(path: Path | str, demo: Demo) -> None:
    """Write one demonstration as a small file of its own, atomically.

    The file has the layout of a task file with one demonstration, so every reader of this module
    takes it. Images are compressed frame by frame (gzip 1, which every HDF5 library reads).

    Raises:
        ValueError: Arrays differ in length, have another shape than `Demo` says, or hold a number
            that is not finite.
    """
    _check(demo)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": demo.instruction})
        data.attrs["num_demos"] = 1
        data.attrs["total"] = demo.n_steps
        data.attrs["tag"] = "libero-v1"
        data.attrs["macros_image_convention"] = "opengl"
        _write_group(data.create_group("demo_0"), demo)


def merge_demos(parts: Sequence[Path], out: Path | str, *, task: TaskAttributes) -> int:
    """Build the public layout of one task from single demonstrations, atomically.

    Compressed frames are copied as they are, one demonstration at a time; memory stays flat.

    Args:
        parts: Files of `write_demo`, in the order the demonstrations shall have.
        out: The task file, ``<data_dir>/<suite>/<task>_demo.hdf5``.
        task: What the file says about the task.

    Returns:
        The number of steps in the file.

    Raises:
        ContractError: ``parts`` is empty, or a part cannot be read or is of another task.
    """
    if not parts:
        raise ContractError(
            f"no demonstrations for {out}: 0 parts, expected at least 1; collect first"
        )
    total = 0
    with atomic_path(out) as temporary, h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        for index, part in enumerate(parts):
            with _open(part) as source:
                found = _instruction(source, part)
                if found != task.instruction:
                    raise ContractError(
                        f"{part} is of another task: {found!r}, expected {task.instruction!r}; "
                        "merge it into its own task file"
                    )
                source.copy(source["data/demo_0"], data, name=f"demo_{index}")
            total += len(_array(data, f"demo_{index}/actions"))
        _write_task_attributes(data, task, n_demos=len(parts), total=total)
    return total


def task_files(data_dir: Path | str, suite: str) -> list[Path]:
    """Return the task files of a suite, sorted by name.

    Raises:
        ContractError: The folder is missing or holds no HDF5 file.
    """
    folder = Path(data_dir) / suite
    files = sorted(f for f in folder.glob("*.hdf5") if not f.name.startswith("."))
    if files:
        return files
    other = sorted(p.name for p in Path(data_dir).glob("*") if p.is_dir() and p.name[0] != ".")
    found = f"the folder holds {', '.join(other)}" if other else "nothing there"
    raise ContractError(
        f"no demonstrations in {folder}: {found}, expected <task>{SUFFIX} files; "
        "run scripts/collect.py or set the data directory and suite"
    )


def list_demos(files: Sequence[Path]) -> list[DemoRef]:
    """List every demonstration of some files, in file order and then by number.

    Raises:
        ContractError: A file is not a LIBERO demonstration file.
    """
    refs: list[DemoRef] = []
    for path in files:
        with _open(path) as file:
            instruction = _instruction(file, path)
            data = _group(file, "data")
            try:
                names = sorted((str(n) for n in data), key=_demo_number)
            except ContractError as error:
                raise ContractError(
                    f"{path}: {error}; collect or download the file again"
                ) from error
            for name in names:
                actions = _array(data, f"{name}/actions")
                if not actions.shape:
                    raise ContractError(
                        f"{path}: {name}/actions is a single number, expected (t, 7); collect or "
                        "download the file again"
                    )
                n_steps = len(actions)
                refs.append(DemoRef(file=path, name=name, n_steps=n_steps, instruction=instruction))
    return refs


def read_demo(ref: DemoRef) -> Demo:
    """Read one demonstration whole, images upright.

    Raises:
        ContractError: An array of the layout is missing.
    """
    with _open(ref.file) as file:
        group = _group(file, f"data/{ref.name}")
        low = _low_dimensional(group)
        return Demo(
            agentview=read_images(group, AGENTVIEW),
            wrist=read_images(group, WRIST),
            ee_states=low["ee_states"],
            gripper_states=low["gripper_states"],
            joint_states=low["joint_states"],
            robot_states=low["robot_states"],
            actions=low["actions"],
            states=low["states"],
            rewards=low["rewards"],
            dones=low["dones"],
            expert_mask=low["expert_mask"],
            instruction=ref.instruction,
            attributes=json.loads(_text(group.attrs.get(ATTRIBUTES_KEY, "{}"))),
            model_file=_text(group.attrs.get("model_file", "")),
            frame_mask=read_frame_mask(group),
        )


@contextmanager
def open_demo(ref: DemoRef) -> Iterator[h5py.Group]:
    """Open the group of one demonstration, for readers that want only a part of it."""
    with _open(ref.file) as file:
        yield _group(file, f"data/{ref.name}")


def read_images(
    group: h5py.Group, camera: str, *, at: Sequence[int] | None = None
) -> NDArray[np.uint8]:
    """Read the images of one camera, upright: (t, h, w, 3), or only those of some steps.

    Args:
        group: Of `open_demo`.
        camera: A name of `spec.CAMERAS`.
        at: Steps to read; all where None.

    Raises:
        ContractError: The file has no images of this camera.
    """
    array = _array(group, f"obs/{IMAGE_KEYS[camera]}")
    stored = array[()] if at is None else np.stack([array[step] for step in at])
    return np.ascontiguousarray(stored[:, ::-1, ::-1])


def read_frame_mask(group: h5py.Group) -> NDArray[np.uint8] | None:
    """Return at which steps (t,) images were drawn; None where at all of them."""
    if "frame_mask" not in group:
        return None
    return np.asarray(_array(group, "frame_mask")[()], dtype=np.uint8)


def write_images(
    obs: h5py.Group,
    camera: str,
    images: NDArray[np.uint8],
    *,
    frame_mask: NDArray[np.uint8] | None = None,
) -> None:
    """Store (t, h, w, 3) upright images of one camera, compressed frame by frame.

    Frames outside ``frame_mask`` take no space and are read as black.
    """
    stored = obs.create_dataset(
        IMAGE_KEYS[camera],
        shape=images.shape,
        dtype=np.uint8,
        chunks=(1, *images.shape[1:]),
        compression="gzip",
        compression_opts=1,
    )
    if frame_mask is None:
        stored[...] = images[:, ::-1, ::-1]
        return
    for step in np.flatnonzero(frame_mask):
        stored[step] = images[step, ::-1, ::-1]


def read_low_dimensional(group: h5py.Group) -> dict[str, NDArray[Any]]:
    """Read everything but the images and simulator states that training needs.

    Returns:
        ``actions`` (t, 7) float64, ``proprio`` (t, 8) float32, ``expert_mask`` (t,) uint8.
    """
    actions = np.asarray(_array(group, "actions")[()], dtype=np.float64)
    proprio = [_array(group, f"obs/{key}")[()] for key in ("ee_states", "gripper_states")]
    mask = (
        np.asarray(_array(group, "expert_mask")[()], dtype=np.uint8)
        if "expert_mask" in group
        else np.ones(len(actions), dtype=np.uint8)
    )
    return {
        "actions": actions,
        "proprio": np.concatenate(proprio, axis=1).astype(np.float32),
        "expert_mask": mask,
    }


def _low_dimensional(group: h5py.Group) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        key: np.asarray(_array(group, f"obs/{key}")[()], dtype=np.float64)
        for key in ("ee_states", "gripper_states", "joint_states")
    }
    for key in ("actions", "states", "robot_states"):
        arrays[key] = np.asarray(_array(group, key)[()], dtype=np.float64)
    for key in ("rewards", "dones"):
        arrays[key] = np.asarray(_array(group, key)[()], dtype=np.uint8)
    arrays["expert_mask"] = read_low_dimensional(group)["expert_mask"]
    return arrays


def _write_group(group: h5py.Group, demo: Demo) -> None:
    group.attrs["num_samples"] = demo.n_steps
    group.attrs["init_state"] = demo.states[0]
    group.attrs["model_file"] = demo.model_file
    group.attrs[ATTRIBUTES_KEY] = json.dumps(dict(demo.attributes), sort_keys=True)
    obs = group.create_group("obs")
    for camera, images in ((AGENTVIEW, demo.agentview), (WRIST, demo.wrist)):
        write_images(obs, camera, images, frame_mask=demo.frame_mask)
    if demo.frame_mask is not None and not demo.frame_mask.all():
        group.create_dataset("frame_mask", data=demo.frame_mask.astype(np.uint8))
    obs.create_dataset("ee_states", data=demo.ee_states.astype(np.float64))
    obs.create_dataset("ee_pos", data=demo.ee_states[:, :3].astype(np.float64))
    obs.create_dataset("ee_ori", data=demo.ee_states[:, 3:].astype(np.float64))
    obs.create_dataset("gripper_states", data=demo.gripper_states.astype(np.float64))
    obs.create_dataset("joint_states", data=demo.joint_states.astype(np.float64))
    group.create_dataset("actions", data=demo.actions.astype(np.float64))
    group.create_dataset("states", data=demo.states.astype(np.float64))
    group.create_dataset("robot_states", data=demo.robot_states.astype(np.float64))
    group.create_dataset("rewards", data=demo.rewards.astype(np.uint8))
    group.create_dataset("dones", data=demo.dones.astype(np.uint8))
    group.create_dataset("expert_mask", data=demo.expert_mask.astype(np.uint8))


def _write_task_attributes(
    data: h5py.Group, task: TaskAttributes, *, n_demos: int, total: int
) -> None:
    problem = {
        "problem_name": task.problem_name,
        "domain_name": task.domain_name,
        "language_instruction": task.instruction,
    }
    env_args = {"type": 1, "env_name": task.problem_name, "bddl_file": task.bddl_file_name}
    data.attrs["problem_info"] = json.dumps(problem)
    data.attrs["env_args"] = json.dumps({**env_args, **task.env_args}, sort_keys=True)
    data.attrs["env_name"] = task.problem_name
    data.attrs["bddl_file_name"] = task.bddl_file_name
    data.attrs["num_demos"] = n_demos
    data.attrs["total"] = total
    data.attrs["tag"] = "libero-v1"
    data.attrs["macros_image_convention"] = "opengl"
    data.attrs[ATTRIBUTES_KEY] = json.dumps(dict(task.extra), sort_keys=True)


def _check(demo: Demo) -> None:
    t = demo.n_steps
    shapes: dict[str, tuple[int | None, ...]] = {
        "agentview": (t, None, None, 3),
        "wrist": (t, None, None, 3),
        "ee_states": (t, 6),
        "gripper_states": (t, 2),
        "joint_states": (t, 7),
        "robot_states": (t, 9),
        "actions": (t, 7),
        "states": (t, None),
        "rewards": (t,),
        "dones": (t,),
        "expert_mask": (t,),
        **({} if demo.frame_mask is None else {"frame_mask": (t,)}),
    }
    wrong: list[str] = []
    for name, expected in shapes.items():
        array: NDArray[Any] = getattr(demo, name)
        fits = len(array.shape) == len(expected) and all(
            e is None or e == a for e, a in zip(expected, array.shape, strict=True)
        )
        if not fits:
            wrong.append(f"{name} has shape {array.shape}, expected {expected}")
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            wrong.append(f"{name} has a number that is not finite")
    wrong += [
        f"{name} is {getattr(demo, name).dtype}, expected uint8"
        for name in ("agentview", "wrist")
        if getattr(demo, name).dtype != np.uint8
    ]
    if t == 0:
        wrong.append("the demonstration has 0 steps")
    if wrong:
        raise ValueError(f"demonstration cannot be written: {'; '.join(wrong)}")


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ContractError(
            f"{path} cannot be read: {error}, expected an HDF5 file; collect or download it again"
        ) from error
    with file:
        yield file


def _group(parent: h5py.Group, name: str) -> h5py.Group:
    found = parent.get(name)
    if not isinstance(found, h5py.Group):
        raise ContractError(_missing(parent, name))
    return found


def _array(parent: h5py.Group, name: str) -> h5py.Dataset:
    found = parent.get(name)
    if not isinstance(found, h5py.Dataset):
        raise ContractError(_missing(parent, name))
    return found


def _missing(parent: h5py.Group, name: str) -> str:
    return (
        f"{parent.file.filename}: {parent.name} has no {name!r}, it has {', '.join(parent) or 'nothing'}; "
        "expected a LIBERO demonstration file with image observations"
    )


def _instruction(file: h5py.File, path: Path) -> str:
    raw = _group(file, "data").attrs.get("problem_info")
    if raw is None:
        raise ContractError(
            f"{path} has no data.attrs['problem_info'], expected JSON with language_instruction; "
            "use files in the LIBERO demonstration layout"
        )
    try:
        words = json.loads(_text(raw))["language_instruction"]
        # Public files store the sentence as a list of one string or with quotation marks around it.
        return "".join(words).strip('"')
    except (ValueError, KeyError, TypeError) as error:
        raise ContractError(
            f"{path} has data.attrs['problem_info'] {_text(raw)[:80]!r}, expected JSON with "
            f"language_instruction ({error!r}); collect or download the file again"
        ) from error


def _demo_number(name: str) -> int:
    number = name.rpartition("_")[2]
    if not number.isdigit():
        raise ContractError(f"data holds a group {name!r}, expected demo_0, demo_1, ...")
    return int(number)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
