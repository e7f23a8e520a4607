"""Shards of a run from several machines, united into one.

Merging is a union of rows by what identifies them, so it can be repeated: what a merge that was cut
short has written stays, and the same command completes it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vega_policy.rollout.doctor import Verdict, load_verdict
from vega_policy.rollout.ledger import (
    FAULTS,
    FILES,
    STARTS,
    Ledger,
    RunHeader,
    job_of,
    planned,
    read_faults,
    read_header,
    read_rows,
    read_starts,
    storage_fault,
)
from vega_policy.rollout.plan import Job, Plan
from vega_policy.spec import ContractError, EpisodeResult
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What a merge came to."""

    run_dir: Path
    report: Path
    n_rows: int
    n_duplicates: int
    """Rows that were in more than one source, and equal."""
    missing: tuple[Job, ...]
    """Planned rows that no source has."""
    warnings: tuple[str, ...]


def merge(sources: Sequence[Path], out: Path) -> Merged:
    """Unite runs into a new one: rows, files, faults, preflights, plans.

    Args:
        sources: Run directories; they are only read.
        out: The run to make, or one that a merge began to make.

    Raises:
        ContractError: The runs were made with different settings or versions, or two of them
            contradict each other about an episode; everything is listed and nothing is written.
        StorageFault: The disk refuses.
    """
    _require_distinct(sources, out)
    headers = {source: read_header(source) for source in sources}
    _require_agreement(headers)
    warnings = _warnings(headers)
    rows, n_duplicates = _union({source: read_rows(source) for source in sources})
    absent = [f"{row.name}: {name}" for source, row in rows for name in _absent(source, row)]
    if absent:
        warnings.append(f"files that are not there: {', '.join(absent[:5])}, {len(absent)} in all")
    for warning in warnings:
        log.warning("%s", warning)
    header = _united(headers)
    verdicts = [v for v in map(load_verdict, sources) if v is not None]
    with Ledger.open(out, header) as ledger:
        try:
            _keep_notes(sources, out)
            if verdicts:
                checks = dict.fromkeys(chain.from_iterable(v.checks for v in verdicts))
                is_forced = any(v.is_forced for v in verdicts)
                Verdict(checks=tuple(checks), is_forced=is_forced).save(out)
            there = {job_of(row): row for row in ledger.rows}
            for source, row in rows:
                if job_of(row) not in there:
                    _copy_files(source, out, row)
                    ledger.append(row)
                elif _contradictions(there[job_of(row)], row):
                    raise _conflict([_told(out, there[job_of(row)], source, row)])
        except OSError as error:
            raise storage_fault(error, out) from error
        done = {job_of(row) for row in ledger.rows}
    from vega_policy.rollout.report import write_report

    try:
        report = write_report(out)
    except OSError as error:
        raise storage_fault(error, out) from error
    return Merged(
        run_dir=out,
        report=report,
        n_rows=len(done),
        n_duplicates=n_duplicates,
        missing=tuple(job for job in planned(header) if job not in done),
        warnings=tuple(warnings),
    )


def _require_distinct(sources: Sequence[Path], out: Path) -> None:
    if not sources:
        raise ContractError("there is nothing to merge; name the run directories")
    places = [path.resolve() for path in (*sources, out)]
    twice = sorted({str(place) for place in places if places.count(place) > 1})
    if twice:
        raise ContractError(f"{twice[0]} is named twice; name every run once, and another for out")


def _require_agreement(headers: dict[Path, RunHeader]) -> None:
    (first, reference), *others = headers.items()
    problems = [
        f"{source}: {sentence.replace('the run has', f'{first} has').replace('now it is', 'here it is')}"
        for source, header in others
        for sentence in reference.disagreements(header)
    ]
    if problems:
        raise ContractError(
            "these runs are not parts of one:\n  " + "\n  ".join(problems) + "\nmerge runs of the "
            "same checkpoint, settings and versions; compare.py sets others side by side"
        )


def _warnings(headers: dict[Path, RunHeader]) -> list[str]:
    found: list[str] = []
    for what, values in (
        ("processor classes", [str(h.host.get("cpu_class", "")) for h in headers.values()]),
        ("commits", [h.commit for h in headers.values()]),
    ):
        if len(set(values)) > 1:
            named = ", ".join(f"{s.name} {v!r}" for s, v in zip(headers, values, strict=True))
            found.append(f"the runs come from different {what}: {named}")
    return found


