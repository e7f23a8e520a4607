"""Simulator adapters: LIBERO as a Gymnasium environment, its suites, the scripted expert.

Importing this package loads no simulator; the first environment does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.libero import LiberoEnv

__all__ = ["LiberoEnv"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "LiberoEnv":
        from envs.libero import LiberoEnv  # noqa: PLC0415

        return LiberoEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
