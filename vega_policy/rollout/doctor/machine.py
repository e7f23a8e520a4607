"""Is this machine fit for the rollout? Facts are read once, then judged; reading costs 0.3 s."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import logging
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vega_policy.spec.probe import judge, run_probe, skipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vega_policy.spec import Check

log = logging.getLogger(__name__)

GB = 1e9
SIMULATOR_GB = 1.7
"""Resident memory of one LIBERO worker, most of it textures."""
TOY_GB = 0.1
"""The same of a simulator from `vega_policy.testing`."""
_MAIN_GB = 1.0
"""The main process without the policy's weights: torch, queues, the report."""
_EPISODE_MB = 0.2
"""Gate maps and trace of one episode, generously."""
_VIDEO_MB = 0.3
"""Its video at 128 px, generously."""
_WORKERS_PER_CORE = 2
"""While the policy computes on the same cores, its simulators wait; so more of them than cores
find work: 4 on 2 cores 65 control steps/s, 2 on 2 cores 51 (256 px, the shipped checkpoint)."""
_FILES_PER_WORKER = 32
_SAMPLE_S = 0.25

_CGROUPS = Path("/sys/fs/cgroup")

_check = partial(judge, "machine")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a rollout asks of the machine."""

    run_dir: Path
    """Results go here; need not exist yet."""
    n_workers: int
    """Simulator processes on this machine."""
    simulator_gb: float = SIMULATOR_GB
    """Memory of each."""
    policy_gb: float = 0.0
    """Weights still to be loaded; 0 where the policy is in memory already."""
    n_episodes: int = 0
    """Episodes still to be played."""
    has_video: bool = True
    device: str | None = None
    """``cuda``, ``cpu``, or None for whatever there is."""
    torch_threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU, as its driver describes it."""

    name: str
    total_gb: float
    free_gb: float
    driver: str = ""
    """Its version; empty where torch was asked."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts about this machine; what could not be read is None."""

    available_gb: float | None
    """Memory that can be had now, the limit of a container included."""
    total_gb: float | None
    cores: int
    """Cores this process may use, a container's quota included."""
    others_busy: float | None
    """Cores kept busy by other processes, over a quarter of a second."""
    disk_free_gb: float | None
    file_system: str | None
    """What the run directory's file system cannot do; empty where all is well."""
    gpus: tuple[Gpu, ...] | None
    """Those this process may use; None where nobody can be asked: no nvidia-smi, no torch yet."""
    torch_cuda: str | None
    """CUDA version torch was built with; None where it was built without, or there is no torch."""
    architecture: str
    cpu_flags: frozenset[str] | None
    environment: Mapping[str, str]
    has_memfd: bool
    open_files: int
    """Soft limit of open files."""


def machine_checks(needs: Needs, *, machine: Machine | None = None) -> Iterator[Check]:
    """Judge a machine.

    Args:
        needs: What is to be run.
        machine: Facts; None reads those of this machine.
    """
    found = read_machine(needs.run_dir) if machine is None else machine
    for name, probe in (
        ("memory", _memory),
        ("cores", _cores),
        ("load", _load),
        ("disk_space", _disk_space),
        ("file_system", _file_system),
        ("gpu", _gpu),
        ("cpu_instructions", _cpu_instructions),
        ("thread_variables", _thread_variables),
        ("shared_memory", _shared_memory),
        ("open_files", _open_files),
    ):
        yield run_probe("machine", name, partial(probe, needs, found))


def _memory(needs: Needs, machine: Machine) -> Check:
    if machine.available_gb is None:
        return skipped("machine", "memory", "the available memory cannot be read here")
    wanted = needs.n_workers * needs.simulator_gb + needs.policy_gb + _MAIN_GB
    per_worker = max(needs.simulator_gb, 0.01)
    fit = max(int((machine.available_gb - needs.policy_gb - _MAIN_GB) / per_worker), 0)
    fit = min(fit, _most_workers(needs, machine))
    weights = f", {needs.policy_gb:.1f} GB of weights" if needs.policy_gb else ""
    return _check(
        "memory",
        f"{machine.available_gb:.1f} GB available",
        expected=f"{wanted:.1f} GB for {needs.n_workers} workers of {needs.simulator_gb:g} GB"
        f"{weights} and {_MAIN_GB:g} GB for the main process",
        fix=f"set rollout.workers={fit}, or end other programs"
        if fit
        else "end other programs: not even one worker fits",
        is_failed=machine.available_gb < wanted,
        is_warning=machine.available_gb < 1.15 * wanted,
    )


