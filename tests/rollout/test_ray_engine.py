"""A cluster gives the rows of one machine, whatever of it dies."""

import contextlib
import dataclasses
import os
import signal
from functools import partial

import pytest

from vega_policy.rollout.engine import LocalEngine
from vega_policy.rollout.evaluate import RolloutSettings, evaluate
from vega_policy.rollout.ledger import read_rows
from vega_policy.rollout.messages import WorkerSettings
from vega_policy.rollout.plan import Job, SuiteInfo, TaskInfo
from vega_policy.rollout.ray_engine import RayEngine, RaySettings
from vega_policy.rollout.schedule import EngineSettings
from vega_policy.spec import ActionSpec, ContractError, EpisodeKey
from vega_policy.testing import fake_env
from vega_policy.testing.fake_env import FakeEnv, Fault
from vega_policy.testing.fake_policy import fake_arms

pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

ARMS = ("full", "gate_clamped")
JOBS = [Job(EpisodeKey("fake_reach", t, i), a) for t in (0, 1) for i in range(2) for a in ARMS]
SUITE = SuiteInfo(
    name="fake_reach",
    tasks=tuple(TaskInfo(task_id=t, name=f"reach_{t}", n_init_states=50) for t in range(2)),
    action_spec=ActionSpec(),
    perturbations=fake_env.PERTURBATIONS,
    arms=ARMS,
)


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on this machine; the first has the head, one core each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        # Ray's own patience with a silent node is 15 s.
        soon = {"health_check_period_ms": 500, "health_check_failure_threshold": 2}
        made = cluster_utils.Cluster(
            initialize_head=True, head_node_args={**node, "_system_config": soon}
        )
        made.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        yield made
        made.shutdown()


def play_both(cluster, folder, jobs=JOBS, *, make_simulator=FakeEnv, make_policies=None, **options):
    """Yield what the cluster plays, then compare with what this machine plays."""
    settings = EngineSettings(n_workers=2, **options)
    engine = RayEngine(
        make_policies=make_policies or partial(fake_arms, ARMS),
        worker=worker(folder / "ray", make_simulator),
        settings=settings,
        cluster=RaySettings(address=cluster.address, n_inference=1),
        on_fault=lambda job, attempt, detail: faults.append((job, attempt, detail)),
    )
    faults = []
    rows = []
    with contextlib.closing(engine.run(jobs)) as outcomes:
        for row in outcomes:
            rows.append(row)
            yield row, faults
    local = LocalEngine(
        policies=fake_arms(ARMS),
        worker=worker(folder / "local", FakeEnv),
        settings=EngineSettings(n_workers=1),
        log_dir=folder / "logs",
    )
    assert timeless(rows) == timeless(local.run(jobs))
    names = sorted(p.name for p in (folder / "local" / "traces").iterdir())
    assert names == sorted(p.name for p in (folder / "ray" / "traces").iterdir())


def worker(run_dir, make_simulator):
    return WorkerSettings(
        make_simulator=make_simulator, action_spec=ActionSpec(), run_dir=run_dir, video="none"
    )


def timeless(rows):
    bare = []
    for row in rows:
        info = {k: v for k, v in row.info.items() if k != "run"}
        made_with = {k: v for k, v in row.made_with.items() if k != "cpu_class"}
        bare.append(dataclasses.replace(row, wall_s=0.0, info=info, made_with=made_with))
    return sorted(bare, key=lambda r: r.name)


