"""Look for what silently spoils success rates: machine, policy, simulator.

python scripts/doctor.py suite=libero_object checkpoint=nano-libero-object
python scripts/doctor.py areas=[simulator] depth=full
python scripts/doctor.py rollout.workers=16 out_dir=/mnt/results     # the settings of rollout.py

Exit code 1 where a check failed: numbers made here cannot be trusted before it is repaired.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from hydra_cli import run
from preflight import live_policy_checks, simulator_checks
from rollout import build_policy, build_suite

from vega_policy.rollout.doctor import Needs, Verdict, machine_checks
from vega_policy.rollout.doctor.lines import line, summary
from vega_policy.rollout.doctor.machine import GB, SIMULATOR_GB, TOY_GB
from vega_policy.rollout.evaluate import default_workers
from vega_policy.spec import Check, ContractError, VegaError
from vega_policy.spec.check import Area
from vega_policy.spec.files import write_atomic
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from collections.abc import Iterator

AREAS = get_args(Area)
DEPTHS = ("cheap", "full")


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Make the checks the configuration asks for."""
    _require_possible(config)
    started = time.monotonic()
    made: list[Check] = []
    shows_colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for title, checks in _parts(config):
        print(f"\n{title}", flush=True)
        for check in checks:
            print(line(check, is_coloured=shows_colours), flush=True)
            made.append(check)
    verdict = Verdict(tuple(made))
    wall_s = time.monotonic() - started
    print(f"\n{summary(verdict, wall_s=wall_s)}", flush=True)
    if config["out"] is not None:
        write_atomic(Path(config["out"]), json.dumps(verdict.to_json(), indent=2) + "\n")
    answer = {
        "verdict": verdict.word,
        "failed": verdict.failed,
        "warnings": verdict.warnings,
        "checks": len(made),
        "wall_s": round(wall_s, 2),
    }
    if verdict.failed:
        print(json.dumps(answer), flush=True)
        raise VegaError(
            f"{len(verdict.failed)} of {len(made)} checks failed: {', '.join(verdict.failed)}; "
            "each says what to do"
        )
    return answer


def _require_possible(config: dict[str, Any]) -> None:
    """Refuse what cannot be meant.

    Raises:
        ContractError: An area or depth does not exist, or a number is below 1.
    """
    for area in config["areas"]:
        require_name(area, AREAS, what="area")
    require_name(config["depth"], DEPTHS, what="depth")
    if not config["areas"]:
        raise ContractError(f"areas is empty; choose among {', '.join(AREAS)}")
    for name, value in (
        ("rollout.workers", config["rollout"]["workers"]),
        ("episodes", config["episodes"]),
    ):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ContractError(f"{name} is {value!r}; use a whole number of at least 1")


def _parts(config: dict[str, Any]) -> Iterator[tuple[str, Iterator[Check]]]:
    """Yield a title and the lazy checks of each area, the cheapest first."""
    areas = config["areas"]
    is_toy = config["suite"]["simulator"] == "fake"
    if "machine" in areas:
        needs = Needs(
            run_dir=Path(config["out_dir"]),
            n_workers=config["rollout"]["workers"] or default_workers(config["rollout"]["engine"]),
            simulator_gb=TOY_GB if is_toy else SIMULATOR_GB,
            device=config["device"],
            policy_gb=_weights_gb(config["checkpoint"]),
            n_episodes=config["episodes"],
            has_video=config["rollout"]["video"] not in ("none", "false"),
            torch_threads=config["rollout"]["torch_threads"],
        )
        yield "machine", machine_checks(needs)
    policy = f"policy {config['checkpoint']}", _policy_checks(config)
    if "simulator" not in areas or is_toy:
        if "policy" in areas:
            yield policy
        return
    with simulator_checks(config["depth"]) as beside:
        if "policy" in areas:
            yield policy
        yield f"simulator, {config['depth']}", beside


def _weights_gb(checkpoint: str) -> float:
    """Return what a checkpoint's weights take; those that ship are too small to count."""
    return sum(file.stat().st_size for file in Path(checkpoint).glob("*.safetensors")) / GB


def _policy_checks(config: dict[str, Any]) -> Iterator[Check]:
    suite, make_simulator = build_suite(config["suite"])
    policy, defines = build_policy(config, suite)
    yield from live_policy_checks(
        policy,
        suite=suite.name,
        camera_px=defines["camera_px"],
        make_simulator=make_simulator,
        max_batch=config["rollout"]["max_batch"],
    )


if __name__ == "__main__":
    run("doctor", main)
