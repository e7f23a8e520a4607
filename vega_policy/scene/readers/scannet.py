"""ScanNet exports: posed colour and depth frames of a scene.

Two layouts, told apart by what lies there:

- *sens* (SensReader): ``<root>/<scene>/`` or ``<root>/scans/<scene>/`` with ``color/<i>.jpg``,
  ``depth/<i>.png`` (uint16 millimetres, 0: nothing), ``pose/<i>.txt`` (camera to world), and
  ``intrinsic/intrinsic_{color,depth}.txt``;
- *posed*: ``<root>/posed_images/<scene>/`` with ``<00000>.jpg``, ``.png``, ``.txt``, and
  ``intrinsic.txt``, ``depth_intrinsic.txt``.

Both need ``<scene>.txt`` of the data set for ``axisAlignment``. Colour may be ``.png`` in *sens*.
The released index files (``embodiedscan_infos_*.pkl``) are not read: unpickling runs code, and these
folders hold the same numbers.
"""

from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vega_policy.scene.readers.ground_truth import read_axis_alignment, read_objects
from vega_policy.scene.scan import Frame, Scan
from vega_policy.spec import ContractError
from vega_policy.spec.names import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Export:
    """Where the files of one scene lie."""

    scene_id: str
    colour: dict[int, Path]
    """By frame number."""
    depth: dict[int, Path]
    """Empty where the scene was exported without depth."""
    pose: dict[int, Path]
    intrinsics: Path
    depth_intrinsics: Path
    meta: Path
    """``<scene>.txt``, for the axis alignment."""
    folders: tuple[Path, ...]
    """Where ground truth may lie."""


def list_scans(root: Path | str) -> list[str]:
    """Name the scenes below ``root`` in either layout, sorted.

    Raises:
        ContractError: There is no such folder, or no scan in it.
    """
    found = {
        folder.name
        for parent in _parents(Path(root))
        for folder in _subfolders(parent)
        if _is_sens(folder) or _is_posed(folder)
    }
    if not found:
        raise ContractError(
            f"{root} has no scans, expected <scene>/color or posed_images/<scene>; "
            "export some with scripts/scan.py or put ScanNet there (docs/scene_data.md)"
        )
    return sorted(found)


def uniform_indices(n: int, *, n_frames: int) -> list[int]:
    """Return ``n_frames`` indices from 0 to ``n - 1``, evenly spaced and rounded down; all if fewer."""
    if n <= n_frames:
        return list(range(n))
    return [int(i) for i in np.linspace(0, n - 1, n_frames, dtype=np.int64)]


def read_scan(
    root: Path | str,
    scene_id: str,
    *,
    n_frames: int = 32,
    px: int | None = None,
    stride: int = 1,
) -> Scan:
    """Read evenly spaced frames of a scene, with ground truth where it lies there.

    Frames whose pose is not finite (tracking was lost) are left out before frames are picked, so that
    a scene still gives ``n_frames``; they are named in the log and in `Scan.without_pose`.

    Args:
        root: Folder of the export.
        scene_id: For example ``scene0011_00``.
        n_frames: How many; a scene with fewer gives all.
        px: Stretch colour (bicubic) and depth (nearest) to this square, intrinsics with them; None
            keeps the sizes of the files.
        stride: Look only at frames whose number is a multiple of this. 10 on an export of every frame
            gives the frames of the released code, which exports every tenth.

    Raises:
        ContractError: The scene or some of its files are missing, broken or disagree; every problem
            is listed.
    """
    export = find_export(root, scene_id)
    problems: list[str] = []
    poses = _poses(export, stride, problems)
    lost = tuple(i for i, pose in poses.items() if not np.isfinite(pose).all())
    usable = [i for i in poses if i not in set(lost)]
    if lost:
        logger.warning("%s: frames without a pose, left out: %s", scene_id, list(lost))
    if not usable and not problems:
        problems.append("no frame has a pose")
    chosen = [usable[i] for i in uniform_indices(len(usable), n_frames=n_frames)]
    absent = [i for i in chosen if i not in export.depth]
    if export.depth and absent:
        problems.append(f"frames {absent} have no depth image")
    with ThreadPoolExecutor(max_workers=4) as pool:
        read = list(pool.map(lambda i: _read_frame(export, i, poses[i], problems), chosen))
    frames = [frame for frame in read if frame is not None]
    intrinsics = _matrix3(export.intrinsics, problems)
    depth_intrinsics = _matrix3(export.depth_intrinsics, problems) if export.depth else intrinsics
    alignment, objects = np.eye(4), None
    try:
        alignment = read_axis_alignment(export.meta)
        objects = read_objects(export.folders, scene_id)
    except ContractError as error:
        problems.append(str(error))
    problems += _mixed("colour", {f.index: f.image for f in frames})
    problems += _mixed("depth", {f.index: f.depth_m for f in frames if f.depth_m is not None})
    if problems:
        raise ContractError(f"scan {scene_id} in {root}: " + "; ".join(sorted(set(problems))))
    scan = Scan(
        scene_id=scene_id,
        frames=frames,
        intrinsics=intrinsics,
        depth_intrinsics=depth_intrinsics,
        axis_alignment=alignment,
        objects=objects or (),
        without_pose=lost,
    )
    return scan if px is None else stretched(scan, px=px)


