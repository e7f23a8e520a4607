"""From an episode's key to what it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envs.perturbations.base import Perturbation
from envs.perturbations.naming import CLEAN, is_pro, kind_and_level, require
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from vega_policy.spec import EpisodeKey

_KINDS: dict[str, type[Perturbation]] = {}


def make(key: EpisodeKey) -> Perturbation:
    """Return what an episode changes: a function of its key alone.

    Raises:
        ContractError: Unknown perturbation; the message names the nearest.
    """
    name = require(key.perturbation)
    if name == CLEAN or is_pro(name):
        return Perturbation()
    kind, level = kind_and_level(name)
    if kind not in _KINDS:
        raise ContractError(f"{name} is not there yet; use one of {sorted(_KINDS)}")
    return _KINDS[kind](level=level, digest=key.digest())
