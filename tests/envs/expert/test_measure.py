"""Measured scenes are counted once each, and a killed measurement continues."""

import pytest

from envs.expert.measure import (
    Trial,
    append_trial,
    demonstration_seed,
    markdown,
    read_trials,
    score,
)
from vega_policy.spec import ContractError


def trial(k=0, outcome="success", n_steps=100, **changes):
    values = {
        "suite": "libero_goal",
        "task_id": 3,
        "name": "open_it",
        "k": k,
        "seed": 1000 + k,
        "start": "sampled",
        "disturbed": 0.0,
        "outcome": outcome,
        "n_steps": n_steps,
    }
    return Trial(**(values | changes))


def test_scores_count_successes_per_condition_and_leave_faults_out():
    trials = [
        *(trial(k, n_steps=100 + k) for k in range(3)),
        trial(3, outcome="failure", n_steps=300),
        trial(4, outcome="fault", n_steps=0),
        trial(0, start="dropped"),
        trial(0),  # measured twice
    ]
    dropped, sampled = score(trials)
    assert (dropped.start, dropped.n, dropped.successes) == ("dropped", 1, 1)
    assert (sampled.n, sampled.successes, sampled.failed_seeds) == (4, 3, (1003,))
    assert sampled.mean_steps == pytest.approx((100 + 101 + 102) / 3)
    # Wilson (1927) for 3 of 4.
    assert sampled.interval == pytest.approx((0.3006, 0.9544), abs=1e-3)
    assert "| 3/4 | 30 - 95 % | 101 |" in markdown([sampled])


def test_a_line_cut_by_a_kill_is_left_out_and_other_files_are_refused(tmp_path):
    path = tmp_path / "new" / "trials.jsonl"
    assert read_trials(path) == []
    for k in range(2):
        append_trial(path, trial(k))
    with path.open("a") as file:
        file.write('{"suite": "libero_go')
    assert [t.k for t in read_trials(path)] == [0, 1]

    path.write_text('{"other": 1}\n')
    with pytest.raises(ContractError, match="line 1, is no trial"):
        read_trials(path)


def test_scenes_differ_between_tasks_numbers_and_seeds():
    seeds = {
        demonstration_seed(suite=suite, task_id=task_id, k=k, seed=seed)
        for suite in ("libero_goal", "libero_10")
        for task_id in range(3)
        for k in range(5)
        for seed in range(2)
    }
    assert len(seeds) == 60
