"""Scans written as ScanNet exports, so that one reader serves rendered and real scenes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from vega_policy.scene.readers.ground_truth import OBJECTS_FILE
from vega_policy.spec import ContractError
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vega_policy.scene.scan import Scan

_FARTHEST_M = 65.535
"""The largest distance 16 bits of millimetres can hold."""


def write_scan(
    root: Path | str,
    scan: Scan,
    *,
    layout: Literal["sens", "posed"] = "sens",
    colour: Literal["jpg", "png"] = "jpg",
    quality: int = 95,
) -> Path:
    """Write a scan and return the folder of its frames.

    ``<scene>.txt`` (axis alignment) is written last: a scene that has it is whole.

    Args:
        root: Folder of the export.
        scan: What to write; depth is rounded to millimetres, the unit of the format.
        layout: See `readers.scannet`; *posed* takes only jpg, its png are depth.
        colour: jpg as in ScanNet, or png, which is larger and exact.
        quality: Of jpg.

    Raises:
        ContractError: Depth is not finite or beyond 65.535 m, the colour format does not fit, or the
            folder holds frames that the scan has not.
    """
    if layout == "posed" and colour == "png":
        raise ContractError("layout posed keeps depth in png; write its colour as jpg")
    _check_depth(scan)
    parent = Path(root) / "posed_images" if layout == "posed" else Path(root)
    folder = parent / scan.scene_id
    _check_folder(folder, scan)
    k_colour, k_depth = (_padded(k) for k in (scan.intrinsics, scan.depth_intrinsics))
    for frame in scan.frames:
        if layout == "sens":
            names = [f"color/{frame.index}.{colour}", f"depth/{frame.index}.png"]
            names.append(f"pose/{frame.index}.txt")
        else:
            names = [f"{frame.index:05d}.{kind}" for kind in ("jpg", "png", "txt")]
        write_atomic(folder / names[0], _encoded(frame.image, colour, quality))
        if frame.depth_m is not None:
            millimetres = np.rint(frame.depth_m.astype(np.float64) * 1000).astype(np.uint16)
            write_atomic(folder / names[1], _encoded(millimetres, "png", quality))
        write_atomic(folder / names[2], _text(frame.pose))
    if layout == "sens":
        for name, k in (("color", k_colour), ("depth", k_depth)):
            write_atomic(folder / "intrinsic" / f"intrinsic_{name}.txt", _text(k))
            write_atomic(folder / "intrinsic" / f"extrinsic_{name}.txt", _text(np.eye(4)))
    else:
        write_atomic(folder / "intrinsic.txt", _text(k_colour))
        write_atomic(folder / "depth_intrinsic.txt", _text(k_depth))
    if scan.objects:
        rows = [
            {
                "object_id": item.object_id,
                "label": item.label,
                "box": [float(x) for x in item.box],
                "attributes": dict(item.attributes),
            }
            for item in scan.objects
        ]
        write_atomic(folder / OBJECTS_FILE, json.dumps(rows, indent=1) + "\n")
    alignment = " ".join(repr(float(x)) for x in scan.axis_alignment.ravel())
    write_atomic(folder / f"{scan.scene_id}.txt", f"axisAlignment = {alignment}\n")
    return folder


def _check_depth(scan: Scan) -> None:
    bad = [
        frame.index
        for frame in scan.frames
        if frame.depth_m is not None
        and not ((frame.depth_m >= 0) & (frame.depth_m <= _FARTHEST_M)).all()
    ]
    if bad:
        raise ContractError(
            f"scan {scan.scene_id}: depth of frames {bad} leaves 0 to {_FARTHEST_M} m, all that the "
            "format can hold; set such pixels to 0 (nothing measured)"
        )


def _check_folder(folder: Path, scan: Scan) -> None:
    """Refuse to mix two scans; writing the same frames again is a resumed export."""
    images = folder / "color" if (folder / "color").is_dir() else folder
    if images.is_dir():
        there = {int(p.stem) for p in images.iterdir() if p.stem.isdecimal()}
        strange = sorted(there - {frame.index for frame in scan.frames})
        if strange:
            raise ContractError(
                f"{folder} already holds frames {strange}, which this scan has not; delete the folder "
                "or write elsewhere"
            )


def _encoded(image: NDArray[np.uint8] | NDArray[np.uint16], kind: str, quality: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    if kind == "jpg":
        Image.fromarray(image).save(buffer, format="jpeg", quality=quality, subsampling=0)
    else:
        Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def _padded(intrinsics: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.eye(4)
    out[:3, :3] = intrinsics
    return out


def _text(matrix: NDArray[np.float64]) -> str:
    """Write a matrix so that reading gives back the same bits."""
    return "\n".join(" ".join(repr(float(x)) for x in row) for row in matrix) + "\n"
