"""A model without weights, to be given those of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vega_policy.policy.model import VegaModel
from vega_policy.vision.prior import ZeroPrior

if TYPE_CHECKING:
    from vega_policy.policy.config import PolicyConfig
    from vega_policy.vision.prior import AnyPrior


def empty_model(config: PolicyConfig, *, prior: AnyPrior | None = None) -> VegaModel:
    """Build a model whose weights take no memory, on the ``meta`` device.

    Buffers (position ids, rotary frequencies) are real: no checkpoint holds them. Global random state
    is left as it was.

    Args:
        config: Sizes and rules.
        prior: A frozen prior with its weights; None leaves a stand-in.
    """
    from accelerate import init_empty_weights

    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        return VegaModel(config, prior=prior or ZeroPrior(config.prior))


def shapes_of(model: VegaModel) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight that a checkpoint holds."""
    return {name: tuple(value.shape) for name, value in model.trainable_state_dict().items()}