def stretched(scan: Scan, *, px: int) -> Scan:
    """Return the scan with square images, aspect not kept: colour bicubic, depth nearest."""
    frames = [
        Frame(
            index=frame.index,
            image=_resized(frame.image, px),
            depth_m=None if frame.depth_m is None else _nearest_pixels(frame.depth_m, px),
            pose=frame.pose,
        )
        for frame in scan.frames
    ]
    first = scan.frames[0]
    depth_like = first.image if first.depth_m is None else first.depth_m
    return Scan(
        scene_id=scan.scene_id,
        frames=frames,
        intrinsics=_scaled(scan.intrinsics, first.image.shape, px),
        depth_intrinsics=_scaled(scan.depth_intrinsics, depth_like.shape, px),
        axis_alignment=scan.axis_alignment,
        objects=scan.objects,
        without_pose=scan.without_pose,
    )


def find_export(root: Path | str, scene_id: str) -> Export:
    """Say where the files of a scene lie.

    Raises:
        ContractError: The scene, or a file every scene needs, is missing.
    """
    top = Path(root)
    places = [parent / scene_id for parent in _parents(top)]
    folder = next((p for p in places if _is_sens(p) or _is_posed(p)), None)
    if folder is None:
        raise ContractError(f"no scan {scene_id} in {root}: {nearest(scene_id, list_scans(top))}")
    if _is_sens(folder):
        colour = _numbered(folder / "color", (".jpg", ".jpeg", ".png"))
        depth, pose = _numbered(folder / "depth", (".png",)), _numbered(folder / "pose", (".txt",))
        intrinsics = folder / "intrinsic" / "intrinsic_color.txt"
        depth_intrinsics = folder / "intrinsic" / "intrinsic_depth.txt"
    else:
        colour = _numbered(folder, (".jpg", ".jpeg"))
        depth, pose = _numbered(folder, (".png",)), _numbered(folder, (".txt",))
        intrinsics, depth_intrinsics = folder / "intrinsic.txt", folder / "depth_intrinsic.txt"
    folders = tuple(dict.fromkeys([folder, *places, top]))
    metas = [place / f"{scene_id}.txt" for place in folders]
    return Export(
        scene_id=scene_id,
        colour=colour,
        depth=depth,
        pose=pose,
        intrinsics=intrinsics,
        depth_intrinsics=depth_intrinsics,
        meta=next((m for m in metas if m.is_file()), folder / f"{scene_id}.txt"),
        folders=folders,
    )


