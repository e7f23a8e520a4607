"""From an episode's key to what it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envs.perturbations.base import Perturbation
from envs.perturbations.image_noise import ImageNoise
from envs.perturbations.naming import CLEAN, is_pro, kind_and_level, require
from envs.perturbations.robot_start import RobotStart
from envs.perturbations.scene import Camera, Light, Texture
from envs.perturbations.wording import Wording

if TYPE_CHECKING:
    from vega_policy.spec import EpisodeKey

_KINDS: dict[str, type[Perturbation]] = {
    "camera": Camera,
    "light": Light,
    "texture": Texture,
    "robot_start": RobotStart,
    "image_noise": ImageNoise,
    "wording": Wording,
}


def make(key: EpisodeKey) -> Perturbation:
    """Return what an episode changes: a function of its key alone.

    Raises:
        ContractError: Unknown perturbation; the message names the nearest.
    """
    name = require(key.perturbation)
    if name == CLEAN or is_pro(name):
        return Perturbation()
    kind, level = kind_and_level(name)
    return _KINDS[kind](level=level, digest=key.digest())
