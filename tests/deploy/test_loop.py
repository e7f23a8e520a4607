"""The loop without ROS: deadlines, ends, and a simulator that plays the robot."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vega_policy.control.estop import EmergencyStop
from vega_policy.control.link import Command, Reply
from vega_policy.control.pilot import Pilot
from vega_policy.control.profile import RobotProfile
from vega_policy.control.schedule import OpenLoop, ScheduleSettings, build_schedule
from vega_policy.deploy.loop import GRACE, RobotLoop
from vega_policy.deploy.robot import Robot
from vega_policy.deploy.simulated_arm import SimulatedArm, SimulatedArmProcess
from vega_policy.spec import ActionSpec, ContractError, EnvFault
from vega_policy.testing.fake_env import FakeEnv
from vega_policy.testing.fake_policy import FakePolicy
from vega_policy.testing.fake_robot import FakeClock, FakeRobot, unsafe_commands
from vega_policy.testing.fake_server import FakeServer

ROOT = Path(__file__).resolve().parents[2]
PERIOD_S = 0.05


def profile(**limits):
    return RobotProfile.from_dict(
        {
            "name": "fake",
            "translation_m": 0.05,
            "rotation_rad": 0.5,
            "start_gripper": -1.0,
            "frozen_ticks": 0,
            "limits": limits,
        }
    )


class Scripted:
    """A pilot that takes so many seconds for each tick, then commands a step forward."""

    publishes = True

    def __init__(self, clock, *durations_s):
        self.clock, self.durations_s = clock, list(durations_s)
        self.started_s, self.seen = [], []

    def tick(self, seen):
        self.started_s.append(self.clock())
        self.seen.append(seen)
        self.clock.wait(self.durations_s.pop(0) if self.durations_s else 0.001)
        action = np.array([0.1, 0, 0, 0, 0, 0, 1], np.float32)
        return Command(kind="action", action=action, tick=len(self.started_s) - 1)


def loop_of(pilot, clock, **settings):
    robot = FakeRobot(profile(), clock)
    loop = RobotLoop(
        robot,
        pilot,
        profile=profile(),
        estop=EmergencyStop(),
        clock=clock,
        wait=clock.wait,
        **settings,
    )
    return loop, robot


def test_steps_begin_at_multiples_of_the_period_whatever_they_take():
    clock = FakeClock(0.0)
    pilot = Scripted(clock, 0.001, 0.03, 0.049, 0.01)
    loop, robot = loop_of(pilot, clock)
    assert loop.run(seconds=0.5) == "time is up"
    np.testing.assert_allclose(pilot.started_s, PERIOD_S * np.arange(10), atol=1e-9)
    summary = loop.summary()
    assert (summary.ticks, summary.missed_deadlines, summary.actions) == (10, 0, 10)
    assert summary.jitter_ms.max == 0
    assert summary.tick_ms.max == pytest.approx(49, abs=0.01)
    assert robot.kinds == ["action"] * 10 + ["hold"]


@pytest.mark.parametrize(
    ("took_s", "next_s", "n_missed"),
    [
        (PERIOD_S + GRACE * PERIOD_S / 2, PERIOD_S + GRACE * PERIOD_S / 2, 0),
        (0.06, 0.10, 1),
        (0.099, 0.10, 1),
        (0.26, 0.30, 5),
    ],
)
def test_late_step_waits_for_the_next_deadline_instead_of_a_burst(took_s, next_s, n_missed):
    clock = FakeClock(0.0)
    pilot = Scripted(clock, took_s)
    loop, _ = loop_of(pilot, clock)
    loop.run(seconds=1.0)
    assert pilot.started_s[1] == pytest.approx(next_s)
    assert np.diff(pilot.started_s).min() > PERIOD_S * (1 - GRACE) - 1e-9
    assert loop.summary().missed_deadlines == n_missed
    assert loop.summary().ticks == 20 - n_missed


def test_waits_that_take_too_long_are_misses_too():
    clock = FakeClock(0.0)
    pilot = Scripted(clock)
    loop, _ = loop_of(pilot, clock)
    loop._wait = lambda s: clock.wait(s + 0.06)
    loop.run(seconds=1.0)
    assert loop.summary().missed_deadlines >= 18
    assert len(pilot.started_s) >= 6
    assert np.diff(pilot.started_s).min() > PERIOD_S * (1 - GRACE)


def test_no_drift_over_ten_minutes():
    clock = FakeClock(7.0)
    pilot = Scripted(clock)
    loop, _ = loop_of(pilot, clock)
    loop.run(seconds=600)
    assert len(pilot.started_s) == 12000
    assert pilot.started_s[-1] == pytest.approx(7.0 + 11999 * PERIOD_S, abs=1e-6)


def test_told_to_end_it_sends_a_hold_with_the_last_gripper():
    clock = FakeClock()
    pilot = Scripted(clock)
    loop, robot = loop_of(pilot, clock)
    loop._wait = lambda s: (clock.wait(s), loop.end() if len(pilot.started_s) == 3 else None)
    assert loop.run() == "asked to"
    assert robot.kinds == ["action"] * 3 + ["hold"]
    np.testing.assert_array_equal(robot.commands[-1][1].action, [0, 0, 0, 0, 0, 0, 1])


def test_robot_that_cannot_look_is_a_tick_without_observation():
    clock = FakeClock()
    pilot = Scripted(clock)
    loop, robot = loop_of(pilot, clock)
    robot.is_blind = True
    loop.run(seconds=0.2)
    assert pilot.seen == [None] * 4
    assert loop.summary().broken_observations == 4


def test_command_that_cannot_be_sent_stops_the_arm_and_ends():
    clock = FakeClock()
    loop, robot = loop_of(Scripted(clock), clock)

    def broken(_):
        raise EnvFault("the bus is down")

    robot.apply = broken
    with pytest.raises(EnvFault, match="bus is down"):
        loop.run(seconds=1)
    assert robot.calls == ["stop"]


def test_dry_run_sends_nothing_at_all():
    clock = FakeClock()
    pilot = Scripted(clock)
    pilot.publishes = False
    loop, robot = loop_of(pilot, clock)
    loop.run(seconds=0.5)
    assert loop.summary().ticks == 10
    assert (robot.commands, robot.calls) == ([], [])


def test_stop_is_told_once_and_nothing_is_sent():
    clock = FakeClock()
    pilot = Scripted(clock)
    pilot.tick = lambda _: Command(kind="stop", action=None, reason="pressed")
    loop, robot = loop_of(pilot, clock)
    loop.run(seconds=0.5)
    assert (robot.commands, robot.calls) == ([], ["stop"])
    assert loop.summary().stopped == 10


def test_loop_that_hangs_is_held_then_stopped_by_the_watchdog():
    hangs, is_stopped = threading.Event(), threading.Event()
    estop = EmergencyStop()
    robot = FakeRobot(profile(), clock := FakeClock())
    robot.stop = lambda: (robot.calls.append("stop"), is_stopped.set())

    class Hanging(Scripted):
        def tick(self, seen):
            if self.started_s:
                hangs.set()
                assert is_stopped.wait(60)
            return super().tick(seen)

    pilot = Hanging(clock)
    loop = RobotLoop(robot, pilot, profile=profile(), estop=estop, status_s=1000)
    loop.run(seconds=0.1)
    assert hangs.is_set()
    assert robot.calls[:2] == ["hold", "stop"]
    assert "no command for 1 s" in estop.reason


def test_action_decided_while_the_emergency_stop_was_pressed_is_not_sent():
    clock = FakeClock()
    pilot = Scripted(clock)
    loop, robot = loop_of(pilot, clock)
    decide = pilot.tick
    pilot.tick = lambda seen: (loop._estop.press("looked odd", by="a person"), decide(seen))[1]
    loop.run(seconds=0.2)
    assert (robot.commands, robot.calls) == ([], ["stop"])


def test_loop_that_was_stopped_and_released_is_watched_again():
    patient = replace(profile(), hold_after_s=0.05, stop_after_s=0.2)
    estop, stops = EmergencyStop(), []
    robot = FakeRobot(patient, FakeClock())
    has_stopped = threading.Event()
    robot.stop = lambda: (stops.append(estop.is_pressed), has_stopped.set())

    class HangsTwice(Scripted):
        def tick(self, seen):
            n = len(self.started_s)
            if n in (1, 4):
                has_stopped.clear()
                assert has_stopped.wait(60)
            if n == 3:
                estop.release("a person")
            return super().tick(seen)

    loop = RobotLoop(robot, HangsTwice(FakeClock()), profile=patient, estop=estop)
    loop.run(until=lambda: loop.summary().ticks == 5)
    assert estop.is_pressed
    assert loop.summary().stopped == 3  # after the first hang, until released, after the second


def test_watchdog_stops_the_arm_of_a_loop_that_hangs_in_its_log():
    handler_is_free = threading.Event()

    class Stuck(logging.Handler):
        def emit(self, record):
            if record.getMessage() == "stuck":
                assert handler_is_free.wait(60)

    class Logging(Scripted):
        def tick(self, seen):
            if self.started_s:
                logging.getLogger("vega_policy").warning("stuck")
            return super().tick(seen)

    robot = FakeRobot(profile(), FakeClock())
    robot.stop = lambda: (robot.calls.append("stop"), handler_is_free.set())
    loop = RobotLoop(robot, Logging(FakeClock()), profile=profile(), estop=EmergencyStop())
    logger, handler = logging.getLogger("vega_policy"), Stuck()
    logger.addHandler(handler)
    try:
        loop.run(until=lambda: loop.summary().ticks == 2)
    finally:
        logger.removeHandler(handler)
    assert robot.calls[:2] == ["hold", "stop"]
    assert robot.kinds == ["action"]


def test_driver_that_raises_anything_has_its_arm_stopped():
    clock = FakeClock()
    loop, robot = loop_of(Scripted(clock), clock)

    def broken(_):
        raise OSError("no route to the arm")

    robot.apply = broken
    with pytest.raises(OSError, match="no route"):
        loop.run(seconds=1)
    assert robot.calls == ["stop"]


def test_signal_that_interrupts_the_wait_of_the_loop_anywhere_ends_it():
    """A handler runs between any two lines, in the thread whose locks it may want."""
    clock = FakeClock()
    robot = FakeRobot(profile(), clock)
    loop = RobotLoop(robot, Scripted(clock), profile=profile(), estop=EmergencyStop())

    def on_line(frame, event, _):
        if frame.f_code.co_filename == threading.__file__ and event == "line":
            loop.end()
        return on_line

    too_late = threading.Timer(60, signal.raise_signal, [signal.SIGINT])
    too_late.start()
    sys.settrace(on_line)
    try:
        loop._wait(0.001)
    finally:
        sys.settrace(None)
        too_late.cancel()
    loop.end()
    assert loop.run(seconds=1) == "asked to"


def test_fingers_are_left_alone_before_a_person_arms():
    clock = FakeClock()
    robot = FakeRobot(profile(), clock)
    pilot = Pilot(
        profile=profile(),
        schedule=OpenLoop(spec=ActionSpec()),
        link=Immediate(FakePolicy()),
        estop=(estop := EmergencyStop()),
        clock=clock,
    )
    loop = RobotLoop(robot, pilot, profile=profile(), estop=estop, clock=clock, wait=clock.wait)
    loop.run(seconds=0.5)
    assert (robot.commands, robot.calls) == ([], [])
    estop.press("looked odd", by="a person")
    loop.run(seconds=0.5)
    assert (robot.commands, robot.calls) == ([], ["stop"])


class Immediate:
    """A link whose answers take no time."""

    def __init__(self, policy):
        self.policy, self.reply = policy, None

    @property
    def action_spec(self):
        return self.policy.action_spec

    def ask(self, seen, *, tick):
        chunk = self.policy.act([seen.observation], keys=[tick])[0]
        self.reply = Reply(tick=tick, chunk=chunk)

    def poll(self):
        reply, self.reply = self.reply, None
        return reply

    def reset(self):
        self.reply = None

    def close(self):
        pass


def expected_states(n_steps):
    """What the same policy does in a plain open loop, without robot loop and pilot."""
    env, policy, states = FakeEnv(suite="fake_reach", task_id=0), FakePolicy(), []
    seen, _ = env.reset(seed=0, options={"init_state_id": 3})
    arm = SimulatedArm(env)
    arm.reset(init_state_id=3)
    for tick in range(0, n_steps, 8):
        chunk = policy.act([arm.observe().observation], keys=[tick])[0]
        seen, _, success, truncated, info = env.step_chunk(chunk.actions)
        arm._observation = type(arm._observation)(
            {name: seen[name] for name in ("agentview", "wrist")}, seen["proprio"], env.instruction
        )
        states.extend(info["states"])
        if success or truncated:
            break
    return np.stack(states)


def test_simulated_arm_follows_the_very_path_of_a_rollout():
    clock = FakeClock()
    env = FakeEnv(suite="fake_reach", task_id=0)
    arm = SimulatedArm(env, clock=clock)
    states = []
    step_chunk = env.step_chunk

    def recorded(actions, **kwargs):
        answer = step_chunk(actions, **kwargs)
        states.extend(answer[4]["states"])
        return answer

    env.step_chunk = recorded
    estop = EmergencyStop()
    pilot = Pilot(
        profile=profile(),
        schedule=OpenLoop(spec=ActionSpec()),
        link=Immediate(FakePolicy()),
        estop=estop,
        clock=clock,
    )
    loop = RobotLoop(arm, pilot, profile=profile(), estop=estop, clock=clock, wait=clock.wait)
    arm.reset(init_state_id=3)
    pilot.arm()
    assert loop.run(until=lambda: arm.is_over) == "done"
    assert loop.summary().holds == 0
    np.testing.assert_array_equal(np.stack(states), expected_states(400))


def test_arm_in_its_own_process_runs_an_episode():
    make = partial(FakeEnv, suite="fake_reach", task_id=0, camera_px=64)
    arm = SimulatedArmProcess(make)
    try:
        assert isinstance(arm, Robot)
        arm.reset(init_state_id=3)
        assert not arm.is_over
        assert arm.observe().observation.images == {}
        link = arm.link(Immediate(FakePolicy()))
        # The images of a question are those of its tick, though commands follow at once.
        first = arm.look()
        action = np.array([1, 1, 0, 0, 0, 0, -1], np.float32)
        for _ in range(3):
            arm.apply(Command(kind="action", action=action))
        second = arm.look()
        env = make()
        expected, _ = env.reset(seed=0, options={"init_state_id": 3})
        np.testing.assert_array_equal(first["wrist"], expected["wrist"])
        expected = env.step_chunk(np.stack([action] * 3))[0]
        np.testing.assert_array_equal(second["wrist"], expected["wrist"])
        np.testing.assert_array_equal(arm.observe().observation.proprio, expected["proprio"])
        assert arm.n_steps == 3
        link.ask(arm.observe(), tick=0)
        assert link.poll().chunk.actions.shape == (8, 7)
        for _ in range(40):
            arm.apply(Command(kind="hold", action=np.zeros(7, np.float32)))
        arm.look()["wrist"]
        assert arm.is_over
        assert not arm.is_success
        arm.reset(init_state_id=4)
        assert (arm.is_over, arm.n_steps) == (False, 0)
    finally:
        arm.close()


def test_simulator_that_cannot_be_made_is_the_users_to_mend():
    arm = SimulatedArmProcess(partial(FakeEnv, suite="fake_reach", task_id=99))
    try:
        with pytest.raises(ContractError, match="no task 99"):
            arm.reset()
    finally:
        arm.close()


def test_independent_check_finds_what_the_filter_is_there_for():
    robot = FakeRobot(profile(max_step_m=0.02, max_change_m=0.01), FakeClock())
    far = Command(kind="action", action=np.array([1, 0, 0, 0, 0, 0, 1], np.float32))
    near = Command(kind="action", action=np.array([0.1, 0, 0, 0, 0, 0, 1], np.float32))
    drift = Command(kind="hold", action=near.action)
    bad = Command(kind="action", action=np.full(7, np.nan, np.float32))
    assert unsafe_commands(robot.profile, [near, near]) == []
    words = " ".join(unsafe_commands(robot.profile, [far, drift, bad]))
    for word in ("step in m 0.05", "change in m 0.05", "a hold that moves", "finite numbers"):
        assert word in words
    box = profile(workspace_m=[[0, -1, 0], [0.401, 1, 1]])
    assert "out of the workspace" in unsafe_commands(box, [near], path_m=[robot.position_m])[0]


def run_script(*arguments, **settings):
    command = [sys.executable, "scripts/robot_loop.py", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, **settings
    )


def test_script_drives_the_simulated_arm_over_the_websocket(tmp_path):
    del tmp_path
    with FakeServer(FakePolicy(waver=0.0)) as server:
        done = run_script(
            f"url={server.url}",
            "suite=fake_reach",
            "schedule.name=open_loop",
            "loop.warm_up=2",
            "loop.seconds=2",
            "loop.camera_px=32",
        )
        assert done.returncode == 0, done.stderr
        assert server.requests[-1]["vega"]["robot"] == "libero"
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ticks"] + result["missed_deadlines"] >= 35
    assert result["actions"] > 0
    assert set(result["jitter_ms"]) == {"p50", "p99", "max"}


def test_script_lists_every_disagreement_before_anything_starts():
    with FakeServer(FakePolicy(action_spec=ActionSpec(horizon=4, rate_hz=10.0))) as server:
        done = run_script(f"url={server.url}", "suite=fake_reach")
    assert done.returncode == 2
    assert "horizon" in done.stderr
    assert "rate_hz" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["loop.policy=psychic"], "choose remote or local"),
        (["loop.adapter=nothing"], "write module:factory"),
        (["loop.adapter=nothing:make", "loop.instruction=go"], "No module named 'nothing'"),
        (["loop.adapter=json:loads"], "loop.instruction is missing"),
        (["robot=franka_osc"], "workspace_m has no default"),
        (["loop.secnods=3"], "did you mean 'loop.seconds'"),
        (["url=ws://127.0.0.1:9", "loop.connect_s=0.0"], "cannot be reached"),
    ],
)
def test_script_answers_a_mistake_with_a_sentence(arguments, words):
    done = run_script(*arguments)
    assert words in done.stderr.splitlines()[-1]


ADAPTER = """
import time
from vega_policy.testing.fake_robot import FakeRobot

