"""One decision per control step, and never one that a broken part can talk it into."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vega_policy.control import (
    Asynchronous,
    Ensemble,
    OpenLoop,
    ScheduleSettings,
    build_schedule,
)
from vega_policy.control.estop import EmergencyStop
from vega_policy.control.link import Reply
from vega_policy.control.pilot import Pilot
from vega_policy.control.profile import RobotProfile, SafetyLimits
from vega_policy.spec import ActionChunk, ActionSpec, ContractError
from vega_policy.testing.fake_link import FakeClock, FakeLink, seen_at

SPEC = ActionSpec()
PERIOD_S = 0.05


def rows(tick, value=0.1, gripper=1.0):
    """A chunk that drives along x and names its question in y."""
    actions = np.zeros((8, 7), dtype=np.float32)
    actions[:, 0], actions[:, 1], actions[:, 6] = value, tick / 1000, gripper
    return actions


class Cell:
    """A pilot with everything around it, and time that moves by control steps."""

    def __init__(self, *, schedule=None, latency_ticks=1, limits=None, answer=rows, **settings):
        self.clock = FakeClock()
        self.estop = EmergencyStop()
        self.events = []
        self.profile = RobotProfile(
            name="arm",
            translation_m=0.05,
            rotation_rad=0.5,
            start_gripper=-1,
            limits=SafetyLimits(**(limits or {})),
            stop_after_s=0.99,  # not a multiple of the period, which adds up with rounding
        )
        self.link = FakeLink(clock=self.clock, answer=answer, latency_s=latency_ticks * PERIOD_S)
        self.pilot = Pilot(
            profile=self.profile,
            schedule=schedule or Asynchronous(spec=SPEC),
            link=self.link,
            estop=self.estop,
            clock=self.clock,
            on_event=lambda kind, text: self.events.append((kind, text)),
            **settings,
        )

    def tick(self, *, blind=False, age_s=0.0):
        command = self.pilot.tick(None if blind else seen_at(self.clock.now_s - age_s))
        self.clock.now_s += PERIOD_S
        return command

    def ticks(self, n, **how):
        return [self.tick(**how) for _ in range(n)]

    def kinds(self, n, **how):
        return "".join(c.kind[0] for c in self.ticks(n, **how))


@pytest.fixture
def cell():
    cell = Cell()
    cell.pilot.arm()
    return cell


def test_it_starts_disarmed_and_asks_nothing():
    cell = Cell()
    commands = cell.ticks(5)
    assert cell.pilot.state == "disarmed"
    assert {(c.kind, c.reason) for c in commands} == {("hold", "disarmed")}
    assert commands[0].action.tolist() == [0, 0, 0, 0, 0, 0, -1]
    assert cell.link.asked == []


def test_armed_it_holds_until_the_first_answer_and_then_runs(cell):
    commands = cell.ticks(5)
    assert [c.kind for c in commands] == ["hold", "action", "action", "action", "action"]
    assert [c.chunk_tick for c in commands[1:]] == [0, 1, 2, 3]
    assert [c.tick for c in commands] == [0, 1, 2, 3, 4]
    assert cell.pilot.state == "running"
    assert commands[1].reason == ""


def test_an_untouched_action_is_the_chunks_own_row():
    answered = []

    def answer(tick):
        answered.append(rows(tick))
        return answered[-1]

    cell = Cell(answer=answer)
    cell.pilot.arm()
    action = cell.ticks(2)[1].action
    assert np.shares_memory(action, answered[0])


@pytest.mark.parametrize(
    "schedule", [OpenLoop(spec=SPEC), Asynchronous(spec=SPEC), Ensemble(spec=SPEC)]
)
def test_with_an_answer_that_takes_no_time_there_is_never_a_hold(schedule):
    cell = Cell(schedule=schedule, latency_ticks=0)
    cell.pilot.arm()
    assert cell.kinds(20) == "a" * 20


def test_open_loop_holds_while_it_waits():
    cell = Cell(schedule=OpenLoop(spec=SPEC, n_execute=3), latency_ticks=2)
    cell.pilot.arm()
    assert cell.kinds(10) == "hhaaahhaaa"
    assert cell.pilot.stats.holds == {"no_action": 4}


@pytest.mark.parametrize(
    ("how", "said"),
    [({"blind": True}, "no observation"), ({"age_s": 0.11}, "110 ms old, allowed are 100")],
)
def test_without_a_fresh_observation_it_holds_with_the_gripper_as_accepted_last(cell, how, said):
    cell.ticks(4)
    asked = len(cell.link.asked)
    command = cell.tick(**how)
    assert command.kind == "hold"
    assert command.action.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert said in command.reason
    assert cell.pilot.state == "holding"
    assert len(cell.link.asked) == asked
    assert cell.tick().kind == "action"


def test_a_failed_inference_is_a_hold_at_once_though_the_chunk_has_rows_left(cell):
    cell.ticks(4)
    cell.link.fails = "connection lost"
    command = cell.tick()
    assert command.kind == "hold"
    assert command.reason == "no chunk: connection lost"
    assert ("inference_failed", "connection lost") in cell.events
    cell.link.fails = ""
    assert cell.kinds(3) == "haa"


def test_after_a_hold_the_arm_starts_from_standstill():
    cell = Cell(limits={"max_change_m": 0.01}, latency_ticks=0, answer=lambda _: rows(0, value=1.0))
    cell.pilot.arm()

    def x_m(n):
        return [round(float(c.action[0]) * 0.05, 6) for c in cell.ticks(n)]

    assert x_m(6) == [0.01, 0.02, 0.03, 0.04, 0.05, 0.05]
    cell.tick(blind=True)
    assert x_m(3) == [0.01, 0.02, 0.03]
    assert cell.pilot.stats.interventions == {"change_m": 7}


def test_an_intervention_is_in_the_command_the_events_and_the_counts():
    cell = Cell(limits={"max_step_m": 0.02}, latency_ticks=0, answer=lambda t: rows(t, value=1.0))
    cell.pilot.arm()
    command = cell.ticks(3)[0]
    assert command.kind == "action"
    assert command.interventions == ("step_m",)
    assert command.reason == "changed by step_m"
    assert [e for e in cell.events if e[0] == "intervention"] == [("intervention", "step_m")]
    assert cell.pilot.report()["interventions"] == {"step_m": 3}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_chunk_that_is_not_finite_is_a_stop_until_it_is_armed_again(cell, bad):
    cell.ticks(3)
    good, cell.link.answer = cell.link.answer, lambda t: rows(t, value=bad)
    assert "s" in cell.kinds(3)
    cell.link.answer = good
    commands = cell.ticks(5)
    assert {c.kind for c in commands} == {"stop"}
    assert all(c.action is None for c in commands)
    assert "not finite" in commands[0].reason
    assert cell.pilot.state == "stopped"
    cell.pilot.disarm()
    assert cell.pilot.state == "stopped"
    cell.pilot.arm()
    assert cell.kinds(3) == "haa"


def test_an_emergency_stop_that_was_released_before_the_next_step_is_one_too(cell):
    cell.pilot.arm()
    cell.ticks(4)
    cell.estop.press("smoke", by="anna")
    cell.estop.release("anna")
    assert cell.tick().kind == "stop"
    assert "between two steps" in cell.pilot.reason
    cell.pilot.arm()
    assert cell.kinds(5) == "haaaa"


def test_the_emergency_stop_acts_at_the_next_step_and_outlives_its_release(cell):
    cell.ticks(3)
    cell.estop.press("hand", "page")
    command = cell.tick()
    assert (command.kind, command.action) == ("stop", None)
    assert "hand (pressed by page)" in command.reason
    with pytest.raises(ContractError, match="release it, then arm"):
        cell.pilot.arm()
    cell.estop.release("ada")
    assert cell.kinds(3) == "sss"
    cell.pilot.arm()
    assert cell.kinds(3) == "haa"


def test_without_an_action_for_long_it_stops(cell):
    cell.ticks(5)
    assert cell.kinds(25, blind=True) == "h" * 19 + "s" * 6
    assert cell.pilot.reason == "no action for 0.99 s; last: no observation"
    assert cell.kinds(3) == "sss"


def test_a_policy_that_never_answers_is_a_stop_too():
    cell = Cell(latency_ticks=1000)
    cell.pilot.arm()
    assert cell.kinds(22) == "h" * 20 + "ss"


def test_what_nobody_expected_is_a_stop_not_an_exception(cell):
    def broken():
        raise RuntimeError("driver gone")

    cell.link.poll = broken
    command = cell.tick()
    assert command.kind == "stop"
    assert command.reason == "RuntimeError: driver gone"


def test_an_answer_to_another_question_moves_nothing():
    cell = Cell()
    cell.link.poll = lambda: Reply(tick=99, chunk=ActionChunk(rows(99)))
    cell.pilot.arm()
    assert cell.kinds(5) == "hhhhh"


def test_a_broken_display_ends_no_motion():
    cell = Cell()

    def broken(_kind, _text):
        raise RuntimeError("page gone")

    cell.pilot._on_event = broken
    cell.pilot.arm()
    assert cell.kinds(3) == "haa"


def test_an_episode_begins_with_tick_0_the_gripper_of_the_start_and_no_old_answer():
    cell = Cell(latency_ticks=3)
    cell.pilot.arm()
    cell.ticks(5)
    cell.pilot.reset()
    command = cell.tick()
    assert (command.tick, command.kind, command.chunk_tick) == (0, "hold", None)
    assert command.action[6] == -1
    assert cell.pilot.state == "holding"


def test_armed_again_it_keeps_what_is_in_the_gripper(cell):
    cell.ticks(3)
    cell.pilot.disarm()
    assert cell.tick().action[6] == 1
    cell.pilot.arm()
    assert cell.tick().action[6] == 1


def test_a_dry_run_decides_the_same_and_publishes_nothing():
    wet, dry = Cell(), Cell(dry_run=True)
    for cell in (wet, dry):
        cell.pilot.arm()
    assert [c.kind for c in wet.ticks(10)] == [c.kind for c in dry.ticks(10)]
    assert wet.pilot.publishes
    assert not dry.pilot.publishes
    assert dry.pilot.report()["dry_run"]


def test_a_policy_that_means_something_else_is_refused_with_all_differences():
    link = FakeLink(
        clock=FakeClock(), answer=rows, action_spec=replace(SPEC, horizon=16, rate_hz=10.0)
    )
    with pytest.raises(ContractError, match=r"horizon: .* has 8.*rate_hz: .* has 20"):
        Pilot(
            profile=Cell().profile,
            schedule=OpenLoop(spec=SPEC),
            link=link,
            estop=EmergencyStop(),
        )


def test_a_workspace_is_judged_by_the_position_in_the_observation():
    box = [[-0.1, -0.1, 0.0], [0.004, 0.1, 0.4]]
    cell = Cell(limits={"workspace_m": box}, latency_ticks=0, answer=lambda t: rows(t, value=1.0))
    cell.pilot.arm()
    command = cell.tick()
    assert command.interventions == ("workspace",)
    assert command.action[0] * 0.05 == pytest.approx(0.004)


def test_the_report_is_json_and_says_what_happened(cell):
    cell.ticks(10)
    report = json.loads(json.dumps(cell.pilot.report()))
    assert report["state"] == "running"
    assert report["actions"] == 9
    assert report["holds"] == {"no_action": 1}
    assert report["latency_ms"] == 50.0
    assert [kind for kind, _ in cell.events] == ["armed", "running"]


@pytest.mark.parametrize(
    ("schedule", "latency_ticks", "held", "mean_age", "max_age"),
    [
        ("open_loop", 1, 1 / 9, 4.5, 8),
        ("open_loop", 2, 2 / 10, 5.5, 9),
        ("open_loop", 4, 4 / 12, 7.5, 11),
        ("open_loop", 5, 5 / 13, 8.5, 12),
        ("asynchronous", 1, 0, 1.0, 1),
        ("asynchronous", 2, 0, 2.5, 3),
        ("asynchronous", 4, 0, 5.5, 7),
        ("asynchronous", 5, 2 / 5, 6.0, 7),
    ],
)
def test_holds_and_age_by_latency_are_those_of_the_docs(
    schedule, latency_ticks, held, mean_age, max_age
):
    settings = ScheduleSettings(name=schedule)
    cell = Cell(schedule=build_schedule(settings, SPEC), latency_ticks=latency_ticks)
    cell.pilot.arm()
    cell.ticks(latency_ticks)
    period = 5 * (8 + latency_ticks if schedule == "open_loop" else latency_ticks)
    commands = cell.ticks(period)
    ages = [c.tick - c.chunk_tick for c in commands if c.kind == "action"]
    assert 1 - len(ages) / period == pytest.approx(held)
    assert (np.mean(ages), max(ages)) == (mean_age, max_age)


ANSWERS = {
    "good": rows,
    "huge": lambda t: rows(t, value=1e6),
    "back": lambda t: rows(t, value=-1.0, gripper=-1.0),
    "nan": lambda t: rows(t, value=np.nan),
    "short": lambda t: rows(t)[:5],
    "flat": lambda t: rows(t).ravel(),
    "none": lambda _t: None,
}
happenings = st.lists(
    st.one_of(
        st.sampled_from(["step", "step", "step", "blind", "stale", "fails", "works", "slow"]),
        st.sampled_from(["press", "release", "arm", "disarm", "reset"]),
        st.sampled_from(sorted(ANSWERS)),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=150)
@given(happenings, st.sampled_from(["open_loop", "asynchronous", "ensemble"]))
def test_whatever_happens_no_command_is_unsafe_and_a_stop_stays_one(sequence, schedule):
    cell = Cell(
        schedule=build_schedule(ScheduleSettings(name=schedule), SPEC),
        limits={"max_step_m": 0.02, "max_change_m": 0.01, "max_step_rad": 0.1},
    )
    cell.pilot.arm()
    last_m = np.zeros(3)
    gripper = -1.0
    is_stopped = False
    for happening in sequence:
        match happening:
            case "press":
                cell.estop.press("test", "hypothesis")
            case "release":
                cell.estop.release("hypothesis")
            case "arm" if not cell.estop.is_pressed:
                cell.pilot.arm()
                is_stopped = False
            case "disarm":
                cell.pilot.disarm()
            case "reset":
                cell.pilot.reset()
                gripper, last_m = -1.0, np.zeros(3)
            case "fails" | "works":
                cell.link.fails = "gone" if happening == "fails" else ""
            case "slow":
                cell.link.latency_s = 1.0
            case name if name in ANSWERS:
                cell.link.answer = ANSWERS[name]
        if happening not in ("step", "blind", "stale"):
            continue
        command = cell.tick(blind=happening == "blind", age_s=0.3 if happening == "stale" else 0.0)
        assert not (is_stopped and command.kind != "stop")
        is_stopped = command.kind == "stop"
        if cell.estop.is_pressed or is_stopped:
            assert (command.kind, command.action) == ("stop", None)
            last_m = np.zeros(3)
            continue
        move_m = command.action[:3].astype(np.float64) * 0.05
        if command.kind == "hold":
            assert command.action.tolist() == [0, 0, 0, 0, 0, 0, gripper]
            last_m = np.zeros(3)
            continue
        assert happening == "step"
        assert np.linalg.norm(move_m) <= 0.02 * (1 + 1e-4)
        assert np.linalg.norm(move_m - last_m) <= 0.01 * (1 + 1e-4)
        last_m, gripper = move_m, float(command.action[6])
