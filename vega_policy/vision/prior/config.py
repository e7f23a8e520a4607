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
class UNetDims:
    """Sizes of a diffusion UNet (SD 2.1, SVD); the defaults are tiny."""

    widths: tuple[int, ...] = (64, 64, 64, 64)
    """Channels of each level, finest first, multiples of 32 (of 32 alone the norms would take the
    timestep out again); the last level has no cross-attention."""
    heads: tuple[int, ...] = (2, 2, 2, 2)
    """Attention heads of each level."""
    n_layers: int = 1
    """Residual layers of a down block; an up block has one more."""
    text_width: int = 64
    """Channels of what cross-attention reads: the prompt (SD 2.1) or the CLIP image (SVD)."""


@dataclass(frozen=True)
class VaeDims:
    """Sizes of the image VAE of SD 2.1, SVD and ``vae``; the defaults are tiny."""

    kind: Literal["sd", "wan"] = "sd"
    """Whose latents ``vae`` gives: Stable Diffusion's, or Wan's (whose sizes are in ``dims``)."""
    widths: tuple[int, ...] = (32, 32, 32, 32)
    """Channels of each level, multiples of 32; every level but the first halves the image."""
    n_layers: int = 1
    latent_channels: int = 4


@dataclass(frozen=True)
class VitDims:
    """Sizes of a vision transformer (DINOv3, V-JEPA 2, SVD's CLIP); the defaults are tiny."""

    width: int = 64
    depth: int = 4
    """Blocks of the full transformer; a prior keeps only those up to the one that is read."""
    heads: int = 4
    mlp_width: int = 256
    patch_px: int = 16
    n_registers: int = 4
    """Register tokens (DINOv3 only)."""
    tubelet: int = 2
    """Frames of one token (V-JEPA 2 only)."""
    image_px: int = 224
    """Side of the image that CLIP sees (SVD only; the others see ``prior.image_px``)."""


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
    """Zero-based index of the block whose output is read; later blocks are not even loaded. The
    blocks of a UNet count in the order they run: down, middle, up."""
    noise_level: float = 0.3
    """``t`` of ``(1 - t) * latent + t * noise`` (Wan). SVD, whose noise is added and not mixed in,
    gets the deviation ``t / (1 - t)``: the same ratio of noise to latent."""
    timestep: float = 300.0
    """Timestep the transformer is told, on its scale of 0 to 1000. For SD 2.1 it also sets the
    noise, by the model's own schedule."""
    noise: NoiseMode = "constant"
    """``constant``: one noise tensor for every frame, so features depend on the frame alone and
    can be cached. ``keyed``: drawn anew from each observation's key."""
    noise_seed: int = 0
    prompt_tokens: int = 1
    """Length the empty prompt's embedding is padded to with zeros (512 for the published model)."""
    prompt_file: str = ""
    """The empty prompt's embedding as a .safetensors or .pt file, for a directory without one."""
    sees: Literal["camera", "black", "other"] = "camera"
    """Controls that run the backbone, but not on what the camera saw: ``black`` on a black image,
    ``other`` on a training frame of another moment (see `vega_policy.vision.prior.bank`)."""
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
    unet: UNetDims = field(default_factory=UNetDims)
    """The same, of a UNet."""
    vae: VaeDims = field(default_factory=VaeDims)
    """The same, of an image VAE."""
    vit: VitDims = field(default_factory=VitDims)
    """The same, of a vision transformer."""
