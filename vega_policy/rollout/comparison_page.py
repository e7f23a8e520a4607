"""``comparison.html``: a comparison in one file that opens from disk.

Videos stay in their runs and are linked; nothing is loaded from the network.
"""

from __future__ import annotations

import os
from collections import Counter
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vega_policy.rollout import figures
from vega_policy.rollout.page import STYLE
from vega_policy.rollout.plan import CLEAN
from vega_policy.rollout.report.markup import OUTCOMES, jpeg, plain_table, typeset
from vega_policy.rollout.table import p_text, points
from vega_policy.rollout.video import first_frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from vega_policy.rollout.compare import Comparison, EpisodePair, Group
    from vega_policy.rollout.sides import Side
    from vega_policy.rollout.statistics import Tally
    from vega_policy.spec import EpisodeResult

PAGE = "comparison.html"
MAX_SHOWN = 24
"""Pairs whose videos are shown side by side; the videos of all are linked."""
_STYLE = """
.results th, .results td { padding-left: 10px; padding-right: 10px; }
.results td.judged { white-space: normal; line-height: 1.3; min-width: 128px; }
.results .plot-cell { min-width: 190px; }
.results tfoot .small { font-weight: 450; }
.versus > div { background: var(--card); }
.finding { font-weight: 600; } .finding.unknown { color: var(--soft); font-weight: 450; }
.versus { display: grid; grid-template-columns: 1fr 1fr; gap: 2px; background: var(--line); }
.headline .finding { font-size: 17px; margin: 10px 0 2px; }
.clips.pairs { grid-template-columns: repeat(auto-fill, minmax(420px, 1fr)); }
@media (max-width: 860px) { .clips.pairs { grid-template-columns: 1fr; } }
.choices { display: flex; gap: 8px; flex-wrap: wrap; margin: 12px 0 4px; }
.choices button {
  font: inherit; font-size: 13px; padding: 4px 13px; border-radius: 99px; cursor: pointer;
  border: 1px solid var(--line); background: var(--card); color: var(--soft);
}
.choices button[aria-pressed="true"] { background: var(--ink); color: var(--page); }
[hidden] { display: none !important; }
"""
_SCRIPT = """
const buttons = document.querySelectorAll('.choices button');
buttons.forEach(button => button.addEventListener('click', () => {
  buttons.forEach(other => other.setAttribute('aria-pressed', other === button));
  document.querySelectorAll('[data-won]').forEach(item => {
    item.hidden = button.dataset.wanted !== 'all' && item.dataset.won !== button.dataset.wanted;
  });
}));
document.querySelectorAll('.clip').forEach(clip => {
  const videos = clip.querySelectorAll('video');
  clip.addEventListener('mouseenter', () => videos.forEach(v => v.play().catch(() => {})));
  clip.addEventListener('mouseleave', () => videos.forEach(v => v.pause()));
  videos.forEach(v => {
    v.controls = false;
    v.addEventListener('click', () => { v.controls = true; });
  });
});
"""


def page(comparison: Comparison, *, folder: Path) -> str:
    """Return the page as HTML.

    Args:
        comparison: What to show.
        folder: Where the page will lie; links to videos are relative to it.
    """
    shown = comparison
    title = f"{shown.a.label} and {shown.b.label}"
    parts = (
        _head(shown),
        _results(shown),
        _family("suites", "Per suite", "suite", shown.suites),
        _family("perturbations", "Per perturbation", "perturbation", shown.perturbations),
        _episodes(shown, folder=folder.resolve()),
        _notes(shown),
        _provenance(shown, folder=folder.resolve()),
    )
    body = "\n".join(filter(None, parts))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title><style>{STYLE}{_STYLE}</style></head>
