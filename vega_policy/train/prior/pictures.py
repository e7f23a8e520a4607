"""Pictures of a prior in training: tiles of frames, and losses over the updates."""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vega_policy.spec.files import atomic_path
from vega_policy.train.metrics import read_records

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


def write_tiles(rows: Sequence[NDArray[np.uint8]], path: Path, *, gap_px: int = 2) -> None:
    """Write rows of frames (columns, p, p, 3) as one PNG, white between them."""
    columns = max(len(row) for row in rows)
    side = rows[0].shape[1]
    step = side + gap_px
    canvas = np.full((len(rows) * step - gap_px, columns * step - gap_px, 3), 255, dtype=np.uint8)
    for r, row in enumerate(rows):
        for c, frame in enumerate(row):
            canvas[r * step : r * step + side, c * step : c * step + side] = frame
    with atomic_path(path) as temporary:
        Image.fromarray(canvas).save(temporary)


def interleaved(
    originals: NDArray[np.uint8], again: NDArray[np.uint8], *, columns: int
) -> list[NDArray[np.uint8]]:
    """Return rows of ``columns`` originals, each with its reconstructions in the row below."""
    rows: list[NDArray[np.uint8]] = []
    for start in range(0, len(originals), columns):
        rows += [originals[start : start + columns], again[start : start + columns]]
    return rows


def plot_stages(files: Mapping[str, Path], path: Path) -> None:
    """Draw the losses of each stage over its updates, from metrics files by stage name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, len(files), squeeze=False)[0]
    for axis, (name, file) in zip(axes, files.items(), strict=True):
        records = read_records(file)
        hidden = {"step", "lr", "spent_s", "gradient_norm", "kl"}
        for key in sorted({key for record in records for key in record} - hidden):
            points = [(r["step"], r[key]) for r in records if key in r]
            axis.plot(*zip(*points, strict=True), label=key, linewidth=1)
        axis.set_title(name)
        axis.set_xlabel("update")
        axis.set_yscale("log")
        axis.grid(visible=True, which="both", alpha=0.25)
        if records:
            axis.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
