"""Compare two policies on the episodes both played.

Episodes pair by their key, which arm played aside. What decides an episode beside the policy must
agree between the runs, else the comparison is refused, or marked where the user insists.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from vega_policy.rollout.ledger import planned, task_names
from vega_policy.rollout.paired import Finding, Pairs, judge
from vega_policy.rollout.plan import CLEAN
from vega_policy.rollout.power import PlanSettings
from vega_policy.rollout.sides import (
    NOTED_DEFINES,
    Side,
    disagreements,
    is_noted_version,
    listed,
    paths,
    read_sides,
    refusal,
    renderers,
)
from vega_policy.rollout.statistics import Tally, tally
from vega_policy.rollout.table import p_text, points, ranges, sensitivity
from vega_policy.spec import ContractError, EpisodeKey, EpisodeResult
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from vega_policy.rollout.ledger import RunHeader

RESULT = "comparison.json"
K = TypeVar("K")


@dataclass(frozen=True, kw_only=True)
class EpisodePair:
    """One episode, played by both."""

    key: EpisodeKey
    """The key of A's episode."""
    a: EpisodeResult
    b: EpisodeResult

    @property
    def won(self) -> tuple[bool, bool]:
        """Whether A and B succeeded; a policy fault is an episode without success."""
        return (self.a.outcome == "success", self.b.outcome == "success")


@dataclass(frozen=True, kw_only=True)
class Unpaired:
    """Rows of one side without a partner, and why the other side has none."""

    side: str
    """``A`` or ``B``: who has the rows."""
    why: str
    names: tuple[str, ...]
    """Of the episodes."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Episodes that are counted together."""

    finding: Finding
    a: Tally
    b: Tally


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came of comparing A with B; every difference is A minus B."""

    a: Side
    b: Side
    pairs: tuple[EpisodePair, ...]
    """Every pair, in order."""
    of: str
    """Which of them ``total``, ``suites`` and ``tasks`` count."""
    total: Group
    suites: Mapping[str, Group]
    """By suite, where there are several."""
    tasks: Mapping[tuple[str, int], Group]
    """By suite and task number; the name says the task in words."""
    perturbations: Mapping[str, Group]
    """By perturbation, where there are several."""
    unpaired: tuple[Unpaired, ...]
    disagreements: tuple[str, ...]
    """Settings that differ although they decide results; not empty only where the user insisted."""
    notes: tuple[str, ...]
    """What a reader should know before believing it."""
    alpha: float
    power: float


def pair_rows(
    a: Iterable[EpisodeResult], b: Iterable[EpisodeResult]
) -> tuple[list[EpisodePair], list[EpisodeResult], list[EpisodeResult]]:
    """Pair rows by key, whichever arm played; also return what is left over of A and of B."""
    of_a, of_b = {r.key: r for r in a}, {r.key: r for r in b}
    pairs = [EpisodePair(key=k, a=of_a[k], b=of_b[k]) for k in sorted(of_a) if k in of_b]
    return (
        pairs,
        [of_a[k] for k in sorted(of_a) if k not in of_b],
        [of_b[k] for k in sorted(of_b) if k not in of_a],
    )


def pair_with_clean(
    rows: Iterable[EpisodeResult],
) -> tuple[list[EpisodePair], list[EpisodeResult]]:
    """Pair each perturbed row with the clean one of its key; also return those without."""
    by_key = {r.key: r for r in rows}
    perturbed = [by_key[k] for k in sorted(by_key) if k.perturbation != CLEAN]
    pairs: list[EpisodePair] = []
    lonely: list[EpisodeResult] = []
    for row in perturbed:
        clean = by_key.get(replace(row.key, perturbation=CLEAN))
        if clean is None:
            lonely.append(row)
        else:
            pairs.append(EpisodePair(key=row.key, a=row, b=clean))
    return pairs, lonely


def compare(
    a: str | Sequence[str],
    b: str | Sequence[str] | None,
    *,
    by: str | None = None,
    force: bool = False,
    alpha: float = 0.05,
    power: float = 0.8,
) -> Comparison:
    """Compare two arms, or one arm's perturbed episodes with its clean ones.

    Args:
        a: A run directory or ``RUN:arm``; a list of them where each suite has a run of its own.
        b: The same; None compares the two arms of ``a``, or is not needed because of ``by``.
        by: ``perturbation`` pairs within ``a``: A is perturbed then, B is clean.
        force: Compare although settings differ that decide results.
        alpha: Chance of a false "separated" within a family of tests.
        power: What "detectable" is for.

    Raises:
        ContractError: There is nothing to compare, or it would not be fair.
    """
    problems = PlanSettings(alpha=alpha, power=power).problems()
    if problems:
        raise ContractError("; ".join(problems))
    side_a, side_b = read_sides(a, b, by=by)
    if by is None:
        pairs, only_a, only_b = pair_rows(side_a.rows, side_b.rows)
        unpaired = [
            *_unpaired("A", only_a, other=side_b),
            *_unpaired("B", only_b, other=side_a),
        ]
        problems = [*disagreements(side_a, side_b), *_other_starts(pairs)]
        if problems and not force:
            raise ContractError(refusal(problems))
    else:
        pairs, lonely = pair_with_clean(side_a.rows)
        left = tuple(row.name for row in lonely)
        why = "the clean episode was not played"
        unpaired = [Unpaired(side="A", why=why, names=left)] if left else []
    if not pairs:
        raise ContractError(_nothing_common(side_a, side_b, by=by))
    counted, of = _headline(pairs, by=by)
    words = {
        (run.suite, number): name.replace("_", " ")
        for side in (side_b, side_a)
        for run in side.runs
        for number, name in task_names(run.header).items()
    }
    suites = {p.key.suite for p in counted}
    changes = {p.key.perturbation for p in pairs}
    return Comparison(
        a=side_a,
        b=side_b,
        pairs=tuple(pairs),
        of=of,
        total=_groups(counted, lambda _: "total", alpha=alpha, power=power)["total"],
        tasks=_groups(
            counted,
            lambda p: (p.key.suite, p.key.task_id),
            name=lambda task: words.get(task, f"task {task[1]}"),
            alpha=alpha,
            power=power,
        ),
        suites=_groups(counted, lambda p: p.key.suite, alpha=alpha, power=power)
        if len(suites) > 1
        else {},
        perturbations=_by_perturbation(pairs, alpha=alpha, power=power) if len(changes) > 1 else {},
        unpaired=tuple(unpaired),
        disagreements=tuple(problems),
        notes=tuple(_notes(side_a, side_b, pairs, unpaired, by=by)),
        alpha=alpha,
        power=power,
    )


def save(comparison: Comparison, out: Path) -> Path:
    """Write ``comparison.json`` and ``comparison.html`` into a folder; return the latter's path."""
    from vega_policy.rollout.comparison_page import PAGE, page

    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / RESULT, json.dumps(to_json(comparison), indent=2) + "\n")
    write_atomic(out / PAGE, page(comparison, folder=out))
    return out / PAGE


