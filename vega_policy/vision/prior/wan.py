"""Frozen Wan2.1 features: noise the latent of each frame, read one block of the transformer.

Shape legend: ``b`` batch, ``v`` views (cameras), ``f`` videos (stills: ``b * v``; clips: ``b``), ``t``
latent frames (1 for a still), ``n`` tokens of one latent frame, ``c`` width of the transformer,
``z`` latent channels, ``H, W`` picture size, ``h, w`` latent height and width.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false
# ruff: noqa: ANN401
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from vega_policy.spec.errors import CheckpointError
from vega_policy.vision.prior.draws import unit_noise
from vega_policy.vision.prior.frozen import FrozenPrior
from vega_policy.vision.prior.still_vae import encode_stills
from vega_policy.vision.prior.text_padding import PADDING_ROWS, read_padding_once
from vega_policy.vision.prior.wan_layouts import (
    fresh_rope,
    kept_in_float32,
    load_wan,
    open_wan,
    save_wan,
)
from vega_policy.vision.prior.wan_prompt import empty_prompt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    from vega_policy.vision.prior.config import PriorConfig, WanDims

__all__ = ["WanPrior", "load_wan", "new_wan", "save_wan"]


class WanPrior(FrozenPrior):
    """Features of a frozen video generator, as in Sec. 3 of VEGA-3D (arXiv:2603.19235v2).

    ``z = (1 - t) * latent + t * noise`` (Eq. 4) with the *mode* of the VAE's posterior, not a sample;
    the output of block ``block_index`` (Eq. 5) is average-pooled to the target grid. Blocks behind it
    do not exist here, the final norm and projection are not run, and what depends on the empty prompt
    and on the timestep alone is computed once.

    With ``frames="still"`` every frame is its own one-frame video (so is it in the paper's code: no
    attention across frames or views). With ``"clip"`` the views of an observation are one video.

    See `FrozenPrior` for what being frozen means.
    """

    is_vace = False

    def __init__(
        self,
        config: PriorConfig,
        *,
        vae: AutoencoderKLWan,
        transformer: WanTransformer3DModel,
        prompt: Tensor,
    ) -> None:
        """Freeze the parts.

        Args:
            config: Settings; ``width`` and ``dims`` must agree with the parts.
            vae: Any `AutoencoderKLWan`.
            transformer: Blocks after ``config.block_index`` are dropped.
            prompt: (l, text_width) embedding of the empty prompt, before padding.

        Raises:
            CheckpointError: The parts disagree with the configuration.
        """
        super().__init__(config)
        self._require_agreement(config, vae, transformer, prompt)
        cut(transformer, n_blocks=config.block_index + 1)
        read_padding_once(transformer, n_text=config.prompt_tokens)
        self.vae = vae
        self.transformer = transformer
        self.prompt = prompt.detach().float().cpu().clone()
        self._constants: tuple[Tensor, Tensor] | None = None
        self._latent_scale: tuple[Tensor, Tensor] | None = None
        self._constant_noise: Tensor | None = None
        self.freeze()

    @classmethod
    def from_config(cls, config: PriorConfig, *, seed: int = 0) -> Self:
        """Make a prior with random weights of the sizes in ``config.dims``."""
        vae, transformer, prompt = new_wan(config.dims, seed=seed, is_vace=cls.is_vace)
        return cls(config, vae=vae, transformer=transformer, prompt=prompt)

    @classmethod
    def load(
        cls, path: Path | str, config: PriorConfig, *, dtype: torch.dtype = torch.float32
    ) -> Self:
        """Read a directory in any of the layouts of `wan_layouts`, or a repository of the hub.

        Only blocks up to ``config.block_index`` are read. What does not agree with the settings is
        refused before any weight is.

        Args:
            path: The directory or hub id.
            config: Settings.
            dtype: float32 as published, or bfloat16 (see `WanDirectory.fill`).

        Raises:
            CheckpointError: A part is missing or disagrees with the configuration.
        """
        directory = open_wan(path, needs_prompt=not config.prompt_file)
        vae, transformer = directory.models(n_blocks=config.block_index + 1)
        cls._require_agreement(config, vae, transformer, None)
        prompt = empty_prompt(directory.folder, prompt_file=config.prompt_file)
        cls._require_agreement(config, vae, transformer, prompt)
        directory.fill(vae, transformer, dtype=dtype)
        return cls(config, vae=vae, transformer=transformer, prompt=prompt)

    def save(self, path: Path | str) -> None:
        """Write the directory `load` reads (transformer cut after the block read)."""
        save_wan(path, vae=self.vae, transformer=self.transformer, prompt=self.prompt)

    def encode(self, frames: Tensor, *, keys: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:
        """Read the block; see `FrozenPrior.encode`. Only ``noise="keyed"`` looks at the keys."""
        b, v = frames.shape[:2]
        if self.config.frames == "clip":
            latents = self.clip_latents(frames)
            noise = self.noise(keys, views=1, grid=latents.shape[-3:])
        else:
            latents = self.latents(frames.flatten(0, 1)).unsqueeze(2)
            noise = self.noise(keys, views=v, grid=latents.shape[-2:]).unsqueeze(2)
        t = self.config.noise_level
        noisy = (1 - t) * latents + t * noise.to(latents)
        tokens, grid = self.read_block(noisy, latents)
        if self.config.frames == "clip":
            return tokens.unflatten(1, (latents.shape[2], -1))[:, latent_frame_of(v)], grid
        return tokens.unflatten(0, (b, v)), grid

    def latents(self, frames: Tensor) -> Tensor:
        """Return normalised latents (f, z, h, w) of frames (f, 3, H, W) in [-1, 1]."""
        picture = self.picture(frames).to(self.vae.dtype)
        return self._normalised(encode_stills(self.vae, picture))

    def clip_latents(self, videos: Tensor) -> Tensor:
        """Return normalised latents (b, z, t, h, w) of videos (b, v, 3, H, W) in [-1, 1].

        The VAE takes the first frame alone and then four at a time; the last frame is repeated until
        they come out even. See `latent_frame_of`.
        """
        b, v = videos.shape[:2]
        picture = self.picture(videos.flatten(0, 1)).to(self.vae.dtype).unflatten(0, (b, v))
        last = picture[:, -1:].expand(-1, -(v - 1) % 4, -1, -1, -1)
        video = torch.cat([picture, last], dim=1).transpose(1, 2)
        return self._normalised(self.vae.encode(video).latent_dist.mode())

    def picture(self, frames: Tensor) -> Tensor:
        """Return what the VAE is given of frames (f, 3, h, w): see ``config.align``."""
        patch = self.transformer.config.patch_size[-1]
        return self.framed(frames, multiple=self.vae.config.scale_factor_spatial * patch)

    def noise(self, keys: Sequence[int], *, views: int, grid: Sequence[int]) -> Tensor:
        """Return unit noise (b * views, z, *grid) beside the weights; see `unit_noise`."""
        shape, device = (self.vae.config.z_dim, *grid), self.vae.device
        if self.config.noise == "keyed":
            return unit_noise(self.config, keys, views=views, shape=shape).to(device)
        one = self._constant_noise
        if one is None or one.shape[1:] != shape or one.device != device:
            # Travels to a GPU once, not at every answer.
            one = unit_noise(self.config, [0], views=1, shape=shape).to(device)
            self._constant_noise = one
        return one.expand(len(keys) * views, *shape)

    def read_block(self, noisy: Tensor, latents: Tensor) -> tuple[Tensor, tuple[int, int]]:  # noqa: ARG002
        """Return the block's tokens (f, t * n, c) and (rows, columns).

        Args:
            noisy: (f, z, t, h, w) noisy latents.
            latents: The same without noise, for a transformer that is also shown them.
        """
        return self.block_output(noisy)

    def block_output(self, noisy: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Run the transformer's first ``block_index + 1`` blocks.

        Args:
            noisy: (f, z, h, w) noisy latents of stills, or (f, z, t, h, w).

        Returns:
            (f, t * n, c), by latent frame, then row-major, and the token grid (rows, columns).
        """
        hidden, text, time, rotary, grid = self.block_inputs(noisy)
        for block in self.transformer.blocks:
            hidden = block(hidden, text, time, rotary)
        return hidden, grid

    def block_inputs(self, noisy: Tensor) -> tuple[Tensor, Tensor, Tensor, Any, tuple[int, int]]:
        """Return embedded patches, text, time and rotary tables for noisy latents, and the grid."""
        model = self.transformer
        text, time = self._constant_inputs()
        video = noisy if noisy.ndim == 5 else noisy.unsqueeze(2)
        video = video.to(model.patch_embedding.weight.dtype)
        hidden = model.patch_embedding(video)
        grid = (hidden.shape[-2], hidden.shape[-1])
        hidden = hidden.flatten(2).transpose(1, 2).contiguous()
        return hidden, text.expand(hidden.shape[0], -1, -1), time, model.rope(video), grid

    def _normalised(self, mode: Tensor) -> Tensor:
        """Return (mode - mean) / std of latents (f, z, ...)."""
        mode = mode.float()
        shape = (-1, *(1,) * (mode.ndim - 2))
        if self._latent_scale is None or self._latent_scale[0].device != mode.device:
            # No buffers: they would be rounded when the model is cast.
            self._latent_scale = (
                torch.tensor(self.vae.config.latents_mean, device=mode.device),
                torch.tensor(self.vae.config.latents_std, device=mode.device),
            )
        mean, std = (scale.view(shape) for scale in self._latent_scale)
        return (mode - mean) / std

    def _constant_inputs(self) -> tuple[Tensor, Tensor]:
        """Return the text (1, l, c) and time (1, 6, c) inputs of the blocks, computed once."""
        model = self.transformer
        weight = model.patch_embedding.weight
        cached = self._constants
        if (
            cached is not None
            and cached[0].device == weight.device
            and cached[0].dtype == weight.dtype
        ):
            return cached
        prompt = self.prompt
        # A few rows of padding stand for all of them: see `read_padding_once`.
        padding = min(PADDING_ROWS, self.config.prompt_tokens - prompt.shape[0])
        prompt = functional.pad(prompt, (0, 0, 0, padding)).unsqueeze(0).to(weight)
        timestep = torch.tensor([self.config.timestep], device=weight.device)
        _, time, text, _ = model.condition_embedder(timestep, prompt, None)
        self._constants = (text, time.unflatten(1, (6, -1)))
        return self._constants

    def _apply(self, fn: Any, recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        """Move or cast; what the library keeps in float32 is moved only."""
        self._constants = self._latent_scale = self._constant_noise = None
        model = self.transformer
        kept = {
            name: parameter.data
            for name, parameter in model.named_parameters()
            if kept_in_float32(model, name)
        }
        super()._apply(fn, recurse)
        for name, before in kept.items():
            parameter = model.get_parameter(name)
            if parameter.dtype != before.dtype:
                parameter.data = before.to(parameter.device)
        if model.rope.freqs_cos.dtype != torch.float32:  # a cast has rounded the rotary tables
            model.rope = fresh_rope(model.rope)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._constants = None
        super()._load_from_state_dict(*args, **kwargs)

    @classmethod
    def _require_agreement(
        cls, config: PriorConfig, vae: Any, transformer: Any, prompt: Tensor | None
    ) -> None:
        problems = _disagreements(config, vae, transformer, prompt)
        if hasattr(transformer, "vace_blocks") != cls.is_vace:
            name = "vace" if hasattr(transformer, "vace_blocks") else "wan"
            problems.append(f"the transformer is that of prior.name={name}")
        if problems:
            raise CheckpointError(
                "the prior disagrees with the configuration: "
                + "; ".join(problems)
                + "; use another prior directory or change the prior's settings"
            )


def latent_frame_of(n_frames: int) -> list[int]:
    """Return, for each frame of a clip, the latent frame that covers it.

    Latent frame 0 is frame 0; latent frame j is frames 4j - 3 to 4j. Frames that share one get the
    same tokens.
    """
    return [(i + 3) // 4 for i in range(n_frames)]


def cut(transformer: Any, *, n_blocks: int) -> None:
    """Drop the blocks of a Wan or VACE transformer behind the first ``n_blocks``."""
    del transformer.blocks[n_blocks:]
    transformer.register_to_config(num_layers=n_blocks)
    if hasattr(transformer, "vace_blocks"):
        layers = [i for i in transformer.config.vace_layers if i < n_blocks]
        del transformer.vace_blocks[len(layers) :]
        transformer.register_to_config(vace_layers=layers)


def new_wan(
    dims: WanDims, *, seed: int = 0, is_vace: bool = False
) -> tuple[AutoencoderKLWan, Any, Tensor]:
    """Make a VAE, a full transformer and an empty-prompt embedding with random weights.

    The prompt embedding is (1, text_width): a nano model has no text encoder, so a fixed draw
    stands for "the empty prompt". With ``is_vace`` every second block has a control block, as in the
    published model.
    """
    from diffusers import AutoencoderKLWan, WanTransformer3DModel, WanVACETransformer3DModel

    sizes: dict[str, Any] = {
        "num_attention_heads": dims.heads,
        "attention_head_dim": dims.head_dim,
        "in_channels": dims.latent_channels,
        "out_channels": dims.latent_channels,
        "text_dim": dims.text_width,
        "freq_dim": dims.frequencies,
        "ffn_dim": dims.ffn_width,
        "num_layers": dims.n_blocks,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(base_dim=dims.vae_width, z_dim=dims.latent_channels)
        if is_vace:
            mask = vae.config.scale_factor_spatial**2
            sizes |= {
                "vace_layers": list(range(0, dims.n_blocks, 2)),
                "vace_in_channels": 2 * dims.latent_channels + mask,
            }
            transformer = WanVACETransformer3DModel(**sizes)
        else:
            transformer = WanTransformer3DModel(**sizes)
        prompt = torch.randn(1, dims.text_width)
    return vae, transformer, prompt


def _disagreements(
    config: PriorConfig,
    vae: AutoencoderKLWan,
    transformer: WanTransformer3DModel,
    prompt: Tensor | None,
) -> list[str]:
    """List every point in which the parts and the settings differ."""
    found = transformer.config
    width = found.num_attention_heads * found.attention_head_dim
    pairs = [
        ("width", width, config.width),
        ("latent channels (transformer)", found.in_channels, config.dims.latent_channels),
        ("latent channels (vae)", vae.config.z_dim, config.dims.latent_channels),
        ("heads", found.num_attention_heads, config.dims.heads),
        ("head_dim", found.attention_head_dim, config.dims.head_dim),
        ("ffn_width", found.ffn_dim, config.dims.ffn_width),
        ("text_width", found.text_dim, config.dims.text_width),
        ("vae_width", vae.config.base_dim, config.dims.vae_width),
    ]
    if prompt is not None:
        pairs.append(("prompt embedding width", prompt.shape[-1], config.dims.text_width))
    problems = [f"{what} is {a}, settings say {b}" for what, a, b in pairs if a != b]
    if len(transformer.blocks) <= config.block_index:
        problems.append(
            f"{len(transformer.blocks)} blocks, but block_index is {config.block_index} (from 0)"
        )
    if prompt is not None and prompt.shape[0] > config.prompt_tokens:
        problems.append(
            f"prompt has {prompt.shape[0]} tokens, settings pad it to {config.prompt_tokens}"
        )
    return problems