<body><main>
{body}
</main><script>{_SCRIPT}</script></body></html>
"""


def _head(shown: Comparison) -> str:
    from vega_policy.rollout.compare import seen

    finding, pairs = shown.total.finding, shown.total.finding.pairs
    limit = figures.difference_limit([finding])
    facts = [
        (str(pairs.n), f"pairs of {escape(shown.of)}"),
        (_rate(shown.total.a), f"A succeeds, {_interval(shown.total.a)}"),
        (_rate(shown.total.b), f"B succeeds, {_interval(shown.total.b)}"),
        (str(pairs.n_a_only), "won by A alone"),
        (str(pairs.n_b_only), "won by B alone"),
        (p_text(finding.p_value), "p, exact McNemar"),
    ]
    cells = "".join(
        f'<div class="fact"><b>{escape(value)}</b><span>{label}</span></div>'
        for value, label in facts
    )
    banner = ""
    if shown.disagreements:
        lines = "".join(f"<li>{escape(d)}</li>" for d in shown.disagreements)
        banner = (
            '<div class="banner"><b>Forced.</b> The runs differ in more than the policy, so a '
            f"difference need not be the policy's:<ul>{lines}</ul></div>"
        )
    links = [
        ("results", "Per task", True),
        ("suites", "Per suite", bool(shown.suites)),
        ("perturbations", "Per perturbation", bool(shown.perturbations)),
        ("episodes", "Episodes", True),
        ("notes", "How to read this", True),
        ("provenance", "What was compared", True),
    ]
    nav = "".join(f'<a href="#{i}">{label}</a>' for i, label, is_there in links if is_there)
    low, high = finding.interval
    return f"""<header><p class="eyebrow">Comparison</p>
<h1>{escape(shown.a.label)} <span class="soft">and</span> {escape(shown.b.label)}</h1>
<p class="soft">A is <b>{escape(shown.a.label)}</b>, B is <b>{escape(shown.b.label)}</b>; every
difference is A minus B, in percentage points.</p><nav>{nav}</nav></header>
<section class="hero"><div class="card headline">
<div class="rate">{typeset(points(pairs.difference))}<small>&thinsp;points</small></div>
<p class="finding">{escape(finding.verdict)}</p>
<p class="soft">{100 * (1 - shown.alpha):g} % interval {typeset(points(low))} to
{typeset(points(high))}</p>
{figures.difference_bar(finding, limit=limit, is_total=True)}{figures.difference_axis(limit)}
<p class="soft small">{typeset(seen(shown))}</p></div>
<div class="card facts">{cells}</div></section>{banner}"""


def _results(shown: Comparison) -> str:
    findings = [g.finding for g in (*shown.tasks.values(), shown.total)]
    limit = figures.difference_limit(findings)
    lines = "".join(
        f'<tr><td class="number soft">{escape(f"{suite} " if shown.suites else "")}{number}</td>'
        f'<td class="words">{escape(group.finding.name)}</td>{_cells(group, limit)}</tr>'
        for (suite, number), group in shown.tasks.items()
    )
    total = _cells(shown.total, limit, is_total=True)
    return f"""<h2 id="results">Per task</h2>
<div class="card scroll results"><table><thead><tr><th></th><th>task</th>{_heads(limit)}</tr></thead>
<tbody>{lines}</tbody><tfoot><tr><td></td><td class="words">{escape(shown.of)}</td>{total}</tr></tfoot>
</table></div>"""


def _family(anchor: str, title: str, what: str, groups: Mapping[str, Group]) -> str:
    if not groups:
        return ""
    limit = figures.difference_limit(g.finding for g in groups.values())
    lines = "".join(
        f"<tr><td>{escape(name)}</td>{_cells(group, limit)}</tr>" for name, group in groups.items()
    )
    return f"""<h2 id="{anchor}">{title}</h2>
<div class="card scroll results"><table><thead><tr><th>{what}</th>{_heads(limit)}</tr></thead>
<tbody>{lines}</tbody></table></div>"""


def _heads(limit: float) -> str:
    return f"""<th class="number">A</th><th class="number">B</th><th class="number">won by<br>A : B
