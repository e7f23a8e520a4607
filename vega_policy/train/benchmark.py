"""How fast a policy trains here, and how much of the machine's arithmetic that is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vega_policy.data.augment import AugmentConfig
from vega_policy.data.chunks import Batch
from vega_policy.train.config import OptimConfig
from vega_policy.train.learner import Learner, Prompts

if TYPE_CHECKING:
    from vega_policy.policy import VegaPolicy

INSTRUCTION = "pick up the black bowl between the plate and the ramekin and place it on the plate"


@dataclass(frozen=True)
class TrainingSpeed:
    """What was measured."""

    samples_per_s: float
    update_s: float
    """Median time of an update."""
    flops_per_s: float
    """Of the products that torch counts, recomputation included."""
    product_flops_per_s: float
    """What one large matrix product reaches here, in the same precision."""
    utilisation: float
    """The first as a share of the second."""
    peak_bytes: int
    """Largest memory of the GPU; 0 on a CPU."""
    trained: int
    """Weights that are trained."""


def measure_training(
    policy: VegaPolicy,
    *,
    batch_size: int,
    accumulate: int = 1,
    updates: int = 5,
    precision: torch.dtype = torch.bfloat16,
    optim: OptimConfig | None = None,
    augment: AugmentConfig | None = None,
    prior_runs: bool = True,
) -> TrainingSpeed:
    """Train on made-up samples and take the time; the policy's weights change.

    Args:
        policy: On its device, its weights prepared (`lora.prepare_weights`).
        batch_size: Samples in a pass.
        accumulate: Passes in an update.
        updates: Measured, after one that warms up.
        precision: Of the forward pass.
        optim: None is the default, without an average.
        augment: None is none.
        prior_runs: Run the prior in every pass; otherwise its features are given.
    """
    device = policy.device
    ids, mask = policy.processor.tokenise([INSTRUCTION])
    learner = Learner(
        policy.model,
        prompts=Prompts(ids.to(device), mask),
        config=optim or OptimConfig(ema_decay=0.0),
        augment=augment or AugmentConfig(),
        total_steps=updates + 1,
        precision=precision,
        seed=0,
    )
    passes = [_batch(policy, batch_size, seed=i, prior_runs=prior_runs) for i in range(accumulate)]
    with FlopCounterMode(display=False) as counter:
        learner.update(passes, step=0)
    _wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times: list[float] = []
    for step in range(1, updates + 1):
        began = time.perf_counter()
        learner.update(passes, step=step)
        _wait(device)
        times.append(time.perf_counter() - began)
    update_s = float(np.median(times))
    rate = counter.get_total_flops() / update_s
    floor = product_rate(device, precision)
    return TrainingSpeed(
        samples_per_s=batch_size * accumulate / update_s,
        update_s=update_s,
        flops_per_s=rate,
        product_flops_per_s=floor,
        utilisation=rate / floor,
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        trained=sum(w.numel() for w in learner.weights.values()),
    )


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of one large square matrix product."""
    side, repeats = (8192, 20) if device.type == "cuda" else (1024, 5)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(3):
        _wait(device)
        began = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 * repeats / best


def _batch(policy: VegaPolicy, size: int, *, seed: int, prior_runs: bool) -> Batch:
    config = policy.config
    generator = torch.Generator().manual_seed(seed)
    side, views = config.image_px, len(config.cameras)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    features = None
    if not prior_runs and policy.model.vision.prior is not None:
        features = draw(size, views, config.semantic.grid**2, config.prior.width).half()
    return Batch(
        rows=np.arange(size),
        pixels=(draw(size, views, 3, side, side) * 127 + 128).to(torch.uint8),
        proprio=draw(size, config.proprio_size),
        targets=draw(size, config.action.horizon, config.action.size),
        tasks=torch.zeros(size, dtype=torch.long),
        prior_features=features,
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
