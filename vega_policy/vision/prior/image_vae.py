"""The image VAE of Stable Diffusion: a part of other priors, and a prior of its own.

The latents alone are the control for "is the denoiser needed?": in the paper's Table 4 four channels
of them come close to Wan.

Shape legend: ``b`` batch, ``v`` views (cameras), ``f`` frames (``b * v``), ``z`` latent channels.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false
# ruff: noqa: ANN401
from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vega_policy.vision.prior.frozen import FrozenPrior
from vega_policy.vision.prior.parts import (
    kept_random_state,
    part_folder,
    read_diffusers,
    refuse_disagreements,
    refuse_settings,
    require_multiple,
    require_parts,
)
from vega_policy.vision.prior.still_vae import encode_stills

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from vega_policy.vision.prior.config import PriorConfig, VaeDims


class VaePrior(FrozenPrior):
    """The latents of each frame, without noise: the mode of the VAE's posterior.

    ``config.vae.kind`` says whose: Stable Diffusion's, times its scaling factor as in the paper's
    code, or Wan's, normalised as Wan's transformer reads them.
    """

    def __init__(self, config: PriorConfig, *, vae: Any) -> None:
        """Freeze an ``AutoencoderKL`` or ``AutoencoderKLWan``, whose decoder goes.

        Raises:
            CheckpointError: It disagrees with the configuration.
        """
        super().__init__(config)
        refuse_settings(config)
        _prepare(config, vae)
        self.vae = vae
        self.stride = 2 ** (len(config.vae.widths) - 1) if config.vae.kind == "sd" else 8
        require_multiple(config, self.stride, why=f"the VAE halves it down to 1/{self.stride}")
        self.freeze()

    @classmethod
    def from_config(cls, config: PriorConfig, *, seed: int = 0) -> Self:
        """Make a prior with random weights."""
        with kept_random_state(seed):
            if config.vae.kind == "sd":
                return cls(config, vae=new_image_vae(config.vae))
            return cls(
                config,
                vae=_kind(config)(
                    base_dim=config.dims.vae_width, z_dim=config.dims.latent_channels
                ),
            )

    @classmethod
    def load(cls, path: Path | str, config: PriorConfig) -> Self:
        """Read ``vae/`` of a published directory; only the encoder's weights are read.

        Raises:
            CheckpointError: It is missing or disagrees with the configuration.
        """
        folder = part_folder(path, parts=("vae",))
        require_parts(folder, ["vae/config.json"], what="a diffusers directory with a VAE")
        vae = read_diffusers(_kind(config), folder / "vae", prepare=partial(_prepare, config))
        return cls(config, vae=vae)

    def save(self, path: Path | str) -> None:
        """Write ``vae/``, without its decoder."""
        self.vae.save_pretrained(Path(path) / "vae")

    def encode(self, frames: Tensor, *, keys: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:  # noqa: ARG002
        """Return the latents; see `FrozenPrior.encode`. The keys are not read."""
        b, v = frames.shape[:2]
        picture = self.framed(frames.flatten(0, 1), multiple=self.stride)
        if self.config.vae.kind == "sd":
            latents = image_mode(self.vae, picture) * self.vae.config.scaling_factor
        else:
            mode = encode_stills(self.vae, picture.to(self.vae.dtype)).float()
            mean = torch.tensor(self.vae.config.latents_mean, device=mode.device).view(-1, 1, 1)
            std = torch.tensor(self.vae.config.latents_std, device=mode.device).view(-1, 1, 1)
            latents = (mode - mean) / std
        return as_tokens(latents, b, v)


def as_tokens(maps: Tensor, b: int, v: int) -> tuple[Tensor, tuple[int, int]]:
    """Return feature maps (b * v, c, rows, columns) as (b, v, rows * columns, c), and the grid."""
    rows, columns = maps.shape[-2:]
    return maps.flatten(2).transpose(1, 2).unflatten(0, (b, v)), (rows, columns)


def image_mode(vae: Any, frames: Tensor) -> Tensor:
    """Return the posterior's mode (f, z, h, w) of frames (f, 3, H, W), float32 and not scaled."""
    return vae.encode(frames.to(vae.dtype)).latent_dist.mode().float()


def new_image_vae(dims: VaeDims, kind: Any = None) -> Any:
    """Make a VAE with random weights; SVD's differs in its class."""
    if kind is not None:
        return kind(**_sizes(dims), scaling_factor=0.18215)
    from diffusers import AutoencoderKL

    levels = len(dims.widths)
    return AutoencoderKL(
        **_sizes(dims),
        up_block_types=("UpDecoderBlock2D",) * levels,
        scaling_factor=0.18215,
    )


def check_image_vae(dims: VaeDims, found: Any, *, what: str) -> None:
    """Compare a VAE's configuration with the settings.

    Raises:
        CheckpointError: They differ; every point is listed.
    """
    refuse_disagreements(
        what,
        {
            "vae.widths": (tuple(found.block_out_channels), dims.widths),
            "vae.n_layers": (found.layers_per_block, dims.n_layers),
            "vae.latent_channels": (found.latent_channels, dims.latent_channels),
        },
    )


def drop_decoder(vae: Any) -> None:
    """Drop what a prior never runs: half the VAE's weights."""
    vae.decoder = None
    vae.post_quant_conv = None


def _sizes(dims: VaeDims) -> dict[str, Any]:
    return {
        "down_block_types": ("DownEncoderBlock2D",) * len(dims.widths),
        "block_out_channels": dims.widths,
        "layers_per_block": dims.n_layers,
        "latent_channels": dims.latent_channels,
    }


def _kind(config: PriorConfig) -> Any:
    import diffusers

    return diffusers.AutoencoderKL if config.vae.kind == "sd" else diffusers.AutoencoderKLWan


def _prepare(config: PriorConfig, vae: Any) -> None:
    found = vae.config
    if config.vae.kind == "sd":
        check_image_vae(config.vae, found, what="the VAE")
        refuse_disagreements("the VAE", {"width": (found.latent_channels, config.width)})
    else:
        refuse_disagreements(
            "the VAE",
            {
                "width": (found.z_dim, config.width),
                "dims.latent_channels": (found.z_dim, config.dims.latent_channels),
                "dims.vae_width": (found.base_dim, config.dims.vae_width),
            },
        )
    drop_decoder(vae)
