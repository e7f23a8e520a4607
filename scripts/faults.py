"""Break everything between robot and policy, one thing at a time, and report what the arm was told.

python scripts/faults.py                                  # each fault for 3 s, against a real server process
python scripts/faults.py faults.only=[kill,corrupt] faults.seconds=10

The robot is a recording one. Each of its commands is checked against the limits of its profile by code
that is not the safety filter's. A stop that latches is released when the fault is over, as a person
would. Exit code 1 where a command was unsafe or the robot did not recover.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra_cli import run

from vega_policy.control.estop import EmergencyStop
from vega_policy.control.pilot import Pilot
from vega_policy.control.profile import RobotProfile
from vega_policy.control.schedule import ScheduleSettings, build_schedule
from vega_policy.deploy.client import Client, remote_link
from vega_policy.deploy.loop import RobotLoop
from vega_policy.spec import ContractError, PolicyFault
from vega_policy.spec.files import write_atomic
from vega_policy.spec.names import require_name
from vega_policy.testing.fake_robot import FakeRobot
from vega_policy.testing.fault_proxy import MESSAGE_FAULTS, FaultProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vega_policy.control.link import Command

log = logging.getLogger("scripts")

SENSOR_FAULTS: dict[str, dict[str, Any]] = {
    "stale cameras": {"stale_s": 0.5},
    "skewed cameras": {"skew_s": 0.08},
    "frozen camera": {"frozen": "wrist"},
    "broken state": {"proprio_fault": np.nan},
    "blind robot": {"is_blind": True},
}
PROCESS_FAULTS = ("kill", "freeze")
"""``kill``: SIGKILL to the server, another one afterwards; ``freeze``: SIGSTOP, afterwards SIGCONT."""
NAMES = (*MESSAGE_FAULTS, *PROCESS_FAULTS, *SENSOR_FAULTS)
HEALTHY_S = 1.0
START_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one fault."""

    fault: str
    broken_messages: int
    actions: int
    """While it lasted."""
    holds: int
    stopped: bool
    """Whether it came to a stop that a person has to release."""
    to_hold_ms: float | None
    """From its begin to the first command that is no action."""
    to_recover_ms: float | None
    """From its end to the first action; includes the start of a killed server."""
    largest_jump_mm: float
    """Between the translations of two successive commands."""
    unsafe: int
    first_unsafe: str = ""


