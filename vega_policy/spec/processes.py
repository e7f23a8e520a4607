"""Processes that simulate: what they inherit, and how they end."""

from __future__ import annotations

import os
import platform
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


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
