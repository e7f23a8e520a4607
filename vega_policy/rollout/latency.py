"""Success against the time an answer takes, for each way of turning chunks into actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vega_policy.rollout.statistics import Tally
from vega_policy.rollout.table import aligned, percent, percent_range
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


COLOURS = ("#3b4cc0", "#d9782d", "#1f8a4c")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One schedule at one latency."""

    schedule: str
    latency_ms: float

    @property
    def name(self) -> str:
        """Name of its run."""
        return f"{self.schedule}-{self.latency_ms:g}ms"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a cell came to."""

    cell: Cell
    tally: Tally
    held: float
    """Share of the control steps at which the arm had no action."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "schedule": self.cell.schedule,
            "latency_ms": self.cell.latency_ms,
            "episodes": self.tally.episodes,
            "successes": self.tally.successes,
            "success_rate": self.tally.rate,
            "interval": list(self.tally.interval),
            "mean_steps": self.tally.mean_steps_success,
            "held": round(self.held, 4),
        }


def cells(schedules: Sequence[str], latencies_ms: Sequence[float]) -> list[Cell]:
    """Return every combination, the latencies outside: the first of each schedule is there early.

    Raises:
        ContractError: There is none, or a latency is negative.
    """
    if not schedules or not latencies_ms or min(latencies_ms) < 0:
        raise ContractError(
            f"latency.schedules is {list(schedules)} and latency.latencies_ms {list(latencies_ms)}; "
            "list at least one each, none below 0"
        )
    return [Cell(schedule=s, latency_ms=float(ms)) for ms in latencies_ms for s in schedules]


def table(found: Sequence[Measured]) -> str:
    """Lay out what was measured."""
    head = ("schedule", "latency ms", "successes", "%", "95 % interval", "mean steps", "held %")
    lines = [
        (
            m.cell.schedule,
            f"{m.cell.latency_ms:g}",
            f"{m.tally.successes} / {m.tally.episodes}",
            percent(m.tally.rate or 0.0),
            percent_range(m.tally),
            "-" if m.tally.mean_steps_success is None else f"{m.tally.mean_steps_success:.0f}",
            percent(m.held),
        )
        for m in sorted(found, key=lambda m: (m.cell.schedule, m.cell.latency_ms))
    ]
    return aligned(head, lines, [], words=(0,))


def plot(found: Sequence[Measured], path: Path, *, gap_free_ms: float, title: str) -> None:
    """Draw success over latency, one line per schedule with the band of its Wilson intervals.

    Args:
        found: What was measured.
        path: Of the picture.
        gap_free_ms: Up to here an asynchronous schedule has an action for every step, but for
            those before its first answer.
        title: What was played.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8.4, 4.6), layout="constrained")
    schedules: Mapping[str, list[Measured]] = {}
    for m in sorted(found, key=lambda m: m.cell.latency_ms):
        schedules.setdefault(m.cell.schedule, []).append(m)
    n_lines = len(schedules)
    for number, (schedule, points) in enumerate(schedules.items()):
        colour = COLOURS[number % len(COLOURS)]
        shift = 3.0 * (number - (n_lines - 1) / 2)
        x = [m.cell.latency_ms + shift for m in points]
        rates = [100 * (m.tally.rate or 0.0) for m in points]
        low, high = ([100 * m.tally.interval[side] for m in points] for side in (0, 1))
        axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
        for edge in (low, high):
            axes.plot(x, edge, color=colour, alpha=0.35, linewidth=0.8)
        axes.plot(x, rates, color=colour, marker="o", linewidth=2, label=schedule.replace("_", " "))
    axes.axvline(gap_free_ms, color="#888888", linestyle=":", linewidth=1.2)
    axes.annotate(
        "asynchronous has gaps beyond",
        (gap_free_ms, 3),
        xytext=(6, 0),
        textcoords="offset points",
        color="#666666",
        fontsize=9,
    )
    axes.set(
        xlabel="latency from observation to chunk, ms",
        ylabel="success, %",
        ylim=(0, 102),
        title=title,
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