class ServerProcess:
    """`scripts/serve.py`, started, killed, frozen."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        self._config = config
        self._file = folder / "url"
        self._log = folder / "log"
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        """Start it and wait until it can be spoken to."""
        self._file.unlink(missing_ok=True)
        command = [
            sys.executable,
            str(Path(__file__).with_name("serve.py")),
            f"checkpoint={self._config['checkpoint']}",
            f"device={'null' if self._config['device'] is None else self._config['device']}",
            f"serve.port={self._port}",
            f"serve.port_file={self._file}",
        ]
        with self._log.open("ab") as sink:
            self._process = subprocess.Popen(command, stdout=sink, stderr=sink)  # noqa: S603
        give_up = time.monotonic() + START_S
        while not self._file.exists():
            if self._process.poll() is not None or time.monotonic() > give_up:
                last = self._log.read_text().strip().splitlines()[-1:]
                raise ContractError(f"the server did not start: {' '.join(last)}")
            time.sleep(0.02)
        self.url = self._file.read_text().strip()
        self._port = int(self.url.rpartition(":")[2])

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self._process is not None:
            self._process.send_signal(number)
            if number == signal.SIGKILL:
                self._process.wait()

    def close(self) -> None:
        """End it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Try every fault that was asked for."""
    for chatty in ("websockets", "vega_policy"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    chosen = config["faults"]
    names = [require_name(name, NAMES, what="fault") for name in chosen["only"] or NAMES]
    outcomes: list[Outcome] = []
    with TemporaryDirectory() as folder:
        server = ServerProcess(config, Path(folder))
        try:
            server.start()
            for name in names:
                outcomes.append(attempt(name, config, server))
                log.info("%s", outcomes[-1])
        finally:
            server.close()
    print(table(outcomes), flush=True)
    result = {"faults": [asdict(o) for o in outcomes], "unsafe": sum(o.unsafe for o in outcomes)}
    if chosen["out"] is not None:
        write_atomic(Path(chosen["out"]), json.dumps(result, indent=1) + "\n")
    bad = [o.fault for o in outcomes if o.unsafe or o.to_recover_ms is None]
    if bad:
        print(json.dumps(result), flush=True)
        raise PolicyFault(f"unsafe, or not recovered: {', '.join(bad)}")
    return result


def attempt(name: str, config: dict[str, Any], server: ServerProcess) -> Outcome:
    """Run healthy, break one thing, mend it, and wait for the next action."""
    chosen = config["faults"]
    with ExitStack() as stack:
        proxy = stack.enter_context(
            FaultProxy(
                server.url,
                seed=chosen["seed"],
                probability=chosen["probability"],
                delay_s=chosen["delay_s"],
            )
        )
        robot, pilot = stack.enter_context(running(config, proxy.url))
        wait_until(lambda: robot.kinds[-3:] == ["action"] * 3, START_S)
        time.sleep(HEALTHY_S)
        before, began_s = len(robot.commands), time.monotonic()
        mend = break_it(name, robot, proxy, server)
        time.sleep(chosen["seconds"])
        during = [command for _, command in robot.commands[before:]]
        was_stopped = pilot.state == "stopped"
        n_broken = proxy.n_broken
        ended_s = time.monotonic()
        mend()
        after = len(robot.commands)
        to_recover_s = recovered(pilot, robot, after=after, limit_s=chosen["recover_s"])
    not_action_s = [t for t, c in robot.commands[before:] if is_no_action(c)]
    unsafe = robot.unsafe()
    return Outcome(
        fault=name,
        broken_messages=n_broken,
        actions=sum(c.kind == "action" for c in during),
        holds=sum(c.kind == "hold" for c in during),
        stopped=was_stopped,
        to_hold_ms=(
            round(1000 * (not_action_s[0] - began_s), 1)
            if not_action_s and not_action_s[0] < ended_s
            else None
        ),
        to_recover_ms=None if to_recover_s is None else round(1000 * (to_recover_s - ended_s), 1),
        largest_jump_mm=round(1000 * robot.largest_jump_m, 2),
        unsafe=len(unsafe),
        first_unsafe=unsafe[0] if unsafe else "",
    )


@contextmanager
def running(config: dict[str, Any], url: str) -> Iterator[tuple[Recorder, Pilot]]:
    """Have a robot loop run in a thread, armed."""
    chosen = config["faults"]
    profile = RobotProfile.from_dict(config["robot"])
    robot = Recorder(
        profile, time.monotonic, camera_px=chosen["camera_px"], instruction="reach the red block"
    )
    client = Client(url, action_spec=profile.action, timeout_s=chosen["timeout_s"])
    client.connect(wait_s=START_S)
    link = remote_link(client, timeout_s=chosen["timeout_s"], robot="faults")
    estop = EmergencyStop()
    schedule = build_schedule(ScheduleSettings(**config["schedule"]), profile.action)
    pilot = Pilot(profile=profile, schedule=schedule, link=link, estop=estop)
    loop = RobotLoop(robot, pilot, profile=profile, estop=estop, status_s=1e9)
    thread = threading.Thread(target=loop.run, name="robot loop")
    pilot.arm()
    thread.start()
    try:
        yield robot, pilot
    finally:
        loop.end()
        thread.join()
        link.close()
        client.close()


class Recorder(FakeRobot):
    """Stays in the middle of its workspace, so that a wall is no reason to change a command."""

    def apply(self, command: Command) -> None:
        """Remember, and forget the way so far."""
        super().apply(command)
        self.position_m = np.array([0.5, 0.0, 0.3])


def break_it(
    name: str, robot: FakeRobot, proxy: FaultProxy, server: ServerProcess
) -> Callable[[], None]:
    """Begin a fault; return what ends it."""
    if name in SENSOR_FAULTS:
        broken = SENSOR_FAULTS[name]
        healthy = {field: getattr(robot, field) for field in broken}
        robot.__dict__.update(broken)
        return lambda: robot.__dict__.update(healthy)
    if name == "kill":
        server.signal(signal.SIGKILL)
        return server.start
    if name == "freeze":
        server.signal(signal.SIGSTOP)
        return lambda: server.signal(signal.SIGCONT)
    proxy.fault = next(fault for fault in MESSAGE_FAULTS if fault == name)

    def mend() -> None:
        proxy.fault = "none"

    return mend


def recovered(pilot: Pilot, robot: FakeRobot, *, after: int, limit_s: float) -> float | None:
    """Wait for an action, as a person who arms again; return when it came."""
    give_up = time.monotonic() + limit_s
    while time.monotonic() < give_up:
        if pilot.state == "stopped":
            pilot.arm()
        action_s = [t for t, command in robot.commands[after:] if command.kind == "action"]
        if action_s:
            return action_s[0]
        time.sleep(0.01)
    return None


def wait_until(is_so: Callable[[], bool], limit_s: float) -> None:
    """Wait for the healthy state that every fault starts from."""
    give_up = time.monotonic() + limit_s
    while not is_so():
        if time.monotonic() > give_up:
            raise ContractError(f"the robot did not move within {limit_s:g} s; nothing to break")
        time.sleep(0.02)


def is_no_action(command: Command) -> bool:
    """Whether a command holds, and not because the loop ends."""
    return command.kind != "action" and command.reason != "the loop ends"


def table(outcomes: list[Outcome]) -> str:
    """Return the outcomes as a Markdown table."""
    head = "| fault | broken | actions | holds | stop | to hold ms | to recover ms | jump mm | unsafe |"
    lines = [head, "|---" * 9 + "|"]
    lines += [
        f"| {o.fault} | {o.broken_messages} | {o.actions} | {o.holds} | {'yes' if o.stopped else 'no'} "
        f"| {_number(o.to_hold_ms)} | {_number(o.to_recover_ms)} | {o.largest_jump_mm} | {o.unsafe} |"
        for o in outcomes
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    run("faults", main)
