"""Wan's weights on disk, in the three layouts there are; read, never written to.

- ours: ``vae/``, ``transformer/`` (diffusers), ``empty_prompt.safetensors``;
- published for diffusers (``Wan-AI/Wan2.1-T2V-1.3B-Diffusers``): the same two folders, sharded,
  with ``text_encoder/`` and ``tokenizer/`` in place of the prompt;
- original (``Wan-AI/Wan2.1-T2V-1.3B``): ``config.json`` and ``diffusion_pytorch_model*.safetensors``
  at the top, ``Wan2.1_VAE.pth``, ``models_t5_umt5-xxl-enc-bf16.pth``, ``google/umt5-xxl/``.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false
# ruff: noqa: ANN401
from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vega_policy.spec.errors import CheckpointError
from vega_policy.vision.prior.hub import model_folder
from vega_policy.vision.prior.wan_prompt import (
    PROMPT_FILE,
    TEXT_PATTERNS,
    empty_prompt,
    encoder_files,
    save_prompt,
)
from vega_policy.vision.prior.weight_files import open_weights, shards

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import AutoencoderKLWan, WanTransformer3DModel

WEIGHTS = "diffusion_pytorch_model"
ORIGINAL_VAES = ("Wan2.1_VAE.safetensors", "Wan2.1_VAE.pth")
_PATTERNS = ("*config.json", "model_index.json", "transformer/*", "vae/*", f"{WEIGHTS}*")
_BLOCK = re.compile(r"((?:vace_)?blocks)\.(\d+)\.")


@dataclass(frozen=True)
class WanDirectory:
    """What a directory says it holds; no weight has been read."""

    folder: Path
    is_original: bool
    transformer: Mapping[str, Any]
    """Diffusers configuration of the transformer."""
    vae: Mapping[str, Any]
    """Diffusers configuration of the VAE."""
    transformer_files: tuple[Path, ...]
    vae_files: tuple[Path, ...]

    @property
    def n_stored(self) -> dict[str, int]:
        """Blocks on disk, by the name of their list."""
        config = self.transformer
        return {"blocks": config["num_layers"], "vace_blocks": len(config.get("vace_layers", ()))}

    @property
    def is_vace(self) -> bool:
        """Whether the transformer has VACE's control branch."""
        return "vace_layers" in self.transformer

    def models(self, *, n_blocks: int | None = None) -> tuple[Any, Any]:
        """Return VAE and transformer without memory for weights (device ``meta``).

        Args:
            n_blocks: Blocks the transformer is cut to; None keeps all.

        Raises:
            CheckpointError: There are fewer blocks.
        """
        from diffusers import AutoencoderKLWan, WanTransformer3DModel, WanVACETransformer3DModel

        config = dict(self.transformer)
        if n_blocks is not None:
            if config["num_layers"] < n_blocks:
                raise CheckpointError(
                    f"{self.folder} has {config['num_layers']} blocks, block {n_blocks - 1} is to be "
                    "read; lower prior.block_index or use a deeper prior"
                )
            config["num_layers"] = n_blocks
            if self.is_vace:
                config["vace_layers"] = [i for i in config["vace_layers"] if i < n_blocks]
        kind = WanVACETransformer3DModel if self.is_vace else WanTransformer3DModel
        with torch.device("meta"):
            return AutoencoderKLWan.from_config(dict(self.vae)), kind.from_config(config)

    def fill(self, vae: Any, transformer: Any, *, dtype: torch.dtype = torch.float32) -> None:
        """Give the models of `models` their weights.

        Tensors are read one at a time, so there is never a second copy of the model in memory. With
        another ``dtype`` the transformer's norms, modulation tables and time embedding stay in
        float32, as in the library's own loading, and so do its rotary tables.

        Raises:
            CheckpointError: Keys are missing, unexpected or have another shape; all are listed.
        """
        names = _original_vae_names if self.is_original else _same
        _fill(vae, self.vae_files, dtype, names)
        transformer.rope = fresh_rope(transformer.rope)
        names = _original_transformer_names if self.is_original else _same
        _fill(transformer, self.transformer_files, dtype, names, stored=self.n_stored)


