"""Scans in memory, as the models take them.

Shape legend: ``v`` views, ``o`` objects.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vega_policy.scene.heads.inputs import POINTS_PX, SceneInputs, scene_inputs, video_inputs
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vega_policy.scene.scan import Scan


@dataclass(frozen=True, eq=False)
class Room:
    """One scan, or some views of it."""

    scene_id: str
    seen: SceneInputs
    """Frames and points for `ScanNetModel`."""
    video: SceneInputs
    """The same frames for `VsiModel`."""
    boxes: Tensor
    """(o, 6) proposals: here the true boxes."""
    object_ids: tuple[int, ...]
    """Of the boxes."""
    labels: tuple[str, ...]
    """Their classes."""
    views: tuple[int, ...] | None = None
    """Which of the scan's frames are seen; None: all."""

    def seen_in(self, views: Sequence[int]) -> Room:
        """Return the room as some of its frames show it."""
        if self.views is not None:
            raise ValueError("these are some views already; ask the whole room")
        chosen = list(views)
        seen, video = _some(self.seen, chosen), _some(self.video, chosen)
        return dataclasses.replace(self, seen=seen, video=video, views=tuple(chosen))

    def indices(self, object_ids: Sequence[int]) -> list[int]:
        """Return where the boxes of some objects are.

        Raises:
            ContractError: There is no such object.
        """
        missing = sorted(set(object_ids) - set(self.object_ids))
        if missing:
            raise ContractError(
                f"annotations name objects {missing} of scene {self.scene_id}, which has "
                f"{list(self.object_ids)}; use annotations of these scans"
            )
        return [self.object_ids.index(i) for i in object_ids]


def _some(inputs: SceneInputs, views: list[int]) -> SceneInputs:
    return SceneInputs(
        pixels=inputs.pixels[views],
        points=None if inputs.points is None else inputs.points[views],
        measured=None if inputs.measured is None else inputs.measured[views],
    )


def stretches(n: int, k: int) -> list[tuple[int, int]]:
    """Cut ``n`` frames into ``k`` stretches of a walk, or into ``n`` where there are fewer.

    Returns:
        First frame of each, and the first behind it.
    """
    k = min(k, n)
    return [(i * n // k, (i + 1) * n // k) for i in range(k)]


def drawn_views(n: int, k: int, generator: torch.Generator) -> list[int]:
    """Draw one of ``n`` frames from each of ``k`` `stretches`."""
    drawn = torch.rand(k, generator=generator).tolist()
    return [a + int(u * (b - a)) for (a, b), u in zip(stretches(n, k), drawn, strict=False)]


def room_of(scan: Scan, *, px: int, width_px: int, unit_px: int) -> Room:
    """Prepare a scan.

    Args:
        scan: With depth and objects.
        px: Side of the ScanNet model's image.
        width_px: See `video_inputs`.
        unit_px: See `video_inputs`.

    Raises:
        ContractError: The scan has no objects or no depth.
    """
    seen = scene_inputs(scan, px=px, points_px=POINTS_PX if px % POINTS_PX == 0 else None)
    if not scan.objects or seen.points is None or seen.measured is None:
        raise ContractError(
            f"scene {scan.scene_id} has no {'depth' if scan.objects else 'objects'}; render scans "
            "with scripts/scan.py, which writes both"
        )
    video = video_inputs([f.image for f in scan.frames], width_px=width_px, unit_px=unit_px)
    return Room(
        scene_id=scan.scene_id,
        seen=seen,
        video=video,
        boxes=torch.from_numpy(np.stack([o.box for o in scan.objects])).float(),
        object_ids=tuple(o.object_id for o in scan.objects),
        labels=tuple(o.label for o in scan.objects),
    )


def digest_of(rooms: Sequence[Room]) -> bytes:
    """Return a digest of the scenes' names, frames, places, classes and boxes."""
    digest = hashlib.sha256()
    for room in rooms:
        digest.update(f"{room.scene_id} {len(room.seen.pixels)} {room.labels}".encode())
        for tensor in (room.seen.pixels, room.seen.points, room.seen.measured, room.boxes):
            if tensor is not None:
                digest.update(tensor.numpy().tobytes())
    return digest.digest()


@dataclass(frozen=True, eq=False)
class Move:
    """A turn about the vertical by right angles, then a shift.

    Where a scan's origin lies and which wall is x mean nothing, so training sees many of them; left
    and right, far and near stay what they are.
    """

    turns: int
    """Right angles, counter-clockwise."""
    shift_m: Tensor
    """(3,)."""

    def points(self, points: Tensor) -> Tensor:
        """Move points (..., 3)."""
        cosine, sine = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[self.turns % 4]
        turn = torch.tensor([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        return points @ turn + self.shift_m

    def room(self, room: Room) -> Room:
        """Move points and boxes."""
        seen = room.seen
        if seen.points is not None:
            seen = dataclasses.replace(seen, points=self.points(seen.points))
        sizes = room.boxes[:, [4, 3, 5] if self.turns % 2 else [3, 4, 5]]
        boxes = torch.cat([self.points(room.boxes[:, :3]), sizes], dim=1)
        return dataclasses.replace(room, seen=seen, boxes=boxes)


def grey(inputs: SceneInputs) -> SceneInputs:
    """Return frames that show nothing."""
    return dataclasses.replace(inputs, pixels=torch.full_like(inputs.pixels, 128))
