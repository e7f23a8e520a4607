"""A study's findings as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vega_policy.rollout.study.contrast import detectable
from vega_policy.rollout.table import aligned, p_text, percent, points

if TYPE_CHECKING:
    from vega_policy.rollout.study.contrast import Contrast
    from vega_policy.rollout.study.declaration import Study
    from vega_policy.rollout.study.findings import ArmError, Findings, GroupFindings


def plan_text(study: Study) -> str:
    """Say what will be run and what it can find, before it is run."""
    n_trained = sum(len(study.seeds_of(arm.name)) for arm in study.arms if not arm.weights)
    least = expected_sensitivity(study)
    can = (
        "with one training seed no difference is tested"
        if least is None
        else f"no difference can be expected to be found, {_tests(study)} at {study.alpha} with "
        f"{_least_seeds(study)} seeds: what comes out is a description"
        if least > 1
        else f"found in {100 * study.power:.0f} % of cases: {points(least, signed=False)} points or more, "
        f"{_tests(study)} at {study.alpha}, if {study.assumed['discordant']:.0%} "
        f"of the pairs end differently and the true difference varies by "
        f"{100 * study.assumed['seed_sd']:.1f} points between training seeds"
    )
    start = ", all from one policy without a prior" if study.base or study.start else ""
    return (
        f"{study.question}\n"
        f"{len(study.arms)} arms, reference {study.reference}; {len(study.seeds)} training seeds; {n_trained} "
        f"trainings{start}; {study.episodes} episodes of each trained policy\n{can}"
    )


def expected_sensitivity(study: Study) -> float | None:
    """Return the difference the study is expected to find, as a share."""
    return detectable(
        n_seeds=_least_seeds(study),
        n_episodes=study.episodes,
        discordant=study.assumed["discordant"],
        seed_sd=study.assumed["seed_sd"],
        n_contrasts=len(study.families[0]) if study.families else 1,
        alpha=study.alpha,
        power=study.power,
    )


def _least_seeds(study: Study) -> int:
    """Count the training seeds that every contrast of the question has."""
    arms = study.families[0] if study.families else ()
    return min((len(study.common_seeds(arm.name)) for arm in arms), default=len(study.seeds))


def _tests(study: Study) -> str:
    n = len(study.families[0]) if study.families else 0
    return (
        "the one contrast of the question"
        if n == 1
        else f"the {n} contrasts of the question together"
    )


def group_table(study: Study, group: GroupFindings) -> str:
    """Lay out a group: rates by arm, differences from what each is compared with, their intervals."""
    found = {c.name: c for c in group.contrasts}
    head = ("arm", "success %", "by seed", "episodes", "difference", "interval", "p (Holm)", "")
    lines: list[tuple[str, ...]] = []
    for rate in group.rates:
        contrast = found.get(rate.name)
        lines.append(
            (
                study.arm(rate.name).words,
                percent(rate.rate),
                " ".join(percent(r) for r in rate.by_seed),
                f"{len(rate.by_seed)} x {rate.n_episodes}",
                *difference_cells(study, rate.name, contrast),
            )
        )
    return aligned(head, lines, [], words=(0, 7))


def error_table(study: Study, findings: Findings) -> str:
    """Lay out the errors on held-out demonstrations; empty where no training measured one."""
    if not findings.errors:
        return ""
    head = ("arm", "held-out error", "by seed", "change %", "interval %")
    lines = [(study.arm(e.name).words, *error_cells(study, e)) for e in findings.errors]
    return aligned(head, lines, [], words=(0,))


def error_cells(study: Study, error: ArmError) -> tuple[str, str, str, str]:
    """Return mean, seeds, relative change and its interval as text."""
    change, interval = "", ""
    if error.name != study.reference:
        change = points(error.change)
        if error.interval is not None:
            interval = f"{points(error.interval[0])} to {points(error.interval[1])}"
    seeds = " ".join(f"{value:.4f}" for value in error.by_seed)
    return (f"{error.mean:.4f}", seeds, change, interval)


def difference_cells(
    study: Study, arm: str, contrast: Contrast | None
) -> tuple[str, str, str, str]:
    """Return difference, interval, p value and verdict as text."""
    if contrast is None:
        return ("", "", "", "reference" if arm == study.reference else "no common episodes")
    other = study.arm(arm).against
    beside = f", against {study.arm(other).words}" if other else ""
    low, high = contrast.interval
    return (
        points(contrast.difference),
        f"{points(low)} to {points(high)}" if contrast.n_seeds > 1 else "-",
        p_text(contrast.p_adjusted) if contrast.n_seeds > 1 else "-",
        (contrast.verdict if contrast.n_seeds > 1 else "one seed: not tested") + beside,
    )
