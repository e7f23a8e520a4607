"""A model with the weights of a published checkpoint, mapped into memory rather than copied."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vega_policy.policy.config import PolicyConfig
from vega_policy.policy.empty import empty_model, shapes_of
from vega_policy.policy.model import VegaModel
from vega_policy.policy.published.keys import LANGUAGE, Source, source_of, why_unused
from vega_policy.policy.published.layout import PublishedFolder
from vega_policy.policy.published.settings import read_settings
from vega_policy.policy.published.tensors import Stored
from vega_policy.spec import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable


log = logging.getLogger(__name__)

_FRESH = ("head.", "proprio.", "vision.semantic.dino_film.", "vision.semantic.siglip_film.")
"""Parts a policy may be given for training although the checkpoint has none."""
_EMBEDDING = f"{LANGUAGE}model.embed_tokens.weight"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What goes where, decided from shapes alone."""

    sources: Mapping[str, Source]
    """Our weights, each with the published one it is read from."""
    fresh: tuple[str, ...]
    """Our weights that start at random."""
    unused: Mapping[str, tuple[str, ...]]
    """Published weights that are left out, by the reason."""
    problems: tuple[str, ...]
    """Weights that are missing, unknown or of another shape, one sentence each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A checkpoint of which only shapes are known: nothing is read yet."""

    folder: PublishedFolder
    config: PolicyConfig
    plan: Plan
    model: VegaModel
    """Without weights."""
    stored: Mapping[str, Stored]

    def load(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> VegaModel:
        """Give the model its weights; call once, and only where the plan has no problems.

        Args:
            dtype: See `load_published_model`.
            device: Where weights go to, each on its own; None leaves them views of the files. Buffers
                stay on the CPU.
        """
        for reason, keys in self.plan.unused.items():
            log.debug("left out since %s: %s", reason, ", ".join(keys))
        if dtype is None:
            dtype = self.stored[_EMBEDDING].read().dtype
        weights = _read(self.plan.sources, self.stored, dtype, device)
        self.model.load_state_dict(weights, strict=False, assign=True)
        if self.plan.fresh:
            log.warning(
                "%s has no %s: random weights for now, train before use",
                self.folder.path,
                ", ".join(sorted({_part(name) for name in self.plan.fresh})),
            )
            _make_fresh(self.model, self.plan.fresh, dtype)
        return self.model.eval()


def prepare(folder: PublishedFolder, settings: Mapping[str, Any] | None = None) -> Prepared:
    """Compare a checkpoint with what its configuration builds, from the headers of its files.

    Raises:
        CheckpointError: Files are missing or damaged, or of another architecture.
    """
    config = read_settings(folder, settings)
    stored = folder.tensors()
    model = empty_model(config)
    plan = make_plan(config, shapes_of(model), {key: t.shape for key, t in stored.items()})
    return Prepared(folder=folder, config=config, plan=plan, model=model, stored=stored)


def load_published_model(
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    base: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> VegaModel:
    """Load the model of a directory in the published layout, without tokenizer and statistics.

    The model has no prior and the fusion ``none``. Weights that keep their type stay views of the
    files, which must not be overwritten while the model is in use (deleting them is fine).

    Args:
        path: The directory.
        dtype: Of every weight; None is that of the main weights, bfloat16 as published, as
            OpenVLA-OFT evaluates. Weights are cast one at a time.
        base: See `PublishedFolder.open`.
        settings: See `read_settings`. Parts these ask for and no file holds are made at random for
            training; a log line names them.

    Raises:
        CheckpointError: Files are missing or damaged, or weights do not fit; every missing,
            unknown or misshapen one is named.
    """
    prepared = prepare(PublishedFolder.open(Path(path), base=base), settings)
    if prepared.plan.problems:
        raise CheckpointError(
            f"checkpoint {path} does not fit: {'; '.join(prepared.plan.problems)}; download it "
            "again, or pass the settings it was trained with"
        )
    return prepared.load(dtype)


def make_plan(
    config: PolicyConfig,
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
) -> Plan:
    """Match our weights with published ones.

    Args:
        config: The policy's.
        wanted: Shapes of our weights.
        found: Shapes of the published weights.
    """
    sources: dict[str, Source] = {}
    fresh: list[str] = []
    problems: list[str] = []
    missing: set[str] = set()
    for name, shape in wanted.items():
        source = source_of(name)
        if source.key not in found:
            if name.startswith(_FRESH) and not _has_part(source.key, found):
                fresh.append(name)
            else:
                missing.add(source.key)
            continue
        sources[name] = source
        given = tuple(source.of(torch.empty(found[source.key], device="meta")).shape)
        if given != shape:
            problems.append(
                f"{source.key} is {list(found[source.key])}, which gives {name} {list(given)} "
                f"instead of {list(shape)}"
            )
    unused: dict[str, list[str]] = defaultdict(list)
    unknown: list[str] = []
    for key in found.keys() - {s.key for s in sources.values()}:
        reason = why_unused(key, config)
        if reason is None:
            unknown.append(key)
        else:
            unused[reason].append(key)
    problems += [f"weight {key} is missing" for key in sorted(missing)]
    problems += [f"weight {key} is unknown" for key in sorted(unknown)]
    return Plan(
        sources=sources,
        fresh=tuple(fresh),
        unused={reason: tuple(sorted(keys)) for reason, keys in unused.items()},
        problems=tuple(problems),
    )


def _has_part(key: str, found: Iterable[str]) -> bool:
    """Return whether any weight of this one's part is there, so that it is damaged, not absent."""
    if ".scale." in key or ".shift." in key:
        return any(".scale." in k or ".shift." in k for k in found)
    start = key.split(".", maxsplit=1)[0] + "."
    return any(k.startswith(start) for k in found)


def _part(name: str) -> str:
    return "FiLM" if "_film." in name else name.split(".", maxsplit=1)[0]


def _read(
    sources: Mapping[str, Source],
    stored: Mapping[str, Stored],
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> dict[str, Tensor]:
    """Read each published tensor once, in the type it is used in."""
    weights: dict[str, Tensor] = {}
    by_key: dict[str, list[str]] = defaultdict(list)
    for name, source in sources.items():
        by_key[source.key].append(name)
    for key, names in by_key.items():
        tensor = stored[key].read().to(device, dtype)
        for name in names:
            weights[name] = sources[name].of(tensor)
    return weights


def _make_fresh(model: VegaModel, names: Iterable[str], dtype: torch.dtype) -> None:
    """Initialise parts in place, with the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for owner in sorted({name.rpartition(".")[0] for name in names}):
            module: Any = model.get_submodule(owner)
            module.to_empty(device="cpu")
            module.reset_parameters()
            if "_film." in owner and model.config.semantic.film_init == "identity":
                for parameter in module.parameters():
                    nn.init.zeros_(parameter)
            module.to(dtype)
