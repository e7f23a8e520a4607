"""Between two inferences a rollout does what a robot's loop does, and says so where it is unusual."""

import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from vega_policy.control import ScheduleSettings, build_schedule
from vega_policy.control.hold import hold_action
from vega_policy.rollout.evaluate import RolloutSettings, prepare, schedule_of
from vega_policy.rollout.ledger import read_header, read_rows
from vega_policy.rollout.messages import Answer, WorkerSettings
from vega_policy.rollout.plan import Job, SuiteInfo, TaskInfo, inference_key
from vega_policy.rollout.trace import Trace, state_digest
from vega_policy.rollout.worker import Worker
from vega_policy.spec import CAMERAS, ActionSpec, ContractError, EpisodeKey, Observation
from vega_policy.testing.fake_env import FakeEnv
from vega_policy.testing.fake_policy import FakePolicy

ROOT = Path(__file__).resolve().parents[2]
SPEC = ActionSpec()
KEY = EpisodeKey("fake_reach", 0, 0)
N_STEPS = 40
SCHEDULES = {
    "whole chunks": {},
    "parts of chunks": {"n_execute": 3},
    "back to back": {"name": "asynchronous"},
    "every four": {"name": "asynchronous", "ask_every": 4, "blend": 0.7},
    "ensemble": {"name": "ensemble", "decay": 0.1},
}


class ClosingPolicy(FakePolicy):
    """Its gripper closes from the second chunk on, so that a hold of it can be told apart."""

    def act(self, batch, *, keys):
        chunks = super().act(batch, keys=keys)
        for observation, chunk in zip(batch, chunks, strict=True):
            chunk.actions[:, -1] = -1.0 if observation.inference == 0 else 1.0
        return chunks


class FarEnv(FakeEnv):
    """Out of reach: every episode runs to its step limit."""

    def reset(self, **options):
        super().reset(**options)
        self._block[:] = (0.4, 0.4, 5.0)
        return self._observe(), {}


def answered(policy, observation, index):
    [chunk] = policy.act([observation], keys=[inference_key(KEY, index)])
    return chunk


def played(folder, schedule, *, latency_ms=0.0, simulator=FarEnv, policy=None, video="none"):
    """Return row and trace of an episode as a worker plays it."""
    policy = policy or ClosingPolicy()
    worker = Worker(
        settings=WorkerSettings(
            make_simulator=partial(simulator, max_steps=N_STEPS),
            action_spec=SPEC,
            run_dir=folder,
            schedule=ScheduleSettings(**schedule),
            latency_ms=latency_ms,
            video=video,
        ),
        ask=lambda _, ask: Answer(answered(policy, ask.observation, ask.chunk_index)),
    )
    row = worker.play(Job(KEY), attempt=1)
    return row, Trace.load(folder / row.info["trace"])


def stepped(schedule, *, latency_ms):
    """Play the same episode as a robot would: one control step after the other, always looking."""
    policy, schedule = ClosingPolicy(), build_schedule(ScheduleSettings(**schedule), SPEC)
    env = FarEnv(suite=KEY.suite, task_id=KEY.task_id, max_steps=N_STEPS)
    values, _ = env.reset(seed=KEY.seed, options={"init_state_id": KEY.init_state_id})
    delay = math.ceil(latency_ms / 50)
    schedule.reset()
    due, gripper, n_asked, held = {}, -1.0, 0, []
    actions, digests = [], []
    for tick in range(N_STEPS):
        if tick in due:
            asked, chunk = due.pop(tick)
            schedule.accept(chunk, asked=asked, now=tick)
        if schedule.should_ask(tick):
            images = {c: values[c] for c in CAMERAS}
            seen = Observation(images, values["proprio"], env.instruction, inference=n_asked)
            schedule.asked(tick)
            due[tick + delay] = tick, answered(policy, seen, n_asked)
            n_asked += 1
            if not delay:
                asked, chunk = due.pop(tick)
                schedule.accept(chunk, asked=asked, now=tick)
        action = schedule.next(tick)
        if action is None:
            held.append(tick)
            action = hold_action(SPEC, gripper=gripper)
        gripper = float(action[-1])
        values, _, _, _, info = env.step_chunk(action[None])
        actions.append(action)
        digests += [state_digest(state) for state in info["states"]]
    return np.array(actions), np.array(digests), n_asked, held


@pytest.mark.parametrize("latency_ms", [0.0, 30.0, 100.0, 200.0, 210.0, 400.0])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_handing_over_many_steps_at_once_is_one_step_after_the_other(
    tmp_path, schedule, latency_ms
):
    actions, digests, n_asked, held = stepped(schedule, latency_ms=latency_ms)
    row, trace = played(tmp_path, schedule, latency_ms=latency_ms)
    assert np.array_equal(trace.actions, actions)
    assert np.array_equal(trace.digests, digests)
    assert (row.n_steps, row.n_chunks) == (N_STEPS, n_asked)
    assert row.info.get("holds", 0) == len(held)


@pytest.mark.parametrize("n_execute", [8, 5, 1])
def test_without_delay_open_loop_applies_the_chunks_and_nothing_else(tmp_path, n_execute):
    env, policy = FakeEnv(suite=KEY.suite, task_id=KEY.task_id, max_steps=N_STEPS), FakePolicy()
    values, _ = env.reset(seed=0, options={"init_state_id": 0})
    actions, n_asked, is_over = [], 0, False
    while not is_over:
        images = {c: values[c] for c in CAMERAS}
        chunk = answered(policy, Observation(images, values["proprio"], env.instruction), n_asked)
        n_asked += 1
        part = chunk.actions[: min(n_execute, N_STEPS - len(actions))]
        values, _, succeeded, truncated, info = env.step_chunk(part)
        actions += list(part[: info["n_steps"]])
        is_over = succeeded or truncated
    row, trace = played(tmp_path, {"n_execute": n_execute}, simulator=FakeEnv, policy=FakePolicy())
    assert np.array_equal(trace.actions, np.array(actions))
    assert row.n_chunks == n_asked
    assert set(row.info) == {"trace", "trace_sha256", "gates", "gate_mean", "run"}


