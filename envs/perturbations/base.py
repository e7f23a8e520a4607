"""What a perturbation may touch, and when."""
# pyright: basic
# ruff: noqa: ANN401

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Perturbation:
    """No change. Each kind overrides the one or two methods of what it changes.

    Args:
        level: 1 (mild) to 3 (strong).
        digest: The episode's, from which everything random is drawn.
    """

    def __init__(self, *, level: int = 0, digest: int = 0) -> None:
        self.level = level
        self.digest = digest

    def rewrite(self, instruction: str) -> str:
        """Return what the policy is told."""
        return instruction

    def edit(self, model: Any) -> None:
        """Change arrays of the compiled model in place, after a reset has restored them."""

    def start(self, state: NDArray[np.float64], model: Any) -> NDArray[np.float64]:  # noqa: ARG002
        """Return the flattened state the settling steps begin from."""
        return state

    def look(self, image: NDArray[np.uint8], *, camera: str, step: int) -> NDArray[np.uint8]:  # noqa: ARG002
        """Return the observed image; the same for every call with the same arguments."""
        return image
