"""An episode is the same whoever plays it, and nothing that breaks takes another down."""

import contextlib
import dataclasses
import os
import signal
from functools import partial

import pytest

from vega_policy.rollout.engine import EngineSettings, LocalEngine
from vega_policy.rollout.messages import Missing, WorkerSettings
from vega_policy.rollout.plan import Job
from vega_policy.spec import ActionSpec, ContractError, EnvFault, EpisodeKey
from vega_policy.testing.fake_env import FakeEnv, Fault
from vega_policy.testing.fake_policy import FakePolicy

KEYS = [EpisodeKey("fake_reach", t, i) for t in range(2) for i in range(3)]
JOBS = [Job(key) for key in KEYS]


class Bench:
    """Runs episodes and keeps what was reported."""

    def __init__(self, folder):
        self.folder = folder
        self.faults = []
        self.policy = FakePolicy()

    def engine(self, *, make_simulator=FakeEnv, n_workers=2, video="none", **settings):
        return LocalEngine(
            policies={"full": self.policy},
            worker=WorkerSettings(
                make_simulator=make_simulator,
                action_spec=self.policy.action_spec,
                run_dir=self.folder,
                video=video,
            ),
            settings=EngineSettings(n_workers=n_workers, **settings),
            log_dir=self.folder / "logs",
            on_fault=lambda job, attempt, detail: self.faults.append((job, attempt, detail)),
        )

    def run(self, jobs=JOBS, **settings):
        with contextlib.closing(self.engine(**settings).run(jobs)) as outcomes:
            return list(outcomes)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def timeless(outcomes):
    """Return rows in order, without what depends on the machine and the moment."""
    rows = []
    for row in outcomes:
        info = {k: v for k, v in row.info.items() if k != "run"}
        rows.append(dataclasses.replace(row, wall_s=0.0, info=info))
    return sorted(rows, key=lambda r: r.key)


def breaking(folder, kind, **fault):
    return partial(FakeEnv, faults=[Fault(kind=kind, counter=folder / "struck", **fault)])


def test_one_worker_and_three_give_the_same_rows(bench):
    bench.policy.act_s = 0.005
    one = timeless(bench.run(n_workers=1))
    assert [r.key for r in one] == KEYS
    assert len({r.state_sha256 for r in one}) == len(KEYS)
    assert max(bench.policy.batch_sizes) == 1
    assert timeless(bench.run(n_workers=3, max_delay_ms=50)) == one
    assert max(bench.policy.batch_sizes) > 1


def test_rendering_every_step_changes_no_row(bench):
    seen = timeless(bench.run(JOBS[:2], video="chunks"))
    every = timeless(bench.run(JOBS[:2], video="all"))
    assert seen == every
    assert len(list((bench.folder / "videos").glob("*.mp4"))) == 2


@pytest.mark.parametrize("kind", ["exit", "kill", "raise", "hang"])
def test_a_broken_simulator_costs_time_and_no_episode(bench, kind):
    whole = timeless(bench.run(n_workers=1))
    make = breaking(bench.folder, kind, task_id=1, init_state_id=1)
    rows = bench.run(make_simulator=make, timeout_s=5.0)
    assert timeless(rows) == whole
    assert [(job, attempt) for job, attempt, _ in bench.faults] == [(JOBS[4], 1)]
    assert {r.key: r.info["run"]["attempt"] for r in rows}[KEYS[4]] == 2


def test_an_episode_that_always_breaks_is_a_missing_row(bench):
    make = breaking(bench.folder, "raise", task_id=0, init_state_id=2, times=99)
    outcomes = bench.run(make_simulator=make, max_restarts=1)
    missing = [o for o in outcomes if isinstance(o, Missing)]
    assert [m.job for m in missing] == [JOBS[2]]
    assert "told to break" in missing[0].detail
    assert len(outcomes) == len(KEYS)
    assert [attempt for _, attempt, _ in bench.faults] == [1, 2]


def test_a_simulator_that_never_works_ends_the_run(bench):
    with pytest.raises(EnvFault, match="in a row"):
        bench.run(
            [Job(EpisodeKey("no_such_suite", t, 0)) for t in range(9)], make_simulator=_broken
        )


def _broken(**_):
    raise OSError("no display")


def test_what_the_user_must_mend_is_not_tried_again(bench):
    make = breaking(bench.folder, "contract", at_step=0, times=99)
    with pytest.raises(ContractError, match="install it"):
        bench.run(make_simulator=make)
    other = partial(FakeEnv, action_spec=ActionSpec(rate_hz=10.0, high=2.0))
    with pytest.raises(ContractError, match=r"rate_hz.*high|high.*rate_hz"):
        bench.run(make_simulator=other)
    assert not bench.faults


@pytest.mark.parametrize("how", ["raises", "nan", "short", "miscounts"])
def test_a_policy_fault_stays_with_its_episode(bench, how):
    whole = timeless(bench.run(n_workers=1))
    bench.policy.misbehaves, bench.policy.on_instruction = how, "green"
    bench.policy.batch_sizes.clear()
    rows = timeless(bench.run(n_workers=2, max_delay_ms=200))
    assert max(bench.policy.batch_sizes) > 1
    assert rows[:3] == whole[:3]
    assert {r.outcome for r in rows[3:]} == {"policy_fault"}
    assert all(r.detail for r in rows[3:])
    assert all(r.n_steps == 0 for r in rows[3:])


def test_a_policy_that_was_trained_with_other_images_ends_the_run(bench, monkeypatch):
    def act(batch, *, keys):
        raise ContractError(f"images of 128 px for {len(batch)} {len(keys)}, expected 224")

    monkeypatch.setattr(bench.policy, "act", act)
    with pytest.raises(ContractError, match="expected 224"):
        bench.run(JOBS[:1])


def test_a_killed_worker_process_is_replaced(bench):
    whole = timeless(bench.run(n_workers=1))
    slow = partial(FakeEnv, step_s=0.01)
    rows = []
    with contextlib.closing(bench.engine(make_simulator=slow).run(JOBS)) as outcomes:
        for outcome in outcomes:
            rows.append(outcome)
            if len(rows) == 2:
                os.kill(_children(os.getpid())[0], signal.SIGKILL)
    assert timeless(rows) == whole
    assert len(bench.faults) == 1
    assert "SIGKILL" in bench.faults[0][2]


def test_no_process_is_left_when_the_loop_is_left(bench):
    outcomes = bench.engine(make_simulator=partial(FakeEnv, step_s=0.01)).run(JOBS)
    next(outcomes)
    assert _children(os.getpid())
    outcomes.close()
    assert not _children(os.getpid())


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as handle:  # noqa: PTH123
        return [int(child) for child in handle.read().split()]