def make(profile, instruction):
    robot = FakeRobot(profile, time.monotonic, instruction)
    robot.close = lambda: print(robot.kinds[-1], len(robot.commands), set(robot.kinds[:-1]), flush=True)
    return robot
"""


def test_own_arm_starts_disarmed_is_armed_by_a_signal_and_ends_with_a_hold(tmp_path):
    (tmp_path / "my_arm.py").write_text(ADAPTER)
    with FakeServer(FakePolicy()) as server:
        process = subprocess.Popen(
            [
                sys.executable,
                "scripts/robot_loop.py",
                f"url={server.url}",
                "loop.adapter=my_arm:make",
                "loop.instruction='reach the red block'",
                "loop.warm_up=2",
                "loop.force=true",
                "loop.status_s=0.2",
                "loop.timeout_s=20.0",
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        too_late = threading.Timer(200, process.kill)
        too_late.start()
        try:
            wait_for(process, "hold, disarmed")
            process.send_signal(signal.SIGUSR2)
            wait_for(process, "(action")
            process.send_signal(signal.SIGUSR1)
            wait_for(process, "(stop, emergency stop")
            process.send_signal(signal.SIGUSR2)
            wait_for(process, "(action")
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate()
        finally:
            too_late.cancel()
            process.kill()
    assert process.returncode == 0
    kind, count, _ = out.splitlines()[0].split(maxsplit=2)
    assert kind == "hold"
    assert int(count) > 3
    assert json.loads(out.splitlines()[-1])["stopped"] > 0


def wait_for(process, words):
    for line in process.stderr:
        if words in line:
            return
    pytest.fail(f"the script ended before it said {words!r}")


def test_schedules_of_the_script_are_those_of_the_package():
    for name in ("open_loop", "asynchronous", "ensemble"):
        build_schedule(ScheduleSettings(name=name), ActionSpec())


def test_example_of_the_documentation_drives_a_driver_in_its_own_units():
    text = (ROOT / "docs" / "robot_loop.md").read_text()
    (code,) = re.findall(r'```python\n("""my_arm.py.*?)```', text, flags=re.DOTALL)
    names = {}
    exec(compile(code, "my_arm.py", "exec"), names)  # noqa: S102
    sent = []
    state = SimpleNamespace(
        is_in_reflex=False,
        position_m=np.array([0.4, 0.0, 0.3]),
        quaternion_xyzw=np.array([0.0, 0.0, 0.0, 1.0]),
        fingers_m=np.array([0.04, -0.04]),
        taken_s=1.0,
    )
    driver = SimpleNamespace(
        state=lambda: state, send=sent.append, send_zero=lambda: None, stop=lambda: None
    )
    frame = SimpleNamespace(rgb=np.zeros((8, 8, 3), np.uint8), taken_s=1.0)
    cameras = SimpleNamespace(newest=lambda _: frame)
    arm = names["FrankaArm"](profile(), "go", driver, cameras)
    assert isinstance(arm, Robot)
    assert arm.observe().observation.proprio.shape == (8,)
    action = np.array([1, 0, 0, 1, 0, 0, -1], np.float32)
    arm.apply(Command(kind="action", action=action))
    # 0.5 rad, which is half of what this driver turns for a command of 1.
    np.testing.assert_allclose(sent[0], [1, 0, 0, 0.5, 0, 0, -1])
    assert action[3] == 1
    state.is_in_reflex = True
    with pytest.raises(EnvFault, match="reflex"):
        arm.observe()
