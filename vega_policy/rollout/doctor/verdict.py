"""The verdict of a preflight: kept with the results it speaks for."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from vega_policy.rollout.ledger import UNCHECKED, read_header
from vega_policy.spec import Check, ContractError
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

FILE = "doctor.json"
_EARLIER = "at an earlier start: "


@dataclass(frozen=True)
class Verdict:
    """Every check that was made, in order."""

    checks: tuple[Check, ...]
    is_forced: bool = False
    """The user went on although a check failed."""

    @property
    def failed(self) -> list[str]:
        """Names of the checks that say: do not trust numbers made here."""
        return [check.name for check in self.checks if check.status == "failed"]

    @property
    def warnings(self) -> list[str]:
        """Names of the checks that say: trust them with care."""
        return [check.name for check in self.checks if check.status == "warning"]

    @property
    def word(self) -> Literal["ok", "warnings", "failed"]:
        """The worst status in one word."""
        return "failed" if self.failed else "warnings" if self.warnings else "ok"

    @property
    def short(self) -> dict[str, Any]:
        """The form a run's header keeps."""
        return {"failed": self.failed, "warnings": self.warnings, "is_forced": self.is_forced}

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"checks": [check.to_json() for check in self.checks], "is_forced": self.is_forced}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Verdict:
        """Read a verdict back."""
        checks = tuple(Check.from_json(row) for row in values["checks"])
        return cls(checks=checks, is_forced=bool(values.get("is_forced", False)))

    def after(self, earlier: Verdict | None) -> Verdict:
        """Return this verdict with what earlier starts of the run were told; their rows count too.

        A failure or warning that came again is kept once, as it was found last.
        """
        if earlier is None:
            return self
        again = {(check.area, check.name, check.status) for check in self.checks}
        kept = [
            replace(check, found=f"{_EARLIER}{check.found.removeprefix(_EARLIER)}")
            for check in earlier.checks
            if check.status in ("failed", "warning")
            and (check.area, check.name, check.status) not in again
        ]
        return Verdict((*self.checks, *kept), is_forced=self.is_forced or earlier.is_forced)

    def save(self, run_dir: Path) -> Path:
        """Write ``doctor.json`` atomically and return its path."""
        path = run_dir / FILE
        write_atomic(path, json.dumps(self.to_json(), indent=2) + "\n")
        return path


def load_verdict(run_dir: Path) -> Verdict | None:
    """Read the verdict of a run; None where there is none.

    Raises:
        ContractError: The file is damaged.
    """
    path = run_dir / FILE
    if not path.exists():
        return None
    try:
        return Verdict.from_json(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ContractError(
            f"{path} is no verdict ({type(error).__name__}: {error}); delete it, the next start "
            "of the run writes a new one"
        ) from error


def keep(verdict: Verdict | None, run_dir: Path) -> None:
    """Write what a start found into its run, beside what earlier starts found.

    Args:
        verdict: None for a start without preflight: it is noted where other starts had one.
        run_dir: The run, open already, so that its header speaks of this start too.

    Raises:
        ContractError: The verdict of the earlier start is damaged.
        OSError: The disk refuses.
    """
    whole = (verdict or Verdict(())).after(load_verdict(run_dir))
    doctor = read_header(run_dir).doctor
    if not doctor:
        return
    if UNCHECKED in doctor["warnings"] and UNCHECKED not in whole.warnings:
        note = Check(
            area="machine",
            name=UNCHECKED,
            status="warning",
            found="a start of this run was made without preflight",
            expected="every start looks first: rollout.preflight=true",
            fix="nothing is known of those episodes; play them again under another name to quote "
            "them",
        )
        whole = replace(whole, checks=(*whole.checks, note))
    whole.save(run_dir)


def preflight(checks: Iterable[Check], *, force: bool) -> Verdict:
    """Make the checks of a rollout and refuse to start where one failed.

    Args:
        checks: What to look at; consumed here, so that lazy checks are made here.
        force: Go on regardless; the verdict says so.

    Raises:
        ContractError: A check failed and ``force`` is false; each is listed with its fix.
    """
    made = tuple(checks)
    verdict = Verdict(checks=made)
    for check in made:
        if check.status == "warning":
            log.warning("%s: %s; %s", check.name, check.found, check.fix)
    if not verdict.failed:
        return verdict
    listed = [
        f"{check.area} {check.name}: {check.found}; expected: {check.expected}; do: {check.fix}"
        for check in made
        if check.status == "failed"
    ]
    if not force:
        raise ContractError(
            f"{len(listed)} of {len(made)} preflight checks failed:\n  "
            + "\n  ".join(listed)
            + "\nrepair them, or go on with rollout.force=true, which the results will carry"
        )
    for line in listed:
        log.error("forced past %s", line)
    return Verdict(checks=made, is_forced=True)
