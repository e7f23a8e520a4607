"""Frozen Stable Video Diffusion features: one block of the image-to-video UNet.

Shape legend: ``b`` batch, ``v`` views (cameras), ``f`` frames (``b * v``), ``k`` videos, ``t``
frames of a video (``k * t = f``), ``z`` latent channels, ``h``/``w`` latent height and width.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false
# ruff: noqa: ANN401
from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from vega_policy.spec.errors import ContractError
from vega_policy.vision.prior.draws import unit_noise
from vega_policy.vision.prior.frozen import FrozenPrior
from vega_policy.vision.prior.image_vae import (
    as_tokens,
    check_image_vae,
    drop_decoder,
    image_mode,
    new_image_vae,
)
from vega_policy.vision.prior.parts import (
    kept_random_state,
    part_folder,
    read_diffusers,
    read_transformers,
    refuse_disagreements,
    refuse_settings,
    require_parts,
)
from vega_policy.vision.prior.unet import (
    block_output,
    block_types,
    picture_multiple,
    prepare_unet,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionModelWithProjection

    from vega_policy.vision.prior.config import PriorConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FPS, MOTION_BUCKET, AUGMENTATION = 6, 127, 0.02
"""What the published pipeline tells the model by default: 7 fps less one, a middling motion, and the
deviation of the noise on the conditioning image."""


class SvdPrior(FrozenPrior):
    """One block of the UNet at the deviation ``sigma = t / (1 - t)`` of ``config.noise_level``.

    The model is told the image twice, by its CLIP embedding and by its latent beside the noisy one,
    and denoises ``latent + sigma * noise`` (EDM), scaled by ``1 / sqrt(sigma ** 2 + 1)``; its
    timestep is ``log(sigma) / 4``. The paper's k of 1000 steps does not exist for it: the released
    code looks for the timestep nearest to 250 among values from -1.55 to 1.64, so it always runs at
    sigma = 700, on noise alone. With ``frames="clip"`` the views of an observation are one video,
    whose CLIP embedding is that of its first frame, as in the released code.
    """

    def __init__(
        self,
        config: PriorConfig,
        *,
        vae: AutoencoderKLTemporalDecoder,
        unet: UNetSpatioTemporalConditionModel,
        clip: CLIPVisionModelWithProjection,
    ) -> None:
        """Freeze the parts; what lies behind the block that is read, and the decoder, goes.

        Args:
            config: Settings; sizes must agree with the parts.
            vae: The video VAE, whose encoder is an image's.
            unet: The denoiser.
            clip: The image encoder.

        Raises:
            CheckpointError: The parts disagree with the configuration.
            ContractError: The settings contradict each other.
        """
        super().__init__(config)
        refuse_settings(config, clips=True, crops=False)
        if not 0 < config.noise_level < 1:
            raise ContractError(
                f"prior.noise_level is {config.noise_level}; SVD needs a noise level between 0 and 1 "
                "and neither of them: its deviation is t / (1 - t), of which it reads the logarithm"
            )
        _prepare_vae(config, vae)
        _prepare_unet(config, unet)
        _check_clip(config, clip.config)
        self.vae, self.unet, self.clip = vae, unet, clip
        self.sigma = config.noise_level / (1 - config.noise_level)
        self.freeze()

    @property
    def timestep(self) -> float:
        """What the UNet is told of the noise."""
        return math.log(self.sigma) / 4

    @classmethod
    def from_config(cls, config: PriorConfig, *, seed: int = 0) -> Self:
        """Make a prior with random weights."""
        from diffusers import AutoencoderKLTemporalDecoder

        with kept_random_state(seed):
            vae = new_image_vae(config.vae, AutoencoderKLTemporalDecoder)
            return cls(config, vae=vae, unet=new_unet(config), clip=new_clip(config))

    @classmethod
    def load(cls, path: Path | str, config: PriorConfig) -> Self:
        """Read ``unet/``, ``vae/`` and ``image_encoder/`` of a diffusers directory.

        Raises:
            CheckpointError: A part is missing or disagrees with the configuration.
        """
        from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        parts = ("unet", "vae", "image_encoder")
        folder = part_folder(path, parts=parts)
        files = [f"{part}/config.json" for part in parts]
        require_parts(folder, files, what="a Stable Video Diffusion directory")
        _check_clip(config, CLIPVisionConfig.from_pretrained(folder / "image_encoder"))
        unet = read_diffusers(
            UNetSpatioTemporalConditionModel,
            folder / "unet",
            prepare=partial(_prepare_unet, config),
        )
        vae = read_diffusers(
            AutoencoderKLTemporalDecoder, folder / "vae", prepare=partial(_prepare_vae, config)
        )
        clip = read_transformers(CLIPVisionModelWithProjection, folder / "image_encoder")
        return cls(config, vae=vae, unet=unet, clip=clip)

    def save(self, path: Path | str) -> None:
        """Write the directory `load` reads, without what is never run."""
        folder = Path(path)
        self.unet.save_pretrained(folder / "unet")
        self.vae.save_pretrained(folder / "vae")
        self.clip.save_pretrained(folder / "image_encoder")

    def encode(self, frames: Tensor, *, keys: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:
        """Read the block; see `FrozenPrior.encode`. Only ``noise="keyed"`` looks at the keys."""
        b, v = frames.shape[:2]
        flat = frames.flatten(0, 1)
        length = v if self.config.frames == "clip" else 1
        sample = self.model_input(flat, keys=keys).unflatten(0, (-1, length))
        context = self.image_embedding(flat[::length])
        return as_tokens(self.block(sample, context), b, v)

    def model_input(self, frames: Tensor, *, keys: Sequence[int]) -> Tensor:
        """Return noisy and conditioning latents (f, 2 z, h, w) in float32 of frames (f, 3, H, W).

        Both come from one pass of the VAE over the slightly noised image that the model conditions
        on; the noisy half is scaled, the other, as in the published pipeline, is not.
        """
        picture = self.framed(frames, multiple=picture_multiple(self.config)).float()
        views = len(frames) // len(keys)
        speckle = unit_noise(self.config, keys, views=views, shape=picture.shape[1:], stream=(1,))
        mode = image_mode(self.vae, picture + AUGMENTATION * speckle.to(picture))
        noise = unit_noise(self.config, keys, views=views, shape=mode.shape[1:]).to(mode)
        noisy = mode * self.vae.config.scaling_factor + self.sigma * noise
        return torch.cat([noisy / math.sqrt(self.sigma**2 + 1), mode], dim=1)

    def image_embedding(self, frames: Tensor) -> Tensor:
        """Return CLIP's embedding (k, 1, text_width) of frames (k, 3, H, W) in [-1, 1]."""
        side = self.config.vit.image_px
        # Squashed to a square, as in the published pipeline (which blurs by hand before).
        images = functional.interpolate(
            frames.float(), (side, side), mode="bicubic", antialias=True
        )
        images = (images.clamp(-1, 1) + 1) / 2
        mean = torch.tensor(CLIP_MEAN, device=images.device).view(3, 1, 1)
        std = torch.tensor(CLIP_STD, device=images.device).view(3, 1, 1)
        return self.clip(((images - mean) / std).to(self.clip.dtype)).image_embeds.unsqueeze(1)

    def block(self, sample: Tensor, image: Tensor) -> Tensor:
        """Run the UNet up to the block.

        Args:
            sample: (k, t, 2 z, h, w) of `model_input`.
            image: (k, 1, text_width) of `image_embedding`.

        Returns:
            (f, c, rows, columns).
        """
        unet, (k, t) = self.unet, sample.shape[:2]
        sample = sample.to(unet.dtype)
        step = torch.full((k,), self.timestep, device=sample.device)
        said = torch.tensor([FPS, MOTION_BUCKET, AUGMENTATION], device=sample.device)
        time = unet.time_embedding(unet.time_proj(step).to(sample))
        added = unet.add_time_proj(said).reshape(1, -1).to(sample)
        time = (time + unet.add_embedding(added)).repeat_interleave(t, dim=0)
        return block_output(
            unet,
            sample.flatten(0, 1),
            time=time,
            index=self.config.block_index,
            encoder_hidden_states=image.to(sample).repeat_interleave(t, dim=0),
            image_only_indicator=sample.new_zeros(k, t),
        )


