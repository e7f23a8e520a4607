"""Reading a scene: fixtures, the hand within a control step, contacts, pictures."""
# pyright: basic
# ruff: noqa: ANN401, SLF001

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def fixtures(handle: Any) -> dict[str, list[float]]:
    """Return position (3) and quaternion (4) of the bodies that no initial state restores.

    Args:
        handle: A robosuite environment of LIBERO.
    """
    model = handle.sim.model._model
    placed: dict[str, list[float]] = {}
    for name, fixture in sorted(handle.fixtures_dict.items()):
        body = model.body(fixture.root_body).id
        placed[name] = [*model.body_pos[body].tolist(), *model.body_quat[body].tolist()]
    return placed


def fixture_distance(
    one: dict[str, list[float]], other: dict[str, list[float]]
) -> tuple[float, str]:
    """Return the largest difference (metres or quaternion units) and whose it is."""
    if one.keys() != other.keys():
        return float("inf"), ", ".join(sorted(one.keys() ^ other.keys()))
    differences = {name: float(np.abs(np.subtract(one[name], other[name])).max()) for name in one}
    worst = max(differences, key=lambda name: differences[name], default="")
    return differences.get(worst, 0.0), worst


def hand_position(handle: Any) -> NDArray[np.float64]:
    """Return the grip site, (3,) metres, as the kinematics stand now."""
    return np.array(handle.sim.data._data.site_xpos[handle.robots[0].eef_site_id])


def is_touched_by_finger(handle: Any) -> bool:
    """Whether a finger touches anything that is not the robot."""
    model, data = handle.sim.model._model, handle.sim.data._data
    for contact in data.contact[: data.ncon]:
        names = [
            model.body(model.geom_bodyid[geom]).name for geom in (contact.geom1, contact.geom2)
        ]
        robots = [name.startswith(("gripper0", "robot0")) for name in names]
        if any("finger" in name for name in names) and not all(robots):
            return True
    return False


def warnings(handle: Any) -> dict[str, int]:
    """Return MuJoCo's warnings of this episode: name to how often."""
    import mujoco

    kinds: Any = mujoco.mjtWarning  # pyright: ignore[reportAttributeAccessIssue]
    data = handle.sim.data._data
    counts = {
        name: int(data.warning[int(kind)].number)
        for name, kind in kinds.__members__.items()
        if name != "mjNWARNING"
    }
    return {name: n for name, n in counts.items() if n}


MAX_MEAN_LLVMPIPE = 0.03
"""Between MuJoCo versions with the same materials, on the same rasteriser."""
MAX_MEAN = 3.0
"""This and the next two: what another rasteriser does to edges and textures."""
MAX_SHARE = 0.08
MAX_SURFACE_BIAS = 6.0
_PATCH_PX = 8


@dataclass(frozen=True)
class PictureDifference:
    """How two pictures of one size differ; values 0 to 255."""

    mean: float
    """Mean absolute difference."""
    share_above_10: float
    """Share of pixels with a channel that differs by more than 10."""
    surface_bias: float
    """Largest mean difference, over all channels, of an even patch of 8 x 8 pixels: a
    surface that became darker, where another rasteriser only moves edges."""

    @property
    def is_zero(self) -> bool:
        """Equal in every pixel."""
        return self.mean == 0.0

    @property
    def is_tolerable(self) -> bool:
        """Within what another rasteriser does to the edges of the same scene."""
        return (
            self.mean <= MAX_MEAN
            and self.share_above_10 <= MAX_SHARE
            and self.surface_bias <= MAX_SURFACE_BIAS
        )


def picture_difference(mine: NDArray[np.uint8], golden: NDArray[np.uint8]) -> PictureDifference:
    """Compare two pictures, (px, px, 3) each."""
    signed = mine.astype(np.float64) - golden.astype(np.float64)
    absolute = np.abs(signed)
    n = signed.shape[0] // _PATCH_PX
    patches = signed.reshape(n, _PATCH_PX, n, _PATCH_PX, 3).mean(axis=(1, 3))
    texture = golden.reshape(n, _PATCH_PX, n, _PATCH_PX, 3).astype(np.float64).std(axis=(1, 3))
    is_even = texture.max(axis=-1) < 8.0
    biases = np.abs(patches.mean(axis=-1))[is_even]
    return PictureDifference(
        mean=float(absolute.mean()),
        share_above_10=float((absolute.max(axis=-1) > 10).mean()),
        surface_bias=float(biases.max(initial=0.0)),
    )
