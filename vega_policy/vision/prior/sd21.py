"""Frozen Stable Diffusion 2.1 features: noise the latent of each frame, read one block of the UNet.

Shape legend: ``b`` batch, ``v`` views (cameras), ``f`` frames (``b * v``), ``z`` latent channels,
``h``/``w`` latent height and width, ``l`` tokens of the prompt.
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

from vega_policy.spec.errors import CheckpointError, ContractError
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
from vega_policy.vision.prior.wan_prompt import PROMPT_FILE, empty_prompt, save_prompt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    from vega_policy.vision.prior.config import PriorConfig


class Sd21Prior(FrozenPrior):
    """One block of the UNet at ``config.timestep``, with the embedding of the empty prompt.

    ``sqrt(a) * latent + sqrt(1 - a) * noise`` with ``a`` the model's own ``alphas_cumprod`` at the
    timestep, which is the paper's ``k`` of 1000 steps; the latent is the posterior's mode times the
    scaling factor. At k = 300 the ratio of noise to latent is that of Wan's t = 0.454; t = 0.3 is
    k = 138. Whether the model predicts noise (``-base``) or velocity is not read.
    """

    def __init__(
        self,
        config: PriorConfig,
        *,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        prompt: Tensor,
    ) -> None:
        """Freeze the parts; what lies behind the block that is read, and the decoder, goes.

        Args:
            config: Settings; sizes must agree with the parts.
            vae: The image VAE.
            unet: The denoiser.
            scheduler: Gives the noise schedule.
            prompt: (l, text_width) embedding of the empty prompt.

        Raises:
            CheckpointError: The parts disagree with the configuration.
            ContractError: The settings contradict each other.
        """
        super().__init__(config)
        refuse_settings(config)
        _prepare_vae(config, vae)
        _prepare_unet(config, unet)
        refuse_disagreements(
            "the prompt", {"unet.text_width": (prompt.shape[-1], config.unet.text_width)}
        )
        steps = len(scheduler.alphas_cumprod)
        if not 0 <= config.timestep < steps:
            raise ContractError(
                f"prior.timestep is {config.timestep}, the schedule has 0 to {steps - 1}"
            )
        self.vae, self.unet, self.scheduler = vae, unet, scheduler
        self.prompt = prompt.detach().float().cpu().clone()
        # No buffer: a cast of the model would round it.
        self.signal = scheduler.alphas_cumprod[int(config.timestep)].clone()
        self.freeze()

    @classmethod
    def from_config(cls, config: PriorConfig, *, seed: int = 0) -> Self:
        """Make a prior with random weights; a fixed draw stands for the empty prompt."""
        with kept_random_state(seed):
            vae = new_image_vae(config.vae)
            unet = new_unet(config)
            prompt = torch.randn(77, config.unet.text_width, device="cpu")
        return cls(config, vae=vae, unet=unet, scheduler=new_scheduler(), prompt=prompt)

    @classmethod
    def load(cls, path: Path | str, config: PriorConfig) -> Self:
        """Read ``unet/``, ``vae/``, ``scheduler/`` and the empty prompt of a diffusers directory.

        The prompt is ``empty_prompt.safetensors`` (as `save` writes it) or ``config.prompt_file``; a
        published directory has ``tokenizer/`` and ``text_encoder/`` instead, which then run once.

        Raises:
            CheckpointError: A part is missing or disagrees with the configuration.
        """
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

        folder = part_folder(
            path,
            parts=("unet", "vae", "scheduler", "text_encoder", "tokenizer"),
            tops=(PROMPT_FILE,),
        )
        files = ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
        require_parts(folder, files, what="a Stable Diffusion directory")
        unet = read_diffusers(
            UNet2DConditionModel, folder / "unet", prepare=partial(_prepare_unet, config)
        )
        vae = read_diffusers(AutoencoderKL, folder / "vae", prepare=partial(_prepare_vae, config))
        scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        prompt = _read_prompt(folder, config.prompt_file)
        return cls(config, vae=vae, unet=unet, scheduler=scheduler, prompt=prompt)

    def save(self, path: Path | str) -> None:
        """Write the directory `load` reads, without what is never run."""
        folder = Path(path)
        self.unet.save_pretrained(folder / "unet")
        self.vae.save_pretrained(folder / "vae")
        self.scheduler.save_pretrained(folder / "scheduler")
        save_prompt(folder / PROMPT_FILE, self.prompt)

    def encode(self, frames: Tensor, *, keys: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:
        """Read the block; see `FrozenPrior.encode`. Only ``noise="keyed"`` looks at the keys."""
        b, v = frames.shape[:2]
        noisy = self.noisy(frames.flatten(0, 1), keys=keys)
        return as_tokens(self.block(noisy), b, v)

    def noisy(self, frames: Tensor, *, keys: Sequence[int]) -> Tensor:
        """Return noisy latents (f, z, h, w) in float32 of frames (f, 3, H, W) in [-1, 1]."""
        latents = image_mode(self.vae, self.framed(frames, multiple=picture_multiple(self.config)))
        latents = latents * self.vae.config.scaling_factor
        noise = unit_noise(
            self.config, keys, views=len(latents) // len(keys), shape=latents.shape[1:]
        )
        signal = self.signal.to(latents)
        return signal.sqrt() * latents + (1 - signal).sqrt() * noise.to(latents)

    def block(self, noisy: Tensor) -> Tensor:
        """Return the block's output (f, c, rows, columns) for noisy latents (f, z, h, w)."""
        unet = self.unet
        noisy = noisy.to(unet.dtype)
        time = unet.get_time_embed(noisy, int(self.config.timestep))
        prompt = self.prompt.to(noisy).expand(len(noisy), -1, -1)
        return block_output(
            unet,
            noisy,
            time=unet.time_embedding(time),
            index=self.config.block_index,
            encoder_hidden_states=prompt,
        )


