"""From the ledgers of a study to its findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vega_policy.rollout.ledger import read_rows
from vega_policy.rollout.plan import CLEAN, SAMPLED_START
from vega_policy.rollout.study.cells import (
    ACTION_SCALES,
    action_scales,
    checkpoint,
    n_trained,
    rollouts,
    trainings,
)
from vega_policy.rollout.study.contrast import Contrast, contrast
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from vega_policy.rollout.study.declaration import Study
    from vega_policy.spec import EpisodeKey

ALL = "all"
"""Name of the group of every episode that all arms of a study play."""
PERTURBED = "perturbed"
"""Name of all perturbations together."""
VALIDATION = "val/loss"
"""Name under which ``scripts/train.py`` reports the error on held-out demonstrations."""
SAME_SIZE = 0.01
"""Largest relative difference of trained weights between arms."""

Outcomes = Mapping["EpisodeKey", bool]


@dataclass(frozen=True, kw_only=True)
class ArmRate:
    """How an arm did in a group of episodes."""

    name: str
    by_seed: tuple[float, ...]
    """Success rate of each training seed that was played."""
    n_episodes: int
    """Of each seed."""

    @property
    def rate(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.by_seed))


@dataclass(frozen=True, kw_only=True)
class GroupFindings:
    """What the episodes of one group say."""

    name: str
    """``all``, an evaluation, or ``all`` and a perturbation."""
    rates: tuple[ArmRate, ...]
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True, kw_only=True)
class ArmError:
    """How well an arm imitates demonstrations it was not trained on."""

    name: str
    by_seed: tuple[float, ...]
    """Mean distance to the expert's normalised actions, of each training seed."""
    change: float
    """Relative change from the reference, mean over the seeds both have; 0 for the reference."""
    interval: tuple[float, float] | None
    """95 % interval of the change by a paired t over seeds, not corrected for the number of arms; None
    with one seed."""

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.by_seed))


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a study came to, or has come to so far."""

    groups: tuple[GroupFindings, ...]
    """``all`` first."""
    errors: tuple[ArmError, ...]
    """On held-out demonstrations; finer than success, and not what a user wants."""
    n_trained: Mapping[str, int]
    """Trained weights by arm."""
    missing: tuple[str, ...]
    """Rollouts without a result."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def read_findings(study: Study, root: Path) -> Findings:
    """Read what has been played.

    An arm enters a group with the seeds it shares with what it is compared with, and an episode with all
    of these.

    Raises:
        ContractError: The reference has not been played at all, or arms of unequal size.
    """
    outcomes: dict[tuple[str, int], dict[tuple[str, EpisodeKey], bool]] = {}
    missing: list[str] = []
    for cell in rollouts(study, root):
        if cell.result(root) is None:
            missing.append(cell.name)
            continue
        rows = read_rows(cell.run_dir)
        mine = outcomes.setdefault((cell.arm, cell.seed), {})
        arms = sorted({row.arm for row in rows})
        if len(arms) > 1:
            raise ContractError(
                f"{cell.name} was played with the arms {', '.join(arms)}; declare each as an arm of the study"
            )
        for row in rows:
            mine[cell.evaluation, row.key] = row.outcome == "success"
    reference = [seed for arm, seed in outcomes if arm == study.reference]
    if not reference:
        raise ContractError(
            f"the reference arm {study.reference} has played nothing yet; run the study first"
        )
    trained = {cell.arm: cell.result(root) or {} for cell in reversed(trainings(study, root))}
    sizes = {
        arm.name: trained.get(arm.weights or arm.name, {}).get("trained_weights")
        or n_trained(checkpoint(root, arm, study.seeds_of(arm.name)[0]))
        for arm in study.arms
        if (arm.name, study.seeds_of(arm.name)[0]) in outcomes
    }
    groups = tuple(
        _group(study, outcomes, name, belongs) for name, belongs in _groups(study, outcomes)
    )
    return Findings(
        groups=groups,
        errors=tuple(_errors(study, root)),
        n_trained=sizes,
        missing=tuple(missing),
        notes=(*_notes(study, sizes), *_played(study, groups[0])),
    )


def _errors(study: Study, root: Path) -> Iterable[ArmError]:
    """Read what each training said of the demonstrations it was not given, of arms with equal scales."""
    errors: dict[str, dict[int, float]] = {}
    results = {
        (cell.arm, cell.seed): result
        for cell in trainings(study, root)
        if (result := cell.result(root)) is not None
    }
    # A result outlives the weights it was made with.
    scales = {
        (arm, seed): result.get(ACTION_SCALES)
        or action_scales(checkpoint(root, study.arm(arm), seed))
        for (arm, seed), result in results.items()
    }
    for (arm, seed), result in results.items():
        said = result.get("validation") or {}
        # Normalised errors of arms that normalise differently say nothing about each other.
        same = scales[arm, seed] == scales.get((study.reference, seed))
        if VALIDATION in said and same:
            errors.setdefault(arm, {})[seed] = float(said[VALIDATION])
    base = errors.get(study.reference, {})
    for arm, mine in errors.items():
        ratios = np.array([mine[s] / base[s] - 1.0 for s in mine if s in base])
        yield ArmError(
            name=arm,
            by_seed=tuple(mine.values()),
            change=float(ratios.mean()) if len(ratios) else 0.0,
            interval=_t_interval(ratios, alpha=study.alpha) if len(ratios) > 1 else None,
        )


