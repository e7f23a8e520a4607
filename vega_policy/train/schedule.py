"""Learning rate as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then a shape that ends at ``final`` of the peak."""

    peak: float = 1e-3
    """Learning rate after the warm-up."""
    warmup_steps: int = 500
    kind: Literal["cosine", "constant", "drop"] = "cosine"
    """``cosine`` falls from the end of the warm-up on; ``constant`` falls only in the last
    ``decay_steps``, linearly; ``drop`` falls at once, at ``drop_step``, as in OpenVLA-OFT."""
    decay_steps: int = 0
    """Length of the final fall of ``constant``; 0 means there is none."""
    drop_step: int = 0
    """First update after the fall of ``drop``."""
    final: float = 0.01
    """Share of the peak after the fall."""


def learning_rate(step: int, *, total: int, config: ScheduleConfig) -> float:
    """Return the rate of update ``step`` (from 0) of ``total``."""
    if step < config.warmup_steps:
        return config.peak * (step + 1) / config.warmup_steps
    if config.kind == "drop":
        share = 1.0 if step < config.drop_step else 0.0
    elif config.kind == "cosine":
        span = max(total - config.warmup_steps, 1)
        share = 0.5 * (1 + math.cos(math.pi * min((step - config.warmup_steps) / span, 1.0)))
    else:
        left = total - step
        share = 1.0 if left > config.decay_steps else max(left, 0) / config.decay_steps
    return config.peak * (config.final + (1 - config.final) * share)
