"""Does this installation simulate LIBERO as published? Checks against recorded numbers."""

from envs.fidelity.checks import Depth, checks

__all__ = ["Depth", "checks"]
