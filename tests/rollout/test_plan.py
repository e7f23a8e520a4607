"""What was asked for becomes episodes, or one message with every problem."""

import json

import pytest

from vega_policy.rollout.evaluate import RolloutSettings, prepare
from vega_policy.rollout.plan import Job, Plan, SuiteInfo, TaskInfo, choose, inference_key
from vega_policy.spec import ActionSpec, ContractError, EpisodeKey

SUITE = SuiteInfo(
    name="fake_small",
    tasks=tuple(TaskInfo(task_id=i, name=f"task_{i}", n_init_states=5) for i in range(2)),
    action_spec=ActionSpec(),
    perturbations=("none", "dark-1"),
    arms=("full", "gate_clamped"),
)


def test_a_plan_is_every_task_from_every_initial_state():
    plan = choose(SUITE, tasks="all", init_states=2, seed=3)
    assert plan.jobs() == [
        Job(EpisodeKey("fake_small", t, i, seed=3)) for t in range(2) for i in range(2)
    ]
    assert choose(SUITE, tasks=1, init_states=[4, 0]).jobs() == [
        Job(EpisodeKey("fake_small", 1, 0)),
        Job(EpisodeKey("fake_small", 1, 4)),
    ]


def test_resuming_is_a_set_difference():
    plan = choose(SUITE, tasks="all", init_states=2)
    done = [
        Job(EpisodeKey("fake_small", 0, 1)),
        Job(EpisodeKey("another", 0, 0)),
        Job(EpisodeKey("fake_small", 1, 1), "gate_clamped"),
    ]
    assert plan.remaining(done) == [plan.jobs()[0], *plan.jobs()[2:]]


def test_arms_and_perturbations_multiply_the_episodes_and_survive_the_disk():
    plan = choose(
        SUITE,
        tasks="all",
        init_states=2,
        perturbations=["none", "dark-1"],
        arms=["full", "gate_clamped"],
        repetitions=3,
    )
    jobs = plan.jobs()
    assert len(jobs) == len(set(jobs)) == 2 * 2 * 2 * 2 * 3
    assert len({job.name for job in jobs}) == len(jobs)
    assert [job.arm for job in jobs[:2]] == ["full", "gate_clamped"]
    assert jobs[0].key == jobs[1].key
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tasks": [0, 7]}, "tasks 0 to 1, not 7"),
        ({"tasks": "none"}, "write all, a number"),
        ({"init_states": 6}, "at most rollout.init_states=5"),
        ({"init_states": [0, 5]}, "asks for 5"),
        ({"init_states": 0}, "at least 1"),
        ({"init_states": []}, "list of numbers"),
        ({"perturbations": ["dark"]}, "did you mean 'dark-1'"),
        ({"arms": ["full", "full"]}, "each once"),
        ({"perturbations": ["dark-1"], "starts": "sampled"}, "starts=sampled"),
        ({"repetitions": 0}, "at least 1"),
    ],
)
def test_what_does_not_exist_is_named(wrong, said):
    with pytest.raises(ContractError, match=said):
        choose(SUITE, **({"tasks": "all", "init_states": 1} | wrong))


def test_every_problem_is_listed_at_once(tmp_path):
    settings = RolloutSettings(
        run_dir=tmp_path / "run", workers=0, cameras=("wrsit",), init_states=9, n_execute=12
    )
    with pytest.raises(ContractError) as caught:
        prepare(settings, suite=SUITE, action_spec=ActionSpec(horizon=10, rate_hz=10.0))
    for part in ("workers is 0", "'wrist'", "init_states=5", "horizon", "rate_hz", "12 actions"):
        assert part in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_every_inference_has_its_own_key():
    keys = {
        inference_key(EpisodeKey("s", t, i), c)
        for t in range(5)
        for i in range(5)
        for c in range(9)
    }
    assert len(keys) == 225
    assert all(0 <= key < 2**63 for key in keys)
    assert inference_key(EpisodeKey("s", 0, 0), 0) == inference_key(EpisodeKey("s", 0, 0), 0)


def test_sampled_starts_are_other_episodes_than_the_evaluation_states():
    usual = choose(SUITE, tasks="all", init_states=2)
    sampled = choose(SUITE, tasks="all", init_states=99, starts="sampled")
    assert not set(usual.jobs()) & set(sampled.jobs())
    assert len(sampled.jobs()) == 99 * len(SUITE.tasks)
    with pytest.raises(ContractError, match="did you mean 'sampled'"):
        choose(SUITE, tasks="all", init_states=2, starts="sample")
