"""From a plan to a ledger and a report."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from vega_policy.control import ScheduleSettings, build_schedule
from vega_policy.control.schedule import ScheduleName
from vega_policy.rollout.doctor import keep
from vega_policy.rollout.engine import LocalEngine
from vega_policy.rollout.ledger import Ledger, RunHeader, job_of, storage_fault
from vega_policy.rollout.messages import Missing, VideoMode, WorkerSettings
from vega_policy.rollout.plan import CLEAN, Plan, Starts, SuiteInfo, choose
from vega_policy.rollout.provenance import commit, host, versions
from vega_policy.rollout.schedule import Engine, EngineSettings
from vega_policy.rollout.statistics import Summary, groups, summarise
from vega_policy.spec import CAMERAS, FULL_ARM, ContractError, EpisodeResult
from vega_policy.spec.names import nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from vega_policy.rollout.doctor import Verdict
    from vega_policy.rollout.schedule import OnFault
    from vega_policy.spec import ActionSpec, Policy, Simulator

log = logging.getLogger(__name__)


EngineName = Literal["local", "ray"]


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """What the user may choose about a rollout."""

    run_dir: Path
    """Results go here; a directory with a ledger is continued."""
    tasks: str | int | list[int] = "all"
    init_states: int | list[int] = 2
    """The first so many initial states, or their numbers."""
    seed: int = 0
    perturbations: tuple[str, ...] = (CLEAN,)
    """What the simulator changes; every episode is played once with each."""
    repetitions: int = 1
    arms: tuple[str, ...] = (FULL_ARM,)
    """Variants of the policy; every episode is played by each, on the same random draws."""
    starts: Starts = "evaluation"
    """``sampled``: placements drawn anew, on which a checkpoint may be chosen."""
    max_steps: int | None = None
    """Step limit; None is the benchmark's."""
    schedule: ScheduleName = "open_loop"
    """What turns chunks into actions, see `vega_policy.control.schedule`."""
    n_execute: int | None = None
    """Actions applied per inference, of ``open_loop``; None is the whole chunk."""
    ask_every: int | None = None
    """Control steps between two inferences, of ``asynchronous``."""
    blend: float = 1.0
    """Weight of the newest chunk, of ``asynchronous``."""
    decay: float = 0.01
    """Of ``ensemble``."""
    latency_ms: float = 0.0
    """Simulated time from an observation to its chunk."""
    workers: int | None = None
    """Simulator processes; None is `default_workers`."""
    max_batch: int = 16
    max_delay_ms: float = 5.0
    max_restarts: int = 3
    timeout_s: float = 180.0
    engine: EngineName = "local"
    """``local``: processes of this machine; ``ray``: actors on a cluster."""
    ray_address: str | None = None
    """See `vega_policy.rollout.ray_engine.RaySettings`."""
    inference_actors: int = 1
    """Processes that hold the policy, with ``ray``."""
    shard: str | None = None
    """``0/4``: the first of four parts of the episodes, for `vega_policy.rollout.merge`."""
    video: VideoMode = "chunks"
    cameras: tuple[str, ...] = CAMERAS
    """Cameras in the videos, from left to right."""
    draw_gate: bool = True
    show_progress: bool = True

    def problems(self) -> list[str]:
        """List what cannot be meant, one sentence each."""
        found: list[str] = []
        modes = get_args(VideoMode)
        if self.video not in modes:
            found.append(f"unknown rollout.video {self.video!r}; {nearest(str(self.video), modes)}")
        engines = get_args(EngineName)
        if self.engine not in engines:
            found.append(f"unknown rollout.engine {self.engine!r}; {nearest(self.engine, engines)}")
        found += [
            f"unknown camera {name!r}; {nearest(name, CAMERAS)}"
            for name in self.cameras
            if name not in CAMERAS
        ]
        if not self.cameras:
            found.append(f"rollout.cameras is empty; choose among {', '.join(CAMERAS)}")
        for name in ("workers", "max_batch", "max_steps", "n_execute", "inference_actors"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):
                found.append(f"rollout.{name} is {value!r}; use a whole number of at least 1")
            elif value is not None and value < 1:
                found.append(f"rollout.{name} is {value}; use at least 1")
        for name in ("max_delay_ms", "max_restarts"):
            if getattr(self, name) < 0:
                found.append(f"rollout.{name} is {getattr(self, name)}; use 0 or more")
        if not 0 <= self.latency_ms < 60_000:
            found.append(f"rollout.latency_ms is {self.latency_ms}; use 0 or more, in milliseconds")
        if self.timeout_s <= 0:
            found.append(f"rollout.timeout_s is {self.timeout_s}; use a number above 0")
        return found


@dataclass(frozen=True, kw_only=True)
class RolloutResult:
    """What a rollout came to."""

    summaries: Mapping[tuple[str, str], Summary]
    """By arm and perturbation, over every episode in the ledger, those of earlier starts
    included; what differs in either is never counted together."""
    missing: tuple[Missing, ...]
    """Planned episodes without a row, since their simulator broke every time."""
    run_dir: Path
    report: Path


