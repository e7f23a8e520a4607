"""Arithmetic of the delay: whether a chunk lasts until the next one is there.

``f`` control rate, ``L`` time from observation to usable chunk, ``H`` actions in a chunk,
``d = ceil(L f)`` ticks of delay, ``s`` ticks between two questions. There is an action for every
tick where ``d <= s <= H - d`` (real-time chunking, arXiv:2506.07339, states the same bound), so
for some ``s`` where ``2 d <= H``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

COMFORTABLE = 7 / 8
"""Share of the longest possible latency up to which there is nothing to say: 175 of 200 ms for 8
actions at 20 Hz. At the limit itself holds were seen, since a latency is never the same twice."""


@dataclass(frozen=True, kw_only=True)
class GapVerdict:
    """Whether asynchronous inference keeps up."""

    status: Literal["ok", "warning", "refuse"]
    delay_ticks: int
    ask_every: tuple[int, int] | None
    """Smallest and largest number of ticks between two questions; None: none fits."""
    max_rate_hz: float
    """Highest control rate without gaps at this latency."""
    sentence: str


def gap_free(
    latency_s: float, rate_hz: float, horizon: int, *, ask_every: int | None = None
) -> GapVerdict:
    """Judge a latency, best the 99th percentile of warm inferences.

    Args:
        latency_s: From observation to usable chunk.
        rate_hz: Control rate.
        horizon: Actions in a chunk.
        ask_every: As set for `vega_policy.control.Asynchronous`; None asks back to back, which
            fits wherever anything does.
    """
    # A latency of exactly n periods is n ticks, also where its product comes out a hair above.
    delay = max(1, math.ceil(latency_s * rate_hz - 1e-9))
    longest_s = (horizon // 2) / rate_hz
    fits = (delay, horizon - delay) if 2 * delay <= horizon else None
    max_rate_hz = (horizon // 2) / latency_s if latency_s > 0 else math.inf
    took = f"{1000 * latency_s:.0f} ms are {_steps(delay)} at {rate_hz:g} Hz"
    if fits is None:
        status = "refuse"
        sentence = (
            f"{took}, and {horizon} actions bridge {horizon // 2}; use at most "
            f"{math.floor(10 * max_rate_hz) / 10:g} Hz, a faster policy, or the open-loop schedule, which waits"
        )
    elif ask_every is not None and ask_every > fits[1]:
        status = "refuse"
        sentence = (
            f"{took}, and a question every {ask_every} steps leaves gaps; ask every {_steps(*fits)}"
        )
    elif latency_s > COMFORTABLE * longest_s:
        status = "warning"
        sentence = (
            f"{took}, close to the {1000 * longest_s:.0f} ms that {horizon} actions bridge; "
            "expect a hold now and then"
        )
    else:
        status = "ok"
        sentence = f"{took}; a question every {_steps(*fits)} leaves no gap"
    return GapVerdict(
        status=status,
        delay_ticks=delay,
        ask_every=fits,
        max_rate_hz=max_rate_hz,
        sentence=sentence,
    )


def _steps(low: int, high: int | None = None) -> str:
    if high is not None and high != low:
        return f"{low} to {high} steps"
    return f"{low} step{'s' * (low != 1)}"
