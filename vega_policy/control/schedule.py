"""Chunk schedule: which actions of a chunk are applied before the next inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.spec import ActionSpec, ContractError, PolicyFault

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vega_policy.spec import ActionChunk


@dataclass(frozen=True, kw_only=True)
class OpenLoop:
    """Apply the first ``n_execute`` actions of every chunk, then look again.

    With ``n_execute`` equal to the horizon this is the protocol of OpenVLA-OFT: the whole chunk
    runs without a glance at the cameras.
    """

    spec: ActionSpec
    n_execute: int | None = None
    """Actions applied per inference; None is the whole horizon."""

    def __post_init__(self) -> None:
        """Refuse a number of actions the chunk does not have."""
        if self.n_execute is not None and not 1 <= self.n_execute <= self.spec.horizon:
            raise ContractError(
                f"{self.n_execute} actions per inference, the chunk has {self.spec.horizon}; "
                f"choose 1 to {self.spec.horizon}"
            )

    def actions(self, chunk: ActionChunk, *, n_left: int | None = None) -> NDArray[np.float32]:
        """Return the actions to apply now.

        Args:
            chunk: The answer to the observation just seen.
            n_left: Control steps before the step limit; None where there is none.

        Returns:
            (n, size) with ``1 <= n <= n_execute``.

        Raises:
            PolicyFault: The chunk does not fit the specification (`require_valid_chunk`).
        """
        require_valid_chunk(chunk, self.spec)
        n = self.spec.horizon if self.n_execute is None else self.n_execute
        return chunk.actions[: n if n_left is None else min(n, n_left)]


def require_valid_chunk(chunk: ActionChunk, spec: ActionSpec) -> None:
    """Refuse a chunk that must not reach a motor: wrong shape, NaN or infinite.

    Values outside the bounds are left alone, since the environment clips them.

    Raises:
        PolicyFault: The chunk is invalid; the message says how.
    """
    actions = np.asarray(chunk.actions)
    expected = (spec.horizon, spec.size)
    if actions.shape != expected:
        raise PolicyFault(f"chunk has shape {actions.shape}, the environment expects {expected}")
    if not np.issubdtype(actions.dtype, np.floating):
        raise PolicyFault(f"chunk has dtype {actions.dtype}, the environment expects floats")
    bad = ~np.isfinite(actions)
    if bad.any():
        step, number = (int(i[0]) for i in np.nonzero(bad))
        raise PolicyFault(
            f"chunk has {int(bad.sum())} values that are not finite, "
            f"the first is {actions[step, number]} at action {step}, number {number}"
        )
