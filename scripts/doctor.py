"""Look for what silently spoils success rates: simulator, policy, machine.

python scripts/doctor.py suite=libero_object checkpoint=nano-libero-object
python scripts/doctor.py areas=[simulator] depth=full

Exit code 1 where a check failed: numbers made here cannot be trusted before it is repaired.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from hydra_cli import run
from rollout import build_policy, build_suite

from vega_policy.rollout.doctor import Needs, Verdict, machine_checks, policy_checks
from vega_policy.rollout.doctor.lines import line, summary
from vega_policy.rollout.doctor.machine import SIMULATOR_GB
from vega_policy.rollout.doctor.samples import load_samples, suites
from vega_policy.spec import CAMERAS, Check, Observation, VegaError
from vega_policy.spec.check import Area
from vega_policy.spec.files import write_atomic
from vega_policy.spec.names import require_name
from vega_policy.spec.probe import run_probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vega_policy.spec import Simulator

AREAS = get_args(Area)
DEPTHS = ("cheap", "full")
_DOWN = np.tile(np.array([0.4, 0.3, -0.6, 0.0, 0.0, 0.0, -1.0]), (16, 1))

log = logging.getLogger("scripts")


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Make the checks the configuration asks for."""
    for area in config["areas"]:
        require_name(area, AREAS, what="area")
    require_name(config["depth"], DEPTHS, what="depth")
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
            "what to do stands below each"
        )
    return answer


def _parts(config: dict[str, Any]) -> Iterator[tuple[str, Iterator[Check]]]:
    """Yield a title and the lazy checks of each area, in the order that costs least to fail in."""
    areas = config["areas"]
    is_fake = config["suite"]["simulator"] == "fake"
    if "machine" in areas:
        needs = Needs(
            run_dir=Path(config["out_dir"]),
            n_workers=config["workers"] or len(os.sched_getaffinity(0)),
            device=config["device"],
            n_episodes=config["episodes"],
            simulator_gb=0.1 if is_fake else SIMULATOR_GB,
        )
        yield "machine", machine_checks(needs)
    if "policy" in areas:
        yield f"policy {config['checkpoint']}", _policy_checks(config)
    if "simulator" in areas and not is_fake:
        from envs import fidelity

        yield f"simulator, {config['depth']}", fidelity.checks(depth=config["depth"])


def _policy_checks(config: dict[str, Any]) -> Iterator[Check]:
    suite, make_simulator = build_suite(config["suite"])
    rollout = {"camera_px": config["camera_px"], "torch_threads": len(os.sched_getaffinity(0))}
    policy, defines = build_policy({**config, "rollout": rollout}, suite)
    px = defines["camera_px"]
    seen: list[Observation] = []

    def look() -> Check:
        seen.extend(observe(make_simulator, suite=suite.name, camera_px=px))
        return Check(
            area="policy",
            name="observations",
            status="ok",
            found=f"{len(seen)} of {suite.name}, task 0, {px} px",
        )

    yield run_probe("policy", "observations", look)
    recorded = load_samples(suite.name, image_px=px) if suite.name in suites() else []
    # The recorded ones come last, of which the second is another task's: another instruction.
    yield from policy_checks(policy, [*seen, *recorded], suite=suite.name)


def observe(
    make_simulator: Callable[..., Simulator], *, suite: str, camera_px: int
) -> list[Observation]:
    """Return the start of the suite's first episode, and the second with the hand moved."""
    found: list[Observation] = []
    with closing(make_simulator(suite=suite, task_id=0, camera_px=camera_px)) as simulator:
        for state in (0, 1):
            seen, _ = simulator.reset(seed=0, options={"init_state_id": state})
            if state:
                seen = simulator.step_chunk(_DOWN)[0]
            found.append(
                Observation(
                    images={camera: seen[camera] for camera in CAMERAS},
                    proprio=seen["proprio"],
                    instruction=simulator.instruction,
                )
            )
    return found


if __name__ == "__main__":
    run("doctor", main)
