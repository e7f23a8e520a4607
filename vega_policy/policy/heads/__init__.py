"""Heads: what turns the language model's answer into a chunk of actions, and its training loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vega_policy.policy.heads.diffusion import DiffusionHead, Draws
from vega_policy.policy.heads.discrete import DiscreteHead
from vega_policy.policy.heads.l1 import L1Head
from vega_policy.policy.heads.reading import Read

if TYPE_CHECKING:
    from vega_policy.spec import ActionSpec


@dataclass(frozen=True)
class HeadConfig:
    """What turns hidden states into actions."""

    kind: Literal["l1", "diffusion", "discrete"] = "l1"
    """``l1``: regression, trained with the L1 loss. ``diffusion``: the noise of a DDIM chain.
    ``discrete``: the likeliest of 255 action tokens per number, read from the language model."""
    width: int = 128
    n_blocks: int = 2
    diffusion_steps: int = 50
    """Noise levels of the chain in training (``diffusion`` only)."""
    inference_steps: int = 50
    """Passes of the language model per answer (``diffusion`` only). A divisor of
    ``diffusion_steps``; from another number the chain does not start at the noisiest level."""


def build_head(
    config: HeadConfig, *, source: int, action: ActionSpec, vocab_size: int
) -> L1Head | DiffusionHead | DiscreteHead:
    """Build the head a configuration names.

    Args:
        config: Settings.
        source: Width of the language model.
        action: Size and horizon of a chunk.
        vocab_size: Words of the language model.

    Raises:
        ContractError: The vocabulary has no room for the words of a discrete head, or a chain is to
            have more steps than there are noise levels.
    """
    if config.kind == "discrete":
        return DiscreteHead(action_size=action.size, vocab_size=vocab_size)
    if config.kind == "diffusion":
        return DiffusionHead(
            source=source,
            width=config.width,
            n_blocks=config.n_blocks,
            action_size=action.size,
            horizon=action.horizon,
            diffusion_steps=config.diffusion_steps,
            inference_steps=config.inference_steps,
        )
    return L1Head(
        source=source, width=config.width, n_blocks=config.n_blocks, action_size=action.size
    )


__all__ = [
    "DiffusionHead",
    "DiscreteHead",
    "Draws",
    "HeadConfig",
    "L1Head",
    "Read",
    "build_head",
]