def _cores(needs: Needs, machine: Machine) -> Check:
    most = _most_workers(needs, machine)
    return _check(
        "cores",
        f"{machine.cores} cores for {needs.n_workers} workers and {needs.torch_threads} threads "
        "of the policy",
        expected=f"at most {most} workers, and {machine.cores} threads of the policy",
        fix=f"set rollout.workers={most} and rollout.torch_threads=1; more take memory and give "
        "nothing",
        is_warning=needs.n_workers > most or needs.torch_threads > machine.cores,
    )


def _most_workers(needs: Needs, machine: Machine) -> int:
    """Return how many workers find work on these cores."""
    is_on_gpu = needs.device != "cpu" and bool(machine.gpus) and machine.torch_cuda is not None
    return machine.cores + 1 if is_on_gpu else machine.cores * _WORKERS_PER_CORE


def _load(needs: Needs, machine: Machine) -> Check:  # noqa: ARG001 - one signature for all
    if machine.others_busy is None:
        return skipped("machine", "load", "other processes cannot be seen here")
    return _check(
        "load",
        f"other processes keep {machine.others_busy:.1f} of {machine.cores} cores busy",
        expected="next to none while something is timed",
        fix="results stay right, but times and throughput mean nothing: wait, or end the others",
        is_warning=machine.others_busy > 0.15 * machine.cores + 0.1,
    )


def _disk_space(needs: Needs, machine: Machine) -> Check:
    if machine.disk_free_gb is None:
        return skipped("machine", "disk_space", "the free space cannot be read here")
    episode_mb = _EPISODE_MB + (_VIDEO_MB if needs.has_video else 0.0)
    wanted = 0.2 + needs.n_episodes * episode_mb / 1e3
    return _check(
        "disk_space",
        f"{machine.disk_free_gb:.1f} GB free for {needs.run_dir}",
        expected=f"{wanted:.1f} GB for {needs.n_episodes} episodes "
        f"{'with' if needs.has_video else 'without'} video",
        fix="make room, choose another out_dir, or set rollout.video=none",
        is_failed=machine.disk_free_gb < wanted,
        is_warning=machine.disk_free_gb < 2 * wanted,
    )


def _file_system(needs: Needs, machine: Machine) -> Check:
    problem = machine.file_system
    return _check(
        "file_system",
        problem or "locks, renames in one step, and flushes to the disk",
        expected="flock, fsync and atomic rename work where the ledger goes",
        fix=f"choose an out_dir on a local disk instead of {needs.run_dir.parent}",
        is_failed=bool(problem),
    )


def _gpu(needs: Needs, machine: Machine) -> Check:
    expected = {
        "cuda": "a GPU, its driver, and a torch built for CUDA",
        "cpu": "nothing, device=cpu",
    }.get(needs.device or "", "a GPU with a torch built for CUDA, or neither")
    torch_says = f"torch is built {f'for CUDA {machine.torch_cuda}' if machine.torch_cuda else 'without CUDA'}"
    if not machine.gpus:
        is_unknown = machine.gpus is None
        return _check(
            "gpu",
            f"{'no nvidia-smi to ask about a GPU' if is_unknown else 'no NVIDIA GPU'}; {torch_says}",
            expected=expected,
            fix="set device=cpu, or install the driver, and look at CUDA_VISIBLE_DEVICES",
            is_failed=needs.device == "cuda" and not (is_unknown and machine.torch_cuda),
            is_warning=needs.device == "cuda",
        )
    gpu = machine.gpus[0]
    found = (
        f"{len(machine.gpus)} x {gpu.name}, {gpu.free_gb:.0f} of {gpu.total_gb:.0f} GB free; "
        f"{f'driver {gpu.driver}; ' if gpu.driver else ''}{torch_says}"
    )
    is_unused = machine.torch_cuda is None
    is_full = gpu.free_gb < needs.policy_gb + 2.0
    wants_it = needs.device != "cpu"
    return _check(
        "gpu",
        found,
        expected=expected,
        fix="install a torch built for CUDA" if is_unused else "free the GPU's memory first",
        is_failed=needs.device == "cuda" and (is_unused or is_full),
        is_warning=wants_it and (is_unused or is_full),
    )


