"""Imitation: a policy learns the chunks of expert actions that followed each observation.

The run is a function of its settings and data. Batches are drawn by number, so a run that was killed
and continued ends, on a CPU, with the same bits as one that never stopped.
"""

from __future__ import annotations

import json
import logging
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from vega_policy.data.part import part_size
from vega_policy.data.prefetch import prefetched
from vega_policy.data.progress import Progress
from vega_policy.policy import choose_device
from vega_policy.spec import PolicyFault
from vega_policy.spec.files import write_atomic
from vega_policy.train import checkpoint
from vega_policy.train.lora import merge_lora
from vega_policy.train.memory import report_memory
from vega_policy.train.metrics import Sinks, build_sinks, plot_losses, read_records
from vega_policy.train.preparation import Stage, open_policy, prepare
from vega_policy.train.ranks import Ranks
from vega_policy.train.run_folder import locked, require_same_origin, require_same_run
from vega_policy.train.tally import Clock, Window
from vega_policy.train.validation import validate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vega_policy.data.chunks import Batch
    from vega_policy.policy import VegaPolicy
    from vega_policy.train.config import TrainConfig

logger = logging.getLogger(__name__)

Ending = Literal["finished", "time", "signal"]
_TRAINED = {
    "full": "every weight",
    "lora": "low-rank adapters, merged; head, projectors and fusion in full",
    "grafted": "the prior's projector and the fusion",
}


_LOSS = {
    "l1": "L1, normalised actions",
    "diffusion": "mean squared error, noise",
    "discrete": "cross-entropy, action words",
}


@dataclass(frozen=True)
class TrainResult:
    """What a run, or the part of it that was allowed to run, came to."""

    steps: int
    """Updates done so far."""
    loss: float
    """Mean training loss since the last record."""
    checkpoint: Path
    """A directory `from_pretrained` reads: the average weights. With ``save_policy=end`` it is there
    once the run has finished."""
    ending: Ending
    """``time`` and ``signal`` runs continue when started again with the same settings."""
    validation: dict[str, float]
    """The last held-out errors."""
    trained_weights: int
    """Numbers that were trained."""
    samples_per_s: float
    """Of this part of the run, validation and saving not counted."""


def train(
    config: TrainConfig,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    ranks: Ranks | None = None,
) -> TrainResult:
    """Train, or continue, the run that the settings name.

    Writes ``<run_root>/<name>/``: ``config.json``, ``metrics.jsonl``, ``loss.png``, ``checkpoint/`` (what
    a continued run reads) and ``policy/`` (what `from_pretrained` reads).

    Args:
        config: The settings.
        should_stop: Asked after every update; True in any process saves a checkpoint and ends the run
            in all.
        ranks: The processes of the run; None is this one alone. The first one writes.

    Raises:
        ContractError: Settings, data and policy do not fit together; every disagreement is listed
            and nothing was written. Or another process trains in the same folder.
        CheckpointError: The run on disk is of other settings, data or prior.
    """
    ranks = ranks or Ranks(choose_device(config.device))
    part_size(config.batch_size, count=ranks.size)
    require_same_run(config)
    if config.estimate_memory and ranks.is_main:
        report_memory(config, ranks)
    policy = open_policy(config)
    folder = locked(config.run_dir) if ranks.is_main else nullcontext()
    with folder, torch.random.fork_rng(devices=[]):
        # Nothing draws from the global state today; a dropout would, and must draw the same.
        torch.manual_seed(config.seed)
        stage = prepare(config, policy, ranks, should_stop=should_stop)
        state = checkpoint.load_latest(config.run_dir / "checkpoint")
        done = 0
        if state is not None:
            require_same_origin(state, stage.origin, folder=config.run_dir)
            stage.learner.load_tensors(state.tensors)
            done = state.step
            logger.info("continuing %s at step %d of %d", config.name, done, config.steps)
        sinks = Sinks([])
        if ranks.is_main:
            write_atomic(config.run_dir / "config.json", json.dumps(config.to_dict(), indent=2))
            sinks = build_sinks(
                config.sinks, run_dir=config.run_dir, resume_step=done, config=config.to_dict()
            )
        try:
            window = Window() if state is None else Window.load(state)
            return _loop(stage, sinks, window=window, done=done, should_stop=should_stop)
        finally:
            sinks.close()


