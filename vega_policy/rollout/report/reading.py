"""A run directory, read once for all sections."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vega_policy.rollout.doctor import Verdict, load_verdict
from vega_policy.rollout.ledger import (
    RunHeader,
    job_of,
    planned,
    read_faults,
    read_header,
    read_rows,
    read_starts,
    task_names,
)
from vega_policy.rollout.plan import CLEAN, SAMPLED_START, Job
from vega_policy.rollout.statistics import Group, Summary, groups, summarise
from vega_policy.spec import FULL_ARM, EpisodeResult


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything the report is made of."""

    path: Path
    header: RunHeader
    rows: list[EpisodeResult]
    groups: dict[Group, list[EpisodeResult]]
    """In the order they were asked for; the first is the one the headline is about."""
    summary: Summary
    """Of the first group."""
    faults: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    names: dict[int, str]
    """Task number to what the task says."""
    missing: list[Job]
    verdict: Verdict | None

    @property
    def suite(self) -> str:
        """What was played."""
        return str(self.header.defines.get("suite", "run"))

    @property
    def main(self) -> Group:
        """The group of the headline: the clean episodes of the full arm where there are any."""
        return next(iter(self.groups), (FULL_ARM, CLEAN))

    @property
    def main_rows(self) -> list[EpisodeResult]:
        """The episodes of the headline."""
        return self.groups.get(self.main, [])

    @property
    def arms(self) -> list[str]:
        """Every arm, that of the headline first."""
        return list(dict.fromkeys(arm for arm, _ in self.groups))

    @property
    def perturbations(self) -> list[str]:
        """Every perturbation, that of the headline first."""
        return list(dict.fromkeys(name for _, name in self.groups))


def read(run_dir: Path) -> Run:
    """Read a run directory.

    Raises:
        ContractError: It holds no run, or a damaged one.
    """
    header, rows = read_header(run_dir), read_rows(run_dir)
    names = {t: name.replace("_", " ") for t, name in task_names(header).items()}
    names |= {
        r.key.task_id: r.instruction
        for r in rows
        if r.instruction and r.key.perturbation in (CLEAN, SAMPLED_START)
    }
    names |= {r.key.task_id: f"task {r.key.task_id}" for r in rows if r.key.task_id not in names}
    jobs, done = planned(header), [job_of(row) for row in rows]
    parts = groups(rows, asked=((job.arm, job.key.perturbation) for job in jobs))
    known = set(done)
    return Run(
        path=run_dir.resolve(),
        header=header,
        rows=rows,
        groups=parts,
        summary=summarise(next(iter(parts.values()), []), task_ids=names),
        faults=read_faults(run_dir),
        starts=read_starts(run_dir),
        names=names,
        missing=[job for job in jobs if job not in known],
        verdict=load_verdict(run_dir),
    )
