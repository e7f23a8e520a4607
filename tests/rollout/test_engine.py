"""An episode is the same whoever plays it, and nothing that breaks takes another down."""

import contextlib
import dataclasses
import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from vega_policy.rollout import engine as engine_module
from vega_policy.rollout.engine import LocalEngine, answer_arms
from vega_policy.rollout.frames import FrameBoard
from vega_policy.rollout.messages import Missing, WorkerSettings
from vega_policy.rollout.plan import Job
from vega_policy.rollout.schedule import EngineSettings
from vega_policy.rollout.trace import Trace
from vega_policy.rollout.worker import Worker
from vega_policy.spec import ActionSpec, ContractError, EnvFault, EpisodeKey
from vega_policy.testing.fake_env import FakeEnv, Fault
from vega_policy.testing.fake_policy import FakePolicy, fake_arms

KEYS = [EpisodeKey("fake_reach", t, i) for t in range(2) for i in range(3)]
JOBS = [Job(key) for key in KEYS]


class Bench:
    """Runs episodes and keeps what was reported."""

    def __init__(self, folder):
        self.folder = folder
        self.faults = []
        self.policy = FakePolicy()
        self.policies = {"full": self.policy}

    def engine(self, *, make_simulator=FakeEnv, n_workers=2, video="none", **settings):
        return LocalEngine(
            policies=self.policies,
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
    return sorted(rows, key=lambda r: r.name)


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


def test_sixteen_workers_give_the_rows_and_files_of_one_with_arms_and_perturbations(tmp_path):
    arms = ("full", "gate_clamped")
    jobs = [
        Job(EpisodeKey("fake_reach", t, i, perturbation=p), arm)
        for t in (0, 1)
        for p in ("none", "wind-1")
        for i in range(2)
        for arm in arms
    ]
    found = []
    for n_workers in (1, 16):
        bench = Bench(tmp_path / str(n_workers))
        bench.policies = fake_arms(arms)
        rows = timeless(bench.run(jobs, n_workers=n_workers))
        files = {
            p.relative_to(bench.folder): p.read_bytes() for p in bench.folder.glob("*/*.[nm]p*")
        }
        found.append((rows, files))
    assert [row.name for row in found[0][0]] == sorted(job.name for job in jobs)
    assert len({row.state_sha256 for row in found[0][0]}) == len(jobs)
    assert len(found[0][1]) == 2 * len(jobs)
    assert found[0] == found[1]


def test_rendering_every_step_changes_no_row(bench):
    seen = timeless(bench.run(JOBS[:2], video="chunks"))
    every = timeless(bench.run(JOBS[:2], video="all"))
    assert seen == every
    assert len(list((bench.folder / "videos").glob("*.mp4"))) == 2


class Watched(FakeEnv):
    """Counts the images it draws and remembers what it was told to do."""

    def __init__(self, **options):
        super().__init__(**options)
        self.n_drawn, self.actions = 0, []

    def _draw(self, *where):
        self.n_drawn += 1
        return super()._draw(*where)

    def step_chunk(self, actions, **how):
        self.actions.append(actions)
        return super().step_chunk(actions, **how)


def play_here(folder, job, *, video, policy=None, max_steps=None):
    """Play an episode in this process."""
    env = Watched(suite="fake_reach", task_id=job.key.task_id, camera_px=32)
    policy = policy or FakePolicy()
    settings = WorkerSettings(
        make_simulator=lambda **_: env,
        action_spec=policy.action_spec,
        run_dir=folder,
        video=video,
        max_steps=max_steps,
    )
    worker = Worker(
        settings=settings, ask=lambda j, ask: answer_arms({"full": policy}, [(j, ask)])[0]
    )
    return worker.play(job, attempt=1), env


@pytest.mark.parametrize("max_steps", [None, 12])
def test_without_a_video_only_what_the_policy_sees_is_rendered(tmp_path, max_steps):
    rows = {}
    for video in ("none", "chunks", "all"):
        row, env = play_here(tmp_path, JOBS[0], video=video, max_steps=max_steps)
        extra = {"none": 0, "chunks": 1, "all": row.n_steps - row.n_chunks + 1}[video]
        assert env.n_drawn == 2 * (row.n_chunks + extra)
        rows[video] = dataclasses.replace(row, wall_s=0.0, info={})
    assert rows["none"] == rows["chunks"] == rows["all"]
    assert rows["none"].outcome == ("success" if max_steps is None else "failure")


@pytest.mark.parametrize("how", ["nan", "raises", "short"])
def test_nothing_of_a_bad_chunk_reaches_the_simulator(tmp_path, how):
    row, env = play_here(tmp_path, JOBS[0], video="chunks", policy=FakePolicy(misbehaves=how))
    assert row.outcome == "policy_fault"
    assert env.actions == []
    assert len(Trace.load(tmp_path / row.info["trace"]).actions) == 0


def test_a_board_grows_with_the_images_and_shows_what_was_written_last():
    writer = FrameBoard.make()
    reader = FrameBoard(os.dup(writer.descriptor))
    rng = np.random.default_rng(0)
    for px in (4, 64, 300, 16):
        images = {c: rng.integers(0, 256, (px, px, 3), dtype=np.uint8) for c in ("a", "b")}
        seen = reader.read(writer.write(images))
        assert all((seen[c] == images[c]).all() for c in images)
        assert not any(image.flags.writeable for image in seen.values())
    writer.write({c: 255 - images[c] for c in images})
    assert (seen["a"] == 255 - images["a"]).all()
    with pytest.raises(ContractError, match="float64 values, expected uint8"):
        writer.write({"a": np.zeros((2, 2, 3))})
    writer.close()
    reader.close()
    assert (seen["b"] == 255 - images["b"]).all()


def test_no_named_memory_is_left_by_killed_processes(bench):
    before = set(Path("/dev/shm").iterdir())  # noqa: S108
    outcomes = bench.engine(make_simulator=partial(FakeEnv, step_s=0.01)).run(JOBS)
    next(outcomes)
    n_open = len(list(Path("/proc/self/fd").iterdir()))
    for pid in _children(os.getpid()):
        os.kill(pid, signal.SIGKILL)
    outcomes.close()
    assert not set(Path("/dev/shm").iterdir()) - before  # noqa: S108
    assert len(list(Path("/proc/self/fd").iterdir())) < n_open


def test_the_loop_sleeps_while_simulators_work(bench, monkeypatch):
    n_wakes = 0
    plain = engine_module.wait

    def counted(*arguments):
        nonlocal n_wakes
        n_wakes += 1
        return plain(*arguments)

    monkeypatch.setattr(engine_module, "wait", counted)
    started, cpu = time.monotonic(), time.process_time()
    rows = bench.run(JOBS[:2], make_simulator=partial(FakeEnv, step_s=0.05), n_workers=2)
    assert time.monotonic() - started > 0.05 * max(r.n_steps for r in rows)
    # A wake-up for every message, and one for every batch that stopped waiting for others.
    assert n_wakes <= sum(2 * r.n_chunks + 1 for r in rows)
    assert time.process_time() - cpu < 0.5


def test_batches_are_bounded_in_size_and_delay(bench):
    bench.policy.act_s = 0.02
    bench.run(n_workers=4, max_batch=2, max_delay_ms=10_000.0)
    assert max(bench.policy.batch_sizes) == 2
    # Nobody else can come: the batch goes although the delay has not passed.
    started = time.monotonic()
    bench.run(JOBS[:1], n_workers=4, max_delay_ms=10_000.0)
    assert time.monotonic() - started < 10


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


@pytest.mark.parametrize("failure", [MemoryError("no memory"), OSError("device lost")])
def test_a_machine_that_fails_under_the_policy_is_no_outcome(bench, monkeypatch, failure):
    act, calls = bench.policy.act, []

    def fail_later(batch, *, keys):
        calls.append(batch)
        if len(calls) > 8:
            raise failure
        return act(batch, keys=keys)

    monkeypatch.setattr(bench.policy, "act", fail_later)
    rows = []
    with (
        pytest.raises(EnvFault, match="machine failed"),
        contextlib.closing(bench.engine(n_workers=1).run(JOBS)) as outcomes,
    ):
        rows += outcomes
    assert not [row for row in rows if row.outcome == "policy_fault"]


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
    """Workers of this process; multiprocessing keeps a helper of its own beside them."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError):
            if b"rollout.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


@pytest.mark.sim
def test_libero_draws_no_image_that_nobody_sees(monkeypatch):
    from envs import LiberoEnv

    env = LiberoEnv(suite="libero_object", task_id=0, camera_px=32)
    drawn = []
    plain = env._image
    monkeypatch.setattr(env, "_image", lambda camera: drawn.append(camera) or plain(camera))
    actions = np.zeros((4, 7))
    try:
        env.reset(options={"init_state_id": 0})
        env.max_steps = 12
        for n_drawn, how in (
            (4, {}),
            (6, {"look_when_over": False}),
            (6, {"look_when_over": False}),
        ):
            observation, _, _, is_over, _ = env.step_chunk(actions, **how)
            assert len(drawn) == n_drawn
            assert ("agentview" in observation) is not is_over
    finally:
        env.close()
