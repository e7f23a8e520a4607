"""Success per task, of the headline's episodes."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from vega_policy.rollout import figures
from vega_policy.rollout.plan import Job
from vega_policy.rollout.report.markup import (
    OUTCOMES,
    group_words,
    scrolled,
    start_words,
    steps,
    typeset,
)
from vega_policy.rollout.table import percent_range

if TYPE_CHECKING:
    from vega_policy.rollout.report.reading import Run
    from vega_policy.rollout.statistics import Tally


def section(run: Run) -> str:
    """Write the table of tasks."""
    total = run.summary.total
    lines = "".join(
        f'<tr><td class="number soft">{t}</td><td class="words">{escape(run.names[t])}</td>'
        f"<td>{_strip(run, t)}</td>"
        f'<td class="plot-cell">{figures.interval_bar(tally, total)}</td>{_tally_cells(tally)}</tr>'
        for t, tally in run.summary.tasks.items()
    )
    table = f"""<table>
<thead><tr><th></th><th>task</th><th>episodes</th><th class="plot-cell">success rate in % with its
95 % Wilson interval{figures.interval_axis()}</th><th class="number">successes</th>
<th class="number">interval</th><th class="number">steps,<br>successes</th>
<th class="number">steps,<br>all</th></tr></thead>
<tbody>{lines}</tbody>
<tfoot><tr><td></td><td>total</td><td></td>
<td class="plot-cell">{figures.interval_bar(total, total, is_total=True)}</td>
{_tally_cells(total)}</tr></tfoot></table>
<div class="key"><span><i class="success"></i>success</span><span><i class="failure"></i>failure</span>
<span><i class="policy_fault"></i>policy fault</span><span><i></i>not played</span>
<span><i class="bandkey"></i>interval of the total</span></div>"""
    what = f'<p class="soft">{escape(group_words(run.main)).capitalize()}.</p>'
    return (
        f'<h2 id="results">Results per task</h2>{what if len(run.groups) > 1 else ""}'
        f"{scrolled(table, label='Results per task')}"
    )


def _tally_cells(tally: Tally) -> str:
    return "".join(
        f'<td class="number">{cell}</td>'
        for cell in (
            f"{tally.successes} / {tally.episodes}",
            typeset(percent_range(tally)),
            steps(tally.mean_steps_success),
            steps(tally.mean_steps),
        )
    )


def _strip(run: Run, task_id: int) -> str:
    """Draw one square per episode."""
    rows = {Job(r.key, r.arm): r for r in run.main_rows if r.key.task_id == task_id}
    lost = [j for j in run.missing if (j.arm, j.key.perturbation) == run.main]
    jobs = sorted(
        {*rows, *(job for job in lost if job.key.task_id == task_id)}, key=lambda j: j.key
    )
    squares: list[str] = []
    for job in jobs:
        row = rows.get(job)
        if row is None:
            squares.append(f'<i title="initial state {job.key.init_state_id}: not played"></i>')
            continue
        label = f"{start_words(row)}: {OUTCOMES[row.outcome]}, {row.n_steps} steps"
        # What has no video has nothing to go to.
        target = f'href="#{row.name}"' if row.info.get("video") else 'role="img"'
        squares.append(
            f'<a class="{row.outcome}" title="{label}" aria-label="{label}" {target}></a>'
        )
    return f'<div class="strip">{"".join(squares)}</div>'