def new_unet(config: PriorConfig) -> UNetSpatioTemporalConditionModel:
    """Make a whole UNet with random weights."""
    from diffusers import UNetSpatioTemporalConditionModel

    dims = config.unet
    return UNetSpatioTemporalConditionModel(
        in_channels=2 * config.vae.latent_channels,
        out_channels=config.vae.latent_channels,
        block_out_channels=dims.widths,
        layers_per_block=dims.n_layers,
        num_attention_heads=dims.heads,
        cross_attention_dim=dims.text_width,
        **block_types(len(dims.widths), spatio_temporal=True),
    )


def new_clip(config: PriorConfig) -> CLIPVisionModelWithProjection:
    """Make an image encoder with random weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    vit = config.vit
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=vit.width,
            intermediate_size=vit.mlp_width,
            projection_dim=config.unet.text_width,
            num_hidden_layers=vit.depth,
            num_attention_heads=vit.heads,
            image_size=vit.image_px,
            patch_size=vit.patch_px,
            hidden_act="gelu",
        )
    )


def _prepare_vae(config: PriorConfig, vae: Any) -> None:
    check_image_vae(config.vae, vae.config, what="the VAE")
    drop_decoder(vae)


def _prepare_unet(config: PriorConfig, unet: Any) -> None:
    prepare_unet(config, unet, heads=unet.config.num_attention_heads)


def _check_clip(config: PriorConfig, found: Any) -> None:
    vit = config.vit
    refuse_disagreements(
        "the CLIP image encoder",
        {
            "vit.width": (found.hidden_size, vit.width),
            "vit.depth": (found.num_hidden_layers, vit.depth),
            "vit.heads": (found.num_attention_heads, vit.heads),
            "vit.mlp_width": (found.intermediate_size, vit.mlp_width),
            "vit.patch_px": (found.patch_size, vit.patch_px),
            "vit.image_px": (found.image_size, vit.image_px),
            "unet.text_width": (found.projection_dim, config.unet.text_width),
        },
    )
