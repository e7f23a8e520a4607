"""A chunk reaches the motors whole or not at all, and every control step has the row meant for it."""

from dataclasses import replace

import numpy as np
import pytest

from vega_policy.control import (
    Asynchronous,
    Ensemble,
    OpenLoop,
    ScheduleSettings,
    build_schedule,
    require_valid_chunk,
)
from vega_policy.control.hold import hold_action
from vega_policy.spec import ActionChunk, ActionSpec, ContractError, PolicyFault

SPEC = ActionSpec()
POSES = replace(SPEC, control="osc_pose")


def chunk(actions):
    return ActionChunk(actions=np.asarray(actions, dtype=np.float32))


def named(asked):
    """A chunk that says of every row which tick it was asked at and which row it is."""
    actions = np.zeros((8, 7), dtype=np.float32)
    actions[:, 0], actions[:, 1], actions[:, 6] = asked, np.arange(8), -1
    return chunk(actions)


def drive(schedule, *, n_ticks, delay, lost=()):
    """Play ``n_ticks``; an answer takes ``delay`` ticks; return (asked, row) or None per tick."""
    schedule.reset()
    taken, questions, pending = [], [], None

    def hear(tick):
        nonlocal pending
        if pending is not None and tick - pending >= delay:
            if pending in lost:
                schedule.lost(pending)
            else:
                schedule.accept(named(pending), asked=pending, now=tick)
            pending = None

    for tick in range(n_ticks):
        hear(tick)
        if schedule.should_ask(tick):
            schedule.asked(tick)
            pending = tick
            questions.append(tick)
            hear(tick)
        action = schedule.next(tick)
        taken.append(None if action is None else (int(action[0]), int(action[1])))
    return taken, questions


