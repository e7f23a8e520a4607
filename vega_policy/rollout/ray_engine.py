"""The same loop on several machines: simulators and policies as Ray actors.

A simulator actor plays a whole episode with the `Worker` of the local engine, asks an inference
actor at every chunk, and returns the row together with the files of the episode as bytes. Only this
process writes, so no file system has to be shared. Ray is asked for three things: where there is a
free core, what has died, and to carry the messages.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vega_policy.rollout.ledger import storage_fault
from vega_policy.rollout.messages import Broken, Run, WorkerSettings
from vega_policy.rollout.ray_actors import (
    LOADING_S,
    InferenceActor,
    Played,
    SimulatorActor,
)
from vega_policy.rollout.schedule import (
    Attempts,
    EngineSettings,
    JobQueue,
    OnFault,
    Task,
    task_of,
)
from vega_policy.spec import ContractError, EnvFault, EpisodeResult, StorageFault
from vega_policy.spec.files import write_atomic
from vega_policy.spec.processes import worker_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

    from vega_policy.rollout.messages import Missing
    from vega_policy.rollout.plan import Job
    from vega_policy.spec import Policy

log = logging.getLogger(__name__)

_PATIENCE_S = 20.0
"""How often the loop looks whether the cluster still has a core, while nothing else happens."""


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """Which cluster, and how the policy is spread over it; nothing here changes a row."""

    address: str | None = None
    """Of a running cluster (``auto``, or host:port of its head); None starts one here, which ends
    with the run."""
    n_inference: int = 1
    """Processes that hold the policy; simulators are dealt out among them."""
    gpus_per_inference: float = 0.0
    """GPUs each of them reserves."""


class RayEngine:
    """Plays episodes on a Ray cluster; see `vega_policy.rollout.schedule.Engine`."""

    def __init__(
        self,
        *,
        make_policies: Callable[[], Mapping[str, Policy]],
        worker: WorkerSettings,
        settings: EngineSettings,
        cluster: RaySettings,
        on_fault: OnFault | None = None,
    ) -> None:
        """Set up; nothing starts before `run`.

        Args:
            make_policies: Makes the policies by arm, in each inference actor. It travels by pickle,
                so it holds the path of a checkpoint and not its weights; the path must exist
                wherever an inference actor may run.
            worker: What every simulator actor is told; ``run_dir`` is on this machine.
            settings: How the work is spread.
            cluster: Where it is spread.
            on_fault: Called with job, attempt and message whenever a simulator breaks.
        """
        self._make_policies = make_policies
        self._worker = worker
        self._settings = settings
        self._cluster = cluster
        self._on_fault = on_fault

    def run(self, jobs: Iterable[Job]) -> Generator[EpisodeResult | Missing]:
        """Play the episodes and yield each as it ends, in no particular order.

        Raises:
            ContractError: The user has to act: Ray is missing, no cluster answers, a node has other
                versions, policy and simulator disagree.
            EnvFault: Simulators break one after the other, or the cluster has no core left.
            StorageFault: A disk refuses, here or on a node.
        """
        queue = JobQueue(jobs)
        if not len(queue):
            return
        attempts = Attempts(
            queue, self._settings, self._on_fault, where="Ray's session folder on its node"
        )
        with _connected(self._cluster, n_workers=self._settings.n_workers) as ray:
            session = _Session(
                ray,
                settings=self._settings,
                cluster=self._cluster,
                make_policies=self._make_policies,
                worker=self._worker,
                queue=queue,
                attempts=attempts,
            )
            try:
                session.start()
                while session.pending:
                    yield from session.turn()
            finally:
                session.end()


@dataclass(eq=False)
class _Seat:
    """A place for one simulator actor; the actor may be replaced."""

    inference: Any
    actor: Any = None
    run: Run | None = None
    task: Task | None = None


class _Session:
    """The state of one `RayEngine.run`."""

    def __init__(
        self,
        ray: Any,  # noqa: ANN401 - the module
        *,
        settings: EngineSettings,
        cluster: RaySettings,
        make_policies: Callable[[], Mapping[str, Policy]],
        worker: WorkerSettings,
        queue: JobQueue,
        attempts: Attempts,
    ) -> None:
        self.pending: dict[Any, _Seat] = {}
        """What is being played, by Ray's reference to the outcome."""
        self._ray = ray
        self._settings = settings
        self._cluster = cluster
        self._make_policies = make_policies
        self._worker = worker
        self._queue = queue
        self._attempts = attempts
        self._inference: list[Any] = []
        self._seats: list[_Seat] = []

    def start(self) -> None:
        """Start the actors and give each simulator its first episode."""
        n_workers = min(self._settings.n_workers, len(self._queue), self._n_cores())
        n_inference = min(self._cluster.n_inference, n_workers)
        inference = self._ray.remote(InferenceActor).options(
            num_cpus=0,  # while it computes, simulators that asked it leave their cores idle
            num_gpus=self._cluster.gpus_per_inference,
            max_restarts=self._settings.max_restarts,
            max_task_retries=-1,  # Ray may ask again: an answer depends on nothing else
            scheduling_strategy="SPREAD",
        )
        wanted = n_inference * self._cluster.gpus_per_inference
        there = float(self._ray.cluster_resources().get("GPU", 0.0))
        if wanted > there:
            raise ContractError(
                f"{n_inference} inference actors want {wanted:g} GPUs, the cluster has {there:g}; "
                "lower rollout.inference_actors, or use device=cpu"
            )
        self._inference = [
            inference.remote(self._make_policies, self._settings) for _ in range(n_inference)
        ]
        for problem in self._get([actor.problem.remote() for actor in self._inference]):
            if problem is not None:
                raise problem
        self._seats = [_Seat(self._inference[i % n_inference]) for i in range(n_workers)]
        for seat in self._seats:
            self._employ(seat)
        self._tell_clients()

    def turn(self) -> Iterator[EpisodeResult | Missing]:
        """Sleep until an episode ends or breaks, and take what came of it."""
        ready, _ = self._ray.wait(list(self.pending), num_returns=1, timeout=_PATIENCE_S)
        if not ready:
            self._n_cores()
        for reference in ready:
            yield from self._hear(reference)

    def end(self) -> None:
        """Kill the actors: Ray frees their cores at once."""
        for actor in [*self._inference, *(seat.actor for seat in self._seats)]:
            if actor is not None:
                with suppress(Exception):  # a connection that is gone took them along
                    self._ray.kill(actor)

    def _hear(self, reference: Any) -> Iterator[EpisodeResult | Missing]:  # noqa: ANN401
        seat = self.pending.pop(reference)
        run = seat.run
        if run is None:
            raise RuntimeError("an outcome of nothing")
        try:
            said: Played | Broken = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            said = Broken(_shortly(error), "simulator")
        match said:
            case Played() as played:
                result = self._keep(played)
                self._attempts.ended()
                self._employ(seat)
                yield result
            case Broken(detail, "contract"):
                raise ContractError(detail)
            case Broken(detail, "storage"):
                raise StorageFault(detail)
            case Broken(detail):
                self._ray.kill(seat.actor)
                seat.actor = seat.task = seat.run = None
                missing = self._attempts.broke(run, detail)
                # Whoever went idle may be needed again for the episode that was put back.
                for free in [s for s in self._seats if s.run is None]:
                    self._employ(free)
                if missing is not None:
                    yield missing

    def _employ(self, seat: _Seat) -> None:
        taken = {s.task for s in self._seats if s is not seat and s.run is not None}
        job = self._queue.take(seat.task, taken)
        if job is None:
            if seat.actor is not None:
                self._ray.kill(seat.actor)
            seat.actor = seat.task = seat.run = None
            self._tell_clients()
            return
        if seat.actor is None:
            seat.actor = self._simulator(seat.inference)
        seat.task = task_of(job)
        seat.run = self._attempts.start(job)
        self.pending[seat.actor.play.remote(seat.run)] = seat

    def _simulator(self, inference: Any) -> Any:  # noqa: ANN401 - Ray's handles
        """Start a simulator actor; its environment is set before its Python starts."""
        drawing = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
        base = {name: os.environ[name] for name in drawing if name in os.environ}
        simulator = self._ray.remote(SimulatorActor).options(
            num_cpus=1,
            max_restarts=0,  # its episode may be another's by then
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": worker_environment(base)},
        )
        return simulator.remote(self._worker, inference, self._settings.timeout_s)

    def _keep(self, played: Played) -> EpisodeResult:
        """Write the files of an episode, before its row exists."""
        run_dir = self._worker.run_dir
        for path, content in played.files.items():
            try:
                write_atomic(run_dir / path, content)
            except OSError as error:
                raise storage_fault(error, run_dir) from error
        return played.result

    def _tell_clients(self) -> None:
        """Say how many may ask at the same time, so that nobody waits for one who cannot come."""
        for actor in self._inference:
            n_clients = sum(s.run is not None for s in self._seats if s.inference is actor)
            if n_clients:
                actor.expect.remote(n_clients)

    def _get(self, references: list[Any]) -> list[Any]:
        try:
            return self._ray.get(references, timeout=LOADING_S)
        except self._ray.exceptions.RayError as error:
            raise EnvFault(f"no inference actor could be started: {_shortly(error)}") from error

    def _n_cores(self) -> int:
        n_cores = int(self._ray.cluster_resources().get("CPU", 0))
        if n_cores < 1:
            raise EnvFault(
                "the Ray cluster has no CPU left; add a node and start the same command again"
            )
        return n_cores


@contextmanager
def _connected(cluster: RaySettings, *, n_workers: int) -> Generator[Any]:
    """Give the module `ray`, connected; a cluster that was started here ends with the block."""
    # Ray reads these from the environment only, and the first at its import.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions as failures
    except ImportError as error:
        raise ContractError(
            "rollout.engine=ray needs Ray; pip install -e '.[ray]' -c constraints.txt, or use "
            "rollout.engine=local"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.address is None:
        options |= {"num_cpus": n_workers, "include_dashboard": False}
        options |= {"object_store_memory": 256 * 2**20}
    else:
        options |= {"address": cluster.address}
    try:
        _require_listener(cluster.address)
        ray.init(**options)
    except (OSError, ValueError, RuntimeError, failures.RayError) as error:
        raise ContractError(
            f"no Ray cluster at {cluster.address or 'this machine'}: {_shortly(error)}; start one "
            "with `ray start --head`, or set rollout.ray_address=null"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_listener(address: str | None) -> None:
    """Raise `OSError` where nobody listens; Ray itself would try for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and "//" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10.0).close()


def _shortly(error: Exception) -> str:
    """Return the gist of one of Ray's messages, which may be pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:400]}"
