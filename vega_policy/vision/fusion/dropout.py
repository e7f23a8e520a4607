"""Prior dropout: in training, the prior of whole observations is left out by chance."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vega_policy.spec.errors import ContractError


def dropped_priors(n: int, *, probability: float, seed: tuple[int, ...]) -> Tensor | None:
    """Draw the observations whose prior is shut out.

    A function of its seed, like every draw of a training run: a resumed run draws the same. Meant
    for ``shut_out_prior`` of `VegaModel.forward`.

    Args:
        n: Observations of the batch.
        probability: For each one, in [0, 1).
        seed: What the draw is for: seed of the run, number of the update.

    Returns:
        (n,) bool on the CPU; None where the probability is 0.

    Raises:
        ContractError: The probability is not in [0, 1).
    """
    if not 0 <= probability < 1:
        raise ContractError(
            f"prior dropout is {probability:g}, expected at least 0 and below 1; to train without "
            "the prior set fusion.name=none"
        )
    if probability == 0:
        return None
    return torch.from_numpy(np.random.default_rng(seed).random(n) < probability)
