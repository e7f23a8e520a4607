"""The report of a collection finds leaks, and reads merged files and parts alike."""

import json

import numpy as np
import pytest

from envs.collection_report import Start, nearest, nearest_other, read_start
from vega_policy.spec import ContractError


def start(*places):
    return Start(joints=np.zeros(7), objects=np.array(places, dtype=np.float64))


def test_the_object_that_differs_most_decides_how_near_two_starts_are():
    mine = start((0, 0), (1, 1))
    far, near = start((0.3, 0.4), (1, 1)), start((0, 0.01), (1.02, 1))
    assert nearest(mine, [far]) == pytest.approx(0.5)
    assert nearest(mine, [far, near]) == pytest.approx(0.02)
    assert nearest_other([mine, far, near]) == pytest.approx(0.02)
    assert nearest_other([mine]) is None


def test_a_state_without_poses_behind_the_robot_is_refused():
    state = np.zeros(1 + 9 + 7 + 15)
    with pytest.raises(ContractError, match="poses of 1 objects"):
        read_start(state, n_objects=1)
    state[10:17] = [0.1, 0.2, 0.9, 1, 0, 0, 0]
    assert read_start(state, n_objects=1).objects.tolist() == [[0.1, 0.2]]


@pytest.mark.sim
def test_a_demonstration_from_an_evaluation_state_is_reported_as_leaked(tmp_path):
    from envs.collection_page import page
    from envs.collection_report import report_collection
    from envs.suites import get_task, init_states
    from vega_policy.data.libero_hdf5 import Demo, write_demo

    task = get_task("libero_goal", 8)
    state = init_states("libero_goal", 8)[3]
    moved = state.copy()
    moved[10] += 0.004  # one object by 4 mm
    folder = tmp_path / "libero_goal" / "parts" / task.name
    for k, first in enumerate((state, moved)):
        t = 12
        demo = Demo(
            agentview=np.zeros((t, 16, 16, 3), np.uint8),
            wrist=np.zeros((t, 16, 16, 3), np.uint8),
            ee_states=np.c_[0.01 * np.arange(t), np.zeros((t, 5))],
            gripper_states=np.zeros((t, 2)),
            joint_states=np.zeros((t, 7)),
            robot_states=np.zeros((t, 9)),
            actions=np.zeros((t, 7)),
            states=np.tile(first, (t, 1)),
            rewards=np.zeros(t, np.uint8),
            dones=np.zeros(t, np.uint8),
            expert_mask=np.r_[np.zeros(3, np.uint8), np.ones(t - 3, np.uint8)],
            instruction=task.instruction,
            attributes={"start": "sampled"},
        )
        write_demo(folder / f"attempt_{2 * k:04d}.hdf5", demo)
    (folder / "attempt_0001.json").write_text(json.dumps({"outcome": "failure"}))
    (folder / "attempt_0009.json").write_text(json.dumps({"outcome": "failure"}))

    (report,) = report_collection(tmp_path, "libero_goal")
    found = report.numbers
    assert found["n_leaked"] == 1
    assert found["nearest_evaluation_m"] == 0.0
    assert found["nearest_other_m"] == pytest.approx(0.004)
    # The failure after the last demonstration says nothing about these.
    assert (found["demonstrations"], found["attempts"]) == (2, 3)
    assert found["speed_median_m_s"] == pytest.approx(0.2)
    assert found["expert_share"] == pytest.approx(0.75)
    assert "coincide with evaluation" in page("libero_goal", [report])

    with pytest.raises(ContractError, match="no demonstrations of libero_10"):
        report_collection(tmp_path, "libero_10")