def prepare(settings: RolloutSettings, *, suite: SuiteInfo, action_spec: ActionSpec) -> Plan:
    """Check everything that can be checked before anything is written.

    Args:
        settings: What the user asked for.
        suite: What there is to run.
        action_spec: What the policy's numbers mean.

    Raises:
        ContractError: Something does not fit; every problem is listed.
    """
    problems = settings.problems()
    problems += action_spec.disagreements(
        suite.action_spec, ours="the checkpoint", theirs="the simulator"
    )
    plan: Plan | None = None
    for check in (
        lambda: choose(
            suite,
            tasks=settings.tasks,
            init_states=settings.init_states,
            perturbations=settings.perturbations,
            repetitions=settings.repetitions,
            arms=settings.arms,
            seed=settings.seed,
            starts=settings.starts,
            shard=settings.shard,
        ),
        lambda: build_schedule(schedule_settings(settings), action_spec),
    ):
        try:
            made = check()
        except ContractError as error:
            problems.append(str(error))
        else:
            plan = made if isinstance(made, Plan) else plan
    if problems or plan is None:
        raise ContractError(problems[0] if len(problems) == 1 else _listed(problems))
    return plan


def evaluate(
    settings: RolloutSettings,
    *,
    suite: SuiteInfo,
    policies: Mapping[str, Policy],
    make_simulator: Callable[..., Simulator],
    defines: Mapping[str, Any],
    configuration: Mapping[str, Any],
    verdict: Verdict | None = None,
    make_policies: Callable[[], Mapping[str, Policy]] | None = None,
) -> RolloutResult:
    """Play what is not in the ledger yet, record it, and write the report.

    Args:
        settings: What the user asked for.
        suite: What there is to run.
        policies: By arm; asked in this thread. Empty with ``engine="ray"``.
        make_simulator: See `WorkerSettings.make_simulator`.
        defines: What decides the rows beside these settings: checkpoint hash, device, image size.
        configuration: The resolved configuration, for the record.
        verdict: What the preflight found, for the record.
        make_policies: Makes the policies by arm in another process, for ``engine="ray"``.

    Raises:
        ContractError: The settings do not fit, or the run was made with others.
        EnvFault: No simulator works.
        StorageFault: The disk refuses; what is recorded is whole.
    """
    [action_spec] = {policy.action_spec for policy in policies.values()} or {suite.action_spec}
    plan = prepare(settings, suite=suite, action_spec=action_spec)
    # A cluster that is there has the cores it has; the engine takes no more.
    is_cluster = settings.engine == "ray" and settings.ray_address is not None
    most = len(plan.jobs()) if is_cluster else default_workers(settings.engine)
    n_workers = settings.workers or most
    header = RunHeader(
        defines={
            **defines,
            "suite": suite.name,
            "seed": plan.seed,
            "starts": plan.starts,
            "max_steps": settings.max_steps,
            # Also where the whole chunk is meant: two checkpoints may have unequal ones.
            "n_execute": settings.n_execute or action_spec.horizon,
            **_unusual(settings),
        },
        versions=versions(),
        plans=[plan.to_json()],
        configuration=configuration,
        host={**host(), "workers": n_workers},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        doctor={} if verdict is None else verdict.short,
    )
    run_dir = settings.run_dir
    with Ledger.open(run_dir, header) as ledger:
        try:
            keep(verdict, run_dir)
        except OSError as error:
            raise storage_fault(error, run_dir) from error
        todo = plan.remaining(map(job_of, ledger.rows))
        log.info(
            "%s: %d episodes to play, %d in the ledger, %d workers",
            run_dir,
            len(todo),
            len(ledger.rows),
            n_workers,
        )
        worker = WorkerSettings(
            make_simulator=make_simulator,
            action_spec=action_spec,
            run_dir=run_dir.resolve(),
            schedule=schedule_settings(settings),
            latency_ms=settings.latency_ms,
            max_steps=settings.max_steps,
            video=settings.video,
            cameras=settings.cameras,
            draw_gate=settings.draw_gate,
            made_with=made_with(header),
        )
        if settings.schedule != "open_loop" and worker.delay_ticks >= action_spec.horizon:
            log.warning(
                "the arm will stand still: after %g ms all %d actions of a chunk are past, and "
                "schedule %s drops those",
                settings.latency_ms,
                action_spec.horizon,
                settings.schedule,
            )
        engine = _engine(
            settings,
            policies={arm: policies[arm] for arm in plan.arms if policies},
            make_policies=make_policies,
            worker=worker,
            n_workers=n_workers,
            gpus=float(str(defines.get("device", "")).startswith("cuda")),
            on_fault=lambda job, attempt, detail: ledger.note_fault(
                job, attempt=attempt, detail=detail
            ),
        )
        missing = _play(engine, ledger, plan, settings)
        rows = ledger.rows
    from vega_policy.rollout.report import write_report

    try:
        report = write_report(run_dir)
    except OSError as error:
        raise storage_fault(error, run_dir) from error
    return RolloutResult(
        summaries={
            group: summarise(part, task_ids=plan.task_ids) for group, part in groups(rows).items()
        },
        missing=tuple(missing),
        run_dir=run_dir,
        report=report,
    )


