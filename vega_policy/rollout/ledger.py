"""The record of a run: a header, and one line per episode that is never changed again.

A run directory holds ``run.json`` (`RunHeader`, written atomically), ``ledger.jsonl`` (one
`EpisodeResult` per line, flushed to the disk before the next episode counts), ``faults.jsonl``
(simulator faults), ``starts.jsonl`` (how long each start took), ``doctor.json`` (the preflight),
``videos/``, ``gates/`` and ``traces/``. Statistics and report read nothing else.

Lines of JSON, and not a database, because that store is append-only by its form: a row is one
``write`` and one ``fsync``, a torn last line is recognised and cut, merging is concatenation, and a
row can be read in any language or by eye. A run has thousands of rows, so no index is missed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import IO, TYPE_CHECKING, Any

from vega_policy.rollout.plan import Job, Plan
from vega_policy.spec import ContractError, EpisodeResult, StorageFault
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

log = logging.getLogger(__name__)

FORMAT = 2
"""Version of the run directory's layout."""
HEADER, ROWS, FAULTS, STARTS = "run.json", "ledger.jsonl", "faults.jsonl", "starts.jsonl"
VIDEOS, GATES, TRACES = "videos", "gates", "traces"
FILES = ("trace", "gates", "video")
"""Entries of a row's ``info`` that name a file of the run."""
UNCHECKED = "preflight"
"""Name of the warning that a start of the run was made without preflight."""


@dataclass(frozen=True, kw_only=True)
class RunHeader:
    """What was run, with what."""

    defines: Mapping[str, Any]
    """Everything that decides what an episode's row says: checkpoint hash, suite, seed, step
    limit, ... A run is only continued with the same values."""
    versions: Mapping[str, str]
    """Of the simulator, the libraries and ourselves; part of what decides."""
    plans: Sequence[Mapping[str, Any]]
    """`Plan.to_json` of every start that asked for something else; together they say what is
    missing."""
    configuration: Mapping[str, Any]
    """The resolved configuration of the latest start."""
    host: Mapping[str, Any] = field(default_factory=dict[str, Any])
    created: str = ""
    """UTC time of the first start, ISO 8601."""
    commit: str = ""
    doctor: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the preflights of all starts found: ``failed``, ``warnings`` (names), ``is_forced``.
    Empty where none was made; where some starts went without, `UNCHECKED` is among the warnings."""
    format: int = FORMAT

    def disagreements(self, other: RunHeader) -> list[str]:
        """List what decides results and differs, one sentence each."""
        found: list[str] = []
        for label, a, b in (
            ("", self.defines, other.defines),
            ("version of ", self.versions, other.versions),
        ):
            found += [
                f"{label}{name}: the run has {a.get(name)!r}, now it is {b.get(name)!r}"
                for name in sorted({*a, *b})
                if a.get(name) != b.get(name)
            ]
        return found


class Ledger:
    """The open record of one run; a context manager, held by one process at a time."""

    def __init__(self, *, run_dir: Path, rows: list[EpisodeResult], handle: IO[bytes]) -> None:
        self.run_dir = run_dir
        self._rows = rows
        self._jobs = {job_of(row) for row in rows}
        self._handle = handle

    @classmethod
    def open(cls, run_dir: Path, header: RunHeader) -> Ledger:
        """Start a run, or continue the one that is there.

        A last line that a kill cut short is removed, so its episode is played again; half-written
        files of a killed worker are removed too. ``header`` replaces the stored one once they
        agree, with the plan extended and the time of the first start kept.

        Raises:
            ContractError: The run was made with other settings (all are listed), another process
                is writing it, or the ledger is damaged.
            StorageFault: The disk refuses.
        """
        header = RunHeader(**json.loads(json.dumps(asdict(header))))
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            handle = (run_dir / ROWS).open("ab")
        except OSError as error:
            raise storage_fault(error, run_dir) from error
        try:
            _lock(handle, run_dir)
            if (run_dir / HEADER).exists():
                header = _continue(read_header(run_dir), header, run_dir)
            _cut_torn_line(run_dir / ROWS)
            rows = read_rows(run_dir)
            for folder in (VIDEOS, GATES, TRACES):
                for leftover in (run_dir / folder).glob(".*"):
                    leftover.unlink(missing_ok=True)
            write_atomic(run_dir / HEADER, json.dumps(asdict(header), indent=2) + "\n")
            _sync_folder(run_dir)
        except OSError as error:
            handle.close()
            raise storage_fault(error, run_dir) from error
        except BaseException:
            handle.close()
            raise
        return cls(run_dir=run_dir, rows=rows, handle=handle)

    @property
    def rows(self) -> list[EpisodeResult]:
        """The episodes so far, in the order they ended."""
        return list(self._rows)

    def append(self, result: EpisodeResult) -> None:
        """Record an episode; when this returns the row survives a kill and a power cut.

        Raises:
            ValueError: The episode is there already.
            StorageFault: The disk is full or refuses for another reason; the rows before are whole.
        """
        job = job_of(result)
        if job in self._jobs:
            raise ValueError(f"episode {job.name} is in the ledger already")
        line = json.dumps(result.to_json(), allow_nan=False, separators=(",", ":")) + "\n"
        descriptor = self._handle.fileno()
        n_bytes = os.fstat(descriptor).st_size
        try:
            # Past Python's buffer: what a failed write left there would be tried again at closing.
            view = memoryview(line.encode())
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, n_bytes)
            raise storage_fault(error, self.run_dir) from error
        self._rows.append(result)
        self._jobs.add(job)

    def note_fault(self, job: Job, *, attempt: int, detail: str) -> None:
        """Record a simulator fault; it is not an outcome of the episode."""
        self._note(FAULTS, {**asdict(job), "attempt": attempt, "detail": detail})

    def note_start(self, numbers: Mapping[str, float]) -> None:
        """Record how long a start of the run took; a start that was killed leaves no line."""
        self._note(STARTS, numbers)

    def _note(self, name: str, row: Mapping[str, Any]) -> None:
        try:
            with (self.run_dir / name).open("a") as handle:
                handle.write(json.dumps(row) + "\n")
        except OSError as error:
            raise storage_fault(error, self.run_dir) from error

    def close(self) -> None:
        """Close the file and let another process continue the run."""
        self._handle.close()

    def __enter__(self) -> Ledger:
        """Return the ledger."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()


