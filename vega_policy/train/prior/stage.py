"""One stage of training: updates, averaged weights, checkpoints, metrics, a budget of time.

Batch ``k`` is a function of the seed and ``k``, so a run killed at any moment continues from its last
checkpoint and ends with the weights of a run that was never killed.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vega_policy.spec import CheckpointError, PolicyFault
from vega_policy.train.checkpoint import (
    RunState,
    load_latest,
    load_optimizer_tensors,
    optimizer_tensors,
    save,
)
from vega_policy.train.ema import Average
from vega_policy.train.metrics import JsonLinesSink

if TYPE_CHECKING:
    from vega_policy.train.prior.settings import StageConfig

log = logging.getLogger(__name__)

Loss = Callable[[int], tuple[Tensor, dict[str, Tensor]]]
"""Update number to the loss to lower, and scalars worth a look."""


@dataclass(frozen=True)
class Surroundings:
    """What a stage needs besides its model."""

    name: str
    """Names its checkpoints, metrics and messages."""
    folder: Path
    """Of the run."""
    log_every_s: float
    checkpoint_every_s: float
    made_with: Mapping[str, Any]
    """JSON values; a checkpoint made with others is refused."""


def draw_generator(seed: int, *parts: str | int) -> torch.Generator:
    """Return a CPU generator whose state is a function of the arguments, on every machine alike."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def run_stage(
    model: nn.Module,
    loss: Loss,
    *,
    config: StageConfig,
    around: Surroundings,
    clock: Callable[[], float] = time.monotonic,
) -> float:
    """Train, from the last checkpoint where there is one, and leave the averaged weights in the model.

    Args:
        model: On its device, in float32; parameters that take no gradient are left alone.
        loss: Loss of update ``k``; must depend on nothing but ``k`` and the weights.
        config: Of the stage.
        around: Names, folders and rates.
        clock: Seconds; a test may pass its own.

    Returns:
        Seconds it took, those before a restart included.

    Raises:
        CheckpointError: The checkpoint was made with other settings or cannot be read.
    """
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    average = Average(weights, decay=config.ema_decay)
    optimizer = torch.optim.AdamW(
        weights.values(), lr=config.peak, weight_decay=config.weight_decay, betas=(0.9, 0.99)
    )
    folder = around.folder / "checkpoints" / around.name
    state = load_latest(folder)
    if state is not None:
        _refuse_other_settings(state, around, folder)
        _restore(state, weights, average, optimizer)
    step = state.step if state is not None else 0
    spent = float(state.info["spent_s"]) if state is not None else 0.0
    is_done = bool(state is not None and state.info["is_done"])
    sink = JsonLinesSink(around.folder / f"{around.name}_metrics.jsonl", resume_step=step)
    begin = clock() - spent
    first, saved_at, logged_at = step, clock(), clock()
    model.train()

    def keep(*, is_done: bool) -> None:
        tensors = {
            **{f"model/{k}": v for k, v in weights.items()},
            **{f"average/{k}": v for k, v in average.state_dict().items()},
            **optimizer_tensors(optimizer, weights),
        }
        info = {"spent_s": clock() - begin, "is_done": is_done, "made_with": around.made_with}
        save(folder, RunState(step=step, tensors=tensors, info=info))

    if first:
        log.info("%s: continues at update %d", around.name, first)
    while not is_done:
        progress = _progress(step, clock() - begin, config)
        rate = learning_rate(step, progress, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        value, parts = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_(weights.values(), config.clip_norm)
        optimizer.step()
        average.update(step)
        step += 1
        now = clock()
        is_done = _progress(step, now - begin, config) >= 1
        if is_done or step == 1 or now - logged_at >= around.log_every_s:
            logged_at = now
            scalars = {"loss": value, "gradient_norm": norm, **parts}
            record = {name: float(scalar.detach()) for name, scalar in scalars.items()}
            if not math.isfinite(record["loss"]):
                raise PolicyFault(
                    f"{around.name}: the loss of update {step} is {record['loss']}; lower the "
                    "learning rate or use precision=float32"
                )
            sink.write({"step": step, "lr": rate, "spent_s": round(now - begin, 3), **record})
            _say(around.name, step, config, record["loss"], now - begin)
        if is_done or now - saved_at >= around.checkpoint_every_s:
            keep(is_done=is_done)
            saved_at = clock()
    sink.close()
    seconds = clock() - begin
    with torch.no_grad():
        for name, copy in average.state_dict().items():
            weights[name].copy_(copy)
    model.eval()
    return seconds


def learning_rate(step: int, progress: float, config: StageConfig) -> float:
    """Return the rate of update ``step`` (from 0), ``progress`` (0 to 1) into the stage."""
    if step < config.warmup_steps:
        return config.peak * (step + 1) / config.warmup_steps
    share = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.peak * (config.final + (1 - config.final) * share)


def _progress(step: int, spent_s: float, config: StageConfig) -> float:
    """Return how far the stage is, by updates or by time, whichever is further."""
    by_time = spent_s / (60 * config.max_minutes) if config.max_minutes else 0.0
    return max(step / config.steps, by_time)


def _say(name: str, step: int, config: StageConfig, loss: float, spent_s: float) -> None:
    left = spent_s / step * (config.steps - step)
    if config.max_minutes:
        left = min(left, 60 * config.max_minutes - spent_s)
    minutes, seconds = divmod(max(0, round(left)), 60)
    log.info(
        "%s: update %d of at most %d, loss %.4f, %.2f updates/s, %d:%02d left",
        *(name, step, config.steps, loss, step / max(spent_s, 1e-9), minutes, seconds),
    )


def refuse_foreign(around: Surroundings) -> None:
    """Raise if the stage could not continue from the checkpoint in its folder; writes nothing.

    Raises:
        CheckpointError: The checkpoint was made with other settings or cannot be read.
    """
    folder = around.folder / "checkpoints" / around.name
    state = load_latest(folder)
    if state is not None:
        _refuse_other_settings(state, around, folder)


def _refuse_other_settings(state: RunState, around: Surroundings, folder: Path) -> None:
    found = state.info.get("made_with", {})
    differ = sorted(
        key for key in {*found, *around.made_with} if found.get(key) != around.made_with.get(key)
    )
    if differ:
        pairs = "; ".join(f"{k} {found.get(k)} then, {around.made_with.get(k)} now" for k in differ)
        raise CheckpointError(
            f"{folder} was made with other settings: {pairs}; expected the same to continue; use "
            "another out folder or the settings of then"
        )


@torch.no_grad()
def _restore(
    state: RunState,
    weights: Mapping[str, Tensor],
    average: Average,
    optimizer: torch.optim.Optimizer,
) -> None:
    for name, weight in weights.items():
        weight.copy_(state.tensors[f"model/{name}"])
    average.load_state_dict(
        {k.removeprefix("average/"): v for k, v in state.tensors.items() if k[:8] == "average/"}
    )
    load_optimizer_tensors(optimizer, weights, state.tensors)