def _loop(
    stage: Stage, sinks: Sinks, *, window: Window, done: int, should_stop: Callable[[], bool]
) -> TrainResult:
    config = stage.config
    deadline_s = time.monotonic() + 60 * config.max_minutes if config.max_minutes else float("inf")
    clock = Clock()
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
            if is_last:
                break
            is_asked, is_late = should_stop(), time.monotonic() > deadline_s
            if stage.ranks.any(is_asked or is_late):
                ending = "signal" if stage.ranks.any(is_asked) else "time"
                break
    if saved != done or _lacks_policy(stage, done):
        _save(stage, window, done)
    return TrainResult(
        steps=done,
        loss=window.loss,
        checkpoint=config.run_dir / "policy",
        ending=ending,
        validation=validation,
        trained_weights=stage.learner.n_trained,
        samples_per_s=clock.rate,
    )


def _passes(stage: Stage, step: int) -> Sequence[Batch]:
    n = stage.config.accumulate
    return [stage.batches.batch(step * n + i) for i in range(n)]


def _record(stage: Stage, sinks: Sinks, window: Window, clock: Clock, *, step: int) -> None:
    record = {
        "step": step + 1,
        **window.close(),
        "lr": stage.learner.rate(step),
        "epoch": (step + 1) * stage.config.accumulate / stage.batches.batches_per_epoch,
        **clock.lap(),
    }
    _require_finite(record["loss"], step=step + 1)
    sinks.write(record)


def _require_finite(loss: float, *, step: int) -> None:
    if not math.isfinite(loss):
        raise PolicyFault(
            f"the loss is {loss} at step {step}, expected a finite number; lower "
            "optim.schedule.peak, or set precision=float32. The last checkpoint is from before it"
        )


def _save(stage: Stage, window: Window, done: int) -> None:
    run_dir = stage.config.run_dir
    # The sum since the last record: what was recorded before has been checked then.
    _require_finite(float(window.tensor[0]), step=done)
    tensors = stage.learner.tensors()
    # The policy first: a run killed in between continues from the older state and writes it again,
    # whereas a finished state beside an older policy would never be put right.
    if _saves_policy(stage, done):
        _save_policy(stage, window, done)
    if not stage.ranks.is_main:
        return
    checkpoint.save(
        run_dir / "checkpoint",
        checkpoint.RunState(
            step=done,
            tensors={**tensors, "window": window.tensor},
            info={
                "window_count": window.count,
                "loss": window.loss if math.isfinite(window.loss) else None,
                "origin": stage.origin,
            },
        ),
    )
    plot_losses(read_records(run_dir / "metrics.jsonl"), run_dir / "loss.png")


def _saves_policy(stage: Stage, done: int) -> bool:
    return stage.config.save_policy == "always" or done == stage.config.steps


def _lacks_policy(stage: Stage, done: int) -> bool:
    """Return whether a policy that should be there is not; all processes look before one writes."""
    is_missing = _saves_policy(stage, done) and not (stage.config.run_dir / "policy").exists()
    return stage.ranks.any(is_missing)


def _save_policy(stage: Stage, window: Window, done: int) -> None:
    policy: VegaPolicy | None = stage.policy
    with stage.learner.average.applied():
        if stage.config.tune == "lora" or stage.ranks.size > 1:
            policy = merge_lora(stage.policy, whole=stage.ranks.whole, keep=stage.ranks.is_main)
        if policy is not None:
            policy.save_pretrained(stage.config.run_dir / "policy", card=_card(stage, window, done))


def _card(stage: Stage, window: Window, done: int) -> str:
    config = stage.config
    return (
        f"# VEGA-Policy checkpoint: {config.name}\n\n"
        f"{'Average weights' if config.optim.ema_decay else 'Weights'} after {done} of {config.steps} updates of {config.batch_size * config.accumulate} "
        f"samples; training loss {window.loss:.4f} ({_LOSS[stage.policy.config.head.kind]}).\n\n"
        f"- data: {', '.join(config.data.suites)}, "
        f"{sum(len(f.lengths) for f in stage.dataset.files)} demonstrations, "
        f"{stage.batches.n_samples} samples\n"
        f"- prior: {stage.policy.config.prior.name}, weights {stage.origin['prior']}\n"
        f"- started from: {config.init_from or 'random weights'}\n"
        f"- trained: {_TRAINED[config.tune]}\n\n"
        "Success was not measured.\n"
    )


def _last_validation(run_dir: Path) -> dict[str, float]:
    rows = [r for r in read_records(run_dir / "metrics.jsonl") if "val/loss" in r]
    return {k: v for k, v in rows[-1].items() if k != "step"} if rows else {}
