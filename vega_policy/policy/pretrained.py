"""Checkpoint directories: written whole or not at all, read without ever being written to.

Our own layout: ``config.json``, ``model.safetensors`` (or shards with an index),
``dataset_statistics.json``, ``tokenizer/``, ``prior/``, ``README.md``. The published OpenVLA-OFT
layout is read too; see `vega_policy.policy.published`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

import vega_policy
from vega_policy.policy.acceleration import quantise_nf4
from vega_policy.policy.config import PolicyConfig
from vega_policy.policy.empty import empty_model, shapes_of
from vega_policy.policy.model import VegaModel
from vega_policy.policy.policy import VegaPolicy
from vega_policy.policy.published import PublishedFolder, is_published, prepare, read_settings
from vega_policy.policy.published.hub import is_hub_id, snapshot
from vega_policy.policy.published.tensors import (
    INDEX,
    Stored,
    read_json,
    read_safetensors,
    shards,
)
from vega_policy.policy.statistics import (
    DatasetStatistics,
    choose_key,
    key_of_suite,
    load_statistics,
    parse_statistics,
    save_statistics,
)
from vega_policy.policy.tokenizer import load_llama_tokenizer
from vega_policy.spec import ActionSpec, CheckpointError, ContractError
from vega_policy.spec.names import nearest, require_name
from vega_policy.vision.prior import build_prior, save_prior

if TYPE_CHECKING:
    from vega_policy.policy.config import ImageTransform

FORMAT = 1
CONFIG, STATISTICS = "config.json", "dataset_statistics.json"
TOKENIZER, PRIOR, CARD = "tokenizer", "prior", "README.md"
SHARD_BYTES = "5GB"
ASSETS = Path(vega_policy.__file__).parent / "assets"
"""Checkpoints that come with the package; their folder names can be given in place of a path."""


def from_pretrained(
    path_or_id: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    unnorm_key: str | None = None,
    image_transform: ImageTransform | None = None,
    expected: ActionSpec | None = None,
    max_batch: int | None = None,
    base: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    quantise: Literal["nf4"] | None = None,
) -> VegaPolicy:
    """Load a policy, of our own layout or of the published OpenVLA-OFT one; nothing is written.

    Never is more than one weight in memory twice. Weights of a published checkpoint that keep their
    type and stay on the CPU are views of the files, which may be deleted while the policy is in use,
    but not overwritten.

    Args:
        path_or_id: A checkpoint directory, the name of one that comes with the package, or a hub id
            ``owner/name[@revision]``, which is downloaded if the local cache lacks it.
        dtype: Of the weights, the frozen prior's excepted. None keeps float32 for our own, and that
            of the main weights for a published one: bfloat16.
        device: Where to; None is the CPU.
        unnorm_key: Whose statistics to use; None is allowed where there is only one.
        image_transform: Overrides the checkpoint's.
        expected: The action specification of the environment or robot, compared with the
            checkpoint's.
        max_batch: See `VegaPolicy`.
        base: Of a LoRA adapter: directory or hub id of what it was trained on; None is the one it
            names.
        settings: Of a published checkpoint, what it was trained with and does not say, nested as in
            a policy's configuration: ``{"cameras": [...]}``.
        tokenizer: Used in place of the checkpoint's.
        quantise: ``nf4`` stores the language model in 4 bits; see `acceleration.quantise_nf4`.

    Raises:
        CheckpointError: There is no such checkpoint, or its parts disagree with each other or with
            ``expected``; all disagreements are listed, before any weight is loaded.
        ContractError: The device is not here, or the type is none for weights.
    """
    _require_machine(dtype, device)
    folder = resolve(path_or_id)
    found = _read_published if is_published(folder) else _read_ours
    parts = found(folder, base=base, settings=settings, tokenizer=tokenizer)
    problems = parts.problems
    if expected is not None:
        config = parts.config
        problems += config.action.disagreements(expected, ours="the checkpoint", theirs="the run")
    if problems:
        raise CheckpointError(
            f"checkpoint {folder} does not fit: " + "; ".join(problems) + "; use a checkpoint that "
            "was saved in one piece, for this configuration"
        )
    unnorm_key = choose_key(parts.statistics, unnorm_key)
    # What is to become small is read on the CPU: it may not fit the device before.
    model = parts.load(dtype, None if quantise else device)
    if quantise:
        require_name(quantise, ("nf4",), what="quantise")
        quantise_nf4(model, device=device)
    policy = VegaPolicy(
        model=model,
        tokenizer=parts.tokenizer,
        statistics=parts.statistics,
        unnorm_key=unnorm_key,
        image_transform=image_transform,
        max_batch=max_batch,
    )
    return policy if device is None else policy.to(device)


def _require_machine(dtype: torch.dtype | None, device: torch.device | str | None) -> None:
    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ContractError(f"device is {str(device)!r}, this torch sees no GPU; set device='cpu'")
    if dtype is not None and not dtype.is_floating_point:
        raise ContractError(
            f"dtype is {dtype}, expected a floating-point one such as torch.bfloat16; for 4-bit "
            "weights pass quantise='nf4'"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Parts:
    """A checkpoint, all but its weights."""

    config: PolicyConfig
    statistics: dict[str, DatasetStatistics]
    tokenizer: PreTrainedTokenizerBase
    problems: list[str]
    load: Callable[[torch.dtype | None, torch.device | str | None], VegaModel]


def _read_ours(
    folder: Path,
    *,
    base: Path | str | None,
    settings: Mapping[str, Any] | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> _Parts:
    if base is not None or settings:
        raise CheckpointError(
            f"{folder} says itself what it was trained with; base and settings are for published "
            "checkpoints, leave them out"
        )
    config = load_config(folder)
    statistics = load_statistics(folder / STATISTICS)
    tokenizer = tokenizer or _load_tokenizer(folder)
    stored = read_safetensors(shards(folder))
    problems = _disagreements(config, statistics, len(tokenizer))
    problems += _weight_problems(stored, shapes_of(empty_model(config)))

    def load(dtype: torch.dtype | None, device: torch.device | str | None) -> VegaModel:
        has_prior = config.fusion.uses_prior
        prior = build_prior(config.prior, path=folder / PRIOR) if has_prior else None
        model = empty_model(config, prior=prior)
        # Copied one by one, not mapped: where a matrix starts in memory decides which kernel reads
        # it, and a loaded policy must give the bits of the one that was saved.
        weights = {n: t.read().to(device, dtype, copy=True) for n, t in stored.items()}
        model.load_state_dict(weights, strict=False, assign=True)
        return model.eval()

    return _Parts(
        config=config, statistics=statistics, tokenizer=tokenizer, problems=problems, load=load
    )


def _read_published(
    folder: Path,
    *,
    base: Path | str | None,
    settings: Mapping[str, Any] | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> _Parts:
    files = PublishedFolder.open(folder, base=base)
    prepared = prepare(files, settings)
    if tokenizer is None:
        if files.tokenizer is None:
            raise CheckpointError(
                f"{folder} has no tokenizer.json; download it too, or pass a tokenizer"
            )
        tokenizer = load_llama_tokenizer(files.tokenizer)
    statistics = _published_statistics(files)
    config = prepared.config
    # Those of a base model are of other robots: training replaces them.
    problems = [] if files.is_base else _disagreements(config, statistics, len(tokenizer))
    return _Parts(
        config=config,
        statistics=statistics,
        tokenizer=tokenizer,
        problems=problems + list(prepared.plan.problems),
        load=prepared.load,
    )


def save_pretrained(policy: VegaPolicy, path: Path | str, *, card: str | None = None) -> None:
    """Write a checkpoint directory beside ``path`` and move it there when it is complete.

    Raises:
        ContractError: ``path`` exists and is not a checkpoint.
    """
    target = Path(path)
    if target.exists() and any(target.iterdir()) and not (target / CONFIG).is_file():
        raise ContractError(
            f"{target} exists and is not a checkpoint ({CONFIG} missing); choose another directory"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        _write(policy, new, card or _default_card(policy))
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def resolve(path_or_id: Path | str) -> Path:
    """Return the directory of a checkpoint; a hub id is downloaded if the local cache lacks it.

    Raises:
        CheckpointError: There is none; the message names the nearest known one.
    """
    for folder in (Path(path_or_id), ASSETS / str(path_or_id)):
        if (folder / CONFIG).is_file() or (folder.is_dir() and is_published(folder)):
            return folder
    name = str(path_or_id)
    if Path(path_or_id).is_dir():
        raise CheckpointError(
            f"{name} is not a checkpoint: {CONFIG} missing; expected a directory that "
            "save_pretrained has written, or a published OpenVLA-OFT one"
        )
    if is_hub_id(name):
        return snapshot(name)
    known = known_checkpoints(Path(path_or_id).parent)
    hint = nearest(name, known) if known else "none is known here; train one with scripts/train.py"
    raise CheckpointError(f"there is no checkpoint {name!r}; {hint}")


def known_checkpoints(beside: Path | None = None) -> list[str]:
    """Return the checkpoints that come with the package, and those in the folder ``beside``."""
    names = [p.parent.name for p in ASSETS.glob(f"*/{CONFIG}")]
    if beside is not None and beside.is_dir():
        names += [str(p.parent) for p in beside.glob(f"*/{CONFIG}")]
    return sorted(n for n in names if not Path(n).name.startswith("."))


def statistics_key(path_or_id: Path | str, *, suite: str) -> str | None:
    """Return the key of a suite's statistics, or None where the checkpoint has other keys.

    With None, loading takes the only key there is, or lists them.
    """
    return key_of_suite(statistics_of(resolve(path_or_id)), suite)


def statistics_of(
    folder: Path | str, *, base: Path | str | None = None
) -> dict[str, DatasetStatistics]:
    """Read the statistics of a checkpoint by data set, without loading it.

    A base model's are those in its configuration, which are of other robots. Of a fine-tuned one,
    these do not count: they are of the data before.

    Args:
        folder: The directory.
        base: See `from_pretrained`.

    Raises:
        CheckpointError: There are none.
    """
    folder = Path(folder)
    if not is_published(folder):
        return load_statistics(folder / STATISTICS)
    return _published_statistics(PublishedFolder.open(folder, base=base))


def load_config(
    folder: Path | str,
    *,
    base: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> PolicyConfig:
    """Read a checkpoint's configuration.

    Args:
        folder: The directory.
        base: See `from_pretrained`.
        settings: See `from_pretrained`.

    Raises:
        CheckpointError: It is neither ours nor a published one, or not readable.
    """
    folder = Path(folder)
    if is_published(folder):
        return read_settings(PublishedFolder.open(folder, base=base), settings)
    path = folder / CONFIG
    raw = read_json(path)
    found = raw.get("vega_policy")
    if found != FORMAT:
        raise CheckpointError(
            f"{path} has format {found!r}, expected {FORMAT}; use a directory that save_pretrained "
            "has written, or a published OpenVLA-OFT one"
        )
    try:
        return PolicyConfig.from_dict(raw["policy"])
    except (KeyError, ContractError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _write(policy: VegaPolicy, folder: Path, card: str) -> None:
    _write_weights(policy.model.trainable_state_dict(), folder)
    save_statistics(folder / STATISTICS, policy.statistics)
    policy.tokenizer.save_pretrained(folder / TOKENIZER)
    prior = policy.model.prior
    if prior is not None:
        save_prior(prior, folder / PRIOR)
    (folder / CARD).write_text(card)
    config = {"vega_policy": FORMAT, "policy": policy.config.to_dict()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _write_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write one file, or several with an index."""
    split = split_torch_state_dict_into_shards(
        dict(weights), filename_pattern="model{suffix}.safetensors", max_shard_size=SHARD_BYTES
    )
    for file, names in split.filename_to_tensors.items():
        part = {name: _whole(weights[name].detach().cpu()) for name in names}
        save_file(part, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _whole(tensor: Tensor) -> Tensor:
    """Return a tensor that is its whole storage; the thirds of a published matrix share one."""
    is_part = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if is_part else tensor.contiguous()


def _default_card(policy: VegaPolicy) -> str:
    config = policy.config
    return (
        f"# VEGA-Policy checkpoint\n\nFusion `{config.fusion.name}`, prior `{config.prior.name}`, "
        f"{len(config.cameras)} cameras of {config.image_px} px, chunks of {config.action.horizon} "
        f"actions.\nStatistics of {', '.join(sorted(policy.statistics))}. Success was not measured.\n"
    )


def _published_statistics(files: PublishedFolder) -> dict[str, DatasetStatistics]:
    if files.statistics is not None:
        return load_statistics(files.statistics)
    if files.is_base:
        try:
            return parse_statistics(files.config["norm_stats"])
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{files.model / CONFIG} has no norm_stats ({error})") from error
    raise CheckpointError(
        f"{files.path} has a head and no {STATISTICS}; without them its actions have no unit, "
        "download it too"
    )


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / TOKENIZER / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no {TOKENIZER}/tokenizer.json; copy the whole checkpoint directory"
        )
    return PreTrainedTokenizerFast.from_pretrained(folder / TOKENIZER, local_files_only=True)


