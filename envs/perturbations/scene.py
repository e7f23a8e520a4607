"""Another view, another light, other surfaces: edits of the compiled model that physics never reads.

Which camera, light and material arrays these are is also written in `envs.simulation`, which
restores them at each reset.
"""
# pyright: basic
# ruff: noqa: ANN401

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.perturbations.base import Perturbation

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class CameraShift:
    """Largest changes of the third-person camera about the point it looks at."""

    azimuth_deg: float
    elevation_deg: float
    distance: float
    """As a share of the distance."""
    aim_deg: float
    """Turn of the camera about each of its own axes."""


@dataclass(frozen=True)
class LightShift:
    """Largest changes of the scene's lamps and of the lamp at the camera."""

    gain: float
    """Brightness is multiplied by this or by one over it."""
    colour: float
    """Share that a colour channel loses."""
    swing_deg: float
    """How far each lamp swings about the point of the floor it shines at."""


CAMERA_SHIFTS = (
    CameraShift(azimuth_deg=5.0, elevation_deg=3.0, distance=0.04, aim_deg=0.5),
    CameraShift(azimuth_deg=10.0, elevation_deg=6.0, distance=0.08, aim_deg=1.0),
    CameraShift(azimuth_deg=20.0, elevation_deg=10.0, distance=0.12, aim_deg=2.0),
)
LIGHT_SHIFTS = (
    LightShift(gain=1.2, colour=0.1, swing_deg=7.0),
    LightShift(gain=1.5, colour=0.2, swing_deg=15.0),
    LightShift(gain=2.0, colour=0.35, swing_deg=30.0),
)
TINTS = (0.2, 0.4, 0.6)
"""Largest share that a colour channel of a surface loses. Level 3 also exchanges textures."""


def _drawn(largest: float, rng: np.random.Generator, size: int | None = None) -> Any:
    """Draw between half of the largest and the largest, with a random sign.

    Weak draws are left out, so that a level means what it says in every episode.
    """
    return largest * rng.uniform(0.5, 1.0, size) * rng.choice([-1.0, 1.0], size)


class Camera(Perturbation):
    """Another pose of the third-person camera; the wrist camera stays."""

    def edit(self, model: Any) -> None:
        """Move and turn ``agentview``."""
        import mujoco

        mj: Any = mujoco
        rng = np.random.default_rng(self.digest)
        limits = CAMERA_SHIFTS[self.level - 1]
        camera = mj.mj_name2id(model, mj.mjtObj.mjOBJ_CAMERA, "agentview")
        rotation = _matrix(model.cam_quat[camera])
        position = np.array(model.cam_pos[camera])
        forward = -rotation[:, 2]
        # All of LIBERO's scenes are laid out around x = 0, and the camera faces them along x.
        distance = position[0] / -forward[0]
        target = position + distance * forward
        azimuth = np.deg2rad(_drawn(limits.azimuth_deg, rng))
        elevation = np.deg2rad(_drawn(limits.elevation_deg, rng))
        swing = _turn([0, 0, 1], azimuth) @ _turn(rotation[:, 0], elevation)
        aim = np.deg2rad(_drawn(limits.aim_deg, rng, 3))
        scale = 1 + _drawn(limits.distance, rng)
        model.cam_pos[camera] = target + scale * (swing @ (position - target))
        turned = swing @ rotation
        for axis, angle in enumerate(aim):
            turned = turned @ _turn(np.eye(3)[axis], angle)
        quaternion = np.zeros(4)
        mj.mju_mat2Quat(quaternion, turned.ravel())
        model.cam_quat[camera] = quaternion


