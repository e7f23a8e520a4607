"""Rooms of two or more bare boxes: scans with ground truth in milliseconds, without a simulator."""

from __future__ import annotations

import numpy as np
import pytest

from vega_policy.scene.annotations import Multi3DReferRow, Scan2CapRow, ScanQARow, ScanReferRow
from vega_policy.scene.scan import Frame, Scan, SceneObject
from vega_policy.scene.train.rooms import room_of

PX = 128


def make_scan(seed: int, *, n_views: int = 1) -> Scan:
    """Return a scene of a low and a high box, side by side, that look alike.

    The left half of every frame shows one and the right half the other; a camera at the origin looks
    along the world's y, so that depth and height are known in closed form.
    """
    rng = np.random.default_rng(seed)
    k = np.array([[100.0, 0, 63.5], [0, 100.0, 63.5], [0, 0, 1]])
    # Camera right, down and forward are the world's x, -z and y.
    pose = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    is_left_high = bool(rng.random() < 0.5)
    far, near = 3.0, 1.0
    frames = []
    for index in range(n_views):
        depth = np.full((PX, PX), near, dtype=np.float32)
        # What is below the horizon and far is low; what is near is less so.
        depth[:, : PX // 2] = near if is_left_high else far
        depth[:, PX // 2 :] = far if is_left_high else near
        depth[: PX // 2] = 0
        image = rng.integers(100, 156, (PX, PX, 3), dtype=np.uint8)
        frames.append(Frame(index, image, depth, pose))
    objects = []
    for number, (side, is_high) in enumerate(((-1, is_left_high), (1, not is_left_high))):
        d = near if is_high else far
        x, z = sorted((0.0, side * 0.64 * d)), (-0.64 * d, 0.0)
        low, high = np.array([x[0], d - 0.1, z[0]]), np.array([x[1], d + 0.1, z[1]])
        box = np.concatenate([(low + high) / 2, high - low + 0.02])
        objects.append(SceneObject(number, "box", box))
    return Scan(f"bare{seed:04d}_00", frames, k, k, np.eye(4), tuple(objects))


def rows_of(scan: Scan) -> dict[str, list]:
    """Return two grounding descriptions, a caption and a question."""
    heights = [o.box[2] for o in scan.objects]
    high = int(np.argmax(heights))
    scene = scan.scene_id
    return {
        "scanrefer": [
            ScanReferRow(
                scene_id=scene, object_id=i, object_name="box", ann_id="0", description=text
            )
            for i, text in ((high, "the high one."), (1 - high, "the low one."))
        ],
        "multi3drefer": [
            Multi3DReferRow(
                scene_id=scene,
                object_ids=ids,
                description=text,
                eval_type=kind,
                object_name="box",
                ann_id=i,
            )
            for i, (ids, text, kind) in enumerate(
                (((0, 1), "both boxes.", "mt"), ((), "a piano.", "zt_wo_d"))
            )
        ],
        "scan2cap": [
            Scan2CapRow(
                scene_id=scene,
                object_id=high,
                box=tuple(scan.objects[high].box),
                references=("a high box.",),
            )
        ],
        "scanqa": [
            ScanQARow(
                scene_id=scene, question_id=f"{scene}-0", question="How many?", answers=("two",)
            )
        ],
    }


@pytest.fixture(scope="session")
def bare_rooms():
    """Return rooms and rows of ten scenes, by task."""
    scans = [make_scan(seed) for seed in range(10)]
    rows: dict[str, list] = {}
    for scan in scans:
        for task, some in rows_of(scan).items():
            rows.setdefault(task, []).extend(some)
    return [room_of(scan, px=PX, width_px=112, unit_px=28) for scan in scans], rows
