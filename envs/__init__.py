"""Simulator adapters: LIBERO as a Gymnasium environment, its suites, the scripted expert.

Importing this package loads no simulator; the first environment does.
"""

# ruff: noqa: ANN401

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.libero import LiberoEnv

__all__ = ["LiberoEnv"]


def __getattr__(name: str) -> Any:
    if name == "LiberoEnv":
        from envs.libero import LiberoEnv

        return LiberoEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
