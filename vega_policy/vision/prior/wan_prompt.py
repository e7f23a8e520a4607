"""The embedding of the empty prompt, which is all the text a prior needs.

The published text encoder (UMT5-XXL) has 5.7 billion weights and is needed once. Wan cleans white
space, tokenises and appends the end token, so the empty prompt is that token alone: one row of 4096.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vega_policy.spec.errors import CheckpointError
from vega_policy.spec.files import atomic_path
from vega_policy.vision.prior.weight_files import open_weights, shards

if TYPE_CHECKING:
    from collections.abc import Sequence

PROMPT_FILE = "empty_prompt.safetensors"
PROMPT_KEY = "prompt_embeds"
ORIGINAL_ENCODER = "models_t5_umt5-xxl-enc-bf16.pth"
TEXT_PATTERNS = ("text_encoder/*", "tokenizer/*", ORIGINAL_ENCODER, "google/umt5-xxl/*")
_SAMPLES = 64
_SAMPLE_BYTES = 65536

logger = logging.getLogger(__name__)


def empty_prompt(folder: Path, *, prompt_file: Path | str = "") -> Tensor:
    """Return the embedding (l, text_width) in float32, before padding.

    The first of these that there is: ``empty_prompt.safetensors`` in the directory, ``prompt_file``,
    the user's cache, the directory's text encoder. The last is run once (bfloat16, 11 GB of memory
    at full size) and its result cached under the encoder's fingerprint; the directory itself is
    never written to.

    Args:
        folder: A Wan directory in any of its layouts.
        prompt_file: Safetensors, or the ``.pt`` of VEGA-3D.

    Raises:
        CheckpointError: There is none, or a file does not hold one.
    """
    for file in (folder / PROMPT_FILE, Path(prompt_file) if prompt_file else None):
        if file is not None and file.is_file():
            return _read(file)
    if prompt_file:
        raise CheckpointError(
            f"prior.prompt_file is {prompt_file}, which is no file; correct the path or leave it "
            "empty for a directory with a text encoder"
        )
    weights = encoder_files(folder)
    if not weights:
        raise CheckpointError(
            f"{folder} holds neither {PROMPT_FILE} nor a text encoder with its tokenizer; set "
            "prior.prompt_file, or download text_encoder/ and tokenizer/ too"
        )
    cached = cache_folder() / "empty_prompt" / f"{fingerprint(weights)}.safetensors"
    if not cached.is_file():
        size = sum(file.stat().st_size for file in weights) / 1e9
        logger.info("computing the empty prompt once with %s (%.1f GB of weights)", folder, size)
        save_prompt(cached, _encode(folder))
        logger.info("the empty prompt is cached in %s", cached)
    return _read(cached)


def save_prompt(path: Path, prompt: Tensor) -> None:
    """Write an embedding (l, text_width) where `empty_prompt` finds it."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({PROMPT_KEY: prompt.detach().float().cpu().contiguous()}, str(temporary))


def cache_folder() -> Path:
    """Return the user's cache of this package; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vega_policy"


def encoder_files(folder: Path) -> list[Path]:
    """Return the weight files of the directory's text encoder; empty if it cannot be run."""
    if (folder / "text_encoder" / "config.json").is_file() and (folder / "tokenizer").is_dir():
        return shards(folder / "text_encoder", "model")
    original = folder / ORIGINAL_ENCODER
    return [original] if original.is_file() and (folder / "google" / "umt5-xxl").is_dir() else []


def fingerprint(files: Sequence[Path]) -> str:
    """Return a hash of sizes and of sampled parts: reading 11 GB at every start would take long."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{size},".encode())
        with file.open("rb") as handle:
            for i in range(_SAMPLES):
                handle.seek(size * i // _SAMPLES)
                digest.update(handle.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def _read(file: Path) -> Tensor:
    with open_weights(file) as (keys, get):
        names = [key for key in (PROMPT_KEY, "context", "embedding", "") if key in keys]
        names = names or (sorted(keys) if len(keys) == 1 else [])
        prompt = get(names[0]) if names else None
    if prompt is not None and prompt.ndim == 3 and prompt.shape[0] == 1:
        prompt = prompt[0]
    if prompt is None or prompt.ndim != 2:
        found = f"a tensor {list(prompt.shape)}" if prompt is not None else ", ".join(sorted(keys))
        raise CheckpointError(
            f"{file} holds {found}; expected the empty prompt's embedding (tokens, text width) "
            f"under the key {PROMPT_KEY}"
        )
    return prompt.float().clone()


@torch.no_grad()
def _encode(folder: Path) -> Tensor:
    from transformers import AutoTokenizer, UMT5EncoderModel

    original = folder / ORIGINAL_ENCODER
    if (folder / "text_encoder").is_dir():
        names = folder / "tokenizer"
        encoder = UMT5EncoderModel.from_pretrained(
            folder / "text_encoder", dtype=torch.bfloat16, local_files_only=True
        )
    else:
        names = folder / "google" / "umt5-xxl"
        encoder = _original_encoder(original)
    tokenizer = AutoTokenizer.from_pretrained(names, local_files_only=True)
    ids = tokenizer("", add_special_tokens=True, return_tensors="pt").input_ids
    return encoder.eval()(input_ids=ids).last_hidden_state[0]


def _original_encoder(file: Path) -> Any:  # noqa: ANN401
    """Build transformers' class from the original file, whose weights stay mapped."""
    from transformers import UMT5Config, UMT5EncoderModel

    with open_weights(file) as (keys, get):
        tensors = {_encoder_name(key): get(key) for key in keys}
        n_layers = 1 + max(int(key.split(".")[1]) for key in keys if key.startswith("blocks."))
        hidden = get("blocks.0.ffn.gate.0.weight").shape[0]
        buckets, heads = get("blocks.0.pos_embedding.embedding.weight").shape
        inner = get("blocks.0.attn.q.weight").shape[0]
    vocabulary, width = tensors["shared.weight"].shape
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=inner // heads,
        d_ff=hidden,
        num_layers=n_layers,
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        encoder = UMT5EncoderModel(config)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    encoder.load_state_dict(tensors, assign=True)
    return encoder


_ENCODER_NAMES = {
    "norm1": "layer.0.layer_norm",
    "attn": "layer.0.SelfAttention",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def _encoder_name(key: str) -> str:
    """Return transformers' name of an original one."""
    if not key.startswith("blocks."):
        return {"token_embedding.weight": "shared.weight"}.get(key, f"encoder.final_layer_{key}")
    _, index, rest = key.split(".", 2)
    old = next(name for name in _ENCODER_NAMES if rest.startswith(f"{name}."))
    return f"encoder.block.{index}.{_ENCODER_NAMES[old]}{rest.removeprefix(old)}"
