"""How a policy comes by its prior's features: computed, stored, or kept from an inference before.

Shape legend: ``b`` batch, ``v`` views (cameras), ``n`` tokens of one view, ``c`` width of the prior.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch

from vega_policy.spec import ContractError, EnvFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from vega_policy.policy.model import VegaModel
    from vega_policy.spec import Observation
    from vega_policy.vision.prior.store import FeatureStore


class PriorReader:
    """Features of a batch of observations.

    With a cadence of ``k`` the prior runs at the inferences 0, k, 2k, ... of an episode; in between
    its last features stay. What an inference answers is therefore a function of the episode alone,
    and never of the batch or of what else this process did: features that should be here and are
    not (the process was started anew) are an `EnvFault`, after which the episode is played again
    from its start. An observation without an episode is always computed.
    """

    def __init__(
        self,
        model: VegaModel,
        *,
        store: FeatureStore | None = None,
        cadence: int | None = None,
        max_episodes: int = 256,
    ) -> None:
        """Set up.

        Args:
            model: Owns the prior.
            store: Where features are looked up and kept; None computes them.
            cadence: Overrides ``prior.cadence`` of the model's configuration.
            max_episodes: Episodes whose features are kept; those asked for least recently go.

        Raises:
            ContractError: The cadence is not a whole number of at least 1, or is above 1 where no
                prior runs.
        """
        self.cadence = require_cadence(model.config.prior.cadence if cadence is None else cadence)
        self.store = store
        self._model = model
        # There may be none, and the control that repeats the semantic tokens reads no frames.
        prior = getattr(model, "prior", None)
        self._has_features = prior is not None and not getattr(prior, "reads_semantic", False)
        if self.cadence > 1 and not self._has_features:
            raise ContractError(
                f"prior.cadence is {self.cadence}, but the policy has no prior that runs on its own; "
                "set it to 1"
            )
        self._max_episodes = max_episodes
        self._kept: OrderedDict[int, tuple[int, Tensor]] = OrderedDict()
        """By episode: the inference at which the prior ran, and its features (v, n, c)."""

    def __call__(
        self, pixels: Tensor, batch: Sequence[Observation], *, keys: Sequence[int]
    ) -> Tensor | None:
        """Return features (b, v, n, c) float32 on the model's device; None where frames have none.

        Args:
            pixels: (b, v, 3, h, w) of these observations, as the model takes them.
            batch: Says whose they are.
            keys: (b,) noise keys.

        Raises:
            EnvFault: An inference builds on one that this process did not see.
        """
        if not self._has_features:
            return None
        due = [i for i, seen in enumerate(batch) if self._is_due(seen)]
        if len(due) == len(batch):
            features = self._read(pixels, keys)
        else:
            rows: list[Tensor | None] = [self._last(seen) for seen in batch]
            if due:
                fresh = self._read(pixels[due], [keys[i] for i in due])
                for i, row in zip(due, fresh, strict=True):
                    rows[i] = row
            features = torch.stack([row for row in rows if row is not None])
        if self.cadence > 1:
            for i in due:
                self._keep(batch[i], features[i])
        return features

    def _is_due(self, seen: Observation) -> bool:
        return seen.episode is None or seen.inference % self.cadence == 0

    def _read(self, pixels: Tensor, keys: Sequence[int]) -> Tensor:
        if self.store is None:
            return self._compute(pixels, keys)
        read = self.store.read(pixels, keys=keys, compute=self._compute)
        return read.to(pixels.device, torch.float32)

    def _compute(self, pixels: Tensor, keys: Sequence[int]) -> Tensor:
        features = self._model.prior_features(pixels, keys=keys)
        if features is None:
            raise RuntimeError("the model has no prior features, and was found to have some before")
        return features

    def _last(self, seen: Observation) -> Tensor | None:
        """Return the features an observation is to reuse; None where it is due."""
        if seen.episode is None or self._is_due(seen):
            return None
        source = seen.inference - seen.inference % self.cadence
        inference, features = self._kept.get(seen.episode, (None, None))
        if inference != source or features is None:
            raise EnvFault(
                f"inference {seen.inference} of an episode reuses the prior's features of inference "
                f"{source} (prior.cadence={self.cadence}), which this process does not have: it was "
                f"started anew, or answers more than {self._max_episodes} episodes at once; the "
                "episode has to be played again from its start"
            )
        self._kept.move_to_end(seen.episode)
        return features

    def _keep(self, seen: Observation, features: Tensor) -> None:
        if seen.episode is None:
            return
        # Its own memory: a row would hold the whole batch.
        self._kept[seen.episode] = (seen.inference, features.clone())
        self._kept.move_to_end(seen.episode)
        while len(self._kept) > self._max_episodes:
            self._kept.popitem(last=False)


def require_cadence(cadence: int) -> int:
    """Return a cadence that can be meant.

    Raises:
        ContractError: It is not a whole number of at least 1.
    """
    if isinstance(cadence, bool) or cadence < 1 or cadence != int(cadence):
        raise ContractError(
            f"prior.cadence is {cadence!r}, expected a whole number of at least 1; "
            "1 runs the prior at every inference"
        )
    return int(cadence)