alone</th><th class="plot-cell">&larr; B better &nbsp; points &nbsp; A better &rarr;{figures.difference_axis(limit)}</th>
<th class="number">A minus B</th><th class="number">p, Holm</th><th>verdict</th>"""


def _cells(group: Group, limit: float, *, is_total: bool = False) -> str:
    finding = group.finding
    pairs = finding.pairs
    low, high = finding.interval
    difference = (points(pairs.difference), f"{points(low)} to {points(high)}")
    kind = " unknown" if finding.verdict == "not separated" else ""
    verdict = f'<span class="finding{kind}">{finding.verdict}</span>'
    drawn = figures.difference_bar(finding, limit=limit, is_total=is_total)
    adjusted = p_text(finding.p_value if is_total else finding.p_adjusted)
    alone = "" if is_total else f"alone {p_text(finding.p_value)}"
    seen = (
        "too few pairs"
        if finding.detectable is None
        else f"{'at best' if finding.is_best_case else 'detectable'} "
        f"{points(finding.detectable, signed=False)}"
    )
    return (
        f'<td class="number">{_count(group.a)}</td><td class="number">{_count(group.b)}</td>'
        f'<td class="number">{pairs.n_a_only} : {pairs.n_b_only}</td>'
        f'<td class="plot-cell">{drawn}</td>'
        f'<td class="number">{_two(*map(typeset, difference))}'
        f'</td><td class="number">{_two(escape(adjusted), escape(alone))}</td>'
        f'<td class="judged">{_two(verdict, seen)}</td>'
    )


def _two(first: str, second: str) -> str:
    return f'{first}<br><span class="soft small">{second}</span>' if second else first


def _count(tally: Tally) -> str:
    return _two(f"{tally.successes}/{tally.episodes}", _interval(tally))


def _episodes(shown: Comparison, *, folder: Path) -> str:
    """List the pairs that ended differently, and show the first of them side by side."""
    differing = [p for p in shown.pairs if p.won[0] != p.won[1]]
    title = '<h2 id="episodes">Episodes that end differently</h2>'
    if not differing:
        return f'{title}<p class="soft">There is none among {len(shown.pairs)} pairs.</p>'
    n_a = sum(p.won[0] for p in differing)
    buttons = "".join(
        f'<button data-wanted="{kind}" aria-pressed="{"true" if kind == "all" else "false"}">'
        f"{label}</button>"
        for kind, label in (
            ("all", f"all {len(differing)}"),
            ("a", f"won by A alone, {n_a}"),
            ("b", f"won by B alone, {len(differing) - n_a}"),
        )
    )
    links = {p.key: (_link(shown.a, p.a, folder), _link(shown.b, p.b, folder)) for p in differing}
    clips = "".join(
        _clips(shown, p, links[p.key])
        for p in _over_tasks(p for p in differing if all(links[p.key]))[:MAX_SHOWN]
    )
    cards = f'<div class="group"><div class="clips pairs">{clips}</div></div>' if clips else ""
    lines = "".join(_line(shown, p, links[p.key]) for p in differing)
    also = (
        " Point at a pair to play both videos; they are found while the runs stay where they are."
        if any(any(pair) for pair in links.values())
        else " These runs kept no videos."
    )
    return f"""{title}
<p class="soft">Of {len(shown.pairs)} pairs in all, {len(differing)} tell the policies apart.{also}</p>
<div class="choices">{buttons}</div>{cards}
<div class="group"><div class="card scroll results"><table><thead><tr><th>task</th><th>episode</th>
<th>A</th><th class="number">steps</th><th>B</th><th class="number">steps</th></tr></thead>
<tbody>{lines}</tbody></table></div></div>"""


def _over_tasks(pairs: Iterable[EpisodePair]) -> list[EpisodePair]:
    """Order pairs so that every task comes before one comes twice."""
    rank: Counter[tuple[str, int]] = Counter()
    order: list[tuple[int, EpisodePair]] = []
    for pair in pairs:
        task = (pair.key.suite, pair.key.task_id)
        order.append((rank[task], pair))
        rank[task] += 1
    return [pair for _, pair in sorted(order, key=lambda item: item[0])]


def _clips(shown: Comparison, pair: EpisodePair, links: Sequence[str]) -> str:
    videos = "".join(
        f'<div><video controls muted loop playsinline preload="none"{_poster(side, row)} src="{link}"></video>'
        f'<div class="line"><span>{name}</span><span class="badge {row.outcome}">'
        f"{OUTCOMES[row.outcome]}</span><span>{row.n_steps} steps</span></div></div>"
        for name, side, row, link in zip(
            "AB", (shown.a, shown.b), (pair.a, pair.b), links, strict=True
        )
    )
    return (
        f'<div class="card clip" data-won="{"a" if pair.won[0] else "b"}">'
        f'<div class="versus">{videos}</div><div class="line"><span>{escape(_words(shown, pair))}'
        f"</span><span>{escape(_start(pair))}</span></div></div>"
    )


def _poster(side: Side, row: EpisodeResult) -> str:
    video = side.video(row)
    frame = None if video is None else first_frame(video)
    return "" if frame is None else f' poster="{jpeg(frame)}"'


def _line(shown: Comparison, pair: EpisodePair, links: Sequence[str]) -> str:
    cells = ""
    for row, link in zip((pair.a, pair.b), links, strict=True):
        badge = f'<span class="badge {row.outcome}">{OUTCOMES[row.outcome]}</span>'
        video = f' <a href="{link}">video</a>' if link else ""
        detail = f'<div class="soft small">{escape(row.detail)}</div>' if row.detail else ""
        cells += f'<td>{badge}{video}{detail}</td><td class="number">{row.n_steps}</td>'
    return (
        f'<tr data-won="{"a" if pair.won[0] else "b"}"><td class="words">'
        f"{escape(_words(shown, pair))}</td><td>{escape(_start(pair))}</td>{cells}</tr>"
    )


def _words(shown: Comparison, pair: EpisodePair) -> str:
    group = shown.tasks.get((pair.key.suite, pair.key.task_id))
    words = f"task {pair.key.task_id}" if group is None else group.finding.name
    return f"{pair.key.suite}: {words}" if shown.suites else words


def _start(pair: EpisodePair) -> str:
    key = pair.key
    parts = [f"initial state {key.init_state_id}"]
    parts += [key.perturbation] if key.perturbation != CLEAN else []
    parts += [f"repetition {key.repetition}"] if key.repetition else []
    return ", ".join(parts)


def _link(side: Side, row: EpisodeResult, folder: Path) -> str:
    """Return the relative address of an episode's video, or "" where there is none."""
    video = side.video(row)
    return "" if video is None else quote(os.path.relpath(video.resolve(), folder))