def test_the_ledger_and_its_files_are_those_of_one_machine(cluster, tmp_path):
    for engine in ("local", "ray"):
        evaluate(
            RolloutSettings(
                run_dir=tmp_path / engine,
                tasks=[0],
                init_states=1,
                perturbations=("none", "wind-1"),
                arms=ARMS,
                workers=2,
                engine=engine,
                ray_address=cluster.address,
                inference_actors=2,
                show_progress=False,
            ),
            suite=SUITE,
            policies=fake_arms(ARMS) if engine == "local" else {},
            make_policies=partial(fake_arms, ARMS),
            make_simulator=partial(FakeEnv, camera_px=64),
            defines={"checkpoint_sha256": "fake"},
            configuration={},
        )
    local, ray = (tmp_path / engine for engine in ("local", "ray"))
    assert len(read_rows(ray)) == 4
    assert timeless(read_rows(ray)) == timeless(read_rows(local))
    for folder in ("videos", "gates", "traces"):
        files = {p.name: p.read_bytes() for p in (ray / folder).iterdir()}
        assert files == {p.name: p.read_bytes() for p in (local / folder).iterdir()}
        assert len(files) == 4


def test_processes_that_die_or_hang_cost_time_and_no_episode(cluster, tmp_path):
    counter = tmp_path / "policy"

    def deadly_policies():
        policies = fake_arms(ARMS)
        plain = policies["full"]._chunk

        def chunk(observation, key):
            if not counter.exists():
                counter.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(observation, key)

        policies["full"]._chunk = chunk
        return policies

    kinds = {"kill": (0, 1), "hang": (1, 0)}
    faults = [
        Fault(kind=kind, task_id=t, init_state_id=i, counter=tmp_path / kind)
        for kind, (t, i) in kinds.items()
    ]
    make = partial(FakeEnv, faults=faults)
    outcomes = list(
        play_both(
            cluster, tmp_path, make_simulator=make, make_policies=deadly_policies, timeout_s=3.0
        )
    )
    assert counter.exists()
    struck = {(job.key.task_id, job.key.init_state_id) for job, *_ in outcomes[-1][1]}
    assert struck == set(kinds.values())
    assert {row.info["run"]["attempt"] for row, _ in outcomes} == {1, 2}


def test_simulators_start_with_their_environment_and_same_versions(cluster, tmp_path):
    def make(**_):
        started_with = open("/proc/self/environ").read()  # noqa: PTH123, SIM115
        raise ContractError(f"install it; {'OMP_NUM_THREADS=1' in started_with}")

    with pytest.raises(ContractError, match="install it; True"):
        list(play_both(cluster, tmp_path, JOBS[:1], make_simulator=make))
    engine = RayEngine(
        make_policies=partial(fake_arms, ARMS),
        worker=dataclasses.replace(worker(tmp_path, FakeEnv), made_with={"numpy": "0.1"}),
        settings=EngineSettings(n_workers=1),
        cluster=RaySettings(address=cluster.address),
    )
    with pytest.raises(ContractError, match=r"numpy is 1.*the run has 0.1"):
        list(engine.run(JOBS[:1]))


def test_a_policy_that_cannot_be_made_ends_the_run(cluster, tmp_path):
    def make_policies():
        raise ContractError("there is no such checkpoint on this node")

    with pytest.raises(ContractError, match="on this node"):
        list(play_both(cluster, tmp_path, JOBS[:1], make_policies=make_policies))


def test_a_node_that_is_killed_costs_time_and_no_episode(cluster, tmp_path):
    seen = []
    slow = partial(FakeEnv, step_s=0.01)
    for outcome in play_both(cluster, tmp_path, make_simulator=slow):
        seen.append(outcome)
        if len(seen) == 1:
            [lost] = [node for node in cluster.list_all_nodes() if not node.head]
            cluster.remove_node(lost, allow_graceful=False)
    assert 1 <= len(seen[-1][1]) <= 2


def test_no_cluster_is_one_sentence(tmp_path):
    engine = RayEngine(
        make_policies=partial(fake_arms, ARMS),
        worker=worker(tmp_path, FakeEnv),
        settings=EngineSettings(n_workers=1),
        cluster=RaySettings(address="127.0.0.1:1"),
    )
    with pytest.raises(ContractError, match=r"rollout\.ray_address"):
        list(engine.run(JOBS[:1]))
