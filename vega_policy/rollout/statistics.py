"""How sure a success rate is: Wilson intervals, per task and in total."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from vega_policy.rollout.plan import CLEAN
from vega_policy.spec import FULL_ARM
from vega_policy.spec.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vega_policy.spec import EpisodeResult

Group = tuple[str, str]
"""Arm and perturbation: what is counted together."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Episodes that are counted together."""

    episodes: int
    successes: int
    policy_faults: int
    """Episodes in which the policy raised or returned an invalid chunk; they count as episodes
    without success."""
    interval: tuple[float, float]
    """Wilson interval of the success rate, at 95 % if not said otherwise; (0, 1) where there is no
    episode."""
    mean_steps_success: float | None
    """Control steps of the successful episodes; None where there is none."""
    mean_steps: float | None
    """Control steps of all episodes; None where there is none."""

    @property
    def rate(self) -> float | None:
        """Share of successes; None without episodes."""
        return self.successes / self.episodes if self.episodes else None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a ledger says."""

    total: Tally
    tasks: dict[int, Tally]
    """By task number, ascending."""


def tally(results: Sequence[EpisodeResult], *, confidence: float = 0.95) -> Tally:
    """Count episodes; ``confidence`` is that of the interval."""
    won = [r for r in results if r.outcome == "success"]
    return Tally(
        episodes=len(results),
        successes=len(won),
        policy_faults=sum(r.outcome == "policy_fault" for r in results),
        interval=wilson(len(won), len(results), confidence=confidence),
        mean_steps_success=fmean(r.n_steps for r in won) if won else None,
        mean_steps=fmean(r.n_steps for r in results) if results else None,
    )


def group_of(row: EpisodeResult) -> Group:
    """Return what a row is counted with."""
    return (row.arm, row.key.perturbation)


def groups(
    results: Iterable[EpisodeResult], *, asked: Iterable[Group] = ()
) -> dict[Group, list[EpisodeResult]]:
    """Part rows into what is counted together; the clean episodes of the full arm come first.

    Args:
        results: The rows of a ledger; within a group they come in the order of their keys.
        asked: Groups that are there even without a row, and in this order; others follow by name.
    """
    parts: dict[Group, list[EpisodeResult]] = {group: [] for group in asked}
    n_asked = len(parts)
    for row in results:
        parts.setdefault(group_of(row), []).append(row)
    names = list(parts)
    names = [*names[:n_asked], *sorted(names[n_asked:])]
    arms = list(dict.fromkeys(arm for arm, _ in names))
    names.sort(key=lambda g: (g[0] != FULL_ARM, arms.index(g[0]), g[1] != CLEAN))
    return {group: sorted(parts[group], key=lambda row: row.key) for group in names}


def summarise(results: Iterable[EpisodeResult], *, task_ids: Iterable[int] = ()) -> Summary:
    """Count episodes per task and in total.

    Args:
        results: The rows of a ledger.
        task_ids: Tasks that get a row even if no episode of theirs is there yet.
    """
    rows = list(results)
    ids = sorted({*task_ids, *(r.key.task_id for r in rows)})
    return Summary(
        total=tally(rows),
        tasks={t: tally([r for r in rows if r.key.task_id == t]) for t in ids},
    )