def headline(comparison: Comparison) -> str:
    """Say in a few sentences what came of it, and what it could have seen."""
    finding, shown = comparison.total.finding, comparison
    low, high = finding.interval
    pairs = finding.pairs
    lines = [
        f"A is {shown.a.label}, B is {shown.b.label}.",
        f"{finding.verdict}: A - B is {points(pairs.difference)} points over {pairs.n} pairs of "
        f"{shown.of}, {100 * (1 - shown.alpha):g} % interval {points(low)} to {points(high)}, "
        f"exact McNemar p {p_text(finding.p_value, sign='= ')}.",
        seen(comparison),
    ]
    lines += [
        f"unpaired: {len(u.names)} of {u.side}, {u.why} "
        f"({', '.join(u.names[:2])}{', ...' if len(u.names) > 2 else ''})"
        for u in shown.unpaired
    ]
    lines += [f"note: {note}" for note in shown.notes]
    if shown.disagreements:
        lines.append(
            "FORCED: the runs differ in more than the policy, a difference need not be its:\n  "
            + "\n  ".join(shown.disagreements)
        )
    return "\n".join(lines)


def seen(comparison: Comparison) -> str:
    """Say which differences this comparison could have missed."""
    finding = comparison.total.finding
    return sensitivity(
        finding.pairs.n,
        discordant=finding.pairs.discordant or 0.0,
        detectable=finding.detectable,
        power=comparison.power,
    )


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return the whole result in JSON's types; differences are A minus B, as shares."""
    return {
        **_numbers(comparison.total),
        "of": comparison.of,
        "a": _side_json(comparison.a),
        "b": _side_json(comparison.b),
        "alpha": comparison.alpha,
        "power": comparison.power,
        "tasks": [
            {"suite": suite, "task_id": number, "name": group.finding.name, **_numbers(group)}
            for (suite, number), group in comparison.tasks.items()
        ],
        "suites": [{"suite": name, **_numbers(g)} for name, g in comparison.suites.items()],
        "perturbations": [
            {"perturbation": name, **_numbers(g)} for name, g in comparison.perturbations.items()
        ],
        "unpaired": [
            {"side": u.side, "n": len(u.names), "why": u.why} for u in comparison.unpaired
        ],
        "is_forced": bool(comparison.disagreements),
        "disagreements": list(comparison.disagreements),
        "notes": list(comparison.notes),
    }