def _notes(shown: Comparison) -> str:
    level = f"{100 * (1 - shown.alpha):g} %"
    notes = [
        *(f"Unpaired, not counted: {len(u.names)} of {u.side}. {u.why}." for u in shown.unpaired),
        *(f"{note[:1].upper()}{note[1:]}." for note in shown.notes),
        "Not separated does not mean equal. It means that these pairs do not tell; the interval "
        "says how large a difference may still be.",
        "Only pairs that end differently say which policy is better. p is that of the exact "
        "two-sided McNemar test: how often a fair coin splits them at least this unevenly. The "
        f"verdict takes p after Holm's adjustment for the rows of its table, at {shown.alpha:g}.",
        f"Intervals of differences are Tango's score intervals, those of rates Wilson's, both at "
        f"{level} and each for its row alone. They are a little less strict than the verdict: an "
        "interval that just leaves out 0 may stand beside “not separated”.",
        f"Detectable is the difference that as many pairs find in {100 * shown.power:g} % of "
        "comparisons, with the share of pairs that end differently here; per row after the "
        "adjustment for all rows. “At best”: that share is too small for any difference to be "
        "found as often; this one would be if more pairs ended differently and one policy won all "
        "of them.",
        "A policy fault (the policy raised, or answered with an invalid chunk) is an episode "
        "without success. An episode whose simulator broke has no row and no pair.",
        "The pairs speak for these tasks and initial states. They know nothing of other training "
        "seeds: two trainings of one recipe differ too.",
    ]
    lines = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<h2 id="notes">How to read this</h2><ul class="notes">{lines}</ul>'


def _provenance(shown: Comparison, *, folder: Path) -> str:
    cards = "".join(_side(name, side, folder) for name, side in (("A", shown.a), ("B", shown.b)))
    return f"""<h2 id="provenance">What was compared</h2><div class="two">{cards}</div>
<footer>Made from the ledgers of these runs; nothing here is loaded from the network.</footer>"""


def _side(name: str, side: Side, folder: Path) -> str:
    tables = ""
    for run in side.runs:
        report = run.path / "report.html"
        link = (
            f' <a href="{quote(os.path.relpath(report.resolve(), folder))}">report</a>'
            if report.is_file()
            else ""
        )
        header = run.header
        rows: list[tuple[str, Any]] = [
            ("arm", side.arm),
            ("episodes", sum(row.arm == side.arm for row in run.rows)),
            ("checkpoint", header.configuration.get("checkpoint")),
            *header.defines.items(),
            *((f"version of {package}", v) for package, v in header.versions.items()),
            ("commit", header.commit or None),
            ("first start", header.created or None),
        ]
        tables += f"<h3>{name}: {escape(run.path.name)}{link}</h3>{plain_table(rows)}"
    return f'<div class="card">{tables}</div>'


def _rate(tally: Tally) -> str:
    return "-" if tally.rate is None else f"{100 * tally.rate:.1f} %"


def _interval(tally: Tally) -> str:
    low, high = tally.interval
    return typeset(f"{100 * low:.0f} - {100 * high:.0f} %")
