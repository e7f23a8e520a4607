"""Settings of a training run, as frozen dataclasses built from a plain dictionary."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vega_policy.data.augment import AugmentConfig
from vega_policy.data.feature_cache import FeatureDtype
from vega_policy.policy.config import PolicyConfig
from vega_policy.spec import ContractError
from vega_policy.spec.names import require_name
from vega_policy.spec.settings import build
from vega_policy.train.lora import LoraConfig, Tune
from vega_policy.train.metrics import SINKS
from vega_policy.train.ranks import Parallel
from vega_policy.train.schedule import ScheduleConfig
from vega_policy.vision.fusion import FUSIONS
from vega_policy.vision.prior import PRIORS, WEIGHTLESS

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class FeatureConfig:
    """The cache of prior features."""

    cached: bool = True
    """Compute the frozen prior once per frame; off, it runs in every step."""
    dtype: FeatureDtype = "float16"
    batch_size: int = 32
    """Frames per pass of the prior."""


@dataclass(frozen=True)
class DataConfig:
    """Which demonstrations, and how they are read."""

    dirs: tuple[str, ...] = ()
    """Folders with one folder per suite; several are read as one data set."""
    suites: tuple[str, ...] = ("libero_object",)
    cache_dir: str | None = None
    """Decoded frames and features; ``.cache`` in each data folder where None."""
    held_out: float = 0.02
    """Share of the demonstrations kept for validation."""
    demos_per_task: int | None = None
    """Train on the first so many of each task; None: on all. Validation stays the same."""
    skip_damaged: bool = False
    """Leave out files and episodes that cannot be read, with a warning each."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its surroundings."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    weight_decay: float = 0.05
    decay: Literal["matrices", "all"] = "matrices"
    """``matrices``: norms, biases and embeddings of one dimension do not decay."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    """Largest norm of all gradients together; 0 switches clipping off."""
    ema_decay: float = 0.999
    """Of the average weights, which are what is saved; 0 keeps none and saves the weights."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    name: str = "nano"
    """The run's folder below ``run_root``."""
    run_root: str = "runs"
    steps: int = 20000
    """Updates of the weights."""
    batch_size: int = 64
    """Samples in one pass, of all processes together."""
    accumulate: int = 1
    """Passes whose gradients make one update."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic of the forward pass; trained weights and moments are float32."""
    tune: Tune = "full"
    lora: LoraConfig = field(default_factory=LoraConfig)
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights that are not trained."""
    gradient_checkpointing: bool = False
    """Compute activations a second time instead of keeping them."""
    parallel: Parallel = "ddp"
    """How several processes share the work; without effect on one."""
    init_from: str | None = None
    """A policy to start from; its configuration, prior and statistics are kept."""
    graft: bool = False
    """Put the prior and the fusion of ``policy`` on the policy to start from."""
    graft_widen: int = 0
    """Hidden units to add to the semantic projector of the policy to start from, silent until they are
    trained: an arm without a prior gets as many weights as one with it."""
    prior_path: str | None = None
    """Directory of the frozen prior; ``random`` makes one with random weights."""
    statistics: Literal["auto", "data", "checkpoint"] = "auto"
    """``auto``: the checkpoint's where there is one, since new ones change what its outputs mean."""
    log_every: int = 50
    checkpoint_every: int = 1000
    validate_every: int = 1000
    validation_samples: int = 512
    max_minutes: float = 0.0
    """Stop, resumable, after this time; 0 means never."""
    save_policy: Literal["always", "end"] = "always"
    """When the stand-alone policy is written: with every checkpoint, or once, when all steps are
    done. A policy of 7 billion weights is 15 GB; its training checkpoint is what is trained."""
    estimate_memory: bool = False
    """Before anything is loaded, say what each GPU will hold."""
    sinks: tuple[str, ...] = ("jsonl",)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Of a new policy; with ``init_from`` the checkpoint's own holds."""

    @property
    def run_dir(self) -> Path:
        """Where everything of the run is written."""
        return Path(self.run_root) / self.name

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        values = dataclasses.asdict(self)
        values["policy"] = self.policy.to_dict()
        return json.loads(json.dumps(values))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build the settings.

        Raises:
            ContractError: Values of the wrong kind or out of range; all are listed.
        """
        problems: list[str] = []
        rest = {k: v for k, v in values.items() if k != "policy"}
        config = build(cls, rest, problems=problems)
        try:
            policy = PolicyConfig.from_dict(values.get("policy", {}))
        except ContractError as error:
            problems.append(str(error))
        else:
            config = dataclasses.replace(config, policy=policy)
        if not problems:
            problems += _out_of_range(config)
        if problems:
            raise ContractError("training settings: " + "; ".join(problems))
        return config


def _out_of_range(config: TrainConfig) -> list[str]:
    """List settings that no run could have."""
    problems = [
        f"{name} is {value}, expected at least {least}"
        for name, value, least in (
            ("steps", config.steps, 1),
            ("batch_size", config.batch_size, 1),
            ("graft_widen", config.graft_widen, 0),
            ("accumulate", config.accumulate, 1),
            ("log_every", config.log_every, 1),
            ("checkpoint_every", config.checkpoint_every, 1),
            ("validate_every", config.validate_every, 1),
            ("data.features.batch_size", config.data.features.batch_size, 1),
            ("data.augment.shift_px", config.data.augment.shift_px, 0),
            ("optim.schedule.warmup_steps", config.optim.schedule.warmup_steps, 0),
            ("optim.schedule.drop_step", config.optim.schedule.drop_step, 0),
            ("lora.rank", config.lora.rank, 1),
            ("lora.alpha", config.lora.alpha, 1),
        )
        if value < least
    ]
    for sink in config.sinks:
        try:
            require_name(sink, SINKS, what="metric sink")
        except ContractError as error:
            problems.append(str(error))
    for what, name, known in (
        ("prior", config.policy.prior.name, PRIORS),
        ("fusion", config.policy.fusion.name, FUSIONS),
    ):
        try:
            require_name(name, known, what=what)
        except ContractError as error:
            problems.append(str(error))
    if not 0 <= config.data.held_out < 1:
        problems.append(f"data.held_out is {config.data.held_out}, expected a share below 1")
    if config.data.demos_per_task is not None and config.data.demos_per_task < 1:
        problems.append(
            f"data.demos_per_task is {config.data.demos_per_task}, expected at least 1, or null for all"
        )
    if not config.data.dirs:
        problems.append("data.dirs is empty, expected at least one folder of demonstrations")
    if not config.data.suites:
        problems.append("data.suites is empty, expected at least one suite")
    problems += _augment_problems(config)
    if config.init_from is None and config.tune != "full":
        problems.append(
            f"tune is {config.tune!r} but init_from is not set, so random weights would stay as they are; "
            "set init_from to a policy or tune=full"
        )
    if config.init_from is None and config.graft:
        problems.append("graft is true but init_from is not set; set it to a policy to graft on")
    if config.graft_widen and not config.graft:
        problems.append(
            f"graft_widen is {config.graft_widen} but graft is false; set graft=true, or "
            "policy.projector.semantic_hidden where nothing is there yet"
        )
    if config.base_dtype == "bfloat16" and config.precision == "float32":
        problems.append(
            "base_dtype is 'bfloat16' but precision is 'float32'; set both alike, or only precision to "
            "bfloat16"
        )
    if config.init_from is None and config.statistics == "checkpoint":
        problems.append("statistics is 'checkpoint' but init_from is not set; set one of the two")
    is_new = config.init_from is None or config.graft
    policy = config.policy
    needs_weights = policy.fusion.uses_prior and policy.prior.name not in WEIGHTLESS
    if is_new and needs_weights and config.prior_path is None:
        problems.append(
            f"prior_path is not set, expected the directory or hub id of prior {policy.prior.name!r} "
            "(scripts/pretrain_prior.py makes a small wan), or 'random' for random weights"
        )
    return problems


def _augment_problems(config: TrainConfig) -> list[str]:
    augment = config.data.augment
    problems: list[str] = []
    if augment.is_geometric and config.data.features.cached:
        problems.append(
            "data.augment.shift_px and data.augment.crop move the image, but cached prior features are "
            "those of the image at rest; set data.features.cached=false, or both to 0"
        )
    if augment.style == "fast" and (augment.saturation or augment.hue or augment.crop):
        problems.append(
            "data.augment.saturation, hue and crop need data.augment.style=openvla; set it, or all three "
            "to 0"
        )
    if not 0 <= augment.prior_dropout < 1:
        problems.append(
            f"data.augment.prior_dropout is {augment.prior_dropout}, expected a share below 1; to train "
            "without a prior set fusion=none"
        )
    if not 0 <= augment.crop < 1:
        problems.append(
            f"data.augment.crop is {augment.crop}, expected a share of the area below 1"
        )
    return problems
