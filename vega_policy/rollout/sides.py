"""The two sides of a comparison: which runs they are, and whether comparing them is fair."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vega_policy.rollout.ledger import RunHeader, job_of, read_header, read_rows
from vega_policy.spec import FULL_ARM, ContractError, EpisodeResult
from vega_policy.spec.names import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vega_policy.rollout.plan import Job

NOTED_DEFINES = ("device", "camera_px", "prior_cadence")
"""What of a run's definition comes with the policy and is worth a note where it differs: a
checkpoint says how large its images are, and a run without a cadence has the prior run each time."""
POLICY_DEFINES = ("checkpoint_sha256", "unnorm_key", *NOTED_DEFINES)
"""What of a run's definition belongs to the policy: it may differ, that is what is compared."""
POLICY_VERSIONS = ("vega-policy", "torch", "transformers", "diffusers", "numpy")
"""Libraries that compute the policy; a difference is noted. Those of the simulator must agree."""


def is_noted_version(name: str) -> bool:
    """Tell whether another version of a library is a note and no disagreement.

    LIBERO is among them: its scenes and starts are the same in every release, and a start that is
    not the same is found by its state.
    """
    return name in POLICY_VERSIONS or "libero" in name


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run directory, read once."""

    path: Path
    header: RunHeader
    rows: tuple[EpisodeResult, ...]
    """Of every arm."""

    @property
    def suite(self) -> str:
        """What was played."""
        return str(self.header.defines.get("suite", ""))

    @property
    def arms(self) -> list[str]:
        """The arms with rows, the full one first."""
        return sorted({row.arm for row in self.rows}, key=lambda arm: (arm != FULL_ARM, arm))


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two that are compared: an arm of one run, or of a run per suite."""

    label: str
    arm: str
    runs: tuple[Run, ...]

    @property
    def rows(self) -> list[EpisodeResult]:
        """The episodes of this arm."""
        return [row for run in self.runs for row in run.rows if row.arm == self.arm]

    def video(self, row: EpisodeResult) -> Path | None:
        """Return the video of an episode where there is one."""
        for run in self.runs:
            path = run.path / str(row.info.get("video"))
            if path.is_file():
                return path
        return None


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        ContractError: It is no run, a damaged one, or has no finished episode.
    """
    if not path.is_dir():
        valid = sorted(p.name for p in path.parent.glob("*") if (p / "run.json").exists())
        advice = nearest(path.name, valid) if valid else f"there is no run in {path.parent}"
        raise ContractError(f"there is no run {path}; {advice}")
    run = Run(path=path, header=read_header(path), rows=tuple(read_rows(path)))
    if not run.rows:
        raise ContractError(f"run {path} has no finished episode; play it first")
    return run


def read_sides(
    a: str | Sequence[str], b: str | Sequence[str] | None, *, by: str | None
) -> tuple[Side, Side]:
    runs_a, arm_a = _read(a)
    if by is not None:
        if b is not None:
            raise ContractError(
                "by=perturbation looks into one run: its perturbed episodes and its clean ones; "
                "leave out the second run"
            )
        arm = _arm(runs_a, arm_a)
        name = _label(runs_a, arm)
        return (
            Side(label=f"{name}, perturbed", arm=arm, runs=runs_a),
            Side(label=f"{name}, clean", arm=arm, runs=runs_a),
        )
    if b is None:
        arms = runs_a[0].arms
        if arm_a is not None or len(arms) != 2:
            raise ContractError(
                f"{paths(runs_a)} alone is compared arm with arm and has {', '.join(arms)}; "
                "give two sides, as RUN or RUN:arm"
            )
        return tuple(  # pyright: ignore[reportReturnType]
            Side(label=_label(runs_a, arm, with_arm=True), arm=_arm(runs_a, arm), runs=runs_a)
            for arm in arms
        )
    runs_b, arm_b = _read(b)
    arm_a, arm_b = _arm(runs_a, arm_a), _arm(runs_b, arm_b)
    paths_a, paths_b = ({run.path.resolve() for run in runs} for runs in (runs_a, runs_b))
    if paths_a & paths_b and arm_a == arm_b:
        raise ContractError(
            f"{paths(runs_a)}, arm {arm_a}, is on both sides; choose another run, or another arm "
            f"as RUN:arm (it has {', '.join(runs_a[0].arms)})"
        )
    with_arm = bool(paths_a & paths_b)
    labels = [
        _label(runs, arm, with_arm=with_arm) for runs, arm in ((runs_a, arm_a), (runs_b, arm_b))
    ]
    if labels[0] == labels[1]:
        labels = [f"{paths(runs_a)}:{arm_a}", f"{paths(runs_b)}:{arm_b}"]
    return (
        Side(label=labels[0], arm=arm_a, runs=runs_a),
        Side(label=labels[1], arm=arm_b, runs=runs_b),
    )


def _read(names: str | Sequence[str]) -> tuple[tuple[Run, ...], str | None]:
    """Read the runs of one side, and the arm that was asked for."""
    texts = [names] if isinstance(names, str) else [str(name) for name in names]
    split = [_split(text) for text in texts]
    arms = {arm for _, arm in split}
    if len(arms) != 1:
        raise ContractError(
            f"{', '.join(texts)} together are one side, so they have one arm; "
            "write the same :arm after each"
        )
    runs = tuple(read_run(path) for path, _ in split)
    seen: dict[Job, Path] = {}
    for run in runs:
        for row in run.rows:
            other = seen.setdefault(job_of(row), run.path)
            if other != run.path:
                raise ContractError(
                    f"{other} and {run.path} both have episode {row.name}; one side plays an "
                    "episode once, leave one of them out"
                )
    return runs, arms.pop()


def _split(text: str) -> tuple[Path, str | None]:
    """Part ``RUN:arm``; a folder may have a colon in its name."""
    path, colon, arm = text.rpartition(":")
    if not colon or Path(text).is_dir():
        return Path(text), None
    return Path(path), arm


def _arm(runs: Sequence[Run], wanted: str | None) -> str:
    """Return the arm that was asked for, or else the full one, or else the only one."""
    for run in runs:
        if wanted is None and FULL_ARM not in run.arms and len(run.arms) > 1:
            raise ContractError(
                f"run {run.path} has the arms {', '.join(run.arms)}; choose one as RUN:arm"
            )
        if wanted is not None and wanted not in run.arms:
            raise ContractError(
                f"run {run.path} has no arm {wanted!r}; {nearest(wanted, run.arms)}"
            )
    if wanted is not None:
        return wanted
    return FULL_ARM if all(FULL_ARM in run.arms for run in runs) else runs[0].arms[0]


def _label(runs: Sequence[Run], arm: str, *, with_arm: bool = False) -> str:
    name = "+".join(run.path.resolve().name for run in runs)
    return f"{name}:{arm}" if with_arm or arm != FULL_ARM else name


def paths(runs: Sequence[Run]) -> str:
    return " + ".join(str(run.path) for run in runs)


def disagreements(a: Side, b: Side) -> list[str]:
    """List what decides results beside the policy and differs, one sentence each."""
    suites_a, suites_b = ({run.suite for run in side.runs} for side in (a, b))
    found: list[str] = []
    if suites_a != suites_b:
        found.append(f"suite: A has {listed(suites_a)}, B has {listed(suites_b)}")
    for suite in sorted(suites_a & suites_b):
        ours = [run.header for run in a.runs if run.suite == suite]
        theirs = [run.header for run in b.runs if run.suite == suite]
        where = f" ({suite})" if len(suites_a | suites_b) > 1 else ""
        for label, of_a, of_b in (
            ("", [h.defines for h in ours], [h.defines for h in theirs]),
            ("version of ", [h.versions for h in ours], [h.versions for h in theirs]),
        ):
            names = sorted({n for values in (*of_a, *of_b) for n in values})
            for name in names:
                if name in (*POLICY_DEFINES, "suite") or (label and is_noted_version(name)):
                    continue
                in_a, in_b = ({repr(v.get(name)) for v in values} for values in (of_a, of_b))
                if len(in_a | in_b) > 1:
                    found.append(
                        f"{label}{name}{where}: A has {listed(in_a)}, B has {listed(in_b)}"
                    )
        in_a, in_b = (
            renderers([run for run in side.runs if run.suite == suite]) for side in (a, b)
        )
        if in_a and in_b and len(in_a | in_b) > 1:
            found.append(f"renderer{where}: A has {listed(in_a)}, B has {listed(in_b)}")
    return found


def renderers(runs: Iterable[Run]) -> set[str]:
    """Return what drew the images of runs; empty where no run recorded it.

    llvmpipe names how wide its vectors are, which no pixel depends on.
    """
    found: set[str] = set()
    for run in runs:
        host = run.header.host
        names = (part.get("renderer") for part in (host, *host.get("merged", ())))
        found |= {re.sub(r", \d+ bits", "", str(name)) for name in names if name}
    return found


def refusal(problems: Sequence[str]) -> str:
    return (
        "the runs differ in more than the policy, so a difference would not be the policy's:\n  "
        + "\n  ".join(problems)
        + "\nplay one of them again with the other's settings, or compare all the same with "
        "force=true, which the result will say"
    )


def listed(values: Iterable[str]) -> str:
    """Write values as text, in order."""
    return ", ".join(sorted(values))
