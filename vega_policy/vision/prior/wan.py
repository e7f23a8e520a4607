"""Frozen Wan2.1 features: noise the latent of each frame, read one block of the transformer.

Shape legend: ``b`` batch, ``v`` views (cameras), ``f`` frames (``b * v``), ``n`` tokens of one
view, ``c`` width of the transformer, ``z`` latent channels, ``h``/``w`` latent height and width.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false
# ruff: noqa: ANN401
from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from vega_policy.spec.errors import CheckpointError
from vega_policy.spec.files import atomic_path
from vega_policy.vision.prior.frozen import FrozenPrior
from vega_policy.vision.prior.still_vae import encode_stills

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    from vega_policy.vision.prior.config import PriorConfig, WanDims

PROMPT_FILE = "empty_prompt.safetensors"
PROMPT_KEY = "prompt_embeds"


class WanPrior(FrozenPrior):
    """Features of a frozen video generator, as in Sec. 3 of VEGA-3D (arXiv:2603.19235v2).

    Every frame is its own one-frame video (so is it in the paper's code: no attention across
    frames or views). ``z = (1 - t) * latent + t * noise`` (Eq. 4) with the *mode* of the VAE's
    posterior, not a sample; the output of block ``block_index`` (Eq. 5) is average-pooled to the
    target grid. Blocks behind it do not exist here, the final norm and projection are not run, and
    what depends on the empty prompt and on the timestep alone is computed once.

    See `FrozenPrior` for what being frozen means.
    """

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
        problems = _disagreements(config, vae, transformer, prompt)
        if problems:
            raise CheckpointError(
                "the prior disagrees with the configuration: "
                + "; ".join(problems)
                + "; use another prior directory or change the prior's settings"
            )
        del transformer.blocks[config.block_index + 1 :]
        transformer.register_to_config(num_layers=config.block_index + 1)
        self.vae = vae
        self.transformer = transformer
        self.prompt = prompt.detach().float().cpu().clone()
        self._constants: tuple[Tensor, Tensor] | None = None
        self.freeze()

    @classmethod
    def from_config(cls, config: PriorConfig, *, seed: int = 0) -> Self:
        """Make a prior with random weights of the sizes in ``config.dims``."""
        vae, transformer, prompt = new_wan(config.dims, seed=seed)
        return cls(config, vae=vae, transformer=transformer, prompt=prompt)

    @classmethod
    def load(cls, path: Path | str, config: PriorConfig) -> Self:
        """Read a diffusers directory with ``transformer/``, ``vae/`` and ``empty_prompt.safetensors``.

        Only blocks up to ``config.block_index`` are kept.

        Raises:
            CheckpointError: A part is missing or disagrees with the configuration.
        """
        vae, transformer, prompt = load_wan(path, n_blocks=config.block_index + 1)
        return cls(config, vae=vae, transformer=transformer, prompt=prompt)

    def save(self, path: Path | str) -> None:
        """Write the diffusers directory `load` reads (transformer cut after the block read)."""
        save_wan(path, vae=self.vae, transformer=self.transformer, prompt=self.prompt)

    def encode(self, frames: Tensor, *, keys: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:
        """Read the block; see `FrozenPrior.encode`. Only ``noise="keyed"`` looks at the keys."""
        b, v = frames.shape[:2]
        latents = self.latents(frames.flatten(0, 1))
        noise = self.noise(keys, views=v, grid=tuple(latents.shape[-2:])).to(latents)
        t = self.config.noise_level
        tokens, grid = self.block_output((1 - t) * latents + t * noise)
        return tokens.unflatten(0, (b, v)), grid

    def latents(self, frames: Tensor) -> Tensor:
        """Return normalised latents (f, z, h, w) of frames (f, 3, H, W) in [-1, 1]."""
        side = self.config.image_px
        frames = frames.to(self.vae.dtype)
        if frames.shape[-2:] != (side, side):
            frames = functional.interpolate(
                frames.float(), (side, side), mode="bicubic", antialias=True
            ).clamp(-1, 1)
            frames = frames.to(self.vae.dtype)
        mode = encode_stills(self.vae, frames).float()
        # Made at every call: as buffers the constants would be rounded when the model is cast.
        mean = torch.tensor(self.vae.config.latents_mean, device=mode.device).view(-1, 1, 1)
        std = torch.tensor(self.vae.config.latents_std, device=mode.device).view(-1, 1, 1)
        return (mode - mean) / std

    def noise(self, keys: Sequence[int], *, views: int, grid: tuple[int, ...]) -> Tensor:
        """Return unit noise (b * views, z, h, w), a function of the arguments and settings alone.

        Always drawn on the CPU, so that a GPU sees the same numbers.
        """
        shape = (self.vae.config.z_dim, *grid)
        if self.config.noise == "constant":
            one = torch.randn(shape, generator=_generator(self.config.noise_seed))
            return one.expand(len(keys) * views, *shape)
        draws = [
            torch.randn(views, *shape, generator=_generator(self.config.noise_seed, key))
            for key in keys
        ]
        return torch.cat(draws)

    def block_output(self, noisy: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Run the transformer's first ``block_index + 1`` blocks.

        Args:
            noisy: (f, z, h, w) noisy latents.

        Returns:
            (f, tokens, c) in row-major order, and the token grid (rows, columns).
        """
        model = self.transformer
        text, time = self._constant_inputs()
        video = noisy.unsqueeze(2).to(model.patch_embedding.weight.dtype)
        rotary = model.rope(video)
        hidden = model.patch_embedding(video)
        grid = (hidden.shape[-2], hidden.shape[-1])
        hidden = hidden.flatten(2).transpose(1, 2).contiguous()
        text = text.expand(hidden.shape[0], -1, -1)
        for block in model.blocks:
            hidden = block(hidden, text, time, rotary)
        return hidden, grid

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
        missing = self.config.prompt_tokens - prompt.shape[0]
        prompt = functional.pad(prompt, (0, 0, 0, missing)).unsqueeze(0).to(weight)
        timestep = torch.tensor([self.config.timestep], device=weight.device)
        _, time, text, _ = model.condition_embedder(timestep, prompt, None)
        self._constants = (text, time.unflatten(1, (6, -1)))
        return self._constants

    def _apply(self, fn: Any, recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        self._constants = None
        super()._apply(fn, recurse)
        rope = self.transformer.rope
        if rope.freqs_cos.dtype != torch.float32:  # a cast has rounded the rotary tables
            fresh = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
            self.transformer.rope = fresh.to(rope.freqs_cos.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._constants = None
        super()._load_from_state_dict(*args, **kwargs)


def new_wan(
    dims: WanDims, *, seed: int = 0
) -> tuple[AutoencoderKLWan, WanTransformer3DModel, Tensor]:
    """Make a VAE, a full transformer and an empty-prompt embedding with random weights.

    The prompt embedding is (1, text_width): a nano model has no text encoder, so a fixed draw
    stands for "the empty prompt".
    """
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(base_dim=dims.vae_width, z_dim=dims.latent_channels)
        transformer = WanTransformer3DModel(
            num_attention_heads=dims.heads,
            attention_head_dim=dims.head_dim,
            in_channels=dims.latent_channels,
            out_channels=dims.latent_channels,
            text_dim=dims.text_width,
            freq_dim=dims.frequencies,
            ffn_dim=dims.ffn_width,
            num_layers=dims.n_blocks,
        )
        prompt = torch.randn(1, dims.text_width)
    return vae, transformer, prompt


def save_wan(
    path: Path | str, *, vae: AutoencoderKLWan, transformer: WanTransformer3DModel, prompt: Tensor
) -> None:
    """Write ``vae/``, ``transformer/`` (diffusers layout) and ``empty_prompt.safetensors``."""
    from safetensors.torch import save_file

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    vae.save_pretrained(folder / "vae")
    transformer.save_pretrained(folder / "transformer")
    with atomic_path(folder / PROMPT_FILE) as temporary:
        save_file({PROMPT_KEY: prompt.detach().float().cpu().contiguous()}, str(temporary))


def load_wan(
    path: Path | str, *, n_blocks: int | None = None
) -> tuple[AutoencoderKLWan, WanTransformer3DModel, Tensor]:
    """Read what `save_wan` or a published diffusers directory with our prompt file holds.

    Args:
        path: The directory.
        n_blocks: Keep only this many transformer blocks; None keeps all.

    Raises:
        CheckpointError: A part is missing, or there are fewer blocks than asked for.
    """
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from safetensors.torch import load_file

    folder = Path(path)
    parts = (folder / "vae" / "config.json", folder / "transformer" / "config.json")
    missing = [
        str(p.relative_to(folder)) for p in (*parts, folder / PROMPT_FILE) if not p.is_file()
    ]
    if missing:
        raise CheckpointError(
            f"{folder} is not a prior: {', '.join(missing)} missing; expected a diffusers directory "
            f"with vae/, transformer/ and {PROMPT_FILE}"
        )
    overrides: dict[str, Any] = {}
    if n_blocks is not None:
        found = WanTransformer3DModel.load_config(folder / "transformer")["num_layers"]
        if found < n_blocks:
            raise CheckpointError(
                f"{folder}/transformer has {found} blocks, block {n_blocks - 1} is to be read; "
                "lower prior.block_index or use a deeper prior"
            )
        overrides["num_layers"] = n_blocks
    transformer = _load_part(WanTransformer3DModel, folder / "transformer", **overrides)
    vae = _load_part(AutoencoderKLWan, folder / "vae")
    return vae, transformer, load_file(folder / PROMPT_FILE)[PROMPT_KEY]


def _load_part(kind: Any, folder: Path, **overrides: Any) -> Any:
    """Build a diffusers model in float32 and fill it; tensors it does not have are not read.

    The library's own ``from_pretrained`` needs another package to cut blocks off.
    """
    with torch.random.fork_rng(devices=[]):
        model = kind.from_config(kind.load_config(folder), **overrides)
    wanted = model.state_dict()
    loaded: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in set(tensors.keys()) & set(wanted):
                loaded[key] = tensors.get_tensor(key)
    problems = [f"{key} missing" for key in sorted(set(wanted) - set(loaded))]
    problems += [
        f"{key} is {list(tensor.shape)}, the configuration builds {list(wanted[key].shape)}"
        for key, tensor in sorted(loaded.items())
        if tensor.shape != wanted[key].shape
    ]
    if problems:
        raise CheckpointError(
            f"{folder} does not hold the weights its config.json describes: {'; '.join(problems)}; "
            "copy the directory again"
        )
    model.load_state_dict(loaded)
    return model


def _generator(*parts: int) -> torch.Generator:
    """Return a generator whose state depends on every part, in every process alike."""
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _disagreements(
    config: PriorConfig, vae: AutoencoderKLWan, transformer: WanTransformer3DModel, prompt: Tensor
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
        ("prompt embedding width", prompt.shape[-1], config.dims.text_width),
        ("vae_width", vae.config.base_dim, config.dims.vae_width),
    ]
    problems = [f"{what} is {a}, settings say {b}" for what, a, b in pairs if a != b]
    if len(transformer.blocks) <= config.block_index:
        problems.append(
            f"{len(transformer.blocks)} blocks, but block_index is {config.block_index} (from 0)"
        )
    if prompt.shape[0] > config.prompt_tokens:
        problems.append(
            f"prompt has {prompt.shape[0]} tokens, settings pad it to {config.prompt_tokens}"
        )
    return problems
