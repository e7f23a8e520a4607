"""What the numbers do and do not say."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from vega_policy.rollout.ledger import planned
from vega_policy.rollout.report.markup import group_words
from vega_policy.rollout.table import ranges

if TYPE_CHECKING:
    from vega_policy.rollout.report.reading import Run

PAIRED = (
    "Arms and perturbations are compared episode by episode: McNemar's exact test, adjusted for "
    "the number of rows of a table (Holm), and Tango's score interval of the difference, not "
    'adjusted. "Not separated" means that these pairs do not tell, not that there is no difference.'
)


def section(run: Run) -> str:
    """Write what the numbers do and do not say."""
    total = run.summary.total
    states = sorted({job.key.init_state_id for job in planned(run.header)})
    is_alone = len(run.groups) <= 1
    per_task = sorted({t.episodes for t in run.summary.tasks.values()})
    low, high = total.interval
    span = (
        f"{per_task[0]}" if len(per_task) == 1 else f"{per_task[0]} to {per_task[-1]}"
    ) + " per task"
    starts = (
        f"initial states {ranges(states)} of the benchmark's evaluation set"
        if run.header.defines.get("starts", "evaluation") == "evaluation"
        else f"placements {ranges(states)} drawn anew, not from the benchmark's evaluation set"
    )
    found = [
        f"The headline is n = {total.episodes} episodes, {span}, from {starts}"
        f"{'' if is_alone else ': ' + group_words(run.main)}. Another selection gives another "
        "number.",
        "The interval is Wilson's, at 95 %: success rates for which a result like this one would "
        "not be unusual if initial states were drawn at random. It knows nothing of other training "
        "seeds, other checkpoints or a real robot.",
        f"It is {100 * (high - low):.0f} points wide here. Two policies whose intervals overlap "
        "are not shown to be equal, nor different: compare them on the same initial states "
        "(scripts/compare.py).",
        *([] if is_alone else [PAIRED]),
        "Episodes of one task resemble each other. The total is an average over these tasks, not "
        "over tasks in general; an interval per task rests on few episodes.",
        "A policy fault (the policy raised, or answered with an invalid chunk) counts as an "
        "episode without success. An episode whose simulator broke is played again and is never "
        "counted as a failure.",
    ]
    return '<h2 id="notes">How to read this</h2><ul class="notes">' + (
        "".join(f"<li>{escape(note)}</li>" for note in found) + "</ul>"
    )