def _cpu_instructions(needs: Needs, machine: Machine) -> Check:  # noqa: ARG001
    if machine.cpu_flags is None or machine.architecture not in ("x86_64", "AMD64"):
        return skipped("machine", "cpu_instructions", f"not an x86 CPU ({machine.architecture})")
    flags = machine.cpu_flags
    missing = [name for name in ("avx2", "fma") if name not in flags]
    half = next((f for f in ("amx_bf16", "avx512_bf16", "avx_ne_convert") if f in flags), "no")
    return _check(
        "cpu_instructions",
        f"lacks {', '.join(missing)}" if missing else f"avx2, fma; {half} bfloat16",
        expected="avx2 and fma: the CPU class whose trajectories are equal bit by bit",
        fix="compare success rates only: trajectories made here differ from others' in the last "
        "bits, and after contacts in more (1e-16 at step 0, up to 1e-4 later)",
        is_warning=bool(missing),
    )


def _thread_variables(needs: Needs, machine: Machine) -> Check:
    """Workers set their own; these are the main process's, where the policy thinks."""
    values: dict[str, str] = {}
    too_many: list[str] = []
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS"):
        value = machine.environment.get(name)
        if value is None:
            continue
        values[name] = value
        wanted = int(value) if value.isdecimal() else 1
        if wanted > 1 and wanted + needs.n_workers > machine.cores + 1:
            too_many.append(f"{name}={value}")
    kernel = machine.environment.get("OPENBLAS_CORETYPE")
    is_other_kernel = kernel not in (None, "Haswell", "Zen")
    problems = [*too_many, *([f"OPENBLAS_CORETYPE={kernel}"] if is_other_kernel else [])]
    listed = ", ".join(f"{k}={v}" for k, v in values.items()) or "none set"
    return _check(
        "thread_variables",
        ", ".join(problems) if problems else listed,
        expected="one thread per process, and OPENBLAS_CORETYPE unset, Haswell or Zen",
        fix=f"unset {', '.join(p.partition('=')[0] for p in problems)}: two workers with two "
        "threads each are 10 % slower than with one, other kernels change the last bits",
        is_warning=bool(problems),
    )


def _shared_memory(needs: Needs, machine: Machine) -> Check:  # noqa: ARG001
    return _check(
        "shared_memory",
        "memfd works" if machine.has_memfd else "memfd_create is refused",
        expected="memory without a name (memfd), for the images between simulators and policy",
        fix="allow memfd_create in the container's seccomp profile; it needs Linux",
        is_failed=not machine.has_memfd,
    )


def _open_files(needs: Needs, machine: Machine) -> Check:
    wanted = 128 + _FILES_PER_WORKER * needs.n_workers
    return _check(
        "open_files",
        f"a process may open {machine.open_files} files",
        expected=f"at least {wanted} for {needs.n_workers} workers",
        fix=f"ulimit -n {max(4096, wanted)}",
        is_failed=machine.open_files < wanted,
    )


# -- reading ------------------------------------------------------------------------------------


