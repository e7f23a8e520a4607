"""Run a declared study: train every arm with every seed, play the same episodes, compare in pairs.

python scripts/study.py stage=plan             # what would be run, and what it could find
python scripts/study.py                        # continues where it stopped, run by run
python scripts/study.py stage=report           # of what there is so far
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_cli import run

from vega_policy.rollout.study.cells import (
    ACTION_SCALES,
    action_scales,
    base_training,
    rollouts,
    trainings,
)
from vega_policy.rollout.study.declaration import Study
from vega_policy.rollout.study.findings import read_findings
from vega_policy.rollout.study.page import page
from vega_policy.rollout.study.text import error_table, group_table, plan_text
from vega_policy.spec import ContractError, EnvFault
from vega_policy.spec.files import write_atomic
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from vega_policy.rollout.study.cells import Cell

STAGES = ("all", "plan", "report")
DECLARED = "study.json"
READING = (
    *(
        "question",
        "reference",
        "main",
        "exempt",
        "same_size",
        "episodes",
        "assumed",
        "alpha",
        "power",
    ),
)
"""What decides how results are read."""
log = logging.getLogger("study")


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Plan, run or report, as the configuration says."""
    stage = require_name(config["stage"], STAGES, what="stage")
    study = Study.from_dict(config["study"])
    root = Path(config["out_dir"]) / study.name
    cells = chosen(study, root, only=config["only"], evaluations=config["evaluations"])
    print(plan_text(study), flush=True)
    todo = [cell for cell in cells if cell.result(root) is None]
    log.info("%d runs, %d of them are done", len(cells), len(cells) - len(todo))
    if stage == "plan":
        return {"study": study.name, "runs": len(cells), "done": len(cells) - len(todo)}
    if stage == "all":
        require_same(study, root)
        play_all(todo, root, at_once=config["trainings_at_once"])
    findings = read_findings(study, root)
    for group in findings.groups:
        print(f"\n{group.name}\n{group_table(study, group)}")
    print(f"\n{error_table(study, findings)}")
    write_atomic(root / "findings.json", json.dumps(findings.to_json(), indent=2) + "\n")
    write_atomic(root / "study.html", page(study, findings))
    whole = findings.groups[0]
    return {
        "study": study.name,
        "rates": {rate.name: rate.rate for rate in whole.rates},
        "contrasts": {
            c.name: {
                "difference": c.difference,
                "interval": list(c.interval),
                "p_adjusted": c.p_adjusted,
                "verdict": c.verdict,
            }
            for c in whole.contrasts
        },
        "missing": len(findings.missing),
        "report": str(root / "study.html"),
    }


def chosen(
    study: Study, root: Path, *, only: list[str] | None, evaluations: list[str] | None = None
) -> list[Cell]:
    """Return the runs to make, trainings of a seed before what they are played with."""
    wanted = _wanted(only, [arm.name for arm in study.arms], what="arm")
    sets = _wanted(evaluations, [e.name for e in study.evaluations], what="evaluation")
    lenders = {study.arm(name).weights for name in wanted}
    base = base_training(study, root)
    found: list[Cell] = [] if base is None else [base]
    for seed in study.seeds:
        found += [
            cell
            for cell in trainings(study, root)
            if cell.seed == seed and (cell.arm in wanted or cell.arm in lenders)
        ]
        found += [
            cell
            for cell in rollouts(study, root)
            if cell.seed == seed and cell.arm in wanted and cell.evaluation in sets
        ]
    return found


def _wanted(chosen: list[str] | None, names: list[str], *, what: str) -> list[str]:
    return names if chosen is None else [require_name(name, names, what=what) for name in chosen]


def require_same(study: Study, root: Path) -> None:
    """Keep the declaration beside the results, and refuse another reading of them later.

    Arms, seeds and evaluations may be added, not taken away: every run says itself with which settings
    it was made.

    Raises:
        ContractError: What decides the reading of the results has changed.
    """
    path = root / DECLARED
    declared = study.to_json()
    if path.is_file():
        before, now = json.loads(path.read_text()), json.loads(json.dumps(declared))
        changed = [name for name in READING if name in before and before[name] != now[name]]
        gone = sorted(_parts(before) - _parts(now))
        if changed or gone:
            said = [f"another {name}" for name in changed] + gone
            raise ContractError(
                f"{root} was declared with {', '.join(said)}; give this study another name"
            )
    write_atomic(path, json.dumps(declared, indent=2) + "\n")


def _parts(declared: dict[str, Any]) -> set[str]:
    """Name the arms, with whom they are compared with, the evaluations and the seeds."""
    arms = {f"arm {a['name']} {a.get('against', '')}".strip() for a in declared["arms"]}
    evaluations = {f"evaluation {e['name']}" for e in declared["evaluations"]}
    return arms | evaluations | {f"seed {seed}" for seed in declared["seeds"]}


def play_all(cells: list[Cell], root: Path, *, at_once: int) -> None:
    """Make the runs in their order; neighbouring trainings of arms side by side, rollouts one by one.

    Raises:
        ContractError: ``at_once`` is no number of trainings.
        EnvFault: A run failed; those beside it are finished and kept first.
    """
    if not isinstance(at_once, int) or at_once < 1:
        raise ContractError(f"trainings_at_once is {at_once!r}, expected a whole number from 1 on")

    def one(cell: Cell) -> None:
        log.info("run %d of %d: %s", cells.index(cell) + 1, len(cells), cell.name)
        cell.keep(root, play(cell))

    for is_side_by_side, some in groupby(cells, key=lambda c: c.kind == "train" and bool(c.arm)):
        with ThreadPoolExecutor(at_once if is_side_by_side else 1) as pool:
            runs = [pool.submit(one, cell) for cell in some]
            try:
                for finished in as_completed(runs):
                    finished.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def play(cell: Cell) -> dict[str, Any]:
    """Run a script and return what it printed last; its log goes on to standard error.

    Raises:
        EnvFault: It failed; the same command continues the study.
    """
    script = Path(__file__).with_name(cell.script)
    ended = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, str(script), *cell.settings], stdout=subprocess.PIPE, check=False
    )
    lines = ended.stdout.decode(errors="replace").strip().splitlines()
    if ended.returncode != 0 or not lines:
        raise EnvFault(
            f"{cell.name} ended with {ended.returncode}; its last words are above, and the same command "
            "continues the study"
        )
    result = json.loads(lines[-1])
    if cell.kind == "train" and result["ending"] != "finished":
        raise EnvFault(
            f"{cell.name} ended before its last update ({result['ending']}); the same command continues"
        )
    if cell.kind == "train":
        result[ACTION_SCALES] = action_scales(cell.run_dir / "policy")
    return result


if __name__ == "__main__":
    run("study", main)
