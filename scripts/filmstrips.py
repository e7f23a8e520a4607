"""Show demonstrations as strips of frames: one JPEG for each suite, a row for each task.

python scripts/filmstrips.py data_dir=data/demonstrations out=docs/images/expert
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra_cli import run

from envs.filmstrips import write_filmstrips
from vega_policy.spec import ContractError


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Write a picture for each suite."""
    if config["n_frames"] < 2:
        raise ContractError(f"n_frames is {config['n_frames']}, expected 2 or more")
    out, missing = Path(config["out"]), {}
    for suite in config["suites"]:
        missing[suite] = write_filmstrips(
            Path(config["data_dir"]),
            suite,
            out / f"{suite}.jpg",
            n_frames=config["n_frames"],
            quality=config["quality"],
        )
    return {"out": str(out), "missing": {s: ids for s, ids in missing.items() if ids}}


if __name__ == "__main__":
    run("filmstrips", main)