def test_while_it_waits_the_arm_stands_still_with_the_gripper_as_it_was(tmp_path):
    row, trace = played(tmp_path, {}, latency_ms=100)
    assert row.info["holds"] == 2 * row.n_chunks == 8
    for start in range(0, N_STEPS, 10):
        assert not trace.actions[start : start + 2, :6].any()
        assert trace.actions[start + 2 : start + 10, :6].any(axis=1).all()
    assert list(trace.actions[[0, 10, 20, 30], 6]) == [-1, -1, 1, 1]


def test_asynchronous_holds_for_the_first_answer_only(tmp_path):
    row, trace = played(tmp_path, {"name": "asynchronous"}, latency_ms=200)
    assert row.info["holds"] == 4
    assert not trace.actions[:4, :6].any()
    assert trace.actions[4:, :6].any(axis=1).all()


def test_an_answer_older_than_its_chunk_moves_nothing(tmp_path):
    row, trace = played(tmp_path, {"name": "asynchronous"}, latency_ms=400)
    assert (row.outcome, row.info["holds"]) == ("failure", N_STEPS)
    assert not trace.actions[:, :6].any()


@pytest.mark.parametrize("schedule", [{}, {"name": "asynchronous"}])
def test_a_film_of_every_step_changes_nothing(tmp_path, schedule):
    plain = played(tmp_path, schedule, latency_ms=100)[1]
    filmed = played(tmp_path, schedule, latency_ms=100, video="all")[1]
    assert plain.sha256() == filmed.sha256()


@pytest.mark.parametrize(
    ("latency_ms", "ticks"), [(0.0, 0), (0.1, 1), (50.0, 1), (50.1, 2), (150.0, 3), (400.0, 8)]
)
def test_latency_counts_in_whole_control_steps(tmp_path, latency_ms, ticks):
    worker = WorkerSettings(
        make_simulator=FakeEnv, action_spec=SPEC, run_dir=tmp_path, latency_ms=latency_ms
    )
    assert worker.delay_ticks == ticks


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"schedule": "asynchronous", "n_execute": 4}, "schedule asynchronous has no n_execute"),
        ({"ask_every": 4}, "schedule open_loop has no ask_every"),
        ({"schedule": "ensemble", "blend": 0.5}, "schedule ensemble has no blend"),
        ({"schedule": "asynchronous", "ask_every": 9}, "choose 1 to 8"),
        ({"schedule": "asynchronus"}, "did you mean 'asynchronous'"),
        ({"latency_ms": -1.0}, "rollout.latency_ms is -1.0; use 0 or more"),
        ({"latency_ms": float("nan")}, "rollout.latency_ms is nan"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_sentence(tmp_path, chosen, said):
    suite = SuiteInfo(
        name="fake_reach",
        tasks=(TaskInfo(task_id=0, name="reach", n_init_states=50),),
        action_spec=SPEC,
    )
    with pytest.raises(ContractError, match=said):
        prepare(RolloutSettings(run_dir=tmp_path, **chosen), suite=suite, action_spec=SPEC)


def script(name, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def rollout(out_dir, *overrides):
    return script(
        "rollout",
        "suite=fake_reach",
        "checkpoint=fake",
        "rollout.tasks=[0]",
        "rollout.preflight=false",
        "rollout.video=none",
        f"out_dir={out_dir}",
        "name=run",
        *overrides,
    )


@pytest.fixture(scope="module")
def delayed(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("delayed")
    done = rollout(out_dir, "rollout.schedule=asynchronous", "rollout.latency_ms=100")
    assert done.returncode == 0, done.stderr
    return out_dir / "run"


def test_an_unusual_schedule_is_part_of_what_a_run_is(delayed):
    defines = read_header(delayed).defines
    assert schedule_of(defines) == (ScheduleSettings(name="asynchronous"), 100.0)
    assert all(row.info["holds"] == 2 for row in read_rows(delayed))
    answer = rollout(delayed.parent, "rollout.schedule=asynchronous", "rollout.latency_ms=150")
    assert answer.returncode == 2
    assert "latency_ms: the run has 100, now it is 150" in answer.stderr


def test_a_schedule_that_comes_too_late_for_every_action_is_said(tmp_path):
    done = rollout(
        tmp_path,
        *("rollout.schedule=asynchronous", "rollout.latency_ms=400", "rollout.init_states=1"),
    )
    assert done.returncode == 0, done.stderr
    assert "the arm will stand still: after 400 ms all 8 actions" in done.stderr


def test_a_usual_one_leaves_no_mark_so_that_older_runs_are_continued(tmp_path):
    done = rollout(tmp_path, "rollout.init_states=1", "rollout.workers=1")
    assert done.returncode == 0, done.stderr
    defines = read_header(tmp_path / "run").defines
    assert not {"schedule", "latency_ms"} & set(defines)
    assert schedule_of(defines) == (ScheduleSettings(n_execute=8), 0.0)


def test_a_replay_asks_the_policy_with_the_same_schedule_and_latency(delayed):
    name = read_rows(delayed)[0].name
    done = script("replay", delayed, name, "mode=policy")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["agrees"]
    refused = script("replay", delayed, name)
    assert refused.returncode == 2
    assert "replay it with the policy (mode=policy)" in refused.stderr