def new_unet(config: PriorConfig) -> UNet2DConditionModel:
    """Make a whole UNet with random weights."""
    from diffusers import UNet2DConditionModel

    dims = config.unet
    return UNet2DConditionModel(
        in_channels=config.vae.latent_channels,
        out_channels=config.vae.latent_channels,
        block_out_channels=dims.widths,
        layers_per_block=dims.n_layers,
        attention_head_dim=dims.heads,  # the library's name for the number of heads
        cross_attention_dim=dims.text_width,
        use_linear_projection=True,
        **block_types(len(dims.widths)),
    )


def new_scheduler() -> DDIMScheduler:
    """Make the published scheduler."""
    from diffusers import DDIMScheduler

    with torch.device("cpu"):
        return DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )


def _prepare_vae(config: PriorConfig, vae: Any) -> None:
    check_image_vae(config.vae, vae.config, what="the VAE")
    drop_decoder(vae)


def _prepare_unet(config: PriorConfig, unet: Any) -> None:
    prepare_unet(config, unet, heads=unet.config.attention_head_dim)


def _read_prompt(folder: Path, prompt_file: str) -> Tensor:
    """Return the empty prompt's embedding (l, text_width), as the published pipeline makes it."""
    if prompt_file or (folder / PROMPT_FILE).is_file():
        return empty_prompt(folder, prompt_file=prompt_file)
    if not ((folder / "text_encoder").is_dir() and (folder / "tokenizer").is_dir()):
        raise CheckpointError(
            f"{folder} has no empty prompt: {PROMPT_FILE} is missing, and so is text_encoder/ or "
            "tokenizer/, which would make it; add them from the published directory, or set "
            "prior.prompt_file"
        )
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = read_transformers(CLIPTextModel, folder / "text_encoder").eval()
    length = encoder.config.max_position_embeddings
    tokens = tokenizer("", padding="max_length", max_length=length, return_tensors="pt")
    with torch.no_grad():
        return encoder(tokens.input_ids).last_hidden_state[0]
