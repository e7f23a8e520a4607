"""Reading and writing the published parts of a prior: one folder for each model, as on the hub."""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false
# ruff: noqa: ANN401
from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from vega_policy.spec.errors import CheckpointError, ContractError
from vega_policy.vision.prior.hub import model_folder
from vega_policy.vision.prior.weight_files import open_weights, shards

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
    from pathlib import Path

    from vega_policy.vision.prior.config import PriorConfig

WEIGHTS = "diffusion_pytorch_model"
_NO_CONFIG = ("scheduler", "tokenizer", "text_encoder")


def part_folder(path: Path | str, *, parts: Sequence[str], tops: Sequence[str] = ()) -> Path:
    """Return the local folder of a published model, fetching it where ``path`` is a hub id.

    Args:
        path: A directory, or an id such as ``stabilityai/stable-diffusion-2-1``.
        parts: Its sub-folders that are needed; none means the files at the top.
        tops: Files at the top that are needed besides.

    Raises:
        CheckpointError: There is no such directory and the hub does not give it.
    """
    folders = [f"{part}/" for part in parts] or [""]
    # Not the whole folder, which may hold the same weights in half precision and as pickles.
    names = (
        "*config.json",
        "*.safetensors.index.json",
        "*model.safetensors",
        "*.txt",
        "vocab.json",
    )
    patterns = [f"{folder}{name}" for folder in folders for name in (*names, "*-of-*.safetensors")]

    def is_complete(folder: Path) -> bool:
        files = [folder / part / "config.json" for part in parts if part not in _NO_CONFIG]
        return all(file.is_file() for file in files or [folder / "config.json"])

    return model_folder(path, patterns=[*patterns, *tops], is_complete=is_complete)


def require_parts(folder: Path, files: Iterable[str], *, what: str) -> None:
    """Refuse a folder that lacks files.

    Raises:
        CheckpointError: Files are missing; all are listed.
    """
    files = list(files)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} is not {what}: {', '.join(missing)} missing; expected {', '.join(files)}"
        )


def refuse_disagreements(what: str, pairs: Mapping[str, tuple[Any, Any]]) -> None:
    """Compare what was found with the settings.

    Args:
        what: The part, for the message.
        pairs: By setting: what the part has, and what the settings say.

    Raises:
        CheckpointError: They differ; every point is listed.
    """
    problems = [
        f"{name} is {found}, settings say {said}"
        for name, (found, said) in pairs.items()
        if found != said
    ]
    if problems:
        raise CheckpointError(
            f"{what} disagrees with the prior's settings: {'; '.join(problems)}; use another prior "
            "directory or change prior.*"
        )


def refuse_settings(config: PriorConfig, *, clips: bool = False, crops: bool = True) -> None:
    """Refuse settings that a backbone cannot honour.

    Args:
        config: Settings.
        clips: The backbone can read the views of an observation as the frames of one video.
        crops: The released code crops its pictures as ``align="upstream"`` does.

    Raises:
        ContractError: All points at once.
    """
    problems: list[str] = []
    if config.frames == "clip" and not clips:
        problems.append("it reads single images, set prior.frames=still")
    if config.align == "upstream" and not crops:
        problems.append("the released code crops otherwise for it, set prior.align=camera")
    if problems:
        raise ContractError(f"prior {config.name}: {'; '.join(problems)}")


def require_depth(config: PriorConfig, n_blocks: int) -> None:
    """Refuse to read a block that a transformer does not have.

    Raises:
        CheckpointError: There are too few blocks.
    """
    if not 0 <= config.block_index < n_blocks:
        raise CheckpointError(
            f"the transformer has {n_blocks} blocks, block {config.block_index} is to be read; set "
            f"prior.block_index between 0 and {n_blocks - 1} or use a deeper prior"
        )


def require_multiple(config: PriorConfig, multiple: int, *, why: str) -> None:
    """Refuse pictures that do not divide evenly.

    Raises:
        ContractError: Some side the settings name is not a multiple.
    """
    sides = {"image_px": config.image_px}
    if config.align == "upstream":
        sides = {"frame_size": min(config.frame_size), "frame_size ": max(config.frame_size)}
    wrong = {name.strip(): side for name, side in sides.items() if side % multiple or side <= 0}
    if wrong:
        said = ", ".join(f"prior.{name} is {side}" for name, side in wrong.items())
        raise ContractError(f"{said}, {why}; use a multiple of {multiple}")


def read_diffusers(
    kind: Any, folder: Path, *, prepare: Callable[[Any], None] | None = None, **overrides: Any
) -> Any:
    """Build a diffusers model in float32 and fill it; tensors it does not have are not read.

    Args:
        kind: Class of the model.
        folder: Holds ``config.json`` and safetensors.
        prepare: Checks the model's sizes and drops the parts that are not wanted, before any weight
            is read.
        overrides: Take the place of entries of the configuration.

    Raises:
        CheckpointError: Weights are missing or have another shape; all are listed.
    """
    with torch.device("meta"):
        model = kind.from_config(kind.load_config(folder), **overrides)
    if prepare is not None:
        prepare(model)
    wanted = model.state_dict()
    loaded: dict[str, torch.Tensor] = {}
    for file in _weight_files(folder):
        with open_weights(file) as (keys, get):
            # Copied: results on mapped memory, which may lie askew, differ in the last bits.
            for key in keys & set(wanted):
                loaded[key] = get(key).to(torch.float32, copy=True)
    problems = [f"{key} missing" for key in sorted(set(wanted) - set(loaded))]
    problems += [
        f"{key} is {list(tensor.shape)}, the configuration builds {list(wanted[key].shape)}"
        for key, tensor in sorted(loaded.items())
        if tensor.shape != wanted[key].shape
    ]
    _refuse_weights(folder, problems)
    model.load_state_dict(loaded, assign=True)
    return model


def read_transformers(kind: Any, folder: Path, **overrides: Any) -> Any:
    """Load a transformers model in float32 from a local folder.

    Raises:
        CheckpointError: Weights are missing or have another shape; all are listed.
    """
    with kept_random_state():
        model, found = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **overrides,
        )
    problems = [f"{key} missing" for key in sorted(found["missing_keys"])]
    problems += [f"{item[0]} has another shape" for item in sorted(found["mismatched_keys"])]
    _refuse_weights(folder, problems)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # see `read_diffusers`
    return model


def _refuse_weights(folder: Path, problems: list[str]) -> None:
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(
            f"{folder} does not hold the weights its config.json describes and the settings read: "
            f"{'; '.join(problems[:8])}{more}; copy the directory again, or read an earlier block"
        )


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a diffusers model, without its other precisions."""
    whole = folder / f"{WEIGHTS}.safetensors"
    return [whole] if whole.is_file() else shards(folder, WEIGHTS)


@contextmanager
def kept_random_state(seed: int | None = None) -> Generator[None]:
    """Leave the global random state as it is; with a seed, what is made inside follows from it."""
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        yield