def _disagreements(
    config: PolicyConfig, statistics: Mapping[str, DatasetStatistics], n_tokens: int
) -> list[str]:
    """List every point in which statistics and tokenizer differ from the configuration."""
    problems: list[str] = []
    for name, entry in statistics.items():
        sizes = (
            ("action", entry.action, config.action.size),
            ("proprio", entry.proprio, config.proprio_size),
        )
        for what, bounds, expected in sizes:
            if what == "proprio" and not expected:
                continue  # taken by no token
            problems += [
                f"statistics of {name}: {what} {field} has {found} numbers, the configuration "
                f"{expected}"
                for field, found in bounds.sizes().items()
                if found != expected
            ]
    if not statistics:
        problems.append("there are no statistics")
    if n_tokens > config.language.vocab_size:
        problems.append(
            f"the tokenizer has {n_tokens} tokens, the configuration {config.language.vocab_size}"
        )
    return problems


def _weight_problems(
    stored: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Compare what the files hold with what the configuration builds; no weight is read."""
    found = {name: tensor.shape for name, tensor in stored.items()}
    problems = [f"weights lack {k}" for k in sorted(set(shapes) - set(found))]
    problems += [f"weights have an unknown {k}" for k in sorted(set(found) - set(shapes))]
    problems += [
        f"weight {k} is {list(found[k])}, the configuration builds {list(shapes[k])}"
        for k in sorted(set(found) & set(shapes))
        if found[k] != shapes[k]
    ]
    return problems


__all__ = [
    "ASSETS",
    "from_pretrained",
    "known_checkpoints",
    "load_config",
    "resolve",
    "save_pretrained",
    "statistics_key",
    "statistics_of",
]
