"""What breaks between robot and policy never becomes an unsafe command."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from vega_policy.control.estop import EmergencyStop
from vega_policy.control.link import Reply
from vega_policy.control.pilot import Pilot
from vega_policy.control.profile import RobotProfile
from vega_policy.control.schedule import Asynchronous, OpenLoop
from vega_policy.deploy.client import Client, remote_link
from vega_policy.deploy.loop import RobotLoop
from vega_policy.spec import ActionChunk, ActionSpec
from vega_policy.testing.fake_robot import FakeClock, FakeRobot
from vega_policy.testing.fake_server import FakeServer
from vega_policy.testing.fault_proxy import MESSAGE_FAULTS, FaultProxy

PERIOD_S = 0.05
WAIT_S = 60.0


def profile(**changes):
    return RobotProfile.from_dict(
        {
            "name": "careful",
            "translation_m": 0.05,
            "rotation_rad": 0.5,
            "start_gripper": -1.0,
            "limits": {
                "max_step_m": 0.02,
                "max_step_rad": 0.1,
                "max_change_m": 0.02,
                "max_change_rad": 0.1,
                "workspace_m": [[0.2, -0.4, 0.0], [0.8, 0.4, 0.6]],
            },
        }
        | changes
    )


class Wild:
    """Asks for ever more than any limit allows."""

    action_spec = ActionSpec()

    def act(self, batch, *, keys):
        rng = np.random.default_rng(keys[0])
        actions = rng.uniform(-2, 2, (len(batch), 8, 7)).astype(np.float32)
        return [ActionChunk(rows) for rows in actions]


class Switched:
    """A link that answers at once, or not at all, or with what it is told."""

    action_spec = ActionSpec()

    def __init__(self):
        self.mode, self.reply = "answers", None

    def ask(self, seen, *, tick):
        del seen
        chunk = Wild().act([None], keys=[tick])[0]
        if self.mode == "silent":
            return
        if self.mode == "lost":
            self.reply = Reply(tick=tick, chunk=None, detail="the connection was lost")
            return
        if self.mode != "answers":
            chunk.actions[3, 2] = {"nan": np.nan, "inf": np.inf}[self.mode]
        self.reply = Reply(tick=tick, chunk=chunk)

    def poll(self):
        reply, self.reply = self.reply, None
        return reply

    def reset(self):
        self.reply = None

    def close(self):
        pass


class Bench:
    """A fake robot in a loop with a fake clock."""

    def __init__(self, *, schedule=None, **changes):
        self.clock, self.link, self.estop = FakeClock(), Switched(), EmergencyStop()
        profile_ = profile(**changes)
        self.robot = FakeRobot(profile_, self.clock)
        self.pilot = Pilot(
            profile=profile_,
            schedule=schedule or Asynchronous(spec=ActionSpec()),
            link=self.link,
            estop=self.estop,
            clock=self.clock,
        )
        self.loop = RobotLoop(
            self.robot,
            self.pilot,
            profile=profile_,
            estop=self.estop,
            clock=self.clock,
            wait=self.clock.wait,
        )
        self.pilot.arm()

    def run(self, seconds):
        """Run, and return the kinds of the commands of that time without the final hold."""
        before = len(self.robot.commands)
        self.loop.run(seconds=seconds)
        kinds = self.robot.kinds[before:]
        return kinds[:-1] if "stop" not in self.robot.calls else kinds

    def first(self, kind):
        return next(
            (t for t, c in self.robot.commands if c.kind == kind and c.reason != "the loop ends"),
            None,
        )


def test_lost_server_is_a_hold_within_two_periods_and_comes_back_without_a_jump():
    bench = Bench()
    assert bench.run(1.0) == ["action"] * 20
    bench.link.mode = "lost"
    assert bench.run(0.5)[1:] == ["hold"] * 9
    bench.link.mode = "answers"
    assert bench.run(1.0)[2:] == ["action"] * 18
    assert bench.robot.unsafe() == []
    assert bench.robot.largest_jump_m <= 0.0201


def test_stalled_server_is_a_hold_when_the_chunk_ends_and_a_stop_after_a_second():
    bench = Bench(schedule=OpenLoop(spec=ActionSpec()))
    bench.run(0.05)
    bench.link.mode = "silent"
    begun = bench.clock()
    kinds = bench.run(3.0)
    assert kinds[:7] == ["action"] * 7
    last_action = begun + 6 * PERIOD_S
    holds = [t for t, c in bench.robot.commands if c.kind == "hold" and t >= begun]
    assert holds[0] - last_action <= 0.1 + 1e-6
    assert holds[-1] - last_action <= 1.0 + 1e-6
    assert bench.robot.calls == ["stop"]
    assert bench.pilot.state == "stopped"
    bench.link.mode = "answers"
    assert bench.run(1.0) == []
    bench.pilot.arm()
    assert "action" in bench.run(1.0)
    assert bench.robot.unsafe() == []


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_number_that_is_none_stops_and_the_jump_behind_it_is_limited(number):
    bench = Bench()
    bench.run(0.5)
    bench.link.mode = number
    bench.run(0.5)
    assert bench.pilot.state == "stopped"
    assert bench.robot.calls == ["stop"]
    bench.link.mode = "answers"
    bench.pilot.arm()
    bench.run(0.5)
    assert bench.robot.unsafe() == []
    assert bench.robot.largest_jump_m <= 0.0201


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"stale_s": 0.2}, "200 ms old"),
        ({"skew_s": 0.08}, "80 ms apart"),
        ({"frozen": "wrist"}, "wrist is frozen"),
        ({"proprio_fault": np.nan}, "finite numbers"),
        ({"is_blind": True}, "no observation"),
    ],
)
def test_broken_sensor_is_a_hold_until_it_works_again(broken, words):
    bench = Bench(stop_after_s=10.0)
    assert bench.run(1.0) == ["action"] * 20
    healthy = {name: getattr(bench.robot, name) for name in broken}
    for name, value in broken.items():
        setattr(bench.robot, name, value)
    bench.run(1.0)
    reasons = [c.reason for _, c in bench.robot.commands[-10:-1]]
    assert all(words in reason for reason in reasons)
    for name, value in healthy.items():
        setattr(bench.robot, name, value)
    assert bench.run(1.0)[3:] == ["action"] * 17
    assert bench.robot.unsafe() == []


class Live:
    """A fake robot, a real clock, a real client; runs in a thread until left."""

    def __init__(self, url, *, timeout_s=0.5):
        self.robot = FakeRobot(
            profile(stop_after_s=3 * WAIT_S, observation_age_s=5.0), time.monotonic
        )
        self.client = Client(url, action_spec=ActionSpec(), timeout_s=timeout_s)
        self.client.connect(wait_s=WAIT_S)
        self.link = remote_link(self.client, timeout_s=timeout_s)
        estop = EmergencyStop()
        self.pilot = Pilot(
            profile=self.robot.profile,
            schedule=Asynchronous(spec=ActionSpec()),
            link=self.link,
            estop=estop,
        )
        self.loop = RobotLoop(self.robot, self.pilot, profile=self.robot.profile, estop=estop)
        self.thread = threading.Thread(target=self.loop.run)

    def __enter__(self):
        self.pilot.arm()
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.loop.end()
        self.thread.join(WAIT_S)
        self.link.close()
        self.client.close()

    def until(self, kind, *, n=3, after=0):
        """Wait until the last n commands are of a kind."""
        give_up = time.monotonic() + WAIT_S
        while time.monotonic() < give_up:
            kinds = self.robot.kinds[after:]
            if len(kinds) >= n and kinds[-n:] == [kind] * n:
                return
            if not self.thread.is_alive():
                break
            time.sleep(0.02)
        pytest.fail(f"no {n} commands of kind {kind}: {self.pilot.state}, {self.pilot.reason}")


@pytest.mark.parametrize("fault", [f for f in MESSAGE_FAULTS if f not in ("none", "nan", "stall")])
def test_broken_messages_crash_nothing_and_command_nothing_unsafe(fault):
    with (
        FakeServer(Wild()) as server,
        FaultProxy(server.url, probability=0.5, delay_s=0.6, seed=5) as proxy,
        Live(proxy.url, timeout_s=0.3) as live,
    ):
        live.until("action")
        proxy.fault = fault
        give_up = time.monotonic() + WAIT_S
        while proxy.n_broken < 5 and time.monotonic() < give_up:
            time.sleep(0.02)
        assert live.thread.is_alive()
        proxy.fault = "none"
        if live.pilot.state == "stopped":
            live.pilot.arm()
        live.until("action", after=len(live.robot.kinds))
    assert proxy.n_broken >= 5
    assert live.robot.unsafe() == []


def test_stalled_connection_is_a_hold_and_then_the_policy_is_heard_again():
    with FakeServer(Wild()) as server, FaultProxy(server.url) as proxy, Live(proxy.url) as live:
        live.until("action")
        proxy.fault = "stall"
        live.until("hold", n=5)
        proxy.fault = "none"
        live.until("action", after=len(live.robot.kinds))
    assert live.robot.unsafe() == []


SERVER = """
import sys
from vega_policy.testing.fake_policy import FakePolicy
from vega_policy.testing.fake_server import FakeServer
server = FakeServer(FakePolicy(act_s=0.02), port=int(sys.argv[1]))
print(server.port, flush=True)
server._thread.join()
"""


def start_server(port):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)], stdout=subprocess.PIPE, text=True
    )
    return process, int(process.stdout.readline())


def test_killed_server_is_a_hold_and_motion_resumes_when_it_is_back():
    process, port = start_server(0)
    try:
        with Live(f"ws://127.0.0.1:{port}") as live:
            live.until("action", n=10)
            os.kill(process.pid, signal.SIGKILL)
            killed = len(live.robot.kinds)
            process.wait()
            live.until("hold", n=5)
            assert live.robot.kinds[killed:].index("hold") <= ActionSpec().horizon
            process, _ = start_server(port)
            live.until("action", n=5, after=len(live.robot.kinds))
    finally:
        process.kill()
        process.wait()
    assert live.robot.unsafe() == []
    assert live.robot.largest_jump_m <= 0.0201


def test_script_reports_every_fault_it_was_asked_for():
    arguments = ["faults.only=[cut, 'stale cameras', kill]", "faults.seconds=0.5"]
    done = subprocess.run(
        [sys.executable, "scripts/faults.py", *arguments, "faults.camera_px=32"],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert [o["fault"] for o in result["faults"]] == ["cut", "stale cameras", "kill"]
    assert result["unsafe"] == 0
    assert all(o["to_recover_ms"] is not None for o in result["faults"])
    assert result["faults"][1]["to_hold_ms"] is not None
