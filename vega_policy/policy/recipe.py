"""How to make a policy somewhere else: what travels to another process instead of weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vega_policy.spec import FULL_ARM, ActionSpec

if TYPE_CHECKING:
    from vega_policy.policy.policy import VegaPolicy


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Makes the arms of one checkpoint; it can be pickled."""

    folder: Path
    """The checkpoint, where it is made."""
    device: str
    unnorm_key: str | None
    expected: ActionSpec
    """What the environment takes actions for."""
    arms: tuple[str, ...] = (FULL_ARM,)
    n_threads: int = 1
    """Threads of the policy on the CPU."""

    def __call__(self) -> dict[str, VegaPolicy]:
        """Load the checkpoint once and return the policy of each arm.

        Raises:
            CheckpointError: See `from_pretrained`.
        """
        import torch

        from vega_policy.policy.pretrained import from_pretrained

        torch.set_num_threads(self.n_threads)
        policy = from_pretrained(
            self.folder, device=self.device, unnorm_key=self.unnorm_key, expected=self.expected
        )
        return {arm: policy.arm(arm) for arm in self.arms}
