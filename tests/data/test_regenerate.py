"""Replaying a demonstration: which steps stay, what is stored with them, what is dropped."""

import numpy as np
import pytest

from vega_policy.data.regenerate import SETTLING_STEPS, Look, kept_steps, replay


class Line:
    """A scene with one number, moved by the first action number; the goal is to stand right of 1."""

    def __init__(self):
        self.x = 0.0
        self.actions = []
        self.begun = []

    def begin(self, state, *, index):
        self.x = float(state[0])
        self.begun.append(index)

    def look(self):
        image = np.full((2, 2, 3), len(self.actions), dtype=np.uint8)
        joints = np.zeros(7)
        return Look(
            agentview=image,
            wrist=image,
            ee_state=np.full(6, self.x),
            gripper_state=np.zeros(2),
            joint_state=joints,
            robot_state=np.zeros(9),
            state=np.array([self.x]),
        )

    def step(self, action):
        self.actions.append(action.copy())
        self.x += action[0]
        return self.x > 1


def action(x, gripper=-1.0):
    return np.array([x, 0, 0, 0, 0, 0, gripper])


def play(*actions):
    line = Line()
    demo = replay(
        line,
        actions=np.stack(actions),
        first_state=np.array([0.0]),
        index=4,
        instruction="go right",
        attributes={"demonstration": "demo_4"},
    )
    return line, demo


@pytest.mark.parametrize(
    ("actions", "kept"),
    [
        ([action(0.5), action(0), action(0.5)], [0, 2]),
        ([action(0), action(0), action(0.5)], [2]),  # the first counts by the arm alone
        ([action(0.5), action(0, 1.0), action(0, 1.0)], [0, 1]),  # the gripper moves once
        # Compared with the last action that was kept, not with the one before.
        ([action(0.5), action(0, 1.0), action(0, -1.0), action(0, -1.0)], [0, 1, 2]),
        ([action(0, 1.0), action(0.5, 1.0)], [1]),
        ([action(0.00009), action(0.00011)], [1]),
    ],
)
def test_steps_that_move_nothing_are_left_out(actions, kept):
    assert kept_steps(np.stack(actions)) == kept


def test_observations_are_those_before_the_action_and_idle_actions_are_not_executed():
    line, demo = play(action(0.6), action(0.0), action(0.6))
    assert line.begun == [4]
    assert len(line.actions) == SETTLING_STEPS + 2
    assert all(a.tolist() == [0, 0, 0, 0, 0, 0, -1] for a in line.actions[:SETTLING_STEPS])
    np.testing.assert_allclose(demo.ee_states[:, 0], [0.0, 0.6])
    assert demo.agentview[:, 0, 0, 0].tolist() == [SETTLING_STEPS, SETTLING_STEPS + 1]
    assert demo.actions[:, 0].tolist() == [0.6, 0.6]
    assert demo.dones.tolist() == demo.rewards.tolist() == [0, 1]
    assert demo.attributes["n_recorded_steps"] == 3
    assert demo.instruction == "go right"


def test_a_goal_that_is_lost_again_drops_the_demonstration():
    assert play(action(1.5), action(-1.0))[1] is None


def test_an_early_goal_that_is_reached_again_keeps_every_step():
    _, demo = play(action(1.5), action(-1.0), action(1.0))
    assert demo.n_steps == 3


def test_a_recording_of_idle_steps_is_dropped():
    assert play(action(0.0), action(0.0))[1] is None
