"""Run a policy on an arm at a fixed rate: the simulated one, or yours through an adapter.

python scripts/serve.py & python scripts/robot_loop.py     # the simulated arm, over a websocket
python scripts/robot_loop.py loop.policy=local             # without a server
python scripts/robot_loop.py loop.adapter=my_arm:make robot=franka_osc loop.dry_run=true

Signals to this process: SIGINT (Ctrl-C) and SIGTERM send a hold and end; SIGUSR1 is the emergency stop, SIGUSR2
releases it and arms. An arm of yours waits for SIGUSR2 before it moves.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from hydra_cli import run

from vega_policy.control.estop import EmergencyStop
from vega_policy.control.pilot import Pilot
from vega_policy.control.profile import RobotProfile
from vega_policy.control.schedule import ScheduleSettings, build_schedule
from vega_policy.control.start import start_problems, start_warnings, warm_up
from vega_policy.control.thread_link import ThreadLink
from vega_policy.deploy.client import Client, ServerInfo, remote_link
from vega_policy.deploy.loop import RobotLoop, Spread, ended_by_signals
from vega_policy.deploy.simulated_arm import SimulatedArmProcess
from vega_policy.spec import CAMERAS, ContractError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vega_policy.control.link import Link, Seen
    from vega_policy.control.schedule import Schedule
    from vega_policy.deploy.robot import Robot
    from vega_policy.deploy.simulated_arm import LazySimulator

log = logging.getLogger("scripts")

API_KEY_VARIABLE = "VEGA_API_KEY"
COLD_S = 120.0
"""Time-out of the first inferences, which may compile and load."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where chunks come from."""

    info: ServerInfo
    """What the policy takes and returns."""
    link: Callable[..., ThreadLink]
    """Makes a link; the arguments are those of `vega_policy.deploy.client.remote_link`."""
    close: Callable[[], None]


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Run the loop the configuration describes."""
    chosen = config["loop"]
    profile = RobotProfile.from_dict(config["robot"])
    settings = ScheduleSettings(
        **{**config["schedule"], "name": config["schedule"]["name"] or "asynchronous"}
    )
    build_schedule(settings, profile.action)  # a mistake is told before anything is waited for
    make_robot = partial(simulated_arm, config, profile)
    if chosen["adapter"] is not None:
        make_robot = own_arm(config, profile)
    source = build_source(config, profile)
    try:
        problems = start_problems(profile, source.info.action_spec, [], settings)
        if problems:
            raise ContractError("this policy cannot drive this robot: " + "; ".join(problems))
        arm = make_robot(source.info)
        try:
            latencies_s, settings = look_first(source, arm, profile, settings, config=config)
            return drive(
                source,
                arm,
                profile,
                build_schedule(settings, profile.action),
                config=config,
                latencies_s=latencies_s,
                is_armed=chosen["adapter"] is None if chosen["arm"] is None else chosen["arm"],
            )
        finally:
            arm.close()
    finally:
        source.close()


def build_source(config: dict[str, Any], profile: RobotProfile) -> Source:
    """Connect to the server, or load the policy into this process."""
    chosen = config["loop"]
    if chosen["policy"] == "remote":
        key = config["api_key"] or os.environ.get(API_KEY_VARIABLE) or None
        make = partial(Client, config["url"], action_spec=profile.action, api_key=key)
        first = make(timeout_s=COLD_S)
        clients = [first]

        def link(*, timeout_s: float, **told: Any) -> ThreadLink:  # noqa: ANN401
            clients.append(make(timeout_s=timeout_s))
            return remote_link(clients[-1], timeout_s=timeout_s, robot=profile.name, **told)

        info = first.connect(wait_s=chosen["connect_s"])

        def close() -> None:
            for client in clients:
                client.close()

        return Source(info=info, link=link, close=close)
    if chosen["policy"] != "local":
        raise ContractError(f"loop.policy is {chosen['policy']!r}; choose remote or local")
    from rollout import build_policy, build_suite

    rollout = {
        "camera_px": chosen["camera_px"],
        "torch_threads": chosen["torch_threads"],
        "arms": [],
    }
    suite, _ = build_suite(config["suite"])
    policy, defines = build_policy({**config, "rollout": rollout}, suite)

    def local(*, timeout_s: float, **_: object) -> ThreadLink:
        return ThreadLink(
            lambda seen, key: policy.act([seen], keys=[key])[0],
            action_spec=policy.action_spec,
            timeout_s=timeout_s,
        )

    info = ServerInfo(
        url="this process",
        action_spec=policy.action_spec,
        is_vega=True,
        image_px=defines["camera_px"],
    )
    return Source(info=info, link=local, close=lambda: None)


def simulated_arm(
    config: dict[str, Any], profile: RobotProfile, info: ServerInfo
) -> SimulatedArmProcess:
    """Start the simulated arm with the cameras that the policy takes."""
    from rollout import PUBLISHED_CAMERA_PX, build_suite

    chosen = config["loop"]
    if chosen["instruction"]:
        raise ContractError("loop.instruction is for an arm of yours; the simulated one has a task")
    suite, make = build_suite(config["suite"])
    n_tasks = len(suite.tasks)
    if not 0 <= chosen["task"] < n_tasks:
        raise ContractError(f"loop.task is {chosen['task']}; {suite.name} has 0 to {n_tasks - 1}")
    make_simulator = partial(
        make,
        suite=suite.name,
        task_id=chosen["task"],
        camera_px=chosen["camera_px"] or info.image_px or PUBLISHED_CAMERA_PX,
    )
    arm = SimulatedArmProcess(
        cast("Callable[[], LazySimulator]", make_simulator), rate_hz=profile.action.rate_hz
    )
    log.info("the simulated arm starts: %s", suite.tasks[chosen["task"]].name)
    arm.reset(init_state_id=chosen["init_state"])
    return arm


def own_arm(config: dict[str, Any], profile: RobotProfile) -> Callable[[ServerInfo], Robot]:
    """Import the user's factory, ``module:factory``, from the working directory or elsewhere."""
    name, instruction = config["loop"]["adapter"], config["loop"]["instruction"]
    module, colon, factory = name.partition(":")
    if not colon:
        raise ContractError(f"loop.adapter is {name!r}; write module:factory")
    if not instruction:
        raise ContractError("loop.instruction is missing; say what the arm is to do")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        make = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        raise ContractError(f"loop.adapter={name} cannot be imported: {error}") from error
    return lambda _: make(profile, instruction)


