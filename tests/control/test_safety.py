"""No command leaves the filter that a limit forbids, and no observation is trusted that is not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vega_policy.control.link import Seen
from vega_policy.control.profile import RobotProfile, SafetyLimits
from vega_policy.control.safety import SafetyFilter
from vega_policy.spec import ContractError, Observation, SafetyStop
from vega_policy.testing.fake_link import FakeClock, seen_at

BOX = ((0.2, -0.3, 0.05), (0.7, 0.3, 0.6))
INSIDE = np.array([0.4, 0.0, 0.3])


def profile(**limits):
    return RobotProfile(
        name="arm",
        translation_m=0.05,
        rotation_rad=0.5,
        start_gripper=-1,
        limits=SafetyLimits(**limits),
        frozen_ticks=3,
    )


def command(*numbers, gripper=-1.0):
    return np.array([*numbers, *[0.0] * (6 - len(numbers)), gripper], dtype=np.float32)


EVERYTHING = {
    "max_step_m": 0.02,
    "max_step_rad": 0.1,
    "max_change_m": 0.015,
    "max_change_rad": 0.05,
    "max_speed_m_s": 0.3,
    "max_speed_rad_s": 1.5,
    "workspace_m": BOX,
}
any_float = st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100)
actions = hnp.arrays(np.float32, 7, elements=any_float | st.floats(-2, 2, width=32))
positions = hnp.arrays(np.float64, 3, elements=st.floats(-1, 1))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(actions, positions), min_size=1, max_size=8))
def test_whatever_comes_in_every_limit_holds_on_what_goes_out(sequence):
    robot = profile(**EVERYTHING)
    safety = SafetyFilter(robot)
    last = np.zeros(6)
    for action, position in sequence:
        sent, names = safety.command(action, position_m=position)
        assert np.isfinite(sent).all()
        assert (np.abs(sent) <= 1 + 1e-3).all()
        motion = sent[:6].astype(np.float64) * np.repeat([0.05, 0.5], 3)
        assert np.linalg.norm(motion[:3]) <= 0.015 * (1 + 2e-5)  # speed: 0.3 m/s for 50 ms
        assert np.linalg.norm(motion[3:]) <= 0.075 * (1 + 2e-5)
        assert np.linalg.norm(motion[3:] - last[3:]) <= 0.05 * (1 + 2e-4)
        if "workspace" not in names:
            assert np.linalg.norm(motion[:3] - last[:3]) <= 0.015 * (1 + 2e-4)
        for axis in range(3):
            low, high = BOX[0][axis], BOX[1][axis]
            end = position[axis] + motion[axis]
            assert min(low, position[axis]) - 2e-6 <= end <= max(high, position[axis]) + 2e-6
        last = motion


@settings(deadline=None, max_examples=200)
@given(st.lists(actions, max_size=3), actions, positions)
def test_filtered_twice_is_filtered_once(before, action, position):
    safety = SafetyFilter(profile(**EVERYTHING))
    for earlier in before:
        safety.command(earlier, position_m=position)
    once, _ = safety.command(action, position_m=position)
    twice, names = safety.command(once, position_m=position)
    assert twice is once
    assert names == ()


@settings(deadline=None)
@given(hnp.arrays(np.float32, 7, elements=st.floats(-1, 1, width=32)))
def test_without_limits_a_command_within_its_bounds_comes_back_as_the_same_object(action):
    safety = SafetyFilter(profile())
    sent, names = safety.command(action)
    assert sent is action
    assert names == ()
    assert not safety.counts


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("number", [0, 5, 6])
def test_after_a_nan_the_jump_does_not_pass_either(bad, number):
    safety = SafetyFilter(profile(max_change_m=0.01))
    broken = command(0.1)
    broken[number] = bad
    with pytest.raises(SafetyStop, match="expected 7 finite numbers"):
        safety.command(broken)
    sent, names = safety.command(command(1.0))
    assert names == ("change_m",)
    assert sent[0] * 0.05 == pytest.approx(0.01)


@pytest.mark.parametrize("shape", [(6,), (8,), (1, 7), ()])
def test_a_command_of_another_shape_is_a_stop(shape):
    with pytest.raises(SafetyStop):
        SafetyFilter(profile()).command(np.zeros(shape, dtype=np.float32))


def test_rounding_beyond_a_bound_is_no_clip():
    safety = SafetyFilter(profile())
    nearly = command(1.0005)
    assert safety.command(nearly)[0] is nearly
    sent, names = safety.command(command(1.5, -3, gripper=2))
    assert names == ("bounds",)
    assert sent.tolist() == [1, -1, 0, 0, 0, 0, 1]


def test_a_long_step_is_shortened_in_its_direction():
    sent, names = SafetyFilter(profile(max_step_m=0.02, max_step_rad=0.1)).command(
        command(0.6, 0.8, 0, 0, 0, 1, gripper=1)
    )
    assert names == ("step_m", "step_rad")
    assert sent == pytest.approx([0.24, 0.32, 0, 0, 0, 0.2, 1])


def test_the_speed_of_the_robot_is_that_of_one_period():
    sent, names = SafetyFilter(profile(max_speed_rad_s=2.5)).command(command(0, 0, 0, 1))
    assert names == ("speed_rad_s",)
    assert sent[3] * 0.5 == pytest.approx(2.5 / 20)


def test_a_change_is_limited_from_standstill_and_from_the_last_command():
    safety = SafetyFilter(profile(max_change_m=0.01))
    steps = [safety.command(command(x))[0][0] * 0.05 for x in (1, 1, 1, -1)]
    assert steps == pytest.approx([0.01, 0.02, 0.03, 0.02])
    safety.held()
    assert safety.command(command(1))[0][0] * 0.05 == pytest.approx(0.01)


def test_a_command_out_of_the_workspace_ends_at_the_wall():
    safety = SafetyFilter(profile(workspace_m=BOX))
    sent, names = safety.command(command(1, 1), position_m=np.array([0.69, 0, 0.3]))
    assert names == ("workspace",)
    assert sent[:2] * 0.05 == pytest.approx([0.01, 0.05])


def test_outside_the_workspace_only_the_way_back_is_open():
    safety = SafetyFilter(profile(workspace_m=BOX))
    outside = np.array([0.75, 0, 0.3])
    sent, _ = safety.command(command(0.5, 0.5), position_m=outside)
    assert sent[:2].tolist() == [0, 0.5]
    back = command(-0.5)
    assert safety.command(back, position_m=outside)[0] is back


@pytest.mark.parametrize("position", [None, np.array([0.4, np.nan, 0.3]), np.zeros(2)])
def test_a_workspace_without_a_position_is_a_stop_never_skipped(position):
    with pytest.raises(SafetyStop, match="has a workspace; give the position"):
        SafetyFilter(profile(workspace_m=BOX)).command(command(0.1), position_m=position)


def test_every_intervention_is_counted_and_logged_once_a_second(caplog):
    clock = FakeClock()
    safety = SafetyFilter(profile(max_step_m=0.02), clock=clock)
    for _ in range(50):
        safety.command(command(1))
        clock.now_s += 0.05
    assert safety.counts == {"step_m": 50}
    assert len(caplog.records) == 3
    safety.reset()
    assert safety.counts == {"step_m": 50}


def test_a_fresh_observation_has_no_problems():
    assert SafetyFilter(profile()).observation_problems(seen_at(5.0), 5.05) == []


def observed(seen=None, *, stamps=None, **changes):
    seen = seen or seen_at(5.0)
    base = seen.observation
    fields = {"images": base.images, "proprio": base.proprio, "instruction": base.instruction}
    return Seen(
        observation=Observation(**{**fields, **changes}),
        stamps_s={**seen.stamps_s, **(stamps or {})},
    )


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (observed(stamps={"wrist": 4.89, "agentview": 4.93}), "wrist is 110 ms old"),
        (observed(stamps={"proprio": 4.0}), "proprio is 1000 ms old"),
        (observed(stamps={"proprio": float("nan")}), "proprio is nan ms old"),
        (observed(stamps={"wrist": 4.93}), "70 ms apart, allowed are 50"),
        (observed(stamps={"proprio": 6.0}), "1.000 s ahead"),
        (observed(proprio=np.zeros(7)), "expected 8 finite numbers"),
        (observed(proprio=np.full(8, np.inf)), "expected 8 finite numbers"),
        (observed(images={"agentview": np.zeros((4, 4), np.uint8)}), r"expected \(h, w, 3\)"),
        (observed(images={"agentview": np.zeros((4, 4, 3))}), "float64"),
        (observed(images={"third": np.zeros((4, 4, 3), np.uint8)}), "third has no time stamp"),
    ],
)
def test_what_is_wrong_with_an_observation_is_said(seen, said):
    problems = SafetyFilter(profile()).observation_problems(seen, 5.0)
    assert len(problems) == 1
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(problems[0])


def test_time_stamps_that_go_back_are_a_problem_once():
    safety = SafetyFilter(profile())
    assert safety.observation_problems(seen_at(5.0), 5.0) == []
    problems = safety.observation_problems(seen_at(4.98), 5.0)
    assert len(problems) == 3
    assert "went back by 0.020 s" in problems[0]
    assert safety.observation_problems(seen_at(5.01), 5.01) == []


def test_a_camera_that_repeats_its_picture_under_new_stamps_is_frozen():
    safety = SafetyFilter(profile())
    said = [safety.observation_problems(seen_at(t, shade=9), t) for t in (1.0, 1.05, 1.1, 1.15)]
    assert said[:3] == [[], [], []]
    assert said[3] == [
        f"{c} is frozen: its last 4 images are the same" for c in ("agentview", "wrist")
    ]
    assert safety.observation_problems(seen_at(1.2, shade=10), 1.2) == []


def test_a_slow_camera_whose_picture_is_seen_twice_is_not_frozen():
    safety = SafetyFilter(profile())
    seen = seen_at(1.0, shade=9)
    assert all(safety.observation_problems(seen, 1.0 + 0.01 * t) == [] for t in range(10))


def test_a_driver_that_reuses_its_buffer_is_not_frozen():
    safety = SafetyFilter(profile())
    seen = seen_at(1.0)
    for t in range(10):
        now_s = 1.0 + 0.05 * t
        for image in seen.observation.images.values():
            image[:] = t
        moved = observed(seen, stamps=dict.fromkeys(seen.stamps_s, now_s))
        assert safety.observation_problems(moved, now_s) == []


@pytest.mark.parametrize("value", [0, -1, float("nan"), "0.02", True])
def test_a_limit_that_limits_nothing_is_refused(value):
    with pytest.raises(ContractError, match=r"robot\.limits\.max_step_m is .* above zero"):
        SafetyLimits(max_step_m=value)
