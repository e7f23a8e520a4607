"""Drawing a camera without the geoms it cannot see; not a pixel changes.

On a CPU a picture costs what its triangles cost (300,000 in a LIBERO scene), whether they end up on
the image or behind the camera, and MuJoCo draws them all. A geom whose bounding box lies outside the
camera's pyramid touches no pixel, so it is left out. Where a reflecting surface is in view, mirror
images count too.
"""
# pyright: basic
# ruff: noqa: ANN401

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HIDDEN_GROUP = 5
"""A geom group that MuJoCo does not draw by default."""
_SLACK_M = 1e-3
"""Far above the rounding of the rasteriser, far below anything that matters for the cost."""


class CulledRenderer:
    """Draws with robosuite's off-screen context.

    Args:
        sim: robosuite's ``MjSim`` with a render context.
        mj: The ``mujoco`` module.
    """

    def __init__(self, sim: Any, mj: Any) -> None:
        self._mj = mj
        self._context: Any = sim._render_context_offscreen  # noqa: SLF001
        self._model, self._data = sim.model._model, sim.data._data  # noqa: SLF001
        flat = (int(mj.mjtGeom.mjGEOM_PLANE), int(mj.mjtGeom.mjGEOM_BOX))
        self._is_plane = self._model.geom_type == flat[0]
        self._is_flat = np.isin(self._model.geom_type, flat)

    def draw(self, camera: str, px: int) -> NDArray[np.uint8]:
        """Return what a camera sees in the data's present kinematics: (px, px, 3), OpenGL's rows."""
        mj, model, context = self._mj, self._model, self._context
        camera_id = mj.mj_name2id(model, mj.mjtObj.mjOBJ_CAMERA, camera)
        groups = np.array(model.geom_group)
        try:
            model.geom_group[~self.is_visible(camera_id)] = _HIDDEN_GROUP
            self.make_current()
            context.render(px, px, camera_id)
            return context.read_pixels(px, px)
        finally:
            model.geom_group[:] = groups

    def make_current(self) -> None:
        """Direct GL calls at this scene's context: other environments have theirs."""
        self._context.gl_ctx.make_current()

    def is_visible(self, camera_id: int) -> NDArray[np.bool_]:
        """Say of each geom whether it, or its mirror image, may touch the camera's square image."""
        centre, axes = self._boxes()
        seen = self._is_plane | self._in_pyramid(camera_id, centre, axes)
        for mirror in np.flatnonzero(seen & self._reflects()):
            normal = self._data.geom_xmat[mirror].reshape(3, 3)[:, 2]
            # MuJoCo mirrors a box at its upper face, a plane at itself.
            height = 0.0 if self._is_plane[mirror] else self._model.geom_size[mirror, 2]
            on_plane = self._data.geom_xpos[mirror] + height * normal
            off = (centre - on_plane) @ normal
            image = centre - 2 * off[:, None] * normal
            image_axes = axes - 2 * (axes @ normal)[..., None] * normal
            seen |= self._in_pyramid(camera_id, image, image_axes)
        return seen

    def _boxes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return centres (g, 3) and half axes (g, 3, 3), one row per axis, of the bounding boxes."""
        rotation = self._data.geom_xmat.reshape(-1, 3, 3)
        box = self._model.geom_aabb
        centre = self._data.geom_xpos + np.einsum("gij,gj->gi", rotation, box[:, :3])
        return centre, rotation.transpose(0, 2, 1) * box[:, 3:, None]

    def _in_pyramid(
        self, camera_id: int, centre: NDArray[np.float64], axes: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Say of each box whether no side of the pyramid, nor the camera's own plane, parts it off."""
        right, up, back = self._data.cam_xmat[camera_id].reshape(3, 3).T
        half_angle = np.deg2rad(self._model.cam_fovy[camera_id]) / 2
        s, c = np.sin(half_angle), np.cos(half_angle)
        inward = np.stack(
            [
                c * right - s * back,
                -c * right - s * back,
                c * up - s * back,
                -c * up - s * back,
                -back,
            ]
        )
        distance = (centre - self._data.cam_xpos[camera_id]) @ inward.T
        reach = np.abs(np.einsum("gai,ki->gka", axes, inward)).sum(axis=-1)
        return (distance + reach >= -_SLACK_M).all(axis=1)

    def _reflects(self) -> NDArray[np.bool_]:
        model = self._model
        material = model.geom_matid
        shiny = np.zeros(model.ngeom, dtype=bool)
        has = material >= 0
        shiny[has] = model.mat_reflectance[material[has]] > 0
        return shiny & self._is_flat & (model.geom_rgba[:, 3] > 0)