def open_wan(path: Path | str, *, needs_prompt: bool = True) -> WanDirectory:
    """Look at a directory, or at a repository of the hub (fetched unless it is in the cache).

    Args:
        path: A folder in one of the three layouts, or a hub id.
        needs_prompt: Whether a repository's text encoder is fetched as well.

    Raises:
        CheckpointError: It is not a Wan directory, or files are missing; all are listed.
    """
    text = TEXT_PATTERNS if needs_prompt else ()

    def is_complete(folder: Path) -> bool:
        try:
            _look(folder)
            has_prompt = (folder / PROMPT_FILE).is_file() or bool(encoder_files(folder))
            return has_prompt or not needs_prompt
        except CheckpointError:
            return False

    patterns = (*_PATTERNS, *ORIGINAL_VAES, PROMPT_FILE, *text)
    return _look(model_folder(path, patterns=patterns, is_complete=is_complete))


def _look(folder: Path) -> WanDirectory:
    if (folder / "config.json").is_file() and not (folder / "transformer").is_dir():
        return _look_at_original(folder)
    parts = [folder / "vae", folder / "transformer"]
    missing = [f"{p.name}/config.json" for p in parts if not (p / "config.json").is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} is not a prior: {', '.join(missing)} missing; expected vae/ and transformer/ "
            "(diffusers), or the original config.json with its weights"
        )
    transformer = json.loads((folder / "transformer" / "config.json").read_text())
    return WanDirectory(
        folder=folder,
        is_original=False,
        transformer=_known_kind(folder, transformer),
        vae=json.loads((folder / "vae" / "config.json").read_text()),
        transformer_files=tuple(shards(folder / "transformer", WEIGHTS)),
        vae_files=tuple(shards(folder / "vae", WEIGHTS)),
    )


def _look_at_original(folder: Path) -> WanDirectory:
    config = json.loads((folder / "config.json").read_text())
    vae = next((folder / name for name in ORIGINAL_VAES if (folder / name).is_file()), None)
    if vae is None:
        raise CheckpointError(
            f"{folder} has no VAE; expected {' or '.join(ORIGINAL_VAES)} beside config.json"
        )
    _known_kind(folder, config)
    with open_weights(vae) as (_, get):
        sizes = {"base_dim": get("encoder.conv1.weight").shape[0], "z_dim": len(get("conv2.bias"))}
    return WanDirectory(
        folder=folder,
        is_original=True,
        transformer=_diffusers_config(config),
        vae=sizes,
        transformer_files=tuple(shards(folder, WEIGHTS)),
        vae_files=(vae,),
    )


