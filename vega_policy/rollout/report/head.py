"""Top of the report: the one number, and what stands in its way."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from vega_policy.rollout import figures
from vega_policy.rollout.plan import CLEAN
from vega_policy.rollout.report.markup import group_words, steps
from vega_policy.rollout.report.timing import percentile, policy_ms, steps_per_s
from vega_policy.rollout.table import percent
from vega_policy.spec import FULL_ARM

if TYPE_CHECKING:
    from vega_policy.rollout.report.reading import Run


def head(run: Run, links: str) -> str:
    """Write title, headline, facts and banners.

    Args:
        run: What it is about.
        links: To the sections below.
    """
    total, header = run.summary.total, run.header
    low, high = total.interval
    rate = "-" if total.rate is None else percent(total.rate)
    checkpoint = Path(str(header.configuration.get("checkpoint", ""))).name
    speed = steps_per_s(run)
    chunk_ms = percentile(policy_ms(run.rows).get("total", []), 50)
    facts = [
        (str(total.episodes), f"episodes, {len(run.summary.tasks)} tasks"),
        (steps(total.mean_steps_success), "mean steps of successes"),
        (steps(total.mean_steps), "mean steps of all"),
        (str(total.policy_faults), "policy faults"),
        ("-" if chunk_ms is None else f"{chunk_ms:.0f} ms", "per inference (median)"),
        ("-" if speed is None else f"{speed:.0f}/s", "control steps, all workers"),
    ]
    cells = "".join(
        f'<div class="fact"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for value, label in facts
    )
    created = header.created.replace("T", " ").replace("+00:00", " UTC")
    commit = f" &middot; commit <code>{escape(header.commit)}</code>" if header.commit else ""
    return f"""<header><p class="eyebrow">Rollout</p>
<h1>{escape(run.suite)}</h1>
<p class="soft">checkpoint <b>{escape(checkpoint)}</b> &middot; run {escape(run.path.name)}
&middot; {escape(created)}{commit}</p>
<nav aria-label="Sections">{links}</nav></header>{_banners(run)}
<section class="hero"><div class="card headline">
<div class="rate">{rate}<small>&thinsp;%</small></div>
<p class="soft">{total.successes} of {total.episodes} {_counted(run)} succeeded; 95&nbsp;% interval
{percent(low)} to {percent(high)}&nbsp;%</p>
{figures.interval_bar(total, total, is_total=True)}{figures.interval_axis()}{_others(run)}</div>
<div class="card facts">{cells}</div></section>"""


def _counted(run: Run) -> str:
    if run.main == (FULL_ARM, CLEAN) and len(run.groups) <= 1:
        return "episodes"
    return escape(group_words(run.main)) + ","


def _others(run: Run) -> str:
    """Say what is not counted in the headline."""
    others = [group for group in run.groups if group != run.main]
    if not others:
        return ""
    n = sum(len(run.groups[group]) for group in others)
    n_arms, n_perturbations = len(run.arms), len(run.perturbations)
    where = [
        *(['<a href="#arms">arms</a>'] if n_arms > 1 else []),
        *(['<a href="#robustness">robustness</a>'] if n_perturbations > 1 else []),
    ]
    return (
        f'<p class="small soft">{n} further episodes of other arms or perturbations are not in '
        f"this number: see {' and '.join(where)}.</p>"
    )


def _banners(run: Run) -> str:
    return _preflight_banner(run) + _missing_banner(run)


def _preflight_banner(run: Run) -> str:
    doctor = run.header.doctor
    failed = run.verdict.failed if run.verdict is not None else list(doctor.get("failed", ()))
    if failed:
        return (
            f'<div class="banner bad" role="alert"><b>The preflight failed and the run was '
            f"forced.</b> Do not trust or quote these numbers before the "
            f'<a href="#preflight">verdict</a> is dealt with: {escape(", ".join(failed))}</div>'
        )
    if run.verdict is None and not doctor:
        return (
            '<div class="banner"><b>No preflight was made.</b> Whether simulator and policy '
            "behave here as they should was not checked before this run.</div>"
        )
    return ""


def _missing_banner(run: Run) -> str:
    if not run.missing:
        return ""
    n = len(run.missing)
    last = f": {escape(str(run.faults[-1]['detail']))}" if run.faults else ""
    return (
        f'<div class="banner"><b>{n} of {n + len(run.rows)} planned episodes '
        f"{'have' if n > 1 else 'has'} no row</b> and "
        f"{'are' if n > 1 else 'is'} not counted; start the run again with the same name to play "
        f"{'them' if n > 1 else 'it'}{last}</div>"
    )