def schedule_settings(settings: RolloutSettings) -> ScheduleSettings:
    """Return the part that is about the schedule."""
    return ScheduleSettings(
        name=settings.schedule,
        n_execute=settings.n_execute,
        ask_every=settings.ask_every,
        blend=settings.blend,
        decay=settings.decay,
    )


def _unusual(settings: RolloutSettings) -> dict[str, Any]:
    """Return what decides the rows and is not as published; absent where it is, as in older runs."""
    found: dict[str, Any] = {}
    if settings.schedule != "open_loop":
        chosen = asdict(schedule_settings(settings))
        found["schedule"] = {k: v for k, v in chosen.items() if k != "n_execute"}
    if settings.latency_ms:
        found["latency_ms"] = settings.latency_ms
    return found


def schedule_of(defines: Mapping[str, Any]) -> tuple[ScheduleSettings, float]:
    """Return the schedule and the latency in milliseconds that a run was made with."""
    unusual = defines.get("schedule")
    if unusual is not None:
        settings = ScheduleSettings(**unusual)
    else:
        settings = ScheduleSettings(n_execute=defines.get("n_execute"))
    return settings, float(defines.get("latency_ms", 0.0))


def _engine(
    settings: RolloutSettings,
    *,
    policies: Mapping[str, Policy],
    make_policies: Callable[[], Mapping[str, Policy]] | None,
    worker: WorkerSettings,
    n_workers: int,
    gpus: float,
    on_fault: OnFault,
) -> Engine:
    spread = EngineSettings(
        n_workers=n_workers,
        max_batch=settings.max_batch,
        max_delay_ms=settings.max_delay_ms,
        max_restarts=settings.max_restarts,
        timeout_s=settings.timeout_s,
    )
    if settings.engine == "local":
        return LocalEngine(
            policies=policies,
            worker=worker,
            settings=spread,
            log_dir=settings.run_dir / "logs",
            on_fault=on_fault,
        )
    from vega_policy.rollout.ray_engine import RayEngine, RaySettings

    if make_policies is None:
        raise ValueError("engine='ray' needs make_policies")
    return RayEngine(
        make_policies=make_policies,
        worker=worker,
        settings=spread,
        cluster=RaySettings(
            address=settings.ray_address,
            n_inference=settings.inference_actors,
            gpus_per_inference=gpus,
        ),
        on_fault=on_fault,
    )


def default_workers(engine: str) -> int:
    """Return how many simulators this machine gets.

    One more than there are cores: there is always one that waits for the policy. Ray counts a core
    for each.
    """
    n_cores = len(os.sched_getaffinity(0))
    return n_cores + 1 if engine == "local" else n_cores


def made_with(header: RunHeader) -> dict[str, str]:
    """Return what every row carries of its header, so that it means something elsewhere."""
    return {
        "checkpoint_sha256": str(header.defines.get("checkpoint_sha256", "")),
        **header.versions,
        "cpu_class": str(header.host.get("cpu_class", "")),
        "renderer": str(header.host.get("renderer", "")),
        "commit": header.commit,
    }


def _play(engine: Engine, ledger: Ledger, plan: Plan, settings: RolloutSettings) -> list[Missing]:
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    planned = set(plan.jobs())
    done = [row for row in ledger.rows if job_of(row) in planned]
    todo = plan.remaining(map(job_of, done))
    missing: list[Missing] = []
    won = sum(row.outcome == "success" for row in done)
    started = time.monotonic()
    played: list[EpisodeResult] = []
    bar = tqdm(
        total=len(planned),
        initial=len(done),
        unit="ep",
        file=sys.stderr,
        disable=not settings.show_progress,
        mininterval=0.2 if sys.stderr.isatty() else 20.0,
        dynamic_ncols=True,
    )
    with bar, logging_redirect_tqdm(), closing(engine.run(todo)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Missing):
                missing.append(outcome)
                log.error("%s has no row: %s", outcome.job.name, outcome.detail)
                continue
            ledger.append(outcome)
            played.append(outcome)
            won += outcome.outcome == "success"
            bar.set_postfix_str(f"{won} of {len(done) + len(played)} succeeded", refresh=False)
            bar.update()
    if played:
        ledger.note_start(
            {
                "wall_s": round(time.monotonic() - started, 3),
                "episodes": len(played),
                "control_steps": sum(row.n_steps for row in played),
            }
        )
    return missing


def _listed(problems: list[str]) -> str:
    return f"{len(problems)} settings cannot be used:\n  " + "\n  ".join(problems)
