"""Drawing a camera without the geoms it cannot see; not a pixel changes.

On a CPU a picture costs what its triangles cost (300,000 in a LIBERO scene), whether they end up on
the image or behind the camera, and MuJoCo draws them all. A geom whose bounding box lies outside the
camera's pyramid touches no pixel, so it is left out.

A reflecting surface (the stove's plate) makes MuJoCo draw everything a second time, for a mirror image
that fills a small part of the picture. So the rectangle around the surface is drawn by itself, with the
few geoms that are seen in it or mirrored in it, and set into a picture without reflections.
"""
# pyright: basic
# ruff: noqa: ANN401

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HIDDEN_GROUP = 5
"""A geom group that MuJoCo does not draw by default."""
_SLACK_M = 1e-3
"""Far above the rounding of the rasteriser, far below anything that matters for the cost."""
_MARGIN_PX = 2
"""Around the rectangle of a mirror: smoothed edges reach into the next pixel."""
_SIMPLE_FACES = 200
"""About what a sphere or a cylinder is drawn with."""
_WHOLE = (-1.0, 1.0, -1.0, 1.0)
"""Left, right, lower and upper edge of an image, in half widths from its centre."""


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
        is_mesh = self._model.geom_type == int(mj.mjtGeom.mjGEOM_MESH)
        self._faces = np.full(self._model.ngeom, _SIMPLE_FACES)
        self._faces[is_mesh] = self._model.mesh_facenum[self._model.geom_dataid[is_mesh]]

    def draw(self, camera: str, px: int) -> NDArray[np.uint8]:
        """Return what a camera sees in the data's present kinematics: (px, px, 3), OpenGL's rows."""
        mj = self._mj
        camera_id = mj.mj_name2id(self._model, mj.mjtObj.mjOBJ_CAMERA, camera)
        self.make_current()
        mirrors = self._mirrors(camera_id)
        plain = self.is_visible(camera_id, mirrors=mirrors[:0])
        if not len(mirrors):
            return self._render(camera_id, px, plain, reflects=False)
        whole = self.is_visible(camera_id, mirrors=mirrors)
        if (found := self._rectangle(camera_id, mirrors, px)) is not None:
            (left, right, lower, upper), window = found
            inside = self.is_visible(camera_id, window, mirrors=mirrors)
            # A pass with reflections draws its geoms twice.
            if self._cost(plain) + 2 * self._cost(inside) < 2 * self._cost(whole):
                picture = self._render(camera_id, px, plain, reflects=False)
                part = self._render(camera_id, px, inside, reflects=True)
                picture[lower:upper, left:right] = part[lower:upper, left:right]
                return picture
        return self._render(camera_id, px, whole, reflects=True)

    def _render(
        self, camera_id: int, px: int, drawn: NDArray[np.bool_], *, reflects: bool
    ) -> NDArray[np.uint8]:
        """Draw some of the geoms, in MuJoCo's own order."""
        context, model = self._context, self._model
        flag = self._mj.mjtRndFlag.mjRND_REFLECTION
        groups, usual = np.array(model.geom_group), context.scn.flags[flag]
        try:
            model.geom_group[~drawn] = _HIDDEN_GROUP
            context.scn.flags[flag] = usual and reflects
            context.render(px, px, camera_id)
            return context.read_pixels(px, px)
        finally:
            model.geom_group[:] = groups
            context.scn.flags[flag] = usual

    def _cost(self, drawn: NDArray[np.bool_]) -> int:
        return int(self._faces[drawn].sum())

    def make_current(self) -> None:
        """Direct GL calls at this scene's context: other environments have theirs."""
        self._context.gl_ctx.make_current()

    def is_visible(
        self,
        camera_id: int,
        window: tuple[float, float, float, float] = _WHOLE,
        *,
        mirrors: NDArray[np.intp] | None = None,
    ) -> NDArray[np.bool_]:
        """Say of each geom whether it, or its mirror image, may touch the camera's square image.

        Args:
            camera_id: MuJoCo's number of the camera.
            window: Left, right, lower and upper edge of the part that counts, in half widths.
            mirrors: Reflecting geoms; None: all that may be seen.
        """
        centre, axes = self._boxes()
        seen = self._is_plane | self._in_pyramid(camera_id, centre, axes, window)
        for mirror in self._mirrors(camera_id) if mirrors is None else mirrors:
            normal, on_plane = self._face(mirror)
            off = (centre - on_plane) @ normal
            image = centre - 2 * off[:, None] * normal
            across = axes @ normal
            image_axes = axes - 2 * across[..., None] * normal
            # What lies behind a mirror is not seen in it.
            in_front = off + np.abs(across).sum(axis=1) >= -_SLACK_M
            seen |= in_front & self._in_pyramid(camera_id, image, image_axes, window)
        return seen

    def _mirrors(self, camera_id: int) -> NDArray[np.intp]:
        """Return the reflecting geoms that may be seen."""
        shiny = self._reflects()
        if not shiny.any():
            return np.flatnonzero(shiny)
        in_view = self._in_pyramid(camera_id, *self._boxes(), _WHOLE)
        return np.flatnonzero(shiny & (self._is_plane | in_view))

    def _face(self, mirror: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the reflecting face's normal and a point on it: a box mirrors at its upper face."""
        normal = self._data.geom_xmat[mirror].reshape(3, 3)[:, 2]
        height = 0.0 if self._is_plane[mirror] else self._model.geom_size[mirror, 2]
        return normal, self._data.geom_xpos[mirror] + height * normal

    def _rectangle(
        self, camera_id: int, mirrors: NDArray[np.intp], px: int
    ) -> tuple[tuple[int, int, int, int], tuple[float, float, float, float]] | None:
        """Return the pixels around all mirrors, and the same as a window; None: they have no bounds.

        A mirror has bounds on the image if all of it is in front of the camera.
        """
        if self._is_plane[mirrors].any():
            return None
        centre, axes = self._boxes()
        signs = np.array(list(product((-1.0, 1.0), repeat=3)))
        corners = (centre[mirrors, None] + signs @ axes[mirrors]).reshape(-1, 3)
        seen = (corners - self._data.cam_xpos[camera_id]) @ self._data.cam_xmat[camera_id].reshape(
            3, 3
        )
        if (-seen[:, 2] <= _SLACK_M).any():
            return None
        tangents = seen[:, :2] / -seen[:, 2:] / np.tan(self._half_angle(camera_id))
        low = np.floor((tangents.min(axis=0) + 1) / 2 * px).astype(int) - _MARGIN_PX
        high = np.ceil((tangents.max(axis=0) + 1) / 2 * px).astype(int) + _MARGIN_PX
        low, high = np.clip(low, 0, px), np.clip(high, 0, px)
        left, right, lower, upper = (int(v) for v in (low[0], high[0], low[1], high[1]))
        window = (2 * left / px - 1, 2 * right / px - 1, 2 * lower / px - 1, 2 * upper / px - 1)
        return (left, right, lower, upper), window

    def _half_angle(self, camera_id: int) -> float:
        return float(np.deg2rad(self._model.cam_fovy[camera_id]) / 2)

    def _boxes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return centres (g, 3) and half axes (g, 3, 3), one row per axis, of the bounding boxes."""
        rotation = self._data.geom_xmat.reshape(-1, 3, 3)
        box = self._model.geom_aabb
        centre = self._data.geom_xpos + np.einsum("gij,gj->gi", rotation, box[:, :3])
        return centre, rotation.transpose(0, 2, 1) * box[:, 3:, None]

    def _in_pyramid(
        self,
        camera_id: int,
        centre: NDArray[np.float64],
        axes: NDArray[np.float64],
        window: tuple[float, float, float, float],
    ) -> NDArray[np.bool_]:
        """Say of each box whether no side of the pyramid, nor the camera's own plane, parts it off."""
        right, up, back = self._data.cam_xmat[camera_id].reshape(3, 3).T
        edges = np.arctan(np.multiply(window, np.tan(self._half_angle(camera_id))))
        inward = np.stack(
            [
                sign * (np.cos(angle) * across + np.sin(angle) * back)
                for angle, across, sign in zip(
                    edges, (right, right, up, up), (1, -1, 1, -1), strict=True
                )
            ]
            + [-back]
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