def _numbers(group: Group) -> dict[str, Any]:
    finding = group.finding
    return {
        "n_pairs": finding.pairs.n,
        "rate_a": group.a.rate,
        "rate_b": group.b.rate,
        "interval_a": list(group.a.interval),
        "interval_b": list(group.b.interval),
        "n_a_only": finding.pairs.n_a_only,
        "n_b_only": finding.pairs.n_b_only,
        "difference": finding.pairs.difference,
        "interval": list(finding.interval),
        "p_value": finding.p_value,
        "p_adjusted": finding.p_adjusted,
        "verdict": finding.verdict,
        "detectable": finding.detectable,
        "is_best_case": finding.is_best_case,
    }


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "label": side.label,
        "arm": side.arm,
        "runs": [str(run.path) for run in side.runs],
        "checkpoint_sha256": [
            str(run.header.defines.get("checkpoint_sha256")) for run in side.runs
        ],
    }


def _groups(
    pairs: Iterable[EpisodePair],
    what: Callable[[EpisodePair], K],
    *,
    name: Callable[[K], str] = str,
    alpha: float,
    power: float,
) -> dict[K, Group]:
    """Part the pairs and test the parts as one family."""
    parts: dict[K, list[EpisodePair]] = {}
    for pair in pairs:
        parts.setdefault(what(pair), []).append(pair)
    findings = judge(
        [(name(key), Pairs.of(p.won for p in part)) for key, part in parts.items()],
        alpha=alpha,
        power=power,
    )
    return {
        key: Group(
            finding=finding,
            a=tally([p.a for p in part], confidence=1 - alpha),
            b=tally([p.b for p in part], confidence=1 - alpha),
        )
        for (key, part), finding in zip(parts.items(), findings, strict=True)
    }


def _by_perturbation(
    pairs: Iterable[EpisodePair], *, alpha: float, power: float
) -> dict[str, Group]:
    ordered = sorted(pairs, key=lambda p: (p.key.perturbation != CLEAN, p.key.perturbation))
    return _groups(ordered, lambda p: p.key.perturbation, alpha=alpha, power=power)


def _other_starts(pairs: Sequence[EpisodePair]) -> list[str]:
    """Say how many pairs began from unequal states although nothing explains it.

    Two kinds of processor may differ in the last bits of a state; that is no reason to refuse.
    """
    moved = [
        p
        for p in pairs
        if p.a.state_hashes
        and p.b.state_hashes
        and p.a.state_hashes[0] != p.b.state_hashes[0]
        and p.a.made_with.get("cpu_class") == p.b.made_with.get("cpu_class")
    ]
    if not moved:
        return []
    return [
        f"start: {len(moved)} of {len(pairs)} pairs begin from unequal simulator states, "
        f"the first is {moved[0].key.name()}"
    ]


def _unpaired(side: str, rows: Sequence[EpisodeResult], *, other: Side) -> list[Unpaired]:
    """Say why rows have no partner: never asked for there, or asked for and not there."""
    asked = {job.key for run in other.runs for job in planned(run.header) if job.arm == other.arm}
    name = "B" if side == "A" else "A"
    parts: dict[str, list[str]] = {}
    for row in rows:
        why = (
            f"{name} planned it and has no row: unfinished, or its simulator broke"
            if row.key in asked
            else f"{name} was not asked to play it"
        )
        parts.setdefault(why, []).append(row.name)
    return [Unpaired(side=side, why=why, names=tuple(found)) for why, found in parts.items()]


def _nothing_common(a: Side, b: Side, *, by: str | None) -> str:
    def episodes(side: Side) -> str:
        keys = [row.key for row in side.rows]
        tasks, states, changes = (
            sorted({getattr(k, name) for k in keys})
            for name in ("task_id", "init_state_id", "perturbation")
        )
        return (
            f"{listed({k.suite for k in keys})}, tasks {ranges(tasks)}, initial states "
            f"{ranges(states)}, perturbations {', '.join(changes)}"
        )

    if by is not None:
        return (
            f"{paths(a.runs)} has no perturbed episode whose clean one was played too "
            f"(it has {episodes(a)}); play both with rollout.perturbations=[none,...]"
        )
    return (
        f"there is no common episode: A has {episodes(a)}; B has {episodes(b)}; "
        "play the same tasks and initial states in both"
    )


