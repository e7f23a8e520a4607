"""Everything before the first update: data, policy, statistics, features, batches."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vega_policy.data.chunks import Batch, ChunkBatches, ChunkDataset, DataSource
from vega_policy.data.episodes import open_suites
from vega_policy.data.feature_cache import FeatureCache
from vega_policy.data.part import Part
from vega_policy.policy import VegaPolicy, parse_statistics
from vega_policy.spec import ContractError
from vega_policy.train.config import TrainConfig
from vega_policy.train.contract import disagreements, look_at
from vega_policy.train.frame_path import frame_transform
from vega_policy.train.learner import Learner, Prompts
from vega_policy.train.lora import prepare_weights
from vega_policy.train.normalisation import normalised
from vega_policy.train.ranks import Ranks
from vega_policy.train.start import Start
from vega_policy.vision.prior import AnyPrior, build_prior
from vega_policy.vision.prior.bank import BANK_SIZE
from vega_policy.vision.prior.store import PriorIdentity, prior_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from vega_policy.policy import VegaModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Stage:
    """Everything that was prepared before the first update."""

    config: TrainConfig
    policy: VegaPolicy
    dataset: ChunkDataset
    batches: ChunkBatches
    held_out: list[Batch]
    learner: Learner
    ranks: Ranks
    origin: dict[str, Any]
    """Hashes of data, prior and starting policy: a continued run must find the same."""


def open_policy(config: TrainConfig) -> VegaPolicy | None:
    """Load the policy to start from, if any, and compare everything with the data."""
    found = [
        episodes
        for _, _, episodes in open_suites(
            config.data.dirs, config.data.suites, skip_damaged=config.data.skip_damaged
        )
    ]
    policy = None
    start = Start.of(config)
    if start is not None:
        policy = start.load()
        if config.graft:
            policy = _grafted(policy, config)
    elif config.policy.fusion.uses_prior and config.prior_path not in (None, "random"):
        # Loaded for its checks alone: a wrong directory must be known before data are decoded.
        build_prior(config.policy.prior, path=config.prior_path)
    problems = disagreements(
        config.policy if policy is None else policy.config,
        look_at(found[0], skip_damaged=config.data.skip_damaged),
        settings=config.policy,
        statistics_keys=policy.statistics
        if start is not None and policy is not None and start.keeps_statistics
        else None,
        suites=config.data.suites,
        prior_dropout=config.data.augment.prior_dropout,
    )
    if problems:
        raise ContractError(
            f"{config.init_from or 'the new policy'} does not fit {found[0].path}: "
            + "; ".join(problems)
        )
    return policy


def prepare(
    config: TrainConfig,
    start: VegaPolicy | None,
    ranks: Ranks,
    *,
    should_stop: Callable[[], bool],
) -> Stage:
    """Decode the data, make or take over the policy, compute the prior's features.

    One process decodes and computes features, while the others wait.

    Raises:
        ContractError: The data holds no sample.
        KeyboardInterrupt: ``should_stop`` said so while features were computed, which can take
            long; those that are done stay in the cache.
    """
    source = DataSource(
        dirs=tuple(Path(d) for d in config.data.dirs),
        suites=config.data.suites,
        cache_dir=None if config.data.cache_dir is None else Path(config.data.cache_dir),
        transform=frame_transform(
            config.policy if start is None else start.config, config.data.augment
        ),
        skip_damaged=config.data.skip_damaged,
    )
    with ranks.main_first():
        dataset = ChunkDataset.open(source, horizon=config.policy.action.horizon)
    policy = _policy_to_train(config, dataset, start)
    model = policy.model.to(ranks.device)
    _fill_bank(config, model.vision.prior, dataset)
    prior_hash = "none"
    features = None
    if model.vision.prior is not None:
        prior_hash = prior_fingerprint(model.vision.prior, policy.config.to_dict()["prior"])
        with ranks.main_first():
            features = _features(config, dataset, model, should_stop=should_stop)
    rows = normalised(dataset, policy.statistics)

    def batches(*, held_out: bool) -> ChunkBatches | None:
        starts = _starts(config, dataset, held_out=held_out)
        if held_out and len(starts) == 0:
            return None
        return ChunkBatches(
            dataset,
            starts=starts,
            targets=rows.targets,
            proprio=rows.proprio,
            batch_size=config.batch_size,
            seed=config.seed,
            features=features,
            pin=ranks.device.type == "cuda",
            part=Part(ranks.rank, ranks.size),
        )

    trained, kept = batches(held_out=False), batches(held_out=True)
    if trained is None:
        raise ContractError("no training samples")
    logger.info(
        "%d demonstrations, %d steps, %d training samples (%.0f batches an epoch), %d tasks",
        sum(len(f.lengths) for f in dataset.files),
        dataset.n_rows,
        trained.n_samples,
        trained.batches_per_epoch,
        len(dataset.instructions),
    )
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    ids, mask = policy.processor.tokenise(dataset.instructions)
    learner = Learner(
        model,
        prompts=Prompts(ids.to(ranks.device), mask),
        config=config.optim,
        augment=config.data.augment,
        total_steps=config.steps,
        precision=torch.bfloat16 if config.precision == "bfloat16" else torch.float32,
        seed=config.seed,
        ranks=ranks,
    )
    return Stage(
        config=config,
        policy=policy,
        dataset=dataset,
        batches=trained,
        held_out=[]
        if kept is None
        else [kept.assemble(r) for r in kept.in_order(config.validation_samples)],
        learner=learner,
        ranks=ranks,
        origin={
            "files": [f.fingerprint for f in dataset.files],
            "prior": prior_hash,
            "starting policy": None if (begin := Start.of(config)) is None else begin.sha256(),
        },
    )


def _starts(config: TrainConfig, dataset: ChunkDataset, *, held_out: bool) -> NDArray[np.int64]:
    data = config.data
    return dataset.starts(
        held_out=held_out, fraction=data.held_out, demos_per_task=data.demos_per_task
    )


def _statistics(config: TrainConfig, dataset: ChunkDataset) -> dict[str, dict[str, Any]]:
    data = config.data
    return dataset.statistics(fraction=data.held_out, demos_per_task=data.demos_per_task)


def _policy_to_train(
    config: TrainConfig, dataset: ChunkDataset, start: VegaPolicy | None
) -> VegaPolicy:
    suite = config.data.suites[0]
    origin = Start.of(config)
    if start is None or origin is None:
        policy = VegaPolicy.create(
            config.policy,
            statistics=parse_statistics(_statistics(config, dataset)),
            instructions=dataset.instructions,
            prior_path=None if config.prior_path == "random" else config.prior_path,
            unnorm_key=suite,
            seed=config.seed,
        )
    else:
        policy = VegaPolicy(
            model=start.model,
            tokenizer=start.tokenizer,
            statistics=start.statistics
            if origin.keeps_statistics
            else parse_statistics(_statistics(config, dataset)),
            unnorm_key=suite,
        )
    prepare_weights(
        policy.model,
        tune=config.tune,
        lora=config.lora,
        base_dtype=getattr(torch, config.base_dtype),
        seed=config.seed,
    )
    return policy


def _grafted(policy: VegaPolicy, config: TrainConfig) -> VegaPolicy:
    """Put prior and fusion of the settings on a policy, unless it already has them."""
    from vega_policy.policy.grafting import graft

    wanted = config.policy
    is_there = policy.config.fusion == wanted.fusion and policy.config.prior == wanted.prior
    if is_there and not config.graft_widen and _is_same_prior(policy, config):
        return policy
    return graft(
        policy,
        prior=wanted.prior,
        fusion=wanted.fusion,
        projector=wanted.projector,
        prior_path=None if config.prior_path == "random" else config.prior_path,
        widen=config.graft_widen,
        seed=config.seed,
    )


def _is_same_prior(policy: VegaPolicy, config: TrainConfig) -> bool:
    """Say whether a policy holds the weights ``prior_path`` names; it may name none."""
    mine, settings = policy.model.prior, config.policy.prior
    if mine is None or config.prior_path is None:
        return True
    path = None if config.prior_path == "random" else config.prior_path
    asked = build_prior(settings, path=path, seed=config.seed)
    return prior_fingerprint(mine, asdict(settings)) == prior_fingerprint(asked, asdict(settings))


def _fill_bank(config: TrainConfig, prior: AnyPrior | None, dataset: ChunkDataset) -> None:
    """Give the control that shows other frames the ones it shows, spread over the data."""
    if prior is None or prior.config.sees != "other" or prior.bank is not None:
        return
    starts = _starts(config, dataset, held_out=False)
    count = min(BANK_SIZE, len(starts))
    prior.bank = dataset.pixels(starts[np.linspace(0, len(starts) - 1, count).astype(np.int64)])


def _features(
    config: TrainConfig,
    dataset: ChunkDataset,
    model: VegaModel,
    *,
    should_stop: Callable[[], bool],
) -> FeatureCache | None:
    settings = config.data.features
    prior = model.vision.prior
    if not settings.cached or prior is None or next(prior.parameters(), None) is None:
        return None  # a control without weights costs nothing to run
    device = next(model.parameters()).device

    def compute(pixels: Tensor, keys: Sequence[int]) -> Tensor:
        if should_stop():
            raise KeyboardInterrupt
        features = model.prior_features(pixels.to(device), keys=keys)
        if features is None:
            raise ValueError(f"{type(prior).__name__} makes no features of frames")
        return features

    return FeatureCache.open(
        dataset,
        rows=np.sort(np.concatenate([_starts(config, dataset, held_out=h) for h in (False, True)])),
        compute=compute,
        identity=PriorIdentity.of(prior),
        dtype=settings.dtype,
        batch_size=settings.batch_size,
    )
