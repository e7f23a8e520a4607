"""Results as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vega_policy.rollout.compare import Comparison, Group
    from vega_policy.rollout.statistics import Summary, Tally

_HEAD = ("task", "", "successes", "Wilson 95 %", "mean steps")
_COMPARED = ("A", "B", "A only", "B only", "A - B, points", "p", "Holm", "verdict")


def table(summary: Summary, names: Mapping[int, str]) -> str:
    """Lay out one line per task and the total.

    Mean steps are those of the successful episodes: failures only say where the limit is.
    """
    lines = [
        (str(task_id), names.get(task_id, ""), *_cells(tally))
        for task_id, tally in summary.tasks.items()
    ]
    return aligned(_HEAD, lines, [("", "total", *_cells(summary.total))], words=(1,))


def comparison_table(comparison: Comparison) -> str:
    """Lay out a comparison: per task, in total, per suite and perturbation where there are several.

    Rates have Wilson intervals. ``A only`` are the pairs that A wins and B loses; p is that of the
    exact McNemar test.
    """
    shown = comparison
    lines = [
        (*_task(suite if shown.suites else "", number), g.finding.name, *_compared(g))
        for (suite, number), g in shown.tasks.items()
    ]
    total = ("", shown.of, *_compared(shown.total, is_alone=True))
    head = ("task", "", *_COMPARED)
    parts = [aligned(head, lines, [total], words=(0, 1, 9))]
    for title, groups in (("suite", shown.suites), ("perturbation", shown.perturbations)):
        if groups:
            rows = [(name, *_compared(group)) for name, group in groups.items()]
            parts.append(aligned((title, *_COMPARED), rows, [], words=(0, 8)))
    parts.append(
        f"[ ]: {100 * (1 - shown.alpha):g} % intervals, each row by itself (Wilson for rates, Tango for "
        "differences);\np: exact McNemar; Holm: adjusted for the rows of a table; the verdict "
        f"takes the adjusted p at {shown.alpha:g}"
    )
    return "\n\n".join(parts)


def aligned(
    head: Sequence[str],
    lines: Sequence[Sequence[str]],
    foot: Sequence[Sequence[str]],
    *,
    words: Sequence[int] = (),
) -> str:
    """Lay out cells in columns: numbers to the right, the columns ``words`` to the left."""
    widths = [max(len(line[i]) for line in [head, *lines, *foot]) for i in range(len(head))]

    def row(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i in words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    footer = [rule, *map(row, foot)] if foot else []
    return "\n".join([row(head), rule, *map(row, lines), *footer])


def percent(share: float) -> str:
    """Write percent with a decimal unless it is 0 or 100."""
    return f"{100 * share:.0f}" if share in (0.0, 1.0) else f"{100 * share:.1f}"


def percent_range(tally: Tally) -> str:
    """Write the interval of a rate in percent."""
    low, high = tally.interval
    return f"{percent(low)} - {percent(high)} %" if tally.episodes else "-"


def points(share: float | None, *, signed: bool = True) -> str:
    """Write a difference of shares in percentage points; nothing has no sign."""
    if share is None:
        return "-"
    return f"{100 * share:+.1f}" if signed and share else f"{100 * share:.1f}"


def sensitivity(
    n: int, *, discordant: float, detectable: float | None, power: float, as_here: bool = True
) -> str:
    """Say which difference pairs find, and that it is the best case where it is.

    Args:
        n: Pairs.
        discordant: Share of them that end differently.
        detectable: See `vega_policy.rollout.power.detectable_difference`.
        power: How often it is found.
        as_here: The share was seen and not assumed.
    """
    often = f"{100 * power:g} % of comparisons"
    if detectable is None:
        return f"With {n:,} pairs no difference, however large, is found in {often}."
    share = f"{100 * discordant:.3g} % end differently{', as here,' if as_here else ','}"
    found = f"{points(detectable, signed=False)} points"
    if detectable > discordant:
        return (
            f"With {n:,} pairs of which {share} no difference is found in {often}. At best one of "
            f"{found} is found as often: if {100 * detectable:.1f} % end differently and one "
            "policy wins all of these."
        )
    return (
        f"With {n:,} pairs of which {share} a difference of {found} is found in {often}; smaller "
        "ones are missed more often."
    )


def p_text(p: float, *, sign: str = "") -> str:
    """Write a p value with three or four decimals, never as 0; ``sign`` is "= " where one fits."""
    return "< 0.0001" if p < 1e-4 else f"{sign}{p:.4f}" if p < 0.01 else f"{sign}{p:.3f}"


def ranges(numbers: Sequence[int]) -> str:
    """Write 0, 1, 2, 5 as "0-2, 5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def _task(suite: str, number: int) -> tuple[str]:
    return (f"{suite} {number}".strip(),)


def _compared(group: Group, *, is_alone: bool = False) -> tuple[str, ...]:
    finding = group.finding
    low, high = finding.interval
    return (
        _rate(group.a),
        _rate(group.b),
        str(finding.pairs.n_a_only),
        str(finding.pairs.n_b_only),
        f"{points(finding.pairs.difference)} [{points(low)}, {points(high)}]",
        p_text(finding.p_value),
        "" if is_alone else p_text(finding.p_adjusted),
        finding.verdict,
    )


def _rate(tally: Tally) -> str:
    low, high = tally.interval
    return f"{tally.successes}/{tally.episodes} [{100 * low:.0f}, {100 * high:.0f} %]"


def _cells(tally: Tally) -> tuple[str, str, str]:
    steps = "-" if tally.mean_steps_success is None else f"{tally.mean_steps_success:.0f}"
    if not tally.episodes:
        return ("0 / 0", "-", "-")
    return (f"{tally.successes} / {tally.episodes}", percent_range(tally), steps)