def _notes(
    a: Side,
    b: Side,
    pairs: Sequence[EpisodePair],
    unpaired: Sequence[Unpaired],
    *,
    by: str | None,
) -> list[str]:
    """List what a reader should know before believing the result."""
    notes: list[str] = []
    faults = [sum(r.outcome == "policy_fault" for r in rows) for rows in _columns(pairs)]
    if any(faults):
        notes.append(
            f"policy faults: {faults[0]} in A, {faults[1]} in B; they count as episodes without "
            "success"
        )
    missing = sum(len(u.names) for u in unpaired if "has no row" in u.why)
    if missing:
        notes.append(
            f"{missing} episodes are unpaired because the other side has not finished them; finish "
            "it, since those may be the hard ones"
        )
    if by is None:
        notes += _differences_of_policies(a, b, pairs)
    for run in {run.path: run for side in (a, b) for run in side.runs}.values():
        failed = ", ".join(map(str, run.header.doctor.get("failed", ())))
        if failed:
            notes.append(f"the preflight of {run.path.name} did not pass: {failed}")
    shared = Counter(p.b.key for p in pairs)
    if max(shared.values()) > 1:
        notes.append(
            f"a clean episode is part of up to {max(shared.values())} pairs, so the pairs of the "
            "total and of a task depend on each other: their p values are too small; those of a "
            "perturbation are sound"
        )
    n_same = _n_repeated(pairs)
    if n_same:
        notes.append(
            f"{n_same} pairs repeat another to the last bit on both sides: repetitions of these "
            "policies do not differ, so there are fewer pairs than are counted"
        )
    return notes


def _differences_of_policies(a: Side, b: Side, pairs: Sequence[EpisodePair]) -> list[str]:
    """List what else sets the policies apart, or that nothing does."""

    def both(get: Callable[[RunHeader], object]) -> list[set[str]]:
        return [{str(get(run.header)) for run in side.runs} for side in (a, b)]

    notes: list[str] = []
    ours, theirs = both(lambda header: header.defines.get("checkpoint_sha256"))
    if ours == theirs and a.arm == b.arm:
        notes.append("both sides are the same checkpoint and arm")
    found = {
        name: both(lambda header, name=name: header.defines.get(name)) for name in NOTED_DEFINES
    }
    found["commit"] = both(lambda header: header.commit or "none")
    present = {name for side in (a, b) for run in side.runs for name in run.header.versions}
    for name in sorted(filter(is_noted_version, present)):
        found[f"version of {name}"] = both(
            lambda header, name=name: header.versions.get(name, "unknown")
        )
    found["renderer"] = [renderers(side.runs) for side in (a, b)]
    if all(found["renderer"]):
        del found["renderer"]  # A difference is among the disagreements then.
    found["processor"] = [
        {str(row.made_with.get("cpu_class", "")) for row in rows} for rows in _columns(pairs)
    ]
    notes += [
        f"{name}: A has {listed(of_a) or 'unknown'}, B has {listed(of_b) or 'unknown'}"
        for name, (of_a, of_b) in found.items()
        if of_a != of_b
    ]
    return notes


def _columns(pairs: Sequence[EpisodePair]) -> tuple[list[EpisodeResult], list[EpisodeResult]]:
    return [p.a for p in pairs], [p.b for p in pairs]


def _n_repeated(pairs: Sequence[EpisodePair]) -> int:
    """Count pairs in which nothing is new: a repetition of policies that draw nothing at random."""
    seen: set[tuple[object, ...]] = set()
    n = 0
    for p in pairs:
        if not p.a.state_sha256 or not p.b.state_sha256:
            continue
        what = (replace(p.key, repetition=0), p.a.state_sha256, p.b.state_sha256)
        n += what in seen
        seen.add(what)
    return n


def _headline(pairs: Sequence[EpisodePair], *, by: str | None) -> tuple[list[EpisodePair], str]:
    """Choose what the headline counts: clean episodes where there are any, else all."""
    changes = sorted({p.key.perturbation for p in pairs})
    if CLEAN in changes:
        text = "clean episodes" if len(changes) > 1 else "episodes"
        return [p for p in pairs if p.key.perturbation == CLEAN], text
    if len(changes) == 1:
        return list(pairs), f"episodes with {changes[0]}"
    return list(pairs), "perturbed episodes" if by else f"episodes, {len(changes)} perturbations"
