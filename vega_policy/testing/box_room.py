"""A scan of a room that exists only as arithmetic: coloured boxes between patterned walls, ray-cast.

Depth, poses and boxes are exact, no simulator is needed and nothing is read.

Shape legend: ``h, w`` pixels, ``n`` boxes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vega_policy.scene.scan import Frame, Scan, SceneObject

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROOM_M = np.array([4.0, 5.0, 2.6])
_EYE_M = 1.5


def box_room(
    *, seed: int = 0, n_frames: int = 8, n_boxes: int = 5, height: int = 60, width: int = 80
) -> Scan:
    """Return a scan of a room of 4 x 5 x 2.6 m, its floor at z = 0 and its centre above the origin.

    Args:
        seed: Of boxes, colours and the walk of the camera.
        n_frames: Views along half a round through the room, looking at its middle.
        n_boxes: Boxes on the floor; they may touch.
        height: Pixels of colour and depth.
        width: Pixels of colour and depth.
    """
    rng = np.random.default_rng(seed)
    size = rng.uniform([0.4, 0.4, 0.3], [0.9, 0.9, 1.1], (n_boxes, 3))
    place = rng.uniform([-1.2, -1.7], [1.2, 1.7], (n_boxes, 2))
    boxes = np.concatenate([place, size[:, 2:] / 2, size], axis=1)
    walls = np.array([0.0, 0.0, _ROOM_M[2] / 2, *_ROOM_M])
    colours = rng.uniform(60, 230, (n_boxes + 1, 3))
    focal = 0.6 * width
    intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    start = rng.uniform(0, 2 * np.pi)
    frames: list[Frame] = []
    for index, turn in enumerate(np.linspace(0, np.pi, n_frames)):
        angle = start + turn
        eye = np.array([1.5 * np.cos(angle), 2.0 * np.sin(angle), _EYE_M])
        pose = look_at(eye, np.array([0.0, 0.0, 0.7]))
        image, depth = _cast(boxes, walls, colours, pose, intrinsics, (height, width))
        frames.append(Frame(index=index, image=image, depth_m=depth, pose=pose))
    return Scan(
        scene_id=f"room{seed:04d}_00",
        frames=frames,
        intrinsics=intrinsics,
        depth_intrinsics=intrinsics,
        axis_alignment=np.eye(4),
        objects=tuple(
            SceneObject(object_id=i, label="box", box=box) for i, box in enumerate(boxes)
        ),
    )


def look_at(eye: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the pose (4, 4) of a camera at ``eye`` that looks at ``target``, upright."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = eye
    return pose


def _cast(
    boxes: NDArray[np.float64],
    walls: NDArray[np.float64],
    colours: NDArray[np.float64],
    pose: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    size: tuple[int, int],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the picture (h, w, 3) and the depth (h, w) of one view."""
    rows, columns = np.indices(size)
    x = (columns - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (rows - intrinsics[1, 2]) / intrinsics[1, 1]
    rays = np.stack([x, y, np.ones(size)], axis=-1) @ pose[:3, :3].T  # of depth 1
    eye = pose[:3, 3]
    with np.errstate(divide="ignore"):
        depth = _slabs(walls, eye, rays)[1]  # from inside, where the ray leaves
        hit = np.zeros(size, dtype=np.int64)
        for number, box in enumerate(boxes, start=1):
            enter, leave = _slabs(box, eye, rays)
            is_nearer = (enter <= leave) & (enter > 0) & (enter < depth)
            depth = np.where(is_nearer, enter, depth)
            hit = np.where(is_nearer, number, hit)
    points = eye + rays * depth[..., None]
    waves = np.sin(points @ np.array([[5.0, 1.0, 2.0], [1.0, 6.0, 3.0], [2.0, 1.0, 7.0]]))
    image = colours[hit] + 22 * waves
    return image.round().clip(0, 255).astype(np.uint8), depth.astype(np.float32)


def _slabs(
    box: NDArray[np.float64], eye: NDArray[np.float64], rays: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the depths (h, w) at which rays enter and leave an axis-aligned box."""
    near, far = ((box[:3] + sign * box[3:] / 2 - eye) / rays for sign in (-1, 1))
    return np.minimum(near, far).max(axis=-1), np.maximum(near, far).min(axis=-1)
