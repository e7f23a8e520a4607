"""Compare two policies on the same episodes, or plan such a comparison.

python scripts/compare.py runs/baseline runs/mine             # A and B, paired by episode
python scripts/compare.py runs/mine:full runs/mine:gate_clamped
python scripts/compare.py runs/mine                           # its two arms
python scripts/compare.py runs/mine by=perturbation           # perturbed against clean
python scripts/compare.py plan pairs=500 discordant=0.05      # what could be seen
python scripts/compare.py plan difference=0.02                # how many episodes it takes
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra_cli import run

from vega_policy.rollout.compare import compare, headline, save, to_json
from vega_policy.rollout.power import PlanSettings, design_table, plan
from vega_policy.rollout.table import comparison_table
from vega_policy.spec import ContractError
from vega_policy.spec.names import require_name

PLAN = "plan"
PLAN_ONLY = ("pairs", "difference", "discordant")


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Compare or plan, as the configuration says."""
    if config["a"] is None:
        raise ContractError("nothing to compare; name a run, two runs, or plan (see --help)")
    if config["a"] == PLAN:
        return _plan(config)
    misplaced = [name for name in PLAN_ONLY if config[name] is not None]
    if misplaced:
        raise ContractError(
            f"{', '.join(misplaced)} plan{'s' if len(misplaced) == 1 else ''} a comparison; "
            "write compare.py plan, or leave out what belongs to it"
        )
    if config["by"] is not None:
        require_name(str(config["by"]), ["perturbation"], what="by")
    result = compare(
        _names(config["a"]),
        None if config["b"] is None else _names(config["b"]),
        by=config["by"],
        force=config["force"],
        alpha=config["alpha"],
        power=config["power"],
    )
    print(comparison_table(result))
    print("\n" + headline(result), flush=True)
    folder = f"compare-{result.a.label}-{result.b.label}".replace(":", "@").replace("/", "-")
    out = Path("runs") / folder.replace(", ", "-") if config["out"] is None else Path(config["out"])
    report = save(result, out)
    return {**to_json(result), "report": str(report)}


def _names(value: object) -> str | list[str]:
    """Return the runs of one side as text; a folder may be called 5."""
    return [str(name) for name in value] if isinstance(value, list) else str(value)


def _plan(config: dict[str, Any]) -> dict[str, Any]:
    if config["b"] is not None or config["by"] is not None:
        raise ContractError("compare.py plan looks at no run; leave out b and by")
    design = plan(
        PlanSettings(
            **{name: config[name] for name in (*PLAN_ONLY, "rate", "tests", "alpha", "power")}
        )
    )
    print(design_table(design), flush=True)
    return design.to_json()


if __name__ == "__main__":
    run("compare", main, positional=("a", "b"))