def _union(
    runs: dict[Path, list[EpisodeResult]],
) -> tuple[list[tuple[Path, EpisodeResult]], int]:
    """Return every row once with the run it is from, and how many came twice."""
    rows: dict[Job, tuple[Path, EpisodeResult]] = {}
    conflicts: list[str] = []
    n_duplicates = 0
    for source, row in ((source, row) for source, found in runs.items() for row in found):
        first, other = rows.setdefault(job_of(row), (source, row))
        if other is row:
            continue
        n_duplicates += 1
        if _contradictions(other, row):
            conflicts.append(_told(first, other, source, row))
    if conflicts:
        raise _conflict(conflicts)
    return list(rows.values()), n_duplicates


def _conflict(conflicts: list[str]) -> ContractError:
    return ContractError(
        f"{len(conflicts)} episodes were played in two runs and ended differently:\n  "
        + "\n  ".join(conflicts[:20])
        + "\nreplay.py says which one is right; remove the row of the other"
    )


def _told(first: Path, a: EpisodeResult, second: Path, b: EpisodeResult) -> str:
    return f"{a.name}: {', '.join(_contradictions(a, b))} in {first} and {second}"


def _contradictions(a: EpisodeResult, b: EpisodeResult) -> list[str]:
    """Return what two rows of one episode say differently, time and place left aside."""
    one, other = _timeless(a), _timeless(b)
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]


def _timeless(row: EpisodeResult) -> dict[str, Any]:
    values = json.loads(json.dumps(row.to_json()))
    info = values.pop("info")
    del values["wall_s"], values["made_with"]
    # Videos and gates may have been asked for in one run only.
    return {**values, **{k: v for k, v in info.items() if k not in {"run", *FILES}}}


def _united(headers: dict[Path, RunHeader]) -> RunHeader:
    first, *others = headers.values()
    hosts = [dict(header.host) for header in (first, *others)]
    doctors = [header.doctor for header in (first, *others) if header.doctor]
    doctor = {
        name: sorted({check for d in doctors for check in d.get(name, ())})
        for name in ("failed", "warnings")
    } | {"is_forced": any(d.get("is_forced") for d in doctors)}
    return replace(
        first,
        plans=_whole([plan for header in (first, *others) for plan in header.plans]),
        host={
            **first.host,
            "merged": [{**h, "run": s.name} for s, h in zip(headers, hosts, strict=True)],
        },
        created=min(header.created for header in (first, *others)),
        commit=", ".join(dict.fromkeys(header.commit for header in (first, *others))),
        doctor=doctor if doctors else {},
    )


def _whole(plans: list[Any]) -> list[dict[str, Any]]:
    """Replace the parts of a plan by the plan where all of them are there."""
    shards: dict[str, set[tuple[int, int]]] = {}
    wholes: dict[str, Plan] = {}
    for plan in map(Plan.from_json, plans):
        whole = replace(plan, shard=(0, 1))
        name = json.dumps(whole.to_json(), sort_keys=True)
        wholes[name] = whole
        shards.setdefault(name, set()).add(plan.shard)
    united: list[dict[str, Any]] = []
    for name, parts in shards.items():
        counts = {n for _, n in parts}
        if any({(i, n) for i in range(n)} <= parts for n in counts):
            united.append(wholes[name].to_json())
        else:
            united += [replace(wholes[name], shard=part).to_json() for part in sorted(parts)]
    return united


def _absent(source: Path, row: EpisodeResult) -> list[str]:
    return [
        row.info[kind]
        for kind in FILES
        if kind in row.info and not (source / row.info[kind]).is_file()
    ]


def _copy_files(source: Path, out: Path, row: EpisodeResult) -> None:
    """Copy what a row promises; its row comes after."""
    absent = _absent(source, row)
    for kind in FILES:
        name = row.info.get(kind)
        if name is not None and name not in absent:
            write_atomic(out / name, (source / name).read_bytes())


def _keep_notes(sources: Sequence[Path], out: Path) -> None:
    for name, read in ((FAULTS, read_faults), (STARTS, read_starts)):
        notes = [{**note, "run": source.name} for source in sources for note in read(source)]
        if notes:
            write_atomic(out / name, "".join(json.dumps(note) + "\n" for note in notes))
