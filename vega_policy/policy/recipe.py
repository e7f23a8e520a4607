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
    prior_cadence: int | None = None
    """Overrides the checkpoint's."""
    feature_store: Path | None = None
    """Folder of stored prior features, wherever it is made; None stores none."""
    feature_store_gb: float | None = None
    """Limit of that folder."""

    def __call__(self) -> dict[str, VegaPolicy]:
        """Load the checkpoint once and return the policy of each arm.

        Raises:
            CheckpointError: See `from_pretrained`.
            ContractError: The prior has nothing to store, or cannot have a cadence.
        """
        import torch

        from vega_policy.policy.pretrained import from_pretrained
        from vega_policy.policy.prior_reader import PriorReader
        from vega_policy.vision.prior.store import FeatureStore, PriorIdentity

        torch.set_num_threads(self.n_threads)
        policy = from_pretrained(
            self.folder, device=self.device, unnorm_key=self.unnorm_key, expected=self.expected
        )
        store = None
        if self.feature_store is not None:
            identity = PriorIdentity.of(policy.model.prior)
            store = FeatureStore(self.feature_store, identity, max_gb=self.feature_store_gb)
        policy.prior_reader = PriorReader(policy.model, store=store, cadence=self.prior_cadence)
        return {arm: policy.arm(arm) for arm in self.arms}
