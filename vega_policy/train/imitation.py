"""Imitation: a policy learns the chunks of expert actions that followed each observation.

The run is a function of its settings and data. Batches are drawn by number, so a run that was killed
and continued ends, on a CPU, with the same bits as one that never stopped.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from vega_policy.data.chunks import Batch, ChunkBatches, ChunkDataset, DataSource
from vega_policy.data.feature_cache import FeatureCache, prior_fingerprint
from vega_policy.data.libero_hdf5 import task_files
from vega_policy.data.prefetch import prefetched
from vega_policy.data.progress import Progress
from vega_policy.policy import VegaPolicy, from_pretrained, load_statistics, parse_statistics
from vega_policy.policy.pretrained import STATISTICS, resolve
from vega_policy.spec import CheckpointError, ContractError, PolicyFault
from vega_policy.spec.files import write_atomic
from vega_policy.train import checkpoint
from vega_policy.train.config import TrainConfig
from vega_policy.train.contract import changed_settings, disagreements, look_at
from vega_policy.train.learner import Learner, Prompts, Update
from vega_policy.train.metrics import Sinks, build_sinks, plot_losses, read_records
from vega_policy.train.normalisation import normalised
from vega_policy.train.validation import validate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vega_policy.policy import VegaModel

logger = logging.getLogger(__name__)

Ending = Literal["finished", "time", "signal"]


@dataclass(frozen=True)
class TrainResult:
    """What a run, or the part of it that was allowed to run, came to."""

    steps: int
    """Updates done so far."""
    loss: float
    """Mean training loss since the last record."""
    checkpoint: Path
    """A directory `from_pretrained` reads: the average weights."""
    ending: Ending
    """``time`` and ``signal`` runs continue when started again with the same settings."""
    validation: dict[str, float]
    """The last held-out errors."""
    samples_per_s: float
    """Of this part of the run, validation and saving not counted."""


@dataclass(frozen=True, eq=False)
class _Stage:
    """Everything that was prepared before the first update."""

    config: TrainConfig
    policy: VegaPolicy
    dataset: ChunkDataset
    batches: ChunkBatches
    held_out: list[Batch]
    learner: Learner
    origin: dict[str, Any]
    """Hashes of data and prior: a continued run must find the same."""


def train(config: TrainConfig, *, should_stop: Callable[[], bool] = lambda: False) -> TrainResult:
    """Train, or continue, the run that the settings name.

    Writes ``<run_root>/<name>/``: ``config.json``, ``metrics.jsonl``, ``loss.png``, ``checkpoint/`` (what
    a continued run reads) and ``policy/`` (what `from_pretrained` reads).

    Args:
        config: The settings.
        should_stop: Asked after every update; True saves a checkpoint and ends the run.

    Raises:
        ContractError: Settings, data and policy do not fit together; every disagreement is listed
            and nothing was written. Or another process trains in the same folder.
        CheckpointError: The run on disk is of other settings, data or prior.
    """
    device = _device(config)
    _require_same_run(config)
    policy = _open_policy(config)
    with _locked(config.run_dir):
        stage = _prepare(config, policy, device)
        state = checkpoint.load_latest(config.run_dir / "checkpoint")
        done = 0
        if state is not None:
            _require_same_origin(state, stage)
            stage.learner.load_tensors(state.tensors)
            done = state.step
            logger.info("continuing %s at step %d of %d", config.name, done, config.steps)
        write_atomic(config.run_dir / "config.json", json.dumps(config.to_dict(), indent=2))
        sinks = build_sinks(
            config.sinks, run_dir=config.run_dir, resume_step=done, config=config.to_dict()
        )
        try:
            window = _Window() if state is None else _Window.load(state)
            return _loop(stage, sinks, window=window, done=done, should_stop=should_stop)
        finally:
            sinks.close()


def _loop(
    stage: _Stage, sinks: Sinks, *, window: _Window, done: int, should_stop: Callable[[], bool]
) -> TrainResult:
    config = stage.config
    deadline_s = time.monotonic() + 60 * config.max_minutes if config.max_minutes else float("inf")
    clock = _Clock()
    validation = _last_validation(config.run_dir)
    ending: Ending = "finished"
    saved = done
    with (
        prefetched(lambda k: _passes(stage, k), first=done, last=config.steps) as items,
        Progress(config.steps, what=config.name, unit="steps", start=done) as progress,
    ):
        for step in range(done, config.steps):
            with clock.waiting():
                passes = next(items)
            with clock.working(samples=config.batch_size * config.accumulate):
                window.add(stage.learner.update(passes, step=step))
            done = step + 1
            progress.update(1, note=window.note)
            is_last = done == config.steps
            if done % config.log_every == 0 or is_last:
                _record(stage, sinks, window, clock, step=step)
            if done % config.validate_every == 0 or is_last:
                validation = validate(
                    stage.learner,
                    stage.held_out,
                    dataset=stage.dataset,
                    statistics=stage.policy.statistics,
                )
                if validation:
                    sinks.write({"step": done, **validation})
            if done % config.checkpoint_every == 0 or is_last:
                _save(stage, window, done)
                saved = done
            if not is_last and (should_stop() or time.monotonic() > deadline_s):
                ending = "signal" if should_stop() else "time"
                break
    if saved != done or not (config.run_dir / "policy").exists():
        _save(stage, window, done)
    return TrainResult(
        steps=done,
        loss=window.loss,
        checkpoint=config.run_dir / "policy",
        ending=ending,
        validation=validation,
        samples_per_s=clock.rate,
    )


def _device(config: TrainConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ContractError(
            "device is 'cuda', this torch sees no GPU; set device=cpu or device=auto"
        )
    return torch.device(config.device)


def _open_policy(config: TrainConfig) -> VegaPolicy | None:
    """Load the policy to start from, if any, and compare everything with the data."""
    files = [
        path
        for folder in config.data.dirs
        for suite in config.data.suites
        for path in task_files(Path(folder), suite)
    ]
    policy = None
    if config.init_from is not None:
        any_key = next(iter(load_statistics(resolve(config.init_from) / STATISTICS)), None)
        policy = from_pretrained(config.init_from, unnorm_key=any_key)
    keeps_statistics = policy is not None and config.statistics != "data"
    problems = disagreements(
        config.policy if policy is None else policy.config,
        look_at(files[0]),
        settings=config.policy,
        statistics_keys=policy.statistics if policy is not None and keeps_statistics else None,
        suites=config.data.suites,
    )
    if problems:
        raise ContractError(
            f"{config.init_from or 'the new policy'} does not fit {files[0].parent}: "
            + "; ".join(problems)
        )
    return policy


def _prepare(config: TrainConfig, start: VegaPolicy | None, device: torch.device) -> _Stage:
    dataset = ChunkDataset.open(
        DataSource(
            dirs=tuple(Path(d) for d in config.data.dirs),
            suites=config.data.suites,
            cache_dir=None if config.data.cache_dir is None else Path(config.data.cache_dir),
        ),
        horizon=config.policy.action.horizon,
    )
    policy = _policy_to_train(config, dataset, start)
    model = policy.model.to(device)
    prior_hash = prior_fingerprint(model.prior, policy.config.to_dict()["prior"])
    features = _features(config, dataset, model, fingerprint=prior_hash, device=device)
    rows = normalised(dataset, policy.statistics)

    def batches(*, held_out: bool) -> ChunkBatches | None:
        starts = dataset.starts(held_out=held_out, fraction=config.data.held_out)
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
            pin=device.type == "cuda",
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
    ids, mask = policy.processor.tokenise(dataset.instructions)
    learner = Learner(
        model,
        prompts=Prompts(ids.to(device), mask.to(device)),
        config=config.optim,
        augment=config.data.augment,
        total_steps=config.steps,
        precision=torch.bfloat16 if config.precision == "bfloat16" else torch.float32,
        seed=config.seed,
    )
    return _Stage(
        config=config,
        policy=policy,
        dataset=dataset,
        batches=trained,
        held_out=[]
        if kept is None
        else [kept.assemble(r) for r in kept.in_order(config.validation_samples)],
        learner=learner,
        origin={"files": [f.fingerprint for f in dataset.files], "prior": prior_hash},
    )


def _policy_to_train(
    config: TrainConfig, dataset: ChunkDataset, start: VegaPolicy | None
) -> VegaPolicy:
    suite = config.data.suites[0]
    if start is None:
        policy = VegaPolicy.create(
            config.policy,
            statistics=parse_statistics(dataset.statistics()),
            instructions=dataset.instructions,
            prior_path=None if config.prior_path == "random" else config.prior_path,
            unnorm_key=suite,
            seed=config.seed,
        )
    else:
        policy = VegaPolicy(
            model=start.model,
            tokenizer=start.tokenizer,
            statistics=parse_statistics(dataset.statistics())
            if config.statistics == "data"
            else start.statistics,
            unnorm_key=suite,
        )
    for parameter in policy.model.parameters():
        parameter.requires_grad_(True)  # noqa: FBT003 - torch's signature
    policy.model.prior.requires_grad_(False)  # noqa: FBT003
    return policy


def _features(
    config: TrainConfig,
    dataset: ChunkDataset,
    model: VegaModel,
    *,
    fingerprint: str,
    device: torch.device,
) -> FeatureCache | None:
    settings = config.data.features
    if not settings.cached:
        return None
    return FeatureCache.open(
        dataset,
        rows=dataset.starts(held_out=False, fraction=0.0),
        compute=lambda pixels, keys: model.prior_features(pixels.to(device), keys=keys),
        fingerprint=fingerprint,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
    )


def _require_same_run(config: TrainConfig) -> None:
    """Refuse to continue a run of other settings."""
    path = config.run_dir / "config.json"
    if not path.exists():
        return
    changed = changed_settings(json.loads(path.read_text()), config.to_dict())
    if changed:
        raise CheckpointError(
            f"{config.run_dir} holds a run of other settings: {'; '.join(changed)}; choose another name "
            "or delete the folder"
        )


def _require_same_origin(state: checkpoint.RunState, stage: _Stage) -> None:
    """Refuse to continue on other data or with another prior."""
    saved = state.info["origin"]
    changed = [
        f"the {what} changed" for what, value in stage.origin.items() if saved.get(what) != value
    ]
    if changed:
        raise CheckpointError(
            f"{stage.config.run_dir} cannot be continued: {' and '.join(changed)} since it was started; "
            f"start another run with init_from={stage.config.run_dir / 'policy'}"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the run's folder; a kill releases it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ContractError(
                f"another process trains in {folder}; wait for it or choose another name"
            ) from error
        yield


# During the updates.


class _Window:
    """Sums over the updates since the last record; part of a checkpoint."""

    def __init__(self, *, total: torch.Tensor | None = None, count: int = 0) -> None:
        self._total = total
        self._count = count
        self._last: Update | None = None
        self.loss = float("nan")
        """Mean of the last complete window."""

    @classmethod
    def load(cls, state: checkpoint.RunState) -> _Window:
        window = cls(total=state.tensors["window"], count=int(state.info["window_count"]))
        window.loss = float(state.info["loss"] or "nan")
        return window

    @property
    def tensor(self) -> torch.Tensor:
        return torch.zeros(2) if self._total is None else self._total

    @property
    def count(self) -> int:
        return self._count

    @property
    def note(self) -> str:
        return f"loss {self.loss:.4f}" if self.loss == self.loss else ""

    def add(self, update: Update) -> None:
        """Take one update; stays on the device, so that nothing waits for the GPU."""
        values = torch.stack([update.loss, update.gate]).detach()
        self._total = values if self._total is None else self._total.to(values.device) + values
        self._count += 1
        self._last = update

    def close(self) -> dict[str, float]:
        """Return the means, and begin a new window."""
        loss, gate = (self.tensor / max(self._count, 1)).tolist()
        norm = float("nan") if self._last is None else float(self._last.gradient_norm)
        self.loss, self._total, self._count = loss, None, 0
        return {"loss": loss, "gate": gate, "gradient_norm": norm}


class _Clock:
    """Seconds spent on updates, and waiting for their data."""

    def __init__(self) -> None:
        self._work_s = self._wait_s = 0.0
        self._samples = 0
        self._seen = (0.0, 0.0, 0)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._wait_s += time.perf_counter() - began

    @contextmanager
    def working(self, *, samples: int) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._work_s += time.perf_counter() - began
        self._samples += samples

    @property
    def rate(self) -> float:
        """Samples per second, over all updates."""
        spent = self._work_s + self._wait_s
        return self._samples / spent if spent else 0.0

    def lap(self) -> dict[str, float]:
        """Return rate and share of waiting since the last lap."""
        work, wait, samples = (
            now - before
            for now, before in zip(
                (self._work_s, self._wait_s, self._samples), self._seen, strict=True
            )
        )
        self._seen = (self._work_s, self._wait_s, self._samples)
        spent = max(work + wait, 1e-9)
        return {"samples_per_s": samples / spent, "data_wait_share": wait / spent}


def _passes(stage: _Stage, step: int) -> Sequence[Batch]:
    n = stage.config.accumulate
    return [stage.batches.batch(step * n + i) for i in range(n)]


def _record(stage: _Stage, sinks: Sinks, window: _Window, clock: _Clock, *, step: int) -> None:
    record = {
        "step": step + 1,
        **window.close(),
        "lr": stage.learner.rate(step),
        "epoch": (step + 1) * stage.config.accumulate / stage.batches.batches_per_epoch,
        **clock.lap(),
    }
    if not math.isfinite(record["loss"]):
        raise PolicyFault(
            f"the loss is {record['loss']} at step {step + 1}, expected a finite number; lower "
            "optim.schedule.peak, or set precision=float32. The last checkpoint is from before it"
        )
    sinks.write(record)


def _save(stage: _Stage, window: _Window, done: int) -> None:
    run_dir = stage.config.run_dir
    checkpoint.save(
        run_dir / "checkpoint",
        checkpoint.RunState(
            step=done,
            tensors={**stage.learner.tensors(), "window": window.tensor},
            info={
                "window_count": window.count,
                "loss": window.loss if math.isfinite(window.loss) else None,
                "origin": stage.origin,
            },
        ),
    )
    with stage.learner.average.applied():
        stage.policy.save_pretrained(run_dir / "policy", card=_card(stage, window, done))
    plot_losses(read_records(run_dir / "metrics.jsonl"), run_dir / "loss.png")


def _card(stage: _Stage, window: _Window, done: int) -> str:
    config = stage.config
    return (
        f"# VEGA-Policy checkpoint: {config.name}\n\n"
        f"Average weights after {done} of {config.steps} updates of {config.batch_size * config.accumulate} "
        f"samples; training loss {window.loss:.4f} (L1, normalised actions).\n\n"
        f"- data: {', '.join(config.data.suites)}, "
        f"{sum(len(f.lengths) for f in stage.dataset.files)} demonstrations, "
        f"{stage.batches.n_samples} samples\n"
        f"- prior: {stage.policy.config.prior.name}, weights {stage.origin['prior']}\n"
        f"- started from: {config.init_from or 'random weights'}\n\n"
        "Success was not measured.\n"
    )


def _last_validation(run_dir: Path) -> dict[str, float]:
    rows = [r for r in read_records(run_dir / "metrics.jsonl") if "val/loss" in r]
    return {k: v for k, v in rows[-1].items() if k != "step"} if rows else {}
