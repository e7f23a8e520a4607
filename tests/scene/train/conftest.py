"""Rooms of coloured boxes, ray-cast: scans with ground truth in milliseconds, without a simulator."""

from __future__ import annotations

import numpy as np
import pytest

from vega_policy.scene.scan import Frame, Scan, SceneObject

KINDS = {
    "table": (1.2, 0.8, 0.5),
    "chair": (0.5, 0.5, 0.9),
    "lamp": (0.2, 0.2, 1.5),
    "box": (0.4, 0.4, 0.3),
    "shelf": (1.0, 0.3, 1.7),
    "bed": (1.9, 1.2, 0.5),
}
HUES = {
    "red": (200, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 70, 200),
    "yellow": (220, 200, 50),
    "white": (235, 235, 235),
    "black": (30, 30, 30),
}
ROOM = np.array([5.0, 4.0, 2.5])


def toy_room(seed: int, *, n_views: int = 6, px: int = 64, n_objects: int = 8):
    """Return a scan and the colours of its objects."""
    rng = np.random.default_rng(seed)
    boxes, labels, hues = [], [], []
    for _ in range(500):
        if len(boxes) == n_objects:
            break
        label = str(rng.choice(list(KINDS)))
        size = np.array(KINDS[label]) * rng.uniform(0.85, 1.15, 3)
        if rng.random() < 0.5:
            size[:2] = size[1::-1]
        low = np.append(rng.uniform(0.1, (ROOM - size)[:2] - 0.1), 0.0)
        if all(
            (low > b[3:]).any() or (low + size < b[:3]).any() for b in (_grown(o) for o in boxes)
        ):
            boxes.append(np.concatenate([low, low + size]))
            labels.append(label)
            hues.append(str(rng.choice(list(HUES))))
    k = np.array([[0.6 * px, 0, px / 2 - 0.5], [0, 0.6 * px, px / 2 - 0.5], [0, 0, 1]])
    frames = [
        _view(i, boxes, [HUES[h] for h in hues], angle, k, px, rng)
        for i, angle in enumerate(np.linspace(0, 2 * np.pi, n_views, endpoint=False))
    ]
    objects = tuple(
        SceneObject(i, label, np.concatenate([(b[:3] + b[3:]) / 2, b[3:] - b[:3]]))
        for i, (b, label) in enumerate(zip(boxes, labels, strict=True))
    )
    return Scan(f"toy{seed:04d}_00", frames, k, k, np.eye(4), objects), hues


def _grown(box, gap=0.15):
    return np.concatenate([box[:3] - gap, box[3:] + gap])


def _view(index, boxes, hues, angle, k, px, rng):
    eye = ROOM / 2 + np.array([np.cos(angle) * 2.3, np.sin(angle) * 1.8, 0.9])
    forward = ROOM / 2 * [1, 1, 0.2] - eye
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = eye
    u, v = np.meshgrid(np.arange(px), np.arange(px))
    camera = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones((px, px))], -1)
    rays = camera @ pose[:3, :3].T
    image = np.full((px, px, 3), 150.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        outer = np.maximum(-eye / rays, (ROOM - eye) / rays)
        depth = outer.min(-1)
        image *= np.array([1.0, 0.9, 0.75])[outer.argmin(-1)][..., None]
        for box, hue in zip(boxes, hues, strict=True):
            a, b = (box[:3] - eye) / rays, (box[3:] - eye) / rays
            near, far = np.minimum(a, b), np.maximum(a, b)
            t = near.max(-1)
            hit = (t < far.min(-1)) & (t > 0) & (t < depth)
            depth = np.where(hit, t, depth)
            shade = np.array([0.7, 0.85, 1.0])[near.argmax(-1)][..., None]
            image = np.where(hit[..., None], np.array(hue) * shade, image)
    image = (image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)
    return Frame(index, image, depth.astype(np.float32), pose)


@pytest.fixture(scope="session")
def toy():
    return toy_room
