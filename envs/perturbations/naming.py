"""The names of perturbations."""

from __future__ import annotations

from vega_policy.spec.names import require_name

CLEAN = "none"
PRO = {
    "pro_lan": "lan",
    "pro_object": "object",
    "pro_swap": "swap",
    "pro_task": "task",
}
"""LIBERO-PRO's kinds and the endings of its suites."""
KINDS = ("camera", "light", "texture", "robot_start", "image_noise", "wording")
"""Our own, edits of a stock scene."""
LEVELS = (1, 2, 3)
"""Mild, medium, strong."""


def names() -> tuple[str, ...]:
    """List the perturbations there are, the clean episode first."""
    own = tuple(f"{kind}-{level}" for kind in KINDS for level in LEVELS)
    return (CLEAN, *PRO, *own)


def require(name: str) -> str:
    """Return ``name`` or raise a `ContractError` that names the nearest perturbation."""
    return require_name(name, names(), what="perturbation")


def is_pro(name: str) -> bool:
    """Tell whether a perturbation needs another scene file than the stock task."""
    return name in PRO


def kind_and_level(name: str) -> tuple[str, int]:
    """Split the name of one of our own perturbations."""
    kind, _, level = require(name).rpartition("-")
    return kind, int(level)
