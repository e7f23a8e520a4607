"""Settings of the frozen prior, and the protocol it fulfils."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

PRIORS = (
    "wan",
    "vace",
    "sd21",
    "svd",
    "vae",
    "dinov3",
    "vjepa2",
    "precomputed",
    "noise",
    "layer_norm",
    "zero",
)
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
    sees: Literal["camera", "black"] = "camera"
    """``black``: a control that runs the backbone on a black image whatever the camera saw."""
    align: Literal["camera", "upstream"] = "camera"
    """``camera``: the whole image, in its own aspect, so that features lie where the semantic tokens
    lie. ``upstream``: the released code's cover-resize and centre crop to ``frame_size``, which
    shifts the two grids against each other wherever the aspects differ."""
    frame_size: tuple[int, int] = (480, 832)
    """Height and width in pixels of ``align="upstream"``."""
    frames: Literal["still", "clip"] = "still"
    """``still``: every frame is a video of its own, as in the released code. ``clip``: the views of
    an observation are the frames of one video, in the order of time."""
    cadence: int = 1
    """The prior runs at every so many inferences of an episode; in between its last features stay."""
    features_dir: str = ""
    """Folder of feature files (``precomputed`` only)."""
    dims: WanDims = field(default_factory=WanDims)
    """Sizes a new prior is made with, and a loaded one is checked against."""
