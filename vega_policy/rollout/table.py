"""The result as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vega_policy.rollout.statistics import Summary, Tally

_HEAD = ("task", "", "successes", "Wilson 95 %", "mean steps")


def table(summary: Summary, names: Mapping[int, str]) -> str:
    """Lay out one line per task and the total.

    Mean steps are those of the successful episodes: failures only say where the limit is.
    """
    lines = [
        (str(task_id), names.get(task_id, ""), *_cells(tally))
        for task_id, tally in summary.tasks.items()
    ]
    total = ("", "total", *_cells(summary.total))
    widths = [max(len(line[i]) for line in [_HEAD, *lines, total]) for i in range(len(_HEAD))]

    def row(cells: tuple[str, ...]) -> str:
        padded = [
            cell.ljust(width) if i == 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([row(_HEAD), rule, *(row(line) for line in lines), rule, row(total)])


def percent_range(tally: Tally) -> str:
    """Return the interval as text, in percent."""
    low, high = tally.interval
    return f"{100 * low:.1f} - {100 * high:.1f} %"


def _cells(tally: Tally) -> tuple[str, str, str]:
    steps = "-" if tally.mean_steps_success is None else f"{tally.mean_steps_success:.0f}"
    if not tally.episodes:
        return ("0 / 0", "-", "-")
    return (f"{tally.successes} / {tally.episodes}", percent_range(tally), steps)
