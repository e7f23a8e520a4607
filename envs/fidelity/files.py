"""Hashes of the benchmark's own files: problem definitions, initial states, assets."""
# pyright: basic

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from envs.installed import libero_module, quiet
from envs.suites import SUITES, init_states, tasks

Digests = dict[str, str]


def problem_digests(suite: str) -> Digests:
    """Hash each task's problem file and the numbers of its initial states.

    Numbers, not bytes, of the initial states: distributions pack the same states differently.
    """
    found: Digests = {}
    for task in tasks(suite):
        text = task.bddl_file.read_bytes().replace(b"\r\n", b"\n")
        found[f"{task.name}.bddl"] = _digest(text)
        states = init_states(suite, task.task_id)
        found[f"{task.name}.init"] = _digest(repr(states.shape).encode() + states.tobytes())
    return found


def asset_sizes() -> dict[str, int]:
    """Return the size in bytes of every file below the asset folder."""
    root = asset_root()
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in files}


def asset_digests(*, which: Literal["xml", "all"]) -> Digests:
    """Hash the scene descriptions, or everything (650 MB, about 1 s when cached)."""
    root = asset_root()
    names = [name for name in asset_sizes() if which == "all" or name.endswith(".xml")]
    with ThreadPoolExecutor(max_workers=2) as pool:
        digests = pool.map(lambda name: _digest((root / name).read_bytes()), names)
        return dict(zip(names, digests, strict=True))


def asset_root() -> Path:
    """Return the folder of meshes, textures and scene descriptions."""
    with quiet():
        return Path(libero_module("libero.libero").get_libero_path("assets"))


def digests() -> dict[str, Any]:
    """Return everything that is compared, as shipped in ``files.json``."""
    sizes = asset_sizes()
    assets = asset_digests(which="all")
    return {
        **{suite: problem_digests(suite) for suite in SUITES},
        "assets": {name: [sizes[name], assets[name]] for name in sizes},
    }


def _digest(data: bytes) -> str:
    # BLAKE2 is several times faster than SHA-256 where the processor has no instruction for it.
    return hashlib.blake2b(data, digest_size=8).hexdigest()
