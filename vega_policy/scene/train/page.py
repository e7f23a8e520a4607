"""The result of a comparison as a page in Markdown, with a chart."""

# pyright: basic
from __future__ import annotations

from typing import TYPE_CHECKING

from vega_policy.scene.train.arms import ARMS
from vega_policy.spec.files import atomic_path, write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vega_policy.scene.train.clustered import Mean
    from vega_policy.scene.train.contrasts import Finding

CAVEAT = "nano, generated rooms"
"""Goes with every number: none of them is a benchmark result."""

Table = "Mapping[str, Mapping[str, Mean]]"


def percent(mean: Mean) -> str:
    """Return a mean with its interval, in percent."""
    low, high = mean.interval
    return f"{100 * mean.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def points(mean: Mean) -> str:
    """Return a difference with its interval, in percentage points."""
    low, high = mean.interval
    return f"{100 * mean.value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def markdown_table(means: Mapping[str, Mapping[str, Mean]]) -> str:
    """Return a table: a row for each arm, a column for each measure.

    Args:
        means: By measure and arm; all arms answered the same questions.
    """
    arms = list(dict.fromkeys(arm for column in means.values() for arm in column))
    heads = [f"{name} (n={next(iter(column.values())).n})" for name, column in means.items()]
    lines = ["| " + " | ".join(["arm", *heads]) + " |", "|---" * (len(heads) + 1) + "|"]
    for arm in arms:
        cells = [percent(c[arm]) if arm in c else "" for c in means.values()]
        lines.append("| " + " | ".join([arm, *cells]) + " |")
    return "\n".join(lines)


def findings_table(findings: Mapping[str, Sequence[Finding]]) -> str:
    """Return a table: a row for each comparison and measure."""
    lines = ["| measure | comparison | difference, points | finding |", "|---|---|---|---|"]
    lines += [
        f"| {measure} | {f.contrast.a} - {f.contrast.b}: {f.contrast.asks}? | "
        f"{points(f.difference)} | {f.verdict} |"
        for measure, some in findings.items()
        for f in some
    ]
    return "\n".join(lines)


def write_page(
    path: Path,
    *,
    means: Mapping[str, Mapping[str, Mean]],
    findings: Mapping[str, Sequence[Finding]],
    scores: Mapping[str, Mapping[str, Mapping[str, float]]],
    facts: Mapping[str, object],
    chart: str,
) -> None:
    """Write the page.

    Args:
        path: A Markdown file.
        means: See `markdown_table`.
        findings: By measure.
        scores: What the evaluators print, by task, arm and name.
        facts: Lines about data and training.
        chart: File name of the chart beside the page.
    """
    used = dict.fromkeys(arm for column in means.values() for arm in column)
    lines = [
        f"# Scene heads: arms compared ({CAVEAT})",
        "",
        "No number here is a benchmark result: the models are nano and the rooms are generated. "
        "Intervals are 95 %, over questions, clustered by scene; the chance of training is not in "
        "them, and they are not widened for the many comparisons. Proposals are the true boxes.",
        "",
        f"![Share right by arm, with intervals]({chart})",
        "",
        markdown_table(means),
        "",
        "## Comparisons",
        "",
        "Paired over questions. Visual tokens go without position code in every arm but `coded`, so "
        "that where things are can reach the language model through the features alone.",
        "",
        findings_table(findings),
        "",
        "## Arms",
        "",
        *(f"- `{name}`: {ARMS[name].says}" for name in used if name in ARMS),
        "- `chance`: the best answer that needs neither words nor frames: any of the proposals, or always "
        '"none"; the commonest answer in training to the kind of question, of numbers the best',
        "- `any_of_class`: any proposal of the class that is meant: what knowing every class is worth",
        "",
        "## Every score",
        "",
        *(_scores(scores)),
        "## Data and training",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
    ]
    write_atomic(path, "\n".join(lines) + "\n")


def _scores(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    lines: list[str] = []
    for task, arms in scores.items():
        names = list(dict.fromkeys(name for row in arms.values() for name in row))
        lines += [f"### {task}", "", "| score | " + " | ".join(arms) + " |"]
        lines += ["|---" * (len(arms) + 1) + "|"]
        lines += [
            f"| {name} | "
            + " | ".join(f"{row[name]:.2f}" if name in row else "" for row in arms.values())
            + " |"
            for name in names
        ]
        lines += [""]
    return lines


def draw_chart(means: Mapping[str, Mapping[str, Mean]], path: Path) -> None:
    """Draw a group of bars for each measure, a bar with its interval for each arm."""
    from matplotlib.figure import Figure

    arms = list(dict.fromkeys(arm for column in means.values() for arm in column))
    columns = 3
    rows = -(-len(means) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(means) :]:
        axis.set_visible(False)
    for axis, (measure, column) in zip(axes.flat, means.items(), strict=False):
        shown = [arm for arm in arms if arm in column]
        values = [100 * column[arm].value for arm in shown]
        ends = [column[arm].interval for arm in shown]
        below = [max(0.0, v - 100 * low) for v, (low, _) in zip(values, ends, strict=True)]
        above = [max(0.0, 100 * high - v) for v, (_, high) in zip(values, ends, strict=True)]
        axis.bar(
            shown,
            values,
            yerr=[below, above],
            color=[_COLOURS.get(arm, "#9aa5b1") for arm in shown],
            capsize=3,
            error_kw={"linewidth": 1},
        )
        n = next(iter(column.values()))
        axis.set_title(f"{measure}\n{n.n} questions, {n.n_scenes} scenes", fontsize=9)
        axis.set_ylabel("CIDEr" if measure.endswith("cider") else "% right", fontsize=8)
        axis.tick_params(axis="x", labelrotation=35, labelsize=8)
        axis.grid(visible=True, axis="y", alpha=0.25)
        axis.set_ylim(bottom=0)
    figure.suptitle(f"Held-out scenes ({CAVEAT}); bars: 95 %, clustered by scene", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


_COLOURS = {"full": "#2b6cb0", "oracle": "#2f855a", "no_prior": "#4a5568", "coded": "#805ad5"}