def _known_kind(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    kinds = ("WanTransformer3DModel", "WanVACETransformer3DModel", "WanModel", "VaceWanModel")
    kind, task = config.get("_class_name"), config.get("model_type", "t2v")
    if kind not in kinds or task not in ("t2v", "vace") or config.get("image_dim") is not None:
        raise CheckpointError(
            f"{folder} holds a {kind} for {task}; expected Wan2.1 text-to-video or VACE"
        )
    return config


def _diffusers_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate an original ``config.json``; what it leaves out are the original's defaults."""
    translated = {
        "num_attention_heads": config["num_heads"],
        "attention_head_dim": config["dim"] // config["num_heads"],
        "in_channels": config["in_dim"],
        "out_channels": config["out_dim"],
        "text_dim": config.get("text_dim", 4096),
        "freq_dim": config["freq_dim"],
        "ffn_dim": config["ffn_dim"],
        "num_layers": config["num_layers"],
        "cross_attn_norm": config.get("cross_attn_norm", True),
        "eps": config["eps"],
    }
    if config["_class_name"] == "VaceWanModel":
        every_second = list(range(0, config["num_layers"], 2))
        translated["vace_layers"] = config.get("vace_layers") or every_second
        translated["vace_in_channels"] = config.get("vace_in_dim") or config["in_dim"]
    return translated


def load_wan(
    path: Path | str,
    *,
    n_blocks: int | None = None,
    prompt_file: Path | str = "",
    dtype: torch.dtype = torch.float32,
) -> tuple[AutoencoderKLWan, WanTransformer3DModel, Tensor]:
    """Load VAE, transformer and the empty prompt's embedding (l, text_width) from any layout.

    Args:
        path: The directory, or a hub id.
        n_blocks: Keep only this many transformer blocks, and read no others; None keeps all.
        prompt_file: See `empty_prompt`.
        dtype: See `WanDirectory.fill`.

    Raises:
        CheckpointError: A part is missing or damaged, or there are fewer blocks than asked for.
    """
    directory = open_wan(path, needs_prompt=not prompt_file)
    vae, transformer = directory.models(n_blocks=n_blocks)
    prompt = empty_prompt(directory.folder, prompt_file=prompt_file)
    directory.fill(vae, transformer, dtype=dtype)
    return vae, transformer, prompt


def save_wan(
    path: Path | str, *, vae: AutoencoderKLWan, transformer: WanTransformer3DModel, prompt: Tensor
) -> None:
    """Write our layout.

    Files are written beside and moved into place: the weights being saved may be mapped from the
    files they replace.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in (("vae", vae), ("transformer", transformer)):
        (folder / name).mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as temporary:
            model.save_pretrained(temporary)
            for file in Path(temporary).iterdir():
                file.replace(folder / name / file.name)
    save_prompt(folder / PROMPT_FILE, prompt)


def fresh_rope(rope: Any) -> Any:
    """Return the rotary tables made anew in float32, on the device of the old ones or the CPU."""
    fresh = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
    device = rope.freqs_cos.device
    return fresh if device.type == "meta" else fresh.to(device)


def kept_in_float32(model: nn.Module, name: str) -> bool:
    """Tell whether the library keeps this weight of a model in float32 whatever the model's type."""
    kept = getattr(model, "_keep_in_fp32_modules", None) or ()
    return any(part in name.split(".") for part in kept)


def _same(keys: set[str]) -> dict[str, str]:
    return {key: key for key in keys}


def _original_transformer_names(keys: set[str]) -> dict[str, str]:
    """Return the original names by diffusers' name: the library's converter, run on names."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    return convert_wan_transformer_to_diffusers({key: key for key in keys})


def _original_vae_names(keys: set[str]) -> dict[str, str]:
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    return convert_wan_vae_to_diffusers({key: key for key in keys})


def _fill(
    model: Any,
    files: tuple[Path, ...],
    dtype: torch.dtype,
    names: Callable[[set[str]], dict[str, str]],
    *,
    stored: Mapping[str, int] | None = None,
) -> None:
    """Assign the tensors of ``files`` to a model without weights.

    Args:
        model: Is changed.
        files: All of them must belong to it.
        dtype: Of the weights that the library does not keep in float32.
        names: Returns the files' names by the model's.
        stored: Blocks on disk, of which the model may have fewer.
    """
    wanted = model.state_dict()
    loaded: dict[str, Tensor] = {}
    problems: list[str] = []
    for file in files:
        with open_weights(file) as (keys, get):
            for name, key in sorted(names(keys).items()):
                if name in wanted:
                    target = torch.float32 if kept_in_float32(model, name) else dtype
                    # Copied one by one: on mapped memory, which is not aligned as torch's own is,
                    # kernels sum in another order, and the same weights would give other bits.
                    loaded[name] = get(key).to(target, copy=True)
                elif not _is_cut_off(name, stored or {}):
                    problems.append(f"{key} unexpected")
    problems += [f"{key} missing" for key in sorted(set(wanted) - set(loaded))]
    problems += [
        f"{key} is {list(tensor.shape)}, the configuration builds {list(wanted[key].shape)}"
        for key, tensor in sorted(loaded.items())
        if tensor.shape != wanted[key].shape
    ]
    if problems:
        raise CheckpointError(
            f"{files[0].parent} does not hold the weights its config.json describes: "
            f"{'; '.join(problems)}; copy the directory again"
        )
    model.load_state_dict(loaded, assign=True)


def _is_cut_off(name: str, stored: Mapping[str, int]) -> bool:
    """Tell whether a weight the model lacks belongs to a block that is stored."""
    found = _BLOCK.match(name)
    return found is not None and int(found[2]) < stored.get(found[1], 0)