def read_machine(run_dir: Path) -> Machine:
    """Read the facts; writes one small file beside the run directory and removes it."""
    place = _nearest_folder(run_dir)
    memory = _numbers_of("/proc/meminfo", unit=1024 / GB)
    limit, used = _container_memory()
    available, total = memory.get("MemAvailable"), memory.get("MemTotal")
    if limit is not None and used is not None and (total is None or limit < total):
        left = limit - used
        total, available = limit, left if available is None else min(available, left)
    try:
        free = shutil.disk_usage(place).free / GB
    except OSError:
        free = None
    return Machine(
        available_gb=available,
        total_gb=total,
        cores=_usable_cores(),
        others_busy=_busy_others(),
        disk_free_gb=free,
        file_system=_try_file_system(place),
        gpus=_gpus_of_torch() or _gpus(),
        torch_cuda=_torch_cuda(),
        architecture=platform.machine(),
        cpu_flags=_cpu_flags(),
        environment=dict(os.environ),
        has_memfd=_has_memfd(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def _nearest_folder(path: Path) -> Path:
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.is_dir())


def _numbers_of(path: str, *, unit: float) -> dict[str, float]:
    try:
        text = Path(path).read_text()
    except OSError:
        return {}
    rows = re.findall(r"^(\w+):\s+(\d+)", text, flags=re.MULTILINE)
    return {name: int(value) * unit for name, value in rows}


def _container_memory() -> tuple[float | None, float | None]:
    """Return limit and use of the control group in GB, of version 2 or 1.

    Files that were read and may be forgotten, say a checkpoint, are not in use.
    """
    for folder, limit, usage, forgettable in (
        (_CGROUPS, "memory.max", "memory.current", "inactive_file"),
        (
            _CGROUPS / "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        with contextlib.suppress(OSError, ValueError):
            most, used = (int((folder / name).read_text()) for name in (limit, usage))
            with contextlib.suppress(OSError, ValueError):
                rows = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used -= next((int(row[1]) for row in rows if row[0] == forgettable), 0)
            return most / GB, max(used, 0) / GB
    return None, None


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_CGROUPS / "cpu.max").read_text().split()
        cores = min(cores, max(1, int(int(quota) / int(period))))
    return cores


def _busy_others() -> float | None:
    """Return the cores other processes keep busy."""

    def busy() -> float:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, irq, softirq = (int(value) for value in fields[:7])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")

    try:
        before, mine, started = busy(), time.process_time(), time.monotonic()
        time.sleep(_SAMPLE_S)
        after, mine_after, ended = busy(), time.process_time(), time.monotonic()
    except (OSError, ValueError):
        return None
    return max(0.0, (after - before - (mine_after - mine)) / (ended - started))


def _try_file_system(place: Path) -> str | None:
    """Return what does not work in a folder, or an empty text."""
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as folder:
            first, second = Path(folder) / "first", Path(folder) / "second"
            with first.open("wb") as handle:
                handle.write(b"row\n")
                handle.flush()
                os.fsync(handle.fileno())
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    with first.open("rb") as other:
                        try:
                            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        except BlockingIOError:
                            pass
                        else:
                            return "a second lock is granted: two runs could write one ledger"
                except OSError as error:
                    return f"flock fails ({error})"
            second.write_bytes(b"old")
            first.replace(second)
            if second.read_bytes() != b"row\n":
                return "a rename over a file leaves the old one"
    except OSError as error:
        return f"cannot be written ({error})"
    return ""


def _gpus_of_torch() -> tuple[Gpu, ...] | None:
    """Ask torch about the GPU it uses, where a policy lies there already."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    free, total = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    return (Gpu(name=name, total_gb=total / GB, free_gb=free / GB),)


def _gpus() -> tuple[Gpu, ...] | None:
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        answer = subprocess.run(
            [  # noqa: S607 - whichever the user has
                "nvidia-smi",
                "--query-gpu=name,memory.total,memory.free,driver_version,uuid",
                "--format=csv,noheader,nounits",
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("nvidia-smi: %s", error)
        return None
    return parse_gpus(answer, visible=os.environ.get("CUDA_VISIBLE_DEVICES"))


def parse_gpus(answer: str, *, visible: str | None = None) -> tuple[Gpu, ...]:
    """Read the table of nvidia-smi; rows it cannot describe are left out.

    Args:
        answer: Name, MiB in all, MiB free, driver and UUID of one GPU a line.
        visible: CUDA_VISIBLE_DEVICES: numbers, or beginnings of UUIDs; what follows a wrong one
            is not used. None is all of them.
    """
    found: dict[str, Gpu] = {}
    for line in answer.strip().splitlines():
        parts = [part.strip() for part in line.split(",")]
        with contextlib.suppress(ValueError):
            name, total, free, driver, uuid = parts
            mib = 2**20 / GB
            found[uuid] = Gpu(
                name=name, total_gb=float(total) * mib, free_gb=float(free) * mib, driver=driver
            )
    if visible is None:
        return tuple(found.values())
    chosen: list[Gpu] = []
    for word in (part.strip() for part in visible.split(",")):
        fitting = [
            gpu
            for number, (uuid, gpu) in enumerate(found.items())
            if word == str(number) or (word.startswith("GPU-") and uuid.startswith(word))
        ]
        if not fitting:
            break
        chosen.append(fitting[0])
    return tuple(chosen)


def _torch_cuda() -> str | None:
    """Return what torch was built for, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return None
    match = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", text, flags=re.MULTILINE)
    return match.group(1) if match else None


def _cpu_flags() -> frozenset[str] | None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    match = re.search(r"^flags\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return frozenset(match.group(1).split()) if match else None


def _has_memfd() -> bool:
    try:
        os.close(os.memfd_create("doctor"))
    except (OSError, AttributeError):
        return False
    return True
