"""Numbers that add up between two records of a run: losses, and where the time went."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vega_policy.train.checkpoint import RunState
    from vega_policy.train.learner import Update


class Window:
    """Sums over the updates since the last record; part of a checkpoint."""

    def __init__(self, *, total: torch.Tensor | None = None, count: int = 0) -> None:
        self._total = total
        self._count = count
        self._last: Update | None = None
        self.loss = float("nan")
        """Mean of the last complete window."""

    @classmethod
    def load(cls, state: RunState) -> Window:
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
        """Return the means, and begin a new window; of a gate where the fusion rule has one."""
        loss, gate = (self.tensor / max(self._count, 1)).tolist()
        norm = float("nan") if self._last is None else float(self._last.gradient_norm)
        self.loss, self._total, self._count = loss, None, 0
        gates = {} if math.isnan(gate) else {"gate": gate}
        return {"loss": loss, **gates, "gradient_norm": norm}


class Clock:
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
