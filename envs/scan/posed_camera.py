"""A camera that is put anywhere in a MuJoCo scene and returns colour, depth and who is seen.

Poses are OpenCV's (x right, y down, z forward), camera to world. A pixel's depth, its geom and its place
in the intrinsics belong to one ray, through the pixel's centre; colour is the mean over the pixel.

Shape legend: ``h, w`` pixels.
"""
# pyright: basic
# ruff: noqa: ANN401

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from types import TracebackType

_SUPERSAMPLING = 2
"""Colour is drawn so many times larger and averaged; multi-sampling would also smear depth and ids."""
_HIDDEN_GROUP = 0
"""robosuite keeps collision shapes here, in shrill colours."""
_MAX_GEOMS = 20_000
GL_TO_CV = np.diag([1.0, -1.0, -1.0])
"""MuJoCo's cameras look along -z with y up."""


@dataclass(frozen=True, eq=False)
class View:
    """What the camera saw."""

    image: NDArray[np.uint8]
    """(h, w, 3) RGB, upright."""
    depth_m: NDArray[np.float32]
    """(h, w) along the optical axis; 0 where nothing is."""
    geom: NDArray[np.int32]
    """(h, w) number of the geom, -1 where nothing is."""


class PosedCamera:
    """One fixed camera of a compiled scene; it owns a GL context, so close it or use ``with``.

    Args:
        model: ``mujoco.MjModel``; its off-screen size, antialiasing and the camera's field of view
            are set here.
        data: ``mujoco.MjData`` with present kinematics.
        camera: A camera fixed to the world.
        width: Of the images, pixels.
        height: Of the images, pixels.
        fovy_deg: Vertical field of view.

    Raises:
        ContractError: There is no such camera, or it hangs on a moving body.
    """

    def __init__(
        self, model: Any, data: Any, *, camera: str, width: int, height: int, fovy_deg: float
    ) -> None:
        import mujoco

        mj: Any = mujoco
        self._mj = mj
        self._model, self._data = model, data
        self._id = mj.mj_name2id(model, mj.mjtObj.mjOBJ_CAMERA, camera)
        if self._id < 0 or model.cam_bodyid[self._id] != 0:
            raise ContractError(
                f"the scene has no camera {camera!r} fixed to the world; name one that is"
            )
        model.cam_fovy[self._id] = fovy_deg
        self._size = (width, height)
        large = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
        model.vis.global_.offwidth, model.vis.global_.offheight = large
        model.vis.quality.offsamples = 0
        self._gl: Any = mj.GLContext(*large)
        self._gl.make_current()
        self._context: Any = mj.MjrContext(model, mj.mjtFontScale.mjFONTSCALE_50)
        mj.mjr_setBuffer(mj.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mj.MjvScene(model, maxgeom=_MAX_GEOMS)
        # Both depend on where the camera is, and cost a second drawing of the scene.
        self._scene.flags[mj.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mj.mjtRndFlag.mjRND_REFLECTION] = 0
        self._options = mj.MjvOption()
        self._options.geomgroup[_HIDDEN_GROUP] = 0
        # Sites that are transparent in colour would still be drawn as ids.
        self._options.sitegroup[:] = 0
        focal = height / 2 / np.tan(np.deg2rad(fovy_deg) / 2)
        self.intrinsics = np.array(
            [[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]
        )

    def look(self, pose: NDArray[np.float64]) -> View:
        """Look from a pose (4, 4)."""
        mj, model, data = self._mj, self._model, self._data
        model.cam_pos[self._id] = pose[:3, 3]
        rotation = pose[:3, :3] @ GL_TO_CV
        mj.mju_mat2Quat(model.cam_quat[self._id], np.ascontiguousarray(rotation).ravel())
        mj.mj_camlight(model, data)
        camera = mj.MjvCamera()
        camera.type, camera.fixedcamid = mj.mjtCamera.mjCAMERA_FIXED, self._id
        self._gl.make_current()
        mj.mjv_updateScene(
            model,
            data,
            self._options,
            mj.MjvPerturb(),
            camera,
            mj.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        large = self._draw(scale=_SUPERSAMPLING, depth=None)
        raw = np.zeros(self._size[::-1], dtype=np.float32)
        geom = self._geoms(self._draw(scale=1, depth=raw))
        depth = np.where(geom < 0, np.float32(0), self._metres(raw[::-1]))
        n = _SUPERSAMPLING
        parts = [large[i::n, j::n] for i in range(n) for j in range(n)]
        image = ((np.sum(parts, axis=0, dtype=np.uint16) + n * n // 2) // (n * n)).astype(np.uint8)
        return View(image=image, depth_m=depth, geom=geom)

    def _draw(self, *, scale: int, depth: NDArray[np.float32] | None) -> NDArray[np.uint8]:
        """Return an upright picture: colours, or where ``depth`` is to be filled, ids."""
        mj = self._mj
        width, height = (n * scale for n in self._size)
        for flag in (mj.mjtRndFlag.mjRND_SEGMENT, mj.mjtRndFlag.mjRND_IDCOLOR):
            self._scene.flags[flag] = depth is not None
        rect = mj.MjrRect(0, 0, width, height)
        mj.mjr_render(rect, self._scene, self._context)
        image = np.zeros((height, width, 3), dtype=np.uint8)
        mj.mjr_readPixels(image, depth, rect, self._context)
        return image[::-1]

    def _metres(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Undo OpenGL's perspective division."""
        extent, planes = self._model.stat.extent, self._model.vis.map
        near, far = planes.znear * extent, planes.zfar * extent
        return (near / (1 - raw.astype(np.float64) * (1 - near / far))).astype(np.float32)

    def _geoms(self, picture: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Decode MuJoCo's id colours; what is no geom of the model counts as nothing."""
        mj, scene = self._mj, self._scene
        codes = picture.astype(np.int32) @ np.array([1, 256, 65536], dtype=np.int32)
        table = np.full(scene.ngeom + 1, -1, dtype=np.int32)
        for item in scene.geoms[: scene.ngeom]:
            if item.objtype == mj.mjtObj.mjOBJ_GEOM and item.segid >= 0:
                table[item.segid + 1] = item.objid
        return table[np.clip(codes, 0, scene.ngeom)]

    def close(self) -> None:
        """Free the GL context."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._context = None

    def __enter__(self) -> PosedCamera:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def look_at(eye: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the pose (4, 4) of an upright camera at ``eye`` (3,) that looks at ``target`` (3,).

    Raises:
        ValueError: The target is the eye, or straight above or below it.
    """
    forward = np.asarray(target, dtype=np.float64) - eye
    right = np.cross(forward, [0.0, 0.0, 1.0])
    if np.linalg.norm(right) < 1e-9:
        raise ValueError(f"no upright camera at {eye} looks at {target}; move one of them sideways")
    forward, right = forward / np.linalg.norm(forward), right / np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = eye
    return pose
