"""What does not fit is said before anything moves, all of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from vega_policy.control import ScheduleSettings
from vega_policy.control.profile import RobotProfile, SafetyLimits
from vega_policy.control.start import start_problems, start_warnings, warm_up
from vega_policy.spec import ActionSpec, ContractError
from vega_policy.testing.fake_link import FakeClock, FakeLink, seen_at

ROBOTS = Path(__file__).parents[2] / "configs" / "robot"
SPEC = ActionSpec()
ASYNCHRONOUS = ScheduleSettings(name="asynchronous")


def robot(name, **limits):
    values = yaml.safe_load((ROBOTS / f"{name}.yaml").read_text())
    values["limits"] = {**values["limits"], **limits}
    return RobotProfile.from_dict(values)


def franka(**limits):
    return robot("franka_osc", workspace_m=[[0.2, -0.3, 0.0], [0.7, 0.3, 0.6]], **limits)


def test_the_simulator_limits_nothing():
    profile = robot("libero")
    assert profile.limits == SafetyLimits()
    assert (profile.translation_m, profile.rotation_rad) == (0.05, 0.5)
    assert start_problems(profile, SPEC, [0.03] * 20, ASYNCHRONOUS) == []
    assert start_warnings(profile, [0.03] * 20, ASYNCHRONOUS) == []


def test_a_workspace_has_to_be_given():
    with pytest.raises(ContractError, match=r"workspace_m is '\?\?\?'; write"):
        robot("franka_osc")


def test_the_example_arm_fits_and_is_slower_than_the_policy():
    assert start_problems(franka(), SPEC, [0.1] * 20, ASYNCHRONOUS) == []
    warnings = start_warnings(franka(), [0.1] * 20, ASYNCHRONOUS)
    assert len(warnings) == 2
    assert "a command of 1 is 0.05 m, at most 0.02 are sent" in warnings[0]


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        (franka(max_step_rad=None), "a command of 1 moves 0.5 rad in 50 ms, 10 rad/s"),
        (franka(max_step_rad=0.126), "max_step_rad to 0.125 or less"),
        (franka(max_step_m=0.1), "max_step_m is 0.1 m in 50 ms, 2 m/s; the robot has 1.7"),
        (replace(franka(), hold_after_s=0.04), "every command would come too late"),
    ],
)
def test_a_scale_the_robot_cannot_follow_is_a_problem(profile, said):
    (problem,) = start_problems(profile, SPEC, [], ASYNCHRONOUS)
    assert said in problem


def test_every_disagreement_is_said_at_once():
    policy = replace(SPEC, horizon=4, rate_hz=10.0)
    problems = start_problems(franka(max_step_rad=None), policy, [0.3] * 20, ASYNCHRONOUS)
    assert len(problems) == 4
    assert "13.3 Hz" in problems[3]


@pytest.mark.parametrize(
    ("latency_s", "n_problems", "n_warnings"), [(0.17, 0, 0), (0.19, 0, 1), (0.21, 1, 0)]
)
def test_the_latency_is_judged_for_schedules_that_do_not_wait(latency_s, n_problems, n_warnings):
    for settings in (ASYNCHRONOUS, ScheduleSettings(name="ensemble")):
        profile = robot("libero")
        assert len(start_problems(profile, SPEC, [latency_s] * 20, settings)) == n_problems
        assert len(start_warnings(profile, [latency_s] * 20, settings)) == n_warnings


def test_open_loop_is_told_how_long_it_will_stand():
    profile = robot("libero")
    assert start_problems(profile, SPEC, [0.4] * 20, ScheduleSettings()) == []
    (warning,) = start_warnings(profile, [0.4] * 20, ScheduleSettings())
    assert warning == "schedule open_loop holds for 8 of every 16 steps, 50% of the time"


def test_an_inference_longer_than_the_patience_of_the_robot_is_a_problem():
    (problem,) = start_problems(robot("libero"), SPEC, [1.2] * 20, ScheduleSettings())
    assert "takes 1.20 s" in problem


def test_warming_up_measures_and_throws_away():
    clock = FakeClock()
    link = FakeLink(clock=clock, answer=lambda _tick: None, latency_s=0.03)

    def wait(_s):
        clock.now_s += 0.01

    latencies_s = warm_up(link, lambda: seen_at(clock.now_s), n=5, wait=wait)
    assert latencies_s == pytest.approx([0.03] * 5)
    assert len(link.asked) == 7
    assert link.n_resets == 2


def test_a_policy_that_does_not_answer_is_refused_at_the_start():
    link = FakeLink(clock=FakeClock(), answer=lambda _tick: None, fails="connection refused")
    with pytest.raises(ContractError, match="does not answer: connection refused"):
        warm_up(link, lambda: seen_at(0.0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"translation_m": 0}, "translation_m is 0; use a number above zero"),
        ({"start_gripper": 3}, "use a gripper command from -1 to 1"),
        ({"stop_after_s": 0.05}, "a robot holds before it stops"),
    ],
)
def test_a_profile_that_cannot_be_meant_is_refused(changes, said):
    with pytest.raises(ContractError, match=said):
        replace(robot("libero"), **changes)


def test_an_unknown_or_missing_field_of_a_profile_is_named():
    with pytest.raises(
        ContractError, match=r"unknown: speed; missing: rotation_rad, start_gripper"
    ):
        RobotProfile.from_dict({"name": "x", "translation_m": 0.05, "speed": 1})