def look_first(
    source: Source,
    arm: Robot,
    profile: RobotProfile,
    settings: ScheduleSettings,
    *,
    config: dict[str, Any],
) -> tuple[list[float], ScheduleSettings]:
    """Look, ask, and compare, before anything moves.

    Returns:
        The latencies of warm inferences, and the schedule: the one that was chosen, or for a
        simulated arm where none was and the policy is slow, the one that waits.

    Raises:
        ContractError: Something speaks against starting; the message lists all of it.
    """
    cameras = (
        CAMERAS
        if isinstance(arm, SimulatedArmProcess)
        else tuple(first_look(arm).observation.images)
    )
    problems = [
        f"the robot has no camera {name!r}, which the policy looks at"
        for name in source.info.cameras
        if name not in cameras
    ]
    link = with_cameras(source.link(timeout_s=COLD_S), arm)
    try:
        latencies_s = (
            [] if problems else warm_up(link, lambda: first_look(arm), n=config["loop"]["warm_up"])
        )
    finally:
        link.close()
    judged = start_problems(profile, source.info.action_spec, latencies_s, settings)
    is_simulated = isinstance(arm, SimulatedArmProcess)
    if judged and is_simulated and config["schedule"]["name"] is None:
        log.warning("schedule.name=open_loop, which waits for its answers: %s", "; ".join(judged))
        settings = ScheduleSettings(name="open_loop")
        judged = start_problems(profile, source.info.action_spec, latencies_s, settings)
    if problems or (judged and not is_simulated and not config["loop"]["force"]):
        raise ContractError(f"not started: {'; '.join([*problems, *judged])}")
    # A simulated arm that waits for a slow policy breaks nothing.
    for problem in [*judged, *start_warnings(profile, latencies_s, settings)]:
        log.warning("started although %s", problem)
    return latencies_s, settings


