"""Checkpoint directories: written whole or not at all, read without ever being written to.

Layout: ``config.json``, ``model.safetensors``, ``dataset_statistics.json``, ``tokenizer/``,
``prior/{vae,transformer}/``, ``prior/empty_prompt.safetensors``, ``README.md``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

import vega_policy
from vega_policy.policy.config import PolicyConfig
from vega_policy.policy.model import VegaModel
from vega_policy.policy.policy import VegaPolicy
from vega_policy.policy.statistics import load_statistics, save_statistics
from vega_policy.spec import ActionSpec, CheckpointError, ContractError
from vega_policy.spec.names import nearest
from vega_policy.vision.prior import WanPrior, ZeroPrior, build_prior

if TYPE_CHECKING:
    from vega_policy.policy.config import ImageTransform
    from vega_policy.policy.statistics import DatasetStatistics

FORMAT = 1
CONFIG, WEIGHTS, STATISTICS = "config.json", "model.safetensors", "dataset_statistics.json"
TOKENIZER, PRIOR, CARD = "tokenizer", "prior", "README.md"
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
) -> VegaPolicy:
    """Load a policy; nothing is downloaded and nothing is written.

    Args:
        path_or_id: A checkpoint directory, or the name of one that comes with the package.
        dtype: Of the weights, the frozen prior's excepted; None keeps float32.
        device: Where to; None is the CPU.
        unnorm_key: Whose statistics to use; None is allowed where there is only one.
        image_transform: Overrides the checkpoint's.
        expected: The action specification of the environment or robot, compared with the
            checkpoint's.
        max_batch: See `VegaPolicy`.

    Raises:
        CheckpointError: There is no such checkpoint, or its parts disagree with each other or with
            ``expected``; all disagreements are listed, before any weight is loaded.
    """
    folder = resolve(path_or_id)
    config = load_config(folder)
    statistics = load_statistics(folder / STATISTICS)
    tokenizer = _load_tokenizer(folder)
    with torch.device("meta"):
        shapes = _shapes(VegaModel(config, prior=ZeroPrior(config.prior)))
    problems = _disagreements(config, statistics, len(tokenizer))
    problems += _weight_problems(folder / WEIGHTS, shapes)
    if expected is not None:
        problems += config.action.disagreements(expected, ours="the checkpoint", theirs="the run")
    if problems:
        raise CheckpointError(
            f"checkpoint {folder} does not fit: " + "; ".join(problems) + "; use a checkpoint that "
            "was saved in one piece, for this configuration"
        )
    prior = build_prior(config.prior, path=folder / PRIOR) if config.fusion.uses_prior else None
    with torch.random.fork_rng(devices=[]):
        model = VegaModel(config, prior=prior)
    model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    if dtype is not None:
        model.cast(dtype)
    policy = VegaPolicy(
        model=model.eval(),
        tokenizer=tokenizer,
        statistics=statistics,
        unnorm_key=unnorm_key,
        image_transform=image_transform,
        max_batch=max_batch,
    )
    return policy if device is None else policy.to(device)


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
    """Return the directory of a checkpoint.

    Raises:
        CheckpointError: There is none; the message names the nearest known one.
    """
    for folder in (Path(path_or_id), ASSETS / str(path_or_id)):
        if (folder / CONFIG).is_file():
            return folder
    name = str(path_or_id)
    if Path(path_or_id).is_dir():
        raise CheckpointError(
            f"{name} is not a checkpoint: {CONFIG} missing; expected a directory that "
            "save_pretrained has written"
        )
    known = known_checkpoints(Path(path_or_id).parent)
    hint = nearest(name, known) if known else "none is known here; train one with scripts/train.py"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).parent.is_dir():
        hint = (
            "it looks like a hub id, and published checkpoints are not supported by this version; "
            + hint
        )
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
    return suite if suite in load_statistics(resolve(path_or_id) / STATISTICS) else None


def load_config(folder: Path | str) -> PolicyConfig:
    """Read a checkpoint's configuration.

    Raises:
        CheckpointError: It is not one of ours, or not readable.
    """
    path = Path(folder) / CONFIG
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    found = raw.get("vega_policy") if isinstance(raw, Mapping) else None
    if found != FORMAT:
        what = "OpenVLA" if "auto_map" in raw or "openvla" in str(raw).lower() else "foreign"
        raise CheckpointError(
            f"{path} has format {found!r}, expected {FORMAT}: an {what} checkpoint, which this "
            "version cannot read; use one that save_pretrained has written"
        )
    try:
        return PolicyConfig.from_dict(raw["policy"])
    except (KeyError, ContractError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _write(policy: VegaPolicy, folder: Path, card: str) -> None:
    weights = {k: v.contiguous().cpu() for k, v in policy.model.trainable_state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    save_statistics(folder / STATISTICS, policy.statistics)
    policy.tokenizer.save_pretrained(folder / TOKENIZER)
    prior = policy.model.prior
    if isinstance(prior, WanPrior):
        prior.save(folder / PRIOR)
    (folder / CARD).write_text(card)
    config = {"vega_policy": FORMAT, "policy": policy.config.to_dict()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _default_card(policy: VegaPolicy) -> str:
    config = policy.config
    return (
        f"# VEGA-Policy checkpoint\n\nFusion `{config.fusion.name}`, prior `{config.prior.name}`, "
        f"{len(config.cameras)} cameras of {config.image_px} px, chunks of {config.action.horizon} "
        f"actions.\nStatistics of {', '.join(sorted(policy.statistics))}. Success was not measured.\n"
    )


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / TOKENIZER / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no {TOKENIZER}/tokenizer.json; copy the whole checkpoint directory"
        )
    return PreTrainedTokenizerFast.from_pretrained(folder / TOKENIZER, local_files_only=True)


def _shapes(model: VegaModel) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in model.trainable_state_dict().items()}


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


def _weight_problems(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Compare the file's header with what the configuration builds; no weight is read."""
    if not path.is_file():
        return [f"{path.name} is missing"]
    try:
        with safe_open(path, framework="pt") as file:
            found = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
    except Exception as error:  # noqa: BLE001  (the library raises its own, undocumented type)
        return [f"{path.name} cannot be read ({error})"]
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
]