def job_of(row: EpisodeResult) -> Job:
    """Return what identifies a row."""
    return Job(row.key, row.arm)


def storage_fault(error: OSError, run_dir: Path) -> StorageFault:
    """Say what a refused write means for the run."""
    return StorageFault(
        f"cannot write to {run_dir}: {error.strerror or error}; the episodes in the ledger are whole, "
        "make room and start the same command again to continue"
    )


def planned(header: RunHeader) -> list[Job]:
    """Return every row that was ever asked for, in order, each once."""
    jobs = [job for plan in header.plans for job in Plan.from_json(plan).jobs()]
    return list(dict.fromkeys(jobs))


def task_names(header: RunHeader) -> dict[int, str]:
    """Return number and name of every task that was ever asked for."""
    return dict(
        sorted(item for plan in header.plans for item in Plan.from_json(plan).tasks.items())
    )


def read_header(run_dir: Path) -> RunHeader:
    """Read the header of a run.

    Raises:
        ContractError: There is none, or a newer version of this package wrote it.
    """
    path = run_dir / HEADER
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ContractError(f"{run_dir} is not a run: it has no {HEADER}") from error
    except json.JSONDecodeError as error:
        raise ContractError(f"{path} is damaged ({error}); remove the run or restore it") from error
    if values.get("format") != FORMAT:
        raise ContractError(
            f"{path} has format {values.get('format')}, this version reads {FORMAT}; "
            "use another name for a new run"
        )
    return RunHeader(**{k: v for k, v in values.items() if k in RunHeader.__dataclass_fields__})


def read_rows(run_dir: Path) -> list[EpisodeResult]:
    """Read the finished episodes; a last line that a kill cut short is skipped.

    Raises:
        ContractError: A line is damaged, or an episode is there twice.
    """
    path = run_dir / ROWS
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows: dict[Job, EpisodeResult] = {}
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is None:
            if not line.endswith(b"\n"):
                break
            raise ContractError(
                f"{path} line {number} is damaged, or of a newer version; "
                "remove the line, then resume"
            )
        if job_of(row) in rows:
            raise ContractError(f"{path} line {number} repeats {row.name}; remove the line")
        rows[job_of(row)] = row
    return list(rows.values())


def read_faults(run_dir: Path) -> list[dict[str, Any]]:
    """Read the simulator faults: dictionaries with ``key``, ``arm``, ``attempt``, ``detail``."""
    return _read_notes(run_dir / FAULTS)


def read_starts(run_dir: Path) -> list[dict[str, Any]]:
    """Read the starts of a run: ``wall_s``, ``episodes``, ``control_steps``."""
    return _read_notes(run_dir / STARTS)


def _read_notes(path: Path) -> list[dict[str, Any]]:
    notes: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            notes.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("%s has a damaged line; it is left out", path)
    return notes


def _parse(line: bytes) -> EpisodeResult | None:
    """Return the row, or None where the line is incomplete."""
    if not line.endswith(b"\n"):
        return None
    try:
        return EpisodeResult.from_json(json.loads(line))
    except (ValueError, KeyError, TypeError):
        return None


def _cut_torn_line(path: Path) -> None:
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    if not lines or lines[-1].endswith(b"\n"):
        return  # a whole line that cannot be read was not cut short: `read_rows` refuses it
    log.warning("the last line of %s was cut short by a kill; its episode runs again", path)
    os.truncate(path, len(content) - len(lines[-1]))


def _lock(handle: IO[bytes], run_dir: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ContractError(
            f"{run_dir} is being written by another process; wait for it or choose another name"
        ) from error


def _continue(old: RunHeader, new: RunHeader, run_dir: Path) -> RunHeader:
    problems = old.disagreements(new)
    if problems:
        raise ContractError(
            f"run {run_dir.name} cannot be continued, {len(problems)} "
            f"setting{'s differ' if len(problems) > 1 else ' differs'}:\n  "
            + "\n  ".join(problems)
            + "\nrestore them, or choose another name for a new run"
        )
    for what, before, now in (
        ("the class of processor", old.host.get("cpu_class"), new.host.get("cpu_class")),
        ("the commit", old.commit, new.commit),
    ):
        if before and before != now:
            log.warning(
                "%s: %s was %s at the start before and is %s now; last bits, or more, may differ "
                "between its episodes (each row says what it was made with)",
                run_dir.name,
                what,
                before,
                now,
            )
    return replace(
        new,
        plans=[*old.plans, *(plan for plan in new.plans if plan not in old.plans)],
        created=old.created,
        doctor=_united(old.doctor, new.doctor),
    )


def _united(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Unite the verdicts of an earlier and a later start: the rows of both are counted."""
    if not old and not new:
        return {}
    both = [*([] if old and new else [{"warnings": [UNCHECKED]}]), old, new]
    return {
        name: sorted({check for verdict in both for check in verdict.get(name, ())})
        for name in ("failed", "warnings")
    } | {"is_forced": any(verdict.get("is_forced") for verdict in both)}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
