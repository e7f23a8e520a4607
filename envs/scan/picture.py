"""A contact sheet of a scan: plan and walk, colour with boxes, depth, and who is seen."""

# pyright: basic
# ruff: noqa: ANN401
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.scan.export import INSTANCES
from vega_policy.scene.drawing import draw_box, in_camera
from vega_policy.scene.readers.scannet import read_colour, read_scan
from vega_policy.scene.truth import TRUTH_FILE, read_truth
from vega_policy.spec.files import atomic_path

if TYPE_CHECKING:
    from vega_policy.scene.scan import Scan
    from vega_policy.scene.truth import ObjectTruth, SceneTruth

_VIEWS = 4
_LABEL_SHARE = 0.004
"""Least share of the picture an object must take for its name to be written."""


def draw_scan(root: Path | str, scene_id: str, path: Path | str) -> None:
    """Draw one scan of an export from its files.

    Raises:
        ContractError: Files are missing or broken.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    folder = Path(root) / scene_id
    truth = read_truth(folder / TRUTH_FILE)
    scan = read_scan(root, scene_id, n_frames=len(truth.frames))
    chosen = np.linspace(0, len(scan.frames) - 1, _VIEWS + 1, dtype=int)[:-1]
    palette = [
        (*rgb[:3], 1.0)
        for rgb in colormaps["hsv"](np.arange(len(truth.objects)) * 0.381966 % 1.0) * 0.9
    ]
    width, height = truth.image_px
    figure = Figure(figsize=(3.2 * (_VIEWS + 1.7), 3.2 * 3 * height / width), layout="constrained")
    grid = figure.add_gridspec(3, _VIEWS + 1, width_ratios=[1.9, *[1] * _VIEWS])
    draw_plan(figure.add_subplot(grid[:, 0]), truth, palette)
    deepest = max(float(f.depth_m.max()) for f in scan.frames if f.depth_m is not None)
    for column, k in enumerate(chosen, start=1):
        axes = [figure.add_subplot(grid[row, column]) for row in range(3)]
        frame = scan.frames[k]
        axes[0].imshow(frame.image)
        axes[0].set_title(f"view {frame.index}", fontsize=8)
        for item in truth.objects:
            if item.visible_px[k]:
                draw_object(axes[0], scan, int(k), item, palette[item.object_id])
        axes[1].imshow(frame.depth_m, vmin=0, vmax=deepest, cmap="viridis")
        mask = read_colour(folder / INSTANCES / f"{frame.index}.png")[..., 0]
        table = np.array([(0.85, 0.85, 0.85, 1.0), *palette])
        axes[2].imshow(table[mask])
        for axis in axes:
            axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
        if column == 1:
            names = ("colour, boxes", f"depth, 0 to {deepest:.1f} m", "objects")
            for axis, name in zip(axes, names, strict=True):
                axis.set_ylabel(name, fontsize=8)
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, dpi=70, format="png", pil_kwargs={"optimize": True})


def draw_plan(
    axis: Any, truth: SceneTruth, palette: list[tuple[float, ...]], *, walk: bool = True
) -> None:
    """Draw floor, things in colours by object id, and where the camera was."""
    if truth.floor is not None:
        axis.fill(*truth.floor.T, facecolor="#f4f4f4", edgecolor="black", linewidth=2)
    for item in sorted(truth.objects, key=lambda o: o.box[2]):
        square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2 * item.size[:2]
        corners = square @ item.axes[:2, :2] + item.centre[:2]
        colour = palette[item.object_id]
        axis.fill(*corners.T, facecolor=(*colour[:3], 0.25), edgecolor=colour, linewidth=1)
        if item.stands_on is None:
            axis.text(*item.centre[:2], item.label, fontsize=7, ha="center", va="center")
    axis.set_aspect("equal")
    axis.tick_params(labelsize=7)
    if not walk:
        return
    eyes, ahead = truth.poses[:, :2, 3], truth.poses[:, :2, 2]
    axis.plot(*eyes.T, color="#555555", linewidth=0.8)
    axis.quiver(*eyes.T, *ahead.T, color="#d03030", width=0.004, scale=14)
    size = "" if truth.room_size_m2 is None else f", {truth.room_size_m2:.1f} m\u00b2"
    axis.set_title(f"{truth.scene_id}: {len(truth.objects)} objects{size}", fontsize=9)


def draw_object(
    axis: Any, scan: Scan, k: int, item: ObjectTruth, colour: tuple[float, ...]
) -> None:
    """Draw an object's box, and its name where it takes enough of the picture."""
    draw_box(axis, scan, k, item.box, colour)
    height, width = scan.frames[k].image.shape[:2]
    if item.visible_px[k] >= _LABEL_SHARE * width * height:
        x, y, z = scan.intrinsics @ in_camera(scan, k, item.box[None, :3])[0]
        if z > 0 and 0 <= x / z < width and 0 <= y / z < height:
            axis.text(x / z, y / z, item.label, fontsize=5, color="white", ha="center").set_bbox(
                {"facecolor": colour, "alpha": 0.6, "pad": 0.5, "linewidth": 0}
            )
