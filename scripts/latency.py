"""Measure success against the time an answer takes, for each schedule between two inferences.

python scripts/latency.py                                         # minutes to an hour; resumable
python scripts/latency.py rollout.init_states=5 'latency.latencies_ms=[0.0,100.0,200.0]'
"""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

from hydra_cli import run
from rollout import build_settings, build_suite, look_first, policy_recipe, with_served_checkpoint

from vega_policy.control import ScheduleSettings
from vega_policy.rollout.evaluate import evaluate, prepare
from vega_policy.rollout.latency import Cell, Measured, cells, plot, table
from vega_policy.rollout.ledger import read_rows
from vega_policy.rollout.statistics import tally
from vega_policy.spec import ContractError, EnvFault
from vega_policy.spec.files import write_atomic

log = logging.getLogger("latency")

OWN = {"open_loop": ["n_execute"], "asynchronous": ["ask_every", "blend"], "ensemble": ["decay"]}
"""Settings that one schedule has, and the others refuse."""


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Play every combination, then draw them."""
    config = with_served_checkpoint(config)
    chosen, root = config["latency"], Path(config["latency"]["out"])
    wanted = cells(chosen["schedules"], chosen["latencies_ms"])
    suite, make_simulator = build_suite(config["suite"])
    settings = [build_settings(settings_of(config, cell, root)) for cell in wanted]
    plans = [prepare(s, suite=suite, action_spec=suite.action_spec) for s in settings]
    make_policies, defines = policy_recipe(config, suite)
    policies = make_policies() if settings[0].engine == "local" else {}
    verdict = look_first(
        config,
        settings[0],
        policies=policies,
        camera_px=defines["camera_px"],
        make=make_simulator,
        n_episodes=sum(len(plan.jobs()) for plan in plans),
    )
    found: list[Measured] = []
    n_missing = 0
    for number, (cell, one) in enumerate(zip(wanted, settings, strict=True), start=1):
        log.info("%d of %d: %s", number, len(wanted), cell.name)
        result = evaluate(
            one,
            suite=suite,
            policies=policies,
            make_policies=make_policies,
            verdict=verdict,
            make_simulator=partial(make_simulator, camera_px=defines["camera_px"]),
            defines=defines,
            configuration=settings_of(config, cell, root),
        )
        n_missing += len(result.missing)
        found.append(measured(cell, one.run_dir))
        write_atomic(
            root / "latency.json", json.dumps([m.to_json() for m in found], indent=2) + "\n"
        )
    print(table(found))
    spec = suite.action_spec
    gap_free_ms = 1000 * (spec.horizon // 2) / spec.rate_hz
    n = min(m.tally.episodes for m in found)
    title = f"{suite.name}, {Path(config['checkpoint']).name}, {n} episodes per point"
    plot(found, root / "latency.png", gap_free_ms=gap_free_ms, title=title)
    best = max(found, key=lambda m: m.tally.rate or 0.0)
    answer = {
        "cells": len(found),
        "episodes": sum(m.tally.episodes for m in found),
        "missing": n_missing,
        "best": best.to_json(),
        "plot": str(root / "latency.png"),
        "results": str(root / "latency.json"),
    }
    if n_missing:
        print(json.dumps(answer), flush=True)
        raise EnvFault(
            f"{n_missing} episodes are missing, their simulator broke every time; start the same "
            "command again to try them again"
        )
    return answer


def settings_of(config: dict[str, Any], cell: Cell, root: Path) -> dict[str, Any]:
    """Return the configuration of the rollout of a combination."""
    rollout = config["rollout"]
    if rollout["schedule"] != "open_loop" or rollout["latency_ms"]:
        raise ContractError(
            "rollout.schedule and rollout.latency_ms are what is varied; set latency.schedules and "
            "latency.latencies_ms"
        )
    mine: dict[str, Any] = {"schedule": cell.schedule, "latency_ms": cell.latency_ms}
    usual = ScheduleSettings()
    for schedule, names in OWN.items():
        if schedule != cell.schedule:
            mine |= {name: getattr(usual, name) for name in names}
    return {**config, "name": cell.name, "out_dir": str(root), "rollout": {**rollout, **mine}}


def measured(cell: Cell, run_dir: Path) -> Measured:
    """Read what a combination came to."""
    rows = read_rows(run_dir)
    total = sum(row.n_steps for row in rows)
    held = sum(int(row.info.get("holds", 0)) for row in rows)
    return Measured(cell=cell, tally=tally(rows), held=held / total if total else 0.0)


if __name__ == "__main__":
    run("latency", main)
