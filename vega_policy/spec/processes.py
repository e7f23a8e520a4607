"""Processes: what they inherit, how they end, and what they do with memory they freed."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's ``mallopt``, from ``malloc.h``."""


def keep_freed_memory() -> bool:
    """Let the C library keep what this process frees, for the next array of that size.

    By default glibc hands large arrays back to the system when they are freed, and the next one comes as
    fresh pages that have to be cleared. An update on a CPU frees and asks for the same sizes again and
    again, and a fifth of its time goes there. No number changes; the process stays at its peak.

    Returns:
        Whether the C library could be told: glibc can, others are left alone.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    wanted = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**28}
    return all(library.mallopt(name, value) == 1 for name, value in wanted.items())


def worker_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of a simulator process.

    One thread per process: two processes with two threads each are 10 % slower than with one on
    two cores. LP_NUM_THREADS=0 keeps Mesa's software rasteriser in the calling thread. A fixed
    OpenBLAS kernel makes trajectories equal bit by bit across x86 processors.
    """
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    fixed = dict.fromkeys(threads, "1") | {"LP_NUM_THREADS": "0", "PYTHONUNBUFFERED": "1"}
    if platform.machine() in {"x86_64", "AMD64"}:
        fixed["OPENBLAS_CORETYPE"] = "Haswell"
    return {**base, **fixed}


def end_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone, even while a simulator call hangs.

    Args:
        parent: Its process number, told by itself: asked for here it could be another's already.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
