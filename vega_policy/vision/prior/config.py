"""Settings of the frozen prior, and the protocol it fulfils."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

PRIORS = ("wan", "zero")
NoiseMode = Literal["constant", "keyed"]


@runtime_checkable
class Prior(Protocol):
    """Frames in, features on a token grid out; frozen."""

    @property
    def width(self) -> int:
        """Channels of a feature."""
        ...

    def features(self, frames: Tensor, *, keys: Sequence[int]) -> Tensor:
        """Return (b, v, n, c) features of (b, v, 3, h, w) frames in [-1, 1].

        ``keys`` holds one integer per observation, the only source of randomness.
        """
        ...


@dataclass(frozen=True)
class WanDims:
    """Sizes of a Wan transformer and its VAE; the defaults are ``nano``."""

    heads: int = 4
    head_dim: int = 32
    n_blocks: int = 6
    """Blocks of the full transformer; a policy keeps only those up to the one that is read."""
    ffn_width: int = 512
    text_width: int = 64
    """Channels of the prompt embedding."""
    frequencies: int = 256
    """Channels of the sinusoidal timestep embedding."""
    vae_width: int = 16
    """Channels of the VAE's first level."""
    latent_channels: int = 16

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class PriorConfig:
    """Which prior is read, where, and with which noise."""

    name: str = "wan"
    """One of `PRIORS`."""
    width: int = 128
    """Channels of a feature."""
    image_px: int = 128
    """Side of the square frame the prior sees; other sizes are resized to it."""
    grid: int = 8
    """Features along one side; the prior's own grid is average-pooled where it differs."""
    block_index: int = 3
    """Zero-based index of the block whose output is read; later blocks are not even loaded."""
    noise_level: float = 0.3
    """``t`` of ``(1 - t) * latent + t * noise``."""
    timestep: float = 300.0
    """Timestep the transformer is told, on its scale of 0 to 1000."""
    noise: NoiseMode = "constant"
    """``constant``: one noise tensor for every frame, so features depend on the frame alone and
    can be cached. ``keyed``: drawn anew from each observation's key."""
    noise_seed: int = 0
    prompt_tokens: int = 1
    """Length the empty prompt's embedding is padded to with zeros (512 for the published model)."""
    dims: WanDims = field(default_factory=WanDims)
    """Sizes a new prior is made with, and a loaded one is checked against."""