class Light(Perturbation):
    """Brighter or darker, coloured, from another side."""

    def edit(self, model: Any) -> None:
        """Change every lamp and the lamp at the camera."""
        rng = np.random.default_rng(self.digest)
        limits = LIGHT_SHIFTS[self.level - 1]
        gain = limits.gain ** float(_drawn(1.0, rng))
        tint = _tint(limits.colour, rng)
        for light in range(model.nlight):
            model.light_diffuse[light] *= gain * tint
            model.light_specular[light] *= gain * tint
            position, direction = model.light_pos[light], model.light_dir[light]
            # Lamps are spots: shifted without being turned, one would light less of the scene.
            reach = position[2] / max(-direction[2], 0.1)
            heading = rng.uniform(0, 2 * np.pi)
            axis = [np.cos(heading), np.sin(heading), 0.0]
            turned = _turn(axis, np.deg2rad(_drawn(limits.swing_deg, rng))) @ direction
            position += reach * (direction - turned)
            direction[:] = turned
        head = model.vis.headlight
        head.ambient *= gain * tint
        head.diffuse *= gain * tint


class Texture(Perturbation):
    """Other colours and, at level 3, other textures of table, floor, walls and scenery.

    Objects, fixtures and the robot keep theirs.
    """

    def edit(self, model: Any) -> None:
        """Tint the materials of the surfaces; exchange their textures."""
        rng = np.random.default_rng(self.digest)
        materials = surface_materials(model)
        # Light is cut off at white before it meets the texture: no tint would be seen beyond that.
        excess = max(1.0, _illumination(model))
        used = {int(model.mat_texid[m]) for m in materials} - {-1}
        for material in materials:
            model.mat_rgba[material, :3] *= _tint(TINTS[self.level - 1], rng) / excess
            texture = int(model.mat_texid[material])
            others = sorted(
                t for t in used - {texture} if model.tex_type[t] == model.tex_type[texture]
            )
            if self.level == 3 and texture >= 0 and others:
                model.mat_texid[material] = others[int(rng.integers(len(others)))]


_SURFACE = re.compile(r"^(world|floor|.*table.*)$")


def surface_materials(model: Any) -> list[int]:
    """List the materials that only table, floor, walls and scenery wear."""
    import mujoco

    mj: Any = mujoco
    surfaces, others = set[int](), set[int]()
    for geom in range(model.ngeom):
        body = model.geom_bodyid[geom]
        name = mj.mj_id2name(model, mj.mjtObj.mjOBJ_BODY, int(body)) or ""
        (surfaces if _SURFACE.match(name) else others).add(int(model.geom_matid[geom]))
    return sorted(surfaces - others - {-1})


def _illumination(model: Any) -> float:
    """Estimate how brightly a level surface in the middle of the scene is lit; 1 is white."""
    middle = np.array([0.0, 0.0, 0.5])
    total = float(model.vis.headlight.ambient.mean() + model.vis.headlight.diffuse.mean())
    for light in range(model.nlight):
        ray, share = np.array(model.light_dir[light]), 1.0
        if not model.light_directional[light]:
            ray = middle - model.light_pos[light]
            ray /= np.linalg.norm(ray)
            aligned = float(ray @ model.light_dir[light])
            is_lit = aligned > np.cos(np.deg2rad(model.light_cutoff[light]))
            share = aligned ** float(model.light_exponent[light]) if is_lit else 0.0
        total += share * max(0.0, -float(ray[2])) * float(model.light_diffuse[light].mean())
    return total


def _tint(largest: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return (3,) factors: one channel keeps its value, the others lose up to ``largest``."""
    loss = largest * rng.uniform(0.5, 1.0, 3)
    loss[rng.integers(3)] = 0.0
    return 1.0 - loss


def _matrix(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    import mujoco

    mj: Any = mujoco
    matrix = np.zeros(9)
    mj.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


def _turn(axis: Any, angle: float) -> NDArray[np.float64]:
    import mujoco

    mj: Any = mujoco
    quaternion = np.zeros(4)
    mj.mju_axisAngle2Quat(quaternion, np.asarray(axis, dtype=np.float64), angle)
    return _matrix(quaternion)