def _t_interval(values: NDArray[np.float64], *, alpha: float) -> tuple[float, float]:
    from scipy import stats

    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    reach = float(stats.t.ppf(1 - alpha / 2, len(values) - 1)) * error
    return (mean - reach, mean + reach)


def _groups(
    study: Study, outcomes: Mapping[tuple[str, int], Mapping[tuple[str, EpisodeKey], bool]]
) -> Iterable[tuple[str, set[tuple[str, str]]]]:
    """Yield names and the (evaluation, perturbation) pairs that belong to each."""
    seen = {(e, key.perturbation) for rows in outcomes.values() for e, key in rows}
    of_all = {e.name for e in study.evaluations if not e.arms}
    yield ALL, {(e, p) for e, p in seen if e in of_all} or seen
    for evaluation in study.evaluations:
        here = {(e, p) for e, p in seen if e == evaluation.name}
        if here and here != seen:
            yield evaluation.name, here
    kinds = sorted({p for _, p in seen} - {CLEAN, SAMPLED_START})
    if len(kinds) > 1:
        yield f"{ALL}, {PERTURBED}", {(e, p) for e, p in seen if p in kinds}
    for kind in kinds:
        here = {(e, p) for e, p in seen if p == kind}
        if here != seen:
            yield f"{ALL}, {kind}", here


def _group(
    study: Study,
    outcomes: Mapping[tuple[str, int], Mapping[tuple[str, EpisodeKey], bool]],
    name: str,
    belongs: set[tuple[str, str]],
) -> GroupFindings:
    here = {
        who: {k: won for k, won in rows.items() if (k[0], k[1].perturbation) in belongs}
        for who, rows in outcomes.items()
    }
    here = {who: rows for who, rows in here.items() if rows}
    found: list[Contrast] = []
    for family in study.families:
        differences: dict[str, NDArray[np.float64]] = {}
        for arm in family:
            d = _differences(here, arm.name, study)
            if d is not None:
                differences[arm.name] = d
        found += contrast(differences, alpha=study.alpha, power=study.power)
    rates = [
        ArmRate(
            name=arm.name,
            by_seed=tuple(float(np.mean(list(rows.values()))) for rows in mine),
            n_episodes=min(len(rows) for rows in mine),
        )
        for arm in study.arms
        if (mine := [here[arm.name, s] for s in study.seeds if (arm.name, s) in here])
    ]
    return GroupFindings(name=name, rates=tuple(rates), contrasts=tuple(found))


def _differences(
    here: Mapping[tuple[str, int], Mapping[tuple[str, EpisodeKey], bool]], arm: str, study: Study
) -> NDArray[np.float64] | None:
    """Return (s, e) differences on what arm and opponent both played; None without two episodes."""
    other = study.opponent(arm)
    seeds = [s for s in study.seeds if (arm, s) in here and (other, s) in here]
    played = [set(here[who, s]) for s in seeds for who in (arm, other)]
    common = sorted(set.intersection(*played)) if played else []
    if len(common) < 2:
        return None
    return np.array(
        [[float(here[arm, s][k]) - float(here[other, s][k]) for k in common] for s in seeds]
    )


def _played(study: Study, whole: GroupFindings) -> Iterable[str]:
    other = sorted({rate.n_episodes for rate in whole.rates} - {study.episodes})
    if other:
        listed = " or ".join(map(str, other))
        yield f"{study.episodes} episodes of each policy were declared, {listed} are there"


def _notes(study: Study, sizes: Mapping[str, int]) -> Iterable[str]:
    compared = {name: n for name, n in sizes.items() if name not in study.exempt}
    if study.same_size and compared:
        low, high = min(compared.values()), max(compared.values())
        if high - low > SAME_SIZE * high:
            listed = ", ".join(f"{name} {n:,}" for name, n in sorted(compared.items()))
            raise ContractError(
                f"the arms train unequal numbers of weights: {listed}; widen the smaller ones, list them "
                "under study.exempt, or set study.same_size=false"
            )
    for name in study.exempt:
        if name in sizes:
            yield f"{name} trains {sizes[name]:,} weights and is exempt from equal sizes"
    if len(study.seeds) < 2:
        yield "one training seed says nothing about another training: no difference is tested"