def with_cameras(link: Link, arm: Robot) -> Link:
    """Have a simulated arm draw what the questions of this link are about."""
    return arm.link(link) if isinstance(arm, SimulatedArmProcess) else link


def first_look(arm: Robot, *, wait_s: float = 5.0) -> Seen:
    """Return an observation, waiting for one where the sensors still start."""
    give_up = time.monotonic() + wait_s
    while (seen := arm.observe()) is None:
        if time.monotonic() > give_up:
            raise ContractError(f"the robot saw nothing for {wait_s:g} s; see to its cameras")
        time.sleep(0.02)
    return seen


def drive(
    source: Source,
    arm: Robot,
    profile: RobotProfile,
    schedule: Schedule,
    *,
    config: dict[str, Any],
    latencies_s: list[float],
    is_armed: bool,
) -> dict[str, Any]:
    """Arm, run until the end, and say what happened."""
    chosen = config["loop"]
    estop = EmergencyStop()
    reports: list[Callable[[], Mapping[str, Any]]] = []
    link = source.link(
        timeout_s=chosen["timeout_s"],
        report=lambda: reports[0]() if reports else {},
        on_stopped=partial(estop.press, by="the server"),
    )
    link = with_cameras(link, arm)
    pilot = Pilot(
        profile=profile, schedule=schedule, link=link, estop=estop, dry_run=chosen["dry_run"]
    )
    reports.append(pilot.report)
    loop = RobotLoop(arm, pilot, profile=profile, estop=estop, status_s=chosen["status_s"])

    def release() -> None:
        estop.release("the person who sent SIGUSR2")
        pilot.arm()

    on_signal(signal.SIGUSR1, lambda: estop.press("SIGUSR1", by="a person"))
    on_signal(signal.SIGUSR2, release)
    if is_armed:
        pilot.arm()
    else:
        log.warning(
            "disarmed; `kill -USR2 %d` arms, `kill -USR1 %d` stops", os.getpid(), os.getpid()
        )
    try:
        with ended_by_signals(loop.end):
            successes = run_episodes(loop, pilot, arm, config)
    finally:
        link.close()
    return {
        **loop.summary().to_json(),
        **({} if successes is None else {"episodes": len(successes), "success": successes}),
        "latency_ms": Spread.of(
            pilot.stats.latencies_s, largest=max(pilot.stats.latencies_s, default=0.0)
        ).__dict__,
        "warm_up_ms": Spread.of(latencies_s, largest=max(latencies_s, default=0.0)).__dict__,
        "held_because": dict(pilot.stats.holds),
        "interventions": dict(pilot.stats.interventions),
        "state": pilot.state,
    }


def on_signal(number: int, do: Callable[[], None]) -> None:
    """Have a signal do something in a thread: its handler may interrupt a half-done step."""
    signal.signal(number, lambda *_: threading.Thread(target=do, daemon=True).start())


def run_episodes(
    loop: RobotLoop, pilot: Pilot, arm: Robot, config: dict[str, Any]
) -> list[bool] | None:
    """Run until told to end; return what became of each episode of a simulated arm."""
    from rollout import build_suite

    chosen = config["loop"]
    seconds = chosen["seconds"]
    if not isinstance(arm, SimulatedArmProcess):
        loop.run(seconds=seconds)
        return None
    n_episodes = chosen["episodes"] or (1 if seconds is None else np.inf)
    # Ten minutes are more episodes than there are starts: then they come again.
    n_starts = build_suite(config["suite"])[0].tasks[chosen["task"]].n_init_states
    successes: list[bool] = []
    ended, first = "done", chosen["init_state"]
    while len(successes) < n_episodes:
        left_s = None if seconds is None else seconds - loop.summary().seconds
        if left_s is not None and left_s <= 0:
            break
        if successes:
            arm.reset(init_state_id=(first + len(successes)) % n_starts)
        pilot.reset()
        ended = loop.run(seconds=left_s, until=lambda: arm.is_over)
        if ended != "done":
            break
        successes.append(arm.is_success)
        log.info(
            "episode %d: %s after %d steps",
            len(successes) - 1,
            "success" if arm.is_success else "failure",
            arm.n_steps,
        )
    return successes


if __name__ == "__main__":
    run("robot_loop", main)