def read_colour(path: Path) -> NDArray[np.uint8]:
    """Read (h, w, 3) RGB."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def read_depth(path: Path) -> NDArray[np.float32]:
    """Read (h, w) metres of a 16-bit png of millimetres.

    Raises:
        ValueError: The image has another depth of colour.
    """
    from PIL import Image

    with Image.open(path) as image:
        if image.mode not in {"I;16", "I;16B", "I"}:
            raise ValueError(f"mode {image.mode}, expected 16-bit grey (millimetres)")
        return np.asarray(image).astype(np.float32) / np.float32(1000)


def _poses(export: Export, stride: int, problems: list[str]) -> dict[int, NDArray[np.float64]]:
    """Read the poses of frames on the stride that have a colour image."""
    on_stride = [i for i in sorted(export.colour) if i % stride == 0]
    if not on_stride:
        problems.append(f"no colour image has a number that is a multiple of {stride}")
    missing = [i for i in on_stride if i not in export.pose]
    imageless = [i for i in sorted(export.pose) if i % stride == 0 and i not in export.colour]
    if missing:
        problems.append(f"frames {missing} have no pose file")
    if imageless:
        problems.append(f"frames {imageless} have no colour image")
    poses: dict[int, NDArray[np.float64]] = {}
    for i in on_stride:
        if i in export.pose:
            matrix = _matrix4(export.pose[i], problems)
            if matrix is not None:
                poses[i] = matrix
    return poses


def _matrix4(path: Path, problems: list[str]) -> NDArray[np.float64] | None:
    numbers = _floats(path.read_text(errors="replace").split())
    if len(numbers) != 16:
        problems.append(f"{path.name} does not hold 4x4 numbers")
        return None
    return np.array(numbers).reshape(4, 4)


def _matrix3(path: Path, problems: list[str]) -> NDArray[np.float64]:
    """Read intrinsics, stored as 4x4 or 3x3."""
    if not path.is_file():
        problems.append(f"{path.name} is missing")
        return np.eye(3)
    numbers = _floats(path.read_text(errors="replace").split())
    side = {9: 3, 16: 4}.get(len(numbers))
    if side is None or not np.isfinite(numbers).all():
        problems.append(f"{path.name} does not hold 3x3 or 4x4 finite numbers")
        return np.eye(3)
    matrix = np.array(numbers).reshape(side, side)[:3, :3]
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        problems.append(f"{path.name} has a focal length that is not positive")
    return matrix


def _floats(words: Iterable[str]) -> list[float]:
    """Return the numbers, or nothing if a word is not one."""
    try:
        return [float(word) for word in words]
    except ValueError:
        return []


def _read_frame(
    export: Export, i: int, pose: NDArray[np.float64], problems: list[str]
) -> Frame | None:
    """Read one frame; a file that cannot be read becomes a listed problem."""
    images: list[NDArray[Any] | None] = []
    readers = ((export.colour.get(i), read_colour), (export.depth.get(i), read_depth))
    for path, read in readers:
        try:
            images.append(None if path is None else read(path))
        except (OSError, ValueError, SyntaxError) as error:  # Pillow: SyntaxError for a broken png
            name = "" if path is None else f"{path.parent.name}/{path.name}"
            problems.append(f"{name} cannot be read ({error})")
            return None
    image, depth_m = images
    return None if image is None else Frame(index=i, image=image, depth_m=depth_m, pose=pose)


def _mixed(what: str, images: dict[int, NDArray[Any]]) -> list[str]:
    """Say which frames differ in size from the first."""
    sizes: dict[str, list[int]] = {}
    for i, image in images.items():
        sizes.setdefault(f"{image.shape[1]}x{image.shape[0]}", []).append(i)
    if len(sizes) <= 1:
        return []
    listed = ", ".join(f"{size} in frames {frames}" for size, frames in sizes.items())
    return [f"{what} images have sizes {listed}, expected one"]


def _parents(root: Path) -> list[Path]:
    if not root.is_dir():
        raise ContractError(f"no folder {root}; set the folder of the scans")
    return [p for p in (root, root / "scans", root / "posed_images") if p.is_dir()]


def _subfolders(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]


def _is_sens(folder: Path) -> bool:
    return (folder / "color").is_dir()


def _is_posed(folder: Path) -> bool:
    return folder.parent.name == "posed_images" and folder.is_dir()


def _numbered(folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """Return files whose name is a number, in rising order; ``000120.jpg`` is 120."""
    if not folder.is_dir():
        return {}
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and _NUMBER.fullmatch(path.stem):
            other = found.setdefault(int(path.stem), path)
            if other != path:
                raise ContractError(
                    f"{folder} has {other.name} and {path.name} for one frame; delete one of them"
                )
    return dict(sorted(found.items()))


def _resized(image: NDArray[np.uint8], px: int) -> NDArray[np.uint8]:
    from PIL import Image

    if image.shape[:2] == (px, px):
        return image
    return np.asarray(Image.fromarray(image).resize((px, px), Image.Resampling.BICUBIC))


def _nearest_pixels(depth: NDArray[np.float32], px: int) -> NDArray[np.float32]:
    rows, columns = (
        ((np.arange(px) + 0.5) * length / px).astype(np.int64) for length in depth.shape
    )
    return depth[np.ix_(rows, columns)]


def _scaled(
    intrinsics: NDArray[np.float64], shape: tuple[int, ...], px: int
) -> NDArray[np.float64]:
    """Move intrinsics to another image size; integers are pixel centres, as in ScanNet."""
    scale_x, scale_y = px / shape[1], px / shape[0]
    out = intrinsics.copy()
    out[0, :2] *= scale_x
    out[1, :2] *= scale_y
    out[0, 2] = (intrinsics[0, 2] + 0.5) * scale_x - 0.5
    out[1, 2] = (intrinsics[1, 2] + 0.5) * scale_y - 0.5
    return out
