"""What `doctor.py` and `rollout.py` both look at, put together from the three areas."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.rollout.doctor import machine_checks, policy_checks
from vega_policy.rollout.doctor.samples import load_samples, suites
from vega_policy.spec import CAMERAS, Check, Observation
from vega_policy.spec.probe import run_probe
from vega_policy.spec.processes import worker_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import Literal

    from vega_policy.rollout.doctor import Needs
    from vega_policy.spec import Policy, Simulator

log = logging.getLogger("scripts")

_MARK = "check:"
_CHECK_SIMULATOR = f"""
import json, sys
from envs import fidelity
for check in fidelity.checks(depth=sys.argv[1]):
    print("{_MARK}", json.dumps(check.to_json()), flush=True)
"""
_SILENCE_S = {"cheap": 180.0, "full": 600.0}
"""Seconds without a finding after which the simulator is taken for hung; the longest check takes
20 s on a busy core, reading every byte of the assets from a slow disk more."""
_DOWN = np.tile(np.array([0.4, 0.3, -0.6, 0.0, 0.0, 0.0, -1.0]), (16, 1))


def cheap_checks(
    policy: Policy | None,
    *,
    suite: str,
    camera_px: int,
    needs: Needs,
    make_simulator: Callable[..., Simulator],
    max_batch: int | None = None,
) -> Iterator[Check]:
    """Yield what a rollout looks at before its first episode, lazily.

    The policy is shown recorded observations, so that no simulator is built for it in the main
    process; a suite without any, the toy, is asked for some.

    Args:
        policy: Loaded already; None where it lives on a cluster.
        suite: Its name.
        camera_px: Side of the images the policy will get.
        needs: What the rollout asks of the machine.
        make_simulator: Takes suite, task_id and camera_px.
        max_batch: Observations the policy is asked about at once, at most.
    """
    yield from machine_checks(needs)
    if policy is None:
        found = "the policy lives in the cluster's inference actors"
        yield Check(area="policy", name="policy", status="skipped", found=found)
        with simulator_checks("cheap") as beside:
            yield from beside if suite in suites() else ()
        return
    if suite not in suites():
        seen = observe(make_simulator, suite=suite, camera_px=camera_px)
        yield from policy_checks(policy, seen, suite=suite, max_batch=max_batch)
        return
    with simulator_checks("cheap") as beside:
        recorded = load_samples(suite, image_px=camera_px)
        yield from policy_checks(policy, recorded, suite=suite, max_batch=max_batch)
        yield from beside


@contextmanager
def simulator_checks(depth: Literal["cheap", "full"]) -> Generator[Iterator[Check]]:
    """Try the simulator in a process as a worker is one; give its checks as they are made.

    The process runs while something else is looked at, has the mathematics kernels of a worker,
    and takes its scenes with it; a graphics driver that kills it is a finding.
    """
    with _start_simulator_checks(depth) as process:
        try:
            yield _read_checks(process, silence_s=_SILENCE_S[depth])
        finally:
            process.kill()  # where nobody wanted the rest


def _start_simulator_checks(depth: str) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-c", _CHECK_SIMULATOR, depth],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
        env=worker_environment(os.environ),
    )


def _read_checks(process: subprocess.Popen[str], *, silence_s: float) -> Iterator[Check]:
    is_hung = threading.Event()
    while line := _next_line(process, silence_s, is_hung):
        mark, _, row = line.partition(" ")
        if mark == _MARK:
            yield Check.from_json(json.loads(row))
        elif line.strip():
            log.debug("%s", line.rstrip())
    code = process.wait()
    if is_hung.is_set():
        yield Check(
            area="simulator",
            name="simulator_process",
            status="failed",
            found=f"the process that tries the simulator said nothing for {silence_s:g} s",
            expected="a finding every few seconds",
            fix="suspect the graphics driver: try MUJOCO_GL=osmesa, or egl on a GPU; on a machine "
            "that is merely busy ask again",
        )
    elif code:
        yield Check(
            area="simulator",
            name="simulator_process",
            status="failed",
            found=f"the process that tries the simulator ended with {code}"
            + (f" (signal {-code}, {signal.Signals(-code).name})" if code < 0 else ""),
            expected="it ends by itself",
            fix="its last words stand above; after a signal suspect the graphics driver: try "
            "MUJOCO_GL=osmesa, or egl on a GPU",
        )


def _next_line(process: subprocess.Popen[str], silence_s: float, is_hung: threading.Event) -> str:
    """Return the next line, or "" after the last one; a silent process is ended."""

    def end() -> None:
        is_hung.set()
        process.kill()

    watchdog = threading.Timer(silence_s, end)
    watchdog.daemon = True
    watchdog.start()
    try:
        return process.stdout.readline() if process.stdout is not None else ""
    finally:
        watchdog.cancel()


def live_policy_checks(
    policy: Policy,
    *,
    suite: str,
    camera_px: int,
    make_simulator: Callable[..., Simulator],
    max_batch: int | None = None,
) -> Iterator[Check]:
    """Yield the checks of a policy on what this installation's simulator shows, lazily."""
    seen: list[Observation] = []

    def look() -> Check:
        seen.extend(observe(make_simulator, suite=suite, camera_px=camera_px))
        found = f"{len(seen)} of {suite}, task 0, {camera_px} px"
        return Check(area="policy", name="observations", status="ok", found=found)

    yield run_probe("policy", "observations", look)
    # The recorded ones come last: the second is another task's, with another instruction.
    recorded = load_samples(suite, image_px=camera_px) if suite in suites() else []
    yield from policy_checks(policy, [*seen, *recorded], suite=suite, max_batch=max_batch)


def observe(
    make_simulator: Callable[..., Simulator], *, suite: str, camera_px: int
) -> list[Observation]:
    """Return the start of the suite's first episode, and of the second with the hand moved."""
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