def test_open_loop_without_delay_is_the_whole_chunk_again_and_again():
    taken, questions = drive(OpenLoop(spec=SPEC), n_ticks=20, delay=0)
    assert questions == [0, 8, 16]
    assert taken == [(t // 8 * 8, t % 8) for t in range(20)]


def test_open_loop_applies_the_first_n_rows():
    taken, questions = drive(OpenLoop(spec=SPEC, n_execute=5), n_ticks=12, delay=0)
    assert questions == [0, 5, 10]
    assert taken == [(t // 5 * 5, t % 5) for t in range(12)]


def test_open_loop_holds_while_the_answer_is_under_way_and_then_begins_at_row_0():
    taken, questions = drive(OpenLoop(spec=SPEC, n_execute=3), n_ticks=12, delay=2)
    assert questions == [0, 5, 10]
    assert taken == [
        *[None, None, (0, 0), (0, 1), (0, 2)],
        *[None, None, (5, 0), (5, 1), (5, 2)],
        *[None, None],
    ]


@pytest.mark.parametrize("delay", [0, 1, 2, 3, 4])
def test_asynchronous_applies_at_every_tick_the_row_meant_for_it(delay):
    taken, questions = drive(Asynchronous(spec=SPEC), n_ticks=40, delay=delay)
    assert taken[:delay] == [None] * delay
    every = max(delay, 1)
    assert questions == list(range(0, 40, every))
    newest = [(t - delay) // every * every for t in range(40)]
    assert taken[delay:] == [(newest[t], t - newest[t]) for t in range(delay, 40)]


@pytest.mark.parametrize(
    ("delay", "every"), [(d, s) for d in range(9) for s in range(1, 9) if max(d, s) + d <= 8]
)
def test_asynchronous_leaves_no_gap_where_the_arithmetic_says_so(delay, every):
    taken, _ = drive(Asynchronous(spec=SPEC, ask_every=every), n_ticks=60, delay=delay)
    assert None not in taken[delay:]


@pytest.mark.parametrize(
    ("delay", "every"), [(d, s) for d in range(9) for s in range(1, 9) if max(d, s) + d > 8]
)
def test_asynchronous_leaves_gaps_where_the_arithmetic_says_so(delay, every):
    taken, _ = drive(Asynchronous(spec=SPEC, ask_every=every), n_ticks=60, delay=delay)
    assert None in taken[delay:]


@pytest.mark.parametrize("n", [1, 5, 8])
def test_asynchronous_without_delay_and_a_question_every_n_ticks_is_open_loop(n):
    asynchronous = drive(Asynchronous(spec=SPEC, ask_every=n), n_ticks=30, delay=0)
    assert asynchronous == drive(OpenLoop(spec=SPEC, n_execute=n), n_ticks=30, delay=0)


def test_a_lost_question_is_asked_again_at_once():
    taken, questions = drive(Asynchronous(spec=SPEC, ask_every=4), n_ticks=12, delay=1, lost={4})
    assert questions == [0, 4, 5, 9]
    assert taken[5:7] == [(0, 5), (5, 1)]


def test_an_answer_that_took_the_whole_chunk_is_of_no_use():
    schedule = Asynchronous(spec=SPEC)
    schedule.asked(0)
    schedule.accept(named(0), asked=0, now=8)
    assert schedule.next(8) is None
    assert schedule.should_ask(8)


def test_the_overlap_is_blended_but_never_the_gripper():
    schedule = Asynchronous(spec=SPEC, blend=0.75)
    old, new = np.zeros((8, 7)), np.ones((8, 7))
    old[:, 6] = -1
    for asked, actions in ((0, old), (4, new)):
        schedule.asked(asked)
        schedule.accept(chunk(actions), asked=asked, now=asked)
    assert schedule.next(4).tolist() == [0.75] * 6 + [1]
    assert schedule.next(7).tolist() == [0.75] * 6 + [1]
    assert schedule.next(8).tolist() == [1] * 7  # the old chunk has no row for it
    assert schedule.next(4).dtype == np.float32


def test_an_action_nothing_was_blended_into_is_the_chunks_own_row():
    schedule = Asynchronous(spec=SPEC)
    schedule.asked(0)
    answer = named(0)
    schedule.accept(answer, asked=0, now=2)
    assert np.shares_memory(schedule.next(2), answer.actions)
    assert schedule.next(1) is None  # its time has passed


def test_the_ensemble_weighs_the_oldest_most():
    schedule = Ensemble(spec=SPEC, decay=0.5)
    for asked, value in ((0, 0.0), (1, 0.3), (2, 0.9)):
        schedule.asked(asked)
        schedule.accept(chunk(np.full((8, 7), value)), asked=asked, now=asked)
    w = np.exp(-0.5 * np.arange(3))
    assert schedule.next(2)[:6] == pytest.approx([w @ [0.0, 0.3, 0.9] / w.sum()] * 6)
    assert schedule.next(9)[0] == pytest.approx(0.9)  # only the last one reaches so far
    assert schedule.next(10) is None


@pytest.mark.parametrize(
    ("votes", "decay", "closes"),
    [
        ([-1, -1, 1], 0.0, False),
        ([-1, 1, 1], 0.0, True),
        ([-1, 1, 1], 2.0, False),  # the oldest weighs more than both others
        ([-1, 1], 0.0, True),  # a draw: the newest
        ([1, -1], 0.0, False),
    ],
)
def test_the_ensemble_votes_on_the_gripper(votes, decay, closes):
    schedule = Ensemble(spec=SPEC, decay=decay)
    for asked, vote in enumerate(votes):
        schedule.asked(asked)
        schedule.accept(chunk(np.full((8, 7), vote)), asked=asked, now=asked)
    assert schedule.next(len(votes) - 1)[6] == (1 if closes else -1)


def test_the_ensemble_asks_at_every_tick_and_keeps_only_what_can_still_count():
    schedule = Ensemble(spec=SPEC)
    taken, questions = drive(schedule, n_ticks=30, delay=0)
    assert questions == list(range(30))
    assert None not in taken
    assert len(schedule._chunks) == 8


def test_the_ensemble_works_under_delay():
    taken, questions = drive(Ensemble(spec=SPEC), n_ticks=20, delay=3)
    assert questions == [0, 3, 6, 9, 12, 15, 18]
    assert taken[:3] == [None] * 3
    assert None not in taken[3:]


SCHEDULES = [OpenLoop(spec=SPEC), Asynchronous(spec=SPEC, blend=0.5), Ensemble(spec=SPEC)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_episode_after_a_reset_is_the_first_one_again(schedule):
    first = drive(schedule, n_ticks=17, delay=2)
    schedule.reset()
    assert [schedule.next(t) for t in range(25)] == [None] * 25
    assert drive(schedule, n_ticks=17, delay=2) == first


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_invalid_chunk_is_refused_and_its_question_lost(schedule):
    schedule.reset()
    schedule.asked(0)
    with pytest.raises(PolicyFault):
        schedule.accept(chunk(np.full((8, 7), np.nan)), asked=0, now=0)
    assert schedule.next(0) is None
    assert schedule.should_ask(0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_answer_to_a_question_that_is_not_open_is_a_mistake_of_the_caller(schedule):
    schedule.reset()
    with pytest.raises(ValueError, match="open question is None"):
        schedule.accept(named(0), asked=0, now=0)
    schedule.asked(3)
    assert not schedule.should_ask(4)
    with pytest.raises(ValueError, match="still open"):
        schedule.asked(4)
    with pytest.raises(ValueError, match="open question is 3"):
        schedule.lost(4)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (ScheduleSettings(), OpenLoop),
        (ScheduleSettings(name="open_loop", n_execute=5), OpenLoop),
        (ScheduleSettings(name="asynchronous", ask_every=4, blend=0.7), Asynchronous),
        (ScheduleSettings(name="ensemble", decay=0.1), Ensemble),
    ],
)
def test_settings_become_a_schedule(settings, kind):
    assert isinstance(build_schedule(settings, SPEC), kind)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"n_execute": 0}, "choose 1 to 8"),
        ({"n_execute": 9}, "choose 1 to 8"),
        ({"name": "asynchronous", "ask_every": 9}, "choose 1 to 8"),
        ({"name": "asynchronous", "blend": 0.0}, "above 0 and up to 1"),
        ({"name": "asynchronous", "blend": float("nan")}, "above 0 and up to 1"),
        ({"name": "ensemble", "decay": -0.1}, "or more"),
        ({"name": "asynchronous", "n_execute": 5}, "asynchronous has no n_execute"),
        ({"name": "open_loop", "blend": 0.5}, "open_loop has no blend; it has n_execute"),
        ({"name": "asynchron"}, "did you mean 'asynchronous'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values, said):
    with pytest.raises(ContractError, match=said):
        build_schedule(ScheduleSettings(**values), SPEC)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Ensemble(spec=POSES),
        lambda: Asynchronous(spec=POSES, blend=0.5),
        lambda: hold_action(POSES, gripper=-1),
    ],
)
def test_what_is_right_for_deltas_only_is_refused_for_poses(make):
    with pytest.raises(ContractError, match="not for the controller 'osc_pose'"):
        make()


def test_a_hold_is_no_motion_and_the_gripper_as_told():
    hold = hold_action(SPEC, gripper=1)
    assert hold.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert hold.dtype == np.float32


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        (np.zeros((7, 7)), r"shape \(7, 7\)"),
        (np.zeros(56), "shape"),
        (np.where(np.arange(56).reshape(8, 7) == 9, np.nan, 0), "nan at action 1, number 2"),
        (np.full((8, 7), np.inf), "56 values"),
    ],
)
def test_an_invalid_chunk_is_a_policy_fault(actions, said):
    with pytest.raises(PolicyFault, match=said):
        require_valid_chunk(chunk(actions), SPEC)


def test_values_outside_the_bounds_are_the_environments_business():
    require_valid_chunk(chunk(np.full((8, 7), 1.5)), SPEC)
